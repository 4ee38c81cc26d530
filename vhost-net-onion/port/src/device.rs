//! The device as one front-end sets it up: features, memory, two vrings. Knows nothing of frames.
//!
//! A vring runs when it has a size, addresses, a kick descriptor, and memory to lie in; it is *active*, and touched,
//! while it is enabled too. Messages may come in any order, so that is checked after each. `GET_VRING_BASE`, and any
//! change of a ring's size, address or base, stops the ring; it needs a new kick descriptor to run again, because
//! until then the front-end may not be done with changing it.
//!
//! The protocol would have a disabled tx ring emptied and its frames discarded. It is left alone instead: QEMU disables
//! rings only where it stops them too, and what is not taken is not lost.

use std::os::fd::OwnedFd;

use nix::{
    fcntl::{FcntlArg, OFlag, fcntl},
    sys::epoll::EpollFlags,
};
use virtio_bindings::bindings::{
    virtio_config::VIRTIO_F_VERSION_1,
    virtio_net::{
        VIRTIO_NET_F_CSUM, VIRTIO_NET_F_GUEST_CSUM, VIRTIO_NET_F_GUEST_TSO4, VIRTIO_NET_F_GUEST_TSO6,
        VIRTIO_NET_F_HOST_TSO4, VIRTIO_NET_F_HOST_TSO6, VIRTIO_NET_F_MRG_RXBUF, VIRTIO_NET_F_MTU,
    },
    virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC},
};
use vm_memory::GuestMemoryMmap;
use wire::link::{Abilities, FRAME_BYTES_MAX};

use crate::{
    memory::{Memory, MemoryError},
    message::{Reply, Request, VRINGS, VringAddrs},
    poller::{Poller, Token, Watched},
    ring::{Layout, Ring, RingError},
};

/// Index of the vring with buffers for frames to the VM.
pub(crate) const RX: usize = 0;

/// Index of the vring with frames from the VM.
pub(crate) const TX: usize = 1;

const F_VERSION_1: u64 = 1 << VIRTIO_F_VERSION_1;
const F_EVENT_IDX: u64 = 1 << VIRTIO_RING_F_EVENT_IDX;
const F_INDIRECT: u64 = 1 << VIRTIO_RING_F_INDIRECT_DESC;
const F_MERGEABLE: u64 = 1 << VIRTIO_NET_F_MRG_RXBUF;
const F_MTU: u64 = 1 << VIRTIO_NET_F_MTU;
const F_CSUM: u64 = 1 << VIRTIO_NET_F_CSUM;
const F_HOST_TSO: u64 = 1 << VIRTIO_NET_F_HOST_TSO4 | 1 << VIRTIO_NET_F_HOST_TSO6;
const F_GUEST_CSUM: u64 = 1 << VIRTIO_NET_F_GUEST_CSUM;
const F_GUEST_TSO4: u64 = 1 << VIRTIO_NET_F_GUEST_TSO4;
const F_GUEST_TSO6: u64 = 1 << VIRTIO_NET_F_GUEST_TSO6;
/// `VHOST_USER_F_PROTOCOL_FEATURES`.
const F_PROTOCOL: u64 = 1 << 30;

/// Always the same: a front-end that reconnects loops for ever when something that it had is missing.
const FEATURES: u64 = F_VERSION_1
    | F_EVENT_IDX
    | F_INDIRECT
    | F_MERGEABLE
    | F_MTU
    | F_PROTOCOL
    | F_CSUM
    | F_HOST_TSO
    | F_GUEST_CSUM
    | F_GUEST_TSO4
    | F_GUEST_TSO6;

const PROTOCOL_REPLY_ACK: u64 = 1 << 3;
const PROTOCOL_MTU: u64 = 1 << 4;
const PROTOCOL_FEATURES: u64 = PROTOCOL_REPLY_ACK | PROTOCOL_MTU;

/// The smallest MTU that can be set (virtio 1.2, section 5.1.4.1).
const MTU_MIN: u64 = 68;

/// Bytes of an Ethernet header with one VLAN tag.
const ETHERNET_BYTES: usize = 18;

/// Tokens of the kick descriptors.
const KICKS: [Token; VRINGS] = [Token::KickRx, Token::KickTx];

/// Bytes of the virtio-net header, with and without `num_buffers` (virtio 1.2, section 5.1.6.1).
const NET_HEADER_BYTES: usize = 12;
const LEGACY_NET_HEADER_BYTES: usize = 10;

/// Why a request cannot be served. The connection is closed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum DeviceError {
    #[error("the front-end accepts features {0:#x}, which are not offered")]
    Features(u64),
    #[error("the front-end sent a wrong memory table")]
    Memory(#[source] MemoryError),
    #[error("vring {index} cannot have {size} descriptors: a power of two up to 32768 can")]
    Size { index: usize, size: u32 },
    #[error("vring {index} cannot begin at {base}")]
    Base { index: usize, base: u32 },
    #[error("the descriptor given for vring {index} cannot be used")]
    Fd {
        index: usize,
        #[source]
        source: std::io::Error,
    },
}

/// What to answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Answer {
    /// An acknowledgement if one is wanted.
    Done,
    /// A refusal if an answer is wanted.
    Refused,
    /// The answer that this request always has.
    Reply(Reply),
}

/// A vring that is running and enabled, with what is needed to work on it.
pub(crate) struct Active<'a> {
    pub(crate) ring: &'a mut Ring,
    pub(crate) memory: &'a GuestMemoryMmap,
    call: Option<&'a OwnedFd>,
}

impl Active<'_> {
    /// Makes completed chains visible to the driver and signals it if it wants that.
    pub(crate) fn publish(&mut self) -> Result<(), RingError> {
        if self.ring.publish(self.memory)? {
            signal(self.call);
        }
        Ok(())
    }
}

/// The device of one front-end.
pub(crate) struct Device {
    poller: Poller,
    mtu: u16,
    features: u64,
    protocol_features: u64,
    memory: Option<Memory>,
    vrings: [Vring; VRINGS],
    /// Not used, but QEMU complains when it is closed.
    _backend_req: Option<OwnedFd>,
}

#[derive(Default)]
struct Vring {
    size: u16,
    addrs: Option<VringAddrs>,
    base: u16,
    enabled: bool,
    kick: Option<Watched<OwnedFd>>,
    call: Option<OwnedFd>,
    err: Option<OwnedFd>,
    ring: Option<Ring>,
    /// It was stopped because it is wrong, and stays so until it is set up again.
    broken: bool,
}

impl Device {
    pub(crate) fn new(poller: Poller, mtu: u16) -> Device {
        Device {
            poller,
            mtu,
            features: 0,
            protocol_features: 0,
            memory: None,
            vrings: Default::default(),
            _backend_req: None,
        }
    }

    /// Whether requests are acknowledged when the front-end asks for it.
    pub(crate) fn acknowledges(&self) -> bool {
        self.protocol_features & PROTOCOL_REPLY_ACK != 0
    }

    /// What the driver can receive. Segments need a checksum too (virtio 1.2, section 5.1.3.1).
    pub(crate) fn abilities(&self) -> Abilities {
        let checksum = self.features & F_GUEST_CSUM != 0;
        Abilities {
            checksum,
            tso4: checksum && self.features & F_GUEST_TSO4 != 0,
            tso6: checksum && self.features & F_GUEST_TSO6 != 0,
        }
    }

    /// The vring, if it is to be worked on.
    pub(crate) fn active(&mut self, index: usize) -> Option<Active<'_>> {
        // Without the protocol feature there is no message to enable a ring with.
        let enabled = self.vrings[index].enabled || self.features & F_PROTOCOL == 0;
        let memory = &self.memory.as_ref()?.guest;
        let vring = &mut self.vrings[index];
        let ring = vring.ring.as_mut().filter(|_| enabled)?;
        Some(Active { ring, memory, call: vring.call.as_ref() })
    }

    /// Stops a vring that its driver has broken, until it is set up again.
    pub(crate) fn stop_broken(&mut self, index: usize) {
        let vring = &mut self.vrings[index];
        vring.ring = None;
        vring.broken = true;
        signal(vring.err.as_ref());
    }

    /// Serves a request. No chain may be taken and not completed at that time.
    pub(crate) fn handle(&mut self, request: Request) -> Result<Answer, DeviceError> {
        match request {
            Request::GetFeatures => return Ok(Answer::Reply(Reply::U64(FEATURES))),
            Request::GetProtocolFeatures => return Ok(Answer::Reply(Reply::U64(PROTOCOL_FEATURES))),
            Request::GetQueueNum => return Ok(Answer::Reply(Reply::U64(1))),
            Request::SetFeatures(features) => self.set_features(subset(features, FEATURES)?),
            Request::SetProtocolFeatures(features) => self.protocol_features = subset(features, PROTOCOL_FEATURES)?,
            Request::SetMemTable(table) => self.set_memory(table)?,
            Request::SetVringNum { index, size } => {
                let size =
                    u16::try_from(size).ok().filter(|s| s.is_power_of_two()).ok_or(DeviceError::Size { index, size });
                self.vrings[index].configure().size = size?;
            }
            Request::SetVringAddr { index, addrs } => self.vrings[index].configure().addrs = Some(addrs),
            Request::SetVringBase { index, base } => {
                let base = u16::try_from(base).map_err(|_| DeviceError::Base { index, base })?;
                self.vrings[index].configure().base = base;
            }
            Request::GetVringBase { index } => return Ok(Answer::Reply(self.vrings[index].stop(index))),
            Request::SetVringKick { index, fd } => self.set_kick(index, fd)?,
            Request::SetVringCall { index, fd } => self.set_call(index, fd)?,
            Request::SetVringErr { index, fd } => self.vrings[index].err = nonblocking(index, fd)?,
            Request::SetVringEnable { index, enabled } => self.vrings[index].enabled = enabled,
            Request::ResetOwner => self.vrings.iter_mut().for_each(|vring| vring.enabled = false),
            Request::SetMtu(mtu) if !(MTU_MIN..=u64::from(self.mtu)).contains(&mtu) => return Ok(Answer::Refused),
            Request::SetBackendReqFd(fd) => self._backend_req = Some(fd),
            Request::SetOwner | Request::SetMtu(_) | Request::Ignored => {}
        }
        Ok(Answer::Done)
    }

    /// Starts the vrings that can run and do not. Returns why others cannot.
    pub(crate) fn start_vrings(&mut self) -> Vec<(usize, RingError)> {
        let mut errors = Vec::new();
        for index in 0..VRINGS {
            if let Err(e) = self.start_vring(index) {
                self.stop_broken(index);
                errors.push((index, e));
            }
        }
        errors
    }

    fn start_vring(&mut self, index: usize) -> Result<(), RingError> {
        let abilities = self.abilities();
        let vring = &mut self.vrings[index];
        let (Some(memory), Some(addrs), Some(_)) = (&self.memory, vring.addrs, &vring.kick) else { return Ok(()) };
        if vring.ring.is_some() || vring.broken || vring.size == 0 {
            return Ok(());
        }
        let guest_addr = |addr| memory.guest_addr(addr).ok_or(RingError::Outside);
        let frame_bytes_max = (usize::from(self.mtu) + ETHERNET_BYTES).min(FRAME_BYTES_MAX);
        let modern = self.features & (F_VERSION_1 | F_MERGEABLE) != 0;
        let layout = Layout {
            size: vring.size,
            descriptors: guest_addr(addrs.descriptors)?,
            available: guest_addr(addrs.available)?,
            used: guest_addr(addrs.used)?,
            event_idx: self.features & F_EVENT_IDX != 0,
            header_bytes: if modern { NET_HEADER_BYTES } else { LEGACY_NET_HEADER_BYTES },
            mergeable: self.features & F_MERGEABLE != 0,
            frame_bytes_max,
            segmented_bytes_max: if self.features & F_HOST_TSO != 0 { FRAME_BYTES_MAX } else { frame_bytes_max },
            abilities,
        };
        let ring = Ring::start(layout, &memory.guest)?;
        tracing::debug!(vring = index, base = vring.base, next = ring.next_avail(), ?layout, "vring starts");
        vring.ring = Some(ring);
        // A predecessor may have died between completing a chain and signalling it.
        signal(vring.call.as_ref());
        Ok(())
    }

    /// Takes other features. Rings that run go on with them where they are: a driver that negotiates afresh stops them
    /// first, so this is a front-end's own wish (to log writes, say), or a fault that costs nobody else anything.
    fn set_features(&mut self, features: u64) {
        if features != self.features {
            self.features = features;
            self.vrings.iter_mut().for_each(|vring| vring.ring = None);
        }
    }

    /// Takes a new memory table. Rings go on in it, if they lie in it.
    fn set_memory(&mut self, table: Vec<(crate::memory::Region, OwnedFd)>) -> Result<(), DeviceError> {
        self.vrings.iter_mut().for_each(|vring| vring.ring = None);
        // First the old one goes: both at once may be more than fits into the address space.
        self.memory = None;
        self.memory = Some(Memory::map(table).map_err(DeviceError::Memory)?);
        Ok(())
    }

    fn set_kick(&mut self, index: usize, fd: Option<OwnedFd>) -> Result<(), DeviceError> {
        let vring = &mut self.vrings[index];
        vring.kick = None;
        vring.broken = false;
        let Some(fd) = fd else {
            tracing::warn!(vring = index, "the front-end gives no kick descriptor; polling is not served");
            vring.ring = None;
            return Ok(());
        };
        // Edge-triggered and never read: each kick is an event, and no read can block on what is not an eventfd.
        let interest = EpollFlags::EPOLLIN | EpollFlags::EPOLLET;
        let watched = self.poller.watch(fd, KICKS[index], interest);
        vring.kick = Some(watched.map_err(|source| DeviceError::Fd { index, source })?);
        Ok(())
    }

    fn set_call(&mut self, index: usize, fd: Option<OwnedFd>) -> Result<(), DeviceError> {
        let vring = &mut self.vrings[index];
        vring.call = nonblocking(index, fd)?;
        if vring.ring.is_some() {
            // What was signalled on the old one may not have been seen.
            signal(vring.call.as_ref());
        }
        Ok(())
    }
}

impl Vring {
    /// Stops the ring because its layout changes.
    fn configure(&mut self) -> &mut Vring {
        self.ring = None;
        self.kick = None;
        self.broken = false;
        self
    }

    /// Stops the ring and says where it stopped.
    fn stop(&mut self, index: usize) -> Reply {
        if let Some(ring) = self.ring.take() {
            self.base = ring.next_avail();
        }
        self.kick = None;
        Reply::VringState { index: index as u32, num: u32::from(self.base) }
    }
}

fn subset(features: u64, offered: u64) -> Result<u64, DeviceError> {
    let stranger = features & !offered;
    if stranger == 0 { Ok(features) } else { Err(DeviceError::Features(stranger)) }
}

/// The front-end chooses what the descriptor is: a write to it must not block.
fn nonblocking(index: usize, fd: Option<OwnedFd>) -> Result<Option<OwnedFd>, DeviceError> {
    let Some(fd) = fd else { return Ok(None) };
    let flags = fcntl(&fd, FcntlArg::F_GETFL).map(OFlag::from_bits_retain);
    let set = flags.and_then(|flags| fcntl(&fd, FcntlArg::F_SETFL(flags | OFlag::O_NONBLOCK)));
    set.map_err(|e| DeviceError::Fd { index, source: e.into() })?;
    Ok(Some(fd))
}

/// Signals an eventfd. When that fails it is full, and so has not been seen yet, or nobody listens.
fn signal(fd: Option<&OwnedFd>) {
    if let Some(fd) = fd {
        let _ = nix::unistd::write(fd, &1u64.to_ne_bytes());
    }
}
