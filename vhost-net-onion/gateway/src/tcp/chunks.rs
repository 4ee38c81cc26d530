//! Bytes from the VM, in order, until the pump takes them.
//!
//! They are copied out of their frame once, into chunks that are given away whole. A chunk is as long as what comes
//! first, and each next one may hold as much as wait before it: so a bulk of small segments is handed out in large
//! pieces, and a single byte costs little.

use std::collections::VecDeque;

use bytes::{Bytes, BytesMut};

/// Bytes of the smallest chunk, and of the largest that is made for more than one segment.
const CHUNK_BYTES_MIN: usize = 64;
const CHUNK_BYTES_MAX: usize = 64 << 10;

/// Places that an empty queue may keep.
const SPARE_MAX: usize = 4;

/// A queue of bytes.
#[derive(Debug, Default)]
pub(super) struct Chunks {
    whole: VecDeque<Bytes>,
    tail: BytesMut,
    bytes: usize,
}

impl Chunks {
    /// Bytes that wait.
    pub(super) fn len(&self) -> usize {
        self.bytes
    }

    /// Adds a copy of the bytes.
    pub(super) fn copy(&mut self, data: &[u8]) {
        if self.tail.capacity() - self.tail.len() < data.len() {
            self.seal();
            let bytes = self.bytes.clamp(CHUNK_BYTES_MIN, CHUNK_BYTES_MAX).max(data.len());
            self.tail = BytesMut::with_capacity(bytes);
        }
        self.tail.extend_from_slice(data);
        self.bytes += data.len();
    }

    /// Adds the bytes themselves.
    pub(super) fn push(&mut self, data: Bytes) {
        self.seal();
        self.bytes += data.len();
        self.whole.push_back(data);
    }

    /// Takes the first chunk.
    pub(super) fn pop(&mut self) -> Option<Bytes> {
        let chunk = self.whole.pop_front().or_else(|| {
            let tail = std::mem::take(&mut self.tail);
            (!tail.is_empty()).then(|| tail.freeze())
        })?;
        self.bytes -= chunk.len();
        if self.whole.is_empty() && self.whole.capacity() > SPARE_MAX {
            self.whole = VecDeque::new();
        }
        Some(chunk)
    }

    fn seal(&mut self) {
        if !self.tail.is_empty() {
            self.whole.push_back(std::mem::take(&mut self.tail).freeze());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn everything_comes_out_in_order_and_many_small_pieces_in_few_chunks() {
        let (mut chunks, mut expected) = (Chunks::default(), vec![]);
        for n in 0..100_000u32 {
            let piece = &[n as u8, (n >> 8) as u8][..1 + n as usize % 2];
            chunks.copy(piece);
            expected.extend_from_slice(piece);
        }
        chunks.push(Bytes::from_static(b"end"));
        expected.extend(b"end");
        assert_eq!(chunks.len(), expected.len());
        let all: Vec<Bytes> = std::iter::from_fn(|| chunks.pop()).collect();
        assert!(all.concat() == expected && chunks.len() == 0);
        assert!(all.len() < 20, "{}", all.len());
    }
}
