//! Who the VM is, by plain HTTP: for `curl` and `wget`, and no proxy in between.
//!
//! | request | answer |
//! | --- | --- |
//! | `GET /identity` | name, public key, grants |
//! | `GET /identity/onions` | its onion services |
//! | `POST /identity/sign`, what is to be signed as the body | the signature |
//! | `POST /identity/sign?sha256=…`, no body | the same, for something larger |
//!
//! Answers are JSON, refusals problem documents (RFC 9457); each ends its connection. A body is digested as it comes and
//! never held.
//!
//! Whoever runs programs in the VM may ask. A page that a browser in the VM shows may not: it would sign in the VM's name
//! what a stranger wrote. A browser names the page's origin with a POST, and asks for a name where a name was made to
//! lead here; both are refused.

use std::net::{Ipv4Addr, Ipv6Addr};

use bytes::{Buf, BufMut, BytesMut};
use sha2::{Digest, Sha256};
use wire::identity::{self, ANSWER_BYTES_MAX, Answer, Question, Refusal};

use super::Step;
use crate::config::{GATEWAY_ADDRESS, GATEWAY_ADDRESS_V6, GATEWAY_LINK_LOCAL};

/// Bytes of the longest head of a request.
const HEAD_BYTES_MAX: usize = 8 * 1024;

/// Fields of a head.
const FIELDS_MAX: usize = 64;

/// Bytes of the longest body.
const BODY_BYTES_MAX: u64 = 64 << 10;

/// A refusal, before anybody is asked: a status, its name, and why.
type Refused = (u16, &'static str, &'static str);

const BAD_REQUEST: Refused = (400, "Bad Request", "this is no request of HTTP/1.1 that is understood here");
const FROM_A_PAGE: Refused = (403, "Forbidden", "web pages are told nothing: ask from a program");
const NOT_FOUND: Refused = (404, "Not Found", "there are GET /identity, GET /identity/onions and POST /identity/sign");
const NOT_ALLOWED: Refused = (405, "Method Not Allowed", "it is GET to ask, and POST to sign");
const NO_LENGTH: Refused = (411, "Length Required", "send what is to be signed with a Content-Length, not in chunks");
const TOO_LARGE: Refused =
    (413, "Content Too Large", "64 KiB can be signed; of more send the digest: POST /identity/sign?sha256=…");
const LONG_HEAD: Refused = (431, "Request Header Fields Too Large", "a head of 8 KiB and 64 fields is enough here");
const NO_DIGEST: Refused = (400, "Bad Request", "sha256 is written with 64 hexadecimal digits");

/// How far a request has come.
#[derive(Debug, Default)]
pub(super) enum Request {
    /// Its head is awaited.
    #[default]
    Head,
    /// What is to be signed is, so many bytes of it.
    Body { digest: Sha256, left: u64 },
}

impl Request {
    /// Goes on with what there is in `input`.
    pub(super) fn handle(&mut self, input: &mut BytesMut, output: &mut BytesMut) -> Step {
        if let Request::Head = self {
            match head(input) {
                Ok(None) => return Step::Read,
                Ok(Some(Asked { taken, what: What::Ask(question), .. })) => {
                    input.advance(taken);
                    return Step::Ask(question);
                }
                Ok(Some(Asked { taken, what: What::Sign(left), expects })) => {
                    input.advance(taken);
                    if expects {
                        output.put_slice(b"HTTP/1.1 100 Continue\r\n\r\n");
                    }
                    *self = Request::Body { digest: Sha256::new(), left };
                }
                Err((status, title, detail)) => {
                    put_body((status, title), &identity::problem((status, title), detail), output);
                    return Step::Close;
                }
            }
        }
        let Request::Body { digest, left } = self else { return Step::Read };
        let now = usize::try_from(*left).map_or(input.len(), |left| left.min(input.len()));
        digest.update(&input[..now]);
        input.advance(now);
        *left -= now as u64;
        if *left == 0 {
            return Step::Ask(Question::Sign { sha256: identity::Sha256(digest.clone().finalize().into()) });
        }
        Step::Read
    }
}

/// Writes an answer.
pub(super) fn put(answer: &Answer, output: &mut BytesMut) {
    let body = answer.body();
    if body.len() > ANSWER_BYTES_MAX {
        return put(&Refusal::Failed.because("the answer is too long"), output);
    }
    put_body(answer.status(), &body, output);
}

fn put_body((status, title): (u16, &str), body: &[u8], output: &mut BytesMut) {
    let kind = if status == 200 { "application/json" } else { "application/problem+json" };
    let more = match status {
        405 => "Allow: GET, POST\r\n",
        429 => "Retry-After: 1\r\n",
        _ => "",
    };
    let length = body.len();
    output.put_slice(
        format!(
            "HTTP/1.1 {status} {title}\r\nContent-Type: {kind}\r\nContent-Length: {length}\r\nCache-Control: no-store\r\n\
             X-Content-Type-Options: nosniff\r\n{more}Connection: close\r\n\r\n"
        )
        .as_bytes(),
    );
    output.put_slice(body);
}

/// What a head asks for.
struct Asked {
    taken: usize,
    what: What,
    /// Whether the VM waits to be told to send the body.
    expects: bool,
}

enum What {
    Ask(Question),
    /// To sign a body of so many bytes.
    Sign(u64),
}

/// Reads a head, if it is whole.
fn head(input: &[u8]) -> Result<Option<Asked>, Refused> {
    let mut fields = [httparse::EMPTY_HEADER; FIELDS_MAX];
    let mut request = httparse::Request::new(&mut fields);
    let taken = match request.parse(&input[..input.len().min(HEAD_BYTES_MAX)]) {
        Ok(httparse::Status::Complete(taken)) => taken,
        Ok(httparse::Status::Partial) if input.len() < HEAD_BYTES_MAX => return Ok(None),
        Ok(httparse::Status::Partial) | Err(httparse::Error::TooManyHeaders) => return Err(LONG_HEAD),
        Err(_) => return Err(BAD_REQUEST),
    };
    let fields = Fields(request.headers);
    if fields.get("origin")?.is_some() || !fields.get("host")?.is_none_or(is_own) {
        return Err(FROM_A_PAGE);
    }
    let (path, query) = request.path.map_or(("", None), |path| match path.split_once('?') {
        Some((path, query)) => (path, Some(query)),
        None => (path, None),
    });
    let what = match (request.method, path, query) {
        (Some("GET"), "/identity", None) => What::Ask(Question::Who),
        (Some("GET"), "/identity/onions", None) => What::Ask(Question::Onions),
        (Some("POST"), "/identity/sign", None) => What::Sign(fields.body_bytes()?.ok_or(NO_LENGTH)?),
        (Some("POST"), "/identity/sign", Some(query)) => {
            let sha256 = query.strip_prefix("sha256=").and_then(|text| text.parse().ok()).ok_or(NO_DIGEST)?;
            if fields.body_bytes()?.is_some_and(|bytes| bytes > 0) {
                return Err(BAD_REQUEST);
            }
            What::Ask(Question::Sign { sha256 })
        }
        (_, "/identity" | "/identity/onions" | "/identity/sign", None) => return Err(NOT_ALLOWED),
        _ => return Err(NOT_FOUND),
    };
    let expects = fields.get("expect")?.is_some_and(|value| value.eq_ignore_ascii_case("100-continue"));
    Ok(Some(Asked { taken, what, expects }))
}

/// Whether a `Host` field names the gateway, by an address.
fn is_own(host: &str) -> bool {
    let host = host.strip_suffix(":80").unwrap_or(host);
    let v6 = || host.strip_prefix('[')?.strip_suffix(']')?.parse::<Ipv6Addr>().ok();
    host.parse::<Ipv4Addr>() == Ok(GATEWAY_ADDRESS)
        || v6().is_some_and(|address| [GATEWAY_ADDRESS_V6, GATEWAY_LINK_LOCAL].contains(&address))
}

/// The fields of a head.
struct Fields<'a>(&'a [httparse::Header<'a>]);

impl<'a> Fields<'a> {
    /// The value of a field that may stand once.
    fn get(&self, name: &str) -> Result<Option<&'a str>, Refused> {
        let mut all = self.0.iter().filter(|field| field.name.eq_ignore_ascii_case(name));
        let Some(first) = all.next() else { return Ok(None) };
        if all.next().is_some() {
            return Err(BAD_REQUEST);
        }
        std::str::from_utf8(first.value).map(|value| Some(value.trim())).map_err(|_| BAD_REQUEST)
    }

    /// How long the body is; none where nothing says so.
    fn body_bytes(&self) -> Result<Option<u64>, Refused> {
        if self.get("transfer-encoding")?.is_some() {
            return Err(NO_LENGTH);
        }
        let Some(length) = self.get("content-length")? else { return Ok(None) };
        if length.is_empty() || !length.bytes().all(|byte| byte.is_ascii_digit()) {
            return Err(BAD_REQUEST);
        }
        // More digits than fit are more than may be.
        match length.parse() {
            Ok(length) if length <= BODY_BYTES_MAX => Ok(Some(length)),
            _ => Err(TOO_LARGE),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Feeds a stream in pieces: the last step, and what was answered.
    fn spoken(stream: &[u8], piece: usize) -> (Step, String) {
        let (mut request, mut input, mut output) = (Request::default(), BytesMut::new(), BytesMut::new());
        let mut step = Step::Read;
        for bytes in stream.chunks(piece) {
            input.extend_from_slice(bytes);
            step = request.handle(&mut input, &mut output);
            if step != Step::Read {
                break;
            }
        }
        assert!(input.len() < HEAD_BYTES_MAX + piece, "a body is not held");
        (step, String::from_utf8(output.to_vec()).unwrap())
    }

    fn digest(bytes: &[u8]) -> Question {
        Question::Sign { sha256: identity::Sha256(Sha256::digest(bytes).into()) }
    }

    #[test]
    fn questions_are_understood_however_they_are_cut() {
        let of = digest(b"other");
        let Question::Sign { sha256 } = of else { unreachable!() };
        for (stream, question) in [
            ("GET /identity HTTP/1.1\r\nHost: 10.0.2.2\r\n\r\n".to_owned(), Question::Who),
            ("GET /identity HTTP/1.0\r\n\r\n".into(), Question::Who),
            ("GET /identity/onions HTTP/1.1\r\nhost: [fd6f:6874:1::2]:80\r\n\r\n".into(), Question::Onions),
            ("POST /identity/sign HTTP/1.1\r\nContent-Length: 4\r\n\r\ntext".into(), digest(b"text")),
            ("POST /identity/sign HTTP/1.1\r\nContent-Length: 4\r\n\r\ntextmore".into(), digest(b"text")),
            ("POST /identity/sign HTTP/1.1\r\nContent-Length: 0\r\n\r\n".into(), digest(b"")),
            (format!("POST /identity/sign?sha256={sha256} HTTP/1.1\r\nContent-Length: 0\r\n\r\n"), of),
        ] {
            for piece in [1, 3, 20, stream.len()] {
                assert_eq!(spoken(stream.as_bytes(), piece), (Step::Ask(question), String::new()), "{stream}");
            }
        }
        let long = vec![b'x'; BODY_BYTES_MAX as usize];
        let stream = [b"POST /identity/sign HTTP/1.1\r\nContent-Length: 65536\r\n\r\n", &long[..]].concat();
        assert_eq!(spoken(&stream, 1460).0, Step::Ask(digest(&long)));
    }

    #[test]
    fn who_waits_to_send_a_body_is_told_to() {
        let stream = b"POST /identity/sign HTTP/1.1\r\nExpect: 100-continue\r\nContent-Length: 1\r\n\r\n";
        assert_eq!(spoken(stream, 500), (Step::Read, "HTTP/1.1 100 Continue\r\n\r\n".to_owned()));
    }

    #[test]
    fn what_is_not_understood_is_a_problem_with_words() {
        let post = |fields: &str| format!("POST /identity/sign HTTP/1.1\r\n{fields}\r\n\r\nabc");
        for (stream, status) in [
            ("nonsense\r\n\r\n".to_owned(), "400"),
            ("GET / HTTP/1.1\r\n\r\n".into(), "404"),
            ("GET /identity?x HTTP/1.1\r\n\r\n".into(), "404"),
            ("GET http://10.0.2.2/identity HTTP/1.1\r\n\r\n".into(), "404"),
            ("POST /identity HTTP/1.1\r\n\r\n".into(), "405"),
            ("GET /identity/sign HTTP/1.1\r\n\r\n".into(), "405"),
            ("GET /identity HTTP/1.1\r\nHost: evil.example\r\n\r\n".into(), "403"),
            ("GET /identity HTTP/1.1\r\nHost: 10.0.2.2\r\nHost: 10.0.2.2\r\n\r\n".into(), "400"),
            (post("Content-Length: 3\r\nOrigin: http://evil.example"), "403"),
            (post("Content-Length: 3\r\nOrigin: null"), "403"),
            (post("X: y"), "411"),
            (post("Transfer-Encoding: chunked"), "411"),
            (post("Content-Length: 65537"), "413"),
            (post("Content-Length: 99999999999999999999999"), "413"),
            (post("Content-Length: -1"), "400"),
            (post("Content-Length: +3"), "400"),
            (post("Content-Length: 3\r\nContent-Length: 4"), "400"),
            ("POST /identity/sign?sha256=12 HTTP/1.1\r\n\r\n".into(), "400"),
            (format!("GET /identity HTTP/1.1\r\n{}\r\n", "a: b\r\n".repeat(65)), "431"),
            (format!("GET /identity HTTP/1.1\r\na: {}\r\n\r\n", "b".repeat(9000)), "431"),
        ] {
            let (step, said) = spoken(stream.as_bytes(), 500);
            assert!(step == Step::Close && said.starts_with(&format!("HTTP/1.1 {status} ")), "{stream}: {said}");
            let body = said.split_once("\r\n\r\n").unwrap().1;
            assert!(body.contains(&format!("\"status\":{status}")) && body.contains("\"detail\":"), "{said}");
            assert!(said.contains(&format!("Content-Length: {}\r\n", body.len())), "{said}");
        }
    }

    #[test]
    fn an_answer_that_is_too_long_is_none() {
        let service = wire::identity::OnionService { name: "x".repeat(1000), onion: String::new() };
        let mut output = BytesMut::new();
        put(&Answer::Onions(vec![service; 100]), &mut output);
        assert!(output.starts_with(b"HTTP/1.1 500 ") && output.len() < 1000);
    }
}
