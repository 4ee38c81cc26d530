//! Bytes for the VM, until it has acknowledged them.
//!
//! Long pieces are kept by reference: what the pump hands over should not be a small part of a large buffer. Short
//! ones are copied together, so that a queue of single bytes costs no more than its bytes.

use std::collections::VecDeque;

use bytes::{Buf as _, Bytes, BytesMut};

/// Pieces that are shorter are copied.
const REFERENCE_BYTES_MIN: usize = 2048;

/// Bytes of a chunk of short pieces, when it is given no more.
const CHUNK_BYTES: usize = 4096;

/// Places that an empty queue may keep.
const SPARE_MAX: usize = 4;

/// A queue of bytes that can be read again from its front.
#[derive(Debug, Default)]
pub(super) struct Queue {
    chunks: VecDeque<Bytes>,
    /// Comes after the chunks.
    tail: BytesMut,
    bytes: usize,
    /// Where the last read ended.
    cursor: Cursor,
}

#[derive(Clone, Copy, Debug, Default)]
struct Cursor {
    /// From the front of the queue.
    at: usize,
    chunk: usize,
    /// In the chunk.
    offset: usize,
}

impl Queue {
    /// Bytes in it.
    pub(super) fn len(&self) -> usize {
        self.bytes
    }

    /// Adds bytes.
    pub(super) fn push(&mut self, data: Bytes) {
        self.bytes += data.len();
        if data.len() >= REFERENCE_BYTES_MIN {
            self.seal();
            self.chunks.push_back(data);
            return;
        }
        if self.tail.len() + data.len() > CHUNK_BYTES {
            self.seal();
        }
        self.tail.extend_from_slice(&data);
    }

    /// Forgets bytes at the front; not more than there are.
    pub(super) fn drop_front(&mut self, count: usize) {
        self.bytes -= count;
        let (mut left, mut chunks, mut advanced) = (count, 0, 0);
        while left > 0 {
            match self.chunks.front_mut() {
                Some(first) if first.len() <= left => {
                    left -= first.len();
                    self.chunks.pop_front();
                    chunks += 1;
                }
                Some(first) => {
                    first.advance(left);
                    (advanced, left) = (left, 0);
                }
                None => {
                    self.tail.advance(left);
                    (advanced, left) = (left, 0);
                }
            }
        }
        self.cursor = match self.cursor {
            Cursor { at, chunk, offset } if at >= count && chunk >= chunks => {
                let offset = if chunk == chunks { offset - advanced } else { offset };
                Cursor { at: at - count, chunk: chunk - chunks, offset }
            }
            _ => Cursor::default(),
        };
        if self.bytes == 0 {
            self.cursor = Cursor::default();
            self.tail = BytesMut::new();
            if self.chunks.capacity() > SPARE_MAX {
                self.chunks = VecDeque::new();
            }
        }
    }

    /// Up to `count` bytes from `at` on; both within the queue. By reference when one chunk has at least half of them:
    /// then it may be fewer.
    pub(super) fn read(&mut self, at: usize, count: usize) -> Bytes {
        let mut cursor = if at >= self.cursor.at { self.cursor } else { Cursor::default() };
        cursor.offset += at - cursor.at;
        cursor.at = at;
        while let Some(chunk) = self.chunks.get(cursor.chunk)
            && cursor.offset >= chunk.len()
        {
            cursor.offset -= chunk.len();
            cursor.chunk += 1;
        }
        let data = match self.chunks.get(cursor.chunk) {
            Some(chunk) if 2 * (chunk.len() - cursor.offset) >= count => {
                chunk.slice(cursor.offset..chunk.len().min(cursor.offset + count))
            }
            _ => self.assemble(cursor, count),
        };
        cursor.at += data.len();
        cursor.offset += data.len();
        self.cursor = cursor;
        data
    }

    fn assemble(&self, cursor: Cursor, count: usize) -> Bytes {
        let mut out = Vec::with_capacity(count);
        let mut offset = cursor.offset;
        let chunks = self.chunks.iter().skip(cursor.chunk).map(|chunk| &chunk[..]);
        for chunk in chunks.chain([&self.tail[..]]) {
            let from = offset.min(chunk.len());
            let to = chunk.len().min(from + count - out.len());
            out.extend_from_slice(&chunk[from..to]);
            offset -= from;
        }
        Bytes::from(out)
    }

    fn seal(&mut self) {
        if !self.tail.is_empty() {
            self.chunks.push_back(std::mem::take(&mut self.tail).freeze());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_reads_give_the_bytes_that_went_in() {
        let mut random = 7u64;
        let mut below = |bound: usize| {
            random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (random >> 33) as usize % bound
        };
        let (mut queue, mut expected) = (Queue::default(), VecDeque::<u8>::new());
        for n in 0..20_000 {
            let length = [1, 7, 300, 2047, 2048, 9000][below(6)];
            if queue.len() < 60_000 {
                let data: Vec<u8> = (0..length).map(|at| (n + at) as u8).collect();
                expected.extend(&data);
                queue.push(Bytes::from(data));
            }
            for _ in 0..2 {
                let at = below(queue.len());
                let count = 1 + below(queue.len() - at);
                let data = queue.read(at, count);
                assert!(2 * data.len() >= count && data.len() <= count);
                assert!(expected.iter().skip(at).take(data.len()).eq(data.iter()));
            }
            let count = below(queue.len() + 1).min(6000);
            queue.drop_front(count);
            expected.drain(..count);
            assert_eq!(queue.len(), expected.len());
        }
    }

    #[test]
    fn long_pieces_are_not_copied_and_short_ones_do_not_pile_up() {
        let mut queue = Queue::default();
        let long = Bytes::from(vec![1; 30_000]);
        queue.push(long.clone());
        assert_eq!(queue.read(100, 20_000).as_ptr(), long[100..].as_ptr());
        assert_eq!(queue.read(20_000, 20_000).len(), 10_000, "to the end of the chunk, as it is half");
        for _ in 0..100_000 {
            queue.push(Bytes::from_static(b"x"));
        }
        assert!(queue.chunks.len() <= 2 + 100_000 / CHUNK_BYTES);
        assert_eq!(queue.read(29_900, 1000).len(), 1000, "put together, as it is not");
        queue.drop_front(130_000);
        assert_eq!((queue.len(), queue.chunks.capacity()), (0, 0));
    }
}
