//! The file systems of the router VM.

use nix::{
    errno::Errno,
    mount::{MntFlags, MsFlags, mount, umount2},
};

/// Where the host's state directory is.
pub(crate) const STATE: &str = "/state";
/// The virtio-fs tag that the host shares it as.
const STATE_TAG: &str = "state";

struct Mount {
    kind: &'static str,
    at: &'static str,
    flags: MsFlags,
    options: Option<&'static str>,
}

const PROC: Mount = Mount { kind: "proc", at: "/proc", flags: HARMLESS, options: None };
const OTHERS: [Mount; 4] = [
    Mount { kind: "sysfs", at: "/sys", flags: HARMLESS, options: None },
    Mount { kind: "devtmpfs", at: "/dev", flags: MsFlags::MS_NOSUID, options: Some("size=64k,mode=755") },
    // Memory is short: what is written there is bounded.
    Mount { kind: "tmpfs", at: "/tmp", flags: HARMLESS, options: Some("size=4m,mode=1777") },
    Mount { kind: "tmpfs", at: "/run", flags: HARMLESS, options: Some("size=1m,mode=755") },
];
const HARMLESS: MsFlags = MsFlags::MS_NOSUID.union(MsFlags::MS_NODEV).union(MsFlags::MS_NOEXEC);

/// Mounts `/proc`, all that the benchmark's bare VM has.
pub(crate) fn proc() -> Result<(), String> {
    mount_one(&PROC)
}

/// Mounts the kernel's other file systems; what fails is returned, and the others are mounted all the same.
pub(crate) fn others() -> Vec<String> {
    OTHERS.iter().filter_map(|one| mount_one(one).err()).collect()
}

/// Mounts the state.
pub(crate) fn state() -> Result<(), String> {
    mount(Some(STATE_TAG), STATE, Some("virtiofs"), HARMLESS, None::<&str>).map_err(|error| {
        let remedy =
            if error == Errno::EINVAL { " (no virtio-fs device has this tag: does virtiofsd run?)" } else { "" };
        format!("cannot mount the virtio-fs {STATE_TAG:?} at {STATE}: {error}{remedy}")
    })
}

/// Unmounts the state. What is dirty is written first; a file that is still open only delays the end of the mount.
pub(crate) fn unmount_state() -> Result<(), String> {
    nix::unistd::sync();
    umount2(STATE, MntFlags::empty())
        .or_else(|_| umount2(STATE, MntFlags::MNT_DETACH))
        .map_err(|error| format!("cannot unmount {STATE}: {error}"))
}

fn mount_one(one: &Mount) -> Result<(), String> {
    mount(Some(one.kind), one.at, Some(one.kind), one.flags, one.options)
        .map_err(|error| format!("cannot mount {} at {}: {error}", one.kind, one.at))
}
