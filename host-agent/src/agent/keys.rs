//! The agent's part in the life of keys: VMs come and go with theirs.

use std::sync::Arc;

use key_tree::Now;
use tokio::task::{JoinHandle, spawn_blocking};
use wire::VmName;

use super::{Agent, AgentError};
use crate::{
    config::Settings,
    keys::{self, Keys, KeysError, SetUp, report::KeyBranch, time::TimeSource},
    router_vm::words,
    store::Unlock,
    vms::VmError,
};

/// Opens the keys where the settings say.
pub(super) async fn open(settings: &Settings, time: Box<dyn TimeSource>) -> Result<Arc<Keys>, AgentError> {
    let places = keys::Places {
        vault: settings.state.keys(),
        sealed_root: settings.state.sealed_root(),
        ephemeral: settings.ephemeral,
        auto_lock: settings.auto_lock,
    };
    let opened = spawn_blocking(move || Arc::new(Keys::open(places, time))).await;
    opened.map_err(|error| AgentError::Io(error.into()))
}

impl Agent {
    /// The time as keys and tokens take it.
    #[must_use]
    pub fn now(&self) -> Now {
        self.keys.now()
    }

    /// Does something with the keys, where it may block.
    ///
    /// # Errors
    /// When it cannot be done.
    pub async fn with_keys<T: Send + 'static>(
        &self,
        act: impl FnOnce(&Keys) -> Result<T, KeysError> + Send + 'static,
    ) -> Result<T, AgentError> {
        let keys = Arc::clone(&self.keys);
        let done = spawn_blocking(move || act(&keys)).await;
        self.keys_used.notify_one();
        Ok(done.map_err(|error| AgentError::Io(error.into()))??)
    }

    /// Unlocks the store, and gives VMs that were added meanwhile their keys.
    ///
    /// # Errors
    /// When it is not unlocked.
    pub async fn unlock_keys(&self, unlock: Unlock) -> Result<(), AgentError> {
        self.with_keys(move |keys| keys.unlock(&unlock)).await?;
        self.reconcile_keys().await;
        Ok(())
    }

    /// Makes the store, with keys for the VMs that there are. Returns where a store that was there went.
    ///
    /// # Errors
    /// When it is not made.
    pub async fn set_up_keys(&self, given: SetUp) -> Result<Option<String>, AgentError> {
        // No VM comes or goes meanwhile.
        let _ports = self.changing.lock().await;
        let vms: Vec<VmName> = self.table().all().keys().cloned().collect();
        let aside = self.with_keys(move |keys| keys.set_up(&given, &vms)).await?;
        Ok(aside.map(|path| path.display().to_string()))
    }

    /// Gives a VM a fresh key, revokes the one it had, ends its streams and has later ones take new circuits. A router that
    /// is not there does its part as soon as it is.
    ///
    /// # Errors
    /// When there is no such VM, or its key cannot be made; it keeps its identity then.
    pub async fn new_identity(&self, vm: &VmName) -> Result<KeyBranch, AgentError> {
        let ports = self.changing.lock().await;
        if !self.table().all().contains_key(vm) {
            return Err(VmError::Unknown(vm.clone()).into());
        }
        let name = vm.clone();
        let branch = self.with_keys(move |keys| keys.new_identity(&name)).await?;
        drop(ports);
        if !self.control.renew_circuits(std::slice::from_ref(vm), true).await {
            tracing::warn!(%vm, "the router is not there to take new circuits: it will when it is");
        }
        Ok(branch)
    }

    pub(super) async fn add_key(&self, vm: &VmName) -> Result<(), AgentError> {
        let vm = vm.clone();
        self.with_keys(move |keys| keys.add_vm(&vm)).await
    }

    /// A VM goes even if its key cannot be removed now: that is made up for when the store is unlocked.
    pub(super) async fn remove_key(&self, vm: &VmName) {
        let name = vm.clone();
        if let Err(error) = self.with_keys(move |keys| keys.remove_vm(&name)).await {
            self.shared.model().failure(format!("the key of VM {vm} is not removed yet: {}", words(&error)));
        }
    }

    /// Sees to it that the VMs, and no others, have keys. A locked store waits until it is unlocked.
    pub(super) async fn reconcile_keys(&self) {
        let vms: Vec<VmName> = self.table().all().keys().cloned().collect();
        match self.with_keys(move |keys| keys.reconcile(&vms)).await {
            Ok(()) | Err(AgentError::Keys(KeysError::Locked)) => {}
            Err(error) => self.shared.model().failure(format!("VMs are without keys: {}", words(&error))),
        }
    }

    /// Renews what is due, for ever.
    pub(super) fn turn_keys(&self) -> JoinHandle<()> {
        let shared = self.shared.clone();
        tokio::spawn(Arc::clone(&self.keys).keep_turning(move |failure| shared.model().failure(failure)))
    }
}
