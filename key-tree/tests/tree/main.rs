//! The key tree as its users see it: what it is for, its laws, what hostile tokens do, and its fixed vectors.

#![allow(clippy::unwrap_used, reason = "a test that unwraps fails, as it should")]

mod hostile;
mod laws;
mod planted;
mod uses;
mod vectors;
