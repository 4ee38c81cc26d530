//! The description of a Tor network from a file that anybody wrote: refused, or it survives.
#![no_main]

use libfuzzer_sys::fuzz_target;
use wire::network::TorNetwork;

fuzz_target!(|json: &[u8]| {
    let Ok(network) = TorNetwork::from_json(json) else { return };
    assert!(!network.addresses().is_empty());
    let again = serde_json::to_vec(&network).expect("a description is JSON");
    assert_eq!(TorNetwork::from_json(&again).expect("our own description"), network);
});
