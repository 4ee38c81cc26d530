//! A file by HTTP over several connections at once: directly, or by SOCKS 5 (RFC 1928); the name is looked up where the
//! benchmark says, or by SOCKS.

use std::{
    io::{Read as _, Write as _},
    net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream, UdpSocket},
    thread,
    time::Instant,
};

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::{Value, json};

use super::{PATIENCE, connect};

/// Options of `cargo ci load fetch`.
#[derive(clap::Args)]
pub(super) struct Args {
    /// The host: a name or an address.
    host: String,
    /// Its port.
    port: u16,
    /// The path of the file.
    path: String,
    /// How many connections.
    #[arg(long, default_value_t = 1)]
    streams: usize,
    /// The SOCKS 5 server to go through.
    #[arg(long, conflicts_with = "resolver")]
    socks: Option<SocketAddr>,
    /// The DNS server to ask for the host.
    #[arg(long)]
    resolver: Option<IpAddr>,
}

/// Bytes of a file's part that are read at once.
const BUFFER_BYTES: usize = 64 * 1024;

/// Fetches.
pub(super) fn run(args: &Args) -> Result<Value> {
    let began = Instant::now();
    let fetched: Vec<Result<u64>> = thread::scope(|scope| {
        let streams: Vec<_> = (0..args.streams).map(|_| scope.spawn(|| fetch(args))).collect();
        streams.into_iter().map(|stream| stream.join().expect("a fetch does not panic")).collect()
    });
    let seconds = began.elapsed().as_secs_f64();
    let bytes = fetched.into_iter().sum::<Result<u64>>()?;
    Ok(json!({ "bytes": bytes, "seconds": seconds }))
}

/// Bytes of the body.
fn fetch(args: &Args) -> Result<u64> {
    let mut stream = open(args)?;
    let Args { host, port, path, .. } = args;
    write!(stream, "GET {path} HTTP/1.0\r\nHost: {host}:{port}\r\n\r\n").context("cannot ask")?;
    let mut buffer = vec![0; BUFFER_BYTES];
    let mut head = Vec::new();
    let (length, mut bytes) = loop {
        let read = stream.read(&mut buffer).context("no answer")?;
        ensure!(read > 0, "the answer ends in its head");
        head.extend_from_slice(&buffer[..read]);
        if let Some((length, head_bytes)) = parse_head(&head)? {
            break (length, (head.len() - head_bytes) as u64);
        }
    };
    while bytes < length {
        match stream.read(&mut buffer).context("the file breaks off")? {
            0 => bail!("{bytes} bytes of {length} came"),
            read => bytes += read as u64,
        }
    }
    Ok(bytes)
}

/// The length of the body, and the bytes of the head, once the head is whole.
fn parse_head(text: &[u8]) -> Result<Option<(u64, usize)>> {
    let Some(end) = text.windows(4).position(|window| window == b"\r\n\r\n") else { return Ok(None) };
    let head = String::from_utf8_lossy(&text[..end]).to_ascii_lowercase();
    ensure!(head.split(' ').nth(1) == Some("200"), "the server says {:?}", head.lines().next().unwrap_or(""));
    let length = head.lines().find_map(|line| line.strip_prefix("content-length:"));
    let length = length.and_then(|length| length.trim().parse().ok()).context("the file has no length")?;
    Ok(Some((length, end + 4)))
}

fn open(args: &Args) -> Result<TcpStream> {
    if let Some(socks) = args.socks {
        return through_socks(socks, &args.host, args.port);
    }
    let address = match (args.host.parse(), args.resolver) {
        (Ok(address), _) => address,
        (Err(_), Some(resolver)) => resolve(resolver, &args.host)?.into(),
        (Err(_), None) => bail!("{} is a name: say who resolves it", args.host),
    };
    connect(SocketAddr::new(address, args.port))
}

fn through_socks(socks: SocketAddr, host: &str, port: u16) -> Result<TcpStream> {
    let mut stream = connect(socks)?;
    let length = u8::try_from(host.len()).context("the name is too long")?;
    stream.write_all(&[5, 1, 0])?;
    let mut method = [0; 2];
    stream.read_exact(&mut method)?;
    ensure!(method == [5, 0], "the SOCKS server wants to know who asks");
    let mut request = vec![5, 1, 0, 3, length];
    request.extend_from_slice(host.as_bytes());
    request.extend_from_slice(&port.to_be_bytes());
    stream.write_all(&request)?;
    let mut reply = [0; 10]; // the address of a reply to CONNECT by Tor is always IPv4
    stream.read_exact(&mut reply)?;
    ensure!(reply[1] == 0, "the SOCKS server says {}", reply[1]);
    Ok(stream)
}

/// Asks for an A record (RFC 1035).
fn resolve(resolver: IpAddr, name: &str) -> Result<Ipv4Addr> {
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
    socket.set_read_timeout(Some(PATIENCE))?;
    socket.send_to(&question(name)?, (resolver, 53)).context("cannot ask the resolver")?;
    let mut answer = [0; 512];
    let bytes = socket.recv(&mut answer).context("the resolver does not answer")?;
    address(&answer[..bytes]).with_context(|| format!("{name} has no address"))
}

fn question(name: &str) -> Result<Vec<u8>> {
    let mut message = vec![0, 1, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
    for label in name.split('.') {
        message.push(u8::try_from(label.len()).context("a label is too long")?);
        message.extend_from_slice(label.as_bytes());
    }
    message.extend_from_slice(&[0, 0, 1, 0, 1]);
    Ok(message)
}

/// The address of an answer whose last record is the A record.
fn address(answer: &[u8]) -> Option<Ipv4Addr> {
    let answers = u16::from_be_bytes(answer.get(6..8)?.try_into().ok()?);
    let others = u32::from_be_bytes(answer.get(8..12)?.try_into().ok()?);
    let (_, last) = answer.split_last_chunk::<6>()?;
    (answers == 1 && others == 0 && last[..2] == [0, 4]).then(|| Ipv4Addr::new(last[2], last[3], last[4], last[5]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_head_has_a_length() {
        let head = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nab";
        assert_eq!(parse_head(head).unwrap(), Some((5, head.len() - 2)));
        assert_eq!(parse_head(&head[..20]).unwrap(), None);
        assert!(parse_head(b"HTTP/1.1 404 Not Found\r\nContent-Length: 5\r\n\r\n").is_err());
        assert!(parse_head(b"HTTP/1.1 200 OK\r\n\r\n").is_err());
    }

    #[test]
    fn an_address_is_found_in_the_answer_and_nowhere_else() {
        let mut answer = question("a.test").unwrap();
        assert_eq!(address(&answer), None);
        answer[7] = 1;
        answer.extend_from_slice(&[0xc0, 0x0c, 0, 1, 0, 1, 0, 0, 0, 60, 0, 4, 10, 192, 0, 7]);
        assert_eq!(address(&answer), Some(Ipv4Addr::new(10, 192, 0, 7)));
        assert_eq!(address(&answer[..answer.len() - 1]), None);
    }
}
