//! The real daemon with stand-ins for the router VM's three processes and the port: what it starts, how it comes back,
//! what it refuses. (The VM tests run it with the real ones.)

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::{
    fs,
    io::{Read, Write},
    os::unix::net::{UnixDatagram, UnixStream},
    path::Path,
    process::{Command, Stdio},
};

use serde_json::Value;
use wire::{
    control::{FromInit, FromRouter, ToInit, ToRouter, VmUsage, decode, encode},
    hello::Role,
    onion::{OnionAddress, Onions, Reachability},
    route::Route,
    uplink::{DialAnswer, DialRequest},
};

#[path = "agent/identity.rs"]
mod identity;
#[path = "world/world.rs"]
mod world;

use world::{PATIENCE, World, alive, kill, order};

/// All the stand-ins and the uplink.
const PROCESSES: [&str; 5] = ["qemu", "vsock", "virtiofsd", "uplink", "port:web"];

#[test]
fn whatever_is_killed_comes_back() {
    let mut world = World::new();
    world.start();
    assert_eq!(world.request("POST", "/vms", r#"{"name":"web"}"#).unwrap().0, 201);
    world.until("all run", |world| PROCESSES.iter().all(|name| world.pid(name).is_some()));
    for name in PROCESSES {
        let before = world.pid(name).unwrap();
        let group = ["qemu", "vsock", "virtiofsd"].map(|name| world.pid(name).unwrap());
        kill(before);
        let back = |world: &World| PROCESSES.iter().all(|name| world.pid(name).is_some());
        world.until(name, |world| world.pid(name).is_some_and(|pid| pid != before) && back(world));
        // The three of the router VM live and die together; the others do not take them along.
        let together = group.contains(&before);
        assert!(group.iter().all(|pid| alive(*pid) != together), "{name}");
    }
    let status = world.status();
    assert_eq!(status["router"]["restarts"], 3);
    assert!(status["failures"].to_string().contains("virtiofsd ended: signal: 9"), "{status}");
}

#[test]
fn a_killed_agents_children_live_on_until_its_successor_replaces_them() {
    let mut world = World::new();
    world.start();
    assert_eq!(world.request("POST", "/vms", r#"{"name":"web"}"#).unwrap().0, 201);
    world.until("all run", |world| PROCESSES.iter().all(|name| world.pid(name).is_some()));
    let before = PROCESSES.map(|name| world.pid(name).unwrap());
    world.kill_agent();
    assert!(before.iter().all(|pid| alive(*pid)));
    assert!(UnixStream::connect(world.path("r/vm/web/net.sock")).is_ok(), "the VM's socket still answers");
    world.start();
    world.until("all run again", |world| PROCESSES.iter().all(|name| world.pid(name).is_some()));
    assert!(before.iter().all(|pid| !alive(*pid)));
    assert_eq!(world.status()["vms"][0]["name"], "web");

    // Without a successor, `oht down` ends them.
    let after = PROCESSES.map(|name| world.pid(name).unwrap());
    world.kill_agent();
    assert!(world.oht(&["down"]).status.success());
    assert!(after.iter().all(|pid| !alive(*pid)));
}

#[test]
fn down_leaves_no_process_and_no_socket() {
    let mut world = World::new();
    world.start();
    assert_eq!(world.request("POST", "/vms", r#"{"name":"web"}"#).unwrap().0, 201);
    world.until("all run", |world| PROCESSES.iter().all(|name| world.pid(name).is_some()));
    let pids = PROCESSES.map(|name| world.pid(name).unwrap());
    let down = world.oht(&["down", "--json"]);
    assert!(down.status.success() && String::from_utf8_lossy(&down.stdout).contains("true"));
    assert!(pids.iter().all(|pid| !alive(*pid)));
    let is_socket = |path: &Path| std::os::unix::fs::FileTypeExt::is_socket(&fs::metadata(path).unwrap().file_type());
    let left: Vec<_> =
        fs::read_dir(world.path("r")).unwrap().flatten().map(|e| e.path()).filter(|p| is_socket(p)).collect();
    assert!(left.is_empty() && fs::read_dir(world.path("r/vm")).unwrap().next().is_none(), "{left:?}");
    assert_eq!(world.oht(&["status"]).status.code(), Some(3));
}

#[test]
fn guest_init_makes_the_router_ready_and_the_uplink_dials_what_the_network_names() {
    let mut world = World::new();
    world.start();
    world.until("QEMU runs", |world| world.pid("qemu").is_some() && world.pid("uplink").is_some());
    let mut init = world.connect("r/vsock_1024", Role::Init);
    let mut bytes = [0; 200];
    let read = init.read(&mut bytes).unwrap();
    assert!(matches!(decode::<ToInit>(&bytes[..read]).unwrap(), Some((ToInit::Provision { .. }, _))));
    let ready = FromInit::Ready { uptime_ms: 1, kernel: "6.12".into(), memory_kib: (96 << 10, 50 << 10) };
    init.write_all(&encode(&ready).unwrap()).unwrap();
    world.until("ready", |world| world.status()["router"]["state"] == "ready");
    assert!(world.status()["router"]["boot_s"].as_f64().unwrap() > 0.0);

    // The network's only relay is closed: refused is what the uplink says only once it has dialled.
    let ask = |address: &str| {
        let mut uplink = world.connect("r/vsock_1025", Role::Router);
        uplink.write_all(&DialRequest(address.parse().unwrap()).encode()).unwrap();
        let mut answer = [0];
        uplink.read_exact(&mut answer).unwrap();
        DialAnswer::try_from(answer[0]).unwrap()
    };
    world.until("the allow list has arrived", |_| ask("127.0.0.1:1") == DialAnswer::Refused);
    assert_eq!(ask("127.0.0.1:2"), DialAnswer::Forbidden);
    kill(world.pid("uplink").unwrap());
    // Its successor takes what waits in the backlog; it has the list a moment later.
    world.until("a new uplink has the list", |_| ask("127.0.0.1:1") == DialAnswer::Refused);
}

#[test]
fn what_a_vm_uses_is_in_the_status_and_the_metrics() {
    let mut world = World::new();
    world.start();
    assert!(world.oht(&["vm", "add", "web"]).status.success());
    assert_eq!(world.status()["vms"][0]["usage"], Value::Null);
    let mut router = world.connect("r/vsock_1024", Role::Router);
    assert!(matches!(order(&mut router), ToRouter::Configure { .. }));
    assert!(matches!(order(&mut router), ToRouter::Routes(part) if part.total == 0));
    let ToRouter::Attach { vm, .. } = order(&mut router) else { panic!("no VM to attach") };
    let usage = VmUsage {
        vm,
        flows: 3,
        circuits: 2,
        retries: 1,
        bytes_from_vm: 1000,
        bytes_to_vm: 1 << 40,
        drops: [("checksum".into(), 5)].into(),
    };
    let report = FromRouter::Usage { resident_kib: 1, available_kib: 2, flows: 3, vms: vec![usage] };
    router.write_all(&encode(&report).unwrap()).unwrap();
    world.until("the usage is known", |world| world.status()["vms"][0]["usage"]["flows"] == 3);
    let status = world.oht(&["status"]);
    let said = String::from_utf8_lossy(&status.stdout).into_owned();
    for part in ["3 flows on 2 circuits", "1000 B out, 1048576.0 MiB in, 1 retries", "checksum 5"] {
        assert!(said.contains(part), "{part} is not in {said}");
    }
    let json = world.oht(&["status", "--json"]);
    let json: Value = serde_json::from_slice(&json.stdout).unwrap();
    assert_eq!(json["vms"][0]["usage"]["drops"]["checksum"], 5);
    let metrics = world.oht(&["metrics"]);
    let said = String::from_utf8_lossy(&metrics.stdout).into_owned();
    assert!(said.contains("oht_vm_bytes_total{vm=\"web\",direction=\"to_vm\"} 1099511627776\n"), "{said}");
    assert!(said.trim_end().ends_with("# EOF"), "{said}");
    let description = world.request("GET", "/openapi.json", "").unwrap().1;
    assert!(description["paths"]["/metrics"]["get"]["responses"]["200"].is_object(), "{description}");
    drop(router);
    world.until("it is forgotten with the program", |world| world.status()["vms"][0]["usage"].is_null());
}

#[test]
fn routes_are_in_force_when_they_are_acknowledged_and_survive_the_agent() {
    let mut world = World::new();
    world.start();
    let add = |world: &World, route: &str| world.oht(&["route", "add", "--json", "*", route, "block"]);
    let added = add(&world, "a.example");
    let said = String::from_utf8_lossy(&added.stdout).into_owned();
    assert!(added.status.success() && said.contains("\"in_force\": false"), "no router is there: {said}");
    let mut router = world.connect("r/vsock_1024", Role::Router);
    assert!(matches!(order(&mut router), ToRouter::Configure { .. }));
    let ToRouter::Routes(part) = order(&mut router) else { panic!("no routes") };
    assert_eq!(part.routes, ["* a.example block".parse::<Route>().unwrap()]);
    // The command waits for the router.
    let waiting = std::thread::scope(|scope| {
        let waiting = scope.spawn(|| add(&world, "b.example"));
        let ToRouter::Routes(part) = order(&mut router) else { panic!("no routes") };
        assert_eq!(part.total, 2);
        assert!(!waiting.is_finished());
        router.write_all(&encode(&FromRouter::RoutesApplied { table: part.table }).unwrap()).unwrap();
        waiting.join().unwrap()
    });
    assert!(String::from_utf8_lossy(&waiting.stdout).contains("\"in_force\": true"));
    drop(router);
    // What is acknowledged is on the disk.
    world.kill_agent();
    world.start();
    let listed = world.oht(&["route", "list"]);
    assert_eq!(
        String::from_utf8_lossy(&listed.stdout),
        "50-api.conf:1: * a.example block reject\n50-api.conf:2: * b.example block reject\n"
    );
    let test = world.oht(&["route", "test", "web", "b.example:443"]);
    let said = String::from_utf8_lossy(&test.stdout).into_owned();
    assert!(test.status.code() == Some(4) && said.contains("because of 50-api.conf:2"), "{said}");
    assert_eq!(world.oht(&["route", "test", "web", "c.example:443"]).status.code(), Some(0));
    assert_eq!(world.oht(&["route", "rm", "2"]).status.code(), Some(0));
    assert_eq!(world.oht(&["route", "rm", "2"]).status.code(), Some(1));
    assert!(add(&world, "a.example").status.success());
    let check = world.oht(&["route", "check"]);
    assert!(check.status.code() == Some(4) && String::from_utf8_lossy(&check.stdout).contains("can never match"));
}

#[test]
fn drop_ins_are_read_when_they_change_and_wrong_ones_let_nothing_more_through() {
    let mut world = World::new();
    let directory = world.path("oht/routes.d");
    fs::create_dir_all(&directory).unwrap();
    world.routes_dir = Some(directory.clone());
    fs::write(directory.join("10.conf"), "* a.example blokc\n").unwrap();
    world.start();
    let code = |world: &World| world.oht(&["route", "test", "web", "b.example:443"]).status.code();
    assert_eq!(code(&world), Some(4), "all is blocked");
    assert!(world.status()["failures"].to_string().contains("did you mean block?"), "{}", world.status());
    let refused = world.request("POST", "/routes", r#"{"route":"* * tor","first":true}"#).unwrap();
    assert_eq!(refused.0, 409, "{}", refused.1);
    fs::write(directory.join("10.conf"), "* a.example block\n").unwrap();
    world.until("it is read again", |world| code(world) == Some(0));
    fs::write(directory.join("10.conf"), "nonsense\n").unwrap();
    let failures = |world: &World| world.status()["failures_total"].as_u64().unwrap();
    world.until("it is a failure", |world| failures(world) >= 2);
    assert_eq!(world.oht(&["route", "test", "web", "a.example:443"]).status.code(), Some(4), "as it was");
    assert_eq!(code(&world), Some(0));
    assert_eq!(world.oht(&["route", "check"]).status.code(), Some(4));
    assert_eq!(world.oht(&["route", "reload"]).status.code(), Some(1));
}

#[test]
fn an_ephemeral_vm_leaves_nothing_when_its_agent_is_killed() {
    let mut world = World::new();
    world.start();
    let add = |world: &World, body| assert_eq!(world.request("POST", "/vms", body).unwrap().0, 201);
    add(&world, r#"{"name":"kept","kind":"controller"}"#);
    add(&world, r#"{"name":"passing","ephemeral":true}"#);
    world.until("its port runs", |world| world.pid("port:passing").is_some());
    let port = world.pid("port:passing").unwrap();
    assert!(!fs::read_to_string(world.path("s/vms.json")).unwrap().contains("passing"));
    let left = ["r/vm/passing", "r/vsock_2049", "r/port-passing.log"];
    assert!(left.iter().all(|path| world.path(path).exists()));
    world.kill_agent();
    world.start();
    assert!(!alive(port) && left.iter().all(|path| !world.path(path).exists()));
    let vms = world.request("GET", "/vms", "").unwrap().1;
    assert_eq!((vms.as_array().unwrap().len(), &vms[0]["kind"]), (1, &Value::from("controller")), "{vms}");
}

#[test]
fn the_service_manager_is_told_when_the_api_is_served_and_that_it_is_fed_and_ends() {
    let mut world = World::new();
    let manager = UnixDatagram::bind(world.path("notify")).unwrap();
    manager.set_read_timeout(Some(PATIENCE)).unwrap();
    let told = || {
        let mut bytes = [0; 200];
        let read = manager.recv(&mut bytes).unwrap();
        String::from_utf8_lossy(&bytes[..read]).trim().to_owned()
    };
    let mut command = world.command("r", "s");
    command.env("NOTIFY_SOCKET", world.path("notify")).env("WATCHDOG_USEC", "40000").stderr(Stdio::null());
    world.agent = Some(command.spawn().unwrap());
    assert_eq!(told(), "READY=1");
    assert_eq!(world.request("GET", "/status", "").unwrap().0, 200, "ready is when it answers");
    assert_eq!([told(), told()], ["WATCHDOG=1"; 2]);
    world.until("QEMU runs", |world| world.pid("qemu").is_some());
    let environment = fs::read(format!("/proc/{}/environ", world.pid("qemu").unwrap())).unwrap();
    assert!(!String::from_utf8_lossy(&environment).contains("NOTIFY_SOCKET"), "a child is no part of it");
    nix::sys::signal::kill(
        nix::unistd::Pid::from_raw(world.agent.as_ref().unwrap().id().try_into().unwrap()),
        nix::sys::signal::Signal::SIGTERM,
    )
    .unwrap();
    while told() != "STOPPING=1" {}
}

#[test]
fn onion_services_are_told_to_the_router_and_shown_as_it_finds_them() {
    let mut world = World::new();
    world.start();
    assert!(world.oht(&["vm", "add", "web"]).status.success());
    let mut router = world.connect("r/vsock_1024", Role::Router);
    assert!(matches!(order(&mut router), ToRouter::Configure { .. }));
    assert!(matches!(order(&mut router), ToRouter::Routes(_)));
    assert!(matches!(order(&mut router), ToRouter::Attach { .. }));
    let mut onions = || match order(&mut router) {
        ToRouter::Onions { vm, onions } if vm.as_str() == "web" => onions,
        other => panic!("{other:?}"),
    };
    assert_eq!(onions(), Onions::default());

    let mut client = Command::new(env!("CARGO_BIN_EXE_oht"));
    let client = client.args(["onion", "client", "new", "--json"]).output().unwrap();
    let client: Value = serde_json::from_slice(&client.stdout).unwrap();
    let key = client["service"].as_str().unwrap();
    let publish = ["onion", "publish", "web", "80:8080", "22", "--name", "site", "--client", key, "--json"];
    let published = world.oht(&publish);
    let published: Value = serde_json::from_slice(&published.stdout).unwrap();
    let onion = published["onion"].as_str().unwrap().to_owned();
    let told = onions();
    let (name, service) = told.services.first_key_value().unwrap();
    assert_eq!((name.as_str(), service.terms.ports.len(), service.terms.clients.len()), ("site", 2, 1));
    let again = world.oht(&publish);
    let said = String::from_utf8_lossy(&again.stderr).into_owned();
    assert!(!again.status.success() && said.contains("oht onion unpublish web site"), "{said}");

    // The secret is in no file.
    let kept = fs::read_to_string(world.path("s/onions.json")).unwrap();
    assert!(kept.contains("8080") && !kept.contains(service.key.to_base32().as_str()), "{kept}");

    // A key for somebody else's restricted service, from standard input.
    let line = client["client"].as_str().unwrap();
    let stranger = OnionAddress::of(&[1; 32]);
    let mut authorise = Command::new(env!("CARGO_BIN_EXE_oht"));
    authorise.args(["onion", "authorise", "web", stranger.as_str(), "--key-stdin", "--run-dir"]).arg(world.path("r"));
    authorise.env("XDG_CONFIG_HOME", world.path("")).stdin(Stdio::piped()).stdout(Stdio::null());
    let mut authorise = authorise.spawn().unwrap();
    writeln!(authorise.stdin.take().unwrap(), "{line}").unwrap();
    assert!(authorise.wait().unwrap().success());
    let told = onions();
    let (of, secret) = told.authorised.first_key_value().unwrap();
    assert_eq!(*of, stranger);
    assert!(line.ends_with(secret.to_base32().as_str()), "the client's own half");
    let path = format!("/vms/web/authorisations/{stranger}");
    assert_eq!(world.request("DELETE", &path, "").unwrap().0, 204);
    assert_eq!(onions().authorised.len(), 0);
    assert_eq!(world.request("DELETE", &path, "").unwrap().0, 404);

    // The router's word, of services that there are.
    for (service, reachability) in [("site", Reachability::Reachable), ("other", Reachability::Refused)] {
        let (vm, service, status) = ("web".parse().unwrap(), service.parse().unwrap(), "seen\u{1b}[2J".into());
        let report = FromRouter::Service { vm, service, reachability, status };
        router.write_all(&encode(&report).unwrap()).unwrap();
    }
    world
        .until("it is shown", |world| world.request("GET", "/onions", "").unwrap().1[0]["reachability"] == "reachable");
    let list = world.oht(&["onion", "list"]);
    let said = String::from_utf8_lossy(&list.stdout).into_owned();
    assert!(said.contains(&onion) && said.contains("80:8080, 22") && said.contains("reachable: seen[2J"), "{said:?}");
    assert!(!said.contains("other"), "{said}");

    // After a restart of the agent it is still there; a service that was removed with its VM is not.
    drop(router);
    world.kill_agent();
    world.start();
    assert_eq!(world.request("GET", "/onions", "").unwrap().1[0]["reachability"], "publishing");
    assert_eq!(world.request("DELETE", "/onions/web/none", "").unwrap().0, 404);
    assert_eq!(world.request("POST", "/onions", r#"{"vm":"web","name":"x","ports":["0"]}"#).unwrap().0, 422);
    assert_eq!(world.request("POST", "/onions", r#"{"vm":"web","name":"x","ports":[]}"#).unwrap().0, 422);
    assert_eq!(world.request("POST", "/onions", r#"{"vm":"none","name":"x","ports":["1"]}"#).unwrap().0, 404);
    assert!(world.oht(&["vm", "rm", "web"]).status.success());
    assert_eq!(world.request("GET", "/onions", "").unwrap().1.as_array().unwrap().len(), 0);
}

#[test]
fn bad_input_gets_a_clear_answer_and_changes_nothing() {
    let mut world = World::new();
    world.start();
    let long = format!(r#"{{"name":"{}"}}"#, "x".repeat(300));
    for (method, path, body, status) in [
        ("POST", "/vms", r#"{"name":"a","colour":1}"#, 422),
        ("POST", "/vms", r#"{"name":"../a"}"#, 422),
        ("POST", "/vms", r#"{"name":"a b"}"#, 422),
        ("POST", "/vms", r#"["a"]"#, 422),
        ("POST", "/vms", &long, 422),
        ("POST", "/vms", "{", 400),
        ("POST", "/routes", r#"{"route":"* *"}"#, 422),
        ("POST", "/routes", r#"{"route":"* * tor","more":1}"#, 422),
        ("PUT", "/routes", r#"{"text":"nonsense"}"#, 422),
        ("DELETE", "/routes/7", "", 404),
        ("DELETE", "/routes/x", "", 400),
        ("POST", "/routes/test", r#"{"vm":"a","target":"example.org"}"#, 422),
        ("POST", "/routes/test", r#"{"vm":"../a","target":"example.org:1"}"#, 422),
        ("GET", "/routes/7", "", 405),
        ("GET", "/routes", "", 200),
        ("PUT", "/vms", "", 405),
        ("GET", "/nothing", "", 404),
        ("DELETE", "/vms/none", "", 404),
        ("DELETE", "/vms/..%2f..", "", 400),
        ("GET", "/vms/none/attach", "", 404),
        ("GET", "/status?", "", 200),
    ] {
        let (got, answer) = world.request(method, path, body).unwrap();
        assert_eq!(got, status, "{method} {path} {body}: {answer}");
        assert!(got == 200 || (answer["status"] == status && answer["type"] == "about:blank"), "{answer}");
    }
    assert_eq!(world.request("POST", "/vms", r#"{"name":"a"}"#).unwrap().0, 201);
    assert_eq!(world.request("POST", "/vms", r#"{"name":"a"}"#).unwrap().0, 409);
    assert_eq!(world.request("GET", "/vms", "").unwrap().1.as_array().unwrap().len(), 1);
    let attach = world.oht(&["vm", "attach", "a", "--qemu"]);
    assert!(String::from_utf8_lossy(&attach.stdout).contains("r/vm/a/net.sock,reconnect-ms=500"));
    assert_eq!(world.request("DELETE", "/vms/a", "").unwrap().0, 204);
    assert!(!world.path("r/vm/a").exists());
}

#[test]
fn a_second_agent_and_a_corrupt_image_are_told_what_is_wrong() {
    let mut world = World::new();
    world.start();
    for (run, state) in [("r2", "s"), ("r", "s2")] {
        let second = world.command(run, state).output().unwrap();
        let said = String::from_utf8_lossy(&second.stderr).into_owned();
        let pid = world.agent.as_ref().unwrap().id().to_string();
        assert!(!second.status.success() && said.contains(&pid) && said.contains("oht down"), "{said}");
    }
    world.until("QEMU runs", |world| world.pid("qemu").is_some());
    fs::write(world.path("image/vmlinuz"), "another").unwrap();
    kill(world.pid("qemu").unwrap());
    world.until("the image is refused", |world| world.status()["failures"].to_string().contains("corrupt"));
    assert_eq!(world.pid("vsock"), None, "nothing runs half");
    fs::write(world.path("image/vmlinuz"), "vmlinuz").unwrap();
    world.until("and taken once it is whole", |world| world.pid("qemu").is_some());
}
