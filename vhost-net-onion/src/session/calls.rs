//! The session's part in streams that come to the VM.

use std::{
    collections::VecDeque,
    sync::Arc,
    task::{Context, Poll},
    time::Instant,
};

use gateway::{Failure, FlowId};

use super::{Flow, Session};
use crate::{
    egress::Egress,
    flow,
    inbound::{Call, Inbound},
};

impl<E: Egress> Session<E> {
    /// The same session, to which `inbound` brings streams.
    #[must_use]
    pub fn with_inbound(mut self, inbound: Arc<Inbound>) -> Session<E> {
        self.inbound = inbound;
        self
    }

    /// Takes one stream for the VM and asks the VM; whether there was one.
    pub(super) fn poll_calls(&mut self, cx: &mut Context<'_>) -> bool {
        let Poll::Ready(Call { port, incoming }) = self.inbound.poll_call(cx) else { return false };
        match self.gateway.open(Instant::now(), port) {
            Some(flow) => drop(self.calls.insert(flow, incoming)),
            None => incoming.refuse(Failure::Refused),
        }
        true
    }

    /// The VM has accepted: so is the stream.
    pub(super) fn call_accepted(&mut self, id: FlowId) {
        let Some(incoming) = self.calls.remove(&id) else { return };
        let handle = flow::start_accepted(id, incoming, self.report.clone());
        self.flows.insert(id, Flow { handle, to_vm: VecDeque::new(), ended: false, after_end_bytes: 0 });
    }

    /// The VM has not. Nothing to do if it was accepted before.
    pub(super) fn call_declined(&mut self, id: FlowId, why: Failure) {
        if let Some(incoming) = self.calls.remove(&id) {
            incoming.refuse(why);
        }
    }
}
