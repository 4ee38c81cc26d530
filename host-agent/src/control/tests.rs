//! Both ends of the control connections, over socket pairs.

use std::time::Instant;

use tempfile::TempDir;
use wire::{
    control::{FromInit, FromRouter, ToInit, ToRouter},
    identity::{Answer, Question, Refusal},
    onion::{OnionAddress, Onions},
};

use super::*;
use crate::{children::Children, model::Model, status::RouterState, vms::Vm};

struct World {
    dir: TempDir,
    shared: Shared,
    control: Control,
    vms: watch::Sender<Vms>,
    routes: watch::Sender<Arc<Table>>,
    onions: watch::Sender<Wanted>,
    keys: Arc<Keys>,
}

fn world() -> World {
    let dir = tempfile::tempdir().unwrap();
    let shared = Shared::new(Model::default(), Children::open(dir.path().join("children.json")));
    let network = TorNetwork { name: "t".into(), authorities: vec![], caches: vec![], local_addresses: true };
    let (vms, watched) = watch::channel(Vms::new());
    let (routes, tables) = watch::channel(table(1, ""));
    let (onions, onions_watched) = watch::channel(Wanted::new());
    let (vault, sealed_root) = (dir.path().join("keys"), dir.path().join("root.age"));
    let places = crate::keys::Places { vault, sealed_root, ephemeral: true, auto_lock: None };
    let keys = Arc::new(Keys::open(places, Box::new(crate::keys::time::SystemTime)));
    let (kept, network) = (dir.path().join("relays.json"), (network, TorEntry::default()));
    let control = Control::new(shared.clone(), network, watched, tables, onions_watched, kept, Arc::clone(&keys));
    let listener = UnixListener::bind(dir.path().join("s")).unwrap();
    tokio::spawn(control.clone().serve(listener));
    World { dir, shared, control, vms, routes, onions, keys }
}

fn table(number: u64, text: &str) -> Arc<Table> {
    Arc::new(Table { number, lines: wire::route::parse("t", text).unwrap(), problems: vec![], blocked: false })
}

/// What a router that connects is told first.
async fn is_configured(router: &mut UnixStream) {
    assert!(matches!(read(router).await.unwrap(), Some(ToRouter::Configure { .. })));
    assert!(matches!(read(router).await.unwrap(), Some(ToRouter::Routes(_))));
}

async fn connect(world: &World, role: Role) -> UnixStream {
    let mut stream = UnixStream::connect(world.dir.path().join("s")).await.unwrap();
    stream.write_all(&Hello::new(role).encode()).await.unwrap();
    let mut hello = [0; 8];
    stream.read_exact(&mut hello).await.unwrap();
    assert_eq!(hello.to_vec(), Hello::new(Role::Agent).encode());
    stream
}

/// Waits for what the other task does.
async fn until(what: impl Fn() -> bool) {
    while !what() {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

#[tokio::test]
async fn guest_init_is_provisioned_reports_and_powers_off() {
    let world = world();
    assert!(!world.control.power_off(), "nobody there");
    let mut init = connect(&world, Role::Init).await;
    let Some(ToInit::Provision { unix_time_ns }) = read(&mut init).await.unwrap() else { panic!("no provision") };
    assert!(unix_time_ns > 1_700_000_000_000_000_000);
    world.shared.model().router_starting(Instant::now());
    write(&mut init, &FromInit::Ready { uptime_ms: 1, kernel: "6.12".into(), memory_kib: (2, 1) }).await.unwrap();
    write(&mut init, &FromInit::ProgramEnded { how: "signal 9".into(), restart_ms: 5 }).await.unwrap();
    until(|| world.shared.model().failures().1 == 1).await;
    assert_eq!(world.shared.model().router.state, RouterState::Ready);
    assert!(world.control.power_off());
    assert_eq!(read(&mut init).await.unwrap(), Some(ToInit::PowerOff));
    write(&mut init, &FromInit::PoweringOff).await.unwrap();
    assert_eq!(read::<ToInit>(&mut init).await.unwrap(), None, "closed in acknowledgement");
}

#[tokio::test]
async fn the_router_is_configured_and_follows_the_vms() {
    let world = world();
    let vms = |vm: &str, link_port| Vms::from([(vm.parse().unwrap(), Vm { link_port, nature: Default::default() })]);
    world.vms.send_replace(vms("a", 2048));
    let mut router = connect(&world, Role::Router).await;
    is_configured(&mut router).await;
    let attach = |vm: &str, link_port| Some(ToRouter::Attach { vm: vm.parse().unwrap(), link_port });
    let onions = |vm: &str, onions: &Onions| Some(ToRouter::Onions { vm: vm.parse().unwrap(), onions: onions.clone() });
    assert_eq!(read(&mut router).await.unwrap(), attach("a", 2048));
    assert_eq!(read(&mut router).await.unwrap(), onions("a", &Onions::default()));
    let mut some = Onions::default();
    some.authorised.insert(OnionAddress::of(&[1; 32]), [2; 32].into());
    world.onions.send_replace([("a".parse().unwrap(), some.clone()), ("b".parse().unwrap(), some.clone())].into());
    assert_eq!(read(&mut router).await.unwrap(), onions("a", &some));
    world.vms.send_replace(vms("b", 2049));
    assert_eq!(read(&mut router).await.unwrap(), Some(ToRouter::Detach { vm: "a".parse().unwrap() }));
    assert_eq!(read(&mut router).await.unwrap(), attach("b", 2049));
    assert_eq!(read(&mut router).await.unwrap(), onions("b", &some));
    // A restarted program begins anew, and the connection before it is closed.
    let mut again = connect(&world, Role::Router).await;
    is_configured(&mut again).await;
    assert_eq!(read(&mut again).await.unwrap(), attach("b", 2049));
    assert_eq!(read(&mut again).await.unwrap(), onions("b", &some));
    assert_eq!(read::<ToRouter>(&mut router).await.unwrap(), None);
}

#[tokio::test]
async fn relays_become_the_allow_list_and_the_rest_is_shown() {
    let world = world();
    let mut allowed = world.control.allowed();
    assert_eq!(*allowed.borrow_and_update(), b"[]\n");
    let mut router = connect(&world, Role::Router).await;
    write(&mut router, &FromRouter::Relays { orports: vec!["127.20.0.1:5000".parse().unwrap()] }).await.unwrap();
    allowed.changed().await.unwrap();
    assert_eq!(*allowed.borrow(), b"[\"127.20.0.1:5000\"]\n");
    write(&mut router, &FromRouter::Bootstrap { percent: 100, usable: true, status: "up".into() }).await.unwrap();
    until(|| world.shared.model().tor.usable).await;
    drop(router);
    until(|| !world.shared.model().tor.usable).await;
}

#[tokio::test]
async fn a_peer_that_misbehaves_is_sent_away_and_on_record() {
    let world = world();
    for (count, bytes) in [&b"\xff\xff\xff\xff"[..], b"\x02\0\0\0{}", b"\x05\0\0\0{}"].into_iter().enumerate() {
        let mut router = connect(&world, Role::Router).await;
        is_configured(&mut router).await;
        router.write_all(bytes).await.unwrap();
        router.shutdown().await.unwrap();
        assert_eq!(read::<ToRouter>(&mut router).await.ok().flatten(), None);
        until(|| world.shared.model().failures().1 == count as u64 + 1).await;
    }
    let mut port = UnixStream::connect(world.dir.path().join("s")).await.unwrap();
    port.write_all(&Hello::new(Role::Port).encode()).await.unwrap();
    until(|| world.shared.model().failures().1 == 4).await;
    assert!(world.shared.model().failures().0[3].contains("no business"));
}

#[tokio::test]
async fn routes_are_told_at_first_and_when_they_change_and_waited_for() {
    let world = world();
    assert!(!world.control.routes_applied(1).await, "no router is there");
    let mut router = connect(&world, Role::Router).await;
    assert!(matches!(read(&mut router).await.unwrap(), Some(ToRouter::Configure { .. })));
    let part = |told: Option<ToRouter>| match told {
        Some(ToRouter::Routes(part)) => part,
        other => panic!("no routes but {other:?}"),
    };
    assert_eq!(part(read(&mut router).await.unwrap()).total, 0);
    // More than one message holds.
    let text: String = (0..600).map(|n| format!("* n{n}.example block\n")).collect();
    world.routes.send_replace(table(7, &text));
    let control = world.control.clone();
    let waiting = tokio::spawn(async move { control.routes_applied(7).await });
    let mut assembly = wire::route::Assembly::default();
    let whole = loop {
        if let Some(whole) = assembly.add(part(read(&mut router).await.unwrap())).unwrap() {
            break whole;
        }
    };
    assert_eq!(whole.len(), 600);
    assert!(!waiting.is_finished());
    write(&mut router, &FromRouter::RoutesApplied { table: 7 }).await.unwrap();
    assert!(waiting.await.unwrap());
    assert!(world.control.routes_applied(7).await);
    let control = world.control.clone();
    let waiting = tokio::spawn(async move { control.routes_applied(8).await });
    drop(router);
    assert!(!waiting.await.unwrap(), "a router that is gone obeys nothing");
}

#[tokio::test]
async fn countries_are_told_and_missing_files_are_a_failure_only_if_a_route_asks() {
    let world = world();
    tokio::spawn(world.control.clone().keep_countries(world.dir.path().into()));
    let mut router = connect(&world, Role::Router).await;
    is_configured(&mut router).await;
    let relays = ["192.0.2.1:443", "192.0.2.2:443", "[2001:db8::1]:443"].map(|orport| orport.parse().unwrap());
    write(&mut router, &FromRouter::Relays { orports: relays.into() }).await.unwrap();
    world.routes.send_replace(table(2, "* * exit=CH"));
    assert!(matches!(read(&mut router).await.unwrap(), Some(ToRouter::Routes(_))));
    until(|| world.shared.model().failures().0.iter().any(|failure| failure.contains("tor-geoipdb"))).await;
    std::fs::write(world.dir.path().join("geoip"), "3221225985,3221225985,CH\n").unwrap();
    world.routes.send_replace(table(3, "* * exit=LI"));
    assert!(matches!(read(&mut router).await.unwrap(), Some(ToRouter::Routes(_))));
    let of = [("CH".parse().unwrap(), vec!["192.0.2.1".parse().unwrap()])].into();
    assert_eq!(read(&mut router).await.unwrap(), Some(ToRouter::Countries { of }));
}

/// Has the VM `web`, and is told of it.
async fn serving_router(world: &World) -> UnixStream {
    let vm = Vm { link_port: 2048, nature: Default::default() };
    world.vms.send_replace(Vms::from([("web".parse().unwrap(), vm)]));
    let mut router = connect(world, Role::Router).await;
    is_configured(&mut router).await;
    assert!(matches!(read(&mut router).await.unwrap(), Some(ToRouter::Attach { .. })));
    assert!(matches!(read(&mut router).await.unwrap(), Some(ToRouter::Onions { .. })));
    router
}

#[tokio::test]
async fn a_vm_is_answered_within_its_keys_and_a_stranger_not() {
    let world = world();
    let web = "web".parse().unwrap();
    world.keys.add_vm(&web).unwrap();
    let mut router = serving_router(&world).await;
    for (id, vm) in [(1, "web"), (2, "bank")] {
        let ask = FromRouter::Ask { vm: vm.parse().unwrap(), id, question: Question::Who };
        write(&mut router, &ask).await.unwrap();
    }
    let mut told: Vec<_> = vec![];
    for _ in 0..2 {
        let Some(ToRouter::Answer { id, answer }) = read(&mut router).await.unwrap() else { panic!("no answer") };
        told.push((id, answer));
    }
    told.sort_by_key(|(id, _)| *id);
    let key = world.keys.tree().branches.iter().find(|branch| branch.name == "web").unwrap().key.clone();
    assert!(matches!(&told[0].1, Answer::Who(who) if who.key == key && who.name == web), "{told:?}");
    assert!(matches!(&told[1].1, Answer::Refused { why: Refusal::NotFound, .. }), "{told:?}");
}

#[tokio::test]
async fn questions_beyond_the_bound_are_refused_and_the_rest_answered() {
    let world = world();
    let mut router = serving_router(&world).await;
    let count = 10 * asks::ASKS_MAX as u64;
    for id in 0..count {
        let question = Question::Sign { sha256: wire::identity::Sha256([1; 32]) };
        write(&mut router, &FromRouter::Ask { vm: "web".parse().unwrap(), id, question }).await.unwrap();
    }
    // What finds no room is not answered; the router tells a VM that waits for it. Later ones are as ever.
    world.keys.add_vm(&"web".parse().unwrap()).unwrap();
    for id in count.. {
        write(&mut router, &FromRouter::Ask { vm: "web".parse().unwrap(), id, question: Question::Who }).await.unwrap();
        let Some(ToRouter::Answer { answer, .. }) = read(&mut router).await.unwrap() else { panic!("no answer") };
        if matches!(answer, Answer::Who(_)) {
            break;
        }
        // Those of before, by a key that was there in time or not.
        let is_earlier = match &answer {
            Answer::Signed(_) => true,
            Answer::Refused { why, .. } => [Refusal::NotFound, Refusal::Unavailable].contains(why),
            _ => false,
        };
        assert!(is_earlier, "{answer:?}");
    }
    assert_eq!(world.shared.model().failures().1, 0);
}

#[tokio::test]
async fn new_circuits_are_ordered_until_they_are_had() {
    let world = world();
    let vms = ["web".parse().unwrap()];
    let mut router = serving_router(&world).await;
    let control = world.control.clone();
    let name = vms.clone();
    let waiting = tokio::spawn(async move { control.renew_circuits(&name, true).await });
    let Some(ToRouter::NewCircuits { vm, order, end_streams: true }) = read(&mut router).await.unwrap() else {
        panic!("no order")
    };
    assert!(vm == vms[0] && !waiting.is_finished());
    // It breaks off before it has obeyed: its successor is told again, and then no more.
    drop(router);
    let mut router = serving_router(&world).await;
    let again = ToRouter::NewCircuits { vm, order, end_streams: true };
    assert_eq!(read(&mut router).await.unwrap(), Some(again));
    write(&mut router, &FromRouter::CircuitsRenewed { order }).await.unwrap();
    assert!(waiting.await.unwrap());
    drop(router);
    until(|| world.control.0.applied.borrow().is_none()).await;
    assert!(!world.control.renew_circuits(&vms, false).await, "nobody is there");
    let mut router = serving_router(&world).await;
    let told = read(&mut router).await.unwrap();
    assert!(matches!(told, Some(ToRouter::NewCircuits { end_streams: false, .. })), "{told:?}");
}
