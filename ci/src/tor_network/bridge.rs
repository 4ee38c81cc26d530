//! A bridge beside the network: C tor's, in no consensus, reached plainly or by Debian's obfs4proxy.

use std::{
    fs,
    net::SocketAddrV4,
    os::unix::fs::DirBuilderExt as _,
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};

use super::{keys, start_tor, torrc};
use crate::{
    cache,
    processes::{Lifetime, Process},
    tor_network::Options,
    world::{
        World,
        addresses::{OBFS4_PORT, OR_PORT},
    },
};

const START_TIME: Duration = Duration::from_secs(60);

/// A bridge that runs; dropping it ends it.
#[derive(Debug)]
pub(crate) struct Bridge {
    dir: PathBuf,
    rsa: String,
    /// Where it is reached plainly.
    pub(crate) plain: SocketAddrV4,
    /// Where it speaks obfs4.
    pub(crate) obfs4: SocketAddrV4,
    process: Process,
}

impl Bridge {
    /// Starts the bridge of a world, and waits until it knows the network.
    ///
    /// # Errors
    /// When a program is missing or fails, or it does not come up in time.
    pub(crate) fn start(world: &World) -> Result<Bridge> {
        let dir = world.dir().join("nodes/bridge");
        fs::DirBuilder::new().mode(0o700).create(&dir).context("cannot create the bridge's directory")?;
        let address = world.addresses.bridge();
        let config = dir.join("torrc.keys");
        fs::write(&config, torrc::for_keys(&dir, "bridge", address)).context("cannot write a torrc")?;
        let rsa = keys::fingerprint(&config, None)?;
        let text = torrc::for_bridge(&dir, address, &world.tor.relays, &cache::obfs4proxy()?);
        fs::write(dir.join("torrc"), text).context("cannot write a torrc")?;
        let netns = world.namespaces.as_ref().map(|both| &both.tor);
        let (addresses, lifetime) = (world.addresses, Lifetime::Ours);
        let options = Options { dir: world.dir().to_owned(), addresses, netns, lifetime };
        let process = start_tor(&dir, "bridge".into(), &options)?;
        let at = |port| SocketAddrV4::new(address, port);
        let mut bridge = Bridge { dir, rsa, plain: at(OR_PORT), obfs4: at(OBFS4_PORT), process };
        bridge.wait()?;
        Ok(bridge)
    }

    /// Its line, without a transport.
    pub(crate) fn line(&self) -> String {
        format!("Bridge {} {}", self.plain, self.rsa)
    }

    /// Its line with obfs4, whose certificate obfs4proxy has made.
    ///
    /// # Errors
    /// When obfs4proxy has made none.
    pub(crate) fn obfs4_line(&self) -> Result<String> {
        let file = self.dir.join("pt_state/obfs4_bridgeline.txt");
        let text = fs::read_to_string(&file).with_context(|| format!("cannot read {}", file.display()))?;
        let certificate = text.split_ascii_whitespace().find(|word| word.starts_with("cert="));
        let certificate = certificate.context("obfs4proxy has made no certificate")?;
        Ok(format!("obfs4 {} {} {certificate} iat-mode=0", self.obfs4, self.rsa))
    }

    fn wait(&mut self) -> Result<()> {
        let end = Instant::now() + START_TIME;
        while !is_up(&self.dir) {
            if let Some(failure) = self.process.failure() {
                return Err(failure.context("the bridge failed"));
            }
            if Instant::now() > end {
                bail!("the bridge does not come up; see {}", self.dir.join("notice.log").display());
            }
            thread::sleep(Duration::from_millis(50));
        }
        Ok(())
    }
}

fn is_up(dir: &Path) -> bool {
    let log = fs::read_to_string(dir.join("notice.log")).unwrap_or_default();
    log.contains("Bootstrapped 100%") && log.contains("Registered server transport 'obfs4'")
}
