//! The addresses that may be dialled: one complete list a line, as JSON, each replacing the one before it.
//!
//! An element is an address, or a pair: a stand-in that the router dials, and the address that is dialled instead, which is
//! that of a pluggable transport's process on this host ([`wire::entry`]).
//!
//! A line that is none is refused as a whole and the list before it stays: half a list would be a guess.

use std::{
    collections::HashMap,
    io::{self, BufRead, BufReader, Read},
    net::SocketAddr,
    sync::Arc,
    time::Duration,
};

use serde::{Deserialize, Serialize};
use tokio::sync::watch;

/// Bytes of the longest line: 10,000 relays with two addresses each, with room to spare.
pub const LINE_BYTES_MAX: u64 = 2 << 20;

/// How long a dial may be ahead of the list that allows it. The router learns of new relays, reports them and dials one
/// at once; the report comes by way of the agent, the dial comes directly.
pub const GRACE: Duration = Duration::from_secs(1);

/// The list, shared by all connections: what may be asked for, and what is dialled then. Empty at first: nothing may be.
#[derive(Clone, Debug, Default)]
pub struct AllowList(Arc<watch::Sender<HashMap<SocketAddr, SocketAddr>>>);

/// An element of a list, as it stands in JSON.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Entry {
    /// Dialled as asked.
    Address(SocketAddr),
    /// Asked for by the first address, and the second one is dialled.
    StandIn(SocketAddr, SocketAddr),
}

impl Entry {
    fn pair(self) -> (SocketAddr, SocketAddr) {
        match self {
            Entry::Address(address) => (address, address),
            Entry::StandIn(asked, dialled) => (asked, dialled),
        }
    }
}

/// Why a line is not a list.
#[derive(Debug, thiserror::Error)]
pub enum AllowListError {
    /// The pipe cannot be read.
    #[error("cannot read the allow list")]
    Read(#[source] io::Error),
    /// Longer than a list may be.
    #[error("a line of the allow list is longer than {LINE_BYTES_MAX} bytes")]
    Long,
    /// No JSON array of addresses.
    #[error("a line of the allow list is no list of addresses; the list before it stays")]
    Json(#[source] serde_json::Error),
}

impl AllowList {
    /// What is to be dialled for `address`, if it may be now or within [`GRACE`].
    pub async fn allowed_soon(&self, address: &SocketAddr) -> Option<SocketAddr> {
        let mut lists = self.0.subscribe();
        let listed = lists.wait_for(|list| list.contains_key(address));
        tokio::time::timeout(GRACE, listed).await.ok()?.ok()?.get(address).copied()
    }

    /// Replaces the list by that of `line`; returns how many addresses it has.
    ///
    /// # Errors
    /// When the line is no list; nothing changes then.
    pub fn replace(&self, line: &[u8]) -> Result<usize, AllowListError> {
        let list: Vec<Entry> = serde_json::from_slice(line).map_err(AllowListError::Json)?;
        let list: HashMap<_, _> = list.into_iter().map(Entry::pair).collect();
        let addresses = list.len();
        self.0.send_replace(list);
        Ok(addresses)
    }

    /// Follows `input` until it ends. Blocks: give it a thread.
    ///
    /// # Errors
    /// When the input cannot be read, or a line is too long to find its end.
    pub fn follow(&self, input: impl Read) -> Result<(), AllowListError> {
        let mut input = BufReader::new(input);
        loop {
            let mut line = Vec::new();
            let read = (&mut input).take(LINE_BYTES_MAX + 1).read_until(b'\n', &mut line);
            match read.map_err(AllowListError::Read)? as u64 {
                0 => return Ok(()),
                read if read > LINE_BYTES_MAX => return Err(AllowListError::Long),
                _ => match self.replace(&line) {
                    Ok(addresses) => tracing::info!(addresses, "new allow list"),
                    Err(error) => tracing::error!(%error, "allow list refused"),
                },
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    impl AllowList {
        fn allows(&self, address: &SocketAddr) -> bool {
            self.0.borrow().contains_key(address)
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_dial_may_be_a_little_ahead_of_its_list() {
        let list = AllowList::default();
        let relay = address("127.0.0.1:1");
        let asked = tokio::spawn({
            let list = list.clone();
            async move { list.allowed_soon(&relay).await }
        });
        tokio::time::sleep(GRACE / 2).await;
        list.replace(b"[\"127.0.0.1:1\"]").unwrap();
        assert_eq!(asked.await.unwrap(), Some(relay));
        assert_eq!(list.allowed_soon(&address("127.0.0.1:2")).await, None);
    }

    fn address(text: &str) -> SocketAddr {
        text.parse().unwrap()
    }

    #[test]
    fn nothing_is_allowed_before_the_first_list_and_each_list_replaces_the_last() {
        let list = AllowList::default();
        assert!(!list.allows(&address("127.0.0.1:1")));
        assert_eq!(list.replace(br#"["127.0.0.1:1","[::1]:2"]"#).unwrap(), 2);
        assert!(list.allows(&address("127.0.0.1:1")) && list.allows(&address("[::1]:2")));
        assert!(!list.allows(&address("127.0.0.1:2")), "another port is another address");
        assert!(!list.allows(&address("[::ffff:127.0.0.1]:1")), "a mapped address is another address");
        list.replace(br#"["127.0.0.1:2"]"#).unwrap();
        assert!(!list.allows(&address("127.0.0.1:1")) && list.allows(&address("127.0.0.1:2")));
    }

    #[tokio::test(start_paused = true)]
    async fn a_stand_in_is_never_dialled_itself_nor_what_it_stands_for_asked_for() {
        let list = AllowList::default();
        list.replace(br#"["192.0.2.1:1",["127.0.0.1:1","127.0.0.1:4000"]]"#).unwrap();
        assert_eq!(list.allowed_soon(&address("127.0.0.1:1")).await, Some(address("127.0.0.1:4000")));
        assert_eq!(list.allowed_soon(&address("127.0.0.1:4000")).await, None);
        list.replace(br#"["192.0.2.1:1"]"#).unwrap();
        assert_eq!(list.allowed_soon(&address("127.0.0.1:1")).await, None);
        assert!(list.replace(br#"[["127.0.0.1:1"]]"#).is_err());
    }

    #[test]
    fn a_bad_line_changes_nothing_and_the_end_keeps_the_last_list() {
        let list = AllowList::default();
        let lines = "[\"127.0.0.1:1\"]\n[\"127.0.0.1:2\", \"name:80\"]\n{}\n\n\u{fffd}\n[\"127.0.0.1";
        list.follow(lines.as_bytes()).unwrap();
        assert!(list.allows(&address("127.0.0.1:1")) && !list.allows(&address("127.0.0.1:2")));
    }

    #[test]
    fn an_endless_line_ends_the_reading_and_not_the_memory() {
        let list = AllowList::default();
        list.replace(br#"["127.0.0.1:1"]"#).unwrap();
        assert!(matches!(list.follow(io::repeat(b' ')), Err(AllowListError::Long)));
        assert!(list.allows(&address("127.0.0.1:1")));
    }
}
