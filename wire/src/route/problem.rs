//! What can be wrong with a route. Shown to the person who wrote it.

use std::{fmt, net::IpAddr, sync::Arc};

use super::{COUNTRIES_MAX, HostName, HostNameError, LINE_BYTES_MAX, PORT_RANGES_MAX, Prefix, ROUTES_MAX};
use crate::vm_name::VmNameError;

/// What is wrong with one word of a line, or with the line.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Problem {
    /// More than [`LINE_BYTES_MAX`] bytes.
    #[error("a line has at most {LINE_BYTES_MAX} bytes")]
    LineTooLong,
    /// More than [`ROUTES_MAX`] routes.
    #[error("there are at most {ROUTES_MAX} routes")]
    TooMany,
    /// Nothing where one route is asked for, or more than one line.
    #[error("expected one line with a source, a target and an action")]
    NotOne,
    /// The line ends after the source.
    #[error("the line ends before its target: write a name, .name, an address, a prefix, :port, or * for all")]
    NoTarget,
    /// The line ends after the target.
    #[error("the line ends before its action: write tor, onion-only, via or block")]
    NoAction,
    /// An action where the target should be.
    #[error("this is an action, expected a target before it: write * for all")]
    ActionForTarget,
    /// No source.
    #[error("expected a VM's name, one with * for any characters, or * for all VMs ({0})")]
    Source(VmNameError),
    /// No name.
    #[error("expected a name, .name, an address, a prefix, :port or * ({0})")]
    Host(HostNameError),
    /// `*.name`.
    #[error("*.name is ambiguous; did you mean .{0}, which is {0} and all names below it?")]
    Wildcard(HostName),
    /// No address.
    #[error("expected an IPv4 or IPv6 address")]
    Address,
    /// A length of a prefix that is none.
    #[error("expected a prefix length of 0 to {0} after the slash")]
    PrefixBits(u8),
    /// Bits behind the prefix are set.
    #[error("bits are set behind the prefix's length; did you mean {0}?")]
    HostBits(Prefix),
    /// IPv4 in IPv6.
    #[error("an IPv4 address is written as such; did you mean {0}?")]
    Mapped(IpAddr),
    /// Brackets that do not fit.
    #[error("expected [address]:ports or [prefix]:ports for IPv6, such as [2001:db8::/32]:443")]
    Brackets,
    /// No port.
    #[error("expected ports of 1 to 65535, such as 443, 22,80 or 8000-8100")]
    Port,
    /// No range, or too many.
    #[error("expected 1 to {PORT_RANGES_MAX} ports or ranges of ports")]
    PortCount,
    /// A word that is neither an action nor an option.
    #[error("expected an action (tor, onion-only, via, block) or an option (isolate=, exit=, exit!=, optimistic, \
             resolve){}", guess(.0))]
    Word(Option<&'static str>),
    /// A value of `isolate=` that is none.
    #[error("expected isolate=vm, isolate=destination or isolate=credential{}", guess(.0))]
    Isolation(Option<&'static str>),
    /// A word after `block` that is none.
    #[error("expected nothing, reject or drop after block{}", guess(.0))]
    Block(Option<&'static str>),
    /// No country.
    #[error("expected countries of two letters (ISO 3166-1), such as CH or CH,DE")]
    Country,
    /// No country, or too many.
    #[error("expected 1 to {COUNTRIES_MAX} countries")]
    CountryCount,
    /// A country twice.
    #[error("{0} is there twice")]
    CountryTwice(super::Country),
    /// `via` at the end of the line.
    #[error("expected a proxy after via, such as socks5://proxy.example:1080")]
    NoHop,
    /// Another protocol than SOCKS5.
    #[error("expected socks5://host:port: SOCKS5 is the only kind of proxy that can follow Tor")]
    HopScheme,
    /// No port.
    #[error("expected the proxy's port, 1 to 65535, at the end: socks5://host:port")]
    HopPort,
    /// A login that RFC 1929 does not allow, or that is no text.
    #[error("expected user:password before the @, 1 to 255 bytes each, other signs than letters and digits as %XX")]
    HopLogin,
    /// The same thing said again.
    #[error("{0} is there already")]
    Twice(&'static str),
    /// Two words of an action that exclude each other.
    #[error("this cannot go with {0}")]
    Excludes(&'static str),
    /// The parts are good, and together make no sense.
    #[error(transparent)]
    Conflict(#[from] Conflict),
}

/// Why a target and an action make no route.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Conflict {
    /// `exit=` for onion services.
    #[error("there is no exit on the way to an onion service: leave exit out")]
    ExitToOnion,
    /// `via` for onion services.
    #[error("an onion service is not reached through a proxy: leave via out")]
    ViaToOnion,
    /// `resolve` for onion services.
    #[error("onion services have no addresses: leave resolve out")]
    ResolveOnion,
    /// `exit=` for a proxy that is an onion service.
    #[error("there is no exit on the way to a proxy that is an onion service: leave exit out")]
    ExitToOnionHop,
    /// `resolve` for addresses.
    #[error("an address needs no resolving: leave resolve out, or let the line be for names")]
    ResolveAddress,
    /// `resolve` for some ports.
    #[error("a DNS question has no port: leave the ports or resolve out")]
    ResolvePorts,
    /// `onion-only` where there are none.
    #[error("no onion service is among these targets: write block, or * as the target")]
    OnionOnly,
}

fn guess(near: &Option<&'static str>) -> String {
    near.map(|near| format!("; did you mean {near}?")).unwrap_or_default()
}

/// The one of some words that somebody who wrote `word` may have meant.
pub(super) fn nearest<'a>(word: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let distances = known.into_iter().map(|known| (strsim::osa_distance(&word.to_lowercase(), known), known));
    let (distance, nearest) = distances.min()?;
    (distance <= 2 && distance * 2 < nearest.len()).then_some(nearest)
}

/// What is wrong, and where.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub struct ParseError {
    /// The file, or what else the text is called.
    pub file: Arc<str>,
    /// The line, from 1.
    pub line: u32,
    /// The column at which the word begins, in characters from 1.
    pub column: u32,
    /// The word, shortened, and without what could be a password; empty at the end of a line.
    pub word: String,
    /// What is wrong with it.
    pub problem: Problem,
}

impl fmt::Display for ParseError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}:{}: ", self.file, self.line, self.column)?;
        match self.word.is_empty() {
            true => write!(f, "{}", self.problem),
            false => write!(f, "{:?}: {}", self.word, self.problem),
        }
    }
}

/// A word as it may be shown: short, and without the login of a URL. A password in the wrong place is still one: nothing
/// before an `@`, and nothing behind `://` without one, is shown.
pub(super) fn shown(word: &str) -> String {
    let word = match (word.split_once("://"), word.rsplit_once('@')) {
        (Some((scheme, _)), Some((_, place))) => format!("{scheme}://…@{place}"),
        (None, Some((_, place))) => format!("…@{place}"),
        (Some((scheme, _)), None) => format!("{scheme}://…"),
        (None, None) => word.to_owned(),
    };
    match word.char_indices().nth(WORD_CHARS_MAX) {
        Some((end, _)) => format!("{}…", &word[..end]),
        None => word,
    }
}

/// Characters of a word that are shown.
const WORD_CHARS_MAX: usize = 64;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn guesses_are_near() {
        let known = ["tor", "optimistic", "resolve", "isolate="];
        for (word, guess) in [
            ("Tor", Some("tor")),
            ("tro", Some("tor")),
            ("optimisitc", Some("optimistic")),
            ("block", None),
            ("t", None),
            ("", None),
        ] {
            assert_eq!(nearest(word, known), guess, "{word}");
        }
    }

    #[test]
    fn no_password_is_shown() {
        for (word, expected) in [
            ("socks5://alice:hunter2@h:0", "socks5://…@h:0"),
            ("alice:hunter2@h:0", "…@h:0"),
            ("socks5://alice:hunter2", "socks5://…"),
            ("socks5://alice:hun@ter2@h", "socks5://…@h"),
            ("example.org", "example.org"),
        ] {
            assert_eq!(shown(word), expected);
        }
        assert_eq!(shown(&"ü".repeat(100)), format!("{}…", "ü".repeat(64)));
    }
}
