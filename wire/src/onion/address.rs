//! The address of an onion service (rend-spec, "Encoding onion addresses").

use std::{fmt, str::FromStr};

use data_encoding::BASE32_NOPAD;
use serde::{Deserialize, Serialize};
use sha3::{Digest, Sha3_256};

/// The version of the addresses.
const VERSION: u8 = 3;

const SUFFIX: &str = ".onion";

/// An address whose checksum is right: 56 letters and digits in base32, lower case, and `.onion`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct OnionAddress(String);

/// Why a text is not an address.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AddressError {
    /// Not 56 characters of base32.
    #[error("an onion address has 56 letters and digits (a-z, 2-7) and ends in .onion")]
    Shape,
    /// A typing error, or an address of another version.
    #[error("there is a mistake in this onion address: copy it again from where you have it")]
    Checksum,
}

impl OnionAddress {
    /// The address of the service whose identity is this Ed25519 public key.
    #[must_use]
    pub fn of(identity: &[u8; 32]) -> OnionAddress {
        let bytes: Vec<u8> = identity.iter().copied().chain(checksum(identity)).chain([VERSION]).collect();
        OnionAddress(format!("{}{SUFFIX}", BASE32_NOPAD.encode(&bytes).to_ascii_lowercase()))
    }

    /// The address as text, with `.onion`.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The address without `.onion`, as C tor's key files have it.
    #[must_use]
    pub fn label(&self) -> &str {
        self.0.strip_suffix(SUFFIX).unwrap_or(&self.0)
    }
}

fn checksum(identity: &[u8; 32]) -> [u8; 2] {
    let hash =
        Sha3_256::new().chain_update(".onion checksum").chain_update(identity).chain_update([VERSION]).finalize();
    [hash[0], hash[1]]
}

impl FromStr for OnionAddress {
    type Err = AddressError;

    /// Takes the address with or without `.onion`, in upper or lower case.
    fn from_str(text: &str) -> Result<OnionAddress, AddressError> {
        let text = text.to_ascii_uppercase();
        let label = text.strip_suffix(".ONION").unwrap_or(&text);
        let bytes = BASE32_NOPAD.decode(label.as_bytes()).map_err(|_| AddressError::Shape)?;
        let (identity, rest) = bytes.split_first_chunk::<32>().ok_or(AddressError::Shape)?;
        let [first, second, version] = *rest else { return Err(AddressError::Shape) };
        if [first, second] != checksum(identity) || version != VERSION {
            return Err(AddressError::Checksum);
        }
        Ok(OnionAddress::of(identity))
    }
}

impl TryFrom<String> for OnionAddress {
    type Error = AddressError;

    fn try_from(text: String) -> Result<OnionAddress, AddressError> {
        text.parse()
    }
}

impl From<OnionAddress> for String {
    fn from(address: OnionAddress) -> String {
        address.0
    }
}

impl fmt::Display for OnionAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An address of the specification.
    const KNOWN: &str = "pg6mmjiyjmcrsslvykfwnntlaru7p5svn6y2ymmju6nubxndf4pscryd.onion";

    #[test]
    fn the_addresses_of_the_specification_are_taken_and_made_again() {
        let address: OnionAddress = KNOWN.parse().unwrap();
        assert_eq!(address.as_str(), KNOWN);
        assert_eq!(KNOWN.to_uppercase().parse(), Ok(address.clone()));
        assert_eq!(address.label().parse(), Ok(address));
    }

    #[test]
    fn a_wrong_letter_and_another_length_are_found() {
        let wrong = KNOWN.replacen('g', "h", 1);
        assert_eq!(wrong.parse::<OnionAddress>(), Err(AddressError::Checksum));
        for text in ["", ".onion", "short.onion", "www.example.com", &KNOWN[1..], &format!("x.{KNOWN}")] {
            assert_eq!(text.parse::<OnionAddress>(), Err(AddressError::Shape), "{text}");
        }
    }
}
