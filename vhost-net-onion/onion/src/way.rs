//! How a stream is to go through Tor.

use wire::route::{Exit, Isolation, StreamOptions, TorOptions};

/// How a stream is to go through Tor.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Way {
    /// By which exits. Means nothing for an onion service.
    pub exit: Exit,
    /// Which streams may share its circuit; `None` as it is usual, see `circuits`.
    pub isolate: Option<Isolation>,
    /// Whether it counts as open as soon as it is asked for: bytes can be sent before the far end has accepted. Means
    /// nothing for an onion service.
    pub optimistic: bool,
}

impl From<StreamOptions> for Way {
    fn from(StreamOptions { isolate, optimistic }: StreamOptions) -> Way {
        Way { exit: Exit::Any, isolate, optimistic }
    }
}

impl From<&TorOptions> for Way {
    fn from(options: &TorOptions) -> Way {
        Way { exit: options.exit.clone(), ..Way::from(options.stream) }
    }
}
