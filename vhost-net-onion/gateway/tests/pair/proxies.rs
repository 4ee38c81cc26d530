//! The services by TCP at the gateway's own addresses, as a VM's programs use them.

use std::time::Duration;

use gateway::{Config, Credential, Event, Failure, FlowId, Host, Target};
use hickory_proto::{op::Message, rr::RecordType};
use smoltcp::{iface::SocketHandle, socket::tcp, wire::TcpControl};

use crate::{
    raw::{self, Bare, segment, tcp_of},
    services::question,
    world::{Answer, GATEWAY, Link, World, pattern},
};

const SOCKS: u16 = 9050;
const HTTP: u16 = 8118;
const DNS: u16 = 53;

/// No authentication, and CONNECT to port 443 of a name.
fn socks_request(name: &str) -> Vec<u8> {
    let head = [5, 1, 0, 5, 1, 0, 3, name.len() as u8];
    [&head[..], name.as_bytes(), &443u16.to_be_bytes()].concat()
}

const SOCKS_SUCCESS: &[u8] = b"\x05\0\x05\0\0\x01\0\0\0\0\0\0";

fn target(name: &str) -> Option<Target> {
    Some(Target { host: Host::Name(name.to_owned()), port: 443 })
}

impl World {
    /// Sends as the socket takes it, while time passes; then, or when `until` is known, returns what came.
    pub(crate) fn talk(&mut self, handle: SocketHandle, mut bytes: &[u8], until: impl Fn(&[u8]) -> bool) -> Vec<u8> {
        let mut received = vec![];
        for _ in 0..200_000 {
            let socket = self.socket(handle);
            if socket.can_send() && !bytes.is_empty() {
                bytes = &bytes[socket.send_slice(bytes).unwrap()..];
            }
            while socket.can_recv() {
                socket
                    .recv(|data| {
                        received.extend_from_slice(data);
                        (data.len(), ())
                    })
                    .unwrap();
            }
            if bytes.is_empty() && until(&received) {
                return received;
            }
            self.run_for(Duration::from_millis(1));
        }
        panic!("{} bytes came, {} were not sent; {:?}", received.len(), bytes.len(), self.gateway.counters());
    }

    fn only_flow(&self) -> FlowId {
        assert_eq!(self.flows.len(), 1);
        *self.flows.first_key_value().unwrap().0
    }

    /// Ends a connection from the VM's side and sees that nothing is left of it.
    fn ends(&mut self, handle: SocketHandle, flow: FlowId) {
        self.socket(handle).close();
        self.run_until(30, |world| world.far(flow).has(Event::Finished, flow));
        self.far(flow).finish = true;
        self.run_until(60, |world| world.gateway.flows() == 0);
        assert!(self.far(flow).has(Event::Closed, flow));
    }
}

#[test]
fn socks_leads_to_a_name_that_the_vm_never_resolved() {
    let mut world = World::new();
    let onion = format!("{}.onion", "q".repeat(56));
    let handle = world.connect(GATEWAY, SOCKS);
    let stream = [&socks_request(&onion)[..], b"early"].concat();
    let received = world.talk(handle, &stream, |received| received.len() >= SOCKS_SUCCESS.len());
    assert_eq!(received, SOCKS_SUCCESS);
    let flow = world.only_flow();
    assert_eq!(world.far(flow).target, target(&onion));
    world.run_until(5, |world| world.far(flow).received == b"early");
    world.far(flow).to_send.extend(b"answer");
    assert_eq!(world.talk(handle, b"more", |received| received.len() >= 6), b"answer");
    world.run_until(5, |world| world.far(flow).received == b"earlymore");
    world.ends(handle, flow);
}

#[test]
fn silence_before_a_request_ends_a_connection_and_after_it_does_not() {
    let mut world = World::new();
    let quiet = world.connect(GATEWAY, SOCKS);
    let asking = world.connect(GATEWAY, DNS);
    let open = world.connect(GATEWAY, SOCKS);
    let received = world.talk(open, &socks_request("a.example"), |received| received.len() >= SOCKS_SUCCESS.len());
    assert_eq!(received, SOCKS_SUCCESS);
    // A question now and then keeps the second one.
    let message = question("a.example.", RecordType::A);
    let framed = [&u16::try_from(message.len()).unwrap().to_be_bytes()[..], &message].concat();
    for _ in 0..4 {
        let answer = world.talk(asking, &framed, |received| received.len() > 4);
        assert_eq!(answer[2..4], message[..2]);
        world.run_for(Duration::from_secs(40));
    }
    assert!(!world.socket(quiet).is_active(), "{:?}", world.socket(quiet).state());
    assert!(world.socket(asking).may_recv());
    world.run_for(Duration::from_secs(3600));
    assert!(!world.socket(asking).is_active());
    assert!(world.socket(open).may_recv());
    assert_eq!((world.gateway.flows(), world.gateway.counters().flows_expired), (1, 2));
}

#[test]
fn nothing_is_lost_around_the_reply_on_a_bad_link() {
    for (n, link) in [Link::default(), Link { lost: 30, twice: 30, late: 30 }].into_iter().enumerate() {
        let mut world = World::new();
        world.link = link;
        world.answer = Answer::Later;
        let handle = world.connect(GATEWAY, SOCKS);
        let request = socks_request("a.example");
        // More than one segment behind the request, before the far end has answered.
        let early = pattern(20_000);
        world.talk(handle, &[&request[..], &early].concat(), |_| true);
        world.run_until(120, |world| !world.flows.is_empty());
        let flow = world.only_flow();
        world.run_for(Duration::from_secs(5));
        assert!(world.far(flow).received.is_empty(), "not before the stream is open");
        world.gateway.connected(world.now, flow);
        let answer = pattern(50_000);
        world.far(flow).to_send.extend(&answer);
        let length = SOCKS_SUCCESS.len() + answer.len();
        let received = world.talk(handle, b"", |received| received.len() >= length);
        assert!(received == [SOCKS_SUCCESS, &answer].concat(), "link {n}");
        world.run_until(120, |world| world.far(flow).received.len() >= early.len());
        assert!(world.far(flow).received == early, "link {n}");
        world.link = Link::default();
        world.ends(handle, flow);
    }
}

#[test]
fn a_request_with_the_vms_last_byte_behind_it() {
    let mut world = World::new();
    let handle = world.connect(GATEWAY, SOCKS);
    world.run_until(5, |world| world.socket(handle).may_send());
    world.socket(handle).send_slice(&[&socks_request("a.example")[..], b"all"].concat()).unwrap();
    world.socket(handle).close();
    world.run_until(5, |world| !world.flows.is_empty());
    let flow = world.only_flow();
    world.run_until(5, |world| world.far(flow).has(Event::Finished, flow));
    assert_eq!(world.far(flow).received, b"all");
    world.far(flow).to_send.extend(b"answer");
    world.far(flow).finish = true;
    let received = world.talk(handle, b"", |received| received.ends_with(b"answer"));
    assert_eq!(received, [SOCKS_SUCCESS, b"answer"].concat());
    world.run_until(60, |world| world.gateway.flows() == 0);
}

#[test]
fn failures_are_told_in_the_protocols_words_and_the_connection_ends() {
    for (why, code, status) in
        [(Failure::Refused, 5, "502"), (Failure::Unreachable, 4, "502"), (Failure::TimedOut, 6, "504")]
    {
        let mut world = World::new();
        world.answer = Answer::Fail(why);
        let handle = world.connect(GATEWAY, SOCKS);
        let received = world.talk(handle, &socks_request("a.example"), |received| received.len() >= 12);
        assert_eq!(received[..4], [5, 0, 5, code]);
        world.run_until(5, |world| world.socket(handle).state() == tcp::State::CloseWait);
        world.socket(handle).close();
        world.run_until(60, |world| world.gateway.flows() == 0);
        let flow = world.only_flow();
        assert!(world.far(flow).has(Event::Closed, flow));

        let handle = world.connect(GATEWAY, HTTP);
        let received = world.talk(handle, b"CONNECT a.example:443 HTTP/1.1\r\n\r\n", |r| r.ends_with(b"\r\n\r\n"));
        assert!(received.starts_with(format!("HTTP/1.1 {status} ").as_bytes()));
        world.socket(handle).close();
        world.run_until(60, |world| world.gateway.flows() == 0);
    }
}

#[test]
fn http_connect_leads_on_and_carries_its_credential() {
    let mut world = World::new();
    let handle = world.connect(GATEWAY, HTTP);
    let request = b"CONNECT a.example:443 HTTP/1.1\r\nHost: a.example\r\nProxy-Authorization: Basic YTpi\r\n\r\n";
    let received = world.talk(handle, request, |received| received.ends_with(b"\r\n\r\n"));
    assert!(received.starts_with(b"HTTP/1.1 200 "));
    let flow = world.only_flow();
    let credential = Credential::new("http", &[b"Basic YTpi", b""]);
    let connect = Event::Connect { flow, target: target("a.example").unwrap(), credential: Some(credential) };
    assert_eq!(world.far(flow).events[0], connect);
    let (up, down) = (pattern(300_000), pattern(200_000));
    world.far(flow).to_send.extend(&down);
    let received = world.talk(handle, &up, |received| received.len() >= down.len());
    assert!(received == down);
    world.run_until(60, |world| world.far(flow).received.len() >= up.len());
    assert!(world.far(flow).received == up);
    world.ends(handle, flow);
}

#[test]
fn dns_by_tcp_answers_as_many_as_are_asked() {
    let mut world = World::new();
    let handle = world.connect(GATEWAY, DNS);
    let message = question("a.example.", RecordType::A);
    let framed = [&(message.len() as u16).to_be_bytes()[..], &message].concat();
    let received = world.talk(handle, &framed, |received| received.len() > 2);
    let answer = Message::from_vec(&received[2..]).unwrap();
    assert_eq!((usize::from(received[1]), answer.answers.len()), (received.len() - 2, 1));
    // Far more than fit any buffer, while none is read.
    world.talk(handle, &framed.repeat(50), |_| true);
    let all = world.talk(handle, &framed.repeat(2_000), |all| all.len() >= 2_050 * received.len());
    assert!(all == received.repeat(2_050));
    world.socket(handle).close();
    world.run_until(60, |world| world.gateway.flows() == 0);
    assert!(world.flows.is_empty(), "the pump knows nothing of it");
    assert_eq!(world.gateway.counters().dns_replies, 2_051);
}

#[test]
fn other_ports_of_the_gateway_are_refused() {
    let mut bare = Bare::new(Config::default());
    for port in [22, 81, 123, 9051] {
        let syn = smoltcp::wire::TcpRepr { dst_port: port, ..segment(TcpControl::Syn, 1000, 1, None) };
        let frames = bare.exchange(&raw::tcp_from(crate::world::VM, GATEWAY, &syn));
        assert_eq!(tcp_of(&frames[0]).control, TcpControl::Rst, "{port}");
    }
    assert!(bare.events().is_empty());
}

#[test]
fn connections_that_say_nothing_are_bounded_and_those_that_connect_stay() {
    let mut bare = Bare::new(Config { half_open_max: 4, ..Config::default() });
    let connect = |bare: &mut Bare, port: u16| {
        let number = |n: i32| smoltcp::wire::TcpSeqNumber(n);
        let to_socks = |repr| smoltcp::wire::TcpRepr { dst_port: SOCKS, ..repr };
        bare.exchange(&raw::tcp(GATEWAY, &to_socks(segment(TcpControl::Syn, port, 1000, None))));
        assert!(bare.events().is_empty());
        let frames = bare.frames();
        let answer = tcp_of(&frames[0]);
        assert_eq!((answer.control, answer.ack_number), (TcpControl::Syn, Some(number(1001))));
        let next = answer.seq_number + 1;
        bare.exchange(&raw::tcp(GATEWAY, &to_socks(segment(TcpControl::None, port, 1001, Some(next)))));
        next
    };
    let next = connect(&mut bare, 999);
    let payload = socks_request("a.example").leak();
    let request = segment(TcpControl::Psh, 999, 1001, Some(next));
    bare.hand_over(&raw::tcp(GATEWAY, &smoltcp::wire::TcpRepr { dst_port: SOCKS, payload, ..request }));
    let flow = match bare.events()[..] {
        [Event::Connect { flow, .. }] => flow,
        ref other => panic!("{other:?}"),
    };
    bare.frames();
    for port in 2000..2100 {
        connect(&mut bare, port);
        assert!(bare.gateway.flows() <= 4);
    }
    let counters = bare.gateway.counters();
    assert_eq!((counters.services_begun, counters.services_evicted), (101, 97));
    bare.gateway.connected(bare.now, flow);
    assert!(bare.frames().iter().any(|frame| tcp_of(frame).payload == b"\x05\0\0\x01\0\0\0\0\0\0"));
    bare.gateway.reset(bare.now, flow);
    assert_eq!(bare.events(), [Event::Closed(flow)]);
}
