//! SOCKS5 (RFC 1928) with user and password (RFC 1929), as Tor's clients speak it.
//!
//! | command | what happens |
//! | --- | --- |
//! | CONNECT | a flow to a name or an address; both `.onion` and made-up addresses will do |
//! | RESOLVE (0xF0, Tor's `socks-extensions.txt`) | the made-up IPv4 address of the name |
//! | RESOLVE_PTR (0xF1) | the name that a made-up address stands for |
//! | others | "command not supported" |
//!
//! User and password let nobody in and keep nobody out: they are the credential by which a program keeps its streams
//! apart. A client that offers both methods is asked for them, as Tor does.
//!
//! Of the crate `tor-socksproto` nothing is used: it brings Tor's cryptography along, and the gateway is to be built
//! and fuzzed in seconds.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use bytes::{Buf, BufMut, BytesMut};

use super::{Context, Step, target};
use crate::{Credential, Failure, Target};

const VERSION: u8 = 5;

/// Methods of authentication.
const NO_AUTHENTICATION: u8 = 0;
const USER_AND_PASSWORD: u8 = 2;
const NO_METHOD: u8 = 0xff;

/// Version of RFC 1929.
const AUTHENTICATION_VERSION: u8 = 1;

const CONNECT: u8 = 1;
const RESOLVE: u8 = 0xf0;
const RESOLVE_PTR: u8 = 0xf1;

/// Types of addresses.
const IPV4: u8 = 1;
const NAME: u8 = 3;
const IPV6: u8 = 4;

/// What a reply says (RFC 1928, section 6).
const SUCCEEDED: u8 = 0;
const GENERAL_FAILURE: u8 = 1;
const HOST_UNREACHABLE: u8 = 4;
const REFUSED: u8 = 5;
const TIMED_OUT: u8 = 6;
const COMMAND_NOT_SUPPORTED: u8 = 7;
const ADDRESS_TYPE_NOT_SUPPORTED: u8 = 8;

/// The server's side of one connection: what it waits for.
#[derive(Debug, Default)]
pub(super) enum Socks {
    #[default]
    Greeting,
    Authentication,
    Request(Option<Credential>),
    Over,
}

/// The address in a request.
enum Address<'a> {
    Ip(IpAddr),
    Name(&'a [u8]),
}

impl Socks {
    /// Takes what is whole from `input`.
    pub(super) fn handle(&mut self, input: &mut BytesMut, output: &mut BytesMut, context: &mut Context<'_>) -> Step {
        loop {
            let step = match self {
                Socks::Greeting => self.greet(input, output),
                Socks::Authentication => self.authenticate(input, output),
                Socks::Request(credential) => {
                    let credential = credential.take();
                    self.take_request(input, output, credential, context)
                }
                Socks::Over => Some(Step::Close),
            };
            if let Some(step) = step {
                return step;
            }
        }
    }

    /// The step to take, or `None` to go on.
    fn greet(&mut self, input: &mut BytesMut, output: &mut BytesMut) -> Option<Step> {
        let [version, rest @ ..] = &input[..] else { return Some(Step::Read) };
        if *version != VERSION {
            return Some(Step::Close);
        }
        let [count, rest @ ..] = rest else { return Some(Step::Read) };
        let Some(methods) = rest.get(..usize::from(*count)) else { return Some(Step::Read) };
        let (method, next) = if methods.contains(&USER_AND_PASSWORD) {
            (USER_AND_PASSWORD, Socks::Authentication)
        } else if methods.contains(&NO_AUTHENTICATION) {
            (NO_AUTHENTICATION, Socks::Request(None))
        } else {
            (NO_METHOD, Socks::Over)
        };
        input.advance(2 + methods.len());
        output.put_slice(&[VERSION, method]);
        *self = next;
        None
    }

    fn authenticate(&mut self, input: &mut BytesMut, output: &mut BytesMut) -> Option<Step> {
        let [version, rest @ ..] = &input[..] else { return Some(Step::Read) };
        if *version != AUTHENTICATION_VERSION {
            return Some(Step::Close);
        }
        let Some((user, rest)) = counted(rest) else { return Some(Step::Read) };
        let Some((password, _)) = counted(rest) else { return Some(Step::Read) };
        let taken = 3 + user.len() + password.len();
        // Clients that were not told any still fill the form in.
        let is_empty = user.is_empty() && password.is_empty();
        let credential = (!is_empty).then(|| Credential::new("socks", &[user, password]));
        input.advance(taken);
        output.put_slice(&[AUTHENTICATION_VERSION, 0]);
        *self = Socks::Request(credential);
        None
    }

    fn take_request(
        &mut self,
        input: &mut BytesMut,
        output: &mut BytesMut,
        credential: Option<Credential>,
        context: &mut Context<'_>,
    ) -> Option<Step> {
        let wait = |socks: &mut Socks, credential| {
            *socks = Socks::Request(credential);
            Some(Step::Read)
        };
        let [version, command, reserved, kind, rest @ ..] = &input[..] else { return wait(self, credential) };
        if (*version, *reserved) != (VERSION, 0) {
            return Some(Step::Close);
        }
        let command = *command;
        let split = match *kind {
            IPV4 => rest.split_first_chunk::<4>().map(|(a, rest)| (Address::Ip(Ipv4Addr::from(*a).into()), 4, rest)),
            IPV6 => rest.split_first_chunk::<16>().map(|(a, rest)| (Address::Ip(Ipv6Addr::from(*a).into()), 16, rest)),
            NAME => counted(rest).map(|(name, rest)| (Address::Name(name), 1 + name.len(), rest)),
            _ => return self.refuse(ADDRESS_TYPE_NOT_SUPPORTED, output),
        };
        let Some((address, address_bytes, [high, low, ..])) = split else { return wait(self, credential) };
        let port = u16::from_be_bytes([*high, *low]);
        let taken = 4 + address_bytes + 2;
        *self = Socks::Over;
        let step = match (command, address) {
            (CONNECT, address) => match address.target(port, context) {
                Some(target) => Some(Step::Connect(target, credential)),
                None => self.refuse(HOST_UNREACHABLE, output),
            },
            (RESOLVE, address) => match address.resolve(context) {
                Ok(address) => answer(address, output),
                Err(code) => self.refuse(code, output),
            },
            (RESOLVE_PTR, Address::Ip(address)) => match context.names.name(address.to_canonical()) {
                Some(name) => answer_name(name, output),
                None => self.refuse(HOST_UNREACHABLE, output),
            },
            (RESOLVE_PTR, Address::Name(_)) => self.refuse(ADDRESS_TYPE_NOT_SUPPORTED, output),
            _ => self.refuse(COMMAND_NOT_SUPPORTED, output),
        };
        input.advance(taken);
        step
    }

    fn refuse(&mut self, code: u8, output: &mut BytesMut) -> Option<Step> {
        *self = Socks::Over;
        reply(code, output);
        None
    }
}

impl Address<'_> {
    fn target(&self, port: u16, context: &Context<'_>) -> Option<Target> {
        match self {
            Address::Ip(address) => target::of_address(*address, port, context.names),
            Address::Name(name) => target::of_text(name, port, context.names),
        }
    }

    /// The address of a name; an address is its own.
    fn resolve(&self, context: &mut Context<'_>) -> Result<IpAddr, u8> {
        let text = match self {
            Address::Ip(address) => return Ok(*address),
            Address::Name(name) => std::str::from_utf8(name).map_err(|_| HOST_UNREACHABLE)?,
        };
        if let Ok(address) = text.parse() {
            return Ok(address);
        }
        let name = target::host_name(text).ok_or(HOST_UNREACHABLE)?;
        let address = context.names.address(context.now, &name, context.counters);
        address.map(IpAddr::V4).ok_or(GENERAL_FAILURE)
    }
}

/// The reply once the stream is open, or could not be opened.
pub(super) fn reply_to_connect(result: Result<(), Failure>, output: &mut BytesMut) {
    let code = match result {
        Ok(()) => SUCCEEDED,
        Err(Failure::Refused) => REFUSED,
        Err(Failure::Unreachable) => HOST_UNREACHABLE,
        Err(Failure::TimedOut) => TIMED_OUT,
    };
    reply(code, output);
}

/// A reply that names no address: where the stream begins at the far end is not known.
fn reply(code: u8, output: &mut BytesMut) {
    output.put_slice(&[VERSION, code, 0, IPV4, 0, 0, 0, 0, 0, 0]);
}

fn answer(address: IpAddr, output: &mut BytesMut) -> Option<Step> {
    match address {
        IpAddr::V4(address) => {
            output.put_slice(&[VERSION, SUCCEEDED, 0, IPV4]);
            output.put_slice(&address.octets());
        }
        IpAddr::V6(address) => {
            output.put_slice(&[VERSION, SUCCEEDED, 0, IPV6]);
            output.put_slice(&address.octets());
        }
    }
    output.put_u16(0);
    None
}

fn answer_name(name: &str, output: &mut BytesMut) -> Option<Step> {
    // Names are of 253 bytes at most.
    output.put_slice(&[VERSION, SUCCEEDED, 0, NAME, name.len() as u8]);
    output.put_slice(name.as_bytes());
    output.put_u16(0);
    None
}

/// Bytes that follow their number, and what follows them.
fn counted(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let (count, rest) = bytes.split_first()?;
    rest.split_at_checked(usize::from(*count))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Host, service::tests::Around};

    const ANONYMOUS: &[u8] = b"\x05\x01\0";

    /// Feeds a stream in pieces: the last step, what was answered, and what was left.
    fn spoken(around: &mut Around, stream: &[u8], piece: usize) -> (Step, Vec<u8>, Vec<u8>) {
        let (mut socks, mut input, mut output) = (Socks::default(), BytesMut::new(), BytesMut::new());
        let mut step = Step::Read;
        for bytes in stream.chunks(piece) {
            input.extend_from_slice(bytes);
            if step == Step::Read {
                step = socks.handle(&mut input, &mut output, &mut around.context());
            }
        }
        (step, output.to_vec(), input.to_vec())
    }

    fn name_request(command: u8, name: &str, port: u16) -> Vec<u8> {
        let head = [5, command, 0, 3, name.len() as u8];
        [&head[..], name.as_bytes(), &port.to_be_bytes()].concat()
    }

    fn target(name: &str, port: u16) -> Target {
        Target { host: Host::Name(name.to_owned()), port }
    }

    #[test]
    fn a_name_is_asked_for_and_what_follows_is_kept() {
        let onion = format!("{}.onion", "q".repeat(56));
        let stream = [ANONYMOUS, &name_request(CONNECT, &onion, 443), b"early"].concat();
        for piece in 1..=stream.len() {
            let (step, output, rest) = spoken(&mut Around::new(), &stream, piece);
            assert_eq!(step, Step::Connect(target(&onion, 443), None));
            assert_eq!((&output[..], &rest[..]), (&[5, 0][..], &b"early"[..]), "in pieces of {piece}");
        }
    }

    #[test]
    fn every_truncation_waits_for_more() {
        let stream = [b"\x05\x02\0\x02\x01\x04user\x04pass", &name_request(CONNECT, "a.example", 80)[..]].concat();
        for length in 0..stream.len() {
            assert_eq!(spoken(&mut Around::new(), &stream[..length], 1).0, Step::Read, "{length}");
        }
        assert_ne!(spoken(&mut Around::new(), &stream, 1).0, Step::Read);
    }

    #[test]
    fn user_and_password_are_the_credential() {
        let credential = |user: &str, password: &str| {
            let form =
                [&[1, user.len() as u8][..], user.as_bytes(), &[password.len() as u8], password.as_bytes()].concat();
            let stream = [&b"\x05\x02\0\x02"[..], &form, &name_request(CONNECT, "a.example", 80)].concat();
            let (step, output, _) = spoken(&mut Around::new(), &stream, 1);
            assert_eq!(output, [5, 2, 1, 0]);
            match step {
                Step::Connect(_, credential) => credential,
                other => panic!("{other:?}"),
            }
        };
        let all = [credential("", ""), credential("a", "b"), credential("ab", ""), credential("", "ab")];
        for (n, one) in all.iter().enumerate() {
            assert_eq!(one.is_some(), n > 0);
            assert_eq!(all.iter().filter(|other| *other == one).count(), 1, "credentials are told apart");
        }
        assert_eq!(credential("a", "b"), all[1]);
    }

    #[test]
    fn addresses_will_do() {
        let mut around = Around::new();
        let made_up = around.address("a.example");
        let mut host = |kind: u8, address: &[u8]| {
            let stream = [ANONYMOUS, &[5, CONNECT, 0, kind], address, &[0, 80]].concat();
            match spoken(&mut around, &stream, 3).0 {
                Step::Connect(target, None) => target.host,
                other => panic!("{other:?}"),
            }
        };
        assert_eq!(host(IPV4, &[198, 51, 100, 7]), Host::Address("198.51.100.7".parse().unwrap()));
        assert_eq!(host(IPV4, &made_up.octets()), Host::Name("a.example".into()));
        let remote: Ipv6Addr = "2001:db8::7".parse().unwrap();
        assert_eq!(host(IPV6, &remote.octets()), Host::Address(remote.into()));
        assert_eq!(host(NAME, b"\x0c198.51.100.7"), Host::Address("198.51.100.7".parse().unwrap()));
    }

    #[test]
    fn names_are_resolved_and_back() {
        let mut around = Around::new();
        let (step, output, _) = spoken(&mut around, &[ANONYMOUS, &name_request(RESOLVE, "A.example", 0)].concat(), 99);
        let address = around.address("a.example");
        assert_eq!((step, &output[2..]), (Step::Close, &[&[5, 0, 0, 1][..], &address.octets(), &[0, 0]].concat()[..]));
        let request = [ANONYMOUS, &[5, RESOLVE_PTR, 0, 1], &address.octets(), &[0, 0]].concat();
        let (step, output, _) = spoken(&mut around, &request, 99);
        assert_eq!((step, &output[2..]), (Step::Close, &b"\x05\0\0\x03\x09a.example\0\0"[..]));
        let request = [ANONYMOUS, &[5, RESOLVE, 0, 1, 1, 2, 3, 4, 0, 0]].concat();
        assert_eq!(spoken(&mut around, &request, 99).1[2..], [5, 0, 0, 1, 1, 2, 3, 4, 0, 0], "an address is its own");
    }

    #[test]
    fn what_cannot_be_is_refused_by_its_code() {
        let code = |request: &[u8]| {
            let (step, output, _) = spoken(&mut Around::new(), &[ANONYMOUS, request].concat(), 99);
            assert_eq!((step, output.len()), (Step::Close, 12), "{request:02x?}");
            output[3]
        };
        assert_eq!(code(&name_request(CONNECT, "a b", 80)), HOST_UNREACHABLE);
        assert_eq!(code(&name_request(CONNECT, "a.example", 0)), HOST_UNREACHABLE);
        assert_eq!(code(&name_request(CONNECT, "localhost", 80)), HOST_UNREACHABLE);
        assert_eq!(code(&[5, CONNECT, 0, 1, 127, 0, 0, 1, 0, 80]), HOST_UNREACHABLE);
        assert_eq!(code(&[5, RESOLVE_PTR, 0, 1, 198, 51, 100, 7, 0, 0]), HOST_UNREACHABLE);
        assert_eq!(code(&name_request(RESOLVE_PTR, "a.example", 0)), ADDRESS_TYPE_NOT_SUPPORTED);
        assert_eq!(code(&name_request(2, "a.example", 80)), COMMAND_NOT_SUPPORTED, "BIND");
        assert_eq!(code(&name_request(3, "a.example", 80)), COMMAND_NOT_SUPPORTED, "UDP ASSOCIATE");
        assert_eq!(code(&[5, CONNECT, 0, 2, 0, 0, 0, 0]), ADDRESS_TYPE_NOT_SUPPORTED);
    }

    #[test]
    fn other_protocols_end_at_once() {
        for stream in [
            &b"\x04\x01\0\x50"[..],
            b"GET / HTTP/1.1",
            b"\x05\x01\0\x04\x01\0\x01",
            b"\x05\x01\0\x05\x01\x01\x01",
            b"\x05\x01\x02\x05",
        ] {
            assert_eq!(spoken(&mut Around::new(), stream, 1).0, Step::Close, "{stream:02x?}");
        }
        let (step, output, _) = spoken(&mut Around::new(), b"\x05\x02\x01\x03", 1);
        assert_eq!((step, output), (Step::Close, vec![5, NO_METHOD]));
    }

    #[test]
    fn the_far_ends_answer_is_told() {
        for (result, code) in
            [(Ok(()), 0), (Err(Failure::Refused), 5), (Err(Failure::Unreachable), 4), (Err(Failure::TimedOut), 6)]
        {
            let mut output = BytesMut::new();
            reply_to_connect(result, &mut output);
            assert_eq!(output[..], [5, code, 0, 1, 0, 0, 0, 0, 0, 0]);
        }
    }
}
