//! What PID 1 asks the kernel: clock, uptime, memory, its arguments, its log; and the end.

use std::{
    fs,
    io::{Read, Write},
    os::unix::fs::OpenOptionsExt,
    time::Duration,
};

use nix::{
    fcntl::OFlag,
    sys::{
        reboot::{RebootMode, reboot},
        time::TimeSpec,
        utsname,
    },
    time::{ClockId, clock_gettime, clock_settime},
};
use wire::control::FromInit;

/// Writes a line to the console. It never fails: there is nobody to tell.
pub(crate) fn log(what: &str) {
    let _ = writeln!(std::io::stderr(), "guest-init: {what}");
}

/// Time since the kernel began, suspended or not.
pub(crate) fn uptime() -> Duration {
    clock_gettime(ClockId::CLOCK_BOOTTIME).map_or(Duration::ZERO, Duration::from)
}

/// Sets the clock to nanoseconds since the Unix epoch.
pub(crate) fn set_clock(unix_time_ns: u64) -> Result<(), String> {
    let time = TimeSpec::from(Duration::from_nanos(unix_time_ns));
    clock_settime(ClockId::CLOCK_REALTIME, time).map_err(|error| format!("cannot set the clock: {error}"))
}

/// A ready with the figures of this moment.
pub(crate) fn ready() -> FromInit {
    let kernel =
        utsname::uname().map_or_else(|_| "unknown".into(), |name| name.release().to_string_lossy().into_owned());
    let meminfo = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let uptime_ms = u64::try_from(uptime().as_millis()).unwrap_or(u64::MAX);
    FromInit::Ready { uptime_ms, kernel, memory_kib: memory_kib(&meminfo) }
}

/// Total and available memory in what /proc/meminfo says; 0 for what it does not.
pub(crate) fn memory_kib(meminfo: &str) -> (u64, u64) {
    let figure = |name: &str| {
        let line = meminfo.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
        line.trim().strip_suffix(" kB")?.parse().ok()
    };
    (figure("MemTotal").unwrap_or(0), figure("MemAvailable").unwrap_or(0))
}

/// The kernel's arguments that are meant for PID 1.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Arguments {
    /// `oht.log=`: what the router logs.
    pub(crate) log: Option<String>,
    /// `oht.bench=bare`: only answer "ready".
    pub(crate) bare: bool,
}

impl Arguments {
    /// Those of the running kernel.
    pub(crate) fn of_kernel() -> Arguments {
        Arguments::parse(&fs::read_to_string("/proc/cmdline").unwrap_or_default())
    }

    fn parse(line: &str) -> Arguments {
        let value = |name: &str| line.split_ascii_whitespace().filter_map(|word| word.strip_prefix(name)).next_back();
        Arguments { log: value("oht.log=").map(str::to_owned), bare: value("oht.bench=") == Some("bare") }
    }
}

/// The kernel's line that says that it could not unpack the whole initramfs, if there is one.
pub(crate) fn unpacking_failure() -> Option<String> {
    let flags = OFlag::O_NONBLOCK.bits();
    let mut log = fs::OpenOptions::new().read(true).custom_flags(flags).open("/dev/kmsg").ok()?;
    let mut record = [0; 8192];
    // Each read is one record; EPIPE says that older ones were overwritten, anything else that there are no more.
    for _ in 0..KERNEL_RECORDS_MAX {
        match log.read(&mut record) {
            Ok(bytes) => {
                let text = String::from_utf8_lossy(&record[..bytes]);
                if let Some((_, line)) = text.split_once(';')
                    && line.starts_with("Initramfs unpacking failed")
                {
                    return line.lines().next().map(str::to_owned);
                }
            }
            Err(error) if error.raw_os_error() == Some(nix::errno::Errno::EPIPE as i32) => {}
            Err(_) => return None,
        }
    }
    None
}

/// Records of the kernel's log that are looked at: its buffer of 32 KiB holds fewer.
const KERNEL_RECORDS_MAX: usize = 4096;

/// Ends the VM.
pub(crate) fn power_off() -> ! {
    nix::unistd::sync();
    let refused = reboot(RebootMode::RB_POWER_OFF);
    log(&format!("cannot power off: {refused:?}"));
    // Ending would be a kernel panic, which reboots (`panic=-1`) and so ends the VM: the next best.
    std::process::exit(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arguments_are_found_among_others_and_the_last_one_counts() {
        let parse = |line: &str| Arguments::parse(line);
        assert_eq!(parse("console=ttyS0 quiet\n"), Arguments::default());
        let log = Some("info,onion=debug".to_owned());
        assert_eq!(parse("oht.log=warn oht.log=info,onion=debug\n"), Arguments { log, bare: false });
        assert!(parse("oht.bench=bare quiet").bare);
        assert!(!parse("oht.bench=bar xoht.bench=bare").bare);
    }

    #[test]
    fn memory_is_read_from_meminfo() {
        let meminfo = "MemTotal:          60000 kB\nMemFree:    1 kB\nMemAvailable:   41234 kB\n";
        assert_eq!(memory_kib(meminfo), (60_000, 41_234));
        assert_eq!(memory_kib("MemTotal: lots"), (0, 0));
    }
}
