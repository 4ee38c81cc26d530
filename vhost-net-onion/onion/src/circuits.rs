//! Which of a VM's streams may share a circuit, and which of them do.
//!
//! A circuit is never shared by two VMs, nor by two credentials of one VM, nor by streams with a credential and streams
//! without. Within these bounds a VM has several *slots*. A slot is an isolation token: arti gives the streams of one
//! token the same circuit, as long as its exit takes the port and it is not too old, and streams of different tokens
//! different circuits. So a slot stands for one circuit at a time, and when that one is replaced is arti's business.
//!
//! Why several: one circuit carries what its slowest relay and its congestion window let through; streams on several
//! circuits add up.
//!
//! What it means for privacy: more exits see some of a VM's traffic, and each of them sees less of it. A destination sees
//! few exits: it keeps its slot for as long as that slot carries at most [`FEW`] streams, and only a destination to
//! which many streams are open at a time is met on other slots. All circuits of all VMs begin at the same guards, so
//! nobody new learns that Tor is used.
//!
//! A VM begins with [`SLOTS_FIRST`] slots. Another is opened, up to [`SLOTS_MAX`], when every open one is busy, that is,
//! carries more than [`FEW`] streams. It is named before it is needed ([`Lease::next`]), so that its circuit can be built.
//!
//! A route may say otherwise: streams with another `isolate` or other exits are in pools of their own. Where it says
//! `isolate`, a pool has one slot: for the VM, for a destination and a credential, or for a credential.
//!
//! Onion services are not spread. Each token would cost a rendezvous of its own; and arti makes a circuit for each
//! service anyway, so all onion services of one credential share a token.
//!
//! No I/O, no clock. Bounds: [`POOLS_MAX`], [`HOSTS_MAX`]; what was used longest ago is forgotten first. That costs
//! a circuit, never isolation: a credential that was forgotten gets new tokens, and its streams keep theirs.

use std::{collections::HashMap, fmt, hash::Hash, sync::Arc};

use arti_client::IsolationToken;
use wire::route::{Exit, Isolation};

use crate::way::Way;

/// Slots of one credential, or of none.
const SLOTS_MAX: usize = 8;

/// Slots that a VM has from the beginning.
const SLOTS_FIRST: usize = 2;

/// Streams that a slot may carry before a stream goes to another one. Small, so that parallel downloads spread; not
/// zero, so that a page that is fetched over two connections comes from one exit.
const FEW: usize = 1;

/// Pools of one VM that are remembered, besides that for what is usual. A browser makes a credential for each site.
const POOLS_MAX: usize = 256;

/// Destinations of one credential that are remembered.
const HOSTS_MAX: usize = 256;

/// What a program in the VM gave as user name and password to keep its streams apart from others (SOCKS5, RFC 1929).
/// The bytes mean nothing to us but whether they are equal, and are never shown.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Credential(Box<[u8]>);

impl Credential {
    /// A credential. Two are the same when `bytes` are.
    #[must_use]
    pub fn new(bytes: &[u8]) -> Credential {
        Credential(bytes.into())
    }
}

impl fmt::Debug for Credential {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Credential(…)")
    }
}

/// Assigns the streams of one VM to slots.
pub(crate) struct Spread {
    /// For streams without a credential of which no route says anything.
    anonymous: Pool,
    others: Recent<Key, Pool>,
}

/// What tells pools apart.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Key {
    exit: Exit,
    isolate: Option<Isolation>,
    credential: Option<Credential>,
    host: Option<String>,
}

/// The slots of streams that may share.
struct Pool {
    slots: Vec<Slot>,
    slots_max: usize,
    /// The next slot, once there is a circuit for it.
    spare: Option<Slot>,
    /// The slots that destinations keep, by their place in `slots`.
    hosts: Recent<String, usize>,
    onion: IsolationToken,
    taken: u64,
}

/// Streams that share a circuit.
struct Slot {
    token: IsolationToken,
    /// Each stream's lease holds it too.
    streams: Arc<()>,
    /// When a stream took it last, in the pool's count.
    taken: u64,
}

/// A stream's place on a slot; the stream counts for as long as the lease lives.
#[derive(Debug)]
pub(crate) struct Lease {
    /// Streams with this token share a circuit.
    pub(crate) token: IsolationToken,
    /// The slot that would be opened next: it is worth a circuit now.
    pub(crate) next: Option<IsolationToken>,
    _stream: Arc<()>,
}

impl Spread {
    pub(crate) fn new() -> Spread {
        Spread { anonymous: Pool::new(SLOTS_FIRST, SLOTS_MAX), others: Recent::new(POOLS_MAX) }
    }

    /// A place for a stream to `host`, a name or an address.
    pub(crate) fn take(&mut self, host: &str, credential: Option<&Credential>, way: &Way) -> Lease {
        let host = host.to_ascii_lowercase();
        self.pool(&host, credential, way).take(&host)
    }

    /// The token for streams to the onion service `host`.
    pub(crate) fn onion(&mut self, host: &str, credential: Option<&Credential>, way: &Way) -> IsolationToken {
        // There is no exit on the way.
        let way = Way { exit: Exit::Any, ..way.clone() };
        self.pool(&host.to_ascii_lowercase(), credential, &way).onion
    }

    /// The tokens of the slots that streams without a credential take first.
    pub(crate) fn first(&self) -> Vec<IsolationToken> {
        self.anonymous.slots.iter().take(SLOTS_FIRST).map(|slot| slot.token).collect()
    }

    fn pool(&mut self, host: &str, credential: Option<&Credential>, way: &Way) -> &mut Pool {
        let key = Key::new(host, credential, way);
        if key.is_usual() {
            return &mut self.anonymous;
        }
        let slots_max = if key.isolate.is_none() { SLOTS_MAX } else { 1 };
        // One slot at first: there may be many credentials, each with few streams.
        self.others.get_or_insert(&key, || Pool::new(1, slots_max), Pool::is_idle)
    }
}

impl Key {
    fn new(host: &str, credential: Option<&Credential>, way: &Way) -> Key {
        let Way { exit, isolate, optimistic: _ } = way;
        let credential = if *isolate == Some(Isolation::Vm) { None } else { credential.cloned() };
        let host = (*isolate == Some(Isolation::Destination)).then(|| host.to_owned());
        Key { exit: exit.clone(), isolate: *isolate, credential, host }
    }

    fn is_usual(&self) -> bool {
        matches!(self, Key { exit: Exit::Any, isolate: None, credential: None, host: None })
    }
}

impl Pool {
    fn new(slots: usize, slots_max: usize) -> Pool {
        Pool {
            slots: (0..slots).map(|_| Slot::new()).collect(),
            slots_max,
            spare: None,
            hosts: Recent::new(HOSTS_MAX),
            onion: IsolationToken::new(),
            taken: 0,
        }
    }

    fn take(&mut self, host: &String) -> Lease {
        let home = self.hosts.get(host).copied();
        let at = match home {
            Some(home) if !self.slots[home].is_busy() => home,
            _ => self.least_busy(),
        };
        if home.is_none() {
            self.hosts.get_or_insert(host, || at, |_| true);
        }
        self.taken += 1;
        self.slots[at].taken = self.taken;
        let mut lease = self.slots[at].lease();
        if self.slots.len() < self.slots_max && self.slots.iter().all(Slot::is_busy) && self.spare.is_none() {
            lease.next = Some(self.spare.insert(Slot::new()).token);
        }
        lease
    }

    /// The slot with the fewest streams, of several the one that was taken longest ago; a new one when all are busy.
    fn least_busy(&mut self) -> usize {
        if self.slots.len() < self.slots_max && self.slots.iter().all(Slot::is_busy) {
            self.slots.push(self.spare.take().unwrap_or_else(Slot::new));
            return self.slots.len() - 1;
        }
        let slots = self.slots.iter().enumerate();
        slots.min_by_key(|(_, slot)| (slot.streams(), slot.taken)).map(|(at, _)| at).unwrap_or_default()
    }

    fn is_idle(&self) -> bool {
        self.slots.iter().all(|slot| slot.streams() == 0)
    }
}

impl Slot {
    fn new() -> Slot {
        Slot { token: IsolationToken::new(), streams: Arc::new(()), taken: 0 }
    }

    fn lease(&self) -> Lease {
        Lease { token: self.token, next: None, _stream: Arc::clone(&self.streams) }
    }

    fn streams(&self) -> usize {
        Arc::strong_count(&self.streams) - 1
    }

    fn is_busy(&self) -> bool {
        self.streams() > FEW
    }
}

/// A table that holds at most so many entries. The one that was used longest ago goes first, and idle ones before any
/// other.
struct Recent<K, V> {
    entries: HashMap<K, (V, u64)>,
    entries_max: usize,
    uses: u64,
}

impl<K: Clone + Eq + Hash, V> Recent<K, V> {
    fn new(entries_max: usize) -> Recent<K, V> {
        Recent { entries: HashMap::new(), entries_max, uses: 0 }
    }

    fn get(&mut self, key: &K) -> Option<&mut V> {
        self.uses += 1;
        self.entries.get_mut(key).map(|(value, used)| {
            *used = self.uses;
            value
        })
    }

    fn get_or_insert(&mut self, key: &K, make: impl FnOnce() -> V, is_idle: impl Fn(&V) -> bool) -> &mut V {
        if self.entries.len() >= self.entries_max && !self.entries.contains_key(key) {
            let oldest = self.entries.iter().min_by_key(|(_, (value, used))| (!is_idle(value), *used));
            if let Some(oldest) = oldest.map(|(key, _)| key.clone()) {
                self.entries.remove(&oldest);
            }
        }
        self.uses += 1;
        let (value, used) = self.entries.entry(key.clone()).or_insert_with(|| (make(), 0));
        *used = self.uses;
        value
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    fn take(spread: &mut Spread, host: &str) -> Lease {
        spread.take(host, None, &Way::default())
    }

    fn circuits(leases: &[Lease]) -> usize {
        leases.iter().map(|lease| format!("{:?}", lease.token)).collect::<HashSet<_>>().len()
    }

    #[test]
    fn a_destination_keeps_its_slot_while_that_carries_few_streams() {
        let mut spread = Spread::new();
        let first = take(&mut spread, "a.example").token;
        for _ in 0..100 {
            let one = take(&mut spread, "A.example");
            let two = take(&mut spread, "a.example");
            assert_eq!((one.token, two.token), (first, first));
            // Others come and go meanwhile.
            drop(take(&mut spread, "b.example"));
        }
    }

    #[test]
    fn a_vm_with_few_streams_uses_few_slots_and_both() {
        let mut spread = Spread::new();
        let leases: Vec<_> = (0..100).map(|i| take(&mut spread, &format!("{i}.example")).token).collect();
        assert_eq!(leases.iter().filter(|token| **token == leases[0]).count(), 50);
        assert_eq!(spread.first().len(), SLOTS_FIRST);
        assert!(leases.iter().all(|token| spread.first().contains(token)));
    }

    #[test]
    fn parallel_streams_spread_evenly_and_the_slots_end_somewhere() {
        let mut spread = Spread::new();
        let mut leases: Vec<_> = (0..8).map(|_| take(&mut spread, "a.example")).collect();
        assert_eq!(circuits(&leases), 8 / (FEW + 1));
        leases.extend((0..72).map(|_| take(&mut spread, "a.example")));
        assert_eq!(circuits(&leases), SLOTS_MAX);
        for slot in &spread.anonymous.slots {
            assert_eq!(slot.streams(), 80 / SLOTS_MAX);
        }
        leases.clear();
        assert!(spread.anonymous.is_idle());
        let home = take(&mut spread, "a.example").token;
        assert!(spread.first().contains(&home), "the destination is met where it was at first");
    }

    #[test]
    fn the_next_slot_is_named_before_it_is_needed() {
        let mut spread = Spread::new();
        let leases: Vec<_> = (0..2 * (SLOTS_MAX + 2)).map(|_| take(&mut spread, "a.example")).collect();
        let mut known: Vec<_> = spread.first();
        for lease in &leases {
            assert!(known.contains(&lease.token), "a slot that nobody was told of");
            known.extend(lease.next);
        }
        assert_eq!(known.len(), SLOTS_MAX, "each is named once");
    }

    #[test]
    fn credentials_share_with_nobody() {
        let mut spread = Spread::new();
        let (one, two) = (Credential::new(b"one\0x"), Credential::new(b"two"));
        let mut seen = HashSet::new();
        for credential in [None, Some(&one), Some(&two)] {
            let leases: Vec<_> = (0..30).map(|_| spread.take("a.example", credential, &Way::default())).collect();
            let mut tokens: HashSet<_> = leases.iter().map(|lease| format!("{:?}", lease.token)).collect();
            assert_eq!(tokens.len(), SLOTS_MAX);
            let onion = spread.onion("a.onion", credential, &Way::default());
            assert_eq!(onion, spread.onion("a.onion", credential, &Way::default()));
            assert!(tokens.insert(format!("{onion:?}")), "onion services have a token of their own");
            assert!(seen.is_disjoint(&tokens));
            seen.extend(tokens);
        }
        assert_eq!(format!("{one:?}"), "Credential(…)");
    }

    #[test]
    fn tables_are_bounded_and_what_is_idle_is_forgotten_first() {
        let mut spread = Spread::new();
        let busy = Credential::new(b"busy");
        let lease = spread.take("a.example", Some(&busy), &Way::default());
        let idle = Credential::new(b"idle");
        let forgotten = spread.take("a.example", Some(&idle), &Way::default()).token;
        for i in 0..2 * POOLS_MAX {
            drop(spread.take("a.example", Some(&Credential::new(&i.to_le_bytes())), &Way::default()));
        }
        assert_eq!(spread.others.entries.len(), POOLS_MAX);
        assert_eq!(spread.take("a.example", Some(&busy), &Way::default()).token, lease.token);
        assert_ne!(spread.take("a.example", Some(&idle), &Way::default()).token, forgotten);
        for i in 0..2 * HOSTS_MAX {
            drop(take(&mut spread, &i.to_string()));
        }
        assert_eq!(spread.anonymous.hosts.entries.len(), HOSTS_MAX);
    }

    #[test]
    fn what_a_route_isolates_is_apart_and_on_one_circuit() {
        let (one, two) = (Credential::new(b"one"), Credential::new(b"two"));
        let hosts = ["a.example", "A.example", "b.example"];
        // How many circuits 3 hosts (two of them the same) times 3 credentials take, with ten streams each.
        for (isolate, circuits_expected) in
            [(Isolation::Vm, 1), (Isolation::Credential, 3), (Isolation::Destination, 2 * 3)]
        {
            let mut spread = Spread::new();
            let way = Way { isolate: Some(isolate), ..Way::default() };
            let mut leases: Vec<_> = vec![];
            for host in hosts {
                for credential in [None, Some(&one), Some(&two)] {
                    leases.extend((0..10).map(|_| spread.take(host, credential, &way)));
                }
            }
            assert_eq!(circuits(&leases), circuits_expected, "{isolate}");
            let usual: Vec<_> = (0..10).map(|_| take(&mut spread, "a.example")).collect();
            assert!(usual.iter().all(|usual| leases.iter().all(|lease| lease.token != usual.token)), "{isolate}");
        }
    }

    #[test]
    fn other_exits_are_other_circuits_but_not_to_onion_services() {
        let mut spread = Spread::new();
        let way = |country: &str| Way { exit: Exit::In(country.parse().unwrap()), ..Way::default() };
        let tokens: HashSet<_> = [Way::default(), way("CH"), way("LI")]
            .map(|way| format!("{:?}", spread.take("a", None, &way).token))
            .into();
        assert_eq!(tokens.len(), 3);
        assert_eq!(spread.onion("a.onion", None, &way("CH")), spread.onion("b.onion", None, &Way::default()));
    }
}
