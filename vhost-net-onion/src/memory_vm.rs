//! A VM in memory: smoltcp for its IP stack, the frame link for its network card.
//!
//! The session's tests and the router program's self-test use it to be what a real VM is to the gateway: a stranger
//! with an IP stack of its own. Every wait in it is bounded by its caller.

use std::{collections::VecDeque, io, net::Ipv4Addr, ops::Range, time::Duration};

use smoltcp::{
    iface::{Config, Interface, SocketHandle, SocketSet},
    phy::{Device, DeviceCapabilities, Medium, RxToken, TxToken},
    socket::{dhcpv4, tcp, udp},
    time::Instant,
    wire::{EthernetAddress, IpAddress, IpCidr},
};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use wire::link::{self, Decoder, Message, Offload, encode};

/// How long the VM waits for frames before it looks at its timers again.
const TURN: Duration = Duration::from_millis(5);

/// The VM's own ports, which it takes one after the other.
const PORTS: Range<u16> = 40_000..60_000;

/// Bytes of a connection's buffers, each way.
const BUFFER_BYTES: usize = 64 * 1024;

/// What can go wrong in the VM.
#[derive(Debug, thiserror::Error)]
pub enum MemoryVmError {
    /// The link broke or ended.
    #[error("the link broke")]
    Link(#[from] io::Error),
    /// What came over the link are no frames.
    #[error("the link carries something else than frames")]
    Frames(#[from] link::LinkError),
    /// The network does not do what a network should.
    #[error("the network gave no {0}")]
    Missing(&'static str),
    /// The connection was refused or reset.
    #[error("the connection was reset")]
    Reset,
}

/// A VM whose network card is the link `L`.
pub struct MemoryVm<L> {
    link: L,
    decoder: Decoder,
    card: Card,
    interface: Interface,
    sockets: SocketSet<'static>,
    dhcp: Option<SocketHandle>,
    next_port: u16,
}

/// A TCP connection of the VM.
#[derive(Clone, Copy, Debug)]
pub struct Connection(SocketHandle);

/// Frames on their way in and out.
#[derive(Default)]
struct Card {
    received: VecDeque<Vec<u8>>,
    sent: Vec<Vec<u8>>,
}

impl<L: AsyncRead + AsyncWrite + Unpin> MemoryVm<L> {
    /// Switches the VM on.
    #[must_use]
    pub fn new(link: L) -> MemoryVm<L> {
        let mut card = Card::default();
        let config = Config::new(EthernetAddress([2, 0, 0, 0, 0, 1]).into());
        let interface = Interface::new(config, &mut card, Instant::now());
        let sockets = SocketSet::new(vec![]);
        MemoryVm { link, decoder: Decoder::default(), card, interface, sockets, dhcp: None, next_port: PORTS.start }
    }

    /// Pulls the cable and plugs in another one.
    pub fn replace_link(&mut self, link: L) {
        self.link = link;
        self.decoder.clear();
    }

    /// Takes a DHCP lease, another one if it has one, and returns the DNS server it names.
    ///
    /// # Errors
    /// When the link breaks, or the lease lacks a router or a DNS server.
    pub async fn lease(&mut self) -> Result<Ipv4Addr, MemoryVmError> {
        let dhcp = *self.dhcp.get_or_insert_with(|| self.sockets.add(dhcpv4::Socket::new()));
        self.sockets.get_mut::<dhcpv4::Socket<'_>>(dhcp).reset();
        loop {
            self.turn().await?;
            let Some(dhcpv4::Event::Configured(lease)) = self.sockets.get_mut::<dhcpv4::Socket<'_>>(dhcp).poll() else {
                continue;
            };
            let router = lease.router.ok_or(MemoryVmError::Missing("router"))?;
            let server = *lease.dns_servers.first().ok_or(MemoryVmError::Missing("DNS server"))?;
            let address = IpCidr::Ipv4(lease.address);
            self.interface.update_ip_addrs(|list| {
                list.clear();
                list.push(address).expect("the list is empty");
            });
            self.interface.routes_mut().add_default_ipv4_route(router).expect("there is one route");
            return Ok(server);
        }
    }

    /// Asks `server` for the address of `name`.
    ///
    /// # Errors
    /// When the link breaks, or the answer holds no address.
    pub async fn resolve(&mut self, server: Ipv4Addr, name: &str) -> Result<Ipv4Addr, MemoryVmError> {
        let buffer = || udp::PacketBuffer::new(vec![udp::PacketMetadata::EMPTY; 4], vec![0; 2048]);
        let mut socket = udp::Socket::new(buffer(), buffer());
        let port = self.port();
        socket.bind(port).expect("a fresh socket on a port above 0");
        socket.send_slice(&question(name), (IpAddress::Ipv4(server), 53)).expect("an empty buffer");
        let handle = self.sockets.add(socket);
        loop {
            self.turn().await?;
            let Ok((answer, _)) = self.sockets.get_mut::<udp::Socket<'_>>(handle).recv() else { continue };
            // The only A record ends in the length of an address, and the address.
            let record = answer.windows(6).rev().find(|bytes| bytes[..2] == [0, 4]);
            let address = record.map(|bytes| Ipv4Addr::new(bytes[2], bytes[3], bytes[4], bytes[5]));
            self.sockets.remove(handle);
            return address.ok_or(MemoryVmError::Missing("A record"));
        }
    }

    /// Connects; returns once the connection stands.
    ///
    /// # Errors
    /// When the link breaks or the connection is refused.
    pub async fn connect(&mut self, address: Ipv4Addr, port: u16) -> Result<Connection, MemoryVmError> {
        let connection = self.dial(address, port);
        while !self.is_open(connection) {
            self.turn().await?;
            if self.is_closed(connection) {
                self.forget(connection);
                return Err(MemoryVmError::Reset);
            }
        }
        Ok(connection)
    }

    /// Begins to connect; the next turns send the SYN and take the answer.
    pub fn dial(&mut self, address: Ipv4Addr, port: u16) -> Connection {
        let buffer = || tcp::SocketBuffer::new(vec![0; BUFFER_BYTES]);
        let mut socket = tcp::Socket::new(buffer(), buffer());
        let local = self.port();
        socket.connect(self.interface.context(), (address, port), local).expect("a fresh socket");
        Connection(self.sockets.add(socket))
    }

    /// Waits for a connection to a port of the VM.
    pub fn listen(&mut self, port: u16) -> Connection {
        let buffer = || tcp::SocketBuffer::new(vec![0; BUFFER_BYTES]);
        let mut socket = tcp::Socket::new(buffer(), buffer());
        socket.listen(port).expect("a fresh socket, and a port above 0");
        Connection(self.sockets.add(socket))
    }

    /// Whether the connection stands and we may send.
    pub fn is_open(&mut self, connection: Connection) -> bool {
        self.socket(connection).may_send()
    }

    /// Sends as much of `data` as there is room for and returns how much that was.
    pub fn send(&mut self, connection: Connection, data: &[u8]) -> usize {
        self.socket(connection).send_slice(data).unwrap_or(0)
    }

    /// Takes what has arrived; `None` once the far end has ended or broken the connection.
    pub fn recv(&mut self, connection: Connection) -> Option<Vec<u8>> {
        let socket = self.socket(connection);
        let mut bytes = vec![0; socket.recv_queue()];
        let count = socket.recv_slice(&mut bytes).ok()?;
        bytes.truncate(count);
        Some(bytes)
    }

    /// Sends FIN.
    pub fn shutdown(&mut self, connection: Connection) {
        self.socket(connection).close();
    }

    /// Whether the connection is over, cleanly or not.
    pub fn is_closed(&mut self, connection: Connection) -> bool {
        matches!(self.socket(connection).state(), tcp::State::Closed | tcp::State::TimeWait)
    }

    /// Sends RST if the connection still stands; it is to be forgotten after the next turn.
    pub fn abort(&mut self, connection: Connection) {
        self.socket(connection).abort();
    }

    /// Forgets a connection, in whatever state, without a word to the far end.
    pub fn forget(&mut self, connection: Connection) {
        self.sockets.remove(connection.0);
    }

    /// Runs the stack once, moves frames both ways, and waits a moment for more.
    ///
    /// # Errors
    /// When the link breaks.
    pub async fn turn(&mut self) -> Result<(), MemoryVmError> {
        self.interface.poll(Instant::now(), &mut self.card, &mut self.sockets);
        let mut bytes = vec![];
        for frame in self.card.sent.drain(..) {
            encode(&frame, Offload::default(), &mut bytes)?;
        }
        self.link.write_all(&bytes).await?;
        if let Ok(count) = tokio::time::timeout(TURN, self.link.read(self.decoder.spare())).await {
            match count? {
                0 => return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into()),
                count => self.decoder.filled(count),
            }
        }
        while let Some(message) = self.decoder.next_message()? {
            if let Message::Frame(_, frame) = message {
                self.card.received.push_back(frame.to_vec());
            }
        }
        Ok(())
    }

    fn socket(&mut self, connection: Connection) -> &mut tcp::Socket<'static> {
        self.sockets.get_mut(connection.0)
    }

    fn port(&mut self) -> u16 {
        let port = self.next_port;
        self.next_port = if port + 1 < PORTS.end { port + 1 } else { PORTS.start };
        port
    }
}

/// A DNS query for the A record of `name` (RFC 1035, section 4.1).
fn question(name: &str) -> Vec<u8> {
    let mut bytes = vec![0x12, 0x34, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
    for label in name.split('.') {
        bytes.push(u8::try_from(label.len()).expect("a label has at most 63 bytes"));
        bytes.extend_from_slice(label.as_bytes());
    }
    bytes.extend_from_slice(&[0, 0, 1, 0, 1]);
    bytes
}

impl Device for Card {
    type RxToken<'a> = Received;
    type TxToken<'a> = Sent<'a>;

    fn receive(&mut self, _: Instant) -> Option<(Received, Sent<'_>)> {
        let frame = self.received.pop_front()?;
        Some((Received(frame), Sent(&mut self.sent)))
    }

    fn transmit(&mut self, _: Instant) -> Option<Sent<'_>> {
        Some(Sent(&mut self.sent))
    }

    fn capabilities(&self) -> DeviceCapabilities {
        let mut capabilities = DeviceCapabilities::default();
        capabilities.medium = Medium::Ethernet;
        capabilities.max_transmission_unit = 1514;
        capabilities
    }
}

struct Received(Vec<u8>);

impl RxToken for Received {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, take: F) -> R {
        take(&self.0)
    }
}

struct Sent<'a>(&'a mut Vec<Vec<u8>>);

impl TxToken for Sent<'_> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, bytes: usize, fill: F) -> R {
        let mut frame = vec![0; bytes];
        let result = fill(&mut frame);
        self.0.push(frame);
        result
    }
}
