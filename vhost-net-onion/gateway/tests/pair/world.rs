//! A VM, a link, a gateway and a pump, and a clock that jumps to whatever happens next.

use std::{
    collections::{BTreeMap, VecDeque},
    net::Ipv4Addr,
    time::{Duration, Instant},
};

use bytes::Bytes;
use gateway::{Config, Event, Failure, FlowId, Gateway, Target};
use smoltcp::{
    iface::{self, Interface, SocketHandle, SocketSet},
    phy::{self, Device, DeviceCapabilities, Medium},
    socket::tcp,
    time::Instant as SmolInstant,
    wire::{EthernetAddress, HardwareAddress, IpAddress, IpCidr, Ipv4Address},
};
use wire::link::Offload;

use crate::{
    driver::{self, Driver},
    raw, raw_v6,
};

pub(crate) const VM_MAC: EthernetAddress = EthernetAddress([0x52, 0x54, 0x00, 0x12, 0x34, 0x56]);
pub(crate) const VM: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 15);
pub(crate) const GATEWAY: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 2);
pub(crate) const REMOTE: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 7);

/// How bad the link is: of a thousand frames, how many are lost, come twice, or come late.
#[derive(Clone, Copy, Default)]
pub(crate) struct Link {
    pub(crate) lost: u64,
    pub(crate) twice: u64,
    pub(crate) late: u64,
}

/// What the pump does when it is asked to connect.
#[derive(Clone, Copy, PartialEq)]
pub(crate) enum Answer {
    Connected,
    Fail(Failure),
    /// Nothing: the test answers.
    Later,
}

/// The far end of a flow, as the pump and the test see it.
#[derive(Default)]
pub(crate) struct Far {
    pub(crate) target: Option<Target>,
    pub(crate) received: Vec<u8>,
    /// What is still to be sent to the VM.
    pub(crate) to_send: VecDeque<u8>,
    /// Finish when all is sent.
    pub(crate) finish: bool,
    pub(crate) finish_done: bool,
    /// The pump does not take data of this flow.
    pub(crate) deaf: bool,
    pub(crate) events: Vec<Event>,
    writable: bool,
    readable: bool,
}

impl Far {
    pub(crate) fn has(&self, event: impl Fn(FlowId) -> Event, flow: FlowId) -> bool {
        self.events.contains(&event(flow))
    }
}

pub(crate) struct World {
    pub(crate) gateway: Gateway,
    pub(crate) began: Instant,
    pub(crate) now: Instant,
    pub(crate) link: Link,
    pub(crate) latency: Duration,
    pub(crate) answer: Answer,
    pub(crate) flows: BTreeMap<FlowId, Far>,
    pub(crate) sockets: SocketSet<'static>,
    pub(crate) interface: Interface,
    driver: Driver,
    device: Queues,
    /// Frames on the link, by arrival: (when, number, to the VM).
    on_link: BTreeMap<(Instant, u64, bool), (Offload, Vec<u8>)>,
    /// Frames that the VM got, for tests that look at them.
    pub(crate) seen: Vec<Vec<u8>>,
    number: u64,
    random: u64,
    port: u16,
}

struct Queues {
    mtu: usize,
    received: VecDeque<Vec<u8>>,
    sent: VecDeque<Vec<u8>>,
}

struct Received(Vec<u8>);
struct Sent<'a>(&'a mut VecDeque<Vec<u8>>);

impl Device for Queues {
    type RxToken<'a> = Received;
    type TxToken<'a> = Sent<'a>;

    fn receive(&mut self, _: SmolInstant) -> Option<(Received, Sent<'_>)> {
        Some((Received(self.received.pop_front()?), Sent(&mut self.sent)))
    }

    fn transmit(&mut self, _: SmolInstant) -> Option<Sent<'_>> {
        Some(Sent(&mut self.sent))
    }

    fn capabilities(&self) -> DeviceCapabilities {
        let mut capabilities = DeviceCapabilities::default();
        capabilities.medium = Medium::Ethernet;
        capabilities.max_transmission_unit = 14 + self.mtu;
        capabilities
    }
}

impl phy::RxToken for Received {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, f: F) -> R {
        f(&self.0)
    }
}

impl phy::TxToken for Sent<'_> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, length: usize, f: F) -> R {
        let mut frame = vec![0; length];
        let result = f(&mut frame);
        self.0.push_back(frame);
        result
    }
}

impl World {
    /// A VM that already has its address.
    pub(crate) fn new() -> World {
        World::with(Config::default())
    }

    pub(crate) fn with(config: Config) -> World {
        World::with_driver(config, Driver::default())
    }

    /// A VM whose driver can do something.
    pub(crate) fn with_driver(config: Config, driver: Driver) -> World {
        let mut world = World::build(config, driver);
        world.gateway.set_abilities(driver.abilities);
        world.configure(IpCidr::new(VM.into(), 24), GATEWAY);
        world
    }

    /// A VM that has only just started.
    pub(crate) fn unconfigured(config: Config) -> World {
        World::build(config, Driver::default())
    }

    /// A VM without IPv4 that has made its IPv6 address out of what the router advertises.
    pub(crate) fn autoconfigured() -> World {
        let mut vm = iface::Config::new(HardwareAddress::Ethernet(VM_MAC));
        vm.slaac = true;
        let mut world = World::of(Config::default(), Driver::default(), vm);
        world.interface.update_ip_addrs(|addresses| {
            addresses.push(IpCidr::new(raw_v6::VM_LINK_LOCAL.into(), 64)).unwrap();
        });
        world.run_until(10, |world| world.interface.ip_addrs().iter().any(|cidr| cidr.address() == raw_v6::VM.into()));
        world
    }

    fn build(config: Config, driver: Driver) -> World {
        World::of(config, driver, iface::Config::new(HardwareAddress::Ethernet(VM_MAC)))
    }

    fn of(config: Config, driver: Driver, vm: iface::Config) -> World {
        let now = Instant::now();
        let mut device = Queues { mtu: driver.mtu, received: VecDeque::new(), sent: VecDeque::new() };
        let interface = Interface::new(vm, &mut device, SmolInstant::ZERO);
        World {
            gateway: Gateway::new(config, [7; 32], now),
            began: now,
            now,
            link: Link::default(),
            latency: Duration::from_micros(100),
            answer: Answer::Connected,
            flows: BTreeMap::new(),
            sockets: SocketSet::new(vec![]),
            interface,
            driver,
            device,
            on_link: BTreeMap::new(),
            seen: vec![],
            number: 0,
            random: 0x9e37_79b9_7f4a_7c15,
            port: 40_000,
        }
    }

    pub(crate) fn configure(&mut self, address: IpCidr, router: Ipv4Address) {
        self.interface.update_ip_addrs(|addresses| {
            addresses.clear();
            addresses.push(address).unwrap();
        });
        self.interface.routes_mut().add_default_ipv4_route(router).unwrap();
    }

    /// The VM begins to connect.
    pub(crate) fn connect(&mut self, to: impl Into<IpAddress>, port: u16) -> SocketHandle {
        let bytes = if self.driver.mtu > 1500 { 256 << 10 } else { 64 << 10 };
        let buffer = || tcp::SocketBuffer::new(vec![0; bytes]);
        let mut socket = tcp::Socket::new(buffer(), buffer());
        socket.set_nagle_enabled(false);
        self.port += 1;
        socket.connect(self.interface.context(), (to, port), self.port).unwrap();
        self.sockets.add(socket)
    }

    /// The VM begins to listen.
    pub(crate) fn listen(&mut self, port: u16) -> SocketHandle {
        let buffer = || tcp::SocketBuffer::new(vec![0; 64 << 10]);
        let mut socket = tcp::Socket::new(buffer(), buffer());
        socket.listen(port).unwrap();
        self.sockets.add(socket)
    }

    /// A stream comes to a port of the VM.
    pub(crate) fn call(&mut self, port: u16) -> Option<FlowId> {
        let flow = self.gateway.open(self.now, port)?;
        assert!(self.flows.insert(flow, Far { writable: true, ..Far::default() }).is_none());
        Some(flow)
    }

    /// A connection that is established, and its flow.
    pub(crate) fn established(&mut self) -> (SocketHandle, FlowId) {
        let handle = self.connect(REMOTE, 80);
        self.run_until(5, |world| world.socket(handle).state() == tcp::State::Established);
        let flow = *self.flows.last_key_value().unwrap().0;
        (handle, flow)
    }

    pub(crate) fn socket(&mut self, handle: SocketHandle) -> &mut tcp::Socket<'static> {
        self.sockets.get_mut(handle)
    }

    pub(crate) fn far(&mut self, flow: FlowId) -> &mut Far {
        self.flows.get_mut(&flow).unwrap()
    }

    pub(crate) fn elapsed(&self) -> Duration {
        self.now - self.began
    }

    fn smol_now(&self) -> SmolInstant {
        SmolInstant::from_micros(i64::try_from(self.elapsed().as_micros()).unwrap())
    }

    fn random(&mut self) -> u64 {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        self.random
    }

    /// Runs until the condition holds, for at most so many simulated seconds.
    pub(crate) fn run_until(&mut self, seconds: u64, condition: impl Fn(&mut World) -> bool) {
        let end = self.now + Duration::from_secs(seconds);
        while !condition(self) {
            assert!(self.step(end) || condition(self), "not after {seconds} s; {:?}", self.gateway.counters());
        }
    }

    /// Runs for so long.
    pub(crate) fn run_for(&mut self, duration: Duration) {
        let end = self.now + duration;
        while self.step(end) {}
    }

    /// Moves the clock to what comes next, and does what is due then. False when that is not before `end`.
    fn step(&mut self, end: Instant) -> bool {
        self.pump();
        self.poll_vm();
        let vm = self.interface.poll_at(self.smol_now(), &self.sockets);
        let vm = vm.map(|at| self.began + Duration::from_micros(u64::try_from(at.total_micros()).unwrap()));
        let frame = self.on_link.first_key_value().map(|(key, _)| key.0);
        let next = [vm, frame, self.gateway.poll_timeout()].into_iter().flatten().min().unwrap_or(end);
        self.now = next.clamp(self.now, end);
        if self.now == end {
            return false;
        }
        self.deliver();
        self.poll_vm();
        if self.gateway.poll_timeout().is_some_and(|at| at <= self.now) {
            self.gateway.handle_timeout(self.now);
        }
        self.pump();
        true
    }

    fn deliver(&mut self) {
        while let Some(entry) = self.on_link.first_entry().filter(|entry| entry.key().0 <= self.now) {
            let to_vm = entry.key().2;
            let (offload, frame) = entry.remove();
            if to_vm {
                self.device.received.extend(driver::receive(&self.driver, offload, &frame));
                self.seen.push(frame);
            } else {
                // Whether a frame may be kept must make no difference.
                if frame.len().is_multiple_of(2) {
                    self.gateway.handle_owned_frame(self.now, offload, frame.into());
                } else {
                    self.gateway.handle_frame(self.now, offload, &frame);
                }
                self.pump();
            }
        }
    }

    fn poll_vm(&mut self) {
        let now = self.smol_now();
        self.interface.poll(now, &mut self.device, &mut self.sockets);
        let frames = std::mem::take(&mut self.device.sent);
        for (offload, frame) in driver::transmit(&self.driver, frames) {
            self.put_on_link(offload, frame, false);
        }
    }

    fn put_on_link(&mut self, offload: Offload, frame: Vec<u8>, to_vm: bool) {
        let Link { lost, twice, late } = self.link;
        if self.random() % 1000 < lost {
            return;
        }
        let copies = 1 + u64::from(self.random() % 1000 < twice);
        for _ in 0..copies {
            let delay = if self.random() % 1000 < late { self.latency * 20 } else { self.latency };
            self.number += 1;
            self.on_link.insert((self.now + delay, self.number, to_vm), (offload, frame.clone()));
        }
    }

    /// What the pump does after every call.
    pub(crate) fn pump(&mut self) {
        loop {
            self.frames_to_vm();
            let mut quiet = true;
            while let Some(event) = self.gateway.poll_event() {
                quiet = false;
                self.handle(event);
            }
            if quiet {
                break;
            }
        }
        let flows: Vec<FlowId> = self.flows.keys().copied().collect();
        for flow in flows {
            self.move_bytes(flow);
        }
        self.frames_to_vm();
    }

    fn frames_to_vm(&mut self) {
        while let Some(frame) = self.gateway.poll_frame() {
            self.put_on_link(frame.offload, raw::plain(frame.to_vec()), true);
        }
    }

    fn handle(&mut self, event: Event) {
        let flow = match &event {
            Event::Connect { flow, target, .. } => {
                let far = Far { target: Some(target.clone()), writable: true, ..Far::default() };
                assert!(self.flows.insert(*flow, far).is_none(), "a flow number was used twice");
                match self.answer {
                    Answer::Connected => self.gateway.connected(self.now, *flow),
                    Answer::Fail(why) => self.gateway.failed(self.now, *flow, why),
                    Answer::Later => {}
                }
                *flow
            }
            Event::Accepted(flow) | Event::Declined(flow, _) => *flow,
            Event::Readable(flow) | Event::Writable(flow) | Event::Finished(flow) | Event::Closed(flow) => *flow,
        };
        let far = self.flows.get_mut(&flow).expect("events only of flows that were announced");
        assert!(!far.events.contains(&Event::Closed(flow)), "{event:?} after Closed");
        match event {
            Event::Readable(_) => far.readable = true,
            Event::Writable(_) => far.writable = true,
            _ => {}
        }
        far.events.push(event);
    }

    fn move_bytes(&mut self, flow: FlowId) {
        let World { gateway, flows, now, .. } = self;
        let Some(far) = flows.get_mut(&flow) else { return };
        if far.readable && !far.deaf {
            far.readable = false;
            while let Some(bytes) = gateway.recv(*now, flow) {
                far.received.extend(bytes);
            }
        }
        while far.writable && !far.to_send.is_empty() {
            let offered = far.to_send.make_contiguous();
            let mut offered = Bytes::copy_from_slice(&offered[..offered.len().min(16 << 10)]);
            let bytes = offered.len();
            gateway.send(*now, flow, &mut offered);
            far.writable = offered.is_empty();
            far.to_send.drain(..bytes - offered.len());
        }
        if far.finish && far.to_send.is_empty() && !far.finish_done {
            far.finish_done = true;
            gateway.finish(*now, flow);
        }
    }
}

/// Bytes that repeat only after a long time.
pub(crate) fn pattern(length: usize) -> Vec<u8> {
    (0..length).map(|n| (n as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15).to_be_bytes()[0]).collect()
}
