//! Names that are resolved by the pump instead of getting made-up addresses.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    sync::Arc,
    time::Duration,
};

use gateway::{Config, Policy, QueryId, Unresolved};
use hickory_proto::{
    op::{Message, ResponseCode},
    rr::{
        RData, RecordType,
        rdata::{A, AAAA},
    },
};
use smoltcp::wire::IpProtocol;

use crate::{
    raw::{self, Bare, ip_of},
    services::{question, resolve},
    world::{GATEWAY, World},
};

const V4: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 7);
const V6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 7);
const BOTH: [IpAddr; 2] = [IpAddr::V4(V4), IpAddr::V6(V6)];

/// Resolves all names but one.
#[derive(Debug)]
struct Resolving;

impl Policy for Resolving {
    fn resolves(&self, name: &str) -> bool {
        name != "made.up"
    }
}

fn config() -> Config {
    Config { policy: Arc::new(Resolving), ..Config::default() }
}

/// Asks by UDP: nothing is answered yet.
fn ask(bare: &mut Bare, name: &str, kind: RecordType) -> QueryId {
    assert!(bare.exchange(&raw::udp(GATEWAY, (5353, 53), &question(name, kind))).is_empty());
    let (query, asked) = bare.gateway.poll_question().unwrap();
    assert_eq!((asked.as_str(), bare.gateway.poll_question()), (name.trim_end_matches('.'), None));
    query
}

fn answered(bare: &mut Bare) -> Message {
    let frames = bare.frames();
    let [frame] = &frames[..] else { panic!("{} frames", frames.len()) };
    let packet = ip_of(frame, IpProtocol::Udp);
    assert_eq!((packet.src_addr(), &packet.payload()[..4]), (GATEWAY, &[0, 53, 20, 233][..]));
    Message::from_vec(&packet.payload()[8..]).unwrap()
}

#[test]
fn each_type_gets_its_own_addresses_and_none_is_no_data() {
    let mut bare = Bare::new(config());
    let (a, aaaa) = (RData::A(A(V4)), RData::AAAA(AAAA(V6)));
    let cases = [
        (RecordType::A, &BOTH[..], Some(&a)),
        (RecordType::ANY, &BOTH[..], Some(&a)),
        (RecordType::AAAA, &BOTH[..], Some(&aaaa)),
        (RecordType::AAAA, &BOTH[..1], None),
        (RecordType::A, &[], None),
    ];
    for (kind, found, expected) in cases {
        let query = ask(&mut bare, "a.example.", kind);
        bare.gateway.resolved(bare.now, query, Ok(found));
        let answer = answered(&mut bare);
        assert_eq!(answer.metadata.response_code, ResponseCode::NoError);
        assert_eq!(answer.answers.first().map(|record| &record.data), expected, "{kind} of {found:?}");
        assert_eq!(answer.authorities.is_empty(), expected.is_some(), "no data says for how long");
        bare.gateway.resolved(bare.now, query, Ok(found));
        assert!(bare.frames().is_empty(), "a question is answered once");
    }
}

#[test]
fn a_name_that_does_not_exist_and_a_resolver_that_fails_are_two_different_things() {
    let mut bare = Bare::new(config());
    for (why, code, is_kept) in
        [(Unresolved::NoSuchName, ResponseCode::NXDomain, true), (Unresolved::Failed, ResponseCode::ServFail, false)]
    {
        let query = ask(&mut bare, "nx.example.", RecordType::A);
        bare.gateway.resolved(bare.now, query, Err(why));
        let answer = answered(&mut bare);
        assert_eq!((answer.metadata.response_code, answer.answers.len()), (code, 0));
        assert_eq!(!answer.authorities.is_empty(), is_kept);
    }
}

/// An exit may say what it likes; what means something on the link itself is not passed on.
#[test]
fn addresses_of_the_link_are_no_answer() {
    let mut bare = Bare::new(config());
    for address in ["10.0.2.2", "10.0.2.15", "10.192.0.1", "127.0.0.1", "169.254.1.1", "224.0.0.1", "0.0.0.0"] {
        let query = ask(&mut bare, "a.example.", RecordType::A);
        bare.gateway.resolved(bare.now, query, Ok(&[address.parse().unwrap(), V4.into()]));
        let answer = answered(&mut bare);
        assert_eq!(answer.answers.len(), 1, "{address}");
        assert_eq!(answer.answers[0].data, RData::A(A(V4)));
    }
    for address in ["fd6f:6874:1::2", "fd6f:6874:2::ac0:1", "fe80::1", "::1", "::ffff:10.0.2.2"] {
        let query = ask(&mut bare, "a.example.", RecordType::AAAA);
        bare.gateway.resolved(bare.now, query, Ok(&[address.parse().unwrap()]));
        assert!(answered(&mut bare).answers.is_empty(), "{address}");
    }
}

#[test]
fn onion_services_special_names_and_those_of_another_policy_are_not_for_the_pump() {
    let mut bare = Bare::new(config());
    let onion = format!("{}.onion.", "b".repeat(56));
    assert_eq!(resolve(&mut bare, &onion).octets()[0], 10, "a made-up address");
    assert_eq!(resolve(&mut bare, "made.up.").octets()[0], 10, "another one");
    assert_eq!(resolve(&mut bare, "localhost."), Ipv4Addr::LOCALHOST);
    for (name, kind) in [("a.invalid.", RecordType::A), ("a.example.", RecordType::HTTPS)] {
        assert_eq!(bare.exchange(&raw::udp(GATEWAY, (5353, 53), &question(name, kind))).len(), 1, "{name}");
    }
    assert_eq!(bare.gateway.poll_question(), None);
}

#[test]
fn questions_that_wait_are_bounded() {
    let mut bare = Bare::new(config());
    let asked = (0..1000).map(|n| raw::udp(GATEWAY, (5353, 53), &question(&format!("n{n}.example."), RecordType::A)));
    let mut refused = 0;
    for frame in asked {
        for frame in bare.exchange(&frame) {
            let answer = Message::from_vec(&ip_of(&frame, IpProtocol::Udp).payload()[8..]).unwrap();
            assert_eq!(answer.metadata.response_code, ResponseCode::ServFail);
            refused += 1;
        }
    }
    let waiting = std::iter::from_fn(|| bare.gateway.poll_question()).count();
    assert_eq!((waiting, refused), (256, 744));
}

fn next_question(world: &mut World) -> (QueryId, String) {
    for _ in 0..5000 {
        if let Some(question) = world.gateway.poll_question() {
            return question;
        }
        world.run_for(Duration::from_millis(1));
    }
    panic!("nothing is asked")
}

#[test]
fn questions_by_tcp_are_answered_in_order() {
    let mut world = World::with(config());
    let handle = world.connect(GATEWAY, 53);
    let framed = |name| {
        let message = question(name, RecordType::A);
        [&(message.len() as u16).to_be_bytes()[..], &message].concat()
    };
    let both = [framed("a.example."), framed("b.example."), framed("localhost.")].concat();
    assert!(world.talk(handle, &both, |_| true).is_empty());
    let mut received = vec![];
    for name in ["a.example", "b.example"] {
        let (query, asked) = next_question(&mut world);
        assert_eq!((asked.as_str(), world.gateway.poll_question()), (name, None), "one at a time");
        world.gateway.resolved(world.now, query, Ok(&BOTH));
        world.pump();
        received.extend(world.talk(handle, b"", |received| received.len() > 2));
    }
    while received.windows(4).filter(|bytes| *bytes == [127, 0, 0, 1]).count() == 0 {
        received.extend(world.talk(handle, b"", |received| received.len() > 2));
    }
    assert_eq!(received.windows(4).filter(|bytes| *bytes == V4.octets()).count(), 2);
    world.socket(handle).close();
    world.run_until(60, |world| world.gateway.flows() == 0);
}

#[test]
fn an_answer_for_a_connection_that_is_gone_goes_nowhere() {
    let mut world = World::with(config());
    let handle = world.connect(GATEWAY, 53);
    let message = question("a.example.", RecordType::A);
    world.talk(handle, &[&(message.len() as u16).to_be_bytes()[..], &message].concat(), |_| true);
    let (query, _) = next_question(&mut world);
    world.socket(handle).abort();
    world.run_until(60, |world| world.gateway.flows() == 0);
    world.gateway.resolved(world.now, query, Ok(&BOTH));
    world.run_for(Duration::from_secs(1));
}
