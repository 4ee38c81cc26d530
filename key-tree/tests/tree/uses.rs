//! What the tree is for.

use std::cell::RefCell;

use key_tree::{
    Chain, ChainError, Challenge, IssueError, KeyPair, Level, Operation, PossessionError, Purpose, RevocationId, Stage,
    State, Terms, Weekday, Why, issue,
};

use crate::planted::{DAY, HOUR, NOON, ONION, PUBLISH, Planted, exercise, name, none, now, rng, span, terms};

fn connect(exit: &str) -> Operation {
    Operation::Connect { port: 443, exit: exit.parse().ok() }
}

#[test]
fn a_granted_key_can_be_used_until_its_grant_ends() {
    let planted = Planted::new(1);
    let chain = planted.usual(ONION);
    let permit = exercise(&chain, &planted.leaf, &PUBLISH, now(NOON), &none).unwrap();
    assert_eq!((permit.key(), permit.operation()), (planted.leaf.public(), PUBLISH));
    assert_eq!(permit.until().as_unix(), NOON + HOUR);
    assert!(exercise(&chain, &planted.leaf, &PUBLISH, now(NOON + HOUR - 1), &none).is_ok());
    let refusal = exercise(&chain, &planted.leaf, &PUBLISH, now(NOON + HOUR), &none).unwrap_err();
    assert_eq!(
        refusal.to_string(),
        "the grant of the onion-service web ended at 2026-11-20T13:00:00Z: issue a new one"
    );
    let refusal = exercise(&chain, &planted.leaf, &PUBLISH, now(NOON - 1), &none).unwrap_err();
    assert_eq!(refusal.to_string(), "the grant of the host web is valid from 2026-11-20T12:00:00Z on");
}

#[test]
fn may_publish_port_80_on_weekdays() {
    let planted = Planted::new(1);
    let (host, vm) = (terms(Level::Host, span(NOON, 7 * DAY)), terms(Level::Vm, span(NOON, DAY)));
    let leaf = terms(ONION, span(NOON, DAY)).ports(&[80]).weekdays(&Weekday::WORKING_DAYS);
    let chain = planted.grow(&host, &vm, &leaf, now(NOON)).unwrap();
    let publish = |port, at| chain.would_permit(&Operation::Publish { port }, now(at), &none);
    assert_eq!(publish(80, NOON), Ok(()));
    assert_eq!(
        publish(81, NOON).unwrap_err().to_string(),
        "the grant of the onion-service web does not permit this: reject if port($value), !{80}.contains($value)"
    );
    // From noon on Friday, twelve hours later it is Saturday.
    assert_eq!(publish(80, NOON + 12 * HOUR - 1), Ok(()));
    let refusal = publish(80, NOON + 12 * HOUR).unwrap_err();
    assert!(matches!(&refusal.why, Why::Checks(checks) if checks.len() == 1 && checks[0].contains("\"monday\"")));
}

#[test]
fn may_use_exit_ch_only() {
    let planted = Planted::new(1);
    let (host, leaf) = (terms(Level::Host, span(NOON, DAY)), terms(Level::Purpose(Purpose::Session), span(NOON, HOUR)));
    let typed = terms(Level::Vm, span(NOON, DAY)).exits(&["CH".parse().unwrap()]);
    let raw = terms(Level::Vm, span(NOON, DAY)).datalog(r#"reject if exit($c), $c != "CH";"#).unwrap();
    for vm in [typed, raw] {
        let chain = planted.grow(&host, &vm, &leaf, now(NOON)).unwrap();
        let may = |operation| chain.would_permit(&operation, now(NOON), &none).map_err(|refusal| refusal.level);
        assert_eq!(may(connect("CH")), Ok(()));
        assert_eq!(may(connect("US")), Err(Level::Vm));
        assert_eq!(may(connect("unknown")), Err(Level::Vm));
        assert_eq!(may(Operation::ConnectOnion { port: 443 }), Ok(()));
    }
}

#[test]
fn datalog_sees_the_names_in_the_chain_and_its_own_facts() {
    let planted = Planted::new(1);
    let host = Terms::new(Level::Host, name("laptop"), span(NOON, DAY))
        .datalog(r#"check if host("laptop"); check if vm($v), $v.starts_with("web");"#)
        .unwrap();
    let vm = Terms::new(Level::Vm, name("web-1"), span(NOON, DAY))
        .datalog(r#"open(80); open(443); check if port($p), open($p); check if minute($m), $m >= 720, $m < 780;"#)
        .unwrap();
    let chain = planted.grow(&host, &vm, &terms(ONION, span(NOON, 2 * HOUR)), now(NOON)).unwrap();
    let publish = |port, at| chain.would_permit(&Operation::Publish { port }, now(at), &none);
    assert_eq!(publish(443, NOON), Ok(()));
    assert!(publish(22, NOON).unwrap_err().to_string().ends_with("check if port($p), open($p)"));
    assert!(publish(80, NOON + HOUR).unwrap_err().to_string().contains("$m < 780"));
}

#[test]
fn a_key_is_good_for_its_purpose_only() {
    let planted = Planted::new(1);
    let purposes =
        [Purpose::Session, Purpose::OnionService, Purpose::DhtNode, Purpose::Signing, Purpose::Ssh].map(Level::Purpose);
    let operations = [connect("CH"), PUBLISH, Operation::Participate, Operation::Sign, Operation::Login];
    for (has, purpose) in purposes.into_iter().enumerate() {
        let chain = planted.usual(purpose);
        for (wants, operation) in operations.iter().enumerate() {
            let permitted = exercise(&chain, &planted.leaf, operation, now(NOON), &none);
            assert_eq!(permitted.is_ok(), has == wants, "{purpose}: {operation}");
        }
    }
    let root = Chain::of_root(planted.root.public());
    let refusal = exercise(&root, planted.root.key(), &Operation::Sign, now(NOON), &none).unwrap_err();
    assert_eq!(refusal.level, Level::Root);
}

#[test]
fn a_host_has_purposes_of_its_own() {
    let planted = Planted::new(1);
    let rng = &mut rng(2);
    let chain = Chain::of_root(planted.root.public());
    let terms_of = |level, seconds| terms(level, span(NOON, seconds)).purposes(&[Purpose::Ssh]);
    let host = planted.host.public();
    let chain = issue(planted.root.key(), &chain, &host, &terms_of(Level::Host, DAY), now(NOON), rng).unwrap();
    let ssh = terms_of(Level::Purpose(Purpose::Ssh), HOUR);
    let ssh = issue(&planted.host, &chain, &planted.leaf.public(), &ssh, now(NOON), rng).unwrap();
    assert!(exercise(&ssh, &planted.leaf, &Operation::Login, now(NOON), &none).is_ok());
    // The host may have SSH keys only, and so may what stands below it.
    let node = terms(Level::Purpose(Purpose::DhtNode), span(NOON, HOUR));
    let node = issue(&planted.host, &chain, &planted.leaf.public(), &node, now(NOON), rng).unwrap();
    let refusal = exercise(&node, &planted.leaf, &Operation::Participate, now(NOON), &none).unwrap_err();
    assert_eq!(refusal.level, Level::Host);
}

#[test]
fn a_proof_serves_one_key_one_challenge_one_operation_and_one_tree() {
    let planted = Planted::new(1);
    let chain = planted.usual(ONION);
    let verify = |key: &KeyPair, root, operation: &Operation, made, answered| {
        let challenge = Challenge::new(&mut rng(made), now(made));
        let proof = key.prove(root, &challenge.nonce(), operation);
        chain.verify(&PUBLISH, now(answered), &none, challenge, &proof).map(|_| ()).map_err(|refusal| refusal.why)
    };
    let (root, elsewhere) = (chain.root(), Planted::new(2).root.public());
    let wrong = Err(Why::Possession(PossessionError::Proof));
    assert_eq!(verify(&planted.leaf, &root, &PUBLISH, NOON, NOON + 60), Ok(()));
    assert_eq!(verify(&planted.vm, &root, &PUBLISH, NOON, NOON), wrong);
    assert_eq!(verify(&planted.leaf, &elsewhere, &PUBLISH, NOON, NOON), wrong);
    assert_eq!(verify(&planted.leaf, &root, &Operation::Publish { port: 81 }, NOON, NOON), wrong);
    assert_eq!(verify(&planted.leaf, &root, &PUBLISH, NOON, NOON + 61), Err(Why::Possession(PossessionError::Late)));
    let overheard = planted.leaf.prove(&root, &Challenge::new(&mut rng(1), now(NOON)).nonce(), &PUBLISH);
    let refusal = chain.verify(&PUBLISH, now(NOON), &none, Challenge::new(&mut rng(2), now(NOON)), &overheard);
    assert_eq!(refusal.unwrap_err().why, Why::Possession(PossessionError::Proof));
}

#[test]
fn nobody_can_be_made_to_sign_a_proof() {
    let planted = Planted::new(1);
    let chain = planted.usual(ONION);
    let challenge = Challenge::new(&mut rng(1), now(NOON));
    // All that the proof is over, handed to the owner as a message.
    let message =
        [b"oht proof 1\0", &chain.root().as_bytes()[..], challenge.nonce().as_bytes(), b"publish 80"].concat();
    let proof = key_tree::Proof::from_bytes(&planted.leaf.sign(&message).to_bytes());
    assert!(chain.verify(&PUBLISH, now(NOON), &none, challenge, &proof).is_err());
}

#[test]
fn a_revoked_grant_takes_all_below_it_at_once() {
    let planted = Planted::new(1);
    let chain = planted.usual(ONION);
    let list = RefCell::new(vec![]);
    let revoked = |id: &RevocationId| list.borrow().contains(id);
    for grant in chain.grants() {
        assert!(exercise(&chain, &planted.leaf, &PUBLISH, now(NOON), &revoked).is_ok());
        list.borrow_mut().push(grant.revocation_id());
        let refusal = exercise(&chain, &planted.leaf, &PUBLISH, now(NOON), &revoked).unwrap_err();
        assert_eq!((refusal.level, &refusal.why), (grant.level(), &Why::Revoked(grant.revocation_id())));
        assert_eq!(grant.revocation_id().to_string().parse(), Ok(grant.revocation_id()));
        list.borrow_mut().clear();
    }
    // The same key, granted anew, is another grant.
    let again = Chain::read(chain.root(), chain.grants().take(2).map(|grant| grant.as_bytes())).unwrap();
    let terms = terms(ONION, span(NOON, HOUR));
    let again = issue(&planted.vm, &again, &planted.leaf.public(), &terms, now(NOON), &mut rng(77)).unwrap();
    list.borrow_mut().push(chain.grants().last().unwrap().revocation_id());
    assert!(exercise(&again, &planted.leaf, &PUBLISH, now(NOON), &revoked).is_ok());
}

#[test]
fn a_key_is_rotated_without_a_gap() {
    let planted = Planted::new(1);
    let old = planted.usual(ONION);
    assert!(old.due(now(NOON)).is_none());
    let due = old.grants().last().unwrap().rotation().due_at().as_unix();
    let grant = old.due(now(due)).unwrap();
    assert_eq!(grant.level(), ONION);
    assert_eq!(grant.rotation().stage(now(due)), Stage::Due { overlap_seconds: HOUR / 3 });
    let vm = Chain::read(old.root(), old.grants().take(2).map(|grant| grant.as_bytes())).unwrap();
    let validity = grant.rotation().successor(now(due), vm.validity()).unwrap();
    let successor = KeyPair::generate(&mut rng(3));
    let terms_of_successor = terms(ONION, validity);
    let new = issue(&planted.vm, &vm, &successor.public(), &terms_of_successor, now(due), &mut rng(4)).unwrap();
    for at in [due, NOON + HOUR - 1] {
        assert!(exercise(&old, &planted.leaf, &PUBLISH, now(at), &none).is_ok());
        assert!(exercise(&new, &successor, &PUBLISH, now(at), &none).is_ok());
    }
    assert!(exercise(&old, &planted.leaf, &PUBLISH, now(NOON + HOUR), &none).is_err());
    assert!(exercise(&new, &successor, &PUBLISH, now(NOON + HOUR), &none).is_ok());
}

#[test]
fn who_may_not_grant_is_told_why() {
    let planted = Planted::new(1);
    let chain = planted.usual(ONION);
    let vm = Chain::read(chain.root(), chain.grants().take(2).map(|grant| grant.as_bytes())).unwrap();
    let (key, rng) = (KeyPair::generate(&mut rng(3)), &mut rng(4));
    let session = Level::Purpose(Purpose::Session);
    let mut issue_at = |parent: &KeyPair, child: &KeyPair, terms: &Terms, at| {
        issue(parent, &vm, &child.public(), terms, now(at), rng).map(|_| ()).unwrap_err()
    };
    let hour = terms(session, span(NOON, HOUR));
    assert!(matches!(issue_at(&planted.host, &key, &hour, NOON), IssueError::NotTheParent { .. }));
    assert!(matches!(issue_at(&planted.vm, &key, &hour, NOON + HOUR), IssueError::Past(_)));
    assert!(matches!(issue_at(&planted.vm, &key, &hour, NOON + DAY), IssueError::Parent(_)));
    let law = |error| match error {
        IssueError::Law(law) => law,
        other => panic!("{other}"),
    };
    let refused = issue_at(&planted.vm, &key, &terms(session, span(NOON, DAY + 1)), NOON);
    assert!(matches!(law(refused), ChainError::TooLong { .. }));
    let refused = issue_at(&planted.vm, &key, &terms(session, span(NOON + 1, DAY)), NOON);
    assert!(matches!(law(refused), ChainError::Outlives { .. }));
    let refused = issue_at(&planted.vm, &key, &terms(Level::Vm, span(NOON, HOUR)), NOON);
    assert!(matches!(law(refused), ChainError::Level { .. }));
    for above in [&planted.vm, &planted.host, planted.root.key()] {
        assert!(matches!(law(issue_at(&planted.vm, above, &hour, NOON)), ChainError::KeyReused(_)));
    }
}

#[test]
fn a_chain_is_shown_with_what_is_wrong_where() {
    let planted = Planted::new(1);
    let chain = planted.usual(ONION);
    let states = |at, revoked: &dyn Fn(&RevocationId) -> bool| -> Vec<State> {
        chain.branches(now(at), &|id: &RevocationId| revoked(id)).into_iter().map(|branch| branch.state).collect()
    };
    use State::{Due, Live, NotYet, Over, Revoked};
    assert_eq!(states(NOON, &none), [Live, Live, Live, Live]);
    assert_eq!(states(NOON - 1, &none), [Live, NotYet, NotYet, NotYet]);
    assert_eq!(states(NOON + HOUR - 1, &none), [Live, Live, Live, Due]);
    assert_eq!(states(NOON + DAY, &none), [Live, Live, Over, Over]);
    let of_vm = chain.grants().nth(1).unwrap().revocation_id();
    assert_eq!(states(NOON, &|id| *id == of_vm), [Live, Live, Revoked, Live]);
    let branches = chain.branches(now(NOON), &none);
    assert_eq!(branches[0].key, planted.root.public());
    assert_eq!((branches[3].level, branches[3].key), (ONION, planted.leaf.public()));
}
