//! The daemon's life: everything is started, the API is served, and everything is ended in order.

use std::sync::Arc;

use tokio::signal::unix::{SignalKind, signal};

use crate::{
    agent::{Agent, AgentError},
    api,
    config::Settings,
    keys::time::TimeSource,
};

/// Runs the agent until SIGTERM, SIGINT or `oht down`.
///
/// # Errors
/// When it cannot be started.
pub async fn run(settings: Settings, time: Box<dyn TimeSource>) -> Result<(), AgentError> {
    let (mut terminated, mut interrupted) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    let (agent, parts, socket, mut end) = Agent::start(settings, time).await?;
    let agent = Arc::new(agent);
    socket.set_nonblocking(true)?;
    let socket = tokio::net::UnixListener::from_std(socket)?;
    let serving = axum::serve(socket, api::router(Arc::clone(&agent)));
    let serving = tokio::spawn(async move { serving.await });
    tokio::select! {
        () = end.wanted() => tracing::info!("asked to end"),
        _ = terminated.recv() => tracing::info!("SIGTERM"),
        _ = interrupted.recv() => tracing::info!("SIGINT"),
    }
    agent.end(parts).await;
    serving.abort();
    Ok(())
}
