//! What crosses the interfaces of a namespace, and whether it may.
//!
//! `tcpdump` writes every packet of every interface, `lo` too, to a file; this module reads it. Allowed is TCP between
//! the namespace's own address and a relay's ORPort, on the wire, and nothing else: no ARP (the neighbours are written
//! down), no IPv6, no DNS, nothing on `lo`. A capture that the kernel dropped packets from proves nothing and fails.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    net::{Ipv4Addr, SocketAddrV4},
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};

use crate::{
    netns::Netns,
    processes::{Lifetime, Plan, Process},
};

/// Enough for the capture's own header, IPv4 with options, and the ports.
const PACKET_BYTES: &str = "128";
const BUFFER_KIB: &str = "65536";
const START_TIME: Duration = Duration::from_secs(10);

/// A capture that goes on.
#[derive(Debug)]
pub(crate) struct Capture {
    tcpdump: Process,
    file: PathBuf,
    log: PathBuf,
}

/// Which packets may be there.
#[derive(Clone, Debug)]
pub(crate) struct Rules {
    /// The namespace's own address.
    pub(crate) own: Ipv4Addr,
    /// The relays' ORPorts.
    pub(crate) relays: BTreeSet<SocketAddrV4>,
}

/// What a capture has.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Report {
    /// Packets between the own address and relays.
    pub(crate) allowed: u64,
    /// The relays that were spoken to.
    pub(crate) relays: BTreeSet<SocketAddrV4>,
    /// All other packets: what they are, and how many.
    pub(crate) others: BTreeMap<String, u64>,
}

impl Capture {
    /// Starts; what happens after the return is in the capture.
    ///
    /// # Errors
    /// When `tcpdump` is missing or may not capture.
    pub(crate) fn start(netns: &Netns, dir: &Path, name: &str) -> Result<Capture> {
        let file = dir.join(format!("{name}.pcap"));
        let log = dir.join(format!("{name}.tcpdump.log"));
        let path = file.to_string_lossy().into_owned();
        let argv =
            ["tcpdump", "-i", "any", "-n", "-U", "-Z", "root", "-s", PACKET_BYTES, "-B", BUFFER_KIB, "-w", &path];
        let mut tcpdump = Plan {
            name: "tcpdump".into(),
            argv: argv.map(String::from).into(),
            log: log.clone(),
            netns: Some(netns),
            lifetime: Lifetime::Ours,
            ledger: dir.to_owned(),
        }
        .spawn()?;
        let end = Instant::now() + START_TIME;
        while !fs::read_to_string(&log).unwrap_or_default().contains("listening on") {
            if let Some(failure) = tcpdump.failure() {
                return Err(failure);
            }
            if Instant::now() > end {
                bail!("tcpdump does not start; see {}", log.display());
            }
            thread::sleep(Duration::from_millis(10));
        }
        Ok(Capture { tcpdump, file, log })
    }

    /// Ends the capture and judges what is in it.
    ///
    /// # Errors
    /// When the capture is incomplete or not one.
    pub(crate) fn finish(mut self, rules: &Rules) -> Result<Report> {
        self.tcpdump.finish();
        let said = fs::read_to_string(&self.log).unwrap_or_default();
        if !said.contains("\n0 packets dropped by kernel") {
            bail!("the capture is not complete: {}", said.trim());
        }
        let bytes = fs::read(&self.file).with_context(|| format!("cannot read {}", self.file.display()))?;
        judge(&bytes, rules).with_context(|| format!("{} is no capture", self.file.display()))
    }
}

/// Judges the packets of a capture file (pcap, little-endian, link type `LINUX_SLL2`).
fn judge(file: &[u8], rules: &Rules) -> Result<Report> {
    let number = |at: usize| file.get(at..at + 4).and_then(|b| b.try_into().ok()).map(u32::from_le_bytes);
    if number(0) != Some(PCAP_MAGIC) || number(20) != Some(LINKTYPE_LINUX_SLL2) {
        bail!("its header is not the one of a capture of all interfaces");
    }
    let mut report = Report::default();
    let mut at = PCAP_HEADER_BYTES;
    while at < file.len() {
        let bytes = number(at + 8).context("the last packet is cut")? as usize;
        at += PCAP_PACKET_HEADER_BYTES;
        report.add(file.get(at..at + bytes).context("the last packet is cut")?, rules);
        at += bytes;
    }
    Ok(report)
}

// https://www.ietf.org/archive/id/draft-ietf-opsawg-pcap-04.html, https://www.tcpdump.org/linktypes/LINKTYPE_LINUX_SLL2
const PCAP_MAGIC: u32 = 0xa1b2_c3d4;
const PCAP_HEADER_BYTES: usize = 24;
const PCAP_PACKET_HEADER_BYTES: usize = 16;
const LINKTYPE_LINUX_SLL2: u32 = 276;
const SLL2_BYTES: usize = 20;
const ARPHRD_LOOPBACK: u16 = 772;
const ETHERTYPE_IPV4: u16 = 0x0800;
const PROTOCOL_TCP: u8 = 6;

impl Report {
    fn add(&mut self, packet: &[u8], rules: &Rules) {
        match allowed(packet, rules) {
            Some(relay) => {
                self.allowed += 1;
                self.relays.insert(relay);
            }
            None => *self.others.entry(describe(packet)).or_default() += 1,
        }
    }
}

fn word(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_be_bytes(bytes.get(at..at + 2)?.try_into().ok()?))
}

fn on_loopback(packet: &[u8]) -> bool {
    word(packet, 8) == Some(ARPHRD_LOOPBACK)
}

/// Source and destination of a TCP segment that is a whole one or the first fragment.
fn tcp(packet: &[u8]) -> Option<(SocketAddrV4, SocketAddrV4)> {
    let ip = packet.get(SLL2_BYTES..)?;
    if word(packet, 0)? != ETHERTYPE_IPV4 || *ip.get(9)? != PROTOCOL_TCP || word(ip, 6)? & 0x1fff != 0 {
        return None;
    }
    let segment = ip.get(usize::from(ip[0] & 15) * 4..)?;
    let address = |at: usize| ip.get(at..at + 4).and_then(|b| <[u8; 4]>::try_from(b).ok()).map(Ipv4Addr::from);
    Some((SocketAddrV4::new(address(12)?, word(segment, 0)?), SocketAddrV4::new(address(16)?, word(segment, 2)?)))
}

/// The relay that an allowed packet comes from or goes to.
fn allowed(packet: &[u8], rules: &Rules) -> Option<SocketAddrV4> {
    let (from, to) = tcp(packet).filter(|_| !on_loopback(packet))?;
    let relay = |own: SocketAddrV4, other: SocketAddrV4| {
        (*own.ip() == rules.own && rules.relays.contains(&other)).then_some(other)
    };
    relay(from, to).or_else(|| relay(to, from))
}

fn describe(packet: &[u8]) -> String {
    let place = if on_loopback(packet) { "lo" } else { "wire" };
    let ip = packet.get(SLL2_BYTES..).unwrap_or_default();
    let address = |at: usize| {
        ip.get(at..at + 4).map_or_else(String::new, |b| b.iter().map(u8::to_string).collect::<Vec<_>>().join("."))
    };
    match (word(packet, 0), tcp(packet)) {
        (_, Some((from, to))) => format!("{place}: TCP {} to {to}", from.ip()),
        (Some(ETHERTYPE_IPV4), None) => {
            let port = word(ip, usize::from(ip.first().unwrap_or(&0) & 15) * 4 + 2).unwrap_or(0);
            let protocol = match ip.get(9) {
                Some(17) => format!("UDP to port {port}"),
                Some(1) => "ICMP".into(),
                other => format!("IP protocol {}", other.unwrap_or(&0)),
            };
            format!("{place}: {protocol}, {} to {}", address(12), address(16))
        }
        (kind, None) => format!("{place}: ethertype {:#06x}", kind.unwrap_or(0)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rules() -> Rules {
        Rules { own: Ipv4Addr::new(10, 19, 0, 2), relays: BTreeSet::from(["10.20.0.1:5000".parse().unwrap()]) }
    }

    fn packet(arphrd: u16, protocol: u8, from: &str, to: &str) -> Vec<u8> {
        let (from, to): (SocketAddrV4, SocketAddrV4) = (from.parse().unwrap(), to.parse().unwrap());
        let mut packet = vec![0x08, 0, 0, 0, 0, 0, 0, 2];
        packet.extend_from_slice(&arphrd.to_be_bytes());
        packet.resize(SLL2_BYTES, 0);
        packet.extend_from_slice(&[0x45, 0, 0, 40, 0, 0, 0x40, 0, 64, protocol, 0, 0]);
        packet.extend_from_slice(&from.ip().octets());
        packet.extend_from_slice(&to.ip().octets());
        packet.extend_from_slice(&from.port().to_be_bytes());
        packet.extend_from_slice(&to.port().to_be_bytes());
        packet
    }

    fn capture(packets: &[Vec<u8>]) -> Vec<u8> {
        let mut file = Vec::new();
        for number in [PCAP_MAGIC, 0x0004_0002, 0, 0, 128, LINKTYPE_LINUX_SLL2] {
            file.extend_from_slice(&number.to_le_bytes());
        }
        for packet in packets {
            let bytes = u32::try_from(packet.len()).unwrap();
            for number in [0, 0, bytes, bytes] {
                file.extend_from_slice(&number.to_le_bytes());
            }
            file.extend_from_slice(packet);
        }
        file
    }

    #[test]
    fn relays_are_allowed_in_both_directions() {
        let there = packet(1, 6, "10.19.0.2:4000", "10.20.0.1:5000");
        let back = packet(1, 6, "10.20.0.1:5000", "10.19.0.2:4000");
        let report = judge(&capture(&[there, back]), &rules()).unwrap();
        assert_eq!((report.allowed, report.others.len()), (2, 0));
    }

    #[test]
    fn everything_else_is_named() {
        let arp = [&[0x08, 0x06][..], &[0; 30]].concat();
        let leaks = [
            (packet(1, 6, "10.19.0.2:4000", "10.20.0.1:7000"), "wire: TCP 10.19.0.2 to 10.20.0.1:7000"),
            (packet(1, 6, "10.19.0.3:4000", "10.20.0.1:5000"), "wire: TCP 10.19.0.3 to 10.20.0.1:5000"),
            (packet(1, 17, "10.19.0.2:4000", "9.9.9.9:53"), "wire: UDP to port 53, 10.19.0.2 to 9.9.9.9"),
            (packet(1, 1, "10.19.0.2:1", "9.9.9.9:1"), "wire: ICMP, 10.19.0.2 to 9.9.9.9"),
            (packet(772, 6, "10.19.0.2:4000", "10.20.0.1:5000"), "lo: TCP 10.19.0.2 to 10.20.0.1:5000"),
            (arp, "wire: ethertype 0x0806"),
            (vec![0x86, 0xdd], "wire: ethertype 0x86dd"),
            (vec![], "wire: ethertype 0x0000"),
        ];
        for (leak, name) in leaks {
            let report = judge(&capture(&[leak]), &rules()).unwrap();
            assert_eq!(report.others, BTreeMap::from([(name.to_owned(), 1)]));
            assert_eq!(report.allowed, 0);
        }
    }

    #[test]
    fn a_cut_capture_is_an_error() {
        let whole = capture(&[packet(1, 6, "10.19.0.2:4000", "10.20.0.1:5000")]);
        for cut in (0..whole.len()).filter(|&cut| cut != PCAP_HEADER_BYTES) {
            assert!(judge(&whole[..cut], &rules()).is_err(), "{cut}");
        }
    }
}
