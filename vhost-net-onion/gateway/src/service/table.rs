//! The connections to services that are not yet, or never will be, flows like others; and what is done to them.
//!
//! Stands between [`crate::tcp`] and the pump: it takes the events of its own flows away and tells the pump of them when
//! they have a target. As many are bounded by `half_open_max`, like SYNs that wait for their far end; when there are more,
//! the oldest that the pump knows nothing of ends; and so does one that has said nothing for a minute.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    time::Instant,
};

use bytes::Bytes;
use wire::identity::Answer;

use super::{Context, Phase, Service, Step, dns, identity, is_served};
use crate::{
    Event, Failure, FlowId, Gateway, Host, Target, Unresolved,
    address::{self, Kind},
    resolver::Asker,
};

/// Bytes that a VM may send after it was told that the connection ends.
const THROWN_AWAY_BYTES_MAX: usize = 256 * 1024;

/// The connections, and what is to be told to the pump about them.
#[derive(Debug)]
pub(crate) struct Services {
    of: BTreeMap<FlowId, Service>,
    services_max: usize,
    /// Ended for want of room, unknown to the pump: their `Closed` is still to come, and nobody's business.
    ended: BTreeSet<FlowId>,
    /// A few for each connection, over its whole life.
    events: VecDeque<Event>,
}

impl Services {
    /// None yet, and at most so many at once.
    pub(crate) fn new(services_max: usize) -> Services {
        Services { of: BTreeMap::new(), services_max, ended: BTreeSet::new(), events: VecDeque::new() }
    }

    /// The next event for the pump.
    pub(crate) fn poll_event(&mut self) -> Option<Event> {
        self.events.pop_front()
    }

    /// Whether the flow is one of these.
    pub(crate) fn contains(&self, flow: FlowId) -> bool {
        self.of.contains_key(&flow)
    }
}

impl Gateway {
    /// Takes an event of TCP if it is about a service, else gives it back for the pump.
    pub(crate) fn serve(&mut self, event: Event) -> Option<Event> {
        let flow = match &event {
            Event::Connect { flow, target, .. } => {
                if !is_own(target) {
                    return Some(event);
                }
                self.begin_service(*flow, target.port);
                return None;
            }
            Event::Accepted(_) | Event::Declined(..) => return Some(event),
            Event::Readable(flow) | Event::Writable(flow) | Event::Finished(flow) | Event::Closed(flow) => *flow,
        };
        if self.services.ended.contains(&flow) {
            if matches!(event, Event::Closed(_)) {
                self.services.ended.remove(&flow);
            }
            return None;
        }
        let Some(mut service) = self.services.of.remove(&flow) else { return Some(event) };
        let was_flushed = service.output.is_empty();
        match event {
            Event::Closed(_) => return service.announced.then_some(event),
            Event::Readable(_) => service.readable = true,
            Event::Finished(_) => service.finished = true,
            Event::Writable(_) | Event::Connect { .. } | Event::Accepted(_) | Event::Declined(..) => {}
        }
        self.drive_service(flow, &mut service);
        let is_for_pump = match event {
            Event::Writable(_) => was_flushed || service.output.is_empty(),
            // The pump is told once it has what came before.
            Event::Finished(_) => service.input.is_empty(),
            _ => true,
        };
        let event = (service.phase == Phase::Passing && is_for_pump).then_some(event);
        self.keep_service(flow, service);
        event
    }

    /// The pump's `connected` for a service's flow.
    pub(crate) fn service_connected(&mut self, flow: FlowId) {
        let Some(mut service) = self.services.of.remove(&flow) else { return };
        if service.phase == Phase::Connecting {
            service.phase = Phase::Passing;
            service.reply_to_connect(Ok(()));
            self.drive_service(flow, &mut service);
            if service.readable && service.input.is_empty() {
                // Perhaps all of it was the request.
                let data = self.with_tcp(self.now, |tcp, around| tcp.recv(around, flow));
                service.input.extend_from_slice(&data.unwrap_or_default());
            }
            if !service.input.is_empty() {
                self.services.events.push_back(Event::Readable(flow));
            }
            if service.finished && service.input.is_empty() {
                self.services.events.push_back(Event::Finished(flow));
            }
        }
        self.keep_service(flow, service);
    }

    /// The pump's `failed`: the VM is told in the protocol's words.
    pub(crate) fn service_failed(&mut self, now: Instant, flow: FlowId, why: Failure) {
        let Some(mut service) = self.services.of.remove(&flow) else { return };
        if service.phase == Phase::Connecting {
            service.reply_to_connect(Err(why));
            self.close_service(flow, &mut service);
        } else {
            self.with_tcp(now, |tcp, around| tcp.reset(around, flow));
        }
        self.keep_service(flow, service);
    }

    /// The pump's `resolved`: the answer goes to the VM, and the next question is looked at. Without one it is the end.
    pub(crate) fn service_resolved(&mut self, flow: FlowId, answer: Option<&[u8]>) {
        let Some(mut service) = self.services.of.remove(&flow) else { return };
        if service.phase == Phase::Resolving {
            if let Some(answer) = answer {
                service.phase = Phase::Talking;
                dns::put(answer, &mut service.output);
                self.drive_service(flow, &mut service);
            } else {
                self.close_service(flow, &mut service);
            }
        }
        self.keep_service(flow, service);
    }

    /// The pump's `answered`: the answer goes to the VM, and that is the end.
    pub(crate) fn service_answered(&mut self, flow: FlowId, answer: &Answer) {
        let Some(mut service) = self.services.of.remove(&flow) else { return };
        if service.phase == Phase::Asking {
            identity::put(answer, &mut service.output);
            self.close_service(flow, &mut service);
        }
        self.keep_service(flow, service);
    }

    /// The pump's `send`: nothing passes before the reply has.
    pub(crate) fn service_send(&mut self, now: Instant, flow: FlowId, data: &mut Bytes) {
        let Some(mut service) = self.services.of.remove(&flow) else { return };
        self.drive_service(flow, &mut service);
        if service.phase == Phase::Passing && service.output.is_empty() {
            self.with_tcp(now, |tcp, around| tcp.send(around, flow, data));
        }
        self.keep_service(flow, service);
    }

    /// The pump's `recv`: what came behind the request goes first.
    pub(crate) fn service_recv(&mut self, now: Instant, flow: FlowId) -> Option<Bytes> {
        let mut service = self.services.of.remove(&flow)?;
        let data = match service.phase {
            Phase::Passing => service.take_rest(),
            Phase::Talking | Phase::Resolving | Phase::Asking | Phase::Connecting | Phase::Closing => None,
        };
        if data.is_some() && service.finished {
            self.services.events.push_back(Event::Finished(flow));
        }
        let is_passing = service.phase == Phase::Passing;
        self.keep_service(flow, service);
        match data {
            None if is_passing => self.with_tcp(now, |tcp, around| tcp.recv(around, flow)),
            data => data,
        }
    }

    /// The pump's `finish`.
    pub(crate) fn service_finish(&mut self, flow: FlowId) {
        let Some(mut service) = self.services.of.remove(&flow) else { return };
        service.finish_wanted |= service.phase == Phase::Passing;
        self.drive_service(flow, &mut service);
        self.keep_service(flow, service);
    }

    fn begin_service(&mut self, flow: FlowId, port: u16) {
        self.services.of.insert(flow, Service::new(port));
        self.counters.services_begun += 1;
        self.with_tcp(self.now, |tcp, around| {
            tcp.connected(around, flow);
            tcp.set_awaited(flow, true);
        });
        if self.services.of.len() > self.services.services_max {
            // There is at least the new one.
            let oldest = self.services.of.iter().find(|(_, service)| !service.announced).map(|(flow, _)| *flow);
            if let Some(oldest) = oldest {
                self.counters.services_evicted += 1;
                self.services.of.remove(&oldest);
                self.services.ended.insert(oldest);
                self.with_tcp(self.now, |tcp, around| tcp.reset(around, oldest));
            }
        }
    }

    /// Does all that can be done now.
    fn drive_service(&mut self, flow: FlowId, service: &mut Service) {
        while service.phase == Phase::Talking {
            self.flush_service(flow, service);
            if !service.output.is_empty() {
                return;
            }
            let Gateway { names, counters, now, policy, .. } = self;
            match service.talk(&mut Context { now: *now, policy: &**policy, names, counters }) {
                Step::Read => {
                    let Some(data) = self.with_tcp(self.now, |tcp, around| tcp.recv(around, flow)) else {
                        service.readable = false;
                        if service.finished {
                            self.close_service(flow, service);
                        }
                        break;
                    };
                    service.input.extend_from_slice(&data);
                }
                Step::Flush => {}
                Step::Connect(target, credential) => {
                    service.phase = Phase::Connecting;
                    service.announced = true;
                    self.with_tcp(self.now, |tcp, _| tcp.set_awaited(flow, false));
                    self.services.events.push_back(Event::Connect { flow, target, credential });
                }
                Step::Resolve(question) => match self.resolver.ask(question, Asker::Tcp(flow)) {
                    None => service.phase = Phase::Resolving,
                    Some(question) => match question.answer(Err(Unresolved::Failed)) {
                        Some(answer) => dns::put(&answer, &mut service.output),
                        None => self.close_service(flow, service),
                    },
                },
                Step::Ask(question) => match self.asks.ask(self.now, question, flow) {
                    Ok(()) => {
                        self.counters.asks += 1;
                        service.phase = Phase::Asking;
                    }
                    Err(refusal) => {
                        self.counters.asks_refused += 1;
                        identity::put(&refusal, &mut service.output);
                        self.close_service(flow, service);
                    }
                },
                Step::Close => {
                    self.counters.services_ended += 1;
                    self.close_service(flow, service);
                }
            }
        }
        self.flush_service(flow, service);
        if service.phase == Phase::Closing {
            self.throw_away(flow, service);
        }
    }

    /// Begins the end: what is in `output` goes to the VM, then a FIN.
    fn close_service(&mut self, flow: FlowId, service: &mut Service) {
        service.phase = Phase::Closing;
        service.finish_wanted = true;
        self.flush_service(flow, service);
        self.throw_away(flow, service);
    }

    fn flush_service(&mut self, flow: FlowId, service: &mut Service) {
        if !service.output.is_empty() {
            let mut data = service.output.split().freeze();
            self.with_tcp(self.now, |tcp, around| tcp.send(around, flow, &mut data));
            service.output.extend_from_slice(&data);
        }
        if service.finish_wanted && service.output.is_empty() {
            service.finish_wanted = false;
            self.with_tcp(self.now, |tcp, around| tcp.finish(around, flow));
        }
    }

    /// Takes what a VM still sends, so that its FIN arrives.
    fn throw_away(&mut self, flow: FlowId, service: &mut Service) {
        service.input.clear();
        while let Some(data) = self.with_tcp(self.now, |tcp, around| tcp.recv(around, flow)) {
            service.thrown_away += data.len();
            if service.thrown_away > THROWN_AWAY_BYTES_MAX {
                return self.with_tcp(self.now, |tcp, around| tcp.reset(around, flow));
            }
        }
    }

    fn keep_service(&mut self, flow: FlowId, service: Service) {
        if !service.is_done() {
            self.services.of.insert(flow, service);
        }
    }
}

/// Whether TCP's target is a service, not something behind the gateway.
fn is_own(target: &Target) -> bool {
    matches!(target.host, Host::Address(address) if address::kind(address) == Kind::Gateway) && is_served(target.port)
}
