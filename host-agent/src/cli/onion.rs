//! `oht onion …`.

use std::io::Read;

use clap::Subcommand;
use hyper::Method;
use wire::{
    VmName,
    onion::{DiscoveryKey, OnionAddress, PortMapping, Reachability, STREAMS_DEFAULT, ServiceName},
};
use zeroize::Zeroizing;

use super::{Places, output};
use crate::{
    client::Client,
    onion_services::{KeyKind, keys},
    status::{NewAuthorisation, NewOnionService, OnionServiceStatus},
};

/// Bytes of standard input that are read for a key.
const KEY_BYTES_MAX: u64 = 1024;

/// What can be done with onion services.
#[derive(Debug, Subcommand)]
pub(super) enum Onion {
    /// Publish what a VM serves as an onion service.
    Publish {
        /// Which VM.
        vm: VmName,
        /// The service's port, and the VM's port if it is another; several if there are several.
        #[arg(required = true, value_name = "PORT[:VMPORT]")]
        ports: Vec<PortMapping>,
        /// What to call it; `port-` and its first port if nothing is said.
        #[arg(long)]
        name: Option<ServiceName>,
        /// Whom it is for, by the line for the service that `oht onion client new` prints; for all if nothing is said.
        #[arg(long = "client", value_name = "KEY")]
        clients: Vec<DiscoveryKey>,
        /// Streams that it has at a time, at most.
        #[arg(long, default_value_t = STREAMS_DEFAULT)]
        max_streams: u32,
        /// How long it keeps its address.
        #[arg(long, value_enum, default_value_t)]
        key: KeyKind,
        #[command(flatten)]
        places: Places,
    },
    /// List the onion services, and whether they can be reached.
    List {
        /// Only this VM's.
        vm: Option<VmName>,
        #[command(flatten)]
        places: Places,
    },
    /// End an onion service. Its address is not used again.
    Unpublish {
        /// Which VM's.
        vm: VmName,
        /// Which service.
        name: ServiceName,
        #[command(flatten)]
        places: Places,
    },
    /// Give a VM a key for a restricted onion service, until the agent ends.
    Authorise {
        /// Which VM.
        vm: VmName,
        /// The service's address.
        onion: OnionAddress,
        /// Read the client's line from standard input (so far the only way).
        #[arg(long, required = true)]
        key_stdin: bool,
        #[command(flatten)]
        places: Places,
    },
    /// Take a VM's key for a restricted onion service away.
    Deauthorise {
        /// Which VM's.
        vm: VmName,
        /// The service's address.
        onion: OnionAddress,
        #[command(flatten)]
        places: Places,
    },
    /// Keys of clients of restricted onion services.
    Client {
        #[command(subcommand)]
        what: OnionClient,
    },
}

/// What can be done with keys of clients.
#[derive(Debug, Subcommand)]
pub(super) enum OnionClient {
    /// Make a key: prints a line for the service and one for the client, which nobody else may see.
    New {
        /// The service's address, if it is known: then the client's line is what C tor has in an .auth_private file.
        #[arg(long = "for", value_name = "ONION")]
        onion: Option<OnionAddress>,
    },
}

impl Onion {
    /// Does what was asked; `client` finds the agent.
    pub(super) async fn run(
        self,
        client: impl FnOnce(Places) -> anyhow::Result<Client>,
        json: bool,
    ) -> anyhow::Result<()> {
        match self {
            Onion::Publish { vm, ports, name, clients, max_streams, key, places } => {
                let name = match (name, ports.first()) {
                    (Some(name), _) => name,
                    (None, first) => format!("port-{}", first.map_or(0, |first| first.port.get())).parse()?,
                };
                let new = NewOnionService { vm, name, ports, clients, max_streams, key };
                publish(&client(places)?, &new, json).await
            }
            Onion::List { vm, places } => list(&client(places)?, vm.as_ref(), json).await,
            Onion::Unpublish { vm, name, places } => {
                client(places)?.order(Method::DELETE, &format!("/onions/{vm}/{name}")).await?;
                done(json, "unpublished", &format!("{vm}/{name}"))
            }
            Onion::Authorise { vm, onion, places, key_stdin: _ } => {
                let mut line = Zeroizing::new(String::new());
                std::io::stdin().take(KEY_BYTES_MAX).read_to_string(&mut line)?;
                let key = keys::parse_client_line(&line, &onion)?;
                let new = NewAuthorisation { onion: onion.clone(), key };
                client(places)?.tell(&format!("/vms/{vm}/authorisations"), &new).await?;
                done(json, "authorised", &format!("{vm} for {onion}"))
            }
            Onion::Deauthorise { vm, onion, places } => {
                client(places)?.order(Method::DELETE, &format!("/vms/{vm}/authorisations/{onion}")).await?;
                done(json, "deauthorised", &format!("{vm} for {onion}"))
            }
            Onion::Client { what: OnionClient::New { onion } } => new_client(onion.as_ref(), json),
        }
    }
}

async fn publish(client: &Client, new: &NewOnionService, json: bool) -> anyhow::Result<()> {
    let service: OnionServiceStatus = client.post("/onions", new).await?;
    if json {
        return output::json(&service);
    }
    let (vm, onion) = (&service.vm, address(&service));
    output::text(&format!("{onion}\nit takes a moment until clients reach it: `oht onion list {vm}` says when they do"))
}

async fn list(client: &Client, vm: Option<&VmName>, json: bool) -> anyhow::Result<()> {
    let mut services: Vec<OnionServiceStatus> = client.get("/onions").await?;
    services.retain(|service| vm.is_none_or(|vm| *vm == service.vm));
    if json { output::json(&services) } else { output::text(&services_text(&services)) }
}

fn address(service: &OnionServiceStatus) -> String {
    service.onion.as_ref().map_or_else(|| "(its key cannot be had)".into(), ToString::to_string)
}

/// The services for people.
fn services_text(services: &[OnionServiceStatus]) -> String {
    if services.is_empty() {
        return "no onion services: publish one with `oht onion publish VM PORT`".into();
    }
    let line = |service: &OnionServiceStatus| {
        let OnionServiceStatus { vm, name, status, .. } = service;
        let onion = address(service);
        let ports: Vec<String> = service.ports.iter().map(ToString::to_string).collect();
        let clients = match service.clients.len() {
            0 => String::new(),
            count => format!(", for {count} clients only"),
        };
        let reached = match service.reachability {
            Reachability::Publishing => "being published",
            Reachability::Reachable => "reachable",
            Reachability::Refused => "refused by the VM",
            Reachability::Unreachable => "not reachable",
        };
        let status = if status.is_empty() { String::new() } else { format!(": {status}") };
        format!("{vm} {name}: {onion} port {}{clients}\n    {reached}{status}", ports.join(", "))
    };
    services.iter().map(line).collect::<Vec<_>>().join("\n")
}

fn new_client(onion: Option<&OnionAddress>, json: bool) -> anyhow::Result<()> {
    let (secret, public) = keys::new_client();
    let line = keys::client_line(onion, &secret);
    if json {
        return output::json(&serde_json::json!({ "service": public, "client": *line }));
    }
    output::text(&format!("for the service: {public}\nfor the client, and nobody else: {}", *line))
}

fn done(json: bool, what: &str, which: &str) -> anyhow::Result<()> {
    if json { output::json(&serde_json::json!({ what: which })) } else { output::text(&format!("{what} {which}")) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_service_is_shown_with_whether_it_was_reached() {
        let service = OnionServiceStatus {
            vm: "web".parse().unwrap(),
            name: "site".parse().unwrap(),
            onion: Some(OnionAddress::of(&[1; 32])),
            ports: vec!["80:8080".parse().unwrap(), "22".parse().unwrap()],
            clients: vec![[7; 32].into()],
            max_streams: 3,
            key: KeyKind::Kept,
            reachability: Reachability::Reachable,
            status: "a connection through Tor reaches the VM".into(),
        };
        let text = services_text(&[service]);
        assert!(text.starts_with("web site: "), "{text}");
        assert!(text.contains(".onion port 80:8080, 22, for 1 clients only\n    reachable: a connection"), "{text}");
    }
}
