//! The latest of each report that describes a state, to tell an agent that has just connected.

use std::collections::BTreeMap;

use wire::{VmName, control::FromRouter, onion::ServiceName};

/// What the router has last said of itself.
#[derive(Default)]
pub(crate) struct Latest {
    bootstrap: Option<FromRouter>,
    relays: Option<FromRouter>,
    links: BTreeMap<VmName, FromRouter>,
    services: BTreeMap<(VmName, ServiceName), FromRouter>,
}

impl Latest {
    /// Remembers `report` if it describes a state.
    pub(crate) fn note(&mut self, report: &FromRouter) {
        match report {
            FromRouter::Bootstrap { .. } => self.bootstrap = Some(report.clone()),
            FromRouter::Relays { .. } => self.relays = Some(report.clone()),
            FromRouter::Link { vm, .. } => drop(self.links.insert(vm.clone(), report.clone())),
            FromRouter::Service { vm, service, .. } => {
                self.services.insert((vm.clone(), service.clone()), report.clone());
            }
            FromRouter::Stream { .. }
            | FromRouter::Ask { .. }
            | FromRouter::CircuitsRenewed { .. }
            | FromRouter::RoutesApplied { .. }
            | FromRouter::Usage { .. }
            | FromRouter::Failure { .. } => {}
        }
    }

    /// Forgets a VM.
    pub(crate) fn forget(&mut self, vm: &VmName) {
        self.links.remove(vm);
        self.services.retain(|(of, _), _| of != vm);
    }

    /// Forgets the services of a VM but those to be kept.
    pub(crate) fn retain_services(&mut self, vm: &VmName, is_kept: impl Fn(&ServiceName) -> bool) {
        self.services.retain(|(of, service), _| of != vm || is_kept(service));
    }

    /// Everything that a newcomer must know. The relays come first: nothing may be dialled without them.
    pub(crate) fn all(&self) -> impl Iterator<Item = &FromRouter> {
        self.relays.iter().chain(&self.bootstrap).chain(self.links.values()).chain(self.services.values())
    }
}
