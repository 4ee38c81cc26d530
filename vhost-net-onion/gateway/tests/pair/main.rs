//! The gateway against a VM's whole TCP/IP stack, in simulated time, over a link that may lose, repeat and reorder.

#![allow(clippy::unwrap_used, reason = "what a test expects and does not get fails it")]

mod bounds;
mod close;
mod connect;
mod driver;
mod hostile;
mod icmp_errors;
mod identity;
mod inbound;
mod optimistic;
mod proxies;
mod raw;
mod raw_v6;
mod resolver;
mod services;
mod services_v6;
mod states;
mod tcp_v6;
mod transfer;
mod world;
