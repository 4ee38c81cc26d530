//! The name of an onion service of a VM.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};

/// Bytes of the longest name.
const NAME_BYTES_MAX: usize = 32;

/// 1 to 32 of `a`–`z`, `0`–`9` and `-`, neither first nor last a hyphen. Of one VM each is used once.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct ServiceName(String);

/// Why a text is not a name.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a service's name has 1 to {NAME_BYTES_MAX} letters a-z, digits and hyphens, and no hyphen at an end")]
pub struct ServiceNameError;

impl ServiceName {
    /// The name as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for ServiceName {
    type Err = ServiceNameError;

    fn from_str(text: &str) -> Result<ServiceName, ServiceNameError> {
        let is_allowed = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
        let is_name = (1..=NAME_BYTES_MAX).contains(&text.len())
            && text.bytes().all(is_allowed)
            && !text.starts_with('-')
            && !text.ends_with('-');
        if is_name { Ok(ServiceName(text.to_owned())) } else { Err(ServiceNameError) }
    }
}

impl TryFrom<String> for ServiceName {
    type Error = ServiceNameError;

    fn try_from(text: String) -> Result<ServiceName, ServiceNameError> {
        text.parse()
    }
}

impl From<ServiceName> for String {
    fn from(name: ServiceName) -> String {
        name.0
    }
}

impl fmt::Display for ServiceName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_names() {
        for name in ["a", "web", "p80", "my-site-2", &"x".repeat(32)] {
            assert_eq!(name.parse::<ServiceName>().unwrap().as_str(), name);
        }
        for name in ["", "-a", "a-", "A", "a b", "../a", "ä", "a\n", &"x".repeat(33)] {
            assert_eq!(name.parse::<ServiceName>(), Err(ServiceNameError), "{name:?}");
        }
    }
}
