//! The pump of one VM: between the link, the gateway and the flows' tasks.
//!
//! A session outlives its link: when the port restarts, the next link is served by the same session, and the VM's
//! connections go on. Everything that a session holds is bounded by its gateway's tables.

mod calls;

use std::{
    collections::{HashMap, VecDeque},
    future::{Future, poll_fn},
    net::IpAddr,
    panic::resume_unwind,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::{Duration, Instant, SystemTime},
};

use bytes::Bytes;
use gateway::{AskId, Config, Event, Failure, FlowId, Gateway, QueryId, Unresolved};
use tokio::{
    sync::{
        OwnedSemaphorePermit,
        mpsc::{self, error::TrySendError},
    },
    task::JoinSet,
    time::Sleep,
};
use wire::{
    identity::Answer,
    link::{Abilities, Message},
};

use crate::{
    carrier::{Arrival, Carrier, LinkError},
    egress::{Egress, Request},
    flow::{self, FlowHandle, Report, Reports},
    inbound::{Inbound, Incoming},
    stats::Stats,
};

/// How often the session goes round before other tasks have their turn.
const ROUNDS_MAX: usize = 16;

/// How often the gateway is told the time of day.
const CLOCK_EVERY: Duration = Duration::from_secs(60);

/// How many reports are handled in one round.
const REPORTS_PER_ROUND: usize = 64;

/// Bytes that a VM may send into a stream whose far end has ended, before its connection is reset: enough for a
/// protocol's goodbye.
const AFTER_END_BYTES_MAX: usize = 64 * 1024;

/// The network of one VM.
pub struct Session<E> {
    gateway: Gateway,
    egress: Arc<E>,
    flows: HashMap<FlowId, Flow>,
    report: Reports,
    reports: mpsc::UnboundedReceiver<(FlowId, Report)>,
    inbound: Arc<Inbound>,
    /// Streams that the VM is yet to accept; the gateway bounds how many.
    calls: HashMap<FlowId, Box<dyn Incoming>>,
    /// Names that are being resolved; the gateway bounds how many.
    resolving: JoinSet<(QueryId, Result<Vec<IpAddr>, Unresolved>)>,
    /// What the VM asks about itself; the gateway bounds how much.
    asking: JoinSet<(AskId, Answer)>,
    stats: Arc<Stats>,
    bytes_from_vm: u64,
    bytes_to_vm: u64,
    clock_due: Instant,
}

struct Flow {
    handle: FlowHandle,
    /// Read from the stream, not yet taken by the gateway; bounded by the flow's credit.
    to_vm: VecDeque<(Bytes, OwnedSemaphorePermit)>,
    /// The far end has ended: once `to_vm` is empty, so does the VM's connection.
    ended: bool,
    /// Bytes from the VM that came after that.
    after_end_bytes: usize,
}

/// The timer of the gateway.
#[derive(Default)]
struct Alarm {
    sleep: Option<Pin<Box<Sleep>>>,
}

impl<E: Egress> Session<E> {
    /// A session whose flows go through `egress`. `seed` makes the gateway's choices unpredictable to the VM;
    /// `stats` always tells what the session has done.
    #[must_use]
    pub fn new(egress: E, config: Config, seed: [u8; 32], stats: Arc<Stats>) -> Session<E> {
        let (report, reports) = mpsc::unbounded_channel();
        Session {
            gateway: Gateway::new(config, seed, Instant::now()),
            egress: Arc::new(egress),
            flows: HashMap::new(),
            report,
            reports,
            inbound: Arc::default(),
            calls: HashMap::new(),
            resolving: JoinSet::new(),
            asking: JoinSet::new(),
            stats,
            bytes_from_vm: 0,
            bytes_to_vm: 0,
            clock_due: Instant::now(),
        }
    }

    /// Serves a link until it ends. The session can serve another one then.
    ///
    /// # Errors
    /// When the link did not end between two frames.
    pub async fn serve<C: Carrier>(&mut self, carrier: &mut C) -> Result<(), LinkError> {
        // What the driver behind another link could receive says nothing of this one's.
        self.gateway.set_abilities(Abilities::default());
        let mut alarm = Alarm::default();
        poll_fn(|cx| self.poll(cx, carrier, &mut alarm)).await
    }

    /// Goes round until there is nothing left to do, or for so long that others should have their turn.
    fn poll<C: Carrier>(
        &mut self,
        cx: &mut Context<'_>,
        carrier: &mut C,
        alarm: &mut Alarm,
    ) -> Poll<Result<(), LinkError>> {
        for _ in 0..ROUNDS_MAX {
            let mut idle = true;
            let now = Instant::now();
            self.tell_time(now);
            let gateway = &mut self.gateway;
            let received = carrier.poll_receive(cx, &mut |arrival| match arrival {
                Arrival::Message(Message::Frame(offload, frame)) => gateway.handle_frame(now, offload, frame),
                Arrival::Message(Message::Abilities(abilities)) => gateway.set_abilities(abilities),
                Arrival::Frame(offload, frame) => gateway.handle_owned_frame(now, offload, frame),
            })?;
            match received {
                Poll::Ready(true) => idle = false,
                Poll::Ready(false) => return Poll::Ready(Ok(())),
                Poll::Pending => {}
            }
            idle &= !self.poll_reports(cx);
            idle &= !self.poll_resolved(cx);
            idle &= !self.poll_calls(cx);
            idle &= !self.poll_answered(cx);
            self.handle_events();
            if alarm.poll(cx, self.gateway.poll_timeout()) {
                self.gateway.handle_timeout(now);
                self.handle_events();
                idle = false;
            }
            let gateway = &mut self.gateway;
            idle &= carrier.poll_send(cx, &mut || gateway.poll_frame())?.is_pending();
            if idle {
                self.stats.set(self.flows.len(), self.bytes_from_vm, self.bytes_to_vm, self.gateway.counters());
                return Poll::Pending;
            }
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }

    /// Tells the gateway the time of day, now and then: the clock may have been set.
    fn tell_time(&mut self, now: Instant) {
        if now >= self.clock_due {
            self.clock_due = now + CLOCK_EVERY;
            // A clock before 1970 is none.
            if let Ok(unix) = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH) {
                self.gateway.set_clock(now, unix);
            }
        }
    }

    /// Handles reports, a bounded number; whether there were any.
    fn poll_reports(&mut self, cx: &mut Context<'_>) -> bool {
        for count in 0..REPORTS_PER_ROUND {
            match self.reports.poll_recv(cx) {
                Poll::Ready(Some((flow, report))) => self.handle_report(flow, report),
                Poll::Ready(None) | Poll::Pending => return count > 0,
            }
        }
        true
    }

    /// Takes one answer to a question of the VM; whether there was one.
    fn poll_resolved(&mut self, cx: &mut Context<'_>) -> bool {
        let Poll::Ready(Some(done)) = self.resolving.poll_join_next(cx) else { return false };
        let (query, found) = done.unwrap_or_else(|crash| resume_unwind(crash.into_panic()));
        self.gateway.resolved(Instant::now(), query, found.as_deref().map_err(|why| *why));
        true
    }

    /// Takes one answer to what the VM asks about itself; whether there was one.
    fn poll_answered(&mut self, cx: &mut Context<'_>) -> bool {
        let Poll::Ready(Some(done)) = self.asking.poll_join_next(cx) else { return false };
        let (ask, answer) = done.unwrap_or_else(|crash| resume_unwind(crash.into_panic()));
        self.gateway.answered(Instant::now(), ask, &answer);
        true
    }

    fn handle_events(&mut self) {
        while let Some(event) = self.gateway.poll_event() {
            self.handle_event(event);
        }
        while let Some((query, name)) = self.gateway.poll_question() {
            let egress = Arc::clone(&self.egress);
            self.resolving.spawn(async move { (query, egress.resolve(&name).await) });
        }
        while let Some((ask, question)) = self.gateway.poll_ask() {
            let egress = Arc::clone(&self.egress);
            self.asking.spawn(async move { (ask, egress.answer(question).await) });
        }
    }

    fn handle_event(&mut self, event: Event) {
        match event {
            Event::Connect { flow, target, credential } => {
                let request = Request { target, credential };
                let handle = flow::start(flow, request, Arc::clone(&self.egress), self.report.clone());
                let state = Flow { handle, to_vm: VecDeque::new(), ended: false, after_end_bytes: 0 };
                self.flows.insert(flow, state);
            }
            Event::Accepted(flow) => self.call_accepted(flow),
            Event::Declined(flow, why) => self.call_declined(flow, why),
            Event::Readable(flow) => self.take_from_vm(flow),
            Event::Writable(flow) => self.give_vm(flow),
            Event::Finished(flow) => {
                if let Some(state) = self.flows.get_mut(&flow) {
                    state.handle.from_vm = None;
                }
            }
            Event::Closed(flow) => {
                self.call_declined(flow, Failure::Refused);
                self.flows.remove(&flow);
            }
        }
    }

    fn handle_report(&mut self, id: FlowId, report: Report) {
        let now = Instant::now();
        let Some(flow) = self.flows.get_mut(&id) else { return };
        match report {
            Report::Connected => self.gateway.connected(now, id),
            Report::Failed(failure) => {
                self.flows.remove(&id);
                self.gateway.failed(now, id, failure);
            }
            Report::Data(bytes, credit) => {
                flow.to_vm.push_back((bytes, credit));
                self.give_vm(id);
            }
            Report::Room => self.take_from_vm(id),
            Report::Finished => {
                flow.ended = true;
                self.give_vm(id);
                self.take_from_vm(id);
            }
            Report::Broken => {
                self.flows.remove(&id);
                self.gateway.reset(now, id);
            }
        }
    }

    /// Gives the gateway what the far end has sent, as far as it takes it.
    fn give_vm(&mut self, id: FlowId) {
        let now = Instant::now();
        let Some(flow) = self.flows.get_mut(&id) else { return };
        while let Some((bytes, _)) = flow.to_vm.front_mut() {
            let offered = bytes.len();
            self.gateway.send(now, id, bytes);
            self.bytes_to_vm += (offered - bytes.len()) as u64;
            if !bytes.is_empty() {
                return;
            }
            flow.to_vm.pop_front();
        }
        if flow.ended {
            self.gateway.finish(now, id);
        }
    }

    /// Gives the flow's task what the VM has sent, as far as it takes it.
    fn take_from_vm(&mut self, id: FlowId) {
        let Some(flow) = self.flows.get_mut(&id) else { return };
        let Some(sender) = &flow.handle.from_vm else { return };
        while flow.after_end_bytes <= AFTER_END_BYTES_MAX {
            let slot = match sender.try_reserve() {
                Ok(slot) => Some(slot),
                Err(TrySendError::Full(())) => return,
                Err(TrySendError::Closed(())) => None,
            };
            let Some(chunk) = self.gateway.recv(Instant::now(), id) else { return };
            self.bytes_from_vm += chunk.len() as u64;
            match slot {
                Some(slot) => slot.send(chunk),
                None => flow.after_end_bytes += chunk.len(),
            }
        }
        self.flows.remove(&id);
        self.gateway.reset(Instant::now(), id);
    }
}

impl Alarm {
    /// Whether `due` has come. If not, wakes the task then.
    fn poll(&mut self, cx: &mut Context<'_>, due: Option<Instant>) -> bool {
        let Some(due) = due else { return false };
        let due = tokio::time::Instant::from_std(due);
        let sleep = self.sleep.get_or_insert_with(|| Box::pin(tokio::time::sleep_until(due)));
        if sleep.deadline() != due {
            sleep.as_mut().reset(due);
        }
        sleep.as_mut().poll(cx).is_ready()
    }
}
