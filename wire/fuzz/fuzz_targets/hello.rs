//! A hello from a stranger: it never panics, it is decided as early as it can be, and what it means survives.
#![no_main]

use libfuzzer_sys::fuzz_target;
use wire::hello::{HELLO_BYTES_MAX, Hello};

fuzz_target!(|bytes: &[u8]| {
    let whole = Hello::decode(bytes);
    if let Ok(Some((hello, length))) = &whole {
        assert!(*length <= HELLO_BYTES_MAX);
        assert_eq!(hello.encode(), bytes[..*length]);
        assert_eq!(Hello::missing(&bytes[..*length]), 0);
    }
    // Every beginning either needs more, or is decided as the whole is.
    for cut in 0..bytes.len().min(HELLO_BYTES_MAX) {
        match Hello::decode(&bytes[..cut]) {
            Ok(None) => assert!(Hello::missing(&bytes[..cut]) > 0),
            Ok(decided) => assert_eq!(Ok(decided), whole),
            Err(_) => assert!(whole.is_err()),
        }
    }
});
