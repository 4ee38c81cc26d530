//! Reading from streams in chunks.
//!
//! A flow that waits for bytes holds no buffer. Whatever is there is read at once: a Tor stream gives no more than a cell
//! at a time, and each chunk costs the session a turn and the VM a segment. A chunk that fills much of its buffer is
//! handed on as it is; a short one is copied, so that it does not keep a large buffer alive while it waits for the VM.

use std::{
    future::Future,
    io,
    pin::pin,
    task::{Context, Poll},
};

use bytes::{Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt};

/// Bytes of a buffer, and so of the largest chunk: as many as the longest frame carries.
pub(crate) const CHUNK_BYTES: usize = 64 * 1024;

/// A read of fewer bytes is copied.
const COPIED_BELOW: usize = CHUNK_BYTES / 4;

/// A stream that is read in chunks.
pub(crate) struct ChunkReader<S> {
    stream: S,
    /// How the stream ended, if that was found behind bytes that had to be handed over first.
    end: Option<io::Result<()>>,
}

impl<S: AsyncRead + Unpin> ChunkReader<S> {
    pub(crate) fn new(stream: S) -> ChunkReader<S> {
        ChunkReader { stream, end: None }
    }

    /// Reads what is there, up to [`CHUNK_BYTES`]; no bytes mean the end of the stream, behind which nothing is read.
    pub(crate) fn poll_read(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<Bytes>> {
        if let Some(end) = self.end.take() {
            return Poll::Ready(end.map(|()| Bytes::new()));
        }
        // Not kept until the next read: an allocator does that better, for all flows together.
        let mut chunk = BytesMut::with_capacity(CHUNK_BYTES);
        while chunk.len() < CHUNK_BYTES {
            match pin!(self.stream.read_buf(&mut chunk)).poll(cx) {
                Poll::Ready(Ok(1..)) => continue,
                end if chunk.is_empty() => return end.map_ok(|_| Bytes::new()),
                Poll::Ready(end) => self.end = Some(end.map(|_| ())),
                Poll::Pending => {}
            }
            break;
        }
        Poll::Ready(Ok(if chunk.len() < COPIED_BELOW { Bytes::copy_from_slice(&chunk) } else { chunk.freeze() }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{collections::VecDeque, future::poll_fn, pin::Pin};
    use tokio::io::ReadBuf;

    async fn read<S: AsyncRead + Unpin>(reader: &mut ChunkReader<S>) -> io::Result<Bytes> {
        poll_fn(|cx| reader.poll_read(cx)).await
    }

    #[tokio::test]
    async fn a_short_chunk_keeps_no_large_buffer_and_a_long_one_is_not_copied() {
        let bytes = vec![1; CHUNK_BYTES + 100];
        let mut reader = ChunkReader::new(&bytes[..]);
        for (length, room) in [(CHUNK_BYTES, CHUNK_BYTES..=CHUNK_BYTES), (100, 100..=200)] {
            let chunk = read(&mut reader).await.unwrap().try_into_mut().unwrap();
            assert_eq!(chunk.len(), length);
            assert!(room.contains(&chunk.capacity()), "{length} bytes keep {}", chunk.capacity());
        }
        assert!(read(&mut reader).await.unwrap().is_empty());
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
            let mut reader = ChunkReader::new(Reads(reads.into()));
            assert_eq!(read(&mut reader).await.unwrap(), [[1; 498], [2; 498]].concat());
            assert_eq!(&read(&mut reader).await.unwrap()[..], [3; 100]);
            let end = read(&mut reader).await;
            assert_eq!(end.is_err(), fails);
            assert!(end.unwrap_or_default().is_empty());
        }
    }
}
