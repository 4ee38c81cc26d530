//! The API as programs use it: its events, and requests that nobody would think of.

use std::{
    env,
    io::{BufRead, BufReader, Read, Write},
    net::{TcpListener, TcpStream},
    os::unix::net::UnixStream,
    path::PathBuf,
    process::{Command, Stdio},
    thread,
};

use serde_json::Value;

use crate::world::World;

#[test]
fn events_tell_what_happens_from_the_status_on() {
    let mut world = World::new();
    world.start();
    let mut oht = Command::new(env!("CARGO_BIN_EXE_oht"));
    oht.args(["events", "--json", "--log", "--run-dir"]).arg(world.path("r")).stdout(Stdio::piped());
    let mut oht = oht.spawn().unwrap();
    let mut lines = BufReader::new(oht.stdout.take().unwrap()).lines();
    let mut next = move || -> Value { serde_json::from_str(&lines.next().unwrap().unwrap()).unwrap() };
    let first = next();
    assert_eq!((&first["event"], &first["status"]["vms"]), (&"status".into(), &Value::Array(vec![])));
    assert!(world.oht(&["vm", "add", "web"]).status.success());
    let mut seen = Vec::new();
    let is_port = |event: &Value| event["name"] == "port:web" && event["pid"].is_u64();
    let is = |kind: &'static str| move |event: &Value| event["event"] == kind;
    while !(seen.iter().any(is_port) && seen.iter().any(is("vm_added")) && seen.iter().any(is("log"))) {
        seen.push(next());
    }
    assert!(seen.iter().find(|event| is("vm_added")(event)).unwrap()["vm"] == "web");
    assert!(world.oht(&["vm", "rm", "web"]).status.success());
    while next()["event"] != "vm_removed" {}
    // The agent's end is the events' end, and no failure.
    assert!(world.oht(&["down"]).status.success());
    assert!(oht.wait().unwrap().success());
    world.agent.take().unwrap().wait().unwrap();
}

#[test]
fn events_can_be_counted_and_be_of_one_vm() {
    let mut world = World::new();
    world.start();
    let printed = world.oht(&["events", "--count", "1"]);
    assert!(String::from_utf8_lossy(&printed.stdout).starts_with("status  router"), "{printed:?}");
    let refused = world.request("GET", "/events?vm=%2e%2e", "").unwrap();
    assert_eq!(refused.0, 400, "{refused:?}");
    let plain = world.request("GET", "/events", "").unwrap();
    assert!(plain.0 == 400 && plain.1["detail"].as_str().unwrap().contains("WebSocket"), "{plain:?}");
}

/// Schemathesis (`SCHEMATHESIS`, which ci/test sets to what `ci/generators schemathesis` prints) makes requests of the
/// description in /openapi.json, right ones and wrong ones, and compares the answers with it.
#[test]
fn a_generator_of_requests_finds_no_fault() {
    let Some(generator) = env::var_os("SCHEMATHESIS") else {
        eprintln!("skipped: set SCHEMATHESIS to what `ci/generators schemathesis` prints");
        return;
    };
    let mut world = World::new();
    world.start();
    let port = bridge(world.path("r/api.sock"));
    let mut schemathesis = Command::new(generator);
    schemathesis.arg("--config-file").arg(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/clients/schemathesis.toml"));
    let url = format!("http://127.0.0.1:{port}");
    schemathesis.arg("run").arg(format!("{url}/openapi.json")).args(["--url", &url]);
    // One would end the agent, the other is no HTTP. The same requests each time: what fails once fails again.
    schemathesis.args([
        "--exclude-path",
        "/shutdown",
        "--exclude-path",
        "/events",
        "--seed",
        "1",
        "--max-examples",
        "20",
        "--no-color",
    ]);
    schemathesis.args(["--phases", "examples,coverage,fuzzing,stateful", "--request-timeout", "20"]);
    let output = schemathesis.current_dir(world.path("")).stdin(Stdio::null()).output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{said}{}", String::from_utf8_lossy(&output.stderr));
    assert!(said.contains("Stateful"), "all phases ran: {said}");
    assert!(world.request("GET", "/status", "").is_some_and(|(code, _)| code == 200), "the agent is well");
}

/// A TCP port of the loopback that leads to the AF_UNIX socket, for a program that knows no other.
fn bridge(socket: PathBuf) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    thread::spawn(move || {
        for stream in listener.incoming() {
            let (Ok(tcp), Ok(unix)) = (stream, UnixStream::connect(&socket)) else { continue };
            let (tcp_too, unix_too) = (tcp.try_clone().unwrap(), unix.try_clone().unwrap());
            thread::spawn(move || copy(tcp, unix));
            thread::spawn(move || copy(unix_too, tcp_too));
        }
    });
    port
}

fn copy(mut from: impl Read, mut to: impl Write + Shut) {
    let _the_other_side_has_gone = std::io::copy(&mut from, &mut to);
    to.shut();
}

trait Shut {
    fn shut(&self);
}

impl Shut for TcpStream {
    fn shut(&self) {
        let _ = self.shutdown(std::net::Shutdown::Write);
    }
}

impl Shut for UnixStream {
    fn shut(&self) {
        let _ = self.shutdown(std::net::Shutdown::Write);
    }
}
