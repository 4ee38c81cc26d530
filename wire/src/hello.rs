//! The first bytes of every connection: what speaks here, and for which VM.
//!
//! ```text
//! magic "OHT\n" | version u16 LE | role u8 | name length u8 | name
//! ```
//!
//! The connecting side sends its hello, the listening side checks it and answers with its own. A connection that
//! begins otherwise is closed; nothing after it is read.

use crate::{VERSION, VmName, vm_name::VM_NAME_BYTES_MAX, vm_name::VmNameError};

/// The first four bytes. The line feed catches a text protocol that speaks to the wrong socket.
pub const MAGIC: [u8; 4] = *b"OHT\n";

/// Bytes of a hello before its name.
pub const HELLO_BYTES_MIN: usize = 8;

/// Bytes of the longest hello.
pub const HELLO_BYTES_MAX: usize = HELLO_BYTES_MIN + VM_NAME_BYTES_MAX;

/// Which program speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Role {
    /// PID 1 of the router VM, on the control port.
    Init = 1,
    /// The router program, on every port.
    Router = 2,
    /// The host agent, on the control port.
    Agent = 3,
    /// A VM's port process, on that VM's link.
    Port = 4,
    /// The uplink process.
    Uplink = 5,
}

/// Who speaks, and for which VM where the connection belongs to one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hello {
    /// The speaker.
    pub role: Role,
    /// The VM whose frames follow; `None` on control and uplink connections.
    pub vm: Option<VmName>,
}

/// Why bytes are not a hello.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HelloError {
    /// Another protocol.
    #[error("the peer does not speak this protocol (its first bytes are {0:02x?})")]
    Magic([u8; 4]),
    /// Another version.
    #[error("the peer speaks version {0}, this program {VERSION}: build both from the same source")]
    Version(u16),
    /// A role that this version does not know.
    #[error("the peer has the unknown role {0}")]
    Role(u8),
    /// A VM name that is none.
    #[error("the peer names a VM wrongly")]
    Name(#[source] VmNameError),
    /// A VM name that is not text.
    #[error("the peer's VM name is not UTF-8, or too long")]
    NameBytes,
}

impl Hello {
    /// A hello for a connection that belongs to no VM.
    #[must_use]
    pub fn new(role: Role) -> Hello {
        Hello { role, vm: None }
    }

    /// A hello on the frame link of `vm`.
    #[must_use]
    pub fn for_vm(role: Role, vm: VmName) -> Hello {
        Hello { role, vm: Some(vm) }
    }

    /// The bytes of this hello.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let name = self.vm.as_ref().map_or("", VmName::as_str).as_bytes();
        let name_bytes = u8::try_from(name.len()).expect("a VM name has at most 63 bytes");
        let mut bytes = Vec::with_capacity(HELLO_BYTES_MAX);
        bytes.extend_from_slice(&MAGIC);
        bytes.extend_from_slice(&VERSION.to_le_bytes());
        bytes.extend_from_slice(&[self.role as u8, name_bytes]);
        bytes.extend_from_slice(name);
        bytes
    }

    /// Reads a hello from the start of `bytes`.
    ///
    /// Returns the hello and how many bytes it took, or `None` when more bytes are needed: read at most
    /// [`Hello::missing`] more, so that nothing behind the hello is taken with it.
    ///
    /// # Errors
    /// As soon as the bytes at hand cannot become a hello.
    pub fn decode(bytes: &[u8]) -> Result<Option<(Hello, usize)>, HelloError> {
        if bytes.iter().zip(&MAGIC).any(|(a, b)| a != b) {
            let mut first = [0; 4];
            first.iter_mut().zip(bytes).for_each(|(to, from)| *to = *from);
            return Err(HelloError::Magic(first));
        }
        let Some((head, rest)) = bytes.split_first_chunk::<HELLO_BYTES_MIN>() else { return Ok(None) };
        let version = u16::from_le_bytes([head[4], head[5]]);
        if version != VERSION {
            return Err(HelloError::Version(version));
        }
        let role = Role::from_byte(head[6])?;
        let name_bytes = usize::from(head[7]);
        if name_bytes > VM_NAME_BYTES_MAX {
            return Err(HelloError::NameBytes);
        }
        let Some(name) = rest.get(..name_bytes) else { return Ok(None) };
        let name = std::str::from_utf8(name).map_err(|_| HelloError::NameBytes)?;
        let vm = if name.is_empty() { None } else { Some(name.parse().map_err(HelloError::Name)?) };
        Ok(Some((Hello { role, vm }, HELLO_BYTES_MIN + name_bytes)))
    }

    /// How many bytes a hello that begins with `bytes` still needs at least; 0 when it is whole.
    #[must_use]
    pub fn missing(bytes: &[u8]) -> usize {
        let name_bytes = bytes.get(7).map_or(0, |&n| usize::from(n));
        (HELLO_BYTES_MIN + name_bytes).saturating_sub(bytes.len())
    }
}

impl Role {
    fn from_byte(byte: u8) -> Result<Role, HelloError> {
        [Role::Init, Role::Router, Role::Agent, Role::Port, Role::Uplink]
            .into_iter()
            .find(|role| *role as u8 == byte)
            .ok_or(HelloError::Role(byte))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn samples() -> [Hello; 3] {
        let web = || "web".parse().unwrap();
        [Hello::new(Role::Init), Hello::for_vm(Role::Router, web()), Hello::for_vm(Role::Port, web())]
    }

    #[test]
    fn what_is_encoded_is_decoded_and_leaves_what_follows() {
        for hello in samples() {
            let mut bytes = hello.encode();
            let whole = bytes.len();
            bytes.extend_from_slice(b"what follows");
            assert_eq!(Hello::decode(&bytes), Ok(Some((hello, whole))));
        }
    }

    #[test]
    fn reading_what_is_missing_reads_the_hello_and_nothing_more() {
        for hello in samples() {
            let bytes = hello.encode();
            let mut at_hand = 0;
            while Hello::missing(&bytes[..at_hand]) > 0 {
                assert_eq!(Hello::decode(&bytes[..at_hand]), Ok(None));
                at_hand += Hello::missing(&bytes[..at_hand]);
            }
            assert_eq!(at_hand, bytes.len());
        }
    }

    #[test]
    fn strangers_are_refused_at_once() {
        assert_eq!(Hello::decode(b"GET "), Err(HelloError::Magic(*b"GET ")));
        assert_eq!(Hello::decode(b"x"), Err(HelloError::Magic(*b"x\0\0\0")));
        assert_eq!(Hello::decode(b"OHT\n\x09\0\x01\0"), Err(HelloError::Version(9)));
        assert_eq!(Hello::decode(b"OHT\n\x02\0\x63\0"), Err(HelloError::Role(0x63)));
        assert_eq!(Hello::decode(b"OHT\n\x02\0\x01\xff"), Err(HelloError::NameBytes));
        assert_eq!(Hello::decode(b"OHT\n\x02\0\x01\x01\xff"), Err(HelloError::NameBytes));
        assert!(matches!(Hello::decode(b"OHT\n\x02\0\x01\x02.."), Err(HelloError::Name(_))));
    }
}
