//! What the agent knows at this moment: written by supervision and control, read by the API.
//!
//! No I/O and no clock: times come as arguments. What changes is announced ([`Model::events`]). Bounds: [`FAILURES_MAX`], [`CIRCUITS_MAX`]; what overflows pushes out
//! the oldest, and failures are counted. What the router says of a VM is bounded too, and of no other VMs taken.

use std::{
    collections::{BTreeMap, VecDeque},
    net::Ipv4Addr,
    time::{Duration, Instant},
};

use wire::{
    VmName,
    control::FromRouter,
    onion::{Reachability, ServiceName},
    route::Country,
};

use crate::{
    events::{Event, Events},
    nature::Nature,
    paths::RunDir,
    status::{CircuitStatus, ProcessStatus, RouterState, RouterStatus, TorStatus, VmStatus, VmUsage},
};

/// Failures that are remembered.
pub const FAILURES_MAX: usize = 20;

/// Bytes of the longest failure that is remembered: the router VM writes some of them.
const FAILURE_BYTES_MAX: usize = 1000;

/// Circuits that are remembered.
pub const CIRCUITS_MAX: usize = 1024;

/// Relays of the longest circuit that is remembered; arti's onion service circuits have up to seven.
const RELAYS_OF_CIRCUIT_MAX: usize = 16;

/// Reasons for drops that are remembered of a VM, and bytes of the longest: the router VM names them.
const REASONS_MAX: usize = 64;
const REASON_BYTES_MAX: usize = 40;

/// Everything known.
#[derive(Debug, Default)]
pub struct Model {
    /// The router VM.
    pub router: Router,
    /// The Tor client.
    pub tor: TorStatus,
    /// Who is told what changes.
    pub events: Events,
    /// In which countries relays are, as far as it is known.
    pub countries: BTreeMap<Ipv4Addr, Country>,
    processes: BTreeMap<String, Process>,
    vms: BTreeMap<VmName, Vm>,
    services: BTreeMap<(VmName, ServiceName), (Reachability, String)>,
    circuits: VecDeque<CircuitStatus>,
    failures: VecDeque<String>,
    failures_total: u64,
}

/// The router VM.
#[derive(Debug, Default)]
pub struct Router {
    /// What it is doing.
    pub state: RouterState,
    /// How it is executed, and why so.
    pub accel: (String, String),
    /// When QEMU was started.
    pub started: Option<Instant>,
    /// When it was ready, and how long that took.
    pub ready: Option<(Instant, Duration)>,
    /// How often it was started again.
    pub restarts: u32,
    available_kib: Option<u64>,
    resident_kib: Option<u64>,
    flows: Option<u32>,
    kernel: Option<String>,
}

/// A VM.
#[derive(Debug, Default)]
struct Vm {
    link_up: bool,
    nature: Nature,
    usage: Option<VmUsage>,
}

#[derive(Debug, Default)]
struct Process {
    running: Option<(u32, Instant)>,
    starts: u32,
}

impl Model {
    /// A model that knows nothing yet and announces what changes to `events`.
    #[must_use]
    pub fn new(events: Events) -> Model {
        Model { events, ..Model::default() }
    }

    /// Notes a failure, for `oht status` and the log.
    pub fn failure(&mut self, what: impl Into<String>) {
        let what: String = what.into();
        let what = shown(&what);
        tracing::warn!("{what}");
        self.events.announce(|| Event::Failure { what: what.clone() });
        self.failures_total += 1;
        if self.failures.len() == FAILURES_MAX {
            self.failures.pop_front();
        }
        self.failures.push_back(what);
    }

    /// Notes that a process runs.
    pub fn process_started(&mut self, name: &str, pid: u32, now: Instant) {
        let process = self.processes.entry(name.into()).or_default();
        process.running = Some((pid, now));
        process.starts += 1;
        self.events.announce(|| Event::Process { name: name.into(), pid: Some(pid) });
    }

    /// Notes that a process has ended; returns how long it ran.
    pub fn process_ended(&mut self, name: &str, now: Instant) -> Duration {
        let running = self.processes.get_mut(name).and_then(|process| process.running.take());
        if running.is_some() {
            self.events.announce(|| Event::Process { name: name.into(), pid: None });
        }
        running.map_or(Duration::ZERO, |(_, since)| now.saturating_duration_since(since))
    }

    /// Forgets a process that is not wanted any more.
    pub fn process_forgotten(&mut self, name: &str) {
        self.processes.remove(name);
    }

    /// The router VM is being started.
    pub fn router_starting(&mut self, now: Instant) {
        self.router_is(RouterState::Starting);
        self.router.started = Some(now);
        self.router.ready = None;
    }

    /// guest-init says that the VM is ready.
    pub fn router_ready(&mut self, kernel: String, available_kib: u64, now: Instant) {
        // A restarted guest-init does not exist: a second Ready in one boot changes nothing.
        if self.router.ready.is_none() {
            let took = self.router.started.map_or(Duration::ZERO, |started| now.saturating_duration_since(started));
            self.router.ready = Some((now, took));
            self.router_is(RouterState::Ready);
        }
        self.router.kernel = Some(kernel.chars().filter(|c| !c.is_control()).take(100).collect());
        self.router.available_kib = Some(available_kib);
    }

    /// The router VM has ended, or its program has.
    pub fn router_lost(&mut self, state: RouterState) {
        self.router_is(state);
        self.program_lost();
    }

    fn router_is(&mut self, state: RouterState) {
        self.router.state = state;
        self.events.announce(|| Event::Router { state });
    }

    /// The router program's connection has ended: what it said does not hold any more.
    pub fn program_lost(&mut self) {
        let (network, bridges) = (std::mem::take(&mut self.tor.network), self.tor.bridges);
        self.tor = TorStatus { network, bridges, ..TorStatus::default() };
        self.tor_is("the router program is not connected".into());
        for vm in self.vms.values_mut() {
            (vm.link_up, vm.usage) = (false, None);
        }
        self.services.values_mut().for_each(|service| *service = Default::default());
        self.circuits.clear();
        self.router.resident_kib = None;
        self.router.flows = None;
    }

    /// What the Tor client is doing, in words.
    pub fn tor_is(&mut self, status: String) {
        self.tor.status = status;
        self.events.announce(|| Event::Tor { tor: self.tor.clone() });
    }

    /// A VM was added.
    pub fn vm_added(&mut self, vm: VmName, nature: Nature) {
        self.events.announce(|| Event::VmAdded { vm: vm.to_string() });
        self.vms.insert(vm, Vm { nature, ..Vm::default() });
    }

    /// A VM was removed.
    pub fn vm_removed(&mut self, vm: &VmName) {
        self.vms.remove(vm);
        self.events.announce(|| Event::VmRemoved { vm: vm.to_string() });
        self.circuits.retain(|circuit| circuit.vm != vm.as_str());
        self.services.retain(|(of, _), _| of != vm);
    }

    /// An onion service was defined.
    pub fn service_added(&mut self, vm: VmName, service: ServiceName) {
        self.services.insert((vm, service), Default::default());
    }

    /// An onion service is gone.
    pub fn service_removed(&mut self, vm: &VmName, service: &ServiceName) {
        self.services.remove(&(vm.clone(), service.clone()));
    }

    /// What the router has found of an onion service.
    #[must_use]
    pub fn service(&self, vm: &VmName, service: &ServiceName) -> (Reachability, String) {
        self.services.get(&(vm.clone(), service.clone())).cloned().unwrap_or_default()
    }

    /// Takes a message of the router, except its relays and which routes it obeys, which are not for showing.
    pub fn router_says(&mut self, message: FromRouter, now: Instant, unix_s: u64) {
        match message {
            FromRouter::Bootstrap { percent, usable, status } => {
                if usable && self.tor.bootstrap_s.is_none() {
                    let since = self.router.ready.map_or(now, |(at, _)| at);
                    self.tor.bootstrap_s = Some(now.saturating_duration_since(since).as_secs_f64());
                }
                self.tor.percent = percent.min(100);
                self.tor.usable = usable;
                self.tor_is(status.chars().filter(|c| !c.is_control()).take(FAILURE_BYTES_MAX).collect());
            }
            FromRouter::Relays { .. }
            | FromRouter::RoutesApplied { .. }
            | FromRouter::CircuitsRenewed { .. }
            | FromRouter::Ask { .. } => {}
            FromRouter::Link { vm, up } => {
                if let Some(known) = self.vms.get_mut(&vm) {
                    known.link_up = up;
                    self.events.announce(|| Event::Link { vm: vm.to_string(), up });
                }
            }
            FromRouter::Stream { vm, circuit, relays, onion, exit } => {
                let country = exit.and_then(|exit| self.countries.get(&exit)).map(ToString::to_string);
                let (vm, streams, last) = (vm.to_string(), 0, unix_s);
                self.stream(CircuitStatus { vm, circuit, relays, onion, country, streams, last });
            }
            FromRouter::Usage { resident_kib, available_kib, flows, vms } => {
                vms.into_iter().for_each(|usage| self.vm_usage(usage));
                self.router.resident_kib = Some(resident_kib);
                self.router.available_kib = Some(available_kib);
                self.router.flows = Some(flows);
            }
            FromRouter::Service { vm, service, reachability, status } => {
                if let Some(known) = self.services.get_mut(&(vm, service)) {
                    *known = (reachability, shown(&status));
                }
            }
            FromRouter::Failure { what } => self.failure(format!("router: {what}")),
        }
    }

    fn vm_usage(&mut self, usage: wire::control::VmUsage) {
        let Some(vm) = self.vms.get_mut(&usage.vm) else { return };
        let name = usage.vm.to_string();
        let is_reason = |reason: &str| {
            reason.len() <= REASON_BYTES_MAX && reason.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_')
        };
        let usage = VmUsage {
            flows: usage.flows,
            circuits: usage.circuits,
            retries: usage.retries,
            bytes_from_vm: usage.bytes_from_vm,
            bytes_to_vm: usage.bytes_to_vm,
            drops: usage.drops.into_iter().filter(|(reason, _)| is_reason(reason)).take(REASONS_MAX).collect(),
        };
        self.events.announce(|| Event::Usage { vm: name, usage: usage.clone() });
        vm.usage = Some(usage);
    }

    /// Notes a stream more on this circuit.
    fn stream(&mut self, mut entry: CircuitStatus) {
        let CircuitStatus { vm, circuit, relays, .. } = &entry;
        let is_known = vm.parse::<VmName>().is_ok_and(|vm| self.vms.contains_key(&vm));
        if !is_known || circuit.len() > 100 || relays.len() > RELAYS_OF_CIRCUIT_MAX {
            return;
        }
        let before = self.circuits.iter().position(|known| known.vm == *vm && known.circuit == *circuit);
        entry.streams = 1 + before.and_then(|at| self.circuits.remove(at)).map_or(0, |before| before.streams);
        if self.circuits.len() == CIRCUITS_MAX {
            self.circuits.pop_front();
        }
        self.events.announce(|| Event::Stream { circuit: entry.clone() });
        self.circuits.push_back(entry);
    }

    /// The circuits, the one used last at the end.
    #[must_use]
    pub fn circuits(&self, vm: Option<&VmName>) -> Vec<CircuitStatus> {
        self.circuits.iter().filter(|circuit| vm.is_none_or(|vm| circuit.vm == vm.as_str())).cloned().collect()
    }

    /// The last failures and how many there were.
    #[must_use]
    pub fn failures(&self) -> (Vec<String>, u64) {
        (self.failures.iter().cloned().collect(), self.failures_total)
    }

    /// The processes.
    #[must_use]
    pub fn processes(&self, now: Instant) -> Vec<ProcessStatus> {
        let status = |(name, process): (&String, &Process)| ProcessStatus {
            name: name.clone(),
            pid: process.running.map(|(pid, _)| pid),
            restarts: process.starts.saturating_sub(1),
            up_s: process.running.map(|(_, since)| now.saturating_duration_since(since).as_secs_f64()),
        };
        self.processes.iter().map(status).collect()
    }

    /// The router VM.
    #[must_use]
    pub fn router_status(&self) -> RouterStatus {
        RouterStatus {
            state: self.router.state,
            accel: self.router.accel.0.clone(),
            accel_reason: self.router.accel.1.clone(),
            boot_s: self.router.ready.map(|(_, took)| took.as_secs_f64()),
            restarts: self.router.restarts,
            memory_available_kib: self.router.available_kib,
            resident_kib: self.router.resident_kib,
            flows: self.router.flows,
            kernel: self.router.kernel.clone(),
        }
    }

    /// The VMs.
    #[must_use]
    pub fn vms(&self, run: &RunDir) -> Vec<VmStatus> {
        let status = |(name, vm): (&VmName, &Vm)| VmStatus {
            name: name.to_string(),
            link_up: vm.link_up,
            port_pid: self.processes.get(&format!("port:{name}")).and_then(|port| port.running).map(|(pid, _)| pid),
            socket: run.vm(name).join("net.sock").display().to_string(),
            kind: vm.nature.kind,
            ephemeral: vm.nature.ephemeral,
            usage: vm.usage.clone(),
        };
        self.vms.iter().map(status).collect()
    }
}

/// What the router says, as far as it is shown.
fn shown(text: &str) -> String {
    text.chars().filter(|c| !c.is_control()).take(FAILURE_BYTES_MAX).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn vm(text: &str) -> VmName {
        text.parse().unwrap()
    }

    fn stream(name: &str, circuit: &str) -> FromRouter {
        FromRouter::Stream {
            vm: vm(name),
            circuit: circuit.into(),
            relays: vec!["A".repeat(40)],
            onion: false,
            exit: Some([192, 0, 2, 1].into()),
        }
    }

    #[test]
    fn failures_are_bounded_and_counted() {
        let mut model = Model::default();
        for i in 0..100 {
            model.failure(format!("{i}\n{}", "x".repeat(5000)));
        }
        let (failures, total) = model.failures();
        assert_eq!((failures.len(), total), (FAILURES_MAX, 100));
        assert!(failures[0].starts_with("80x") && failures[0].len() == FAILURE_BYTES_MAX);
    }

    #[test]
    fn times_are_taken_from_start_to_ready_to_usable() {
        let start = Instant::now();
        let at = |s| start + Duration::from_secs(s);
        let mut model = Model::default();
        model.router_starting(at(0));
        model.router_ready("6.12".into(), 1000, at(2));
        for (s, usable) in [(3, false), (5, true), (9, true)] {
            model.router_says(FromRouter::Bootstrap { percent: 200, usable, status: "s".into() }, at(s), 0);
        }
        assert_eq!(model.router_status().boot_s, Some(2.0));
        assert_eq!((model.tor.bootstrap_s, model.tor.percent), (Some(3.0), 100));
        model.router_lost(RouterState::Failed);
        assert!(!model.tor.usable && model.tor.bootstrap_s.is_none());
    }

    #[test]
    fn circuits_are_counted_bounded_and_gone_with_their_vm_and_router() {
        let mut model = Model::default();
        let now = Instant::now();
        model.vm_added(vm("a"), Nature::default());
        model.vm_added(vm("b"), Nature::default());
        model.countries.insert([192, 0, 2, 1].into(), "CH".parse().unwrap());
        for message in [stream("a", "1"), stream("b", "2"), stream("a", "1"), stream("stranger", "3")] {
            model.router_says(message, now, 7);
        }
        let circuits = model.circuits(None);
        assert_eq!(circuits.iter().map(|c| (c.vm.as_str(), c.streams)).collect::<Vec<_>>(), [("b", 1), ("a", 2)]);
        assert_eq!(circuits[0].country.as_deref(), Some("CH"));
        for i in 0..3000 {
            model.router_says(stream("a", &format!("c{i}")), now, 8);
        }
        assert_eq!(model.circuits(None).len(), CIRCUITS_MAX);
        model.router_says(stream("b", "9"), now, 9);
        model.vm_removed(&vm("a"));
        assert_eq!(model.circuits(None).len(), 1);
        model.program_lost();
        assert!(model.circuits(None).is_empty());
    }

    #[test]
    fn usage_is_bounded_kept_for_known_vms_and_gone_with_the_program() {
        let mut model = Model::default();
        model.vm_added(vm("a"), Nature::default());
        let mut drops: BTreeMap<String, u64> = (0..200).map(|i| (format!("reason_{i:03}"), i)).collect();
        drops.insert("a \"quote\"\n".into(), 1);
        drops.insert("a".repeat(1000), 1);
        for name in ["a", "stranger"] {
            let usage = wire::control::VmUsage {
                vm: vm(name),
                flows: 1,
                circuits: 2,
                retries: 3,
                bytes_from_vm: 4,
                bytes_to_vm: 5,
                drops: drops.clone(),
            };
            let usage = FromRouter::Usage { resident_kib: 0, available_kib: 0, flows: 1, vms: vec![usage] };
            model.router_says(usage, Instant::now(), 0);
        }
        let run = RunDir::new(Some("/r".into()));
        let [known] = &model.vms(&run)[..] else { panic!("one VM") };
        let usage = known.usage.as_ref().unwrap();
        assert_eq!((usage.flows, usage.circuits, usage.retries), (1, 2, 3));
        assert_eq!((usage.bytes_from_vm, usage.bytes_to_vm), (4, 5));
        assert_eq!(usage.drops.len(), REASONS_MAX);
        assert!(usage.drops.keys().all(|reason| reason.starts_with("reason_")));
        model.program_lost();
        assert_eq!(model.vms(&run)[0].usage, None);
    }

    #[test]
    fn restarts_are_counted_from_the_second_start() {
        let mut model = Model::default();
        let now = Instant::now();
        model.process_started("uplink", 1, now);
        assert_eq!(model.process_ended("uplink", now + Duration::from_secs(4)), Duration::from_secs(4));
        assert_eq!(
            model.processes(now)[0],
            ProcessStatus { name: "uplink".into(), pid: None, restarts: 0, up_s: None }
        );
        model.process_started("uplink", 2, now);
        assert_eq!(model.processes(now)[0].restarts, 1);
    }
}
