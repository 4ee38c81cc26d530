//! Questions for addresses that the pump is asked to resolve ([`crate::Policy::resolves`]), until it has answered.
//!
//! As many wait as the VM could reasonably ask at once; one more is told that the server has failed, and asks again.

use std::{
    collections::{BTreeMap, VecDeque},
    net::IpAddr,
};

use crate::{FlowId, QueryId, dns::Question};

/// Questions that wait at most.
const WAITING_MAX: usize = 256;

/// Whom an answer goes to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Asker {
    /// A datagram from the first of these addresses and ports to the second one, which is the gateway's.
    Udp((IpAddr, u16), (IpAddr, u16)),
    /// A connection, which is asked for nothing else meanwhile.
    Tcp(FlowId),
}

/// The questions.
#[derive(Debug, Default)]
pub(crate) struct Resolver {
    waiting: BTreeMap<u64, (Question, Asker)>,
    last: u64,
    /// Those that the pump does not know yet.
    fresh: VecDeque<(QueryId, String)>,
}

impl Resolver {
    /// Asks the pump. Gives the question back if there are too many.
    pub(crate) fn ask(&mut self, question: Question, asker: Asker) -> Option<Question> {
        if self.waiting.len() >= WAITING_MAX {
            return Some(question);
        }
        self.last += 1;
        self.fresh.push_back((QueryId(self.last), question.name().to_owned()));
        self.waiting.insert(self.last, (question, asker));
        None
    }

    /// The next name for the pump.
    pub(crate) fn poll(&mut self) -> Option<(QueryId, String)> {
        self.fresh.pop_front()
    }

    /// The question that the pump has answered.
    pub(crate) fn take(&mut self, QueryId(query): QueryId) -> Option<(Question, Asker)> {
        self.waiting.remove(&query)
    }
}
