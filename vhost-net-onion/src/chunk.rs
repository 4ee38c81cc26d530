//! Reading from streams, in buffers that are lent.
//!
//! A flow that waits for bytes holds no buffer: it borrows one for the read, and when nothing was there it goes back at
//! once. Whatever is there is read at once: a Tor stream gives no more than a cell at a time, and each chunk costs the
//! session a turn and the VM a segment. A chunk that fills much of the buffer is handed on as it is; a short one is
//! copied, so that it does not keep a large buffer alive while it waits for the VM. Buffers come back when the last
//! reader of their bytes is done.

use std::{
    io,
    pin::Pin,
    sync::{Arc, Mutex, PoisonError},
    task::{Context, Poll},
};

use bytes::Bytes;
use tokio::io::{AsyncRead, ReadBuf};

/// Bytes of a buffer, and so of the largest chunk: as many as the longest frame carries.
pub(crate) const CHUNK_BYTES: usize = 64 * 1024;

/// A read of fewer bytes is copied.
const COPIED_BELOW: usize = CHUNK_BYTES / 4;

/// Buffers that are kept for the next reads.
const SPARE_MAX: usize = 16;

/// The spare buffers of one session.
#[derive(Clone, Default)]
pub(crate) struct Chunks(Arc<Mutex<Vec<Box<[u8]>>>>);

impl Chunks {
    fn borrow(&self) -> Chunk {
        let spare = self.0.lock().unwrap_or_else(PoisonError::into_inner).pop();
        let bytes = spare.unwrap_or_else(|| vec![0; CHUNK_BYTES].into_boxed_slice());
        Chunk { bytes, filled: 0, home: self.clone() }
    }
}

/// A stream that is read in chunks.
pub(crate) struct ChunkReader<S> {
    stream: S,
    chunks: Chunks,
    /// How the stream ended, if that was found behind bytes that had to be handed over first.
    end: Option<io::Result<()>>,
}

impl<S: AsyncRead + Unpin> ChunkReader<S> {
    pub(crate) fn new(stream: S, chunks: Chunks) -> ChunkReader<S> {
        ChunkReader { stream, chunks, end: None }
    }

    /// Reads what is there, up to [`CHUNK_BYTES`]; no bytes mean the end of the stream, behind which nothing is read.
    pub(crate) fn poll_read(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<Bytes>> {
        if let Some(end) = self.end.take() {
            return Poll::Ready(end.map(|()| Bytes::new()));
        }
        let mut chunk = self.chunks.borrow();
        let mut buffer = ReadBuf::new(&mut chunk.bytes);
        while buffer.remaining() > 0 {
            let before = buffer.filled().len();
            match Pin::new(&mut self.stream).poll_read(cx, &mut buffer) {
                Poll::Ready(Ok(())) if buffer.filled().len() > before => continue,
                end if before == 0 => return end.map_ok(|()| Bytes::new()),
                Poll::Ready(end) => self.end = Some(end),
                Poll::Pending => {}
            }
            break;
        }
        let count = buffer.filled().len();
        Poll::Ready(Ok(if count < COPIED_BELOW {
            Bytes::copy_from_slice(&chunk.bytes[..count])
        } else {
            chunk.filled = count;
            Bytes::from_owner(chunk)
        }))
    }
}

/// A borrowed buffer.
struct Chunk {
    bytes: Box<[u8]>,
    filled: usize,
    home: Chunks,
}

impl AsRef<[u8]> for Chunk {
    fn as_ref(&self) -> &[u8] {
        &self.bytes[..self.filled]
    }
}

impl Drop for Chunk {
    fn drop(&mut self) {
        let mut spare = self.home.0.lock().unwrap_or_else(PoisonError::into_inner);
        if spare.len() < SPARE_MAX {
            spare.push(std::mem::take(&mut self.bytes));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{collections::VecDeque, future::poll_fn};

    async fn read<S: AsyncRead + Unpin>(reader: &mut ChunkReader<S>) -> io::Result<Bytes> {
        poll_fn(|cx| reader.poll_read(cx)).await
    }

    async fn read_from(chunks: &Chunks, bytes: &[u8]) -> Bytes {
        read(&mut ChunkReader::new(bytes, chunks.clone())).await.unwrap()
    }

    #[tokio::test]
    async fn buffers_come_back_and_short_reads_keep_none() {
        let chunks = Chunks::default();
        let spare = || chunks.0.lock().unwrap().len();
        let short = read_from(&chunks, &[1; 100]).await;
        assert_eq!((short.len(), spare()), (100, 1));
        let long = read_from(&chunks, &[2; 2 * CHUNK_BYTES]).await;
        assert_eq!((long.len(), spare()), (CHUNK_BYTES, 0));
        let half = long.slice(100..);
        drop(long);
        assert_eq!((spare(), half[0]), (0, 2));
        drop(half);
        assert_eq!(spare(), 1);
        assert!(read_from(&chunks, &[]).await.is_empty());
    }

    #[tokio::test]
    async fn a_flow_that_waits_holds_no_buffer() {
        let chunks = Chunks::default();
        let (here, _there) = tokio::io::duplex(10);
        let mut reader = ChunkReader::new(here, chunks.clone());
        let pending = poll_fn(|cx| Poll::Ready(reader.poll_read(cx).is_pending()));
        assert!(pending.await);
        assert_eq!(chunks.0.lock().unwrap().len(), 1);
    }

    /// What each read brings.
    struct Reads(VecDeque<Poll<Result<Vec<u8>, io::ErrorKind>>>);

    impl AsyncRead for Reads {
        fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
            cx.waker().wake_by_ref();
            let next = self.0.pop_front().unwrap_or_else(|| panic!("read beyond its end"));
            next.map(|read| read.map(|bytes| buf.put_slice(&bytes)).map_err(Into::into))
        }
    }

    #[tokio::test]
    async fn small_reads_are_gathered_and_the_end_comes_behind_them() {
        let cell = |number| Poll::Ready(Ok(vec![number; 498]));
        for end in [Ok(vec![]), Err(io::ErrorKind::ConnectionReset)] {
            let fails = end.is_err();
            let reads = [cell(1), cell(2), Poll::Pending, Poll::Ready(Ok(vec![3; 100])), Poll::Ready(end)];
            let mut reader = ChunkReader::new(Reads(reads.into()), Chunks::default());
            assert_eq!(read(&mut reader).await.unwrap(), [[1; 498], [2; 498]].concat());
            assert_eq!(&read(&mut reader).await.unwrap()[..], [3; 100]);
            let end = read(&mut reader).await;
            assert_eq!(end.is_err(), fails);
            assert!(end.unwrap_or_default().is_empty());
        }
    }
}
