//! Why a stream could not be opened, as a VM can be told.

use arti_client::ErrorKind;

/// Why a stream could not be opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ConnectError {
    /// The far end said no: a TCP connection is answered with RST.
    #[error("the far end refused the connection")]
    Refused,
    /// There is no way there, or nothing of that name.
    #[error("the far end cannot be reached")]
    Unreachable,
    /// Nobody answered in time.
    #[error("the far end did not answer in time")]
    TimedOut,
}

/// Why a name has no addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ResolveError {
    /// There is no such name.
    #[error("there is no such name")]
    NoSuchName,
    /// It could not be found out.
    #[error("the name could not be resolved")]
    Failed,
}

/// What an attempt to open a stream came to, when it failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Attempt {
    /// This is the answer.
    Final(ConnectError),
    /// This says more about the circuit's exit than about the far end: try another circuit, and take this for the answer
    /// when the attempts are used up.
    Elsewhere(ConnectError),
    /// This says that something is wrong with the circuit: besides, no stream after this one should be put on it.
    Broken(ConnectError),
}

/// Judges arti's error by its kind (tor-spec, "Closing streams", has the reasons that exits give).
pub(crate) fn judge(kind: ErrorKind) -> Attempt {
    use Attempt::{Broken, Elsewhere, Final};
    use ConnectError::{Refused, TimedOut, Unreachable};
    match kind {
        ErrorKind::RemoteConnectionRefused => Final(Refused),
        // An onion service that has no such port, or whose server refuses, ends the stream and says no more than that;
        // and tor 0.4.9 as an exit, whose target refuses, says MISC and not CONNECTREFUSED.
        ErrorKind::RemoteStreamClosed | ErrorKind::RemoteStreamReset | ErrorKind::RemoteStreamError => Final(Refused),
        ErrorKind::RemoteNetworkFailed
        | ErrorKind::RemoteHostNotFound
        | ErrorKind::RemoteHostResolutionFailed
        | ErrorKind::OnionServiceNotFound
        | ErrorKind::OnionServiceNotRunning
        | ErrorKind::OnionServiceMissingClientAuth
        | ErrorKind::OnionServiceWrongClientAuth
        | ErrorKind::OnionServiceAddressInvalid
        | ErrorKind::NoPath
        | ErrorKind::NoExit
        | ErrorKind::InvalidStreamTarget
        | ErrorKind::ForbiddenStreamTarget => Final(Unreachable),
        // Said by the exit.
        ErrorKind::ExitTimeout => Final(TimedOut),
        ErrorKind::ExitPolicyRejected | ErrorKind::RelayTooBusy => Elsewhere(Unreachable),
        // Neither the far end nor the exit has said anything.
        ErrorKind::RemoteNetworkTimeout | ErrorKind::TorNetworkTimeout => Broken(TimedOut),
        _ => Broken(Unreachable),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_far_end_says_is_final_and_what_a_circuit_says_is_not() {
        use ConnectError::{Refused, TimedOut, Unreachable};
        assert_eq!(judge(ErrorKind::RemoteConnectionRefused), Attempt::Final(Refused));
        assert_eq!(judge(ErrorKind::RemoteStreamError), Attempt::Final(Refused));
        assert_eq!(judge(ErrorKind::RemoteHostResolutionFailed), Attempt::Final(Unreachable));
        assert_eq!(judge(ErrorKind::ExitTimeout), Attempt::Final(TimedOut));
        assert_eq!(judge(ErrorKind::CircuitCollapse), Attempt::Broken(Unreachable));
        assert_eq!(judge(ErrorKind::RemoteNetworkTimeout), Attempt::Broken(TimedOut));
        assert_eq!(judge(ErrorKind::ExitPolicyRejected), Attempt::Elsewhere(Unreachable));
    }
}
