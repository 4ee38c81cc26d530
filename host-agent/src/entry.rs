//! How the Tor network is entered, out of the settings: bridge lines, programs of pluggable transports, vanguards.
//!
//! A bridge's address is a secret. So a line is text until the settings are complete, an error tells a line by its number
//! and not by what stands in it, and nothing here shows one to a log.

use std::{
    collections::BTreeMap,
    convert::Infallible,
    fmt,
    path::{Path, PathBuf},
    str::FromStr,
};

use serde::Deserialize;
use wire::{
    bridge::{BridgeError, Transport},
    entry::{BRIDGES_MAX, TorEntry, Vanguards},
};

/// A bridge line as a person has written it.
#[derive(Clone, PartialEq, Eq, Deserialize)]
#[serde(transparent)]
pub struct BridgeText(String);

/// Why the Tor network cannot be entered so.
#[derive(Debug, thiserror::Error)]
pub enum EntryError {
    /// A line that is wrong.
    #[error("bridge line {line} is wrong")]
    Bridge {
        /// Which one, from 1.
        line: usize,
        /// Why.
        source: BridgeError,
    },
    /// More than there may be.
    #[error("there are {0} bridges, and may be {BRIDGES_MAX}: leave some out")]
    Bridges(usize),
    /// A key in `transports` that names none.
    #[error("{name:?} in transports is no name of a transport")]
    Transport {
        /// The key.
        name: String,
        /// Why not.
        source: BridgeError,
    },
    /// A program that is not where it should be.
    #[error("the program of transport {name}, {program}, must be a path that begins with /")]
    Relative {
        /// The transport.
        name: Transport,
        /// The path.
        program: PathBuf,
    },
    /// A transport without a program.
    #[error(
        "a bridge needs the transport {0}, and no program is given for it: add `transports = {{ {0} = \"/usr/bin/…\" }}` to \
         the configuration file"
    )]
    NoProgram(Transport),
}

/// Reads the lines.
///
/// # Errors
/// When one is wrong, or there are too many.
pub fn read(lines: &[BridgeText], vanguards: Vanguards) -> Result<TorEntry, EntryError> {
    if lines.len() > BRIDGES_MAX {
        return Err(EntryError::Bridges(lines.len()));
    }
    let numbered = (1..).zip(lines);
    let bridge =
        |(line, text): (usize, &BridgeText)| text.0.parse().map_err(|source| EntryError::Bridge { line, source });
    Ok(TorEntry { bridges: numbered.map(bridge).collect::<Result<_, _>>()?, vanguards })
}

/// The programs of the transports that the bridges need, out of those that are given.
///
/// # Errors
/// When one is missing, or what is given names no transport or no program.
pub fn transports(
    entry: &TorEntry,
    given: &BTreeMap<String, PathBuf>,
) -> Result<BTreeMap<Transport, PathBuf>, EntryError> {
    let mut known = BTreeMap::new();
    for (name, program) in given {
        let name: Transport = name.parse().map_err(|source| EntryError::Transport { name: name.clone(), source })?;
        if !Path::new(program).is_absolute() {
            return Err(EntryError::Relative { name, program: program.clone() });
        }
        known.insert(name, program.clone());
    }
    let needed = entry.stand_ins().into_keys();
    needed
        .map(|name| known.remove(&name).map(|program| (name.clone(), program)).ok_or(EntryError::NoProgram(name)))
        .collect()
}

/// The word for it.
#[must_use]
pub fn word(vanguards: Vanguards) -> &'static str {
    match vanguards {
        Vanguards::Lite => "lite",
        Vanguards::Full => "full",
    }
}

/// Reads the word.
///
/// # Errors
/// When it is neither.
pub fn vanguards(text: &str) -> Result<Vanguards, String> {
    let all = [Vanguards::Lite, Vanguards::Full];
    all.into_iter().find(|vanguards| word(*vanguards) == text).ok_or_else(|| "it is lite or full".into())
}

impl BridgeText {
    /// The line, for handing it on.
    #[must_use]
    pub fn line(&self) -> &str {
        &self.0
    }
}

impl FromStr for BridgeText {
    type Err = Infallible;

    fn from_str(line: &str) -> Result<BridgeText, Infallible> {
        Ok(BridgeText(line.to_owned()))
    }
}

impl fmt::Debug for BridgeText {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("BridgeText(…)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::router_vm::words;

    fn text(start: &str) -> BridgeText {
        format!("{start} {}", "A".repeat(40)).parse().unwrap()
    }

    #[test]
    fn a_wrong_line_is_told_by_its_number_and_not_shown() {
        let error = read(&[text("192.0.2.1:443"), text("203.0.113.77")], Vanguards::Lite).unwrap_err();
        let words = format!("{} {error:?}", words(&error));
        assert!(words.contains("bridge line 2 is wrong: it has no address with a port"), "{words}");
        assert!(!words.contains("203.0"), "{words}");
        assert!(!format!("{:?}", text("203.0.113.77")).contains("203"));
        let many = vec![text("192.0.2.1:443"); BRIDGES_MAX + 1];
        assert!(matches!(read(&many, Vanguards::Lite), Err(EntryError::Bridges(65))));
        assert_eq!(read(&many[1..], Vanguards::Full).unwrap().bridges.len(), BRIDGES_MAX);
    }

    #[test]
    fn a_transport_that_is_needed_has_a_program() {
        let entry = read(&[text("obfs4 192.0.2.1:443"), text("192.0.2.2:443")], Vanguards::Lite).unwrap();
        let given = |all: &[(&str, &str)]| {
            let given = all.iter().map(|(name, program)| (name.to_string(), PathBuf::from(program))).collect();
            transports(&entry, &given).map_err(|error| error.to_string())
        };
        assert!(given(&[]).unwrap_err().contains("needs the transport obfs4"));
        assert!(given(&[("obfs4", "obfs4proxy")]).unwrap_err().contains("begins with /"));
        assert!(given(&[("obfs-4", "/x")]).unwrap_err().contains("no name of a transport"));
        let both = given(&[("obfs4", "/usr/bin/obfs4proxy"), ("snowflake", "/usr/bin/snowflake-client")]).unwrap();
        assert_eq!(both, [("obfs4".parse().unwrap(), "/usr/bin/obfs4proxy".into())].into(), "only what is needed");
    }

    #[test]
    fn vanguards_have_two_words() {
        for vanguards in [Vanguards::Lite, Vanguards::Full] {
            assert_eq!(super::vanguards(word(vanguards)), Ok(vanguards));
        }
        assert!(super::vanguards("off").is_err());
    }
}
