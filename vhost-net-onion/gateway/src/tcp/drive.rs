//! Moving flows along: segments out of them, events, timers, ends.

use std::time::Instant;

use bytes::Bytes;

use super::{
    Around, Tcp, emit, events,
    flow::{Flow, Key, Last, State, TIME_WAIT},
    open::{Open, Verdict},
    segment::Segment,
    table::{self, Table},
};
use crate::{Counters, Event, FlowId, frame::Frame, outbox::Outbox};

/// Challenge acknowledgements a second, to one VM (RFC 5961, section 7).
const CHALLENGES_PER_SECOND: u32 = 100;

/// How many challenge acknowledgements were sent in the present second.
#[derive(Debug)]
pub(super) struct Challenges {
    began: Instant,
    sent: u32,
}

impl Challenges {
    pub(super) fn new(now: Instant) -> Challenges {
        Challenges { began: now, sent: 0 }
    }

    /// Whether another may be sent.
    fn take(&mut self, now: Instant, counters: &mut Counters) -> bool {
        if now.saturating_duration_since(self.began).as_secs() >= 1 {
            *self = Challenges::new(now);
        }
        let allowed = self.sent < CHALLENGES_PER_SECOND;
        self.sent += u32::from(allowed);
        counters.challenges += u64::from(allowed);
        counters.challenges_limited += u64::from(!allowed);
        allowed
    }
}

impl Tcp {
    /// Gives a segment to its open flow.
    pub(super) fn ingress(&mut self, around: &mut Around<'_>, id: FlowId, segment: &Segment<'_>) {
        let Some(flow) = self.table.get_mut(id) else { return };
        let (key, State::Open(open)) = (flow.key, &mut flow.state) else { return };
        match open.handle(around.now, segment, around.counters) {
            Verdict::Kept => {}
            Verdict::Refused => self.refuse(around, &key, segment),
            Verdict::Challenged => {
                if self.challenges.take(around.now, around.counters) {
                    open.owe();
                }
            }
            Verdict::Broken => return self.remove(around, id),
        }
        self.used(around.now, id);
        self.report(around, id);
    }

    /// The next frame with a segment, of each flow that has something to send in turn.
    pub(crate) fn poll_frame(&mut self, now: Instant, outbox: &Outbox, counters: &mut Counters) -> Option<Frame> {
        while let Some(id) = self.ready.pop_front() {
            let abilities = self.abilities;
            let Some(flow) = self.table.get_mut(id) else { continue };
            flow.ready = false;
            let (key, State::Open(open)) = (&flow.key, &mut flow.state) else { continue };
            let mss = open.sender.mss();
            let burst = emit::burst_bytes_max(key, mss, abilities);
            let polled = open.poll(now, burst, counters);
            let frame = polled.map(|(header, data)| emit::frame(key, outbox.vm_mac(), &header, data, mss, abilities));
            let deadline = flow.deadline();
            if frame.is_some() {
                flow.ready = true;
                self.ready.push_back(id);
                counters.frames_out += 1;
            }
            if let Some(at) = deadline {
                self.timers.set(table::place(id), at);
            }
            if frame.is_some() {
                return frame;
            }
        }
        None
    }

    /// Runs the flows whose timers are due.
    pub(crate) fn handle_timeout(&mut self, around: &mut Around<'_>) {
        while let Some(place) = self.timers.due(around.now) {
            let Some(flow) = self.table.at(place) else { continue };
            let id = flow.id;
            // Timers are not moved when what they wait for is put off.
            match flow.deadline() {
                None => {}
                Some(at) if at > around.now => self.timers.set(place, at),
                Some(_) => self.expire(around, id),
            }
        }
    }

    fn expire(&mut self, around: &mut Around<'_>, id: FlowId) {
        let Some(flow) = self.table.get_mut(id) else { return };
        let used = flow.used;
        if let State::Calling(_) = flow.state {
            return self.call_again(around, id);
        }
        let State::Open(open) = &mut flow.state else { return self.remove(around, id) };
        if open.end(used).is_some_and(|at| at <= around.now) {
            around.counters.flows_expired += 1;
            self.abort(around, id);
            return self.remove(around, id);
        }
        open.sender.expire(around.now, around.counters);
        self.make_ready(id);
        self.schedule(id);
    }

    /// Either side has used the flow: it is the last to be evicted, and may have something to send.
    pub(super) fn used(&mut self, now: Instant, id: FlowId) {
        self.table.touch(id, now);
        self.make_ready(id);
    }

    /// The flow may have something to send.
    pub(super) fn make_ready(&mut self, id: FlowId) {
        if let Some(flow) = self.table.get_mut(id)
            && !std::mem::replace(&mut flow.ready, true)
        {
            self.ready.push_back(id);
        }
    }

    pub(super) fn schedule(&mut self, id: FlowId) {
        if let Some(at) = self.table.get(id).and_then(Flow::deadline) {
            self.timers.set(table::place(id), at);
        }
    }

    /// Tells the pump what has changed, and ends the flow if it is over.
    pub(super) fn report(&mut self, around: &mut Around<'_>, id: FlowId) {
        let Some(flow) = self.table.get_mut(id) else { return };
        let State::Open(open) = &mut flow.state else { return };
        self.budget.hold(&mut open.share, open.sender.queued());
        let queued = open.receiver.queued();
        let readable = queued > 0 && !open.readable_told;
        open.readable_told |= readable;
        // Not for every byte: a quarter of what may be held is worth a call.
        let limit = self.budget.send_limit(&open.share);
        let writable = open.write_wanted && open.sender.queued() <= limit - limit / 4;
        open.write_wanted &= !writable;
        let drained = queued == 0 && open.receiver.is_finished();
        let finished = drained && !open.finished_told;
        open.finished_told |= finished;
        let is_over = drained && open.is_over();
        let has_time_wait = open.has_time_wait();

        for (happened, event) in
            [(readable, Event::Readable(id)), (writable, Event::Writable(id)), (finished, Event::Finished(id))]
        {
            if happened {
                self.tell(event);
            }
        }
        match (is_over, has_time_wait) {
            (false, _) => self.schedule(id),
            (true, false) => self.remove(around, id),
            (true, true) => self.enter_time_wait(around, id),
        }
    }

    /// Gives everything back but two numbers.
    fn enter_time_wait(&mut self, around: &mut Around<'_>, id: FlowId) {
        self.close(id);
        let Some(flow) = self.table.get_mut(id) else { return };
        let (key, State::Open(open)) = (flow.key, &mut flow.state) else { return };
        let header = open.acknowledgement();
        if open.owes() {
            self.answer(around, &key, &header);
        }
        let last = Last { seq: header.seq, ack: header.ack };
        let state = State::TimeWait { last, until: around.now + TIME_WAIT };
        if let Some(State::Open(open)) = self.table.change(id, |old| std::mem::replace(old, state)) {
            self.budget.close(&open.share);
        }
        self.table.touch(id, around.now);
        self.schedule(id);
    }

    /// Makes the VM's end break, if it may still be there and there is room to say so. Without room, the next segment
    /// of the VM gets the RST, as one of an unknown flow.
    pub(super) fn abort(&mut self, around: &mut Around<'_>, id: FlowId) {
        let Some(flow) = self.table.get(id) else { return };
        let (key, State::Open(open)) = (flow.key, &flow.state) else { return };
        if !open.is_over() {
            around.counters.resets += 1;
            let header = open.reset();
            self.answer(around, &key, &header);
        }
    }

    /// Sends a segment that does not wait for its turn.
    pub(super) fn answer(&self, around: &mut Around<'_>, key: &Key, header: &emit::Header) {
        let mac = around.outbox.vm_mac();
        let frame = emit::frame(key, mac, header, Bytes::new(), 1, self.abilities);
        around.outbox.push_frame(around.counters, frame);
    }

    /// Answers a segment with RST, unless it is one.
    pub(super) fn refuse(&self, around: &mut Around<'_>, key: &Key, segment: &Segment<'_>) {
        if !segment.has(super::segment::RST) {
            around.counters.resets += 1;
            self.answer(around, key, &emit::reset(segment));
        }
    }

    /// Forgets a flow.
    pub(super) fn remove(&mut self, around: &mut Around<'_>, id: FlowId) {
        self.close(id);
        self.timers.cancel(table::place(id));
        let Some(flow) = self.table.remove(id) else { return };
        if let State::Open(open) = &flow.state {
            self.budget.close(&open.share);
        }
        self.calling.remove(&id);
        around.names.release(flow.key.remote);
        // Numbers of flows that are gone stay in the queue until their turn; this bounds them.
        if self.ready.len() > 2 * self.table.len() + 64 {
            self.ready.retain(|id| self.table.get(*id).is_some());
        }
    }

    /// Tells the pump that a flow is gone, once, if it knows it.
    pub(super) fn close(&mut self, id: FlowId) {
        if let Some(flow) = self.table.get_mut(id)
            && std::mem::take(&mut flow.announced)
        {
            self.tell(Event::Closed(id));
        }
    }

    pub(super) fn tell(&mut self, event: Event) {
        let table = &self.table;
        self.events.push(event, |event| is_stale(table, event));
    }

    pub(super) fn open_flow(&mut self, id: FlowId) -> Option<&mut Open> {
        match &mut self.table.get_mut(id)?.state {
            State::Open(open) => Some(open),
            _ => None,
        }
    }
}

/// Whether the pump need not hear of something any more.
pub(super) fn is_stale(table: &Table, event: &Event) -> bool {
    match event {
        Event::Accepted(_) | Event::Declined(..) | Event::Finished(_) | Event::Closed(_) => false,
        Event::Connect { .. } | Event::Readable(_) | Event::Writable(_) => {
            let flow = table.get(events::flow_of(event));
            !matches!(flow.map(|flow| &flow.state), Some(State::Opening(_) | State::Open(_)))
        }
    }
}
