//! `oht events`: what happens, a line each.

use wire::VmName;

use super::output;
use crate::{client::Client, events::Event};

/// Prints events until the agent ends, or `count` of them.
///
/// # Errors
/// When there is no agent, or the connection breaks.
pub async fn follow(
    client: &Client,
    vm: Option<&VmName>,
    log: bool,
    count: Option<u64>,
    json: bool,
) -> anyhow::Result<()> {
    let mut events = client.events(vm, log).await?;
    let mut left = count;
    while left != Some(0) {
        let Some(event) = events.next().await? else { return Ok(()) };
        // One a line, so that programs can read them as they come.
        output::text(&if json { serde_json::to_string(&event)? } else { line(&event) })?;
        left = left.map(|left| left - 1);
    }
    Ok(())
}

/// An event for people.
#[must_use]
pub fn line(event: &Event) -> String {
    match event {
        Event::Status { status } => {
            format!(
                "status  router {}, Tor at {} %, {} VMs",
                output::state(status.router.state),
                status.tor.percent,
                status.vms.len()
            )
        }
        Event::VmAdded { vm } => format!("vm      {vm}: added"),
        Event::VmRemoved { vm } => format!("vm      {vm}: removed"),
        Event::Link { vm, up } => {
            format!("vm      {vm}: {} the router", if *up { "linked to" } else { "not linked to" })
        }
        Event::Usage { vm, usage } => format!(
            "vm      {vm}: {} flows on {} circuits, {} out, {} in",
            usage.flows,
            usage.circuits,
            output::bytes(usage.bytes_from_vm),
            output::bytes(usage.bytes_to_vm)
        ),
        Event::Stream { circuit } => {
            format!("stream  {}: number {} on circuit {}", circuit.vm, circuit.streams, circuit.circuit)
        }
        Event::Tor { tor } => format!("tor     {} %: {}", tor.percent, tor.status),
        Event::Router { state } => format!("router  {}", output::state(*state)),
        Event::Process { name, pid: Some(pid) } => format!("process {name}: started, PID {pid}"),
        Event::Process { name, pid: None } => format!("process {name}: ended"),
        Event::Keys { tree } => format!("keys    {}, {} keys", tree.keys.detail, tree.branches.len()),
        Event::Failure { what } => format!("failure {what}"),
        Event::Log { level, part, text } => format!("log     {level} {part}: {text}"),
        Event::Lost { events } => format!("lost    {events} events: they came faster than they were read"),
    }
}
