//! TCP: the VM's connections as flows, each of them one end of RFC 9293.
//!
//! A segment is checked, and its flow looked up by the addresses and ports of both ends. A SYN that belongs to no flow
//! begins one: it is held, the pump is asked to connect, and only when the far end has accepted is the SYN answered. So
//! a connect that succeeds in the VM has succeeded at the far end. ([`crate::Policy::is_optimistic`] answers at once.) Any
//! other segment without a flow gets an RST: after the router was restarted, the VM's old connections end at once.
//!
//! What a flow has to send is not queued: frames are made when the pump takes them. Flows that may have something to
//! send wait in a queue and are served in turn, one frame each. So all segments that came in one read are acknowledged
//! at once, and what the pump sends meanwhile carries the acknowledgement.
//!
//! Bounds: flows, half-open flows, buffer bytes ([`crate::Config`]). A new flow that finds the table full takes the
//! place of the one that was not used for the longest time, those that are over first; a flow that still waits for its
//! far end is never evicted. Every step is O(1), and an idle flow has no buffers.
//!
//! Connections to the VM are flows too, which the pump begins ([`inbound`]).
//!
//! - [`flow`]: one flow and its states; [`table`]: all of them; [`drive`]: moving them along; [`events`].
//! - [`open`]: a connection, of the halves [`receiver`] (on [`chunks`]) and [`sender`] (on [`queue`] and [`rto`]).
//! - [`segment`] and [`icmp_error`]: from the VM; [`emit`]: to the VM; [`number`], [`budget`], [`keyed`].

mod budget;
mod chunks;
mod drive;
mod emit;
mod events;
mod flow;
mod icmp_error;
mod inbound;
mod keyed;
mod number;
mod open;
mod queue;
mod receiver;
mod rto;
mod segment;
mod sender;
mod table;

use std::{
    collections::{BTreeSet, VecDeque},
    fmt,
    hash::{BuildHasher as _, Hasher as _},
    sync::Arc,
    time::Instant,
};

use bytes::Bytes;
use wire::link::Abilities;

use self::{
    budget::Budget,
    drive::Challenges,
    events::Events,
    flow::{Key, Last, SILENT, State},
    keyed::Keyed,
    number::Seq,
    open::{Open, Opening},
    segment::{ACK, RST, Segment, Syn},
    table::Table,
};
use crate::{
    Config, Counters, Event, Failure, FlowId, Host, Policy, Target,
    address::Kind,
    icmp::{Errors, Unreachable},
    ip,
    names::Names,
    outbox::Outbox,
    service,
    timers::Timers,
};

/// Payload bytes of a segment to a VM that tells no MSS (RFC 9293, section 3.7.1, MUST-15).
const MSS_DEFAULT_V4: u16 = 536;
const MSS_DEFAULT_V6: u16 = 1220;

/// Payload bytes of a segment at least: a VM that tells less would make us send headers only.
const MSS_MIN: u16 = 48;

/// The parts of the gateway around TCP, at one instant.
pub(crate) struct Around<'a> {
    pub(crate) now: Instant,
    pub(crate) outbox: &'a mut Outbox,
    pub(crate) counters: &'a mut Counters,
    pub(crate) errors: &'a mut Errors,
    pub(crate) names: &'a mut Names,
    /// The frame that is handled, if it may be kept.
    pub(crate) frame: Option<&'a Bytes>,
}

/// All flows of one VM.
pub(crate) struct Tcp {
    half_open_max: usize,
    policy: Arc<dyn Policy>,
    inbound_max: usize,
    calling_max: usize,
    /// Flows whose SYN to the VM is not answered.
    calling: BTreeSet<FlowId>,
    /// Where the next call comes from.
    call_port: u16,
    abilities: Abilities,
    began: Instant,
    /// For the numbers of our SYNs.
    secret: Keyed,
    table: Table,
    budget: Budget,
    timers: Timers,
    challenges: Challenges,
    /// Open flows that may have something to send, in turn.
    ready: VecDeque<FlowId>,
    events: Events,
}

impl fmt::Debug for Tcp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tcp").field("table", &self.table).finish_non_exhaustive()
    }
}

impl Tcp {
    /// No flows yet. The keys are secrets: of the table, and of the sequence numbers.
    pub(crate) fn new(config: &Config, table: [u64; 2], numbers: [u64; 2], now: Instant) -> Tcp {
        Tcp {
            half_open_max: config.half_open_max,
            policy: Arc::clone(&config.policy),
            inbound_max: config.inbound_max,
            calling_max: config.calling_max,
            calling: BTreeSet::new(),
            // Not the same after each restart, for the VM may remember connections from before.
            call_port: numbers[0] as u16,
            abilities: Abilities::default(),
            began: now,
            secret: Keyed(numbers),
            table: Table::new(config.flows_max, Keyed(table)),
            budget: Budget::new(config),
            timers: Timers::new(now),
            challenges: Challenges::new(now),
            ready: VecDeque::new(),
            events: Events::new(config.flows_max),
        }
    }

    /// How many flows there are.
    pub(crate) fn len(&self) -> usize {
        self.table.len()
    }

    /// When the next flow is due.
    pub(crate) fn first_timer(&self) -> Option<Instant> {
        self.timers.first()
    }

    /// What the VM's driver can receive from now on.
    pub(crate) fn set_abilities(&mut self, abilities: Abilities) {
        self.abilities = abilities;
    }

    /// The next event for the pump.
    pub(crate) fn poll_event(&mut self) -> Option<Event> {
        while let Some(event) = self.events.pop() {
            if drive::is_stale(&self.table, &event) {
                continue;
            }
            if let Event::Connect { flow, .. } = &event
                && let Some(flow) = self.table.get_mut(*flow)
            {
                flow.announced = true;
            }
            return Some(event);
        }
        None
    }

    /// Handles a segment from the VM to an address of the given kind: neither a group nor a martian.
    pub(crate) fn handle(&mut self, around: &mut Around<'_>, packet: &ip::Packet<'_>, kind: Kind) {
        let Some(segment) = Segment::parse(packet, around.counters) else { return };
        let segment = Segment { frame: around.frame, ..segment };
        let (vm_port, remote_port) = (segment.source_port, segment.destination_port);
        let key = Key { vm: packet.source, vm_port, remote: packet.destination, remote_port };
        let flow = self.table.find(&key).and_then(|id| self.table.get(id));
        match flow.map(|flow| (flow.id, &flow.state)) {
            None => self.handle_unknown(around, packet, &segment, key, kind),
            Some((id, State::Open(_))) => self.ingress(around, id, &segment),
            Some((id, State::Opening(syn))) => {
                if !segment.is_first() {
                    self.remove(around, id);
                    self.refuse(around, &key, &segment);
                } else if syn.seq != segment.seq {
                    // The VM gave the first connect up, and uses the port again: the same target, so the same stream.
                    self.table.change(id, |state| *state = State::Opening(segment.syn()));
                }
            }
            Some((id, State::Calling(call))) => {
                let call = *call;
                self.answered(around, id, call, &segment);
            }
            Some((id, State::Silent { .. })) => {
                if !segment.is_first() {
                    self.remove(around, id);
                    self.refuse(around, &key, &segment);
                }
            }
            Some((id, State::TimeWait { last, .. })) => {
                let last = *last;
                // RFC 9293, section 3.10.7.4, and RFC 1122, section 4.2.2.13: a SYN beyond the old numbers is new.
                if segment.is_first() && last.ack.is_before(segment.seq) {
                    self.remove(around, id);
                    self.handle_unknown(around, packet, &segment, key, kind);
                } else {
                    self.acknowledge_again(around, &key, last, &segment);
                }
            }
        }
    }

    /// The stream of a flow is open.
    pub(crate) fn connected(&mut self, around: &mut Around<'_>, id: FlowId) {
        let Some(flow) = self.table.get(id).filter(|flow| flow.is_half_open()) else { return };
        let key = flow.key;
        if let State::Opening(syn) = flow.state {
            let open = self.open(around.now, &key, syn);
            self.table.change(id, |state| *state = State::Open(Box::new(open)));
        } else {
            self.table.change(id, |state| {
                if let State::Open(open) = state {
                    open.far_end_accepted = true;
                }
            });
        }
        around.counters.flows_connected += 1;
        self.used(around.now, id);
        self.report(around, id);
    }

    /// The stream of a flow could not be opened. A flow whose SYN was answered is reset.
    pub(crate) fn failed(&mut self, around: &mut Around<'_>, id: FlowId, why: Failure) {
        let Some(flow) = self.table.get(id) else { return };
        around.counters.flows_failed += u64::from(flow.is_half_open());
        let (key, State::Opening(syn)) = (flow.key, &flow.state) else { return self.reset(around, id) };
        let syn = *syn;
        match why {
            Failure::Refused => {
                self.remove(around, id);
                self.refuse_syn(around, &key, syn);
            }
            Failure::Unreachable => {
                self.remove(around, id);
                let packet = emit::packet_from_vm(&key, syn.seq, syn.window);
                around.errors.send(around.now, Unreachable::Host, &packet, around.outbox, around.counters);
            }
            Failure::TimedOut => {
                self.table.change(id, |state| *state = State::Silent { until: around.now + SILENT });
                self.close(id);
                self.table.touch(id, around.now);
                self.schedule(id);
            }
        }
    }

    /// Takes bytes for the VM from the front of `data`.
    pub(crate) fn send(&mut self, around: &mut Around<'_>, id: FlowId, data: &mut Bytes) {
        let Some(State::Open(open)) = self.table.get_mut(id).map(|flow| &mut flow.state) else { return };
        if open.is_finishing || data.is_empty() {
            return;
        }
        let room = self.budget.send_limit(&open.share).saturating_sub(open.sender.queued());
        let taken = data.split_to(room.min(data.len()));
        open.write_wanted = !data.is_empty();
        if taken.is_empty() {
            return;
        }
        open.push(around.now, taken);
        self.budget.hold(&mut open.share, open.sender.queued());
        self.used(around.now, id);
        self.schedule(id);
    }

    /// Gives bytes from the VM.
    pub(crate) fn recv(&mut self, around: &mut Around<'_>, id: FlowId) -> Option<Bytes> {
        let State::Open(open) = &mut self.table.get_mut(id)?.state else { return None };
        let data = open.receiver.pop();
        open.readable_told = open.receiver.queued() > 0;
        let data = data?;
        self.budget.read(&mut open.share, data.len());
        self.used(around.now, id);
        self.report(around, id);
        Some(data)
    }

    /// Whether a service of the gateway's own waits for what the VM will say, and for how long it may do so is bounded.
    pub(crate) fn set_awaited(&mut self, id: FlowId, is_awaited: bool) {
        if let Some(open) = self.open_flow(id) {
            open.is_awaited = is_awaited;
            self.schedule(id);
        }
    }

    /// The far end's data is complete.
    pub(crate) fn finish(&mut self, around: &mut Around<'_>, id: FlowId) {
        let Some(open) = self.open_flow(id).filter(|open| !open.is_finishing) else { return };
        open.is_finishing = true;
        open.write_wanted = false;
        open.sender.finish();
        self.used(around.now, id);
        self.report(around, id);
    }

    /// The stream broke.
    pub(crate) fn reset(&mut self, around: &mut Around<'_>, id: FlowId) {
        let Some(flow) = self.table.get(id) else { return };
        match &flow.state {
            State::Opening(syn) => self.refuse_syn(around, &flow.key, *syn),
            State::Open(_) => self.abort(around, id),
            // If the VM answers yet, it gets an RST as for any segment of no flow.
            State::Calling(_) => {}
            State::Silent { .. } | State::TimeWait { .. } => return,
        }
        self.remove(around, id);
    }

    fn handle_unknown(
        &mut self,
        around: &mut Around<'_>,
        packet: &ip::Packet<'_>,
        segment: &Segment<'_>,
        key: Key,
        kind: Kind,
    ) {
        if !segment.is_first() {
            return self.refuse(around, &key, segment);
        }
        let host = match kind {
            Kind::Remote => Some(Host::Address(key.remote)),
            Kind::MadeUp => around.names.name(key.remote).map(|name| Host::Name(name.to_owned())),
            Kind::Gateway if service::is_served(key.remote_port) => Some(Host::Address(key.remote)),
            Kind::Gateway => return self.refuse(around, &key, segment),
            Kind::Nobody | Kind::Group | Kind::Martian => None,
        };
        let Some(host) = host else {
            return around.errors.send(around.now, Unreachable::Host, packet.bytes, around.outbox, around.counters);
        };
        if self.table.half_open() >= self.half_open_max {
            // Not refused: the far end may well accept. The VM tries again in a second.
            around.counters.ignored_half_open += 1;
            return;
        }
        if self.table.is_full() && !self.evict(around) {
            around.counters.refused_flows_full += 1;
            return self.refuse(around, &key, segment);
        }
        self.begin(around, segment.syn(), key, host);
    }

    fn begin(&mut self, around: &mut Around<'_>, syn: Syn, key: Key, host: Host) {
        let target = Target { host, port: key.remote_port };
        let optimistic = self.policy.is_optimistic(&target);
        let id = if optimistic {
            let mut open = self.open(around.now, &key, syn);
            open.far_end_accepted = false;
            self.table.insert(key, State::Open(Box::new(open)), around.now)
        } else {
            self.table.insert(key, State::Opening(syn), around.now)
        };
        around.names.hold(key.remote);
        around.counters.flows_begun += 1;
        self.tell(Event::Connect { flow: id, target, credential: None });
        if optimistic {
            self.used(around.now, id);
            self.schedule(id);
        }
    }

    /// The connection that answers a SYN.
    fn open(&mut self, now: Instant, key: &Key, syn: Syn) -> Open {
        let default = if key.remote.is_ipv4() { MSS_DEFAULT_V4 } else { MSS_DEFAULT_V6 };
        let most = u16::try_from(emit::payload_bytes_max(key)).unwrap_or(u16::MAX);
        let mss = syn.options.mss.unwrap_or(default).clamp(MSS_MIN, most);
        let (share, window_max) = (self.budget.open(), self.budget.recv_max());
        Open::new(Opening { syn, iss: self.number(now, key), mss, window_max, share }, now)
    }

    /// The number of a SYN of ours: a clock of 4 µs, and what cannot be guessed (RFC 6528; RFC 9293, section 3.4.1).
    fn number(&self, now: Instant, key: &Key) -> Seq {
        let clock = now.saturating_duration_since(self.began).as_micros() / 4;
        Seq((self.secret.hash_one(key) as u32).wrapping_add(clock as u32))
    }

    /// Ends the flow that matters least. Returns whether there was one.
    fn evict(&mut self, around: &mut Around<'_>) -> bool {
        let Some(id) = self.table.least() else { return false };
        around.counters.flows_evicted += 1;
        self.abort(around, id);
        self.remove(around, id);
        true
    }

    /// Answers a SYN that was held with RST.
    fn refuse_syn(&self, around: &mut Around<'_>, key: &Key, syn: Syn) {
        let header = emit::Header { ack: syn.seq + 1, flags: RST | ACK, ..emit::Header::default() };
        around.counters.resets += 1;
        self.answer(around, key, &header);
    }

    /// Acknowledges what the VM sends again in TIME-WAIT: its last acknowledgement was lost.
    fn acknowledge_again(&self, around: &mut Around<'_>, key: &Key, last: Last, segment: &Segment<'_>) {
        if !segment.has(RST) && segment.length() > 0 {
            let header = emit::Header { seq: last.seq, ack: last.ack, flags: ACK, ..emit::Header::default() };
            self.answer(around, key, &header);
        }
    }
}

/// Keys for one purpose out of a seed.
pub(crate) fn keys(seed: [u64; 4], purpose: u64) -> [u64; 2] {
    std::array::from_fn(|n| {
        let mut hasher = Keyed([seed[2 * n], seed[2 * n + 1]]).build_hasher();
        for word in [purpose, n as u64].into_iter().chain(seed) {
            hasher.write_u64(word);
        }
        hasher.finish()
    })
}
