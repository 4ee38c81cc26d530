//! The peer: a gateway VM as Whonix has it, with Debian's stock kernel, nftables and C tor (`gateway.sh`), and the
//! application VM behind it.
//!
//! ```text
//!  namespace "host"                                                            namespace "tor"
//!  application VM ── tap ── bridge ── tap ── gateway VM ── tap ── routed ── wire ── relays
//! ```
//!
//! Everything is as is best for the peer: taps carry checksums and segmentation as offloads from kernel to kernel (QEMU's
//! `dgram` network over AF_UNIX does not, and took some percent more CPU time), the kernel serves the rings where it has
//! vhost-net, packets are routed outward without address translation, and the gateway VM's memory is not shared with
//! anybody. All of this is gone with the namespaces.

use std::{fs, path::Path, time::SystemTime};

use anyhow::{Context as _, Result};

use super::super::PATIENCE;
use crate::{
    app_vm::{AppVm, Disk, Spec, debian::Debian, shell::quoted},
    netns::{JOINED_SECOND, Netns},
    processes::Lifetime,
    world::{Namespaces, World},
};

/// What a gateway VM of Whonix's has that matters here.
const DEBIAN: Debian = Debian { name: "debian-gateway", packages: &["iproute2", "nftables", "tor"], only_on_disk: &[] };

/// What the rules of `gateway.sh` need of the kernel.
const MODULES: [&str; 4] = ["nf_tables", "nft_chain_nat", "nft_ct", "nft_redir"];

/// Enough: C tor takes 30 MiB on this network.
const MEMORY_MIB: u32 = 512;

/// The gateway VM and the application VM behind it; dropping it ends both.
#[derive(Debug)]
pub(super) struct Peer {
    /// The application VM.
    pub(super) app: AppVm,
    /// The gateway VM.
    pub(super) gateway: AppVm,
}

impl Peer {
    /// Starts both, with files in `dir`, and waits until the gateway's tor has a circuit and the application VM an
    /// address.
    ///
    /// # Errors
    /// When the Debian cannot be made, or one of the VMs does not come up.
    pub(super) fn start(dir: &Path, world: &World) -> Result<Peer> {
        let namespaces = world.namespaces.as_ref().context("the peer needs a world in namespaces")?;
        let disk = DEBIAN.disk()?;
        lay_cables(namespaces)?;
        let vm = |name, taps: &[&str], disk| {
            let attach = taps.iter().enumerate().flat_map(|(index, tap)| nic(index, tap)).collect();
            let netns = Some(&namespaces.host);
            AppVm::start(Spec { name, dir, attach, disk, netns, lifetime: Lifetime::Ours, ledger: dir })
        };
        let disk = Disk { file: &disk, memory_mib: MEMORY_MIB, modules: &MODULES };
        let gateway = vm("peer-gateway", &[OUTSIDE, INSIDE], Some(disk))?;
        let now = SystemTime::UNIX_EPOCH.elapsed().unwrap_or_default().as_secs();
        let torrc = world.dir().join("nodes/client0/torrc");
        let torrc = fs::read_to_string(&torrc).with_context(|| format!("cannot read {}", torrc.display()))?;
        let script = format!("NOW={now}\nTORRC={}\n{}", quoted(&torrc), include_str!("gateway.sh"));
        gateway.run(&script, PATIENCE)?.ok().context("the gateway VM is no gateway")?;
        let app = vm("peer-app", &[APPLICATION], None)?;
        app.lease(PATIENCE).context("the VM behind the gateway VM gets no address")?;
        Ok(Peer { app, gateway })
    }
}

const OUTSIDE: &str = "outside";
const INSIDE: &str = "inside";
const APPLICATION: &str = "application";

/// Makes the taps: two of them on a bridge to which nothing else belongs, as libvirt's isolated networks are, and one
/// from which the way to the relays is routed.
fn lay_cables(Namespaces { tor, host }: &Namespaces) -> Result<()> {
    let tap = |name| format!("tuntap add {name} mode tap\nlink set {name} up\n");
    host.ip(&[OUTSIDE, INSIDE, APPLICATION].map(tap).concat())?;
    host.ip(&format!(
        "link add isolated type bridge\nlink set isolated up\nlink set {INSIDE} master isolated\n\
         link set {APPLICATION} master isolated\naddr add 10.19.1.1/24 dev {OUTSIDE}\n"
    ))?;
    forward(host)?;
    tor.ip(&format!("route add 10.19.1.0/24 via {JOINED_SECOND}\n"))
}

fn forward(netns: &Netns) -> Result<()> {
    netns.run(|| fs::write("/proc/sys/net/ipv4/ip_forward", "1"))?.context("cannot let packets be forwarded")
}

/// QEMU's arguments for a NIC at a tap.
fn nic(index: usize, tap: &str) -> [String; 4] {
    let vhost = if Path::new("/dev/vhost-net").exists() { "on" } else { "off" };
    [
        "-netdev".into(),
        format!("tap,id=net{index},ifname={tap},script=no,downscript=no,vhost={vhost}"),
        "-device".into(),
        format!("virtio-net-pci,netdev=net{index},mac=52:54:00:12:34:{index:02x}"),
    ]
}
