//! The status as metrics, in the text format of OpenMetrics 1.0, which Prometheus reads.
//!
//! Made anew for each request from the one status that the API shows, so the two never differ. What is not known is
//! left out. Counts of VMs begin anew with the router program, as counters may.

use prometheus_client::{
    encoding::text::encode,
    metrics::{counter::Counter, family::Family, gauge::Gauge},
    registry::{Registry, Unit},
};

use crate::status::{RouterState, Status, VmUsage};

/// The media type of [`text`].
pub const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

type Labels = Vec<(&'static str, String)>;

/// Metrics with the same name.
struct Metrics<M>(Family<Labels, M>);

/// The metrics of `status`.
#[must_use]
pub fn text(status: &Status) -> String {
    let mut registry = Registry::with_prefix("oht");
    host(&mut registry, status);
    vms(&mut registry, status);
    let mut text = String::new();
    // A String takes everything.
    let _ = encode(&mut text, &registry);
    text
}

fn host(registry: &mut Registry, status: &Status) {
    let router = &status.router;
    let ready = gauge(registry, "router_ready", "Whether the router VM is ready");
    ready.set([], i64::from(router.state == RouterState::Ready));
    let restarts = counter(registry, "router_restarts", "How often the router VM was started again");
    restarts.add([], router.restarts.into());
    let memory = [
        ("router_memory_available", "Memory that the router VM has left", router.memory_available_kib),
        ("router_resident", "Memory that the router program takes", router.resident_kib),
    ];
    for (name, help, kib) in memory {
        let gauge = Family::<Labels, Gauge>::default();
        registry.register_with_unit(name, help, Unit::Bytes, gauge.clone());
        if let Some(kib) = kib {
            Metrics(gauge).set([], signed(kib.saturating_mul(1024)));
        }
    }
    let usable = gauge(registry, "tor_usable", "Whether streams can be opened");
    usable.set([], i64::from(status.tor.usable));
    let failures = counter(registry, "failures", "Failures that the agent has noted");
    failures.add([], status.failures_total);
    let restarts = counter(registry, "process_restarts", "How often a helper process was started again");
    for process in &status.processes {
        restarts.add([("process", &process.name)], process.restarts.into());
    }
}

fn vms(registry: &mut Registry, status: &Status) {
    let link_up = gauge(registry, "vm_link_up", "Whether the VM's port and the router are connected");
    let flows = gauge(registry, "vm_flows", "Flows that are open");
    let circuits = gauge(registry, "vm_circuits", "Circuits that carry streams of the VM");
    let retries = counter(registry, "vm_retries", "Streams that were tried again on another circuit");
    let bytes = counter(registry, "vm_bytes", "Payload bytes of TCP");
    let drops = counter(registry, "vm_drops", "What was dropped, refused or given up");
    for vm in &status.vms {
        let name = ("vm", vm.name.as_str());
        link_up.set([name], i64::from(vm.link_up));
        let Some(usage) = &vm.usage else { continue };
        let VmUsage { bytes_from_vm, bytes_to_vm, .. } = usage;
        flows.set([name], usage.flows.into());
        circuits.set([name], usage.circuits.into());
        retries.add([name], usage.retries);
        bytes.add([name, ("direction", "from_vm")], *bytes_from_vm);
        bytes.add([name, ("direction", "to_vm")], *bytes_to_vm);
        for (reason, count) in &usage.drops {
            drops.add([name, ("reason", reason)], *count);
        }
    }
}

fn gauge(registry: &mut Registry, name: &str, help: &str) -> Metrics<Gauge> {
    let family = Family::default();
    registry.register(name, help, family.clone());
    Metrics(family)
}

/// The name in the text has `_total` behind it.
fn counter(registry: &mut Registry, name: &str, help: &str) -> Metrics<Counter> {
    let family = Family::default();
    registry.register(name, help, family.clone());
    Metrics(family)
}

impl Metrics<Gauge> {
    fn set<const N: usize>(&self, labels: [(&'static str, &str); N], value: i64) {
        self.0.get_or_create(&owned(labels)).set(value);
    }
}

impl Metrics<Counter> {
    fn add<const N: usize>(&self, labels: [(&'static str, &str); N], count: u64) {
        self.0.get_or_create(&owned(labels)).inc_by(count);
    }
}

fn owned<const N: usize>(labels: [(&'static str, &str); N]) -> Labels {
    labels.map(|(name, value)| (name, value.to_owned())).to_vec()
}

fn signed(count: u64) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nature::Kind;
    use crate::status::{AgentStatus, ProcessStatus, RouterStatus, TorStatus, VmStatus};

    fn vm(name: &str, usage: Option<VmUsage>) -> VmStatus {
        VmStatus {
            name: name.into(),
            link_up: true,
            port_pid: None,
            socket: String::new(),
            optimistic: false,
            resolve: false,
            kind: Kind::Application,
            ephemeral: false,
            usage,
        }
    }

    fn status() -> Status {
        let usage = VmUsage {
            flows: 3,
            circuits: 2,
            retries: 1,
            bytes_from_vm: 1000,
            bytes_to_vm: u64::MAX,
            drops: [("checksum".into(), 5)].into(),
        };
        Status {
            agent: AgentStatus {
                version: "1".into(),
                pid: 1,
                uptime_s: 1.0,
                state_dir: String::new(),
                run_dir: String::new(),
            },
            router: RouterStatus {
                state: RouterState::Ready,
                accel: "tcg".into(),
                accel_reason: String::new(),
                boot_s: None,
                restarts: 2,
                memory_available_kib: Some(4),
                resident_kib: None,
                flows: None,
                kernel: None,
            },
            tor: TorStatus::default(),
            processes: vec![ProcessStatus { name: "port:web".into(), pid: None, restarts: 7, up_s: None }],
            vms: vec![vm("web", Some(usage)), vm("new", None)],
            failures: vec![],
            failures_total: 9,
        }
    }

    #[test]
    fn every_number_is_there_with_its_labels() {
        let text = text(&status());
        let lines: Vec<_> = text.lines().collect();
        for line in [
            "# TYPE oht_vm_flows gauge",
            "oht_vm_link_up{vm=\"new\"} 1",
            "oht_vm_flows{vm=\"web\"} 3",
            "oht_vm_circuits{vm=\"web\"} 2",
            "oht_vm_retries_total{vm=\"web\"} 1",
            "oht_vm_bytes_total{vm=\"web\",direction=\"from_vm\"} 1000",
            "oht_vm_bytes_total{vm=\"web\",direction=\"to_vm\"} 18446744073709551615",
            "oht_vm_drops_total{vm=\"web\",reason=\"checksum\"} 5",
            "oht_router_ready{} 1",
            "oht_router_restarts_total{} 2",
            "oht_router_memory_available_bytes{} 4096",
            "oht_tor_usable{} 0",
            "oht_process_restarts_total{process=\"port:web\"} 7",
            "oht_failures_total{} 9",
        ] {
            assert!(lines.contains(&line), "{line} is not in\n{text}");
        }
        assert_eq!(lines.last(), Some(&"# EOF"));
    }

    #[test]
    fn what_is_not_known_is_left_out() {
        let text = text(&status());
        assert!(!text.contains("oht_vm_flows{vm=\"new\"}") && !text.contains("oht_router_resident_bytes{"), "{text}");
    }
}
