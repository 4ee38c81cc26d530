//! What `oht` prints: text for people, or JSON for programs, always the same content.

use std::io::Write;

use serde::Serialize;

use crate::{
    nature::Kind,
    status::{CircuitStatus, RouterState, Status, VmStatus, VmUsage},
};

/// Prints a value as one JSON document.
///
/// # Errors
/// When standard output is closed.
pub fn json(value: &impl Serialize) -> anyhow::Result<()> {
    let text = serde_json::to_string_pretty(value)?;
    writeln!(std::io::stdout(), "{text}")?;
    Ok(())
}

/// Prints lines.
///
/// # Errors
/// When standard output is closed.
pub fn text(text: &str) -> anyhow::Result<()> {
    let mut out = std::io::stdout();
    out.write_all(text.as_bytes())?;
    if !text.ends_with('\n') {
        out.write_all(b"\n")?;
    }
    Ok(())
}

/// The status for people.
#[must_use]
pub fn status(status: &Status) -> String {
    let (agent, router, tor) = (&status.agent, &status.router, &status.tor);
    let mut lines =
        vec![format!("agent   running, PID {}, for {:.0} s; sockets in {}", agent.pid, agent.uptime_s, agent.run_dir)];
    let booted = router.boot_s.map_or_else(String::new, |s| format!(", booted in {s:.2} s"));
    let memory = router.memory_available_kib.map_or_else(String::new, |kib| format!(", {} MiB free", kib / 1024));
    lines.push(format!("router  {}{booted}{memory}, {} ({})", state(router.state), router.accel, router.accel_reason));
    let usable = if tor.usable { "usable" } else { "not usable yet" };
    let took = tor.bootstrap_s.map_or_else(String::new, |s| format!(" after {s:.2} s"));
    let through = match tor.bridges {
        0 => String::new(),
        1 => " through 1 bridge".into(),
        bridges => format!(" through {bridges} bridges"),
    };
    let (network, percent) = (&tor.network, tor.percent);
    lines.push(format!("tor     network {network:?}{through}, {percent} %, {usable}{took}: {}", tor.status));
    for process in &status.processes {
        let pid = process.pid.map_or_else(|| "down".into(), |pid| format!("PID {pid}"));
        lines.push(format!("process {}: {pid}, started again {} times", process.name, process.restarts));
    }
    lines.push(format!("keys    {}", status.keys.detail));
    lines.push(vms(&status.vms));
    lines.extend(status.failures.iter().map(|failure| format!("failure {failure}")));
    lines.join("\n")
}

/// The VMs for people.
#[must_use]
pub fn vms(vms: &[VmStatus]) -> String {
    if vms.is_empty() {
        return "no VMs: add one with `oht vm add NAME`".into();
    }
    let line = |vm: &VmStatus| {
        let link = if vm.link_up { "linked to the router" } else { "not linked to the router yet" };
        let kind = if vm.kind == Kind::default() { String::new() } else { format!(", {}", vm.kind) };
        let ephemeral = if vm.ephemeral { ", ephemeral" } else { "" };
        let usage = vm.usage.as_ref().map_or_else(String::new, usage);
        format!("vm      {}: {link}{kind}{ephemeral}, socket {}{usage}", vm.name, vm.socket)
    };
    vms.iter().map(line).collect::<Vec<_>>().join("\n")
}

/// What a VM uses, on lines of its own.
fn usage(usage: &VmUsage) -> String {
    let VmUsage { flows, circuits, retries, .. } = usage;
    let (from_vm, to_vm) = (bytes(usage.bytes_from_vm), bytes(usage.bytes_to_vm));
    let mut text =
        format!("\n        {flows} flows on {circuits} circuits, {from_vm} out, {to_vm} in, {retries} retries");
    if !usage.drops.is_empty() {
        let drops: Vec<_> = usage.drops.iter().map(|(reason, count)| format!("{reason} {count}")).collect();
        text.push_str(&format!("\n        dropped or refused: {}", drops.join(", ")));
    }
    text
}

/// A number of bytes in the unit that suits it.
#[must_use]
pub fn bytes(count: u64) -> String {
    match count {
        0..0x400 => format!("{count} B"),
        0x400..0x10_0000 => format!("{:.1} KiB", count as f64 / 1024.0),
        _ => format!("{:.1} MiB", count as f64 / 1_048_576.0),
    }
}

/// The circuits for people.
#[must_use]
pub fn circuits(circuits: &[CircuitStatus]) -> String {
    if circuits.is_empty() {
        return "no circuits have carried anything yet".into();
    }
    let line = |circuit: &CircuitStatus| {
        let country = circuit.country.as_deref().map_or_else(String::new, |country| format!(" in {country}"));
        let kind = if circuit.onion { "onion service".to_owned() } else { format!("exit{country}") };
        let relays = circuit.relays.join(" > ");
        format!("{} circuit {} ({kind}, {} streams): {relays}", circuit.vm, circuit.circuit, circuit.streams)
    };
    circuits.iter().map(line).collect::<Vec<_>>().join("\n")
}

/// What the router VM does, in words.
#[must_use]
pub fn state(state: RouterState) -> &'static str {
    match state {
        RouterState::Starting => "starting",
        RouterState::Ready => "ready",
        RouterState::Failed => "failed, is started again",
        RouterState::Stopped => "stopped",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_vm_uses_is_shown_once_it_is_known() {
        let mut vm = VmStatus {
            name: "web".into(),
            link_up: true,
            port_pid: Some(7),
            socket: "/s".into(),
            kind: Kind::Application,
            ephemeral: false,
            usage: None,
        };
        assert_eq!(vms(&[vm.clone()]), "vm      web: linked to the router, socket /s");
        (vm.kind, vm.ephemeral) = (Kind::Utility, true);
        vm.usage = Some(VmUsage {
            flows: 3,
            circuits: 2,
            retries: 1,
            bytes_from_vm: 1000,
            bytes_to_vm: 3 << 19,
            drops: [("checksum".into(), 5), ("half_open".into(), 1)].into(),
        });
        assert_eq!(
            vms(&[vm]),
            "vm      web: linked to the router, utility, ephemeral, socket /s\n        \
             3 flows on 2 circuits, 1000 B out, 1.5 MiB in, 1 retries\n        \
             dropped or refused: checksum 5, half_open 1"
        );
        assert_eq!(bytes(2048), "2.0 KiB");
    }
}
