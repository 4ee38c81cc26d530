//! The task of one flow: it opens the stream, then moves bytes between it and the session until either side is done.
//!
//! Tor has no half-close: ending a stream ends it both ways. So when the VM has sent its FIN the stream stays open for
//! the answer, and is ended once the far end has been silent for [`HALF_CLOSE_IDLE`]. When the far end has ended, the
//! stream is over.

use std::{
    future::poll_fn,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use gateway::{Failure, FlowId};
use tokio::{
    io::{AsyncRead, AsyncWrite, AsyncWriteExt, ReadHalf, WriteHalf},
    sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot},
    task::AbortHandle,
};

use crate::{
    chunk::ChunkReader,
    egress::{Egress, Request},
    inbound::Incoming,
};

/// How many chunks a flow may have on their way, each way: with a round trip of microseconds to the VM, enough to
/// keep both sides busy.
const CHUNKS_MAX: usize = 4;

/// How long the far end may be silent after the VM's FIN before the stream is ended.
const HALF_CLOSE_IDLE: Duration = Duration::from_secs(10);

/// How long a stream may take for what the VM sent before it was gone.
const FLUSH_TIMEOUT: Duration = Duration::from_secs(60);

/// What a flow's task tells the session.
pub(crate) enum Report {
    /// The far end has accepted.
    Connected,
    /// It has not, and will not.
    Failed(Failure),
    /// Bytes for the VM, with the credit they were read on: to be dropped once the gateway has taken them.
    Data(Bytes, OwnedSemaphorePermit),
    /// A chunk from the VM has been sent: there is room for another.
    Room,
    /// The far end is done. The last report.
    Finished,
    /// The stream broke. The last report.
    Broken,
}

/// Where a flow's task sends its reports. Unbounded, because the reports are bounded by each flow's credit and by the
/// gateway's bound on flows.
pub(crate) type Reports = mpsc::UnboundedSender<(FlowId, Report)>;

/// The session's end of a flow's task. Dropping it ends the task and with it the stream: at once when the VM broke the
/// connection off, after what it sent has been flushed when it had sent its FIN.
pub(crate) struct FlowHandle {
    /// Takes the VM's bytes; `None` once the VM is done.
    pub(crate) from_vm: Option<mpsc::Sender<Bytes>>,
    task: AbortHandle,
    /// Dropped with the handle, which is how the task, which has the other end, learns of it.
    _held: oneshot::Receiver<()>,
}

impl Drop for FlowHandle {
    fn drop(&mut self) {
        if self.from_vm.is_some() {
            self.task.abort();
        }
    }
}

/// Starts the task of the flow `id`.
pub(crate) fn start<E: Egress>(id: FlowId, request: Request, egress: Arc<E>, reports: Reports) -> FlowHandle {
    let (from_vm, chunks) = mpsc::channel(CHUNKS_MAX);
    let (gone, held) = oneshot::channel();
    let task = tokio::spawn(async move {
        let last = match egress.connect(request).await {
            Err(failure) => Report::Failed(failure),
            Ok(stream) => {
                // The session may be gone, and with it whoever would care.
                let _ = reports.send((id, Report::Connected));
                let ended = egress.ended(&stream);
                tokio::select! {
                    biased;
                    () = ended => Report::Broken,
                    last = pump(id, stream, chunks, gone, &reports, HALF_CLOSE_IDLE) => last,
                }
            }
        };
        let _ = reports.send((id, last));
    });
    FlowHandle { from_vm: Some(from_vm), task: task.abort_handle(), _held: held }
}

/// Starts the task of the flow `id`, whose stream came to the VM and was accepted by it.
pub(crate) fn start_accepted(id: FlowId, incoming: Box<dyn Incoming>, reports: Reports) -> FlowHandle {
    let (from_vm, chunks) = mpsc::channel(CHUNKS_MAX);
    let (gone, held) = oneshot::channel();
    let task = tokio::spawn(async move {
        let last = match incoming.accept().await {
            Err(_) => Report::Broken,
            // A server that is done has answered: the client waits for that end.
            Ok(stream) => pump(id, stream, chunks, gone, &reports, Duration::ZERO).await,
        };
        let _ = reports.send((id, last));
    });
    FlowHandle { from_vm: Some(from_vm), task: task.abort_handle(), _held: held }
}

/// Moves bytes both ways; returns the last report. The far end may be silent for so long after the VM's FIN.
async fn pump<S>(
    id: FlowId,
    stream: S,
    chunks: mpsc::Receiver<Bytes>,
    mut vm: oneshot::Sender<()>,
    reports: &Reports,
    half_close_idle: Duration,
) -> Report
where
    S: AsyncRead + AsyncWrite + Send + Unpin,
{
    let (read, write) = tokio::io::split(stream);
    let credit = Arc::new(Semaphore::new(CHUNKS_MAX));
    let chunks_read = AtomicU64::new(0);
    let mut to_vm = std::pin::pin!(to_vm(id, ChunkReader::new(read), &credit, &chunks_read, reports));
    tokio::select! {
        last = &mut to_vm => return last,
        sent = to_far_end(id, write, chunks, reports) => if sent.is_err() {
            return Report::Broken;
        },
        () = async { vm.closed().await; tokio::time::sleep(FLUSH_TIMEOUT).await } => return Report::Broken,
    }
    if half_close_idle.is_zero() {
        return Report::Finished;
    }
    loop {
        let before = chunks_read.load(Ordering::Relaxed);
        tokio::select! {
            last = &mut to_vm => return last,
            () = vm.closed() => return Report::Finished,
            () = tokio::time::sleep(half_close_idle) => {}
        }
        // A VM that takes its time to read has used up the credit: that silence is not the far end's.
        let silent = chunks_read.load(Ordering::Relaxed) == before && credit.available_permits() > 0;
        if silent {
            return Report::Finished;
        }
    }
}

/// Sends the VM's chunks until it is done.
async fn to_far_end<S: AsyncWrite>(
    id: FlowId,
    mut write: WriteHalf<S>,
    mut chunks: mpsc::Receiver<Bytes>,
    reports: &Reports,
) -> std::io::Result<()> {
    while let Some(chunk) = chunks.recv().await {
        write.write_all(&chunk).await?;
        let _ = reports.send((id, Report::Room));
        if chunks.is_empty() {
            write.flush().await?;
        }
    }
    write.flush().await
}

/// Reads on credit until the far end is done.
async fn to_vm<S: AsyncRead>(
    id: FlowId,
    mut reader: ChunkReader<ReadHalf<S>>,
    credit: &Arc<Semaphore>,
    chunks_read: &AtomicU64,
    reports: &Reports,
) -> Report {
    loop {
        let permit = Arc::clone(credit).acquire_owned().await.expect("the semaphore is never closed");
        match poll_fn(|cx| reader.poll_read(cx)).await {
            Ok(chunk) if chunk.is_empty() => return Report::Finished,
            Ok(chunk) => drop(reports.send((id, Report::Data(chunk, permit)))),
            Err(_) => return Report::Broken,
        }
        chunks_read.fetch_add(1, Ordering::Relaxed);
    }
}
