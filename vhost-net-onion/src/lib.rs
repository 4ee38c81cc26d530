//! The data path of one VM, from its virtio rings to its Tor streams.
//!
//! ```text
//! VM ══ rings ══ port ══ link ══▶ Session { gateway ◀═▶ flow tasks } ══▶ Tor streams
//! ```
//!
//! - [`port`] moves opaque frames between the rings of one VM and a byte stream, the link. On the host, a process.
//! - [`gateway`] is the network that the VM sees. It does no I/O.
//! - [`onion`] opens Tor streams.
//! - [`Session`] is the pump between them: it owns the gateway of one VM, reads frames from the link and writes frames
//!   to it, and runs one task for each flow, which owns that flow's stream.
//! - [`VmRouting`] holds the routes of the VM: which streams may be opened, how they go, and which end when it changes.
//! - [`inbound`] is where streams that come to the VM wait for it to accept.
//! - [`embedded`] puts all of it into one process on the host, for development and for hosts that cannot nest.
//!
//! Back-pressure goes both ways through every stage. Towards the far end: a flow's task takes chunks from a bounded
//! channel; when it is full the session leaves the bytes in the gateway's socket, whose window closes. Towards the VM:
//! a flow's task reads from its stream only with credit, which it gets back when the gateway has taken the bytes; the
//! gateway stops making frames when its queue is full, and the session takes none while the link is.

pub mod carrier;
mod chunk;
pub mod egress;
pub mod embedded;
mod flow;
pub mod handshake;
mod hop;
pub mod inbound;
pub mod memory_vm;
mod routes;
mod session;
mod stats;

pub use carrier::{Arrival, Carrier, LinkError, StreamCarrier};
pub use egress::{Egress, Informant, Request, TorEgress};
pub use gateway;
pub use inbound::Inbound;
pub use onion;
pub use port;
pub use routes::{RoutedStream, VmRouting};
pub use session::Session;
pub use stats::{Stats, VmStats};
