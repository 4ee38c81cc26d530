//! `guest-init --self-test`: what of PID 1 works outside of a VM, as an ordinary user, under QEMU user mode too.
//!
//! The image's smoke test runs it out of the unpacked image. One line a check; exit status 1 when one failed.

use std::{fs, io::Write as _, os::unix::net::UnixStream, path::PathBuf, process::ExitCode, time::Duration};

use wire::{
    control::{self, FromInit, ToInit},
    hello::{Hello, Role},
};

use crate::{
    control::{Control, News},
    machine::{Action, Event, Machine},
    manifest::{Manifest, sample_json},
    system,
};

type Check = (&'static str, fn() -> Result<String, String>);

const CHECKS: [Check; 4] = [
    ("manifest", manifest_finds_unfinished_files),
    ("control", messages_cross_a_socket),
    ("randomness", randomness_is_there),
    ("restart", restarts_are_delayed),
];

/// Runs every check.
pub(crate) fn run() -> ExitCode {
    let mut failed = 0;
    for (name, check) in CHECKS {
        match check() {
            Ok(seen) => println!("ok {name}: {seen}"),
            Err(why) => {
                println!("FAILED {name}: {why}");
                failed += 1;
            }
        }
    }
    if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn manifest_finds_unfinished_files() -> Result<String, String> {
    let dir = TemporaryDir::new()?;
    let say = |error: std::io::Error| error.to_string();
    let content = vec![7; 200_000];
    fs::write(dir.0.join("manifest"), sample_json("program", &content)).map_err(say)?;
    let manifest = Manifest::read(&dir.0.join("manifest")).map_err(|error| error.to_string())?;
    let mut unfinished = content.clone();
    unfinished[199_999] = 0;
    let cases: [(&[u8], bool); 3] = [(&content, true), (&content[..150_000], false), (&unfinished, false)];
    for (bytes, whole) in cases {
        fs::write(dir.0.join("program"), bytes).map_err(say)?;
        let checked = manifest.check(&dir.0, "program");
        if checked.is_ok() != whole {
            return Err(format!("{} bytes of 200000 are judged {checked:?}", bytes.len()));
        }
    }
    Ok("a whole file passes; a short one and one with a blank end do not".into())
}

fn messages_cross_a_socket() -> Result<String, String> {
    let (ours, mut agent) = UnixStream::pair().map_err(|error| error.to_string())?;
    let mut control = Control::over(ours.into());
    let provision = ToInit::Provision { unix_time_ns: 1 };
    let greeting = Hello::new(Role::Agent).encode();
    let message = control::encode(&provision).map_err(|error| error.to_string())?;
    agent.write_all(&[greeting, message].concat()).map_err(|error| error.to_string())?;
    let news = [control.advance(Duration::ZERO), control.advance(Duration::ZERO)];
    if news != [Some(News::Connected), Some(News::Message(provision))] {
        return Err(format!("hello and message became {news:?}"));
    }
    control.send(&FromInit::PoweringOff);
    control.advance(Duration::ZERO);
    drop(control);
    let mut bytes = Vec::new();
    std::io::Read::read_to_end(&mut agent, &mut bytes).map_err(|error| error.to_string())?;
    match control::decode::<FromInit>(bytes.get(Hello::new(Role::Init).encode().len()..).unwrap_or_default()) {
        Ok(Some((FromInit::PoweringOff, _))) => Ok("hello and messages crossed both ways".into()),
        other => Err(format!("the report became {other:?}")),
    }
}

fn randomness_is_there() -> Result<String, String> {
    let began = std::time::Instant::now();
    let mut two = [[0; 32]; 2];
    for bytes in &mut two {
        let mut source = fs::File::open("/dev/urandom").map_err(|error| error.to_string())?;
        std::io::Read::read_exact(&mut source, bytes).map_err(|error| error.to_string())?;
    }
    if two[0] == two[1] || two[0] == [0; 32] {
        return Err("the same 32 bytes twice".into());
    }
    Ok(format!("two different draws of 32 bytes in {} ms", began.elapsed().as_millis()))
}

fn restarts_are_delayed() -> Result<String, String> {
    let mut machine = Machine::new(false);
    let mut now = Duration::ZERO;
    let mut delays = vec![];
    let begin = [Event::Booted, Event::StateMounted, Event::Message(ToInit::Provision { unix_time_ns: 0 })];
    begin.into_iter().for_each(|event| machine.handle(event, now));
    for _ in 0..8 {
        machine.handle(Event::ProgramStarted, now);
        machine.handle(Event::ProgramEnded("test".into()), now);
        let due = machine.deadline().ok_or("an ended program is not started again")?;
        delays.push(u64::try_from(due.saturating_sub(now).as_millis()).unwrap_or(u64::MAX));
        now = due;
        machine.handle(Event::Tick, now);
    }
    let started = std::iter::from_fn(|| machine.next_action()).filter(|action| *action == Action::StartProgram).count();
    if delays != [100, 200, 400, 800, 1600, 3200, 5000, 5000] || started != 9 {
        return Err(format!("delays {delays:?}, {started} starts"));
    }
    let (total, available) = system::memory_kib(&fs::read_to_string("/proc/meminfo").unwrap_or_default());
    Ok(format!("delays {delays:?} ms; memory {total} KiB, {available} available"))
}

/// A directory of its own that goes away with it.
struct TemporaryDir(PathBuf);

impl TemporaryDir {
    fn new() -> Result<TemporaryDir, String> {
        let path = std::env::temp_dir().join(format!("guest-init-self-test.{}", std::process::id()));
        fs::create_dir(&path).map_err(|error| format!("cannot make {}: {error}", path.display()))?;
        Ok(TemporaryDir(path))
    }
}

impl Drop for TemporaryDir {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}
