//! What the VMs ask about themselves, on its way to the host agent and back.
//!
//! Each gateway bounds what its VM asks at a time. A question that finds no room, or that nobody answers in time, is
//! answered here, so that no VM waits for ever.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::sync::{mpsc, oneshot};
use wire::{
    VmName,
    control::FromRouter,
    identity::{Answer, Question, Refusal},
};

/// How long the agent may take: as long as a busy disk does.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);

/// The questions that wait. Clones are the same.
#[derive(Clone)]
pub(crate) struct Asks(Arc<Inner>);

struct Inner {
    reports: mpsc::Sender<FromRouter>,
    waiting: Mutex<Waiting>,
}

#[derive(Default)]
struct Waiting {
    of: HashMap<u64, oneshot::Sender<Answer>>,
    last: u64,
}

impl Asks {
    /// None yet; they go out as reports.
    pub(crate) fn new(reports: mpsc::Sender<FromRouter>) -> Asks {
        Asks(Arc::new(Inner { reports, waiting: Mutex::default() }))
    }

    /// Asks the agent in the name of `vm`.
    pub(crate) async fn ask(&self, vm: VmName, question: Question) -> Answer {
        let (sender, answer) = oneshot::channel();
        let waits = self.wait(sender);
        if self.0.reports.try_send(FromRouter::Ask { vm, id: waits.id, question }).is_err() {
            return Refusal::Unavailable.because("the router has too much to report: ask again in a moment");
        }
        match tokio::time::timeout(ANSWER_TIMEOUT, answer).await {
            Ok(Ok(answer)) => answer,
            Ok(Err(_)) => Refusal::Unavailable.because("the host agent is not there: ask again in a moment"),
            Err(_) => Refusal::TimedOut.because("the host agent does not answer: ask again in a moment"),
        }
    }

    /// The agent has answered.
    pub(crate) fn answered(&self, id: u64, answer: Answer) {
        if let Some(waiting) = self.lock().of.remove(&id) {
            // The VM may have hung up.
            let _ = waiting.send(answer);
        }
    }

    /// The agent is gone: it will answer nothing that it was asked.
    pub(crate) fn lost(&self) {
        self.lock().of.clear();
    }

    fn wait(&self, sender: oneshot::Sender<Answer>) -> Waits<'_> {
        let mut waiting = self.lock();
        waiting.last += 1;
        let id = waiting.last;
        waiting.of.insert(id, sender);
        Waits { asks: self, id }
    }

    fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.0.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A question's place, until it is answered or its VM is gone.
struct Waits<'a> {
    asks: &'a Asks,
    id: u64,
}

impl Drop for Waits<'_> {
    fn drop(&mut self) {
        self.asks.lock().of.remove(&self.id);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asks() -> (Asks, mpsc::Receiver<FromRouter>) {
        let (sender, reports) = mpsc::channel(1);
        (Asks::new(sender), reports)
    }

    fn ask(asks: &Asks) -> tokio::task::JoinHandle<Answer> {
        let asks = asks.clone();
        tokio::spawn(async move { asks.ask("web".parse().unwrap(), Question::Onions).await })
    }

    fn is_refused(answer: &Answer, why: Refusal) -> bool {
        matches!(answer, Answer::Refused { why: said, .. } if *said == why)
    }

    #[tokio::test]
    async fn answers_find_their_questions_and_no_question_waits_for_ever() {
        let (asks, mut reports) = asks();
        let asked = ask(&asks);
        let Some(FromRouter::Ask { vm, id, question: Question::Onions }) = reports.recv().await else { panic!() };
        assert_eq!(vm.as_str(), "web");
        asks.answered(id + 1, Answer::Onions(vec![]));
        asks.answered(id, Answer::Onions(vec![]));
        assert_eq!(asked.await.unwrap(), Answer::Onions(vec![]));

        let (one, two) = (ask(&asks), ask(&asks));
        // There is room for one report.
        let (first, other) = tokio::select! { first = one => (first, None), second = two => (second, Some(())) };
        assert!(is_refused(&first.unwrap(), Refusal::Unavailable), "{other:?}");
        asks.lost();
        assert!(asks.lock().of.is_empty());
    }

    #[tokio::test]
    async fn a_lost_agent_answers_at_once_and_a_silent_one_in_time() {
        let (asks, mut reports) = asks();
        let asked = ask(&asks);
        reports.recv().await.unwrap();
        asks.lost();
        assert!(is_refused(&asked.await.unwrap(), Refusal::Unavailable));
        tokio::time::pause();
        let asked = ask(&asks);
        reports.recv().await.unwrap();
        assert!(is_refused(&asked.await.unwrap(), Refusal::TimedOut));
        assert!(asks.lock().of.is_empty());
    }
}
