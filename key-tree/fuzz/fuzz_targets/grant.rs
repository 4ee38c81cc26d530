//! A grant from a stranger: refused. Nobody has the secret of this root, so nothing is ever taken.
#![no_main]

use key_tree::{Chain, RevocationId};
use libfuzzer_sys::fuzz_target;

/// The public key of RFC 8032, section 7.1, test 1.
const ROOT: &str = "d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a";

fuzz_target!(|bytes: &[u8]| {
    let root = ROOT.parse().expect("a public key");
    assert!(Chain::of_root(root).extend(bytes).is_err());
    if let Ok(text) = std::str::from_utf8(bytes) {
        let _ = text.parse::<RevocationId>();
    }
});
