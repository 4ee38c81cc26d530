//! The router's end of a link.

use std::{
    io::{self, Read, Write},
    os::unix::net::UnixStream,
    path::Path,
    time::Duration,
};

use wire::{
    hello::{HELLO_BYTES_MIN, Hello, Role},
    link::{Abilities, Decoder, Message, Offload, encode},
};

use crate::port::vm;

pub struct Router {
    pub stream: UnixStream,
    decoder: Decoder,
}

impl Router {
    pub fn connect(path: &Path) -> Router {
        let mut stream = UnixStream::connect(path).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        stream.write_all(&Hello::for_vm(Role::Router, vm()).encode()).unwrap();
        let mut answer = [0; HELLO_BYTES_MIN + 3];
        stream.read_exact(&mut answer).unwrap();
        assert_eq!(Hello::decode(&answer).unwrap().unwrap().0, Hello::for_vm(Role::Port, vm()));
        Router { stream, decoder: Decoder::default() }
    }

    pub fn send(&mut self, offload: Offload, frame: &[u8]) {
        let mut bytes = vec![];
        encode(frame, offload, &mut bytes).unwrap();
        self.stream.write_all(&bytes).unwrap();
    }

    /// The next frame, or `None` when the link has ended.
    pub fn receive(&mut self) -> Option<(Offload, Vec<u8>)> {
        loop {
            match self.decoder.next_message().unwrap() {
                Some(Message::Frame(offload, frame)) => return Some((offload, frame.to_vec())),
                Some(Message::Abilities(_)) => continue,
                None => {}
            }
            match self.stream.read(self.decoder.spare()) {
                Ok(0) => return None,
                Ok(count) => self.decoder.filled(count),
                Err(e) if e.kind() == io::ErrorKind::ConnectionReset => return None,
                Err(e) => panic!("nothing from the port: {e}"),
            }
        }
    }

    /// What the port tells next of its driver; frames before that are passed over.
    pub fn receive_abilities(&mut self) -> Abilities {
        loop {
            match self.decoder.next_message().unwrap() {
                Some(Message::Abilities(abilities)) => return abilities,
                Some(Message::Frame(..)) => {}
                None => {
                    let count = self.stream.read(self.decoder.spare()).unwrap();
                    assert_ne!(count, 0, "the link has ended");
                    self.decoder.filled(count);
                }
            }
        }
    }

    /// Number of the next frame of [`numbered`].
    pub fn receive_number(&mut self) -> Option<u32> {
        self.receive().map(|(_, frame)| number(&frame))
    }
}

/// A frame of 14 bytes or more that carries a number and can be checked.
pub fn numbered(number: u32, bytes: usize) -> Vec<u8> {
    let mut frame: Vec<u8> = (0..bytes).map(|i| (i as u32).wrapping_mul(7).wrapping_add(number) as u8).collect();
    frame[..4].copy_from_slice(&number.to_le_bytes());
    frame
}

/// The number in a frame of [`numbered`], which must be whole.
pub fn number(frame: &[u8]) -> u32 {
    let number = u32::from_le_bytes(frame[..4].try_into().unwrap());
    assert!(frame == numbered(number, frame.len()), "frame {number} is damaged");
    number
}
