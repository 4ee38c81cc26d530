//! The agent's part in onion services: definitions, their keys, and what the router is told.

use std::{
    collections::BTreeMap,
    sync::{Arc, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use tokio::{sync::watch, task::spawn_blocking, time::timeout};
use wire::{
    VmName,
    onion::{OnionAddress, Onions, Reachability, Secret, Service, ServiceName, ServiceTerms},
};

use super::{Agent, AgentError};
use crate::{
    events::Event,
    keys::{Keys, KeysError},
    onion_services::{
        Definition, KeyKind, ServiceError, ServiceTable, Wanted, check_authorised,
        keys::{self, ServiceKeys},
    },
    router_vm::words,
    status::{NewOnionService, OnionServiceStatus},
    vms::{VmError, Vms},
};

/// How often the grants of services are looked at, besides whenever something was done with keys.
const GRANTS_LOOKED_AT: Duration = Duration::from_secs(1);

/// How often listeners are told of the keys, besides whenever something was done with them.
const KEYS_TOLD: Duration = Duration::from_secs(60);

/// What the agent knows of onion services.
pub(super) struct OnionState {
    table: ServiceTable,
    /// The seeds of services whose key is not kept.
    random: ServiceKeys,
    /// Where services are to be found: also those that are not published now.
    addresses: BTreeMap<Id, OnionAddress>,
    /// Why services are not published.
    refused: BTreeMap<Id, String>,
    /// Keys of the VMs for restricted services of others, in memory only.
    authorised: BTreeMap<VmName, BTreeMap<OnionAddress, Secret>>,
    wanted: watch::Sender<Wanted>,
}

type Id = (VmName, ServiceName);

/// The seed of a service that may be published, or why it may not be.
type Seed = Result<Secret, KeysError>;

impl OnionState {
    /// The services of the VMs that there are; none is published yet.
    pub(super) fn new(mut table: ServiceTable, vms: &Vms, wanted: watch::Sender<Wanted>) -> OnionState {
        table.retain_vms(|vm| vms.contains_key(vm));
        let (random, addresses, refused) = (ServiceKeys::default(), BTreeMap::new(), BTreeMap::new());
        OnionState { table, random, addresses, refused, authorised: BTreeMap::new(), wanted }
    }

    /// Takes the seeds of all services, and tells the router what follows from them.
    fn take(&mut self, seeds: Vec<(Id, Seed)>) {
        self.refused.clear();
        let mut wanted = Wanted::new();
        for (id, seed) in seeds {
            let Some(definition) = self.table.get(&id.0, &id.1) else { continue };
            let key = match (seed, definition.key) {
                (Ok(kept), KeyKind::Kept) => kept,
                // Its grant is that of the kept one; only its address is not.
                (Ok(_), KeyKind::Random) => self.random.service_key(&id.0, &id.1),
                (Err(error), _) => {
                    self.refused.insert(id, words(&error));
                    continue;
                }
            };
            self.addresses.insert(id.clone(), keys::address(&key));
            let service = Service { key, terms: definition.terms.clone() };
            wanted.entry(id.0).or_default().services.insert(id.1, service);
        }
        for (vm, authorised) in &self.authorised {
            wanted.entry(vm.clone()).or_default().authorised = authorised.clone();
        }
        self.wanted.send_if_modified(|before| {
            let changed = *before != wanted;
            *before = wanted;
            changed
        });
    }

    fn onions(&self, vm: &VmName) -> Onions {
        self.wanted.borrow().get(vm).cloned().unwrap_or_default()
    }

    /// What decides about the seeds: the services with their ports, and the seeds that the router has.
    fn questions(&self) -> Vec<(Id, Vec<u16>, Option<Secret>)> {
        let wanted = self.wanted.borrow();
        let question = |(vm, name, definition): (&VmName, &ServiceName, &Definition)| {
            let known = wanted.get(vm).and_then(|onions| onions.services.get(name)).map(|service| service.key.clone());
            let ports = definition.terms.ports.iter().map(|mapping| mapping.port.get()).collect();
            ((vm.clone(), name.clone()), ports, known)
        };
        self.table.all().map(question).collect()
    }
}

/// The seed of a service, if its grants are live and permit its ports. A store that is locked changes nothing about what
/// is published, as long as the grants, which are no secrets, are live.
fn seed(keys: &Keys, (vm, name): &Id, ports: &[u16], known: Option<Secret>) -> Seed {
    let is_current = |known: &Secret| {
        let state = keys.service_state(vm, name.as_str());
        state.is_some_and(|state| state.why.is_none() && OnionAddress::of(state.key.as_bytes()) == keys::address(known))
    };
    let seed = match known {
        // Looking is not using: a store that is asked for its secrets each second would never lock itself.
        Some(known) if is_current(&known) => known,
        known => match (keys.service_key(vm, name.as_str()), known) {
            (Ok(seed), _) => Secret::from(*seed),
            (Err(KeysError::Locked), Some(known)) => known,
            (Err(error), _) => return Err(error),
        },
    };
    for port in ports {
        keys.may_publish(vm, name.as_str(), *port)?;
    }
    Ok(seed)
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
        let mut table = self.onion_state().table.clone();
        table.add(vm.clone(), name.clone(), definition.clone())?;
        let ports: Vec<_> = definition.terms.ports.iter().map(|mapping| mapping.port.get()).collect();
        let id = (vm.clone(), name.clone());
        self.with_keys(move |keys| seed(keys, &id, &ports, None).map(drop)).await?;
        table.save(&self.settings.state.onions())?;
        self.onion_state().table = table;
        self.shared.model().service_added(vm.clone(), name.clone());
        self.refresh_onions().await;
        Ok(self.onion_status(&self.onion_state(), &vm, &name, &definition))
    }

    /// Publishes what may be published now, and ends what may not be any more. To be called in turn with other changes.
    pub(super) async fn refresh_onions(&self) {
        let questions = self.onion_state().questions();
        let keys = Arc::clone(&self.keys);
        let answer = move || {
            let answer = |(id, ports, known): (Id, Vec<u16>, Option<Secret>)| {
                let seed = seed(&keys, &id, &ports, known);
                (id, seed)
            };
            questions.into_iter().map(answer).collect()
        };
        // Only a panic keeps it from being done, and then what is published goes on.
        if let Ok(seeds) = spawn_blocking(answer).await {
            self.onion_state().take(seeds);
        }
    }

    /// Follows the keys for ever: services end with their grants, and come back with new ones; who listens to events is told.
    pub async fn follow_keys(self: Arc<Agent>) {
        let mut told = Instant::now();
        loop {
            let used = timeout(GRANTS_LOOKED_AT, self.keys_used.notified()).await.is_ok();
            {
                let _turn = self.changing.lock().await;
                self.refresh_onions().await;
            }
            let events = self.shared.model().events.clone();
            if (used || told.elapsed() >= KEYS_TOLD) && events.are_heard() {
                told = Instant::now();
                let keys = Arc::clone(&self.keys);
                if let Ok(tree) = spawn_blocking(move || Box::new(keys.tree())).await {
                    events.announce(|| Event::Keys { tree });
                }
            }
        }
    }

    /// Ends an onion service of a VM, whose address is not used again.
    ///
    /// # Errors
    /// When there is no such service, or that cannot be kept; nothing has changed then.
    pub async fn unpublish_onion(&self, vm: &VmName, name: &ServiceName) -> Result<(), AgentError> {
        let _turn = self.changing.lock().await;
        self.known(vm)?;
        let mut table = self.onion_state().table.clone();
        table.remove(vm, name)?;
        table.save(&self.settings.state.onions())?;
        {
            let mut state = self.onion_state();
            state.table = table;
            state.random.retain(|of, service| (of, service) != (vm, name));
            state.addresses.remove(&(vm.clone(), name.clone()));
        }
        self.refresh_onions().await;
        self.shared.model().service_removed(vm, name);
        let key = format!("{vm}/onion-service/{name}");
        // Its address is not used again. What cannot be revoked now ends with its grant.
        if let Err(error) = self.with_keys(move |keys| keys.revoke(&key)).await {
            tracing::info!(%error, "the key of an onion service that is gone is not revoked");
        }
        Ok(())
    }

    /// The onion services.
    #[must_use]
    pub fn onions(&self) -> Vec<OnionServiceStatus> {
        let state = self.onion_state();
        state.table.all().map(|(vm, name, definition)| self.onion_status(&state, vm, name, definition)).collect()
    }

    /// Gives a VM a key for a restricted onion service, or takes it away. Kept until the agent ends.
    ///
    /// # Errors
    /// When there is no such VM or no such key, or the VM has as many as it may have.
    pub async fn authorise(&self, vm: &VmName, onion: OnionAddress, key: Option<Secret>) -> Result<(), AgentError> {
        let _turn = self.changing.lock().await;
        self.known(vm)?;
        {
            let mut state = self.onion_state();
            if let Some(key) = key {
                check_authorised(&state.onions(vm), &onion)?;
                state.authorised.entry(vm.clone()).or_default().insert(onion, key);
            } else {
                let removed = state.authorised.get_mut(vm).and_then(|keys| keys.remove(&onion));
                removed.ok_or_else(|| ServiceError::NotAuthorised(vm.clone(), onion))?;
            }
        }
        self.refresh_onions().await;
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
    pub(super) async fn forget_onions(&self, vm: &VmName) {
        {
            let mut state = self.onion_state();
            state.authorised.remove(vm);
            if state.table.retain_vms(|of| of != vm)
                && let Err(error) = state.table.save(&self.settings.state.onions())
            {
                // Dropped with the VM when the file is read.
                tracing::warn!(%error, "the services of a VM that was removed are still in the file");
            }
            state.random.retain(|of, _| of != vm);
            state.addresses.retain(|(of, _), _| of != vm);
        }
        self.refresh_onions().await;
    }

    fn onion_status(
        &self,
        state: &OnionState,
        vm: &VmName,
        name: &ServiceName,
        definition: &Definition,
    ) -> OnionServiceStatus {
        let id = (vm.clone(), name.clone());
        let (reachability, status) = match state.refused.get(&id) {
            Some(why) => (Reachability::Unreachable, format!("not published: {why}")),
            None => self.shared.model().service(vm, name),
        };
        let ServiceTerms { ports, clients, max_streams } = definition.terms.clone();
        OnionServiceStatus {
            vm: vm.clone(),
            name: name.clone(),
            onion: state.addresses.get(&id).cloned(),
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
