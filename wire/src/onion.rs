//! Onion services of VMs: what the agent tells the router to publish, and what the router finds of it.
//!
//! Everything a person or a file says is parsed once into one of these types. Secrets are a type of their own
//! ([`Secret`]), which neither shows itself nor stays in memory.

mod address;
mod discovery;
mod name;
mod ports;
mod secret;

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

pub use address::{AddressError, OnionAddress};
pub use discovery::{DiscoveryKey, DiscoveryKeyError};
pub use name::{ServiceName, ServiceNameError};
pub use ports::{PortError, PortMapping};
pub use secret::Secret;

/// Services of one VM at most.
pub const SERVICES_MAX: usize = 16;

/// Ports of one service at most.
pub const PORTS_MAX: usize = 16;

/// Clients of one service at most, if it is for some only: each makes its descriptor longer, which has 50,000 bytes at
/// most (param-spec, `HSV3MaxDescriptorSize`).
pub const CLIENTS_MAX: usize = 64;

/// Restricted services that one VM may reach at most.
pub const AUTHORISED_MAX: usize = 64;

/// Streams that a service has at a time, at most; and how many if nothing is said.
pub const STREAMS_MAX: u32 = 1024;
/// See [`STREAMS_MAX`].
pub const STREAMS_DEFAULT: u32 = 64;

/// All that concerns onion services of one VM: what it publishes, and what it may reach.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Onions {
    /// Its services, at most [`SERVICES_MAX`].
    pub services: BTreeMap<ServiceName, Service>,
    /// The restricted services that it may reach, at most [`AUTHORISED_MAX`], and its X25519 key for each.
    pub authorised: BTreeMap<OnionAddress, Secret>,
}

/// A service that is to be published.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Service {
    /// The seed of its identity.
    pub key: Secret,
    /// What it offers to whom.
    pub terms: ServiceTerms,
}

/// What a service offers, and to whom.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ServiceTerms {
    /// Its ports and where they lead, at least one; each port once.
    pub ports: Vec<PortMapping>,
    /// Whom it is for; for everybody who knows its address if there are none.
    #[serde(default)]
    pub clients: Vec<DiscoveryKey>,
    /// Streams that it has at a time, at most.
    pub max_streams: u32,
}

/// Why a service cannot be had.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TermsError {
    /// Too many services.
    #[error("a VM has {SERVICES_MAX} onion services at most: unpublish one")]
    Services,
    /// Too many keys.
    #[error("a VM may reach {AUTHORISED_MAX} restricted onion services at most: take one away from it")]
    Authorised,
    /// Too few or too many ports, or one twice.
    #[error("a service has 1 to {PORTS_MAX} ports, each of them once")]
    Ports,
    /// Too many clients, or one twice.
    #[error("a service is for {CLIENTS_MAX} clients at most, each with a key of its own")]
    Clients,
    /// A limit that is none.
    #[error("a service has room for 1 to {STREAMS_MAX} streams, not for {0}")]
    Streams(u32),
}

impl Onions {
    /// Whether the bounds are kept.
    ///
    /// # Errors
    /// Says which one is not.
    pub fn check(&self) -> Result<(), TermsError> {
        if self.services.len() > SERVICES_MAX {
            return Err(TermsError::Services);
        }
        if self.authorised.len() > AUTHORISED_MAX {
            return Err(TermsError::Authorised);
        }
        self.services.values().try_for_each(|service| service.terms.check())
    }
}

impl ServiceTerms {
    /// Whether the bounds are kept.
    ///
    /// # Errors
    /// Says which one is not.
    pub fn check(&self) -> Result<(), TermsError> {
        let is_set = |count: usize, distinct: usize, max: usize| count == distinct && count <= max;
        let ports: BTreeSet<_> = self.ports.iter().map(|mapping| mapping.port).collect();
        if self.ports.is_empty() || !is_set(self.ports.len(), ports.len(), PORTS_MAX) {
            return Err(TermsError::Ports);
        }
        let clients: BTreeSet<_> = self.clients.iter().collect();
        if !is_set(self.clients.len(), clients.len(), CLIENTS_MAX) {
            return Err(TermsError::Clients);
        }
        if !(1..=STREAMS_MAX).contains(&self.max_streams) {
            return Err(TermsError::Streams(self.max_streams));
        }
        Ok(())
    }

    /// Where a port leads, if it is one of the service's.
    #[must_use]
    pub fn vm_port(&self, port: u16) -> Option<u16> {
        self.ports.iter().find(|mapping| mapping.port.get() == port).map(|mapping| mapping.vm_port.get())
    }
}

/// What is known of a service: found by connecting to it through Tor, as any client does.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Reachability {
    /// It was not reached yet since it was published.
    #[default]
    Publishing,
    /// A connection to its first port went through to the VM.
    Reachable,
    /// The service was reached, and the VM refuses connections to that port.
    Refused,
    /// The last attempt failed.
    Unreachable,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn terms(ports: &[&str]) -> ServiceTerms {
        let ports = ports.iter().map(|port| port.parse().unwrap()).collect();
        ServiceTerms { ports, clients: vec![], max_streams: STREAMS_DEFAULT }
    }

    #[test]
    fn bounds_of_a_service() {
        assert_eq!(terms(&["80:8080", "443"]).check(), Ok(()));
        assert_eq!(terms(&["80:8080", "443"]).vm_port(80), Some(8080));
        assert_eq!(terms(&["80:8080", "443"]).vm_port(8080), None);
        assert_eq!(terms(&[]).check(), Err(TermsError::Ports));
        assert_eq!(terms(&["80", "80:81"]).check(), Err(TermsError::Ports));
        let many: Vec<String> = (1..=17).map(|port: u32| port.to_string()).collect();
        assert_eq!(terms(&many.iter().map(String::as_str).collect::<Vec<_>>()).check(), Err(TermsError::Ports));
        let key = DiscoveryKey::from([7; 32]);
        assert_eq!(ServiceTerms { clients: vec![key, key], ..terms(&["80"]) }.check(), Err(TermsError::Clients));
        let clients = (0..65).map(|n| DiscoveryKey::from([n; 32])).collect();
        assert_eq!(ServiceTerms { clients, ..terms(&["80"]) }.check(), Err(TermsError::Clients));
        for max_streams in [0, STREAMS_MAX + 1] {
            let terms = ServiceTerms { max_streams, ..terms(&["80"]) };
            assert_eq!(terms.check(), Err(TermsError::Streams(max_streams)));
        }
    }
}
