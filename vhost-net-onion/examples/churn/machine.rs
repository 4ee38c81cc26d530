//! A VM in memory with the session that serves it.

use std::{io, net::Ipv4Addr, sync::Arc};

use tokio::{net::UnixStream, sync::mpsc, task::JoinHandle};
use vhost_net_onion::{
    Session, Stats, StreamCarrier,
    gateway::Config,
    memory_vm::{Connection, MemoryVm, MemoryVmError},
};

use crate::far_ends::{ECHO, ECHO_END, ENDLESS, FarEnds, REFUSED, SHORT, SLOW, UNREACHABLE};

/// Names that are resolved, again and again.
const NAMES: u32 = 200;
/// Flows of one manner at once.
const BATCH: usize = 32;
/// Bytes that go to an echo and come back.
const ECHO_BYTES: usize = 20_000;

/// What went wrong.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Failed {
    #[error("in the VM: {0}")]
    Vm(#[from] MemoryVmError),
    #[error("I/O: {0}")]
    Io(#[from] io::Error),
    #[error("a round does not end")]
    Hangs,
    #[error("an echo gave back other bytes")]
    Bytes,
    #[error("a refused connection stands")]
    NotRefused,
    #[error("{after} descriptors are open between two rounds, at first there were {before}")]
    Descriptors { before: usize, after: usize },
}

/// A VM and its session. Dropping it ends both as the router does when a VM is removed: at once.
pub(crate) struct Machine {
    vm: MemoryVm<UnixStream>,
    server: Ipv4Addr,
    links: mpsc::UnboundedSender<UnixStream>,
    session: JoinHandle<()>,
    stats: Arc<Stats>,
    next_name: u32,
}

impl Drop for Machine {
    fn drop(&mut self) {
        self.session.abort();
    }
}

impl Machine {
    /// A VM that has its lease.
    pub(crate) async fn start() -> Result<Machine, Failed> {
        let stats = Arc::new(Stats::default());
        let (links, mut to_serve) = mpsc::unbounded_channel();
        let mut session = Session::new(FarEnds, Config::default(), [7; 32], Arc::clone(&stats));
        let session = tokio::spawn(async move {
            while let Some(link) = to_serve.recv().await {
                // A link that ends between two frames or within one: the next is served all the same.
                let _ = session.serve(&mut StreamCarrier::new(link)).await;
            }
        });
        let (ours, theirs) = UnixStream::pair()?;
        let mut vm = MemoryVm::new(ours);
        // Fails only when the session's task has ended, and then the lease fails.
        let _ = links.send(theirs);
        let server = vm.lease().await?;
        Ok(Machine { vm, server, links, session, stats, next_name: 0 })
    }

    /// Breaks the link and makes another one, as a port that restarts does.
    pub(crate) fn replace_link(&mut self) {
        if let Ok((ours, theirs)) = UnixStream::pair() {
            self.vm.replace_link(ours);
            let _ = self.links.send(theirs);
        }
    }

    /// Takes the lease anew.
    pub(crate) async fn lease_again(&mut self) -> Result<(), Failed> {
        self.server = self.vm.lease().await?;
        Ok(())
    }

    /// Opens flows of every manner and ends them; gives how many.
    pub(crate) async fn use_network(&mut self) -> Result<u64, Failed> {
        let address = self.resolve().await?;
        self.echo(address).await?;
        for _ in 0..2 {
            match self.vm.connect(address, REFUSED).await {
                Err(MemoryVmError::Reset) => {}
                Err(error) => return Err(error.into()),
                Ok(_) => return Err(Failed::NotRefused),
            }
        }
        let ended = self.open(address, SHORT, BATCH).await?;
        for connection in ended {
            while self.vm.recv(connection).is_some() {
                self.vm.turn().await?;
            }
            self.end(connection).await?;
        }
        // Given up while they open: smoltcp does not act on the ICMP message that answers the second.
        let given_up: Vec<_> = [SLOW, UNREACHABLE].map(|port| self.vm.dial(address, port)).into();
        self.vm.turn().await?;
        let cut_off = self.open(address, ENDLESS, BATCH).await?;
        self.break_off(given_up.into_iter().chain(cut_off)).await?;
        Ok(4 + 3 * BATCH as u64)
    }

    /// Opens flows in the middle of whose transfers the VM is going to vanish; gives how many.
    pub(crate) async fn begin_transfers(&mut self) -> Result<u64, Failed> {
        let address = self.resolve().await?;
        let mut all = self.open(address, ENDLESS, BATCH).await?;
        all.extend(self.open(address, ECHO, BATCH).await?);
        for connection in all {
            self.vm.send(connection, &[1; ECHO_BYTES]);
        }
        self.vm.turn().await?;
        Ok(2 * BATCH as u64)
    }

    /// Waits until no flow is open.
    pub(crate) async fn quiet(&mut self) -> Result<(), Failed> {
        while self.stats.snapshot().flows > 0 {
            self.vm.turn().await?;
        }
        Ok(())
    }

    async fn resolve(&mut self) -> Result<Ipv4Addr, Failed> {
        self.next_name = (self.next_name + 1) % NAMES;
        let name = format!("host-{}.test", self.next_name);
        Ok(self.vm.resolve(self.server, &name).await?)
    }

    /// Sends bytes there and back on several flows at once. Half of them are ended in order, by the VM as soon as it has
    /// sent all; the others are broken off while the far end ends them.
    async fn echo(&mut self, address: Ipv4Addr) -> Result<(), Failed> {
        let all = self.open(address, ECHO, BATCH).await?;
        let (in_order, broken_off) = all.split_at(BATCH / 2);
        let pattern = (0..ECHO_BYTES).map(|n| (n * 31 % 251) as u8);
        let data: Vec<u8> = pattern.chain([ECHO_END]).collect();
        let mut progress = vec![(0, 0); all.len()];
        while progress.iter().any(|&(_, came)| came < data.len()) {
            for (&connection, (sent, came)) in all.iter().zip(&mut progress).filter(|(_, (_, came))| *came < data.len())
            {
                *sent += self.vm.send(connection, &data[*sent..]);
                let bytes = self.vm.recv(connection).ok_or(Failed::Bytes)?;
                if data.get(*came..*came + bytes.len()) != Some(&bytes) {
                    return Err(Failed::Bytes);
                }
                *came += bytes.len();
            }
            for (&connection, _) in in_order.iter().zip(&progress).filter(|(_, (sent, _))| *sent == data.len()) {
                self.vm.shutdown(connection);
            }
            self.vm.turn().await?;
        }
        for &connection in in_order {
            self.end(connection).await?;
        }
        self.break_off(broken_off.iter().copied()).await
    }

    async fn open(&mut self, address: Ipv4Addr, port: u16, count: usize) -> Result<Vec<Connection>, Failed> {
        let all: Vec<_> = (0..count).map(|_| self.vm.dial(address, port)).collect();
        for &connection in &all {
            while !self.vm.is_open(connection) && !self.vm.is_closed(connection) {
                self.vm.turn().await?;
            }
        }
        Ok(all)
    }

    async fn end(&mut self, connection: Connection) -> Result<(), Failed> {
        self.vm.shutdown(connection);
        while !self.vm.is_closed(connection) {
            self.vm.turn().await?;
        }
        self.vm.forget(connection);
        Ok(())
    }

    async fn break_off(&mut self, all: impl Iterator<Item = Connection>) -> Result<(), Failed> {
        let all: Vec<_> = all.collect();
        all.iter().for_each(|&connection| self.vm.abort(connection));
        self.vm.turn().await?;
        all.into_iter().for_each(|connection| self.vm.forget(connection));
        Ok(())
    }
}
