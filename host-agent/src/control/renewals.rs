//! Orders for new circuits. Each stands until the router has obeyed it: one that is not connected is told when it is.

use std::{collections::BTreeMap, time::Duration};

use tokio::time::timeout;
use wire::{VmName, control::ToRouter};

use super::Control;

/// How long the router may take to obey.
const OBEY_TIMEOUT: Duration = Duration::from_secs(5);

/// The orders that were not obeyed yet, at most one for each VM.
#[derive(Clone, Debug, Default)]
pub(super) struct Renewals {
    last: u64,
    pending: BTreeMap<VmName, Order>,
}

#[derive(Clone, Copy, Debug)]
struct Order {
    number: u64,
    end_streams: bool,
}

impl Renewals {
    fn order(&mut self, vm: VmName, end_streams: bool) {
        self.last += 1;
        let before = self.pending.get(&vm).is_some_and(|order| order.end_streams);
        self.pending.insert(vm, Order { number: self.last, end_streams: end_streams || before });
    }

    /// Takes an order away that was obeyed.
    pub(super) fn obeyed(&mut self, number: u64) {
        self.pending.retain(|_, order| order.number != number);
    }

    /// The orders after that with the number `sent`, and the number of the last.
    pub(super) fn after(&self, sent: u64) -> (Vec<ToRouter>, u64) {
        let new = self.pending.iter().filter(|(_, order)| order.number > sent);
        let order = |(vm, order): (&VmName, &Order)| ToRouter::NewCircuits {
            vm: vm.clone(),
            order: order.number,
            end_streams: order.end_streams,
        };
        (new.map(order).collect(), self.last)
    }
}

impl Control {
    /// Orders new circuits for VMs, and waits until the router has them. False when it is not connected, or does not
    /// answer in time: it obeys later then, before anything else that it is told about streams.
    pub async fn renew_circuits(&self, vms: &[VmName], end_streams: bool) -> bool {
        let mut renewals = self.0.renewals.subscribe();
        let mut last = 0;
        self.0.renewals.send_modify(|renewals| {
            let known = self.0.vms.borrow();
            renewals.pending.retain(|vm, _| known.contains_key(vm));
            vms.iter().for_each(|vm| renewals.order(vm.clone(), end_streams));
            last = renewals.last;
        });
        if self.0.applied.borrow().is_none() {
            return false;
        }
        let is_obeyed =
            |renewals: &Renewals| vms.iter().all(|vm| renewals.pending.get(vm).is_none_or(|order| order.number > last));
        matches!(timeout(OBEY_TIMEOUT, renewals.wait_for(is_obeyed)).await, Ok(Ok(_)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_order_stands_until_it_is_obeyed_and_ends_streams_if_any_did() {
        let mut renewals = Renewals::default();
        let [a, b] = ["a", "b"].map(|vm| vm.parse::<VmName>().unwrap());
        renewals.order(a.clone(), true);
        renewals.order(b.clone(), false);
        renewals.order(a.clone(), false);
        let order = |vm: &VmName, order, end_streams| ToRouter::NewCircuits { vm: vm.clone(), order, end_streams };
        assert_eq!(renewals.after(0), (vec![order(&a, 3, true), order(&b, 2, false)], 3));
        assert_eq!(renewals.after(2), (vec![order(&a, 3, true)], 3));
        renewals.obeyed(1);
        assert_eq!(renewals.after(0).0.len(), 2, "the first one of a was replaced");
        renewals.obeyed(3);
        assert_eq!(renewals.after(0), (vec![order(&b, 2, false)], 3));
    }
}
