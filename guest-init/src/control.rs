//! The control connection: non-blocking, bounded, and standing again by itself after the host agent was restarted.
//!
//! [`Control`] is polled by the shell: it says which descriptor to watch for what ([`Control::interest`]) and when to
//! come back at the latest ([`Control::deadline`]); [`Control::advance`] does what can be done without blocking and
//! returns what came of it.
//!
//! ```text
//! Waiting ── delay over ──► Connecting ──► Greeting (hello out, hello in) ──► Open
//!    ▲                          │                  │                          │
//!    └──────────────────────────┴───── fails ──────┴──────── closes ──────────┘
//! ```

use std::{
    os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
    time::Duration,
};

use nix::{
    errno::Errno,
    poll::PollFlags,
    sys::socket::{self, AddressFamily, MsgFlags, SockFlag, SockType, VsockAddr, sockopt},
};
use wire::{
    CONTROL_PORT, HOST_CID,
    control::{self, FromInit, MESSAGE_BYTES_MAX, ToInit},
    hello::{Hello, Role},
};

/// Bytes that may wait to be sent; a host agent that reads so little is disconnected.
const UNSENT_BYTES_MAX: usize = 64 << 10;
const RETRY_MIN: Duration = Duration::from_millis(20);
const RETRY_MAX: Duration = Duration::from_secs(1);
/// How long a connection may take until the peer's hello is there. The vsock device answers a connect to a port that
/// nobody listens on with silence.
const GREETING_PATIENCE: Duration = Duration::from_secs(3);

/// What came of advancing.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum News {
    /// Hellos were exchanged.
    Connected,
    /// The connection is gone; why, in words.
    Disconnected(String),
    /// The host agent said something.
    Message(ToInit),
}

#[derive(Debug)]
enum Phase {
    Waiting { until: Duration },
    Connecting { socket: OwnedFd, give_up: Duration },
    Greeting { socket: OwnedFd, give_up: Duration },
    Open { socket: OwnedFd },
}

/// The connection, in whichever phase it is.
#[derive(Debug)]
pub(crate) struct Control {
    phase: Phase,
    retry: Duration,
    received: Vec<u8>,
    unsent: Vec<u8>,
}

impl Control {
    /// A connection that is made at the first advance.
    pub(crate) fn new() -> Control {
        Control {
            phase: Phase::Waiting { until: Duration::ZERO },
            retry: RETRY_MIN,
            received: Vec::new(),
            unsent: Vec::new(),
        }
    }

    /// A connection over a socket that is connected already.
    pub(crate) fn over(socket: OwnedFd) -> Control {
        let unsent = Hello::new(Role::Init).encode();
        Control { phase: Phase::Greeting { socket, give_up: Duration::MAX }, unsent, ..Control::new() }
    }

    /// Whether hellos were exchanged and the connection stands.
    pub(crate) fn is_open(&self) -> bool {
        matches!(self.phase, Phase::Open { .. })
    }

    /// What to poll, if anything.
    pub(crate) fn interest(&self) -> Option<(BorrowedFd<'_>, PollFlags)> {
        let sending = if self.unsent.is_empty() { PollFlags::empty() } else { PollFlags::POLLOUT };
        match &self.phase {
            Phase::Waiting { .. } => None,
            Phase::Connecting { socket, .. } => Some((socket.as_fd(), PollFlags::POLLOUT)),
            Phase::Greeting { socket, .. } | Phase::Open { socket } => {
                Some((socket.as_fd(), PollFlags::POLLIN | sending))
            }
        }
    }

    /// When to advance at the latest.
    pub(crate) fn deadline(&self) -> Option<Duration> {
        match self.phase {
            Phase::Waiting { until } => Some(until),
            Phase::Connecting { give_up, .. } | Phase::Greeting { give_up, .. } => Some(give_up),
            Phase::Open { .. } => None,
        }
    }

    /// Queues a message; it leaves with the next advances. Dropped when nobody is connected.
    pub(crate) fn send(&mut self, message: &FromInit) {
        if !self.is_open() {
            return;
        }
        match control::encode(message) {
            Ok(bytes) => self.unsent.extend_from_slice(&bytes),
            Err(error) => crate::system::log(&format!("a report could not be sent: {error}")),
        }
    }

    /// Does what can be done now; to be called again until it returns `None`, then polled.
    pub(crate) fn advance(&mut self, now: Duration) -> Option<News> {
        match self.step(now) {
            Ok(news) => news,
            Err(why) => {
                let was_open = matches!(self.phase, Phase::Open { .. });
                self.phase = Phase::Waiting { until: now + self.retry };
                self.retry = if was_open { RETRY_MIN } else { (self.retry * 2).min(RETRY_MAX) };
                self.received.clear();
                self.unsent.clear();
                was_open.then_some(News::Disconnected(why))
            }
        }
    }

    fn step(&mut self, now: Duration) -> Result<Option<News>, String> {
        if let Phase::Waiting { until } = self.phase {
            if now < until {
                return Ok(None);
            }
            self.phase = Phase::Connecting { socket: dial()?, give_up: now + GREETING_PATIENCE };
        }
        if let Some(give_up) = self.deadline()
            && now >= give_up
        {
            return Err("the host agent does not answer".into());
        }
        if let Phase::Connecting { socket, give_up } = &self.phase {
            if !connected(socket)? {
                return Ok(None);
            }
            let socket = socket.try_clone().map_err(|e| format!("cannot duplicate the socket: {e}"))?;
            self.phase = Phase::Greeting { socket, give_up: *give_up };
            self.unsent = Hello::new(Role::Init).encode();
        }
        self.write()?;
        match self.phase {
            Phase::Greeting { .. } => self.greet(),
            _ => self.message(),
        }
    }

    /// Reads the peer's hello and not one byte more.
    fn greet(&mut self) -> Result<Option<News>, String> {
        loop {
            let missing = Hello::missing(&self.received);
            if missing > 0 && self.read(missing)? == 0 {
                return Ok(None);
            }
            let Some((hello, _)) = Hello::decode(&self.received).map_err(|e| e.to_string())? else { continue };
            if hello != Hello::new(Role::Agent) {
                return Err(format!("the peer is not the host agent but {hello:?}"));
            }
            let Phase::Greeting { socket, .. } = &self.phase else { return Ok(None) };
            let socket = socket.try_clone().map_err(|e| format!("cannot duplicate the socket: {e}"))?;
            self.phase = Phase::Open { socket };
            self.received.clear();
            self.retry = RETRY_MIN;
            return Ok(Some(News::Connected));
        }
    }

    fn message(&mut self) -> Result<Option<News>, String> {
        loop {
            if let Some((message, taken)) = control::decode(&self.received).map_err(|e| chain(&e))? {
                self.received.drain(..taken);
                return Ok(Some(News::Message(message)));
            }
            // `decode` refused a longer announcement, so this much always makes a message whole.
            let room = (4 + MESSAGE_BYTES_MAX).saturating_sub(self.received.len()).min(4096);
            if self.read(room)? == 0 {
                return Ok(None);
            }
        }
    }

    /// Reads up to `most` bytes; 0 when there are none now.
    fn read(&mut self, most: usize) -> Result<usize, String> {
        let Some(socket) = self.socket() else { return Ok(0) };
        let mut piece = [0; 4096];
        let room = most.min(piece.len());
        match socket::recv(socket, &mut piece[..room], MsgFlags::MSG_DONTWAIT) {
            Ok(0) => Err("the host agent closed the connection".into()),
            Ok(bytes) => {
                self.received.extend_from_slice(&piece[..bytes]);
                Ok(bytes)
            }
            Err(Errno::EAGAIN | Errno::EINTR) => Ok(0),
            Err(error) => Err(format!("reading from the host agent failed: {error}")),
        }
    }

    fn write(&mut self) -> Result<(), String> {
        while !self.unsent.is_empty() {
            let Some(socket) = self.socket() else { return Ok(()) };
            match socket::send(socket, &self.unsent, MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL) {
                Ok(bytes) => drop(self.unsent.drain(..bytes)),
                Err(Errno::EAGAIN | Errno::EINTR) => break,
                Err(error) => return Err(format!("writing to the host agent failed: {error}")),
            }
        }
        if self.unsent.len() > UNSENT_BYTES_MAX { Err("the host agent does not read".into()) } else { Ok(()) }
    }

    fn socket(&self) -> Option<i32> {
        match &self.phase {
            Phase::Greeting { socket, .. } | Phase::Open { socket } => Some(socket.as_raw_fd()),
            Phase::Waiting { .. } | Phase::Connecting { .. } => None,
        }
    }
}

/// Begins a connection to the host agent.
fn dial() -> Result<OwnedFd, String> {
    let flags = SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC;
    let socket = socket::socket(AddressFamily::Vsock, SockType::Stream, flags, None)
        .map_err(|e| format!("there is no vsock: {e}"))?;
    match socket::connect(socket.as_raw_fd(), &VsockAddr::new(HOST_CID, CONTROL_PORT)) {
        Ok(()) | Err(Errno::EINPROGRESS | Errno::EINTR) => Ok(socket),
        Err(error) => Err(format!("cannot connect to the host agent: {error}")),
    }
}

/// Whether a connection that was begun now stands.
fn connected(socket: &OwnedFd) -> Result<bool, String> {
    let mut polled = [nix::poll::PollFd::new(socket.as_fd(), PollFlags::POLLOUT)];
    match nix::poll::poll(&mut polled, nix::poll::PollTimeout::ZERO) {
        Ok(0) | Err(Errno::EINTR) => return Ok(false),
        Ok(_) => {}
        Err(error) => return Err(format!("poll failed: {error}")),
    }
    match socket::getsockopt(socket, sockopt::SocketError) {
        Ok(0) => Ok(true),
        Ok(code) => Err(format!("cannot connect to the host agent: {}", Errno::from_raw(code))),
        Err(error) => Err(format!("cannot ask for the connection's state: {error}")),
    }
}

/// An error with its causes, on one line.
fn chain(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(error.source(), |cause| cause.source());
    causes.fold(error.to_string(), |text, cause| format!("{text}: {cause}"))
}

#[cfg(test)]
mod tests {
    use std::{
        io::{Read, Write},
        os::unix::net::UnixStream,
    };

    use super::*;

    fn pair() -> (Control, UnixStream) {
        let (ours, theirs) = UnixStream::pair().unwrap();
        (Control::over(ours.into()), theirs)
    }

    fn open() -> (Control, UnixStream) {
        let (mut control, mut agent) = pair();
        assert_eq!(control.advance(Duration::ZERO), None);
        let mut hello = [0; 8];
        agent.read_exact(&mut hello).unwrap();
        assert_eq!(Hello::decode(&hello).unwrap().unwrap().0, Hello::new(Role::Init));
        agent.write_all(&Hello::new(Role::Agent).encode()).unwrap();
        assert_eq!(control.advance(Duration::ZERO), Some(News::Connected));
        (control, agent)
    }

    fn provision(unix_time_ns: u64) -> Vec<u8> {
        control::encode(&ToInit::Provision { unix_time_ns }).unwrap()
    }

    #[test]
    fn messages_arrive_one_by_one_however_they_are_cut() {
        let (mut control, mut agent) = open();
        let bytes = [provision(1), provision(2)].concat();
        for byte in &bytes[..bytes.len() - 1] {
            agent.write_all(&[*byte]).unwrap();
            if let Some(news) = control.advance(Duration::ZERO) {
                assert_eq!(news, News::Message(ToInit::Provision { unix_time_ns: 1 }));
            }
        }
        agent.write_all(&bytes[bytes.len() - 1..]).unwrap();
        let second = News::Message(ToInit::Provision { unix_time_ns: 2 });
        assert_eq!(control.advance(Duration::ZERO), Some(second));
        assert_eq!(control.advance(Duration::ZERO), None);
    }

    #[test]
    fn what_follows_the_hello_in_one_piece_is_not_lost() {
        let (mut control, mut agent) = pair();
        agent.write_all(&[Hello::new(Role::Agent).encode(), provision(7)].concat()).unwrap();
        assert_eq!(control.advance(Duration::ZERO), Some(News::Connected));
        let message = News::Message(ToInit::Provision { unix_time_ns: 7 });
        assert_eq!(control.advance(Duration::ZERO), Some(message));
    }

    #[test]
    fn strangers_nonsense_and_a_close_end_the_connection() {
        let (mut control, mut agent) = pair();
        agent.write_all(&Hello::new(Role::Uplink).encode()).unwrap();
        assert_eq!(control.advance(Duration::ZERO), None);
        assert!(control.interest().is_none(), "waits for another one");

        for nonsense in [&[0xff; 4][..], b"\x02\0\0\0{}"] {
            let (mut control, mut agent) = open();
            agent.write_all(nonsense).unwrap();
            assert!(matches!(control.advance(Duration::ZERO), Some(News::Disconnected(_))));
        }

        let (mut control, agent) = open();
        drop(agent);
        assert!(matches!(control.advance(Duration::ZERO), Some(News::Disconnected(_))));
        assert_eq!(control.deadline(), Some(RETRY_MIN));
    }

    #[test]
    fn an_agent_that_does_not_read_is_let_go() {
        let (mut control, _agent) = open();
        let report = FromInit::Failure { what: "x".repeat(1000) };
        for _ in 0..10_000 {
            control.send(&report);
            if control.advance(Duration::ZERO).is_some() {
                return;
            }
            assert!(control.unsent.len() <= UNSENT_BYTES_MAX + 2000);
        }
        panic!("10 MB are buffered for an agent that does not read");
    }
}
