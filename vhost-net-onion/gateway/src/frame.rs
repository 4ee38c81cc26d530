//! A frame on its way to the VM.

use std::{fmt, ops::Deref};

use bytes::Bytes;
use wire::link::Offload;

/// Bytes of the longest [`Head`]: the headers of Ethernet, IPv6 and TCP with all options are 114.
const HEAD_BYTES_MAX: usize = 128;

/// An Ethernet frame, in two pieces so that a payload need not be copied.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frame {
    /// What is left to the VM's driver: nothing beyond what it can ([`crate::Gateway::set_abilities`]).
    pub offload: Offload,
    /// The headers.
    pub head: Head,
    /// What follows them.
    pub body: Bytes,
}

impl Frame {
    /// Bytes of the frame.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.head.len() + self.body.len()
    }

    /// The frame in one piece.
    #[must_use]
    pub fn to_vec(&self) -> Vec<u8> {
        [&self.head[..], &self.body[..]].concat()
    }
}

/// The headers of a frame, held in place.
#[derive(Clone, PartialEq, Eq)]
pub struct Head {
    bytes: [u8; HEAD_BYTES_MAX],
    length: u8,
}

impl Head {
    /// `length` zeros.
    ///
    /// # Panics
    /// When `length` is more than 128, which no headers are: the caller's mistake.
    #[must_use]
    pub fn zeroed(length: usize) -> Head {
        assert!(length <= HEAD_BYTES_MAX, "no frame has headers of {length} bytes");
        Head { bytes: [0; HEAD_BYTES_MAX], length: length as u8 }
    }
}

impl AsMut<[u8]> for Head {
    /// The bytes, to be written.
    fn as_mut(&mut self) -> &mut [u8] {
        &mut self.bytes[..usize::from(self.length)]
    }
}

impl Deref for Head {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.bytes[..usize::from(self.length)]
    }
}

impl fmt::Debug for Head {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:02x?}", &self[..])
    }
}
