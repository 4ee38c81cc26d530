//! The laws of the tree, for any terms and any times.

use std::{collections::BTreeSet, time::Duration};

use key_tree::{Chain, Clock, Country, Level, Operation, Purpose, Terms, Timestamp, Validity, Weekday};
use proptest::{prelude::*, sample::subsequence};

use crate::planted::{DAY, HOUR, NOON, ONION, PUBLISH, Planted, exercise, head, none, now, signed, terms};

/// A validity around noon; the times collide often.
fn validity() -> impl Strategy<Value = Validity> {
    let edge = prop_oneof![Just(0), Just(HOUR), 0..2 * DAY, 0..60 * DAY];
    (edge.clone(), edge).prop_filter_map("never empty", |(a, b)| {
        Validity::new(Timestamp::from_unix(NOON + a.min(b)), Timestamp::from_unix(NOON + a.max(b)))
    })
}

/// Whether these may stand one below the other: written down once more, and differently.
fn nested(validities: &[Validity; 3]) -> bool {
    let ends = validities.map(|validity| validity.end());
    let starts = validities.map(|validity| validity.start());
    let lasts = validities.map(|validity| validity.end().as_unix() - validity.start().as_unix());
    ends.is_sorted_by(|a, b| a >= b) && starts.is_sorted() && lasts[0] <= 31 * DAY && lasts[1] <= DAY && lasts[2] <= DAY
}

/// Limits, and what they mean, written down without Datalog.
#[derive(Clone, Debug)]
struct Limits {
    ports: Option<BTreeSet<u16>>,
    exits: Option<BTreeSet<Country>>,
    days: Option<BTreeSet<Weekday>>,
    purposes: Option<BTreeSet<Purpose>>,
}

const PORTS: [u16; 3] = [22, 80, 443];
const DAYS: [Weekday; 3] = [Weekday::Friday, Weekday::Saturday, Weekday::Sunday];
const PURPOSES: [Purpose; 3] = [Purpose::Session, Purpose::OnionService, Purpose::Signing];

fn countries() -> Vec<Country> {
    ["CH", "IS", "US"].map(|text| text.parse().unwrap()).to_vec()
}

fn some_of<T: Clone + std::fmt::Debug + Ord + 'static>(all: Vec<T>) -> impl Strategy<Value = Option<BTreeSet<T>>> {
    let count = all.len();
    proptest::option::of(subsequence(all, 0..=count).prop_map(BTreeSet::from_iter))
}

fn limits() -> impl Strategy<Value = Limits> {
    (some_of(PORTS.to_vec()), some_of(countries()), some_of(DAYS.to_vec()), some_of(PURPOSES.to_vec()))
        .prop_map(|(ports, exits, days, purposes)| Limits { ports, exits, days, purposes })
}

impl Limits {
    fn apply(&self, mut terms: Terms) -> Terms {
        fn list<T: Clone>(set: &BTreeSet<T>) -> Vec<T> {
            set.iter().cloned().collect()
        }
        if let Some(ports) = &self.ports {
            terms = terms.ports(&list(ports));
        }
        if let Some(exits) = &self.exits {
            terms = terms.exits(&list(exits));
        }
        if let Some(days) = &self.days {
            terms = terms.weekdays(&list(days));
        }
        if let Some(purposes) = &self.purposes {
            terms = terms.purposes(&list(purposes));
        }
        terms
    }

    fn permit(&self, operation: &Operation, day: Weekday) -> bool {
        let (port, exit) = match *operation {
            Operation::Connect { port, exit } => (Some(port), Some(exit)),
            Operation::ConnectOnion { port } | Operation::Publish { port } => (Some(port), None),
            _ => (None, None),
        };
        fn holds<T: Ord>(set: &Option<BTreeSet<T>>, value: &T) -> bool {
            set.as_ref().is_none_or(|set| set.contains(value))
        }
        port.is_none_or(|port| holds(&self.ports, &port))
            && exit.is_none_or(|exit| match exit {
                Some(exit) => holds(&self.exits, &exit),
                None => self.exits.is_none(),
            })
            && holds(&self.days, &day)
            && holds(&self.purposes, &operation.purpose())
    }
}

fn operation() -> impl Strategy<Value = Operation> {
    let port = || prop_oneof![proptest::sample::select(PORTS.to_vec()), any::<u16>()];
    let exit = proptest::option::of(proptest::sample::select([countries(), vec!["DE".parse().unwrap()]].concat()));
    prop_oneof![
        (port(), exit).prop_map(|(port, exit)| Operation::Connect { port, exit }),
        port().prop_map(|port| Operation::ConnectOnion { port }),
        port().prop_map(|port| Operation::Publish { port }),
        Just(Operation::Sign),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    #[test]
    fn no_key_outlives_its_parents_grant(validities in [validity(), validity(), validity()], at in 0..70 * DAY) {
        let planted = Planted::new(1);
        let [host, vm, leaf] = validities;
        // Signed by parents that do not care.
        let grants = [
            signed(planted.root.key(), &head(&planted.host, "host", host)),
            signed(&planted.host, &head(&planted.vm, "vm", vm)),
            signed(&planted.vm, &head(&planted.leaf, "onion-service", leaf)),
        ];
        let read = Chain::read(planted.root.public(), &grants);
        prop_assert_eq!(read.is_ok(), nested(&validities), "{:?}", read);
        // Signed by parents that do: they issue only what can be read, and nothing that is past.
        let at = now(NOON + at);
        let issued =
            planted.grow(&terms(Level::Host, host), &terms(Level::Vm, vm), &terms(ONION, leaf), at);
        prop_assert!(issued.is_err() || read.is_ok());
        let Ok(chain) = read else { return Ok(()) };
        let live = validities.iter().all(|one| one.start() <= at.timestamp() && at.timestamp() < one.end());
        prop_assert!(issued.is_ok() || !live);
        prop_assert_eq!(exercise(&chain, &planted.leaf, &PUBLISH, at, &none).is_ok(), live);
    }

    #[test]
    fn no_grant_widens(
        [host, vm, leaf] in [limits(), limits(), limits()],
        operation in operation(),
        at in 0..DAY,
    ) {
        let planted = Planted::new(1);
        let level = Level::Purpose(operation.purpose());
        let day = |level, limits: &Limits| limits.apply(terms(level, crate::planted::span(NOON, DAY)));
        let chain = planted.grow(&day(Level::Host, &host), &day(Level::Vm, &vm), &day(level, &leaf), now(NOON));
        let chain = chain.unwrap();
        let at = now(NOON + at);
        let weekday = at.timestamp().weekday();
        let allowed = [(Level::Host, &host), (Level::Vm, &vm), (level, &leaf)]
            .map(|(level, limits)| (level, limits.permit(&operation, weekday)));
        let outcome = exercise(&chain, &planted.leaf, &operation, at, &none).map(|_| ()).map_err(|refusal| refusal.level);
        // The first that refuses, from the top, is named.
        let expected = allowed.iter().find(|(_, allowed)| !allowed).map_or(Ok(()), |(level, _)| Err(*level));
        prop_assert_eq!(outcome, expected);
    }

    #[test]
    fn clocks_that_jump_do_no_harm(
        jumps in proptest::collection::vec((-3 * DAY as i64..3 * DAY as i64, 0..2 * HOUR, any::<bool>()), 1..24),
    ) {
        let planted = Planted::new(1);
        let chain = planted.usual(ONION);
        let end = chain.validity().unwrap().end();
        let mut real = NOON;
        let mut monotonic = Duration::from_secs(5);
        let mut clock = Clock::resume(Timestamp::from_unix(NOON), monotonic);
        let mut before = clock.now(Timestamp::from_unix(NOON), monotonic);
        for (off_by, passes, restart) in jumps {
            real += passes;
            if restart {
                // The machine was off; its monotonic clock begins anew.
                monotonic = Duration::ZERO;
                clock = Clock::resume(clock.floor(), monotonic);
            } else {
                monotonic += Duration::from_secs(passes);
            }
            let wall = Timestamp::from_unix(real.saturating_add_signed(off_by));
            let told = clock.now(wall, monotonic);
            let passed = if restart { 0 } else { passes };
            prop_assert!(told.timestamp() >= before.timestamp().after(passed), "time stood still or went back");
            // Expired once is expired for ever, and live is what the told time says.
            let live = exercise(&chain, &planted.leaf, &PUBLISH, told, &none).is_ok();
            prop_assert_eq!(live, told.timestamp() < end);
            prop_assert!(!live || before.timestamp() < end);
            before = told;
        }
        // Nothing was destroyed: with the root at hand the right time comes back, and what it makes valid.
        clock.set_back(&planted.root, Timestamp::from_unix(NOON + 1), monotonic);
        let told = clock.now(Timestamp::from_unix(NOON + 1), monotonic);
        prop_assert!(exercise(&chain, &planted.leaf, &PUBLISH, told, &none).is_ok());
    }
}

#[test]
fn after_a_jump_forward_new_grants_are_issued_and_end_in_time() {
    let planted = Planted::new(1);
    let start = Duration::from_secs(5);
    let mut clock = Clock::resume(Timestamp::from_unix(NOON), start);
    // Fourteen years ahead, then the wall clock is mended; nobody is there to set the tree's clock back.
    clock.now(Timestamp::from_unix(NOON + 5000 * DAY), start);
    let told = clock.now(Timestamp::from_unix(NOON), start);
    let validity = |seconds| Validity::new(told.timestamp(), told.timestamp().after(seconds)).unwrap();
    let (host, vm) = (terms(Level::Host, validity(DAY)), terms(Level::Vm, validity(DAY)));
    let chain = planted.grow(&host, &vm, &terms(ONION, validity(HOUR)), told).unwrap();
    let mut later = |seconds| clock.now(Timestamp::from_unix(NOON + seconds), start + Duration::from_secs(seconds));
    assert!(exercise(&chain, &planted.leaf, &PUBLISH, later(HOUR - 1), &none).is_ok());
    assert!(exercise(&chain, &planted.leaf, &PUBLISH, later(HOUR), &none).is_err());
}
