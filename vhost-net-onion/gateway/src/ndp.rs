//! Neighbour discovery (RFC 4861) and what it takes for a VM to have addresses of its own (SLAAC, RFC 4862) and a DNS
//! server (RFC 8106).
//!
//! As with ARP, the gateway answers for its own addresses and for nothing else: a VM that looks whether somebody has
//! the address that it wants (duplicate address detection) hears nothing. The router is advertised when a VM asks, when
//! the gateway is new, and then every few minutes. The gateway asks for nobody: the VM is where its frames come from.
//!
//! No MTU is advertised: it would lower that of a VM whose device has a larger one.

use std::{
    net::{IpAddr, Ipv6Addr},
    time::{Duration, Instant},
};

use smoltcp::wire::EthernetAddress;

use crate::{
    config::{GATEWAY_ADDRESS_V6, GATEWAY_LINK_LOCAL, GATEWAY_MAC, PREFIX_BITS_V6, PREFIX_V6},
    counters::Counters,
    icmpv6::{self, Envelope},
    ip, ipv6,
    outbox::Outbox,
    random,
};

/// All nodes of the link, and their Ethernet address (RFC 2464, section 7).
pub(crate) const ALL_NODES: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);
pub(crate) const ALL_NODES_MAC: EthernetAddress = EthernetAddress([0x33, 0x33, 0, 0, 0, 1]);

/// All routers of the link.
pub(crate) const ALL_ROUTERS: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 2);

/// The first advertisements: how many, and how far apart (RFC 4861, section 10).
const INITIAL_ADVERTISEMENTS: u32 = 3;
const INITIAL_INTERVAL: Duration = Duration::from_secs(16);

/// The others are at a random distance of these seconds (MinRtrAdvInterval, MaxRtrAdvInterval; RFC 4861, section 6.2.1).
const INTERVAL_MIN_S: u64 = 198;
const INTERVAL_MAX_S: u64 = 600;

/// Seconds that the gateway is a router and a DNS server after the last advertisement: three of the longest intervals.
const LIFETIME_S: u16 = 1800;

/// Seconds that addresses of the prefix are valid, and preferred (RFC 4861, section 6.2.1).
const VALID_S: u32 = 30 * 24 * 60 * 60;
const PREFERRED_S: u32 = 7 * 24 * 60 * 60;

/// Message types.
const ROUTER_SOLICITATION: u8 = 133;
const ROUTER_ADVERTISEMENT: u8 = 134;
const NEIGHBOUR_SOLICITATION: u8 = 135;
const NEIGHBOUR_ADVERTISEMENT: u8 = 136;

/// Option types.
const SOURCE_LINK_ADDRESS: u8 = 1;
const TARGET_LINK_ADDRESS: u8 = 2;
const PREFIX_INFORMATION: u8 = 3;
const DNS_SERVERS: u8 = 25;

/// Flags of a neighbour advertisement: from a router, asked for, replaces what is known.
const ROUTER: u8 = 0x80;
const SOLICITED: u8 = 0x40;
const OVERRIDE: u8 = 0x20;

/// Hop limit of every message: nothing that passed a router has it.
const HOP_LIMIT: u8 = 255;

/// When the router is advertised without being asked.
#[derive(Debug)]
pub(crate) struct Advertiser {
    due: Instant,
    sent: u32,
    seed: u64,
}

impl Advertiser {
    /// The first advertisement is due at once: a VM that was here before the gateway learns of it.
    pub(crate) fn new(seed: u64, now: Instant) -> Advertiser {
        Advertiser { due: now, sent: 0, seed }
    }

    /// When the next one is due.
    pub(crate) fn due(&self) -> Instant {
        self.due
    }

    /// Sends one if it is due.
    pub(crate) fn handle_timeout(&mut self, now: Instant, outbox: &mut Outbox, counters: &mut Counters) {
        if now < self.due {
            return;
        }
        advertise_router(None, outbox, counters);
        self.sent = self.sent.saturating_add(1);
        let random = random::mix(self.seed ^ u64::from(self.sent));
        let distance = Duration::from_secs(INTERVAL_MIN_S + random % (INTERVAL_MAX_S - INTERVAL_MIN_S + 1));
        self.due = now + if self.sent < INITIAL_ADVERTISEMENTS { distance.min(INITIAL_INTERVAL) } else { distance };
    }
}

/// Answers a message of discovery from one of the VM's addresses or the unspecified one, if it is a question.
pub(crate) fn handle(packet: &ip::Packet<'_>, outbox: &mut Outbox, counters: &mut Counters) {
    let (IpAddr::V6(source), IpAddr::V6(destination)) = (packet.source, packet.destination) else { return };
    let [kind, code, ..] = packet.payload[..] else { return };
    let body_bytes = match kind {
        ROUTER_SOLICITATION => 8,
        NEIGHBOUR_SOLICITATION => 24,
        _ => {
            // The VM is no router, and where it is its frames tell.
            counters.dropped_icmp += 1;
            return;
        }
    };
    let options = packet.payload.get(body_bytes..).and_then(Options::parse);
    let Some(options) = options.filter(|_| code == 0 && ipv6::hop_limit(packet) == HOP_LIMIT) else {
        counters.dropped_malformed += 1;
        return;
    };
    // Who has no address yet cannot say where it is (RFC 4861, sections 6.1.1 and 7.1.1).
    if source.is_unspecified() && options.source_link_address {
        counters.dropped_malformed += 1;
        return;
    }
    if kind == ROUTER_SOLICITATION {
        return advertise_router((!source.is_unspecified()).then_some(source), outbox, counters);
    }
    let target: [u8; 16] = std::array::from_fn(|n| packet.payload[8 + n]);
    let target = Ipv6Addr::from(target);
    let is_broken = target.is_multicast() || (source.is_unspecified() && destination != solicited_node(target));
    if is_broken {
        counters.dropped_malformed += 1;
    } else if target == GATEWAY_ADDRESS_V6 || target == GATEWAY_LINK_LOCAL {
        advertise_neighbour(target, source, outbox, counters);
    }
}

/// The group that a node joins for each of its addresses (RFC 4291, section 2.7.1).
fn solicited_node(address: Ipv6Addr) -> Ipv6Addr {
    const BASE: u128 = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 1, 0xff00, 0).to_bits();
    Ipv6Addr::from_bits(BASE | address.to_bits() & 0xff_ffff)
}

/// Says that `target` is the gateway's: to `asker`, or to all if that has no address yet and wanted this one.
fn advertise_neighbour(target: Ipv6Addr, asker: Ipv6Addr, outbox: &mut Outbox, counters: &mut Counters) {
    let has_address = !asker.is_unspecified();
    let (mac, destination) = if has_address { (outbox.vm_mac(), asker) } else { (ALL_NODES_MAC, ALL_NODES) };
    let flags = ROUTER | OVERRIDE | if has_address { SOLICITED } else { 0 };
    let message = [
        &[NEIGHBOUR_ADVERTISEMENT, 0, 0, 0, flags, 0, 0, 0][..],
        &target.octets(),
        &[TARGET_LINK_ADDRESS, 1],
        &GATEWAY_MAC.0,
    ]
    .concat();
    send((target, mac, destination), &message, outbox, counters);
    counters.neighbour_advertisements += 1;
}

/// Says that the gateway is the router, which prefix the link has and where the DNS server is.
fn advertise_router(asker: Option<Ipv6Addr>, outbox: &mut Outbox, counters: &mut Counters) {
    let (mac, destination) = asker.map_or((ALL_NODES_MAC, ALL_NODES), |asker| (outbox.vm_mac(), asker));
    let lifetime_s = u32::from(LIFETIME_S).to_be_bytes();
    let message = [
        // No DHCPv6 (flags 0); times of reachability and retransmission are the VM's own business.
        &[ROUTER_ADVERTISEMENT, 0, 0, 0, ip::HOP_LIMIT, 0][..],
        &LIFETIME_S.to_be_bytes(),
        &[0; 8],
        &[SOURCE_LINK_ADDRESS, 1],
        &GATEWAY_MAC.0,
        // On the link, and for addresses of the VM's own making.
        &[PREFIX_INFORMATION, 4, PREFIX_BITS_V6, 0xc0],
        &VALID_S.to_be_bytes(),
        &PREFERRED_S.to_be_bytes(),
        &[0; 4],
        &PREFIX_V6.octets(),
        &[DNS_SERVERS, 3, 0, 0],
        &lifetime_s,
        &GATEWAY_ADDRESS_V6.octets(),
    ]
    .concat();
    send((GATEWAY_LINK_LOCAL, mac, destination), &message, outbox, counters);
    counters.router_advertisements += 1;
}

fn send(
    (source, mac, destination): (Ipv6Addr, EthernetAddress, Ipv6Addr),
    message: &[u8],
    outbox: &mut Outbox,
    counters: &mut Counters,
) {
    let envelope = Envelope { mac, source, destination, hop_limit: HOP_LIMIT };
    icmpv6::send(outbox, counters, envelope, message.len(), |bytes| bytes.copy_from_slice(message));
}

/// The options of a message, as far as they matter.
struct Options {
    source_link_address: bool,
}

impl Options {
    /// `None` if one of them has no length or goes beyond the end (RFC 4861, section 4.6).
    fn parse(mut bytes: &[u8]) -> Option<Options> {
        let mut options = Options { source_link_address: false };
        while let [kind, units, ..] = *bytes {
            bytes = bytes.get(usize::from(units) * 8..).filter(|_| units > 0)?;
            options.source_link_address |= kind == SOURCE_LINK_ADDRESS;
        }
        bytes.is_empty().then_some(options)
    }
}

#[cfg(test)]
mod tests {
    use smoltcp::wire::{EthernetFrame, Icmpv6Packet, Ipv6Packet, NdiscPrefixInfoFlags, NdiscRepr};
    use wire::link::Offload;

    use super::*;
    use crate::icmpv6::tests::{VM, VM_LINK_LOCAL, packet};

    const UNSPECIFIED: Ipv6Addr = Ipv6Addr::UNSPECIFIED;
    const LINK_ADDRESS: [u8; 8] = [1, 1, 2, 0, 0, 0, 0, 9];

    fn handled(bytes: &[u8]) -> (Option<Vec<u8>>, Counters) {
        let (mut outbox, mut counters) = (Outbox::new(4), Counters::default());
        let packet = ipv6::parse(bytes, &mut counters).unwrap().open(Offload::default(), &mut counters).unwrap();
        handle(&packet, &mut outbox, &mut counters);
        (outbox.pop().map(|frame| frame.to_vec()), counters)
    }

    fn solicitation(target: Ipv6Addr, options: &[u8]) -> Vec<u8> {
        [&[NEIGHBOUR_SOLICITATION, 0, 0, 0, 0, 0, 0, 0][..], &target.octets(), options].concat()
    }

    /// Asks where `target` is.
    fn asked(source: Ipv6Addr, target: Ipv6Addr, options: &[u8]) -> Option<Vec<u8>> {
        handled(&packet(source, solicited_node(target), 255, &solicitation(target, options))).0
    }

    /// What smoltcp reads in a frame with a message of discovery; addresses and checksum are looked at too.
    fn read<'a>(frame: &'a [u8], source: Ipv6Addr, destination: Ipv6Addr) -> NdiscRepr<'a> {
        let ethernet = EthernetFrame::new_checked(frame).unwrap();
        assert_eq!(ethernet.src_addr(), GATEWAY_MAC);
        assert_eq!(ethernet.dst_addr() == ALL_NODES_MAC, destination == ALL_NODES);
        let packet = Ipv6Packet::new_checked(&frame[14..]).unwrap();
        assert_eq!((packet.src_addr(), packet.dst_addr(), packet.hop_limit()), (source, destination, 255));
        let message = Icmpv6Packet::new_checked(&frame[54..]).unwrap();
        assert!(message.verify_checksum(&source, &destination));
        NdiscRepr::parse(&message).unwrap()
    }

    #[test]
    fn only_the_gateway_is_answered_for() {
        for target in [GATEWAY_ADDRESS_V6, GATEWAY_LINK_LOCAL] {
            for asker in [VM, VM_LINK_LOCAL] {
                let frame = asked(asker, target, &LINK_ADDRESS).unwrap();
                let NdiscRepr::NeighborAdvert { flags, target_addr, lladdr } = read(&frame, target, asker) else {
                    panic!("no advertisement")
                };
                assert_eq!((flags.bits(), target_addr), (ROUTER | SOLICITED | OVERRIDE, target));
                assert_eq!(lladdr.unwrap(), GATEWAY_MAC.into());
            }
        }
        for target in [VM, VM_LINK_LOCAL, Ipv6Addr::new(0xfd6f, 0x6874, 2, 0, 0, 0, 0, 2)] {
            assert!(asked(VM_LINK_LOCAL, target, &LINK_ADDRESS).is_none(), "{target}");
        }
    }

    #[test]
    fn whoever_wants_the_gateways_address_hears_that_it_is_taken() {
        let frame = asked(UNSPECIFIED, GATEWAY_LINK_LOCAL, &[]).unwrap();
        let NdiscRepr::NeighborAdvert { flags, .. } = read(&frame, GATEWAY_LINK_LOCAL, ALL_NODES) else {
            panic!("no advertisement")
        };
        assert_eq!(flags.bits(), ROUTER | OVERRIDE);
        assert!(asked(UNSPECIFIED, VM_LINK_LOCAL, &[]).is_none(), "whoever wants another one, nothing");
    }

    #[test]
    fn a_vm_that_asks_learns_all_it_needs() {
        for (asker, to) in [(UNSPECIFIED, ALL_NODES), (VM_LINK_LOCAL, VM_LINK_LOCAL)] {
            let frame = handled(&packet(asker, ALL_ROUTERS, 255, &[133, 0, 0, 0, 0, 0, 0, 0])).0.unwrap();
            let NdiscRepr::RouterAdvert { hop_limit, flags, router_lifetime, mtu, prefix_info, .. } =
                read(&frame, GATEWAY_LINK_LOCAL, to)
            else {
                panic!("no advertisement")
            };
            assert_eq!((hop_limit, flags.bits(), router_lifetime.secs(), mtu), (64, 0, 1800, None));
            let prefix = prefix_info.unwrap();
            assert_eq!((prefix.prefix, prefix.prefix_len), (PREFIX_V6, 64));
            assert_eq!(prefix.flags, NdiscPrefixInfoFlags::ON_LINK | NdiscPrefixInfoFlags::ADDRCONF);
            let dns = [&[25, 3, 0, 0, 0, 0, 7, 8][..], &GATEWAY_ADDRESS_V6.octets()].concat();
            assert!(frame.ends_with(&dns));
        }
    }

    #[test]
    fn messages_out_of_order_are_dropped() {
        let group = solicited_node(GATEWAY_ADDRESS_V6);
        let whole = solicitation(GATEWAY_ADDRESS_V6, &LINK_ADDRESS);
        let dropped = |source, destination, hop_limit, message: &[u8]| {
            let (frame, counters) = handled(&packet(source, destination, hop_limit, message));
            frame.is_none() && counters.dropped_malformed == 1
        };
        assert!(!dropped(VM, group, 255, &whole));
        assert!(dropped(VM, group, 254, &whole), "from beyond the link");
        assert!(dropped(UNSPECIFIED, group, 255, &whole), "with a link address from nobody");
        assert!(dropped(UNSPECIFIED, GATEWAY_ADDRESS_V6, 255, &whole[..24]), "not to the group");
        assert!(dropped(UNSPECIFIED, ALL_ROUTERS, 255, &[&[133, 0, 0, 0, 0, 0, 0, 0][..], &LINK_ADDRESS].concat()));
        assert!(dropped(VM, group, 255, &solicitation(ALL_NODES, &[])), "about a group");
        assert!(dropped(VM, group, 255, &solicitation(GATEWAY_ADDRESS_V6, &[14, 0, 0, 0, 0, 0, 0, 0])), "no length");
        assert!(dropped(VM, group, 255, &solicitation(GATEWAY_ADDRESS_V6, &[14, 2, 0, 0, 0, 0, 0, 0])), "too long");
        let mut coded = whole.clone();
        coded[1] = 1;
        assert!(dropped(VM, group, 255, &coded));
        for length in 8..whole.len() {
            assert_eq!(dropped(VM, group, 255, &whole[..length]), length != 24, "{length}");
        }
        for kind in [134, 136, 137] {
            let (frame, counters) = handled(&packet(VM, group, 255, &[kind; 32]));
            assert_eq!((frame, counters.dropped_icmp), (None, 1), "{kind}");
        }
    }

    #[test]
    fn the_router_is_advertised_often_at_first_and_then_every_few_minutes() {
        let began = Instant::now();
        let (mut outbox, mut counters) = (Outbox::new(1000), Counters::default());
        let mut advertiser = Advertiser::new(7, began);
        let mut before = began;
        for n in 0..100u64 {
            let due = advertiser.due();
            let seconds = (due - before).as_secs();
            match n {
                0 => assert_eq!(seconds, 0),
                1 | 2 => assert_eq!(seconds, 16),
                _ => assert!((INTERVAL_MIN_S..=INTERVAL_MAX_S).contains(&seconds), "{seconds}"),
            }
            advertiser.handle_timeout(due, &mut outbox, &mut counters);
            advertiser.handle_timeout(due, &mut outbox, &mut counters);
            assert_eq!(counters.router_advertisements, n + 1);
            before = due;
        }
    }
}
