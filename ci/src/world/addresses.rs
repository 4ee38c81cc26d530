//! Who has which address. Each relay has a /16 of its own, as Tor's path rules want it, and the others follow.

use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4, TcpListener};

use anyhow::{Result, bail};

use crate::{dns::Names, tor_network::RELAYS};

/// The port of every relay's ORPort.
pub(crate) const OR_PORT: u16 = 5000;
/// The port of the bridge where it speaks obfs4.
pub(crate) const OBFS4_PORT: u16 = 5001;
/// The port of every authority's DirPort.
pub(crate) const DIR_PORT: u16 = 7000;
/// The port of the clients' SOCKS.
pub(crate) const SOCKS_PORT: u16 = 9050;
/// The origin's port; port 80 would need root on loopback.
pub(crate) const ORIGIN_PORT: u16 = 8080;
/// A port of the origin's address where nobody listens.
pub(crate) const REFUSED_PORT: u16 = 9;
const DNS_PORT: u16 = 5353;

/// The address plan of one world.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Addresses {
    /// The first number of all addresses: 127 or 10.
    net: u8,
    /// The second number of the first relay's address; the rest count up from it.
    first: u8,
}

impl Addresses {
    /// On loopback, at the first place where nobody is: two worlds may stand on one machine.
    ///
    /// # Errors
    /// When all places are taken.
    pub(crate) fn loopback() -> Result<Addresses> {
        let places = (20..=220).step_by(SPAN).map(|first| Addresses { net: 127, first });
        let free = |place: &Addresses| {
            TcpListener::bind((place.relay(0), OR_PORT)).and(TcpListener::bind(place.origin())).is_ok()
        };
        match places.into_iter().find(free) {
            Some(place) => Ok(place),
            None => bail!(
                "every place for a Tor network on 127.0.0.0/8 is taken: end what `cargo ci demo --keep` or `cargo ci net up` left"
            ),
        }
    }

    /// In a namespace, where nobody else is.
    pub(crate) fn in_namespaces() -> Addresses {
        Addresses { net: 10, first: 20 }
    }

    /// The two numbers that make the plan, for [`Addresses::from_plan`].
    pub(crate) fn plan(self) -> (u8, u8) {
        (self.net, self.first)
    }

    /// The plan of another process.
    pub(crate) fn from_plan(net: u8, first: u8) -> Addresses {
        Addresses { net, first }
    }

    fn at(self, offset: usize) -> Ipv4Addr {
        let offset = u8::try_from(offset).unwrap_or(u8::MAX);
        Ipv4Addr::new(self.net, self.first.saturating_add(offset), 0, 1)
    }

    /// Relay `index`; authorities come first.
    pub(crate) fn relay(self, index: usize) -> Ipv4Addr {
        self.at(index)
    }

    /// Every relay's ORPort.
    pub(crate) fn or_ports(self) -> Vec<SocketAddrV4> {
        (0..RELAYS).map(|index| SocketAddrV4::new(self.relay(index), OR_PORT)).collect()
    }

    /// The bridge, which is no relay of the consensus.
    pub(crate) fn bridge(self) -> Ipv4Addr {
        self.at(BRIDGE)
    }

    /// The origin.
    pub(crate) fn origin(self) -> SocketAddr {
        (self.at(20), ORIGIN_PORT).into()
    }

    /// The DNS server of the exits.
    pub(crate) fn dns(self) -> SocketAddr {
        (self.at(21), DNS_PORT).into()
    }

    /// The SOCKS port of client `index`.
    pub(crate) fn socks(self, index: usize) -> SocketAddr {
        (self.at(22 + index), SOCKS_PORT).into()
    }

    /// An address that no exit has a route to. On loopback there is none: it needs a route of its own.
    pub(crate) fn unroutable(self) -> Ipv4Addr {
        Ipv4Addr::new(self.net, 99, 0, 1)
    }

    /// All that must be given to an interface where the kernel does not do it by itself.
    pub(crate) fn all(self) -> impl Iterator<Item = Ipv4Addr> {
        (0..RELAYS).chain([BRIDGE]).chain(20..SPAN).map(move |offset| self.at(offset))
    }

    /// What the DNS server knows.
    pub(crate) fn names(self) -> Names {
        let origin = self.at(20);
        [("origin.test", origin), ("*.origin.test", origin), ("unroutable.test", self.unroutable())]
            .map(|(name, address)| (name.to_owned(), address))
            .into()
    }
}

/// Where the bridge is, behind all relays.
const BRIDGE: usize = 19;

/// How many /16 one world takes: relays, bridge, origin, DNS, clients.
const SPAN: usize = 25;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn worlds_do_not_overlap() {
        let [one, two] = [20, 45].map(|first| Addresses { net: 127, first });
        assert!(one.all().all(|address| two.all().all(|other| other != address)));
        assert_eq!(one.all().count(), RELAYS + 6);
        assert!(one.all().any(|address| SocketAddr::from((address, SOCKS_PORT)) == one.socks(2)));
    }
}
