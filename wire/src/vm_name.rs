//! The name of an application VM, checked once at the edge.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};

/// Bytes of the longest name: that of a DNS label (RFC 1035, section 2.3.4), as the name ends up in paths, in socket
/// names and in the host name of the VM.
pub const VM_NAME_BYTES_MAX: usize = 63;

/// 1 to 63 of `a`–`z`, `0`–`9` and `-`, neither first nor last a hyphen (RFC 952, RFC 1123 section 2.1).
///
/// So a name is never a path (`/`, `..`), an option (`-x`), or something a shell would expand.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct VmName(String);

/// Why a text is not a VM name. Shown to the person who typed it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum VmNameError {
    /// The empty text.
    #[error("a VM name cannot be empty: use letters a-z, digits and hyphens")]
    Empty,
    /// More than [`VM_NAME_BYTES_MAX`] bytes.
    #[error("a VM name has at most {VM_NAME_BYTES_MAX} characters, this one has {0}: shorten it")]
    TooLong(usize),
    /// A character outside the alphabet.
    #[error("{0:?} cannot be part of a VM name: use letters a-z, digits and hyphens")]
    Character(char),
    /// A hyphen at an end.
    #[error("a VM name neither begins nor ends with a hyphen")]
    Hyphen,
}

impl VmName {
    /// The name as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for VmName {
    type Err = VmNameError;

    fn from_str(text: &str) -> Result<Self, VmNameError> {
        if text.is_empty() {
            return Err(VmNameError::Empty);
        }
        if text.len() > VM_NAME_BYTES_MAX {
            return Err(VmNameError::TooLong(text.chars().count()));
        }
        let allowed = |c: &char| c.is_ascii_lowercase() || c.is_ascii_digit() || *c == '-';
        if let Some(stranger) = text.chars().find(|c| !allowed(c)) {
            return Err(VmNameError::Character(stranger));
        }
        if text.starts_with('-') || text.ends_with('-') {
            return Err(VmNameError::Hyphen);
        }
        Ok(VmName(text.to_owned()))
    }
}

impl TryFrom<String> for VmName {
    type Error = VmNameError;

    fn try_from(text: String) -> Result<Self, VmNameError> {
        text.parse()
    }
}

impl From<VmName> for String {
    fn from(name: VmName) -> String {
        name.0
    }
}

impl fmt::Display for VmName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ordinary_names_are_taken_as_they_are() {
        for name in ["a", "web", "mail-2", "7", &"x".repeat(63)] {
            assert_eq!(name.parse::<VmName>().unwrap().as_str(), name);
        }
    }

    #[test]
    fn names_that_could_be_paths_options_or_surprises_are_refused() {
        assert_eq!("".parse::<VmName>(), Err(VmNameError::Empty));
        assert_eq!("x".repeat(300).parse::<VmName>(), Err(VmNameError::TooLong(300)));
        for (name, stranger) in [("a/b", '/'), ("..", '.'), ("a b", ' '), ("Web", 'W'), ("\u{e4}", 'ä'), ("a\0", '\0')]
        {
            assert_eq!(name.parse::<VmName>(), Err(VmNameError::Character(stranger)), "{name:?}");
        }
        for name in ["-x", "x-", "-"] {
            assert_eq!(name.parse::<VmName>(), Err(VmNameError::Hyphen), "{name:?}");
        }
    }

    #[test]
    fn a_bad_name_does_not_come_in_through_serde() {
        assert!(serde_json::from_str::<VmName>("\"../x\"").is_err());
        assert_eq!(serde_json::from_str::<VmName>("\"web\"").unwrap().as_str(), "web");
    }
}
