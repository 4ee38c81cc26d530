//! What lines say of names, found by hashing.

use std::hash::{BuildHasher as _, Hasher as _};

use hashbrown::{DefaultHashBuilder, HashTable};

use super::{index::least, port_lists::PortList, port_lists::PortLists};

/// The names of lines. A host is looked up by itself and by each of its suffixes that has as many labels as the name of
/// some line, so a long name costs no more than the lines' own names are various. Those look-ups do not wait for one
/// another, as they would in a tree of labels; that one was tried, and took twice as long.
#[derive(Debug, Default)]
pub(super) struct Names {
    entries: HashTable<Entry>,
    /// The names of all entries.
    text: Vec<u8>,
    /// Bit n: there is a name with n labels; a name has at most 127.
    depths: u128,
}

/// What lines say of a name.
#[derive(Debug)]
pub(super) struct Entry {
    /// Where the name is in `text`.
    at: u32,
    bytes: u8,
    /// Of the name itself.
    pub(super) exact: PortList,
    /// Of the name and all names below it.
    pub(super) suffix: PortList,
}

/// The end of a host's name, from the top-level domain to the whole.
#[derive(Clone, Copy)]
pub(super) struct Suffix<'a> {
    name: &'a [u8],
    hash: u64,
    depth: u32,
    is_whole: bool,
}

/// Calls `found` with each suffix of `name` that has as many labels as a bit of `depths` says. The hash is keyed: lists
/// from elsewhere cannot be made to collide.
pub(super) fn suffixes(name: &[u8], depths: u128, hasher: &DefaultHashBuilder, mut found: impl FnMut(Suffix<'_>)) {
    let (mut end, mut depth) = (name.len(), 1);
    while depth < 128 && depths >> depth != 0 {
        let dot = name[..end].iter().rposition(|&b| b == b'.');
        if depths >> depth & 1 == 1 {
            let name = dot.map_or(name, |dot| &name[dot + 1..]);
            found(Suffix { name, hash: hash(hasher, name), depth, is_whole: dot.is_none() });
        }
        let Some(dot) = dot else { return };
        (end, depth) = (dot, depth + 1);
    }
}

fn hash(hasher: &DefaultHashBuilder, name: &[u8]) -> u64 {
    let mut state = hasher.build_hasher();
    state.write(name);
    state.finish()
}

impl Names {
    /// The entry of a name, made if it is not there. All look-ups take the same hasher.
    pub(super) fn entry(&mut self, name: &str, hasher: &DefaultHashBuilder) -> &mut Entry {
        let (name, text) = (name.as_bytes(), &mut self.text);
        let same = |entry: &Entry| entry.name(text) == name;
        if self.entries.find(hash(hasher, name), same).is_none() {
            let entry =
                Entry { at: text.len() as u32, bytes: name.len() as u8, exact: PortList::NONE, suffix: PortList::NONE };
            text.extend_from_slice(name);
            self.depths |= 1 << (name.iter().filter(|&&b| b == b'.').count() + 1);
            self.entries.insert_unique(hash(hasher, name), entry, |entry| hash(hasher, entry.name(text)));
        }
        let entry = self.entries.find_mut(hash(hasher, name), |entry| entry.name(text) == name);
        entry.expect("the entry was found or made")
    }

    /// How many labels the names have, a bit for each number.
    pub(super) fn depths(&self) -> u128 {
        self.depths
    }

    /// The first line for a host with this suffix and for a port.
    pub(super) fn line(&self, suffix: Suffix<'_>, port: u16, lists: &PortLists) -> Option<u32> {
        let entry = self.find(suffix)?;
        let exact = if suffix.is_whole { lists.line(entry.exact, port) } else { None };
        least(exact, lists.line(entry.suffix, port))
    }

    /// The first line for a host with this suffix, whatever its ports.
    pub(super) fn least(&self, suffix: Suffix<'_>, lists: &PortLists) -> Option<u32> {
        let entry = self.find(suffix)?;
        let exact = if suffix.is_whole { lists.least(entry.exact) } else { None };
        least(exact, lists.least(entry.suffix))
    }

    fn find(&self, suffix: Suffix<'_>) -> Option<&Entry> {
        if self.depths >> suffix.depth & 1 == 0 {
            return None;
        }
        self.entries.find(suffix.hash, |entry| entry.name(&self.text) == suffix.name)
    }
}

impl Entry {
    fn name<'a>(&self, text: &'a [u8]) -> &'a [u8] {
        let at = self.at as usize;
        &text[at..at + usize::from(self.bytes)]
    }
}
