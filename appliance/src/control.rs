//! The control connection to the host agent: messages of [`wire::control`], both ways.

use std::{io, time::Duration};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    sync::mpsc,
};
use tokio_vsock::{OwnedReadHalf, OwnedWriteHalf};
use vhost_net_onion::handshake::HandshakeError;
use wire::{
    CONTROL_PORT,
    control::{self, ControlError, FromRouter, ToRouter},
    hello::{Hello, Role},
};

use crate::vsock;

/// How long the agent may leave a report unread before the connection counts as dead.
const SEND_TIMEOUT: Duration = Duration::from_secs(10);

/// Commands that are read ahead.
const COMMANDS_MAX: usize = 16;

/// Why the control connection ended.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ControlConnectionError {
    /// It could not be opened.
    #[error("cannot connect to the host agent")]
    Connect(#[from] HandshakeError),
    /// It broke.
    #[error("the connection to the host agent broke")]
    Io(#[from] io::Error),
    /// It carries what is no message.
    #[error("the host agent sent something else than a command")]
    Message(#[from] ControlError),
    /// The agent does not read.
    #[error("the host agent does not take reports")]
    Stuck,
}

/// An open control connection.
pub(crate) struct Control {
    write: OwnedWriteHalf,
    commands: mpsc::Receiver<Result<ToRouter, ControlConnectionError>>,
}

impl Control {
    /// Connects to the host agent.
    pub(crate) async fn connect() -> Result<Control, ControlConnectionError> {
        let (ours, theirs) = (Hello::new(Role::Router), Hello::new(Role::Agent));
        let (read, write) = vsock::connect(CONTROL_PORT, &ours, &theirs).await?.into_split();
        let (sender, commands) = mpsc::channel(COMMANDS_MAX);
        tokio::spawn(read_commands(read, sender));
        Ok(Control { write, commands })
    }

    /// The next command; `None` when the agent has closed the connection.
    pub(crate) async fn command(&mut self) -> Option<Result<ToRouter, ControlConnectionError>> {
        self.commands.recv().await
    }

    /// Sends a report.
    pub(crate) async fn report(&mut self, report: &FromRouter) -> Result<(), ControlConnectionError> {
        let bytes = control::encode(report)?;
        let sent = tokio::time::timeout(SEND_TIMEOUT, self.write.write_all(&bytes)).await;
        Ok(sent.map_err(|_| ControlConnectionError::Stuck)??)
    }
}

/// Reads commands until the connection ends or breaks, or nobody wants them any more.
async fn read_commands(mut read: OwnedReadHalf, sender: mpsc::Sender<Result<ToRouter, ControlConnectionError>>) {
    loop {
        let command = match read_command(&mut read).await {
            Ok(None) => return,
            Ok(Some(command)) => Ok(command),
            Err(error) => Err(error),
        };
        let broken = command.is_err();
        if sender.send(command).await.is_err() || broken {
            return;
        }
    }
}

async fn read_command(read: &mut OwnedReadHalf) -> Result<Option<ToRouter>, ControlConnectionError> {
    let mut bytes = vec![0; 4];
    match read.read_exact(&mut bytes).await {
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
        other => other?,
    };
    let body = control::body_bytes([bytes[0], bytes[1], bytes[2], bytes[3]])?;
    bytes.resize(4 + body, 0);
    read.read_exact(&mut bytes[4..]).await?;
    Ok(control::decode(&bytes)?.map(|(command, _)| command))
}
