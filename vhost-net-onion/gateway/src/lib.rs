//! The network that one VM sees: a gateway in user space, without I/O.
//!
//! Every VM has a gateway of its own, and every gateway looks the same: the VM is 10.0.2.15, the gateway 10.0.2.2; over
//! IPv6 the VM is whatever it likes of fd6f:6874:1::/64, the gateway fd6f:6874:1::2 and, as the router, fe80::1. Behind it
//! is everything that Tor can reach by TCP. The *pump* around it feeds it frames of the VM, takes frames and
//! events from it, and moves bytes between its flows and Tor streams. Time is what the pump says it is, randomness what
//! it brought as a seed: so whole networks are tested in microseconds.
//!
//! ```text
//!              frames                                    events, bytes
//!   VM  ─ handle_frame ─▶ ┌──────────────────────────┐ ─ poll_event ─▶     pump ─▶ Tor
//!       ◀─ poll_frame ─── │ gateway                  │ ◀─ connected, failed, open
//!                         │ arp ndp dhcp dns ntp icmp│ ◀─ send, finish, reset
//!    clock ─ poll_timeout │ tcp: demultiplexer, flows│ ── recv ─▶
//!          ─ handle_timeout └────────────────────────┘
//! ```
//!
//! After every call that takes `now`, the pump takes events until [`Gateway::poll_event`] returns none, frames until
//! [`Gateway::poll_frame`] returns none, and asks [`Gateway::poll_timeout`] when to come back.
//!
//! # What is served, and what becomes of the rest
//!
//! | from the VM | what happens |
//! | --- | --- |
//! | ARP, neighbour discovery for the gateway | answered (`arp`, `ndp`) |
//! | router solicitation | answered with the prefix and the DNS server; that is also sent now and then (`ndp`) |
//! | DHCPv4 | one lease (`dhcp`) |
//! | DNS over UDP to the gateway | every name gets addresses of its own, made up (`dns`, `names`) |
//! | NTP, the time protocol to the gateway | the time that the pump told (`ntp`, `time`) |
//! | TCP to a made-up address, or to any remote address | a flow; its SYN is answered when the far end has accepted (`tcp`) |
//! | TCP to the gateway: DNS, SOCKS5, HTTP's CONNECT | accepted at once; a proxy's request becomes a flow (`service`) |
//! | HTTP to the gateway: who the VM is | a question for the pump (`service::identity`) |
//! | TCP to the gateway's other ports, any segment of no flow | RST, but for answers to a connection that the pump wanted ([`Gateway::open`]) |
//! | TCP to a made-up address that stands for no name, to the VM's own network, to link-local addresses | ICMP host unreachable |
//! | ICMP echo to the gateway | answered (`icmp`, `icmpv6`) |
//! | errors of ICMP about a segment of a flow | the flow is reset, or sends smaller segments (`tcp`) |
//! | ICMP echo elsewhere | ICMP communication administratively prohibited (RFC 1812, section 5.2.7.1, code 13; RFC 4443, code 1) |
//! | UDP elsewhere | ICMP port unreachable: QUIC falls back to TCP at once |
//! | other IP protocols | ICMP protocol unreachable, ICMPv6 parameter problem |
//! | fragments, broken packets, wrong senders, groups, loopback | dropped, counted by reason ([`Counters`]) |
//!
//! # Invariants
//!
//! - The VM is hostile. Every header is checked before it is used; nothing it sends panics, loops, or costs more than
//!   O(log of the bounds); every table and queue has a bound in [`Config`].
//! - One frame in causes at most one answer out, and the TCP that its acknowledgements allow.
//! - TCP waits until the pump takes its frames, and the VM waits when the pump does not `recv`: nothing is dropped.

use std::{
    net::IpAddr,
    sync::Arc,
    time::{Duration, Instant},
};

mod address;
mod arp;
mod asks;
mod checksum;
mod clock;
pub mod config;
pub mod counters;
mod credential;
mod dhcp;
mod dispatch;
mod dns;
mod frame;
mod icmp;
mod icmpv6;
mod ip;
mod ipv4;
mod ipv6;
mod lists;
mod names;
mod ndp;
mod ntp;
mod outbox;
mod policy;
mod random;
mod resolver;
mod service;
mod tcp;
mod time;
mod timers;
mod udp;

use bytes::Bytes;
use smoltcp::wire::{EthernetFrame, EthernetProtocol};
use wire::{
    identity::{Answer, Question},
    link::{Abilities, Offload},
};

use self::{
    asks::Asks,
    clock::Clock,
    config::GATEWAY_MAC,
    names::Names,
    ndp::Advertiser,
    outbox::Outbox,
    resolver::{Asker, Resolver},
    service::table::Services,
    tcp::{Around, Tcp},
};
pub use self::{
    config::Config,
    counters::Counters,
    credential::Credential,
    frame::{Frame, Head},
    policy::Policy,
};

/// Names one flow, that is one TCP connection of the VM. Never used twice by one gateway.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FlowId(u64);

/// Names one question of the VM. Never used twice by one gateway.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct QueryId(u64);

/// Names one question of the VM about itself. Never used twice by one gateway.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct AskId(u64);

/// Why a name has no addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unresolved {
    /// There is no such name. The VM is told that (NXDOMAIN), and keeps it in mind for a minute.
    NoSuchName,
    /// It could not be found out. The VM is told that the server failed, and asks again.
    Failed,
}

/// Where a flow goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    /// The host.
    pub host: Host,
    /// The TCP port, never 0.
    pub port: u16,
}

/// A host as the VM knows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Host {
    /// A name that the VM asked the DNS for: lower case, no final dot, labels of letters, digits, `-` and `_`, never
    /// something that reads as an address.
    Name(String),
    /// An address that the VM knew from elsewhere: unicast, neither loopback nor link-local, but possibly private.
    Address(IpAddr),
}

/// Why the stream of a flow could not be opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Failure {
    /// The far end refused. The VM gets an RST.
    Refused,
    /// There is no way to the far end, or the name does not exist. The VM gets an ICMP host unreachable.
    Unreachable,
    /// Nothing was heard. The VM hears nothing either.
    TimedOut,
}

/// What the pump is to do next.
///
/// Every flow that the VM begins is told with `Connect`; one to the VM begins with [`Gateway::open`], and `Accepted` or
/// `Declined` says what the VM answered. Every flow ends with exactly one `Closed`, whoever ended it; between the two come the
/// others. `Closed` without `Finished` before it means that the flow broke off.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// Open a stream to the target, then call [`Gateway::connected`] or [`Gateway::failed`].
    Connect {
        /// The new flow.
        flow: FlowId,
        /// Where it goes.
        target: Target,
        /// What a program gave the gateway's proxy. Flows of different ones must never share a circuit.
        credential: Option<Credential>,
    },
    /// The VM has accepted a connection that [`Gateway::open`] asked for: it is open like any other.
    Accepted(FlowId),
    /// The VM refuses such a connection, or does not answer. `Closed` follows.
    Declined(FlowId, Failure),
    /// [`Gateway::recv`] has bytes. Comes again only after `recv` returned all there were, and then more came.
    Readable(FlowId),
    /// [`Gateway::send`] takes bytes again, after it took less than it was offered.
    Writable(FlowId),
    /// The VM has sent its last byte (FIN), and `recv` has returned it: shut the stream down for writing.
    Finished(FlowId),
    /// The flow is gone and its number means nothing any more. Drop the stream, after what was written to it has been
    /// flushed if the flow was `Finished`.
    Closed(FlowId),
}

/// The network of one VM.
#[derive(Debug)]
pub struct Gateway {
    tcp: Tcp,
    services: Services,
    names: Names,
    resolver: Resolver,
    asks: Asks,
    policy: Arc<dyn Policy>,
    advertiser: Advertiser,
    /// The time of day, once the pump has told it.
    clock: Option<Clock>,
    errors: icmp::Errors,
    outbox: Outbox,
    counters: Counters,
    /// The latest instant that the pump has told.
    now: Instant,
    /// The frame that is handled, if it may be kept.
    frame: Option<Bytes>,
}

impl Gateway {
    /// A gateway that has seen nothing yet. Everything random in it comes from `seed`.
    #[must_use]
    pub fn new(config: Config, seed: [u8; 32], now: Instant) -> Gateway {
        let (keys, _) = seed.as_chunks::<8>();
        let seed: [u64; 4] = std::array::from_fn(|n| u64::from_le_bytes(keys[n]));
        Gateway {
            names: Names::new(config.names_max, seed),
            services: Services::new(config.half_open_max),
            resolver: Resolver::default(),
            asks: Asks::new(now),
            policy: Arc::clone(&config.policy),
            advertiser: Advertiser::new(seed[1], now),
            clock: None,
            errors: icmp::Errors::new(now),
            outbox: Outbox::new(config.frames_max),
            counters: Counters::default(),
            // Not the seed of the addresses itself: what the VM sees of one says nothing of the other.
            tcp: Tcp::new(&config, tcp::keys(seed, 1), tcp::keys(seed, 2), now),
            now,
            frame: None,
        }
    }

    /// Takes an Ethernet frame from the VM. `offload` tells what the VM's driver left to do.
    pub fn handle_frame(&mut self, now: Instant, offload: Offload, frame: &[u8]) {
        self.now = now;
        self.counters.frames_in += 1;
        let Ok(frame) = EthernetFrame::new_checked(frame) else {
            self.counters.dropped_malformed += 1;
            return;
        };
        if !frame.src_addr().is_unicast() {
            self.counters.dropped_source += 1;
            return;
        }
        let to_group = !frame.dst_addr().is_unicast();
        if frame.dst_addr() != GATEWAY_MAC && !to_group {
            self.counters.dropped_destination += 1;
            return;
        }
        if self.outbox.vm_is_at(frame.src_addr()) {
            self.with_tcp(now, |tcp, around| tcp.vm_appeared(around));
        }
        match frame.ethertype() {
            EthernetProtocol::Arp => arp::handle(frame.payload(), &mut self.outbox, &mut self.counters),
            EthernetProtocol::Ipv4 => self.handle_ipv4(now, offload, frame.payload(), to_group),
            EthernetProtocol::Ipv6 => self.handle_ipv6(now, offload, frame.payload(), to_group),
            EthernetProtocol::Unknown(_) => self.counters.dropped_ethertype += 1,
        }
    }

    /// Takes an Ethernet frame from the VM, as [`Gateway::handle_frame`] does, and may keep it until the pump has taken
    /// what it carries: that spares a copy. Meant for long frames in buffers that are not much longer.
    pub fn handle_owned_frame(&mut self, now: Instant, offload: Offload, frame: Bytes) {
        self.frame = Some(frame.clone());
        self.handle_frame(now, offload, &frame);
        self.frame = None;
    }

    /// Runs what is due.
    pub fn handle_timeout(&mut self, now: Instant) {
        self.with_tcp(now, |tcp, around| tcp.handle_timeout(around));
        self.advertiser.handle_timeout(now, &mut self.outbox, &mut self.counters);
    }

    /// When [`Gateway::handle_timeout`] is due next. An instant that has passed means now.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Instant> {
        self.tcp.first_timer().into_iter().chain([self.advertiser.due()]).min()
    }

    /// Tells the time of day, since 1970, for the VMs that ask for it. To be told again when the pump's clock was set, and
    /// now and then: until it is told, the VM hears that it is not known, and the longer ago, the less is made of it.
    pub fn set_clock(&mut self, now: Instant, unix: Duration) {
        self.clock = Some(Clock::new(now, unix));
    }

    /// What the VM's driver can receive from now on besides complete frames of its MTU; nothing until this is called.
    pub fn set_abilities(&mut self, abilities: Abilities) {
        self.tcp.set_abilities(abilities);
    }

    /// Takes the next frame to the VM. Segments of TCP are made only now, so they wait in no queue: whoever has no room
    /// for a frame leaves it here.
    pub fn poll_frame(&mut self) -> Option<Frame> {
        let Gateway { tcp, outbox, counters, now, .. } = self;
        // In turn, so that answers to a flood do not keep the flows from going on.
        let answer = if outbox.is_next() { outbox.pop() } else { None };
        answer.or_else(|| tcp.poll_frame(*now, outbox, counters)).or_else(|| outbox.pop())
    }

    /// Takes the next thing that the pump must do. This can make frames.
    pub fn poll_event(&mut self) -> Option<Event> {
        loop {
            if let Some(event) = self.services.poll_event() {
                return Some(event);
            }
            let event = self.tcp.poll_event()?;
            if let Some(event) = self.serve(event) {
                return Some(event);
            }
        }
    }

    /// Connects to a TCP port of the VM, from the gateway's address. The answer is [`Event::Accepted`] or
    /// [`Event::Declined`]. `None` when there are too many such flows ([`Config::inbound_max`]).
    #[must_use]
    pub fn open(&mut self, now: Instant, port: u16) -> Option<FlowId> {
        self.with_tcp(now, |tcp, around| tcp.call(around, port))
    }

    /// The stream of a flow is open: now the VM's connect succeeds.
    pub fn connected(&mut self, now: Instant, flow: FlowId) {
        self.now = now;
        if self.services.contains(flow) {
            return self.service_connected(flow);
        }
        self.with_tcp(now, |tcp, around| tcp.connected(around, flow));
    }

    /// The stream of a flow could not be opened. If it was open, this is [`Gateway::reset`].
    pub fn failed(&mut self, now: Instant, flow: FlowId, why: Failure) {
        self.now = now;
        if self.services.contains(flow) {
            return self.service_failed(now, flow, why);
        }
        self.with_tcp(now, |tcp, around| tcp.failed(around, flow, why));
    }

    /// Takes bytes on their way to the VM from the front of `data`. When it leaves some, [`Event::Writable`] says when
    /// to go on.
    pub fn send(&mut self, now: Instant, flow: FlowId, data: &mut Bytes) {
        self.now = now;
        if self.services.contains(flow) {
            return self.service_send(now, flow, data);
        }
        self.with_tcp(now, |tcp, around| tcp.send(around, flow, data));
    }

    /// The far end has sent its last byte: the VM gets a FIN after all data.
    pub fn finish(&mut self, now: Instant, flow: FlowId) {
        self.now = now;
        if self.services.contains(flow) {
            return self.service_finish(flow);
        }
        self.with_tcp(now, |tcp, around| tcp.finish(around, flow));
    }

    /// The stream broke: the VM gets an RST, at once, before data that is still on its way.
    pub fn reset(&mut self, now: Instant, flow: FlowId) {
        self.with_tcp(now, |tcp, around| tcp.reset(around, flow));
    }

    /// Takes bytes that came from the VM, if there are any. This is what opens the VM's window again.
    pub fn recv(&mut self, now: Instant, flow: FlowId) -> Option<Bytes> {
        self.now = now;
        if self.services.contains(flow) {
            return self.service_recv(now, flow);
        }
        self.with_tcp(now, |tcp, around| tcp.recv(around, flow))
    }

    /// Takes the next name that the VM wants resolved, a name as in [`Host::Name`] that is no onion service's: find its
    /// addresses, then call [`Gateway::resolved`]. There is one only where [`Policy::resolves`] says so.
    pub fn poll_question(&mut self) -> Option<(QueryId, String)> {
        self.resolver.poll()
    }

    /// The addresses of a name, of both versions; none if it has none. A question is answered once, and only by this.
    pub fn resolved(&mut self, now: Instant, query: QueryId, found: Result<&[IpAddr], Unresolved>) {
        self.now = now;
        let Some((question, asker)) = self.resolver.take(query) else { return };
        match (asker, question.answer(found)) {
            (Asker::Udp(vm, own), Some(answer)) => self.reply_by_udp(own, vm, &answer),
            (Asker::Udp(..), None) => {}
            (Asker::Tcp(flow), answer) => self.service_resolved(flow, answer.as_deref()),
        }
    }

    /// Takes the next question of the VM about itself: find the answer, then call [`Gateway::answered`].
    pub fn poll_ask(&mut self) -> Option<(AskId, Question)> {
        self.asks.poll()
    }

    /// Answers a question of the VM about itself, once.
    pub fn answered(&mut self, now: Instant, ask: AskId, answer: &Answer) {
        self.now = now;
        if let Some(flow) = self.asks.take(ask) {
            self.service_answered(flow, answer);
        }
    }

    /// What has been counted since the beginning.
    #[must_use]
    pub fn counters(&self) -> &Counters {
        &self.counters
    }

    /// How many flows there are now, in every state.
    #[must_use]
    pub fn flows(&self) -> usize {
        self.tcp.len()
    }

    fn with_tcp<R>(&mut self, now: Instant, act: impl FnOnce(&mut Tcp, &mut Around<'_>) -> R) -> R {
        self.now = now;
        let Gateway { tcp, names, errors, outbox, counters, frame, .. } = self;
        act(tcp, &mut Around { now, outbox, counters, errors, names, frame: frame.as_ref() })
    }
}
