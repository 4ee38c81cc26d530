//! What a request names, as a target of a flow.

use std::net::IpAddr;

use crate::{
    Host, Target,
    address::{self, Kind},
    names::{self, Names},
};

/// The target that a text and a port name: a host name, or an address as a text. `None` if there can be none.
pub(super) fn of_text(text: &[u8], port: u16, names: &Names) -> Option<Target> {
    let text = std::str::from_utf8(text).ok()?;
    if let Ok(address) = text.parse() {
        return of_address(address, port, names);
    }
    target(Host::Name(host_name(text)?), port)
}

/// The target that an address and a port name: a made-up address stands for its name.
pub(super) fn of_address(address: IpAddr, port: u16, names: &Names) -> Option<Target> {
    let address = address.to_canonical();
    match address::kind(address) {
        Kind::Remote => target(Host::Address(address), port),
        Kind::MadeUp => target(Host::Name(names.name(address)?.to_owned()), port),
        Kind::Gateway | Kind::Nobody | Kind::Group | Kind::Martian => None,
    }
}

/// A host name that something behind the gateway may have, as it is written everywhere.
pub(super) fn host_name(text: &str) -> Option<String> {
    let text = text.strip_suffix('.').unwrap_or(text);
    let name = names::host_name(text.split('.').map(str::as_bytes))?;
    (!names::is_special(&name)).then_some(name)
}

fn target(host: Host, port: u16) -> Option<Target> {
    (port != 0).then_some(Target { host, port })
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;
    use crate::Counters;

    #[test]
    fn names_and_addresses_are_told_apart_and_made_up_ones_mean_their_names() {
        let mut names = Names::new(4, [1, 2, 3, 4]);
        let made_up = names.address(Instant::now(), "a.example", &mut Counters::default()).unwrap();
        let host = |text: &str| of_text(text.as_bytes(), 80, &names).map(|target| target.host);
        let name = |text: &str| Some(Host::Name(text.to_owned()));
        let address = |text: &str| Some(Host::Address(text.parse().unwrap()));
        assert_eq!(host("Example.COM."), name("example.com"));
        assert_eq!(host(&format!("{}.onion", "b".repeat(56))), name(&format!("{}.onion", "b".repeat(56))));
        assert_eq!(host("198.51.100.7"), address("198.51.100.7"));
        assert_eq!(host("2001:db8::7"), address("2001:db8::7"));
        assert_eq!(host("::ffff:198.51.100.7"), address("198.51.100.7"));
        assert_eq!(host(&made_up.to_string()), name("a.example"));
        assert_eq!(host(&names::to_v6(made_up).to_string()), name("a.example"));
        for nowhere in [
            "",
            ".",
            "a..b",
            "a b",
            "1.2.3",
            "localhost",
            "x.localhost",
            "printer.local",
            "a.invalid",
            "1.0.0.127.in-addr.arpa",
            "10.0.2.2",
            "10.0.2.15",
            "127.0.0.1",
            "::1",
            "::ffff:127.0.0.1",
            "fe80::1",
            "fd6f:6874:1::2",
            "0.0.0.0",
            "255.255.255.255",
            "ff02::1",
            "10.192.0.1",
            "fd6f:6874:2::1",
        ] {
            assert_eq!(host(nowhere), None, "{nowhere}");
        }
        assert_eq!(of_text(b"\xff.example", 80, &names), None);
        assert_eq!(of_text(b"example.com", 0, &names), None);
    }
}
