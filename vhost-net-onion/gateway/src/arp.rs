//! ARP (RFC 826): the gateway says where it is, and asks where the VM is when a connection is to be made to it.
//!
//! Of the VM's network only the gateway's own address is answered for. In particular a probe for the VM's own address
//! (RFC 5227) gets no answer, or the VM would think that somebody else has it.

use smoltcp::wire::{ArpOperation, ArpPacket, ArpRepr, EthernetAddress, EthernetProtocol};

use crate::{
    config::{GATEWAY_ADDRESS, GATEWAY_MAC, VM_ADDRESS},
    counters::Counters,
    outbox::Outbox,
};

/// Answers what a frame with ARP carries, if it is a question for the gateway.
pub(crate) fn handle(payload: &[u8], outbox: &mut Outbox, counters: &mut Counters) {
    let repr = ArpPacket::new_checked(payload).and_then(|packet| ArpRepr::parse(&packet));
    let Ok(ArpRepr::EthernetIpv4 {
        operation, source_hardware_addr, source_protocol_addr, target_protocol_addr, ..
    }) = repr
    else {
        counters.dropped_malformed += 1;
        return;
    };
    // 0.0.0.0 asks in a probe.
    let from_vm = source_protocol_addr == VM_ADDRESS || source_protocol_addr.is_unspecified();
    if !from_vm || !source_hardware_addr.is_unicast() {
        counters.dropped_source += 1;
        return;
    }
    if operation != ArpOperation::Request || target_protocol_addr != GATEWAY_ADDRESS {
        return;
    }
    let reply = ArpRepr::EthernetIpv4 {
        operation: ArpOperation::Reply,
        source_hardware_addr: GATEWAY_MAC,
        source_protocol_addr: GATEWAY_ADDRESS,
        target_hardware_addr: source_hardware_addr,
        target_protocol_addr: source_protocol_addr,
    };
    outbox.push(counters, source_hardware_addr, EthernetProtocol::Arp, reply.buffer_len(), |bytes| {
        reply.emit(&mut ArpPacket::new_unchecked(bytes));
    });
    counters.arp_replies += 1;
}

/// Asks where the VM is. Its answer is a frame as any other, which tells it.
pub(crate) fn ask(outbox: &mut Outbox, counters: &mut Counters) {
    let question = ArpRepr::EthernetIpv4 {
        operation: ArpOperation::Request,
        source_hardware_addr: GATEWAY_MAC,
        source_protocol_addr: GATEWAY_ADDRESS,
        target_hardware_addr: EthernetAddress([0; 6]),
        target_protocol_addr: VM_ADDRESS,
    };
    outbox.push(counters, EthernetAddress::BROADCAST, EthernetProtocol::Arp, question.buffer_len(), |bytes| {
        question.emit(&mut ArpPacket::new_unchecked(bytes));
    });
    counters.arp_requests += 1;
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use smoltcp::wire::EthernetFrame;

    use super::*;

    const VM_MAC: EthernetAddress = EthernetAddress([0x52, 0x54, 0, 1, 2, 3]);

    fn asked(operation: ArpOperation, from: Ipv4Addr, about: Ipv4Addr) -> Option<Vec<u8>> {
        let repr = ArpRepr::EthernetIpv4 {
            operation,
            source_hardware_addr: VM_MAC,
            source_protocol_addr: from,
            target_hardware_addr: EthernetAddress([0; 6]),
            target_protocol_addr: about,
        };
        let mut bytes = vec![0; repr.buffer_len()];
        repr.emit(&mut ArpPacket::new_unchecked(&mut bytes[..]));
        let mut outbox = Outbox::new(4);
        handle(&bytes, &mut outbox, &mut Counters::default());
        outbox.pop().map(|frame| frame.to_vec())
    }

    #[test]
    fn only_the_gateway_is_answered_for() {
        let reply = asked(ArpOperation::Request, VM_ADDRESS, GATEWAY_ADDRESS).unwrap();
        let frame = EthernetFrame::new_checked(&reply[..]).unwrap();
        assert_eq!((frame.src_addr(), frame.dst_addr()), (GATEWAY_MAC, VM_MAC));
        let ArpRepr::EthernetIpv4 { source_hardware_addr, source_protocol_addr, .. } =
            ArpRepr::parse(&ArpPacket::new_checked(frame.payload()).unwrap()).unwrap()
        else {
            panic!("no reply")
        };
        assert_eq!((source_hardware_addr, source_protocol_addr), (GATEWAY_MAC, GATEWAY_ADDRESS));

        assert!(asked(ArpOperation::Request, Ipv4Addr::UNSPECIFIED, GATEWAY_ADDRESS).is_some(), "a probe");
        assert!(asked(ArpOperation::Request, Ipv4Addr::UNSPECIFIED, VM_ADDRESS).is_none(), "duplicate detection");
        assert!(asked(ArpOperation::Request, VM_ADDRESS, Ipv4Addr::new(10, 0, 2, 3)).is_none());
        assert!(asked(ArpOperation::Reply, VM_ADDRESS, GATEWAY_ADDRESS).is_none());
        assert!(asked(ArpOperation::Request, Ipv4Addr::new(10, 0, 2, 16), GATEWAY_ADDRESS).is_none());
    }

    #[test]
    fn short_requests_are_dropped() {
        for length in 0..28 {
            let (mut outbox, mut counters) = (Outbox::new(4), Counters::default());
            handle(&[0; 28][..length], &mut outbox, &mut counters);
            assert_eq!(counters.dropped_malformed, 1, "{length}");
        }
    }
}
