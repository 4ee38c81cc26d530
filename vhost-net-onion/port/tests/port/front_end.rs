//! A VM with its driver, and the front-end that hands its rings to a port: QEMU's messages in QEMU's order.

use std::{
    fs::File,
    io::{IoSlice, Read},
    mem::MaybeUninit,
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::net::UnixStream,
    },
    path::Path,
    sync::atomic::{Ordering, fence},
    time::Duration,
};

use nix::{
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::{
        eventfd::{EfdFlags, EventFd},
        memfd::{MFdFlags, memfd_create},
    },
};
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
use virtio_queue::desc::split::Descriptor;
use vm_memory::{Bytes, FileOffset, GuestAddress, GuestMemoryMmap, GuestRegionMmap, MmapRegion};
use wire::link::Offload;

pub const NEXT: u16 = 1;
pub const WRITE: u16 = 2;
pub const INDIRECT: u16 = 4;

pub const RX: usize = 0;
pub const TX: usize = 1;

pub const F_MERGEABLE: u64 = 1 << 15;
pub const F_EVENT_IDX: u64 = 1 << 29;
pub const F_PROTOCOL: u64 = 1 << 30;
pub const F_CSUM: u64 = 1;
pub const F_GUEST_CSUM: u64 = 1 << 1;
pub const F_GUEST_TSO4: u64 = 1 << 7;
pub const F_GUEST_TSO6: u64 = 1 << 8;
pub const F_HOST_TSO: u64 = 1 << 11 | 1 << 12;
pub const OFFLOADS: u64 = F_CSUM | F_GUEST_CSUM | F_GUEST_TSO4 | F_GUEST_TSO6 | F_HOST_TSO;
pub const FEATURES: u64 = 1 << 32 | 1 << 28 | F_EVENT_IDX | F_PROTOCOL | F_MERGEABLE | OFFLOADS;

pub const GET_FEATURES: u32 = 1;
pub const SET_FEATURES: u32 = 2;
pub const SET_OWNER: u32 = 3;
pub const SET_MEM_TABLE: u32 = 5;
pub const SET_VRING_NUM: u32 = 8;
pub const SET_VRING_ADDR: u32 = 9;
pub const SET_VRING_BASE: u32 = 10;
pub const GET_VRING_BASE: u32 = 11;
pub const SET_VRING_KICK: u32 = 12;
pub const SET_VRING_CALL: u32 = 13;
pub const SET_VRING_ERR: u32 = 14;
pub const GET_PROTOCOL_FEATURES: u32 = 15;
pub const SET_PROTOCOL_FEATURES: u32 = 16;
pub const SET_VRING_ENABLE: u32 = 18;
pub const NET_SET_MTU: u32 = 20;
pub const SET_BACKEND_REQ_FD: u32 = 21;

/// Descriptors of each ring.
pub const RING: u16 = 256;

/// The three kinds of address differ, so that none can be taken for another.
pub const GUEST_BASE: u64 = 0x4000_0000;
pub const USER_BASE: u64 = 0x7f12_3456_0000;
pub const OFFSET: u64 = 0x2000;
pub const MEMORY_BYTES: u64 = 32 << 20;

/// Each ring has a MiB, with its parts at these offsets; its buffers are behind.
const RING_BYTES: u64 = 1 << 20;
const AVAILABLE: u64 = 0x10000;
const USED: u64 = 0x20000;
pub const SPARE: u64 = 0x30000;

/// Bytes of a descriptor's own buffer.
pub const BUFFER_BYTES: u32 = 2048;

const HEADER_BYTES: usize = 12;

/// The VM: memory, driver, rings. Outlives ports and front-ends.
pub struct Vm {
    pub memory: GuestMemoryMmap,
    pub file: OwnedFd,
    pub rings: [Ring; 2],
}

/// A ring as its driver sees it. Chains of one descriptor use the descriptor's own buffer.
pub struct Ring {
    base: u64,
    avail: u16,
    seen: u16,
    pub kick: EventFd,
    pub call: EventFd,
    pub err: EventFd,
}

impl Vm {
    pub fn new() -> Vm {
        let file = memfd_create("vm", MFdFlags::MFD_CLOEXEC).unwrap();
        let memory = File::from(file.try_clone().unwrap());
        memory.set_len(OFFSET + MEMORY_BYTES).unwrap();
        let mapping = MmapRegion::from_file(FileOffset::new(memory, OFFSET), MEMORY_BYTES as usize).unwrap();
        let region = GuestRegionMmap::new(mapping, GuestAddress(GUEST_BASE)).unwrap();
        let memory = GuestMemoryMmap::from_regions(vec![region]).unwrap();
        let event = || EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK).unwrap();
        let rings = [0, 1].map(|index| Ring {
            base: GUEST_BASE + index * RING_BYTES,
            avail: 0,
            seen: 0,
            kick: event(),
            call: event(),
            err: event(),
        });
        Vm { memory, file, rings }
    }

    /// The driver is loaded afresh: empty rings.
    pub fn reset(&mut self) {
        for ring in &mut self.rings {
            (ring.avail, ring.seen) = (0, 0);
            self.memory.write_slice(&[0; 4096], GuestAddress(ring.base + AVAILABLE)).unwrap();
            self.memory.write_slice(&[0; 4096], GuestAddress(ring.base + USED)).unwrap();
        }
    }

    pub fn buffer(&self, ring: usize, index: u16) -> u64 {
        GUEST_BASE + (2 + ring as u64) * RING_BYTES + u64::from(index) * u64::from(BUFFER_BYTES)
    }

    /// Where a test may put a table of its own.
    pub fn spare(&self, ring: usize) -> u64 {
        self.rings[ring].base + SPARE
    }

    pub fn set(&self, table: u64, index: u16, addr: u64, bytes: u32, flags: u16, next: u16) {
        let at = GuestAddress(table + 16 * u64::from(index));
        self.memory.write_obj(Descriptor::new(addr, bytes, flags, next), at).unwrap();
    }

    pub fn set_descriptor(&self, ring: usize, index: u16, addr: u64, bytes: u32, flags: u16, next: u16) {
        self.set(self.rings[ring].base, index, addr, bytes, flags, next);
    }

    pub fn set_avail_index(&self, ring: usize, index: u16) {
        fence(Ordering::SeqCst);
        let at = GuestAddress(self.rings[ring].base + AVAILABLE + 2);
        self.memory.store(index, at, Ordering::Release).unwrap();
    }

    pub fn used_index(&self, ring: usize) -> u16 {
        self.memory.load(GuestAddress(self.rings[ring].base + USED + 2), Ordering::Acquire).unwrap()
    }

    /// Makes a chain available, without a kick.
    pub fn offer(&mut self, ring: usize, head: u16) {
        let at = self.rings[ring].base + AVAILABLE + 4 + 2 * u64::from(self.rings[ring].avail % RING);
        self.memory.write_obj(head, GuestAddress(at)).unwrap();
        self.rings[ring].avail = self.rings[ring].avail.wrapping_add(1);
        self.set_avail_index(ring, self.rings[ring].avail);
    }

    /// Kicks always: what the port asked for is tested on real drivers.
    pub fn kick(&self, ring: usize) {
        self.rings[ring].kick.write(1).unwrap();
    }

    /// Kicks only if the port asked for it when it had seen `before` chains (virtio 1.2, section 2.7.10).
    pub fn kick_if_wanted(&self, ring: usize, before: u16) -> bool {
        fence(Ordering::SeqCst);
        let ring = &self.rings[ring];
        let event = GuestAddress(ring.base + USED + 4 + 8 * u64::from(RING));
        let event: u16 = self.memory.load(event, Ordering::Acquire).unwrap();
        let wanted = ring.avail.wrapping_sub(event).wrapping_sub(1) < ring.avail.wrapping_sub(before);
        if wanted {
            ring.kick.write(1).unwrap();
        }
        wanted
    }

    /// Chains that the port holds.
    pub fn in_flight(&self, ring: usize) -> u16 {
        self.rings[ring].avail.wrapping_sub(self.used_index(ring))
    }

    /// How many chains were made available in all.
    pub fn offered(&self, ring: usize) -> u16 {
        self.rings[ring].avail
    }

    /// The next completed chain: head and bytes.
    pub fn completed(&mut self, ring: usize) -> Option<(u16, u32)> {
        let r = &mut self.rings[ring];
        let at = GuestAddress(r.base + USED + 2);
        let used: u16 = self.memory.load(at, Ordering::Acquire).unwrap();
        if used == r.seen {
            return None;
        }
        let at = GuestAddress(r.base + USED + 4 + 8 * u64::from(r.seen % RING));
        let [head, bytes] = self.memory.read_obj::<[u32; 2]>(at).unwrap();
        r.seen = r.seen.wrapping_add(1);
        // Asks to be signalled for the next one.
        let event = GuestAddress(r.base + AVAILABLE + 4 + 2 * u64::from(RING));
        self.memory.store(r.seen, event, Ordering::SeqCst).unwrap();
        Some((head.try_into().unwrap(), bytes))
    }

    /// Waits for the next completed chain.
    pub fn wait_completed(&mut self, ring: usize) -> (u16, u32) {
        loop {
            if let Some(done) = self.completed(ring) {
                return done;
            }
            fence(Ordering::SeqCst);
            if self.used_index(ring) == self.rings[ring].seen {
                assert!(wait(self.rings[ring].call.as_fd(), 20_000), "the port completes nothing on ring {ring}");
                let _ = self.rings[ring].call.read();
            }
        }
    }

    /// Whether the port does not complete a chain for a while.
    pub fn stalls(&self, ring: usize) -> bool {
        loop {
            let before = self.used_index(ring);
            let _ = self.rings[ring].call.read();
            wait(self.rings[ring].call.as_fd(), 300);
            if self.used_index(ring) == before {
                return true;
            }
        }
    }

    /// Sends a frame with the descriptor whose turn it is, and kicks. `false` when the ring is full.
    pub fn send(&mut self, offload: Offload, frame: &[u8]) -> bool {
        if self.in_flight(TX) == RING {
            return false;
        }
        let head = self.rings[TX].avail % RING;
        let addr = self.buffer(TX, head);
        let header = [&offload.to_bytes()[..], &[0, 0]].concat();
        self.memory.write_slice(&header, GuestAddress(addr)).unwrap();
        self.memory.write_slice(frame, GuestAddress(addr + HEADER_BYTES as u64)).unwrap();
        self.set_descriptor(TX, head, addr, (HEADER_BYTES + frame.len()).try_into().unwrap(), 0, 0);
        let before = self.offered(TX);
        self.offer(TX, head);
        self.kick_if_wanted(TX, before);
        true
    }

    /// Offers `count` rx buffers of `bytes` bytes and kicks.
    pub fn give_buffers(&mut self, count: u16, bytes: u32) {
        let before = self.offered(RX);
        for _ in 0..count {
            let head = self.rings[RX].avail % RING;
            self.set_descriptor(RX, head, self.buffer(RX, head), bytes, WRITE, 0);
            self.offer(RX, head);
        }
        self.kick_if_wanted(RX, before);
    }

    /// Waits for a frame and puts it together. Returns it with its offload fields and how many buffers it took.
    pub fn receive(&mut self) -> (Offload, Vec<u8>, u16) {
        let (head, bytes) = self.wait_completed(RX);
        let mut all = self.written(head, bytes);
        let buffers = u16::from_le_bytes([all[10], all[11]]);
        for _ in 1..buffers {
            let (head, bytes) = self.completed(RX).expect("all buffers of a frame show at once");
            all.extend(self.written(head, bytes));
        }
        let offload = Offload::from_bytes(all[..10].try_into().unwrap());
        (offload, all.split_off(HEADER_BYTES), buffers)
    }

    fn written(&self, head: u16, bytes: u32) -> Vec<u8> {
        let mut all = vec![0; bytes as usize];
        self.memory.read_slice(&mut all, GuestAddress(self.buffer(RX, head))).unwrap();
        all
    }
}

/// Waits until `fd` can be read.
pub fn wait(fd: BorrowedFd<'_>, ms: u16) -> bool {
    poll(&mut [PollFd::new(fd, PollFlags::POLLIN)], PollTimeout::from(ms)).unwrap() > 0
}

/// A front-end's connection.
pub struct FrontEnd {
    pub stream: UnixStream,
}

impl FrontEnd {
    pub fn connect(path: &Path) -> FrontEnd {
        let stream = UnixStream::connect(path).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        FrontEnd { stream }
    }

    /// A connection that has handed over the rings of `vm`.
    pub fn with(path: &Path, vm: &Vm) -> FrontEnd {
        let mut front_end = FrontEnd::connect(path);
        front_end.negotiate(vm);
        front_end.start(vm, FEATURES);
        front_end
    }

    /// What QEMU sends when it connects.
    pub fn negotiate(&mut self, vm: &Vm) {
        assert_eq!(self.ask(GET_FEATURES, &[]) & FEATURES, FEATURES);
        let protocol = self.ask(GET_PROTOCOL_FEATURES, &[]);
        self.tell(SET_PROTOCOL_FEATURES, &protocol.to_ne_bytes(), &[]);
        self.tell(SET_OWNER, &[], &[]);
        for index in [RX, TX] {
            self.tell(SET_VRING_CALL, &(index as u64).to_ne_bytes(), &[vm.rings[index].call.as_fd()]);
            self.tell(SET_VRING_ERR, &(index as u64).to_ne_bytes(), &[vm.rings[index].err.as_fd()]);
        }
    }

    /// What QEMU sends when the driver is ready: the enabling comes first.
    pub fn start(&mut self, vm: &Vm, features: u64) {
        for index in [RX, TX] {
            self.tell(SET_VRING_ENABLE, &state(index, 1), &[]);
        }
        self.tell(SET_FEATURES, &features.to_ne_bytes(), &[]);
        self.confirm(SET_MEM_TABLE, &mem_table(), &[vm.file.as_fd()]);
        for index in [RX, TX] {
            self.tell(SET_VRING_NUM, &state(index, u32::from(RING)), &[]);
            self.tell(SET_VRING_BASE, &state(index, u32::from(vm.used_index(index))), &[]);
            self.tell(SET_VRING_ADDR, &addr(index), &[]);
            self.tell(SET_VRING_KICK, &(index as u64).to_ne_bytes(), &[vm.rings[index].kick.as_fd()]);
        }
        self.sync();
    }

    /// What QEMU sends when the driver goes away. Returns where the rings stopped.
    pub fn stop(&mut self) -> [u64; 2] {
        [RX, TX].map(|index| self.ask(GET_VRING_BASE, &state(index, 0)) >> 32)
    }

    pub fn tell(&mut self, code: u32, payload: &[u8], fds: &[BorrowedFd<'_>]) {
        self.send(code, 1, payload, fds);
    }

    /// Sends a request and waits for the answer that it always has.
    pub fn ask(&mut self, code: u32, payload: &[u8]) -> u64 {
        self.send(code, 1, payload, &[]);
        self.reply(code)
    }

    /// Sends a request and waits for its acknowledgement.
    pub fn acknowledged(&mut self, code: u32, payload: &[u8], fds: &[BorrowedFd<'_>]) -> bool {
        self.send(code, 1 | 1 << 3, payload, fds);
        self.reply(code) == 0
    }

    fn confirm(&mut self, code: u32, payload: &[u8], fds: &[BorrowedFd<'_>]) {
        assert!(self.acknowledged(code, payload, fds), "request {code} is refused");
    }

    /// Waits until everything before is served.
    pub fn sync(&mut self) {
        self.ask(GET_FEATURES, &[]);
    }

    /// Whether the port has closed the connection.
    pub fn closed(&mut self) -> bool {
        matches!(self.stream.read(&mut [0; 64]), Ok(0) | Err(_))
    }

    fn reply(&mut self, code: u32) -> u64 {
        let mut bytes = [0; 20];
        self.stream.read_exact(&mut bytes).expect("the port answers");
        assert_eq!(bytes[..12], [&code.to_ne_bytes()[..], &5u32.to_ne_bytes(), &8u32.to_ne_bytes()].concat());
        u64::from_ne_bytes(bytes[12..].try_into().unwrap())
    }

    fn send(&mut self, code: u32, flags: u32, payload: &[u8], fds: &[BorrowedFd<'_>]) {
        let size = u32::try_from(payload.len()).unwrap();
        let bytes = [&code.to_ne_bytes()[..], &flags.to_ne_bytes(), &size.to_ne_bytes(), payload].concat();
        self.send_raw(&bytes, fds).unwrap();
    }

    pub fn send_raw(&mut self, bytes: &[u8], fds: &[BorrowedFd<'_>]) -> std::io::Result<()> {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(64))];
        let mut ancillary = SendAncillaryBuffer::new(&mut space);
        if !fds.is_empty() {
            assert!(ancillary.push(SendAncillaryMessage::ScmRights(fds)));
        }
        sendmsg(&self.stream, &[IoSlice::new(bytes)], &mut ancillary, SendFlags::NOSIGNAL)?;
        Ok(())
    }
}

/// The payload that names a vring and a number.
pub fn state(index: usize, number: u32) -> Vec<u8> {
    [(index as u32).to_ne_bytes(), number.to_ne_bytes()].concat()
}

/// The payload that says where a ring lies, in the front-end's addresses.
pub fn addr(index: usize) -> Vec<u8> {
    let base = USER_BASE + index as u64 * RING_BYTES;
    let words = [index as u64, base, base + USED, base + AVAILABLE, 0];
    words.iter().flat_map(|word| word.to_ne_bytes()).collect()
}

/// The memory table of one region.
pub fn mem_table() -> Vec<u8> {
    mem_table_of(&[[GUEST_BASE, MEMORY_BYTES, USER_BASE, OFFSET]])
}

pub fn mem_table_of(regions: &[[u64; 4]]) -> Vec<u8> {
    let mut bytes = (regions.len() as u64).to_ne_bytes().to_vec();
    regions.iter().flatten().for_each(|word| bytes.extend(word.to_ne_bytes()));
    bytes
}
