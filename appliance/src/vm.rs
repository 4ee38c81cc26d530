//! The task of one VM: it keeps the VM's link connected and runs its session.

use std::{sync::Arc, time::Duration};

use tokio::{
    sync::{Notify, mpsc},
    task::AbortHandle,
};
use vhost_net_onion::{
    Inbound, Informant, Session, Stats, StreamCarrier, TorEgress, VmRouting,
    gateway::Config,
    onion::{CircuitInfo, Onion, VmClient},
};
use wire::{
    VmName,
    control::{FromRouter, VmUsage},
    hello::{Hello, Role},
    onion::{Onions, ServiceName},
    route::VmRoutes,
};

use crate::{
    asks::Asks,
    panics,
    services::{Around, Services},
    tor::causes,
    vsock,
};

/// How long to wait before a link that ended is connected again; the host keeps the socket while the port restarts, so
/// this only keeps a port that ends at once from being asked without pause.
const RECONNECT: Duration = Duration::from_millis(100);

/// How long to wait before the session of a VM that crashed it is started anew.
const RESTART: Duration = Duration::from_secs(1);

/// A VM that is being served. Dropping it ends its streams.
pub(crate) struct AttachedVm {
    /// The vsock port of its link.
    pub(crate) link_port: u32,
    /// Its routes.
    pub(crate) routing: VmRouting,
    stats: Arc<Stats>,
    client: VmClient,
    link_is_dead: Arc<Notify>,
    inbound: Arc<Inbound>,
    services: Services,
    task: AbortHandle,
}

impl AttachedVm {
    /// What the VM named `vm` uses and has used.
    pub(crate) fn usage(&self, vm: &VmName) -> VmUsage {
        let (stats, streams) = (self.stats.snapshot(), self.client.usage());
        VmUsage {
            vm: vm.clone(),
            flows: stats.flows,
            circuits: streams.circuits,
            retries: streams.retries,
            bytes_from_vm: stats.bytes_from_vm,
            bytes_to_vm: stats.bytes_to_vm,
            drops: stats.drops.into_iter().map(|(reason, count)| (reason.to_owned(), count)).collect(),
        }
    }

    /// These are the VM's services, and those it may reach.
    ///
    /// # Errors
    /// Says what failed, in words.
    pub(crate) fn set_onions(
        &mut self,
        onion: &Onion,
        vm: &VmName,
        onions: Onions,
        reports: &mpsc::Sender<FromRouter>,
    ) -> Result<(), String> {
        onions.check().map_err(|error| format!("onion services of {vm}: {error}"))?;
        self.client.authorise(&onions.authorised);
        self.services.set(&Around { onion, vm, inbound: &self.inbound, reports }, onions.services)
    }

    /// Whether the VM has such a service.
    pub(crate) fn has_service(&self, service: &ServiceName) -> bool {
        self.services.contains(service)
    }

    /// The port at the other end of the link is gone: the link is connected again, the VM's connections go on.
    pub(crate) fn connect_again(&self) {
        self.link_is_dead.notify_waiters();
    }
}

impl AttachedVm {
    /// From now on no stream shares a circuit with one of before. Ends those that are open, if they are to; returns how
    /// many those were.
    pub(crate) fn renew_circuits(&self, end_streams: bool) -> usize {
        // First: those that are still being opened are opened anew when they are ended.
        self.client.renew();
        if end_streams { self.routing.end_all() } else { 0 }
    }
}

impl Drop for AttachedVm {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Serves `vm`, whose link has this port, by these routes until the result is dropped.
pub(crate) fn attach(
    vm: VmName,
    link_port: u32,
    routes: VmRoutes,
    onion: &Onion,
    reports: mpsc::Sender<FromRouter>,
    asks: Asks,
) -> AttachedVm {
    let stats = Arc::new(Stats::default());
    // Outlives a session that crashed, as do its circuits.
    let client = onion.vm_client();
    client.prepare();
    let (routing, link_is_dead) = (VmRouting::new(routes), Arc::<Notify>::default());
    let inbound = Arc::<Inbound>::default();
    let served = Vm {
        name: vm,
        link_port,
        routing: routing.clone(),
        client: client.clone(),
        reports,
        asks,
        stats: Arc::clone(&stats),
        link_is_dead: Arc::clone(&link_is_dead),
        inbound: Arc::clone(&inbound),
    };
    let task = tokio::spawn(served.serve()).abort_handle();
    let services = Services::default();
    AttachedVm { link_port, routing, stats, client, link_is_dead, inbound, services, task }
}

#[derive(Clone)]
struct Vm {
    name: VmName,
    link_port: u32,
    routing: VmRouting,
    client: VmClient,
    reports: mpsc::Sender<FromRouter>,
    asks: Asks,
    stats: Arc<Stats>,
    link_is_dead: Arc<Notify>,
    inbound: Arc<Inbound>,
}

impl Vm {
    /// Runs one session after the other; there is a second one only when the first has crashed.
    async fn serve(self) {
        loop {
            let session = AbortOnDrop(tokio::spawn(panics::contained(self.clone().run_session())));
            if let Err(crash) = session.join().await {
                self.failure(format!("the network of {} crashed and starts anew: {crash}", self.name)).await;
            }
            tokio::time::sleep(RESTART).await;
        }
    }

    async fn run_session(self) {
        let mut seed = [0; 32];
        getrandom::fill(&mut seed).expect("the kernel has randomness once user space runs");
        let egress = TorEgress::new(self.client.clone(), self.routing.clone(), self.observer());
        let egress = egress.with_informant(self.informant());
        let config = Config { policy: Arc::new(self.routing.clone()), ..Config::default() };
        let session = Session::new(egress, config, seed, Arc::clone(&self.stats));
        let mut session = session.with_inbound(Arc::clone(&self.inbound));
        let (ours, theirs) =
            (Hello::for_vm(Role::Router, self.name.clone()), Hello::for_vm(Role::Port, self.name.clone()));
        loop {
            let mut is_up = false;
            let connected = async {
                match vsock::connect(self.link_port, &ours, &theirs).await {
                    Ok(link) => {
                        is_up = true;
                        self.report(FromRouter::Link { vm: self.name.clone(), up: true }).await;
                        if let Err(error) = session.serve(&mut StreamCarrier::new(link)).await {
                            tracing::warn!(vm = %self.name, "link: {}", causes(&error));
                        }
                    }
                    Err(error) => tracing::warn!(vm = %self.name, "link: {}", causes(&error)),
                }
            };
            tokio::select! {
                () = connected => {}
                () = self.link_is_dead.notified() => tracing::info!(vm = %self.name, "the port of this link has ended"),
            }
            if is_up {
                self.report(FromRouter::Link { vm: self.name.clone(), up: false }).await;
            }
            tokio::time::sleep(RECONNECT).await;
        }
    }

    /// Tells the agent which circuit a stream is on; a report that finds no room is left out, as streams are many.
    fn observer(&self) -> Arc<dyn Fn(CircuitInfo) + Send + Sync> {
        let (vm, reports) = (self.name.clone(), self.reports.clone());
        Arc::new(move |CircuitInfo { id, relays, onion, exit }| {
            let _ = reports.try_send(FromRouter::Stream { vm: vm.clone(), circuit: id, relays, onion, exit });
        })
    }

    /// Has the agent answer what the VM asks about itself.
    fn informant(&self) -> Arc<Informant> {
        let (vm, asks) = (self.name.clone(), self.asks.clone());
        Arc::new(move |question| {
            let (vm, asks) = (vm.clone(), asks.clone());
            Box::pin(async move { asks.ask(vm, question).await })
        })
    }

    async fn failure(&self, what: String) {
        tracing::error!("{what}");
        self.report(FromRouter::Failure { what }).await;
    }

    async fn report(&self, report: FromRouter) {
        // Nobody to report to: the program is ending.
        let _ = self.reports.send(report).await;
    }
}

/// A task that ends with its owner.
struct AbortOnDrop(tokio::task::JoinHandle<()>);

impl AbortOnDrop {
    async fn join(mut self) -> Result<(), tokio::task::JoinError> {
        (&mut self.0).await
    }
}

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        self.0.abort();
    }
}
