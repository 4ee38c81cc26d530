//! One Tor stream, as bytes.

use std::{
    collections::HashMap,
    io,
    net::{IpAddr, Ipv4Addr},
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll},
};

use arti_client::DataStream;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tor_linkspec::{HasAddrs, HasRelayIds};
use tor_proto::{Error as ProtoError, client::stream::ClientStreamCtrl};

use crate::{circuits::Lease, network::hex, service::Held};

/// A stream through the Tor network. Dropping it ends it, both ways: Tor has no half-close (tor-spec, "Closing
/// streams": an END cell ends the whole stream), so shutting down the write side only flushes.
///
/// Written bytes wait for a full cell until they are flushed.
pub struct OnionStream {
    inner: DataStream,
    circuit: Option<CircuitInfo>,
    /// Held while the stream lives, so that whoever assigns streams to circuits knows of it.
    _held: (Option<Lease>, Option<InUse>, Option<Held>),
}

/// Which circuit carries a stream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CircuitInfo {
    /// Unique for as long as the process runs.
    pub id: String,
    /// RSA identities in order, upper-case hexadecimal.
    pub relays: Vec<String>,
    /// Whether it leads to an onion service; its last relay is the rendezvous point then.
    pub onion: bool,
    /// The IPv4 address of the exit; none where there is no exit.
    pub exit: Option<Ipv4Addr>,
}

impl OnionStream {
    /// The stream `inner` on a circuit, which it and its `lease` keep in `circuits` as long as it lives.
    pub(crate) fn new(inner: DataStream, onion: bool, lease: Option<Lease>, circuits: &Circuits) -> OnionStream {
        let circuit = CircuitInfo::of(&inner, onion);
        let in_use = circuit.as_ref().map(|circuit| circuits.in_use(&circuit.id));
        OnionStream { inner, circuit, _held: (lease, in_use, None) }
    }

    /// A stream that came to an onion service.
    pub(crate) fn incoming(inner: DataStream, held: Held) -> OnionStream {
        OnionStream { inner, circuit: None, _held: (None, None, Some(held)) }
    }

    /// The circuit of this stream; `None` when it was gone as soon as the stream was open.
    #[must_use]
    pub fn circuit(&self) -> Option<&CircuitInfo> {
        self.circuit.as_ref()
    }
}

impl CircuitInfo {
    fn of(stream: &DataStream, onion: bool) -> Option<CircuitInfo> {
        let tunnel = stream.client_stream_ctrl()?.tunnel()?;
        let path = tunnel.all_paths().into_iter().next()?;
        let relays = path
            .iter()
            .filter_map(|hop| hop.as_chan_target().and_then(|relay| relay.rsa_identity().map(hex)))
            .collect();
        let exit = path.iter().last().filter(|_| !onion).and_then(|hop| {
            hop.as_chan_target()?.addrs().find_map(|address| match address.ip() {
                IpAddr::V4(address) => Some(address),
                IpAddr::V6(_) => None,
            })
        });
        Some(CircuitInfo { id: tunnel.unique_id().to_string(), relays, onion, exit })
    }
}

/// The circuits that carry streams of one VM at this moment.
#[derive(Clone, Default)]
pub(crate) struct Circuits(Arc<Mutex<HashMap<String, usize>>>);

/// One stream on a circuit, counted while this lives.
struct InUse {
    circuits: Circuits,
    id: String,
}

impl Circuits {
    /// How many there are.
    pub(crate) fn count(&self) -> usize {
        self.lock().len()
    }

    fn in_use(&self, id: &str) -> InUse {
        *self.lock().entry(id.to_owned()).or_default() += 1;
        InUse { circuits: self.clone(), id: id.to_owned() }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<String, usize>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for InUse {
    fn drop(&mut self) {
        let mut streams = self.circuits.lock();
        if let Some(count) = streams.get_mut(&self.id) {
            *count -= 1;
            if *count == 0 {
                streams.remove(&self.id);
            }
        }
    }
}

/// Whether the far end closed the stream without a fault. Exits say DONE; arti, also as an onion service, always says
/// MISC, whatever happened.
fn is_end_of_stream(error: &io::Error) -> bool {
    use tor_cell::relaycell::msg::EndReason;
    let source = error.get_ref().and_then(|source| source.downcast_ref::<ProtoError>());
    matches!(source, Some(ProtoError::EndReceived(EndReason::DONE | EndReason::MISC)))
}

impl AsyncRead for OnionStream {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match AsyncRead::poll_read(Pin::new(&mut self.inner), cx, buf) {
            Poll::Ready(Err(error)) if is_end_of_stream(&error) => Poll::Ready(Ok(())),
            other => other,
        }
    }
}

impl AsyncWrite for OnionStream {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        AsyncWrite::poll_write(Pin::new(&mut self.inner), cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        AsyncWrite::poll_flush(Pin::new(&mut self.inner), cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        AsyncWrite::poll_flush(Pin::new(&mut self.inner), cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_circuit_counts_while_it_carries_a_stream() {
        let circuits = Circuits::default();
        let streams = ["a", "b", "a"].map(|id| circuits.in_use(id));
        assert_eq!(circuits.count(), 2);
        let [first, _second, third] = streams;
        drop(first);
        assert_eq!(circuits.count(), 2);
        drop(third);
        assert_eq!(circuits.count(), 1);
    }
}
