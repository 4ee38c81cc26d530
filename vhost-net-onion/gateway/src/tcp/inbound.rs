//! Connections to the VM: for streams that come to it, as those of its onion services do.
//!
//! They come from the gateway's own IPv4 address, from a port that no flow has, to the VM's. Until the VM has answered,
//! such a flow is in the state `Calling`: its SYN is sent, and sent again after 1 and 2 more seconds; 4 seconds later it
//! is given up (the VM is on the same machine: it answers at once or not at all).
//!
//! | the VM's answer | what becomes of the flow |
//! | --- | --- |
//! | SYN-ACK | it is open, and [`Event::Accepted`] |
//! | RST, or an ICMP error as firewalls send it | [`Event::Declined`], refused |
//! | nothing | [`Event::Declined`], timed out |
//! | an acknowledgement of something else | it gets an RST, and the SYN is sent again: an old connection of the VM's ends |
//!
//! Where the VM is, its frames tell; while nobody knows, and before every SYN that is sent again, ARP asks for it.
//!
//! Bounds: [`crate::Config::inbound_max`] and [`crate::Config::calling_max`]. A call never evicts another flow, so nobody
//! out there can end what the VM itself has begun. RFC 9293, section 3.10.7.3; the VM's SYN without an acknowledgement
//! (simultaneous open) is not taken: it has no business with that port.

use std::time::{Duration, Instant};

use super::{
    Around, MSS_MIN, Tcp, emit,
    flow::{Key, State},
    number::Seq,
    open::{self, Open, Opening},
    segment::{ACK, RST, SYN, Segment},
};
use crate::{
    Event, Failure, FlowId, arp,
    config::{GATEWAY_ADDRESS, VM_ADDRESS},
};

/// How long to wait after the first, second and third SYN.
const PATIENCE: [Duration; 3] = [Duration::from_secs(1), Duration::from_secs(2), Duration::from_secs(4)];

/// The first of the gateway's ports that calls come from, up to the last there is (RFC 6335, section 6: dynamic ports).
const PORT_FIRST: u16 = 49_152;

/// The window of a SYN: the least that is ever promised. The acknowledgement that follows has the right one.
const WINDOW: u16 = super::MSS_DEFAULT_V4;

/// A SYN to the VM that is not answered.
#[derive(Clone, Copy, Debug)]
pub(super) struct Call {
    iss: Seq,
    /// SYNs that were sent before, or would have been if it had been known where to.
    sent: usize,
    /// When the next is due, or the call is given up.
    pub(super) due: Instant,
}

/// Whether flows with this key are calls.
pub(super) fn is_inbound(key: &Key) -> bool {
    key.remote == GATEWAY_ADDRESS && key.remote_port >= PORT_FIRST
}

impl Tcp {
    /// Begins to connect to a port of the VM. `None` if there are too many such flows.
    pub(crate) fn call(&mut self, around: &mut Around<'_>, vm_port: u16) -> Option<FlowId> {
        let has_room = self.table.inbound() < self.inbound_max && self.calling.len() < self.calling_max;
        let key = has_room.then(|| self.unused_key(vm_port)).flatten().filter(|_| !self.table.is_full());
        let Some(key) = key else {
            around.counters.inbound_limited += 1;
            return None;
        };
        let call = Call { iss: self.number(around.now, &key), sent: 0, due: around.now };
        let id = self.table.insert(key, State::Calling(call), around.now);
        if let Some(flow) = self.table.get_mut(id) {
            // The pump knows of it: it asked.
            flow.announced = true;
        }
        self.calling.insert(id);
        around.counters.inbound_begun += 1;
        self.call_again(around, id);
        Some(id)
    }

    /// It has just become known where the VM is: the SYNs that wait for that are sent.
    pub(crate) fn vm_appeared(&self, around: &mut Around<'_>) {
        for id in &self.calling {
            if let Some(flow) = self.table.get(*id)
                && let State::Calling(call) = &flow.state
            {
                self.send_syn(around, &flow.key, call.iss);
            }
        }
    }

    /// Sends the SYN, or gives the call up if it was sent often enough.
    pub(super) fn call_again(&mut self, around: &mut Around<'_>, id: FlowId) {
        let Some(flow) = self.table.get_mut(id) else { return };
        let (key, State::Calling(call)) = (flow.key, &mut flow.state) else { return };
        let Some(patience) = PATIENCE.get(call.sent) else {
            around.counters.inbound_timed_out += 1;
            return self.decline(around, id, Failure::TimedOut);
        };
        let is_again = call.sent > 0;
        call.sent += 1;
        call.due = around.now + *patience;
        let iss = call.iss;
        if is_again || !around.outbox.knows_vm() {
            arp::ask(around.outbox, around.counters);
        }
        if around.outbox.knows_vm() {
            self.send_syn(around, &key, iss);
        }
        self.schedule(id);
    }

    /// Handles what the VM says to a SYN.
    pub(super) fn answered(&mut self, around: &mut Around<'_>, id: FlowId, call: Call, segment: &Segment<'_>) {
        let is_ours = segment.has(ACK) && segment.ack == call.iss + 1;
        if segment.has(ACK) && !is_ours {
            around.counters.dropped_unacceptable += 1;
            let Some(key) = self.table.get(id).map(|flow| flow.key) else { return };
            return self.refuse(around, &key, segment);
        }
        if is_ours && segment.has(RST) {
            around.counters.inbound_refused += 1;
            return self.decline(around, id, Failure::Refused);
        }
        if !is_ours || !segment.has(SYN) {
            around.counters.dropped_unacceptable += 1;
            return;
        }
        self.calling.remove(&id);
        let open = self.accepted(around.now, id, call.iss, segment);
        self.table.change(id, |state| *state = State::Open(Box::new(open)));
        around.counters.inbound_accepted += 1;
        self.tell(Event::Accepted(id));
        self.used(around.now, id);
        self.report(around, id);
    }

    /// A firewall of the VM rejects a SYN of such a number. Whether there is one.
    pub(super) fn reject_call(&mut self, around: &mut Around<'_>, key: &Key, seq: Seq) -> bool {
        let Some(id) = self.table.find(key) else { return false };
        let state = self.table.get(id).map(|flow| &flow.state);
        let is_call = matches!(state, Some(State::Calling(call)) if call.iss == seq);
        if is_call {
            around.counters.inbound_refused += 1;
            self.decline(around, id, Failure::Refused);
        }
        is_call
    }

    /// The VM does not want the connection, or does not answer.
    pub(super) fn decline(&mut self, around: &mut Around<'_>, id: FlowId, why: Failure) {
        self.tell(Event::Declined(id, why));
        self.remove(around, id);
    }

    fn accepted(&mut self, now: Instant, id: FlowId, iss: Seq, segment: &Segment<'_>) -> Open {
        let most = self.table.get(id).map_or(0, |flow| emit::payload_bytes_max(&flow.key));
        let most = u16::try_from(most).unwrap_or(u16::MAX).max(MSS_MIN);
        let mss = segment.options.mss.unwrap_or(super::MSS_DEFAULT_V4).clamp(MSS_MIN, most);
        let (share, window_max) = (self.budget.open(), self.budget.recv_max());
        Open::answered(Opening { syn: segment.syn(), iss, mss, window_max, share }, now)
    }

    fn send_syn(&self, around: &mut Around<'_>, key: &Key, iss: Seq) {
        let scale = open::scale(self.budget.recv_max());
        let header =
            emit::Header { seq: iss, flags: SYN, window: WINDOW, syn: Some(Some(scale)), ..Default::default() };
        self.answer(around, key, &header);
    }

    /// A connection that no flow has. Ports are taken in turn, so that one is not used again soon.
    fn unused_key(&mut self, vm_port: u16) -> Option<Key> {
        // Every try that fails has met a flow.
        (0..=self.table.len()).find_map(|_| {
            let remote_port = self.call_port.max(PORT_FIRST);
            self.call_port = remote_port.checked_add(1).unwrap_or(PORT_FIRST);
            let key = Key { vm: VM_ADDRESS.into(), vm_port, remote: GATEWAY_ADDRESS.into(), remote_port };
            self.table.find(&key).is_none().then_some(key)
        })
    }
}
