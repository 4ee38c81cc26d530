//! Making keys and grants: what grows in the tree, and what takes the place of what ends. No I/O; the time is a parameter.
//!
//! A VM's key is replaced by a fresh one before its grant ends; both are valid for the last third of the old one's time.
//! A purpose's key stays, since it is a name to others (an onion address, an SSH host key), and gets a fresh grant. A
//! successor is made only if it lasts longer than what it replaces, so that near the end of the host's own grant nothing
//! is made again and again.

use key_tree::{
    Chain, KeyPair, Level, Name, Now, RevocationId, Stage, Terms, Timestamp, Validity, issue, rand_core::OsRng,
};
use wire::VmName;

use super::{
    KeysError,
    limits::Limits,
    owned::Owned,
    tree::{Edit, LEAVES_MAX, LeafId, REVOKED_MAX, Tree},
};

/// A fresh key for a VM.
pub(super) fn vm(tree: &Tree, vm: &VmName, now: Now) -> Result<Edit, KeysError> {
    let validity = span(now, Level::Vm.lifetime_max_seconds(), &tree.host.chain);
    let terms = Terms::new(Level::Vm, name(vm), validity.ok_or(KeysError::HostEnded)?);
    let owned = grown(tree, &tree.host, KeyPair::generate(&mut OsRng), &terms, Limits::default(), now)?;
    Ok(Edit::Vm(vm.clone(), Box::new(owned)))
}

/// A fresh key for a purpose of a VM.
pub(super) fn leaf(tree: &Tree, id: &LeafId, limits: Limits, now: Now) -> Result<Edit, KeysError> {
    if !tree.leaves.contains_key(id) && tree.leaves_of(&id.vm).count() >= LEAVES_MAX {
        return Err(KeysError::LeavesFull(id.vm.clone()));
    }
    leaf_with(tree, id, KeyPair::generate(&mut OsRng), limits, now)
}

/// A grant within other limits for the key of a purpose that has one.
pub(super) fn leaf_again(tree: &Tree, id: &LeafId, limits: Limits, now: Now) -> Result<Edit, KeysError> {
    let owned = tree.leaves.get(id).ok_or_else(|| KeysError::NoKey(id.path()))?;
    leaf_with(tree, id, owned.key()?, limits, now)
}

/// A fresh grant for a purpose's key.
fn leaf_with(tree: &Tree, id: &LeafId, key: KeyPair, limits: Limits, now: Now) -> Result<Edit, KeysError> {
    let parent = tree.vms.get(&id.vm).ok_or_else(|| KeysError::NoVm(id.vm.clone()))?;
    let seconds = limits.seconds()?;
    let terms =
        limits.terms(id.level(), id.name.clone(), span(now, seconds, &parent.chain).ok_or(KeysError::HostEnded)?)?;
    Ok(Edit::Leaf(id.clone(), Box::new(grown(tree, parent, key, &terms, limits, now)?)))
}

/// A key with a grant of `parent`.
fn grown(
    tree: &Tree,
    parent: &Owned,
    key: KeyPair,
    terms: &Terms,
    limits: Limits,
    now: Now,
) -> Result<Owned, KeysError> {
    tree.live(&parent.chain, now).map_err(KeysError::Refused)?;
    let chain = issue(&parent.key()?, &parent.chain, &key.public(), terms, now, &mut OsRng)?;
    Ok(Owned::new(&key, chain, limits))
}

/// From now on for `seconds`, and not beyond `parent`.
fn span(now: Now, seconds: u64, parent: &Chain) -> Option<Validity> {
    let start = now.timestamp();
    let own = Validity::new(start, start.after(seconds))?;
    parent.validity().map_or(Some(own), |parent| own.common(parent))
}

/// The edits that take a VM's keys away: they are forgotten here, and revoked for whoever has seen their grants.
pub(super) fn without_vm(tree: &Tree, vm: &VmName, now: Now) -> Result<Vec<Edit>, KeysError> {
    let Some(owned) = tree.vms.get(vm) else { return Ok(vec![]) };
    let mut edits: Vec<Edit> = tree.leaves_of(vm).map(|(id, _)| Edit::RemoveLeaf(id.clone())).collect();
    edits.extend(revoked(tree, owned, now)?);
    edits.push(Edit::RemoveVm(vm.clone()));
    Ok(edits)
}

/// The edits that revoke a key's grant, and those before it. What stands below goes with them.
pub(super) fn revoked(tree: &Tree, owned: &Owned, now: Now) -> Result<Vec<Edit>, KeysError> {
    let last = |chain: &Chain| chain.grants().next_back().map(|grant| (grant.revocation_id(), grant.validity().end()));
    let ids: Vec<(RevocationId, Timestamp)> = owned.chains().filter_map(last).collect();
    if tree.revoked.len() + ids.len() > REVOKED_MAX {
        return Err(KeysError::RevokedFull);
    }
    Ok(ids.into_iter().filter(|(_, end)| now.timestamp() < *end).map(|(id, end)| Edit::Revoke(id, end)).collect())
}

/// Successors of the VMs' keys that are due.
pub(super) fn due_vms(tree: &Tree, now: Now) -> Result<Vec<Edit>, KeysError> {
    if tree.live(&tree.host.chain, now).is_err() {
        return Ok(vec![]);
    }
    let mut edits = vec![];
    for (name, owned) in tree.vms.iter().filter(|(_, owned)| is_due(tree, owned, now)) {
        let Edit::Vm(_, next) = vm(tree, name, now)? else { continue };
        if is_gain(tree, owned, &next, now) {
            edits.push(Edit::Vm(name.clone(), Box::new(owned.succeeded_by(*next, now))));
        }
    }
    Ok(edits)
}

/// Fresh grants for the purposes' keys that are due; after [`due_vms`] were applied.
pub(super) fn due_leaves(tree: &Tree, now: Now) -> Result<Vec<Edit>, KeysError> {
    let mut edits = vec![];
    for (id, owned) in tree.leaves.iter().filter(|(_, owned)| is_due(tree, owned, now)) {
        let parent_lives = tree.vms.get(&id.vm).is_some_and(|vm| tree.live(&vm.chain, now).is_ok());
        if !parent_lives {
            continue;
        }
        let Edit::Leaf(_, next) = leaf_with(tree, id, owned.key()?, owned.limits.clone(), now)? else { continue };
        if is_gain(tree, owned, &next, now) {
            edits.push(Edit::Leaf(id.clone(), Box::new(owned.succeeded_by(*next, now))));
        }
    }
    Ok(edits)
}

/// Revoked grants that have ended by themselves.
pub(super) fn forgotten(tree: &Tree, now: Now) -> Vec<Edit> {
    let over = tree.revoked.iter().filter(|(_, until)| now.timestamp() >= **until);
    over.map(|(id, _)| Edit::Forget(*id)).collect()
}

/// Whether a key is to be replaced: its grant is in its last third or over, or one above it is not live. One that was
/// itself revoked stays so until a person asks for another.
fn is_due(tree: &Tree, owned: &Owned, now: Now) -> bool {
    let Some(grant) = owned.chain.grants().next_back() else { return false };
    let fresh = matches!(grant.rotation().stage(now), Stage::Fresh { .. });
    !tree.is_revoked(&grant.revocation_id()) && (!fresh || tree.live(&owned.chain, now).is_err())
}

fn is_gain(tree: &Tree, owned: &Owned, next: &Owned, now: Now) -> bool {
    let end = |owned: &Owned| owned.chain.validity().map(Validity::end);
    end(next) > end(owned) || tree.live(&owned.chain, now).is_err()
}

/// A VM's name as the tree has names.
pub(super) fn name(vm: &VmName) -> Name {
    vm.as_str().parse().expect("both are labels of DNS")
}
