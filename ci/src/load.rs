//! `cargo ci load …`: the clients of the benchmarks, run by them in a guest or on the host. Each prints one JSON object.
//!
//! This program is static, and a guest of the benchmarks has the host's file system for its root: so it is its own load
//! generator there. What measures bulk transfers is iperf3; this is for what iperf3 does not do.
//!
//! | command | what it does | prints |
//! | --- | --- | --- |
//! | `round-trips` | one byte there and back, again and again on one connection | `count`, `seconds` |
//! | `connections` | connects, one byte there and back, closes; one after the other | `count`, `seconds`, `first_byte_seconds` of one |
//! | `fetch` | a file by HTTP, over several connections at once, by SOCKS if wanted | `bytes`, `seconds` |

mod fetch;

use std::{
    io::{self, Read as _, Write as _},
    net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};

/// How long anything may stand still.
const PATIENCE: Duration = Duration::from_secs(30);

/// A byte that another one follows, and the last one of a connection.
const MORE: u8 = b'+';
const LAST: u8 = b'.';

/// Options of `cargo ci load`.
#[derive(clap::Args)]
pub(crate) struct Args {
    #[command(subcommand)]
    load: Load,
}

#[derive(clap::Subcommand)]
enum Load {
    /// One byte there and back on one connection.
    RoundTrips(Series),
    /// Connections with one byte there and back each.
    Connections(Series),
    /// A file by HTTP.
    Fetch(fetch::Args),
}

#[derive(clap::Args)]
struct Series {
    /// The server: it sends back what it gets.
    server: SocketAddr,
    /// How often.
    #[arg(long)]
    count: u32,
}

/// Runs a load.
pub(crate) fn run(args: &Args) -> Result<()> {
    let line = match &args.load {
        Load::RoundTrips(series) => round_trips(series.server, series.count),
        Load::Connections(series) => connections(series.server, series.count),
        Load::Fetch(args) => fetch::run(args),
    }?;
    println!("{line}");
    Ok(())
}

fn round_trips(server: SocketAddr, count: u32) -> Result<Value> {
    whole_connection(server)?; // warms up, and is not counted
    let began = Instant::now();
    let stream = connect(server)?;
    (0..count).try_for_each(|_| exchange(&stream, MORE))?;
    Ok(json!({ "count": count, "seconds": began.elapsed().as_secs_f64() }))
}

/// What the load `connections` does, and its report.
///
/// # Errors
/// When a connection fails.
pub(crate) fn connections(server: SocketAddr, count: u32) -> Result<Value> {
    whole_connection(server)?; // as above
    let began = Instant::now();
    let first_bytes = (0..count).map(|_| whole_connection(server)).sum::<Result<Duration>>()?;
    let first_byte = first_bytes.as_secs_f64() / f64::from(count);
    Ok(json!({ "count": count, "seconds": began.elapsed().as_secs_f64(), "first_byte_seconds": first_byte }))
}

fn connect(server: SocketAddr) -> Result<TcpStream> {
    let stream =
        TcpStream::connect_timeout(&server, PATIENCE).with_context(|| format!("cannot connect to {server}"))?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    Ok(stream)
}

/// One connection, which the server ends, as one of HTTP does. Returns how long it took to the first byte.
fn whole_connection(server: SocketAddr) -> Result<Duration> {
    let began = Instant::now();
    let stream = connect(server)?;
    exchange(&stream, LAST)?;
    let first_byte = began.elapsed();
    let after = (&stream).read(&mut [0]).context("the connection does not end")?;
    ensure!(after == 0, "more came back than was sent");
    Ok(first_byte)
}

fn exchange(mut stream: &TcpStream, byte: u8) -> Result<()> {
    stream.write_all(&[byte]).context("cannot send")?;
    stream.read_exact(&mut [0]).context("nothing comes back")
}

/// Serves on a port of the loopback until this program ends: what comes in goes back, until [`LAST`] comes.
///
/// # Errors
/// When no socket can be had.
pub(crate) fn echo_server() -> Result<SocketAddr> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).context("cannot listen")?;
    let address = listener.local_addr()?;
    thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            thread::spawn(move || echo(&stream)); // a failure is seen by the client
        }
    });
    Ok(address)
}

fn echo(mut stream: &TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let mut byte = [0];
    while stream.read(&mut byte)? > 0 {
        stream.write_all(&byte)?;
        if byte == [LAST] {
            break;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn series_are_counted_and_timed() {
        let server = echo_server().unwrap();
        for line in [round_trips(server, 20).unwrap(), connections(server, 20).unwrap()] {
            assert_eq!(line["count"], 20);
            assert!(line["seconds"].as_f64().unwrap() > 0.0);
        }
        let line = connections(server, 20).unwrap();
        let (whole, first_byte) = (&line["seconds"], line["first_byte_seconds"].as_f64().unwrap());
        assert!(first_byte > 0.0 && 20.0 * first_byte < whole.as_f64().unwrap(), "{line}");
    }

    #[test]
    fn a_server_that_refuses_is_an_error() {
        let nobody = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap().local_addr().unwrap();
        assert!(connect(nobody).is_err());
    }
}
