//! Keys in the real daemon, by the real command: what is kept, what is refused, and what is said then.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::{
    fs,
    io::Write as _,
    path::PathBuf,
    process::{Command, Output, Stdio},
    thread,
    time::Duration,
};

use serde_json::Value;

#[path = "world/world.rs"]
mod world;

use world::World;

/// The root's passphrase, and the store's.
const BOTH: &str = "passphrase of the root\npassphrase of the store\n";
const STORE: &str = "passphrase of the store\n";
const ROOT: &str = "passphrase of the root\n";

fn said(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

/// What the command prints, which has to succeed.
fn done(world: &World, arguments: &[&str], input: &str) -> String {
    let output = world.oht_told(arguments, input);
    assert!(output.status.success(), "{arguments:?}: {}", said(&output));
    said(&output)
}

/// What the command says, which has to fail.
fn fails(world: &World, arguments: &[&str], input: &str) -> String {
    let output = world.oht_told(arguments, input);
    assert_eq!(output.status.code(), Some(1), "{arguments:?}: {}", said(&output));
    assert!(output.stdout.is_empty());
    said(&output)
}

fn json(world: &World, arguments: &[&str], input: &str) -> Value {
    let output = world.oht_told(&[arguments, &["--json"]].concat(), input);
    assert!(output.status.success(), "{arguments:?}: {}", said(&output));
    serde_json::from_slice(&output.stdout).unwrap()
}

/// The current key of this name.
fn branch(world: &World, name: &str) -> Value {
    let tree = json(world, &["key", "tree"], "");
    let mut branches = tree["branches"].as_array().unwrap().iter();
    branches.find(|branch| branch["name"] == name && branch["replaced"] == false).unwrap_or(&Value::Null).clone()
}

/// `oht key root combine`, which needs no agent.
fn combine(out: &str, input: &str) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_oht"));
    command.args(["key", "root", "combine", "--passphrase-stdin", "--out", out]);
    let pipes = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = pipes.spawn().unwrap();
    child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
    child.wait_with_output().unwrap()
}

/// An agent whose keys are kept, with one VM; a key file unlocks them.
fn kept() -> World {
    let mut world = World::new();
    world.start();
    let key = world.path("key").display().to_string();
    done(&world, &["key", "init", "--passphrase-stdin", "--keyfile", &key], ROOT);
    done(&world, &["vm", "add", "web"], "");
    world
}

fn restart(world: &mut World) {
    world.kill_agent();
    world.start();
}

#[test]
fn keys_are_made_kept_locked_and_unlocked() {
    let mut world = World::new();
    world.start();
    assert!(done(&world, &["status"], "").contains("keys are not kept: `oht key init`"));
    done(&world, &["vm", "add", "web"], "");
    assert_eq!(branch(&world, "web")["why"], Value::Null, "it has a key nevertheless");
    assert!(fails(&world, &["key", "lock"], "").contains("oht key init"));
    let same = fails(&world, &["key", "init", "--passphrase-stdin"], "same\nsame\n");
    assert!(same.contains("choose another one"), "{same}");
    done(&world, &["key", "init", "--passphrase-stdin"], BOTH);
    assert!(fails(&world, &["key", "init", "--passphrase-stdin"], BOTH).contains("oht key renew"));
    let key = branch(&world, "web")["key"].clone();
    restart(&mut world);
    assert!(done(&world, &["status"], "").contains("locked: `oht key unlock`"));
    assert!(fails(&world, &["vm", "add", "db"], "").contains("oht key unlock"));
    let wrong = fails(&world, &["key", "unlock", "--passphrase-stdin"], "something else\n");
    assert!(wrong.contains("wrong") && wrong.contains("undamaged"), "{wrong}");
    // From a descriptor other than standard input.
    let script = "exec 3<&0 </dev/null; exec \"$0\" key unlock --passphrase-fd 3 --run-dir \"$1\"";
    let mut shell = Command::new("sh");
    shell.args(["-c", script, env!("CARGO_BIN_EXE_oht")]).arg(world.path("r")).stdin(Stdio::piped());
    let mut shell = shell.stdout(Stdio::null()).spawn().unwrap();
    shell.stdin.take().unwrap().write_all(STORE.as_bytes()).unwrap();
    assert!(shell.wait().unwrap().success());
    assert_eq!(branch(&world, "web")["key"], key);
    done(&world, &["key", "passphrase", "--passphrase-stdin"], &format!("{STORE}another one\n"));
    done(&world, &["key", "lock"], "");
    assert!(fails(&world, &["key", "unlock", "--passphrase-stdin"], STORE).contains("wrong"));
    done(&world, &["key", "unlock", "--passphrase-stdin"], "another one\n");
    done(&world, &["vm", "rm", "web"], "");
    assert_eq!(branch(&world, "web"), Value::Null);
    // Neither passphrase is anywhere on the disk, nor in what was logged.
    let found = Command::new("grep").args(["-r", "passphrase of the \\|another one"]).arg(world.path("")).output();
    assert!(found.unwrap().stdout.is_empty());
}

#[test]
fn a_new_identity_is_another_key_and_the_old_one_is_revoked() {
    let world = kept();
    let before = branch(&world, "web");
    let after = json(&world, &["vm", "new-identity", "web"], "");
    assert_ne!(before["key"], after["key"]);
    assert_eq!(branch(&world, "web")["key"], after["key"]);
    assert!(fails(&world, &["vm", "new-identity", "none"], "").contains("oht vm list"));
    let revoked = json(&world, &["key", "revoke", "web"], "");
    assert_eq!(revoked["revoked"], 1);
    assert!(branch(&world, "web")["why"].as_str().unwrap().contains("was revoked"));
    assert!(done(&world, &["key", "tree"], "").contains("cannot be used: the grant of the vm web was revoked"));
}

#[test]
fn a_signature_is_good_for_its_file_and_its_root() {
    let world = kept();
    let (file, signature) = (world.path("file"), world.path("file.sig"));
    let (path, out) = (file.to_str().unwrap(), signature.to_str().unwrap());
    fs::write(&file, "content").unwrap();
    done(&world, &["key", "sign", "web", path, "--out", out], "");
    assert!(done(&world, &["key", "verify", path, out], "").contains("good: signed by host"));
    let root = branch(&world, "root")["key"].as_str().unwrap().to_owned();
    let verified = json(&world, &["key", "verify", path, out, "--root", &root], "");
    assert!(verified["grants"].to_string().contains("vm web"), "{verified}");
    let other = branch(&world, "web")["key"].as_str().unwrap().to_owned();
    assert!(fails(&world, &["key", "verify", path, out, "--root", &other], "").contains("not trusted"));
    fs::write(&file, "other content").unwrap();
    assert!(fails(&world, &["key", "verify", path, out], "").contains("does not fit"));
    let grant = ["key", "grant", "web", "--purpose", "signing", "--check", "check if vm(\"db\");"];
    done(&world, &grant, "");
    assert!(fails(&world, &["key", "sign", "web", path], "").contains("does not permit"));
    assert!(fails(&world, &["key", "grant", "web", "--purpose", "ssh", "--hours", "25"], "").contains("1 to 24 hours"));
}

#[test]
fn the_root_is_split_and_restored_from_its_shares() {
    let mut world = kept();
    let root = branch(&world, "root")["key"].clone();
    let split = ["key", "root", "split", "--needed", "2", "--count", "3", "--passphrase-stdin"];
    assert!(fails(&world, &split, "not it\n").contains("passphrase is wrong"));
    let shares = json(&world, &split, ROOT);
    assert_eq!(shares["root"], root);
    let share = |number: usize, form: &str| shares["shares"][number][form].as_str().unwrap().to_owned();
    let two = format!("new passphrase\n{}\n{}\n", share(2, "words"), share(0, "ur"));
    let (out, directory) = (world.path("combined"), world.path("shares"));
    let out = out.to_str().unwrap();
    let one = format!("new passphrase\n{}\n", share(1, "words"));
    assert!(said(&combine(out, &one)).contains("1 missing"));
    assert!(!world.path("combined").exists());
    assert!(combine(out, &two).status.success());
    done(&world, &["key", "renew", "--root", out, "--passphrase-stdin"], "new passphrase\n");
    fs::create_dir(&directory).unwrap();
    done(&world, &[&split[..], &["--out", directory.to_str().unwrap()]].concat(), ROOT);
    assert_eq!(fs::read_dir(&directory).unwrap().count(), 6, "words and QR codes");
    assert!(done(&world, &[&split[..], &["--form", "qr"]].concat(), ROOT).contains('█'));

    // The store is damaged, and the sealed root lost.
    let key = branch(&world, "web")["key"].clone();
    world.kill_agent();
    let database = world.path("s/keys/store.redb");
    let bytes = fs::read(&database).unwrap();
    fs::write(&database, &bytes[..bytes.len() / 2]).unwrap();
    fs::remove_file(world.path("s/root.age")).unwrap();
    world.start();
    let status = done(&world, &["status"], "");
    assert!(status.contains("damaged") && status.contains("oht key restore"), "{status}");
    assert!(fails(&world, &["key", "unlock", "--passphrase-stdin"], STORE).contains("oht key restore"));
    assert!(fails(&world, &["vm", "add", "db"], "").contains("oht key restore"));
    let told = format!("new passphrase\n{STORE}{}\n{}\n", share(1, "words"), share(2, "ur"));
    let restored = json(&world, &["key", "restore", "--shares", "--passphrase-stdin"], &told);
    let aside = PathBuf::from(restored["aside"].as_str().unwrap());
    assert_eq!(fs::read(aside.join("store.redb")).unwrap(), &bytes[..bytes.len() / 2], "never deleted");
    let now = branch(&world, "web");
    assert!(now["key"] != key && now["why"].is_null(), "{now}");
    assert_eq!(branch(&world, "root")["key"], root);
    restart(&mut world);
    done(&world, &["key", "unlock", "--passphrase-stdin"], STORE);
    assert_eq!(branch(&world, "web")["key"], now["key"]);
    done(&world, &["key", "renew", "--passphrase-stdin"], "new passphrase\n");
}

#[test]
fn a_flipped_bit_is_refused_and_the_passphrase_restores() {
    let mut world = kept();
    world.kill_agent();
    let database = world.path("s/keys/store.redb");
    let mut bytes = fs::read(&database).unwrap();
    // In a sealed value: the store holds the VM's name in clear beside it.
    let at = bytes.windows(6).rposition(|window| window == b"vm/web").unwrap() + 40;
    bytes[at] ^= 4;
    fs::write(&database, &bytes).unwrap();
    world.start();
    assert!(done(&world, &["status"], "").contains("damaged"));
    assert_eq!(branch(&world, "web"), Value::Null);
    assert_eq!(fs::read(&database).unwrap(), bytes, "nothing is changed in it");
    done(&world, &["key", "restore", "--passphrase-stdin"], BOTH);
    assert_eq!(branch(&world, "web")["why"], Value::Null);
}

#[test]
fn once_the_clock_has_passed_the_grant_the_key_does_not_work_and_the_tree_says_why() {
    let mut world = World::new();
    let examples = std::env::current_exe().unwrap().parent().unwrap().parent().unwrap().join("examples");
    world.program = examples.join("agent_with_clock");
    let clock = world.path("clock");
    fs::write(&clock, "0").unwrap();
    let programs = PathBuf::from(env!("CARGO_BIN_EXE_oht")).parent().unwrap().to_owned();
    world.options = vec!["--clock".into(), clock.clone().into(), "--programs".into(), programs.into()];
    world.start();
    done(&world, &["key", "init", "--passphrase-stdin"], BOTH);
    done(&world, &["vm", "add", "web"], "");
    let (file, out) = (world.path("file"), world.path("signature"));
    let path = file.to_str().unwrap();
    fs::write(&file, "content").unwrap();
    done(&world, &["key", "sign", "web", path, "--out", out.to_str().unwrap()], "");
    // A service of the VM has a key below the VM's.
    done(&world, &["onion", "publish", "web", "80"], "");
    let service = |world: &World| -> Value {
        serde_json::from_slice(&world.oht(&["onion", "list", "--json"]).stdout).unwrap_or(Value::Null)
    };
    let address = service(&world)[0]["onion"].clone();
    assert!(address.is_string(), "{}", service(&world));
    let why_not = |world: &World| service(world)[0]["status"].as_str().unwrap().to_owned();
    // A day on, with a locked store: nothing renews the VM's grant.
    done(&world, &["key", "lock"], "");
    assert!(!why_not(&world).contains("not published"), "a lock alone ends no service: {}", service(&world));
    fs::write(&clock, (25 * 3600).to_string()).unwrap();
    let tree = done(&world, &["key", "tree"], "");
    assert!(tree.contains("over\n        cannot be used: the grant of the vm web ended at"), "{tree}");
    world.until("the service ends with its grant", |world| why_not(world).contains("not published"));
    assert!(fails(&world, &["key", "sign", "web", path], "").contains("locked"));
    done(&world, &["key", "unlock", "--passphrase-stdin"], STORE);
    done(&world, &["key", "sign", "web", path], "");
    world.until("the service is published again", |world| !why_not(world).contains("not published"));
    assert_eq!(service(&world)[0]["onion"], address, "by the same address");
    // A month on, the host's own grant has ended.
    fs::write(&clock, (32 * 86_400).to_string()).unwrap();
    let refused = fails(&world, &["key", "sign", "web", path], "");
    assert!(refused.contains("the grant of the host") && refused.contains("oht key renew"), "{refused}");
    let tree = done(&world, &["key", "tree"], "");
    assert!(tree.contains("cannot be used: the grant of the host") && tree.contains("ended at"), "{tree}");
    world.until("nothing is published", |world| why_not(world).contains("the grant of the host"));
    // The clock goes back, and the agent is killed: nothing is revived.
    fs::write(&clock, "0").unwrap();
    world.kill_agent();
    world.start();
    done(&world, &["key", "unlock", "--passphrase-stdin"], STORE);
    assert!(fails(&world, &["key", "sign", "web", path], "").contains("the grant of the host"));
    let far = fails(&world, &["key", "renew", "--passphrase-stdin"], ROOT);
    assert!(far.contains("--set-clock"), "{far}");
    done(&world, &["key", "renew", "--set-clock", "--passphrase-stdin"], ROOT);
    done(&world, &["key", "sign", "web", path], "");
}

#[test]
fn a_store_locks_itself_although_a_service_is_published() {
    let mut world = World::new();
    world.options = vec!["--auto-lock-s".into(), "2".into()];
    world.start();
    done(&world, &["key", "init", "--passphrase-stdin"], BOTH);
    done(&world, &["vm", "add", "web"], "");
    done(&world, &["onion", "publish", "web", "80"], "");
    world.until("it locks itself", |world| world.status()["keys"]["state"] == "locked");
    let services: Value = serde_json::from_slice(&world.oht(&["onion", "list", "--json"]).stdout).unwrap();
    assert!(!services.to_string().contains("not published"), "{services}");
}

#[test]
fn a_full_disk_is_named_and_loses_nothing() {
    // A tmpfs in a mount namespace of the agent's own; from outside it is seen through its /proc.
    let mut world = World::new();
    fs::create_dir(world.path("s")).unwrap();
    let script = format!("mount -t tmpfs -o size=12m tmpfs {} && exec \"$@\"", world.path("s").display());
    let mut command = Command::new("unshare");
    command.args(["--user", "--map-root-user", "--mount", "sh", "-c", &script, "sh"]);
    let agent = world.command("r", "s");
    command.arg(agent.get_program()).args(agent.get_args()).stdin(Stdio::null()).stderr(Stdio::null());
    world.agent = Some(command.spawn().unwrap());
    world.until("the agent answers", |world| world.request("GET", "/status", "").is_some());
    done(&world, &["key", "init", "--passphrase-stdin"], BOTH);
    done(&world, &["vm", "add", "web"], "");
    let pid = world.agent.as_ref().unwrap().id();
    let state = PathBuf::from(format!("/proc/{pid}/root{}", world.path("s").display()));
    let fill = state.join("fill");
    let filled = fs::write(&fill, vec![1; 64 << 20]).unwrap_err();
    assert_eq!(filled.kind(), std::io::ErrorKind::StorageFull);
    let key = branch(&world, "web")["key"].clone();
    let mut refused = String::new();
    for _ in 0..200 {
        let output = world.oht_told(&["vm", "new-identity", "web"], "");
        if !output.status.success() {
            refused = said(&output);
            break;
        }
    }
    assert!(refused.contains("no space left") && refused.contains("make room"), "{refused}");
    let held = branch(&world, "web")["key"].clone();
    assert_ne!(held, Value::Null);
    let wrong = fails(&world, &["key", "passphrase", "--passphrase-stdin"], &format!("{STORE}next\n"));
    assert!(wrong.contains("no space left"), "{wrong}");
    // Once there is room, it goes on, with what it had.
    fs::remove_file(&fill).unwrap();
    done(&world, &["key", "lock"], "");
    done(&world, &["key", "unlock", "--passphrase-stdin"], STORE);
    assert_eq!(branch(&world, "web")["key"], held);
    let next = json(&world, &["vm", "new-identity", "web"], "");
    assert!(next["key"] != held && next["key"] != key);
}

#[test]
fn an_agent_that_is_killed_while_it_writes_keys_loses_nothing_it_had_acknowledged() {
    let mut world = kept();
    let mut seen = vec![];
    let mut acknowledged = branch(&world, "web")["key"].clone();
    for round in 0..15 {
        let pid = i32::try_from(world.agent.as_ref().unwrap().id()).unwrap();
        let mut killer = None;
        for asked in 0.. {
            if asked == round % 4 {
                // Somewhere in the next writes.
                killer = Some(thread::spawn(move || {
                    thread::sleep(Duration::from_millis(round));
                    world::kill(pid);
                }));
            }
            let Some((200, answer)) = world.request("POST", "/vms/web/new-identity", "") else { break };
            seen.push(std::mem::replace(&mut acknowledged, answer["key"].clone()));
        }
        killer.unwrap().join().unwrap();
        restart(&mut world);
        let there = json(&world, &["key", "tree"], "");
        assert_eq!(there["keys"]["state"], "unlocked", "{there}");
        // One more may have been written, whose acknowledgement died with the agent.
        let is = branch(&world, "web");
        assert!(is["key"].is_string() && !seen.contains(&is["key"]), "round {round}: {is}");
        assert_eq!(is["why"], Value::Null);
        if is["key"] != acknowledged {
            seen.push(std::mem::replace(&mut acknowledged, is["key"].clone()));
        }
    }
    assert!(seen.len() > 15, "{} writes", seen.len());
}

#[test]
fn an_ephemeral_agent_keeps_nothing() {
    let mut world = World::new();
    world.options = vec!["--ephemeral".into()];
    world.start();
    done(&world, &["vm", "add", "web"], "");
    assert_eq!(branch(&world, "web")["why"], Value::Null);
    assert!(fails(&world, &["key", "init", "--passphrase-stdin"], BOTH).contains("--ephemeral"));
    assert!(!world.path("s/keys").exists() && !world.path("s/root.age").exists());
}
