//! `oht vm attach`: what attaches a VM, for QEMU, for libvirt, or for a program.

use std::path::PathBuf;

use clap::{Args, CommandFactory, error::ErrorKind};
use qemu::{CpuList, Device, DiskFormat, Kernel, Machine, Serial};
use wire::VmName;

use super::{Oht, Places, output};
use crate::{
    attach::{MAC_BYTES, RECONNECT_MS, shell_line},
    client::Client,
    config::Settings,
    programs::{self, Programs},
    status::Attachment,
};

/// Options of `oht vm attach`.
#[derive(Debug, Args)]
#[command(after_help = "\
With --qemu, the arguments are on one line, quoted for a shell: put them behind your own.
With --libvirt, two elements: put <memoryBacking> into <domain>, <interface> into <devices>, in place of any other
interface. With --mtu a third one, <qemu:override>: put it into <domain>, last. With --libvirt --domain, a whole domain for `virsh define` or `virsh create`; without --disk and --kernel it
has nothing to boot from. The libvirt that runs it must be the same user's as the agent.
With --json alone, everything about the attachment: arguments, XML, socket, hardware address.")]
pub struct Attach {
    /// Which.
    name: VmName,
    /// For QEMU: its arguments.
    #[arg(long, conflicts_with = "libvirt")]
    qemu: bool,
    /// For libvirt: XML.
    #[arg(long)]
    libvirt: bool,
    /// The whole domain, not its parts.
    #[arg(long, requires = "libvirt")]
    domain: bool,
    /// Memory of the VM, equal to its -m.
    #[arg(long = "memory", value_name = "MIB", default_value_t = 512)]
    memory_mib: u32,
    /// Largest IP packet of the VM in bytes; guests take 1500 where nothing is said.
    #[arg(long, value_name = "BYTES")]
    mtu: Option<u16>,
    #[command(flatten)]
    whole: Whole,
    #[command(flatten)]
    places: Places,
}

/// What only a whole domain has.
#[derive(Debug, Args)]
struct Whole {
    /// Processors of the VM.
    #[arg(long, value_name = "N", default_value_t = 1, requires = "domain")]
    vcpus: u32,
    /// Processors of this host that the VM's are bound to in turn, as in 2,3 or 4-7.
    #[arg(long, value_name = "LIST", requires = "domain")]
    cpus: Option<CpuList>,
    /// A disk: QEMU's qcow2 where the name ends so, else raw; may be given several times.
    #[arg(long, value_name = "FILE", requires = "domain")]
    disk: Vec<PathBuf>,
    /// A kernel to boot, in place of what is on the disk.
    #[arg(long, value_name = "FILE", requires = "domain")]
    kernel: Option<PathBuf>,
    /// The kernel's initramfs.
    #[arg(long, value_name = "FILE", requires = "kernel")]
    initrd: Option<PathBuf>,
    /// The kernel's command line.
    #[arg(long, value_name = "TEXT", requires = "kernel", default_value = "", hide_default_value = true)]
    append: String,
    /// How the VM is executed: auto, kvm or tcg.
    #[arg(long, value_name = "HOW", default_value = "auto", requires = "domain")]
    accel: qemu::Accel,
}

/// Prints what attaches a VM.
///
/// # Errors
/// When there is no such VM, or no agent; when nothing was asked for.
pub(super) async fn attach(attach: Attach, config: Option<&std::path::Path>, json: bool) -> anyhow::Result<()> {
    let Attach { name, qemu, libvirt, domain, memory_mib, mtu, whole, places } = attach;
    if !(qemu || libvirt || json) {
        let what = "say what the VM is attached to: --qemu, --libvirt, or --json for a program";
        return Err(Oht::command().error(ErrorKind::MissingRequiredArgument, what).into());
    }
    let settings = places.clone().settings(config)?;
    let attachment = attachment(&places.client(config)?, &name, memory_mib, mtu).await?;
    if qemu {
        return if json { output::json(&attachment.qemu) } else { output::text(&shell_line(&attachment.qemu)) };
    }
    if !libvirt {
        return output::json(&attachment);
    }
    if domain {
        let machine = whole.machine(&settings, &name, attachment, memory_mib, mtu).await?;
        let xml = machine.domain_xml(whole.cpus.as_ref())?;
        return if json { output::json(&xml) } else { output::text(&xml) };
    }
    let unspeakable = "the run directory has a name that XML cannot hold: give the agent another --run-dir";
    let parts = attachment.libvirt.ok_or_else(|| anyhow::anyhow!(unspeakable))?;
    let text = [parts.memory_backing.as_str(), &parts.interface, parts.mtu_override.as_deref().unwrap_or_default()];
    if json { output::json(&parts) } else { output::text(&text.concat()) }
}

/// What the agent says about attaching a VM.
///
/// # Errors
/// When there is no such VM, or no agent.
pub(super) async fn attachment(
    client: &Client,
    name: &VmName,
    memory_mib: u32,
    mtu: Option<u16>,
) -> anyhow::Result<Attachment> {
    let mtu = mtu.map_or_else(String::new, |mtu| format!("&mtu={mtu}"));
    Ok(client.get(&format!("/vms/{name}/attach?memory_mib={memory_mib}{mtu}")).await?)
}

impl Whole {
    async fn machine(
        &self,
        settings: &Settings,
        name: &VmName,
        attachment: Attachment,
        memory_mib: u32,
        host_mtu: Option<u16>,
    ) -> anyhow::Result<Machine> {
        let qemu = Programs::new(&settings.programs).find(programs::QEMU)?;
        let accelerator = qemu::accel::choose(self.accel, &qemu).await.accelerator;
        let absolute = |path: &PathBuf| std::path::absolute(path);
        let mut machine = Machine::new(name.as_str(), memory_mib, accelerator);
        let socket = attachment.socket.into();
        machine.devices.push(Device::Net { socket, mac: MAC_BYTES, reconnect_ms: RECONNECT_MS, host_mtu });
        for file in &self.disk {
            machine.devices.push(Device::Disk { file: absolute(file)?, format: format(file) });
        }
        machine.devices.push(Device::Rng);
        if let Some(image) = &self.kernel {
            let initrd = self.initrd.as_ref().map(absolute).transpose()?;
            machine.kernel = Some(Kernel { image: absolute(image)?, initrd, append: self.append.clone() });
        }
        (machine.cpus, machine.serial, machine.reboot) = (self.vcpus, Serial::Console, true);
        Ok(machine)
    }
}

/// By the name: the content is the guest's, and may lie.
fn format(file: &std::path::Path) -> DiskFormat {
    let is_qcow2 = file.extension().is_some_and(|extension| extension.eq_ignore_ascii_case("qcow2"));
    if is_qcow2 { DiskFormat::Qcow2 } else { DiskFormat::Raw }
}
