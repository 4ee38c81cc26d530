//! Embedded mode: one VM, served on the host.

use std::{path::Path, sync::Arc};

use anyhow::{Context, bail};
use tokio::sync::mpsc;
use vhost_net_onion::{
    Session, TorEgress, VmRouting,
    embedded::{self, HostTcp},
    gateway::Config,
    onion::Settings,
    port::Options,
};
use wire::{control::FromRouter, entry::TorEntry, network::TorNetwork, route::VmRoutes};

use crate::tor;

/// Reports that wait to be printed.
const REPORTS_MAX: usize = 64;

/// Serves a VM on the vhost-user socket `vhost_user` until the program is ended.
pub(crate) async fn run(vhost_user: &Path, network: &Path, state: &Path) -> anyhow::Result<()> {
    let json = std::fs::read(network).with_context(|| format!("cannot read {}", network.display()))?;
    let network = TorNetwork::from_json(&json).with_context(|| format!("in {}", network.display()))?;
    std::fs::create_dir_all(state).with_context(|| format!("cannot make {}", state.display()))?;
    let (sender, mut reports) = mpsc::channel(REPORTS_MAX);
    let settings = Settings { network, entry: TorEntry::default(), state_dir: state.join("tor") };
    let onion = tor::start(settings, Arc::new(HostTcp), sender).await?;
    let client = onion.vm_client();
    client.prepare();
    let egress = TorEgress::new(client, VmRouting::new(VmRoutes::default()), Arc::new(|_| {}));
    let mut seed = [0; 32];
    getrandom::fill(&mut seed).context("the kernel gives no randomness")?;
    let session = Session::new(egress, Config::default(), seed, Arc::default());
    tokio::select! {
        served = embedded::serve(vhost_user, Options::default(), session) => served?,
        () = async { while let Some(report) = reports.recv().await { print(&report) } } => {}
    }
    bail!("the port ended")
}

fn print(report: &FromRouter) {
    match report {
        FromRouter::Bootstrap { percent, status, .. } => eprintln!("tor: {percent} %: {status}"),
        FromRouter::Failure { what } => eprintln!("{what}"),
        _ => {}
    }
}
