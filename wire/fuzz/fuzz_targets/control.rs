//! A control message from a stranger, of each of the four kinds: refused, or it survives, and its length is honest.
#![no_main]

use std::fmt::Debug;

use libfuzzer_sys::fuzz_target;
use wire::control::{FromInit, FromRouter, ToInit, ToRouter, decode, encode};

fuzz_target!(|bytes: &[u8]| {
    survives::<ToInit>(bytes);
    survives::<FromInit>(bytes);
    survives::<ToRouter>(bytes);
    survives::<FromRouter>(bytes);
});

fn survives<M>(bytes: &[u8])
where
    M: serde::Serialize + serde::de::DeserializeOwned + PartialEq + Debug,
{
    // With the stranger's own length, and as the body of a message whose length is right.
    let framed = [&u32::try_from(bytes.len()).expect("a fuzzer's input is short").to_le_bytes(), bytes].concat();
    for bytes in [bytes, &framed] {
        let Ok(Some((message, length))) = decode::<M>(bytes) else { continue };
        assert!(length <= bytes.len());
        // JSON may be written in many ways, so the meaning is compared, not the bytes.
        let again = encode(&message).expect("a message that came in may go out");
        assert_eq!(decode::<M>(&again).expect("our own message"), Some((message, again.len())));
    }
}
