//! Where a stream is to go, checked before Tor is asked.

use std::net::{IpAddr, Ipv4Addr};

use arti_client::{IntoTorAddr, TorAddr};
use tor_circmgr::TargetPort;

use crate::failure::ConnectError;

/// A destination that Tor can be asked for.
pub(crate) enum Target {
    /// An onion service.
    Onion(TorAddr),
    /// A name or an address, to be reached from an exit.
    Exit {
        /// The name, which the exit resolves, or the address.
        host: String,
        /// The TCP port, and whether it is that of an IPv6 address, which not every exit reaches.
        port: TargetPort,
    },
}

impl Target {
    /// Checks `host`, a name or an address, and `port`. With `local_addresses`, addresses count that no exit of the
    /// public network reaches.
    ///
    /// # Errors
    /// When no relay need be asked to know that nothing is there.
    pub(crate) fn new(host: &str, port: u16, local_addresses: bool) -> Result<Target, ConnectError> {
        let checked = (host, port).into_tor_addr().map_err(|_| ConnectError::Unreachable)?;
        if host.to_ascii_lowercase().trim_end_matches('.').ends_with(ONION) {
            return Ok(Target::Onion(checked));
        }
        let address: Option<IpAddr> = host.parse().ok();
        let local = address.map_or_else(|| host.eq_ignore_ascii_case("localhost"), is_local);
        if local && !local_addresses {
            return Err(ConnectError::Unreachable);
        }
        let ipv6 = address.is_some_and(|address| address.is_ipv6());
        let port = if ipv6 { TargetPort::ipv6(port) } else { TargetPort::ipv4(port) };
        Ok(Target::Exit { host: address.map_or_else(|| host.to_owned(), |address| address.to_string()), port })
    }
}

/// The top-level domain of onion services (RFC 7686).
const ONION: &str = ".onion";

/// Whether an address is not one of a host on the internet, so that no exit would connect to it (tor-spec, "Opening
/// streams"; the same ranges as arti's address filter).
pub(crate) fn is_local(address: IpAddr) -> bool {
    match address.to_canonical() {
        IpAddr::V4(v4) => {
            v4.is_loopback()
                || v4.is_private()
                || v4.is_unspecified()
                || v4.is_link_local()
                || is_shared(v4)
                || v4.is_broadcast()
                || v4.is_multicast()
        }
        IpAddr::V6(v6) => {
            v6.is_loopback()
                || v6.is_unspecified()
                || v6.is_unique_local()
                || v6.is_unicast_link_local()
                || v6.is_multicast()
        }
    }
}

/// The shared address space of carriers (RFC 6598, 100.64.0.0/10).
fn is_shared(address: Ipv4Addr) -> bool {
    let [first, second, ..] = address.octets();
    first == 100 && second & 0b1100_0000 == 0b0100_0000
}

#[cfg(test)]
mod tests {
    use super::*;

    fn exit(host: &str) -> Option<(String, bool)> {
        match Target::new(host, 80, false).ok()? {
            Target::Exit { host, port } => Some((host, port == TargetPort::ipv6(80))),
            Target::Onion(_) => None,
        }
    }

    #[test]
    fn names_and_addresses_of_the_internet_go_to_an_exit() {
        for host in ["www.example.com", "192.0.2.1", "1.1.1.1", "x.onion.example"] {
            assert_eq!(exit(host), Some((host.into(), false)));
        }
        assert_eq!(exit("2001:DB8::1"), Some(("2001:db8::1".into(), true)));
    }

    #[test]
    fn no_exit_is_asked_for_what_is_not_on_the_internet() {
        let local = ["localhost", "LOCALHOST", "127.0.0.1", "10.1.2.3", "192.168.0.1", "172.16.0.1", "0.0.0.0"];
        let more = ["100.64.0.1", "169.254.1.1", "255.255.255.255", "224.0.0.1", "::", "::1", "fc00::1", "fe80::1"];
        for host in local.into_iter().chain(more).chain(["ff02::1", "::ffff:10.0.0.1", "::ffff:127.0.0.1"]) {
            assert!(matches!(Target::new(host, 80, false), Err(ConnectError::Unreachable)), "{host}");
            assert!(matches!(Target::new(host, 80, true), Ok(Target::Exit { .. })), "{host}");
        }
    }

    #[test]
    fn onion_names_never_go_to_an_exit_and_bad_names_nowhere() {
        let onion = "pg6mmjiyjmcrsslvykfwnntlaru7p5svn6y2ymmju6nubxndf4pscryd";
        for name in [format!("{onion}.onion"), format!("www.{onion}.ONION")] {
            assert!(matches!(Target::new(&name, 80, false), Ok(Target::Onion(_))), "{name}");
        }
        for name in ["", "a b", "x\0y", "exa/mple"] {
            assert!(matches!(Target::new(name, 80, false), Err(ConnectError::Unreachable)), "{name:?}");
        }
        for name in ["short.onion", "x.onion.", ".onion"] {
            assert!(!matches!(Target::new(name, 80, false), Ok(Target::Exit { .. })), "{name}");
        }
    }
}
