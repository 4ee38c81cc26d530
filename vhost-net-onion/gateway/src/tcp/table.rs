//! The flows of one VM: found by number, by connection, and by who was not used for the longest time; each in O(1).

use std::{collections::HashMap, time::Instant};

use super::{
    flow::{Flow, Key, State},
    keyed::Keyed,
};
use crate::{FlowId, lists::Lists};

/// Bits of a [`FlowId`] that name its place; the others count. So a number is never used twice, and a later flow has a
/// higher one.
const PLACE_BITS: u32 = 24;

/// The lists of flows that may be evicted: those that are over go first.
const OVER: usize = 0;
const IN_USE: usize = 1;

/// All flows.
#[derive(Debug)]
pub(super) struct Table {
    flows: Vec<Option<Box<Flow>>>,
    /// Places that are free.
    free: Vec<u32>,
    keys: HashMap<Key, FlowId, Keyed>,
    recency: Lists,
    next: u64,
    flows_max: usize,
    half_open: usize,
    inbound: usize,
}

/// The place of a flow, which is also its number among the timers.
pub(super) fn place(id: FlowId) -> u32 {
    (id.0 & ((1 << PLACE_BITS) - 1)) as u32
}

impl Table {
    pub(super) fn new(flows_max: usize, keyed: Keyed) -> Table {
        Table {
            flows: Vec::new(),
            free: Vec::new(),
            keys: HashMap::with_hasher(keyed),
            recency: Lists::new(2),
            next: 0,
            flows_max: flows_max.min(1 << PLACE_BITS),
            half_open: 0,
            inbound: 0,
        }
    }

    /// How many flows there are.
    pub(super) fn len(&self) -> usize {
        self.keys.len()
    }

    /// Whether there is no room for another.
    pub(super) fn is_full(&self) -> bool {
        self.len() >= self.flows_max
    }

    /// How many flows wait for their far end.
    pub(super) fn half_open(&self) -> usize {
        self.half_open
    }

    /// How many connections to the VM there are.
    pub(super) fn inbound(&self) -> usize {
        self.inbound
    }

    /// The flow of a connection.
    pub(super) fn find(&self, key: &Key) -> Option<FlowId> {
        self.keys.get(key).copied()
    }

    /// A flow that is still there.
    pub(super) fn get(&self, id: FlowId) -> Option<&Flow> {
        self.flows.get(place(id) as usize)?.as_deref().filter(|flow| flow.id == id)
    }

    /// A flow that is still there. Its key stays as it is; its state is changed by [`Table::change`].
    pub(super) fn get_mut(&mut self, id: FlowId) -> Option<&mut Flow> {
        self.flows.get_mut(place(id) as usize)?.as_deref_mut().filter(|flow| flow.id == id)
    }

    /// The flow at a place.
    pub(super) fn at(&self, place: u32) -> Option<&Flow> {
        self.flows.get(place as usize)?.as_deref()
    }

    /// Adds a flow of a connection that has none; the table is not full.
    pub(super) fn insert(&mut self, key: Key, state: State, now: Instant) -> FlowId {
        let place = self.free.pop().unwrap_or_else(|| {
            self.flows.push(None);
            (self.flows.len() - 1) as u32
        });
        let id = FlowId(self.next << PLACE_BITS | u64::from(place));
        self.next += 1;
        let flow = Flow { id, key, state, used: now, announced: false, ready: false };
        self.half_open += usize::from(flow.is_half_open());
        self.inbound += usize::from(flow.is_inbound());
        self.flows[place as usize] = Some(Box::new(flow));
        self.keys.insert(key, id);
        id
    }

    /// Changes the state of a flow and returns what it was.
    pub(super) fn change<R>(&mut self, id: FlowId, change: impl FnOnce(&mut State) -> R) -> Option<R> {
        let flow = self.get_mut(id)?;
        let (was_half_open, was_inbound) = (flow.is_half_open(), flow.is_inbound());
        let result = change(&mut flow.state);
        let (is_half_open, is_inbound) = (flow.is_half_open(), flow.is_inbound());
        self.half_open = self.half_open + usize::from(is_half_open) - usize::from(was_half_open);
        self.inbound = self.inbound + usize::from(is_inbound) - usize::from(was_inbound);
        Some(result)
    }

    /// Either side has used the flow: it is the last to be evicted among its like.
    pub(super) fn touch(&mut self, id: FlowId, now: Instant) {
        let Some(flow) = self.get_mut(id) else { return };
        flow.used = now;
        if flow.is_half_open() || matches!(flow.state, State::Calling(_)) {
            return;
        }
        let list = if matches!(flow.state, State::Open(_)) { IN_USE } else { OVER };
        self.recency.push(list, place(id));
    }

    /// The flow that matters least, of those that may be evicted.
    pub(super) fn least(&self) -> Option<FlowId> {
        let place = self.recency.first(OVER).or_else(|| self.recency.first(IN_USE))?;
        self.at(place).map(|flow| flow.id)
    }

    /// Takes a flow out.
    pub(super) fn remove(&mut self, id: FlowId) -> Option<Box<Flow>> {
        self.get(id)?;
        let flow = self.flows[place(id) as usize].take()?;
        self.free.push(place(id));
        self.keys.remove(&flow.key);
        self.recency.remove(place(id));
        self.half_open -= usize::from(flow.is_half_open());
        self.inbound -= usize::from(flow.is_inbound());
        Some(flow)
    }
}
