//! Who owns the network sockets of a namespace.

use std::{collections::BTreeMap, fs, path::PathBuf};

use anyhow::Result;

use crate::netns::Netns;

/// Every process inside that holds a network socket: its name, and the socket's table. AF_UNIX is no network.
pub(super) fn owners(netns: &Netns) -> Result<Vec<(String, String)>> {
    let sockets = netns.run(inodes)?;
    let namespace = PathBuf::from(format!("net:[{}]", netns.inode()?));
    let mut owners = Vec::new();
    for process in fs::read_dir("/proc")?.flatten() {
        let path = process.path();
        if fs::read_link(path.join("ns/net")).ok() != Some(namespace.clone()) {
            continue;
        }
        let name = fs::read_to_string(path.join("comm")).unwrap_or_default().trim().to_owned();
        for descriptor in fs::read_dir(path.join("fd")).into_iter().flatten().flatten() {
            let target = fs::read_link(descriptor.path()).unwrap_or_default();
            if let Some(table) = sockets.get(&target) {
                owners.push((name.clone(), table.clone()));
            }
        }
    }
    Ok(owners)
}

/// What a descriptor of each socket links to, and the table that lists it, for the calling thread's namespace.
fn inodes() -> BTreeMap<PathBuf, String> {
    let mut found = BTreeMap::new();
    for table in ["tcp", "tcp6", "udp", "udp6", "udplite", "raw", "raw6", "icmp", "icmp6", "packet"] {
        let text = fs::read_to_string(format!("/proc/thread-self/net/{table}")).unwrap_or_default();
        for line in text.lines().skip(1) {
            let words: Vec<&str> = line.split_whitespace().collect();
            // The packet table ends with the inode; the others have it in the tenth column.
            let inode = if table == "packet" { words.last() } else { words.get(9) };
            if let Some(inode) = inode.filter(|inode| **inode != "0") {
                found.insert(PathBuf::from(format!("socket:[{inode}]")), table.to_owned());
            }
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{net::UdpSocket, os::fd::AsRawFd as _};

    #[test]
    fn an_open_socket_is_listed() {
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        let link = fs::read_link(format!("/proc/self/fd/{}", socket.as_raw_fd())).unwrap();
        assert_eq!(inodes().get(&link).map(String::as_str), Some("udp"));
    }
}
