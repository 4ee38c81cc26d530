//! A port of an onion service and the VM's port behind it.

use std::{fmt, num::NonZeroU16, str::FromStr};

use serde::{Deserialize, Serialize};

/// `PORT` or `PORT:VMPORT`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct PortMapping {
    /// The port that clients ask for.
    pub port: NonZeroU16,
    /// The VM's port that they get.
    pub vm_port: NonZeroU16,
}

/// Why a text does not name ports.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} names no ports: write PORT or PORT:VMPORT, each from 1 to 65535")]
pub struct PortError(String);

impl FromStr for PortMapping {
    type Err = PortError;

    fn from_str(text: &str) -> Result<PortMapping, PortError> {
        let (port, vm_port) = text.split_once(':').unwrap_or((text, text));
        let number = |text: &str| {
            let is_plain = text.bytes().all(|byte| byte.is_ascii_digit());
            text.parse().ok().filter(|_| is_plain)
        };
        match (number(port), number(vm_port)) {
            (Some(port), Some(vm_port)) => Ok(PortMapping { port, vm_port }),
            _ => Err(PortError(text.chars().take(40).collect())),
        }
    }
}

impl TryFrom<String> for PortMapping {
    type Error = PortError;

    fn try_from(text: String) -> Result<PortMapping, PortError> {
        text.parse()
    }
}

impl From<PortMapping> for String {
    fn from(mapping: PortMapping) -> String {
        mapping.to_string()
    }
}

impl fmt::Display for PortMapping {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.port == self.vm_port { write!(f, "{}", self.port) } else { write!(f, "{}:{}", self.port, self.vm_port) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_are_read_as_people_write_them() {
        for (text, port, vm_port) in [("80", 80, 80), ("80:8080", 80, 8080), ("65535:1", 65_535, 1)] {
            let mapping: PortMapping = text.parse().unwrap();
            assert_eq!((mapping.port.get(), mapping.vm_port.get()), (port, vm_port));
            assert_eq!(mapping.to_string(), text);
        }
        assert_eq!("80:80".parse::<PortMapping>().unwrap().to_string(), "80");
        for text in ["", "0", "80:", ":80", "65536", "80:0", "+80", "80:81:82", " 80", "x"] {
            assert!(text.parse::<PortMapping>().is_err(), "{text:?}");
        }
    }
}
