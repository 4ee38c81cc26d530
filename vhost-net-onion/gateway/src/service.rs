//! Services by TCP at the gateway's own addresses, for programs that do not do as others: DNS over TCP, and proxies for
//! those that refuse `.onion` names or want their streams kept apart.
//!
//! | port | protocol |
//! | --- | --- |
//! | 53 | DNS ([`dns`]) |
//! | 80 | HTTP, who the VM is ([`identity`]) |
//! | 8118 | HTTP, CONNECT only ([`http`]) |
//! | 9050 | SOCKS5 ([`socks`]) |
//!
//! A connection to one of them is accepted at once, as its far end is the gateway. What a connection is in:
//!
//! | phase | the VM's bytes | the pump |
//! | --- | --- | --- |
//! | talking | go to the protocol, which answers; silence ends it | knows nothing of it |
//! | resolving | wait in the flow | was given `Resolve` and is to answer |
//! | asking | wait in the flow | was given `Ask` and is to answer |
//! | connecting | wait in the flow | was given `Connect` and is to answer |
//! | passing | those that came behind the request go first | has the flow as any other |
//! | closing | are thrown away | knows nothing of it, or said `failed` |
//!
//! [`Service`] is one connection without its TCP: it takes and gives bytes. [`table`] has them all, and moves the bytes.
//! A connection that passes leaves the table as soon as nothing of its own is left to be moved.

mod dns;
mod http;
mod identity;
mod socks;
pub(crate) mod table;
mod target;

use std::time::Instant;

use bytes::{Bytes, BytesMut};

use wire::identity::Question as Ask;

use self::{identity::Request, socks::Socks};
use crate::{Counters, Credential, Failure, Policy, Target, dns::Question, names::Names};

/// Bytes of answers that may wait before no further questions are taken.
const OUTPUT_BYTES_MAX: usize = 16 * 1024;

/// Ports, in the order of the table above.
const DNS_PORT: u16 = crate::dns::PORT;
const IDENTITY_PORT: u16 = 80;
const HTTP_PORT: u16 = 8118;
const SOCKS_PORT: u16 = 9050;

/// Whether the gateway serves this TCP port at its own addresses.
pub(crate) fn is_served(port: u16) -> bool {
    matches!(port, DNS_PORT | IDENTITY_PORT | HTTP_PORT | SOCKS_PORT)
}

/// The parts of the gateway that a protocol needs.
pub(crate) struct Context<'a> {
    pub(crate) now: Instant,
    pub(crate) policy: &'a dyn Policy,
    pub(crate) names: &'a mut Names,
    pub(crate) counters: &'a mut Counters,
}

/// What a protocol wants next.
#[derive(Debug, PartialEq)]
enum Step {
    /// More bytes of the VM.
    Read,
    /// That its answers are taken, before it goes on.
    Flush,
    /// A stream to this target.
    Connect(Target, Option<Credential>),
    /// The addresses of a name, before it goes on.
    Resolve(Question),
    /// The answer to what the VM asks about itself, which is all that it will be told.
    Ask(Ask),
    /// The end, after its answers are taken.
    Close,
}

#[derive(Debug)]
enum Protocol {
    Dns,
    Identity(Request),
    Http,
    Socks(Socks),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Talking,
    Resolving,
    Asking,
    Connecting,
    Passing,
    Closing,
}

/// One connection to a service.
#[derive(Debug)]
struct Service {
    protocol: Protocol,
    phase: Phase,
    /// From the VM, not yet understood; when passing, for the pump.
    input: BytesMut,
    /// For the VM.
    output: BytesMut,
    /// The pump knows of the flow.
    announced: bool,
    /// There may be more to be read than `input`.
    readable: bool,
    /// The VM has sent its last byte.
    finished: bool,
    /// The far end, or the protocol, has: a FIN is to follow `output`.
    finish_wanted: bool,
    /// Bytes that were thrown away.
    thrown_away: usize,
}

impl Service {
    /// A connection to a port that [`is_served`].
    fn new(port: u16) -> Service {
        let protocol = match port {
            DNS_PORT => Protocol::Dns,
            IDENTITY_PORT => Protocol::Identity(Request::default()),
            HTTP_PORT => Protocol::Http,
            _ => Protocol::Socks(Socks::default()),
        };
        Service {
            protocol,
            phase: Phase::Talking,
            input: BytesMut::new(),
            output: BytesMut::new(),
            announced: false,
            readable: false,
            finished: false,
            finish_wanted: false,
            thrown_away: 0,
        }
    }

    /// Lets the protocol go on with what there is in `input`.
    fn talk(&mut self, context: &mut Context<'_>) -> Step {
        let Service { input, output, .. } = self;
        match &mut self.protocol {
            Protocol::Dns => dns::handle(input, output, context),
            Protocol::Identity(request) => request.handle(input, output),
            Protocol::Http => http::handle(input, output, context),
            Protocol::Socks(socks) => socks.handle(input, output, context),
        }
    }

    /// Answers the request once the stream is open or could not be opened.
    fn reply_to_connect(&mut self, result: Result<(), Failure>) {
        match self.protocol {
            Protocol::Dns | Protocol::Identity(_) => {}
            Protocol::Http => http::reply_to_connect(result, &mut self.output),
            Protocol::Socks(_) => socks::reply_to_connect(result, &mut self.output),
        }
    }

    /// What came behind the request, for the pump.
    fn take_rest(&mut self) -> Option<Bytes> {
        (!self.input.is_empty()).then(|| self.input.split().freeze())
    }

    /// Whether the flow needs its service no more.
    fn is_done(&self) -> bool {
        self.phase == Phase::Passing && self.input.is_empty() && self.output.is_empty() && !self.finish_wanted
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;

    /// A table of names and what else protocols need.
    pub(super) struct Around {
        names: Names,
        now: Instant,
        pub(super) counters: Counters,
    }

    impl Around {
        pub(super) fn new() -> Around {
            Around { names: Names::new(10, [1, 2, 3, 4]), now: Instant::now(), counters: Counters::default() }
        }

        pub(super) fn context(&mut self) -> Context<'_> {
            Context {
                now: self.now,
                policy: &crate::policy::Usual,
                names: &mut self.names,
                counters: &mut self.counters,
            }
        }

        pub(super) fn address(&mut self, name: &str) -> Ipv4Addr {
            self.names.address(self.now, name, &mut self.counters).unwrap()
        }
    }
}
