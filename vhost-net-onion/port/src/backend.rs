//! The event loop of the port with a stream: front-end, link, and the two directions between them.
//!
//! After the events, frames are carried, a bounded number in each direction.

use std::os::{
    fd::AsFd,
    unix::net::{UnixListener, UnixStream},
};

use nix::sys::epoll::{EpollFlags, EpollTimeout};
use wire::VmName;

use crate::{
    control::{ControlPlane, Step},
    counters::Counters,
    device::{RX, TX},
    link::Candidate,
    listener::Listener,
    options::{Options, PortError},
    poller::{Happened, Poller, Token, Watched},
    ring::RingError,
    rx::{LinkLost, Rx, RxError, RxState},
    tx::{Tx, TxError, TxState},
};

/// Requests of the front-end that are served before others have their turn.
const REQUESTS: usize = 32;

/// Serves `vm` until `stop` can be read: front-ends that connect to `vhost_user`, one after the other, and the router's
/// links on `link`. Both must be listening sockets. Blocks the thread; returns what was counted.
///
/// `stop` is a [`Stop`](crate::Stop), or a signalfd, or anything else that becomes readable and stays so.
///
/// # Errors
/// When the process lacks what it needs. Not for anything a peer does.
pub fn serve(
    vm: &VmName,
    vhost_user: UnixListener,
    link: UnixListener,
    options: Options,
    stop: &impl AsFd,
) -> Result<Counters, PortError> {
    let poller = Poller::new().map_err(PortError::Setup)?;
    let _stop = poller.watch(stop.as_fd(), Token::Stop, EpollFlags::EPOLLIN).map_err(PortError::Setup)?;
    Backend::new(vm, &poller, vhost_user, link, options)?.run()
}

struct Backend<'a> {
    vm: &'a VmName,
    poller: Poller,
    control: ControlPlane,
    links: Listener,
    link: Option<Watched<UnixStream>>,
    candidate: Option<Candidate>,
    tx: Tx,
    rx: Rx,
    /// Whether there may be something to do in a direction.
    tx_ready: bool,
    rx_ready: bool,
    /// Whether the stream must take something before tx goes on.
    tx_full: bool,
    /// Whether the driver must kick before rx goes on.
    rx_no_buffers: bool,
}

impl<'a> Backend<'a> {
    fn new(
        vm: &'a VmName,
        poller: &Poller,
        vhost_user: UnixListener,
        link: UnixListener,
        options: Options,
    ) -> Result<Backend<'a>, PortError> {
        Ok(Backend {
            vm,
            poller: poller.clone(),
            control: ControlPlane::new(poller, vhost_user, options)?,
            links: Listener::new(poller, link, Token::LinkListener)
                .map_err(|source| PortError::Listen { what: "the link socket", source })?,
            link: None,
            candidate: None,
            tx: Tx::new(),
            rx: Rx::new(),
            tx_ready: false,
            rx_ready: false,
            tx_full: false,
            rx_no_buffers: false,
        })
    }

    fn run(mut self) -> Result<Counters, PortError> {
        loop {
            let timeout = if self.tx_ready || self.rx_ready { EpollTimeout::ZERO } else { EpollTimeout::NONE };
            let happened = self.poller.wait(timeout).map_err(PortError::Wait)?;
            if happened.on(Token::Stop).is_some() {
                // What is taken and not written stays in the ring; the next port begins with it.
                return Ok(self.control.counters);
            }
            self.handle(&happened)?;
            self.carry()?;
        }
    }

    /// Handles events, those of what there is before those that bring something new.
    fn handle(&mut self, happened: &Happened) -> Result<(), PortError> {
        self.rx_ready |= happened.on(Token::KickRx).is_some() && self.rx_no_buffers;
        self.tx_ready |= happened.on(Token::KickTx).is_some() && !self.tx_full;
        if let Some(what) = happened.on(Token::Link) {
            self.link_happened(what);
        }
        if happened.on(Token::FrontEnd).is_some() {
            self.serve_front_end();
        }
        if happened.on(Token::Candidate).is_some() {
            self.greet();
        }
        if happened.on(Token::LinkListener).is_some() {
            self.accept_link();
        }
        self.control.accept(happened).and_then(|()| self.links.listen(true)).map_err(PortError::Wait)
    }

    fn serve_front_end(&mut self) {
        for _ in 0..REQUESTS {
            let Some(step) = self.control.next() else { return };
            self.make_step(step);
        }
    }

    fn make_step(&mut self, step: Step) {
        self.rings_at_rest();
        self.control.apply(step);
        self.tell_abilities();
        self.start_over();
    }

    /// Completes or gives back every chain that is taken, so that rings can be stopped or changed.
    fn rings_at_rest(&mut self) {
        let (active, counters) = self.control.active(TX);
        if let Err(e) = self.tx.give_back(active, counters) {
            self.stop_broken(TX, &e);
        }
    }

    /// Tells the router what the driver can receive, if that has changed. Only with rings at rest.
    fn tell_abilities(&mut self) {
        if self.link.is_some() {
            self.tx.tell(self.control.abilities());
        }
    }

    fn stop_broken(&mut self, index: usize, e: &RingError) {
        self.control.stop_broken(index, e);
        if index == TX {
            // Without the ring this cannot fail.
            let _ = self.tx.give_back(None, &mut self.control.counters);
        }
        self.start_over();
    }

    /// Something changed: looks at both directions afresh.
    fn start_over(&mut self) {
        (self.tx_ready, self.rx_ready) = (true, true);
        (self.tx_full, self.rx_no_buffers) = (false, false);
    }

    fn accept_link(&mut self) {
        if let Some(stream) = self.links.accept(Token::Candidate) {
            self.candidate = Some(Candidate::new(stream));
            self.greet();
        }
    }

    fn greet(&mut self) {
        let Some(mut candidate) = self.candidate.take() else { return };
        let mut stream = match candidate.greet(self.vm) {
            Ok(true) => candidate.into_stream(),
            Ok(false) => {
                self.candidate = Some(candidate);
                return;
            }
            Err(e) => {
                tracing::warn!(error = &e as &dyn std::error::Error, "a connection to the link's socket is refused");
                return;
            }
        };
        self.forget_link();
        if let Err(e) = stream.set_token(Token::Link) {
            tracing::warn!(error = &e as &dyn std::error::Error, "the link cannot be watched");
            return;
        }
        tracing::info!("link up");
        self.control.counters.links += 1;
        self.link = Some(stream);
        self.tell_abilities();
    }

    fn link_happened(&mut self, what: EpollFlags) {
        if what.intersects(EpollFlags::EPOLLHUP | EpollFlags::EPOLLERR) && self.rx_no_buffers {
            // Nothing is being read that would find the end.
            return self.link_lost(&LinkLost::Closed);
        }
        self.tx_ready |= what.contains(EpollFlags::EPOLLOUT);
        self.rx_ready |= what.intersects(!EpollFlags::EPOLLOUT);
    }

    fn link_lost(&mut self, why: &LinkLost) {
        tracing::info!(error = why as &dyn std::error::Error, "link lost");
        self.forget_link();
    }

    /// Drops the link, if there is one, and what was on its way: what the VM sent goes back to its ring.
    fn forget_link(&mut self) {
        self.link = None;
        self.tx.link_lost(self.control.active(TX).0);
        self.rx.link_lost();
        self.start_over();
    }

    /// Carries frames in both directions.
    fn carry(&mut self) -> Result<(), PortError> {
        if std::mem::take(&mut self.tx_ready) {
            self.carry_tx();
        }
        if std::mem::take(&mut self.rx_ready) {
            self.carry_rx();
        }
        let Some(link) = &mut self.link else { return Ok(()) };
        let mut interest = EpollFlags::empty();
        interest.set(EpollFlags::EPOLLIN, !self.rx_no_buffers);
        interest.set(EpollFlags::EPOLLOUT, self.tx_full);
        link.set_interest(interest).map_err(PortError::Wait)
    }

    fn carry_tx(&mut self) {
        let Some(link) = &self.link else { return };
        let (active, counters) = self.control.active(TX);
        let ended = match active {
            Some(mut active) => self.tx.pump(&mut active, link, counters),
            None => self.tx.flush(link),
        };
        self.tx_full = matches!(ended, Ok(TxState::Full));
        match ended {
            Ok(TxState::More) => self.tx_ready = true,
            Ok(TxState::Idle | TxState::Full) => {}
            Err(TxError::Ring(e)) => self.stop_broken(TX, &e),
            Err(TxError::Link(e)) => self.link_lost(&LinkLost::Io(e)),
        }
    }

    fn carry_rx(&mut self) {
        let Some(link) = &self.link else { return };
        let (active, counters) = self.control.active(RX);
        let ended = self.rx.pump(active, link, counters);
        self.rx_no_buffers = matches!(ended, Ok(RxState::NoBuffers));
        match ended {
            Ok(RxState::More) => self.rx_ready = true,
            Ok(RxState::Idle | RxState::NoBuffers) => {}
            Err(RxError::Ring(e)) => self.stop_broken(RX, &e),
            Err(RxError::Link(e)) => self.link_lost(&e),
        }
    }
}
