//! What somebody else decides of names and targets, while the gateway handles a frame: so it must answer at once.

use std::fmt::Debug;

use crate::Target;

/// Decides how names and flows are treated. What is asked about may be decided otherwise the next time.
pub trait Policy: Debug + Send + Sync {
    /// Whether a DNS question for the addresses of a name, as in [`crate::Host::Name`] and no onion service's, is the
    /// pump's to answer ([`crate::Gateway::poll_question`]): then A and AAAA are real, and a name that does not exist is
    /// told at once. Else an address is made up. For programs that must see addresses: every name costs a round trip
    /// through Tor, and the exit that resolves it may not be the one that connects.
    fn resolves(&self, _name: &str) -> bool {
        false
    }

    /// Whether a SYN is answered at once, before the far end was asked, and data taken: for those who prefer latency to
    /// truth. A connect in the VM then always succeeds, and is reset when the far end does not accept.
    fn is_optimistic(&self, _target: &Target) -> bool {
        false
    }
}

/// Names get made-up addresses, and a connect that succeeds has succeeded.
#[derive(Debug)]
pub(crate) struct Usual;

impl Policy for Usual {}
