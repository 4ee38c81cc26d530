//! Real programs in a Debian guest, as their users run them. The guest is a VM of its own, with Debian's DHCP client,
//! and is started by the first of these tests. The last but one looks at what its NIC counted; the last one makes its
//! network bad, and ends it.
//!
//! Each test shows all that the program said when it fails. What a program fetches is compared with what was served, to
//! the last byte.

mod servers;

use std::time::Duration;

use anyhow::{Context as _, Result, anyhow, bail, ensure};

use super::{LEASE_TIME, Stage, Tests};
use crate::{
    app_vm::{Answer, AppVm, Disk, Spec, debian::Debian, shell::quoted},
    origin,
    processes::Lifetime,
};
use servers::{GIT_PORT, SSH_PORT, Servers};

pub(super) const TESTS: Tests = &[
    ("debian_boots_and_has_addresses", debian_boots_and_has_addresses),
    ("apt_updates_and_installs_from_a_mirror", apt_updates_and_installs_from_a_mirror),
    ("curl_fetches_over_ipv4_and_ipv6", curl_fetches_over_ipv4_and_ipv6),
    ("git_clones", git_clones),
    ("ssh_logs_in", ssh_logs_in),
    ("wget_fetches_1000_small_files", wget_fetches_1000_small_files),
    ("dig_asks_for_every_type", dig_asks_for_every_type),
    ("clocks_are_told_the_time", clocks_are_told_the_time),
    ("proxies_of_the_gateway_work", proxies_of_the_gateway_work),
    ("browsers_show_pages", browsers_show_pages),
    ("no_frame_of_the_programs_was_lost", no_frame_of_the_programs_was_lost),
    ("linux_tcp_gets_through_a_bad_network", linux_tcp_gets_through_a_bad_network),
];

const DEBIAN: Debian = Debian {
    name: "debian-guest",
    packages: &[
        "apt-utils",
        "bind9-dnsutils",
        "chromium-headless-shell",
        "chrony",
        "curl",
        "dhcpcd-base",
        "fonts-dejavu-core",
        "git",
        "gpg",
        "gpg-agent",
        "iproute2",
        "netbase",
        "openssh-client",
        "openssh-server",
        "rdate",
        "w3m",
        "wget",
    ],
    // The browser and what it brings: two thirds of everything.
    only_on_disk: &[
        "./usr/lib/chromium",
        "./usr/lib/*/dri",
        "./usr/lib/*/libLLVM*",
        "./usr/lib/*/libz3*",
        "./usr/lib/*/libicu*",
    ],
};
const VM: &str = "debian";
/// What the guest is told to have; it takes only what it touches.
const MEMORY_MIB: u32 = 1024;
/// What loses, repeats, delays and reorders packets in both directions (tc-netem(8)).
const BAD_NETWORK: [&str; 5] = ["sch_netem", "ifb", "sch_ingress", "cls_matchall", "act_mirred"];
/// Emulated, and beside everything else: what takes seconds on a quiet machine may take a minute.
const LIMIT: Duration = Duration::from_secs(180);

/// The guest and the servers for it.
pub(super) struct Guest {
    vm: AppVm,
    servers: Servers,
    /// The origin's, by name, without a path.
    url: String,
}

/// The guest, started by whoever asks first; who asks after it failed to start hears so at once.
fn guest<'a>(stage: &'a mut Stage<'_>) -> Result<&'a Guest> {
    if stage.debian.is_none() {
        stage.debian = Some(start(stage).map_err(|error| format!("{error:#}")));
    }
    match &stage.debian {
        Some(Ok(guest)) => Ok(guest),
        Some(Err(error)) => Err(anyhow!("the Debian guest did not start: {error}")),
        None => bail!("the Debian guest has ended"),
    }
}

fn start(stage: &Stage<'_>) -> Result<Guest> {
    let disk = DEBIAN.disk()?;
    let servers = Servers::start(&DEBIAN, &stage.dir, stage.world)?;
    let vm = AppVm::start(Spec {
        name: VM,
        dir: &stage.dir,
        attach: stage.appliance.attach_sized(VM, MEMORY_MIB)?,
        disk: Some(Disk { file: &disk, memory_mib: MEMORY_MIB, modules: &BAD_NETWORK }),
        netns: stage.world.host(),
        lifetime: Lifetime::Ours,
        ledger: &stage.dir,
    })?;
    stage.warm_up(&vm)?;
    Ok(Guest { vm, servers, url: stage.url("origin.test", "") })
}

impl Guest {
    fn run(&self, command: &str) -> Result<Answer> {
        self.vm.run(command, LIMIT)
    }

    /// What a script said that succeeded; it ends at its first command that fails.
    fn said(&self, script: &str) -> Result<String> {
        self.run(&format!("set -eu; {script}"))?.ok()
    }

    /// Puts a file into the guest.
    fn put(&self, path: &str, text: &str, mode: &str) -> Result<()> {
        self.said(&format!("printf %s {} >{path}; chmod {mode} {path}", quoted(text))).map(drop)
    }
}

/// A program and how long it took.
fn timed(what: &str, answer: Answer) -> Result<(String, String)> {
    let seconds = answer.time.as_secs_f64();
    Ok((answer.ok().with_context(|| what.to_owned())?, format!("{what} {seconds:.1} s")))
}

fn debian_boots_and_has_addresses(stage: &mut Stage<'_>) -> Result<String> {
    let guest = guest(stage)?;
    let (time, addresses) = guest.vm.lease(LEASE_TIME)?;
    ensure!(addresses.contains("10.0.2.15/24"), "dhcpcd got {addresses}");
    let servers = guest.said("cat /etc/resolv.conf")?;
    ensure!(servers.lines().any(|line| line == "nameserver 10.0.2.2"), "dhcpcd wrote {servers}");
    let release = guest.said(". /etc/os-release; echo $PRETTY_NAME, Linux $(uname -r)")?;
    let (boot_s, lease_s) = (guest.vm.boot_time.as_secs_f64(), time.as_secs_f64());
    Ok(format!("{}, booted in {boot_s:.1} s, dhcpcd done after {lease_s:.1} s", release.trim()))
}

fn apt_updates_and_installs_from_a_mirror(stage: &mut Stage<'_>) -> Result<String> {
    let guest = guest(stage)?;
    guest.put("/etc/apt/mirror.asc", &guest.servers.text("mirror.asc")?, "644")?;
    let line = format!("deb [signed-by=/etc/apt/mirror.asc] {}/www/debian private main\n", guest.url);
    guest.said("rm -rf /etc/apt/sources.list /etc/apt/sources.list.d/*")?;
    guest.put("/etc/apt/sources.list", &line, "644")?;
    let (said, update) = timed("apt-get update", guest.run("apt-get update 2>&1")?)?;
    ensure!(!said.contains("W:") && !said.contains("E:"), "apt-get update has complaints: {said}");
    let (_, install) = timed("install", guest.run("apt-get install -y from-the-mirror 2>&1")?)?;
    let hash = guest.said("sha256sum </usr/share/from-the-mirror")?;
    ensure!(hash == guest.servers.text("package.sha256")?, "the package's file is another one: {hash}");
    Ok(format!("{update}, {install}"))
}

fn curl_fetches_over_ipv4_and_ipv6(stage: &mut Stage<'_>) -> Result<String> {
    let guest = guest(stage)?;
    let page = origin::sha256(&origin::page());
    let mut seen = Vec::new();
    for version in ["-4", "-6"] {
        if version == "-6" {
            // An address of the router's prefix is used when no neighbour was found to have it.
            let ready = "ip -6 -oneline address show dev eth0 scope global -tentative | grep .";
            guest.said(&format!(
                "for i in $(seq 60); do {ready} && exit; sleep 0.5; done; ip -6 address; cat /tmp/.dhcpcd; exit 1"
            ))?;
        }
        let command =
            format!("set -e; curl {version} -sS -o page -w '%{{remote_ip}} ' {}/; sha256sum <page", guest.url);
        let (said, time) = timed(&format!("curl {version}"), guest.run(&command)?)?;
        ensure!(said.contains(&page), "curl {version} fetched another page: {said}");
        seen.push(format!("{time} ({})", said.split(' ').next().unwrap_or_default()));
    }
    Ok(seen.join(", "))
}

fn git_clones(stage: &mut Stage<'_>) -> Result<String> {
    let guest = guest(stage)?;
    let command = format!(
        "set -e; rm -rf clone; git clone -q git://origin.test:{GIT_PORT}/repository.git clone; cd clone; \
         git fsck --strict; git rev-parse HEAD"
    );
    let (said, time) = timed("git clone and fsck", guest.run(&command)?)?;
    ensure!(said.trim().ends_with(guest.servers.text("head")?.trim()), "HEAD is another one: {said}");
    Ok(time)
}

fn ssh_logs_in(stage: &mut Stage<'_>) -> Result<String> {
    let guest = guest(stage)?;
    guest.put("/root/key", &guest.servers.text("client_key")?, "600")?;
    let host_key = guest.servers.text("host_key.pub")?;
    guest.put("/root/hosts", &format!("[origin.test]:{SSH_PORT} {host_key}"), "600")?;
    let ssh =
        format!("ssh -i /root/key -o UserKnownHostsFile=/root/hosts -o BatchMode=yes -p {SSH_PORT} root@origin.test");
    let (said, login) = timed("ssh", guest.run(&format!("{ssh} 'echo as $(id -un); exit 7'; echo status $?"))?)?;
    ensure!(said == "as root\nstatus 7\n", "ssh said {said}");
    // Both directions at once, and the far end must see ours end.
    let command = format!("set -e; head -c 1000000 /dev/urandom >noise; {ssh} cat <noise | cmp - noise");
    let (_, echo) = timed("1 MB there and back", guest.run(&command)?)?;
    Ok(format!("{login}, {echo}"))
}

/// Half of them one connection a file, half of them on connections that are kept.
fn wget_fetches_1000_small_files(stage: &mut Stage<'_>) -> Result<String> {
    let guest = guest(stage)?;
    let retransmitted = "awk '/^Tcp:/ { n = $13 } END { print n }' /proc/net/snmp";
    let command = format!(
        "set -eu; rm -rf small; mkdir small; cd small; before=$({retransmitted}); \
         for part in 0 1 2 3 4 5 6 7; do \
           seq $((part * 125)) $((part * 125 + 124)) | sed 's,^,{}/small/,' >../list.$part; \
           keep=; [ $((part % 2)) = 0 ] || keep=--no-http-keep-alive; \
           wget -nv -t 3 --retry-connrefused -T 60 $keep -i ../list.$part -o ../log.$part || {{ tail -n 3 ../log.$part; touch ../failed; }} & \
         done; wait; [ ! -e ../failed ]; ls | wc -l; cat $(seq 0 999) | sha256sum; \
         echo $(($({retransmitted}) - before)); cat ../log.* | grep -c -e failed -e error || true",
        guest.url
    );
    let (said, time) = timed("1,000 files", guest.run(&command)?)?;
    let mut expected = Vec::new();
    (0..1000).for_each(|number| expected.extend(origin::small(number)));
    let lines: Vec<&str> = said.lines().collect();
    let [count, hash, retransmitted, tried_again] = lines[..] else { bail!("wget said {said}") };
    ensure!(count == "1000", "there are {count} files: {said}");
    ensure!(hash.starts_with(&origin::sha256(&expected)), "the files are other ones: {said}");
    Ok(format!("{time}, {tried_again} tried again, {retransmitted} segments retransmitted by the guest"))
}

fn dig_asks_for_every_type(stage: &mut Stage<'_>) -> Result<String> {
    let guest = guest(stage)?;
    let short = |question: &str| guest.said(&format!("dig -r +short +tries=1 +time=20 {question}"));
    let whole = |question: &str| guest.said(&format!("dig -r +tries=1 +time=20 {question}"));
    let a = short("origin.test A")?;
    ensure!(a.trim().parse().is_ok_and(|ip: std::net::Ipv4Addr| ip.octets()[0] == 10), "A: {a}");
    ensure!(short("+tcp origin.test A")? == a, "A over TCP is not {a}");
    ensure!(short(&format!("-x {a}"))? == "origin.test.\n", "PTR of {a}");
    let aaaa = short("origin.test AAAA")?;
    ensure!(aaaa.starts_with("fd6f:6874:2:"), "AAAA: {aaaa}");
    ensure!(short(&format!("-x {aaaa}"))? == "origin.test.\n", "PTR of {aaaa}");
    for question in ["origin.test TXT", "origin.test HTTPS", "+tcp origin.test HTTPS"] {
        let said = whole(question)?;
        let empty = said.contains("status: NOERROR") && said.contains("ANSWER: 0,");
        ensure!(empty, "{question} is not answered with no data: {said}");
    }
    let seen: Vec<&str> = [&a, &aaaa].map(|text| text.trim()).into();
    Ok(format!("{}; over TCP and back too; TXT and HTTPS have no data", seen.join(" and ")))
}

fn clocks_are_told_the_time(stage: &mut Stage<'_>) -> Result<String> {
    let guest = guest(stage)?;
    let said = guest.run("chronyd -Q -t 60 'server 10.0.2.2 iburst' 2>&1")?.ok().context("chronyd -Q")?;
    let wrong =
        said.split_once("System clock wrong by ").and_then(|(_, rest)| rest.split(' ').next()?.parse::<f64>().ok());
    let wrong = wrong.with_context(|| format!("chronyd -Q did not tell the time: {said}"))?;
    ensure!(wrong.abs() < CLOCK_S_MAX, "the gateway's clock is wrong by {wrong} s: {said}");
    let said = guest.said("told=$(rdate -p -u -o 37 10.0.2.2); date -d \"$told\" +%s; date +%s")?;
    let times: Vec<f64> = said.lines().filter_map(|line| line.parse().ok()).collect();
    ensure!(times.len() == 2 && (times[0] - times[1]).abs() < CLOCK_S_MAX, "rdate said {said}");
    Ok(format!("chronyd measured {wrong} s, rdate {} s", times[0] - times[1]))
}

/// All clocks are this machine's; what remains is how late an emulated machine looks at it.
const CLOCK_S_MAX: f64 = 10.0;

fn proxies_of_the_gateway_work(stage: &mut Stage<'_>) -> Result<String> {
    let onion = stage.world.tor.onion()?;
    let guest = guest(stage)?;
    let page = origin::sha256(&origin::page());
    let ways = [
        ("wget", format!("wget -q -t 1 -T 30 -O page http://{onion}/")),
        ("curl by SOCKS", format!("curl -sS -m 30 -o page --socks5-hostname 10.0.2.2:9050 http://{onion}/")),
        (
            "curl by HTTP CONNECT",
            format!("curl -sS -m 30 -o page --proxytunnel -x http://10.0.2.2:8118 {}/", guest.url),
        ),
    ];
    let mut seen = Vec::new();
    for (name, way) in ways {
        // A service's descriptor may not be where clients look for it yet.
        let command = format!("for i in $(seq 12); do rm -f page; {way} && exec sha256sum page; sleep 2; done; exit 1");
        let (said, time) = timed(name, guest.run(&command)?)?;
        ensure!(said.contains(&page), "{name} fetched another page: {said}");
        seen.push(time);
    }
    Ok(seen.join(", "))
}

fn browsers_show_pages(stage: &mut Stage<'_>) -> Result<String> {
    let guest = guest(stage)?;
    let (said, w3m) = timed("w3m", guest.run(&format!("w3m -dump {}/", guest.url))?)?;
    ensure!(said.contains("This page came through Tor"), "w3m shows {said}");
    let command = format!(
        "chromium-headless-shell --no-sandbox --disable-gpu --dump-dom {}/www/browser.html 2>chromium.log || tail -n 20 chromium.log",
        guest.url
    );
    let (said, chromium) = timed("Chromium", guest.run(&command)?)?;
    ensure!(said.contains(">20 scripts ran<"), "Chromium shows {said}");
    Ok(format!("{w3m}, {chromium} with 20 scripts"))
}

fn no_frame_of_the_programs_was_lost(stage: &mut Stage<'_>) -> Result<String> {
    let guest = guest(stage)?;
    let names = ["rx_packets", "tx_packets", "rx_dropped", "tx_dropped", "rx_errors", "tx_errors"];
    let said = guest.said(&format!("cd /sys/class/net/eth0/statistics; cat {}", names.join(" ")))?;
    let counts: Vec<u64> = said.lines().filter_map(|line| line.parse().ok()).collect();
    let seen: Vec<String> = names.iter().zip(&counts).map(|(name, count)| format!("{name} {count}")).collect();
    let seen = seen.join(", ");
    ensure!(counts.len() == names.len() && counts[2..].iter().all(|&count| count == 0), "eth0 counted {seen}");
    // A segment that came twice or out of order, or whose checksum was wrong, is none of the programs' doing.
    let Segments { retransmitted, bad } = guest.segments()?;
    ensure!(bad == 0, "{bad} segments were received in error");
    Ok(format!("{seen}, segments retransmitted {retransmitted}"))
}

/// In both directions, between the guest's TCP and its NIC. The guest sends one segment a frame, or two mebibytes would
/// be so few frames that often none of them is lost.
fn linux_tcp_gets_through_a_bad_network(stage: &mut Stage<'_>) -> Result<String> {
    let seen = guest(stage).and_then(|guest| {
        guest.said(
            "for module in $(cat /run/modules/more); do /run/busybox insmod /run/modules/$module.ko; done;
             ip link show ifb0 >/dev/null 2>&1 || ip link add ifb0 type ifb; ip link set ifb0 up;
             ip link set eth0 gso_max_segs 1;
             tc qdisc add dev eth0 ingress;
             tc filter add dev eth0 ingress matchall action mirred egress redirect dev ifb0",
        )?;
        let before = guest.segments()?.retransmitted;
        let mut seen = Vec::new();
        for (what, faults) in BAD_NETWORKS {
            guest.said(&format!(
                "for dev in eth0 ifb0; do tc qdisc replace dev $dev root netem limit 10000 {faults}; done"
            ))?;
            let hash = origin::file_sha256(BAD_NETWORK_MIB);
            let url = &guest.url;
            let down = format!("curl -sS -m 150 -o large {url}/file/{BAD_NETWORK_MIB} && sha256sum large");
            let up = format!("curl -sS -m 150 -T large {url}/upload");
            for (way, command) in [("down", down), ("up", up)] {
                let (said, time) = timed(way, guest.run(&command)?).with_context(|| what.to_owned())?;
                ensure!(said.contains(&hash), "{what}: {way}: the bytes are others: {said}");
                seen.push(format!("{what}: {time}"));
            }
        }
        let again = guest.segments()?.retransmitted - before;
        let (sent, received) = (guest.lost("eth0")?, guest.lost("ifb0")?);
        ensure!(
            sent > 0 && received > 0,
            "the network was not bad: it lost {sent} frames of the guest, {received} of ours"
        );
        ensure!(again > 0, "the guest sent nothing twice, though {sent} of its frames were lost");
        Ok(format!(
            "{}; lost {sent} frames of the guest and {received} of ours; it sent {again} again",
            seen.join(", ")
        ))
    });
    stage.debian = None;
    stage.appliance.oht(&["vm", "rm", VM])?;
    seen
}

/// What happens to each frame, each way.
const BAD_NETWORKS: [(&str, &str); 3] = [
    ("2 % lost", "delay 5ms loss 2%"),
    ("1 % lost in runs, 2 % doubled", "delay 5ms loss 1% 50% duplicate 2%"),
    ("10 % out of order", "delay 10ms reorder 10% 50%"),
];
const BAD_NETWORK_MIB: u64 = 2;

/// What the guest's TCP has counted.
struct Segments {
    retransmitted: u64,
    bad: u64,
}

impl Guest {
    fn segments(&self) -> Result<Segments> {
        let said = self.said("awk '/^Tcp:/ { print $13, $14 }' /proc/net/snmp | tail -n 1")?;
        let counts: Vec<u64> = said.split_whitespace().filter_map(|count| count.parse().ok()).collect();
        let &[retransmitted, bad] = &counts[..] else { bail!("/proc/net/snmp says {said}") };
        Ok(Segments { retransmitted, bad })
    }

    /// The frames that the first queueing discipline of a device has dropped.
    fn lost(&self, dev: &str) -> Result<u64> {
        let said = self.said(&format!("tc -s qdisc show dev {dev} root"))?;
        let (_, count) = said.split_once("(dropped ").with_context(|| format!("tc says {said}"))?;
        count.split(',').next().and_then(|count| count.parse().ok()).with_context(|| format!("tc says {said}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[ignore = "needs root, makes a Debian and boots a virtual machine: `cargo test -p ci -- --ignored`"]
    fn a_debian_without_a_nic_boots_and_keeps_nothing() {
        let disk = DEBIAN.disk().unwrap();
        for _ in 0..2 {
            let dir = tempfile::tempdir().unwrap();
            let vm = AppVm::start(Spec {
                name: "alone",
                dir: dir.path(),
                attach: Vec::new(),
                disk: Some(Disk { file: &disk, memory_mib: MEMORY_MIB, modules: &[] }),
                netns: None,
                lifetime: Lifetime::Ours,
                ledger: dir.path(),
            });
            let vm = vm.unwrap();
            vm.run("[ ! -e /kept ] && touch /kept", LIMIT).unwrap().ok().unwrap();
            let said = vm.run("for p in apt-get chromium-headless-shell sshd; do command -v $p; done", LIMIT).unwrap();
            assert_eq!(said.ok().unwrap().lines().count(), 3);
        }
    }
}
