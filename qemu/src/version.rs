//! Which QEMU this is. Older ones start and then fail in ways that nobody can read, so they are refused at the door.

use std::{ffi::OsStr, fmt, io, process::Stdio, time::Duration};

use tokio::{process::Command, time::timeout};

/// The oldest QEMU that works. 7.2 crashes with vhost-user-net plus reconnect and panics 6.12 guests under TCG.
pub const VERSION_MIN: Version = Version { major: 10, minor: 0 };

/// How long `--version` may take.
const ANSWER_S_MAX: u64 = 10;

/// A version of QEMU.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Version {
    /// The first number.
    pub major: u32,
    /// The second number.
    pub minor: u32,
}

/// Why this QEMU cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum VersionError {
    /// It does not start.
    #[error(
        "cannot run {program}: install QEMU {VERSION_MIN} or newer (Debian 13: apt install qemu-system-x86; \
             Debian 12: apt install -t bookworm-backports qemu-system-x86)"
    )]
    Run {
        /// What was tried.
        program: String,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// It starts, and does not say its version.
    #[error("{program} --version says {answer:?}, which is no version of QEMU: give the path of qemu-system-x86_64")]
    Answer {
        /// What was tried.
        program: String,
        /// Its first line.
        answer: String,
    },
    /// It is too old.
    #[error(
        "{program} is QEMU {found}, too old: install {VERSION_MIN} or newer \
             (Debian 12: apt install -t bookworm-backports qemu-system-x86)"
    )]
    TooOld {
        /// What was tried.
        program: String,
        /// Its version.
        found: Version,
    },
}

/// The version of `program`, when it is new enough.
///
/// # Errors
/// When it does not run within ten seconds, does not say its version, or is older than [`VERSION_MIN`].
pub async fn check(program: impl AsRef<OsStr>) -> Result<Version, VersionError> {
    let name = || program.as_ref().to_string_lossy().into_owned();
    let output = Command::new(&program).arg("--version").stdin(Stdio::null()).kill_on_drop(true).output();
    let output = timeout(Duration::from_secs(ANSWER_S_MAX), output)
        .await
        .unwrap_or_else(|_| Err(io::Error::from(io::ErrorKind::TimedOut)))
        .map_err(|source| VersionError::Run { program: name(), source })?;
    let text = String::from_utf8_lossy(&output.stdout);
    judge(&text, &name())
}

fn judge(text: &str, program: &str) -> Result<Version, VersionError> {
    let Some(found) = parse(text) else {
        let answer = text.lines().next().unwrap_or_default().chars().take(200).collect();
        return Err(VersionError::Answer { program: program.into(), answer });
    };
    if found < VERSION_MIN { Err(VersionError::TooOld { program: program.into(), found }) } else { Ok(found) }
}

fn parse(text: &str) -> Option<Version> {
    let numbers = text.strip_prefix("QEMU emulator version ")?.split_whitespace().next()?;
    let mut numbers = numbers.split('.').map(str::parse);
    Some(Version { major: numbers.next()?.ok()?, minor: numbers.next()?.ok()? })
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.major, self.minor)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn new_enough_is_taken_and_too_old_is_told_what_to_do() {
        let debian = "QEMU emulator version 10.0.2 (Debian 1:10.0.2+ds-2+deb13u1~bpo12+1)\nCopyright";
        assert_eq!(judge(debian, "q").unwrap(), Version { major: 10, minor: 0 });
        assert!(judge("QEMU emulator version 11.0.50", "q").is_ok());
        let error = judge("QEMU emulator version 7.2.17 (Debian 1:7.2)", "q").unwrap_err().to_string();
        assert!(error.contains("q is QEMU 7.2") && error.contains("backports"), "{error}");
    }

    #[test]
    fn another_program_is_no_qemu() {
        for text in ["", "bash 5.2", "QEMU emulator version ten", "QEMU emulator version 10"] {
            assert!(matches!(judge(text, "q"), Err(VersionError::Answer { .. })), "{text}");
        }
    }

    #[tokio::test]
    async fn a_missing_program_is_named_with_its_remedy() {
        let error = check("/nowhere/qemu").await.unwrap_err().to_string();
        assert!(error.contains("/nowhere/qemu") && error.contains("apt install"), "{error}");
    }
}
