//! The control plane: front-ends come, set up their device, and go. What carries the frames stands on it.
//!
//! A front-end may change or take away anything with any message, and a ring may only be changed while no chain is
//! taken from it. So the carrier asks for each [`Step`], puts its rings at rest, and then has the step made.

use std::{io, os::unix::net::UnixListener};

use wire::link::Abilities;

use crate::{
    counters::Counters,
    device::{Active, Device},
    listener::Listener,
    options::{Options, PortError},
    poller::{Happened, Poller, Token},
    ring::RingError,
    session::{Incoming, Next, Session, SessionError},
};

/// Something that changes the device.
pub(crate) enum Step {
    /// The front-end asks for something.
    Request(Incoming),
    /// The front-end is gone, or is to go because of an error.
    End(Option<SessionError>),
}

/// Front-ends, one after the other, and the device of the present one.
pub(crate) struct ControlPlane {
    poller: Poller,
    options: Options,
    listener: Listener,
    session: Option<Session>,
    pub(crate) counters: Counters,
}

impl ControlPlane {
    /// Serves those that connect to `vhost_user`.
    pub(crate) fn new(poller: &Poller, vhost_user: UnixListener, options: Options) -> Result<ControlPlane, PortError> {
        let listener = Listener::new(poller, vhost_user, Token::FrontEndListener)
            .map_err(|source| PortError::Listen { what: "the vhost-user socket", source })?;
        Ok(ControlPlane { poller: poller.clone(), options, listener, session: None, counters: Counters::default() })
    }

    /// Accepts a front-end when one has come and there is none. Call it after the steps, so that nothing that happened
    /// is taken for something that happened to the new one.
    pub(crate) fn accept(&mut self, happened: &Happened) -> io::Result<()> {
        if happened.on(Token::FrontEndListener).is_some()
            && self.session.is_none()
            && let Some(stream) = self.listener.accept(Token::FrontEnd)
        {
            tracing::info!("front-end connected");
            self.counters.front_ends += 1;
            self.session = Some(Session::new(stream, Device::new(self.poller.clone(), self.options.mtu)));
        }
        // While there is a front-end, the next one waits in the backlog.
        self.listener.listen(self.session.is_none())
    }

    /// What is next to be done for the front-end. `None` when there is nothing, for the time being.
    pub(crate) fn next(&mut self) -> Option<Step> {
        match self.session.as_mut()?.next() {
            Ok(Next::Request(incoming)) => Some(Step::Request(incoming)),
            Ok(Next::Pending) => None,
            Ok(Next::End) => Some(Step::End(None)),
            Err(e) => Some(Step::End(Some(e))),
        }
    }

    /// Makes a step. No chain may be taken and not completed.
    pub(crate) fn apply(&mut self, step: Step) {
        let served = match step {
            Step::Request(incoming) => self.serve(incoming),
            Step::End(None) => {
                tracing::info!("front-end disconnected");
                self.session = None;
                Ok(())
            }
            Step::End(Some(e)) => Err(e),
        };
        if let Err(e) = served {
            tracing::warn!(error = &e as &dyn std::error::Error, "front-end disconnected by its own fault");
            self.counters.front_end_errors += 1;
            self.session = None;
        }
    }

    /// The vring, if it is to be worked on, and the counters beside it.
    pub(crate) fn active(&mut self, index: usize) -> (Option<Active<'_>>, &mut Counters) {
        (self.session.as_mut().and_then(|session| session.device.active(index)), &mut self.counters)
    }

    /// What the driver can receive; nothing special as long as there is none.
    pub(crate) fn abilities(&self) -> Abilities {
        self.session.as_ref().map(|session| session.device.abilities()).unwrap_or_default()
    }

    /// Stops a vring that its driver has broken, until it is set up again.
    pub(crate) fn stop_broken(&mut self, index: usize, e: &RingError) {
        if let Some(session) = &mut self.session {
            session.device.stop_broken(index);
        }
        self.ring_broken(index, e);
    }

    fn serve(&mut self, incoming: Incoming) -> Result<(), SessionError> {
        let Some(session) = &mut self.session else { return Ok(()) };
        session.serve(incoming)?;
        for (index, e) in session.device.start_vrings() {
            self.ring_broken(index, &e);
        }
        Ok(())
    }

    fn ring_broken(&mut self, index: usize, e: &RingError) {
        self.counters.broken_rings += 1;
        tracing::warn!(vring = index, error = e as &dyn std::error::Error, "vring stopped until it is set up again");
    }
}
