//! The addresses that may be dialled: one complete list a line, as JSON, each replacing the one before it.
//!
//! A line that is none is refused as a whole and the list before it stays: half a list would be a guess.

use std::{
    collections::HashSet,
    io::{self, BufRead, BufReader, Read},
    net::SocketAddr,
    sync::Arc,
    time::Duration,
};

use tokio::sync::watch;

/// Bytes of the longest line: 10,000 relays with two addresses each, with room to spare.
pub const LINE_BYTES_MAX: u64 = 2 << 20;

/// How long a dial may be ahead of the list that allows it. The router learns of new relays, reports them and dials one
/// at once; the report comes by way of the agent, the dial comes directly.
pub const GRACE: Duration = Duration::from_secs(1);

/// The list, shared by all connections. Empty at first: nothing may be dialled.
#[derive(Clone, Debug, Default)]
pub struct AllowList(Arc<watch::Sender<HashSet<SocketAddr>>>);

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
    /// Whether `address` may be dialled now or within [`GRACE`].
    pub async fn allows_soon(&self, address: &SocketAddr) -> bool {
        let mut lists = self.0.subscribe();
        let listed = lists.wait_for(|list| list.contains(address));
        matches!(tokio::time::timeout(GRACE, listed).await, Ok(Ok(_)))
    }

    /// Replaces the list by that of `line`; returns how many addresses it has.
    ///
    /// # Errors
    /// When the line is no list; nothing changes then.
    pub fn replace(&self, line: &[u8]) -> Result<usize, AllowListError> {
        let list: HashSet<SocketAddr> = serde_json::from_slice(line).map_err(AllowListError::Json)?;
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
            self.0.borrow().contains(address)
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_dial_may_be_a_little_ahead_of_its_list() {
        let list = AllowList::default();
        let relay = address("127.0.0.1:1");
        let asked = tokio::spawn({
            let list = list.clone();
            async move { list.allows_soon(&relay).await }
        });
        tokio::time::sleep(GRACE / 2).await;
        list.replace(b"[\"127.0.0.1:1\"]").unwrap();
        assert!(asked.await.unwrap());
        assert!(!list.allows_soon(&address("127.0.0.1:2")).await);
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
