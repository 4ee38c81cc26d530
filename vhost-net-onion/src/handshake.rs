//! The hello of [`wire::hello`] on an asynchronous stream, from the connecting side.

use std::{io, time::Duration};

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use wire::hello::{Hello, HelloError};

/// How long the other side may take to answer. It is on the same machine; it may be starting.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);

/// Why the other side is not whom we want to speak to.
#[derive(Debug, thiserror::Error)]
pub enum HandshakeError {
    /// The stream failed or ended.
    #[error("the connection ended during the hello")]
    Io(#[from] io::Error),
    /// No answer.
    #[error("the peer did not answer the hello")]
    Silent,
    /// The answer is no hello.
    #[error("the peer's hello is wrong")]
    Hello(#[from] HelloError),
    /// The answer is the hello of somebody else.
    #[error("expected {expected:?} at the other end, found {found:?}")]
    Stranger {
        /// Whom we wanted.
        expected: Hello,
        /// Who answered.
        found: Hello,
    },
}

/// Sends `ours` and waits for `theirs`.
///
/// # Errors
/// When anything but `theirs` comes back. The stream is of no use then.
pub async fn greet<S>(stream: &mut S, ours: &Hello, theirs: &Hello) -> Result<(), HandshakeError>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let exchange = async {
        stream.write_all(&ours.encode()).await?;
        stream.flush().await?;
        read_hello(stream).await
    };
    let found = tokio::time::timeout(ANSWER_TIMEOUT, exchange).await.map_err(|_| HandshakeError::Silent)??;
    if found == *theirs { Ok(()) } else { Err(HandshakeError::Stranger { expected: theirs.clone(), found }) }
}

/// Reads exactly a hello and nothing behind it.
async fn read_hello<S: AsyncRead + Unpin>(stream: &mut S) -> Result<Hello, HandshakeError> {
    let mut bytes = vec![];
    loop {
        if let Some((hello, _)) = Hello::decode(&bytes)? {
            return Ok(hello);
        }
        let at_hand = bytes.len();
        bytes.resize(at_hand + Hello::missing(&bytes), 0);
        stream.read_exact(&mut bytes[at_hand..]).await?;
    }
}
