//! `oht vm …` and `oht circuits`.

use hyper::Method;
use wire::VmName;

use super::output;
use crate::{
    client::Client,
    status::{CircuitStatus, NewVm, VmStatus},
};

/// Adds a VM.
///
/// # Errors
/// When the agent refuses, or is not there.
pub async fn add(client: &Client, vm: NewVm, json: bool) -> anyhow::Result<()> {
    let vm: VmStatus = client.post("/vms", &vm).await?;
    if json {
        return output::json(&vm);
    }
    let name = &vm.name;
    output::text(&format!(
        "added {name}: run it by `oht vm run {name}`, or attach it by what `oht vm attach {name}` prints"
    ))
}

/// Removes a VM.
///
/// # Errors
/// When there is no such VM, or no agent.
pub async fn remove(client: &Client, name: &VmName, json: bool) -> anyhow::Result<()> {
    client.order(Method::DELETE, &format!("/vms/{name}")).await?;
    if json { output::json(&serde_json::json!({ "removed": name })) } else { output::text(&format!("removed {name}")) }
}

/// Takes new circuits for a VM, or for all.
///
/// # Errors
/// When there is no such VM, or no agent.
pub async fn new_circuits(client: &Client, name: Option<&VmName>, json: bool) -> anyhow::Result<()> {
    let path = name.map_or_else(|| "/new-circuits".to_owned(), |name| format!("/vms/{name}/new-circuits"));
    client.order(Method::POST, &path).await?;
    if json {
        return output::json(&serde_json::json!({ "new_circuits": name }));
    }
    let whose = name.map_or("all VMs".to_owned(), ToString::to_string);
    output::text(&format!("new streams of {whose} take new circuits; those that are open go on"))
}

/// Lists the VMs.
///
/// # Errors
/// When there is no agent.
pub async fn list(client: &Client, json: bool) -> anyhow::Result<()> {
    let vms: Vec<VmStatus> = client.get("/vms").await?;
    if json { output::json(&vms) } else { output::text(&output::vms(&vms)) }
}

/// Lists the circuits.
///
/// # Errors
/// When there is no such VM, or no agent.
pub async fn circuits(client: &Client, vm: Option<&VmName>, json: bool) -> anyhow::Result<()> {
    let query = vm.map_or_else(String::new, |vm| format!("?vm={vm}"));
    let circuits: Vec<CircuitStatus> = client.get(&format!("/circuits{query}")).await?;
    if json { output::json(&circuits) } else { output::text(&output::circuits(&circuits)) }
}
