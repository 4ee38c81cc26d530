//! The uplink: one connection for each TCP connection to a relay.
//!
//! After the hello the router sends one [`DialRequest`], the uplink process one [`DialAnswer`]; if that is
//! [`DialAnswer::Connected`], the bytes of the TCP connection follow both ways until either side closes.
//!
//! ```text
//! request: family u8 (4 or 6) | port u16 LE | address 16 bytes (IPv4: the first four, the others zero)
//! answer:  one byte
//! ```

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

/// Bytes of a request.
pub const DIAL_REQUEST_BYTES: usize = 19;

/// Whom to dial. The uplink decides whether it may.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DialRequest(pub SocketAddr);

/// What came of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum DialAnswer {
    /// The connection stands; its bytes follow.
    Connected = 0,
    /// The address is not on the allow list; nothing was sent to it.
    Forbidden = 1,
    /// The peer refused.
    Refused = 2,
    /// There is no way to the peer.
    Unreachable = 3,
    /// The peer did not answer in time.
    TimedOut = 4,
    /// The uplink has as many connections as it may have.
    Busy = 5,
}

/// Why bytes are not a request or an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum UplinkError {
    /// Neither IPv4 nor IPv6.
    #[error("{0} is no address family (4 and 6 are)")]
    Family(u8),
    /// Port 0, or bytes behind an IPv4 address.
    #[error("the address cannot be dialled")]
    Address,
    /// An answer that this version does not know.
    #[error("{0} is no dial answer")]
    Answer(u8),
}

impl DialRequest {
    /// The bytes of this request.
    #[must_use]
    pub fn encode(self) -> [u8; DIAL_REQUEST_BYTES] {
        let mut bytes = [0; DIAL_REQUEST_BYTES];
        bytes[1..3].copy_from_slice(&self.0.port().to_le_bytes());
        match self.0.ip() {
            IpAddr::V4(ip) => {
                bytes[0] = 4;
                bytes[3..7].copy_from_slice(&ip.octets());
            }
            IpAddr::V6(ip) => {
                bytes[0] = 6;
                bytes[3..].copy_from_slice(&ip.octets());
            }
        }
        bytes
    }

    /// The reverse of [`DialRequest::encode`].
    ///
    /// # Errors
    /// When the bytes name nothing that could be dialled.
    pub fn decode(bytes: [u8; DIAL_REQUEST_BYTES]) -> Result<DialRequest, UplinkError> {
        let port = u16::from_le_bytes([bytes[1], bytes[2]]);
        let (v4, behind_v4) = bytes[3..].split_first_chunk::<4>().expect("16 address bytes");
        let ip = match bytes[0] {
            4 if behind_v4 == [0; 12] => IpAddr::V4(Ipv4Addr::from(*v4)),
            4 => return Err(UplinkError::Address),
            6 => IpAddr::V6(Ipv6Addr::from(*bytes.last_chunk::<16>().expect("16 address bytes"))),
            family => return Err(UplinkError::Family(family)),
        };
        if port == 0 || ip.is_unspecified() {
            return Err(UplinkError::Address);
        }
        Ok(DialRequest(SocketAddr::new(ip, port)))
    }
}

impl TryFrom<u8> for DialAnswer {
    type Error = UplinkError;

    fn try_from(byte: u8) -> Result<DialAnswer, UplinkError> {
        use DialAnswer::{Busy, Connected, Forbidden, Refused, TimedOut, Unreachable};
        [Connected, Forbidden, Refused, Unreachable, TimedOut, Busy]
            .into_iter()
            .find(|answer| *answer as u8 == byte)
            .ok_or(UplinkError::Answer(byte))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_and_answers_survive_the_wire() {
        for addr in ["127.20.0.1:5000", "[2001:db8::1]:9001", "[::ffff:1.2.3.4]:1"] {
            let request = DialRequest(addr.parse().unwrap());
            assert_eq!(DialRequest::decode(request.encode()), Ok(request));
        }
        for answer in (0..=5).map(|byte| DialAnswer::try_from(byte).unwrap()) {
            assert_eq!(DialAnswer::try_from(answer as u8), Ok(answer));
        }
        assert_eq!(DialAnswer::try_from(6), Err(UplinkError::Answer(6)));
    }

    #[test]
    fn what_cannot_be_dialled_is_no_request() {
        let good = DialRequest("1.2.3.4:5".parse().unwrap()).encode();
        let with = |at: usize, byte: u8| {
            let mut bytes = good;
            bytes[at] = byte;
            DialRequest::decode(bytes)
        };
        assert_eq!(with(0, 5), Err(UplinkError::Family(5)));
        assert_eq!(with(1, 0), Err(UplinkError::Address), "port 0");
        assert_eq!(with(18, 1), Err(UplinkError::Address), "bytes behind an IPv4 address");
        assert_eq!(
            DialRequest::decode([6, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]),
            Err(UplinkError::Address)
        );
    }
}
