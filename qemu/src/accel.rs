//! KVM or TCG, and why.
//!
//! That `/dev/kvm` exists says little: on a machine that is itself a guest it can open, and even make VMs, without VMX
//! or SVM behind it, and then no stock kernel boots. So `auto` wants three things in this order, the cheap ones first:
//! the CPU's flags, a device that opens, and a QEMU that starts a machine with it.

use std::{ffi::OsStr, fmt, fs, io, process::Stdio, str::FromStr, time::Duration};

use tokio::{io::AsyncWriteExt, process::Command, time::timeout};

/// How long the probe may take.
const PROBE_S_MAX: u64 = 5;

/// What a person may ask for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Accel {
    /// KVM where it works, else TCG.
    #[default]
    Auto,
    /// KVM, whether it seems to work or not.
    Kvm,
    /// Emulation.
    Tcg,
}

/// What a machine runs on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Accelerator {
    /// The processor itself.
    Kvm,
    /// Emulation: slow, and works everywhere.
    Tcg,
}

/// What was chosen, and why, in words for a person.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Decision {
    /// What was chosen.
    pub accelerator: Accelerator,
    /// Why.
    pub reason: String,
}

/// A text that names no accelerator.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no accelerator: use auto, kvm or tcg")]
pub struct AccelError(String);

/// Chooses for `qemu`, the QEMU program that will run.
pub async fn choose(asked: Accel, qemu: impl AsRef<OsStr>) -> Decision {
    match asked {
        Accel::Kvm => Decision { accelerator: Accelerator::Kvm, reason: "asked for".into() },
        Accel::Tcg => Decision { accelerator: Accelerator::Tcg, reason: "asked for".into() },
        Accel::Auto => match usable(qemu.as_ref()).await {
            Ok(()) => Decision { accelerator: Accelerator::Kvm, reason: "a probe with KVM started".into() },
            Err(reason) => Decision { accelerator: Accelerator::Tcg, reason },
        },
    }
}

/// Whether KVM works here; if not, why, in words.
async fn usable(qemu: &OsStr) -> Result<(), String> {
    let cpuinfo = fs::read_to_string("/proc/cpuinfo").map_err(|error| format!("cannot read /proc/cpuinfo: {error}"))?;
    if !has_virtualisation(&cpuinfo) {
        return Err("the CPU shows neither VMX nor SVM (no virtualisation, or a guest that may not nest)".into());
    }
    if let Err(error) = fs::File::options().read(true).write(true).open("/dev/kvm") {
        return Err(match error.kind() {
            io::ErrorKind::NotFound => "there is no /dev/kvm (module kvm_intel or kvm_amd not loaded)".into(),
            io::ErrorKind::PermissionDenied => "/dev/kvm may not be opened (join the group kvm)".into(),
            _ => format!("/dev/kvm does not open: {error}"),
        });
    }
    let probe = timeout(Duration::from_secs(PROBE_S_MAX), probe(qemu)).await;
    probe.unwrap_or_else(|_| Err(format!("a probe with KVM did not end within {PROBE_S_MAX} s")))
}

/// Lets QEMU make a machine with KVM and end at once.
async fn probe(qemu: &OsStr) -> Result<(), String> {
    let machine = ["-nodefaults", "-no-user-config", "-display", "none", "-machine", "q35", "-m", "16M"];
    let failed = |error: io::Error| format!("a probe with KVM could not be started: {error}");
    let mut child = Command::new(qemu)
        .args(machine)
        .args(["-accel", "kvm", "-cpu", "host", "-S", "-qmp", "stdio"])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .map_err(failed)?;
    if let Some(mut stdin) = child.stdin.take() {
        // A QEMU that has died already says why on stderr, not here.
        let _ = stdin.write_all(b"{\"execute\":\"qmp_capabilities\"}\n{\"execute\":\"quit\"}\n").await;
        let output = child.wait_with_output().await.map_err(failed)?;
        drop(stdin);
        if output.status.success() {
            return Ok(());
        }
        let said = String::from_utf8_lossy(&output.stderr);
        return Err(format!("a probe with KVM failed: {}", said.lines().last().unwrap_or("it said nothing").trim()));
    }
    Err("a probe with KVM has no standard input".into())
}

/// Whether any processor in the text of `/proc/cpuinfo` has VMX (Intel SDM 3C, 24.6) or SVM (AMD APM 2, 15.4).
fn has_virtualisation(cpuinfo: &str) -> bool {
    let flags = cpuinfo.lines().filter_map(|line| line.split_once(':')).filter(|(key, _)| key.trim() == "flags");
    flags.flat_map(|(_, flags)| flags.split_whitespace()).any(|flag| flag == "vmx" || flag == "svm")
}

impl FromStr for Accel {
    type Err = AccelError;

    fn from_str(text: &str) -> Result<Accel, AccelError> {
        match text {
            "auto" => Ok(Accel::Auto),
            "kvm" => Ok(Accel::Kvm),
            "tcg" => Ok(Accel::Tcg),
            _ => Err(AccelError(text.into())),
        }
    }
}

impl fmt::Display for Accelerator {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Accelerator::Kvm => "kvm",
            Accelerator::Tcg => "tcg",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_flags_themselves_count() {
        assert!(has_virtualisation("processor : 0\nflags\t\t: fpu vme vmx ssse3\n"));
        assert!(has_virtualisation("flags : fpu\n\nflags : svm\n"));
        assert!(!has_virtualisation("flags : fpu vme svm_lock hypervisor\nvmx flags : vnmi ept\nmodel name : vmx\n"));
        assert!(!has_virtualisation(""));
    }

    #[tokio::test]
    async fn what_is_asked_for_is_taken_and_says_so() {
        let decision = choose(Accel::Tcg, "/nowhere").await;
        assert_eq!(decision, Decision { accelerator: Accelerator::Tcg, reason: "asked for".into() });
        assert_eq!(choose(Accel::Kvm, "/nowhere").await.accelerator, Accelerator::Kvm);
    }

    #[tokio::test]
    async fn a_probe_that_fails_or_cannot_start_says_why() {
        assert!(probe("/nowhere".as_ref()).await.unwrap_err().contains("could not be started"));
        assert!(probe("/bin/false".as_ref()).await.unwrap_err().contains("it said nothing"));
        assert_eq!(choose(Accel::Auto, "/bin/false").await.accelerator, Accelerator::Tcg);
    }

    #[test]
    fn other_words_are_refused() {
        assert_eq!("auto".parse(), Ok(Accel::Auto));
        assert!("KVM".parse::<Accel>().unwrap_err().to_string().contains("auto, kvm or tcg"));
    }
}
