//! Prefixes of addresses as a sorted list of ranges.

use super::port_lists::{PortList, PortLists};

/// The prefixes of one family. Two prefixes are disjoint or one is within the other, so they cut the addresses into
/// ranges, each of which has one innermost prefix; around that stand others, up to the outermost.
#[derive(Debug)]
pub(super) struct Ranges<A> {
    /// Where each range begins. It ends where the next one does.
    begins: Vec<A>,
    /// The innermost prefix of each range, or [`NOTHING`].
    innermost: Vec<u32>,
    prefixes: Vec<Prefix>,
}

#[derive(Debug)]
struct Prefix {
    list: PortList,
    /// The next prefix around it, or [`NOTHING`].
    around: u32,
    /// The first line of this prefix and of all around it: nothing better is to be found here.
    least: u32,
}

const NOTHING: u32 = u32::MAX;

impl<A: Copy + Ord> Ranges<A> {
    /// Compiles prefixes, each with its first and last address, none twice. `narrow` makes an address of a number.
    pub(super) fn new(
        mut prefixes: Vec<((u128, u128), PortList)>,
        lists: &PortLists,
        narrow: impl Fn(u128) -> A,
    ) -> Ranges<A> {
        // Outer ones before inner ones.
        prefixes.sort_unstable_by_key(|((first, last), _)| (*first, std::cmp::Reverse(*last)));
        let mut ranges = Ranges { begins: vec![], innermost: vec![], prefixes: vec![] };
        let mut open: Vec<(u128, u32)> = vec![];
        for ((first, last), list) in prefixes {
            ranges.close(&mut open, |end| end < first, &narrow);
            let around = open.last().map_or(NOTHING, |(_, number)| *number);
            let outer = ranges.prefixes.get(around as usize).map_or(u32::MAX, |prefix| prefix.least);
            let least = lists.least(list).unwrap_or(u32::MAX).min(outer);
            let number = ranges.prefixes.len() as u32;
            ranges.prefixes.push(Prefix { list, around, least });
            ranges.begin(narrow(first), number);
            open.push((last, number));
        }
        ranges.close(&mut open, |_| true, &narrow);
        ranges
    }

    /// Ends the open prefixes, from the innermost, as long as their last addresses say so.
    fn close(&mut self, open: &mut Vec<(u128, u32)>, ends: impl Fn(u128) -> bool, narrow: &impl Fn(u128) -> A) {
        while let Some((last, _)) = open.pop_if(|(last, _)| ends(*last)) {
            let around = open.last().copied();
            // One that ends with the one around it leaves nothing behind it, nor does one that ends with the family's
            // last address: what follows that is 0, or cannot be counted.
            let Some(behind) = last.checked_add(1).filter(|_| around.is_none_or(|(end, _)| end > last)) else {
                continue;
            };
            if narrow(behind) > narrow(last) {
                self.begin(narrow(behind), around.map_or(NOTHING, |(_, number)| number));
            }
        }
    }

    /// From this address on, this is the innermost prefix.
    fn begin(&mut self, address: A, prefix: u32) {
        if self.begins.last() == Some(&address) {
            self.begins.pop();
            self.innermost.pop();
        }
        self.begins.push(address);
        self.innermost.push(prefix);
    }

    /// Puts into `first` the first line for an address and a port, if it is before what stands there.
    pub(super) fn first(&self, address: A, port: u16, lists: &PortLists, first: &mut Option<u32>) {
        let at = self.begins.partition_point(|begin| *begin <= address);
        let mut number = at.checked_sub(1).map_or(NOTHING, |at| self.innermost[at]);
        while let Some(prefix) = self.prefixes.get(number as usize) {
            if first.is_some_and(|first| first < prefix.least) {
                return;
            }
            *first = super::index::least(*first, lists.line(prefix.list, port));
            number = prefix.around;
        }
    }
}
