//! What the API says of onion services.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use wire::{
    VmName,
    onion::{DiscoveryKey, OnionAddress, PortMapping, Reachability, STREAMS_DEFAULT, Secret, ServiceName},
};

use crate::onion_services::KeyKind;

/// An onion service to publish.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NewOnionService {
    /// The VM that serves.
    #[schema(value_type = String, max_length = 63)]
    pub vm: VmName,
    /// 1 to 32 of a-z, 0-9 and hyphens.
    #[schema(value_type = String, max_length = 32)]
    pub name: ServiceName,
    /// Ports, as `PORT` or `PORT:VMPORT`.
    #[schema(value_type = Vec<String>, min_items = 1, max_items = 16)]
    pub ports: Vec<PortMapping>,
    /// Whom it is for, as `descriptor:x25519:BASE32`; for all who know its address if there are none.
    #[serde(default)]
    #[schema(value_type = Vec<String>, max_items = 64)]
    pub clients: Vec<DiscoveryKey>,
    /// Streams that it has at a time, at most.
    #[serde(default = "max_streams_default")]
    #[schema(minimum = 1, maximum = 1024)]
    pub max_streams: u32,
    /// How long it keeps its address.
    #[serde(default)]
    pub key: KeyKind,
}

fn max_streams_default() -> u32 {
    STREAMS_DEFAULT
}

/// An onion service of a VM.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct OnionServiceStatus {
    /// The VM.
    #[schema(value_type = String)]
    pub vm: VmName,
    /// Its name.
    #[schema(value_type = String)]
    pub name: ServiceName,
    /// Its address; none while its key cannot be had and never could since the agent was started.
    #[schema(value_type = Option<String>)]
    pub onion: Option<OnionAddress>,
    /// Ports, as `PORT` or `PORT:VMPORT`.
    #[schema(value_type = Vec<String>)]
    pub ports: Vec<PortMapping>,
    /// Whom it is for; for all if there are none.
    #[schema(value_type = Vec<String>)]
    pub clients: Vec<DiscoveryKey>,
    /// Streams that it has at a time, at most.
    pub max_streams: u32,
    /// How long it keeps its address.
    pub key: KeyKind,
    /// `publishing`, `reachable`, `refused` (Tor reaches it, and the VM refuses) or `unreachable`: found by connecting.
    #[schema(value_type = String)]
    pub reachability: Reachability,
    /// What is being done, or what went wrong.
    pub status: String,
}

/// A key for a restricted onion service.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NewAuthorisation {
    /// The service.
    #[schema(value_type = String)]
    pub onion: OnionAddress,
    /// The client's X25519 key in base32.
    #[schema(value_type = String)]
    pub key: Secret,
}
