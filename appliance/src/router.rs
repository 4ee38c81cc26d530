//! The router inside its VM: it does what the host agent says over the control connection, and goes on without it.
//!
//! The agent says once which Tor network to use, then by which routes, and then which VMs to serve. When the agent restarts, the connection
//! is opened again and the agent told what it missed; VMs and streams do not notice.

use std::{
    collections::{BTreeMap, HashMap},
    net::Ipv4Addr,
    path::Path,
    sync::Arc,
    time::Duration,
};

use tokio::sync::mpsc;
use vhost_net_onion::onion::{Dial, Onion, Settings};
use wire::{
    VMS_MAX, VmName,
    control::{COUNTRY_ADDRESSES_MAX, FromRouter, ToRouter},
    entry::TorEntry,
    network::TorNetwork,
    onion::Onions,
    route::{Assembly, Country, RouteTable, RoutesPart},
};

use crate::{
    asks::Asks,
    control::{Control, ControlConnectionError},
    latest::Latest,
    tor::{self, causes},
    usage,
    vm::{self, AttachedVm},
    vsock::Uplink,
};

/// Where the Tor client keeps its guards and its directory: on the state that guest-init has mounted.
const STATE_DIR: &str = "/state/tor";

/// How long to wait before the agent is called again.
const RECONNECT: Duration = Duration::from_millis(200);

/// How often memory and flows are reported.
const USAGE_EVERY: Duration = Duration::from_secs(5);

/// Reports that wait for the agent. When there are as many, whoever has one to make waits, or leaves it out.
const REPORTS_MAX: usize = 256;

/// Runs the router. Returns only when it must be started again.
pub(crate) async fn run() -> anyhow::Result<()> {
    let (sender, mut reports) = mpsc::channel(REPORTS_MAX);
    let mut router = Router {
        asks: Asks::new(sender.clone()),
        reports: sender,
        tor: None,
        uplink: Arc::default(),
        routes: None,
        assembly: Assembly::default(),
        vms: HashMap::new(),
        latest: Latest::default(),
    };
    loop {
        router.asks.lost();
        let control = router.connect(&mut reports).await;
        match router.obey(control, &mut reports).await {
            Ok(()) => tracing::info!("the host agent has hung up"),
            Err(Ended::Connection(error)) => tracing::warn!("{}", causes(&error)),
            Err(Ended::OtherNetwork) => {
                anyhow::bail!("another Tor network, or another way into it, is configured: starting again")
            }
        }
    }
}

struct Router {
    asks: Asks,
    reports: mpsc::Sender<FromRouter>,
    tor: Option<(TorNetwork, TorEntry, Arc<Onion>)>,
    uplink: Arc<Uplink>,
    /// None until the agent has told all of a table: no VM is served without.
    routes: Option<RouteTable>,
    assembly: Assembly,
    vms: HashMap<VmName, AttachedVm>,
    latest: Latest,
}

/// Why the router stops obeying.
enum Ended {
    Connection(ControlConnectionError),
    OtherNetwork,
}

impl From<ControlConnectionError> for Ended {
    fn from(error: ControlConnectionError) -> Ended {
        Ended::Connection(error)
    }
}

impl Router {
    /// Calls the agent until it answers.
    async fn connect(&mut self, reports: &mut mpsc::Receiver<FromRouter>) -> Control {
        loop {
            tokio::select! {
                connected = Control::connect() => match connected {
                    Ok(control) => return control,
                    Err(error) => tracing::debug!("{}", causes(&error)),
                },
                Some(report) = reports.recv() => self.latest.note(&report),
            }
            // What was asked of an agent that is gone, or could not be asked at all.
            self.asks.lost();
            tokio::time::sleep(RECONNECT).await;
        }
    }

    /// Reports to the agent and obeys it until it hangs up.
    async fn obey(&mut self, mut control: Control, reports: &mut mpsc::Receiver<FromRouter>) -> Result<(), Ended> {
        for report in self.latest.all() {
            control.report(report).await?;
        }
        let mut usage_due = tokio::time::interval(USAGE_EVERY);
        loop {
            tokio::select! {
                command = control.command() => match command {
                    Some(command) => self.execute(command?, &mut control).await?,
                    None => return Ok(()),
                },
                Some(report) = reports.recv() => {
                    self.latest.note(&report);
                    control.report(&report).await?;
                }
                _ = usage_due.tick() => control.report(&self.usage()).await?,
            }
        }
    }

    async fn execute(&mut self, command: ToRouter, control: &mut Control) -> Result<(), Ended> {
        let done = match command {
            ToRouter::Configure { network, entry } => self.configure(network, entry).await?,
            ToRouter::Routes(part) => match self.take_routes(part) {
                Ok(None) => Ok(()),
                Ok(Some(table)) => return Ok(control.report(&FromRouter::RoutesApplied { table }).await?),
                Err(what) => Err(what),
            },
            ToRouter::Countries { of } => self.set_countries(of),
            ToRouter::Attach { vm, link_port } => self.attach(vm, link_port),
            ToRouter::Detach { vm } => {
                self.vms.remove(&vm);
                self.latest.forget(&vm);
                Ok(())
            }
            ToRouter::Onions { vm, onions } => self.set_onions(&vm, onions),
            ToRouter::PortEnded { vm } => {
                if let Some(attached) = self.vms.get(&vm) {
                    attached.connect_again();
                }
                Ok(())
            }
            ToRouter::Answer { id, answer } => {
                self.asks.answered(id, answer);
                Ok(())
            }
            ToRouter::NewCircuits { vm, order, end_streams } => {
                // A VM that is not served has no circuits.
                if let Some(attached) = self.vms.get(&vm) {
                    let ended = attached.renew_circuits(end_streams);
                    tracing::info!(%vm, ended, "new circuits");
                }
                return Ok(control.report(&FromRouter::CircuitsRenewed { order }).await?);
            }
            ToRouter::UplinkEnded => {
                self.uplink.forget_streams();
                Ok(())
            }
        };
        if let Err(what) = done {
            tracing::error!("{what}");
            control.report(&FromRouter::Failure { what }).await?;
        }
        Ok(())
    }

    async fn configure(&mut self, network: TorNetwork, entry: TorEntry) -> Result<Result<(), String>, Ended> {
        match &self.tor {
            Some((current, by, _)) if *current == network && *by == entry => return Ok(Ok(())),
            Some(_) => return Err(Ended::OtherNetwork),
            None => {}
        }
        let state = Path::new(STATE_DIR).join(&network.name);
        let uplink: Arc<dyn Dial> = self.uplink.clone();
        let settings = Settings { network: network.clone(), entry: entry.clone(), state_dir: state };
        Ok(match tor::start(settings, uplink, self.reports.clone()).await {
            Ok(onion) => {
                self.tor = Some((network, entry, onion));
                Ok(())
            }
            Err(error) => Err(format!("starting Tor: {}", causes(&error))),
        })
    }

    /// Puts a table in force as soon as it is whole; says which one then.
    fn take_routes(&mut self, part: RoutesPart) -> Result<Option<u64>, String> {
        let table = part.table;
        let routes = self.assembly.add(part).map_err(|error| format!("routes: {error}"))?;
        let Some(routes) = routes else { return Ok(None) };
        let mut compiled = RouteTable::compile(routes).map_err(|error| format!("routes: {error}"))?;
        for (name, vm) in &self.vms {
            let ended = vm.routing.change(compiled.for_vm(name));
            tracing::info!(vm = %name, ended, "other routes");
        }
        self.routes = Some(compiled);
        Ok(Some(table))
    }

    fn set_countries(&self, of: BTreeMap<Country, Vec<Ipv4Addr>>) -> Result<(), String> {
        let Some((.., onion)) = &self.tor else {
            return Err("countries of relays: no Tor network is configured".into());
        };
        let known = of.into_iter().flat_map(|(country, all)| all.into_iter().map(move |address| (address, country)));
        onion.set_countries(known.take(COUNTRY_ADDRESSES_MAX).collect());
        Ok(())
    }

    fn attach(&mut self, vm: VmName, link_port: u32) -> Result<(), String> {
        let Some((.., onion)) = &self.tor else { return Err(format!("attaching {vm}: no Tor network is configured")) };
        let Some(routes) = &mut self.routes else { return Err(format!("attaching {vm}: no routes were told")) };
        if self.vms.get(&vm).is_some_and(|attached| attached.link_port == link_port) {
            return Ok(());
        }
        if self.vms.len() >= VMS_MAX {
            return Err(format!("attaching {vm}: a router serves {VMS_MAX} VMs at most"));
        }
        let attached =
            vm::attach(vm.clone(), link_port, routes.for_vm(&vm), onion, self.reports.clone(), self.asks.clone());
        self.vms.insert(vm, attached);
        Ok(())
    }

    fn set_onions(&mut self, vm: &VmName, onions: Onions) -> Result<(), String> {
        let (Some((_, _, onion)), Some(attached)) = (&self.tor, self.vms.get_mut(vm)) else {
            return Err(format!("onion services of {vm}: it is not attached"));
        };
        let done = attached.set_onions(onion, vm, onions, &self.reports);
        self.latest.retain_services(vm, |service| attached.has_service(service));
        done
    }

    fn usage(&self) -> FromRouter {
        let (resident_kib, available_kib) = usage::memory_kib();
        let vms: Vec<_> = self.vms.iter().map(|(name, vm)| vm.usage(name)).collect();
        let flows = vms.iter().map(|vm| vm.flows).sum();
        FromRouter::Usage { resident_kib, available_kib, flows, vms }
    }
}
