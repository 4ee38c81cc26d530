//! The frame link: the Ethernet frames of one VM as a byte stream.
//!
//! ```text
//! length u32 LE | offload 10 bytes | frame
//! ```
//!
//! `length` counts what follows it. The offload fields are the first ten bytes of the virtio-net header (virtio 1.2,
//! section 5.1.6), so that checksums and segmentation cross the link as they crossed the ring. A stream that breaks
//! the bounds is closed: there is no way to find the next frame in it.
//!
//! A message without a frame tells what the driver behind the sender can receive ([`Abilities`]): until the port says
//! otherwise, only complete frames. The port says so again whenever the driver negotiates something else; frames that
//! were on their way by then, and ask for more than the driver can, are dropped by the port and counted.

use std::ops::Range;

/// Bytes of the longest frame: an Ethernet header with one VLAN tag, and an IP packet of 65,535 bytes.
pub const FRAME_BYTES_MAX: usize = 14 + 4 + 65_535;

/// Bytes of the shortest frame: an Ethernet header.
pub const FRAME_BYTES_MIN: usize = 14;

/// Bytes of the offload fields.
pub const OFFLOAD_BYTES: usize = 10;

/// Bytes before the frame: length and offload.
pub const HEADER_BYTES: usize = 4 + OFFLOAD_BYTES;

/// Bytes of the longest message.
pub const MESSAGE_BYTES_MAX: usize = HEADER_BYTES + FRAME_BYTES_MAX;

/// The offload fields of the virtio-net header, without `num_buffers`, which is the ring's own business.
///
/// All zero: the frame is complete, its checksums are in place.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Offload {
    /// `VIRTIO_NET_HDR_F_*`.
    pub flags: u8,
    /// `VIRTIO_NET_HDR_GSO_*`.
    pub gso_type: u8,
    /// Bytes of the headers that every segment repeats.
    pub hdr_len: u16,
    /// Payload bytes of a segment.
    pub gso_size: u16,
    /// Where the checksummed bytes begin.
    pub csum_start: u16,
    /// Where the checksum goes, from `csum_start`.
    pub csum_offset: u16,
}

impl Offload {
    /// The fields in the order and byte order of the virtio-net header.
    #[must_use]
    pub fn to_bytes(self) -> [u8; OFFLOAD_BYTES] {
        let mut bytes = [self.flags, self.gso_type, 0, 0, 0, 0, 0, 0, 0, 0];
        let fields = [self.hdr_len, self.gso_size, self.csum_start, self.csum_offset];
        for (to, field) in bytes[2..].chunks_exact_mut(2).zip(fields) {
            to.copy_from_slice(&field.to_le_bytes());
        }
        bytes
    }

    /// The reverse of [`Offload::to_bytes`]. Every value is taken; whoever acts on one checks it against the frame.
    #[must_use]
    pub fn from_bytes(bytes: [u8; OFFLOAD_BYTES]) -> Offload {
        let field = |at: usize| u16::from_le_bytes([bytes[at], bytes[at + 1]]);
        Offload {
            flags: bytes[0],
            gso_type: bytes[1],
            hdr_len: field(2),
            gso_size: field(4),
            csum_start: field(6),
            csum_offset: field(8),
        }
    }
}

/// What a driver can receive besides complete frames of its MTU.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Abilities {
    /// Frames whose checksum is not in place (`VIRTIO_NET_F_GUEST_CSUM`).
    pub checksum: bool,
    /// TCP over IPv4 that is yet to be cut into segments (`VIRTIO_NET_F_GUEST_TSO4`).
    pub tso4: bool,
    /// TCP over IPv6 that is yet to be cut into segments (`VIRTIO_NET_F_GUEST_TSO6`).
    pub tso6: bool,
}

impl Abilities {
    /// The message that tells them.
    #[must_use]
    pub fn to_message(self) -> [u8; HEADER_BYTES] {
        let flags = u8::from(self.checksum) | u8::from(self.tso4) << 1 | u8::from(self.tso6) << 2;
        with_length(OFFLOAD_BYTES, Offload { flags, ..Offload::default() })
    }

    /// The reverse: from the place of the offload fields.
    fn from_offload(offload: Offload) -> Result<Abilities, LinkError> {
        let Offload { flags, .. } = offload;
        if offload != (Offload { flags: flags & 7, ..Offload::default() }) {
            return Err(LinkError::Abilities(offload.to_bytes()));
        }
        Ok(Abilities { checksum: flags & 1 != 0, tso4: flags & 2 != 0, tso6: flags & 4 != 0 })
    }
}

/// What a stream is cut into.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Message<'a> {
    /// A frame, and what is yet to be done to it.
    Frame(Offload, &'a [u8]),
    /// What the sender's driver can receive from now on.
    Abilities(Abilities),
}

/// Why the stream cannot go on.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LinkError {
    /// A length outside the bounds.
    #[error("the peer announces a frame of {0} bytes; {FRAME_BYTES_MIN} to {FRAME_BYTES_MAX} are allowed")]
    Length(i64),
    /// A message without a frame, that is no [`Abilities`] either.
    #[error("the peer tells of abilities that this version does not know: {0:02x?}")]
    Abilities([u8; OFFLOAD_BYTES]),
}

/// The header of a message that carries `frame_bytes` bytes of frame.
///
/// # Errors
/// When the frame is outside the bounds; nothing may be sent then.
pub fn header(frame_bytes: usize, offload: Offload) -> Result<[u8; HEADER_BYTES], LinkError> {
    if !(FRAME_BYTES_MIN..=FRAME_BYTES_MAX).contains(&frame_bytes) {
        return Err(LinkError::Length(i64::try_from(frame_bytes).unwrap_or(i64::MAX)));
    }
    Ok(with_length(OFFLOAD_BYTES + frame_bytes, offload))
}

fn with_length(length: usize, offload: Offload) -> [u8; HEADER_BYTES] {
    let length = u32::try_from(length).expect("bounded above by FRAME_BYTES_MAX");
    let mut bytes = [0; HEADER_BYTES];
    bytes[..4].copy_from_slice(&length.to_le_bytes());
    bytes[4..].copy_from_slice(&offload.to_bytes());
    bytes
}

/// Appends the whole message of `frame` to `out`.
///
/// # Errors
/// As [`header`]; `out` is unchanged then.
pub fn encode(frame: &[u8], offload: Offload, out: &mut Vec<u8>) -> Result<(), LinkError> {
    let header = header(frame.len(), offload)?;
    out.extend_from_slice(&header);
    out.extend_from_slice(frame);
    Ok(())
}

/// Cuts a byte stream into messages.
///
/// Read from the stream into [`Decoder::spare`], say with [`Decoder::filled`] how much came, and take messages with
/// [`Decoder::next_message`] until there is none. Holds at most [`DECODER_BYTES`], allocated once.
#[derive(Debug)]
pub struct Decoder {
    bytes: Box<[u8]>,
    /// What was read and not yet taken.
    held: Range<usize>,
}

/// Bytes that a [`Decoder`] holds: two of the longest messages, so that one read can bring many short frames and a
/// long one never blocks.
pub const DECODER_BYTES: usize = 2 * MESSAGE_BYTES_MAX;

impl Default for Decoder {
    fn default() -> Self {
        Decoder { bytes: vec![0; DECODER_BYTES].into_boxed_slice(), held: 0..0 }
    }
}

impl Decoder {
    /// Where to read to. Never empty once [`Decoder::next_message`] has returned `None`.
    pub fn spare(&mut self) -> &mut [u8] {
        if self.bytes.len() - self.held.end < MESSAGE_BYTES_MAX {
            self.bytes.copy_within(self.held.clone(), 0);
            self.held = 0..self.held.len();
        }
        &mut self.bytes[self.held.end..]
    }

    /// Takes note that `count` bytes were read into [`Decoder::spare`].
    ///
    /// # Panics
    /// When `count` is more than was spare: the caller's mistake.
    pub fn filled(&mut self, count: usize) {
        assert!(count <= self.bytes.len() - self.held.end, "more bytes filled than spare");
        self.held.end += count;
    }

    /// The next whole message, or `None` when more must be read.
    ///
    /// # Errors
    /// When the stream breaks the bounds. It stays broken.
    pub fn next_message(&mut self) -> Result<Option<Message<'_>>, LinkError> {
        let held = &self.bytes[self.held.clone()];
        let Some((length, rest)) = held.split_first_chunk::<4>() else { return Ok(None) };
        let length = u32::from_le_bytes(*length);
        let frame_bytes = i64::from(length) - OFFLOAD_BYTES as i64;
        let frame_bytes = usize::try_from(frame_bytes)
            .ok()
            .filter(|n| *n == 0 || (FRAME_BYTES_MIN..=FRAME_BYTES_MAX).contains(n))
            .ok_or(LinkError::Length(frame_bytes))?;
        let Some((offload, rest)) = rest.split_first_chunk::<OFFLOAD_BYTES>() else { return Ok(None) };
        if rest.len() < frame_bytes {
            return Ok(None);
        }
        let offload = Offload::from_bytes(*offload);
        let frame = self.held.start + HEADER_BYTES..self.held.start + HEADER_BYTES + frame_bytes;
        self.held.start = frame.end;
        if self.held.is_empty() {
            self.held = 0..0;
        }
        if frame_bytes == 0 {
            return Ok(Some(Message::Abilities(Abilities::from_offload(offload)?)));
        }
        Ok(Some(Message::Frame(offload, &self.bytes[frame])))
    }

    /// Forgets what is held: a new stream begins.
    pub fn clear(&mut self) {
        self.held = 0..0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OFFLOAD: Offload =
        Offload { flags: 1, gso_type: 4, hdr_len: 0x1234, gso_size: 1460, csum_start: 34, csum_offset: 0xfffe };

    /// Feeds `stream` in pieces of `piece` bytes and returns the frames that come out.
    fn decoded(stream: &[u8], piece: usize) -> Result<Vec<(Offload, Vec<u8>)>, LinkError> {
        let mut decoder = Decoder::default();
        let mut frames = vec![];
        for bytes in stream.chunks(piece) {
            decoder.spare()[..bytes.len()].copy_from_slice(bytes);
            decoder.filled(bytes.len());
            while let Some(message) = decoder.next_message()? {
                let Message::Frame(offload, frame) = message else { panic!("{message:?} is no frame") };
                frames.push((offload, frame.to_vec()));
            }
        }
        Ok(frames)
    }

    #[test]
    fn frames_of_every_size_survive_every_cut() {
        let sizes = [14, 15, 60, 1514, FRAME_BYTES_MAX, 14, FRAME_BYTES_MAX, FRAME_BYTES_MAX];
        let frames: Vec<_> = sizes.iter().map(|&n| (OFFLOAD, vec![n as u8; n])).collect();
        let mut stream = vec![];
        for (offload, frame) in &frames {
            encode(frame, *offload, &mut stream).unwrap();
        }
        for piece in [1, 3, 14, 4096, MESSAGE_BYTES_MAX] {
            assert!(decoded(&stream, piece).unwrap() == frames, "in pieces of {piece}");
        }
    }

    #[test]
    fn there_is_always_room_for_the_rest_of_a_frame() {
        let mut decoder = Decoder::default();
        let message = [header(FRAME_BYTES_MAX, OFFLOAD).unwrap().as_slice(), &[0; FRAME_BYTES_MAX]].concat();
        for byte in message.iter().cycle().take(5 * message.len()) {
            while decoder.next_message().unwrap().is_some() {}
            decoder.spare()[0] = *byte;
            decoder.filled(1);
        }
    }

    #[test]
    fn lengths_outside_the_bounds_end_the_stream() {
        for length in [0, 9, 11, 23, (OFFLOAD_BYTES + FRAME_BYTES_MAX + 1) as u32, u32::MAX] {
            let stream = length.to_le_bytes();
            assert_eq!(decoded(&stream, 4), Err(LinkError::Length(i64::from(length) - 10)));
        }
        assert!(header(13, OFFLOAD).is_err());
        assert!(header(FRAME_BYTES_MAX + 1, OFFLOAD).is_err());
    }

    #[test]
    fn abilities_arrive_between_frames_and_unknown_ones_end_the_stream() {
        let told = |message: &[u8]| {
            let mut decoder = Decoder::default();
            decoder.spare()[..message.len()].copy_from_slice(message);
            decoder.filled(message.len());
            decoder.next_message().map(|message| match message {
                Some(Message::Abilities(abilities)) => abilities,
                other => panic!("{other:?} instead of abilities"),
            })
        };
        for bits in 0..8 {
            let abilities = Abilities { checksum: bits & 1 != 0, tso4: bits & 2 != 0, tso6: bits & 4 != 0 };
            assert_eq!(told(&abilities.to_message()), Ok(abilities));
        }
        for (at, value) in [(4, 8), (5, 1), (13, 1)] {
            let mut unknown = Abilities::default().to_message();
            unknown[at] = value;
            assert!(matches!(told(&unknown), Err(LinkError::Abilities(_))));
        }
    }

    #[test]
    fn offload_fields_are_those_of_the_virtio_net_header() {
        assert_eq!(OFFLOAD.to_bytes(), [1, 4, 0x34, 0x12, 0xb4, 0x05, 34, 0, 0xfe, 0xff]);
        assert_eq!(Offload::from_bytes(OFFLOAD.to_bytes()), OFFLOAD);
    }
}
