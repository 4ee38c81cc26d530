//! Addresses made up for names, so that the *name* travels to the exit or to the onion service.
//!
//! The first query for a name gives it an address of 10.192.0.0/10 (the range that Tor's `VirtualAddrNetworkIPv4`
//! takes by default is 127.192.0.0/10; this is its like outside loopback, which no guest would route), and one of
//! fd6f:6874:2::/64 whose last 32 bits are the same. Both mean the name as long as it is remembered: always while it has
//! open flows, and otherwise until as many other names were asked for as fit the table. When it is full, the name goes
//! whose answer is the oldest. So one whose answer may still be in a VM's cache goes only when all others may as well,
//! which is counted.
//!
//! Addresses are taken in an order that is a permutation of the range, chosen by the seed: no address is used twice
//! before all others were, and after a restart of the router an address that the VM still has in a cache practically
//! never means another name. It then means nothing, and connecting to it gives "host unreachable".

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    time::{Duration, Instant},
};

use crate::{
    config::{GATEWAY_ADDRESS, GATEWAY_ADDRESS_V6, PREFIX_BITS, PREFIX_BITS_V6, VM_ADDRESS},
    counters::Counters,
    random::mix,
};

/// How long an answer with an address may be kept. Short, as names are forgotten, and long enough for one page.
pub(crate) const TTL: Duration = Duration::from_secs(60);

/// First of the made-up addresses.
const BASE: u32 = Ipv4Addr::new(10, 192, 0, 0).to_bits();

/// Bits that are free within the range: 4,194,304 addresses.
const BITS: u32 = 22;

/// First of the made-up IPv6 addresses. The low 32 bits are the IPv4 address of the same name.
const BASE_V6: u128 = Ipv6Addr::new(0xfd6f, 0x6874, 2, 0, 0, 0, 0, 0).to_bits();

/// Bits that are free within that range, though not all are used.
const BITS_V6: u32 = 64;

// The made-up ranges and the link's networks have nothing in common: neither contains the other's first address.
const _: () = assert!(PREFIX_BITS as u32 >= 32 - BITS && PREFIX_BITS_V6 as u32 >= 128 - BITS_V6);
const _: () =
    assert!(GATEWAY_ADDRESS.to_bits() >> BITS != BASE >> BITS && VM_ADDRESS.to_bits() >> BITS != BASE >> BITS);
const _: () = assert!(GATEWAY_ADDRESS_V6.to_bits() >> BITS_V6 != BASE_V6 >> BITS_V6);

/// Bytes of the longest name, written with dots (RFC 1035, section 2.3.4).
const NAME_BYTES_MAX: usize = 253;

/// Bytes of the longest label.
const LABEL_BYTES_MAX: usize = 63;

/// Whether an address is one of those that are made up.
pub(crate) fn is_made_up(address: Ipv4Addr) -> bool {
    address.to_bits() >> BITS == BASE >> BITS
}

/// Whether an IPv6 address is of the range of those that are made up.
pub(crate) fn is_made_up_v6(address: Ipv6Addr) -> bool {
    address.to_bits() >> BITS_V6 == BASE_V6 >> BITS_V6
}

/// The IPv6 address that means the same name as an IPv4 address.
pub(crate) fn to_v6(address: Ipv4Addr) -> Ipv6Addr {
    Ipv6Addr::from_bits(BASE_V6 | u128::from(address.to_bits()))
}

/// The made-up IPv4 address that means the same name; of IPv6 addresses there is at most one.
fn to_v4(address: IpAddr) -> Option<Ipv4Addr> {
    match address {
        IpAddr::V4(address) => Some(address),
        IpAddr::V6(address) => {
            let low = u32::try_from(address.to_bits() ^ BASE_V6).ok()?;
            Some(Ipv4Addr::from_bits(low)).filter(|address| is_made_up(*address))
        }
    }
}

/// Whether a name is of an onion service (RFC 7686): lower case, as in [`crate::Host::Name`].
pub(crate) fn is_onion(name: &str) -> bool {
    name.rsplit('.').next() == Some("onion")
}

/// Writes a host name as it is used everywhere, or `None` if no host can have it: lower case, without the final dot,
/// labels of letters, digits, `-` and `_`.
///
/// A name that could be read as an address (its last label is a number) is none: as a name it would get past whatever
/// decides about addresses.
pub(crate) fn host_name<'a>(labels: impl Iterator<Item = &'a [u8]>) -> Option<String> {
    let mut name = String::new();
    let mut last: &[u8] = b"";
    for label in labels {
        let allowed = |byte: &u8| byte.is_ascii_alphanumeric() || *byte == b'-' || *byte == b'_';
        let in_bounds = !label.is_empty() && label.len() <= LABEL_BYTES_MAX;
        if !in_bounds || !label.iter().all(allowed) {
            return None;
        }
        if !name.is_empty() {
            name.push('.');
        }
        name.extend(label.iter().map(|byte| char::from(byte.to_ascii_lowercase())));
        last = label;
    }
    let numeric = last.iter().all(u8::is_ascii_digit) || last.starts_with(b"0x") || last.starts_with(b"0X");
    (!name.is_empty() && name.len() <= NAME_BYTES_MAX && !numeric).then_some(name)
}

/// Whether a name as [`host_name`] writes it is never of anything behind the gateway (RFC 6761, RFC 6762).
pub(crate) fn is_special(name: &str) -> bool {
    matches!(name.rsplit('.').next(), Some("localhost" | "local" | "invalid" | "arpa"))
}

/// The names of one VM and their addresses. Holds at most `names_max` of them.
#[derive(Debug)]
pub(crate) struct Names {
    addresses: BTreeMap<String, Ipv4Addr>,
    entries: BTreeMap<Ipv4Addr, Entry>,
    /// Names without open flows, by when they were last asked for.
    idle: BTreeSet<(u64, Ipv4Addr)>,
    names_max: usize,
    order: Order,
    /// Counts what was asked for: the clock of `idle`.
    asked: u64,
}

#[derive(Debug)]
struct Entry {
    name: String,
    flows: usize,
    asked: u64,
    /// The VM may have the last answer in a cache until then.
    cached_until: Instant,
}

impl Names {
    pub(crate) fn new(names_max: usize, seed: [u64; 4]) -> Names {
        Names {
            addresses: BTreeMap::new(),
            entries: BTreeMap::new(),
            idle: BTreeSet::new(),
            // Half the range at most, so that a free address is always found soon.
            names_max: names_max.clamp(1, 1 << (BITS - 1)),
            order: Order { keys: seed, next: 0 },
            asked: 0,
        }
    }

    /// The address of a name, made up if it has none yet, for an answer that may be kept for [`TTL`]. `None` when every
    /// remembered name has open flows.
    pub(crate) fn address(&mut self, now: Instant, name: &str, counters: &mut Counters) -> Option<Ipv4Addr> {
        self.asked += 1;
        let cached_until = now + TTL;
        if let Some(address) = self.addresses.get(name).copied() {
            let entry = self.entries.get_mut(&address)?;
            if self.idle.remove(&(entry.asked, address)) {
                self.idle.insert((self.asked, address));
            }
            (entry.asked, entry.cached_until) = (self.asked, cached_until);
            return Some(address);
        }
        if self.entries.len() >= self.names_max {
            let (_, oldest) = self.idle.pop_first()?;
            self.forget(now, oldest, counters);
        }
        let address = self.order.by_ref().find(|address| !self.entries.contains_key(address))?;
        self.addresses.insert(name.to_owned(), address);
        self.entries.insert(address, Entry { name: name.to_owned(), flows: 0, asked: self.asked, cached_until });
        self.idle.insert((self.asked, address));
        Some(address)
    }

    /// The name that an address stands for.
    pub(crate) fn name(&self, address: impl Into<IpAddr>) -> Option<&str> {
        self.entries.get(&to_v4(address.into())?).map(|entry| entry.name.as_str())
    }

    /// A flow to the address begins: it is not forgotten until the flow ends.
    pub(crate) fn hold(&mut self, address: impl Into<IpAddr>) {
        let Some(address) = to_v4(address.into()) else { return };
        if let Some(entry) = self.entries.get_mut(&address) {
            entry.flows += 1;
            self.idle.remove(&(entry.asked, address));
        }
    }

    /// A flow to the address has ended.
    pub(crate) fn release(&mut self, address: impl Into<IpAddr>) {
        let Some(address) = to_v4(address.into()) else { return };
        let Some(entry) = self.entries.get_mut(&address) else { return };
        entry.flows = entry.flows.saturating_sub(1);
        if entry.flows == 0 {
            self.asked += 1;
            entry.asked = self.asked;
            self.idle.insert((entry.asked, address));
        }
    }

    /// How many names are remembered.
    #[cfg(test)]
    pub(crate) fn len(&self) -> usize {
        self.entries.len()
    }

    fn forget(&mut self, now: Instant, address: Ipv4Addr, counters: &mut Counters) {
        if let Some(entry) = self.entries.remove(&address) {
            self.addresses.remove(&entry.name);
            counters.names_evicted += 1;
            counters.names_evicted_early += u64::from(now < entry.cached_until);
        }
    }
}

/// The order in which addresses are taken: a Feistel network over the free bits, keyed by the seed. It hides nothing
/// from a determined VM, and need not: these are the VM's own addresses.
#[derive(Debug)]
struct Order {
    keys: [u64; 4],
    next: u32,
}

impl Iterator for Order {
    type Item = Ipv4Addr;

    /// Never ends; begins again after the whole range. Skips addresses that end in 0 or 255, which some programs take
    /// for those of networks.
    fn next(&mut self) -> Option<Ipv4Addr> {
        loop {
            let host = self.permuted(self.next);
            self.next = (self.next + 1) % (1 << BITS);
            if !matches!(host & 0xff, 0 | 0xff) {
                return Some(Ipv4Addr::from_bits(BASE | host));
            }
        }
    }
}

impl Order {
    fn permuted(&self, number: u32) -> u32 {
        const HALF: u32 = BITS / 2;
        const MASK: u32 = (1 << HALF) - 1;
        let (mut left, mut right) = (number >> HALF, number & MASK);
        for round in 0..8usize {
            let mixed = mix(self.keys[round % 4] ^ (u64::from(right) << 8) ^ round as u64);
            (left, right) = (right, left ^ (mixed as u32 & MASK));
        }
        left << HALF | right
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A table, and a time that a test moves.
    struct Table {
        names: Names,
        now: Instant,
        counters: Counters,
    }

    impl Table {
        fn address(&mut self, name: &str) -> Option<Ipv4Addr> {
            self.names.address(self.now, name, &mut self.counters)
        }

        fn name(&self, address: Ipv4Addr) -> Option<&str> {
            let name = self.names.name(address);
            assert_eq!(self.names.name(to_v6(address)), name, "both addresses mean the same");
            name
        }
    }

    fn names(names_max: usize) -> Table {
        seeded(names_max, [1, 2, 3, 4])
    }

    fn seeded(names_max: usize, seed: [u64; 4]) -> Table {
        Table { names: Names::new(names_max, seed), now: Instant::now(), counters: Counters::default() }
    }

    fn host(name: &str) -> Option<String> {
        host_name(name.split('.').map(str::as_bytes))
    }

    #[test]
    fn the_same_name_has_the_same_address() {
        let mut names = names(10);
        let (a, b) = (names.address("a.onion").unwrap(), names.address("b.example").unwrap());
        assert!(a != b && is_made_up(a) && is_made_up(b));
        assert_eq!(names.address("a.onion"), Some(a));
        assert_eq!((names.name(a), names.name(b)), (Some("a.onion"), Some("b.example")));
        assert_eq!(names.name(Ipv4Addr::new(10, 192, 0, 1)), None);
    }

    #[test]
    fn the_one_asked_for_longest_ago_is_forgotten() {
        let mut names = names(3);
        let [a, b, c] = ["a", "b", "c"].map(|name| names.address(name).unwrap());
        names.address("a");
        names.address("d");
        assert_eq!((names.name(a), names.name(b), names.name(c)), (Some("a"), None, Some("c")));
        assert_eq!((names.counters.names_evicted, names.counters.names_evicted_early), (1, 1));
    }

    #[test]
    fn what_may_be_in_a_cache_goes_last() {
        let mut names = names(2);
        let [a, b] = ["a", "b"].map(|name| names.address(name).unwrap());
        names.now += TTL / 2;
        names.address("a");
        names.now += TTL / 2;
        names.address("c");
        assert_eq!((names.name(a), names.name(b)), (Some("a"), None));
        assert_eq!((names.counters.names_evicted, names.counters.names_evicted_early), (1, 0));
        names.address("d");
        assert_eq!(
            (names.counters.names_evicted, names.counters.names_evicted_early),
            (2, 1),
            "a, for want of another"
        );
    }

    #[test]
    fn only_one_ipv6_address_means_a_name() {
        let mut names = names(2);
        let address = names.address("a").unwrap();
        let v6 = to_v6(address);
        assert!(is_made_up_v6(v6));
        assert_eq!(v6.segments()[..6], [0xfd6f, 0x6874, 2, 0, 0, 0]);
        for bit in 32..128 {
            assert_eq!(names.names.name(Ipv6Addr::from_bits(v6.to_bits() ^ 1 << bit)), None);
        }
        assert_eq!(names.names.name(to_v6(GATEWAY_ADDRESS)), None);
    }

    #[test]
    fn names_with_open_flows_are_kept() {
        let mut names = names(2);
        let [a, b] = ["a", "b"].map(|name| names.address(name).unwrap());
        names.names.hold(a);
        names.names.hold(to_v6(a));
        names.names.hold(b);
        assert_eq!(names.address("c"), None);
        names.names.release(a);
        names.address("a");
        assert_eq!(names.address("c"), None, "one flow is left");
        names.names.release(to_v6(a));
        assert!(names.address("c").is_some());
        assert_eq!((names.name(a), names.name(b)), (None, Some("b")));
    }

    #[test]
    fn the_table_stays_bounded_and_its_parts_agree() {
        let mut names = names(50);
        for n in 0..5_000u32 {
            let address = names.address(&format!("n{}", n * 7 % 83)).unwrap();
            if n % 3 == 0 {
                names.names.hold(address);
                names.names.release(address);
            }
            assert!(names.names.entries.len() <= 50);
            assert_eq!(names.names.entries.len(), names.names.addresses.len());
            assert_eq!(names.names.entries.len(), names.names.idle.len());
        }
    }

    #[test]
    fn no_address_comes_twice_before_all_others() {
        let order = Order { keys: [9, 8, 7, 6], next: 0 };
        let mut seen = vec![false; 1 << BITS];
        for number in 0..1 << BITS {
            let host = order.permuted(number) as usize;
            assert!(!std::mem::replace(&mut seen[host], true));
        }
    }

    #[test]
    fn another_seed_gives_other_addresses() {
        let mut a = seeded(2_000, [1, 2, 3, 4]);
        let mut b = seeded(2_000, [1, 2, 3, 5]);
        let of_a: Vec<Ipv4Addr> = (0..1_000).map(|n| a.address(&n.to_string()).unwrap()).collect();
        let common = (0..1_000).filter(|n| of_a.contains(&b.address(&n.to_string()).unwrap())).count();
        assert!(common < 10, "{common} of 1,000 addresses in common");
    }

    #[test]
    fn host_names() {
        assert_eq!(host("Example.COM"), Some("example.com".into()));
        assert_eq!(host("_dmarc.a-b.example"), Some("_dmarc.a-b.example".into()));
        let onion = format!("{}.onion", "a".repeat(56));
        assert_eq!(host(&onion), Some(onion.clone()));
        for wrong in ["", "a..b", "a b", "a/b", "a\0b", "ä.de", "1.2.3.4", "1", "0x7f.1", "a.0x7f", "127.1"] {
            assert_eq!(host(wrong), None, "{wrong:?}");
        }
        assert_eq!(host(&"x".repeat(64)), None);
        let longest = ["x".repeat(63), "x".repeat(63), "x".repeat(63), "x".repeat(61)].join(".");
        assert_eq!(host(&longest), Some(longest.clone()));
        assert_eq!(host(&format!("{longest}x")), None);
    }
}
