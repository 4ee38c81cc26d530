//! The onion services of the VMs: their streams go to the VM's session, and what becomes of them to the agent.

use std::{collections::BTreeMap, io, sync::Arc};

use tokio::sync::mpsc::{self, error::TrySendError};
use vhost_net_onion::{
    Inbound,
    gateway::Failure,
    inbound::{self, Incoming},
    onion::{Onion, OnionService, Refusal, ServiceError, ServiceStatus, ServiceStream},
};
use wire::{
    VmName,
    control::FromRouter,
    onion::{Service, ServiceName},
};

use crate::tor::causes;

/// The services of one VM. Dropping it ends them.
#[derive(Default)]
pub(crate) struct Services(BTreeMap<ServiceName, (Service, OnionService)>);

/// What services need around them.
pub(crate) struct Around<'a> {
    pub(crate) onion: &'a Onion,
    pub(crate) vm: &'a VmName,
    /// Where their streams go.
    pub(crate) inbound: &'a Arc<Inbound>,
    pub(crate) reports: &'a mpsc::Sender<FromRouter>,
}

impl Services {
    /// Runs these services and no others. What is published already and the same goes on; what differs begins anew.
    ///
    /// # Errors
    /// Says what failed, in words; the others run.
    pub(crate) fn set(&mut self, around: &Around<'_>, wanted: BTreeMap<ServiceName, Service>) -> Result<(), String> {
        self.0.retain(|name, (service, _)| wanted.get(name) == Some(service));
        let mut failures = vec![];
        for (name, service) in wanted {
            if self.0.contains_key(&name) {
                continue;
            }
            match publish(around, &name, &service) {
                Ok(running) => drop(self.0.insert(name, (service, running))),
                Err(error) => failures.push(format!("publishing {name} of {}: {}", around.vm, causes(&error))),
            }
        }
        if failures.is_empty() { Ok(()) } else { Err(failures.join("; ")) }
    }

    /// Whether there is such a service.
    pub(crate) fn contains(&self, name: &ServiceName) -> bool {
        self.0.contains_key(name)
    }
}

fn publish(around: &Around<'_>, name: &ServiceName, service: &Service) -> Result<OnionService, ServiceError> {
    let on_stream = {
        let inbound = Arc::clone(around.inbound);
        move |stream: ServiceStream| inbound.call(stream.vm_port(), Box::new(FromTor(stream)))
    };
    let on_status = {
        let (vm, service, reports) = (around.vm.clone(), name.clone(), around.reports.clone());
        move |ServiceStatus { reachability, text: status }| {
            let (vm, service) = (vm.clone(), service.clone());
            let report = FromRouter::Service { vm, service, reachability, status };
            if let Err(TrySendError::Full(report)) = reports.try_send(report) {
                // It comes once only: it waits until there is room, or nobody to report to.
                let reports = reports.clone();
                tokio::spawn(async move { reports.send(report).await });
            }
        }
    };
    around.onion.publish(service, Arc::new(on_stream), Arc::new(on_status))
}

/// A stream of an onion service on its way to the VM.
struct FromTor(ServiceStream);

impl Incoming for FromTor {
    fn accept(self: Box<Self>) -> inbound::Accepted {
        let accepted = self.0.accept();
        Box::pin(async { io::Result::Ok(Box::new(accepted.await?) as Box<dyn inbound::Bytes>) })
    }

    fn refuse(self: Box<Self>, why: Failure) {
        self.0.refuse(match why {
            Failure::Refused | Failure::Unreachable => Refusal::Refused,
            Failure::TimedOut => Refusal::TimedOut,
        });
    }
}
