//! One flow: what is known of it, and in which state it is.
//!
//! | state | what the VM's segments do | what the pump may do |
//! | --- | --- | --- |
//! | `Opening` | the SYN again: nothing; RST or other: ends it | `connected`, `failed`, `reset` |
//! | `Calling` (the VM is asked) | [`super::inbound`] says what | `reset` |
//! | `Open` | the business of its [`Open`] | `send`, `recv`, `finish`, `reset`; `connected`, `failed` if optimistic |
//! | `Silent` (the far end did not answer) | the SYN again: nothing, until it is forgotten | nothing, it is closed |
//! | `TimeWait` (RFC 9293, section 3.6.1) | a FIN again: acknowledged again; a new SYN: a new flow | nothing, it is closed |

use std::{
    hash::{Hash, Hasher},
    net::IpAddr,
    time::{Duration, Instant},
};

use super::{
    inbound::{Call, is_inbound},
    number::Seq,
    open::Open,
    segment::Syn,
};
use crate::FlowId;

/// How long a half-closed flow may be idle. RFC 5382 asks NATs for 4 minutes in this state.
pub(super) const HALF_CLOSED_IDLE: Duration = Duration::from_secs(5 * 60);

/// How long the VM may leave data unacknowledged: RFC 9293, section 3.8.3, wants at least 100 s.
pub(super) const UNANSWERED: Duration = Duration::from_secs(5 * 60);

/// How long the VM may leave the SYN-ACK unacknowledged (RFC 9293, section 3.8.3, MUST-23: at least 3 minutes).
pub(super) const HANDSHAKE: Duration = Duration::from_secs(3 * 60);

/// How long a connection to one of the gateway's own services may be silent while the service waits for the VM (for DNS,
/// RFC 7766, section 6.2.3, leaves it to the server).
pub(super) const SERVICE_IDLE: Duration = Duration::from_secs(60);

/// How long a far end that did not answer is not asked again.
pub(super) const SILENT: Duration = Duration::from_secs(30);

/// How long a FIN is acknowledged again after both ends are done: twice the time that a segment can linger. RFC 9293 has
/// 2 minutes in mind for a network; on this link 5 seconds are plenty.
pub(super) const TIME_WAIT: Duration = Duration::from_secs(10);

/// What tells the VM's connections apart. Both addresses are of the same version.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Key {
    pub(super) vm: IpAddr,
    pub(super) vm_port: u16,
    pub(super) remote: IpAddr,
    pub(super) remote_port: u16,
}

impl Hash for Key {
    /// In whole words, which is what [`super::keyed`] is good at.
    fn hash<H: Hasher>(&self, state: &mut H) {
        let mut address = |address: IpAddr| match address {
            IpAddr::V4(address) => state.write_u64(address.to_bits().into()),
            IpAddr::V6(address) => {
                let bits = address.to_bits();
                state.write_u64(bits as u64);
                state.write_u64((bits >> 64) as u64);
            }
        };
        address(self.vm);
        address(self.remote);
        state.write_u64(u64::from(self.vm_port) << 16 | u64::from(self.remote_port));
    }
}

#[derive(Debug)]
pub(super) struct Flow {
    pub(super) id: FlowId,
    pub(super) key: Key,
    pub(super) state: State,
    /// When it was last used by either side.
    pub(super) used: Instant,
    /// The pump took its `Connect` and did not yet get its `Closed`.
    pub(super) announced: bool,
    /// Waits in the queue of those that may have something to send.
    pub(super) ready: bool,
}

#[derive(Debug)]
pub(super) enum State {
    Opening(Syn),
    Calling(Call),
    Open(Box<Open>),
    Silent { until: Instant },
    TimeWait { last: Last, until: Instant },
}

/// The numbers of the last segment of each side, for acknowledging a FIN again.
#[derive(Clone, Copy, Debug)]
pub(super) struct Last {
    pub(super) seq: Seq,
    pub(super) ack: Seq,
}

impl Flow {
    /// When the flow is to be looked at again if nothing happens.
    pub(super) fn deadline(&self) -> Option<Instant> {
        match &self.state {
            State::Opening(_) => None,
            State::Calling(call) => Some(call.due),
            State::Open(open) => {
                let end = open.end(self.used);
                open.sender.timer().into_iter().chain(end).min()
            }
            State::Silent { until } | State::TimeWait { until, .. } => Some(*until),
        }
    }

    /// Whether the far end is yet to answer.
    pub(super) fn is_half_open(&self) -> bool {
        match &self.state {
            State::Opening(_) => true,
            State::Open(open) => !open.far_end_accepted,
            State::Calling(_) | State::Silent { .. } | State::TimeWait { .. } => false,
        }
    }

    /// Whether it counts as a connection to the VM: being asked for, or open.
    pub(super) fn is_inbound(&self) -> bool {
        is_inbound(&self.key) && matches!(self.state, State::Calling(_) | State::Open(_))
    }
}
