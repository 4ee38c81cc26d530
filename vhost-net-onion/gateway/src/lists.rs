//! Doubly linked lists over small numbers: every item is in one list at most, and moves in O(1).

/// Some lists of items that are numbers, from 0 and dense.
#[derive(Debug)]
pub(crate) struct Lists {
    ends: Vec<Ends>,
    links: Vec<Link>,
}

#[derive(Clone, Copy, Debug)]
struct Ends {
    first: u32,
    last: u32,
}

#[derive(Clone, Copy, Debug)]
struct Link {
    previous: u32,
    next: u32,
    list: u32,
}

/// No item, and no list.
const NONE: u32 = u32::MAX;

const UNLINKED: Link = Link { previous: NONE, next: NONE, list: NONE };

impl Lists {
    /// So many empty lists.
    pub(crate) fn new(count: usize) -> Lists {
        Lists { ends: vec![Ends { first: NONE, last: NONE }; count], links: Vec::new() }
    }

    /// The first item of a list.
    pub(crate) fn first(&self, list: usize) -> Option<u32> {
        Some(self.ends[list].first).filter(|item| *item != NONE)
    }

    /// The list that an item is in.
    pub(crate) fn list_of(&self, item: u32) -> Option<usize> {
        self.links.get(item as usize).map(|link| link.list).filter(|list| *list != NONE).map(|list| list as usize)
    }

    /// Makes an item the last of a list, wherever it was.
    pub(crate) fn push(&mut self, list: usize, item: u32) {
        if self.ends[list].last == item {
            return;
        }
        self.remove(item);
        if self.links.len() <= item as usize {
            self.links.resize(item as usize + 1, UNLINKED);
        }
        let last = std::mem::replace(&mut self.ends[list].last, item);
        match last {
            NONE => self.ends[list].first = item,
            last => self.links[last as usize].next = item,
        }
        self.links[item as usize] = Link { previous: last, next: NONE, list: list as u32 };
    }

    /// Takes an item out of its list. Returns the list.
    pub(crate) fn remove(&mut self, item: u32) -> Option<usize> {
        let list = self.list_of(item)?;
        let link = std::mem::replace(&mut self.links[item as usize], UNLINKED);
        match link.previous {
            NONE => self.ends[list].first = link.next,
            previous => self.links[previous as usize].next = link.next,
        }
        match link.next {
            NONE => self.ends[list].last = link.previous,
            next => self.links[next as usize].previous = link.previous,
        }
        Some(list)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn items(lists: &mut Lists, list: usize) -> Vec<u32> {
        let mut items = vec![];
        while let Some(item) = lists.first(list) {
            lists.remove(item);
            items.push(item);
        }
        items
    }

    #[test]
    fn items_move_between_lists_and_keep_their_order() {
        let mut lists = Lists::new(2);
        for item in [3, 1, 4, 0, 2] {
            lists.push(0, item);
        }
        lists.push(0, 2);
        lists.push(0, 1);
        lists.push(1, 4);
        lists.push(1, 3);
        assert_eq!((lists.list_of(4), lists.list_of(0), lists.list_of(9)), (Some(1), Some(0), None));
        assert_eq!((lists.remove(0), lists.remove(0), lists.remove(77)), (Some(0), None, None));
        assert_eq!((items(&mut lists, 0), items(&mut lists, 1)), (vec![2, 1], vec![4, 3]));
        lists.push(1, 4);
        assert_eq!(items(&mut lists, 1), [4]);
    }
}
