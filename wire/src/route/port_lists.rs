//! For each place, which line is the first for which port.

use std::collections::BTreeSet;

use super::Ports;

/// The port lists of all places, in one piece of memory.
#[derive(Debug, Default)]
pub(super) struct PortLists {
    /// Each list's ranges follow one another, in order: the first port of a range and its line or [`NO_LINE`]. A range
    /// ends where the next one begins.
    ranges: Vec<(u16, u32)>,
    /// Where each list begins and ends in `ranges`, and its first line.
    lists: Vec<(u32, u32, u32)>,
}

/// A list of [`PortLists`]. Most places have one line for all ports; then this is the line, and there is no list.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct PortList(u32);

/// Set in a [`PortList`] that is the place of a list and not a line.
const IS_LIST: u32 = 1 << 31;

const NO_LINE: u32 = u32::MAX;

impl PortList {
    /// No line for any port.
    pub(super) const NONE: PortList = PortList(NO_LINE);
}

impl PortLists {
    /// Adds the lines of a place, in order, of which there is at least one.
    pub(super) fn add(&mut self, lines: &[(u32, &Ports)]) -> PortList {
        let least = lines[0].0;
        if lines[0].1.is_all() {
            return PortList(least);
        }
        let begin = self.ranges.len();
        // At each port where something begins or ends: which lines begin to be for it, and which are no more.
        let mut edges = vec![];
        for (line, ports) in lines {
            for &(first, last) in ports.ranges() {
                edges.push((u32::from(first), true, *line));
                edges.push((u32::from(last) + 1, false, *line));
            }
        }
        edges.sort_unstable();
        let mut open = BTreeSet::new();
        for at in edges.chunk_by(|a, b| a.0 == b.0) {
            for &(_, begins, line) in at {
                if begins {
                    open.insert(line)
                } else {
                    open.remove(&line)
                };
            }
            let line = open.first().copied().unwrap_or(NO_LINE);
            let before = self.ranges[begin..].last().map_or(NO_LINE, |(_, line)| *line);
            // Port 65,536 is none: what ends there ends with the list.
            if let (Ok(first), true) = (u16::try_from(at[0].0), line != before) {
                self.ranges.push((first, line));
            }
        }
        self.lists.push((begin as u32, self.ranges.len() as u32, least));
        PortList(IS_LIST | (self.lists.len() - 1) as u32)
    }

    /// The first line of a list that is for a port.
    pub(super) fn line(&self, list: PortList, port: u16) -> Option<u32> {
        if list.0 & IS_LIST == 0 {
            return Some(list.0);
        }
        let (begin, end, _) = *self.lists.get((list.0 & !IS_LIST) as usize)?;
        let ranges = &self.ranges[begin as usize..end as usize];
        let at = ranges.partition_point(|(first, _)| *first <= port).checked_sub(1)?;
        Some(ranges[at].1).filter(|line| *line != NO_LINE)
    }

    /// The first line of a list, whatever its ports.
    pub(super) fn least(&self, list: PortList) -> Option<u32> {
        if list.0 & IS_LIST == 0 {
            return Some(list.0);
        }
        self.lists.get((list.0 & !IS_LIST) as usize).map(|(_, _, least)| *least)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_line_for_each_port() {
        let texts = ["80", "1-100", "90-200,65535", "443", "1-65535"];
        let ports: Vec<Ports> = texts.iter().map(|text| text.parse().unwrap()).collect();
        for count in 1..=texts.len() {
            let lines: Vec<_> = (7..).zip(&ports[..count]).collect();
            let mut lists = PortLists::default();
            let other = lists.add(&[(3, &ports[3])]);
            let list = lists.add(&lines);
            for port in 1..=u16::MAX {
                let expected = lines.iter().find(|(_, ports)| ports.contains(port)).map(|(line, _)| *line);
                assert_eq!(lists.line(list, port), expected, "{port} of {count}");
            }
            assert_eq!(lists.least(list), Some(7));
            assert_eq!((lists.line(other, 442), lists.line(other, 443), lists.line(other, 444)), (None, Some(3), None));
        }
    }

    #[test]
    fn no_list_has_no_line() {
        let lists = PortLists::default();
        assert_eq!((lists.line(PortList::NONE, 1), lists.least(PortList::NONE)), (None, None));
    }
}
