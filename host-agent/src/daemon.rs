//! The daemon's life: everything is started, the API is served, and everything is ended in order.

use std::sync::Arc;

use tokio::signal::unix::{SignalKind, signal};

use crate::{
    agent::{Agent, AgentError},
    api,
    config::Settings,
    events::Events,
    keys::time::TimeSource,
    notify,
};

/// Runs the agent until SIGTERM, SIGINT or `oht down`; what happens is announced to `events`.
///
/// # Errors
/// When it cannot be started.
pub async fn run(settings: Settings, events: Events, time: Box<dyn TimeSource>) -> Result<(), AgentError> {
    let (mut terminated, mut interrupted) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    let (agent, parts, sockets, mut end) = Agent::start(settings, events, time).await?;
    let agent = Arc::new(agent);
    let serving = sockets
        .into_iter()
        .map(|socket| Ok(tokio::spawn(api::serve(socket, Arc::clone(&agent))?)))
        .collect::<std::io::Result<Vec<_>>>()?;
    let following = tokio::spawn(Arc::clone(&agent).follow_keys());
    notify::ready();
    tokio::select! {
        () = notify::feed_watchdog() => {}
        () = end.wanted() => tracing::info!("asked to end"),
        _ = terminated.recv() => tracing::info!("SIGTERM"),
        _ = interrupted.recv() => tracing::info!("SIGINT"),
    }
    notify::stopping();
    following.abort();
    agent.end(parts).await;
    serving.iter().for_each(tokio::task::JoinHandle::abort);
    Ok(())
}
