//! The host agent: the daemon `host-agent`, the command `oht`, and the uplink process `oht-uplink`.
//!
//! The daemon starts and watches the router VM (QEMU, vsock device, virtiofsd: [`router_vm`]), the uplink ([`uplink`])
//! and one port per VM ([`agent`]), each started again when it ends ([`supervise`]). It tells the router which network
//! to use, which routes to obey ([`routes`]) and which VMs to serve ([`control`]), and serves an HTTP API on an AF_UNIX
//! socket ([`api`]), which the command uses ([`client`], [`cli`]). Onion services of VMs are defined here
//! ([`onion_services`]) and run by the router. It opens no network socket and never reads a frame.
//!
//! It holds the keys of this host and its VMs ([`keys`]), sealed in a store ([`store`]) or in memory.
//!
//! Invariants:
//! - One agent for each run directory and each state directory ([`lock`]).
//! - Listening sockets belong to the agent and are inherited by its children, so that whoever connects while a child is
//!   being restarted waits instead of failing.
//! - A killed agent's children live on; its successor ends and replaces them ([`children`]).
//! - What the router VM says is bounded, shown, and never believed about this host ([`relays`]).

pub mod accounts;
pub mod agent;
pub mod api;
pub mod attach;
pub mod backoff;
pub mod children;
pub mod cli;
pub mod client;
pub mod config;
pub mod control;
pub mod daemon;
pub mod entry;
pub mod events;
pub mod greeting;
pub mod hex;
pub mod identity;
pub mod image;
pub mod inherited;
pub mod keys;
pub mod lock;
pub mod log;
pub mod metrics;
pub mod model;
pub mod nature;
pub mod notify;
pub mod onion_services;
pub mod paths;
pub mod pidfd;
pub mod programs;
pub mod relays;
pub mod router_vm;
pub mod routes;
pub mod sockets;
pub mod spawn;
pub mod status;
pub mod store;
pub mod supervise;
pub mod sweep;
pub mod tokens;
pub mod transports;
pub mod uplink;
pub mod vms;
