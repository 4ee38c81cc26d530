//! What VMs are told of themselves, by a router that the test plays, and circuits that they take anew.

use std::{fs, io::Write, os::unix::net::UnixStream, path::Path};

use serde_json::Value;
use wire::{
    control::{FromRouter, ToRouter, encode},
    hello::Role,
    identity::{Answer, Question, Sha256},
};

use crate::{order, world::World};

/// Asks in the name of a VM, as the router does.
fn ask(router: &mut UnixStream, vm: &str, question: Question) -> Answer {
    router.write_all(&encode(&FromRouter::Ask { vm: vm.parse().unwrap(), id: 7, question }).unwrap()).unwrap();
    match order(router) {
        ToRouter::Answer { id: 7, answer } => answer,
        other => panic!("no answer but {other:?}"),
    }
}

#[test]
fn a_vm_learns_who_it_is_signs_and_becomes_somebody_else() {
    let mut world = World::new();
    world.start();
    assert!(world.oht(&["vm", "add", "bank"]).status.success());
    assert!(world.oht(&["vm", "add", "web"]).status.success());
    let mut router = world.connect("r/vsock_1024", Role::Router);
    while !matches!(order(&mut router), ToRouter::Onions { vm, .. } if vm.as_str() == "web") {}
    let who = |router: &mut UnixStream, vm| match ask(router, vm, Question::Who) {
        Answer::Who(identity) => identity,
        other => panic!("{other:?}"),
    };
    let (web, bank) = (who(&mut router, "web"), who(&mut router, "bank"));
    assert!(web.name.as_str() == "web" && web.key != bank.key && web.until > 0);
    assert_eq!(ask(&mut router, "web", Question::Onions), Answer::Onions(vec![]));

    let text = world.path("text");
    fs::write(&text, "a text of the VM").unwrap();
    let sha256 = Question::Sign { sha256: digest(&text) };
    let Answer::Signed(signature) = ask(&mut router, "web", sha256) else { panic!("not signed") };
    let (text, signed) = (text.to_str().unwrap().to_owned(), world.path("text.sig"));
    fs::write(&signed, serde_json::to_vec(&signature).unwrap()).unwrap();
    let verify = |world: &World| {
        let output = world.oht(&["key", "verify", &text, signed.to_str().unwrap(), "--root", &signature.root]);
        format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
    };
    assert!(verify(&world).contains("vm web, signing web"), "{}", verify(&world));
    let granted = who(&mut router, "web").grants;
    assert_eq!(granted.iter().map(|grant| grant.name.as_str()).collect::<Vec<_>>(), ["web", "web/signing/web"]);
    assert_eq!(who(&mut router, "bank").grants.len(), 1, "another VM's are not shown");

    // What its grant does not permit is refused, with words.
    assert!(world.oht(&["key", "revoke", "web/signing/web"]).status.success());
    let refused = ask(&mut router, "web", sha256);
    assert!(refused.status().0 == 403 && format!("{refused:?}").contains("revoked"), "{refused:?}");

    // A new identity is there once the router has let go of the old one's streams and circuits.
    let fresh = std::thread::scope(|scope| {
        let waiting = scope.spawn(|| world.oht(&["vm", "new-identity", "web", "--json"]));
        let ToRouter::NewCircuits { vm, order, end_streams: true } = order(&mut router) else { panic!("no order") };
        assert!(vm.as_str() == "web" && !waiting.is_finished());
        router.write_all(&encode(&FromRouter::CircuitsRenewed { order }).unwrap()).unwrap();
        waiting.join().unwrap()
    });
    let fresh: Value = serde_json::from_slice(&fresh.stdout).unwrap();
    let now = who(&mut router, "web").key;
    assert!(now != web.key && fresh["key"] == now.as_str(), "{fresh}");
    assert!(matches!(ask(&mut router, "web", sha256), Answer::Signed(_)), "by a new key");
    assert_eq!(who(&mut router, "bank").key, bank.key);
    assert_eq!(ask(&mut router, "nobody", Question::Who).status().0, 404);
}

/// By coreutils.
fn digest(file: &Path) -> Sha256 {
    let output = std::process::Command::new("sha256sum").arg(file).output().unwrap();
    String::from_utf8_lossy(&output.stdout).split(' ').next().unwrap().parse().unwrap()
}

#[test]
fn new_circuits_are_taken_by_one_vm_or_all_now_or_when_there_is_a_router() {
    let mut world = World::new();
    world.start();
    for vm in ["a", "b"] {
        assert!(world.oht(&["vm", "add", vm]).status.success());
    }
    assert_eq!(world.request("POST", "/vms/none/new-circuits", "").unwrap().0, 404);
    assert_eq!(world.request("POST", "/vms/a/new-circuits", "").unwrap().0, 202, "nobody is there to obey");
    let mut router = world.connect("r/vsock_1024", Role::Router);
    let ordered = |router: &mut UnixStream| loop {
        if let ToRouter::NewCircuits { vm, order, end_streams } = order(router) {
            router.write_all(&encode(&FromRouter::CircuitsRenewed { order }).unwrap()).unwrap();
            return (vm.to_string(), end_streams);
        }
    };
    assert_eq!(ordered(&mut router), ("a".into(), false));
    std::thread::scope(|scope| {
        let all = scope.spawn(|| world.oht(&["vm", "new-circuits"]));
        assert_eq!([ordered(&mut router).0, ordered(&mut router).0], ["a", "b"]);
        assert!(String::from_utf8_lossy(&all.join().unwrap().stdout).contains("all VMs"));
        let one = scope.spawn(|| world.request("POST", "/vms/b/new-circuits", ""));
        assert_eq!(ordered(&mut router), ("b".into(), false));
        assert_eq!(one.join().unwrap().unwrap().0, 204);
    });
}
