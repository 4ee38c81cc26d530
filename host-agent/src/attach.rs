//! What attaches a VM to its port.

use std::ops::RangeInclusive;

use crate::status::LibvirtParts;

/// The hardware address that every VM has: no VM can be told from another by it (the NIC's is seen only on the link
/// between the VM and its port, which no other VM shares).
pub const MAC: &str = "52:54:00:12:34:56";

/// The same in bytes.
pub const MAC_BYTES: [u8; 6] = [0x52, 0x54, 0, 0x12, 0x34, 0x56];

/// Milliseconds between attempts of a VM to reach its port again.
pub const RECONNECT_MS: u32 = 500;

/// The MTUs that a VM can be given: what every host takes (RFC 791, section 3.1) up to what the port carries.
pub const MTU: RangeInclusive<u16> = 576..=65_520;

/// Arguments for QEMU: memory that the port can map, and a NIC that reconnects. `memory_mib` must equal the VM's `-m`.
/// `mtu` is what the guest is told; without it guests take 1500. Checksums and segmentation are left as QEMU has them,
/// which is on: the port takes part in both.
#[must_use]
pub fn qemu_arguments(socket: &str, memory_mib: u32, mtu: Option<u16>) -> Vec<String> {
    let mtu = mtu.map_or_else(String::new, |mtu| format!(",host_mtu={mtu}"));
    let socket = socket.replace(',', ",,");
    [
        "-object",
        &format!("memory-backend-memfd,id=oht-mem,size={memory_mib}M,share=on"),
        "-machine",
        "memory-backend=oht-mem",
        "-chardev",
        &format!("socket,id=oht-net,path={socket},reconnect-ms={RECONNECT_MS}"),
        "-netdev",
        "vhost-user,id=oht-net0,chardev=oht-net",
        "-device",
        &format!("virtio-net-pci,netdev=oht-net0,mac={MAC}{mtu}"),
    ]
    .map(str::to_owned)
    .to_vec()
}

/// The parts of a libvirt domain that do the same; none where the socket's path is nothing that XML can hold.
#[must_use]
pub fn libvirt_parts(socket: &str, mtu: Option<u16>) -> Option<LibvirtParts> {
    let parts = qemu::libvirt::parts(socket, MAC_BYTES, RECONNECT_MS, mtu).ok()?;
    let qemu::libvirt::Parts { memory_backing, interface, mtu_override } = parts;
    Some(LibvirtParts { memory_backing, interface, mtu_override })
}

/// The arguments on one line, quoted for a POSIX shell where they need it.
#[must_use]
pub fn shell_line(arguments: &[String]) -> String {
    arguments.iter().map(|argument| quoted(argument)).collect::<Vec<_>>().join(" ")
}

fn quoted(argument: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_=,.:/@%+".contains(c);
    if !argument.is_empty() && argument.chars().all(plain) {
        return argument.to_owned();
    }
    format!("'{}'", argument.replace('\'', r"'\''"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_ordinary_line_needs_no_quotes() {
        let line = shell_line(&qemu_arguments("/run/onion-router/vm/a/net.sock", 512, None));
        assert_eq!(
            line,
            "-object memory-backend-memfd,id=oht-mem,size=512M,share=on -machine memory-backend=oht-mem \
             -chardev socket,id=oht-net,path=/run/onion-router/vm/a/net.sock,reconnect-ms=500 \
             -netdev vhost-user,id=oht-net0,chardev=oht-net -device virtio-net-pci,netdev=oht-net0,mac=52:54:00:12:34:56"
        );
    }

    #[test]
    fn the_guest_is_told_its_mtu_if_one_is_wanted_and_offloads_stay_on() {
        let nic = |mtu| qemu_arguments("/s", 512, mtu).pop();
        assert!(nic(Some(65_520)).is_some_and(|nic| nic.ends_with(",host_mtu=65520")));
        assert!(nic(None).is_some_and(|nic| !nic.contains("mtu") && !nic.contains("off")));
    }

    #[test]
    fn the_hardware_address_is_one() {
        assert_eq!(MAC_BYTES.map(|byte| format!("{byte:02x}")).join(":"), MAC);
        assert!(libvirt_parts("/s", None).is_some_and(|parts| parts.interface.contains(MAC)));
        assert_eq!(libvirt_parts("/s\n", None), None);
    }

    #[test]
    fn a_shell_reads_back_what_was_quoted() {
        let nasty = ["a b", "it's", "$HOME", "", "`id`", "a\nb", "x;y", "*"].map(str::to_owned);
        let script = format!("printf '%s\\0' {}", shell_line(&nasty));
        let output = std::process::Command::new("/bin/sh").args(["-c", &script]).output().unwrap();
        let read: Vec<_> =
            output.stdout.split(|byte| *byte == 0).map(|s| String::from_utf8_lossy(s).into_owned()).collect();
        assert_eq!(read[..nasty.len()], nasty);
        assert!(qemu_arguments("/a,b", 1, None)[5].contains("path=/a,,b,"));
    }
}
