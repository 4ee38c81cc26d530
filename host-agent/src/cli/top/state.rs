//! What `oht top` knows: made from events, without I/O.

use std::{collections::BTreeMap, time::Instant};

use crate::{
    cli::events,
    events::Event,
    keys::report::KeyTree,
    status::{CircuitStatus, Status, TorStatus, VmStatus, VmUsage},
};

/// Circuits of a VM that are remembered, the one used last first.
pub(super) const CIRCUITS_MAX: usize = 64;

/// Lines of what happened that are remembered.
pub(super) const LINES_MAX: usize = 64;

/// Everything that is shown.
#[derive(Debug, Default)]
pub(super) struct State {
    /// How everything was when the view began; its VMs and Tor are kept up to date in the fields below.
    pub(super) status: Option<Box<Status>>,
    /// The Tor client.
    pub(super) tor: TorStatus,
    /// The keys, if they may be seen.
    pub(super) keys: Option<KeyTree>,
    /// The VMs by name.
    pub(super) vms: BTreeMap<String, VmRow>,
    /// What happened, oldest first.
    pub(super) lines: Vec<String>,
    /// Which VM's circuits are shown.
    pub(super) selected: usize,
}

/// A VM.
#[derive(Debug, Default)]
pub(super) struct VmRow {
    pub(super) link_up: bool,
    pub(super) usage: Option<VmUsage>,
    /// Bytes a second, from the VM and to it.
    pub(super) rate: (f64, f64),
    /// The one used last first.
    pub(super) circuits: Vec<CircuitStatus>,
    measured: Option<Instant>,
}

impl State {
    /// Takes an event that came at `now`.
    pub(super) fn apply(&mut self, event: Event, now: Instant) {
        if !matches!(event, Event::Usage { .. } | Event::Stream { .. } | Event::Status { .. } | Event::Keys { .. }) {
            self.lines.push(events::line(&event));
            let too_many = self.lines.len().saturating_sub(LINES_MAX);
            self.lines.drain(..too_many);
        }
        match event {
            Event::Status { status } => self.begin(status),
            Event::VmAdded { vm } => drop(self.vms.insert(vm, VmRow::default())),
            Event::VmRemoved { vm } => drop(self.vms.remove(&vm)),
            Event::Link { vm, up } => self.of(&vm, |row| row.link_up = up),
            Event::Usage { vm, usage } => self.of(&vm, |row| row.uses(usage, now)),
            Event::Stream { circuit } => self.of(&circuit.vm.clone(), |row| row.streams_on(circuit)),
            Event::Tor { tor } => self.tor = tor,
            Event::Keys { tree } => self.keys = Some(*tree),
            Event::Router { state } => {
                if let Some(status) = &mut self.status {
                    status.router.state = state;
                }
            }
            Event::Process { .. } | Event::Failure { .. } | Event::Log { .. } | Event::Lost { .. } => {}
        }
        self.select(0);
    }

    /// Moves the selection, which stays on a VM.
    pub(super) fn select(&mut self, by: isize) {
        let last = self.vms.len().saturating_sub(1);
        self.selected = self.selected.saturating_add_signed(by).min(last);
    }

    /// The VM whose circuits are shown.
    pub(super) fn selected(&self) -> Option<(&String, &VmRow)> {
        self.vms.iter().nth(self.selected)
    }

    fn begin(&mut self, status: Box<Status>) {
        self.tor = status.tor.clone();
        let row = |vm: &VmStatus| VmRow { link_up: vm.link_up, usage: vm.usage.clone(), ..VmRow::default() };
        self.vms = status.vms.iter().map(|vm| (vm.name.clone(), row(vm))).collect();
        self.lines.extend(status.failures.iter().map(|failure| format!("failure {failure}")));
        self.status = Some(status);
    }

    fn of(&mut self, vm: &str, change: impl FnOnce(&mut VmRow)) {
        if let Some(row) = self.vms.get_mut(vm) {
            change(row);
        }
    }
}

impl VmRow {
    fn uses(&mut self, usage: VmUsage, now: Instant) {
        if let (Some(before), Some(at)) = (&self.usage, self.measured) {
            let seconds = now.saturating_duration_since(at).as_secs_f64().max(0.001);
            // Counts begin anew with the router program.
            let rate = |new: u64, old: u64| new.saturating_sub(old) as f64 / seconds;
            self.rate = (rate(usage.bytes_from_vm, before.bytes_from_vm), rate(usage.bytes_to_vm, before.bytes_to_vm));
        }
        (self.usage, self.measured) = (Some(usage), Some(now));
    }

    fn streams_on(&mut self, circuit: CircuitStatus) {
        self.circuits.retain(|known| known.circuit != circuit.circuit);
        self.circuits.insert(0, circuit);
        self.circuits.truncate(CIRCUITS_MAX);
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn usage(bytes_to_vm: u64) -> VmUsage {
        VmUsage { flows: 1, circuits: 1, retries: 0, bytes_from_vm: 10, bytes_to_vm, drops: BTreeMap::new() }
    }

    fn circuit(number: usize, streams: u64) -> CircuitStatus {
        let (vm, circuit) = ("web".into(), number.to_string());
        CircuitStatus { vm, circuit, relays: vec!["A".repeat(40)], onion: false, country: None, streams, last: 0 }
    }

    #[test]
    fn rates_are_of_the_time_between_two_counts_and_never_negative() {
        let (mut state, now) = (State::default(), Instant::now());
        state.apply(Event::VmAdded { vm: "web".into() }, now);
        for (second, bytes, rate) in [(0, 1000, 0.0), (2, 5000, 2000.0), (3, 0, 0.0)] {
            let event = Event::Usage { vm: "web".into(), usage: usage(bytes) };
            state.apply(event, now + Duration::from_secs(second));
            assert_eq!(state.vms["web"].rate, (0.0, rate));
        }
        state.apply(Event::Usage { vm: "stranger".into(), usage: usage(1) }, now);
        assert_eq!(state.vms.len(), 1);
    }

    #[test]
    fn circuits_and_lines_are_bounded_and_the_newest_stay() {
        let (mut state, now) = (State::default(), Instant::now());
        state.apply(Event::VmAdded { vm: "web".into() }, now);
        for number in 0..200 {
            state.apply(Event::Stream { circuit: circuit(number, 1) }, now);
            state.apply(Event::Failure { what: number.to_string() }, now);
        }
        state.apply(Event::Stream { circuit: circuit(150, 2) }, now);
        let circuits = &state.vms["web"].circuits;
        assert_eq!((circuits.len(), circuits[0].circuit.as_str(), circuits[0].streams), (CIRCUITS_MAX, "150", 2));
        assert_eq!((state.lines.len(), state.lines.last().unwrap().as_str()), (LINES_MAX, "failure 199"));
    }

    #[test]
    fn the_selection_stays_on_a_vm() {
        let (mut state, now) = (State::default(), Instant::now());
        state.select(1);
        assert!(state.selected().is_none());
        for vm in ["a", "b"] {
            state.apply(Event::VmAdded { vm: vm.into() }, now);
        }
        state.select(5);
        assert_eq!(state.selected().unwrap().0, "b");
        state.apply(Event::VmRemoved { vm: "b".into() }, now);
        assert_eq!(state.selected().unwrap().0, "a");
        state.select(-3);
        assert_eq!(state.selected, 0);
    }
}
