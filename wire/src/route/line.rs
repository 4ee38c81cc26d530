//! A route, and where it is written.

use std::{fmt, sync::Arc};

use serde::{Deserialize, Serialize};

use super::{Action, Conflict, Exit, Place, Source, Target};

/// One route: for these VMs and these targets, this happens. Holds no combination that makes no sense.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "Raw", into = "Raw")]
pub struct Route {
    source: Source,
    target: Target,
    action: Action,
}

/// A route and where it was read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Line {
    /// The file, or what else the text is called.
    pub file: Arc<str>,
    /// The line in it, from 1.
    pub number: u32,
    /// What it says.
    pub route: Route,
}

impl Route {
    /// A route of these parts.
    ///
    /// # Errors
    /// When the action cannot be done for such targets.
    pub fn new(source: Source, target: Target, action: Action) -> Result<Route, Conflict> {
        check(&target, &action).map(|()| Route { source, target, action })
    }

    /// The VMs that it is for.
    #[must_use]
    pub fn source(&self) -> &Source {
        &self.source
    }

    /// The hosts and ports that it is about.
    #[must_use]
    pub fn target(&self) -> &Target {
        &self.target
    }

    /// What happens.
    #[must_use]
    pub fn action(&self) -> &Action {
        &self.action
    }

    /// The route as it stands in a file, with the password of a proxy: the reverse of parsing. `Display` is for
    /// everything else, and leaves user and password out.
    #[must_use]
    pub fn written(&self) -> String {
        let mut text = format!("{} {} ", self.source, self.target);
        self.action.write(&mut text, true).expect("a String takes everything");
        text
    }
}

fn check(target: &Target, action: &Action) -> Result<(), Conflict> {
    let onion = target.place.is_onion();
    match action {
        Action::OnionOnly(_) if !onion && target.place != Place::Any => Err(Conflict::OnionOnly),
        Action::OnionOnly(_) | Action::Block(_) => Ok(()),
        Action::Tor(tor) if onion && tor.exit != Exit::Any => Err(Conflict::ExitToOnion),
        Action::Tor(tor) if onion && tor.via.is_some() => Err(Conflict::ViaToOnion),
        Action::Tor(tor) if onion && tor.resolve => Err(Conflict::ResolveOnion),
        Action::Tor(tor) if tor.exit != Exit::Any && tor.via.as_ref().is_some_and(|hop| hop.is_onion()) => {
            Err(Conflict::ExitToOnionHop)
        }
        Action::Tor(tor) if tor.resolve && matches!(target.place, Place::Prefix(_)) => Err(Conflict::ResolveAddress),
        Action::Tor(tor) if tor.resolve && !target.ports.is_all() => Err(Conflict::ResolvePorts),
        Action::Tor(_) => Ok(()),
    }
}

impl fmt::Display for Route {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {} {}", self.source, self.target, self.action)
    }
}

impl fmt::Display for Line {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}: {}", self.file, self.number, self.route)
    }
}

/// A route as it crosses the link, before it is checked.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Raw {
    source: Source,
    target: Target,
    action: Action,
}

impl TryFrom<Raw> for Route {
    type Error = Conflict;

    fn try_from(Raw { source, target, action }: Raw) -> Result<Route, Conflict> {
        Route::new(source, target, action)
    }
}

impl From<Route> for Raw {
    fn from(Route { source, target, action }: Route) -> Raw {
        Raw { source, target, action }
    }
}
