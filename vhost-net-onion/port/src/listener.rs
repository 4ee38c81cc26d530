//! A listening socket. When `accept` fails (too many open files, say) it is left alone for a moment, and then tried
//! again: it neither spins nor stays deaf.

use std::{
    io::{self, ErrorKind},
    os::unix::net::{UnixListener, UnixStream},
    time::Duration,
};

use nix::sys::{
    epoll::EpollFlags,
    time::TimeSpec,
    timerfd::{ClockId, Expiration, TimerFd, TimerFlags, TimerSetTimeFlags},
};

use crate::poller::{Poller, Token, Watched};

/// After a failed `accept`, how long until the next.
const PAUSE: Duration = Duration::from_millis(100);

/// A listening socket that is watched.
pub(crate) struct Listener {
    poller: Poller,
    socket: Watched<UnixListener>,
    /// Made at the start, because there may be no descriptor left when it is needed. Edge-triggered and never read.
    timer: Watched<TimerFd>,
    pausing: bool,
}

impl Listener {
    /// Watches `socket`; connections, and ends of pauses, are events with `token`.
    pub(crate) fn new(poller: &Poller, socket: UnixListener, token: Token) -> io::Result<Listener> {
        socket.set_nonblocking(true)?;
        let socket = poller.watch(socket, token, EpollFlags::EPOLLIN)?;
        let timer = TimerFd::new(ClockId::CLOCK_MONOTONIC, TimerFlags::TFD_CLOEXEC | TimerFlags::TFD_NONBLOCK)?;
        let timer = poller.watch(timer, token, EpollFlags::EPOLLIN | EpollFlags::EPOLLET)?;
        Ok(Listener { poller: poller.clone(), socket, timer, pausing: false })
    }

    /// Accepts a connection, if there is one. Its events have `token`.
    pub(crate) fn accept(&mut self, token: Token) -> Option<Watched<UnixStream>> {
        self.pausing = false;
        let accepted = self.socket.accept().and_then(|(stream, _)| {
            stream.set_nonblocking(true)?;
            self.poller.watch(stream, token, EpollFlags::EPOLLIN)
        });
        match accepted {
            Ok(stream) => Some(stream),
            Err(e) if matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => None,
            Err(e) => {
                tracing::warn!(error = &e as &dyn std::error::Error, "cannot accept a connection; trying again");
                self.pause();
                None
            }
        }
    }

    /// Whether connections are reported at present. While they are not, they wait in the backlog.
    pub(crate) fn listen(&mut self, wanted: bool) -> io::Result<()> {
        let interest = if wanted && !self.pausing { EpollFlags::EPOLLIN } else { EpollFlags::empty() };
        self.socket.set_interest(interest)
    }

    fn pause(&mut self) {
        let expiration = Expiration::OneShot(TimeSpec::from_duration(PAUSE));
        // Without a timer there is no pause: better that it spins than that it stays deaf.
        self.pausing = self.timer.set(expiration, TimerSetTimeFlags::empty()).is_ok();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::sys::epoll::EpollTimeout;

    #[test]
    fn after_a_pause_it_listens_again() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("socket");
        let poller = Poller::new().unwrap();
        let mut listener = Listener::new(&poller, UnixListener::bind(&path).unwrap(), Token::LinkListener).unwrap();
        let _peer = UnixStream::connect(&path).unwrap();
        listener.pause();
        assert!(listener.pausing);
        listener.listen(true).unwrap();
        let happened = poller.wait(EpollTimeout::from(20_000u16)).unwrap();
        assert!(happened.on(Token::LinkListener).is_some(), "the pause ends");
        assert!(listener.accept(Token::Candidate).is_some());
        listener.listen(true).unwrap();
        let _peer = UnixStream::connect(&path).unwrap();
        assert!(poller.wait(EpollTimeout::from(20_000u16)).unwrap().on(Token::LinkListener).is_some());
    }
}
