//! Datalog of a person, or of a key's owner who means harm: refused, or granted, read back and evaluated, and that
//! within the time that libFuzzer gives to one input.
#![no_main]

use std::time::Duration;

use key_tree::{
    Chain, Clock, KeyPair, Level, Operation, Purpose, RootKey, Terms, Timestamp, Validity, issue, rand_core::OsRng,
};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|source: &str| {
    let at = Timestamp::from_unix(1_795_176_000);
    let now = Clock::resume(at, Duration::ZERO).now(at, Duration::ZERO);
    let validity = Validity::new(at, at.after(3600)).expect("an hour");
    let terms = |level| Terms::new(level, "web".parse().expect("a name"), validity);
    let Ok(leaf_terms) = terms(Level::Purpose(Purpose::OnionService)).datalog(source) else { return };
    let (root, host, leaf) =
        (RootKey::generate(&mut OsRng), KeyPair::generate(&mut OsRng), KeyPair::generate(&mut OsRng));
    let chain = Chain::of_root(root.public());
    let chain = issue(root.key(), &chain, &host.public(), &terms(Level::Host), now, &mut OsRng).expect("a host");
    let Ok(chain) = issue(&host, &chain, &leaf.public(), &leaf_terms, now, &mut OsRng) else { return };
    let once = chain.would_permit(&Operation::Publish { port: 80 }, now, &|_| false);
    let grants = chain.grants().map(|grant| grant.as_bytes().to_vec());
    let read = Chain::read(chain.root(), grants).expect("what was issued is read");
    assert_eq!(once, read.would_permit(&Operation::Publish { port: 80 }, now, &|_| false));
});
