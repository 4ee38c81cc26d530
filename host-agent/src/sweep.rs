//! What VMs leave in the run directory that no table knows: an agent that was killed had ephemeral ones.

use std::fs;

use wire::VmName;

use crate::{
    paths::RunDir,
    vms::{Vms, link_ports},
};

/// Removes the sockets and logs of VMs that are not among `vms`. To be called with the run directory's lock held.
pub fn strangers(run: &RunDir, vms: &Vms) {
    let entries = fs::read_dir(run.path().join("vm")).into_iter().flatten().flatten();
    let names = entries.filter_map(|entry| entry.file_name().to_str()?.parse::<VmName>().ok());
    for name in names.filter(|name| !vms.contains_key(name)) {
        forget(run, &name);
    }
    let taken = |port| vms.values().any(|vm| vm.link_port == port);
    for port in link_ports().filter(|&port| !taken(port)) {
        let _ = fs::remove_file(run.vsock_port(port));
    }
}

/// Removes what one VM has there, its log too.
pub fn forget(run: &RunDir, vm: &VmName) {
    let _ = fs::remove_file(run.vm(vm).join("net.sock"));
    let _ = fs::remove_dir(run.vm(vm));
    let _ = fs::remove_file(run.process_log(&format!("port:{vm}")));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn strangers_go_and_those_that_are_known_stay() {
        let dir = tempfile::tempdir().unwrap();
        let run = RunDir::new(Some(dir.path().join("r")));
        run.create().unwrap();
        for name in ["known", "stranger", "Not-A-Name"] {
            fs::create_dir(run.path().join("vm").join(name)).unwrap();
            fs::write(run.path().join("vm").join(name).join("net.sock"), "").unwrap();
            fs::write(run.path().join(format!("port-{name}.log")), "").unwrap();
        }
        let mut table = crate::vms::VmTable::default();
        table.add("known".parse().unwrap(), Default::default()).unwrap();
        strangers(&run, table.all());
        let left = |dir: &std::path::Path| {
            let mut names: Vec<_> =
                fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
            names.sort();
            names
        };
        assert_eq!(left(&run.path().join("vm")), ["Not-A-Name", "known"]);
        assert_eq!(left(run.path()), ["port-Not-A-Name.log", "port-known.log", "vm"]);
    }
}
