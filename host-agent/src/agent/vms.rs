//! The agent's part in VMs: each has a port, which the agent starts and keeps.

use std::{
    io,
    os::fd::{AsRawFd, OwnedFd},
};

use wire::{VmName, control::ToRouter};

use super::{Agent, AgentError, Port};
use crate::{
    attach,
    nature::Nature,
    paths::PathError,
    programs,
    router_vm::words,
    sockets,
    spawn::Spawn,
    status::{Attachment, CircuitStatus, VmStatus},
    supervise::{self, Shared, Stopper, Supervised},
    sweep,
    vms::{VmError, VmTable},
};

impl Agent {
    /// Starts the ports of the VMs that there were. One that cannot be had does not take the others with it.
    pub(super) async fn adopt(&self, table: VmTable) {
        let mut ports = self.changing.lock().await;
        sweep::strangers(&self.settings.run, table.all());
        for (name, vm) in table.all() {
            match self.start_port(name, vm.link_port) {
                Ok(port) => drop(ports.insert(name.clone(), port)),
                Err(error) => self.shared.model().failure(format!("VM {name} has no port: {}", words(&error))),
            }
            self.shared.model().vm_added(name.clone(), vm.nature);
        }
        self.publish(table);
    }

    /// Adds a VM and starts its port.
    ///
    /// # Errors
    /// When the name is taken, the table full, or the sockets cannot be had; nothing has changed then.
    pub async fn add_vm(&self, vm: VmName, nature: Nature) -> Result<VmStatus, AgentError> {
        let mut ports = self.changing.lock().await;
        let mut table = self.table().clone();
        let link_port = table.add(vm.clone(), nature)?;
        self.add_key(&vm).await?;
        let port = match self.start_port(&vm, link_port) {
            Ok(port) => port,
            Err(error) => {
                self.remove_key(&vm).await;
                return Err(error);
            }
        };
        if let Err(error) = table.save(&self.settings.state.vms()) {
            port.end().await;
            self.remove_sockets(&vm, link_port);
            self.remove_key(&vm).await;
            return Err(error.into());
        }
        ports.insert(vm.clone(), port);
        self.shared.model().vm_added(vm.clone(), nature);
        self.publish(table);
        let socket = self.settings.run.vm_socket(&vm)?.display().to_string();
        let (name, Nature { kind, ephemeral }) = (vm.to_string(), nature);
        Ok(VmStatus { name, link_up: false, port_pid: None, socket, kind, ephemeral, usage: None })
    }

    /// Removes a VM: the router stops serving it, its port ends, its sockets go.
    ///
    /// # Errors
    /// When there is no such VM, or the table cannot be written; nothing has changed then.
    pub async fn remove_vm(&self, vm: &VmName) -> Result<(), AgentError> {
        let mut ports = self.changing.lock().await;
        let mut table = self.table().clone();
        let link_port = table.remove(vm)?;
        table.save(&self.settings.state.vms())?;
        self.publish(table);
        if let Some(port) = ports.remove(vm) {
            port.end().await;
        }
        self.remove_key(vm).await;
        self.forget_onions(vm).await;
        self.shared.model().vm_removed(vm);
        self.remove_sockets(vm, link_port);
        Ok(())
    }

    /// What attaches a QEMU of `memory_mib` to the VM's port, with a guest that is told `mtu`.
    ///
    /// # Errors
    /// When there is no such VM.
    pub fn attachment(&self, vm: &VmName, memory_mib: u32, mtu: Option<u16>) -> Result<Attachment, AgentError> {
        if !self.table().all().contains_key(vm) {
            return Err(VmError::Unknown(vm.clone()).into());
        }
        let socket = self.settings.run.vm_socket(vm)?.display().to_string();
        let (qemu, libvirt) = (attach::qemu_arguments(&socket, memory_mib, mtu), attach::libvirt_parts(&socket, mtu));
        Ok(Attachment { qemu, libvirt, socket, mac: attach::MAC.into() })
    }

    /// The VMs.
    #[must_use]
    pub fn vms(&self) -> Vec<VmStatus> {
        self.shared.model().vms(&self.settings.run)
    }

    /// The circuits of one VM, or of all.
    ///
    /// # Errors
    /// When there is no such VM.
    pub fn circuits(&self, vm: Option<&VmName>) -> Result<Vec<CircuitStatus>, AgentError> {
        match vm.filter(|vm| !self.table().all().contains_key(vm)) {
            Some(unknown) => Err(VmError::Unknown(unknown.clone()).into()),
            None => Ok(self.shared.model().circuits(vm)),
        }
    }

    fn start_port(&self, vm: &VmName, link_port: u32) -> Result<Port, AgentError> {
        let run = &self.settings.run;
        let socket = run.vm_socket(vm)?;
        let directory = run.vm(vm);
        let failed = |source| PathError::Directory { path: directory.clone(), option: "--run-dir", source };
        std::fs::create_dir_all(&directory).map_err(failed)?;
        // The agent keeps both listeners: while a port is being restarted, who connects waits instead of failing.
        let vhost_user = OwnedFd::from(sockets::listen(&socket)?);
        let link = OwnedFd::from(sockets::listen(&run.vsock_port(link_port))?);
        let name = format!("port:{vm}");
        let (program, log) = (self.programs.find(programs::PORT)?, run.process_log(&name));
        let (vm, control) = (vm.clone(), self.control.clone());
        let mut is_successor = false;
        let start = move |shared: &Shared, name: &str| -> io::Result<Supervised> {
            if std::mem::replace(&mut is_successor, true) {
                control.notify(ToRouter::PortEnded { vm: vm.clone() });
            }
            let fds = [vhost_user.as_raw_fd(), link.as_raw_fd()].map(|fd| fd.to_string());
            let arguments =
                ["--vm", vm.as_str(), "--vhost-user-fd", &fds[0], "--link-fd", &fds[1]].map(Into::into).to_vec();
            shared.start(name, Spawn { program: program.clone(), arguments, log: log.clone() }, &[&vhost_user, &link])
        };
        let (stopper, stop) = Stopper::new();
        let task = tokio::spawn(supervise::keep_running(self.shared.clone(), name, stop, start));
        Ok(Port { stopper, task })
    }

    pub(super) fn remove_sockets(&self, vm: &VmName, link_port: u32) {
        let run = &self.settings.run;
        let _ = std::fs::remove_file(run.vsock_port(link_port));
        sweep::forget(run, vm);
    }
}

impl Port {
    pub(super) async fn end(self) {
        self.stopper.stop();
        let _ = self.task.await;
    }
}
