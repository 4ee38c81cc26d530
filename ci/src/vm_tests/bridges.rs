//! An appliance that enters the Tor network through a bridge: plainly, then by obfs4.
//!
//! It stands in a world of its own, with a capture of its own: to the others' capture a bridge would be a leak.

use std::{
    collections::BTreeSet,
    fs,
    net::SocketAddrV4,
    path::Path,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};

use super::{Stage, Tests};
use crate::{
    app_vm::{AppVm, Spec},
    cache,
    capture::{Capture, Report, Rules},
    netns::{self, Netns},
    origin,
    processes::{self, Lifetime},
    tor_network::bridge::Bridge,
    world::{World, appliance::Appliance},
};

pub(super) const TESTS: Tests = &[
    ("only_the_bridge_is_spoken_to", only_the_bridge_is_spoken_to),
    ("only_the_transport_speaks_to_the_bridge", only_the_transport_speaks),
];

const MINUTE: Duration = Duration::from_secs(60);

fn only_the_bridge_is_spoken_to(stage: &mut Stage<'_>) -> Result<String> {
    let scene = Scene::set(&stage.dir, "plain")?;
    let bridge = Bridge::start(&scene.world)?;
    let config = format!("bridges = [\"{}\"]\n", bridge.line());
    let (report, page) = scene.play(&config, |_| Ok(()))?;
    ensure!(report.others.is_empty(), "beside the bridge, there were {:?}", report.others);
    spoke_to(&report, bridge.plain)?;
    scene.is_secret(bridge.plain)?;
    Ok(format!("page in {} ms; {} packets, all of the bridge", page.as_millis(), report.allowed))
}

fn only_the_transport_speaks(stage: &mut Stage<'_>) -> Result<String> {
    let scene = Scene::set(&stage.dir, "obfs4")?;
    let bridge = Bridge::start(&scene.world)?;
    let program = cache::obfs4proxy()?;
    let line = bridge.obfs4_line()?;
    let config = format!("bridges = [\"{line}\"]\ntransports = {{ obfs4 = \"{}\" }}\n", program.display());
    let (report, page) = scene.play(&config, |appliance| {
        let before = appliance.pid("transport:obfs4")?;
        processes::signal(before, nix::sys::signal::Signal::SIGKILL);
        let end = Instant::now() + MINUTE;
        while appliance.pid("transport:obfs4").ok().is_none_or(|now| now == before) {
            ensure!(Instant::now() < end, "a transport that was killed is not started again");
            thread::sleep(Duration::from_millis(100));
        }
        Ok(())
    })?;
    // The uplink and obfs4proxy speak to each other over loopback, and only obfs4proxy to the bridge.
    let leaks: Vec<_> =
        report.others.keys().filter(|other| !other.starts_with("lo: TCP 127.0.0.1 to 127.0.0.1:")).collect();
    ensure!(leaks.is_empty(), "beside the bridge, there were {leaks:?}");
    spoke_to(&report, bridge.obfs4)?;
    scene.is_secret(bridge.obfs4)?;
    Ok(format!("page in {} ms after obfs4proxy was killed; only it spoke, to the bridge alone", page.as_millis()))
}

fn spoke_to(report: &Report, bridge: SocketAddrV4) -> Result<()> {
    ensure!(report.relays == BTreeSet::from([bridge]), "these were spoken to: {:?}", report.relays);
    Ok(())
}

/// A world, and where an appliance in it has its files.
struct Scene {
    world: World,
    dir: std::path::PathBuf,
}

impl Scene {
    fn set(dir: &Path, name: &str) -> Result<Scene> {
        let dir = dir.join(name);
        let _ = fs::remove_dir_all(&dir);
        fs::create_dir_all(&dir).with_context(|| format!("cannot create {}", dir.display()))?;
        Ok(Scene { world: World::in_namespaces(&dir)?, dir })
    }

    /// Starts an appliance so configured, fetches a page in a VM, lets `happen` happen and fetches it again; gives what was
    /// captured meanwhile, and how long the last page took.
    fn play(&self, config: &str, happen: impl FnOnce(&Appliance<'_>) -> Result<()>) -> Result<(Report, Duration)> {
        let host = self.world.host().context("the world has no namespaces")?;
        let file = self.dir.join("agent.toml");
        fs::write(&file, config)?;
        let capture = Capture::start(host, &self.dir, "all")?;
        let appliance = Appliance::new(&self.dir.join("a"), &self.world)?.configured(file);
        appliance.up().context("oht up")?;
        let status = appliance.status()?;
        ensure!(status["tor"]["bridges"] == 1, "the status knows of no bridge: {}", status["tor"]);
        let vm = self.vm(&appliance, host)?;
        self.fetch(&vm)?;
        happen(&appliance)?;
        let page = self.fetch(&vm)?;
        drop((vm, appliance));
        let own = netns::JOINED_SECOND;
        let bridge = self.world.addresses.bridge();
        let ports = [crate::world::addresses::OR_PORT, crate::world::addresses::OBFS4_PORT];
        let relays = ports.map(|port| SocketAddrV4::new(bridge, port)).into();
        Ok((capture.finish(&Rules { own, relays })?, page))
    }

    fn vm(&self, appliance: &Appliance<'_>, host: &Netns) -> Result<AppVm> {
        let vm = AppVm::start(Spec {
            name: "v",
            dir: &self.dir,
            attach: appliance.attach("v")?,
            disk: None,
            netns: Some(host),
            lifetime: Lifetime::Ours,
            ledger: &self.dir,
        })?;
        vm.lease(MINUTE)?;
        Ok(vm)
    }

    fn fetch(&self, vm: &AppVm) -> Result<Duration> {
        let url = format!("http://origin.test:{}/", self.world.addresses.origin().port());
        let hash = origin::sha256(&origin::page());
        let end = Instant::now() + 2 * MINUTE;
        loop {
            let answer = vm.run(&format!("timeout 20 wget -q -O - {url} | sha256sum"), MINUTE)?;
            if answer.output.starts_with(&hash) {
                return Ok(answer.time);
            }
            if Instant::now() > end {
                bail!("no page: {}", answer.output);
            }
            thread::sleep(Duration::from_secs(1));
        }
    }

    /// No log of the appliance names the bridge.
    fn is_secret(&self, bridge: SocketAddrV4) -> Result<()> {
        let secret = bridge.ip().to_string();
        for entry in fs::read_dir(self.dir.join("a/run"))?.flatten() {
            let path = entry.path();
            if path.extension().is_some_and(|extension| extension == "log") {
                let text = fs::read(&path)?;
                let text = String::from_utf8_lossy(&text);
                ensure!(!text.contains(&secret), "{} names the bridge", path.display());
            }
        }
        Ok(())
    }
}
