//! The only user of arti: a Tor client whose every TCP connection goes through a dialler of ours.
//!
//! Arti takes a runtime that provides its TCP. Ours ([`dialler`]) has no sockets: it hands each connection to a
//! [`Dial`], which inside the router VM opens a stream of the uplink, and in embedded mode a plain TCP connection. So
//! there is one place where bytes can leave, and the VM needs no IP stack.
//!
//! One [`Onion`] is one Tor client: one directory, one set of guards. [`Onion::vm_client`] gives each VM a client of
//! its own that shares those and never a circuit. A [`VmClient`] opens [`OnionStream`]s, spread over several circuits
//! (`circuits` says which may share one), and says why it could not ([`ConnectError`]), in the three ways that a VM can
//! be told: refused, unreachable, no answer.
//!
//! [`Onion::publish`] runs an onion service, whose streams ([`ServiceStream`]) wait until somebody accepts them. Its
//! secrets are in memory only (arti's ephemeral keystore): nothing of them is written to the state directory.
//!
//! This crate is thin on purpose: arti takes minutes to build, and what builds on this crate should not. So its futures
//! and streams come in boxes: an `async fn` is compiled where it is awaited, and with it the arti inside it.

mod circuits;
mod client;
mod countries;
mod dialler;
mod discovery;
mod entry;
mod exits;
mod failure;
mod network;
mod probe;
mod service;
mod stream;
mod target;
mod vm;
mod way;

pub use circuits::Credential;
pub use client::{Onion, OnionError, Settings, Status};
pub use dialler::{Dial, DialledStream};
pub use failure::{ConnectError, ResolveError};
pub use network::public_network;
pub use service::{OnionService, Refusal, ServiceError, ServiceStatus, ServiceStream};
pub use stream::{CircuitInfo, OnionStream};
pub use vm::{CircuitOf, Usage, VmClient};
pub use way::Way;
