//! Epoll with descriptors that leave it when they are dropped, and the tokens that its events carry.
//!
//! Closing a descriptor is not enough: the front-end holds the same open file (a kick eventfd, say), and as long as it
//! does, the kernel goes on reporting it.

use std::{
    io,
    ops::Deref,
    os::fd::{AsFd, BorrowedFd},
    sync::Arc,
};

use nix::{
    errno::Errno,
    sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout},
};

/// Whose event it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Token {
    /// The port shall stop.
    Stop,
    /// The socket that front-ends connect to.
    FrontEndListener,
    /// The socket that links arrive at.
    LinkListener,
    /// The front-end's connection.
    FrontEnd,
    /// The link.
    Link,
    /// A connection that is not yet the link.
    Candidate,
    /// The driver kicks the rx ring.
    KickRx,
    /// The driver kicks the tx ring.
    KickTx,
}

/// How many tokens there are.
const TOKENS: usize = 8;

/// What happened, by token.
///
/// Events are first gathered, then handled in a fixed order, so that none is taken for one of a descriptor that
/// replaced another in the same round.
#[derive(Debug, Default)]
pub(crate) struct Happened([Option<EpollFlags>; TOKENS]);

impl Happened {
    /// What happened on `token`, if anything.
    pub(crate) fn on(&self, token: Token) -> Option<EpollFlags> {
        self.0[token as usize]
    }
}

/// The epoll of a port. Clones share it.
#[derive(Clone)]
pub(crate) struct Poller {
    epoll: Arc<Epoll>,
}

impl Poller {
    pub(crate) fn new() -> io::Result<Poller> {
        Ok(Poller { epoll: Arc::new(Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?) })
    }

    /// Reports `interest` in `io` as events with `token`, until what is returned is dropped.
    pub(crate) fn watch<F: AsFd>(&self, io: F, token: Token, interest: EpollFlags) -> io::Result<Watched<F>> {
        self.epoll.add(&io, EpollEvent::new(interest, token as u64))?;
        Ok(Watched { io, token, interest, poller: self.clone() })
    }

    /// Waits for events. A signal counts as none.
    pub(crate) fn wait(&self, timeout: EpollTimeout) -> io::Result<Happened> {
        // Twice as many as tokens: a listening socket and its timer share one.
        let mut events = [EpollEvent::empty(); 2 * TOKENS];
        let count = match self.epoll.wait(&mut events, timeout) {
            Err(Errno::EINTR) => 0,
            other => other?,
        };
        let mut happened = Happened::default();
        for event in &events[..count] {
            happened.0[event.data() as usize].get_or_insert(EpollFlags::empty()).insert(event.events());
        }
        Ok(happened)
    }
}

impl AsFd for Poller {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.epoll.0.as_fd()
    }
}

/// A descriptor that is watched.
pub(crate) struct Watched<F: AsFd> {
    io: F,
    token: Token,
    interest: EpollFlags,
    poller: Poller,
}

impl<F: AsFd> Watched<F> {
    /// Changes what is reported, with a system call only when it is a change.
    pub(crate) fn set_interest(&mut self, interest: EpollFlags) -> io::Result<()> {
        if interest != self.interest {
            self.poller.epoll.modify(&self.io, &mut EpollEvent::new(interest, self.token as u64))?;
            self.interest = interest;
        }
        Ok(())
    }

    /// Reports it as events with `token` from now on.
    pub(crate) fn set_token(&mut self, token: Token) -> io::Result<()> {
        self.poller.epoll.modify(&self.io, &mut EpollEvent::new(self.interest, token as u64))?;
        self.token = token;
        Ok(())
    }
}

impl<F: AsFd> Deref for Watched<F> {
    type Target = F;

    fn deref(&self) -> &F {
        &self.io
    }
}

impl<F: AsFd> Drop for Watched<F> {
    fn drop(&mut self) {
        // It can only fail when the descriptor is not in the set, and then there is nothing to do.
        let _ = self.poller.epoll.delete(&self.io);
    }
}
