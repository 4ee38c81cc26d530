//! QMP, QEMU's control protocol, on an AF_UNIX socket: the few commands that are needed here.
//!
//! QEMU serves one client at a time on its socket, so a [`Qmp`] is opened for what is to be done and dropped after it.
//! Every step is bounded by [`ANSWER_S_MAX`]: a stopped QEMU accepts connections and never answers.

use std::{future::Future, io, path::Path, time::Duration};

use qapi::{
    futures::{QapiService, QmpStreamTokio},
    qmp,
};
use tokio::{
    io::{ReadHalf, WriteHalf},
    net::UnixStream,
    task::JoinHandle,
    time::timeout,
};

/// Seconds that one answer may take.
pub const ANSWER_S_MAX: u64 = 3;

/// A negotiated QMP connection.
pub struct Qmp {
    service: QapiService<QmpStreamTokio<WriteHalf<UnixStream>>>,
    events: JoinHandle<()>,
}

/// Why QEMU did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum QmpError {
    /// The socket is not there, or nobody listens.
    #[error("cannot connect to QMP")]
    Connect(#[source] io::Error),
    /// No greeting, or capabilities refused.
    #[error("QMP does not negotiate")]
    Negotiate(#[source] io::Error),
    /// A command was refused, or the connection lost.
    #[error("QMP refuses {command}")]
    Execute {
        /// Which.
        command: &'static str,
        /// What QEMU said.
        #[source]
        source: qapi::ExecuteError,
    },
    /// No answer in time.
    #[error("QMP did not answer within {ANSWER_S_MAX} s")]
    TimedOut,
}

impl Qmp {
    /// Connects to the socket at `path`, reads the greeting and leaves capabilities negotiation.
    ///
    /// # Errors
    /// When nobody answers as QEMU does.
    pub async fn connect(path: &Path) -> Result<Qmp, QmpError> {
        let stream = UnixStream::connect(path).await.map_err(QmpError::Connect)?;
        let negotiation = bounded(QmpStreamTokio::<ReadHalf<UnixStream>>::open(stream)).await?;
        let negotiation = negotiation.map_err(QmpError::Negotiate)?;
        let stream = bounded(negotiation.negotiate()).await?.map_err(QmpError::Negotiate)?;
        let (service, events) = stream.into_parts();
        Ok(Qmp { service, events: events.spawn_tokio() })
    }

    /// What the machine does: `running`, `paused`, `shutdown`, …
    ///
    /// # Errors
    /// When QEMU refuses or does not answer.
    pub async fn status(&self) -> Result<String, QmpError> {
        let status = self.execute("query-status", qmp::query_status {}).await?;
        Ok(format!("{:?}", status.status))
    }

    /// Ends QEMU at once, as pulling the plug does.
    ///
    /// # Errors
    /// When QEMU refuses or does not answer.
    pub async fn quit(&self) -> Result<(), QmpError> {
        self.execute("quit", qmp::quit {}).await.map(drop)
    }

    /// Presses the power button. What the guest makes of it is its own affair.
    ///
    /// # Errors
    /// When QEMU refuses or does not answer.
    pub async fn system_powerdown(&self) -> Result<(), QmpError> {
        self.execute("system_powerdown", qmp::system_powerdown {}).await.map(drop)
    }

    /// Presses the reset button.
    ///
    /// # Errors
    /// When QEMU refuses or does not answer.
    pub async fn system_reset(&self) -> Result<(), QmpError> {
        self.execute("system_reset", qmp::system_reset {}).await.map(drop)
    }

    async fn execute<C: qmp::QmpCommand>(&self, name: &'static str, command: C) -> Result<C::Ok, QmpError> {
        let answer = bounded(self.service.execute(command)).await?;
        answer.map_err(|source| QmpError::Execute { command: name, source })
    }
}

impl Drop for Qmp {
    fn drop(&mut self) {
        self.events.abort();
    }
}

async fn bounded<F: Future>(future: F) -> Result<F::Output, QmpError> {
    timeout(Duration::from_secs(ANSWER_S_MAX), future).await.map_err(|_| QmpError::TimedOut)
}
