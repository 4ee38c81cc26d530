//! Pluggable transports: processes that make what is said to a bridge look like something else.
//!
//! They are the programs that C tor uses, started as *managed clients* (Tor's pt-spec, version 1): what they should do is in
//! their environment, and on their standard output they say where they offer SOCKS5. They run beside the uplink, on the
//! host, under the same supervision as every other child, and they alone connect to their bridges; the uplink connects to
//! that port of theirs and to no other ([`Control::transport_is`]).
//!
//! ```text
//! started ─► VERSION 1 ─► CMETHOD name socks5 127.0.0.1:port ─► listens ─► output ended: listens nowhere ─► started again
//!                 └─ VERSION-ERROR, ENV-ERROR, CMETHOD-ERROR: a failure on record, listens nowhere
//! ```
//!
//! What a transport says is bounded, and believed only about itself: a port on this host's loopback.

use std::{fs, io, net::SocketAddr, path::PathBuf};

use tokio::{
    io::{AsyncBufReadExt, AsyncRead, AsyncReadExt, BufReader},
    task::{AbortHandle, JoinHandle},
};
use wire::bridge::Transport;

use crate::{
    config::Settings,
    control::Control,
    spawn::Spawn,
    supervise::{self, Shared, Stopper, Supervised},
};

/// Bytes of a line that a transport may say.
const LINE_BYTES_MAX: u64 = 4096;

/// The transports that run.
pub struct Transports(Vec<(Stopper, JoinHandle<()>)>);

/// What a line of a transport means to us.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Said {
    /// It offers SOCKS5 there.
    Listens(SocketAddr),
    /// It cannot do what it should, in its words.
    Fails(String),
    /// Nothing.
    Other,
}

impl Transports {
    /// Starts those that the bridges need; tells `control` where they listen.
    #[must_use]
    pub fn start(settings: &Settings, shared: &Shared, control: &Control) -> Transports {
        let one = |(transport, program): (&Transport, &PathBuf)| {
            let name = format!("transport:{transport}");
            let state = settings.state.path().join("transports").join(transport.as_str());
            let spawn = Spawn { program: program.clone(), arguments: vec![], log: settings.run.process_log(&name) };
            let start = starter(spawn, state, transport.clone(), control.clone());
            let (stopper, stop) = Stopper::new();
            (stopper, tokio::spawn(supervise::keep_running(shared.clone(), name, stop, start)))
        };
        Transports(settings.transports.iter().map(one).collect())
    }

    /// Ends them.
    pub async fn end(self) {
        self.0.iter().for_each(|(stopper, _)| stopper.stop());
        for (_, task) in self.0 {
            let _ = task.await;
        }
    }
}

fn starter(
    spawn: Spawn,
    state: PathBuf,
    transport: Transport,
    control: Control,
) -> impl FnMut(&Shared, &str) -> io::Result<Supervised> {
    let mut hearing: Option<AbortHandle> = None;
    move |shared, name| {
        if let Some(before) = hearing.take() {
            before.abort();
        }
        control.transport_is(&transport, None);
        fs::create_dir_all(&state)?;
        let environment = [
            ("TOR_PT_MANAGED_TRANSPORT_VER", "1".into()),
            ("TOR_PT_CLIENT_TRANSPORTS", transport.as_str().into()),
            ("TOR_PT_STATE_LOCATION", state.clone().into_os_string()),
        ];
        let mut process = shared.start_heard(name, spawn.clone(), &environment)?;
        if let Some(output) = process.output() {
            let heard = hear(output, transport.clone(), control.clone(), shared.clone());
            hearing = Some(tokio::spawn(heard).abort_handle());
        }
        Ok(process)
    }
}

/// Follows what a transport says until it ends.
async fn hear(output: impl AsyncRead + Unpin, transport: Transport, control: Control, shared: Shared) {
    let mut output = BufReader::new(output);
    loop {
        let mut line = Vec::new();
        let read = (&mut output).take(LINE_BYTES_MAX).read_until(b'\n', &mut line).await;
        if !matches!(read, Ok(1..)) {
            break;
        }
        match understand(&transport, &String::from_utf8_lossy(&line)) {
            Said::Listens(address) => control.transport_is(&transport, Some(address)),
            Said::Fails(why) => shared.model().failure(format!("transport {transport}: {why}")),
            Said::Other => {}
        }
    }
    control.transport_is(&transport, None);
}

/// A line of the transport's (pt-spec, sections 3.3.1 and 3.3.2).
fn understand(transport: &Transport, line: &str) -> Said {
    let mut words = line.split_ascii_whitespace();
    let keyword = words.next().unwrap_or_default();
    match keyword {
        "CMETHOD" if words.next() == Some(transport.as_str()) => match (words.next(), words.next().map(str::parse)) {
            (Some("socks5"), Some(Ok(address))) if is_own(&address) => Said::Listens(address),
            _ => Said::Fails("it does not offer SOCKS5 on a port of this host".into()),
        },
        // What it says may name its bridge; its first word does not.
        "VERSION-ERROR" | "ENV-ERROR" | "CMETHOD-ERROR" => Said::Fails(format!("it cannot start: {keyword}")),
        _ => Said::Other,
    }
}

fn is_own(address: &SocketAddr) -> bool {
    address.ip().is_loopback() && address.port() != 0
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(line: &str) -> Said {
        understand(&"obfs4".parse().unwrap(), line)
    }

    #[test]
    fn lines_of_the_specification_are_understood() {
        assert_eq!(said("CMETHOD obfs4 socks5 127.0.0.1:32784\n"), Said::Listens("127.0.0.1:32784".parse().unwrap()));
        for nothing in
            ["VERSION 1", "CMETHODS DONE", "", "LOG SEVERITY=info MESSAGE=x", "CMETHOD other socks5 127.0.0.1:1"]
        {
            assert_eq!(said(nothing), Said::Other, "{nothing}");
        }
        for wrong in [
            "CMETHOD obfs4 socks4 127.0.0.1:1",
            "CMETHOD obfs4 socks5 192.0.2.1:1",
            "CMETHOD obfs4 socks5 127.0.0.1:0",
            "CMETHOD obfs4",
            "VERSION-ERROR no-version",
            "CMETHOD-ERROR obfs4 cannot reach 203.0.113.1",
        ] {
            let Said::Fails(why) = said(wrong) else { panic!("{wrong}") };
            assert!(!why.contains("203.0"), "{why}");
        }
    }
}
