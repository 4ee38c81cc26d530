//! The DNS server of the private network's exits: a table of names, and a record of what was asked.
//!
//! It speaks as much of RFC 1035 as a resolver library needs to be content: one question a message over UDP, answers
//! of type A, `NODATA` for other types, `NXDOMAIN` for names that are not in the table. A message that does not parse
//! gets no answer.

use std::{
    collections::BTreeMap,
    fs::File,
    io::Write as _,
    net::{Ipv4Addr, SocketAddr, UdpSocket},
};

use anyhow::{Context as _, Result};

/// Names and their addresses. A name that begins with `*.` stands for everything below the rest.
pub(crate) type Names = BTreeMap<String, Ipv4Addr>;

/// Answers until the socket fails; writes one line `{"name":…,"type":…,"from":…}` a question.
pub(crate) fn serve(socket: &UdpSocket, names: &Names, mut record: File) -> Result<()> {
    let mut buffer = [0; MESSAGE_BYTES_MAX];
    loop {
        let (bytes, from) = socket.recv_from(&mut buffer).context("the DNS server's socket failed")?;
        let Some(question) = Question::parse(&buffer[..bytes]) else { continue };
        let line = serde_json::json!({ "name": question.name, "type": question.kind, "from": from });
        writeln!(record, "{line}").context("cannot record a question")?;
        // An exit that went away meanwhile is not our failure.
        let _ = socket.send_to(&question.answer(names), from);
    }
}

/// Binds the server's socket.
pub(crate) fn bind(address: SocketAddr) -> Result<UdpSocket> {
    UdpSocket::bind(address).with_context(|| format!("cannot serve DNS on {address}"))
}

/// RFC 1035, section 2.3.4: a message over UDP has at most 512 bytes; EDNS asks for more.
const MESSAGE_BYTES_MAX: usize = 4096;
const HEADER_BYTES: usize = 12;
const TYPE_A: u16 = 1;
const NOERROR: u16 = 0;
const NXDOMAIN: u16 = 3;
/// QR, RD and RA.
const ANSWER_FLAGS: u16 = 0x8180;
const TTL_S: u32 = 60;

struct Question<'a> {
    id: [u8; 2],
    name: String,
    kind: u16,
    /// Name, type and class as they came, to be repeated in the answer.
    bytes: &'a [u8],
}

impl Question<'_> {
    fn parse(message: &[u8]) -> Option<Question<'_>> {
        let id = message.get(..2)?.try_into().ok()?;
        let mut labels = Vec::new();
        let mut at = HEADER_BYTES;
        loop {
            let length = usize::from(*message.get(at)?);
            at += 1;
            if length == 0 {
                break;
            }
            if length > 63 {
                return None; // a compressed name has no place in a question
            }
            labels.push(String::from_utf8_lossy(message.get(at..at + length)?).to_ascii_lowercase());
            at += length;
        }
        let kind = u16::from_be_bytes(message.get(at..at + 2)?.try_into().ok()?);
        Some(Question { id, name: labels.join("."), kind, bytes: message.get(HEADER_BYTES..at + 4)? })
    }

    fn answer(&self, names: &Names) -> Vec<u8> {
        let address = look_up(names, &self.name);
        let code = if address.is_some() { NOERROR } else { NXDOMAIN };
        let address = address.filter(|_| self.kind == TYPE_A);
        let mut message = self.id.to_vec();
        for word in [ANSWER_FLAGS | code, 1, u16::from(address.is_some()), 0, 0] {
            message.extend_from_slice(&word.to_be_bytes());
        }
        message.extend_from_slice(self.bytes);
        if let Some(address) = address {
            message.extend_from_slice(&[0xc0, 0x0c, 0, 1, 0, 1]); // the name of the question, A, IN
            message.extend_from_slice(&TTL_S.to_be_bytes());
            message.extend_from_slice(&[0, 4]);
            message.extend_from_slice(&address.octets());
        }
        message
    }
}

fn look_up(names: &Names, name: &str) -> Option<Ipv4Addr> {
    let below = |rest: &str| names.get(&format!("*.{rest}"));
    names.get(name).or_else(|| below(name.split_once('.')?.1)).copied()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names() -> Names {
        Names::from([
            ("origin.test".into(), Ipv4Addr::new(10, 40, 0, 1)),
            ("*.origin.test".into(), Ipv4Addr::LOCALHOST),
        ])
    }

    fn ask(name: &str, kind: u16) -> Vec<u8> {
        let mut message = vec![7, 9, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
        for label in name.split('.') {
            message.push(u8::try_from(label.len()).unwrap());
            message.extend_from_slice(label.as_bytes());
        }
        message.push(0);
        message.extend_from_slice(&kind.to_be_bytes());
        message.extend_from_slice(&[0, 1]);
        message
    }

    #[test]
    fn known_names_have_addresses_and_others_do_not_exist() {
        let answer = |name, kind| Question::parse(&ask(name, kind)).unwrap().answer(&names());
        let found = answer("Origin.test", TYPE_A);
        assert_eq!((found[3] & 15, found[7]), (0, 1));
        assert!(found.ends_with(&[10, 40, 0, 1]));
        assert!(answer("a.origin.test", TYPE_A).ends_with(&[127, 0, 0, 1]));
        let nodata = answer("origin.test", 28);
        assert_eq!((nodata[3] & 15, nodata[7]), (0, 0));
        assert_eq!(answer("nx.test", TYPE_A)[3] & 15, 3);
    }

    #[test]
    fn what_does_not_parse_is_ignored() {
        let whole = ask("origin.test", TYPE_A);
        for cut in 0..whole.len() {
            assert!(Question::parse(&whole[..cut]).is_none());
        }
        let mut compressed = whole;
        compressed[12] = 0xc0;
        assert!(Question::parse(&compressed).is_none());
    }
}
