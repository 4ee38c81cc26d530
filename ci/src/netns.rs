//! Network namespaces without names: each lives as long as the value that stands for it, so a test that is killed
//! leaves none behind.
//!
//! Programs are started in one by `nsenter` (which ends in `exec`, so process numbers stay what we know); our own
//! sockets are made by a thread that enters it for a moment: a socket belongs to the namespace it was made in.

use std::{
    fs::{self, File},
    io::Write as _,
    net::Ipv4Addr,
    os::{
        fd::{AsFd as _, AsRawFd as _},
        unix::fs::MetadataExt as _,
    },
    process::{Command, Stdio},
    thread,
};

use anyhow::{Context as _, Result, bail};
use nix::sched::{CloneFlags, setns, unshare};

/// A network namespace of our own.
#[derive(Debug)]
pub(crate) struct Netns {
    file: File,
}

impl Netns {
    /// Makes a namespace: it has an `lo` that is up, and no IPv6.
    ///
    /// # Errors
    /// Without the right to make one (root, or CAP_SYS_ADMIN).
    pub(crate) fn new() -> Result<Netns> {
        let made = thread::spawn(|| -> Result<File> {
            unshare(CloneFlags::CLONE_NEWNET).context("cannot make a network namespace: run this as root")?;
            File::open("/proc/thread-self/ns/net").context("cannot open the new network namespace")
        });
        let file = made.join().unwrap_or_else(|_| bail!("the thread that makes a network namespace panicked"))?;
        let netns = Netns { file };
        netns.run(no_ipv6)??;
        netns.ip("link set lo up\n")?;
        Ok(netns)
    }

    /// Runs something short with this namespace as the calling thread's: to make sockets, not to start processes.
    ///
    /// # Errors
    /// When the namespace cannot be entered, or `work` panics.
    pub(crate) fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> Result<T> {
        thread::scope(|scope| {
            let inside = scope.spawn(|| -> Result<T> {
                setns(self.file.as_fd(), CloneFlags::CLONE_NEWNET).context("cannot enter the network namespace")?;
                Ok(work())
            });
            inside.join().unwrap_or_else(|_| bail!("the work inside the network namespace panicked"))
        })
    }

    /// The words to put before a command line so that it runs inside.
    pub(crate) fn enter_argv(&self) -> Vec<String> {
        vec!["nsenter".into(), format!("--net=/proc/{}/fd/{}", std::process::id(), self.file.as_raw_fd()), "--".into()]
    }

    /// A command that runs inside.
    pub(crate) fn command(&self, program: &str) -> Command {
        let argv = self.enter_argv();
        let mut command = Command::new(&argv[0]);
        command.args(&argv[1..]).arg(program);
        command
    }

    /// Runs lines of `ip` inside, such as `link set lo up`.
    ///
    /// # Errors
    /// When `ip` refuses one of them.
    pub(crate) fn ip(&self, lines: &str) -> Result<()> {
        let mut child = self
            .command("ip")
            .args(["-batch", "-"])
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .context("cannot run `ip`: is iproute2 installed?")?;
        child.stdin.take().context("ip has no input")?.write_all(lines.as_bytes())?;
        let output = child.wait_with_output()?;
        if !output.status.success() {
            bail!("ip: {} (for: {})", String::from_utf8_lossy(&output.stderr).trim(), lines.trim());
        }
        Ok(())
    }

    /// The names of its interfaces.
    ///
    /// # Errors
    /// When they cannot be listed.
    pub(crate) fn interfaces(&self) -> Result<Vec<String>> {
        // Not /sys/class/net, which shows the namespace that it was mounted in.
        self.run(|| fs::read_to_string("/proc/thread-self/net/dev"))?
            .context("cannot list interfaces")
            .map(|text| interface_names(&text))
    }

    /// The inode that `/proc/PID/ns/net` of a process inside shows.
    ///
    /// # Errors
    /// When the namespace cannot be looked at.
    pub(crate) fn inode(&self) -> Result<u64> {
        Ok(self.file.metadata().context("cannot look at the network namespace")?.ino())
    }
}

/// The interfaces of the namespace that this program itself is in.
pub(crate) fn own_interfaces() -> Result<Vec<String>> {
    Ok(interface_names(&fs::read_to_string("/proc/thread-self/net/dev").context("cannot list interfaces")?))
}

fn interface_names(proc_net_dev: &str) -> Vec<String> {
    let mut names: Vec<String> =
        proc_net_dev.lines().filter_map(|line| Some(line.split_once(':')?.0.trim().to_owned())).collect();
    names.sort();
    names
}

/// Neighbour discovery would be noise in a capture that allows nothing but relays.
fn no_ipv6() -> Result<()> {
    for scope in ["all", "default"] {
        let path = format!("/proc/sys/net/ipv6/conf/{scope}/disable_ipv6");
        if fs::metadata(&path).is_ok() {
            fs::write(&path, "1").with_context(|| format!("cannot write {path}"))?;
        }
    }
    Ok(())
}

/// The second namespace's address on the wire that [`join`] makes.
pub(crate) const JOINED_SECOND: Ipv4Addr = Ipv4Addr::new(10, 19, 0, 2);

/// Joins two namespaces by a veth pair named `wire` in both, as `10.19.0.1` and `10.19.0.2`. The neighbours are written
/// down, so that not even ARP appears on it; all of the second one's traffic goes to the first.
///
/// # Errors
/// When `ip` refuses.
pub(crate) fn join(first: &Netns, second: &Netns) -> Result<()> {
    let [one, two] = ["02:00:00:00:19:01", "02:00:00:00:19:02"];
    let peer = format!("/proc/{}/fd/{}", std::process::id(), second.file.as_raw_fd());
    first.ip(&format!("link add wire address {one} type veth peer name wire address {two} netns {peer}\n"))?;
    first.ip(&format!(
        "link set wire up\naddr add 10.19.0.1/24 dev wire\nneigh add 10.19.0.2 lladdr {two} dev wire nud permanent\n"
    ))?;
    second.ip(&format!(
        "link set wire up\naddr add 10.19.0.2/24 dev wire\nneigh add 10.19.0.1 lladdr {one} dev wire nud permanent\n\
         route add default via 10.19.0.1\n"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn interface_names_are_read_from_proc() {
        let text = "Inter-| Receive\n face |bytes\n    lo: 1 2\n wire: 3 4\n";
        assert_eq!(interface_names(text), ["lo", "wire"]);
    }
}
