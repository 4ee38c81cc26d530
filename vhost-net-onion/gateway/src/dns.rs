//! The DNS server (RFC 1035): every name exists, and has an address that is made up for it ([`crate::names`]).
//!
//! Whether the name really exists only the far end knows, and says when the VM connects. (If names are to be resolved,
//! [`crate::Policy::resolves`], A, AAAA and ANY of names that are no onion service's are the pump's to answer, a
//! [`Question`].) So:
//!
//! | question | answer |
//! | --- | --- |
//! | A, AAAA | the made-up address of that version, for a minute |
//! | ANY | the made-up IPv4 address (RFC 8482, section 4.1: some of what there is) |
//! | any other type, HTTPS and SVCB among them | no data (RFC 2308): the name exists, it has nothing of that type |
//! | PTR of a made-up address | its name; NXDOMAIN if it stands for none |
//! | `localhost` and below | 127.0.0.1, ::1 (RFC 6761, section 6.3) |
//! | `invalid`, `local`, other `arpa`, what no host can be called | NXDOMAIN (RFC 6761, RFC 6762) |
//! | `use-application-dns.net` | NXDOMAIN, which tells browsers to stay with this server: only it knows the addresses |
//! | transfers of a zone | REFUSED |
//! | other question types, operations, classes, versions of EDNS | as RFC 1035, RFC 6891 and RFC 8906 want it |
//!
//! Negative answers carry a SOA record, and so may be kept as long as others. Messages that are no query are dropped, so
//! that two servers cannot keep each other busy. An answer over UDP fits what the client said it takes, or is cut and
//! marked.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    time::Instant,
};

use hickory_proto::{
    op::{Edns, Message, MessageType, OpCode, Query, ResponseCode},
    rr::{
        DNSClass, Name, RData, Record, RecordType,
        rdata::{A, AAAA, PTR, SOA},
    },
};

use crate::{
    Policy, Unresolved,
    address::{self, Kind},
    counters::Counters,
    names::{self, Names},
};

/// UDP and TCP port of the server.
pub(crate) const PORT: u16 = 53;

/// Seconds that an answer may be kept.
pub(crate) const TTL_S: u32 = names::TTL.as_secs() as u32;

/// Bytes of the longest query that is read: a name, and EDNS options.
pub(crate) const QUERY_BYTES_MAX: usize = 4096;

/// Bytes of the longest answer by UDP to a client that did not say it takes more (RFC 1035, section 4.2.1).
const ANSWER_BYTES_MIN: u16 = 512;

/// Bytes of the longest answer by UDP at all, and what clients are told to send at most: what fits every link unharmed
/// (DNS flag day 2020).
const ANSWER_BYTES_MAX: u16 = 1232;

/// What carries messages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Carrier {
    Udp,
    Tcp,
}

/// What is to be done about a message.
#[derive(Debug)]
pub(crate) enum Reply {
    /// Nothing: it is no query.
    None,
    /// This is sent back.
    Now(Vec<u8>),
    /// The pump finds the answer out.
    Later(Question),
}

/// A question for the addresses of a name, with what is known of the answer.
#[derive(Debug, PartialEq)]
pub(crate) struct Question {
    name: String,
    reply: Message,
    bytes_max: u16,
}

/// Bytes of a message's header.
const HEADER_BYTES: usize = 12;

/// What is known about the name in question.
enum Known {
    /// It does not exist.
    No,
    /// It exists without data of this type.
    NoData,
    /// This is it.
    Data(RData),
    /// There is no room for another name.
    Full,
    /// It is not for asking: the response code.
    Rejected(ResponseCode),
    /// The pump is to find out what this name has.
    Unknown(String),
}

/// Answers a message that came to the server's port, without the length that goes before it on TCP.
pub(crate) fn handle(
    now: Instant,
    message: &[u8],
    carrier: Carrier,
    policy: &dyn Policy,
    names: &mut Names,
    counters: &mut Counters,
) -> Reply {
    // Bit 15 of the flags marks responses.
    if message.len() < HEADER_BYTES || message[2] & 0x80 != 0 {
        counters.dns_ignored += 1;
        return Reply::None;
    }
    counters.dns_replies += 1;
    let query = Some(message).filter(|message| message.len() <= QUERY_BYTES_MAX).map(Message::from_vec);
    let Some(Ok(query)) = query else {
        let op_code = OpCode::from_u8(message[2] >> 3 & 0x0f);
        let id = u16::from_be_bytes([message[0], message[1]]);
        return Message::error_msg(id, op_code, ResponseCode::FormErr).to_vec().map_or(Reply::None, Reply::Now);
    };
    let bytes_max = match carrier {
        Carrier::Tcp => u16::MAX,
        Carrier::Udp => query.edns.as_ref().map_or(0, Edns::max_payload).clamp(ANSWER_BYTES_MIN, ANSWER_BYTES_MAX),
    };
    match answer(now, &query, policy, names, counters) {
        (reply, Some(name)) => Reply::Later(Question { name, reply, bytes_max }),
        (reply, None) => encode(&reply, bytes_max).map_or(Reply::None, Reply::Now),
    }
}

impl Question {
    /// The name in question.
    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// The answer, once the addresses are known, or why there are none. None if it cannot be written.
    pub(crate) fn answer(mut self, found: Result<&[IpAddr], Unresolved>) -> Option<Vec<u8>> {
        let question = self.reply.queries.first()?;
        let (name, is_v6) = (question.name.clone(), question.query_type == RecordType::AAAA);
        match found {
            Ok(addresses) => {
                // Whoever answers must not send the VM to the gateway, or to another name's address.
                let usable = addresses
                    .iter()
                    .filter(|address| address.is_ipv6() == is_v6 && address::kind(**address) == Kind::Remote);
                let data = usable.map(|address| match *address {
                    IpAddr::V4(v4) => RData::A(A(v4)),
                    IpAddr::V6(v6) => RData::AAAA(AAAA(v6)),
                });
                self.reply.answers.extend(data.map(|data| Record::from_rdata(name.clone(), TTL_S, data)));
            }
            Err(Unresolved::NoSuchName) => self.reply.metadata.response_code = ResponseCode::NXDomain,
            Err(Unresolved::Failed) => self.reply.metadata.response_code = ResponseCode::ServFail,
        }
        if self.reply.answers.is_empty() && self.reply.metadata.response_code != ResponseCode::ServFail {
            self.reply.authorities.push(start_of_authority());
        }
        encode(&self.reply, self.bytes_max)
    }
}

/// Writes an answer, or only its header and question, marked as cut, if it is longer than the carrier takes.
fn encode(reply: &Message, bytes_max: u16) -> Option<Vec<u8>> {
    let bytes = reply.to_vec().ok()?;
    if bytes.len() <= usize::from(bytes_max) { Some(bytes) } else { reply.truncate().to_vec().ok() }
}

/// The answer; or, with a name, what is known of it until that is resolved.
fn answer(
    now: Instant,
    query: &Message,
    policy: &dyn Policy,
    names: &mut Names,
    counters: &mut Counters,
) -> (Message, Option<String>) {
    let mut reply = Message::new(query.metadata.id, MessageType::Response, query.metadata.op_code);
    reply.metadata.recursion_desired = query.metadata.recursion_desired;
    reply.metadata.checking_disabled = query.metadata.checking_disabled;
    reply.metadata.recursion_available = true;
    if let Some(theirs) = &query.edns {
        reply.edns = Some(edns(theirs));
        if theirs.version() != 0 {
            // Its low bits are 0, the high ones go into the OPT record when it is written (RFC 6891, section 6.1.3).
            reply.metadata.response_code = ResponseCode::BADVERS;
            return (reply, None);
        }
    }
    if query.metadata.op_code != OpCode::Query {
        reply.metadata.response_code = ResponseCode::NotImp;
        return (reply, None);
    }
    let [question] = &query.queries[..] else {
        reply.metadata.response_code = ResponseCode::FormErr;
        return (reply, None);
    };
    reply.queries.push(question.clone());
    if !matches!(question.query_class, DNSClass::IN | DNSClass::ANY) {
        reply.metadata.response_code = ResponseCode::Refused;
        return (reply, None);
    }
    match look_up(now, question, policy, names, counters) {
        Known::Data(data) => reply.answers.push(Record::from_rdata(question.name.clone(), TTL_S, data)),
        Known::NoData => reply.authorities.push(start_of_authority()),
        Known::No => {
            reply.metadata.response_code = ResponseCode::NXDomain;
            reply.authorities.push(start_of_authority());
        }
        Known::Full => {
            counters.names_full += 1;
            reply.metadata.response_code = ResponseCode::ServFail;
        }
        Known::Rejected(code) => reply.metadata.response_code = code,
        Known::Unknown(name) => return (reply, Some(name)),
    }
    (reply, None)
}

fn look_up(now: Instant, question: &Query, policy: &dyn Policy, names: &mut Names, counters: &mut Counters) -> Known {
    if let Some(code) = rejection(question.query_type) {
        return Known::Rejected(code);
    }
    let labels: Vec<&[u8]> = question.name.iter().collect();
    let is = |label: &[u8], text: &str| label.eq_ignore_ascii_case(text.as_bytes());
    match labels[..] {
        // The root exists, and so does what is above names that may exist (RFC 8020).
        [] => return Known::NoData,
        [arpa] if is(arpa, "arpa") => return Known::NoData,
        [ref host @ .., in_addr, arpa] if is(arpa, "arpa") && is(in_addr, "in-addr") => {
            return reverse(host, octet, question.query_type, names, |octets: [u8; 4]| Ipv4Addr::from(octets).into());
        }
        [ref host @ .., ip6, arpa] if is(arpa, "arpa") && is(ip6, "ip6") => {
            return reverse(host, nibble, question.query_type, names, |nibbles: [u8; 32]| {
                let octets: [u8; 16] = std::array::from_fn(|n| nibbles[2 * n] << 4 | nibbles[2 * n + 1]);
                Ipv6Addr::from(octets).into()
            });
        }
        [.., top] if is(top, "localhost") => {
            return data(question.query_type, || Some((Ipv4Addr::LOCALHOST, Ipv6Addr::LOCALHOST)));
        }
        [.., top] if is(top, "arpa") || is(top, "invalid") || is(top, "local") => return Known::No,
        [second, top] if is(second, "use-application-dns") && is(top, "net") => return Known::No,
        _ => {}
    }
    let Some(name) = names::host_name(labels.into_iter()) else { return Known::No };
    if has_addresses(question.query_type) && !names::is_onion(&name) && policy.resolves(&name) {
        return Known::Unknown(name);
    }
    data(question.query_type, || {
        let address = names.address(now, &name, counters)?;
        Some((address, names::to_v6(address)))
    })
}

/// What a name with these addresses has of a type. The addresses are asked for only if it is one of theirs.
fn data(query_type: RecordType, addresses: impl FnOnce() -> Option<(Ipv4Addr, Ipv6Addr)>) -> Known {
    if !has_addresses(query_type) {
        return Known::NoData;
    }
    addresses().map_or(Known::Full, |(v4, v6)| {
        Known::Data(if query_type == RecordType::AAAA { RData::AAAA(AAAA(v6)) } else { RData::A(A(v4)) })
    })
}

fn has_addresses(query_type: RecordType) -> bool {
    matches!(query_type, RecordType::A | RecordType::AAAA | RecordType::ANY)
}

/// Types that are not data, but ask for something else (RFC 6895, section 3.1): the range from 128 to 255, and OPT.
fn rejection(query_type: RecordType) -> Option<ResponseCode> {
    match query_type {
        RecordType::ANY => None,
        RecordType::AXFR | RecordType::IXFR => Some(ResponseCode::Refused),
        RecordType::OPT => Some(ResponseCode::FormErr),
        other => (128..=255).contains(&u16::from(other)).then_some(ResponseCode::NotImp),
    }
}

/// The name of an address: `labels` are its `N` parts as `part` reads them, the last one first.
fn reverse<const N: usize>(
    labels: &[&[u8]],
    part: impl Fn(&str) -> Option<u8>,
    query_type: RecordType,
    names: &Names,
    address: impl Fn([u8; N]) -> IpAddr,
) -> Known {
    let read = |label: &&[u8]| std::str::from_utf8(label).ok().and_then(&part);
    let Some(mut parts) = labels.iter().map(read).collect::<Option<Vec<u8>>>() else { return Known::No };
    parts.reverse();
    if parts.len() < N {
        return Known::NoData;
    }
    let Ok(parts) = <[u8; N]>::try_from(parts) else { return Known::No };
    let known = names.name(address(parts)).and_then(|name| Name::from_ascii(format!("{name}.")).ok());
    match known {
        None => Known::No,
        Some(name) if matches!(query_type, RecordType::PTR | RecordType::ANY) => Known::Data(RData::PTR(PTR(name))),
        Some(_) => Known::NoData,
    }
}

/// A label below `in-addr.arpa` (RFC 1035, section 3.5).
fn octet(label: &str) -> Option<u8> {
    let is_number = label.len() <= 3 && label.bytes().all(|byte| byte.is_ascii_digit());
    is_number.then(|| label.parse().ok())?
}

/// A label below `ip6.arpa` (RFC 3596, section 2.5).
fn nibble(label: &str) -> Option<u8> {
    let is_digit = label.len() == 1 && label.bytes().all(|byte| byte.is_ascii_hexdigit());
    is_digit.then(|| u8::from_str_radix(label, 16).ok())?
}

/// Without it a resolver may keep a negative answer for as long as it likes (RFC 2308, section 5).
fn start_of_authority() -> Record {
    let ttl = TTL_S.cast_signed();
    let soa = SOA::new(Name::root(), Name::root(), 1, ttl, ttl, ttl, TTL_S);
    Record::from_rdata(Name::root(), TTL_S, RData::SOA(soa))
}

fn edns(theirs: &Edns) -> Edns {
    let mut ours = Edns::new();
    ours.set_max_payload(ANSWER_BYTES_MAX);
    ours.flags_mut().dnssec_ok = theirs.flags().dnssec_ok;
    ours
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Server {
        names: Names,
        counters: Counters,
        now: Instant,
    }

    fn server() -> Server {
        server_of(100)
    }

    fn server_of(names_max: usize) -> Server {
        Server { names: Names::new(names_max, [1, 2, 3, 4]), counters: Counters::default(), now: Instant::now() }
    }

    fn query(name: &str, kind: RecordType) -> Message {
        let mut message = Message::new(0x1234, MessageType::Query, OpCode::Query);
        message.metadata.recursion_desired = true;
        message.queries.push(Query::query(Name::from_ascii(name).unwrap(), kind));
        message
    }

    impl Server {
        fn handle(&mut self, message: &[u8]) -> Option<Vec<u8>> {
            match handle(self.now, message, Carrier::Udp, &crate::policy::Usual, &mut self.names, &mut self.counters) {
                Reply::None => None,
                Reply::Now(reply) => Some(reply),
                Reply::Later(question) => panic!("{} is not to be resolved", question.name()),
            }
        }

        fn ask(&mut self, query: &Message) -> Message {
            let reply = self.handle(&query.to_vec().unwrap()).unwrap();
            let reply = Message::from_vec(&reply).unwrap();
            assert_eq!(reply.metadata.id, query.metadata.id);
            assert_eq!(reply.metadata.message_type, MessageType::Response);
            reply
        }

        fn address(&mut self, name: &str) -> Option<Ipv4Addr> {
            match self.ask(&query(name, RecordType::A)).answers.first()?.data {
                RData::A(A(address)) => Some(address),
                _ => None,
            }
        }

        fn address_v6(&mut self, name: &str) -> Option<Ipv6Addr> {
            match self.ask(&query(name, RecordType::AAAA)).answers.first()?.data {
                RData::AAAA(AAAA(address)) => Some(address),
                _ => None,
            }
        }

        fn name_of(&mut self, reversed: &str) -> Option<String> {
            match &self.ask(&query(reversed, RecordType::PTR)).answers.first()?.data {
                RData::PTR(PTR(name)) => Some(name.to_ascii()),
                _ => None,
            }
        }

        fn code(&mut self, name: &str, kind: RecordType) -> ResponseCode {
            self.ask(&query(name, kind)).metadata.response_code
        }
    }

    #[test]
    fn names_get_addresses_and_keep_them() {
        let mut server = server();
        let onion = format!("{}.onion.", "b".repeat(56));
        let (a, b) = (server.address("example.com.").unwrap(), server.address(&onion).unwrap());
        assert!(a != b && names::is_made_up(a) && names::is_made_up(b));
        assert_eq!(server.address("EXAMPLE.com."), Some(a), "case does not matter");
        assert_eq!(server.names.name(b), Some(onion.trim_end_matches('.')));
        assert_eq!(server.address_v6("example.com."), Some(names::to_v6(a)));
        assert_eq!(server.address_v6("first.example."), server.address("first.example.").map(names::to_v6));
    }

    #[test]
    fn the_question_comes_back_as_it_was_asked() {
        let mut server = server();
        let asked = query("eXaMpLe.CoM.", RecordType::A);
        let reply = server.ask(&asked);
        assert!(reply.queries[0].name.eq_case(&asked.queries[0].name));
        assert_eq!(reply.answers[0].ttl, TTL_S);
        assert!(reply.metadata.recursion_available && reply.metadata.recursion_desired);
    }

    #[test]
    fn other_types_have_no_data_and_say_for_how_long() {
        let mut server = server();
        for kind in [RecordType::SVCB, RecordType::MX, RecordType::HTTPS, RecordType::TXT, RecordType::Unknown(999)] {
            let reply = server.ask(&query("example.com.", kind));
            assert_eq!(reply.metadata.response_code, ResponseCode::NoError);
            assert!(reply.answers.is_empty());
            assert!(matches!(&reply.authorities[0].data, RData::SOA(soa) if soa.minimum == TTL_S));
        }
        assert_eq!(server.names.len(), 0, "and no address was used up");
    }

    #[test]
    fn addresses_know_their_names() {
        let mut server = server();
        let address = server.address("example.com.").unwrap();
        let [a, b, c, d] = address.octets();
        let reversed = format!("{d}.{c}.{b}.{a}.in-addr.arpa.");
        assert_eq!(server.name_of(&reversed).unwrap(), "example.com.");
        assert_eq!(server.code(&reversed, RecordType::A), ResponseCode::NoError);
        let nibbles = format!("{:032x}", names::to_v6(address).to_bits());
        let labels: Vec<String> = nibbles.chars().rev().map(String::from).collect();
        let reversed = format!("{}.ip6.arpa.", labels.join("."));
        assert_eq!(server.name_of(&reversed.to_uppercase()).unwrap(), "example.com.");
        assert_eq!(server.code(&reversed, RecordType::AAAA), ResponseCode::NoError);
        let of_nobody = format!("{}.ip6.arpa.", ["1"; 32].join("."));
        assert_eq!(server.code(&of_nobody, RecordType::PTR), ResponseCode::NXDomain);
        for unknown in ["1.2.3.4", "1.2.3.4.5", "x.2.3.4", "256.2.3.4", "0001.2.3.4", "x"] {
            let name = format!("{unknown}.in-addr.arpa.");
            assert_eq!(server.code(&name, RecordType::PTR), ResponseCode::NXDomain, "{name}");
        }
        for above in ["arpa.", "in-addr.arpa.", "10.in-addr.arpa.", "3.2.1.in-addr.arpa.", "ip6.arpa.", "d.f.ip6.arpa."]
        {
            assert_eq!(server.code(above, RecordType::PTR), ResponseCode::NoError, "{above}");
        }
        assert_eq!(server.code("10.ip6.arpa.", RecordType::PTR), ResponseCode::NXDomain);
    }

    #[test]
    fn special_names() {
        let mut server = server();
        assert_eq!(server.address("localhost."), Some(Ipv4Addr::LOCALHOST));
        assert_eq!(server.address("x.LOCALHOST."), Some(Ipv4Addr::LOCALHOST));
        assert_eq!(server.address_v6("localhost."), Some(Ipv6Addr::LOCALHOST));
        assert_eq!(server.code("localhost.", RecordType::MX), ResponseCode::NoError);
        assert_eq!(server.code(".", RecordType::NS), ResponseCode::NoError);
        for name in ["a.invalid.", "printer.local.", "_dns.resolver.arpa.", "use-application-dns.net.", "1.2.3.4."] {
            assert_eq!(server.code(name, RecordType::A), ResponseCode::NXDomain, "{name}");
        }
        let mut asked = query(".", RecordType::A);
        asked.queries[0].name = Name::from_labels([&b"a b"[..], b"\xff", b"com"]).unwrap();
        assert_eq!(server.ask(&asked).metadata.response_code, ResponseCode::NXDomain);
    }

    #[test]
    fn edns_is_answered_in_kind() {
        let mut server = server();
        let mut asked = query("example.com.", RecordType::A);
        assert!(server.ask(&asked).edns.is_none());
        let mut edns = Edns::new();
        edns.set_max_payload(4096).set_dnssec_ok(true);
        asked.edns = Some(edns.clone());
        let reply = server.ask(&asked).edns.unwrap();
        assert_eq!((reply.max_payload(), reply.flags().dnssec_ok, reply.version()), (1232, true, 0));
        edns.set_version(1);
        asked.edns = Some(edns);
        let reply = server.ask(&asked);
        assert_eq!(u16::from(reply.metadata.response_code), 16, "BADVERS; BADSIG has the same number");
        assert!(reply.answers.is_empty());
    }

    #[test]
    fn what_is_no_proper_query_is_refused_or_dropped() {
        let mut server = server();
        let mut two = query("a.example.", RecordType::A);
        two.queries.push(two.queries[0].clone());
        assert_eq!(server.ask(&two).metadata.response_code, ResponseCode::FormErr);
        let mut none = query("a.example.", RecordType::A);
        none.queries.clear();
        assert_eq!(server.ask(&none).metadata.response_code, ResponseCode::FormErr);
        let mut chaos = query("version.bind.", RecordType::TXT);
        chaos.queries[0].query_class = DNSClass::CH;
        assert_eq!(server.ask(&chaos).metadata.response_code, ResponseCode::Refused);
        let mut status = query("a.example.", RecordType::A);
        status.metadata.op_code = OpCode::Status;
        assert_eq!(server.ask(&status).metadata.response_code, ResponseCode::NotImp);

        let mut response = query("a.example.", RecordType::A);
        response.metadata.message_type = MessageType::Response;
        assert!(server.handle(&response.to_vec().unwrap()).is_none());
        assert_eq!(server.counters.dns_ignored, 1);

        let mut long = query("a.example.", RecordType::A).to_vec().unwrap();
        long.resize(QUERY_BYTES_MAX + 1, 0);
        let reply = Message::from_vec(&server.handle(&long).unwrap()).unwrap();
        assert_eq!(reply.metadata.response_code, ResponseCode::FormErr);
    }

    #[test]
    fn types_that_are_no_data_are_rejected() {
        let mut server = server();
        for (kind, code) in [
            (RecordType::AXFR, ResponseCode::Refused),
            (RecordType::IXFR, ResponseCode::Refused),
            (RecordType::OPT, ResponseCode::FormErr),
            (RecordType::Unknown(128), ResponseCode::NotImp),
            (RecordType::Unknown(254), ResponseCode::NotImp),
            (RecordType::Unknown(127), ResponseCode::NoError),
            (RecordType::Unknown(256), ResponseCode::NoError),
            (RecordType::ANY, ResponseCode::NoError),
        ] {
            assert_eq!(server.code("a.example.", kind), code, "{kind}");
        }
    }

    #[test]
    fn bits_that_mean_nothing_here_do_not_come_back() {
        let mut server = server();
        let mut asked = query("a.example.", RecordType::A);
        (asked.metadata.checking_disabled, asked.metadata.authentic_data) = (true, true);
        let mut bytes = asked.to_vec().unwrap();
        bytes[3] |= 0x40;
        let reply = server.handle(&bytes).unwrap();
        assert_eq!((reply[2], reply[3]), (0x81, 0x90), "RD, RA and CD; neither AD nor Z");
    }

    #[test]
    fn every_truncation_and_bit_flip_is_survived() {
        let mut server = server();
        let mut asked = query("a.example.", RecordType::A);
        asked.edns = Some(Edns::new());
        let whole = asked.to_vec().unwrap();
        for length in 0..whole.len() {
            let reply = server.handle(&whole[..length]);
            assert_eq!(reply.is_some(), length >= HEADER_BYTES, "{length}");
            let Some(reply) = reply else { continue };
            assert_eq!(Message::from_vec(&reply).unwrap().metadata.response_code, ResponseCode::FormErr);
        }
        for at in 0..whole.len() * 8 {
            let mut broken = whole.clone();
            broken[at / 8] ^= 1 << (at % 8);
            let reply = server.handle(&broken);
            assert!(reply.is_none_or(|bytes| bytes.len() <= usize::from(ANSWER_BYTES_MIN)));
        }
    }

    #[test]
    fn what_is_too_long_is_cut_and_marked() {
        let mut reply = query("a.example.", RecordType::A);
        let record = Record::from_rdata(Name::root(), TTL_S, RData::A(A(Ipv4Addr::LOCALHOST)));
        reply.edns = Some(Edns::new());
        reply.answers = vec![record; 100];
        let whole = encode(&reply, u16::MAX).unwrap();
        assert_eq!(encode(&reply, whole.len() as u16), Some(whole.clone()));
        let cut = Message::from_vec(&encode(&reply, whole.len() as u16 - 1).unwrap()).unwrap();
        assert_eq!((cut.metadata.truncation, cut.answers.len(), cut.queries.len()), (true, 0, 1));
        assert!(cut.edns.is_some());
    }

    #[test]
    fn the_longest_name_still_fits() {
        let mut server = server();
        let long = format!("{0}.{0}.{0}.{1}.", "x".repeat(63), "x".repeat(61));
        let [a, b, c, d] = server.address(&long).unwrap().octets();
        let reply = server.ask(&query(&format!("{d}.{c}.{b}.{a}.in-addr.arpa."), RecordType::PTR));
        assert_eq!((reply.answers.len(), reply.metadata.truncation), (1, false));
    }

    #[test]
    fn a_full_table_fails_and_is_counted() {
        let mut server = server_of(1);
        let held = server.address("a.example.").unwrap();
        server.names.hold(held);
        assert_eq!(server.code("b.example.", RecordType::A), ResponseCode::ServFail);
        assert_eq!(server.counters.names_full, 1);
    }
}
