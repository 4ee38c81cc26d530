//! The port between a front-end with a driver and a router, all of them real sockets, rings and memory.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]
#![allow(unreachable_pub, reason = "a test has no outside; `pub` means: for the other modules")]

mod allocations;
mod changes;
mod dpdk;
mod front_end;
mod hostile;
mod in_process;
mod offloads;
mod port;
mod recovery;
mod router;
mod traffic;
