//! Routes: which connections of which VMs go where, and which go nowhere. No I/O.
//!
//! A route is a line, `source target action`. The first line that matches a connection decides about it; where none does
//! it goes through Tor, as `tor` says. The host agent reads lines ([`parse()`]), checks them ([`check()`]) and explains
//! decisions ([`explain()`]); they cross the control link as structures ([`RoutesPart`]); the router compiles them
//! ([`RouteTable`]) and decides by what is compiled for each VM ([`VmRoutes::decide`]).
//!
//! ```text
//! # The bank sees an exit of its country, and always its own circuit.
//! bank    .bank.example            tor isolate=destination exit=CH,LI
//! # Two VMs meet onion services only.
//! work-*  *                        onion-only
//! # No VM reaches this name or any name below it, and mail leaves nobody.
//! *       .tracker.example         block
//! *       :25,465,587              block drop
//! # A site that refuses exits is reached through a proxy behind Tor.
//! web     shop.example:443         via socks5://me:secret@proxy.example:1080 exit!=US
//! ```
//!
//! # Lines
//!
//! Words stand apart by spaces or tabs. A word that begins with `#` begins a comment. Lines without words mean nothing. A
//! line has at most [`LINE_BYTES_MAX`] bytes, and there are at most [`ROUTES_MAX`] routes.
//!
//! | source | the VMs |
//! | --- | --- |
//! | `*` | all |
//! | `web` | this one |
//! | `work-*`, `*-test` | whose names match; `*` stands for any number of any characters, none too |
//!
//! | target | the hosts |
//! | --- | --- |
//! | `*` | all names and all addresses |
//! | `example.org` | this name, not those below it |
//! | `.example.org` | this name and all names below it |
//! | `.onion`, `*.onion` | all onion services; other names are not written with `*.`, which some take to mean the name itself too and some not |
//! | `192.0.2.1`, `2001:db8::1` | this address |
//! | `192.0.2.0/24`, `2001:db8::/32` | the addresses of this prefix |
//! | `TARGET:443`, `TARGET:22,80`, `TARGET:8000-8100` | these TCP ports of it, 1 to 65535 |
//! | `:443` | these ports of all hosts, as `*:443` |
//! | `[2001:db8::1]:443`, `[2001:db8::/32]:443` | the same for IPv6, in brackets; without them `2001:db8::1:443` is an address |
//!
//! Case and a final dot mean nothing in a name; other scripts than Latin may be used ([`HostName`]).
//!
//! **A route by address never matches a name**, nor a route by name an address. A VM that asks the gateway's DNS gets an
//! address that was made up for the name, and what it then connects to is the name; the exit resolves it, and nobody here
//! knows the address. What the VM connects to is an address only if it had it from elsewhere, or from a DNS answer by a
//! line with `resolve`. So a block of a site is complete if it names the name, and the addresses too.
//!
//! | action | what happens |
//! | --- | --- |
//! | `tor` | goes through Tor; need not be written if an option is |
//! | `onion-only` | onion services are reached; every other target is refused, as by `block reject` |
//! | `via socks5://HOST:PORT` | leaves Tor to this SOCKS5 proxy, which connects to the target ([`Hop`]); options as for `tor` |
//! | `block`, `block reject` | is refused at once, by a RST |
//! | `block drop` | is met with silence |
//!
//! | option | of | what it says |
//! | --- | --- | --- |
//! | `isolate=vm` | `tor`, `via`, `onion-only` | all streams of the VM share a circuit, whatever SOCKS user they have |
//! | `isolate=destination` | `tor`, `via`, `onion-only` | streams share one only if host and SOCKS user are the same |
//! | `isolate=credential` | `tor`, `via`, `onion-only` | streams share one only if their SOCKS user is the same |
//! | `exit=CH,LI` | `tor`, `via` | leaves Tor in one of these countries (ISO 3166-1 alpha-2), or fails |
//! | `exit!=US` | `tor`, `via` | leaves Tor in another country than these, or fails |
//! | `optimistic` | `tor`, `via`, `onion-only` | the VM's connection is answered before the far end has accepted |
//! | `resolve` | `tor`, `via` | the gateway's DNS answers with real addresses, looked up at an exit ([`VmRoutes::resolves`]) |
//!
//! Without `isolate` the router does as it does without routes: streams of different SOCKS users share no circuit; those
//! of one user are spread over up to eight circuits, where a destination keeps its circuit while that carries few
//! streams. Streams of two VMs never share one, whatever a line says.
//!
//! To an onion service no exit leads, and nobody but it is to learn its name: `exit` and `via` in a line for `*` do not
//! apply to it, and [`explain()`] says so. A target that is onion services only, and has `exit`, `via` or `resolve`, is an
//! error, as are other combinations without a meaning ([`Conflict`]).
//!
//! A line with `resolve` decides about the DNS question. The VM then connects to an address, and lines about addresses
//! decide about that.
//!
//! # What a decision costs
//!
//! For a name, a look-up by hash for each number of labels that the names of lines have: three where they have two, three
//! and four. For an address, a binary search. Both in the lines for all VMs and in those for this one. Nothing is
//! allocated. It is done once for each connection, never for a packet. `wire/examples/routes.rs` measures it.
//!
//! # Changing routes
//!
//! A table is never changed; there is a new one, and open connections are asked about by [`VmRoutes::keeps`].

mod action;
mod check;
mod decision;
mod exit;
mod explain;
mod hop;
mod host_name;
mod index;
mod line;
mod names;
mod parse;
mod port_lists;
mod ports;
mod prefix;
mod problem;
mod ranges;
mod source;
mod table;
mod target;
mod transfer;

pub use action::{Action, Block, Isolation, StreamOptions, TorOptions};
pub use check::{COVERING_MAX, Finding, check};
pub use decision::{Decision, Destination, Host, Verdict};
pub use exit::{COUNTRIES_MAX, Countries, Country, Exit};
pub use explain::{Explanation, MISSES_MAX, Miss, Note, Reason, explain};
pub use hop::{Hop, HopHost, Login};
pub use host_name::{HOST_NAME_BYTES_MAX, HostName, HostNameError};
pub use line::{Line, Route};
pub use parse::{ERRORS_MAX, parse};
pub use ports::{PORT_RANGES_MAX, Ports};
pub use prefix::Prefix;
pub use problem::{Conflict, ParseError, Problem};
pub use source::Source;
pub use table::{RouteTable, VmRoutes};
pub use target::{Place, Target};
pub use transfer::{Assembly, PART_ROUTES_MAX, PartError, RoutesPart, parts};

/// Routes that a table has at most.
pub const ROUTES_MAX: usize = 20_000;

/// Bytes of the longest line: the longest route that can be written, with a comment behind it.
pub const LINE_BYTES_MAX: usize = 4096;
