//! What crosses vsock between the host and the router VM. No I/O: bytes in, meaning out, and back.
//!
//! The router VM opens every connection; the host listens. There are three kinds, told apart by the vsock port that
//! the router connects to, and each begins with a [`hello::Hello`] from the connecting side that the listening side
//! answers with its own:
//!
//! | vsock port | who connects | after the hello |
//! | --- | --- | --- |
//! | [`CONTROL_PORT`] | guest-init, router | length-prefixed JSON messages, [`control`] |
//! | [`UPLINK_PORT`] | router | one dial request, one answer, then the bytes of one TCP connection, [`uplink`] |
//! | from [`LINK_PORT_FIRST`] | router | the frames of one VM, both ways, [`link`] |
//!
//! [`route`] is the language of routes, and what decides by them: the host reads them and explains them, the router obeys
//! them.
//!
//! vhost-device-vsock turns a guest's connection to port P of the host into a connection to the AF_UNIX socket
//! `<uds-path>_P`. Everything here is bounded, and every bound stands beside the type it bounds. What the other side
//! sends is hostile until it has been parsed into one of these types.

pub mod bridge;
pub mod control;
pub mod entry;
pub mod hello;
pub mod identity;
pub mod link;
pub mod network;
pub mod onion;
pub mod route;
pub mod uplink;
pub mod vm_name;

pub use vm_name::VmName;

/// The version of everything in this crate. Both ends refuse another one: they are always built together.
pub const VERSION: u16 = 2;

/// The context identifier of the host, as seen from every guest (virtio 1.2, section 5.10.4).
pub const HOST_CID: u32 = 2;

/// vsock port of the control connections. Ports below 1024 are privileged in Linux guests.
pub const CONTROL_PORT: u32 = 1024;

/// vsock port of the uplink.
pub const UPLINK_PORT: u32 = 1025;

/// vsock port of the first VM's frame link; each VM has one of its own, from here upwards.
pub const LINK_PORT_FIRST: u32 = 2048;

/// How many VMs one router serves at most: its memory is planned for this many.
pub const VMS_MAX: usize = 64;
