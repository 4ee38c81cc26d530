//! The table of VMs: names, link ports and how they are served, kept in a file. No I/O but that file.
//!
//! A VM keeps its link port for as long as it exists, across restarts of everything. Ports run from
//! [`wire::LINK_PORT_FIRST`]; the lowest free one is given, so there are never more than [`wire::VMS_MAX`]. Ephemeral
//! VMs are in the table and never in the file.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs, io,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};
use wire::{LINK_PORT_FIRST, VMS_MAX, VmName, control::VmOptions};

use crate::{
    nature::{Kind, Nature},
    paths::write_atomically,
};

/// The VMs by name.
pub type Vms = BTreeMap<VmName, Vm>;

/// How the router serves a VM.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Vm {
    /// The vsock port of its link.
    pub link_port: u32,
    /// How else.
    pub options: VmOptions,
    /// What it is for, and how long it stays.
    pub nature: Nature,
}

/// The VMs and how they are served.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct VmTable(Vms);

/// Why the table does not do as it is told.
#[derive(Debug, thiserror::Error)]
pub enum VmError {
    /// The name is taken.
    #[error("there is a VM named {0} already: choose another name, or remove that one (`oht vm rm {0}`)")]
    Exists(VmName),
    /// No such VM.
    #[error("there is no VM named {0}: `oht vm list` shows those there are")]
    Unknown(VmName),
    /// The table is full.
    #[error("there are {VMS_MAX} VMs already, which is all that one router serves: remove one")]
    Full,
    /// The file cannot be read or written.
    #[error("cannot keep the VMs in {path}")]
    File {
        /// Which.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// The file's content is not what this program writes.
    #[error("{path} does not say which VMs there are ({message}): mend it, or move it away and add the VMs again")]
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
    vms: Vec<Entry>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Entry {
    name: VmName,
    link_port: u32,
    // Files from before there was a choice have no such fields.
    #[serde(default)]
    optimistic: bool,
    #[serde(default)]
    resolve: bool,
    #[serde(default)]
    kind: Kind,
}

impl VmTable {
    /// Adds a VM and returns its link port.
    ///
    /// # Errors
    /// When the name is taken or the table full.
    pub fn add(&mut self, vm: VmName, options: VmOptions, nature: Nature) -> Result<u32, VmError> {
        if self.0.contains_key(&vm) {
            return Err(VmError::Exists(vm));
        }
        let taken: BTreeSet<u32> = self.0.values().map(|vm| vm.link_port).collect();
        let link_port = link_ports().find(|port| !taken.contains(port)).ok_or(VmError::Full)?;
        self.0.insert(vm, Vm { link_port, options, nature });
        Ok(link_port)
    }

    /// Removes a VM and returns its link port.
    ///
    /// # Errors
    /// When there is no such VM.
    pub fn remove(&mut self, vm: &VmName) -> Result<u32, VmError> {
        self.0.remove(vm).map(|vm| vm.link_port).ok_or_else(|| VmError::Unknown(vm.clone()))
    }

    /// The VMs.
    #[must_use]
    pub fn all(&self) -> &Vms {
        &self.0
    }

    /// Reads the table; one that is not there is empty.
    ///
    /// # Errors
    /// When the file is there and is not a table. It is never overwritten then: it may be worth mending.
    pub fn load(path: &Path) -> Result<VmTable, VmError> {
        let json = match fs::read(path) {
            Ok(json) => json,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(VmTable::default()),
            Err(source) => return Err(VmError::File { path: path.into(), source }),
        };
        let wrong = |message: String| VmError::Content { path: path.into(), message };
        let document: Document = serde_json::from_slice(&json).map_err(|error| wrong(error.to_string()))?;
        if document.version != 1 {
            return Err(wrong(format!("it has version {}, this program knows 1", document.version)));
        }
        let mut ports = BTreeSet::new();
        let mut table = VmTable::default();
        for Entry { name, link_port, optimistic, resolve, kind } in document.vms {
            if !link_ports().contains(&link_port) || !ports.insert(link_port) {
                return Err(wrong(format!("{name} has the link port {link_port}, which is no free one")));
            }
            let options = VmOptions { optimistic, resolve };
            let nature = Nature { kind, ephemeral: false };
            if table.0.insert(name.clone(), Vm { link_port, options, nature }).is_some() {
                return Err(wrong(format!("{name} stands there twice")));
            }
        }
        Ok(table)
    }

    /// Writes the table, whole or not at all.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn save(&self, path: &Path) -> Result<(), VmError> {
        let entry = |(name, vm): (&VmName, &Vm)| Entry {
            name: name.clone(),
            link_port: vm.link_port,
            optimistic: vm.options.optimistic,
            resolve: vm.options.resolve,
            kind: vm.nature.kind,
        };
        let vms = self.0.iter().filter(|(_, vm)| !vm.nature.ephemeral).map(entry).collect();
        let json = serde_json::to_vec_pretty(&Document { version: 1, vms });
        let written = json.map_err(io::Error::from).and_then(|json| write_atomically(path, &json));
        written.map_err(|source| VmError::File { path: path.into(), source })
    }
}

/// The ports that VMs' links may have.
pub(crate) fn link_ports() -> std::ops::Range<u32> {
    LINK_PORT_FIRST..LINK_PORT_FIRST + VMS_MAX as u32
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(text: &str) -> VmName {
        text.parse().unwrap()
    }

    #[test]
    fn ports_are_the_lowest_free_ones_and_stay() {
        let mut table = VmTable::default();
        assert_eq!(table.add(name("a"), VmOptions::default(), Nature::default()).unwrap(), 2048);
        assert_eq!(table.add(name("b"), VmOptions::default(), Nature::default()).unwrap(), 2049);
        assert!(matches!(table.add(name("a"), VmOptions::default(), Nature::default()), Err(VmError::Exists(_))));
        assert_eq!(table.remove(&name("a")).unwrap(), 2048);
        assert!(matches!(table.remove(&name("a")), Err(VmError::Unknown(_))));
        assert_eq!(table.all()[&name("b")].link_port, 2049);
        assert_eq!(table.add(name("c"), VmOptions::default(), Nature::default()).unwrap(), 2048);
    }

    #[test]
    fn there_is_a_last_vm() {
        let mut table = VmTable::default();
        for i in 0..VMS_MAX {
            table.add(name(&format!("vm{i}")), VmOptions::default(), Nature::default()).unwrap();
        }
        assert!(matches!(table.add(name("more"), VmOptions::default(), Nature::default()), Err(VmError::Full)));
    }

    #[test]
    fn the_table_survives_its_file_and_a_bad_file_is_not_believed() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("vms.json");
        assert_eq!(VmTable::load(&path).unwrap(), VmTable::default());
        let mut table = VmTable::default();
        let utility = Nature { kind: Kind::Utility, ephemeral: false };
        table.add(name("a"), VmOptions::default(), Nature::default()).unwrap();
        table.add(name("b"), VmOptions { optimistic: true, resolve: true }, utility).unwrap();
        table.remove(&name("a")).unwrap();
        table.save(&path).unwrap();
        assert_eq!(VmTable::load(&path).unwrap(), table);
        let kept = table.clone();
        table.add(name("passing"), VmOptions::default(), Nature { ephemeral: true, ..utility }).unwrap();
        table.save(&path).unwrap();
        assert_eq!(VmTable::load(&path).unwrap(), kept, "what is ephemeral is not in the file");
        assert!(!fs::read_to_string(&path).unwrap().contains("passing"));
        fs::write(&path, r#"{"version":1,"vms":[{"name":"b","link_port":2049}]}"#).unwrap();
        let earlier = VmTable::load(&path).unwrap().all()[&name("b")];
        assert_eq!((earlier.options, earlier.nature), Default::default(), "as written by an earlier version");
        for bad in [
            "",
            r#"{"version":2,"vms":[]}"#,
            r#"{"version":1,"vms":[{"name":"a","link_port":1025}]}"#,
            r#"{"version":1,"vms":[{"name":"a","link_port":2048},{"name":"b","link_port":2048}]}"#,
            r#"{"version":1,"vms":[{"name":"a","link_port":2048},{"name":"a","link_port":2049}]}"#,
            r#"{"version":1,"vms":[{"name":"../a","link_port":2048}]}"#,
            r#"{"version":1,"vms":[],"more":1}"#,
        ] {
            fs::write(&path, bad).unwrap();
            assert!(matches!(VmTable::load(&path), Err(VmError::Content { .. })), "{bad}");
        }
    }
}
