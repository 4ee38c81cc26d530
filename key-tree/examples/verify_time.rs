//! How long it takes to read a chain and to verify a use of its key: `cargo run -p key-tree --example verify_time`.
//! Prints one JSON object a line, in microseconds.

use std::{
    error::Error,
    hint::black_box,
    time::{Duration, Instant},
};

use key_tree::{
    Chain, Challenge, Clock, KeyPair, Level, Operation, Purpose, RootKey, Terms, Timestamp, Validity, Weekday, issue,
    rand_core::OsRng,
};

const ROUNDS: usize = 2001;

fn main() -> Result<(), Box<dyn Error>> {
    let rng = &mut OsRng;
    let start = Timestamp::from_unix(1_795_176_000);
    let now = Clock::resume(start, Duration::ZERO).now(start, Duration::ZERO);
    let day = Validity::new(start, start.after(86_400)).ok_or("a day is some time")?;
    let terms = |level| Ok::<_, Box<dyn Error>>(Terms::new(level, "web".parse()?, day));
    let (root, host, vm, leaf) =
        (RootKey::generate(rng), KeyPair::generate(rng), KeyPair::generate(rng), KeyPair::generate(rng));

    let chain = Chain::of_root(root.public());
    let chain = issue(root.key(), &chain, &host.public(), &terms(Level::Host)?, now, rng)?;
    let exits = ["CH".parse()?, "IS".parse()?];
    let chain = issue(&host, &chain, &vm.public(), &terms(Level::Vm)?.exits(&exits), now, rng)?;
    let session = terms(Level::Purpose(Purpose::Session))?.ports(&[80, 443]).weekdays(&Weekday::WORKING_DAYS);
    let session = session.datalog(r#"check if vm($v), $v.starts_with("web");"#)?;
    let chain = issue(&vm, &chain, &leaf.public(), &session, now, rng)?;

    let grants: Vec<_> = chain.grants().map(|grant| grant.as_bytes().to_vec()).collect();
    println!("grants of {:?} bytes", grants.iter().map(Vec::len).collect::<Vec<_>>());
    let operation = Operation::Connect { port: 443, exit: Some(exits[0]) };
    let above = chain_above(&chain);
    print("issue", || issue(&vm, &above, &leaf.public(), &session, now, rng).is_ok());
    print("read", || Chain::read(root.public(), &grants).is_ok());
    print("would_permit", || chain.would_permit(&operation, now, &|_| false).is_ok());
    let challenge = || Challenge::new(&mut OsRng, now);
    print("prove", || {
        black_box(leaf.prove(&root.public(), &challenge().nonce(), &operation));
        true
    });
    print("prove_and_verify", || {
        let challenge = challenge();
        let proof = leaf.prove(&root.public(), &challenge.nonce(), &operation);
        chain.verify(&operation, now, &|_| false, challenge, &proof).is_ok()
    });
    Ok(())
}

/// The chain without its last grant.
fn chain_above(chain: &Chain) -> Chain {
    let grants: Vec<_> = chain.grants().map(|grant| grant.as_bytes()).collect();
    Chain::read(chain.root(), &grants[..grants.len() - 1]).expect("it was read before")
}

fn print(what: &str, mut does: impl FnMut() -> bool) {
    let mut took: Vec<Duration> = (0..ROUNDS)
        .map(|_| {
            let started = Instant::now();
            assert!(does(), "{what} failed");
            started.elapsed()
        })
        .collect();
    took.sort_unstable();
    let micros = |at: usize| took[at].as_secs_f64() * 1e6;
    println!(
        r#"{{"figure":"key_tree_{what}","unit":"µs","median":{:.0},"p99":{:.0}}}"#,
        micros(ROUNDS / 2),
        micros(ROUNDS * 99 / 100)
    );
}
