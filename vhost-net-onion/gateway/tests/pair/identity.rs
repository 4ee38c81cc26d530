//! What a VM asks about itself, by HTTP at the gateway's addresses.

use std::time::Duration;

use gateway::{AskId, config::GATEWAY_ADDRESS_V6};
use smoltcp::{iface::SocketHandle, socket::tcp};
use wire::identity::{Answer, OnionService, Question, Refusal};

use crate::world::{GATEWAY, Link, World, pattern};

const PORT: u16 = 80;

fn service(name: &str) -> Answer {
    Answer::Onions(vec![OnionService { name: name.into(), onion: format!("{}.onion", "q".repeat(56)) }])
}

impl World {
    /// Sends a request; gives its connection and the question that it became.
    fn ask(&mut self, request: &[u8]) -> (SocketHandle, AskId, Question) {
        let handle = self.connect(GATEWAY, PORT);
        self.talk(handle, request, |_| true);
        for _ in 0..30_000 {
            if let Some((ask, question)) = self.gateway.poll_ask() {
                return (handle, ask, question);
            }
            self.run_for(Duration::from_millis(1));
        }
        panic!("it was not asked; {:?}", self.gateway.counters());
    }

    /// The whole answer, after which the gateway has ended the connection; the VM ends it too.
    fn heard(&mut self, handle: SocketHandle) -> String {
        let mut received = self.talk(handle, b"", |received| received.windows(4).any(|four| four == b"\r\n\r\n"));
        self.run_until(60, |world| world.socket(handle).state() == tcp::State::CloseWait);
        received.extend(self.talk(handle, b"", |_| true));
        self.socket(handle).close();
        String::from_utf8(received).unwrap()
    }
}

#[test]
fn a_question_is_the_pumps_and_its_answer_the_vms() {
    let mut world = World::new();
    let (handle, ask, question) = world.ask(b"GET /identity/onions HTTP/1.1\r\nHost: 10.0.2.2\r\n\r\n");
    assert_eq!(question, Question::Onions);
    world.run_for(Duration::from_secs(5));
    assert!(!world.socket(handle).can_recv(), "nothing before the answer");
    world.gateway.answered(world.now, ask, &service("blog"));
    let heard = world.heard(handle);
    let (head, body) = heard.split_once("\r\n\r\n").unwrap();
    assert!(head.starts_with("HTTP/1.1 200 OK\r\n") && head.contains("application/json"), "{heard}");
    assert!(head.contains(&format!("Content-Length: {}\r\n", body.len())) && body.contains("\"blog\""), "{heard}");
    world.run_until(60, |world| world.gateway.flows() == 0);
    // An answer that comes again, or for a connection that is gone, is nobody's.
    world.gateway.answered(world.now, ask, &service("blog"));
    assert!(world.flows.is_empty(), "the pump knows nothing of the connection");
}

#[test]
fn what_is_to_be_signed_is_digested_on_the_way_over_a_bad_link() {
    let text = pattern(64 << 10);
    let head = format!("POST /identity/sign HTTP/1.1\r\nContent-Length: {}\r\n\r\n", text.len());
    let mut digests = vec![];
    for link in [Link::default(), Link { lost: 30, twice: 30, late: 30 }] {
        let mut world = World::new();
        world.link = link;
        let (handle, ask, question) = world.ask(&[head.as_bytes(), &text].concat());
        let Question::Sign { sha256 } = question else { panic!("{question:?}") };
        digests.push(sha256.to_string());
        world.gateway.answered(world.now, ask, &Refusal::Locked.because("locked"));
        assert!(world.heard(handle).starts_with("HTTP/1.1 423 Locked\r\n"));
    }
    // By sha256sum.
    assert_eq!(digests[0], digests[1]);
    let (_, _, empty) = World::new().ask(b"POST /identity/sign HTTP/1.1\r\nContent-Length: 0\r\n\r\n");
    let sha256 = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855".parse().unwrap();
    assert_eq!(empty, Question::Sign { sha256 });
}

#[test]
fn who_asks_without_end_is_told_to_wait_and_it_is_counted() {
    let mut world = World::new();
    let request = b"GET /identity HTTP/1.1\r\n\r\n";
    let waiting: Vec<_> = (0..4).map(|_| world.ask(request)).collect();
    let handle = world.connect(GATEWAY, PORT);
    world.talk(handle, request, |_| true);
    assert!(world.heard(handle).starts_with("HTTP/1.1 429 "), "four wait already");
    assert_eq!((world.gateway.counters().asks, world.gateway.counters().asks_refused), (4, 1));
    assert!(world.gateway.counters().drops().contains(&("asks", 1)));
    let (handle, ask, _) = waiting[0];
    world.gateway.answered(world.now, ask, &service("blog"));
    assert!(world.heard(handle).contains("\"blog\""));
    world.ask(request);
    // The others hang up, or are never answered: nothing is left of them.
    for (handle, ..) in &waiting[1..] {
        world.socket(*handle).abort();
    }
    world.run_for(Duration::from_secs(200));
    assert_eq!(world.gateway.flows(), 0);
    for (_, ask, _) in &waiting[1..] {
        world.gateway.answered(world.now, *ask, &service("late"));
    }
}

#[test]
fn it_is_asked_by_ipv6_too() {
    let mut world = World::autoconfigured();
    let handle = world.connect(GATEWAY_ADDRESS_V6, PORT);
    world.talk(handle, b"GET /identity HTTP/1.1\r\nHost: [fd6f:6874:1::2]\r\n\r\n", |_| true);
    world.run_for(Duration::from_secs(1));
    let (ask, question) = world.gateway.poll_ask().unwrap();
    assert_eq!(question, Question::Who);
    world.gateway.answered(world.now, ask, &Refusal::NotFound.because("nobody"));
    assert!(world.heard(handle).starts_with("HTTP/1.1 404 "));
}

#[test]
fn a_page_in_a_browser_is_told_nothing() {
    let mut world = World::new();
    let handle = world.connect(GATEWAY, PORT);
    let request = b"POST /identity/sign HTTP/1.1\r\nHost: 10.0.2.2\r\nOrigin: http://evil.example\r\n\
        Content-Length: 3\r\n\r\nowe";
    world.talk(handle, request, |_| true);
    assert!(world.heard(handle).starts_with("HTTP/1.1 403 "));
    assert!(world.gateway.poll_ask().is_none());
}
