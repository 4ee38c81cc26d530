//! The connection of guest-init.

use std::time::{Instant, SystemTime, UNIX_EPOCH};

use tokio::net::UnixStream;
use wire::control::{FromInit, ToInit};

use super::{Inner, SessionError, read, write};

/// Provisions the VM, takes its reports, and asks it to power off when that is wanted. Ends with the connection.
pub(super) async fn run(inner: &Inner, stream: UnixStream) -> Result<(), SessionError> {
    let (mut reader, mut writer) = stream.into_split();
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let unix_time_ns = u64::try_from(now.as_nanos()).unwrap_or(u64::MAX);
    write(&mut writer, &ToInit::Provision { unix_time_ns }).await?;
    let mut power_off = inner.power_off.subscribe();
    let reports = async {
        while let Some(message) = read::<FromInit>(&mut reader).await? {
            if !report(inner, message) {
                break;
            }
        }
        Ok(())
    };
    let orders = async {
        // The sender lives as long as `inner`, so this fails never.
        let _ = power_off.wait_for(|wanted| *wanted).await;
        write(&mut writer, &ToInit::PowerOff).await?;
        // Only the reports end the connection: the acknowledgement is that we close it.
        std::future::pending::<Result<(), SessionError>>().await
    };
    tokio::select! {
        result = reports => result,
        result = orders => result,
    }
}

/// Takes one report; `false` when the connection is to be closed.
fn report(inner: &Inner, message: FromInit) -> bool {
    let mut model = inner.shared.model();
    match message {
        FromInit::Ready { uptime_ms, kernel, memory_kib } => {
            model.router_ready(kernel, memory_kib.1, Instant::now());
            tracing::info!(uptime_ms, available_kib = memory_kib.1, "the router VM is ready");
        }
        FromInit::Failure { what } => model.failure(format!("guest-init: {what}")),
        FromInit::ProgramEnded { how, restart_ms } => {
            model.failure(format!("the router program ended ({how}) and is started again in {restart_ms} ms"));
        }
        FromInit::PoweringOff => return false,
    }
    true
}
