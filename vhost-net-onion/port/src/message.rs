//! The messages of the vhost-user protocol that a network device needs: bytes and descriptors in, requests out.
//!
//! ```text
//! request u32 | flags u32 | size u32 | payload of `size` bytes     native byte order; descriptors by SCM_RIGHTS
//! ```
//!
//! A message is read in two steps, header and payload, and never a byte further, so that descriptors cannot be taken
//! for those of another message. Descriptors that a request has no use for are closed with it.

use std::{
    io::{self, IoSliceMut},
    mem::MaybeUninit,
    os::{fd::OwnedFd, unix::net::UnixStream},
};

use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, recvmsg};

use crate::memory::{REGIONS_MAX, Region};

/// How many vrings there are: rx, tx.
pub(crate) const VRINGS: usize = 2;

/// Bytes of a message's header.
const HEADER_BYTES: usize = 12;

/// Bytes of the longest payload that is read: twice what the longest known one, a full memory table, needs.
const PAYLOAD_BYTES_MAX: usize = 2 * (8 + REGIONS_MAX * REGION_BYTES);

/// Bytes of a region in a memory table.
const REGION_BYTES: usize = 32;

/// How many descriptors one message may carry.
const FDS_MAX: usize = REGIONS_MAX;

/// As many descriptors as the kernel passes at once (`SCM_MAX_FD`): with room for all, none is lost track of.
const FDS_AT_ONCE_MAX: usize = 253;

const VERSION: u32 = 1;
const VERSION_MASK: u32 = 3;
const FLAG_REPLY: u32 = 1 << 2;
const FLAG_NEED_REPLY: u32 = 1 << 3;

/// In the payload of `SET_VRING_KICK`, `_CALL` and `_ERR`: no descriptor comes with it.
const NO_FD: u64 = 1 << 8;

/// Why a front-end's bytes are not a message.
#[derive(Debug, thiserror::Error)]
pub(crate) enum MessageError {
    #[error("cannot read from the front-end")]
    Read(#[source] io::Error),
    #[error("the front-end closed the connection within a message")]
    Cut,
    #[error("the front-end sent a message with flags {0:#x}: not version 1 of the protocol, or a reply to nothing")]
    Flags(u32),
    #[error("the front-end announces a payload of {0} bytes, at most {PAYLOAD_BYTES_MAX} are allowed")]
    TooLong(usize),
    #[error("the front-end sent {0} descriptors with a message, at most {FDS_MAX} are allowed")]
    TooManyFds(usize),
    #[error("descriptors of the front-end were lost: this process may have too many open")]
    LostFds,
    #[error("the front-end sent request {0} with a payload of {1} bytes, which is too short")]
    TooShort(u32, usize),
    #[error("the front-end sent request {0} with {1} descriptors, which is a wrong number")]
    FdCount(u32, usize),
    #[error("the front-end names vring {0}; there are {VRINGS}")]
    Vring(u64),
    #[error("the front-end sent a memory table of {0} regions, at most {REGIONS_MAX} are allowed")]
    Regions(u32),
    #[error("the front-end sent request {0}, which this device does not offer")]
    Unknown(u32),
}

/// Where a ring lies, in the front-end's addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct VringAddrs {
    pub(crate) descriptors: u64,
    pub(crate) used: u64,
    pub(crate) available: u64,
}

/// What a front-end asks. `index` is below [`VRINGS`].
#[derive(Debug)]
pub(crate) enum Request {
    GetFeatures,
    SetFeatures(u64),
    SetOwner,
    ResetOwner,
    SetMemTable(Vec<(Region, OwnedFd)>),
    SetVringNum {
        index: usize,
        size: u32,
    },
    SetVringAddr {
        index: usize,
        addrs: VringAddrs,
    },
    SetVringBase {
        index: usize,
        base: u32,
    },
    GetVringBase {
        index: usize,
    },
    SetVringKick {
        index: usize,
        fd: Option<OwnedFd>,
    },
    SetVringCall {
        index: usize,
        fd: Option<OwnedFd>,
    },
    SetVringErr {
        index: usize,
        fd: Option<OwnedFd>,
    },
    GetProtocolFeatures,
    SetProtocolFeatures(u64),
    GetQueueNum,
    SetVringEnable {
        index: usize,
        enabled: bool,
    },
    SetMtu(u64),
    SetBackendReqFd(OwnedFd),
    /// Belongs to a feature that is not offered and does no harm: dirty logging, RARP, status.
    Ignored,
}

/// A whole message.
#[derive(Debug)]
pub(crate) struct Message {
    pub(crate) code: u32,
    /// The front-end waits for an acknowledgement (if `REPLY_ACK` was negotiated).
    pub(crate) need_reply: bool,
    pub(crate) request: Request,
}

/// The payload of an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Reply {
    U64(u64),
    VringState { index: u32, num: u32 },
}

/// What came of reading.
#[derive(Debug)]
pub(crate) enum Received {
    Message(Message),
    /// Wait until there is more.
    Pending,
    /// The front-end closed the connection between two messages.
    End,
}

/// Collects one message from a stream that does not block.
pub(crate) struct Receiver {
    bytes: [u8; HEADER_BYTES + PAYLOAD_BYTES_MAX],
    held: usize,
    fds: Vec<OwnedFd>,
}

impl Receiver {
    pub(crate) fn new() -> Receiver {
        Receiver { bytes: [0; HEADER_BYTES + PAYLOAD_BYTES_MAX], held: 0, fds: Vec::new() }
    }

    /// Reads until there is a whole message, or nothing more to read.
    pub(crate) fn receive(&mut self, stream: &UnixStream) -> Result<Received, MessageError> {
        loop {
            let wanted = self.wanted()?;
            if self.held == wanted {
                return self.take().map(Received::Message);
            }
            match self.read(stream, wanted) {
                Ok(0) if self.held == 0 => return Ok(Received::End),
                Ok(0) => return Err(MessageError::Cut),
                Ok(count) => self.held += count,
                Err(MessageError::Read(e)) if e.kind() == io::ErrorKind::WouldBlock => return Ok(Received::Pending),
                Err(MessageError::Read(e)) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
    }

    /// Bytes of the message, as far as they are known.
    fn wanted(&self) -> Result<usize, MessageError> {
        if self.held < HEADER_BYTES {
            return Ok(HEADER_BYTES);
        }
        let size = usize::try_from(u32_at(&self.bytes, 8)).unwrap_or(usize::MAX);
        if size > PAYLOAD_BYTES_MAX { Err(MessageError::TooLong(size)) } else { Ok(HEADER_BYTES + size) }
    }

    fn read(&mut self, stream: &UnixStream, wanted: usize) -> Result<usize, MessageError> {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(FDS_AT_ONCE_MAX))];
        let mut ancillary = RecvAncillaryBuffer::new(&mut space);
        let mut buffers = [IoSliceMut::new(&mut self.bytes[self.held..wanted])];
        let received = recvmsg(stream, &mut buffers, &mut ancillary, RecvFlags::CMSG_CLOEXEC | RecvFlags::DONTWAIT)
            .map_err(|e| MessageError::Read(e.into()))?;
        for part in ancillary.drain() {
            if let RecvAncillaryMessage::ScmRights(fds) = part {
                self.fds.extend(fds);
            }
        }
        if received.flags.contains(ReturnFlags::CTRUNC) {
            return Err(MessageError::LostFds);
        }
        if self.fds.len() > FDS_MAX {
            return Err(MessageError::TooManyFds(self.fds.len()));
        }
        Ok(received.bytes)
    }

    fn take(&mut self) -> Result<Message, MessageError> {
        let (code, flags) = (u32_at(&self.bytes, 0), u32_at(&self.bytes, 4));
        if flags & VERSION_MASK != VERSION || flags & FLAG_REPLY != 0 {
            return Err(MessageError::Flags(flags));
        }
        let payload = &self.bytes[HEADER_BYTES..self.held];
        self.held = 0;
        let parts = Parts { code, payload, fds: std::mem::take(&mut self.fds) };
        Ok(Message { code, need_reply: flags & FLAG_NEED_REPLY != 0, request: parts.parse()? })
    }
}

/// The bytes of the answer to request `code`.
pub(crate) fn encode_reply(code: u32, reply: Reply) -> [u8; HEADER_BYTES + 8] {
    let payload = match reply {
        Reply::U64(value) => value.to_ne_bytes(),
        Reply::VringState { index, num } => {
            let mut bytes = [0; 8];
            bytes[..4].copy_from_slice(&index.to_ne_bytes());
            bytes[4..].copy_from_slice(&num.to_ne_bytes());
            bytes
        }
    };
    let mut bytes = [0; HEADER_BYTES + 8];
    bytes[..4].copy_from_slice(&code.to_ne_bytes());
    bytes[4..8].copy_from_slice(&(VERSION | FLAG_REPLY).to_ne_bytes());
    bytes[8..12].copy_from_slice(&8u32.to_ne_bytes());
    bytes[HEADER_BYTES..].copy_from_slice(&payload);
    bytes
}

struct Parts<'a> {
    code: u32,
    payload: &'a [u8],
    fds: Vec<OwnedFd>,
}

impl Parts<'_> {
    fn parse(mut self) -> Result<Request, MessageError> {
        Ok(match self.code {
            1 => Request::GetFeatures,
            2 => Request::SetFeatures(self.u64(0)?),
            3 => Request::SetOwner,
            4 => Request::ResetOwner,
            5 => Request::SetMemTable(self.mem_table()?),
            8 => Request::SetVringNum { index: self.vring()?, size: self.u32(4)? },
            9 => {
                // index u32 | flags u32 | descriptors | used | available | log
                let addrs = VringAddrs { descriptors: self.u64(8)?, used: self.u64(16)?, available: self.u64(24)? };
                Request::SetVringAddr { index: self.vring()?, addrs }
            }
            10 => Request::SetVringBase { index: self.vring()?, base: self.u32(4)? },
            11 => Request::GetVringBase { index: self.vring()? },
            12 => self.vring_fd().map(|(index, fd)| Request::SetVringKick { index, fd })?,
            13 => self.vring_fd().map(|(index, fd)| Request::SetVringCall { index, fd })?,
            14 => self.vring_fd().map(|(index, fd)| Request::SetVringErr { index, fd })?,
            15 => Request::GetProtocolFeatures,
            16 => Request::SetProtocolFeatures(self.u64(0)?),
            17 => Request::GetQueueNum,
            18 => Request::SetVringEnable { index: self.vring()?, enabled: self.u32(4)? != 0 },
            20 => Request::SetMtu(self.u64(0)?),
            21 => Request::SetBackendReqFd(self.only_fd()?),
            // SET_LOG_BASE, SET_LOG_FD, SEND_RARP, SET_STATUS: none of them has an answer of its own.
            6 | 7 | 19 | 39 => Request::Ignored,
            code => return Err(MessageError::Unknown(code)),
        })
    }

    fn mem_table(&mut self) -> Result<Vec<(Region, OwnedFd)>, MessageError> {
        let count = self.u32(0)?;
        if count as usize > REGIONS_MAX {
            return Err(MessageError::Regions(count));
        }
        if self.fds.len() != count as usize {
            return Err(MessageError::FdCount(self.code, self.fds.len()));
        }
        let fds = std::mem::take(&mut self.fds);
        let region = |at: usize| -> Result<Region, MessageError> {
            Ok(Region {
                guest_addr: self.u64(at)?,
                bytes: self.u64(at + 8)?,
                user_addr: self.u64(at + 16)?,
                offset: self.u64(at + 24)?,
            })
        };
        fds.into_iter().enumerate().map(|(i, fd)| Ok((region(8 + i * REGION_BYTES)?, fd))).collect()
    }

    /// The vring that the first field names.
    fn vring(&self) -> Result<usize, MessageError> {
        vring_index(u64::from(self.u32(0)?))
    }

    /// The vring and the descriptor of `SET_VRING_KICK` and its like.
    fn vring_fd(&mut self) -> Result<(usize, Option<OwnedFd>), MessageError> {
        let value = self.u64(0)?;
        let index = vring_index(value & (NO_FD - 1))?;
        Ok((index, if value & NO_FD == 0 { Some(self.only_fd()?) } else { None }))
    }

    fn only_fd(&mut self) -> Result<OwnedFd, MessageError> {
        let count = self.fds.len();
        if count == 1 { self.fds.pop() } else { None }.ok_or(MessageError::FdCount(self.code, count))
    }

    fn u32(&self, at: usize) -> Result<u32, MessageError> {
        self.need(at + 4)?;
        Ok(u32_at(self.payload, at))
    }

    fn u64(&self, at: usize) -> Result<u64, MessageError> {
        self.need(at + 8)?;
        Ok(u64::from_ne_bytes(self.payload[at..at + 8].try_into().expect("eight bytes")))
    }

    fn need(&self, bytes: usize) -> Result<(), MessageError> {
        if self.payload.len() < bytes { Err(MessageError::TooShort(self.code, self.payload.len())) } else { Ok(()) }
    }
}

fn vring_index(value: u64) -> Result<usize, MessageError> {
    usize::try_from(value).ok().filter(|index| *index < VRINGS).ok_or(MessageError::Vring(value))
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_ne_bytes(bytes[at..at + 4].try_into().expect("four bytes"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    fn message(code: u32, flags: u32, payload: &[u8]) -> Vec<u8> {
        let size = u32::try_from(payload.len()).unwrap();
        [&code.to_ne_bytes()[..], &flags.to_ne_bytes(), &size.to_ne_bytes(), payload].concat()
    }

    /// What a receiver makes of `bytes`, sent in pieces of `piece` bytes.
    fn received(bytes: &[u8], piece: usize) -> Result<Received, MessageError> {
        let (mut here, there) = UnixStream::pair().unwrap();
        let mut receiver = Receiver::new();
        for piece in bytes.chunks(piece) {
            here.write_all(piece).unwrap();
            match receiver.receive(&there)? {
                Received::Pending => {}
                other => return Ok(other),
            }
        }
        drop(here);
        receiver.receive(&there)
    }

    #[test]
    fn messages_survive_every_cut() {
        let bytes = message(10, VERSION | FLAG_NEED_REPLY, &[1, 0, 0, 0, 7, 0, 0, 0]);
        for piece in 1..=bytes.len() {
            let Received::Message(message) = received(&bytes, piece).unwrap() else { panic!("not whole") };
            assert!(message.need_reply);
            assert!(matches!(message.request, Request::SetVringBase { index: 1, base: 7 }));
        }
    }

    #[test]
    fn messages_that_break_the_protocol_are_refused() {
        let refused = |bytes: &[u8]| received(bytes, bytes.len()).expect_err("refused");
        assert!(matches!(refused(&message(1, 0, &[])), MessageError::Flags(0)));
        assert!(matches!(refused(&message(1, VERSION | FLAG_REPLY, &[])), MessageError::Flags(5)));
        assert!(matches!(refused(&message(2, VERSION, &[0; 7])), MessageError::TooShort(2, 7)));
        assert!(matches!(refused(&message(8, VERSION, &[2, 0, 0, 0, 0, 1, 0, 0])), MessageError::Vring(2)));
        assert!(matches!(refused(&message(12, VERSION, &[2, 1, 0, 0, 0, 0, 0, 0])), MessageError::Vring(2)));
        assert!(matches!(refused(&message(12, VERSION, &[0; 8])), MessageError::FdCount(12, 0)));
        assert!(matches!(refused(&message(5, VERSION, &[9, 0, 0, 0])), MessageError::Regions(9)));
        assert!(matches!(refused(&message(5, VERSION, &[1, 0, 0, 0])), MessageError::FdCount(5, 0)));
        assert!(matches!(refused(&message(24, VERSION, &[])), MessageError::Unknown(24)));
        assert!(matches!(refused(&message(u32::MAX, VERSION, &[])), MessageError::Unknown(u32::MAX)));
        assert!(matches!(refused(&[0xff; 12]), MessageError::TooLong(_)));
        assert!(matches!(refused(&[1, 0, 0]), MessageError::Cut));
        assert!(matches!(received(&[], 1), Ok(Received::End)));
    }

    #[test]
    fn a_vring_without_a_descriptor_says_so() {
        let bytes = message(13, VERSION, &[1, 1, 0, 0, 0, 0, 0, 0]);
        let Received::Message(message) = received(&bytes, 64).unwrap() else { panic!("not whole") };
        assert!(matches!(message.request, Request::SetVringCall { index: 1, fd: None }));
    }
}
