//! What a line is about.

use std::{fmt, net::IpAddr, str::FromStr};

use serde::{Deserialize, Serialize};

use super::{Host, HostName, Ports, Prefix, Problem};

/// Hosts and ports.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Target {
    /// The hosts.
    pub place: Place,
    /// The ports.
    pub ports: Ports,
}

/// Hosts.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Place {
    /// Every name and every address.
    Any,
    /// One name.
    Name(HostName),
    /// A name and all names below it.
    Suffix(HostName),
    /// Addresses; never a name, whatever its addresses are.
    Prefix(Prefix),
}

impl Place {
    /// Whether a host is one of these.
    #[must_use]
    pub fn contains(&self, host: Host<'_>) -> bool {
        match (self, host) {
            (Place::Any, _) => true,
            (Place::Name(name), Host::Name(host)) => name.as_str() == host,
            (Place::Suffix(name), Host::Name(host)) => {
                host.strip_suffix(name.as_str()).is_some_and(|rest| rest.is_empty() || rest.ends_with('.'))
            }
            (Place::Prefix(prefix), Host::Address(address)) => prefix.contains(address),
            _ => false,
        }
    }

    /// Whether these are onion services and nothing else.
    #[must_use]
    pub fn is_onion(&self) -> bool {
        match self {
            Place::Name(name) => name.is_onion(),
            // The name `onion` itself is nothing, so it is no exception.
            Place::Suffix(name) => name.is_onion() || name.as_str() == "onion",
            Place::Any | Place::Prefix(_) => false,
        }
    }

    /// Every place that is known from its form to cover this one: itself and wider ones.
    pub(super) fn ancestry(&self) -> Vec<Place> {
        let suffixes = |name: &HostName| name.ancestry().map(Place::Suffix).collect::<Vec<_>>();
        let mut places = match self {
            Place::Any => vec![],
            Place::Name(name) => [vec![self.clone()], suffixes(name)].concat(),
            Place::Suffix(name) => suffixes(name),
            Place::Prefix(prefix) => prefix.ancestry().map(Place::Prefix).collect(),
        };
        places.push(Place::Any);
        places
    }
}

impl FromStr for Target {
    type Err = Problem;

    fn from_str(text: &str) -> Result<Target, Problem> {
        if let Some(rest) = text.strip_prefix('[') {
            return bracketed(rest);
        }
        // More than one colon: IPv6, to which ports can only be written in brackets.
        if text.bytes().filter(|&b| b == b':').count() > 1 {
            let place = text.parse().map(Place::Prefix);
            let place = place.map_err(|problem| if problem == Problem::Address { Problem::Brackets } else { problem });
            return Ok(Target { place: place?, ports: Ports::all() });
        }
        let (place, ports) = match text.split_once(':') {
            Some((place, ports)) => (place, ports.parse()?),
            None => (text, Ports::all()),
        };
        match place {
            "" if text.is_empty() => Err(Problem::NoTarget),
            "" | "*" => Ok(Target { place: Place::Any, ports }),
            _ => Ok(Target { place: place.parse()?, ports }),
        }
    }
}

fn bracketed(rest: &str) -> Result<Target, Problem> {
    let (prefix, behind) = rest.split_once(']').ok_or(Problem::Brackets)?;
    let prefix: Prefix = prefix.parse()?;
    if prefix.parts().0.is_ipv4() {
        return Err(Problem::Brackets);
    }
    let ports = match behind.strip_prefix(':') {
        Some(ports) => ports.parse()?,
        None if behind.is_empty() => Ports::all(),
        None => return Err(Problem::Brackets),
    };
    Ok(Target { place: Place::Prefix(prefix), ports })
}

impl FromStr for Place {
    type Err = Problem;

    fn from_str(text: &str) -> Result<Place, Problem> {
        let name = |text: &str| text.parse::<HostName>().map_err(Problem::Host);
        if let Some(below) = text.strip_prefix("*.") {
            let below = name(below)?;
            return if below.as_str() == "onion" { Ok(Place::Suffix(below)) } else { Err(Problem::Wildcard(below)) };
        }
        if let Some(below) = text.strip_prefix('.') {
            return name(below).map(Place::Suffix);
        }
        if text.contains('/') || text.parse::<IpAddr>().is_ok() {
            return text.parse().map(Place::Prefix);
        }
        name(text).map(Place::Name)
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let is_ipv6 = matches!(&self.place, Place::Prefix(prefix) if prefix.parts().0.is_ipv6());
        match (self.ports.is_all(), is_ipv6) {
            (true, _) => write!(f, "{}", self.place),
            (false, true) => write!(f, "[{}]:{}", self.place, self.ports),
            (false, false) => write!(f, "{}:{}", self.place, self.ports),
        }
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Place::Any => f.write_str("*"),
            Place::Name(name) => write!(f, "{name}"),
            Place::Suffix(name) => write!(f, ".{name}"),
            Place::Prefix(prefix) => write!(f, "{prefix}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn targets_are_read_and_written() {
        for (text, written) in [
            ("*", "*"),
            (":443", "*:443"),
            ("*:443", "*:443"),
            ("Example.org", "example.org"),
            ("example.org:80,22", "example.org:22,80"),
            (".example.org:1-1024", ".example.org:1-1024"),
            ("*.onion", ".onion"),
            (".onion:80", ".onion:80"),
            ("Bücher.example", "xn--bcher-kva.example"),
            ("192.0.2.1", "192.0.2.1"),
            ("192.0.2.1/32:80", "192.0.2.1:80"),
            ("192.0.2.0/24:80", "192.0.2.0/24:80"),
            ("2001:db8::1", "2001:db8::1"),
            ("[2001:db8::1]", "2001:db8::1"),
            ("[2001:DB8::/32]:443", "[2001:db8::/32]:443"),
            ("2001:db8::/32", "2001:db8::/32"),
            // Ambiguous to the eye: an address, of which the last part is no port.
            ("2001:db8::1:443", "2001:db8::1:443"),
            ("example.org:1-65535", "example.org"),
        ] {
            let target: Target = text.parse().unwrap();
            assert_eq!(target.to_string(), written);
            assert_eq!(written.parse(), Ok(target));
        }
    }

    #[test]
    fn what_is_no_target_says_why() {
        for (text, expected) in [
            ("", "the line ends before its target"),
            ("*.example.org", "did you mean .example.org,"),
            ("1.2.3", "ends in a number"),
            ("300.1.2.3", "ends in a number"),
            ("1.2.3.4/40", "0 to 32"),
            ("1.2.3.4/8", "did you mean 1.0.0.0/8?"),
            ("example.org/8", "expected an IPv4 or IPv6 address"),
            ("http://example.org", "expected ports"),
            ("example.org:", "expected ports"),
            ("example.org:0", "expected ports of 1 to 65535"),
            ("2001:db8::1:80-90", "expected [address]:ports"),
            ("[2001:db8::1", "expected [address]:ports"),
            ("[2001:db8::1]443", "expected [address]:ports"),
            ("[2001:db8::]/32:443", "expected [address]:ports"),
            ("[1.2.3.4]:80", "expected [address]:ports"),
            ("::ffff:1.2.3.4", "did you mean 1.2.3.4?"),
            ("ex*mple.org", "'*' cannot be part"),
            ("..", "empty part"),
        ] {
            let problem = text.parse::<Target>().unwrap_err().to_string();
            assert!(problem.contains(expected), "{text}: {problem}");
        }
    }

    #[test]
    fn a_suffix_is_the_name_and_what_is_below_it() {
        let place: Place = ".example.org".parse().unwrap();
        for (host, inside) in [
            ("example.org", true),
            ("www.example.org", true),
            ("a.b.example.org", true),
            ("badexample.org", false),
            ("org", false),
            ("example.org.evil", false),
        ] {
            assert_eq!(place.contains(Host::Name(host)), inside, "{host}");
        }
    }
}
