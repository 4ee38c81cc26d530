//! What the API says, as it stands in JSON. The agent writes these, `oht` reads them.

mod onions;
pub mod routes;

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

pub use crate::keys::report::KeysStatus;
use crate::nature::Kind;
pub use onions::{NewAuthorisation, NewOnionService, OnionServiceStatus};

/// How everything is.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct Status {
    /// The agent itself.
    pub agent: AgentStatus,
    /// The router VM.
    pub router: RouterStatus,
    /// Its Tor client.
    pub tor: TorStatus,
    /// The helper processes.
    pub processes: Vec<ProcessStatus>,
    /// The VMs.
    pub vms: Vec<VmStatus>,
    /// The keys.
    pub keys: KeysStatus,
    /// The last failures, oldest first; at most 20.
    pub failures: Vec<String>,
    /// How many failures there were in all.
    pub failures_total: u64,
}

/// The agent itself.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct AgentStatus {
    /// Its version.
    pub version: String,
    /// Its process ID.
    pub pid: u32,
    /// Seconds since it was started.
    pub uptime_s: f64,
    /// Where it keeps state.
    pub state_dir: String,
    /// Where its sockets and logs are.
    pub run_dir: String,
}

/// What the router VM is doing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum RouterState {
    /// It boots.
    #[default]
    Starting,
    /// guest-init said that it is ready.
    Ready,
    /// It ended, and is started again in a moment; `failures` says why.
    Failed,
    /// The agent is ending.
    Stopped,
}

/// The router VM.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct RouterStatus {
    /// What it is doing.
    pub state: RouterState,
    /// `kvm` or `tcg`; empty until decided.
    pub accel: String,
    /// Why that one.
    pub accel_reason: String,
    /// Seconds from QEMU's start to ready.
    pub boot_s: Option<f64>,
    /// How often it was started again.
    pub restarts: u32,
    /// Memory that the VM has left, in KiB.
    pub memory_available_kib: Option<u64>,
    /// Memory that the router program takes, in KiB.
    pub resident_kib: Option<u64>,
    /// Open flows of all VMs.
    pub flows: Option<u32>,
    /// Its kernel.
    pub kernel: Option<String>,
}

/// The Tor client.
#[derive(Clone, Debug, Default, Serialize, Deserialize, ToSchema)]
pub struct TorStatus {
    /// What the network is called.
    pub network: String,
    /// Through how many bridges the network is entered; with none, through guards of its choice.
    #[serde(default)]
    pub bridges: usize,
    /// How far it has come.
    pub percent: u8,
    /// Whether streams can be opened.
    pub usable: bool,
    /// What it is doing, or what blocks it.
    pub status: String,
    /// Seconds from ready to usable.
    pub bootstrap_s: Option<f64>,
}

/// A helper process.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct ProcessStatus {
    /// `qemu`, `vsock`, `virtiofsd`, `uplink`, `port:` and a VM, or `transport:` and a name.
    pub name: String,
    /// Its process ID; none while it is down.
    pub pid: Option<u32>,
    /// How often it was started again.
    pub restarts: u32,
    /// Seconds since it was started.
    pub up_s: Option<f64>,
}

/// A VM.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct VmStatus {
    /// Its name.
    pub name: String,
    /// Whether its port and the router are connected.
    pub link_up: bool,
    /// The process ID of its port.
    pub port_pid: Option<u32>,
    /// Where its QEMU connects.
    pub socket: String,
    /// What it is for.
    pub kind: Kind,
    /// Whether it is gone when the agent ends.
    pub ephemeral: bool,
    /// What it uses and has used; none until the router has said it, which it does every few seconds.
    pub usage: Option<VmUsage>,
}

/// What a VM uses and has used. Counts begin anew when the router program does.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct VmUsage {
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
    /// What was dropped, refused or given up, by reason; only reasons that occurred.
    pub drops: BTreeMap<String, u64>,
}

/// A circuit that carries, or carried, streams of a VM.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct CircuitStatus {
    /// The VM.
    pub vm: String,
    /// Unique for as long as the router runs.
    pub circuit: String,
    /// The relays' RSA identities in order, the exit or rendezvous point last.
    pub relays: Vec<String>,
    /// Whether it leads to an onion service.
    pub onion: bool,
    /// The country of the exit (ISO 3166-1 alpha-2); none where there is no exit, or it is not known (Debian's
    /// tor-geoipdb says it).
    #[serde(default)]
    pub country: Option<String>,
    /// Streams that were attached to it so far.
    pub streams: u64,
    /// When the last one was, in seconds since the Unix epoch.
    pub last: u64,
}

/// A VM to add.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NewVm {
    /// 1 to 63 of a-z, 0-9 and hyphens.
    #[schema(value_type = String, max_length = 63)]
    pub name: wire::VmName,
    /// What it is for; changes nothing about how it is served.
    #[serde(default)]
    pub kind: Kind,
    /// Whether it is to be gone when the agent ends, without a trace on disk.
    #[serde(default)]
    pub ephemeral: bool,
}

impl NewVm {
    /// A VM as most are.
    #[must_use]
    pub fn new(name: wire::VmName) -> NewVm {
        NewVm { name, kind: Kind::default(), ephemeral: false }
    }
}

/// What attaches a VM.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct Attachment {
    /// Arguments for QEMU.
    pub qemu: Vec<String>,
    /// Parts of a libvirt domain; none where the socket's path is nothing that XML can hold.
    pub libvirt: Option<LibvirtParts>,
    /// The vhost-user socket.
    pub socket: String,
    /// The hardware address, which is every VM's.
    pub mac: String,
}

/// What a libvirt domain needs, as XML.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct LibvirtParts {
    /// Goes into `<domain>`: memory that the VM's port can map.
    pub memory_backing: String,
    /// Goes into `<devices>`.
    pub interface: String,
    /// Goes into `<domain>`, where the guest is to be told an MTU.
    pub mtu_override: Option<String>,
}

/// A token to make: what it allows, and for how long.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
#[serde(tag = "scope", rename_all = "snake_case", deny_unknown_fields)]
pub enum NewToken {
    /// Reading everything, changing nothing.
    Monitor {
        /// For how long: at most 31 days.
        #[schema(minimum = 1, maximum = 2_678_400)]
        #[serde(deserialize_with = "whole")]
        seconds: u32,
    },
    /// Everything that concerns one VM.
    Vm {
        /// Its name.
        #[schema(value_type = String, max_length = 63)]
        name: wire::VmName,
        /// For how long: at most 31 days.
        #[schema(minimum = 1, maximum = 2_678_400)]
        #[serde(deserialize_with = "whole")]
        seconds: u32,
    },
}

/// A number without a fraction, as JSON Schema means it: 60.0 is one.
fn whole<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<u32, D::Error> {
    let number = serde_json::Number::deserialize(deserializer)?;
    let whole = number.as_u64().or_else(|| {
        let float = number.as_f64().filter(|float| float.fract() == 0.0 && (0.0..=f64::from(u32::MAX)).contains(float));
        // Within the range, and whole.
        float.map(|float| float as u64)
    });
    let number = whole.and_then(|whole| u32::try_from(whole).ok());
    number.ok_or_else(|| serde::de::Error::custom("a whole number from 0 to 4294967295 is needed"))
}

/// A token that was made.
#[derive(Clone, Serialize, Deserialize, ToSchema)]
pub struct MintedToken {
    /// The token, to be shown as `Authorization: Bearer …`. Whoever has it may use it.
    pub token: String,
    /// What revokes it.
    pub id: String,
    /// When it ends, in seconds since the Unix epoch.
    pub until: u64,
}

/// An error, as RFC 9457 has it.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct Problem {
    /// Always `about:blank`: the status says which kind of problem it is (RFC 9457, section 4.2.1).
    #[serde(rename = "type")]
    pub kind: String,
    /// The status in words.
    pub title: String,
    /// The HTTP status.
    pub status: u16,
    /// What happened and what to do.
    pub detail: String,
}
