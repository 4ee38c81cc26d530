//! What people and programs see of the agent: events, tokens, the view and the console in a real terminal (tmux), and
//! what a generator of requests makes of the API.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

#[path = "clients/api.rs"]
mod api;
#[path = "clients/terminal.rs"]
mod terminal;
#[path = "clients/tokens.rs"]
mod tokens;
#[path = "world/world.rs"]
mod world;
