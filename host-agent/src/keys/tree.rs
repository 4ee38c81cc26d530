//! The part of the tree that this host owns, in memory, and its places in the store.
//!
//! | place | value |
//! | --- | --- |
//! | `tree/root` | the root's public key |
//! | `tree/host` | the host's key |
//! | `vm/NAME` | a VM's key |
//! | `leaf/VM/PURPOSE/NAME` | the key of one purpose of a VM |
//! | `revoked/ID` | until when a revoked grant would have been valid |
//! | `clock/floor` | the latest time ever told |
//!
//! Nothing here does I/O: a change is made as a list of [`Edit`]s, which are stored first and then applied.

use std::{collections::BTreeMap, str::FromStr};

use key_tree::{Chain, KEY_BYTES, Level, Name, Now, PublicKey, Purpose, RevocationId, Timestamp};
use wire::VmName;
use zeroize::Zeroizing;

use super::{KeysError, owned::Owned};
use crate::{
    hex,
    store::{Change, Values},
};

/// The purposes that a key may have.
pub(super) const PURPOSES: [Purpose; 5] =
    [Purpose::Session, Purpose::OnionService, Purpose::DhtNode, Purpose::Signing, Purpose::Ssh];

/// Purposes' keys of one VM.
pub(super) const LEAVES_MAX: usize = 64;

/// Grants that are remembered as revoked; each until its end.
pub(super) const REVOKED_MAX: usize = 4096;

const ROOT: &str = "tree/root";
const HOST: &str = "tree/host";
const FLOOR: &str = "clock/floor";

/// Which key of a VM: there may be several services.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct LeafId {
    pub(super) vm: VmName,
    pub(super) purpose: Purpose,
    pub(super) name: Name,
}

/// The keys of this host.
pub(super) struct Tree {
    pub(super) root: PublicKey,
    pub(super) host: Owned,
    pub(super) vms: BTreeMap<VmName, Owned>,
    pub(super) leaves: BTreeMap<LeafId, Owned>,
    pub(super) revoked: BTreeMap<RevocationId, Timestamp>,
}

/// One change of the tree.
pub(super) enum Edit {
    Host(Box<Owned>),
    Vm(VmName, Box<Owned>),
    RemoveVm(VmName),
    Leaf(LeafId, Box<Owned>),
    RemoveLeaf(LeafId),
    Revoke(RevocationId, Timestamp),
    /// A revoked grant has ended, and needs no word any more.
    Forget(RevocationId),
}

impl Tree {
    /// The tree of a host's key alone.
    pub(super) fn new(root: PublicKey, host: Owned) -> Tree {
        Tree { root, host, vms: BTreeMap::new(), leaves: BTreeMap::new(), revoked: BTreeMap::new() }
    }

    /// Reads the tree and the clock's floor; says which value is not understood.
    pub(super) fn load(values: &Values) -> Result<(Tree, Timestamp), String> {
        let root = values.get(ROOT).and_then(|bytes| <[u8; KEY_BYTES]>::try_from(bytes.as_slice()).ok());
        let root = root.and_then(|bytes| PublicKey::from_bytes(&bytes).ok()).ok_or("it does not name its root")?;
        let host = values.get(HOST).and_then(|bytes| Owned::from_bytes(bytes, root));
        let mut tree = Tree::new(root, host.ok_or("it does not hold the host's key")?);
        let mut floor = Timestamp::default();
        for (place, value) in values {
            tree.take(place, value, &mut floor).ok_or_else(|| format!("{place} is not understood"))?;
        }
        Ok((tree, floor))
    }

    fn take(&mut self, place: &str, value: &[u8], floor: &mut Timestamp) -> Option<()> {
        if [ROOT, HOST].contains(&place) {
            return Some(());
        }
        if place == FLOOR {
            *floor = timestamp(value)?;
            return Some(());
        }
        match place.split_once('/')? {
            ("vm", name) => drop(self.vms.insert(name.parse().ok()?, Owned::from_bytes(value, self.root)?)),
            ("leaf", id) => drop(self.leaves.insert(id.parse().ok()?, Owned::from_bytes(value, self.root)?)),
            ("revoked", id) => drop(self.revoked.insert(id.parse().ok()?, timestamp(value)?)),
            _ => return None,
        }
        Some(())
    }

    /// Everything, to be stored.
    pub(super) fn values(&self, floor: Timestamp) -> Result<Values, KeysError> {
        let root = Zeroizing::new(self.root.as_bytes().to_vec());
        let mut values = Values::from([(ROOT.to_owned(), root), (HOST.to_owned(), self.host.to_bytes()?)]);
        for (name, owned) in &self.vms {
            values.insert(vm_place(name), owned.to_bytes()?);
        }
        for (id, owned) in &self.leaves {
            values.insert(id.place(), owned.to_bytes()?);
        }
        values.extend(self.revoked.iter().map(|(id, until)| (revoked_place(id), seconds(*until))));
        values.insert(FLOOR.to_owned(), seconds(floor));
        Ok(values)
    }

    /// Does what was stored.
    pub(super) fn apply(&mut self, edits: Vec<Edit>) {
        for edit in edits {
            match edit {
                Edit::Host(owned) => self.host = *owned,
                Edit::Vm(name, owned) => drop(self.vms.insert(name, *owned)),
                Edit::RemoveVm(name) => drop(self.vms.remove(&name)),
                Edit::Leaf(id, owned) => drop(self.leaves.insert(id, *owned)),
                Edit::RemoveLeaf(id) => drop(self.leaves.remove(&id)),
                Edit::Revoke(id, until) => drop(self.revoked.insert(id, until)),
                Edit::Forget(id) => drop(self.revoked.remove(&id)),
            }
        }
    }

    /// Whether a grant was revoked.
    pub(super) fn is_revoked(&self, id: &RevocationId) -> bool {
        self.revoked.contains_key(id)
    }

    /// Whether a chain can be used now, and if not, why.
    pub(super) fn live(&self, chain: &Chain, now: Now) -> Result<(), key_tree::Refusal> {
        chain.live(now, &|id| self.is_revoked(id))
    }

    /// The keys of one VM's purposes.
    pub(super) fn leaves_of(&self, vm: &VmName) -> impl Iterator<Item = (&LeafId, &Owned)> {
        self.leaves.iter().filter(move |(id, _)| id.vm == *vm)
    }

    /// Every key of ours.
    pub(super) fn all(&self) -> impl Iterator<Item = &Owned> {
        std::iter::once(&self.host).chain(self.vms.values()).chain(self.leaves.values())
    }

    /// Forgets all secrets.
    pub(super) fn lock(&mut self) {
        self.host.lock();
        self.vms.values_mut().chain(self.leaves.values_mut()).for_each(Owned::lock);
    }
}

impl Edit {
    /// The change of the store that it is.
    pub(super) fn change(&self) -> Result<Change, KeysError> {
        Ok(match self {
            Edit::Host(owned) => Change::Put(HOST.into(), owned.to_bytes()?),
            Edit::Vm(name, owned) => Change::Put(vm_place(name), owned.to_bytes()?),
            Edit::RemoveVm(name) => Change::Remove(vm_place(name)),
            Edit::Leaf(id, owned) => Change::Put(id.place(), owned.to_bytes()?),
            Edit::RemoveLeaf(id) => Change::Remove(id.place()),
            Edit::Revoke(id, until) => Change::Put(revoked_place(id), seconds(*until)),
            Edit::Forget(id) => Change::Remove(revoked_place(id)),
        })
    }
}

/// The change of the store that keeps the clock's floor.
pub(super) fn floor_change(floor: Timestamp) -> Change {
    Change::Put(FLOOR.into(), seconds(floor))
}

impl LeafId {
    /// `web/onion-service/blog`, as people write it.
    pub(super) fn path(&self) -> String {
        format!("{}/{}/{}", self.vm, self.purpose, self.name)
    }

    pub(super) fn level(&self) -> Level {
        Level::Purpose(self.purpose)
    }

    fn place(&self) -> String {
        format!("leaf/{}", self.path())
    }
}

impl FromStr for LeafId {
    type Err = ();

    fn from_str(text: &str) -> Result<LeafId, ()> {
        let mut parts = text.splitn(3, '/');
        let mut next = || parts.next().ok_or(());
        let (vm, purpose, name) = (next()?, next()?, next()?);
        let purpose = PURPOSES.into_iter().find(|known| known.as_str() == purpose).ok_or(())?;
        Ok(LeafId { vm: vm.parse().map_err(drop)?, purpose, name: name.parse().map_err(drop)? })
    }
}

fn vm_place(name: &VmName) -> String {
    format!("vm/{name}")
}

fn revoked_place(id: &RevocationId) -> String {
    format!("revoked/{}", hex::encode(id.as_bytes()))
}

fn seconds(time: Timestamp) -> Zeroizing<Vec<u8>> {
    Zeroizing::new(time.as_unix().to_le_bytes().to_vec())
}

fn timestamp(bytes: &[u8]) -> Option<Timestamp> {
    bytes.try_into().ok().map(u64::from_le_bytes).map(Timestamp::from_unix)
}
