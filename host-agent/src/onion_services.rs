//! The onion services of the VMs, as they are defined, kept in a file; and the secrets that go with them, which are not
//! in that file.
//!
//! What the router is told ([`Wanted`]) is both together, for each VM. A definition whose VM is gone, because the agent
//! was killed between the two files, is dropped when the file is read.

pub mod keys;

use std::{
    collections::{BTreeMap, btree_map},
    fs, io,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use wire::{
    VmName,
    onion::{AUTHORISED_MAX, OnionAddress, Onions, SERVICES_MAX, ServiceName, ServiceTerms, TermsError},
};

use crate::paths::write_atomically;

/// What the router is to do for each VM.
pub type Wanted = BTreeMap<VmName, Onions>;

/// How long a service keeps its address.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema, clap::ValueEnum)]
#[serde(rename_all = "snake_case")]
pub enum KeyKind {
    /// For as long as the service is defined.
    #[default]
    Kept,
    /// Until the agent is started again.
    Random,
}

/// A service of a VM.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Definition {
    /// How long it keeps its address.
    pub key: KeyKind,
    /// What it offers to whom.
    pub terms: ServiceTerms,
}

/// The services, by VM and name.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ServiceTable(BTreeMap<(VmName, ServiceName), Definition>);

/// Why an onion service cannot be had, or not be changed.
#[derive(Debug, thiserror::Error)]
pub enum ServiceError {
    /// The name is taken.
    #[error("{0} has an onion service named {1} already: choose another --name, or `oht onion unpublish {0} {1}`")]
    Exists(VmName, ServiceName),
    /// No such service.
    #[error("{0} has no onion service named {1}: `oht onion list` shows those there are")]
    Unknown(VmName, ServiceName),
    /// No such key.
    #[error("{0} has no key for {1}")]
    NotAuthorised(VmName, OnionAddress),
    /// A bound.
    #[error(transparent)]
    Terms(#[from] TermsError),
    /// The file cannot be read or written.
    #[error("cannot keep the onion services in {path}")]
    File {
        /// Which.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// The file's content is not what this program writes.
    #[error("{path} does not say which onion services there are ({message}): mend it, or move it away")]
    Content {
        /// Which.
        path: PathBuf,
        /// What is wrong.
        message: String,
    },
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Document {
    version: u32,
    services: Vec<Entry>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Entry {
    vm: VmName,
    name: ServiceName,
    key: KeyKind,
    terms: ServiceTerms,
}

impl ServiceTable {
    /// Adds a service.
    ///
    /// # Errors
    /// When the VM has one of that name, or as many as it may have, or the terms break a bound.
    pub fn add(&mut self, vm: VmName, name: ServiceName, definition: Definition) -> Result<(), ServiceError> {
        definition.terms.check()?;
        if self.of(&vm).count() >= SERVICES_MAX {
            return Err(TermsError::Services.into());
        }
        match self.0.entry((vm, name)) {
            btree_map::Entry::Occupied(taken) => {
                let (vm, name) = taken.key().clone();
                Err(ServiceError::Exists(vm, name))
            }
            btree_map::Entry::Vacant(free) => {
                free.insert(definition);
                Ok(())
            }
        }
    }

    /// Removes a service.
    ///
    /// # Errors
    /// When there is no such service.
    pub fn remove(&mut self, vm: &VmName, name: &ServiceName) -> Result<(), ServiceError> {
        let removed = self.0.remove(&(vm.clone(), name.clone()));
        removed.map(drop).ok_or_else(|| ServiceError::Unknown(vm.clone(), name.clone()))
    }

    /// Keeps the services of some VMs only. Whether that changed anything.
    pub fn retain_vms(&mut self, is_kept: impl Fn(&VmName) -> bool) -> bool {
        let before = self.0.len();
        self.0.retain(|(vm, _), _| is_kept(vm));
        self.0.len() != before
    }

    /// All of them.
    pub fn all(&self) -> impl Iterator<Item = (&VmName, &ServiceName, &Definition)> {
        self.0.iter().map(|((vm, name), definition)| (vm, name, definition))
    }

    /// One of them.
    #[must_use]
    pub fn get(&self, vm: &VmName, name: &ServiceName) -> Option<&Definition> {
        self.0.get(&(vm.clone(), name.clone()))
    }

    fn of(&self, vm: &VmName) -> impl Iterator<Item = &ServiceName> {
        self.all().filter(move |(of, _, _)| *of == vm).map(|(_, name, _)| name)
    }

    /// Reads the table; one that is not there is empty.
    ///
    /// # Errors
    /// When the file is there and is not a table. It is never overwritten then: it may be worth mending.
    pub fn load(path: &Path) -> Result<ServiceTable, ServiceError> {
        let json = match fs::read(path) {
            Ok(json) => json,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(ServiceTable::default()),
            Err(source) => return Err(ServiceError::File { path: path.into(), source }),
        };
        let wrong = |message: String| ServiceError::Content { path: path.into(), message };
        let document: Document = serde_json::from_slice(&json).map_err(|error| wrong(error.to_string()))?;
        if document.version != 1 {
            return Err(wrong(format!("it has version {}, this program knows 1", document.version)));
        }
        let mut table = ServiceTable::default();
        for Entry { vm, name, key, terms } in document.services {
            table.add(vm, name, Definition { key, terms }).map_err(|error| wrong(error.to_string()))?;
        }
        Ok(table)
    }

    /// Writes the table.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn save(&self, path: &Path) -> Result<(), ServiceError> {
        let entry = |(vm, name, definition): (&VmName, &ServiceName, &Definition)| Entry {
            vm: vm.clone(),
            name: name.clone(),
            key: definition.key,
            terms: definition.terms.clone(),
        };
        let json = serde_json::to_vec_pretty(&Document { version: 1, services: self.all().map(entry).collect() });
        let written = json.map_err(io::Error::from).and_then(|json| write_atomically(path, &json));
        written.map_err(|source| ServiceError::File { path: path.into(), source })
    }
}

/// Whether a VM may have another key for a restricted service.
///
/// # Errors
/// When it has as many as it may have.
pub fn check_authorised(onions: &Onions, onion: &OnionAddress) -> Result<(), ServiceError> {
    if onions.authorised.len() >= AUTHORISED_MAX && !onions.authorised.contains_key(onion) {
        return Err(TermsError::Authorised.into());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use wire::onion::STREAMS_DEFAULT;

    use super::*;

    fn definition(port: &str) -> Definition {
        let terms = ServiceTerms { ports: vec![port.parse().unwrap()], clients: vec![], max_streams: STREAMS_DEFAULT };
        Definition { key: KeyKind::Kept, terms }
    }

    fn vm(text: &str) -> VmName {
        text.parse().unwrap()
    }

    fn name(text: &str) -> ServiceName {
        text.parse().unwrap()
    }

    #[test]
    fn a_name_is_used_once_by_each_vm_and_there_is_a_last_one() {
        let mut table = ServiceTable::default();
        table.add(vm("a"), name("web"), definition("80")).unwrap();
        table.add(vm("b"), name("web"), definition("80")).unwrap();
        let again = table.add(vm("a"), name("web"), definition("81")).unwrap_err();
        assert!(again.to_string().contains("oht onion unpublish a web"), "{again}");
        for number in 1..SERVICES_MAX {
            table.add(vm("a"), name(&format!("s{number}")), definition("80")).unwrap();
        }
        assert!(matches!(table.add(vm("a"), name("more"), definition("80")), Err(ServiceError::Terms(_))));
        table.remove(&vm("a"), &name("web")).unwrap();
        assert!(matches!(table.remove(&vm("a"), &name("web")), Err(ServiceError::Unknown(..))));
        assert!(table.retain_vms(|of| *of == vm("b")));
        assert_eq!(table.all().count(), 1);
        let bad = Definition { terms: ServiceTerms { max_streams: 0, ..definition("80").terms }, ..definition("80") };
        assert!(matches!(table.add(vm("b"), name("bad"), bad), Err(ServiceError::Terms(_))));
    }

    #[test]
    fn the_table_survives_its_file_and_a_bad_file_is_not_believed() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("onions.json");
        assert_eq!(ServiceTable::load(&path).unwrap(), ServiceTable::default());
        let mut table = ServiceTable::default();
        let mut restricted = definition("80:8080");
        restricted.terms.clients.push([7; 32].into());
        restricted.key = KeyKind::Random;
        table.add(vm("a"), name("web"), restricted).unwrap();
        table.add(vm("b"), name("ssh"), definition("22")).unwrap();
        table.save(&path).unwrap();
        assert_eq!(ServiceTable::load(&path).unwrap(), table);
        let entry = |rest: &str| format!(r#"{{"version":1,"services":[{{"vm":"a","name":"x","key":"kept",{rest}}}]}}"#);
        for bad in [
            "",
            r#"{"version":2,"services":[]}"#,
            r#"{"version":1,"services":[],"more":1}"#,
            &entry(r#""terms":{"ports":[],"max_streams":1}"#),
            &entry(r#""terms":{"ports":["80"],"max_streams":1},"secret":"x""#),
            &entry(r#""terms":{"ports":["0"],"max_streams":1}"#),
        ] {
            fs::write(&path, bad).unwrap();
            assert!(matches!(ServiceTable::load(&path), Err(ServiceError::Content { .. })), "{bad}");
        }
    }
}
