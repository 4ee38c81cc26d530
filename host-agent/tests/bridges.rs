//! The real daemon and uplink with bridges and a stand-in for a pluggable transport: what may be dialled, and what is.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::{
    fs,
    io::{Read, Write},
    net::TcpListener,
    os::unix::fs::PermissionsExt,
};

use wire::{
    control::{FromRouter, ToRouter, encode},
    entry::Vanguards,
    hello::Role,
    uplink::{DialAnswer, DialRequest},
};

#[path = "world/world.rs"]
mod world;

use world::{World, kill, order};

const RSA: &str = "0123456789ABCDEF0123456789ABCDEF01234567";

/// What stands for the only transport.
const STAND_IN: &str = "127.0.0.1:1";

#[test]
fn only_bridges_are_dialled_and_a_transport_by_its_stand_in() {
    let (bridge, socks, relay) = (listener(), listener(), listener());
    let mut world = World::new();
    let transport = world.path("transport");
    let script = "#!/bin/sh\n[ $TOR_PT_MANAGED_TRANSPORT_VER$TOR_PT_CLIENT_TRANSPORTS = 1obfs4 ] || exit 1\n\
                  [ -d $TOR_PT_STATE_LOCATION ] || exit 2\nread port < $0.port || exit 3\n\
                  echo VERSION 1\necho CMETHOD obfs4 socks5 127.0.0.1:$port\necho CMETHODS DONE\nexec sleep 1000\n";
    fs::write(&transport, script).unwrap();
    fs::set_permissions(&transport, fs::Permissions::from_mode(0o755)).unwrap();
    let lines = format!(
        "vanguards = \"full\"\nbridges = [\"{} {RSA}\", \"obfs4 192.0.2.77:443 {RSA} cert=x\"]\n\
         transports = {{ obfs4 = \"{}\" }}\n",
        bridge.local_addr().unwrap(),
        transport.display()
    );
    fs::write(world.path("agent.toml"), lines).unwrap();
    world.options = vec!["--config".into(), world.path("agent.toml").into()];
    world.start();
    world.until("the uplink runs", |world| world.pid("uplink").is_some());

    let mut router = world.connect("r/vsock_1024", Role::Router);
    let ToRouter::Configure { entry, .. } = order(&mut router) else { panic!("not configured") };
    assert_eq!((entry.bridges.len(), entry.vanguards), (2, Vanguards::Full));
    assert_eq!(entry.stand_ins().values().next(), Some(&STAND_IN.parse().unwrap()));
    // What the router says of relays changes nothing.
    let relay = relay.local_addr().unwrap().to_string();
    let report = FromRouter::Relays { orports: vec!["203.0.113.5:9001".parse().unwrap(), relay.parse().unwrap()] };
    router.write_all(&encode(&report).unwrap()).unwrap();
    let bridge = bridge.local_addr().unwrap().to_string();
    world.until("the bridge is dialled", |world| ask(world, &bridge) == DialAnswer::Connected);
    for other in ["127.0.0.1:2", "203.0.113.5:9001", "192.0.2.77:443", &relay] {
        assert_eq!(ask(&world, other), DialAnswer::Forbidden, "{other}");
    }
    // The transport cannot start yet; the real network's only relay has the address that stands for it.
    assert_eq!(ask(&world, STAND_IN), DialAnswer::Forbidden);
    let port = |listener: &TcpListener| listener.local_addr().unwrap().port();
    let file = world.path("transport.port");
    fs::write(&file, format!("{}\n", port(&socks))).unwrap();
    world.until("the transport is dialled", |world| ask(world, STAND_IN) == DialAnswer::Connected);
    socks.accept().unwrap();
    assert_eq!(ask(&world, &format!("127.0.0.1:{}", port(&socks))), DialAnswer::Forbidden, "by its stand-in only");

    // One that is started again listens elsewhere, and until then nothing stands behind the stand-in.
    fs::remove_file(&file).unwrap();
    kill(world.pid("transport:obfs4").unwrap());
    world.until("it has ended", |world| ask(world, STAND_IN) == DialAnswer::Forbidden);
    let elsewhere = listener();
    fs::write(&file, format!("{}\n", port(&elsewhere))).unwrap();
    world.until("its successor is dialled", |world| ask(world, STAND_IN) == DialAnswer::Connected);
    elsewhere.accept().unwrap();

    let said = world.oht(&["status"]);
    let said = String::from_utf8_lossy(&said.stdout).into_owned();
    assert!(said.contains("\"t\" through 2 bridges"), "{said}");
    let log = fs::read_to_string(world.path("agent.log")).unwrap();
    assert!(!log.contains("192.0.2.77") && !log.contains(RSA) && !log.contains(&bridge), "{log}");
}

#[test]
fn an_agent_with_a_wrong_line_does_not_start_and_does_not_show_it() {
    let mut world = World::new();
    world.options = ["--bridge", "203.0.113.7 X"].map(Into::into).into();
    let output = world.command("r", "s").output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success() && said.contains("bridge line 1 is wrong"), "{said}");
    assert!(!said.contains("203.0"), "{said}");
}

fn listener() -> TcpListener {
    TcpListener::bind("127.0.0.1:0").unwrap()
}

/// Asks the uplink for an address, as the router does.
fn ask(world: &World, address: &str) -> DialAnswer {
    let mut uplink = world.connect("r/vsock_1025", Role::Router);
    uplink.write_all(&DialRequest(address.parse().unwrap()).encode()).unwrap();
    let mut answer = [0];
    uplink.read_exact(&mut answer).unwrap();
    DialAnswer::try_from(answer[0]).unwrap()
}
