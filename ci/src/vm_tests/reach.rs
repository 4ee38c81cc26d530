//! What a VM reaches, what it is refused, and how.

use std::{
    net::Ipv4Addr,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};

use super::{LEASE_TIME, Stage, Tests};
use crate::{
    app_vm::{Answer, AppVm},
    origin,
    world::addresses::REFUSED_PORT,
};

pub(super) const TESTS: Tests = &[
    ("dhcp_lease", dhcp_lease),
    ("name_is_resolved_and_fetched", name_is_resolved_and_fetched),
    ("onion_service_is_fetched", onion_service_is_fetched),
    ("refused_port_is_refused_at_once", refused_port_is_refused_at_once),
    ("unroutable_address_is_unreachable", unroutable_address_is_unreachable),
    ("name_that_does_not_exist_is_unreachable", name_that_does_not_exist_is_unreachable),
    ("gateway_answers_ping", gateway_answers_ping),
    ("udp_elsewhere_is_refused_at_once", udp_elsewhere_is_refused_at_once),
];

/// "At once" for an answer from the far end: a few round trips through three relays and an emulated VM, on a loaded
/// machine. A guest's own timeouts are 5 s (DNS) and more.
const AT_ONCE: Duration = Duration::from_secs(4);
const ONION_TIME: Duration = Duration::from_secs(90);
const MINUTE: Duration = Duration::from_secs(60);

fn dhcp_lease(stage: &mut Stage<'_>) -> Result<String> {
    let leases = stage.vms().map(|vm| vm.lease(LEASE_TIME));
    let [(time, a), (_, b)] = leases.into_iter().collect::<Result<Vec<_>>>()?.try_into().unwrap_or_default();
    ensure!(a == b, "VMs can be told apart: {a:?} and {b:?}");
    for part in ["ip=10.0.2.15 ", "subnet=255.255.255.0 ", "router=10.0.2.2 ", "dns=10.0.2.2 "] {
        ensure!(a.contains(part), "the lease lacks {part:?}: {a}");
    }
    Ok(format!("{a}, {:.1} s after QEMU's start", time.as_secs_f64()))
}

fn name_is_resolved_and_fetched(stage: &mut Stage<'_>) -> Result<String> {
    let mut addresses = Vec::new();
    for vm in stage.vms() {
        stage.warm_up(vm)?;
        let answer = vm.run("nslookup -type=a origin.test", MINUTE)?.ok()?;
        let address: Ipv4Addr = made_up_address(&answer).with_context(|| format!("nslookup said {answer}"))?;
        ensure!(address.octets()[0] == 10 && address.octets()[1] >= 192, "{address} is not a made-up address");
        addresses.push(address.to_string());
        let fetched = vm.run(&format!("wget -q -O - {} | sha256sum", stage.page_url()), MINUTE)?.ok()?;
        ensure!(fetched.starts_with(&origin::sha256(&origin::page())), "the page is not the origin's: {fetched}");
    }
    let visits = stage.world.visits();
    let visit = visits.last().context("the origin saw nobody")?;
    let by = visit.by.as_deref().unwrap_or_default();
    ensure!(by.starts_with("exit"), "the origin was visited by {visit:?}, which is no exit");
    Ok(format!("{} were made up, {by} carried it", addresses.join(" and ")))
}

/// The last address that nslookup prints: before it stands the server's.
fn made_up_address(answer: &str) -> Option<Ipv4Addr> {
    answer
        .lines()
        .rev()
        .find_map(|line| line.strip_prefix("Address")?.rsplit([' ', ':', '\t']).next()?.trim().parse().ok())
}

fn onion_service_is_fetched(stage: &mut Stage<'_>) -> Result<String> {
    let onion = stage.world.tor.onion()?;
    let began = Instant::now();
    let command = format!("timeout 20 wget -q -O - http://{onion}/ | sha256sum");
    let hash = origin::sha256(&origin::page());
    // A service's descriptor may not be where clients look for it yet.
    loop {
        let answer = stage.a.run(&command, MINUTE)?;
        if answer.output.starts_with(&hash) {
            let visits = stage.world.visits();
            let by = visits.last().and_then(|visit| visit.by.clone()).unwrap_or_default();
            ensure!(by.starts_with("client"), "the onion service's visit came from {by:?}");
            return Ok(format!("{onion}, {:.1} s for the fetch", answer.time.as_secs_f64()));
        }
        if began.elapsed() > ONION_TIME {
            bail!("no page from {onion}: {}", answer.output);
        }
        thread::sleep(Duration::from_secs(2));
    }
}

/// Tries to connect from the VM; the time is the connect's alone, without the shell's.
fn connect(vm: &AppVm, host: &str, port: u16) -> Result<(Answer, Duration)> {
    let answer =
        vm.run(&format!("t=$EPOCHREALTIME; nc {host} {port}; s=$?; echo; echo $t $EPOCHREALTIME; exit $s"), MINUTE)?;
    let times: Vec<f64> =
        answer.output.lines().last().unwrap_or_default().split(' ').filter_map(|t| t.parse().ok()).collect();
    let [from, to] = times[..] else { bail!("nc {host} {port}: {answer:?}") };
    Ok((answer, Duration::from_secs_f64((to - from).max(0.0))))
}

fn refused_port_is_refused_at_once(stage: &mut Stage<'_>) -> Result<String> {
    stage.warm_up(&stage.a)?;
    let (answer, time) = connect(&stage.a, "origin.test", REFUSED_PORT)?;
    ensure!(answer.output.contains("Connection refused"), "nc said: {}", answer.output);
    ensure!(time < AT_ONCE, "it took {time:?}");
    Ok(format!("refused after {} ms", time.as_millis()))
}

fn unroutable_address_is_unreachable(stage: &mut Stage<'_>) -> Result<String> {
    stage.warm_up(&stage.a)?;
    let address = stage.world.addresses.unroutable().to_string();
    let mut times = Vec::new();
    for host in [address.as_str(), "unroutable.test"] {
        let (answer, time) = connect(&stage.a, host, 80)?;
        ensure!(is_unreachable(&answer), "for {host}, nc said: {}", answer.output);
        times.push(format!("{host} after {} ms", time.as_millis()));
    }
    Ok(times.join(", "))
}

fn name_that_does_not_exist_is_unreachable(stage: &mut Stage<'_>) -> Result<String> {
    stage.warm_up(&stage.a)?;
    let (answer, time) = connect(&stage.a, "nx.test", 80)?;
    ensure!(is_unreachable(&answer), "nc said: {}", answer.output);
    Ok(format!("after {} ms", time.as_millis()))
}

/// EHOSTUNREACH or ENETUNREACH, in libc's words.
fn is_unreachable(answer: &Answer) -> bool {
    ["No route to host", "Network is unreachable"].iter().any(|words| answer.output.contains(words))
}

fn gateway_answers_ping(stage: &mut Stage<'_>) -> Result<String> {
    let mut seen = Vec::new();
    for vm in stage.vms() {
        vm.lease(LEASE_TIME)?;
        let said = vm.run("ping -c 3 -W 5 10.0.2.2", MINUTE)?.ok()?;
        ensure!(said.contains(" 0% packet loss"), "{said}");
        seen.push(said.lines().last().unwrap_or_default().to_owned());
    }
    Ok(seen.join("; "))
}

fn udp_elsewhere_is_refused_at_once(stage: &mut Stage<'_>) -> Result<String> {
    stage.a.lease(LEASE_TIME)?;
    // nslookup as any program that speaks UDP; the kernel counts the ICMP messages that refuse it.
    let unreachables = "awk '/^Icmp:/ { n = $5 } END { print n }' /proc/net/snmp";
    // It goes on trying for some seconds: what counts is when it first says that it was refused.
    let command = format!(
        "{unreachables}; echo $EPOCHREALTIME; nslookup x.test 192.0.2.53 2>&1 | {{ read said; echo $EPOCHREALTIME $said; cat; }}; \
         {unreachables}"
    );
    let answer = stage.a.run(&command, MINUTE)?.ok()?;
    let lines: Vec<&str> = answer.lines().collect();
    let number = |line: Option<&&str>| line.and_then(|line| line.split(' ').next()?.parse::<f64>().ok());
    let (before, after) = (number(lines.first()), number(lines.last()));
    ensure!(before.is_some() && after > before, "no ICMP came: {answer}");
    ensure!(lines.get(2).is_some_and(|line| line.contains("Connection refused")), "nslookup was not refused: {answer}");
    let (Some(from), Some(to)) = (number(lines.get(1)), number(lines.get(2))) else { bail!("no times: {answer}") };
    let time = Duration::from_secs_f64((to - from).max(0.0));
    ensure!(time < AT_ONCE, "it took {time:?}");
    Ok(format!("refused after {} ms", time.as_millis()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_found_in_what_nslookup_prints() {
        let said = "Server:\t\t10.0.2.2\nAddress:\t10.0.2.2:53\n\nName:\torigin.test\nAddress: 10.200.3.4\n\n";
        assert_eq!(made_up_address(said), Some(Ipv4Addr::new(10, 200, 3, 4)));
        assert_eq!(made_up_address("nothing"), None);
    }
}
