//! A dial request from a stranger: it is refused, or it is an address that can be dialled and survives.
#![no_main]

use libfuzzer_sys::fuzz_target;
use wire::uplink::{DIAL_REQUEST_BYTES, DialAnswer, DialRequest};

fuzz_target!(|input: ([u8; DIAL_REQUEST_BYTES], u8)| {
    let (bytes, answer) = input;
    if let Ok(request) = DialRequest::decode(bytes) {
        assert!(request.0.port() != 0 && !request.0.ip().is_unspecified());
        assert_eq!(request.encode(), bytes);
    }
    if let Ok(known) = DialAnswer::try_from(answer) {
        assert_eq!(known as u8, answer);
    }
});
