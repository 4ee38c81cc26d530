//! The port: the vhost-user virtio-net back-end of one VM. It moves opaque frames between the VM's vrings and whoever
//! carries them on, and never looks into them.
//!
//! # Who calls it
//! The program `oht-port`, one process per VM, started by the host agent with two listening sockets, calls [`serve`]:
//! the carrier is one byte stream, the frame link of [`wire::link`]. In embedded mode the router program itself drives a
//! [`Port`]: it takes and puts the frames without a stream between them. Control plane, rings and copying are the same.
//!
//! ```text
//!  QEMU ── vhost-user ──► control ─ session ─ device ─ memory, vrings
//!                                  ┌─ fetch ───┬─ tx ──► link ──► router
//!  VM  ◄═ shared rings ═► ring ────┤           └─ in_process ◄──► gateway in the same process
//!                                  └─ deliver ─┬─ in_process
//!                                              └─ rx ◄── link ◄── router
//! ```
//!
//! # Offloads
//! The driver may leave checksums and segmentation to the device, and take frames for which they were left to it
//! (`CSUM`, `HOST_TSO4/6`, `GUEST_CSUM`, `GUEST_TSO4/6`). The port does neither: the offload fields cross the link with
//! the frame, and the gateway, which ends the VM's connections, needs no checksum of a lossless path and no segments.
//! What the driver can receive is told to the router, after the link's hello and whenever it changes; a frame that asks
//! for more never reaches the driver.
//!
//! # How it works
//! One thread, one epoll, no allocation for a frame. Front-ends (QEMU) are served one after the other; each begins
//! with a blank device. Links come and go on their own: one that says its hello rightly replaces the one before it,
//! because a router that was restarted may leave a half-dead stream behind.
//!
//! *tx* (VM to router): chains are copied out of guest memory once, checked in the copy, and collected into one buffer
//! of link messages that is written with few large writes. A chain is completed only when its message has been
//! written, in order. So a full stream leaves the chains in the ring (back-pressure, nothing is dropped); a kill -9
//! leaves in the ring what was not written, and the successor begins at the used index and sends it again; a lost link
//! does the same. What can happen to a frame across a restart is that it arrives twice, as on any Ethernet.
//!
//! *rx* (router to VM): frames are written to as many chains as they need and become visible to the driver all at
//! once. When the driver has no buffers, the port stops reading the link until the driver kicks. Without a driver there
//! is nobody to wait for: frames are dropped and counted.
//!
//! # What it costs
//! Batches grow with the load by themselves: what the driver adds while the last batch is written makes the next one,
//! and one read brings all that the stream holds. System calls for a frame, all of them (epoll, the stream, signals to
//! the driver), and CPU time, from the example `link_cost` on a loaded machine with two cores:
//!
//! | frame | tx, bulk | rx, bulk | one at a time | CPU, bulk |
//! | --- | --- | --- | --- | --- |
//! | 64 B | 0.01 | 0.02 | 2.6 tx, 3 rx | 0.23 to 0.46 µs |
//! | 1514 B | 0.06 | 0.03 | not traced | 0.43 to 0.66 µs |
//! | 65,000 B | 1.2 | 1.3 | 2.9 tx, 3.1 rx | 6 to 18 µs tx, 15 to 19 µs rx |
//!
//! Three are the least that one frame alone can have: wait, move, signal. The long frames are two copies, one through
//! the socket. In-process there are no calls but the wait and the signal of a batch, and one copy.
//!
//! # Why an own message loop
//! `vhost-user-backend` refuses QEMU's `SET_VRING_ENABLE` before `SET_FEATURES` in every published version. A relay in
//! front of it that corrects the order works, but needs a second socket, a thread, and a new daemon per connection, and
//! brings its own leaks. The messages that a network device needs are few: `message` and `device` are shorter
//! than the relay with its workarounds. The rings' vocabulary and the mapped memory are `virtio-queue`'s and
//! `vm-memory`'s.
//!
//! # What is hostile
//! The guest writes the rings at any time; the front-end sends any message; the router sends any bytes.
//! - Memory regions must lie within their file, rings within the regions; a ring's size, addresses
//!   and features are frozen when it starts. A broken ring is stopped and counted, and waits to be set up again.
//! - Every field is fetched once. Chains have at most 1,024 descriptors, one pass over a ring is bounded.
//! - A front-end or a router that breaks its protocol loses its connection, never the process.
//! - A front-end that shortens a memory file that it has mapped here kills this process by SIGBUS: that is its own VM's
//!   port. QEMU's memfd is sealed against it.
//!
//! Specifications: "Vhost-user Protocol" of QEMU's documentation; virtio 1.2, sections 2.7 (split virtqueues) and 5.1
//! (network device).

mod backend;
mod control;
mod counters;
mod deliver;
mod device;
mod fetch;
mod in_process;
mod link;
mod listener;
mod memory;
mod message;
mod offload;
mod options;
mod poller;
mod ring;
mod rx;
mod session;
mod tx;

pub use backend::serve;
pub use counters::{Counters, DropReason};
pub use in_process::{Port, Put, TxFrame};
pub use options::{MTU_MAX, MTU_MIN, Options, PortError, Stop};
