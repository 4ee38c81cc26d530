//! A host name, written one way.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};

/// Bytes of the longest name, written with dots (RFC 1035, section 2.3.4).
pub const HOST_NAME_BYTES_MAX: usize = 253;

/// Bytes of the longest label (RFC 1035, section 2.3.4).
const LABEL_BYTES_MAX: usize = 63;

/// A host name as a VM's gateway knows it: lower case, no final dot, labels of 1 to 63 of `a`–`z`, `0`–`9`, `-` and
/// `_`, at most [`HOST_NAME_BYTES_MAX`] bytes, and never something that reads as an address.
///
/// [`FromStr`] takes what a person writes: any case, a final dot, and labels in other scripts, which become A-labels
/// (RFC 5890; mapped by UTS #46, not transitional). Labels that are ASCII are taken as they are, `xn--…` too, so that
/// whatever a VM may ask for can be written. Serde takes the one canonical form only.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct HostName(String);

/// Why a text is not a host name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HostNameError {
    /// No label, or an empty one.
    #[error("a host name cannot have an empty part")]
    Empty,
    /// A name or a label that is too long; bytes of A-labels count.
    #[error("a host name has at most {HOST_NAME_BYTES_MAX} bytes, and {LABEL_BYTES_MAX} between two dots")]
    TooLong,
    /// A character outside the alphabet.
    #[error("{0:?} cannot be part of a host name")]
    Character(char),
    /// The last label is a number.
    #[error("a name that ends in a number is neither a host name nor a whole address")]
    Number,
    /// Characters that no international name may have.
    #[error("it is no international domain name (UTS #46)")]
    International,
    /// Not in the form in which names are kept.
    #[error("the name is not in its canonical form")]
    Form,
}

impl HostName {
    /// The name as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether it is below `onion`: an onion service, or nothing (RFC 7686).
    #[must_use]
    pub fn is_onion(&self) -> bool {
        is_onion(&self.0)
    }

    /// The name itself, its parent, and so on up to the top-level domain.
    pub(super) fn ancestry(&self) -> impl Iterator<Item = HostName> {
        let parent = |name: &HostName| name.0.split_once('.').map(|(_, parent)| HostName(parent.to_owned()));
        std::iter::successors(Some(self.clone()), parent)
    }
}

/// Whether a name in canonical form is that of an onion service.
pub(super) fn is_onion(name: &str) -> bool {
    name.strip_suffix(".onion").is_some_and(|service| !service.is_empty())
}

impl FromStr for HostName {
    type Err = HostNameError;

    fn from_str(text: &str) -> Result<HostName, HostNameError> {
        let text = text.strip_suffix('.').unwrap_or(text);
        let labels: Result<Vec<_>, _> = text.split(['.', '。', '．', '｡']).map(ascii_label).collect();
        checked(labels?.join("."))
    }
}

/// One label as ASCII in lower case. An international one may turn into several.
fn ascii_label(label: &str) -> Result<String, HostNameError> {
    if label.is_ascii() {
        return Ok(label.to_ascii_lowercase());
    }
    idna::domain_to_ascii(label).map_err(|_| HostNameError::International)
}

fn checked(name: String) -> Result<HostName, HostNameError> {
    if name.len() > HOST_NAME_BYTES_MAX {
        return Err(HostNameError::TooLong);
    }
    let mut last = "";
    for label in name.split('.') {
        if label.is_empty() {
            return Err(HostNameError::Empty);
        }
        let allowed = |c: &char| c.is_ascii_lowercase() || c.is_ascii_digit() || matches!(c, '-' | '_');
        if let Some(stranger) = label.chars().find(|c| !allowed(c)) {
            return Err(HostNameError::Character(stranger));
        }
        if label.len() > LABEL_BYTES_MAX {
            return Err(HostNameError::TooLong);
        }
        last = label;
    }
    if last.bytes().all(|b| b.is_ascii_digit()) || last.starts_with("0x") {
        return Err(HostNameError::Number);
    }
    Ok(HostName(name))
}

impl TryFrom<String> for HostName {
    type Error = HostNameError;

    /// Takes the canonical form only: what crosses the link needs no table of scripts to be read.
    fn try_from(name: String) -> Result<HostName, HostNameError> {
        if name.bytes().any(|b| b.is_ascii_uppercase()) { Err(HostNameError::Form) } else { checked(name) }
    }
}

impl From<HostName> for String {
    fn from(name: HostName) -> String {
        name.0
    }
}

impl fmt::Display for HostName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn many_ways_to_write_a_name_are_one() {
        for (text, name) in [
            ("example.org", "example.org"),
            ("Example.ORG.", "example.org"),
            ("_dmarc.a-b.example", "_dmarc.a-b.example"),
            ("Bücher.example", "xn--bcher-kva.example"),
            ("xn--BCHER-kva.EXAMPLE", "xn--bcher-kva.example"),
            ("bücher.xn--bcher-kva.example", "xn--bcher-kva.xn--bcher-kva.example"),
            ("faß.example", "xn--fa-hia.example"),
            ("例え。テスト", "xn--r8jz45g.xn--zckzah"),
            ("ＥＸＡＭＰＬＥ．org", "example.org"),
            // No A-label, but a VM may ask for it.
            ("xn--a.example", "xn--a.example"),
        ] {
            assert_eq!(text.parse::<HostName>().map(String::from), Ok(name.into()), "{text}");
            assert!(HostName::try_from(name.to_owned()).is_ok(), "{name}");
        }
    }

    #[test]
    fn what_no_host_can_have_is_refused() {
        use HostNameError::{Character, Empty, International, Number, TooLong};
        let long = ["x".repeat(63), "x".repeat(63), "x".repeat(63), "x".repeat(62)].join(".");
        for (text, error) in [
            ("", Empty),
            (".", Empty),
            ("a..b", Empty),
            ("a.b..", Empty),
            ("a b", Character(' ')),
            ("a/b", Character('/')),
            ("a\0b", Character('\0')),
            ("*.example", Character('*')),
            ("1.2.3", Number),
            ("１.２.３.４", Number),
            ("a.0x7F", Number),
            ("a\u{202e}b", International),
            (&"x".repeat(64), TooLong),
            (&long, TooLong),
            (&"ü".repeat(63), TooLong),
        ] {
            assert_eq!(text.parse::<HostName>(), Err(error), "{text:?}");
        }
    }

    #[test]
    fn only_the_canonical_form_crosses_the_link() {
        for json in ["\"Example.org\"", "\"example.org.\"", "\"bücher.example\"", "\"1.2.3.4\"", "\"\""] {
            assert!(serde_json::from_str::<HostName>(json).is_err(), "{json}");
        }
        assert_eq!(serde_json::from_str::<HostName>("\"a.b\"").unwrap().as_str(), "a.b");
    }

    #[test]
    fn onion_is_the_last_label() {
        for (name, onion) in [("onion", false), ("x.onion", true), ("xonion", false), ("onion.example", false)] {
            assert_eq!(name.parse::<HostName>().unwrap().is_onion(), onion, "{name}");
        }
    }
}
