//! Bridge lines, as C tor's `Bridge` option takes them (torrc(5)), read strictly.
//!
//! ```text
//! [Bridge] [transport] address:port fingerprint [ed25519 identity] [key=value …]
//! ```
//!
//! Stricter than C tor: the port and the fingerprint are needed, the fingerprint is one word, an IPv6 address stands in
//! brackets, a name is no address (nobody here may resolve it), and parameters need a transport. A bridge's address is a
//! secret: neither `Debug` nor an error shows any part of a line.

use std::{fmt, net::SocketAddr, str::FromStr};

use serde::{Deserialize, Serialize};

/// Bytes of the longest line: four times what a transport's parameters may have.
pub const LINE_BYTES_MAX: usize = 2048;

/// Bytes of a transport's parameters together: SOCKS5 carries them as user name and password (pt-spec, section 3.5), of 255
/// bytes each (RFC 1929).
const PARAMETERS_BYTES_MAX: usize = 510;

/// Bytes of the longest name of a transport.
const TRANSPORT_BYTES_MAX: usize = 32;

/// A bridge: a relay that is in no directory.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Bridge {
    transport: Option<Transport>,
    address: SocketAddr,
    /// The identities and parameters, as they stand in the line.
    rest: Vec<String>,
}

/// The name of a pluggable transport: a C identifier (pt-spec, section 3.1).
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Transport(String);

/// Why a line names no bridge.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BridgeError {
    /// Too long, or with characters that no line has.
    #[error("it is longer than {LINE_BYTES_MAX} bytes, or has characters that are not printable ASCII")]
    Text,
    /// No address where one is expected.
    #[error("it has no address with a port, as in 192.0.2.1:443 or [2001:db8::1]:443 (a name is none)")]
    Address,
    /// No fingerprint behind the address.
    #[error("it has no fingerprint of 40 hexadecimal digits behind the address")]
    Fingerprint,
    /// What should be `key=value` is not.
    #[error("what stands behind the fingerprint is neither an Ed25519 identity nor key=value")]
    Parameter,
    /// More parameters than can be carried.
    #[error("its parameters are longer than {PARAMETERS_BYTES_MAX} bytes")]
    Long,
    /// Parameters for nobody.
    #[error("it has parameters and no transport that they would be for")]
    NoTransport,
    /// A name that no transport can have.
    #[error("a transport's name has letters, digits and _, at most {TRANSPORT_BYTES_MAX}, and begins with no digit")]
    TransportName,
}

impl Bridge {
    /// The pluggable transport that it needs, if any.
    #[must_use]
    pub fn transport(&self) -> Option<&Transport> {
        self.transport.as_ref()
    }

    /// Where it is; with a transport, only the transport can tell what this means.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The line, for whoever has to know it.
    #[must_use]
    pub fn line(&self) -> String {
        let transport = self.transport.iter().map(|transport| transport.as_str().to_owned());
        let words: Vec<String> = transport.chain([self.address.to_string()]).chain(self.rest.iter().cloned()).collect();
        words.join(" ")
    }
}

impl FromStr for Bridge {
    type Err = BridgeError;

    fn from_str(line: &str) -> Result<Bridge, BridgeError> {
        if line.len() > LINE_BYTES_MAX || !line.bytes().all(|byte| byte == b'\t' || matches!(byte, b' '..=b'~')) {
            return Err(BridgeError::Text);
        }
        let mut words = line.split_ascii_whitespace().peekable();
        words.next_if(|word| word.eq_ignore_ascii_case("bridge"));
        let transport = words.next_if(|word| word.parse::<SocketAddr>().is_err() && !word.contains([':', '.']));
        let transport = transport.map(str::parse).transpose()?;
        let address = words.next().and_then(|word| word.parse::<SocketAddr>().ok()).filter(is_dialled);
        let address = address.ok_or(BridgeError::Address)?;
        let fingerprint = words.next().filter(|word| word.len() == 40 && word.bytes().all(|b| b.is_ascii_hexdigit()));
        let mut rest = vec![fingerprint.ok_or(BridgeError::Fingerprint)?.to_ascii_uppercase()];
        rest.extend(words.next_if(|word| is_ed25519(word)).map(str::to_owned));
        let parameters: Vec<&str> = words.collect();
        check_parameters(&parameters, transport.is_some())?;
        rest.extend(parameters.into_iter().map(str::to_owned));
        Ok(Bridge { transport, address, rest })
    }
}

fn is_dialled(address: &SocketAddr) -> bool {
    address.port() != 0 && !address.ip().is_unspecified() && !address.ip().is_multicast()
}

/// 32 bytes of unpadded base64, as C tor and arti print the identity.
fn is_ed25519(word: &str) -> bool {
    let word = word.strip_prefix("ed25519:").unwrap_or(word);
    word.len() == 43 && word.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'+' || byte == b'/')
}

fn check_parameters(parameters: &[&str], has_transport: bool) -> Result<(), BridgeError> {
    let is_parameter = |word: &&str| word.split_once('=').is_some_and(|(key, _)| !key.is_empty());
    if !parameters.iter().all(is_parameter) {
        return Err(BridgeError::Parameter);
    }
    if !parameters.is_empty() && !has_transport {
        return Err(BridgeError::NoTransport);
    }
    // They are carried with a semicolon between them, and a backslash before what would be mistaken (pt-spec, 3.5).
    let escaped = |word: &&str| word.len() + word.bytes().filter(|byte| matches!(byte, b';' | b'\\')).count() + 1;
    if parameters.iter().map(escaped).sum::<usize>() > PARAMETERS_BYTES_MAX {
        return Err(BridgeError::Long);
    }
    Ok(())
}

impl TryFrom<String> for Bridge {
    type Error = BridgeError;

    fn try_from(line: String) -> Result<Bridge, BridgeError> {
        line.parse()
    }
}

impl From<Bridge> for String {
    fn from(bridge: Bridge) -> String {
        bridge.line()
    }
}

impl fmt::Debug for Bridge {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Bridge(…)")
    }
}

impl Transport {
    /// The name.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for Transport {
    type Err = BridgeError;

    fn from_str(name: &str) -> Result<Transport, BridgeError> {
        let is_identifier = name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_');
        let begins_well = name.bytes().next().is_some_and(|byte| !byte.is_ascii_digit());
        if is_identifier && begins_well && name.len() <= TRANSPORT_BYTES_MAX {
            Ok(Transport(name.to_owned()))
        } else {
            Err(BridgeError::TransportName)
        }
    }
}

impl TryFrom<String> for Transport {
    type Error = BridgeError;

    fn try_from(name: String) -> Result<Transport, BridgeError> {
        name.parse()
    }
}

impl From<Transport> for String {
    fn from(transport: Transport) -> String {
        transport.0
    }
}

impl fmt::Display for Transport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RSA: &str = "0123456789ABCDEF0123456789ABCDEF01234567";

    fn error(line: &str) -> BridgeError {
        line.parse::<Bridge>().unwrap_err()
    }

    #[test]
    fn lines_of_c_tor_are_read_and_come_back() {
        let ed25519 = "x".repeat(43);
        let lines = [
            format!("192.0.2.1:443 {RSA}"),
            format!("[2001:db8::1]:9001 {RSA} {ed25519}"),
            format!("obfs4 192.0.2.1:443 {RSA} cert=a+b/c=,x iat-mode=0"),
            format!("webtunnel [2001:db8::1]:443 {RSA} url=https://example.org/p?q=1 ver=0.0.1"),
        ];
        for line in &lines {
            let bridge: Bridge = line.parse().unwrap();
            assert_eq!(bridge.line(), *line);
            assert_eq!(format!("Bridge\t {line} ").parse::<Bridge>().unwrap(), bridge);
            let json = serde_json::to_string(&bridge).unwrap();
            assert_eq!(serde_json::from_str::<Bridge>(&json).unwrap(), bridge);
            assert!(!format!("{bridge:?}").contains("192") && !format!("{bridge:?}").contains(RSA));
        }
        let small = format!("192.0.2.1:443 {}", RSA.to_lowercase());
        assert_eq!(small.parse::<Bridge>().unwrap(), lines[0].parse().unwrap());
        assert_eq!(lines[2].parse::<Bridge>().unwrap().transport().unwrap().as_str(), "obfs4");
    }

    #[test]
    fn what_is_no_bridge_line_is_told_why() {
        assert_eq!(error(""), BridgeError::Address);
        assert_eq!(error("obfs4"), BridgeError::Address);
        for address in ["192.0.2.1", "192.0.2.1:0", "0.0.0.0:1", "224.0.0.1:1", "a.example:443", "2001:db8::1:443", "-"]
        {
            let line = error(&format!("obfs4 {address} {RSA}"));
            assert_eq!(line, BridgeError::Address, "{address}");
        }
        for fingerprint in ["", "ABC", &RSA[1..], &RSA.replace('0', "G"), &format!("${RSA}")] {
            assert_eq!(error(&format!("192.0.2.1:443 {fingerprint}")), BridgeError::Fingerprint, "{fingerprint}");
        }
        assert_eq!(error(&format!("obfs4 192.0.2.1:443 {RSA} cert")), BridgeError::Parameter);
        assert_eq!(error(&format!("obfs4 192.0.2.1:443 {RSA} =x")), BridgeError::Parameter);
        assert_eq!(error(&format!("192.0.2.1:443 {RSA} cert=x")), BridgeError::NoTransport);
        assert_eq!(error(&format!("obfs-4 192.0.2.1:443 {RSA}")), BridgeError::TransportName);
        assert_eq!(error(&format!("4obfs 192.0.2.1:443 {RSA}")), BridgeError::TransportName);
        assert_eq!(error(&format!("192.0.2.1:443\n{RSA}")), BridgeError::Text);
        assert_eq!(error(&" ".repeat(LINE_BYTES_MAX + 1)), BridgeError::Text);
        let fits = format!("obfs4 192.0.2.1:443 {RSA} a={}", "x".repeat(PARAMETERS_BYTES_MAX - 3));
        assert!(fits.parse::<Bridge>().is_ok());
        assert_eq!(error(&format!("{fits}y")), BridgeError::Long);
        assert_eq!(error(&fits.replace("a=x", "a=;")), BridgeError::Long);
    }
}
