//! What becomes of a packet of the VM: who may send it, and which part of the gateway it is for.

use std::{net::IpAddr, time::Instant};

use smoltcp::wire::{EthernetAddress, IpProtocol};
use wire::link::Offload;

use crate::{
    Gateway, Unresolved,
    address::{self, Kind},
    config::GATEWAY_ADDRESS,
    counters::Counters,
    dhcp,
    dns::{self, Reply},
    icmp::{self, Unreachable},
    icmpv6, ip, ipv4, ipv6, ndp, ntp,
    resolver::Asker,
    time, udp,
};

impl Gateway {
    /// Handles an IPv4 packet. `to_group` tells that its frame was for a group's Ethernet address.
    pub(crate) fn handle_ipv4(&mut self, now: Instant, offload: Offload, bytes: &[u8], to_group: bool) {
        let Some(packet) = ipv4::parse(bytes, offload, &mut self.counters) else { return };
        let kind = address::kind(packet.destination);
        if packet.protocol == IpProtocol::Udp && matches!(kind, Kind::Gateway | Kind::Group) && self.serve_dhcp(&packet)
        {
            return;
        }
        if !address::is_of_vm(packet.source) {
            self.counters.dropped_source += 1;
            return;
        }
        match packet.protocol {
            IpProtocol::Igmp => self.counters.ignored_listener += 1,
            _ if self.drops_destination(kind, to_group) => {}
            IpProtocol::Tcp => self.with_tcp(now, |tcp, around| tcp.handle(around, &packet, kind)),
            IpProtocol::Udp => self.handle_udp(now, &packet, kind),
            IpProtocol::Icmp => self.handle_icmp(now, &packet, kind),
            _ => self.unreachable(now, Unreachable::Protocol, &packet),
        }
    }

    /// Handles an IPv6 packet. `to_group` as above.
    pub(crate) fn handle_ipv6(&mut self, now: Instant, offload: Offload, bytes: &[u8], to_group: bool) {
        let Some(outer) = ipv6::parse(bytes, &mut self.counters) else { return };
        let kind = address::kind(outer.destination.into());
        let is_of_vm = address::is_of_vm(outer.source.into());
        let is_on_link = is_of_vm || address::is_link_local_of_vm(outer.source.into());
        // Nobody has an address yet when it asks for the router or whether an address is free.
        if !is_on_link && !outer.source.is_unspecified() {
            self.counters.dropped_source += 1;
            return;
        }
        let packet = match outer.open(offload, &mut self.counters) {
            Ok(packet) => packet,
            Err(problem) => {
                let may_tell = |problem: &ipv6::Problem| {
                    is_on_link && kind != Kind::Martian && (problem.to_group || (kind != Kind::Group && !to_group))
                };
                if let Some(problem) = problem.filter(may_tell) {
                    self.errors.send_problem(now, problem, outer.bytes, &mut self.outbox, &mut self.counters);
                }
                return;
            }
        };
        match packet.protocol {
            IpProtocol::Icmpv6 => self.handle_icmpv6(now, &packet, kind, to_group, is_on_link),
            _ if !is_of_vm => self.counters.dropped_source += 1,
            _ if self.drops_destination(kind, to_group) => {}
            IpProtocol::Tcp => self.with_tcp(now, |tcp, around| tcp.handle(around, &packet, kind)),
            _ => self.handle_udp(now, &packet, kind),
        }
    }

    /// Whether a packet that is not part of a protocol of the link itself has no business going there. Counts it then.
    fn drops_destination(&mut self, kind: Kind, to_group: bool) -> bool {
        // RFC 1122, section 3.3.6: a packet for one host in a frame for all is not to be believed.
        let drops = matches!(kind, Kind::Group | Kind::Martian) || to_group;
        self.counters.dropped_destination += u64::from(drops);
        drops
    }

    fn handle_icmp(&mut self, now: Instant, packet: &ip::Packet<'_>, kind: Kind) {
        use icmp::Message;
        let Some(message) = icmp::parse(packet.payload, &mut self.counters) else { return };
        match message {
            Message::EchoRequest if kind == Kind::Gateway => {
                icmp::echo(packet.payload, &mut self.outbox, &mut self.counters);
            }
            // Somebody waits for an answer.
            Message::EchoRequest => self.unreachable(now, Unreachable::Prohibited, packet),
            Message::Other => self.with_tcp(now, |tcp, around| tcp.handle_icmp(around, packet)),
        }
    }

    fn handle_icmpv6(&mut self, now: Instant, packet: &ip::Packet<'_>, kind: Kind, to_group: bool, is_on_link: bool) {
        use icmpv6::Message;
        let Some(message) = icmpv6::parse(packet, &mut self.counters) else { return };
        let asks_all = [ndp::ALL_NODES, ndp::ALL_ROUTERS].map(IpAddr::V6).contains(&packet.destination);
        match message {
            Message::Discovery => ndp::handle(packet, &mut self.outbox, &mut self.counters),
            Message::Listener => self.counters.ignored_listener += 1,
            _ if !is_on_link => self.counters.dropped_source += 1,
            Message::EchoRequest if asks_all || (kind == Kind::Gateway && !to_group) => {
                icmpv6::echo(packet, &mut self.outbox, &mut self.counters);
            }
            _ if self.drops_destination(kind, to_group) => {}
            Message::EchoRequest => self.unreachable(now, Unreachable::Prohibited, packet),
            Message::Other => self.with_tcp(now, |tcp, around| tcp.handle_icmp(around, packet)),
        }
    }

    /// Serves DHCP, whose client may have any address: none yet, or one of another network, which is refused.
    fn serve_dhcp(&mut self, packet: &ip::Packet<'_>) -> bool {
        // Counted when it is parsed again, should it be no DHCP.
        let Some(datagram) = udp::parse(packet, &mut Counters::default()) else { return false };
        if (datagram.source_port, datagram.destination_port) != (dhcp::CLIENT_PORT, dhcp::SERVER_PORT) {
            return false;
        }
        let Some(reply) = dhcp::handle(datagram.payload, &mut self.counters) else { return true };
        let mac = if reply.broadcast { EthernetAddress::BROADCAST } else { self.outbox.vm_mac() };
        let from = (GATEWAY_ADDRESS.into(), dhcp::SERVER_PORT);
        let to = (reply.destination.into(), dhcp::CLIENT_PORT);
        udp::send(&mut self.outbox, &mut self.counters, mac, from, to, &reply.message);
        true
    }

    fn handle_udp(&mut self, now: Instant, packet: &ip::Packet<'_>, kind: Kind) {
        let Some(datagram) = udp::parse(packet, &mut self.counters) else { return };
        let own = (packet.destination, datagram.destination_port);
        let vm = (packet.source, datagram.source_port);
        let Gateway { names, resolver, policy, clock, counters, .. } = self;
        let reply = match datagram.destination_port {
            dns::PORT if kind == Kind::Gateway => {
                match dns::handle(now, datagram.payload, dns::Carrier::Udp, &**policy, names, counters) {
                    Reply::None => None,
                    Reply::Now(reply) => Some(reply),
                    Reply::Later(question) => {
                        let refused = resolver.ask(question, Asker::Udp(vm, own));
                        refused.and_then(|question| question.answer(Err(Unresolved::Failed)))
                    }
                }
            }
            ntp::PORT if kind == Kind::Gateway => ntp::handle(now, datagram.payload, clock.as_ref(), counters),
            time::PORT if kind == Kind::Gateway => time::handle(now, clock.as_ref(), counters),
            _ => {
                counters.refused_udp += 1;
                return self.unreachable(now, Unreachable::Port, packet);
            }
        };
        if let Some(reply) = reply {
            self.reply_by_udp(own, vm, &reply);
        }
    }

    /// Sends a datagram to the VM, between addresses and ports.
    pub(crate) fn reply_by_udp(&mut self, from: (IpAddr, u16), to: (IpAddr, u16), reply: &[u8]) {
        let mac = self.outbox.vm_mac();
        udp::send(&mut self.outbox, &mut self.counters, mac, from, to, reply);
    }

    fn unreachable(&mut self, now: Instant, code: Unreachable, packet: &ip::Packet<'_>) {
        self.errors.send(now, code, packet.bytes, &mut self.outbox, &mut self.counters);
    }
}
