//! What happens to a connection.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::{Exit, Hop};

/// What a line says.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Action {
    /// Through Tor.
    Tor(TorOptions),
    /// Through Tor if the target is an onion service; any other is refused as by [`Block::Reject`].
    OnionOnly(StreamOptions),
    /// Not at all.
    Block(Block),
}

/// How a stream goes through Tor.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TorOptions {
    /// What is said of onion services too.
    pub stream: StreamOptions,
    /// By which exits. Means nothing for an onion service.
    pub exit: Exit,
    /// The proxy behind the exit. Means nothing for an onion service: nobody else is to learn its name (RFC 7686).
    pub via: Option<Hop>,
    /// Whether the DNS at the gateway answers with real addresses, see
    /// [`VmRoutes::resolves`](super::VmRoutes::resolves).
    pub resolve: bool,
}

/// How any stream is treated, to an onion service or not.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StreamOptions {
    /// Which streams may share its circuit; `None` as the router does it of its own, see the [module](super).
    pub isolate: Option<Isolation>,
    /// Whether the VM's connection is answered before the far end has accepted.
    pub optimistic: bool,
}

/// Which streams of a VM may share a circuit. Those of two VMs never do, nor do those of two isolations.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Isolation {
    /// All, whatever credentials programs give to the gateway's proxy.
    Vm,
    /// Those to one host with one credential, whatever the port.
    Destination,
    /// Those with one credential; those without one share, too.
    Credential,
}

/// How a connection is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Block {
    /// At once and visibly, by a RST.
    Reject,
    /// By silence.
    Drop,
}

impl Action {
    /// Writes the action as it stands in a line, and user and password of a proxy only if asked to.
    pub(super) fn write(&self, f: &mut impl fmt::Write, secrets: bool) -> fmt::Result {
        match self {
            Action::Block(block) => write!(f, "block {block}"),
            Action::OnionOnly(stream) => write!(f, "onion-only{stream}"),
            Action::Tor(tor) => {
                match &tor.via {
                    None => f.write_str("tor")?,
                    Some(hop) if secrets => write!(f, "via {}", hop.written())?,
                    Some(hop) => write!(f, "via {hop}")?,
                }
                match &tor.exit {
                    Exit::Any => Ok(()),
                    Exit::In(countries) => write!(f, " exit={countries}"),
                    Exit::NotIn(countries) => write!(f, " exit!={countries}"),
                }?;
                let resolve = if tor.resolve { " resolve" } else { "" };
                write!(f, "{}{resolve}", tor.stream)
            }
        }
    }
}

impl fmt::Display for Action {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.write(f, false)
    }
}

impl fmt::Display for StreamOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(isolation) = self.isolate {
            write!(f, " isolate={isolation}")?;
        }
        f.write_str(if self.optimistic { " optimistic" } else { "" })
    }
}

impl fmt::Display for Isolation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Isolation::Vm => "vm",
            Isolation::Destination => "destination",
            Isolation::Credential => "credential",
        })
    }
}

impl fmt::Display for Block {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Block::Reject => "reject",
            Block::Drop => "drop",
        })
    }
}
