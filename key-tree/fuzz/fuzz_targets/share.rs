//! What a person typed or scanned as a share, and a file that claims to be a sealed root.
#![no_main]

use key_tree::{RootKey, Share};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| {
    for share in [Share::from_words(text), Share::from_ur(text), Share::from_ur(&format!("ur:sskr/{text}"))] {
        let Ok(share) = share else { continue };
        assert_eq!(Share::from_words(&share.words()), Ok(share.clone()));
        assert_eq!(Share::from_ur(&share.ur()), Ok(share.clone()));
        let _ = RootKey::combine(&[share.clone(), share]);
    }
    let _ = RootKey::public_of_sealed(text);
    let _ = RootKey::public_of_sealed(&format!("oht root 1 {text}"));
});
