//! What carries the frames of a VM to and from its session.
//!
//! A carrier is polled, like a stream; whoever polls it learns of the VM's frames and gives it the gateway's. There are
//! two: [`StreamCarrier`] speaks the frame link over a byte stream, vsock to the port's process in the end; the
//! embedded port moves frames between the VM's rings and the session without anything in between.

use std::{
    collections::VecDeque,
    io::{self, IoSlice},
    pin::Pin,
    task::{Context, Poll, ready},
};

use bytes::{Buf, Bytes, BytesMut};
use gateway::Frame;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use wire::link::{self, Decoder, Message, Offload};

/// Bytes of frames that wait for the stream. When there are as many, the gateway keeps the rest.
const OUT_BYTES_MAX: usize = 256 * 1024;

/// From this size on, a frame's payload is written from where it lies; shorter ones are gathered, because a copy is
/// cheaper than an entry in a vectored write.
const BY_REFERENCE_BYTES: usize = 4 * 1024;

/// Entries of one vectored write.
const SLICES_MAX: usize = 64;

/// Why a link ended.
#[derive(Debug, thiserror::Error)]
pub enum LinkError {
    /// The stream broke.
    #[error("the link broke")]
    Io(#[from] io::Error),
    /// What came is no sequence of frames.
    #[error("the link carries something else than frames")]
    Frames(#[from] link::LinkError),
    /// The port failed.
    #[error("the port failed")]
    Port(#[from] port::PortError),
}

/// What has come.
#[derive(Debug)]
pub enum Arrival<'a> {
    /// A message of the link.
    Message(Message<'a>),
    /// A long frame that may be kept, and what the VM's driver left to do.
    Frame(Offload, Bytes),
}

/// What carries frames.
pub trait Carrier {
    /// Hands over what has come, and tells whether there may be more to come: false at the end of the link.
    /// Pending when there are none, and wakes the task when there are.
    ///
    /// # Errors
    /// When the link cannot go on.
    fn poll_receive(
        &mut self,
        cx: &mut Context<'_>,
        take: &mut dyn FnMut(Arrival<'_>),
    ) -> Poll<Result<bool, LinkError>>;

    /// Takes frames from `next` while there is room, and sends them. Pending when there is nothing to send, or when no
    /// more can be sent; in the second case it wakes the task when there is room.
    ///
    /// # Errors
    /// When the link cannot go on.
    fn poll_send(
        &mut self,
        cx: &mut Context<'_>,
        next: &mut dyn FnMut() -> Option<Frame>,
    ) -> Poll<Result<(), LinkError>>;
}

/// The frame link over a byte stream.
pub struct StreamCarrier<S> {
    stream: S,
    decoder: Decoder,
    out: Out,
}

impl<S> StreamCarrier<S> {
    /// The link on `stream`, after its hello.
    #[must_use]
    pub fn new(stream: S) -> StreamCarrier<S> {
        StreamCarrier { stream, decoder: Decoder::default(), out: Out::default() }
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> Carrier for StreamCarrier<S> {
    fn poll_receive(
        &mut self,
        cx: &mut Context<'_>,
        take: &mut dyn FnMut(Arrival<'_>),
    ) -> Poll<Result<bool, LinkError>> {
        let mut buffer = ReadBuf::new(self.decoder.spare());
        ready!(Pin::new(&mut self.stream).poll_read(cx, &mut buffer))?;
        let count = buffer.filled().len();
        self.decoder.filled(count);
        while let Some(message) = self.decoder.next_message()? {
            take(Arrival::Message(message));
        }
        Poll::Ready(Ok(count > 0))
    }

    fn poll_send(
        &mut self,
        cx: &mut Context<'_>,
        next: &mut dyn FnMut() -> Option<Frame>,
    ) -> Poll<Result<(), LinkError>> {
        // A stream that cannot gather (vsock's) would take a system call for every piece.
        let by_reference = if self.stream.is_write_vectored() { BY_REFERENCE_BYTES } else { usize::MAX };
        self.out.fill(by_reference, next)?;
        if self.out.is_empty() {
            return Poll::Pending;
        }
        let mut slices = [IoSlice::new(&[]); SLICES_MAX];
        let count = self.out.slices(&mut slices);
        let written = ready!(Pin::new(&mut self.stream).poll_write_vectored(cx, &slices[..count]))?;
        if written == 0 {
            return Poll::Ready(Err(io::Error::from(io::ErrorKind::WriteZero).into()));
        }
        self.out.written(written);
        Poll::Ready(Ok(()))
    }
}

/// Encoded frames on their way to the stream.
#[derive(Default)]
struct Out {
    /// Complete pieces, in order.
    pieces: VecDeque<Bytes>,
    /// What comes after them, still growing.
    tail: BytesMut,
    bytes: usize,
}

impl Out {
    fn is_empty(&self) -> bool {
        self.bytes == 0
    }

    /// Takes frames while there is room; payloads of `by_reference` bytes and more stay where they are.
    fn fill(&mut self, by_reference: usize, next: &mut dyn FnMut() -> Option<Frame>) -> Result<(), link::LinkError> {
        while self.bytes < OUT_BYTES_MAX
            && let Some(frame) = next()
        {
            self.tail.extend_from_slice(&link::header(frame.bytes(), frame.offload)?);
            self.tail.extend_from_slice(&frame.head);
            self.bytes += link::HEADER_BYTES + frame.bytes();
            if frame.body.len() < by_reference {
                self.tail.extend_from_slice(&frame.body);
            } else {
                self.pieces.push_back(self.tail.split().freeze());
                self.pieces.push_back(frame.body);
            }
        }
        Ok(())
    }

    /// What is to be written first. Returns how many slices it has filled.
    fn slices<'a>(&'a self, slices: &mut [IoSlice<'a>]) -> usize {
        let all = self.pieces.iter().map(|piece| &piece[..]).chain([&self.tail[..]]).filter(|piece| !piece.is_empty());
        let mut count = 0;
        for (slice, piece) in slices.iter_mut().zip(all) {
            *slice = IoSlice::new(piece);
            count += 1;
        }
        count
    }

    /// Forgets `count` bytes from the front.
    fn written(&mut self, mut count: usize) {
        self.bytes -= count;
        while let Some(piece) = self.pieces.front_mut() {
            if count < piece.len() {
                piece.advance(count);
                return;
            }
            count -= piece.len();
            self.pieces.pop_front();
        }
        self.tail.advance(count);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use gateway::Head;

    fn frame(number: u8, head: usize, body: usize) -> Frame {
        let mut bytes = Head::zeroed(head);
        bytes.as_mut().fill(number);
        Frame { offload: Offload::default(), head: bytes, body: vec![number; body].into() }
    }

    #[test]
    fn every_frame_comes_out_whole_however_little_is_written_at_a_time() {
        let sizes = [(42, 0), (54, 1460), (54, 4096), (54, 60_000), (14, 1), (54, 60_000), (54, 60_000), (54, 9)];
        let steps = [1, 13, 1000, 100_000, usize::MAX];
        for (step, by_reference) in steps.into_iter().flat_map(|step| [(step, BY_REFERENCE_BYTES), (step, usize::MAX)])
        {
            let mut frames: VecDeque<Frame> =
                (1..).zip(sizes).map(|(number, (head, body))| frame(number, head, body)).collect();
            let (mut out, mut stream) = (Out::default(), vec![]);
            loop {
                out.fill(by_reference, &mut || frames.pop_front()).unwrap();
                let mut slices = [IoSlice::new(&[]); 3];
                let count = out.slices(&mut slices);
                let bytes: Vec<u8> = slices[..count].iter().flat_map(|slice| slice.to_vec()).take(step).collect();
                if bytes.is_empty() {
                    break;
                }
                stream.extend_from_slice(&bytes);
                out.written(bytes.len());
            }
            assert!(out.is_empty());
            let mut decoder = Decoder::default();
            let mut seen = vec![];
            for bytes in stream.chunks(1000) {
                decoder.spare()[..bytes.len()].copy_from_slice(bytes);
                decoder.filled(bytes.len());
                while let Some(Message::Frame(_, frame)) = decoder.next_message().unwrap() {
                    assert!(frame.iter().all(|byte| usize::from(*byte) == seen.len() + 1));
                    seen.push(frame.len());
                }
            }
            assert_eq!(seen, sizes.map(|(head, body)| head + body), "{step} bytes at a time");
        }
    }

    #[test]
    fn what_waits_is_bounded() {
        let mut out = Out::default();
        let mut asked = 0;
        out.fill(BY_REFERENCE_BYTES, &mut || {
            asked += 1;
            Some(frame(1, 54, 60_000))
        })
        .unwrap();
        assert_eq!(asked, OUT_BYTES_MAX.div_ceil(60_000));
    }
}
