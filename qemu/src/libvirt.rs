//! The same machine for libvirt: a domain's XML, or the parts that somebody pastes into a domain of their own.
//!
//! libvirt's own words are in <https://libvirt.org/formatdomain.html>; `virt-xml-validate` accepts what is written
//! here. Values are escaped, and a character that XML cannot hold is refused. What a [`Machine`] has and libvirt has no
//! word for is refused too, rather than left out in silence: a machine without its NIC is not the one that was wished.
//!
//! The MTU is an override of QEMU's property: libvirt takes `<mtu>` as an order to set that of an interface of the host,
//! and a vhost-user interface has none there (libvirt 11.3: "Cannot set interface MTU on '(null)'").
//!
//! Shared memory needs no `<numa>`: libvirt gives the one memory of a machine without nodes to `-machine
//! memory-backend=…`. `reconnect` counts in whole seconds.

use std::path::Path;

use crate::{Accelerator, CpuList, Device, Kernel, Machine, MachineError, Memory, Serial, xml::Xml};

/// Why a machine has no domain.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DomainError {
    /// No QEMU could have it either.
    #[error(transparent)]
    Machine(#[from] MachineError),
    /// Nothing in libvirt's format means it.
    #[error("libvirt has no word for {0}: attach the VM with QEMU's arguments instead (`oht vm attach --qemu`)")]
    Unspeakable(&'static str),
    /// Not UTF-8, or a character that XML cannot hold.
    #[error("{0:?} cannot stand in XML: rename it without control characters")]
    Text(String),
}

impl Machine {
    /// The domain that is this machine, its processors bound to `pins` in turn where there are any.
    ///
    /// # Errors
    /// When no machine can have a value, or libvirt cannot be told it.
    pub fn domain_xml(&self, pins: Option<&CpuList>) -> Result<String, DomainError> {
        self.command_line()?;
        if self.memory == Memory::Elsewhere || !self.extra.is_empty() {
            return Err(DomainError::Unspeakable("arguments that are QEMU's alone"));
        }
        let mut xml = Xml::default();
        let kind = match self.accelerator {
            Accelerator::Kvm => "kvm",
            Accelerator::Tcg => "qemu",
        };
        xml.open("domain", &[("type", kind)]);
        xml.text("name", &[], &self.name);
        xml.text("memory", &[("unit", "MiB")], &self.memory_mib.to_string());
        memory_backing(&mut xml);
        xml.text("vcpu", &[], &self.cpus.to_string());
        if let Some(pins) = pins {
            self.pin(pins, &mut xml);
        }
        self.os(&mut xml)?;
        xml.open("features", &[]).leaf("acpi", &[]).close("features");
        self.processor(&mut xml);
        xml.text("on_reboot", &[], if self.reboot { "restart" } else { "destroy" });
        self.devices(&mut xml)?;
        let mut nets = self.devices.iter().filter_map(|device| match device {
            Device::Net { host_mtu, .. } => Some(*host_mtu),
            _ => None,
        });
        if let Some(mtu) = nets.next().flatten() {
            mtu_override(mtu, &mut xml);
        }
        if nets.next().is_some() {
            return Err(DomainError::Unspeakable("a second network card"));
        }
        xml.close("domain");
        xml.finish().map_err(DomainError::Text)
    }

    fn pin(&self, pins: &CpuList, xml: &mut Xml) {
        xml.open("cputune", &[]);
        for (vcpu, cpu) in (0..self.cpus).zip(pins.cpus().iter().cycle()) {
            xml.leaf("vcpupin", &[("vcpu", &vcpu.to_string()), ("cpuset", &cpu.to_string())]);
        }
        xml.leaf("emulatorpin", &[("cpuset", &pins.to_string())]).close("cputune");
    }

    fn os(&self, xml: &mut Xml) -> Result<(), DomainError> {
        xml.open("os", &[]).text("type", &[("arch", "x86_64"), ("machine", "q35")], "hvm");
        if let Some(Kernel { image, initrd, append }) = &self.kernel {
            xml.text("kernel", &[], text(image)?);
            if let Some(initrd) = initrd {
                xml.text("initrd", &[], text(initrd)?);
            }
            if !append.is_empty() {
                xml.text("cmdline", &[], append);
            }
        }
        xml.close("os");
        Ok(())
    }

    fn processor(&self, xml: &mut Xml) {
        match self.accelerator {
            Accelerator::Kvm => xml.leaf("cpu", &[("mode", "host-passthrough")]),
            // As on the command line: `rep movs` is emulated slowly.
            Accelerator::Tcg => xml
                .open("cpu", &[("mode", "maximum")])
                .leaf("feature", &[("policy", "disable"), ("name", "erms")])
                .leaf("feature", &[("policy", "disable"), ("name", "fsrm")])
                .close("cpu"),
        };
    }

    fn devices(&self, xml: &mut Xml) -> Result<(), DomainError> {
        xml.open("devices", &[]);
        let mut disks = (b'a'..=b'z').map(|letter| format!("vd{}", char::from(letter)));
        for device in &self.devices {
            match device {
                Device::Vsock { .. } => return Err(DomainError::Unspeakable("vsock by a vhost-user back-end")),
                Device::Fs { socket, tag } => filesystem(text(socket)?, tag, xml),
                Device::Net { socket, mac, reconnect_ms, host_mtu: _ } => {
                    interface(text(socket)?, *mac, *reconnect_ms, xml);
                }
                Device::Disk { file, format } => {
                    let target = disks.next().ok_or(DomainError::Unspeakable("more than 26 disks"))?;
                    xml.open("disk", &[("type", "file"), ("device", "disk")])
                        .leaf("driver", &[("name", "qemu"), ("type", format.name())])
                        .leaf("source", &[("file", text(file)?)])
                        .leaf("target", &[("dev", &target), ("bus", "virtio")])
                        .close("disk");
                }
                Device::Rng => {
                    xml.open("rng", &[("model", "virtio")]).leaf("backend", &[("model", "builtin")]).close("rng");
                }
            }
        }
        match &self.serial {
            Serial::None => {}
            Serial::File(path) => {
                xml.open("serial", &[("type", "file")]).leaf("source", &[("path", text(path)?)]).close("serial");
            }
            // libvirt's QEMU has no terminal: `virsh console` opens this one.
            Serial::Stdio | Serial::Console => {
                xml.leaf("serial", &[("type", "pty")]);
            }
        }
        xml.leaf("memballoon", &[("model", "none")]).close("devices");
        Ok(())
    }
}

/// What goes into a domain of somebody's own, so that it has a [`Device::Net`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Parts {
    /// Into `<domain>`: memory that a vhost-user back-end can map.
    pub memory_backing: String,
    /// Into `<devices>`.
    pub interface: String,
    /// Into `<domain>`, where the guest is to be told an MTU.
    pub mtu_override: Option<String>,
}

/// The parts for a domain of somebody's own.
///
/// # Errors
/// When the socket's path cannot stand in XML.
pub fn parts(socket: &str, mac: [u8; 6], reconnect_ms: u32, mtu: Option<u16>) -> Result<Parts, DomainError> {
    let part = |write: &dyn Fn(&mut Xml)| {
        let mut xml = Xml::default();
        write(&mut xml);
        xml.finish().map_err(DomainError::Text)
    };
    Ok(Parts {
        memory_backing: part(&memory_backing)?,
        interface: part(&|xml| interface(socket, mac, reconnect_ms, xml))?,
        mtu_override: mtu.map(|mtu| part(&|xml| mtu_override(mtu, xml))).transpose()?,
    })
}

/// The interface's name in libvirt, which the override refers to. Names of users begin like this.
const ALIAS: &str = "ua-oht";

fn memory_backing(xml: &mut Xml) {
    xml.open("memoryBacking", &[])
        .leaf("source", &[("type", "memfd")])
        .leaf("access", &[("mode", "shared")])
        .close("memoryBacking");
}

fn interface(socket: &str, mac: [u8; 6], reconnect_ms: u32, xml: &mut Xml) {
    let mac = mac.map(|byte| format!("{byte:02x}")).join(":");
    let timeout = reconnect_ms.div_ceil(1000).max(1).to_string();
    xml.open("interface", &[("type", "vhostuser")])
        .leaf("mac", &[("address", &mac)])
        .open("source", &[("type", "unix"), ("path", socket), ("mode", "client")])
        .leaf("reconnect", &[("enabled", "yes"), ("timeout", &timeout)])
        .close("source")
        .leaf("model", &[("type", "virtio")])
        .leaf("alias", &[("name", ALIAS)])
        .close("interface");
}

fn mtu_override(mtu: u16, xml: &mut Xml) {
    let mtu = mtu.to_string();
    xml.open("qemu:override", &[("xmlns:qemu", "http://libvirt.org/schemas/domain/qemu/1.0")])
        .open("qemu:device", &[("alias", ALIAS)])
        .open("qemu:frontend", &[])
        .leaf("qemu:property", &[("name", "host_mtu"), ("type", "unsigned"), ("value", &mtu)])
        .close("qemu:frontend")
        .close("qemu:device")
        .close("qemu:override");
}

fn filesystem(socket: &str, tag: &str, xml: &mut Xml) {
    xml.open("filesystem", &[("type", "mount")])
        .leaf("driver", &[("type", "virtiofs")])
        .leaf("source", &[("socket", socket)])
        .leaf("target", &[("dir", tag)])
        .close("filesystem");
}

fn text(path: &Path) -> Result<&str, DomainError> {
    path.to_str().ok_or_else(|| DomainError::Text(path.display().to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::machine::DiskFormat;

    fn machine() -> Machine {
        let mac = [0x52, 0x54, 0, 0x12, 0x34, 0x56];
        let net = Device::Net { socket: "/r/a&b's/net.sock".into(), mac, reconnect_ms: 500, host_mtu: Some(9000) };
        Machine {
            cpus: 3,
            reboot: true,
            kernel: Some(Kernel { image: "/k".into(), initrd: None, append: "a<b".into() }),
            devices: vec![net, Device::Disk { file: "/d".into(), format: DiskFormat::Qcow2 }, Device::Rng],
            serial: Serial::Console,
            ..Machine::new("web", 512, Accelerator::Tcg)
        }
    }

    #[test]
    fn a_domain_says_what_the_command_line_says() {
        let expected = "\
<domain type='qemu'>
  <name>web</name>
  <memory unit='MiB'>512</memory>
  <memoryBacking>
    <source type='memfd'/>
    <access mode='shared'/>
  </memoryBacking>
  <vcpu>3</vcpu>
  <cputune>
    <vcpupin vcpu='0' cpuset='2'/>
    <vcpupin vcpu='1' cpuset='3'/>
    <vcpupin vcpu='2' cpuset='2'/>
    <emulatorpin cpuset='2,3'/>
  </cputune>
  <os>
    <type arch='x86_64' machine='q35'>hvm</type>
    <kernel>/k</kernel>
    <cmdline>a&lt;b</cmdline>
  </os>
  <features>
    <acpi/>
  </features>
  <cpu mode='maximum'>
    <feature policy='disable' name='erms'/>
    <feature policy='disable' name='fsrm'/>
  </cpu>
  <on_reboot>restart</on_reboot>
  <devices>
    <interface type='vhostuser'>
      <mac address='52:54:00:12:34:56'/>
      <source type='unix' path='/r/a&amp;b&apos;s/net.sock' mode='client'>
        <reconnect enabled='yes' timeout='1'/>
      </source>
      <model type='virtio'/>
      <alias name='ua-oht'/>
    </interface>
    <disk type='file' device='disk'>
      <driver name='qemu' type='qcow2'/>
      <source file='/d'/>
      <target dev='vda' bus='virtio'/>
    </disk>
    <rng model='virtio'>
      <backend model='builtin'/>
    </rng>
    <serial type='pty'/>
    <memballoon model='none'/>
  </devices>
  <qemu:override xmlns:qemu='http://libvirt.org/schemas/domain/qemu/1.0'>
    <qemu:device alias='ua-oht'>
      <qemu:frontend>
        <qemu:property name='host_mtu' type='unsigned' value='9000'/>
      </qemu:frontend>
    </qemu:device>
  </qemu:override>
</domain>
";
        assert_eq!(machine().domain_xml(Some(&"2,3".parse().unwrap())).unwrap(), expected);
    }

    #[test]
    fn what_cannot_be_said_is_refused_and_not_left_out() {
        let with = |change: fn(&mut Machine)| {
            let mut machine = machine();
            change(&mut machine);
            machine.domain_xml(None).unwrap_err()
        };
        let vsock = |m: &mut Machine| m.devices.push(Device::Vsock { socket: "/s".into() });
        assert!(matches!(with(vsock), DomainError::Unspeakable(_)));
        assert!(matches!(with(|m| m.extra.push("-S".into())), DomainError::Unspeakable(_)));
        assert!(matches!(with(|m| m.memory = Memory::Elsewhere), DomainError::Unspeakable(_)));
        assert!(matches!(with(|m| m.name = "a\u{1}".into()), DomainError::Text(_)));
        assert!(matches!(with(|m| m.memory_mib = 0), DomainError::Machine(MachineError::Memory(0))));
        assert!(matches!(with(|m| m.devices.push(m.devices[0].clone())), DomainError::Unspeakable(_)));
        assert!(parts("/a\u{0}", [2; 6], 1, None).is_err());
    }

    #[test]
    fn the_parts_are_those_of_the_whole() {
        let whole = machine().domain_xml(None).unwrap();
        let mac = [0x52, 0x54, 0, 0x12, 0x34, 0x56];
        let parts = parts("/r/a&b's/net.sock", mac, 500, Some(9000)).unwrap();
        for part in [parts.memory_backing, parts.interface, parts.mtu_override.unwrap()] {
            for line in part.lines() {
                assert!(whole.contains(line), "{line}");
            }
        }
    }
}
