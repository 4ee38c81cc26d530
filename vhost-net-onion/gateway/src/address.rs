//! Which addresses mean what to a VM.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::{
    config::{GATEWAY_ADDRESS, GATEWAY_ADDRESS_V6, GATEWAY_LINK_LOCAL, PREFIX_V6, VM_ADDRESS},
    names,
};

/// What an address of a packet from the VM is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// The gateway itself.
    Gateway,
    /// Made up for a name, now or earlier.
    MadeUp,
    /// Somewhere behind the gateway.
    Remote,
    /// On the VM's link, where there is nobody but the gateway; link-local, which no gateway forwards (RFC 3927,
    /// section 2.7; RFC 4291, section 2.5.6); or of a range that nobody has yet (RFC 4291, section 2.4).
    Nobody,
    /// A group of hosts, by broadcast or multicast.
    Group,
    /// Never on a wire: "this" network, unspecified, loopback, reserved, IPv4 in IPv6 (RFC 6890).
    Martian,
}

/// What the address is.
pub(crate) fn kind(address: IpAddr) -> Kind {
    match address {
        IpAddr::V4(address) => kind_v4(address),
        IpAddr::V6(address) => kind_v6(address),
    }
}

fn kind_v4(address: Ipv4Addr) -> Kind {
    match address.octets() {
        _ if address == GATEWAY_ADDRESS => Kind::Gateway,
        [10, 0, 2, 0 | 255] | [224..=239, ..] | [255, 255, 255, 255] => Kind::Group,
        [10, 0, 2, _] | [169, 254, ..] => Kind::Nobody,
        [0 | 127 | 240..=255, ..] => Kind::Martian,
        _ if names::is_made_up(address) => Kind::MadeUp,
        _ => Kind::Remote,
    }
}

fn kind_v6(address: Ipv6Addr) -> Kind {
    match address.segments() {
        _ if address == GATEWAY_ADDRESS_V6 || address == GATEWAY_LINK_LOCAL => Kind::Gateway,
        [0xff00..=0xffff, ..] => Kind::Group,
        // Unspecified, loopback, IPv4-compatible, IPv4-mapped.
        [0, 0, 0, 0, 0, 0 | 0xffff, _, _] => Kind::Martian,
        _ if is_on_link(address) => Kind::Nobody,
        _ if names::is_made_up_v6(address) => Kind::MadeUp,
        _ if has_route(address) => Kind::Remote,
        _ => Kind::Nobody,
    }
}

/// Whether such an address can be anywhere: global unicast (2000::/3) and unique local ones (fc00::/7).
pub(crate) fn has_route(address: Ipv6Addr) -> bool {
    matches!(address.segments()[0], 0x2000..=0x3fff | 0xfc00..=0xfdff)
}

/// Whether a packet may come from this address: it is one that the VM got or made from what the gateway told it.
pub(crate) fn is_of_vm(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => address == VM_ADDRESS,
        // The first one of the prefix is that of all its routers (RFC 4291, section 2.6.1).
        IpAddr::V6(address) => is_on_link(address) && address != GATEWAY_ADDRESS_V6 && address != PREFIX_V6,
    }
}

/// Whether the address is a link-local one that the VM may have made for itself.
pub(crate) fn is_link_local_of_vm(address: IpAddr) -> bool {
    matches!(address, IpAddr::V6(address) if address.is_unicast_link_local() && address != GATEWAY_LINK_LOCAL)
}

fn is_on_link(address: Ipv6Addr) -> bool {
    address.segments()[..4] == PREFIX_V6.segments()[..4]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn edges_of_every_range() {
        for (address, expected) in [
            ("10.0.2.2", Kind::Gateway),
            ("10.0.2.15", Kind::Nobody),
            ("10.0.2.1", Kind::Nobody),
            ("10.0.2.0", Kind::Group),
            ("10.0.2.255", Kind::Group),
            ("10.0.3.1", Kind::Remote),
            ("10.191.255.255", Kind::Remote),
            ("10.192.0.0", Kind::MadeUp),
            ("10.255.255.255", Kind::MadeUp),
            ("11.0.0.0", Kind::Remote),
            ("0.0.0.0", Kind::Martian),
            ("0.1.2.3", Kind::Martian),
            ("127.0.0.1", Kind::Martian),
            ("128.0.0.1", Kind::Remote),
            ("169.254.169.254", Kind::Nobody),
            ("192.168.1.1", Kind::Remote),
            ("223.255.255.255", Kind::Remote),
            ("224.0.0.251", Kind::Group),
            ("239.255.255.250", Kind::Group),
            ("240.0.0.1", Kind::Martian),
            ("255.255.255.254", Kind::Martian),
            ("255.255.255.255", Kind::Group),
            ("fe80::1", Kind::Gateway),
            ("fd6f:6874:1::2", Kind::Gateway),
            ("fd6f:6874:1::3", Kind::Nobody),
            ("fd6f:6874:1:0:ffff::", Kind::Nobody),
            ("fd6f:6874:1:1::", Kind::Remote),
            ("fd6f:6874:2::", Kind::MadeUp),
            ("fd6f:6874:2::ac0:1", Kind::MadeUp),
            ("fd6f:6874:2:0:ffff:ffff:ffff:ffff", Kind::MadeUp),
            ("fd6f:6874:2:1::", Kind::Remote),
            ("fbff::1", Kind::Nobody),
            ("fc00::1", Kind::Remote),
            ("fdff::1", Kind::Remote),
            ("fe00::1", Kind::Nobody),
            ("fe80::2", Kind::Nobody),
            ("fec0::1", Kind::Nobody),
            ("ff02::1", Kind::Group),
            ("::", Kind::Martian),
            ("::1", Kind::Martian),
            ("::10.0.2.2", Kind::Martian),
            ("::ffff:10.0.2.2", Kind::Martian),
            ("64:ff9b::1", Kind::Nobody),
            ("1fff::", Kind::Nobody),
            ("2000::", Kind::Remote),
            ("3fff:ffff::", Kind::Remote),
            ("4000::", Kind::Nobody),
        ] {
            assert_eq!(kind(address.parse().unwrap()), expected, "{address}");
        }
    }

    #[test]
    fn whom_the_vm_may_be() {
        for (address, is_vm, is_link_local) in [
            ("10.0.2.15", true, false),
            ("10.0.2.16", false, false),
            ("0.0.0.0", false, false),
            ("fd6f:6874:1::1", true, false),
            ("fd6f:6874:1::2", false, false),
            ("fd6f:6874:1::", false, false),
            ("fd6f:6874:1:0:ffff:ffff:ffff:ffff", true, false),
            ("fd6f:6874:2::1", false, false),
            ("fe80::1", false, false),
            ("fe80::5054:ff:fe12:3456", false, true),
            ("::", false, false),
            ("ff02::1", false, false),
        ] {
            let address = address.parse().unwrap();
            assert_eq!((is_of_vm(address), is_link_local_of_vm(address)), (is_vm, is_link_local), "{address}");
        }
    }
}
