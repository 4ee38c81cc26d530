//! A set of TCP ports.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};

use super::Problem;

/// How many separate ranges a set may have.
pub const PORT_RANGES_MAX: usize = 64;

/// TCP ports, never 0 and never none: ranges with both ends, in order, with a gap between any two.
///
/// Written `443`, `1024-2048` or `22,80,8000-8100`; all ports are not written at all.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "Vec<(u16, u16)>", into = "Vec<(u16, u16)>")]
pub struct Ports(Vec<(u16, u16)>);

impl Ports {
    /// Every port, 1 to 65,535.
    #[must_use]
    pub fn all() -> Ports {
        Ports(vec![(1, u16::MAX)])
    }

    /// Whether these are all ports.
    #[must_use]
    pub fn is_all(&self) -> bool {
        self.0 == [(1, u16::MAX)]
    }

    /// Whether a port is among them.
    #[must_use]
    pub fn contains(&self, port: u16) -> bool {
        self.0.iter().any(|&(first, last)| (first..=last).contains(&port))
    }

    /// The ranges: first and last port of each.
    #[must_use]
    pub fn ranges(&self) -> &[(u16, u16)] {
        &self.0
    }

    /// Whether every port of the other set is in this one.
    #[must_use]
    pub fn covers(&self, other: &Ports) -> bool {
        // Ranges are merged, so one of the other's is within one of these or not covered at all.
        let covered = |&(first, last): &(u16, u16)| self.0.iter().any(|range| range.0 <= first && last <= range.1);
        other.0.iter().all(covered)
    }

    /// Whether some port is in both sets.
    pub(super) fn meets(&self, other: &Ports) -> bool {
        self.0.iter().any(|a| other.0.iter().any(|b| a.0 <= b.1 && b.0 <= a.1))
    }

    /// The ports of either set. It may have more ranges than can be written: it is for reasoning about sets.
    pub(super) fn union(&self, other: &Ports) -> Ports {
        Ports(merged([self.ranges(), other.ranges()].concat()))
    }
}

/// Ranges in order, those that touch made one.
fn merged(mut ranges: Vec<(u16, u16)>) -> Vec<(u16, u16)> {
    ranges.sort_unstable();
    let mut merged: Vec<(u16, u16)> = Vec::with_capacity(ranges.len());
    for (first, last) in ranges {
        match merged.last_mut() {
            Some(before) if first <= before.1.saturating_add(1) => before.1 = before.1.max(last),
            _ => merged.push((first, last)),
        }
    }
    merged
}

impl TryFrom<Vec<(u16, u16)>> for Ports {
    type Error = Problem;

    fn try_from(ranges: Vec<(u16, u16)>) -> Result<Ports, Problem> {
        if ranges.is_empty() || ranges.len() > PORT_RANGES_MAX {
            return Err(Problem::PortCount);
        }
        if ranges.iter().any(|(first, last)| *first == 0 || first > last) {
            return Err(Problem::Port);
        }
        Ok(Ports(merged(ranges)))
    }
}

impl From<Ports> for Vec<(u16, u16)> {
    fn from(ports: Ports) -> Vec<(u16, u16)> {
        ports.0
    }
}

impl FromStr for Ports {
    type Err = Problem;

    fn from_str(text: &str) -> Result<Ports, Problem> {
        let port = |text: &str| -> Result<u16, Problem> {
            let digits = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
            if digits { text.parse().map_err(|_| Problem::Port) } else { Err(Problem::Port) }
        };
        let range = |text: &str| match text.split_once('-') {
            Some((first, last)) => Ok((port(first)?, port(last)?)),
            None => port(text).map(|port| (port, port)),
        };
        let ranges: Vec<_> = text.split(',').take(PORT_RANGES_MAX + 1).map(range).collect::<Result<_, _>>()?;
        Ports::try_from(ranges)
    }
}

impl fmt::Display for Ports {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, (first, last)) in self.0.iter().enumerate() {
            let comma = if at == 0 { "" } else { "," };
            match first == last {
                true => write!(f, "{comma}{first}")?,
                false => write!(f, "{comma}{first}-{last}")?,
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ports(text: &str) -> Ports {
        text.parse().unwrap()
    }

    #[test]
    fn what_means_the_same_is_the_same() {
        for (text, printed) in [
            ("443", "443"),
            ("443,22,80", "22,80,443"),
            ("80,80", "80"),
            ("80,81", "80-81"),
            ("1-10,5-20,21,30-30", "1-21,30"),
            ("65535,1-65534", "1-65535"),
        ] {
            assert_eq!(ports(text).to_string(), printed);
            assert_eq!(ports(printed), ports(text));
        }
        assert!(ports("1-65535").is_all());
    }

    #[test]
    fn what_is_no_set_of_ports_is_refused() {
        for text in ["", "0", "0-5", "5-4", "65536", "80,", ",80", "-", "1-", "-1", "+80", "1-2-3", "http", " 80"] {
            assert_eq!(text.parse::<Ports>(), Err(Problem::Port), "{text:?}");
        }
        let many: Vec<String> = (1..=65).map(|port| (port * 2).to_string()).collect();
        assert_eq!(many.join(",").parse::<Ports>(), Err(Problem::PortCount));
        assert!(many[1..].join(",").parse::<Ports>().is_ok());
        for json in ["[]", "[[0,1]]", "[[2,1]]", "[[1,65536]]", "[1]"] {
            assert!(serde_json::from_str::<Ports>(json).is_err(), "{json}");
        }
    }

    #[test]
    fn sets_cover_and_unite() {
        assert!(ports("1-100").covers(&ports("1,50-60,100")));
        assert!(!ports("1-50,52-100").covers(&ports("50-52")));
        assert!(ports("1-50").union(&ports("51-100")).covers(&ports("50-52")));
        assert!(Ports::all().covers(&ports("65535")) && !ports("2-65535").covers(&Ports::all()));
        assert!(ports("1-5,9").meets(&ports("9-12")) && !ports("1-5,9").meets(&ports("6-8,10")));
        assert!(ports("22,80").contains(80) && !ports("22,80").contains(79) && !Ports::all().contains(0));
    }
}
