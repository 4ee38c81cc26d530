//! The machine and its command line.
//!
//! QEMU splits most values at commas and reads a doubled comma as one (`docs/system/qemu-manpage`, "-drive"), so every
//! value that comes from outside is escaped by doubling. A NUL byte cannot stand in an argument at all and is refused.

use std::{
    ffi::{OsStr, OsString},
    os::unix::ffi::{OsStrExt, OsStringExt},
    path::{Path, PathBuf},
};

use crate::Accelerator;

/// Memory of the largest machine, in MiB: a mistyped size is refused here, not by the kernel's OOM killer.
pub const MEMORY_MIB_MAX: u32 = 1 << 20;

/// Processors of the largest machine: what q35 takes without further options.
pub const CPUS_MAX: u32 = 255;

/// A q35 machine without anything that is not named here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Machine {
    /// Shown in process lists and logs.
    pub name: String,
    /// Size in MiB.
    pub memory_mib: u32,
    /// Where the memory's description comes from.
    pub memory: Memory,
    /// Number of processors.
    pub cpus: u32,
    /// How instructions are executed; it decides the CPU model too.
    pub accelerator: Accelerator,
    /// The kernel to boot; without one the firmware starts and finds nothing.
    pub kernel: Option<Kernel>,
    /// Devices, in the order of their PCI slots.
    pub devices: Vec<Device>,
    /// The first serial port.
    pub serial: Serial,
    /// Where QMP is served, on an AF_UNIX socket.
    pub qmp: Option<PathBuf>,
    /// Whether a reboot restarts the machine (`true`) or ends QEMU (`false`).
    pub reboot: bool,
    /// QEMU's own seccomp filter: no new programs, no privileges, no obsolete system calls.
    pub sandbox: bool,
    /// Further arguments, taken as they are: what `oht vm attach --qemu` prints goes here.
    pub extra: Vec<OsString>,
}

/// Where the memory's description comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Memory {
    /// A shared memfd of this machine's own, as vhost-user back-ends need.
    Memfd,
    /// The machine's [`Machine::extra`] arguments describe it; only the size is given here.
    Elsewhere,
}

/// What is booted directly, without firmware or boot loader.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Kernel {
    /// The kernel's file.
    pub image: PathBuf,
    /// The initramfs.
    pub initrd: Option<PathBuf>,
    /// The kernel's command line.
    pub append: String,
}

/// A device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Device {
    /// vsock, served by a vhost-user back-end on `socket`; the context identifier is the back-end's.
    /// It takes no `reconnect-ms` (QEMU refuses to start): when the back-end dies, the machine is restarted.
    Vsock {
        /// The back-end's socket.
        socket: PathBuf,
    },
    /// virtio-fs, served by virtiofsd on `socket`.
    Fs {
        /// virtiofsd's socket.
        socket: PathBuf,
        /// What the guest mounts.
        tag: String,
    },
    /// virtio-net, served by a vhost-user back-end on `socket`; QEMU connects and reconnects.
    Net {
        /// The back-end's socket.
        socket: PathBuf,
        /// The hardware address.
        mac: [u8; 6],
        /// Milliseconds between attempts to reconnect.
        reconnect_ms: u32,
        /// Announced to the guest as its MTU, where given.
        host_mtu: Option<u16>,
    },
    /// A disk.
    Disk {
        /// Its file.
        file: PathBuf,
        /// What the file is.
        format: DiskFormat,
    },
    /// Entropy from the host's `getrandom`.
    Rng,
}

/// What the file of a disk is. Never guessed from its content, which the guest writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DiskFormat {
    /// QEMU's own.
    Qcow2,
    /// The disk's bytes.
    Raw,
}

/// Where the first serial port goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Serial {
    /// Nowhere: the machine has none.
    None,
    /// Into a file, which is truncated at start.
    File(PathBuf),
    /// To QEMU's standard output.
    Stdio,
    /// To the terminal, with QEMU's monitor behind Ctrl-A C, and Ctrl-A X to end it.
    Console,
}

/// Why a machine has no command line.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MachineError {
    /// Memory of no size, or of a size that nothing has.
    #[error("a machine cannot have {0} MiB of memory: give 1 to {MEMORY_MIB_MAX}")]
    Memory(u32),
    /// No processor, or too many.
    #[error("a machine cannot have {0} processors: give 1 to {CPUS_MAX}")]
    Cpus(u32),
    /// A NUL byte, which ends every argument.
    #[error("{0:?} contains a NUL byte and cannot be given to QEMU")]
    Nul(OsString),
    /// A multicast or all-zero hardware address.
    #[error("{0:02x?} is no hardware address that a NIC can have: its first byte must be even, and not all zero")]
    Mac([u8; 6]),
}

impl Machine {
    /// A machine with shared memory, one processor, a sandbox and nothing else.
    pub fn new(name: impl Into<String>, memory_mib: u32, accelerator: Accelerator) -> Machine {
        Machine {
            name: name.into(),
            memory_mib,
            memory: Memory::Memfd,
            cpus: 1,
            accelerator,
            kernel: None,
            devices: Vec::new(),
            serial: Serial::None,
            qmp: None,
            reboot: false,
            sandbox: true,
            extra: Vec::new(),
        }
    }

    /// The arguments for `qemu-system-x86_64`, without the program itself.
    ///
    /// # Errors
    /// When a value cannot be given to QEMU, or no machine can have it.
    pub fn command_line(&self) -> Result<Vec<OsString>, MachineError> {
        self.check()?;
        let mut line = Line::default();
        line.flag("-nodefaults").flag("-no-user-config").pair("-display", "none");
        line.values("-name", &[("", self.name.as_ref())]);
        self.render_processor(&mut line);
        self.render_memory(&mut line);
        if let Some(kernel) = &self.kernel {
            kernel.render(&mut line);
        }
        self.serial.render(&mut line);
        if let Some(socket) = &self.qmp {
            let fixed = "socket,id=qmp,server=on,wait=off";
            line.values("-chardev", &[(fixed, "".as_ref()), ("path=", socket.as_os_str())]);
            line.pair("-mon", "chardev=qmp,mode=control");
        }
        for (index, device) in self.devices.iter().enumerate() {
            device.render(index, &mut line);
        }
        if !self.reboot {
            line.flag("-no-reboot");
        }
        if self.sandbox {
            line.pair("-sandbox", "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny");
        }
        line.0.extend(self.extra.iter().cloned());
        match line.0.iter().find(|argument| argument.as_bytes().contains(&0)) {
            Some(argument) => Err(MachineError::Nul(argument.clone())),
            None => Ok(line.0),
        }
    }

    fn check(&self) -> Result<(), MachineError> {
        if !(1..=MEMORY_MIB_MAX).contains(&self.memory_mib) {
            return Err(MachineError::Memory(self.memory_mib));
        }
        if !(1..=CPUS_MAX).contains(&self.cpus) {
            return Err(MachineError::Cpus(self.cpus));
        }
        let macs = self.devices.iter().filter_map(|device| match device {
            Device::Net { mac, .. } => Some(*mac),
            _ => None,
        });
        match macs.into_iter().find(|mac| mac[0] & 1 == 1 || *mac == [0; 6]) {
            Some(mac) => Err(MachineError::Mac(mac)),
            None => Ok(()),
        }
    }

    fn render_processor(&self, line: &mut Line) {
        let (accel, cpu) = match self.accelerator {
            Accelerator::Kvm => ("kvm", "host"),
            // `rep movs` is emulated slowly: a guest that believes it fast copies memory at a fifth of the speed.
            Accelerator::Tcg => ("tcg", "max,-erms,-fsrm"),
        };
        line.pair("-accel", accel).pair("-cpu", cpu).pair("-smp", self.cpus.to_string());
    }

    fn render_memory(&self, line: &mut Line) {
        line.pair("-m", format!("{}M", self.memory_mib));
        match self.memory {
            Memory::Memfd => {
                line.pair("-object", format!("memory-backend-memfd,id=mem,size={}M,share=on", self.memory_mib));
                line.pair("-machine", "q35,vmport=off,smbus=off,sata=off,memory-backend=mem");
            }
            Memory::Elsewhere => {
                line.pair("-machine", "q35,vmport=off,smbus=off,sata=off");
            }
        }
    }
}

impl DiskFormat {
    /// QEMU's and libvirt's name for it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            DiskFormat::Qcow2 => "qcow2",
            DiskFormat::Raw => "raw",
        }
    }
}

impl Kernel {
    /// These three options are not split at commas, so nothing is escaped.
    fn render(&self, line: &mut Line) {
        line.pair("-kernel", &self.image);
        if let Some(initrd) = &self.initrd {
            line.pair("-initrd", initrd);
        }
        if !self.append.is_empty() {
            line.pair("-append", &self.append);
        }
    }
}

impl Serial {
    fn render(&self, line: &mut Line) {
        match self {
            Serial::None => return,
            Serial::File(path) => line.values("-chardev", &[("file,id=serial,path=", path.as_os_str())]),
            Serial::Stdio => line.pair("-chardev", "stdio,id=serial,signal=off"),
            Serial::Console => {
                line.pair("-serial", "mon:stdio");
                return;
            }
        };
        line.pair("-serial", "chardev:serial");
    }
}

impl Device {
    fn render(&self, index: usize, line: &mut Line) {
        match self {
            Device::Vsock { socket } => {
                line.chardev(index, socket, None);
                line.pair("-device", format!("vhost-user-vsock-pci,chardev=char{index}"));
            }
            Device::Fs { socket, tag } => {
                line.chardev(index, socket, None);
                let fixed = format!("vhost-user-fs-pci,chardev=char{index}");
                line.values("-device", &[(&fixed, "".as_ref()), ("tag=", tag.as_ref())]);
            }
            Device::Net { socket, mac, reconnect_ms, host_mtu } => {
                line.chardev(index, socket, Some(*reconnect_ms));
                line.pair("-netdev", format!("vhost-user,id=net{index},chardev=char{index}"));
                let mac = mac.map(|byte| format!("{byte:02x}")).join(":");
                let mtu = host_mtu.map_or_else(String::new, |mtu| format!(",host_mtu={mtu}"));
                line.pair("-device", format!("virtio-net-pci,netdev=net{index},mac={mac}{mtu}"));
            }
            Device::Disk { file, format } => {
                let fixed = format!("if=none,id=disk{index},format={}", format.name());
                line.values("-drive", &[(&fixed, "".as_ref()), ("file=", file.as_os_str())]);
                line.pair("-device", format!("virtio-blk-pci,drive=disk{index}"));
            }
            Device::Rng => {
                line.pair("-object", format!("rng-builtin,id=rng{index}"));
                line.pair("-device", format!("virtio-rng-pci,rng=rng{index}"));
            }
        }
    }
}

/// Arguments in the making.
#[derive(Default)]
struct Line(Vec<OsString>);

impl Line {
    fn flag(&mut self, flag: &str) -> &mut Line {
        self.0.push(flag.into());
        self
    }

    fn pair(&mut self, option: &str, value: impl AsRef<OsStr>) -> &mut Line {
        self.0.push(option.into());
        self.0.push(value.as_ref().into());
        self
    }

    /// An option whose value is `key value` pairs joined by commas, the values escaped.
    fn values(&mut self, option: &str, pairs: &[(&str, &OsStr)]) -> &mut Line {
        let parts = pairs.iter().map(|(key, value)| [key.as_bytes(), &escape(value)].concat());
        let value = parts.collect::<Vec<_>>().join(&b',');
        self.pair(option, OsString::from_vec(value))
    }

    /// The client end of a vhost-user back-end's socket, as `char<index>`.
    fn chardev(&mut self, index: usize, socket: &Path, reconnect_ms: Option<u32>) {
        let fixed = format!("socket,id=char{index}");
        let reconnect = reconnect_ms.map(|ms| format!("reconnect-ms={ms}"));
        let mut pairs = vec![(fixed.as_str(), OsStr::new("")), ("path=", socket.as_os_str())];
        pairs.extend(reconnect.as_deref().map(|option| (option, OsStr::new(""))));
        self.values("-chardev", &pairs);
    }
}

/// A value with its commas doubled.
fn escape(value: &OsStr) -> Vec<u8> {
    value.as_bytes().iter().flat_map(|&byte| std::iter::repeat_n(byte, if byte == b',' { 2 } else { 1 })).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(machine: &Machine) -> String {
        let line = machine.command_line().unwrap();
        line.iter().map(|argument| argument.to_str().unwrap()).collect::<Vec<_>>().join(" ")
    }

    fn router() -> Machine {
        Machine {
            kernel: Some(Kernel {
                image: "/i/vmlinuz".into(),
                initrd: Some("/i/initramfs".into()),
                append: "console=ttyS0 a=b,c".into(),
            }),
            devices: vec![
                Device::Vsock { socket: "/r/vhu-vsock".into() },
                Device::Fs { socket: "/r/fs.sock".into(), tag: "state".into() },
                Device::Rng,
            ],
            serial: Serial::File("/r/router.log".into()),
            qmp: Some("/r/qmp.sock".into()),
            ..Machine::new("router", 96, Accelerator::Tcg)
        }
    }

    const SANDBOX: &str = "-sandbox on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny";

    #[test]
    fn the_router_vm_has_vsock_and_files_and_no_nic() {
        let expected = "-nodefaults -no-user-config -display none -name router \
            -accel tcg -cpu max,-erms,-fsrm -smp 1 -m 96M \
            -object memory-backend-memfd,id=mem,size=96M,share=on \
            -machine q35,vmport=off,smbus=off,sata=off,memory-backend=mem \
            -kernel /i/vmlinuz -initrd /i/initramfs -append console=ttyS0 a=b,c \
            -chardev file,id=serial,path=/r/router.log -serial chardev:serial \
            -chardev socket,id=qmp,server=on,wait=off,path=/r/qmp.sock -mon chardev=qmp,mode=control \
            -chardev socket,id=char0,path=/r/vhu-vsock -device vhost-user-vsock-pci,chardev=char0 \
            -chardev socket,id=char1,path=/r/fs.sock -device vhost-user-fs-pci,chardev=char1,tag=state \
            -object rng-builtin,id=rng2 -device virtio-rng-pci,rng=rng2 -no-reboot "
            .to_owned()
            + SANDBOX;
        assert_eq!(text(&router()), expected);
    }

    #[test]
    fn an_application_vm_attaches_by_a_device_or_by_the_arguments_it_is_given() {
        let mut machine = Machine::new("app", 512, Accelerator::Kvm);
        machine.sandbox = false;
        machine.reboot = true;
        machine.cpus = 2;
        machine.serial = Serial::Stdio;
        machine.devices.push(Device::Net {
            socket: "/r/vm/a/net.sock".into(),
            mac: [0x52, 0x54, 0, 0x12, 0x34, 0x56],
            reconnect_ms: 500,
            host_mtu: Some(1500),
        });
        let start = "-nodefaults -no-user-config -display none -name app -accel kvm -cpu host -smp 2 -m 512M ";
        let serial = " -chardev stdio,id=serial,signal=off -serial chardev:serial";
        let net = " -chardev socket,id=char0,path=/r/vm/a/net.sock,reconnect-ms=500 \
            -netdev vhost-user,id=net0,chardev=char0 \
            -device virtio-net-pci,netdev=net0,mac=52:54:00:12:34:56,host_mtu=1500";
        let memory = "-object memory-backend-memfd,id=mem,size=512M,share=on \
            -machine q35,vmport=off,smbus=off,sata=off,memory-backend=mem";
        assert_eq!(text(&machine), format!("{start}{memory}{serial}{net}"));

        machine.devices.clear();
        machine.memory = Memory::Elsewhere;
        machine.extra = vec!["-object".into(), "x,y".into()];
        let memory = "-machine q35,vmport=off,smbus=off,sata=off";
        assert_eq!(text(&machine), format!("{start}{memory}{serial} -object x,y"));
    }

    #[test]
    fn a_comma_in_a_path_is_part_of_the_path() {
        let mut machine = router();
        machine.name = "a,debug-threads=on".into();
        machine.serial = Serial::File("/r,append=on/log".into());
        machine.qmp = Some("/r,server=off".into());
        machine.devices = vec![Device::Fs { socket: "/r,1".into(), tag: "s,queue-size=1".into() }];
        let line = text(&machine);
        for part in [
            "-name a,,debug-threads=on ",
            "path=/r,,append=on/log ",
            "path=/r,,server=off ",
            "path=/r,,1 ",
            "tag=s,,queue-size=1 ",
        ] {
            assert!(line.contains(part), "{part} in {line}");
        }
    }

    #[test]
    fn values_that_no_machine_has_are_refused() {
        let with = |change: fn(&mut Machine)| {
            let mut machine = router();
            change(&mut machine);
            machine.command_line()
        };
        assert_eq!(with(|m| m.memory_mib = 0), Err(MachineError::Memory(0)));
        assert_eq!(with(|m| m.memory_mib = u32::MAX), Err(MachineError::Memory(u32::MAX)));
        assert_eq!(with(|m| m.cpus = 0), Err(MachineError::Cpus(0)));
        assert_eq!(with(|m| m.name = "a\0b".into()), Err(MachineError::Nul("a\0b".into())));
        let net = |mac| Device::Net { socket: "/s".into(), mac, reconnect_ms: 1, host_mtu: None };
        let mut machine = router();
        for mac in [[0; 6], [1, 0, 0, 0, 0, 0], [255; 6]] {
            machine.devices = vec![net(mac)];
            assert_eq!(machine.command_line(), Err(MachineError::Mac(mac)));
        }
    }
}
