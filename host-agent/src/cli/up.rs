//! `oht up` and `oht down`.

use std::{
    fs,
    path::PathBuf,
    time::{Duration, Instant},
};

use anyhow::{Context, bail};
use hyper::Method;
use tokio::{process::Child, time::timeout};

use super::output;
use crate::{
    children::Children,
    client::{Client, ClientError},
    config::{Options, Settings},
    lock,
    paths::{RunDir, StateDir},
    pidfd::Process,
    programs::Programs,
    spawn::{Spawn, last_line},
    status::{RouterState, Status},
};

/// Between two looks at the status while waiting for Tor.
const LOOK: Duration = Duration::from_millis(100);

/// How long an agent that is ending, or was just killed, may break off what it is asked, until it is gone.
const ENDING_MAX: Duration = Duration::from_secs(5);

/// Failed starts of the router VM after which `oht up` gives up waiting: it will not get better by itself.
const RESTARTS_MAX: u32 = 4;

/// How long the agent may take to end everything.
const DOWN_S_MAX: u64 = 30;

/// Starts the agent where it is not running, and waits until Tor is usable.
///
/// # Errors
/// Says why not, and where the log is.
pub async fn up(options: Options, config: Option<PathBuf>, wait_s: u64, json: bool) -> anyhow::Result<()> {
    let settings = Settings::new(options.clone(), config.as_deref())?;
    let client = Client::new(settings.run.api());
    let mut progress = Progress { json, last: String::new(), failure: String::new() };
    let log = settings.run.path().join("host-agent.log");
    let mut child = match settled(&client).await {
        Ok(status) => {
            progress.say(&format!("the agent is running already, PID {}", status.agent.pid));
            None
        }
        Err(ClientError::NotRunning { .. }) => {
            progress.say("starting the router VM");
            Some(start(&settings, &options, config, &log)?)
        }
        Err(error) => return Err(error.into()),
    };
    let waited = timeout(Duration::from_secs(wait_s), wait(&client, &mut child, &mut progress, &log)).await;
    let status = waited.unwrap_or_else(|_| {
        let last = [progress.last.as_str(), progress.failure.as_str()].join("; last failure: ");
        let last = last.trim_end_matches("; last failure: ");
        bail!("not usable within {wait_s} s (last seen: {last}); it goes on trying: see `oht status`, `oht doctor` and {}", log.display())
    })?;
    if json { output::json(&status) } else { Ok(()) }
}

/// The status of an agent that stays, or why there is none.
async fn settled(client: &Client) -> Result<Status, ClientError> {
    let began = Instant::now();
    loop {
        match client.get("/status").await {
            Err(ClientError::Http(_)) if began.elapsed() < ENDING_MAX => tokio::time::sleep(LOOK).await,
            answer => return answer,
        }
    }
}

fn start(
    settings: &Settings,
    options: &Options,
    config: Option<PathBuf>,
    log: &std::path::Path,
) -> anyhow::Result<Child> {
    settings.run.create()?;
    let program = Programs::new(&settings.programs).find("host-agent")?;
    let mut arguments = vec!["run".into()];
    arguments.extend(options.to_arguments());
    if let Some(config) = config {
        arguments.extend(["--config".into(), std::path::absolute(config)?.into_os_string()]);
    }
    let _ = fs::remove_file(log);
    Spawn { program, arguments, log: log.into() }.start(&[]).context("cannot start the agent")
}

async fn wait(
    client: &Client,
    child: &mut Option<Child>,
    progress: &mut Progress,
    log: &std::path::Path,
) -> anyhow::Result<Status> {
    loop {
        match client.get::<Status>("/status").await {
            Ok(status) => {
                progress.show(&status);
                if status.tor.usable && status.router.state == RouterState::Ready {
                    return Ok(status);
                }
                if status.router.boot_s.is_none() && status.router.restarts >= RESTARTS_MAX {
                    let why = status.failures.last().cloned().unwrap_or_default();
                    bail!("the router VM does not start: {why} (the agent goes on trying; end it with `oht down`)");
                }
            }
            Err(ClientError::NotRunning { .. } | ClientError::Http(_)) => {}
            Err(error) => return Err(error.into()),
        }
        if let Some(status) = child.as_mut().map(Child::try_wait).transpose()?.flatten() {
            let said = last_line(log);
            let error = said.strip_prefix("host-agent: ").unwrap_or(&said);
            bail!("the agent ended ({status}): {error} (its log: {})", log.display());
        }
        tokio::time::sleep(LOOK).await;
    }
}

/// Prints a line whenever there is something new to say; on stderr, where standard output is for JSON.
struct Progress {
    json: bool,
    last: String,
    failure: String,
}

impl Progress {
    fn say(&mut self, line: &str) {
        if self.last == line {
            return;
        }
        self.last = line.into();
        if self.json {
            eprintln!("{line}");
        } else {
            println!("{line}");
        }
    }

    fn show(&mut self, status: &Status) {
        self.failure = status.failures.last().cloned().unwrap_or_default();
        let (router, tor) = (&status.router, &status.tor);
        match (router.state, router.boot_s) {
            (RouterState::Ready, Some(boot_s)) => {
                if !self.last.starts_with("Tor") && !self.last.starts_with("router VM ready") {
                    self.say(&format!(
                        "router VM ready after {boot_s:.2} s ({}: {})",
                        router.accel, router.accel_reason
                    ));
                }
                if tor.usable {
                    let took = tor.bootstrap_s.map_or_else(String::new, |s| format!(" after {s:.2} s"));
                    self.say(&format!("Tor usable{took} (network {:?})", tor.network));
                } else if !tor.status.is_empty() {
                    self.say(&format!("Tor {} %: {}", tor.percent, tor.status));
                }
            }
            (RouterState::Failed, _) => {
                let why = status.failures.last().cloned().unwrap_or_default();
                self.say(&format!("the router VM failed and is started again: {why}"));
            }
            _ => {}
        }
    }
}

/// Ends the agent and all that it runs; also what a killed agent has left behind.
///
/// # Errors
/// When it does not end in time.
pub async fn down(client: &Client, run: RunDir, state: StateDir, json: bool) -> anyhow::Result<()> {
    let was_running = match client.get::<Status>("/status").await {
        Ok(status) => {
            // Opened before it is told to end, so that it cannot be another process.
            let agent = i32::try_from(status.agent.pid).ok().and_then(Process::open);
            client.order(Method::POST, "/shutdown").await?;
            if let Some(agent) = agent
                && !agent.ended(Duration::from_secs(DOWN_S_MAX)).await
            {
                bail!("the agent has not ended within {DOWN_S_MAX} s: see its log");
            }
            true
        }
        Err(ClientError::NotRunning { .. }) => {
            end_leftovers(&run, &state).await?;
            false
        }
        Err(error) => return Err(error.into()),
    };
    if json {
        return output::json(&serde_json::json!({ "was_running": was_running }));
    }
    output::text(if was_running { "everything has ended" } else { "the agent was not running" })
}

async fn end_leftovers(run: &RunDir, state: &StateDir) -> anyhow::Result<()> {
    if !state.path().exists() {
        return Ok(());
    }
    let _lock = lock::take(&state.lock())?;
    let began = Instant::now();
    let ended = Children::open(state.children()).end_all().await;
    if !ended.is_empty() {
        eprintln!("ended what a killed agent had left ({}), {:.1} s", ended.join(", "), began.elapsed().as_secs_f64());
    }
    for socket in [run.api(), run.vsock(), run.vhost_user_vsock(), run.virtiofs(), run.qmp()] {
        let _ = fs::remove_file(socket);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::UnixListener;

    #[tokio::test]
    async fn an_agent_that_is_ending_is_waited_for() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("api.sock");
        let listener = UnixListener::bind(&path).unwrap();
        let ending = std::thread::spawn(move || {
            for _ in 0..2 {
                drop(listener.accept().unwrap());
            }
        });
        let answer = settled(&Client::new(path)).await;
        assert!(matches!(answer, Err(ClientError::NotRunning { .. })), "{answer:?}");
        ending.join().unwrap();
    }
}
