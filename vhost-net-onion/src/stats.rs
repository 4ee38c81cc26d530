//! What the session of one VM has done so far, for whoever reports it.

use std::sync::{Mutex, PoisonError};

use gateway::Counters;

/// The numbers of one VM, written by its session and read by others. They outlive a session that crashed.
#[derive(Debug, Default)]
pub struct Stats(Mutex<Numbers>);

/// A copy of the numbers at one moment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct VmStats {
    /// Flows that are open now, in every state.
    pub flows: u32,
    /// Payload bytes of TCP that came from the VM, since the session began.
    pub bytes_from_vm: u64,
    /// Payload bytes of TCP that went to the VM, since the session began.
    pub bytes_to_vm: u64,
    /// Frames, packets and flows that were dropped or refused, by reason; only reasons that occurred.
    pub drops: Vec<(&'static str, u64)>,
}

#[derive(Debug, Default)]
struct Numbers {
    flows: usize,
    bytes_from_vm: u64,
    bytes_to_vm: u64,
    counters: Counters,
}

impl Stats {
    /// The numbers now.
    #[must_use]
    pub fn snapshot(&self) -> VmStats {
        let numbers = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        VmStats {
            flows: u32::try_from(numbers.flows).unwrap_or(u32::MAX),
            bytes_from_vm: numbers.bytes_from_vm,
            bytes_to_vm: numbers.bytes_to_vm,
            drops: numbers.counters.drops().into_iter().filter(|(_, count)| *count > 0).collect(),
        }
    }

    pub(crate) fn set(&self, flows: usize, bytes_from_vm: u64, bytes_to_vm: u64, counters: &Counters) {
        let mut numbers = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        *numbers = Numbers { flows, bytes_from_vm, bytes_to_vm, counters: counters.clone() };
    }
}
