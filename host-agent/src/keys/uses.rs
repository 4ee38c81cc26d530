//! What is done with the keys: for VMs as they come and go, for their services, for a person.

use key_tree::{Challenge, Name, Operation, Purpose, RevocationId, Timestamp, rand_core::OsRng};
use wire::VmName;
use zeroize::Zeroizing;

use super::{
    Keys, KeysError, Limits, grow,
    report::{self, KeyBranch, KeyState, NewGrant, Signed},
    tree::{Edit, LeafId, Tree},
};
use crate::hex;

/// First bytes of what a signed file's message is, before the file's SHA-256.
const FILE_DOMAIN: &[u8] = b"oht file sha256 1\0";

/// The message that a key signs for a file with this SHA-256.
#[must_use]
pub fn file_message(sha256: &[u8; 32]) -> Vec<u8> {
    [FILE_DOMAIN, sha256].concat()
}

impl Keys {
    /// Gives a VM its key, unless it has one.
    ///
    /// # Errors
    /// When the store is locked or damaged, the host's grant has ended, or the disk does not take it.
    pub fn add_vm(&self, vm: &VmName) -> Result<(), KeysError> {
        let (mut inner, now) = self.in_use();
        if inner.tree()?.vms.contains_key(vm) {
            return Ok(());
        }
        let edit = grow::vm(inner.tree()?, vm, now)?;
        inner.commit(vec![edit])
    }

    /// Takes a VM's keys away, and revokes them.
    ///
    /// # Errors
    /// As [`Keys::add_vm`].
    pub fn remove_vm(&self, vm: &VmName) -> Result<(), KeysError> {
        let (mut inner, now) = self.in_use();
        let edits = grow::without_vm(inner.tree()?, vm, now)?;
        inner.commit(edits)
    }

    /// Sees to it that these VMs have keys, and no others.
    ///
    /// # Errors
    /// As [`Keys::add_vm`].
    pub fn reconcile<'a>(&self, vms: impl IntoIterator<Item = &'a VmName>) -> Result<(), KeysError> {
        let (mut inner, now) = self.in_use();
        let (tree, mut edits) = (inner.tree()?, vec![]);
        let vms: Vec<&VmName> = vms.into_iter().collect();
        for vm in vms.iter().filter(|vm| !tree.vms.contains_key(**vm)) {
            edits.push(grow::vm(tree, vm, now)?);
        }
        for vm in tree.vms.keys().filter(|vm| !vms.contains(vm)) {
            edits.extend(grow::without_vm(tree, vm, now)?);
        }
        if edits.is_empty() { Ok(()) } else { inner.commit(edits) }
    }

    /// Gives a VM a fresh key, and revokes the one it had and all below it, at once. Keys of its services go too: they
    /// get new names.
    ///
    /// # Errors
    /// As [`Keys::add_vm`], or when it has no key.
    pub fn new_identity(&self, vm: &VmName) -> Result<KeyBranch, KeysError> {
        let (mut inner, now) = self.in_use();
        let tree = inner.tree()?;
        if !tree.vms.contains_key(vm) {
            return Err(KeysError::NoVm(vm.clone()));
        }
        let mut edits = grow::without_vm(tree, vm, now)?;
        edits.push(grow::vm(tree, vm, now)?);
        inner.commit(edits)?;
        let tree = inner.tree()?;
        let chain = &tree.vms.get(vm).ok_or_else(|| KeysError::NoVm(vm.clone()))?.chain;
        report::branch(tree, chain, vm.as_str(), now, false).pop().ok_or_else(|| KeysError::NoVm(vm.clone()))
    }

    /// Gives a purpose of a VM a key within limits, or the key that is there a new grant within other limits.
    ///
    /// # Errors
    /// As [`Keys::add_vm`]; or when the limits make no sense.
    pub fn grant(&self, new: NewGrant) -> Result<KeyBranch, KeysError> {
        let name = new.name.as_deref().map_or_else(|| Ok(grow::name(&new.vm)), str::parse::<Name>)?;
        let id = LeafId { vm: new.vm, purpose: new.purpose.into(), name };
        let (mut inner, now) = self.in_use();
        inner.rotate(now)?;
        let tree = inner.tree()?;
        let mut edits = vec![];
        if let Some(before) = tree.leaves.get(&id) {
            // Its earlier grant may permit more.
            edits.extend(grow::revoked(tree, before, now)?);
            edits.push(grow::leaf_again(tree, &id, new.limits, now)?);
        } else {
            edits.push(grow::leaf(tree, &id, new.limits, now)?);
        }
        inner.commit(edits)?;
        let tree = inner.tree()?;
        let leaf = tree.leaves.get(&id).ok_or_else(|| KeysError::NoKey(id.path()))?;
        report::branch(tree, &leaf.chain, &id.path(), now, false).pop().ok_or_else(|| KeysError::NoKey(id.path()))
    }

    /// The secret of a service's key (RFC 8032), which is made when it is first asked for and stays.
    ///
    /// # Errors
    /// As [`Keys::add_vm`]; or when any grant of its chain is not live.
    pub fn service_key(&self, vm: &VmName, service: &str) -> Result<Zeroizing<[u8; 32]>, KeysError> {
        let id = LeafId { vm: vm.clone(), purpose: Purpose::OnionService, name: service.parse()? };
        let (mut inner, now) = self.in_use();
        inner.rotate(now)?;
        if !inner.tree()?.leaves.contains_key(&id) {
            let edit = grow::leaf(inner.tree()?, &id, Limits::default(), now)?;
            inner.commit(vec![edit])?;
        }
        let tree = inner.tree()?;
        let leaf = tree.leaves.get(&id).ok_or_else(|| KeysError::NoKey(id.path()))?;
        tree.live(&leaf.chain, now).map_err(KeysError::Refused)?;
        Ok(leaf.key()?.secret())
    }

    /// How a service's key is, also while the store is locked; `None` when there is none. Once it cannot be used, stop
    /// what was begun with it.
    #[must_use]
    pub fn service_state(&self, vm: &VmName, service: &str) -> Option<KeyState> {
        let id = LeafId { vm: vm.clone(), purpose: Purpose::OnionService, name: service.parse().ok()? };
        let mut inner = self.inner();
        let now = inner.now(&*self.time);
        let tree = inner.tree.as_ref()?;
        let chain = &tree.leaves.get(&id)?.chain;
        let why = tree.live(chain, now).err().map(|refusal| refusal.to_string());
        Some(KeyState { key: chain.key(), why, until: chain.validity()?.end().as_unix() })
    }

    /// Whether the grants of a service permit to publish `port`.
    ///
    /// # Errors
    /// Says which grant does not, and why; or that there is no such key.
    pub fn may_publish(&self, vm: &VmName, service: &str, port: u16) -> Result<(), KeysError> {
        let id = LeafId { vm: vm.clone(), purpose: Purpose::OnionService, name: service.parse()? };
        let mut inner = self.inner();
        let now = inner.now(&*self.time);
        let tree = inner.tree.as_ref().ok_or(KeysError::Locked)?;
        let chain = &tree.leaves.get(&id).ok_or_else(|| KeysError::NoKey(id.path()))?.chain;
        let permitted = chain.would_permit(&Operation::Publish { port }, now, &|id| tree.is_revoked(id));
        permitted.map_err(KeysError::Refused)
    }

    /// Signs a file's SHA-256 with a VM's signing key, which is made when it is first asked for.
    ///
    /// # Errors
    /// As [`Keys::add_vm`]; or when a grant does not permit it.
    pub fn sign_file(&self, vm: &VmName, name: Option<&str>, sha256: &[u8; 32]) -> Result<Signed, KeysError> {
        let name = name.map_or_else(|| Ok(grow::name(vm)), str::parse::<Name>)?;
        let id = LeafId { vm: vm.clone(), purpose: Purpose::Signing, name };
        let (mut inner, now) = self.in_use();
        inner.rotate(now)?;
        if !inner.tree()?.leaves.contains_key(&id) {
            let edit = grow::leaf(inner.tree()?, &id, Limits::default(), now)?;
            inner.commit(vec![edit])?;
        }
        let tree = inner.tree()?;
        let leaf = tree.leaves.get(&id).ok_or_else(|| KeysError::NoKey(id.path()))?;
        let (key, challenge) = (leaf.key()?, Challenge::new(&mut OsRng, now));
        let proof = key.prove(&tree.root, &challenge.nonce(), &Operation::Sign);
        let revoked = |id: &RevocationId| tree.is_revoked(id);
        leaf.chain.verify(&Operation::Sign, now, &revoked, challenge, &proof).map_err(KeysError::Refused)?;
        Ok(Signed {
            root: tree.root.to_string(),
            grants: leaf.chain.grants().map(|grant| hex::encode(grant.as_bytes())).collect(),
            signature: hex::encode(&key.sign(&file_message(sha256)).to_bytes()),
        })
    }

    /// Revokes grants: of the key that `what` names as [`Keys::tree`] does (`host`, `web`, `web/signing/web`), or of the
    /// revocation identifier that it is. Returns how many were revoked.
    ///
    /// # Errors
    /// As [`Keys::add_vm`]; or when nothing has that name.
    pub fn revoke(&self, what: &str) -> Result<usize, KeysError> {
        let (mut inner, now) = self.in_use();
        let tree = inner.tree()?;
        let edits = match what.parse::<RevocationId>() {
            Ok(id) => vec![Edit::Revoke(id, end_of(tree, &id).ok_or_else(|| KeysError::NoKey(what.into()))?)],
            Err(_) => {
                let vm = || what.parse::<VmName>().ok().and_then(|vm| tree.vms.get(&vm));
                let leaf = || what.parse::<LeafId>().ok().and_then(|id| tree.leaves.get(&id));
                let host = (what == "host").then_some(&tree.host);
                let owned = host.or_else(vm).or_else(leaf).ok_or_else(|| KeysError::NoKey(what.into()))?;
                grow::revoked(tree, owned, now)?
            }
        };
        let revoked = edits.len();
        inner.commit(edits)?;
        Ok(revoked)
    }
}

/// When the grant with this identifier ends.
fn end_of(tree: &Tree, id: &RevocationId) -> Option<Timestamp> {
    let mut grants = tree.all().flat_map(|owned| owned.chains()).flat_map(|chain| chain.grants());
    grants.find(|grant| grant.revocation_id() == *id).map(|grant| grant.validity().end())
}
