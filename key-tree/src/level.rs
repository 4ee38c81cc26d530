//! The levels of the tree, and the names of what stands on them.

use std::{fmt, str::FromStr};

/// Where in the tree a key stands.
///
/// A key grants to the levels below its own: the root to hosts, a host to its VMs, a VM to its purposes. A host grants
/// purposes of its own too (its own SSH by onion service, its router's node), and nothing else skips a level.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Level {
    /// The one key that no grant makes valid, and the only one that can be recovered.
    Root,
    /// A machine that runs VMs.
    Host,
    /// An application VM.
    Vm,
    /// A leaf: a key that does something.
    Purpose(Purpose),
}

/// What a leaf's key is for. It is good for nothing else, so that no key signs two kinds of things.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Purpose {
    /// Streams through Tor.
    Session,
    /// The identity of an onion service.
    OnionService,
    /// A node of the DHT.
    DhtNode,
    /// Signing what its owner wants to have signed.
    Signing,
    /// Logging in with SSH.
    Ssh,
}

const DAY_SECONDS: u64 = 86_400;

impl Level {
    /// Every level, from the top.
    pub const ALL: [Level; 8] = [
        Level::Root,
        Level::Host,
        Level::Vm,
        Level::Purpose(Purpose::Session),
        Level::Purpose(Purpose::OnionService),
        Level::Purpose(Purpose::DhtNode),
        Level::Purpose(Purpose::Signing),
        Level::Purpose(Purpose::Ssh),
    ];

    /// Its name, as it stands in a grant.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Level::Root => "root",
            Level::Host => "host",
            Level::Vm => "vm",
            Level::Purpose(purpose) => purpose.as_str(),
        }
    }

    /// Whether a key of this level may grant to one of the level `child`.
    #[must_use]
    pub fn may_grant(self, child: Level) -> bool {
        matches!(
            (self, child),
            (Level::Root, Level::Host) | (Level::Host, Level::Vm | Level::Purpose(_)) | (Level::Vm, Level::Purpose(_))
        )
    }

    /// How many seconds a grant of this level lasts at most: 31 days for a host, whose renewal needs the root and so a
    /// person; a day for everything that is renewed by itself. Our own choice. 0 for the root, which is not granted.
    #[must_use]
    pub fn lifetime_max_seconds(self) -> u64 {
        match self {
            Level::Root => 0,
            Level::Host => 31 * DAY_SECONDS,
            Level::Vm | Level::Purpose(_) => DAY_SECONDS,
        }
    }

    /// The level of this name, if there is one.
    pub(crate) fn from_name(name: &str) -> Option<Level> {
        Level::ALL.into_iter().find(|level| level.as_str() == name)
    }
}

impl fmt::Display for Level {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

impl Purpose {
    /// Its name, as it stands in a grant and in Datalog: `purpose("onion-service")`.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Purpose::Session => "session",
            Purpose::OnionService => "onion-service",
            Purpose::DhtNode => "dht-node",
            Purpose::Signing => "signing",
            Purpose::Ssh => "ssh",
        }
    }
}

impl fmt::Display for Purpose {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// Bytes of the longest name: that of a DNS label (RFC 1035, section 2.3.4).
pub const NAME_BYTES_MAX: usize = 63;

/// What people call the owner of a key: 1 to 63 of `a`–`z`, `0`–`9` and `-`, neither first nor last a hyphen (RFC 952,
/// RFC 1123 section 2.1). A name says nothing about who may do what; the key does.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Name(String);

/// A text that is not a [`Name`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a name: use 1 to {NAME_BYTES_MAX} of a-z, 0-9 and -, and begin and end without a hyphen")]
pub struct NameError(String);

impl Name {
    /// The name as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for Name {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Name, NameError> {
        let letters = text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-');
        let ends = !text.starts_with('-') && !text.ends_with('-');
        if !letters || !ends || text.is_empty() || text.len() > NAME_BYTES_MAX {
            return Err(NameError(text.chars().take(NAME_BYTES_MAX + 1).collect()));
        }
        Ok(Name(text.to_owned()))
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nobody_grants_upward_or_to_their_own_level() {
        for (above, parent) in Level::ALL.into_iter().enumerate() {
            for child in Level::ALL.into_iter().take(above + 1) {
                assert!(!parent.may_grant(child), "{parent} may not grant to {child}");
            }
        }
        assert!(!Level::Root.may_grant(Level::Vm));
    }

    #[test]
    fn every_level_has_a_name_of_its_own() {
        assert!(Level::ALL.into_iter().all(|level| Level::from_name(level.as_str()) == Some(level)));
        assert_eq!(Level::from_name("wizard"), None);
    }

    #[test]
    fn names_are_labels() {
        assert!(["web", "a", "x-1"].into_iter().all(|text| text.parse::<Name>().is_ok()));
        let long = "a".repeat(NAME_BYTES_MAX + 1);
        assert!(["", "-a", "a-", "A", "a.b", "ä", "a\"", &long].into_iter().all(|text| text.parse::<Name>().is_err()));
    }
}
