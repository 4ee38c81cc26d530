//! ICMP (RFC 792): the gateway answers echo requests to itself, and says what it does not carry.
//!
//! [`Errors`] sends the errors of both versions; [`icmpv6`] writes those of ICMPv6.
//!
//! Errors are about a packet of the VM's that was in order, was sent to one host and was not itself an ICMP error
//! (RFC 1122, section 3.2.2), and carry as much of it as fits 576 bytes (RFC 1812, section 4.3.2.3). They come from
//! the gateway's own address. Their rate is limited by a token bucket (RFC 1812, section 4.3.2.8).

use std::time::Instant;

use smoltcp::wire::{IPV4_HEADER_LEN, Icmpv4Message, Icmpv4Packet, IpProtocol};

use crate::{
    config::{GATEWAY_ADDRESS, VM_ADDRESS},
    counters::Counters,
    icmpv6,
    ip::{self, Envelope},
    ipv6::Problem,
    outbox::Outbox,
};

/// ICMP errors a second, and at once.
const ERRORS_PER_SECOND: u32 = 100;

/// Bytes of the longest ICMP error.
const ERROR_BYTES_MAX: usize = 576;

/// Bytes of an ICMP header.
const HEADER_BYTES: usize = 8;

/// Why a destination is unreachable: the codes of RFC 792 and RFC 1812, section 5.2.7.1.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Unreachable {
    /// There is no way to the host.
    Host = 1,
    /// Tor carries only TCP.
    Protocol = 2,
    /// Nobody listens: all of UDP that is not the gateway's DNS or DHCP.
    Port = 3,
    /// The host may be up, but the gateway does not carry this there: echo requests.
    Prohibited = 13,
}

/// Sends ICMP errors, up to the limit.
#[derive(Debug)]
pub(crate) struct Errors {
    /// Tokens, in thousandths.
    tokens: u64,
    filled: Instant,
}

impl Errors {
    pub(crate) fn new(now: Instant) -> Errors {
        Errors { tokens: u64::from(ERRORS_PER_SECOND) * 1000, filled: now }
    }

    /// Tells the VM that the destination of `packet`, of either version, is unreachable.
    pub(crate) fn send(
        &mut self,
        now: Instant,
        code: Unreachable,
        packet: &[u8],
        outbox: &mut Outbox,
        counters: &mut Counters,
    ) {
        if !self.take(now, counters) {
            return;
        }
        counters.unreachables += 1;
        if packet.first().is_some_and(|byte| byte >> 4 == 6) {
            return icmpv6::unreachable(code, packet, outbox, counters);
        }
        let quoted = &packet[..packet.len().min(ERROR_BYTES_MAX - IPV4_HEADER_LEN - HEADER_BYTES)];
        reply(outbox, counters, HEADER_BYTES + quoted.len(), |message| {
            message.set_msg_type(Icmpv4Message::DstUnreachable);
            message.set_msg_code(code as u8);
            message.data_mut().copy_from_slice(quoted);
        });
    }

    /// Tells the VM what in an IPv6 packet cannot be processed.
    pub(crate) fn send_problem(
        &mut self,
        now: Instant,
        problem: Problem,
        packet: &[u8],
        outbox: &mut Outbox,
        counters: &mut Counters,
    ) {
        if self.take(now, counters) {
            icmpv6::problem(problem, packet, outbox, counters);
            counters.parameter_problems += 1;
        }
    }

    fn take(&mut self, now: Instant, counters: &mut Counters) -> bool {
        let elapsed_ms = u64::try_from(now.saturating_duration_since(self.filled).as_millis()).unwrap_or(u64::MAX);
        let full = u64::from(ERRORS_PER_SECOND) * 1000;
        self.tokens = elapsed_ms.saturating_mul(u64::from(ERRORS_PER_SECOND)).saturating_add(self.tokens).min(full);
        if elapsed_ms > 0 {
            self.filled = now;
        }
        let enough = self.tokens >= 1000;
        if enough {
            self.tokens -= 1000;
        } else {
            counters.dropped_icmp_limit += 1;
        }
        enough
    }
}

/// What a message from the VM is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Message {
    EchoRequest,
    /// Errors, perhaps about segments of TCP; the other questions of RFC 792, which are obsolete (RFC 6918).
    Other,
}

/// Checks a message, or counts why it is none.
pub(crate) fn parse(payload: &[u8], counters: &mut Counters) -> Option<Message> {
    let checked = Icmpv4Packet::new_checked(payload).ok().filter(|_| payload.len() >= HEADER_BYTES);
    let Some(message) = checked else {
        counters.dropped_malformed += 1;
        return None;
    };
    if !message.verify_checksum() {
        counters.dropped_checksum += 1;
        return None;
    }
    let is_echo_request = message.msg_type() == Icmpv4Message::EchoRequest && message.msg_code() == 0;
    Some(if is_echo_request { Message::EchoRequest } else { Message::Other })
}

/// Answers an echo request to the gateway.
pub(crate) fn echo(payload: &[u8], outbox: &mut Outbox, counters: &mut Counters) {
    let request = Icmpv4Packet::new_unchecked(payload);
    reply(outbox, counters, payload.len(), |message| {
        message.set_msg_type(Icmpv4Message::EchoReply);
        message.set_msg_code(0);
        message.set_echo_ident(request.echo_ident());
        message.set_echo_seq_no(request.echo_seq_no());
        message.data_mut().copy_from_slice(request.data());
    });
    counters.echo_replies += 1;
}

fn reply(outbox: &mut Outbox, counters: &mut Counters, length: usize, fill: impl FnOnce(&mut Icmpv4Packet<&mut [u8]>)) {
    let mac = outbox.vm_mac();
    let (source, destination) = (GATEWAY_ADDRESS.into(), VM_ADDRESS.into());
    let envelope = Envelope { mac, source, destination, protocol: IpProtocol::Icmp };
    ip::send(outbox, counters, envelope, length, |bytes| {
        let mut message = Icmpv4Packet::new_unchecked(bytes);
        fill(&mut message);
        message.fill_checksum();
    });
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn request(length: usize) -> Vec<u8> {
        let mut bytes: Vec<u8> = (0..HEADER_BYTES + length).map(|n| n as u8).collect();
        bytes[..2].copy_from_slice(&[8, 0]);
        Icmpv4Packet::new_unchecked(&mut bytes[..]).fill_checksum();
        bytes
    }

    fn parsed(request: &[u8]) -> (Option<Message>, Counters) {
        let mut counters = Counters::default();
        (parse(request, &mut counters), counters)
    }

    #[test]
    fn echo_comes_back_with_its_payload() {
        for length in [0, 1, 56, 1472] {
            let (mut outbox, mut counters) = (Outbox::new(4), Counters::default());
            echo(&request(length), &mut outbox, &mut counters);
            let reply = outbox.pop().unwrap().to_vec().split_off(34);
            assert_eq!((reply[0], &reply[4..]), (0, &request(length)[4..]));
            assert!(Icmpv4Packet::new_checked(&reply[..]).unwrap().verify_checksum());
        }
    }

    #[test]
    fn nothing_else_is_a_request() {
        assert_eq!(parsed(&request(56)).0, Some(Message::EchoRequest));
        for kind in (0..=255u8).filter(|kind| *kind != 8) {
            let mut message = request(56);
            message[0] = kind;
            Icmpv4Packet::new_unchecked(&mut message[..]).fill_checksum();
            assert_eq!(parsed(&message).0, Some(Message::Other));
        }
        let mut message = request(56);
        message[20] ^= 1;
        assert_eq!(parsed(&message).1.dropped_checksum, 1);
        for length in 0..HEADER_BYTES {
            assert_eq!(parsed(&request(0)[..length]).1.dropped_malformed, 1);
        }
    }

    #[test]
    fn errors_quote_and_are_limited() {
        let now = Instant::now();
        let (mut outbox, mut counters) = (Outbox::new(1000), Counters::default());
        let mut errors = Errors::new(now);
        for _ in 0..1000 {
            errors.send(now, Unreachable::Port, &[0x45; 1500], &mut outbox, &mut counters);
        }
        assert_eq!(counters.unreachables, u64::from(ERRORS_PER_SECOND));
        assert_eq!(counters.dropped_icmp_limit, 1000 - u64::from(ERRORS_PER_SECOND));
        let out = outbox.pop().unwrap().to_vec();
        assert_eq!((out.len(), &out[34..36]), (14 + ERROR_BYTES_MAX, &[3, 3][..]));
        errors.send(now + Duration::from_millis(10), Unreachable::Host, &[0x45; 28], &mut outbox, &mut counters);
        assert_eq!(counters.unreachables, u64::from(ERRORS_PER_SECOND) + 1, "one more after 10 ms");
        // A clock that goes backwards gives nothing and breaks nothing.
        errors.send(now, Unreachable::Host, &[0x45; 28], &mut outbox, &mut counters);
        assert_eq!(counters.unreachables, u64::from(ERRORS_PER_SECOND) + 1);
    }
}
