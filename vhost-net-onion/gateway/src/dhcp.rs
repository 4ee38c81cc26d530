//! The DHCP server (RFC 2131): one client, one address, always the same lease.
//!
//! Nothing is remembered between messages, so a restart is never noticed. A client that asks for another address, for
//! example one it had on another network, is refused at once (NAK) and begins anew. A RELEASE changes nothing; nor does
//! a DECLINE (the client found its address in use, on a link where it is alone). Both are counted.
//!
//! No MTU is told (option 26): it would lower that of a VM whose device has a larger one.

use std::net::Ipv4Addr;

use smoltcp::wire::{DhcpMessageType, DhcpOption, DhcpPacket, DhcpRepr};

use crate::{
    config::{GATEWAY_ADDRESS, PREFIX_BITS, VM_ADDRESS},
    counters::Counters,
};

/// UDP port of servers.
pub(crate) const SERVER_PORT: u16 = 67;

/// UDP port of clients.
pub(crate) const CLIENT_PORT: u16 = 68;

/// Seconds of a lease: a day.
pub(crate) const LEASE_S: u32 = 24 * 60 * 60;

/// Bytes of the shortest message that every client takes (RFC 1542, section 2.1).
const MESSAGE_BYTES_MIN: usize = 300;

/// Option numbers of RFC 2132 that smoltcp has no names for in public.
const OPTION_NTP_SERVERS: u8 = 42;
const OPTION_CLIENT_ID: u8 = 61;

/// An answer and where it goes.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Reply {
    pub(crate) message: Vec<u8>,
    pub(crate) destination: Ipv4Addr,
    /// By Ethernet broadcast, not to the client's own address.
    pub(crate) broadcast: bool,
}

/// What a request leads to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Answer {
    Offer,
    Ack,
    /// The answer to INFORM: parameters, but no address and no lease (RFC 2131, section 4.3.5).
    AckInform,
    Nak,
    Nothing,
}

/// Answers a message that came to the server port.
pub(crate) fn handle(message: &[u8], counters: &mut Counters) -> Option<Reply> {
    let packet = DhcpPacket::new_checked(message).ok();
    let parsed = packet.as_ref().and_then(|packet| Some((packet, DhcpRepr::parse(packet).ok()?)));
    let Some((packet, request)) = parsed else {
        counters.dropped_malformed += 1;
        return None;
    };
    let answer = answer(&request);
    match answer {
        Answer::Nothing => {
            match request.message_type {
                DhcpMessageType::Release => counters.dhcp_releases += 1,
                DhcpMessageType::Decline => counters.dhcp_declines += 1,
                _ => counters.dhcp_ignored += 1,
            }
            return None;
        }
        Answer::Nak => counters.dhcp_naks += 1,
        Answer::Offer | Answer::Ack | Answer::AckInform => counters.dhcp_replies += 1,
    }
    // RFC 6842: the client's identifier comes back as it was sent.
    let client_id = packet.options().find(|option| option.kind == OPTION_CLIENT_ID).map(|option| option.data);
    emit(&request, answer, client_id)
}

fn answer(request: &DhcpRepr) -> Answer {
    // There is no relay agent on this link.
    if !request.relay_agent_ip.is_unspecified() || !request.client_hardware_address.is_unicast() {
        return Answer::Nothing;
    }
    match request.message_type {
        DhcpMessageType::Discover => Answer::Offer,
        DhcpMessageType::Request => answer_request(request),
        DhcpMessageType::Inform if request.client_ip == VM_ADDRESS => Answer::AckInform,
        _ => Answer::Nothing,
    }
}

/// The four kinds of REQUEST (RFC 2131, section 4.3.2, table 4): the client selects an offer, remembers an address, or
/// renews the one it has by unicast or broadcast.
fn answer_request(request: &DhcpRepr) -> Answer {
    if request.server_identifier.is_some_and(|server| server != GATEWAY_ADDRESS) {
        return Answer::Nothing;
    }
    let wanted = match request.requested_ip {
        Some(address) => address,
        None if !request.client_ip.is_unspecified() => request.client_ip,
        None => return Answer::Nothing,
    };
    if wanted == VM_ADDRESS { Answer::Ack } else { Answer::Nak }
}

fn emit(request: &DhcpRepr, answer: Answer, client_id: Option<&[u8]>) -> Option<Reply> {
    let with_address = matches!(answer, Answer::Offer | Answer::Ack);
    let with_parameters = answer != Answer::Nak;
    let ntp_servers = GATEWAY_ADDRESS.octets();
    let mut options = Vec::with_capacity(2);
    options.extend(client_id.map(|data| DhcpOption { kind: OPTION_CLIENT_ID, data }));
    if with_parameters {
        options.push(DhcpOption { kind: OPTION_NTP_SERVERS, data: &ntp_servers });
    }
    let netmask = Ipv4Addr::from_bits(u32::MAX << (32 - PREFIX_BITS));
    let reply = DhcpRepr {
        message_type: match answer {
            Answer::Offer => DhcpMessageType::Offer,
            Answer::Ack | Answer::AckInform => DhcpMessageType::Ack,
            Answer::Nak | Answer::Nothing => DhcpMessageType::Nak,
        },
        transaction_id: request.transaction_id,
        secs: 0,
        client_hardware_address: request.client_hardware_address,
        client_ip: if with_parameters { request.client_ip } else { Ipv4Addr::UNSPECIFIED },
        your_ip: if with_address { VM_ADDRESS } else { Ipv4Addr::UNSPECIFIED },
        server_ip: Ipv4Addr::UNSPECIFIED,
        router: with_parameters.then_some(GATEWAY_ADDRESS),
        subnet_mask: with_parameters.then_some(netmask),
        relay_agent_ip: Ipv4Addr::UNSPECIFIED,
        broadcast: request.broadcast,
        requested_ip: None,
        client_identifier: None,
        server_identifier: Some(GATEWAY_ADDRESS),
        parameter_request_list: None,
        dns_servers: with_parameters.then(|| [GATEWAY_ADDRESS].into_iter().collect()),
        max_size: None,
        lease_duration: with_address.then_some(LEASE_S),
        renew_duration: None,
        rebind_duration: None,
        additional_options: &options,
    };
    let mut message = vec![0; reply.buffer_len().max(MESSAGE_BYTES_MIN)];
    reply.emit(&mut DhcpPacket::new_unchecked(&mut message[..])).ok()?;
    // RFC 2131, section 4.1: to the address the client has, else as it asks for; refusals always by broadcast.
    let broadcast = answer == Answer::Nak || (request.client_ip.is_unspecified() && request.broadcast);
    let destination = if broadcast { Ipv4Addr::BROADCAST } else { VM_ADDRESS };
    Some(Reply { message, destination, broadcast })
}

#[cfg(test)]
mod tests {
    use smoltcp::wire::EthernetAddress;

    use super::*;

    fn request(kind: DhcpMessageType) -> DhcpRepr<'static> {
        DhcpRepr {
            message_type: kind,
            transaction_id: 0x1234_5678,
            secs: 3,
            client_hardware_address: EthernetAddress([0x52, 0x54, 0, 1, 2, 3]),
            client_ip: Ipv4Addr::UNSPECIFIED,
            your_ip: Ipv4Addr::UNSPECIFIED,
            server_ip: Ipv4Addr::UNSPECIFIED,
            router: None,
            subnet_mask: None,
            relay_agent_ip: Ipv4Addr::UNSPECIFIED,
            broadcast: false,
            requested_ip: None,
            client_identifier: None,
            server_identifier: None,
            parameter_request_list: None,
            dns_servers: None,
            max_size: None,
            lease_duration: None,
            renew_duration: None,
            rebind_duration: None,
            additional_options: &[],
        }
    }

    fn bytes(repr: &DhcpRepr) -> Vec<u8> {
        let mut bytes = vec![0; repr.buffer_len()];
        repr.emit(&mut DhcpPacket::new_unchecked(&mut bytes[..])).unwrap();
        bytes
    }

    fn kind_of(repr: &DhcpRepr) -> Option<DhcpMessageType> {
        let reply = handle(&bytes(repr), &mut Counters::default())?;
        let packet = DhcpPacket::new_checked(&reply.message[..]).unwrap();
        Some(DhcpRepr::parse(&packet).unwrap().message_type)
    }

    #[test]
    fn an_offer_says_all_that_a_client_needs() {
        let id = [0xff, 1, 2, 3, 4, 5, 6, 7, 8];
        let options = [DhcpOption { kind: OPTION_CLIENT_ID, data: &id }];
        let discover = DhcpRepr { additional_options: &options, ..request(DhcpMessageType::Discover) };
        let reply = handle(&bytes(&discover), &mut Counters::default()).unwrap();
        assert_eq!((reply.destination, reply.broadcast), (VM_ADDRESS, false));
        let packet = DhcpPacket::new_checked(&reply.message[..]).unwrap();
        let offer = DhcpRepr::parse(&packet).unwrap();
        assert_eq!(offer.message_type, DhcpMessageType::Offer);
        assert_eq!(offer.transaction_id, 0x1234_5678);
        assert_eq!(offer.your_ip, VM_ADDRESS);
        assert_eq!((offer.router, offer.server_identifier), (Some(GATEWAY_ADDRESS), Some(GATEWAY_ADDRESS)));
        assert_eq!(offer.subnet_mask, Some(Ipv4Addr::new(255, 255, 255, 0)));
        assert_eq!(offer.dns_servers.unwrap().as_slice(), [GATEWAY_ADDRESS]);
        assert_eq!(offer.lease_duration, Some(86_400));
        let option = |kind| packet.options().find(|option| option.kind == kind).unwrap().data;
        assert_eq!(option(OPTION_NTP_SERVERS), GATEWAY_ADDRESS.octets());
        assert!(packet.options().all(|option| option.kind != 26), "an MTU would lower that of a larger device");
        assert_eq!(option(OPTION_CLIENT_ID), id);
        assert!(reply.message.len() >= MESSAGE_BYTES_MIN);
    }

    #[test]
    fn requests_are_granted_or_refused() {
        use DhcpMessageType::{Ack, Nak};
        let other = Ipv4Addr::new(192, 168, 1, 7);
        let repr = |requested, client, server| DhcpRepr {
            requested_ip: requested,
            client_ip: client,
            server_identifier: server,
            ..request(DhcpMessageType::Request)
        };
        let none = Ipv4Addr::UNSPECIFIED;
        assert_eq!(kind_of(&repr(Some(VM_ADDRESS), none, Some(GATEWAY_ADDRESS))), Some(Ack), "selects");
        assert_eq!(kind_of(&repr(Some(VM_ADDRESS), none, Some(other))), None, "selects another server");
        assert_eq!(kind_of(&repr(Some(VM_ADDRESS), none, None)), Some(Ack), "remembers");
        assert_eq!(kind_of(&repr(Some(other), none, None)), Some(Nak), "remembers another network");
        assert_eq!(kind_of(&repr(None, VM_ADDRESS, None)), Some(Ack), "renews");
        assert_eq!(kind_of(&repr(None, other, None)), Some(Nak), "renews another address");
        assert_eq!(kind_of(&repr(None, none, None)), None, "asks for nothing");
    }

    #[test]
    fn informed_without_a_lease_and_silent_otherwise() {
        use DhcpMessageType::{Ack, Decline, Inform, Nak, Offer, Release};
        let inform = DhcpRepr { client_ip: VM_ADDRESS, ..request(Inform) };
        let reply = handle(&bytes(&inform), &mut Counters::default()).unwrap();
        let packet = DhcpPacket::new_checked(&reply.message[..]).unwrap();
        let ack = DhcpRepr::parse(&packet).unwrap();
        assert_eq!((ack.message_type, ack.your_ip, ack.lease_duration), (Ack, Ipv4Addr::UNSPECIFIED, None));
        let mut counters = Counters::default();
        for kind in [Release, Decline, Offer, Ack, Nak] {
            assert_eq!(handle(&bytes(&request(kind)), &mut counters), None, "{kind:?}");
        }
        assert_eq!((counters.dhcp_releases, counters.dhcp_declines, counters.dhcp_ignored), (1, 1, 3));
        let relayed = DhcpRepr { relay_agent_ip: GATEWAY_ADDRESS, ..request(DhcpMessageType::Discover) };
        assert_eq!(kind_of(&relayed), None);
    }

    #[test]
    fn refusals_go_to_all_and_carry_nothing() {
        let wrong = DhcpRepr { requested_ip: Some(GATEWAY_ADDRESS), ..request(DhcpMessageType::Request) };
        let reply = handle(&bytes(&wrong), &mut Counters::default()).unwrap();
        assert_eq!((reply.destination, reply.broadcast), (Ipv4Addr::BROADCAST, true));
        let packet = DhcpPacket::new_checked(&reply.message[..]).unwrap();
        let nak = DhcpRepr::parse(&packet).unwrap();
        assert_eq!((nak.router, nak.your_ip, nak.lease_duration), (None, Ipv4Addr::UNSPECIFIED, None));
    }

    #[test]
    fn short_and_broken_messages_are_dropped() {
        let whole = bytes(&request(DhcpMessageType::Discover));
        for length in 0..241 {
            let mut counters = Counters::default();
            assert!(handle(&whole[..length], &mut counters).is_none(), "{length}");
            assert_eq!(counters.dropped_malformed, 1);
        }
        for at in 0..whole.len() {
            for bit in 0..8 {
                let mut broken = whole.clone();
                broken[at] ^= 1 << bit;
                let _ = handle(&broken, &mut Counters::default());
            }
        }
    }
}
