//! Both ends of the control connections, over socket pairs.

use std::time::Instant;

use tempfile::TempDir;
use wire::{
    control::{FromInit, FromRouter, ToInit, ToRouter, VmOptions},
    onion::{OnionAddress, Onions},
};

use super::*;
use crate::{children::Children, model::Model, status::RouterState, vms::Vm};

struct World {
    dir: TempDir,
    shared: Shared,
    control: Control,
    vms: watch::Sender<Vms>,
    onions: watch::Sender<Wanted>,
}

fn world() -> World {
    let dir = tempfile::tempdir().unwrap();
    let shared = Shared::new(Model::default(), Children::open(dir.path().join("children.json")));
    let network = TorNetwork { name: "t".into(), authorities: vec![], caches: vec![], local_addresses: true };
    let (vms, watched) = watch::channel(Vms::new());
    let (onions, onions_watched) = watch::channel(Wanted::new());
    let control = Control::new(shared.clone(), network, watched, onions_watched, dir.path().join("relays.json"));
    let listener = UnixListener::bind(dir.path().join("s")).unwrap();
    tokio::spawn(control.clone().serve(listener));
    World { dir, shared, control, vms, onions }
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
    let options = |optimistic| VmOptions { optimistic, resolve: !optimistic };
    let vms = |vm: &str, link_port, optimistic| {
        Vms::from([(vm.parse().unwrap(), Vm { link_port, options: options(optimistic) })])
    };
    world.vms.send_replace(vms("a", 2048, false));
    let mut router = connect(&world, Role::Router).await;
    assert!(matches!(read(&mut router).await.unwrap(), Some(ToRouter::Configure { .. })));
    let attach = |vm: &str, link_port, optimistic| {
        Some(ToRouter::Attach { vm: vm.parse().unwrap(), link_port, options: options(optimistic) })
    };
    let onions = |vm: &str, onions: &Onions| Some(ToRouter::Onions { vm: vm.parse().unwrap(), onions: onions.clone() });
    assert_eq!(read(&mut router).await.unwrap(), attach("a", 2048, false));
    assert_eq!(read(&mut router).await.unwrap(), onions("a", &Onions::default()));
    let mut some = Onions::default();
    some.authorised.insert(OnionAddress::of(&[1; 32]), [2; 32].into());
    world.onions.send_replace([("a".parse().unwrap(), some.clone()), ("b".parse().unwrap(), some.clone())].into());
    assert_eq!(read(&mut router).await.unwrap(), onions("a", &some));
    world.vms.send_replace(vms("b", 2049, true));
    assert_eq!(read(&mut router).await.unwrap(), Some(ToRouter::Detach { vm: "a".parse().unwrap() }));
    assert_eq!(read(&mut router).await.unwrap(), attach("b", 2049, true));
    assert_eq!(read(&mut router).await.unwrap(), onions("b", &some));
    // A restarted program begins anew, and the connection before it is closed.
    let mut again = connect(&world, Role::Router).await;
    assert!(matches!(read(&mut again).await.unwrap(), Some(ToRouter::Configure { .. })));
    assert_eq!(read(&mut again).await.unwrap(), attach("b", 2049, true));
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
        assert!(matches!(read(&mut router).await.unwrap(), Some(ToRouter::Configure { .. })));
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
