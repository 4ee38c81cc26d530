//! Lines compiled: the first one that matches, found without looking at the others.
//!
//! The lines of one place stand together and their ports become a list of ranges, each with the first line for it
//! ([`PortLists`]). The places are then found by their form: names by hashing ([`Names`]), addresses in a sorted list of
//! ranges ([`Ranges`]). What matches a host are at most: `*`, the host's name, each suffix of it that some line names, and
//! each prefix around its address that some line names; the least line of all these decides.

use std::{collections::BTreeMap, net::IpAddr};

use hashbrown::DefaultHashBuilder;

use super::{
    Place, Ports, Route,
    names::{Names, Suffix},
    port_lists::{PortList, PortLists},
    ranges::Ranges,
};

/// Compiled lines, of which all are for one VM. Lines are known by their number.
#[derive(Debug)]
pub(super) struct Index {
    lists: PortLists,
    /// What is for every host.
    any: PortList,
    /// The first line that is for every host and every port.
    everything: Option<u32>,
    names: Names,
    v4: Ranges<u32>,
    v6: Ranges<u128>,
}

impl Index {
    /// Compiles lines. They come in order, each with its number.
    pub(super) fn new<'a>(routes: impl Iterator<Item = (u32, &'a Route)>, hasher: &DefaultHashBuilder) -> Index {
        let mut places = BTreeMap::<&Place, Vec<(u32, &Ports)>>::new();
        for (line, route) in routes {
            places.entry(&route.target().place).or_default().push((line, &route.target().ports));
        }
        let mut lists = PortLists::default();
        let (mut names, mut v4, mut v6) = (Names::default(), vec![], vec![]);
        let (mut any, mut everything) = (PortList::NONE, None);
        for (place, lines) in places {
            let list = lists.add(&lines);
            match place {
                Place::Any => {
                    any = list;
                    everything = lines.iter().find(|(_, ports)| ports.is_all()).map(|(line, _)| *line);
                }
                Place::Name(name) => names.entry(name.as_str(), hasher).exact = list,
                Place::Suffix(name) => names.entry(name.as_str(), hasher).suffix = list,
                Place::Prefix(prefix) => {
                    let family = if prefix.parts().0.is_ipv4() { &mut v4 } else { &mut v6 };
                    family.push((prefix.range(), list));
                }
            }
        }
        let v4 = Ranges::new(v4, &lists, |number| number as u32);
        let v6 = Ranges::new(v6, &lists, |number| number);
        Index { lists, any, everything, names, v4, v6 }
    }

    /// How many labels the names of its lines have, a bit for each number.
    pub(super) fn depths(&self) -> u128 {
        self.names.depths()
    }

    /// The first line for every host and for a port.
    pub(super) fn for_any(&self, port: u16) -> Option<u32> {
        self.lists.line(self.any, port)
    }

    /// The first line for an address, in its canonical form, and for a port.
    pub(super) fn for_address(&self, address: IpAddr, port: u16) -> Option<u32> {
        let mut first = self.for_any(port);
        match address {
            IpAddr::V4(address) => self.v4.first(address.to_bits(), port, &self.lists, &mut first),
            IpAddr::V6(address) => self.v6.first(address.to_bits(), port, &self.lists, &mut first),
        }
        first
    }

    /// The first line that names a suffix of a host and is for a port.
    pub(super) fn for_suffix(&self, suffix: Suffix<'_>, port: u16) -> Option<u32> {
        self.names.line(suffix, port, &self.lists)
    }

    /// The first line for every host and every port.
    pub(super) fn for_everything(&self) -> Option<u32> {
        self.everything
    }

    /// The first line that names a suffix of a host, whatever its ports.
    pub(super) fn about_suffix(&self, suffix: Suffix<'_>) -> Option<u32> {
        self.names.least(suffix, &self.lists)
    }
}

/// The lesser of two lines, of which either may be missing.
pub(super) fn least(a: Option<u32>, b: Option<u32>) -> Option<u32> {
    match (a, b) {
        (Some(a), Some(b)) => Some(a.min(b)),
        (a, b) => a.or(b),
    }
}
