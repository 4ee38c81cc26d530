//! What can be chosen about a port, how it is stopped, and why it cannot work.

use std::{
    io,
    os::fd::{AsFd, BorrowedFd},
    sync::Arc,
};

use nix::sys::eventfd::{EfdFlags, EventFd};

/// Bytes of the longest IP packet that a VM may be told to send: 64 KiB less what drivers and devices keep beside it
/// (as passt and QEMU's own users do), and a multiple of eight.
pub const MTU_MAX: u16 = 65_520;

/// The smallest MTU that every IPv6 link must have is 1280 bytes, and every IPv4 host takes packets of 576 (RFC 8200,
/// section 5; RFC 791, section 3.1).
pub const MTU_MIN: u16 = 576;

/// What can be chosen.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// Bytes of the longest IP packet that the VM may send whole. A front-end may set a smaller MTU for its driver, not
    /// a larger one; longer frames are dropped. What is to be cut into segments may always have 65,535 bytes.
    pub mtu: u16,
}

impl Default for Options {
    /// Every MTU is allowed: which one a VM has is said where its network card is described (QEMU's `host_mtu`), and
    /// 1500 if nothing is. A second place that must agree with the first would only be one more way to lose frames.
    fn default() -> Options {
        Options { mtu: MTU_MAX }
    }
}

/// Why the port cannot work. What a front-end, a driver or a router does wrong is never a reason.
#[derive(Debug, thiserror::Error)]
pub enum PortError {
    /// No epoll, or no eventfd.
    #[error("cannot set up the event loop: the process may have too many open files")]
    Setup(#[source] io::Error),
    /// The event loop failed.
    #[error("cannot wait for events")]
    Wait(#[source] io::Error),
    /// A listening socket failed.
    #[error("cannot listen: {what} must be a listening AF_UNIX stream socket")]
    Listen {
        /// Which socket.
        what: &'static str,
        /// Why.
        #[source]
        source: io::Error,
    },
}

/// Stops a port that runs on another thread. Clones stop the same port.
#[derive(Clone, Debug)]
pub struct Stop(Arc<EventFd>);

impl Stop {
    /// A stop that has not been asked for.
    ///
    /// # Errors
    /// When there is no descriptor to be had.
    pub fn new() -> Result<Stop, PortError> {
        let event = EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK);
        Ok(Stop(Arc::new(event.map_err(|e| PortError::Setup(e.into()))?)))
    }

    /// Makes [`serve`](crate::serve) return, now or as soon as it is called.
    pub fn stop(&self) {
        // It can only fail when it has been asked for 2^64 times.
        let _ = self.0.write(1);
    }
}

impl AsFd for Stop {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}
