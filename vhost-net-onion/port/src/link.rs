//! Connections to the link's socket, until they have said their hello.
//!
//! The newest connection is the one that counts: the router has only one at a time, and one that was restarted may
//! leave a half-dead stream behind the vsock device. But it counts only once its hello is right.

use std::{
    io::{self, ErrorKind, Read, Write},
    os::unix::net::UnixStream,
};

use wire::{
    VmName,
    hello::{HELLO_BYTES_MAX, Hello, HelloError, Role},
};

use crate::poller::Watched;

/// Why a connection does not become the link.
#[derive(Debug, thiserror::Error)]
pub(crate) enum GreetError {
    #[error("cannot exchange the hello")]
    Io(#[from] io::Error),
    #[error("the peer closed the connection within its hello")]
    Closed,
    #[error("the peer said no hello")]
    Hello(#[from] HelloError),
    #[error("the peer is {0:?}, not the router with the link of this VM")]
    Stranger(Hello),
}

/// A connection that has not yet said its hello.
pub(crate) struct Candidate {
    stream: Watched<UnixStream>,
    bytes: [u8; HELLO_BYTES_MAX],
    held: usize,
}

impl Candidate {
    /// `stream` must not block.
    pub(crate) fn new(stream: Watched<UnixStream>) -> Candidate {
        Candidate { stream, bytes: [0; HELLO_BYTES_MAX], held: 0 }
    }

    /// Reads on. Returns whether the hello is complete, right, and answered; not a byte behind it is read.
    pub(crate) fn greet(&mut self, vm: &VmName) -> Result<bool, GreetError> {
        loop {
            if let Some((hello, _)) = Hello::decode(&self.bytes[..self.held])? {
                return self.answer(hello, vm);
            }
            let wanted = self.held + Hello::missing(&self.bytes[..self.held]);
            match (&mut &*self.stream).read(&mut self.bytes[self.held..wanted]) {
                Ok(0) => return Err(GreetError::Closed),
                Ok(count) => self.held += count,
                Err(e) if e.kind() == ErrorKind::WouldBlock => return Ok(false),
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                Err(e) => return Err(e.into()),
            }
        }
    }

    /// The connection, once it is the link.
    pub(crate) fn into_stream(self) -> Watched<UnixStream> {
        self.stream
    }

    fn answer(&self, hello: Hello, vm: &VmName) -> Result<bool, GreetError> {
        if hello != Hello::for_vm(Role::Router, vm.clone()) {
            return Err(GreetError::Stranger(hello));
        }
        // It fits into the empty socket; if not, the peer is no router.
        (&mut &*self.stream).write_all(&Hello::for_vm(Role::Port, vm.clone()).encode())?;
        Ok(true)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::poller::{Poller, Token};
    use nix::sys::epoll::EpollFlags;

    /// What comes of a peer that sends `bytes`, one by one.
    fn greeted(bytes: &[u8]) -> (Result<bool, GreetError>, UnixStream) {
        let (mut peer, here) = UnixStream::pair().unwrap();
        here.set_nonblocking(true).unwrap();
        let mut candidate =
            Candidate::new(Poller::new().unwrap().watch(here, Token::Candidate, EpollFlags::EPOLLIN).unwrap());
        let vm = "web".parse().unwrap();
        for byte in bytes {
            peer.write_all(&[*byte]).unwrap();
            match candidate.greet(&vm) {
                Ok(false) => {}
                other => return (other, peer),
            }
        }
        peer.shutdown(std::net::Shutdown::Write).unwrap();
        (candidate.greet(&vm), peer)
    }

    #[test]
    fn the_router_of_this_vm_is_greeted() {
        let hello = Hello::for_vm(Role::Router, "web".parse().unwrap()).encode();
        let (outcome, mut peer) = greeted(&hello);
        assert!(outcome.unwrap());
        let mut answer = vec![];
        peer.read_to_end(&mut answer).unwrap();
        assert_eq!(answer, Hello::for_vm(Role::Port, "web".parse().unwrap()).encode());
    }

    #[test]
    fn everybody_else_is_not() {
        let router = |vm: &str| Hello::for_vm(Role::Router, vm.parse().unwrap()).encode();
        assert!(matches!(greeted(&router("mail")).0, Err(GreetError::Stranger(_))));
        assert!(matches!(greeted(&Hello::new(Role::Router).encode()).0, Err(GreetError::Stranger(_))));
        let uplink = Hello::for_vm(Role::Uplink, "web".parse().unwrap());
        assert!(matches!(greeted(&uplink.encode()).0, Err(GreetError::Stranger(_))));
        assert!(matches!(greeted(b"GET / HTTP/1.1").0, Err(GreetError::Hello(_))));
        assert!(matches!(greeted(&router("web")[..9]).0, Err(GreetError::Closed)));
    }
}
