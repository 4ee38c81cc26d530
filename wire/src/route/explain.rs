//! Why a connection is decided as it is.
//!
//! Goes through the lines one after the other, as their meaning is defined; the compiled form has to agree, and its tests
//! compare the two.

use std::fmt;

use super::{Action, Exit, Host, Line, Place, Ports, Verdict, host_name::is_onion, table::DEFAULT, table::canonical};
use crate::VmName;

/// How many lines that nearly matched are named.
pub const MISSES_MAX: usize = 8;

/// Which line decides, and why none before it does.
#[derive(Clone, Debug)]
pub struct Explanation<'a> {
    /// What is done.
    pub verdict: Verdict<'a>,
    /// The line that says so; `None` where no line matches.
    pub line: Option<&'a Line>,
    /// Lines before it that nearly match, in order, the first [`MISSES_MAX`].
    pub misses: Vec<Miss<'a>>,
    /// How many more there are.
    pub misses_more: usize,
    /// What else is to be known.
    pub notes: Vec<Note<'a>>,
}

/// A line that nearly matches.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Miss<'a> {
    /// The line.
    pub line: &'a Line,
    /// Why it does not match.
    pub reason: Reason,
}

/// Why a line does not match that nearly does: the only thing that keeps it from it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    /// It is for other VMs.
    Source,
    /// It is for other ports.
    Ports,
    /// It is for a name above this one, and not for names below it.
    NameOnly,
}

/// What is to be known of a decision.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Note<'a> {
    /// Lines about addresses, of which this is the first, were not asked about a name.
    AddressLines(&'a Line, usize),
    /// Lines about names, of which this is the first, were not asked about an address.
    NameLines(&'a Line, usize),
    /// `exit` or `via` mean nothing, as the target is an onion service.
    OnionHasNoExit,
    /// `onion-only` refuses what is no onion service.
    NotOnion,
}

/// Explains what `lines` say of a VM's connection to a host and a port.
#[must_use]
pub fn explain<'a>(lines: &'a [Line], vm: &VmName, host: Host<'_>, port: u16) -> Explanation<'a> {
    match host {
        Host::Name(name) => canonical(name, |name| walk(lines, vm, Host::Name(name), port)),
        Host::Address(address) => walk(lines, vm, Host::Address(address.to_canonical()), port),
    }
}

fn walk<'a>(lines: &'a [Line], vm: &VmName, host: Host<'_>, port: u16) -> Explanation<'a> {
    let mut misses = vec![];
    let (mut misses_more, mut unasked) = (0, None);
    let mut deciding = None;
    for line in lines {
        let (source, target) = (line.route.source().matches(vm), line.route.target());
        let ports = target.ports.contains(port);
        let reason = match (source, target.place.contains(host), ports) {
            (true, true, true) => {
                deciding = Some(line);
                break;
            }
            (false, true, true) => Reason::Source,
            (true, true, false) => Reason::Ports,
            (true, false, true) if is_above(&target.place, host) => Reason::NameOnly,
            (true, false, true) if is_of_other_kind(&target.place, host) => {
                unasked.get_or_insert((line, 0)).1 += 1;
                continue;
            }
            _ => continue,
        };
        match misses.len() < MISSES_MAX {
            true => misses.push(Miss { line, reason }),
            false => misses_more += 1,
        }
    }
    let action = deciding.map_or(&DEFAULT, |line| line.route.action());
    let onion = matches!(host, Host::Name(name) if is_onion(name));
    let verdict = Verdict::of(action, onion);
    let unasked = unasked.map(|(line, count)| match host {
        Host::Name(_) => Note::AddressLines(line, count),
        Host::Address(_) => Note::NameLines(line, count),
    });
    let notes = unasked.into_iter().chain(note(action, &verdict)).collect();
    Explanation { verdict, line: deciding, misses, misses_more, notes }
}

fn is_above(place: &Place, host: Host<'_>) -> bool {
    matches!(place, Place::Name(name) if Place::Suffix(name.clone()).contains(host))
}

fn is_of_other_kind(place: &Place, host: Host<'_>) -> bool {
    match host {
        Host::Name(_) => matches!(place, Place::Prefix(_)),
        Host::Address(_) => matches!(place, Place::Name(_) | Place::Suffix(_)),
    }
}

fn note<'a>(action: &Action, verdict: &Verdict<'_>) -> Option<Note<'a>> {
    match (action, verdict) {
        (Action::Tor(tor), Verdict::Onion(_)) if tor.exit != Exit::Any || tor.via.is_some() => {
            Some(Note::OnionHasNoExit)
        }
        (Action::OnionOnly(_), Verdict::Block(_)) => Some(Note::NotOnion),
        _ => None,
    }
}

impl fmt::Display for Explanation<'_> {
    /// Several lines of text, the last one without its end. No passwords.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.line {
            Some(line) => write!(f, "{}\n  because of {line}", self.verdict)?,
            None => write!(f, "{}\n  because no line matches", self.verdict)?,
        }
        for miss in &self.misses {
            write!(f, "\n  not {miss}")?;
        }
        if self.misses_more > 0 {
            write!(f, "\n  nor {} other lines that nearly match", self.misses_more)?;
        }
        self.notes.iter().try_for_each(|note| write!(f, "\n  note: {note}"))
    }
}

impl fmt::Display for Miss<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Line { file, number, route } = self.line;
        write!(f, "{file}:{number}: {route}: ")?;
        match self.reason {
            Reason::Source if route.source().as_str().contains('*') => write!(f, "it is for VMs {}", route.source()),
            Reason::Source => write!(f, "it is for VM {}", route.source()),
            Reason::Ports => write!(f, "it has {} only", counted(&route.target().ports)),
            Reason::NameOnly => {
                write!(f, "it is for that name only; .{0} has those below it too", route.target().place)
            }
        }
    }
}

fn counted(ports: &Ports) -> String {
    let one = matches!(ports.ranges(), [(first, last)] if first == last);
    format!("port{} {ports}", if one { "" } else { "s" })
}

impl fmt::Display for Note<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Note::AddressLines(first, count) => {
                let why = "the name is resolved by the exit, so prefix routes do not see it";
                write!(f, "{} not asked: {why}", lines(first, *count, "addresses"))
            }
            Note::NameLines(first, count) => {
                let why = "the VM connects to an address that the gateway did not give it for a name";
                write!(f, "{} not asked: {why}", lines(first, *count, "names"))
            }
            Note::OnionHasNoExit => {
                f.write_str("an onion service is reached without an exit: exit and via do not apply")
            }
            Note::NotOnion => f.write_str("onion-only refuses what is no onion service"),
        }
    }
}

fn lines(first: &Line, count: usize, about: &str) -> String {
    let Line { file, number, .. } = first;
    match count {
        1 => format!("a line about {about} ({file}:{number}) was"),
        _ => format!("{count} lines about {about} (the first is {file}:{number}) were"),
    }
}

#[cfg(test)]
mod tests;
