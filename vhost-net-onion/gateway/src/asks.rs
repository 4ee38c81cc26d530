//! What the VM asks about itself, until the pump has answered.
//!
//! Each question costs the host agent a look into its keys, or a signature: so few wait at a time, and a VM that asks
//! without end is told to wait. No clock but what it is told.

use std::{
    collections::{BTreeMap, VecDeque},
    time::{Duration, Instant},
};

use wire::identity::{Answer, Question, Refusal};

use crate::{AskId, FlowId};

/// Questions that wait for their answer at most.
const WAITING_MAX: usize = 4;

/// Questions that may be asked at once after a while of silence.
const BURST: u32 = 20;

/// How often another one may be asked.
const EVERY: Duration = Duration::from_millis(250);

/// The questions.
#[derive(Debug)]
pub(crate) struct Asks {
    waiting: BTreeMap<u64, FlowId>,
    last: u64,
    /// Those that the pump does not know yet.
    fresh: VecDeque<(AskId, Question)>,
    /// How many may be asked, as of `counted`.
    left: u32,
    counted: Instant,
}

impl Asks {
    /// None yet.
    pub(crate) fn new(now: Instant) -> Asks {
        Asks { waiting: BTreeMap::new(), last: 0, fresh: VecDeque::new(), left: BURST, counted: now }
    }

    /// Asks the pump, for a connection.
    ///
    /// # Errors
    /// What the VM is told when there are too many.
    pub(crate) fn ask(&mut self, now: Instant, question: Question, flow: FlowId) -> Result<(), Answer> {
        if self.waiting.len() >= WAITING_MAX {
            let detail = format!("{WAITING_MAX} questions wait for their answer: ask again once one is answered");
            return Err(Refusal::TooMany.because(detail));
        }
        self.count(now);
        self.left = self.left.checked_sub(1).ok_or_else(|| {
            Refusal::TooMany.because(format!("ask at most {} times a second", 1000 / EVERY.as_millis()))
        })?;
        self.last += 1;
        self.fresh.push_back((AskId(self.last), question));
        self.waiting.insert(self.last, flow);
        Ok(())
    }

    /// The next question for the pump.
    pub(crate) fn poll(&mut self) -> Option<(AskId, Question)> {
        self.fresh.pop_front()
    }

    /// The connection whose question the pump has answered.
    pub(crate) fn take(&mut self, AskId(ask): AskId) -> Option<FlowId> {
        self.waiting.remove(&ask)
    }

    fn count(&mut self, now: Instant) {
        let more = now.saturating_duration_since(self.counted).as_millis() / EVERY.as_millis();
        let more = u32::try_from(more).unwrap_or(BURST);
        if self.left.saturating_add(more) >= BURST {
            (self.left, self.counted) = (BURST, now);
        } else {
            self.left += more;
            self.counted += EVERY * more;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_then_one_each_quarter_of_a_second_and_few_at_a_time() {
        let began = Instant::now();
        let mut asks = Asks::new(began);
        let ask = |asks: &mut Asks, now| {
            let asked = asks.ask(now, Question::Who, FlowId(7)).is_ok();
            if asked {
                let (ask, _) = asks.poll().unwrap();
                assert_eq!((asks.take(ask), asks.take(ask)), (Some(FlowId(7)), None));
            }
            asked
        };
        assert_eq!((0..100).filter(|_| ask(&mut asks, began)).count(), BURST as usize);
        let later = began + EVERY * 3 + EVERY / 2;
        assert_eq!((0..100).filter(|_| ask(&mut asks, later)).count(), 3);
        assert!(!ask(&mut asks, later + EVERY / 3) && ask(&mut asks, later + EVERY / 2));
        let much_later = later + Duration::from_secs(1 << 40);
        assert_eq!((0..100).filter(|_| ask(&mut asks, much_later)).count(), BURST as usize);
        let again = much_later + EVERY * 100;
        for n in 0..10 {
            assert_eq!(asks.ask(again, Question::Who, FlowId(n)).is_ok(), n < WAITING_MAX as u64);
        }
    }
}
