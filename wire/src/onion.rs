//! Onion services, as both ends speak of them.

mod address;

pub use address::{AddressError, OnionAddress};
