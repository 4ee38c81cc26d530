//! The routes of one VM, and the streams that go by them.
//!
//! There is one lock around both. A stream is entered, with what is decided about it, before anything is opened for it;
//! a new table ends, under the same lock, every stream that it does not keep, also those that are still being opened. So
//! once [`VmRouting::change`] has returned, no stream goes by what was decided before, and none can have been missed.
//!
//! A stream that is ended carries no byte more: what it wraps says so at every read and write ([`RoutedStream`]), and its
//! flow's task is woken.

use std::{
    collections::HashMap,
    future::Future,
    io,
    pin::{Pin, pin},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll},
};

use gateway::{Host, Policy, Target};
use onion::Way;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    sync::Notify,
};
use wire::route::{self, Block, Hop, Verdict, VmRoutes};

/// The routes of one VM, which may change, and its streams. Clones are the same.
#[derive(Clone, Debug)]
pub struct VmRouting(Arc<Mutex<State>>);

#[derive(Debug)]
struct State {
    routes: VmRoutes,
    /// As many as the gateway has flows.
    streams: HashMap<u64, (Target, Arc<Cut>)>,
    last: u64,
}

/// What is decided for a stream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Plan {
    /// Through Tor.
    Go {
        way: Way,
        /// The proxy that leads on to the target.
        via: Option<Hop>,
    },
    /// Not at all.
    Stop(Block),
}

/// A stream that has been entered, until this is dropped.
#[derive(Debug)]
pub(crate) struct Entry {
    routing: VmRouting,
    number: u64,
    cut: Arc<Cut>,
}

/// Whether a stream was ended.
#[derive(Debug, Default)]
pub(crate) struct Cut {
    is_cut: AtomicBool,
    notify: Notify,
}

impl VmRouting {
    /// The routes that a VM begins with.
    #[must_use]
    pub fn new(routes: VmRoutes) -> VmRouting {
        VmRouting(Arc::new(Mutex::new(State { routes, streams: HashMap::new(), last: 0 })))
    }

    /// Puts other routes in force: from now on every stream obeys them, and those that they do not keep are ended.
    /// Returns how many those were.
    pub fn change(&self, new: VmRoutes) -> usize {
        let mut state = self.lock();
        let old = std::mem::replace(&mut state.routes, new);
        let ended: Vec<u64> = state
            .streams
            .iter()
            .filter(|(_, (target, _))| !old.keeps(&state.routes, host(&target.host), target.port))
            .map(|(number, _)| *number)
            .collect();
        for number in &ended {
            if let Some((_, cut)) = state.streams.remove(number) {
                cut.cut();
            }
        }
        ended.len()
    }

    /// Ends every stream, also those that are still being opened: these are opened anew. Returns how many those were.
    pub fn end_all(&self) -> usize {
        let streams = std::mem::take(&mut self.lock().streams);
        streams.values().for_each(|(_, cut)| cut.cut());
        streams.len()
    }

    /// Decides about a stream, and enters it if it may go.
    pub(crate) fn enter(&self, target: &Target) -> Result<(Entry, Way, Option<Hop>), Block> {
        let mut state = self.lock();
        let (way, via) = match plan(state.routes.decide(host(&target.host), target.port).verdict) {
            Plan::Go { way, via } => (way, via),
            Plan::Stop(block) => return Err(block),
        };
        state.last += 1;
        let (number, cut) = (state.last, Arc::<Cut>::default());
        state.streams.insert(number, (target.clone(), Arc::clone(&cut)));
        Ok((Entry { routing: self.clone(), number, cut }, way, via))
    }

    /// How the addresses of a name are to be looked up, if they are.
    pub(crate) fn resolution(&self, name: &str) -> Option<Way> {
        self.lock().routes.resolution(name).map(Way::from)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Policy for VmRouting {
    fn resolves(&self, name: &str) -> bool {
        self.lock().routes.resolves(name)
    }

    fn is_optimistic(&self, target: &Target) -> bool {
        match self.lock().routes.decide(host(&target.host), target.port).verdict {
            Verdict::Tor(options) => options.stream.optimistic,
            Verdict::Onion(options) => options.optimistic,
            Verdict::Block(_) => false,
        }
    }
}

fn plan(verdict: Verdict<'_>) -> Plan {
    match verdict {
        Verdict::Tor(options) => Plan::Go { way: options.into(), via: options.via.clone() },
        Verdict::Onion(options) => Plan::Go { way: options.into(), via: None },
        Verdict::Block(block) => Plan::Stop(block),
    }
}

fn host(host: &Host) -> route::Host<'_> {
    match host {
        Host::Name(name) => route::Host::Name(name),
        Host::Address(address) => route::Host::Address(*address),
    }
}

impl Entry {
    /// Whether, and how to learn when, the stream is ended.
    pub(crate) fn cut(&self) -> &Arc<Cut> {
        &self.cut
    }
}

impl Drop for Entry {
    fn drop(&mut self) {
        self.routing.lock().streams.remove(&self.number);
    }
}

impl Cut {
    fn cut(&self) {
        self.is_cut.store(true, Ordering::SeqCst);
        self.notify.notify_waiters();
    }

    pub(crate) fn is_cut(&self) -> bool {
        self.is_cut.load(Ordering::SeqCst)
    }

    /// Returns when the stream is ended.
    pub(crate) async fn wait(&self) {
        let mut notified = pin!(self.notify.notified());
        // From here on no notification is missed.
        notified.as_mut().enable();
        if !self.is_cut() {
            notified.await;
        }
    }
}

/// A stream that the routes may end.
pub struct RoutedStream<S> {
    inner: S,
    entry: Entry,
}

impl<S> RoutedStream<S> {
    pub(crate) fn new(inner: S, entry: Entry) -> RoutedStream<S> {
        RoutedStream { inner, entry }
    }

    /// Returns when the routes end it.
    pub(crate) fn ended(&self) -> impl Future<Output = ()> + Send + 'static {
        let cut = Arc::clone(self.entry.cut());
        async move { cut.wait().await }
    }

    fn check(&self) -> io::Result<()> {
        if self.entry.cut().is_cut() { Err(io::ErrorKind::ConnectionAborted.into()) } else { Ok(()) }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for RoutedStream<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        self.check()?;
        Pin::new(&mut self.inner).poll_read(cx, buf)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for RoutedStream<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        self.check()?;
        Pin::new(&mut self.inner).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.check()?;
        Pin::new(&mut self.inner).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests;
