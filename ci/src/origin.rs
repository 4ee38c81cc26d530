//! The origin: the HTTP/1.1 server that application VMs fetch from, and its record of who came.
//!
//! | path | answer |
//! | --- | --- |
//! | `/` | a page, always the same bytes |
//! | `/file/N` | N MiB of pseudo-random bytes, always the same for one N |
//! | `/slow/N` | a line a second, N of them |
//! | `/small/N` | some hundred bytes, others for each N |
//! | `/www/PATH` | the file PATH of the directory `www` beside the record |
//! | `/upload` (PUT, POST) | `SHA-256 length` of the body |
//!
//! One thread a connection, at most [`CONNECTIONS_MAX`]. The record has one JSON line a request ([`Visit`]) with the
//! process that holds the other end of the connection: that says which exit carried the request. (C tor does not bind
//! to its own address for destinations on loopback, so the address alone does not.)

use std::{
    fs::File,
    io::{self, BufRead, BufReader, Read, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    path::{Component, Path, PathBuf},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
    time::{Duration, SystemTime},
};

use anyhow::{Context as _, Result};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

/// More would be a test gone wrong.
const CONNECTIONS_MAX: usize = 1024;
/// A request's head, all lines together.
const HEAD_BYTES_MAX: u64 = 16 << 10;
const FILE_MIB_MAX: u64 = 1024;
const CHUNK_BYTES: usize = 64 << 10;

/// A request, as the record has it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Visit {
    /// When its head was there, in milliseconds since 1970.
    pub(crate) at_ms: u64,
    /// Where it came from.
    pub(crate) from: SocketAddr,
    /// The nickname of the exit, or of the onion service's host, that carried it; `None` for anything else.
    pub(crate) by: Option<String>,
    /// The method.
    pub(crate) method: String,
    /// The path.
    pub(crate) path: String,
    /// The `Host` header.
    pub(crate) host: String,
}

/// The record of the origin.
pub(crate) fn visits(record: &Path) -> Vec<Visit> {
    let text = std::fs::read_to_string(record).unwrap_or_default();
    text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect()
}

/// The page at `/`.
pub(crate) fn page() -> Vec<u8> {
    let mut page = String::from("<!doctype html>\n<title>First light</title>\n<h1>This page came through Tor</h1>\n");
    for line in 0..32_u32 {
        page.push_str(&format!(
            "<p>Line {line:02}: no packet of the reader's VM was ever in a kernel's IP stack.</p>\n"
        ));
    }
    page.into_bytes()
}

/// The bytes of `/file/N`, in chunks.
pub(crate) fn file(mib: u64) -> impl Iterator<Item = Vec<u8>> {
    let mut state = mib.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ 0x6f68_745f_6f72_6967;
    (0..(mib << 20) / CHUNK_BYTES as u64).map(move |_| {
        let mut chunk = Vec::with_capacity(CHUNK_BYTES);
        while chunk.len() < CHUNK_BYTES {
            chunk.extend_from_slice(&splitmix64(&mut state).to_le_bytes());
        }
        chunk
    })
}

/// The bytes of `/small/N`: 100 to 1099.
pub(crate) fn small(number: u64) -> Vec<u8> {
    let mut state = number;
    let bytes = 100 + splitmix64(&mut state) % 1000;
    (0..bytes).map(|_| splitmix64(&mut state).to_le_bytes()[0]).collect()
}

/// The SHA-256 of `/file/N`, as `sha256sum` prints it.
pub(crate) fn file_sha256(mib: u64) -> String {
    let mut hash = Sha256::new();
    file(mib).for_each(|chunk| hash.update(chunk));
    hex(&hash.finalize())
}

/// The SHA-256 of some bytes, as `sha256sum` prints it.
pub(crate) fn sha256(bytes: &[u8]) -> String {
    hex(&Sha256::digest(bytes))
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Steele, Lea, Flood: Fast splittable pseudorandom number generators (2014).
fn splitmix64(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mut z = *state;
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// Binds the server's socket.
pub(crate) fn bind(address: SocketAddr) -> Result<TcpListener> {
    TcpListener::bind(address).with_context(|| format!("cannot serve HTTP on {address}"))
}

/// Tells who holds the other end of a connection from this address.
pub(crate) type WhoIs = fn(&Path, SocketAddr) -> Option<String>;

/// Where visits are noted, and how it is found out who came.
#[derive(Debug)]
pub(crate) struct Record {
    /// The file.
    pub(crate) file: Mutex<File>,
    /// The world's directory, for `who_is`.
    pub(crate) dir: PathBuf,
    /// Who came.
    pub(crate) who_is: WhoIs,
}

/// Serves until this program ends.
pub(crate) fn serve(listener: &TcpListener, record: Record) {
    let record = Arc::new(record);
    let open = Arc::new(AtomicUsize::new(0));
    loop {
        let Ok((stream, from)) = listener.accept() else {
            thread::sleep(Duration::from_millis(50)); // out of descriptors, most likely: others will close
            continue;
        };
        if open.fetch_add(1, Ordering::Relaxed) >= CONNECTIONS_MAX {
            open.fetch_sub(1, Ordering::Relaxed);
            continue;
        }
        let (record, open) = (record.clone(), open.clone());
        thread::spawn(move || {
            let _ = connection(&stream, from, &record); // the peer's failure, and the peer sees it
            open.fetch_sub(1, Ordering::Relaxed);
        });
    }
}

fn connection(stream: &TcpStream, from: SocketAddr, record: &Record) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let by = (record.who_is)(&record.dir, from);
    let mut reader = BufReader::new(stream);
    while let Some(request) = Request::read(&mut reader)? {
        note(record, &request, from, by.as_deref())?;
        answer(&request, &mut reader, stream, &record.dir.join("www"))?;
        if !request.keep_alive {
            break;
        }
    }
    Ok(())
}

fn note(record: &Record, request: &Request, from: SocketAddr, by: Option<&str>) -> io::Result<()> {
    let at_ms =
        SystemTime::UNIX_EPOCH.elapsed().map_or(0, |since| u64::try_from(since.as_millis()).unwrap_or(u64::MAX));
    let visit = Visit {
        at_ms,
        from,
        by: by.map(str::to_owned),
        method: request.method.clone(),
        path: request.path.clone(),
        host: request.host.clone(),
    };
    let line = serde_json::to_string(&visit)? + "\n";
    record.file.lock().unwrap_or_else(PoisonError::into_inner).write_all(line.as_bytes())
}

#[derive(Debug, PartialEq, Eq)]
struct Request {
    method: String,
    path: String,
    host: String,
    body_bytes: u64,
    keep_alive: bool,
    wants_continue: bool,
}

impl Request {
    /// The next request, or `None` when the peer has no more.
    fn read(reader: &mut impl BufRead) -> io::Result<Option<Request>> {
        let mut head = reader.by_ref().take(HEAD_BYTES_MAX);
        let mut line = String::new();
        if head.read_line(&mut line)? == 0 {
            return Ok(None);
        }
        let mut words = line.split_whitespace().map(str::to_owned);
        let (Some(method), Some(path), Some(version)) = (words.next(), words.next(), words.next()) else {
            return Err(io::Error::other("no request line"));
        };
        let mut request = Request {
            method,
            path,
            host: String::new(),
            body_bytes: 0,
            keep_alive: version == "HTTP/1.1",
            wants_continue: false,
        };
        loop {
            line.clear();
            if head.read_line(&mut line)? == 0 {
                return Err(io::Error::other("the head ended early"));
            }
            let Some((name, value)) = line.split_once(':') else { break };
            request.header(&name.to_ascii_lowercase(), value.trim())?;
        }
        Ok(Some(request))
    }

    fn header(&mut self, name: &str, value: &str) -> io::Result<()> {
        match name {
            "host" => value.clone_into(&mut self.host),
            "content-length" => self.body_bytes = value.parse().map_err(io::Error::other)?,
            "connection" => self.keep_alive = !value.eq_ignore_ascii_case("close"),
            "expect" => self.wants_continue = true,
            _ => {}
        }
        Ok(())
    }
}

fn answer(request: &Request, reader: &mut impl Read, mut stream: &TcpStream, www: &Path) -> io::Result<()> {
    if request.wants_continue {
        stream.write_all(b"HTTP/1.1 100 Continue\r\n\r\n")?;
    }
    let (bytes, hash) = swallow(reader, request.body_bytes)?;
    let number = |prefix| request.path.strip_prefix(prefix).and_then(|n| n.parse::<u64>().ok());
    match request.method.as_str() {
        "PUT" | "POST" if request.path == "/upload" => whole(stream, request, format!("{hash} {bytes}\n").as_bytes()),
        "GET" | "HEAD" => match (stored(request, www), number("/file/"), number("/slow/")) {
            (Some(body), ..) => whole(stream, request, &body),
            (_, Some(mib), _) if mib <= FILE_MIB_MAX => {
                head(stream, request, "200 OK", mib << 20)?;
                parts(stream, request, file(mib))
            }
            (.., Some(lines)) if lines <= 3600 => {
                head(stream, request, "200 OK", lines * 5)?;
                parts(
                    stream,
                    request,
                    (0..lines).map(|_| {
                        thread::sleep(Duration::from_secs(1));
                        b"tick\n".to_vec()
                    }),
                )
            }
            _ => {
                head(stream, request, "404 Not Found", 9)?;
                parts(stream, request, [b"not here\n".to_vec()].into_iter())
            }
        },
        _ => head(stream, request, "405 Method Not Allowed", 0),
    }
}

/// What is there in one piece. A path below `/www/` that leads out of the directory names nothing.
fn stored(request: &Request, www: &Path) -> Option<Vec<u8>> {
    if request.path == "/" {
        return Some(page());
    }
    if let Some(number) = request.path.strip_prefix("/small/") {
        return number.parse().ok().map(small);
    }
    let path = Path::new(request.path.strip_prefix("/www/")?.split('?').next()?);
    let inside = path.components().all(|part| matches!(part, Component::Normal(_)));
    inside.then(|| std::fs::read(www.join(path)).ok()).flatten()
}

fn whole(stream: &TcpStream, request: &Request, body: &[u8]) -> io::Result<()> {
    head(stream, request, "200 OK", body.len() as u64)?;
    parts(stream, request, [body.to_vec()].into_iter())
}

fn head(mut stream: &TcpStream, request: &Request, status: &str, bytes: u64) -> io::Result<()> {
    let connection = if request.keep_alive { "keep-alive" } else { "close" };
    let head = format!("HTTP/1.1 {status}\r\nContent-Length: {bytes}\r\nConnection: {connection}\r\n\r\n");
    stream.write_all(head.as_bytes())
}

fn parts(mut stream: &TcpStream, request: &Request, mut body: impl Iterator<Item = Vec<u8>>) -> io::Result<()> {
    if request.method == "HEAD" {
        return Ok(());
    }
    body.try_for_each(|part| stream.write_all(&part))
}

/// Reads a body of `bytes`; gives its length and hash.
fn swallow(reader: &mut impl Read, bytes: u64) -> io::Result<(u64, String)> {
    let (mut hash, mut left, mut buffer) = (Sha256::new(), bytes, [0; 16 << 10]);
    while left > 0 {
        let wanted = buffer.len().min(usize::try_from(left).unwrap_or(usize::MAX));
        match reader.read(&mut buffer[..wanted])? {
            0 => return Err(io::ErrorKind::UnexpectedEof.into()),
            got => {
                hash.update(&buffer[..got]);
                left -= got as u64;
            }
        }
    }
    Ok((bytes, hex(&hash.finalize())))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn exchange(requests: &[u8]) -> (String, Vec<Visit>) {
        exchange_in(Path::new(""), requests)
    }

    fn exchange_in(dir: &Path, requests: &[u8]) -> (String, Vec<Visit>) {
        let dir = dir.to_owned();
        let record = tempfile::NamedTempFile::new().unwrap();
        let listener = bind("127.0.0.1:0".parse().unwrap()).unwrap();
        let address = listener.local_addr().unwrap();
        let file = record.reopen().unwrap();
        let record_of = move |file| Record { file: Mutex::new(file), dir, who_is: |_, _| Some("me".into()) };
        thread::spawn(move || serve(&listener, record_of(file)));
        let mut stream = TcpStream::connect(address).unwrap();
        stream.write_all(requests).unwrap();
        stream.shutdown(std::net::Shutdown::Write).unwrap();
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).unwrap();
        (String::from_utf8_lossy(&answer).into_owned(), visits(record.path()))
    }

    #[test]
    fn two_requests_on_one_half_closed_connection() {
        let body = b"PUT /upload HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n\r\nabc";
        let mut requests = body.to_vec();
        requests.extend_from_slice(b"GET / HTTP/1.1\r\nHost: y\r\nConnection: close\r\n\r\n");
        let (answer, visits) = exchange(&requests);
        assert!(answer.contains(&format!("{} 3\n", sha256(b"abc"))), "{answer}");
        assert!(answer.ends_with("</p>\n"), "{answer}");
        assert_eq!(visits.iter().map(|visit| visit.host.as_str()).collect::<Vec<_>>(), ["x", "y"]);
        assert_eq!(visits[0].by.as_deref(), Some("me"));
    }

    #[test]
    fn what_is_not_there_or_not_http() {
        assert!(exchange(b"GET /nothing HTTP/1.0\r\n\r\n").0.contains("404"));
        assert!(exchange(b"GET /file/9999999 HTTP/1.0\r\n\r\n").0.contains("404"));
        assert!(exchange(b"DELETE / HTTP/1.0\r\n\r\n").0.contains("405"));
        assert_eq!(exchange(b"\r\n\r\n").0, "");
    }

    #[test]
    fn files_on_disk_are_served_and_nothing_outside() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(dir.path().join("www/a")).unwrap();
        std::fs::write(dir.path().join("www/a/b"), "inside").unwrap();
        std::fs::write(dir.path().join("secret"), "outside").unwrap();
        let get = |path: &str| exchange_in(dir.path(), format!("GET {path} HTTP/1.0\r\n\r\n").as_bytes()).0;
        assert!(get("/www/a/b?query").ends_with("\r\n\r\ninside"));
        for path in ["/www/../secret", "/www//etc/passwd", "/www/a", "/www/", "/www/none"] {
            assert!(get(path).contains("404"), "{path}");
        }
    }

    #[test]
    fn small_files_differ() {
        let mut files: Vec<_> = (0..1000).map(small).collect();
        assert!(files.iter().all(|file| (100..1100).contains(&file.len())));
        files.sort();
        files.dedup();
        assert_eq!(files.len(), 1000);
    }

    #[test]
    fn files_have_their_length_and_one_hash() {
        assert_eq!(file(2).map(|chunk| chunk.len()).sum::<usize>(), 2 << 20);
        assert_eq!(file_sha256(2), file_sha256(2));
        assert_ne!(file_sha256(1), file_sha256(2));
    }
}
