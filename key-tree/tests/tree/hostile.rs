//! Tokens from people who mean harm, and from broken disks: an error that says what is wrong, no panic, never long.

use std::time::{Duration, Instant};

use biscuit_auth::{
    Biscuit, BlockBuilder,
    builder::{self, BiscuitBuilder, Check, CheckKind, Expression, Op, Term},
};
use key_tree::{Chain, ChainError, DatalogError, GRANT_BYTES_MAX, GrantError, KeyPair, Level, PublicKey, Why, issue};
use proptest::prelude::*;

use crate::planted::{
    DAY, HOUR, NOON, ONION, PUBLISH, Planted, exercise, head, none, now, rng, signed, signed_block, span, terms,
};

/// Why a chain that ends with this grant of the VM cannot be read.
fn refusal(planted: &Planted, grant: &[u8]) -> ChainError {
    refusal_below(&above_leaf(planted), grant)
}

fn refusal_below(above: &Chain, grant: &[u8]) -> ChainError {
    above.extend(grant).map(|_| ()).unwrap_err()
}

fn above_leaf(planted: &Planted) -> Chain {
    let chain = planted.usual(ONION);
    Chain::read(chain.root(), chain.grants().take(2).map(|grant| grant.as_bytes())).unwrap()
}

fn grant_error(error: ChainError) -> GrantError {
    match error {
        ChainError::Grant { source, .. } => source,
        other => panic!("{other}"),
    }
}

fn leaf_head(planted: &Planted) -> String {
    head(&planted.leaf, "onion-service", span(NOON, HOUR))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    #[test]
    fn any_bytes_are_refused(bytes: Vec<u8>) {
        let planted = Planted::new(1);
        prop_assert!(matches!(grant_error(refusal(&planted, &bytes)), GrantError::Token(_)));
    }

    #[test]
    fn any_datalog_text_is_taken_or_refused(text in "[a-z0-9 $().,;<>!&|={}\\[\\]\"-]{0,80}") {
        let terms = |text: &str| terms(ONION, span(NOON, HOUR)).datalog(text).is_ok();
        let _ = (terms(&text), terms(&format!("check if {text};")), terms(&format!("f({text});")));
    }
}

/// All of them, as a few are read by Biscuit all the same: those that change the number of an optional field.
#[test]
fn a_damaged_token_is_refused() {
    let planted = Planted::new(1);
    let above = above_leaf(&planted);
    let whole = planted.usual(ONION).grants().last().unwrap().as_bytes().to_vec();
    assert!(above.extend(&whole).is_ok());
    for at in 0..whole.len() {
        assert!(matches!(grant_error(refusal_below(&above, &whole[..at])), GrantError::Token(_)), "cut at {at}");
        for bit in 0..8 {
            let mut damaged = whole.clone();
            damaged[at] ^= 1_u8 << bit;
            let error = grant_error(refusal_below(&above, &damaged));
            assert!(matches!(error, GrantError::Token(_) | GrantError::Form), "bit {bit} of byte {at}: {error}");
        }
    }
}

#[test]
fn a_grant_of_another_key_is_refused() {
    let planted = Planted::new(1);
    let stranger = KeyPair::generate(&mut rng(7));
    for other in [&stranger, &planted.host, planted.root.key(), &planted.leaf] {
        let forged = signed(other, &leaf_head(&planted));
        assert!(matches!(grant_error(refusal(&planted, &forged)), GrantError::Token(_)));
    }
    assert!(above_leaf(&planted).extend(&signed(&planted.vm, &leaf_head(&planted))).is_ok());
    let elsewhere = Planted::new(2);
    let grants = planted.usual(ONION);
    let grants = grants.grants().map(|grant| grant.as_bytes());
    assert!(Chain::read(elsewhere.root.public(), grants).is_err());
}

#[test]
fn grants_cannot_be_left_out_swapped_or_repeated() {
    let planted = Planted::new(1);
    let chain = planted.usual(ONION);
    let grants: Vec<_> = chain.grants().map(|grant| grant.as_bytes()).collect();
    for order in [&[0, 2][..], &[1, 2], &[2], &[1, 0, 2], &[0, 2, 1], &[2, 1, 0], &[0, 0, 1, 2], &[0, 1, 2, 2]] {
        assert!(Chain::read(chain.root(), order.iter().map(|at| grants[*at])).is_err(), "{order:?}");
    }
}

#[test]
fn a_name_that_is_used_again_gives_nothing_to_the_new_key() {
    let planted = Planted::new(1);
    let old = planted.usual(ONION);
    let host = Chain::read(old.root(), old.grants().take(1).map(|grant| grant.as_bytes())).unwrap();
    // The VM "web" is removed, and another one of that name made.
    let reborn = KeyPair::generate(&mut rng(8));
    let vm = terms(Level::Vm, span(NOON, DAY));
    let reborn = issue(&planted.host, &host, &reborn.public(), &vm, now(NOON), &mut rng(9)).unwrap();
    assert_eq!(reborn.grants().last().unwrap().name(), old.grants().nth(1).unwrap().name());
    assert!(reborn.extend(old.grants().last().unwrap().as_bytes()).is_err());
    let gone = old.grants().nth(1).unwrap().revocation_id();
    assert!(exercise(&old, &planted.leaf, &PUBLISH, now(NOON), &|id| *id == gone).is_err());
}

#[test]
fn nobody_appends_to_a_grant() {
    let planted = Planted::new(1);
    let source = leaf_head(&planted);
    let unsealed = Biscuit::from(signed(&planted.vm, &source), biscuit_key(&planted.vm.public())).unwrap();
    let longer = unsealed.append(BlockBuilder::new().code(r#"level("vm"); check if true"#).unwrap()).unwrap();
    assert_eq!(grant_error(refusal(&planted, &longer.to_vec().unwrap())), GrantError::Blocks(2));
    // What `issue` makes is sealed, so there is no key to append with.
    let issued = planted.usual(ONION);
    let issued = issued.grants().last().unwrap().as_bytes().to_vec();
    let sealed = Biscuit::from(issued, biscuit_key(&planted.vm.public())).unwrap();
    assert!(sealed.append(BlockBuilder::new()).is_err());
}

fn biscuit_key(key: &PublicKey) -> biscuit_auth::PublicKey {
    biscuit_auth::PublicKey::from_bytes(key.as_bytes(), builder::Algorithm::Ed25519).unwrap()
}

#[test]
fn a_head_that_is_not_whole_and_single_is_refused() {
    let planted = Planted::new(1);
    let whole = leaf_head(&planted);
    let refused = |source: &str| grant_error(refusal(&planted, &signed(&planted.vm, source)));
    for fact in ["oht_grant", "subject", "level", "name", "start", "end"] {
        let without: String = whole.split_inclusive(';').filter(|one| !one.trim().starts_with(fact)).collect();
        assert_eq!(refused(&without), GrantError::Head(fact));
        assert_eq!(refused(&format!("{without} {fact}(1, 1);")), GrantError::Head(fact));
        assert_eq!(refused(&format!("{without} {fact}(true);")), GrantError::Head(fact));
        assert_eq!(refused(&format!("{whole} {fact}(99);")), GrantError::Head(fact));
    }
    let with = |from: &str, to: &str| refused(&whole.replace(from, to));
    assert_eq!(with("oht_grant(1)", "oht_grant(2)"), GrantError::Version(2));
    assert_eq!(with("onion-service", "wizard"), GrantError::Head("level"));
    assert_eq!(with("\"web\"", "\"../web\""), GrantError::Head("name"));
    assert_eq!(with("hex:", "hex:00"), GrantError::Head("subject"));
    assert_eq!(with("13:00:00Z", "12:00:00Z"), GrantError::Head("end"));
    let neutral = format!("hex:01{}", "00".repeat(31));
    let weak = with(&format!("hex:{}", planted.leaf.public()), &neutral);
    assert!(matches!(weak, GrantError::Subject(_)), "{weak}");
    let upward = whole.replace("onion-service", "root");
    assert!(matches!(refusal(&planted, &signed(&planted.vm, &upward)), ChainError::Level { .. }));
}

#[test]
fn a_grant_does_not_answer_its_own_checks() {
    let planted = Planted::new(1);
    let forged = format!("{} operation(\"publish\"); check if operation(\"publish\");", leaf_head(&planted));
    let expected = GrantError::Datalog(DatalogError::Reserved("operation".into()));
    assert_eq!(grant_error(refusal(&planted, &signed(&planted.vm, &forged))), expected);
    let terms = terms(ONION, span(NOON, HOUR));
    for name in ["subject", "level", "end", "port"] {
        assert_eq!(terms.clone().datalog(&format!("{name}(1);")).unwrap_err(), DatalogError::Reserved(name.into()));
    }
}

#[test]
fn what_would_run_for_ever_is_refused_before_it_runs() {
    let planted = Planted::new(1);
    let started = Instant::now();
    let refused = |what: &str| {
        let source = format!("{}{what}", leaf_head(&planted));
        match grant_error(refusal(&planted, &signed(&planted.vm, &source))) {
            GrantError::Datalog(error) => error,
            other => panic!("{what}: {other}"),
        }
    };
    // A loop: every number is followed by the next one.
    assert!(matches!(refused("n(0); n($y) <- n($x), m($y), $x < $y; m(1);"), DatalogError::Rule(_)));
    // A join of 20 facts with themselves, eight times: 20^8 combinations in one iteration.
    let facts: String = (0..20).map(|n| format!("f({n});")).collect();
    let join: Vec<_> = ('a'..='h').map(|v| format!("f(${v})")).collect();
    assert!(matches!(
        refused(&format!("{facts} check if {}, $a + $b + $c + $d > 1000;", join.join(", "))),
        DatalogError::TooMany { what: "combinations of facts to try", .. }
    ));
    assert!(matches!(refused("check if [1,2].all($x -> [1,2].any($y -> $x == $y));"), DatalogError::Unbounded(_)));
    assert!(matches!(refused("check if \"a\".matches(\"((a{100}){100}){100}\");"), DatalogError::Unbounded(_)));
    assert!(started.elapsed() < Duration::from_secs(5), "{:?}", started.elapsed());
}

#[test]
fn what_is_let_pass_is_not_long_either() {
    let planted = Planted::new(1);
    // As much as the bounds allow: 31 facts, and joins of three until the bound is reached.
    let facts: String = (0..14).map(|n| format!("f({n});")).collect();
    let check = "check if f($a), f($b), $a + $b > 1000 or true;";
    let mut checks = 0;
    let token = (1..32).rev().find_map(|count| {
        checks = count;
        let grant = signed(&planted.vm, &format!("{}{facts}{}", leaf_head(&planted), check.repeat(count)));
        above_leaf(&planted).extend(&grant).ok()
    });
    let chain = token.unwrap();
    assert!(checks >= 4, "{checks}");
    let started = Instant::now();
    exercise(&chain, &planted.leaf, &PUBLISH, now(NOON), &none).unwrap();
    println!("{checks} checks of 196 combinations: {:?}", started.elapsed());
    assert!(started.elapsed() < Duration::from_millis(500), "{:?}", started.elapsed());
}

#[test]
fn what_is_too_long_or_too_deep_is_refused() {
    let planted = Planted::new(1);
    let long = format!("{}note(\"{}\");", leaf_head(&planted), "x".repeat(GRANT_BYTES_MAX));
    assert!(matches!(grant_error(refusal(&planted, &signed(&planted.vm, &long))), GrantError::TooLong(_)));
    // Deeper, and protobuf's own limit of 100 keeps Biscuit from making the token.
    let mut ops = vec![Op::Value(Term::Bool(true))];
    for _ in 0..40 {
        ops = vec![Op::Closure(vec![], ops)];
    }
    let query = builder::constrained_rule("query", &[] as &[Term], &[] as &[builder::Predicate], &[Expression { ops }]);
    let check = Check { queries: vec![query], kind: CheckKind::One };
    let block = BiscuitBuilder::new().code(leaf_head(&planted)).unwrap().check(check).unwrap();
    let chain = above_leaf(&planted).extend(&signed_block(&planted.vm, block)).unwrap();
    let refusal = exercise(&chain, &planted.leaf, &PUBLISH, now(NOON), &none).unwrap_err();
    assert!(matches!(refusal.why, Why::Evaluation(_)), "{refusal}");
}

#[test]
fn checks_that_cannot_be_evaluated_refuse() {
    let planted = Planted::new(1);
    for check in [
        "check if port($p), $p / 0 == 1",
        "reject if port($p), $p + \"a\" == 1",
        "check if port($p), $p",
        "check all port($p), 9223372036854775807 + $p > 0",
    ] {
        let chain = above_leaf(&planted).extend(&signed(&planted.vm, &format!("{}{check};", leaf_head(&planted))));
        let refusal = exercise(&chain.unwrap(), &planted.leaf, &PUBLISH, now(NOON), &none).unwrap_err();
        assert!(matches!(refusal.why, Why::Evaluation(_)), "{check}: {refusal}");
        assert_eq!(refusal.level, ONION);
    }
}
