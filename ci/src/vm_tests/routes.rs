//! Routes: two VMs of which each may do what the other may not, and changes while they connect.

use std::{
    fs, thread,
    time::{Duration, Instant, SystemTime},
};

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::Value;

use super::{Stage, Tests};
use crate::{
    app_vm::AppVm,
    origin::Visit,
    tor_network::{AUTHORITIES, RELAYS},
    world::appliance,
};

pub(super) const TESTS: Tests = &[
    ("two_vms_have_opposite_routes", two_vms_have_opposite_routes),
    ("a_name_and_all_below_it_is_blocked", a_name_and_all_below_it_is_blocked),
    ("no_stream_passes_between_two_tables", no_stream_passes_between_two_tables),
    ("a_change_ends_only_what_it_does_not_keep", a_change_ends_only_what_it_does_not_keep),
];

const MINUTE: Duration = Duration::from_secs(60);
/// For what the gateway answers itself, in an emulated VM on a loaded machine.
const AT_ONCE: Duration = Duration::from_secs(4);
/// What had left the router when a change was acknowledged may take so long through Tor to the origin.
const ON_ITS_WAY_MS: u64 = 500;
const FLIPS: usize = 20;
/// How soon other routes are to be in force, from the command's start to its end, on a machine with nothing else to do.
const CHANGE_GOAL: Duration = Duration::from_millis(100);

/// Puts these routes in the place of all others; gives how long the command took until they were in force.
fn set(stage: &Stage<'_>, routes: &str) -> Result<Duration> {
    let file = stage.dir.join("routes.txt");
    fs::write(&file, routes)?;
    let file = file.to_str().context("the path is not UTF-8")?;
    let began = Instant::now();
    let changed = stage.appliance.oht(&["route", "set", file])?;
    ensure!(changed["in_force"] == true, "the router does not obey: {changed}");
    Ok(began.elapsed())
}

/// Runs a test with routes, and takes them away again.
fn with_routes(stage: &Stage<'_>, test: impl FnOnce() -> Result<String>) -> Result<String> {
    let seen = test();
    set(stage, "")?;
    seen
}

fn is_refused(vm: &AppVm, host: &str, port: u16) -> Result<()> {
    let answer = vm.run(&format!("t=$EPOCHREALTIME; nc {host} {port}; echo; echo $t $EPOCHREALTIME"), MINUTE)?;
    ensure!(answer.output.contains("Connection refused"), "{}: nc {host} {port} said {}", vm.name, answer.output);
    let times: Vec<f64> =
        answer.output.lines().last().unwrap_or_default().split(' ').filter_map(|t| t.parse().ok()).collect();
    let [from, to] = times[..] else { bail!("no times: {}", answer.output) };
    ensure!(to - from < AT_ONCE.as_secs_f64(), "it took {} s", to - from);
    Ok(())
}

/// Fetches `/small/NUMBER`; tries again, as young exits refuse now and then.
fn fetch(stage: &Stage<'_>, vm: &AppVm, number: u32) -> Result<Visit> {
    let url = stage.url("origin.test", &format!("/small/{number}"));
    let command =
        format!("for i in 1 2 3 4 5 6; do timeout 20 wget -q -O /dev/null {url} && exit 0; sleep 1; done; exit 1");
    vm.run(&command, 2 * MINUTE)?.ok().with_context(|| format!("{} fetches {url}", vm.name))?;
    let path = format!("/small/{number}");
    stage.world.visits().into_iter().rev().find(|visit| visit.path == path).context("the origin saw nobody")
}

/// Two exits, none of which is a guard: a relay is on a circuit once.
fn exits(stage: &Stage<'_>) -> Result<[usize; 2]> {
    let circuits = stage.appliance.circuits()?;
    let guards: Vec<_> = circuits.iter().filter_map(|circuit| stage.world.tor.relay(circuit.relays.first()?)).collect();
    let is_free = |index: &usize| guards.iter().all(|guard| guard.nickname != stage.world.tor.relays[*index].nickname);
    let mut free = (AUTHORITIES..RELAYS).filter(is_free);
    let (Some(one), Some(other)) = (free.next(), free.next()) else { bail!("all exits are guards") };
    Ok([one, other])
}

/// VM a may reach onion services only; b leaves by one exit only, which the origin sees.
fn two_vms_have_opposite_routes(stage: &mut Stage<'_>) -> Result<String> {
    let stage = &*stage;
    stage.vms().iter().try_for_each(|vm| stage.warm_up(vm))?;
    let (port, onion) = (stage.world.addresses.origin().port(), stage.world.tor.onion()?);
    with_routes(stage, || {
        let mut seen = vec![];
        for (round, index) in exits(stage)?.into_iter().enumerate() {
            let (exit, country) = (&stage.world.tor.relays[index].nickname, appliance::country(index));
            set(stage, &format!("a * onion-only\nb .onion block\nb * exit={country}\n"))?;
            is_refused(&stage.a, "origin.test", port)?;
            is_refused(&stage.a, &stage.world.addresses.origin().ip().to_string(), port)?;
            is_refused(&stage.b, &onion, 80)?;
            for number in 0..6 {
                let visit = fetch(stage, &stage.b, 1000 + 100 * round as u32 + number)?;
                ensure!(visit.by.as_deref() == Some(exit.as_str()), "{visit:?} is not by {exit} of {country}");
            }
            seen.push(format!("6 times {exit}"));
        }
        let command = format!(
            "for i in 1 2 3 4; do timeout 20 wget -q -O - http://{onion}/ | grep -q Tor && exit 0; done; exit 1"
        );
        stage.a.run(&command, 2 * MINUTE)?.ok().context("a fetches from an onion service")?;
        // Not by any exit where none is known to be allowed: neither in a country without one, nor in an unknown one.
        set(stage, "b * exit=ZZ")?;
        let nowhere = stage.b.run(&format!("timeout 20 wget -q -O /dev/null {}", stage.page_url()), MINUTE)?;
        ensure!(nowhere.status != 0, "a stream left in a country without an exit");
        let test = stage.appliance.oht_output(&["route", "test", "b", "origin.test:80"])?;
        let why: Value = serde_json::from_slice(&test.stdout)?;
        ensure!(test.status.success() && why["line"]["file"] == "50-api.conf", "oht route test says {why}");
        Ok(format!("a: onion service yes, exits no; b: {}, onion service no", seen.join(", then ")))
    })
}

fn a_name_and_all_below_it_is_blocked(stage: &mut Stage<'_>) -> Result<String> {
    let stage = &*stage;
    stage.vms().iter().try_for_each(|vm| stage.warm_up(vm))?;
    let port = stage.world.addresses.origin().port();
    with_routes(stage, || {
        set(stage, "b .origin.test block\n")?;
        for name in ["origin.test", "www.origin.test", "a.b.origin.test", "ORIGIN.test."] {
            is_refused(&stage.b, name, port)?;
            let test = stage.appliance.oht_output(&["route", "test", "b", &format!("{name}:{port}")])?;
            ensure!(test.status.code() == Some(4), "oht route test: {test:?}");
        }
        fetch(stage, &stage.a, 2000)?;
        set(stage, "b .origin.test block drop\n")?;
        let silence = stage.b.run(&format!("timeout 3 nc origin.test {port}; echo $?"), MINUTE)?;
        ensure!(!silence.output.contains("refused"), "nc said {}", silence.output);
        Ok("four names refused to b, which a reaches; silence with drop".into())
    })
}

/// Both VMs connect as fast as they can while routes flip between everything and nothing. Judged by the origin's record,
/// whose clock is the one of this program, and by connecting after each acknowledgement.
fn no_stream_passes_between_two_tables(stage: &mut Stage<'_>) -> Result<String> {
    let stage = &*stage;
    stage.vms().iter().try_for_each(|vm| stage.warm_up(vm))?;
    let port = stage.world.addresses.origin().port();
    let racing = format!(
        "rm -f stop; for i in 1 2 3 4; do while [ ! -e stop ]; do timeout 10 wget -q -O /dev/null {}; done & done; wait",
        stage.url("origin.test", "/small/3000")
    );
    let racers = [stage.a.shell.begin(&racing, 10 * MINUTE)?, stage.b.shell.begin(&racing, 10 * MINUTE)?];
    let outcome = with_routes(stage, || flip(stage, port));
    stage.vms().iter().try_for_each(|vm| vm.run("touch stop", MINUTE)?.ok().map(drop))?;
    for racer in racers {
        racer.wait()?;
    }
    // What the machine is capable of when the VMs are quiet.
    let mut quiet: Vec<Duration> = (0..20).map(|n| set(stage, ["", "* * block\n"][n % 2])).collect::<Result<_>>()?;
    quiet.sort_unstable();
    let (median, best) = (quiet[quiet.len() / 2], quiet[0]);
    set(stage, "")?;
    ensure!(
        best < CHANGE_GOAL,
        "a change took {best:?} at best, {median:?} in the median; the goal is {CHANGE_GOAL:?}"
    );
    Ok(format!("{}; at rest {} ms in the median, {} ms at best", outcome?, median.as_millis(), best.as_millis()))
}

fn flip(stage: &Stage<'_>, port: u16) -> Result<String> {
    let mut closed = vec![];
    let mut took = vec![];
    for _ in 0..FLIPS {
        thread::sleep(Duration::from_millis(700));
        took.push(set(stage, "* * block\n")?);
        let from = now_ms()?;
        is_refused(&stage.a, "origin.test", port)?;
        thread::sleep(Duration::from_millis(ON_ITS_WAY_MS + 300));
        closed.push((from, now_ms()?));
        set(stage, "")?;
    }
    let visits: Vec<_> = stage.world.visits().into_iter().filter(|visit| visit.path == "/small/3000").collect();
    for (from, to) in &closed {
        let passed = visits.iter().find(|visit| visit.at_ms > from + ON_ITS_WAY_MS && visit.at_ms < *to);
        ensure!(
            passed.is_none(),
            "{passed:?} passed {} ms after all was blocked",
            passed.map_or(0, |v| v.at_ms - from)
        );
    }
    let between = |pair: &[(u64, u64)]| visits.iter().any(|visit| visit.at_ms > pair[0].1 && visit.at_ms < pair[1].0);
    let open = closed.windows(2).filter(|pair| between(pair)).count();
    ensure!(open > FLIPS / 2, "streams passed in {open} of {} open phases: there was nothing to block", FLIPS - 1);
    took.sort_unstable();
    let late = visits.iter().filter(|visit| closed.iter().any(|(from, to)| (from..to).contains(&&visit.at_ms))).count();
    Ok(format!(
        "{} visits in {FLIPS} flips, {late} of what was on its way, none after; a change took {} ms in the median under load",
        visits.len(),
        took[took.len() / 2].as_millis(),
    ))
}

fn now_ms() -> Result<u64> {
    Ok(u64::try_from(SystemTime::UNIX_EPOCH.elapsed()?.as_millis())?)
}

/// A download that the new routes keep goes on to its end; one that they do not is reset at once.
fn a_change_ends_only_what_it_does_not_keep(stage: &mut Stage<'_>) -> Result<String> {
    let stage = &*stage;
    stage.vms().iter().try_for_each(|vm| stage.warm_up(vm))?;
    with_routes(stage, || {
        let slow = format!("wget -q -O - {} | wc -l", stage.url("origin.test", "/slow/20"));
        let kept = stage.a.shell.begin(&slow, 2 * MINUTE)?;
        let ended = stage.b.shell.begin(&format!("set -o pipefail; {slow}"), 2 * MINUTE)?;
        let began = Instant::now();
        while !both_have_flows(stage)? {
            ensure!(began.elapsed() < MINUTE, "no flows: {}", stage.appliance.status()?["vms"]);
            thread::sleep(Duration::from_millis(200));
        }
        let change =
            |n| set(stage, &format!("* other{n}.test block\nb .origin.test:1-65535 block\na * tor optimistic\n"));
        change(0)?;
        let changed = Instant::now();
        let cut = ended.wait()?;
        let after = changed.elapsed();
        (1..5).try_for_each(|n| change(n).map(drop))?;
        ensure!(after < AT_ONCE, "the stream of b was ended {after:?} after the change");
        ensure!(cut.status != 0 || !cut.output.contains("20"), "the stream of b was not ended: {cut:?}");
        let whole = kept.wait()?.ok()?;
        ensure!(whole.trim() == "20", "the stream of a has {whole} lines of 20");
        Ok(format!("one of 20 s was untouched by 5 changes, the other ended {} ms after", after.as_millis()))
    })
}

fn both_have_flows(stage: &Stage<'_>) -> Result<bool> {
    let status = stage.appliance.status()?;
    let vms = status["vms"].as_array().context("the status lists no VMs")?;
    let has_flows = |name: &str| vms.iter().any(|vm| vm["name"] == name && vm["usage"]["flows"].as_u64() > Some(0));
    Ok(has_flows("a") && has_flows("b"))
}
