//! The control connections: what the host tells guest-init and the router, and what they report.
//!
//! ```text
//! length u32 LE | JSON
//! ```
//!
//! JSON, because these messages are few and people read them in logs. A message that this version does not know, or
//! with a field that it does not know, is an error: both ends are built together, so it means that something is wrong.

use std::{
    collections::BTreeMap,
    net::{Ipv4Addr, SocketAddr},
};

use serde::{Deserialize, Serialize, de::DeserializeOwned};

use crate::{
    VmName,
    entry::TorEntry,
    identity::{Answer, Question},
    network::TorNetwork,
    onion::{Onions, Reachability, ServiceName},
    route::{Country, RoutesPart},
};

/// Bytes of the longest message: the relays of a consensus, about 10,000 addresses.
pub const MESSAGE_BYTES_MAX: usize = 1 << 20;

/// Relays of which the country is told at most: four times today's public network.
pub const COUNTRY_ADDRESSES_MAX: usize = 40_000;

/// From the host agent to guest-init.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum ToInit {
    /// First of all: set the clock to this many nanoseconds since the Unix epoch, then start the router program.
    Provision {
        /// Nanoseconds since 1970-01-01T00:00:00Z.
        unix_time_ns: u64,
    },
    /// Stop the router program, unmount the state, power the VM off.
    PowerOff,
}

/// From guest-init to the host agent.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum FromInit {
    /// The VM is up: state mounted, clock set, the router program started.
    Ready {
        /// Milliseconds since the kernel began.
        uptime_ms: u64,
        /// What `uname -r` says.
        kernel: String,
        /// Memory of the VM in KiB: total, available.
        memory_kib: (u64, u64),
    },
    /// Something failed; the VM goes on if it can.
    Failure {
        /// What was attempted and why it failed.
        what: String,
    },
    /// The router program ended and is started again after the delay.
    ProgramEnded {
        /// Its exit status or signal, in words.
        how: String,
        /// Milliseconds until it is started again.
        restart_ms: u64,
    },
    /// The state is unmounted, the VM powers off when this has been acknowledged by closing the connection.
    PoweringOff,
}

/// From the host agent to the router.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum ToRouter {
    /// First of all, once: which network to use, and how to enter it. Names bridges: not to be logged.
    Configure {
        /// The Tor network.
        network: TorNetwork,
        /// Bridges, vanguards.
        entry: TorEntry,
    },
    /// Part of a table of routes. The first table comes before the first VM; each later one takes the place of the one
    /// before, once it is whole. Holds passwords of proxies: not to be logged.
    Routes(RoutesPart),
    /// In which countries relays are, by their IPv4 addresses, which every relay has; in place of what was said before.
    /// Sent where a route asks for a country, and at most [`COUNTRY_ADDRESSES_MAX`] addresses.
    Countries {
        /// The addresses of each country.
        of: BTreeMap<Country, Vec<Ipv4Addr>>,
    },
    /// Serve this VM: connect to its frame link and keep connecting.
    Attach {
        /// The VM.
        vm: VmName,
        /// The vsock port of its link.
        link_port: u32,
    },
    /// Stop serving this VM and close its streams.
    Detach {
        /// The VM.
        vm: VmName,
    },
    /// From now on these are the onion services of this VM, which is being served, and those that it may reach; all
    /// that there was before and is not named ends.
    Onions {
        /// The VM.
        vm: VmName,
        /// Its services, and keys of others'.
        onions: Onions,
    },
    /// The port of this VM ended, and a successor is about to be started: the link that stood is dead. The vsock
    /// device does not always say so: what it finds when it reads from a process that died with bytes unread is an
    /// error, and it keeps such a connection open for ever.
    PortEnded {
        /// The VM.
        vm: VmName,
    },
    /// The same of the uplink, and of every connection to a relay.
    UplinkEnded,
    /// The answer to an [`FromRouter::Ask`].
    Answer {
        /// Its number.
        id: u64,
        /// What the VM is told.
        answer: Answer,
    },
    /// From now on no stream of this VM goes by a circuit that carried an earlier one.
    NewCircuits {
        /// The VM.
        vm: VmName,
        /// For the answer.
        order: u64,
        /// Whether the streams that are open end.
        end_streams: bool,
    },
}

/// From the router to the host agent.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum FromRouter {
    /// How far the Tor client has come.
    Bootstrap {
        /// 0 to 100.
        percent: u8,
        /// Whether streams can be opened.
        usable: bool,
        /// What it is doing, or what blocks it, in words.
        status: String,
    },
    /// The ORPorts of the relays in the consensus: with those of the network's description, all that may be dialled.
    Relays {
        /// Every ORPort.
        orports: Vec<SocketAddr>,
    },
    /// A table of routes is in force: every stream from now on obeys it, and those that it does not keep are ended.
    RoutesApplied {
        /// Its [number](RoutesPart::table).
        table: u64,
    },
    /// A [`ToRouter::NewCircuits`] is obeyed.
    CircuitsRenewed {
        /// Its number.
        order: u64,
    },
    /// A VM asks about itself, to be answered by [`ToRouter::Answer`].
    Ask {
        /// The VM, as the router says.
        vm: VmName,
        /// Which question this is: unique for as long as the connection stands.
        id: u64,
        /// What it asks.
        question: Question,
    },
    /// The link of a VM was connected, or was lost and is being connected again.
    Link {
        /// The VM.
        vm: VmName,
        /// Whether it stands.
        up: bool,
    },
    /// A stream of a VM was attached to a circuit. Says nothing about where the stream goes.
    Stream {
        /// The VM.
        vm: VmName,
        /// A number that is unique to the circuit for as long as the router runs.
        circuit: String,
        /// The RSA identities of the circuit's relays, in order, 40 hexadecimal digits each; the last is the exit,
        /// or the rendezvous point where the stream goes to an onion service.
        relays: Vec<String>,
        /// Whether the stream goes to an onion service.
        onion: bool,
        /// The IPv4 address of the exit; none where there is no exit.
        exit: Option<Ipv4Addr>,
    },
    /// What became of an onion service.
    Service {
        /// The VM.
        vm: VmName,
        /// The service.
        service: ServiceName,
        /// Whether it was reached.
        reachability: Reachability,
        /// What is being done, or what went wrong, in words.
        status: String,
    },
    /// How much memory and how many flows the router has, and what each VM has used.
    Usage {
        /// Resident memory of the program in KiB.
        resident_kib: u64,
        /// Memory of the VM that is available, in KiB.
        available_kib: u64,
        /// Open flows of all VMs.
        flows: u32,
        /// The VMs, at most [`crate::VMS_MAX`].
        vms: Vec<VmUsage>,
    },
    /// Something failed; the router goes on if it can.
    Failure {
        /// What was attempted and why it failed.
        what: String,
    },
}

/// What one VM uses and has used. Counts begin anew with the router program.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VmUsage {
    /// The VM.
    pub vm: VmName,
    /// Flows that are open now.
    pub flows: u32,
    /// Circuits that carry its streams now.
    pub circuits: u32,
    /// How often a stream was tried again on another circuit.
    pub retries: u64,
    /// Payload bytes of TCP from the VM.
    pub bytes_from_vm: u64,
    /// Payload bytes of TCP to the VM.
    pub bytes_to_vm: u64,
    /// What was dropped, refused or given up, by reason: words of a-z and `_`. A dozen or two.
    pub drops: BTreeMap<String, u64>,
}

/// Why bytes are not a message.
#[derive(Debug, thiserror::Error)]
pub enum ControlError {
    /// A length outside the bounds.
    #[error("the peer announces a control message of {0} bytes; at most {MESSAGE_BYTES_MAX} are allowed")]
    Length(usize),
    /// Not a message that this version knows.
    #[error("the peer sent a control message that this version does not know")]
    Json(#[source] serde_json::Error),
}

/// The bytes of a message.
///
/// # Errors
/// When it is longer than [`MESSAGE_BYTES_MAX`].
pub fn encode<M: Serialize>(message: &M) -> Result<Vec<u8>, ControlError> {
    let json = serde_json::to_vec(message).map_err(ControlError::Json)?;
    let length = u32::try_from(json.len()).ok().filter(|_| json.len() <= MESSAGE_BYTES_MAX);
    let Some(length) = length else { return Err(ControlError::Length(json.len())) };
    let mut bytes = Vec::with_capacity(4 + json.len());
    bytes.extend_from_slice(&length.to_le_bytes());
    bytes.extend_from_slice(&json);
    Ok(bytes)
}

/// Reads a message from the start of `bytes`: the message and how many bytes it took, or `None` when more are needed.
///
/// # Errors
/// When the bytes cannot become a message. The connection is to be closed then.
pub fn decode<M: DeserializeOwned>(bytes: &[u8]) -> Result<Option<(M, usize)>, ControlError> {
    let Some((length, rest)) = bytes.split_first_chunk::<4>() else { return Ok(None) };
    let length = body_bytes(*length)?;
    let Some(json) = rest.get(..length) else { return Ok(None) };
    let message = serde_json::from_slice(json).map_err(ControlError::Json)?;
    Ok(Some((message, 4 + length)))
}

/// How many bytes follow a length prefix: for readers that read exactly the prefix, then exactly the body.
///
/// # Errors
/// When it is more than [`MESSAGE_BYTES_MAX`].
pub fn body_bytes(prefix: [u8; 4]) -> Result<usize, ControlError> {
    let length = u32::from_le_bytes(prefix) as usize;
    if length > MESSAGE_BYTES_MAX { Err(ControlError::Length(length)) } else { Ok(length) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn attach() -> ToRouter {
        ToRouter::Attach { vm: "web".parse().unwrap(), link_port: 2048 }
    }

    #[test]
    fn messages_survive_every_cut() {
        let bytes = encode(&attach()).unwrap();
        for at_hand in 0..bytes.len() {
            assert!(decode::<ToRouter>(&bytes[..at_hand]).unwrap().is_none());
        }
        assert_eq!(decode(&bytes).unwrap(), Some((attach(), bytes.len())));
    }

    #[test]
    fn unknown_messages_fields_and_names_are_refused() {
        for json in [
            r#"{"explode":{}}"#,
            r#"{"attach":{"vm":"web","link_port":1,"more":2}}"#,
            r#"{"attach":{"vm":"../web","link_port":1}}"#,
            r#"{"attach":{"vm":"web","link_port":-1}}"#,
            r#"{"attach":{"vm":"web"}}"#,
            r#"{"countries":{"of":{"CHE":["192.0.2.1"]}}}"#,
            r#"{"new_circuits":{"vm":"../web","order":1,"end_streams":true}}"#,
            r#"{"answer":{"id":1,"answer":{"who":{}}}}"#,
            r#"{"routes":{"table":1,"total":0,"from":0,"routes":[],"more":1}}"#,
            "",
        ] {
            let mut bytes = u32::try_from(json.len()).unwrap().to_le_bytes().to_vec();
            bytes.extend_from_slice(json.as_bytes());
            assert!(matches!(decode::<ToRouter>(&bytes), Err(ControlError::Json(_))), "{json}");
        }
    }

    #[test]
    fn long_messages_are_refused_before_they_are_read() {
        assert!(matches!(decode::<ToRouter>(&[0xff; 4]), Err(ControlError::Length(_))));
        let relays = vec!["[2001:db8:1:2:3:4:5:6]:65535".parse().unwrap(); 50_000];
        assert!(matches!(encode(&FromRouter::Relays { orports: relays }), Err(ControlError::Length(_))));
    }

    #[test]
    fn the_countries_of_all_relays_fit_a_message() {
        let countries = (b'A'..=b'Z').cycle().map(|letter| format!("A{}", char::from(letter)).parse().unwrap());
        let mut of = BTreeMap::<Country, Vec<Ipv4Addr>>::new();
        for (number, country) in (0..COUNTRY_ADDRESSES_MAX as u32).zip(countries) {
            of.entry(country).or_default().push(Ipv4Addr::from(0xc8c8_c8c8 + number));
        }
        let countries = ToRouter::Countries { of };
        let bytes = encode(&countries).unwrap();
        assert_eq!(decode(&bytes).unwrap(), Some((countries, bytes.len())));
    }

    #[test]
    fn the_usage_of_all_vms_with_long_names_fits_a_message() {
        let usage = |number: usize| VmUsage {
            vm: format!("{number:0>63}").parse().unwrap(),
            flows: u32::MAX,
            circuits: u32::MAX,
            retries: u64::MAX,
            bytes_from_vm: u64::MAX,
            bytes_to_vm: u64::MAX,
            drops: (0..50).map(|reason| (format!("{reason:0>40}"), u64::MAX)).collect(),
        };
        let vms = (0..crate::VMS_MAX).map(usage).collect();
        let usage = FromRouter::Usage { resident_kib: u64::MAX, available_kib: u64::MAX, flows: u32::MAX, vms };
        let bytes = encode(&usage).unwrap();
        assert_eq!(decode(&bytes).unwrap(), Some((usage, bytes.len())));
    }
}
