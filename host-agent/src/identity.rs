//! What a VM is told about itself, by its gateway, when its programs ask.
//!
//! It learns its own key and those of its purposes: nothing of the root, of the host or of other VMs, unless it asks for
//! a signature, which has to lead up to the root to be believed. So two VMs that show each other their signatures learn
//! that they are on hosts of one root. What may be signed, the grants say, as for `oht key sign`.
//!
//! Which VM asks, the router says. One that was taken over could ask for any of its VMs, and would get no more than those
//! VMs would.

use wire::{
    VmName,
    identity::{Answer, Grant, Identity, OnionService, Question, Refusal, Signature},
    onion::OnionAddress,
};

use crate::{
    keys::{
        Keys, KeysError,
        report::{KeyBranch, KeyTree, KeysState, Signed},
    },
    router_vm::words,
};

const ONION_SERVICE: &str = "onion-service";

/// Answers a question of `vm`. May block.
#[must_use]
pub fn answer(keys: &Keys, vm: &VmName, question: Question) -> Answer {
    match question {
        Question::Who => who(&keys.tree(), vm),
        Question::Onions => onions(&keys.tree(), vm),
        Question::Sign { sha256 } => match keys.sign_file(vm, None, &sha256.0) {
            Ok(Signed { root, grants, signature }) => Answer::Signed(Signature { root, grants, signature }),
            Err(error) => refused(vm, &error),
        },
    }
}

fn who(tree: &KeyTree, vm: &VmName) -> Answer {
    let Some(own) = of_vm(tree, vm).find(|branch| branch.name == vm.as_str()) else { return no_key(tree) };
    Answer::Who(Identity {
        name: vm.clone(),
        key: own.key.clone(),
        until: own.end.unwrap_or_default(),
        grants: of_vm(tree, vm).map(grant).collect(),
    })
}

fn onions(tree: &KeyTree, vm: &VmName) -> Answer {
    if of_vm(tree, vm).next().is_none() {
        return no_key(tree);
    }
    let usable = of_vm(tree, vm).filter(|branch| branch.level == ONION_SERVICE && branch.why.is_none());
    Answer::Onions(usable.filter_map(service).collect())
}

/// The keys of a VM and of its purposes, without those that were replaced.
fn of_vm<'a>(tree: &'a KeyTree, vm: &'a VmName) -> impl Iterator<Item = &'a KeyBranch> {
    tree.branches.iter().filter(move |branch| {
        let is_own = match branch.level.as_str() {
            "root" | "host" => false,
            "vm" => branch.name == vm.as_str(),
            _ => branch.name.split('/').next() == Some(vm.as_str()),
        };
        is_own && !branch.replaced
    })
}

fn grant(branch: &KeyBranch) -> Grant {
    Grant {
        level: branch.level.clone(),
        name: branch.name.clone(),
        key: branch.key.clone(),
        until: branch.end.unwrap_or_default(),
        why: branch.why.clone(),
        checks: branch.checks.clone(),
    }
}

fn service(branch: &KeyBranch) -> Option<OnionService> {
    let key = branch.key.parse::<key_tree::PublicKey>().ok()?;
    let name = branch.name.rsplit('/').next().unwrap_or_default().to_owned();
    Some(OnionService { name, onion: OnionAddress::of(key.as_bytes()).as_str().to_owned() })
}

fn no_key(tree: &KeyTree) -> Answer {
    match tree.keys.state {
        KeysState::Locked => Refusal::Locked.because(KeysError::Locked.to_string()),
        _ => Refusal::NotFound.because("this VM has no key: `oht key tree` on the host shows those there are"),
    }
}

/// A VM is told what concerns it; what went wrong on the host, only the host's log says.
fn refused(vm: &VmName, error: &KeysError) -> Answer {
    let why = match error {
        KeysError::Locked => Refusal::Locked,
        KeysError::NoVm(_) | KeysError::NoKey(_) => Refusal::NotFound,
        KeysError::Refused(_) | KeysError::HostEnded | KeysError::LeavesFull(_) => Refusal::Forbidden,
        _ => {
            tracing::warn!(%vm, error = words(error), "cannot sign for a VM");
            return Refusal::Failed.because("the host agent could not do it, and its log says why");
        }
    };
    why.because(words(error))
}
