//! Finds lines that can never match.
//!
//! A line is dead when lines before it take everything it is for. This is found:
//!
//! - when it is repeated word for word, as far as its meaning goes;
//! - when each of its ports is taken by some line before it whose VMs and whose hosts include all of its own. So one wider
//!   line is found, and several lines that take the ports together.
//!
//! What is said to be dead is dead. Not everything is found: not that two lines together take all hosts (two prefixes of
//! the halves of a third; `.onion` before `onion-only`), nor all VMs (each by its name).

use std::{
    collections::{BTreeMap, HashMap},
    fmt,
};

use super::{Line, Place, Ports, Route, Source, problem::nearest};
use crate::VmName;

/// How many of the lines are named that together cover another one.
pub const COVERING_MAX: usize = 8;

/// What is wrong with a line, or remarkable.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Finding<'a> {
    /// A line before it says the same.
    Repeats {
        /// The line that can never match.
        line: &'a Line,
        /// The first that says the same.
        first: &'a Line,
    },
    /// Lines before it match whatever it would match.
    Covered {
        /// The line that can never match.
        line: &'a Line,
        /// The one that covers it, or the first [`COVERING_MAX`] of those that do so together.
        by: Vec<&'a Line>,
    },
    /// There is no VM that it is for. A note: there may be one tomorrow.
    NoVm {
        /// The line.
        line: &'a Line,
        /// The VM that may have been meant.
        near: Option<&'a VmName>,
    },
}

/// Looks through lines in order. With `vms`, finds also lines that are for none of these.
#[must_use]
pub fn check<'a>(lines: &'a [Line], vms: Option<&'a [VmName]>) -> Vec<Finding<'a>> {
    let mut findings = vec![];
    let mut seen = Seen::default();
    for (number, line) in lines.iter().enumerate() {
        findings.extend(seen.dead(line));
        findings.extend(vms.and_then(|vms| no_vm(line, vms)));
        seen.add(number, line);
    }
    findings
}

fn no_vm<'a>(line: &'a Line, vms: &'a [VmName]) -> Option<Finding<'a>> {
    let source = line.route.source();
    if source.is_any() || vms.iter().any(|vm| source.matches(vm)) {
        return None;
    }
    let near = nearest(source.as_str(), vms.iter().map(VmName::as_str));
    Some(Finding::NoVm { line, near: vms.iter().find(|vm| Some(vm.as_str()) == near) })
}

/// The lines before the one that is looked at.
#[derive(Default)]
struct Seen<'a> {
    routes: HashMap<&'a Route, &'a Line>,
    /// By their hosts and their VMs.
    places: HashMap<&'a Place, BTreeMap<&'a Source, Lines<'a>>>,
}

/// Lines with the same hosts and VMs.
struct Lines<'a> {
    /// The ports of all of them.
    ports: Ports,
    /// The lines, each with its place among all.
    lines: Vec<(usize, &'a Line)>,
}

impl<'a> Seen<'a> {
    fn add(&mut self, number: usize, line: &'a Line) {
        let target = line.route.target();
        self.routes.entry(&line.route).or_insert(line);
        let sources = self.places.entry(&target.place).or_default();
        let entry = sources.entry(line.route.source());
        let seen = entry.or_insert_with(|| Lines { ports: target.ports.clone(), lines: vec![] });
        if !seen.ports.covers(&target.ports) {
            seen.ports = seen.ports.union(&target.ports);
        }
        seen.lines.push((number, line));
    }

    fn dead(&self, line: &'a Line) -> Option<Finding<'a>> {
        if let Some(first) = self.routes.get(&line.route) {
            return Some(Finding::Repeats { line, first });
        }
        let wanted = &line.route.target().ports;
        let around: Vec<&Lines<'_>> = self.around(line);
        let union = around.iter().map(|lines| &lines.ports).cloned().reduce(|a, b| a.union(&b));
        if !union.is_some_and(|union| union.covers(wanted)) {
            return None;
        }
        let mut candidates: Vec<_> = around.iter().flat_map(|lines| lines.lines.iter().copied()).collect();
        candidates.sort_unstable_by_key(|(number, _)| *number);
        let candidates = candidates.into_iter().map(|(_, line)| line);
        if let Some(one) = candidates.clone().find(|line| line.route.target().ports.covers(wanted)) {
            return Some(Finding::Covered { line, by: vec![one] });
        }
        let by = candidates.filter(|line| line.route.target().ports.meets(wanted)).take(COVERING_MAX).collect();
        Some(Finding::Covered { line, by })
    }

    /// The lines whose hosts and VMs include all of those of `line`.
    fn around(&self, line: &Line) -> Vec<&Lines<'a>> {
        let places = line.route.target().place.ancestry();
        let sources = places.iter().filter_map(|place| self.places.get(place)).flatten();
        sources.filter(|(source, _)| source.covers(line.route.source())).map(|(_, lines)| lines).collect()
    }
}

impl fmt::Display for Finding<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Finding::Repeats { line, first } => {
                write!(f, "{line}: can never match: {}:{} says the same", first.file, first.number)
            }
            Finding::Covered { line, by } => {
                let by: Vec<_> = by.iter().map(|by| format!("{}:{}", by.file, by.number)).collect();
                let [verb, together] = if by.len() == 1 { ["takes", ""] } else { ["take", " together"] };
                write!(f, "{line}: can never match: {} {verb} all of it{together}", by.join(", "))
            }
            Finding::NoVm { line, near } => {
                write!(f, "{line}: there is no VM {} now", line.route.source())?;
                near.map_or(Ok(()), |near| write!(f, "; did you mean {near}?"))
            }
        }
    }
}

#[cfg(test)]
mod tests;
