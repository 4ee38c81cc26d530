//! The application VM: Debian's stock cloud kernel, busybox or a whole Debian ([`debian`]), and a NIC that is attached
//! by exactly what `oht vm attach` prints. Tests type into it by a serial port ([`Shell`]), so that its only network is
//! the one that is tested.

pub(crate) mod debian;
pub(crate) mod initramfs;
pub(crate) mod shell;

use std::{
    fs,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use qemu::{Accel, Accelerator, Kernel, Machine, Memory, Serial, accel};

pub(crate) use shell::{Answer, Shell};

use crate::{
    cache,
    netns::Netns,
    processes::{Lifetime, Plan, Process},
};

/// The size of an application VM with busybox; what `oht vm attach --memory` is told.
pub(crate) const MEMORY_MIB: u32 = 256;
const BOOT_TIME: Duration = Duration::from_secs(120);
const QEMU: &str = "qemu-system-x86_64";

/// An application VM to start.
pub(crate) struct Spec<'a> {
    /// The VM's name.
    pub(crate) name: &'a str,
    /// Where its files and its shell's socket go.
    pub(crate) dir: &'a Path,
    /// What attaches its NIC, and describes its memory.
    pub(crate) attach: Vec<String>,
    /// Without a disk it has busybox alone.
    pub(crate) disk: Option<Disk<'a>>,
    /// The namespace QEMU runs in, if not this program's own.
    pub(crate) netns: Option<&'a Netns>,
    /// Whether it outlives this program.
    pub(crate) lifetime: Lifetime,
    /// The directory with the ledger.
    pub(crate) ledger: &'a Path,
}

/// A disk with Debian's root file system ([`debian`]), and what goes with it.
#[derive(Clone, Copy)]
pub(crate) struct Disk<'a> {
    /// Its file, which stays as it is: what the VM writes is gone with the VM.
    pub(crate) file: &'a Path,
    /// The size of such a VM.
    pub(crate) memory_mib: u32,
    /// Modules of the kernel that it may load, beside those of the NIC and the disk: it finds their names, and those of
    /// the ones they need, in `/run/modules/more`, in the order in which they can be loaded.
    pub(crate) modules: &'a [&'a str],
}

/// An application VM that runs; dropping it ends it.
#[derive(Debug)]
pub(crate) struct AppVm {
    /// Its name.
    pub(crate) name: String,
    /// Its shell.
    pub(crate) shell: Shell,
    /// From QEMU's start to init's first line.
    pub(crate) boot_time: Duration,
    started: Instant,
    process: Process,
}

impl AppVm {
    /// Starts a VM and waits for its init.
    ///
    /// # Errors
    /// When a part is missing, QEMU fails, or init does not start in time.
    pub(crate) fn start(spec: Spec<'_>) -> Result<AppVm> {
        let socket = shell_socket(spec.dir, spec.name);
        let _ = fs::remove_file(&socket);
        let machine = machine(&spec, &socket)?;
        let mut argv = vec![QEMU.to_owned()];
        argv.extend(machine.command_line()?.into_iter().map(|word| word.to_string_lossy().into_owned()));
        let started = Instant::now();
        let mut process = Plan {
            name: format!("vm-{}", spec.name),
            argv,
            log: spec.dir.join(format!("{}.qemu.log", spec.name)),
            netns: spec.netns,
            lifetime: spec.lifetime,
            ledger: spec.ledger.to_owned(),
        }
        .spawn()?;
        let shell = Shell::connect(&socket, || process.failure().map_or(Ok(()), Err))?;
        let console = console_log(spec.dir, spec.name);
        let (booted, _) = shell.event("boot", started + BOOT_TIME).with_context(|| {
            format!("VM {} does not boot; see {}: {}", spec.name, console.display(), process.last_words())
        })?;
        Ok(AppVm { name: spec.name.to_owned(), shell, boot_time: booted - started, started, process })
    }

    /// Waits for the DHCP lease; gives how long it took from QEMU's start, and what it says (`ip=… router=…`).
    ///
    /// # Errors
    /// When there is none in time.
    pub(crate) fn lease(&self, timeout: Duration) -> Result<(Duration, String)> {
        let (at, lease) = self.shell.event("lease", Instant::now() + timeout)?;
        Ok((at - self.started, lease.trim().to_owned()))
    }

    /// Runs a command in it; see [`Shell::run`].
    ///
    /// # Errors
    /// When no answer comes.
    pub(crate) fn run(&self, command: &str, limit: Duration) -> Result<Answer> {
        self.shell.run(command, limit).with_context(|| format!("in VM {}: {command}", self.name))
    }

    /// The number of its QEMU.
    pub(crate) fn pid(&self) -> u32 {
        self.process.pid()
    }

    /// Lets it go on after this program.
    pub(crate) fn leave(self) {
        self.process.leave();
    }
}

/// The socket of a VM's shell.
pub(crate) fn shell_socket(dir: &Path, name: &str) -> PathBuf {
    dir.join(format!("{name}.shell"))
}

fn console_log(dir: &Path, name: &str) -> PathBuf {
    dir.join(format!("{name}.console.log"))
}

fn machine(spec: &Spec<'_>, socket: &Path) -> Result<Machine> {
    // Those without a disk have all the same.
    let initramfs = spec.disk.map_or("app-vm.cpio".into(), |_| format!("{}.cpio", spec.name));
    let initramfs = spec.dir.join(initramfs);
    if !initramfs.exists() {
        let new = spec.dir.join(format!("{}.cpio.new", spec.name));
        initramfs::write(&new, spec.disk.map(|disk| disk.modules))?;
        fs::rename(&new, &initramfs).context("cannot rename the initramfs")?;
    }
    let memory_mib = spec.disk.map_or(MEMORY_MIB, |disk| disk.memory_mib);
    let mut machine = Machine::new(format!("app-{}", spec.name), memory_mib, accelerator()?);
    machine.kernel = Some(Kernel {
        image: cache::cloud_kernel()?,
        initrd: Some(initramfs),
        append: "console=ttyS0 quiet no_timer_check panic=-1 random.trust_cpu=on".into(),
    });
    machine.serial = Serial::File(console_log(spec.dir, spec.name));
    let shell = format!("socket,id=shell,server=on,wait=off,path={}", escaped(socket));
    let mut extra =
        ["-device", "virtio-serial-pci", "-device", "virtserialport,chardev=shell"].map(String::from).to_vec();
    extra.splice(0..0, ["-chardev".into(), shell]);
    if let Some(disk) = spec.disk {
        let drive = format!("if=none,id=root,format=raw,snapshot=on,file={}", escaped(disk.file));
        extra.extend(["-drive".into(), drive, "-device".into(), "virtio-blk-pci,drive=root".into()]);
    }
    machine.memory = if spec.attach.is_empty() { Memory::Memfd } else { Memory::Elsewhere };
    machine.extra = extra.into_iter().chain(spec.attach.iter().cloned()).map(Into::into).collect();
    Ok(machine)
}

/// As a part of a value of QEMU's, which is split at commas.
fn escaped(path: &Path) -> String {
    path.display().to_string().replace(',', ",,")
}

/// KVM where it works.
fn accelerator() -> Result<Accelerator> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    Ok(runtime.block_on(accel::choose(Accel::Auto, QEMU)).accelerator)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[ignore = "boots a virtual machine: `cargo test -p ci -- --ignored`"]
    fn a_vm_without_a_nic_answers_on_its_shell() {
        let dir = tempfile::tempdir().unwrap();
        let spec = Spec {
            name: "alone",
            dir: dir.path(),
            attach: Vec::new(),
            disk: None,
            netns: None,
            lifetime: Lifetime::Ours,
            ledger: dir.path(),
        };
        let vm = AppVm::start(spec).unwrap();
        let second = Duration::from_secs(1);
        assert_eq!(vm.run("echo $((6 * 7)); ls /sys/class/net", 10 * second).unwrap().ok().unwrap(), "42\nlo\n");
        assert_eq!(vm.run("sleep 100", second).unwrap().status, 137);
        assert_eq!(vm.run("echo \"a 'b'\" >&2; exit 3", 10 * second).unwrap().status, 3);
        let parallel: Vec<_> =
            (0..20).map(|n| vm.shell.begin(&format!("seq 1 {n} | tail -n 1"), 20 * second)).collect();
        for (n, pending) in parallel.into_iter().enumerate().skip(1) {
            assert_eq!(pending.unwrap().wait().unwrap().ok().unwrap(), format!("{n}\n"));
        }
    }
}
