//! 2,000 SIGKILLs of a program that does nothing but write keys into the real store (`examples/key_writer.rs`): whatever
//! it said was done is there, and the store is whole, every time.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::{
    collections::BTreeMap,
    io::{BufRead, BufReader},
    path::Path,
    process::{Command, Stdio},
    thread,
    time::{Duration, Instant},
};

/// Kills in all, by threads that have a store each.
const KILLS: u64 = 2000;
const THREADS: u64 = 4;

/// What is known of a VM: its key, and that of its signing.
type Known = BTreeMap<String, [String; 2]>;

#[derive(Default)]
struct Round {
    /// What the writer found.
    there: Known,
    /// What it said was done.
    acknowledged: Known,
    /// What it was at.
    tried: Option<String>,
    writes: usize,
}

/// Runs the writer, and kills it some time after it has begun.
fn round(directory: &Path, after: Duration) -> Round {
    let program = std::env::current_exe().unwrap().parent().unwrap().parent().unwrap().join("examples/key_writer");
    let mut child = Command::new(program).arg(directory).stdout(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines().map(|line| line.unwrap());
    let mut round = Round::default();
    for line in &mut lines {
        match line.split(' ').collect::<Vec<_>>()[..] {
            ["state", state, ..] => assert_eq!(state, "Unlocked", "{line}"),
            ["have", name, key] => {
                let (vm, is_leaf) = name.split_once('/').map_or((name, false), |(vm, _)| (vm, true));
                round.there.entry(vm.into()).or_insert_with(none)[usize::from(is_leaf)] = key.into();
            }
            ["ready"] => break,
            _ => panic!("{line}"),
        }
    }
    let killer = thread::spawn(move || {
        thread::sleep(after);
        child.kill().unwrap();
        child.wait().unwrap();
    });
    for line in lines {
        match line.split(' ').collect::<Vec<_>>()[..] {
            ["try", vm] => round.tried = Some(vm.into()),
            ["done", vm, key, leaf] => {
                round.acknowledged.insert(vm.into(), [key.into(), leaf.into()]);
                round.tried = None;
                round.writes += 1;
            }
            // Cut short by the kill.
            _ => {}
        }
    }
    killer.join().unwrap();
    round
}

fn none() -> [String; 2] {
    ["none".into(), "none".into()]
}

fn run(thread: u64) -> usize {
    let dir = tempfile::tempdir().unwrap();
    let (mut known, mut tried, mut writes) = (Known::new(), None::<String>, 0);
    for number in 0..KILLS / THREADS {
        // Some die before their first write, most in the middle of one.
        let after = Duration::from_micros((number * 7919 + thread * 104_729) % 40_000);
        let round = round(dir.path(), after);
        for vm in known.keys().chain(round.there.keys()) {
            let (expected, found) = (known.get(vm).cloned(), round.there.get(vm).cloned());
            let in_doubt = tried.as_ref() == Some(vm);
            let same = expected.unwrap_or_else(none) == found.clone().unwrap_or_else(none);
            assert!(same || in_doubt, "kill {number} of thread {thread}: {vm} is {found:?}, not {:?}", known.get(vm));
        }
        known = round.there;
        known.extend(round.acknowledged);
        tried = round.tried;
        writes += round.writes;
    }
    writes
}

#[test]
fn two_thousand_kills_lose_nothing_that_was_acknowledged() {
    let began = Instant::now();
    let threads: Vec<_> = (0..THREADS).map(|number| thread::spawn(move || run(number))).collect();
    let writes: usize = threads.into_iter().map(|thread| thread.join().unwrap()).sum();
    println!("{KILLS} kills, {writes} acknowledged writes, {:?}", began.elapsed());
    assert!(writes > 1000, "{writes}");
}
