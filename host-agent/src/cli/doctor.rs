//! `oht doctor`: looks at everything that can be wrong, and says what to do about what is.
//!
//! Each check is independent and bounded, changes nothing, and needs no running agent; one that runs is asked too.
//! The command dials only addresses of the Tor network's description, and only when no agent runs.

mod host;
mod network;

use std::{fmt, path::PathBuf};

use serde::Serialize;

use super::output;
use crate::{
    client::{Client, ClientError},
    config::{Options, Settings},
    status::Status,
};

/// How a check came out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// As it should be.
    Ok,
    /// Works, and could be better.
    Note,
    /// Does not work.
    Problem,
}

/// One check.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Check {
    /// What was looked at.
    pub check: &'static str,
    /// How it came out.
    pub ok: Outcome,
    /// What was seen.
    pub detail: String,
    /// What to do; empty where nothing is.
    pub remedy: String,
}

impl Check {
    fn ok(check: &'static str, detail: impl Into<String>) -> Check {
        Check { check, ok: Outcome::Ok, detail: detail.into(), remedy: String::new() }
    }

    fn note(check: &'static str, detail: impl Into<String>, remedy: impl Into<String>) -> Check {
        Check { check, ok: Outcome::Note, detail: detail.into(), remedy: remedy.into() }
    }

    fn problem(check: &'static str, detail: impl Into<String>, remedy: impl Into<String>) -> Check {
        Check { check, ok: Outcome::Problem, detail: detail.into(), remedy: remedy.into() }
    }
}

impl fmt::Display for Check {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let word = match self.ok {
            Outcome::Ok => "ok     ",
            Outcome::Note => "note   ",
            Outcome::Problem => "PROBLEM",
        };
        write!(f, "{word} {}: {}", self.check, self.detail)?;
        if self.remedy.is_empty() { Ok(()) } else { write!(f, "\n        remedy: {}", self.remedy) }
    }
}

/// Runs every check and prints what came out; `true` when there is no problem.
///
/// # Errors
/// When the settings are wrong, or standard output is closed.
pub async fn doctor(options: Options, config: Option<PathBuf>, json: bool) -> anyhow::Result<bool> {
    let settings = Settings::new(options, config.as_deref())?;
    let checks = examine(&settings).await;
    let well = checks.iter().all(|check| check.ok != Outcome::Problem);
    if json {
        output::json(&checks)?;
    } else {
        let lines: Vec<_> = checks.iter().map(Check::to_string).collect();
        let last = if well { "doctor: no problem found" } else { "doctor: there are problems, see above" };
        output::text(&format!("{}\n{last}", lines.join("\n")))?;
    }
    Ok(well)
}

/// Every check, in the order in which one would mend things.
pub async fn examine(settings: &Settings) -> Vec<Check> {
    let answer = Client::new(settings.run.api()).get::<Status>("/status").await;
    let running = answer.as_ref().ok();
    let mut checks = vec![host::qemu(settings).await, host::acceleration(settings).await];
    checks.extend(host::programs(settings));
    checks.push(host::image(settings));
    checks.push(host::directory("state directory", settings.state.path(), "--state-dir"));
    checks.push(host::directory("run directory", settings.run.path(), "--run-dir"));
    checks.push(host::lock(settings, running));
    checks.push(host::api_socket(settings, answer.as_ref().err()));
    checks.extend(host::vm_sockets(settings, running));
    checks.push(network::clock(settings, running));
    checks.push(network::description(settings));
    checks.push(network::entry(settings));
    checks.push(network::relays(settings, running).await);
    if let Some(status) = running {
        checks.push(host::router(status));
    }
    checks
}

/// What an error of the client means here.
fn is_silent(error: &ClientError) -> bool {
    !matches!(error, ClientError::NotRunning { .. } | ClientError::Forbidden(_))
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn examined(dir: &std::path::Path) -> Vec<Check> {
        let options = Options {
            run_dir: Some(dir.join("run")),
            state_dir: Some(dir.join("state")),
            image: Some(dir.join("image")),
            tor_network: Some(dir.join("network.json")),
            ..Options::default()
        };
        std::fs::write(dir.join("agent.toml"), "").unwrap();
        examine(&Settings::new(options, Some(&dir.join("agent.toml"))).unwrap()).await
    }

    fn outcome(checks: &[Check], name: &str) -> (Outcome, String) {
        let check = checks.iter().find(|check| check.check == name).unwrap_or_else(|| panic!("no check {name}"));
        assert_eq!(check.ok == Outcome::Ok, check.remedy.is_empty(), "{check}");
        (check.ok, check.to_string())
    }

    #[tokio::test]
    async fn every_trouble_is_found_named_and_has_a_remedy() {
        let dir = tempfile::tempdir().unwrap();
        let checks = examined(dir.path()).await;
        assert_eq!(outcome(&checks, "state directory").0, Outcome::Note, "made at the first start");
        assert_eq!(outcome(&checks, "image").0, Outcome::Problem);
        assert_eq!(outcome(&checks, "Tor network").0, Outcome::Problem);
        assert_eq!(outcome(&checks, "API socket").0, Outcome::Ok);

        let run = dir.path().join("run");
        std::fs::create_dir_all(run.join("vm/web")).unwrap();
        std::fs::create_dir_all(dir.path().join("state")).unwrap();
        drop(std::os::unix::net::UnixListener::bind(run.join("api.sock")).unwrap());
        let _stranger = std::os::unix::net::UnixListener::bind(run.join("vm/web/net.sock")).unwrap();
        let _lock = crate::lock::take(&dir.path().join("state/lock")).unwrap();
        let state = r#"{"version":1,"vms":[{"name":"web","link_port":2048}]}"#;
        std::fs::write(dir.path().join("state/vms.json"), state).unwrap();
        let closed = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let cache = format!(r#"{{"rsa":"{}","ed25519":"{}","orports":["{closed}"]}}"#, "A".repeat(40), "x".repeat(43));
        let network = format!(r#"{{"name":"t","authorities":["{}"],"caches":[{cache}]}}"#, "A".repeat(40));
        std::fs::write(dir.path().join("network.json"), network).unwrap();
        let checks = examined(dir.path()).await;
        assert_eq!(outcome(&checks, "state directory").0, Outcome::Ok);
        let (found, text) = outcome(&checks, "API socket");
        assert!(found == Outcome::Problem && text.contains("stale"), "{text}");
        let (found, text) = outcome(&checks, "VM socket");
        assert!(found == Outcome::Problem && text.contains("web"), "{text}");
        let (found, text) = outcome(&checks, "lock");
        assert!(found == Outcome::Problem && text.contains(&std::process::id().to_string()), "{text}");
        assert_eq!(outcome(&checks, "Tor network").0, Outcome::Ok);
        let (found, text) = outcome(&checks, "relays");
        assert!(found == Outcome::Problem && text.contains("firewall"), "{text}");
    }
}
