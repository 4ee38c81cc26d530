//! Buffers for what is read from streams.
//!
//! A flow that waits for bytes holds no buffer: it borrows one for the read, and when nothing was there it goes back at
//! once. A read that fills much of it hands it on as it is; a short one is copied, so that it does not keep a large
//! buffer alive while it waits for the VM. Buffers come back when the last reader of their bytes is done.

use std::{
    io,
    pin::Pin,
    sync::{Arc, Mutex, PoisonError},
    task::{Context, Poll, ready},
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
    /// Reads once from `stream`; no bytes mean its end.
    pub(crate) fn poll_read<S: AsyncRead>(&self, cx: &mut Context<'_>, stream: Pin<&mut S>) -> Poll<io::Result<Bytes>> {
        let mut chunk = self.borrow();
        let mut buffer = ReadBuf::new(&mut chunk.bytes);
        ready!(stream.poll_read(cx, &mut buffer))?;
        let count = buffer.filled().len();
        Poll::Ready(Ok(if count < COPIED_BELOW {
            Bytes::copy_from_slice(&chunk.bytes[..count])
        } else {
            chunk.filled = count;
            Bytes::from_owner(chunk)
        }))
    }

    fn borrow(&self) -> Chunk {
        let spare = self.0.lock().unwrap_or_else(PoisonError::into_inner).pop();
        let bytes = spare.unwrap_or_else(|| vec![0; CHUNK_BYTES].into_boxed_slice());
        Chunk { bytes, filled: 0, home: self.clone() }
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

    /// Reads from `stream` once, as a flow would.
    async fn read(chunks: &Chunks, mut stream: &[u8]) -> Bytes {
        std::future::poll_fn(|cx| chunks.poll_read(cx, Pin::new(&mut stream))).await.unwrap()
    }

    #[tokio::test]
    async fn buffers_come_back_and_short_reads_keep_none() {
        let chunks = Chunks::default();
        let spare = || chunks.0.lock().unwrap().len();
        let short = read(&chunks, &[1; 100]).await;
        assert_eq!((short.len(), spare()), (100, 1));
        let long = read(&chunks, &[2; 2 * CHUNK_BYTES]).await;
        assert_eq!((long.len(), spare()), (CHUNK_BYTES, 0));
        let half = long.slice(100..);
        drop(long);
        assert_eq!((spare(), half[0]), (0, 2));
        drop(half);
        assert_eq!(spare(), 1);
        assert!(read(&chunks, &[]).await.is_empty());
    }

    #[tokio::test]
    async fn a_flow_that_waits_holds_no_buffer() {
        let chunks = Chunks::default();
        let (mut here, _there) = tokio::io::duplex(10);
        let pending = std::future::poll_fn(|cx| Poll::Ready(chunks.poll_read(cx, Pin::new(&mut here)).is_pending()));
        assert!(pending.await);
        assert_eq!(chunks.0.lock().unwrap().len(), 1);
    }
}
