//! Input that is wrong: refused with words that say why, and nothing is lost.

use std::{
    fs,
    io::{Read as _, Write as _},
    os::unix::net::UnixStream,
    path::Path,
    process::{Command, Output, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use nix::sys::signal::Signal;

use super::{Stage, Tests};
use crate::{app_vm::shell::quoted, cache, processes, world::appliance::Appliance};

pub(super) const TESTS: Tests = &[
    ("bad_vm_names_are_refused", bad_vm_names_are_refused),
    ("unknown_api_fields_are_refused", unknown_api_fields_are_refused),
    ("a_corrupt_image_is_refused", a_corrupt_image_is_refused),
    ("a_second_agent_on_one_state_directory_is_refused", a_second_agent_is_refused),
    ("a_full_disk_while_building_is_reported", a_full_disk_is_reported),
];

const ANSWER_TIME: Duration = Duration::from_secs(30);

fn bad_vm_names_are_refused(stage: &mut Stage<'_>) -> Result<String> {
    let long = "a".repeat(300);
    let names = [
        "a/b",
        "/",
        "..",
        ".",
        "../../etc/passwd",
        "a b",
        " ",
        "",
        "-x",
        "a\nb",
        "a\tb",
        "ü",
        "A*",
        "a;b",
        long.as_str(),
    ];
    let before = stage.appliance.oht(&["vm", "list"])?;
    for name in names {
        let output = stage.appliance.oht_output(&["vm", "add", "--", name])?;
        refused(&output).with_context(|| format!("oht vm add {name:?}"))?;
    }
    for name in ["a/../a", "nobody", long.as_str()] {
        for command in ["rm", "attach"] {
            let output = stage.appliance.oht_output(&["vm", command, "--", name])?;
            refused(&output).with_context(|| format!("oht vm {command} {name:?}"))?;
        }
    }
    let again = stage.appliance.oht_output(&["vm", "add", "a"])?;
    refused(&again).context("oht vm add of a name in use")?;
    let after = stage.appliance.oht(&["vm", "list"])?;
    ensure!(names_of(&before) == names_of(&after), "the VMs were {before} and are {after}");
    Ok(format!("{} names refused", names.len()))
}

fn names_of(list: &serde_json::Value) -> Vec<String> {
    let name = |vm: &serde_json::Value| vm["name"].as_str().map(str::to_owned);
    let list = if list.is_array() { list } else { &list["vms"] };
    list.as_array().into_iter().flatten().filter_map(name).collect()
}

/// A refusal is an exit status of its own kind, not a signal or a panic, and words.
fn refused(output: &Output) -> Result<()> {
    let said = [output.stderr.as_slice(), &output.stdout].concat();
    let said = String::from_utf8_lossy(&said);
    ensure!(matches!(output.status.code(), Some(1 | 2)), "it ended with {}: {said}", output.status);
    ensure!(said.trim().len() > 10, "it said only {said:?}");
    ensure!(!said.contains("panicked"), "it panicked: {said}");
    Ok(())
}

fn unknown_api_fields_are_refused(stage: &mut Stage<'_>) -> Result<String> {
    let socket = stage.appliance.run_dir().join("api.sock");
    let before = stage.appliance.oht(&["vm", "list"])?;
    let bodies = [
        r#"{"name":"c","colour":"red"}"#,
        r#"{"name":"c","name":"d"}"#,
        r#"{"nom":"c"}"#,
        r#"{"name":7}"#,
        r#""c""#,
        r#"{"name":"c""#,
        "",
    ];
    for body in bodies {
        let answer = post(&socket, "/vms", body)?;
        let status = answer.split(' ').nth(1).unwrap_or_default();
        ensure!(status.starts_with('4'), "{body} got {answer}");
        let wanted = ["application/problem+json", "\"title\"", "\"status\""];
        ensure!(wanted.iter().all(|part| answer.contains(part)), "{body} got no problem details: {answer}");
    }
    let large = format!(r#"{{"name":"{}"}}"#, "a".repeat(8 << 20));
    let answer = post(&socket, "/vms", &large).unwrap_or_else(|_| "the connection was closed".into());
    ensure!(!answer.starts_with("HTTP/1.1 2"), "8 MiB of a name got {answer}");
    let after = stage.appliance.oht(&["vm", "list"])?;
    ensure!(names_of(&before) == names_of(&after), "the VMs were {before} and are {after}");
    Ok(format!("{} bodies refused", bodies.len() + 1))
}

/// One request with a JSON body; gives the whole answer.
fn post(socket: &Path, path: &str, body: &str) -> Result<String> {
    let mut stream = UnixStream::connect(socket).with_context(|| format!("cannot connect to {}", socket.display()))?;
    stream.set_read_timeout(Some(ANSWER_TIME))?;
    let length = body.len();
    let head = format!(
        "POST {path} HTTP/1.1\r\nHost: oht\r\nContent-Type: application/json\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n"
    );
    stream.write_all(head.as_bytes())?;
    stream.write_all(body.as_bytes())?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer)?;
    Ok(String::from_utf8_lossy(&answer).into_owned())
}

fn a_corrupt_image_is_refused(stage: &mut Stage<'_>) -> Result<String> {
    let good = stage.appliance.image().to_owned();
    let dir = stage.dir.join("corrupt");
    let files = ["vmlinuz", "initramfs.cpio.zst", "manifest.json"];
    for broken in files {
        let _ = fs::remove_dir_all(&dir);
        copy_image(&good, &dir)?;
        break_file(&dir.join(broken))?;
        let other = stage.appliance.with(stage.dir.join("run2"), stage.dir.join("state2"), dir.clone());
        let said = fails_in_time(other.up_command()?)?;
        other.down();
        ensure!(said.contains(broken), "with a broken {broken}, `oht up` said: {said}");
    }
    fs::remove_dir_all(&dir)?;
    Ok(format!("each of {} is named", files.join(", ")))
}

fn copy_image(from: &Path, to: &Path) -> Result<()> {
    fs::create_dir(to).with_context(|| format!("cannot create {}", to.display()))?;
    for entry in fs::read_dir(from)?.flatten().filter(|entry| entry.path().is_file()) {
        fs::copy(entry.path(), to.join(entry.file_name()))?;
    }
    Ok(())
}

/// One bit in the middle.
fn break_file(path: &Path) -> Result<()> {
    let mut bytes = fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
    let middle = bytes.len() / 2;
    *bytes.get_mut(middle).context("an empty file")? ^= 1;
    fs::write(path, bytes)?;
    Ok(())
}

/// Runs a command that must fail by itself; gives what it said.
fn fails_in_time(mut command: Command) -> Result<String> {
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().context("cannot start it")?;
    let end = Instant::now() + ANSWER_TIME;
    while child.try_wait()?.is_none() {
        if Instant::now() > end {
            // An agent that is asked to end ends its processes too.
            processes::signal(child.id(), Signal::SIGTERM);
            let output = child.wait_with_output()?;
            bail!("it goes on as if nothing were wrong: {}", String::from_utf8_lossy(&output.stderr).trim());
        }
        thread::sleep(Duration::from_millis(20));
    }
    let output = child.wait_with_output()?;
    let said = [output.stdout, output.stderr].concat();
    let said = String::from_utf8_lossy(&said).into_owned();
    ensure!(!output.status.success(), "it succeeded: {said}");
    ensure!(!said.contains("panicked"), "it panicked: {said}");
    Ok(said)
}

fn a_second_agent_is_refused(stage: &mut Stage<'_>) -> Result<String> {
    stage.warm_up(&stage.a)?;
    let first = &stage.appliance;
    let mut seen = Vec::new();
    let state = first.state_dir().to_owned();
    let run = first.run_dir().to_owned();
    for (what, run, state) in [("state", stage.dir.join("run2"), state), ("run", run, stage.dir.join("state2"))] {
        let second: Appliance<'_> = first.with(run, state, first.image().to_owned());
        let said =
            fails_in_time(second.agent_command()?).with_context(|| format!("a second agent on one {what} directory"));
        std::mem::forget(second); // its `oht down` could be the first one's
        let said = said?;
        let shared = if what == "state" { first.state_dir() } else { first.run_dir() };
        let shared = shared.to_string_lossy().into_owned();
        let why = said.lines().find(|line| line.contains(&shared));
        let why = why.with_context(|| format!("it does not name {shared}: {said}"))?;
        seen.push(format!("{what} directory: {why}"));
    }
    stage.warm_up(&stage.a).context("the first agent suffered")?;
    Ok(seen.join("; "))
}

/// The output directory is full; then the place where the kernel is built. The image that is there stays good.
fn a_full_disk_is_reported(stage: &mut Stage<'_>) -> Result<String> {
    let small = stage.dir.join("small");
    fs::create_dir_all(&small)?;
    let cases = [("out", small.join("out"), None), ("cache", stage.dir.join("unused"), Some(small.join("cache")))];
    for (what, out, cache_dir) in cases {
        let said =
            build_on_small_disk(&small, &out, cache_dir.as_deref()).with_context(|| format!("a full {what} disk"))?;
        // Found out beforehand, or while writing.
        let named = said.contains("No space left on device") || said.contains("MiB free");
        ensure!(named, "on a full {what} disk it said: {said}");
        ensure!(!out.join("manifest.json").exists(), "a full {what} disk left a manifest");
    }
    let verify = Command::new(cache::program("image-build")?).arg("verify").arg(stage.appliance.image()).output()?;
    ensure!(
        verify.status.success(),
        "the image that was there is damaged: {}",
        String::from_utf8_lossy(&verify.stderr)
    );
    Ok("both disks are named as full, the image that was there is good".into())
}

/// Builds with a file system of 4 MiB at `small`, which only the build sees.
fn build_on_small_disk(small: &Path, out: &Path, cache_dir: Option<&Path>) -> Result<String> {
    let build = cache::program("image-build")?;
    let text = |path: &Path| path.to_string_lossy().into_owned();
    let mut script = format!("mount -t tmpfs -o size=4m tmpfs {} || exit 0; ", quoted(&text(small)));
    let mut arguments = vec![text(&build), "build".into(), "--out".into(), text(out)];
    if let Some(cache_dir) = cache_dir {
        // Everything but the kernel that is built is where it always is.
        let debian = text(&cache::cache()?.join("debian"));
        script += &format!("mkdir -p {0}; ln -s {1} {0}/debian; ", quoted(&text(cache_dir)), quoted(&debian));
        arguments.extend(["--cache".into(), text(cache_dir)]);
    }
    script += &arguments.iter().map(|argument| quoted(argument)).collect::<Vec<_>>().join(" ");
    let mut command = Command::new("unshare");
    command.args(["--mount", "sh", "-c", &script]).stdin(Stdio::null());
    fails_in_time(command)
}
