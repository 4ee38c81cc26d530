//! The agent's part in onion services: definitions, their keys, and what the router is told.

use std::{
    collections::BTreeMap,
    sync::{MutexGuard, PoisonError},
};

use tokio::sync::watch;
use wire::{
    VmName,
    onion::{OnionAddress, Onions, Secret, Service, ServiceName, ServiceTerms},
};

use super::{Agent, AgentError};
use crate::{
    onion_services::{
        Definition, ServiceError, ServiceTable, Wanted, check_authorised,
        keys::{self, ServiceKeys},
    },
    status::{NewOnionService, OnionServiceStatus},
    vms::{VmError, Vms},
};

/// What the agent knows of onion services.
pub(super) struct OnionState {
    table: ServiceTable,
    keys: ServiceKeys,
    /// Keys of the VMs for restricted services of others, in memory only.
    authorised: BTreeMap<VmName, BTreeMap<OnionAddress, Secret>>,
    wanted: watch::Sender<Wanted>,
}

impl OnionState {
    /// The services of the VMs that there are.
    pub(super) fn new(mut table: ServiceTable, vms: &Vms, wanted: watch::Sender<Wanted>) -> OnionState {
        table.retain_vms(|vm| vms.contains_key(vm));
        let mut state = OnionState { table, keys: ServiceKeys::default(), authorised: BTreeMap::new(), wanted };
        state.publish();
        state
    }

    /// What the router is told from now on.
    fn publish(&mut self) {
        let mut wanted = Wanted::new();
        for (vm, name, definition) in self.table.all() {
            let service = Service { key: self.keys.service_key(vm, name), terms: definition.terms.clone() };
            wanted.entry(vm.clone()).or_default().services.insert(name.clone(), service);
        }
        for (vm, authorised) in &self.authorised {
            wanted.entry(vm.clone()).or_default().authorised = authorised.clone();
        }
        self.wanted.send_replace(wanted);
    }

    fn onions(&self, vm: &VmName) -> Onions {
        self.wanted.borrow().get(vm).cloned().unwrap_or_default()
    }
}

impl Agent {
    /// The services that there were are known, and not reached yet.
    pub(super) fn adopt_onions(&self) {
        for (vm, name, _) in self.onion_state().table.all() {
            self.shared.model().service_added(vm.clone(), name.clone());
        }
    }

    /// Publishes an onion service of a VM.
    ///
    /// # Errors
    /// When there is no such VM, the service cannot be had, or it cannot be kept; nothing has changed then.
    pub async fn publish_onion(&self, new: NewOnionService) -> Result<OnionServiceStatus, AgentError> {
        let _turn = self.changing.lock().await;
        self.known(&new.vm)?;
        let NewOnionService { vm, name, ports, clients, max_streams, key } = new;
        let definition = Definition { key, terms: ServiceTerms { ports, clients, max_streams } };
        let mut state = self.onion_state();
        let mut table = state.table.clone();
        table.add(vm.clone(), name.clone(), definition.clone())?;
        table.save(&self.settings.state.onions())?;
        state.table = table;
        self.shared.model().service_added(vm.clone(), name.clone());
        state.publish();
        Ok(self.onion_status(&mut state, &vm, &name, &definition))
    }

    /// Ends an onion service of a VM, whose address is not used again.
    ///
    /// # Errors
    /// When there is no such service, or that cannot be kept; nothing has changed then.
    pub async fn unpublish_onion(&self, vm: &VmName, name: &ServiceName) -> Result<(), AgentError> {
        let _turn = self.changing.lock().await;
        self.known(vm)?;
        let mut state = self.onion_state();
        let mut table = state.table.clone();
        table.remove(vm, name)?;
        table.save(&self.settings.state.onions())?;
        state.table = table;
        state.keys.retain(|of, service| (of, service) != (vm, name));
        state.publish();
        self.shared.model().service_removed(vm, name);
        Ok(())
    }

    /// The onion services.
    #[must_use]
    pub fn onions(&self) -> Vec<OnionServiceStatus> {
        let mut state = self.onion_state();
        let all: Vec<_> =
            state.table.all().map(|(vm, name, definition)| (vm.clone(), name.clone(), definition.clone())).collect();
        all.iter().map(|(vm, name, definition)| self.onion_status(&mut state, vm, name, definition)).collect()
    }

    /// Gives a VM a key for a restricted onion service, or takes it away. Kept until the agent ends.
    ///
    /// # Errors
    /// When there is no such VM or no such key, or the VM has as many as it may have.
    pub async fn authorise(&self, vm: &VmName, onion: OnionAddress, key: Option<Secret>) -> Result<(), AgentError> {
        let _turn = self.changing.lock().await;
        self.known(vm)?;
        let mut state = self.onion_state();
        let Some(key) = key else {
            let removed = state.authorised.get_mut(vm).and_then(|keys| keys.remove(&onion));
            removed.ok_or_else(|| ServiceError::NotAuthorised(vm.clone(), onion))?;
            state.publish();
            return Ok(());
        };
        check_authorised(&state.onions(vm), &onion)?;
        state.authorised.entry(vm.clone()).or_default().insert(onion, key);
        state.publish();
        Ok(())
    }

    /// The restricted onion services that a VM has a key for.
    ///
    /// # Errors
    /// When there is no such VM.
    pub fn authorised(&self, vm: &VmName) -> Result<Vec<OnionAddress>, AgentError> {
        self.known(vm)?;
        Ok(self.onion_state().onions(vm).authorised.into_keys().collect())
    }

    /// A VM is gone, and with it all that it had.
    pub(super) fn forget_onions(&self, vm: &VmName) {
        let mut state = self.onion_state();
        state.authorised.remove(vm);
        if state.table.retain_vms(|of| of != vm)
            && let Err(error) = state.table.save(&self.settings.state.onions())
        {
            // Dropped with the VM when the file is read.
            tracing::warn!(%error, "the services of a VM that was removed are still in the file");
        }
        state.keys.retain(|of, _| of != vm);
        state.publish();
    }

    fn onion_status(
        &self,
        state: &mut OnionState,
        vm: &VmName,
        name: &ServiceName,
        definition: &Definition,
    ) -> OnionServiceStatus {
        let (reachability, status) = self.shared.model().service(vm, name);
        let ServiceTerms { ports, clients, max_streams } = definition.terms.clone();
        OnionServiceStatus {
            vm: vm.clone(),
            name: name.clone(),
            onion: keys::address(&state.keys.service_key(vm, name)),
            ports,
            clients,
            max_streams,
            key: definition.key,
            reachability,
            status,
        }
    }

    fn known(&self, vm: &VmName) -> Result<(), AgentError> {
        if self.table().all().contains_key(vm) { Ok(()) } else { Err(VmError::Unknown(vm.clone()).into()) }
    }

    fn onion_state(&self) -> MutexGuard<'_, OnionState> {
        self.onions.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
