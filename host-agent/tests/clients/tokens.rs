//! Who may do what: tokens, and users who are not the agent's.

use std::{
    fs,
    os::unix::{fs::PermissionsExt, process::CommandExt},
    process::{Command, Output},
};

use serde_json::Value;

use crate::world::World;

/// A user and a group that own nothing: `nobody` and `nogroup` of Debian.
const NOBODY: u32 = 65_534;

fn said(output: &Output) -> String {
    [output.stdout.as_slice(), &output.stderr].into_iter().map(String::from_utf8_lossy).collect()
}

/// Makes a token, puts it into the file `name`, and gives what the agent calls it.
fn token(world: &World, name: &str, scope: &[&str]) -> String {
    let output = world.oht(&[&["token", "new", "--json"], scope].concat());
    let minted: Value = serde_json::from_slice(&output.stdout).unwrap();
    fs::write(world.path(name), minted["token"].as_str().unwrap()).unwrap();
    minted["id"].as_str().unwrap().to_owned()
}

#[test]
fn a_token_allows_what_it_says_until_it_is_revoked() {
    let mut world = World::new();
    world.start();
    for vm in ["web", "bank"] {
        assert!(world.oht(&["vm", "add", vm]).status.success());
    }
    let monitor = token(&world, "monitor", &["--monitor"]);
    token(&world, "web", &["--vm", "web"]);
    let with = |file: &str, arguments: &[&str]| {
        let file = world.path(file);
        world.oht(&[arguments, &["--token-file", file.to_str().unwrap()]].concat())
    };
    assert!(with("monitor", &["status"]).status.success());
    assert!(with("monitor", &["events", "--count", "1"]).status.success());
    for order in [&["vm", "add", "x"][..], &["vm", "rm", "web"], &["token", "new", "--monitor"], &["down"]] {
        let refused = with("monitor", order);
        assert!(!refused.status.success() && said(&refused).contains("not in its scope"), "{}", said(&refused));
    }
    assert!(with("web", &["vm", "attach", "web", "--qemu"]).status.success());
    assert!(with("web", &["circuits", "web"]).status.success());
    for order in [&["status"][..], &["circuits"], &["vm", "attach", "bank", "--qemu"], &["vm", "list"]] {
        assert!(!with("web", order).status.success(), "{order:?}");
    }
    let narrow = with("monitor", &["token", "narrow", "--check", "check if path(\"/metrics\")"]);
    fs::write(world.path("narrow"), &narrow.stdout).unwrap();
    assert!(with("narrow", &["metrics"]).status.success(), "{}", said(&narrow));
    assert!(!with("narrow", &["status"]).status.success());
    assert!(world.oht(&["token", "revoke", &monitor]).status.success());
    for file in ["monitor", "narrow"] {
        let refused = with(file, &["metrics"]);
        assert!(said(&refused).contains("revoked"), "{}", said(&refused));
    }
    fs::write(world.path("monitor"), "nonsense").unwrap();
    assert!(said(&with("monitor", &["status"])).contains("oht token new"));
}

#[test]
fn another_user_is_refused_unless_a_token_says_otherwise() {
    if !nix::unistd::geteuid().is_root() {
        eprintln!("skipped: only root can be another user");
        return;
    }
    let mut world = World::new();
    fs::set_permissions(world.path(""), fs::Permissions::from_mode(0o711)).unwrap();
    // Where it was built, others may have no way to it.
    fs::copy(env!("CARGO_BIN_EXE_oht"), world.path("oht")).unwrap();
    world.options = vec!["--shared-socket".into(), world.path("shared/api.sock").into()];
    world.start();
    token(&world, "token", &["--monitor"]);
    fs::set_permissions(world.path("token"), fs::Permissions::from_mode(0o644)).unwrap();
    let as_nobody = |socket: &str, more: &[&str]| {
        let mut oht = Command::new(world.path("oht"));
        oht.arg("status").arg("--socket").arg(world.path(socket)).args(more).current_dir("/");
        oht.uid(NOBODY).gid(NOBODY).output().unwrap()
    };
    let closed = as_nobody("r/api.sock", &[]);
    assert!(!closed.status.success() && said(&closed).contains("may not be opened"), "{}", said(&closed));
    let refused = as_nobody("shared/api.sock", &[]);
    assert!(!refused.status.success() && said(&refused).contains("may not use this agent"), "{}", said(&refused));
    let file = world.path("token");
    let allowed = as_nobody("shared/api.sock", &["--token-file", file.to_str().unwrap()]);
    assert!(allowed.status.success(), "{}", said(&allowed));
    // A member of the group needs none.
    assert!(world.oht(&["down"]).status.success());
    world.agent.take().unwrap().wait().unwrap();
    world.options.extend(["--group".into(), "nogroup".into()]);
    world.start();
    let oht = |group: u32| {
        let mut oht = Command::new(world.path("oht"));
        oht.arg("status").arg("--socket").arg(world.path("shared/api.sock")).current_dir("/");
        oht.uid(12_345).gid(group).output().unwrap()
    };
    assert!(oht(NOBODY).status.success() && !oht(12_345).status.success());
}
