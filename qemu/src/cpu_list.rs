//! Processors of this host, as `taskset` and libvirt write them: `2,3` or `0-3,8`.

use std::{fmt, str::FromStr};

/// The highest number plus one: what the kernel's `cpu_set_t` holds (sched_setaffinity(2)).
pub const CPU_MAX: usize = 1024;

/// At least one processor, each once, in the order in which they were named.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CpuList(Vec<usize>);

/// A text that names no processors.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} names no processors of this host: write numbers below {CPU_MAX} and ranges of them, as in 2,3 or 0-3,8")]
pub struct CpuListError(String);

impl CpuList {
    /// Their numbers.
    #[must_use]
    pub fn cpus(&self) -> &[usize] {
        &self.0
    }
}

impl FromStr for CpuList {
    type Err = CpuListError;

    fn from_str(text: &str) -> Result<CpuList, CpuListError> {
        let wrong = || CpuListError(text.chars().take(80).collect());
        let number = |text: &str| {
            let digits = !text.is_empty() && text.len() <= 4 && text.bytes().all(|byte| byte.is_ascii_digit());
            text.parse::<usize>().ok().filter(|&cpu| digits && cpu < CPU_MAX).ok_or_else(wrong)
        };
        let mut cpus = Vec::new();
        for part in text.split(',') {
            let (first, last) = part.split_once('-').unwrap_or((part, part));
            let range = number(first)?..=number(last)?;
            if range.is_empty() {
                return Err(wrong());
            }
            for cpu in range {
                if cpus.contains(&cpu) {
                    return Err(wrong());
                }
                cpus.push(cpu);
            }
        }
        Ok(CpuList(cpus))
    }
}

impl fmt::Display for CpuList {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.iter().map(usize::to_string).collect::<Vec<_>>().join(","))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_and_ranges_are_read_in_order() {
        let list: CpuList = "8,0-2,5".parse().unwrap();
        assert_eq!(list.cpus(), [8, 0, 1, 2, 5]);
        assert_eq!(list.to_string(), "8,0,1,2,5");
        assert_eq!("0-1023".parse::<CpuList>().unwrap().cpus().len(), CPU_MAX);
    }

    #[test]
    fn what_names_none_or_one_twice_is_refused() {
        for wrong in ["", ",", "1,", "a", "-1", "1-", "3-2", "1024", "1,1", "0-3,2", "+1", " 1", "1-2-3", "99999"] {
            assert!(wrong.parse::<CpuList>().is_err(), "{wrong:?}");
        }
    }
}
