//! HTTP's CONNECT (RFC 9110, section 9.3.6), for programs that know no other proxy.
//!
//! `Proxy-Authorization` and Tor's `X-Tor-Stream-Isolation` let nobody in and keep nobody out: together they are the
//! credential by which a program keeps its streams apart. Whatever is not CONNECT is refused: a request for a page would
//! go through Tor in the clear under the proxy's name.

use bytes::{Buf, BufMut, BytesMut};

use super::{Context, Step, target};
use crate::{Credential, Failure};

/// Bytes of the longest head of a request.
const HEAD_BYTES_MAX: usize = 8 * 1024;

/// Fields of a head.
const FIELDS_MAX: usize = 64;

/// Fields whose values keep streams apart.
const ISOLATING_FIELDS: [&str; 2] = ["proxy-authorization", "x-tor-stream-isolation"];

const BAD_REQUEST: &str = "400 Bad Request";
const METHOD_NOT_ALLOWED: &str = "405 Method Not Allowed\r\nAllow: CONNECT";
const TOO_LARGE: &str = "431 Request Header Fields Too Large";
const BAD_GATEWAY: &str = "502 Bad Gateway";
const GATEWAY_TIMEOUT: &str = "504 Gateway Timeout";

/// Takes a request from `input` if it is whole.
pub(super) fn handle(input: &mut BytesMut, output: &mut BytesMut, context: &mut Context<'_>) -> Step {
    let head = &input[..input.len().min(HEAD_BYTES_MAX)];
    let mut fields = [httparse::EMPTY_HEADER; FIELDS_MAX];
    let mut request = httparse::Request::new(&mut fields);
    let taken = match request.parse(head) {
        Ok(httparse::Status::Complete(taken)) => taken,
        Ok(httparse::Status::Partial) if input.len() < HEAD_BYTES_MAX => return Step::Read,
        Ok(httparse::Status::Partial) | Err(httparse::Error::TooManyHeaders) => return refuse(TOO_LARGE, output),
        Err(_) => return refuse(BAD_REQUEST, output),
    };
    if request.method != Some("CONNECT") {
        return refuse(METHOD_NOT_ALLOWED, output);
    }
    let Some((host, port)) = request.path.and_then(authority) else { return refuse(BAD_REQUEST, output) };
    let target = target::of_text(host.as_bytes(), port, context.names);
    let credential = credential(request.headers);
    input.advance(taken);
    match target {
        Some(target) => Step::Connect(target, credential),
        None => refuse(BAD_GATEWAY, output),
    }
}

/// The response once the stream is open, or could not be opened.
pub(super) fn reply_to_connect(result: Result<(), Failure>, output: &mut BytesMut) {
    match result {
        // No length and no coding: what follows is the stream (RFC 9110, section 9.3.6).
        Ok(()) => output.put_slice(b"HTTP/1.1 200 Connection established\r\n\r\n"),
        Err(Failure::Refused | Failure::Unreachable) => write_error(BAD_GATEWAY, output),
        Err(Failure::TimedOut) => write_error(GATEWAY_TIMEOUT, output),
    }
}

fn refuse(status: &str, output: &mut BytesMut) -> Step {
    write_error(status, output);
    Step::Close
}

fn write_error(status: &str, output: &mut BytesMut) {
    output.put_slice(format!("HTTP/1.1 {status}\r\nConnection: close\r\nContent-Length: 0\r\n\r\n").as_bytes());
}

/// Host and port of `host:port`, where an IPv6 address stands in brackets.
fn authority(text: &str) -> Option<(&str, u16)> {
    let (host, port) = text.rsplit_once(':')?;
    let is_number = !port.is_empty() && port.bytes().all(|byte| byte.is_ascii_digit());
    let port = is_number.then(|| port.parse().ok())??;
    let host = match host.strip_prefix('[') {
        Some(rest) => rest.strip_suffix(']').filter(|rest| rest.contains(':'))?,
        None if host.contains(':') => return None,
        None => host,
    };
    Some((host, port))
}

fn credential(fields: &[httparse::Header<'_>]) -> Option<Credential> {
    let value = |name: &str| {
        fields.iter().find(|field| field.name.eq_ignore_ascii_case(name)).map_or(&b""[..], |field| field.value)
    };
    let values = ISOLATING_FIELDS.map(value);
    values.iter().any(|value| !value.is_empty()).then(|| Credential::new("http", &values))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Host, Target, service::tests::Around};

    /// Feeds a stream in pieces: the last step, what was answered, and what was left.
    fn spoken(stream: &[u8], piece: usize) -> (Step, String, Vec<u8>) {
        let (mut input, mut output, mut around) = (BytesMut::new(), BytesMut::new(), Around::new());
        let mut step = Step::Read;
        for bytes in stream.chunks(piece) {
            input.extend_from_slice(bytes);
            if step == Step::Read {
                step = handle(&mut input, &mut output, &mut around.context());
            }
        }
        (step, String::from_utf8(output.to_vec()).unwrap(), input.to_vec())
    }

    fn host_of(authority: &str) -> Option<(Host, u16)> {
        match spoken(format!("CONNECT {authority} HTTP/1.1\r\n\r\n").as_bytes(), 4096) {
            (Step::Connect(Target { host, port }, None), _, _) => Some((host, port)),
            (Step::Close, output, _) if output.starts_with("HTTP/1.1 400 ") || output.starts_with("HTTP/1.1 502 ") => {
                None
            }
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_request_is_taken_and_what_follows_is_kept() {
        let stream = b"CONNECT a.example:443 HTTP/1.1\r\nHost: a.example:443\r\n\r\nearly";
        for piece in 1..=stream.len() {
            let (step, output, rest) = spoken(stream, piece);
            let target = Target { host: Host::Name("a.example".into()), port: 443 };
            assert_eq!((step, output.as_str(), &rest[..]), (Step::Connect(target, None), "", &b"early"[..]));
        }
        for length in 0..stream.len() - 5 {
            assert_eq!(spoken(&stream[..length], 4096).0, Step::Read, "{length}");
        }
    }

    #[test]
    fn hosts_are_names_or_addresses() {
        assert_eq!(host_of("[2001:db8::7]:80"), Some((Host::Address("2001:db8::7".parse().unwrap()), 80)));
        assert_eq!(host_of("198.51.100.7:80"), Some((Host::Address("198.51.100.7".parse().unwrap()), 80)));
        assert_eq!(host_of("A.Example.:65535"), Some((Host::Name("a.example".into()), 65_535)));
        for wrong in [
            "a.example",
            "a.example:",
            "a.example:0",
            "a.example:65536",
            "a.example:+1",
            ":80",
            "2001:db8::7:80",
            "[a.example]:80",
            "[2001:db8::7:80",
            "/",
            "http://a.example:80/",
            "localhost:80",
            "10.0.2.2:80",
        ] {
            assert_eq!(host_of(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn isolating_fields_are_the_credential() {
        let of =
            |fields: &str| match spoken(format!("CONNECT a.example:80 HTTP/1.1\r\n{fields}\r\n").as_bytes(), 4096).0 {
                Step::Connect(_, credential) => credential,
                other => panic!("{other:?}"),
            };
        assert_eq!(of("Host: a.example\r\n"), None);
        let all =
            ["Proxy-Authorization: Basic YTpi\r\n", "proxy-authorization: x\r\n", "X-Tor-Stream-Isolation: x\r\n"]
                .map(of);
        assert!(all.iter().all(Option::is_some) && all[0] != all[1] && all[1] != all[2]);
        assert_eq!(of("PROXY-AUTHORIZATION: x\r\nOther: y\r\n"), all[1]);
    }

    #[test]
    fn what_is_no_connect_is_refused() {
        let refused = |stream: &[u8], status: &str| {
            let (step, output, _) = spoken(stream, 100);
            assert_eq!(step, Step::Close);
            assert!(output.starts_with(&format!("HTTP/1.1 {status} ")) && output.ends_with("\r\n\r\n"), "{output}");
        };
        refused(b"GET http://a.example/ HTTP/1.1\r\n\r\n", "405");
        refused(b"\x05\x01\0\r\n", "400");
        refused(b"CONNECT a.example:80 HTTP/1.1\r\nbroken\r\n\r\n", "400");
        let many = format!("CONNECT a.example:80 HTTP/1.1\r\n{}\r\n", "A: b\r\n".repeat(FIELDS_MAX + 1));
        refused(many.as_bytes(), "431");
        let long = format!("CONNECT a.example:80 HTTP/1.1\r\nA: {}", "b".repeat(HEAD_BYTES_MAX));
        refused(long.as_bytes(), "431");
    }

    #[test]
    fn the_far_ends_answer_is_told() {
        for (result, status) in [
            (Ok(()), "200"),
            (Err(Failure::Refused), "502"),
            (Err(Failure::Unreachable), "502"),
            (Err(Failure::TimedOut), "504"),
        ] {
            let mut output = BytesMut::new();
            reply_to_connect(result, &mut output);
            assert!(output.starts_with(format!("HTTP/1.1 {status} ").as_bytes()) && output.ends_with(b"\r\n\r\n"));
        }
    }
}
