//! libvirt: an ordinary user, who has an appliance and a libvirt session of its own, pastes what `oht vm attach --libvirt`
//! prints into a domain; it boots and fetches a page. What that user does is `libvirt.sh`; its agent is at the same time
//! the one that is tested without root.

use std::{
    fs,
    os::unix::fs::PermissionsExt as _,
    path::Path,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use nix::{sys::stat::Mode, unistd::mkfifo};

use super::{Stage, Tests};
use crate::{
    app_vm::Shell,
    cache, origin,
    processes::{Lifetime, Plan, Process},
};

pub(super) const TESTS: Tests = &[("libvirt_domain_fetches_a_page", libvirt_domain_fetches_a_page)];

const START_TIME: Duration = Duration::from_secs(180);
const MINUTE: Duration = Duration::from_secs(60);

fn libvirt_domain_fetches_a_page(stage: &mut Stage<'_>) -> Result<String> {
    let own = stage.dir.join("libvirt");
    let _ = fs::remove_dir_all(&own);
    fs::create_dir(&own).with_context(|| format!("cannot create {}", own.display()))?;
    fs::set_permissions(&own, fs::Permissions::from_mode(0o755))?;
    let alive = own.join("alive");
    mkfifo(&alive, Mode::S_IRUSR | Mode::S_IWUSR).context("cannot make a FIFO")?;
    // For reading too, so that this does not wait for the script. It ends when this is closed, however we end.
    let held = fs::File::options().read(true).write(true).open(&alive)?;
    let mut user = start(stage, &own)?;
    let outcome = fetch(stage, &own, &mut user);
    drop(held);
    let end = Instant::now() + MINUTE / 2;
    while user.exited().is_none() && Instant::now() < end {
        thread::sleep(Duration::from_millis(20));
    }
    outcome
}

fn start(stage: &Stage<'_>, own: &Path) -> Result<Process> {
    let script = own.join("libvirt.sh");
    fs::write(&script, include_str!("libvirt.sh"))?;
    let directory = |tool: &str| cache::tool(tool).map(|path| path.parent().map(Path::to_owned).unwrap_or(path));
    let paths = [
        script,
        cache::libvirt()?,
        cache::programs()?,
        directory("vhost-device-vsock")?,
        directory("virtiofsd")?,
        stage.appliance.image().to_owned(),
        stage.world.tor.description(),
        cache::cloud_kernel()?,
        stage.dir.join("app-vm.cpio"),
        own.to_owned(),
    ];
    let namespaces = ["unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc", "--", "sh"];
    let paths = paths.iter().map(|path| path.to_string_lossy().into_owned());
    let plan = Plan {
        name: "libvirt-user".into(),
        argv: namespaces.into_iter().map(String::from).chain(paths).collect(),
        log: stage.dir.join("libvirt.log"),
        netns: stage.world.host(),
        lifetime: Lifetime::Ours,
        ledger: stage.dir.clone(),
    };
    plan.spawn()
}

fn fetch(stage: &Stage<'_>, own: &Path, user: &mut Process) -> Result<String> {
    let end = Instant::now() + START_TIME;
    while !own.join("started").exists() {
        user.failure().map_or(Ok(()), Err)?;
        ensure!(Instant::now() < end, "the domain was not started in time: {}", user.last_words());
        thread::sleep(Duration::from_millis(50));
    }
    let started = Instant::now();
    let shell = Shell::connect(&own.join("shell"), || user.failure().map_or(Ok(()), Err))?;
    shell.event("lease", started + 2 * MINUTE).with_context(|| format!("the user saw: {}", user.last_words()))?;
    let hash = origin::sha256(&origin::page());
    let command = format!("timeout 20 wget -q -O - {} | sha256sum", stage.page_url());
    let end = Instant::now() + 2 * MINUTE;
    // Right after the start, exits sometimes refuse a stream.
    let answer = loop {
        let answer = shell.run(&command, MINUTE)?;
        if answer.output.starts_with(&hash) {
            break answer;
        }
        ensure!(Instant::now() < end, "no page: {}", answer.output);
        thread::sleep(Duration::from_secs(1));
    };
    let mtu = shell.run("cat /sys/class/net/eth0/mtu", MINUTE)?.ok()?;
    ensure!(mtu.trim() == "4000", "the VM's interface has the MTU {mtu}");
    let version = fs::read_to_string(own.join("started"))?;
    let using = version.lines().find_map(|line| line.strip_prefix("Using library: ")).unwrap_or("libvirt");
    Ok(format!("{using}, as nobody, page in {} ms", answer.time.as_millis()))
}
