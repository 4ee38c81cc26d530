//! By what a program keeps its streams apart.

use std::fmt;

/// What a program gave the proxy as user and password, or the like. It lets nobody in; streams with different ones, or
/// of which one has none, must never share a circuit.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Credential(Box<[u8]>);

impl Credential {
    /// Made of the parts that a protocol knows, such as user and password. Other parts make another credential.
    #[must_use]
    pub fn new(protocol: &str, parts: &[&[u8]]) -> Credential {
        let mut bytes = Vec::new();
        for part in [&[protocol.as_bytes()], parts].concat() {
            bytes.extend_from_slice(&(part.len() as u64).to_be_bytes());
            bytes.extend_from_slice(part);
        }
        Credential(bytes.into())
    }

    /// Bytes that differ whenever credentials do.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Debug for Credential {
    /// It may be a password in earnest: it is not written.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Credential(…)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn other_parts_make_another_and_none_is_written() {
        let all = [
            Credential::new("socks", &[b"a", b"b"]),
            Credential::new("socks", &[b"ab", b""]),
            Credential::new("socks", &[b"", b"ab"]),
            Credential::new("socks", &[b"ab"]),
            Credential::new("http", &[b"a", b"b"]),
        ];
        for one in &all {
            assert_eq!(all.iter().filter(|other| other.as_bytes() == one.as_bytes()).count(), 1);
            assert_eq!(format!("{one:?}"), "Credential(…)");
        }
    }
}
