//! The life of keys, in simulated time.

use std::{
    fs,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use key_tree::Chain;
use tempfile::TempDir;

use super::*;
use crate::hex;
use report::{NewGrant, PurposeName};

const HOUR: u64 = 3600;
const DAY: u64 = 24 * HOUR;

/// Two clocks that go as they are told.
#[derive(Clone, Default)]
struct Clocks(Arc<[AtomicU64; 2]>);

impl Clocks {
    /// Both go on.
    fn pass(&self, seconds: u64) {
        for clock in self.0.iter() {
            clock.fetch_add(seconds, Ordering::SeqCst);
        }
    }

    /// The wall clock is set.
    fn set(&self, seconds: u64) {
        self.0[0].store(seconds, Ordering::SeqCst);
    }
}

impl TimeSource for Clocks {
    fn wall(&self) -> Timestamp {
        Timestamp::from_unix(self.0[0].load(Ordering::SeqCst))
    }

    fn monotonic(&self) -> Duration {
        Duration::from_secs(self.0[1].load(Ordering::SeqCst))
    }
}

struct World {
    dir: TempDir,
    clocks: Clocks,
    root: RootKey,
}

impl World {
    fn new() -> World {
        let clocks = Clocks::default();
        clocks.set(1_800_000_000);
        World { dir: tempfile::tempdir().unwrap(), clocks, root: RootKey::generate(&mut OsRng) }
    }

    fn open(&self, ephemeral: bool, auto_lock: Option<u64>) -> Keys {
        let places = Places {
            vault: self.dir.path().join("keys"),
            sealed_root: self.dir.path().join("root.age"),
            ephemeral,
            auto_lock: auto_lock.map(Duration::from_secs),
        };
        Keys::open(places, Box::new(self.clocks.clone()))
    }

    /// The root's grant for what the keys ask, from now on.
    fn grant(&self, keys: &Keys, set_clock: bool) -> String {
        let request = keys.host_request().unwrap();
        let start = if set_clock { self.clocks.wall() } else { Timestamp::from_unix(request.now) };
        let now = Clock::resume(start, Duration::ZERO).now(start, Duration::ZERO);
        let validity = Validity::new(start, start.after(31 * DAY)).unwrap();
        let terms = Terms::new(Level::Host, request.name.parse().unwrap(), validity);
        let chain = Chain::of_root(self.root.public());
        let chain = issue(self.root.key(), &chain, &request.key.parse().unwrap(), &terms, now, &mut OsRng).unwrap();
        hex::encode(chain.grants().next_back().unwrap().as_bytes())
    }

    fn given(&self, keys: &Keys, replace: bool) -> SetUp {
        let unlock = UnlockWith::KeyFile(self.dir.path().join("key"));
        let grant = self.grant(keys, replace);
        SetUp { root: self.root.public().to_string(), grant, sealed_root: None, unlock, replace }
    }

    /// Keys that are kept, of one VM.
    fn kept(&self) -> Keys {
        let keys = self.open(false, None);
        keys.set_up(&self.given(&keys, false), &[vm("web")]).unwrap();
        keys
    }
}

fn vm(name: &str) -> VmName {
    name.parse().unwrap()
}

/// The current key of this name: its digits, and why it cannot be used.
fn look(keys: &Keys, name: &str) -> (String, Option<String>) {
    let branches = keys.tree().branches;
    let branch = branches.into_iter().find(|branch| branch.name == name && !branch.replaced).unwrap();
    (branch.key, branch.why)
}

#[test]
fn without_a_store_everything_works_and_nothing_is_kept() {
    let world = World::new();
    let keys = world.open(false, None);
    assert_eq!(keys.status().state, KeysState::NotKept);
    assert!(keys.status().detail.contains("oht key init"));
    keys.add_vm(&vm("web")).unwrap();
    let secret = keys.service_key(&vm("web"), "blog").unwrap();
    assert_eq!(*keys.service_key(&vm("web"), "blog").unwrap(), *secret);
    assert!(keys.sign_file(&vm("web"), None, &[0; 32]).is_ok());
    assert!(matches!(keys.lock(), Err(KeysError::NotKept)));
    // Longer than a root's grant lasts: its root is in memory and grants again.
    for _ in 0..60 {
        world.clocks.pass(16 * HOUR + 60);
        keys.turn().unwrap();
        assert_eq!(look(&keys, "web").1, None);
    }
    assert_eq!(*keys.service_key(&vm("web"), "blog").unwrap(), *secret, "a service keeps its name");
    assert_eq!(fs::read_dir(world.dir.path()).unwrap().count(), 0);
}

#[test]
fn an_ephemeral_agent_leaves_a_store_alone() {
    let world = World::new();
    drop(world.kept());
    let keys = world.open(true, None);
    assert_eq!(keys.status().state, KeysState::Ephemeral);
    assert!(matches!(keys.host_request(), Err(KeysError::Ephemeral)));
    keys.add_vm(&vm("other")).unwrap();
    drop(keys);
    assert_eq!(look(&world.open(false, None), "web").1, None);
}

#[test]
fn keys_survive_the_agent() {
    let world = World::new();
    let keys = world.kept();
    assert_eq!(keys.status().state, KeysState::Unlocked);
    let (key, secret) = (look(&keys, "web").0, keys.service_key(&vm("web"), "blog").unwrap());
    drop(keys);
    let keys = world.open(false, None);
    assert_eq!(look(&keys, "web").0, key);
    assert_eq!(*keys.service_key(&vm("web"), "blog").unwrap(), *secret);
    keys.reconcile(&[vm("db")]).unwrap();
    let names: Vec<String> = keys.tree().branches.into_iter().map(|branch| branch.name).collect();
    assert!(names.contains(&"db".into()) && !names.contains(&"web".into()), "{names:?}");
    assert!(matches!(keys.set_up(&world.given(&keys, false), &[]), Err(KeysError::Kept)));
}

#[test]
fn a_vm_gets_a_fresh_key_before_its_grant_ends_and_both_are_valid_for_a_while() {
    let world = World::new();
    let keys = world.kept();
    let before = look(&keys, "web").0;
    world.clocks.pass(16 * HOUR - 60);
    keys.turn().unwrap();
    assert_eq!(look(&keys, "web").0, before, "not before it is due");
    world.clocks.pass(120);
    keys.turn().unwrap();
    let after = look(&keys, "web").0;
    assert_ne!(after, before);
    let old = keys.tree().branches.into_iter().find(|branch| branch.key == before).unwrap();
    assert!(old.replaced && old.why.is_none());
    // Asleep for days: it is over, and made anew at the first look after that.
    world.clocks.pass(3 * DAY);
    assert!(look(&keys, "web").1.unwrap().contains("ended at"));
    keys.turn().unwrap();
    assert_eq!(look(&keys, "web").1, None);
    assert!(!keys.tree().branches.iter().any(|branch| branch.key == before), "what has ended is forgotten");
}

#[test]
fn once_the_hosts_grant_has_ended_nothing_works_until_the_root_renews_it() {
    let world = World::new();
    let keys = world.kept();
    let secret = keys.service_key(&vm("web"), "blog").unwrap();
    world.clocks.pass(25 * DAY);
    assert!(keys.status().detail.contains("oht key renew"), "a week before");
    world.clocks.pass(7 * DAY);
    keys.turn().unwrap();
    let refused = keys.service_key(&vm("web"), "blog").unwrap_err().to_string();
    assert!(refused.contains("the grant of the host") && refused.contains("ended at"), "{refused}");
    assert!(keys.sign_file(&vm("web"), None, &[0; 32]).is_err());
    assert!(keys.add_vm(&vm("db")).is_err());
    let state = keys.service_state(&vm("web"), "blog").unwrap();
    assert!(state.why.unwrap().contains("the grant of the host") && state.until <= world.clocks.wall().as_unix());
    assert!(look(&keys, "web").1.unwrap().contains("the grant of the host"));
    keys.renew(&world.grant(&keys, false), false).unwrap();
    assert_eq!(look(&keys, "web").1, None);
    assert_eq!(*keys.service_key(&vm("web"), "blog").unwrap(), *secret, "the service has its name again");
}

#[test]
fn near_the_hosts_end_nothing_is_made_again_and_again() {
    let world = World::new();
    let keys = world.kept();
    world.clocks.pass(31 * DAY - 2 * HOUR);
    keys.turn().unwrap();
    let key = look(&keys, "web").0;
    for _ in 0..100 {
        world.clocks.pass(60);
        keys.turn().unwrap();
    }
    assert_eq!(look(&keys, "web"), (key, None));
}

#[test]
fn a_new_identity_is_new_at_once_and_all_below_it() {
    let world = World::new();
    let keys = world.kept();
    let (before, secret) = (look(&keys, "web").0, keys.service_key(&vm("web"), "blog").unwrap());
    let old = keys.tree().branches.into_iter().find(|branch| branch.name == "web").unwrap().revocation_id.unwrap();
    assert_ne!(keys.new_identity(&vm("web")).unwrap().key, before);
    assert!(keys.inner().tree().unwrap().is_revoked(&old.parse().unwrap()));
    assert_ne!(*keys.service_key(&vm("web"), "blog").unwrap(), *secret);
    assert!(matches!(keys.new_identity(&vm("none")), Err(KeysError::NoVm(_))));
    drop(keys);
    let keys = world.open(false, None);
    assert!(keys.inner().tree().unwrap().is_revoked(&old.parse().unwrap()), "it is kept");
    world.clocks.pass(2 * DAY);
    keys.turn().unwrap();
    assert!(!keys.inner().tree().unwrap().is_revoked(&old.parse().unwrap()), "until it would have ended");
}

#[test]
fn what_is_revoked_stays_so_until_a_person_asks_for_another() {
    let world = World::new();
    let keys = world.kept();
    keys.service_key(&vm("web"), "blog").unwrap();
    assert!(matches!(keys.revoke("db"), Err(KeysError::NoKey(_))));
    assert_eq!(keys.revoke("web/onion-service/blog").unwrap(), 1);
    let refused = keys.service_key(&vm("web"), "blog").unwrap_err().to_string();
    assert!(refused.contains("was revoked"), "{refused}");
    assert_eq!(look(&keys, "web").1, None, "the VM itself is not");
    assert_eq!(keys.revoke("web").unwrap(), 1);
    world.clocks.pass(HOUR);
    keys.turn().unwrap();
    assert!(look(&keys, "web").1.unwrap().contains("was revoked"));
    keys.new_identity(&vm("web")).unwrap();
    assert_eq!(look(&keys, "web").1, None);
    let id = keys.tree().branches.into_iter().find(|branch| branch.name == "web").unwrap().revocation_id.unwrap();
    assert_eq!(keys.revoke(&id).unwrap(), 1);
    assert!(look(&keys, "web").1.is_some());
    assert_eq!(keys.revoke("host").unwrap(), 1);
    keys.renew(&world.grant(&keys, false), false).unwrap();
    keys.new_identity(&vm("web")).unwrap();
    assert_eq!(look(&keys, "web").1, None);
}

#[test]
fn limits_hold_and_stay_when_the_grant_is_renewed() {
    let world = World::new();
    let keys = world.kept();
    let limits = Limits { ports: vec![80], check: "check if minute($m), $m < 1440;".into(), ..Limits::default() };
    let new = NewGrant { vm: vm("web"), purpose: PurposeName::OnionService, name: Some("blog".into()), limits };
    let key = keys.grant(new.clone()).unwrap().key;
    keys.may_publish(&vm("web"), "blog", 80).unwrap();
    assert!(keys.may_publish(&vm("web"), "blog", 81).unwrap_err().to_string().contains("does not permit"));
    world.clocks.pass(20 * HOUR);
    keys.turn().unwrap();
    assert_eq!(look(&keys, "web/onion-service/blog"), (key.clone(), None));
    assert!(keys.may_publish(&vm("web"), "blog", 81).is_err());
    // Another grant for the same key: the earlier one is worth nothing any more.
    let wider = NewGrant { limits: Limits { ports: vec![80, 81], ..Limits::default() }, ..new };
    assert_eq!(keys.grant(wider.clone()).unwrap().key, key);
    keys.may_publish(&vm("web"), "blog", 81).unwrap();
    let bad = NewGrant { limits: Limits { hours: Some(0), ..Limits::default() }, ..wider };
    assert!(matches!(keys.grant(bad), Err(KeysError::Limits(_))));
}

#[test]
fn a_clock_that_is_set_back_revives_nothing_even_over_a_restart() {
    let world = World::new();
    let keys = world.kept();
    let start = world.clocks.wall().as_unix();
    world.clocks.pass(32 * DAY);
    keys.turn().unwrap();
    assert!(look(&keys, "web").1.is_some());
    world.clocks.set(start);
    assert!(look(&keys, "web").1.is_some());
    drop(keys);
    let keys = world.open(false, None);
    assert!(look(&keys, "web").1.is_some(), "the floor is kept");
    assert!(keys.tree().now >= start + 32 * DAY);
    // The root may: the clock had jumped.
    assert!(keys.renew(&world.grant(&keys, true), true).is_ok());
    assert_eq!(keys.tree().now, start);
    assert_eq!(look(&keys, "web").1, None);
}

#[test]
fn only_a_fresh_grant_for_this_very_key_is_taken() {
    let world = World::new();
    let keys = world.kept();
    let grant = world.grant(&keys, false);
    let _asked_again = keys.host_request().unwrap();
    assert!(matches!(keys.renew(&grant, false), Err(KeysError::NotAsked)));
    let stranger = World { root: RootKey::generate(&mut OsRng), ..World::new() };
    assert!(matches!(keys.renew(&stranger.grant(&keys, false), false), Err(KeysError::BadGrant(_))));
    let grant = world.grant(&keys, false);
    keys.renew(&grant, false).unwrap();
    assert!(matches!(keys.renew(&grant, true), Err(KeysError::NotAsked)), "nor twice");
    assert!(matches!(keys.renew("zz", true), Err(KeysError::NotAsked)));
}

#[test]
fn what_is_locked_signs_nothing_and_still_says_how_it_is() {
    let world = World::new();
    let keys = world.kept();
    keys.service_key(&vm("web"), "blog").unwrap();
    keys.lock().unwrap();
    assert_eq!(keys.status().state, KeysState::Locked);
    assert!(matches!(keys.service_key(&vm("web"), "blog"), Err(KeysError::Locked)));
    assert!(matches!(keys.add_vm(&vm("db")), Err(KeysError::Locked)));
    assert_eq!(keys.service_state(&vm("web"), "blog").unwrap().why, None);
    world.clocks.pass(DAY);
    keys.turn().unwrap();
    assert!(look(&keys, "web").1.unwrap().contains("ended at"), "nothing is renewed");
    assert!(keys.service_state(&vm("web"), "blog").unwrap().why.unwrap().contains("ended at"));
    keys.unlock(&Unlock::KeyFile(world.dir.path().join("key"))).unwrap();
    keys.turn().unwrap();
    assert_eq!(look(&keys, "web").1, None);
}

#[test]
fn a_store_that_is_not_used_locks_itself() {
    let world = World::new();
    drop(world.kept());
    let keys = world.open(false, Some(600));
    assert_eq!(keys.status().state, KeysState::Unlocked);
    world.clocks.pass(590);
    assert_eq!(keys.turn().unwrap(), Duration::from_secs(10));
    keys.sign_file(&vm("web"), None, &[0; 32]).unwrap();
    world.clocks.pass(590);
    keys.turn().unwrap();
    assert_eq!(keys.status().state, KeysState::Unlocked, "it was used");
    world.clocks.pass(10);
    keys.turn().unwrap();
    assert_eq!(keys.status().state, KeysState::Locked);
}

#[test]
fn another_unlock_takes_the_place_of_the_first() {
    let world = World::new();
    let keys = world.kept();
    let first = Unlock::KeyFile(world.dir.path().join("key"));
    let second = Unlock::Passphrase("six words".to_owned().into());
    assert!(keys.change_unlock(&second, &first).is_err());
    keys.change_unlock(&first, &second).unwrap();
    drop(keys);
    let keys = world.open(false, None);
    assert_eq!(keys.status().state, KeysState::Locked);
    assert!(keys.tree().branches.is_empty());
    assert!(keys.unlock(&first).is_err());
    assert!(keys.unlock(&Unlock::Passphrase("five".to_owned().into())).is_err());
    assert_eq!(keys.status().state, KeysState::Locked, "a wrong passphrase is no damage");
    keys.unlock(&second).unwrap();
    assert_eq!(look(&keys, "web").1, None);
}

#[test]
fn a_damaged_store_is_refused_and_restored_from_the_root() {
    let world = World::new();
    drop(world.kept());
    let path = world.dir.path().join("keys/store.redb");
    let mut bytes = fs::read(&path).unwrap();
    bytes.truncate(bytes.len() / 2);
    fs::write(&path, &bytes).unwrap();
    let keys = world.open(false, None);
    assert_eq!(keys.status().state, KeysState::Damaged);
    assert!(keys.status().detail.contains("oht key restore"));
    assert!(matches!(keys.add_vm(&vm("db")), Err(KeysError::Damaged(_))));
    assert!(matches!(keys.set_up(&world.given(&keys, false), &[]), Err(KeysError::Damaged(_))));
    let aside = keys.set_up(&world.given(&keys, true), &[vm("web")]).unwrap().unwrap();
    assert_eq!(fs::read(aside.join("store.redb")).unwrap(), bytes, "it is kept as it was");
    assert_eq!(look(&keys, "web").1, None);
    drop(keys);
    assert_eq!(look(&world.open(false, None), "web").1, None);
    // A store that is gone altogether is not taken for a first start where the root is there.
    fs::remove_dir_all(world.dir.path().join("keys")).unwrap();
    fs::write(world.dir.path().join("root.age"), "").unwrap();
    assert_eq!(world.open(false, None).status().state, KeysState::Damaged);
}

#[test]
fn a_vm_has_so_many_keys_and_no_more() {
    let world = World::new();
    let keys = world.open(false, None);
    keys.add_vm(&vm("web")).unwrap();
    for n in 0..tree::LEAVES_MAX {
        keys.service_key(&vm("web"), &format!("s{n}")).unwrap();
    }
    assert!(matches!(keys.service_key(&vm("web"), "more"), Err(KeysError::LeavesFull(_))));
    assert!(matches!(keys.service_key(&vm("web"), "../x"), Err(KeysError::Name(_))));
}
