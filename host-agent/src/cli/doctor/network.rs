//! What can be wrong between this host and the Tor network.

use std::{
    net::SocketAddr,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use tokio::{net::TcpStream, time::timeout};

use super::{Check, host};
use crate::{config::Settings, router_vm::words, status::Status};

/// 2026-01-01: this program did not exist before.
const BORN_UNIX_S: u64 = 1_767_225_600;

/// How far the clock may stand behind what was already written, in seconds: Tor forgives hours.
const BEHIND_S_MAX: u64 = 600;

/// How many relays are tried.
const TRIED_MAX: usize = 5;

/// Seconds that each may take; all are tried at once.
const DIAL_S_MAX: u64 = 5;

const CLOCK_REMEDY: &str = "set the clock (`timedatectl set-ntp true`, or `date -s`), then `oht down` and `oht up`: \
                            the router VM takes its time from this host";

/// The clock is right, so far as anything here can tell: nothing is asked over the network.
pub(super) fn clock(settings: &Settings, running: Option<&Status>) -> Check {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |now| now.as_secs());
    let complaint = running.map(|status| status.tor.status.as_str()).filter(|text| text.contains("skew"));
    judge_clock(now, host::newest_state(settings), complaint)
}

fn judge_clock(now: u64, newest_state: Option<u64>, complaint: Option<&str>) -> Check {
    if let Some(complaint) = complaint {
        return Check::problem("clock", format!("the Tor client complains: {complaint}"), CLOCK_REMEDY);
    }
    if now < BORN_UNIX_S {
        return Check::problem("clock", "it shows a time before this program was written", CLOCK_REMEDY);
    }
    match newest_state {
        Some(newest) if newest > now + BEHIND_S_MAX => {
            let behind = (newest - now) / 60;
            let detail = format!("it is {behind} minutes behind what the router VM has already written");
            Check::problem("clock", detail, CLOCK_REMEDY)
        }
        _ => {
            Check::ok("clock", "nothing here contradicts it (a clock that is fast shows only in Tor's own complaints)")
        }
    }
}

/// The Tor network's description is there and right.
pub(super) fn description(settings: &Settings) -> Check {
    match settings.network() {
        Ok(network) => {
            let (name, caches) = (&network.name, network.caches.len());
            Check::ok("Tor network", format!("{name:?}, {caches} directory caches"))
        }
        Err(error) => Check::problem(
            "Tor network",
            words(&error),
            "give --tor-network FILE, or build the image, which brings one",
        ),
    }
}

/// Through which kind of relay the network is entered.
pub(super) fn entry(settings: &Settings) -> Check {
    let (entry, transports) = (&settings.entry, &settings.transports);
    let missing: Vec<_> = transports.iter().filter(|(_, program)| !program.is_file()).collect();
    if let Some((name, program)) = missing.first() {
        let detail = format!("the program of the transport {name}, {}, is not there", program.display());
        return Check::problem("entry", detail, "install it, or mend `transports` in the configuration file");
    }
    match entry.bridges.len() {
        0 => Check::ok("entry", "no bridges: Tor's guards are connected to"),
        1 => Check::ok("entry", "only 1 bridge is connected to"),
        count => Check::ok("entry", format!("only {count} bridges are connected to")),
    }
}

/// A relay can be reached: the running agent knows, else a few are dialled.
pub(super) async fn relays(settings: &Settings, running: Option<&Status>) -> Check {
    let remedy =
        "check this host's network and firewall: outgoing TCP to the relays' ports (often 443, 9001) must pass";
    if let Some(tor) = running.map(|status| &status.tor) {
        return match (tor.usable, tor.percent) {
            (true, _) => Check::ok("relays", "the Tor client is usable"),
            (false, 0..10) => {
                Check::problem("relays", format!("the Tor client is at {} %: {}", tor.percent, tor.status), remedy)
            }
            (false, percent) => {
                Check::note("relays", format!("the Tor client is at {percent} %: {}", tor.status), "wait")
            }
        };
    }
    let Ok(network) = settings.network() else {
        return Check::note("relays", "not tried: no Tor network is described", "mend the Tor network's description");
    };
    // One address of each of the first caches: several of one relay would say less.
    let first = network.caches.iter().filter_map(|cache| cache.orports.first().copied());
    let entry = &settings.entry;
    // With bridges nothing else may be dialled, and one behind a transport only by the transport.
    let addresses: Vec<SocketAddr> =
        if entry.bridges.is_empty() { first.take(TRIED_MAX).collect() } else { entry.direct().into_iter().collect() };
    if addresses.is_empty() {
        return Check::note("relays", "not tried: every bridge needs a transport", "start the agent to see");
    }
    let dials = addresses.into_iter().map(|address| {
        let dial = timeout(Duration::from_secs(DIAL_S_MAX), TcpStream::connect(address));
        tokio::spawn(async move { matches!(dial.await, Ok(Ok(_))) })
    });
    let dials: Vec<_> = dials.collect();
    let (tried, mut reached) = (dials.len(), 0);
    for dial in dials {
        reached += usize::from(dial.await.unwrap_or(false));
    }
    if reached == 0 {
        return Check::problem("relays", format!("none of {tried} relays tried can be reached"), remedy);
    }
    Check::ok("relays", format!("{reached} of {tried} relays tried can be reached"))
}

#[cfg(test)]
mod tests {
    use super::{super::Outcome, *};
    use crate::config::Options;

    #[tokio::test]
    async fn with_bridges_no_other_relay_is_tried() {
        let dir = tempfile::tempdir().unwrap();
        let relay = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (orport, rsa) = (relay.local_addr().unwrap(), "A".repeat(40));
        let cache = format!(r#"{{"rsa":"{rsa}","ed25519":"{}","orports":["{orport}"]}}"#, "x".repeat(43));
        let network = format!(r#"{{"name":"t","authorities":["{rsa}"],"caches":[{cache}]}}"#);
        std::fs::write(dir.path().join("network.json"), network).unwrap();
        let tried = async |bridge: &str| {
            let file = dir.path().join("agent.toml");
            let lines = format!("bridges = [\"{bridge} {rsa}\"]\ntransports = {{ obfs4 = \"/nowhere/x\" }}\n");
            std::fs::write(&file, lines).unwrap();
            let options = Options { tor_network: Some(dir.path().join("network.json")), ..Options::default() };
            let settings = Settings::new(options, Some(&file)).unwrap();
            (relays(&settings, None).await, entry(&settings))
        };
        let (behind, program) = tried("obfs4 192.0.2.1:443").await;
        assert!(behind.detail.contains("not tried"), "{behind}");
        assert!(program.ok == Outcome::Problem && program.detail.contains("/nowhere/x"), "{program}");
        let (direct, entry) = tried("127.0.0.1:1").await;
        assert!(direct.detail.contains("none of 1"), "{direct}");
        assert!(entry.ok == Outcome::Ok && entry.detail.contains("only 1 bridge"), "{entry}");
        // A connection that had been made would stand in the backlog now.
        assert!(timeout(Duration::from_millis(50), relay.accept()).await.is_err());
    }

    #[test]
    fn a_clock_that_is_off_is_found_where_it_can_be() {
        let now = BORN_UNIX_S + 1_000_000;
        assert_eq!(judge_clock(now, None, None).ok, Outcome::Ok);
        assert_eq!(judge_clock(now, Some(now + BEHIND_S_MAX), None).ok, Outcome::Ok);
        assert_eq!(judge_clock(0, None, None).ok, Outcome::Problem);
        let behind = judge_clock(now, Some(now + 7200), None);
        assert!(behind.ok == Outcome::Problem && behind.detail.contains("120 minutes"), "{behind}");
        assert_eq!(judge_clock(now, None, Some("too much clock skew")).ok, Outcome::Problem);
    }
}
