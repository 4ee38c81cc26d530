//! What waits to be told to the pump.

use std::collections::VecDeque;

use crate::{Event, FlowId};

/// Events in order. A flow has at most one of each kind in the queue, and only flows that the pump knows have any but
/// `Connect`; so what is not stale is bounded by the flows. Stale ones are swept out when the queue gets long.
#[derive(Debug)]
pub(super) struct Events {
    queue: VecDeque<Event>,
    sweep_at: usize,
}

impl Events {
    pub(super) fn new(flows_max: usize) -> Events {
        Events { queue: VecDeque::new(), sweep_at: flows_max.saturating_mul(8).saturating_add(64) }
    }

    /// Adds an event. `is_stale` tells those that need not be told any more; it is asked rarely.
    pub(super) fn push(&mut self, event: Event, is_stale: impl Fn(&Event) -> bool) {
        if self.queue.len() >= self.sweep_at {
            self.queue.retain(|event| !is_stale(event));
        }
        self.queue.push_back(event);
    }

    pub(super) fn pop(&mut self) -> Option<Event> {
        self.queue.pop_front()
    }

    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.queue.len()
    }
}

/// Which flow an event is about.
pub(super) fn flow_of(event: &Event) -> FlowId {
    match event {
        Event::Connect { flow, .. }
        | Event::Readable(flow)
        | Event::Writable(flow)
        | Event::Accepted(flow)
        | Event::Declined(flow, _)
        | Event::Finished(flow)
        | Event::Closed(flow) => *flow,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_stale_does_not_pile_up_and_the_rest_stays_in_order() {
        let mut events = Events::new(2);
        let is_stale = |event: &Event| !flow_of(event).0.is_multiple_of(1000);
        for n in 0..100_000 {
            events.push(Event::Readable(FlowId(n)), is_stale);
            assert!(events.len() <= 200);
        }
        let kept = std::iter::from_fn(|| events.pop()).filter(|event| !is_stale(event)).map(|event| flow_of(&event).0);
        assert!(kept.eq((0..100).map(|n| n * 1000)));
    }
}
