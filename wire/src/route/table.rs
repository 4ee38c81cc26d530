//! All routes, and those of one VM.

use std::{
    collections::BTreeMap,
    net::IpAddr,
    sync::{Arc, Weak},
};

use hashbrown::DefaultHashBuilder;

use super::{
    Action, Decision, HOST_NAME_BYTES_MAX, Host, Problem, ROUTES_MAX, Route, StreamOptions, TorOptions, Verdict,
    host_name::is_onion,
    index::{Index, least},
    names,
};
use crate::VmName;

/// What happens where no line matches.
pub(super) static DEFAULT: Action = Action::Tor(TorOptions {
    stream: StreamOptions { isolate: None, optimistic: false },
    exit: super::Exit::Any,
    via: None,
    resolve: false,
});

/// Routes, compiled. The lines for all VMs are compiled once; those for some are compiled for each VM, but VMs for which
/// they are the same lines share them.
#[derive(Debug)]
pub struct RouteTable {
    routes: Vec<Route>,
    for_all: Arc<Lines>,
    /// What is compiled for some VMs, by the lines.
    for_some: Vec<(Vec<u32>, Weak<Index>)>,
}

/// The routes of one VM, compiled. A copy costs nothing, and it stays as it is when there is a new table.
#[derive(Clone, Debug)]
pub struct VmRoutes {
    for_all: Arc<Lines>,
    /// The lines for some VMs that are for this one.
    own: Option<Arc<Index>>,
}

/// What the VMs have in common.
#[derive(Debug)]
struct Lines {
    /// The lines for all VMs.
    index: Index,
    /// Of all names, so that a name is hashed once.
    hasher: DefaultHashBuilder,
    /// The different actions. They are few, and stay in the processor's cache as routes would not.
    actions: Vec<Action>,
    /// Which of these is each line's.
    action_of: Vec<u32>,
}

impl RouteTable {
    /// Compiles routes; the first that matches is to decide.
    ///
    /// # Errors
    /// When there are more than [`ROUTES_MAX`].
    pub fn compile(routes: Vec<Route>) -> Result<RouteTable, Problem> {
        if routes.len() > ROUTES_MAX {
            return Err(Problem::TooMany);
        }
        let for_all = Arc::new(Lines::new(&routes));
        Ok(RouteTable { routes, for_all, for_some: vec![] })
    }

    /// The routes of a VM: to be asked for once, when the VM is attached or the table is new.
    pub fn for_vm(&mut self, vm: &VmName) -> VmRoutes {
        let is_own = |route: &Route| !route.source().is_any() && route.source().matches(vm);
        let lines: Vec<u32> =
            (0..).zip(&self.routes).filter(|(_, route)| is_own(route)).map(|(line, _)| line).collect();
        let own = if lines.is_empty() { None } else { Some(self.some(lines)) };
        VmRoutes { for_all: Arc::clone(&self.for_all), own }
    }

    /// These lines, compiled; what no VM uses any more is forgotten.
    fn some(&mut self, lines: Vec<u32>) -> Arc<Index> {
        self.for_some.retain(|(_, index)| index.strong_count() > 0);
        let known = self.for_some.iter().find(|(known, _)| *known == lines);
        if let Some(index) = known.and_then(|(_, index)| index.upgrade()) {
            return index;
        }
        let routes = lines.iter().map(|line| (*line, &self.routes[*line as usize]));
        let index = Arc::new(Index::new(routes, &self.for_all.hasher));
        self.for_some.push((lines, Arc::downgrade(&index)));
        index
    }
}

impl Lines {
    fn new(routes: &[Route]) -> Lines {
        let hasher = DefaultHashBuilder::default();
        let index = Index::new((0..).zip(routes).filter(|(_, route)| route.source().is_any()), &hasher);
        let mut numbers = BTreeMap::new();
        let mut actions = vec![];
        let number = |route: &Route| {
            *numbers.entry(route.action().clone()).or_insert_with_key(|action| {
                actions.push(action.clone());
                actions.len() as u32 - 1
            })
        };
        let action_of = routes.iter().map(number).collect();
        Lines { index, hasher, actions, action_of }
    }

    fn action(&self, line: usize) -> &Action {
        &self.actions[self.action_of[line] as usize]
    }
}

impl Default for VmRoutes {
    /// No routes: everything goes as it goes where no line matches.
    fn default() -> VmRoutes {
        VmRoutes { for_all: Arc::new(Lines::new(&[])), own: None }
    }
}

impl VmRoutes {
    /// Decides about a connection. Allocates nothing. `port` is never 0.
    #[must_use]
    pub fn decide(&self, host: Host<'_>, port: u16) -> Decision<'_> {
        let (line, onion) = match host {
            Host::Name(name) => canonical(name, |name| (self.for_name(name, port), is_onion(name))),
            Host::Address(address) => (self.for_address(address.to_canonical(), port), false),
        };
        let line = line.map(|line| line as usize);
        let action = line.map_or(&DEFAULT, |line| self.for_all.action(line));
        Decision { line, verdict: Verdict::of(action, onion) }
    }

    /// How the addresses of a name are looked up, if a DNS question for it is to be answered with its real ones.
    ///
    /// A question has no port. The first line decides that is about the name, for whatever ports, or about every host and
    /// every port. Lines about every host and some ports are passed over: they will match the address as well. So no
    /// line about a name is evaded by asking for its addresses, if it comes before the one that says `resolve`.
    #[must_use]
    pub fn resolution(&self, name: &str) -> Option<&TorOptions> {
        canonical(name, |name| {
            let mut first = self.all().fold(None, |first, index| least(first, index.for_everything()));
            names::suffixes(name.as_bytes(), self.depths(), &self.for_all.hasher, |suffix| {
                first = self.all().fold(first, |first, index| least(first, index.about_suffix(suffix)));
            });
            match first.map(|line| self.for_all.action(line as usize)) {
                Some(Action::Tor(tor)) if tor.resolve && !is_onion(name) => Some(tor),
                _ => None,
            }
        })
    }

    /// Whether there is a [resolution](VmRoutes::resolution).
    #[must_use]
    pub fn resolves(&self, name: &str) -> bool {
        self.resolution(name).is_some()
    }

    /// Whether a connection that was opened by these routes may stay when there are new ones.
    #[must_use]
    pub fn keeps(&self, new: &VmRoutes, host: Host<'_>, port: u16) -> bool {
        self.decide(host, port).verdict.keeps(&new.decide(host, port).verdict)
    }

    fn for_name(&self, name: &str, port: u16) -> Option<u32> {
        let mut first = self.all().fold(None, |first, index| least(first, index.for_any(port)));
        names::suffixes(name.as_bytes(), self.depths(), &self.for_all.hasher, |suffix| {
            first = self.all().fold(first, |first, index| least(first, index.for_suffix(suffix, port)));
        });
        first
    }

    fn for_address(&self, address: IpAddr, port: u16) -> Option<u32> {
        self.all().fold(None, |first, index| least(first, index.for_address(address, port)))
    }

    fn depths(&self) -> u128 {
        self.all().fold(0, |depths, index| depths | index.depths())
    }

    fn all(&self) -> impl Iterator<Item = &Index> {
        std::iter::once(&self.for_all.index).chain(self.own.as_deref())
    }
}

/// Gives `then` a name as lines have it: lower case, no final dot. One that is too long to be a name is given none.
pub(super) fn canonical<T>(name: &str, then: impl FnOnce(&str) -> T) -> T {
    let ends_in_dot = name.as_bytes().last() == Some(&b'.');
    // Looks at every byte, as that is faster than to stop at the first.
    if !ends_in_dot && !name.bytes().fold(false, |upper, byte| upper | byte.is_ascii_uppercase()) {
        return then(name);
    }
    let name = name.trim_end_matches('.');
    let mut lower = [0; HOST_NAME_BYTES_MAX];
    let Some(lower) = lower.get_mut(..name.len()) else { return then("") };
    lower.copy_from_slice(name.as_bytes());
    lower.make_ascii_lowercase();
    then(std::str::from_utf8(lower).expect("lower case of ASCII letters changes no other byte"))
}

#[cfg(test)]
mod tests;
