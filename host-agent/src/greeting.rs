//! The listening side's half of a hello: read exactly one, judge it, answer with our own.
//!
//! Reads never go past the hello, and the whole exchange is bounded by [`GREETING_S_MAX`], so that a peer that connects
//! and says nothing holds a connection for that long and no longer.

use std::{io, time::Duration};

use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    time::timeout,
};
use wire::hello::{HELLO_BYTES_MAX, Hello, HelloError};

/// Seconds from the connection to the end of the greeting.
pub const GREETING_S_MAX: u64 = 10;

/// Why a connection was not greeted.
#[derive(Debug, thiserror::Error)]
pub enum GreetingError {
    /// The connection broke, or ended in the middle.
    #[error("the connection broke during the hello")]
    Io(#[from] io::Error),
    /// The bytes are no hello.
    #[error("the peer's hello is not understood")]
    Hello(#[from] HelloError),
    /// Too slow.
    #[error("the peer said no hello within {GREETING_S_MAX} s")]
    Slow,
}

/// Reads the peer's hello and answers with `own`. Whether the peer's role is welcome is the caller's to judge.
///
/// # Errors
/// When the peer says something else, too little, or nothing.
pub async fn greet<S: AsyncRead + AsyncWrite + Unpin>(stream: &mut S, own: &Hello) -> Result<Hello, GreetingError> {
    let exchange = async {
        let hello = read_hello(stream).await?;
        stream.write_all(&own.encode()).await?;
        Ok(hello)
    };
    timeout(Duration::from_secs(GREETING_S_MAX), exchange).await.unwrap_or(Err(GreetingError::Slow))
}

async fn read_hello<S: AsyncRead + Unpin>(stream: &mut S) -> Result<Hello, GreetingError> {
    let mut buffer = [0; HELLO_BYTES_MAX];
    let mut at_hand = 0;
    loop {
        if let Some((hello, _)) = Hello::decode(&buffer[..at_hand])? {
            return Ok(hello);
        }
        // Never 0 here: a hello that misses nothing was decoded or refused above.
        let missing = Hello::missing(&buffer[..at_hand]).min(HELLO_BYTES_MAX - at_hand);
        let read = stream.read(&mut buffer[at_hand..at_hand + missing]).await?;
        if read == 0 {
            return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
        }
        at_hand += read;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use wire::hello::Role;

    #[tokio::test]
    async fn a_hello_in_single_bytes_is_answered_and_what_follows_is_left() {
        let (mut ours, mut theirs) = tokio::io::duplex(1);
        let hello = Hello::for_vm(Role::Router, "web".parse().unwrap());
        let sent = [hello.encode(), b"x".to_vec()].concat();
        let peer = tokio::spawn(async move {
            theirs.write_all(&sent[..sent.len() - 1]).await.unwrap();
            let mut answer = [0; 8];
            theirs.read_exact(&mut answer).await.unwrap();
            theirs.write_all(b"x").await.unwrap();
            answer
        });
        let own = Hello::new(Role::Agent);
        assert_eq!(greet(&mut ours, &own).await.unwrap(), hello);
        assert_eq!(peer.await.unwrap().to_vec(), own.encode());
        assert_eq!(ours.read_u8().await.unwrap(), b'x');
    }

    #[tokio::test(start_paused = true)]
    async fn the_silent_and_the_strange_are_sent_away() {
        let own = Hello::new(Role::Agent);
        let (mut ours, theirs) = tokio::io::duplex(64);
        assert!(matches!(greet(&mut ours, &own).await, Err(GreetingError::Slow)));
        drop(theirs);
        assert!(matches!(greet(&mut ours, &own).await, Err(GreetingError::Io(_))));
        let (mut ours, mut theirs) = tokio::io::duplex(64);
        theirs.write_all(b"GET / HTTP/1.1\r\n").await.unwrap();
        assert!(matches!(greet(&mut ours, &own).await, Err(GreetingError::Hello(_))));
    }
}
