//! Frames on their way to the VM.
//!
//! Only answers are queued (ARP, DHCP, DNS, ICMP, RST). They cannot wait where they come from: beyond twice `frames_max`
//! they are dropped and counted, and the VM asks again. Segments of flows are made when there is nothing else to send,
//! and so are never lost here.

use std::collections::VecDeque;

use smoltcp::wire::{EthernetAddress, EthernetFrame, EthernetProtocol};

use wire::link::Offload;

use crate::{
    config::GATEWAY_MAC,
    counters::Counters,
    frame::{Frame, Head},
};

/// Bytes of an Ethernet header.
pub(crate) const ETHERNET_BYTES: usize = EthernetFrame::<&[u8]>::header_len();

/// The queue of frames to the VM, and where they go.
#[derive(Debug)]
pub(crate) struct Outbox {
    frames: VecDeque<Frame>,
    frames_max: usize,
    /// Whether an answer comes before a segment.
    is_next: bool,
    vm_mac: EthernetAddress,
}

impl Outbox {
    pub(crate) fn new(frames_max: usize) -> Outbox {
        let frames_max = frames_max.max(1);
        Outbox { frames: VecDeque::new(), frames_max, is_next: true, vm_mac: EthernetAddress::BROADCAST }
    }

    /// Learns the Ethernet address that the VM uses now. Whether none was known before.
    pub(crate) fn vm_is_at(&mut self, mac: EthernetAddress) -> bool {
        let is_first = !self.knows_vm();
        self.vm_mac = mac;
        is_first
    }

    /// Whether the VM has said anything yet.
    pub(crate) fn knows_vm(&self) -> bool {
        self.vm_mac != EthernetAddress::BROADCAST
    }

    /// Where the VM is, or the broadcast address before it said anything.
    pub(crate) fn vm_mac(&self) -> EthernetAddress {
        self.vm_mac
    }

    /// Adds a frame that `fill` writes the payload of, zeroed before. Returns what `fill` returns; it is called even
    /// if the frame is dropped.
    pub(crate) fn push<R>(
        &mut self,
        counters: &mut Counters,
        to: EthernetAddress,
        ethertype: EthernetProtocol,
        payload_bytes: usize,
        fill: impl FnOnce(&mut [u8]) -> R,
    ) -> R {
        let mut bytes = vec![0; ETHERNET_BYTES + payload_bytes];
        let mut frame = EthernetFrame::new_unchecked(&mut bytes[..]);
        frame.set_src_addr(GATEWAY_MAC);
        frame.set_dst_addr(to);
        frame.set_ethertype(ethertype);
        let result = fill(frame.payload_mut());
        self.push_frame(counters, Frame { offload: Offload::default(), head: Head::zeroed(0), body: bytes.into() });
        result
    }

    /// Adds a frame.
    pub(crate) fn push_frame(&mut self, counters: &mut Counters, frame: Frame) {
        if self.frames.len() < 2 * self.frames_max {
            self.frames.push_back(frame);
            counters.frames_out += 1;
        } else {
            counters.dropped_queue_full += 1;
        }
    }

    /// Whether it is the turn of an answer, the other time that of a segment.
    pub(crate) fn is_next(&mut self) -> bool {
        self.is_next = !self.is_next || self.frames.is_empty();
        self.is_next
    }

    /// Takes the oldest frame.
    pub(crate) fn pop(&mut self) -> Option<Frame> {
        self.frames.pop_front()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_bounded_and_what_is_dropped_is_counted() {
        let (mut outbox, mut counters) = (Outbox::new(4), Counters::default());
        for n in 0..20u8 {
            outbox.push(&mut counters, EthernetAddress::BROADCAST, EthernetProtocol::Ipv4, 1, |p| p[0] = n);
        }
        assert_eq!((counters.frames_out, counters.dropped_queue_full), (8, 12));
        for n in 0..8 {
            let frame = outbox.pop().unwrap().to_vec();
            assert_eq!((frame.len(), frame[14]), (15, n));
        }
        assert_eq!(outbox.pop(), None);
    }
}
