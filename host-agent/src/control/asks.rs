//! What VMs ask about themselves, on behalf of whom the router asks.
//!
//! Keys may block, so each question has a thread for as long as it takes; as many as [`ASKS_MAX`] at a time, whatever the
//! router sends. One more is refused.

use std::sync::Arc;

use tokio::sync::{Semaphore, mpsc};
use wire::{
    VmName,
    control::ToRouter,
    identity::{Answer, Question, Refusal},
};

use crate::{identity, keys::Keys};

/// Questions of all VMs that are answered at a time.
pub(super) const ASKS_MAX: usize = 16;

/// Answers questions.
pub(super) struct Asks {
    keys: Arc<Keys>,
    permits: Arc<Semaphore>,
}

impl Asks {
    /// Out of these keys.
    pub(super) fn new(keys: Arc<Keys>) -> Asks {
        Asks { keys, permits: Arc::new(Semaphore::new(ASKS_MAX)) }
    }

    /// Answers a question of `vm`, in its own time, into `answers`.
    pub(super) fn ask(&self, vm: VmName, id: u64, question: Question, answers: &mpsc::Sender<ToRouter>) {
        let Ok(permit) = Arc::clone(&self.permits).try_acquire_owned() else {
            return refuse(id, Refusal::Unavailable.because("the host agent is busy: ask again in a moment"), answers);
        };
        let (keys, answers) = (Arc::clone(&self.keys), answers.clone());
        tokio::task::spawn_blocking(move || {
            let answer = identity::answer(&keys, &vm, question);
            // A router that is gone, or takes no answers, gets none.
            let _ = answers.try_send(ToRouter::Answer { id, answer });
            drop(permit);
        });
    }
}

/// Answers at once.
pub(super) fn refuse(id: u64, answer: Answer, answers: &mpsc::Sender<ToRouter>) {
    let _ = answers.try_send(ToRouter::Answer { id, answer });
}
