//! How much memory there is and is used, from procfs.

use std::fs;

/// Resident memory of this program, and memory of the machine that is available, in KiB; 0 where procfs does not say.
pub(crate) fn memory_kib() -> (u64, u64) {
    (field("/proc/self/status", "VmRSS:"), field("/proc/meminfo", "MemAvailable:"))
}

/// The number behind `name` in the file `path`.
fn field(path: &str, name: &str) -> u64 {
    let text = fs::read_to_string(path).unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix(name));
    line.and_then(|rest| rest.split_whitespace().next()?.parse().ok()).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    #[test]
    fn this_program_uses_memory_and_leaves_some() {
        let (resident, available) = super::memory_kib();
        assert!(resident > 100 && available > 100, "{resident} {available}");
    }
}
