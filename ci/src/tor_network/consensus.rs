//! Asks an authority for the consensus, over its DirPort (dir-spec, section 4.2), and counts what is in it.

use std::{
    io::{Read as _, Write as _},
    net::{Ipv4Addr, SocketAddr, TcpStream},
    time::Duration,
};

use super::{EXITS, RELAYS};
use crate::world::addresses::DIR_PORT;

/// What an authority's consensus lists.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Seen {
    relays: usize,
    exits: usize,
    guards: usize,
    /// Relays with a measured bandwidth. Authorities never have one, and clients that see it for some do not use the rest.
    measured: usize,
}

impl Seen {
    /// Whether a client finds all it needs.
    pub(crate) fn is_complete(self) -> bool {
        self.relays >= RELAYS && self.exits >= EXITS && self.guards >= RELAYS && self.measured >= EXITS
    }

    fn count(consensus: &str) -> Seen {
        let mut seen = Seen::default();
        for line in consensus.lines() {
            let mut words = line.split(' ');
            match words.next() {
                Some("r") => seen.relays += 1,
                Some("s") => {
                    let flags: Vec<&str> = words.collect();
                    seen.exits += usize::from(flags.contains(&"Exit"));
                    seen.guards += usize::from(flags.contains(&"Guard"));
                }
                Some("w") if !line.contains("Unmeasured=1") && line != "w Bandwidth=0" => seen.measured += 1,
                _ => {}
            }
        }
        seen
    }
}

/// An authority that does not answer lists nothing.
pub(crate) fn look(authority: Ipv4Addr) -> Seen {
    fetch((authority, DIR_PORT).into()).map_or_else(|_| Seen::default(), |text| Seen::count(&text))
}

fn fetch(address: SocketAddr) -> std::io::Result<String> {
    let mut stream = TcpStream::connect_timeout(&address, TIMEOUT)?;
    stream.set_read_timeout(Some(TIMEOUT))?;
    stream.write_all(b"GET /tor/status-vote/current/consensus-microdesc HTTP/1.0\r\n\r\n")?;
    let mut answer = Vec::new();
    stream.take(BYTES_MAX).read_to_end(&mut answer)?;
    Ok(String::from_utf8_lossy(&answer).into_owned())
}

const TIMEOUT: Duration = Duration::from_secs(2);
/// Nine relays make some 5 kB.
const BYTES_MAX: u64 = 1 << 20;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_consensus_lists_is_counted() {
        let entry = "r a b c\ns Exit Fast Guard Running\nw Bandwidth=10000\n";
        assert!(!Seen::count(&entry.repeat(RELAYS - 1)).is_complete());
        assert!(Seen::count(&entry.repeat(RELAYS)).is_complete());
        assert!(!Seen::count(&entry.replace("Exit ", "").repeat(RELAYS)).is_complete());
        assert!(!Seen::count(&entry.replace("Guard ", "").repeat(RELAYS)).is_complete());
        assert!(!Seen::count(&entry.replace("10000", "20 Unmeasured=1").repeat(RELAYS)).is_complete());
        assert!(!Seen::count(&entry.replace("10000", "0").repeat(RELAYS)).is_complete());
    }
}
