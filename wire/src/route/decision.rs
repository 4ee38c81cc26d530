//! What is decided for one connection.

use std::{fmt, net::IpAddr, str::FromStr};

use super::{Action, Block, HostName, Ports, Problem, StreamOptions, TorOptions};

/// A host as the gateway knows it.
///
/// A name has to be one in the sense of [`HostName`]: it never reads as an address. Case and a final dot do not matter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Host<'a> {
    /// A name that the VM asked the gateway for.
    Name(&'a str),
    /// An address that the VM had from elsewhere.
    Address(IpAddr),
}

/// What is done with a connection: its action as far as it is about this host. Two connections of which this is equal
/// are treated alike.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict<'a> {
    /// Through Tor, to an exit and, if it says so, through a proxy.
    Tor(&'a TorOptions),
    /// Through Tor, to an onion service.
    Onion(StreamOptions),
    /// Not at all.
    Block(Block),
}

impl<'a> Verdict<'a> {
    /// What an action means for a host, which is an onion service or is not.
    pub(super) fn of(action: &'a Action, onion: bool) -> Verdict<'a> {
        match action {
            Action::Block(block) => Verdict::Block(*block),
            Action::Tor(tor) if onion => Verdict::Onion(tor.stream),
            Action::Tor(tor) => Verdict::Tor(tor),
            Action::OnionOnly(stream) if onion => Verdict::Onion(*stream),
            Action::OnionOnly(_) => Verdict::Block(Block::Reject),
        }
    }

    /// Whether a stream that was opened by this verdict may stay now that the verdict is another one. What is only of
    /// matter at the beginning, `optimistic` and `resolve`, may change.
    #[must_use]
    pub fn keeps(&self, now: &Verdict<'_>) -> bool {
        match (self, now) {
            (Verdict::Tor(a), Verdict::Tor(b)) => {
                (a.stream.isolate, &a.exit, &a.via) == (b.stream.isolate, &b.exit, &b.via)
            }
            (Verdict::Onion(a), Verdict::Onion(b)) => a.isolate == b.isolate,
            _ => false,
        }
    }
}

impl fmt::Display for Verdict<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Verdict::Tor(tor) => write!(f, "{}", Action::Tor((*tor).clone())),
            Verdict::Onion(stream) => write!(f, "tor{stream}, to the onion service"),
            Verdict::Block(block) => write!(f, "block {block}"),
        }
    }
}

/// Which line decides, and what.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Decision<'a> {
    /// The line's place among all that were compiled, from 0; `None` when no line matches.
    pub line: Option<usize>,
    /// What is done.
    pub verdict: Verdict<'a>,
}

/// Where a connection goes, as a person writes it: `example.org:443`, `192.0.2.1:80` or `[2001:db8::1]:80`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Destination {
    host: OwnedHost,
    port: u16,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum OwnedHost {
    Name(HostName),
    Address(IpAddr),
}

impl Destination {
    /// The host.
    #[must_use]
    pub fn host(&self) -> Host<'_> {
        match &self.host {
            OwnedHost::Name(name) => Host::Name(name.as_str()),
            OwnedHost::Address(address) => Host::Address(*address),
        }
    }

    /// The TCP port, never 0.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.port
    }
}

impl FromStr for Destination {
    type Err = Problem;

    fn from_str(text: &str) -> Result<Destination, Problem> {
        let (host, port) = text.rsplit_once(':').ok_or(Problem::Port)?;
        let ports: Ports = port.parse()?;
        let [(port, last)] = *ports.ranges() else { return Err(Problem::Port) };
        if port != last {
            return Err(Problem::Port);
        }
        let bracketed = host.strip_prefix('[').and_then(|host| host.strip_suffix(']'));
        let host = match (bracketed, host.parse::<IpAddr>()) {
            (Some(address), _) => OwnedHost::Address(address.parse().map_err(|_| Problem::Address)?),
            (None, Ok(IpAddr::V4(address))) => OwnedHost::Address(address.into()),
            (None, _) if host.contains(':') => return Err(Problem::Brackets),
            (None, _) => OwnedHost::Name(host.parse().map_err(Problem::Host)?),
        };
        Ok(Destination { host, port })
    }
}

#[cfg(test)]
mod tests;
