//! One connection of the uplink: greeting, request, dial, bytes.

use std::{io, net::SocketAddr, time::Duration};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, copy_bidirectional_with_sizes},
    net::{TcpStream, UnixStream},
    time::timeout,
};
use wire::{
    hello::{Hello, Role},
    uplink::{DIAL_REQUEST_BYTES, DialAnswer, DialRequest, UplinkError},
};

use super::{Options, allow_list::AllowList};
use crate::greeting::{self, GreetingError};

/// Seconds that a greeted caller may take to say whom to dial.
pub const REQUEST_S_MAX: u64 = 10;

/// Bytes of the buffer of each direction.
const BUFFER_BYTES: usize = 64 << 10;

/// Why a connection ended before its bytes flowed, or in the middle of them.
#[derive(Debug, thiserror::Error)]
pub enum ConnectionError {
    /// No greeting.
    #[error(transparent)]
    Greeting(#[from] GreetingError),
    /// Another program than the router.
    #[error("a {0:?} has no business at the uplink")]
    Role(Role),
    /// No request in time.
    #[error("the router did not say whom to dial within {REQUEST_S_MAX} s")]
    Slow,
    /// A request that is none.
    #[error("the router's request is not understood")]
    Request(#[from] UplinkError),
    /// Either side broke off.
    #[error("the connection broke")]
    Io(#[from] io::Error),
}

/// Serves one accepted connection to its end.
///
/// # Errors
/// Says why it ended early. There is nothing left to do about it.
pub async fn serve(mut stream: UnixStream, allowed: &AllowList, options: &Options) -> Result<(), ConnectionError> {
    let hello = greeting::greet(&mut stream, &Hello::new(Role::Uplink)).await?;
    if hello.role != Role::Router {
        return Err(ConnectionError::Role(hello.role));
    }
    let mut request = [0; DIAL_REQUEST_BYTES];
    let read = timeout(Duration::from_secs(REQUEST_S_MAX), stream.read_exact(&mut request)).await;
    read.map_err(|_| ConnectionError::Slow)??;
    let DialRequest(address) = DialRequest::decode(request)?;
    let dialled = match allowed.allowed_soon(&address).await {
        Some(address) => dial(address, options).await,
        None => Err(DialAnswer::Forbidden),
    };
    let answer = dialled.as_ref().err().copied().unwrap_or(DialAnswer::Connected);
    if options.log_addresses {
        tracing::info!(%address, ?answer, "asked to dial");
    } else {
        tracing::debug!(?answer, "asked to dial");
    }
    stream.write_all(&[answer as u8]).await?;
    if let Ok(mut relay) = dialled {
        copy_bidirectional_with_sizes(&mut stream, &mut relay, BUFFER_BYTES, BUFFER_BYTES).await?;
    }
    Ok(())
}

async fn dial(address: SocketAddr, options: &Options) -> Result<TcpStream, DialAnswer> {
    let stream = timeout(options.dial_timeout, TcpStream::connect(address)).await;
    let stream = stream.map_err(|_| DialAnswer::TimedOut)?.map_err(|error| answer_for(&error))?;
    // Cells are small and latency is everything; a socket that does not take the option works all the same.
    let _ = stream.set_nodelay(true);
    let _ = nix::sys::socket::setsockopt(&stream, nix::sys::socket::sockopt::KeepAlive, &true);
    Ok(stream)
}

fn answer_for(error: &io::Error) -> DialAnswer {
    match error.kind() {
        io::ErrorKind::ConnectionRefused | io::ErrorKind::ConnectionReset => DialAnswer::Refused,
        io::ErrorKind::TimedOut => DialAnswer::TimedOut,
        _ if matches!(error.raw_os_error(), Some(libc_code) if NO_MEANS.contains(&libc_code)) => DialAnswer::Busy,
        _ => DialAnswer::Unreachable,
    }
}

/// What the kernel says when it is we who lack the means: descriptors, memory, local ports.
const NO_MEANS: [i32; 5] = [
    nix::errno::Errno::EMFILE as i32,
    nix::errno::Errno::ENFILE as i32,
    nix::errno::Errno::ENOMEM as i32,
    nix::errno::Errno::ENOBUFS as i32,
    nix::errno::Errno::EADDRNOTAVAIL as i32,
];

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::net::TcpListener;

    async fn ask(options: Options, allowed: AllowList, address: SocketAddr) -> (UnixStream, u8) {
        let (mut caller, served) = UnixStream::pair().unwrap();
        tokio::spawn(async move { serve(served, &allowed, &options).await });
        caller.write_all(&Hello::new(Role::Router).encode()).await.unwrap();
        let mut hello = [0; 8];
        caller.read_exact(&mut hello).await.unwrap();
        assert_eq!(hello.to_vec(), Hello::new(Role::Uplink).encode());
        caller.write_all(&DialRequest(address).encode()).await.unwrap();
        let answer = caller.read_u8().await.unwrap();
        (caller, answer)
    }

    fn allowing(addresses: &[SocketAddr]) -> AllowList {
        let list = AllowList::default();
        list.replace(&serde_json::to_vec(addresses).unwrap()).unwrap();
        list
    }

    #[tokio::test]
    async fn each_direction_is_closed_on_its_own() {
        let relay = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = relay.local_addr().unwrap();
        let (mut caller, answer) = ask(Options::default(), allowing(&[address]), address).await;
        assert_eq!(answer, DialAnswer::Connected as u8);
        let (mut served, _) = relay.accept().await.unwrap();
        caller.write_all(b"question").await.unwrap();
        caller.shutdown().await.unwrap();
        let mut text = String::new();
        served.read_to_string(&mut text).await.unwrap();
        assert_eq!(text, "question");
        served.write_all(b"answer").await.unwrap();
        drop(served);
        text.clear();
        caller.read_to_string(&mut text).await.unwrap();
        assert_eq!(text, "answer");
    }

    #[tokio::test]
    async fn a_forbidden_address_is_never_dialled() {
        let relay = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = relay.local_addr().unwrap();
        let other = SocketAddr::new(address.ip(), address.port() ^ 1);
        for list in [AllowList::default(), allowing(&[other])] {
            let (mut caller, answer) = ask(Options::default(), list, address).await;
            assert_eq!(answer, DialAnswer::Forbidden as u8);
            assert_eq!(caller.read(&mut [0]).await.unwrap(), 0, "closed after it");
        }
        // A connection that had been made would stand in the backlog now.
        assert!(timeout(Duration::from_millis(50), relay.accept()).await.is_err());
    }

    #[tokio::test]
    async fn refused_and_timed_out_are_told_apart() {
        let closed = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
        assert_eq!(ask(Options::default(), allowing(&[closed]), closed).await.1, DialAnswer::Refused as u8);
        let open = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let options = Options { dial_timeout: Duration::ZERO, ..Options::default() };
        let address = open.local_addr().unwrap();
        let (_, answer) = ask(options, allowing(&[address]), address).await;
        assert!([DialAnswer::TimedOut as u8, DialAnswer::Connected as u8].contains(&answer));
        assert_eq!(
            answer_for(&io::Error::from_raw_os_error(nix::errno::Errno::EHOSTUNREACH as i32)),
            DialAnswer::Unreachable
        );
        assert_eq!(answer_for(&io::Error::from_raw_os_error(nix::errno::Errno::EMFILE as i32)), DialAnswer::Busy);
    }

    #[tokio::test(start_paused = true)]
    async fn slow_and_strange_callers_are_sent_away() {
        let (mut caller, served) = UnixStream::pair().unwrap();
        caller.write_all(&Hello::new(Role::Router).encode()).await.unwrap();
        let ended = serve(served, &AllowList::default(), &Options::default()).await;
        assert!(matches!(ended, Err(ConnectionError::Slow)));
        let (mut caller, served) = UnixStream::pair().unwrap();
        caller.write_all(&Hello::new(Role::Init).encode()).await.unwrap();
        let ended = serve(served, &AllowList::default(), &Options::default()).await;
        assert!(matches!(ended, Err(ConnectionError::Role(Role::Init))));
        let (mut caller, served) = UnixStream::pair().unwrap();
        caller.write_all(&[Hello::new(Role::Router).encode(), vec![9; DIAL_REQUEST_BYTES]].concat()).await.unwrap();
        let ended = serve(served, &AllowList::default(), &Options::default()).await;
        assert!(matches!(ended, Err(ConnectionError::Request(UplinkError::Family(9)))));
    }
}
