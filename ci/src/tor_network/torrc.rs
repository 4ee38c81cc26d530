//! The configuration of every node: torrc files, the bandwidth file, the exits' resolv.conf.

use std::{fs, net::Ipv4Addr, os::unix::fs::DirBuilderExt as _, path::Path, time::SystemTime};

use anyhow::{Context as _, Result};

use super::{CLIENTS, ONION_HOST, Relay, client_name};
use crate::world::addresses::{Addresses, DIR_PORT, OBFS4_PORT, OR_PORT};

/// Seconds between votes. Clients and relays take a new consensus as often.
const VOTING_INTERVAL_S: u64 = 20;
/// C tor derives an onion service's time period (minutes) in a testing network so; arti reads it from the consensus.
const HSDIR_INTERVAL_MIN: u64 = 24 * VOTING_INTERVAL_S / 60;

/// Writes everything that the nodes need beside their keys.
pub(crate) fn write_all(nodes: &Path, addresses: &Addresses, relays: &[Relay]) -> Result<()> {
    let authorities = dir_authorities(relays);
    for relay in relays {
        let dir = nodes.join(&relay.nickname);
        let role = if relay.v3ident.is_some() { authority(nodes, relay.address) } else { exit(nodes) };
        let text = common(&dir) + &relay_part(&relay.nickname, relay.address) + &role + &authorities;
        write(&dir.join("torrc"), &text)?;
    }
    for index in 0..CLIENTS {
        let dir = nodes.join(client_name(index));
        fs::DirBuilder::new().mode(0o700).create(&dir).with_context(|| format!("cannot create {}", dir.display()))?;
        write(&dir.join("torrc"), &(common(&dir) + &client(&dir, addresses, index) + &authorities))?;
    }
    write(&nodes.join("resolv.conf"), &resolv_conf(addresses))?;
    write(&nodes.join("bandwidths"), &bandwidths(relays))
}

/// The configuration of a bridge, which is in no consensus; it speaks plainly and by `obfs4proxy`.
pub(crate) fn for_bridge(dir: &Path, address: Ipv4Addr, relays: &[Relay], obfs4proxy: &Path) -> String {
    let bridge = format!(
        "BridgeRelay 1\nPublishServerDescriptor 0\nBridgeDistribution none\nExitPolicy reject *:*\nExtORPort auto\n\
         ServerTransportPlugin obfs4 exec {}\nServerTransportListenAddr obfs4 {address}:{OBFS4_PORT}\n",
        obfs4proxy.display()
    );
    common(dir) + &relay_part("bridge", address) + &bridge + &dir_authorities(relays)
}

/// Enough for `tor --list-fingerprint`, which in a testing network insists on an authority: any will do.
pub(crate) fn for_keys(dir: &Path, nickname: &str, address: Ipv4Addr) -> String {
    let nobody = format!("DirAuthority x orport=1 v3ident={0} 127.0.0.1:1 {0}\n", "0".repeat(39) + "1");
    common(dir) + &relay_part(nickname, address) + &nobody
}

fn common(dir: &Path) -> String {
    let dir = dir.display();
    format!(
        "TestingTorNetwork 1\nDataDirectory {dir}\nLog notice file {dir}/notice.log\nSafeLogging 0\n\
         ShutdownWaitLength 0\nDisableDebuggerAttachment 0\n"
    )
}

fn relay_part(nickname: &str, address: Ipv4Addr) -> String {
    // The outgoing address tells the origin which exit it was.
    format!(
        "Nickname {nickname}\nAddress {address}\nORPort {address}:{OR_PORT}\nAssumeReachable 1\n\
         OutboundBindAddress {address}\nSocksPort 0\nContactInfo none@invalid\n"
    )
}

fn authority(nodes: &Path, address: Ipv4Addr) -> String {
    // With more valid intervals than three, clients live on stale consensuses and onion services vanish.
    format!(
        "DirPort {address}:{DIR_PORT}\nAuthoritativeDirectory 1\nV3AuthoritativeDirectory 1\n\
         V3AuthVotingInterval {VOTING_INTERVAL_S}\nV3AuthVoteDelay 2\nV3AuthDistDelay 2\nV3AuthNIntervalsValid 3\n\
         TestingV3AuthInitialVotingInterval 5\nTestingV3AuthInitialVoteDelay 2\nTestingV3AuthInitialDistDelay 2\n\
         TestingDirAuthVoteGuard *\nTestingDirAuthVoteHSDir *\nConsensusParams hsdir_interval={HSDIR_INTERVAL_MIN}\n\
         V3BandwidthsFile {}\nExitPolicy reject *:*\n",
        nodes.join("bandwidths").display()
    )
}

fn exit(nodes: &Path) -> String {
    format!(
        "ExitRelay 1\nExitPolicyRejectPrivate 0\nExitPolicy accept *:*\nServerDNSResolvConfFile {}\n\
         ServerDNSDetectHijacking 0\nServerDNSAllowBrokenConfig 1\nServerDNSTestAddresses\n",
        nodes.join("resolv.conf").display()
    )
}

fn client(dir: &Path, addresses: &Addresses, index: usize) -> String {
    let mut text = format!("SocksPort {}\n", addresses.socks(index));
    if index == ONION_HOST {
        let onion = dir.join("onion");
        text += &format!("HiddenServiceDir {}\nHiddenServicePort 80 {}\n", onion.display(), addresses.origin());
    }
    text
}

fn dir_authorities(relays: &[Relay]) -> String {
    let line = |relay: &Relay| {
        let v3ident = relay.v3ident.as_ref()?;
        let Relay { nickname, address, rsa, .. } = relay;
        Some(format!("DirAuthority {nickname} orport={OR_PORT} v3ident={v3ident} {address}:{DIR_PORT} {rsa}\n"))
    };
    relays.iter().filter_map(line).collect()
}

fn resolv_conf(addresses: &Addresses) -> String {
    format!("nameserver {}\n", addresses.dns())
}

/// Bandwidths for the vote (bandwidth-file-spec, version 1.0.0): without them the relays' weights are zero.
fn bandwidths(relays: &[Relay]) -> String {
    let now_s = SystemTime::UNIX_EPOCH.elapsed().map_or(0, |since| since.as_secs());
    let line = |relay: &Relay| format!("node_id=${} bw=10000 nick={}\n", relay.rsa, relay.nickname);
    format!("{now_s}\n") + &relays.iter().map(line).collect::<String>()
}

fn write(path: &Path, text: &str) -> Result<()> {
    fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))
}
