//! A frame stream from a stranger, in pieces of any size: the frames do not depend on the pieces, every frame is
//! within its bounds, and there is always room to go on.
#![no_main]

use libfuzzer_sys::fuzz_target;
use wire::link::{Abilities, Decoder, FRAME_BYTES_MAX, FRAME_BYTES_MIN, LinkError, Message, Offload, encode};

fuzz_target!(|input: (u8, &[u8])| {
    let (piece, stream) = (usize::from(input.0) + 1, input.1);
    let at_once = frames(stream, stream.len().max(1));
    assert_eq!(frames(stream, piece), at_once);
    // What came out, encoded again, is what went in: for as far as it was good.
    let mut again = vec![];
    for message in &at_once.0 {
        match message {
            Taken::Frame(offload, frame) => {
                encode(frame, *offload, &mut again).expect("a frame that was taken is within the bounds");
            }
            Taken::Abilities(abilities) => again.extend_from_slice(&abilities.to_message()),
        }
    }
    assert!(stream.starts_with(&again));
});

#[derive(Debug, PartialEq)]
enum Taken {
    Frame(Offload, Vec<u8>),
    Abilities(Abilities),
}

fn frames(stream: &[u8], piece: usize) -> (Vec<Taken>, Option<LinkError>) {
    let mut decoder = Decoder::default();
    let mut frames = vec![];
    for mut bytes in stream.chunks(piece) {
        while !bytes.is_empty() {
            let spare = decoder.spare();
            let count = spare.len().min(bytes.len());
            assert!(count > 0, "no room although no frame is whole");
            spare[..count].copy_from_slice(&bytes[..count]);
            decoder.filled(count);
            bytes = &bytes[count..];
            loop {
                match decoder.next_message() {
                    Ok(None) => break,
                    Ok(Some(Message::Frame(offload, frame))) => {
                        assert!((FRAME_BYTES_MIN..=FRAME_BYTES_MAX).contains(&frame.len()));
                        frames.push(Taken::Frame(offload, frame.to_vec()));
                    }
                    Ok(Some(Message::Abilities(abilities))) => frames.push(Taken::Abilities(abilities)),
                    Err(error) => return (frames, Some(error)),
                }
            }
        }
    }
    (frames, None)
}
