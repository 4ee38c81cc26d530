//! How routes cross the control link: in parts, as 20,000 of them are longer than a message may be.
//!
//! The host cuts a table into [`RoutesPart`]s and sends them in order; the router puts them together in an [`Assembly`]
//! and compiles the table when it is whole, so it never decides by half a table. A table that begins anew takes the
//! place of one that is not whole.
//!
//! The messages hold the passwords of proxies: they are not to be logged.

use serde::{Deserialize, Serialize};

use super::{ROUTES_MAX, Route};

/// Routes of one part. The longest routes there can be fit so many times into a control message.
pub const PART_ROUTES_MAX: usize = 256;

/// Some routes of a table.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RoutesPart {
    /// Which table: another number for each one that is sent.
    pub table: u64,
    /// Routes of the table, at most [`ROUTES_MAX`].
    pub total: u32,
    /// Routes of the parts before this one.
    pub from: u32,
    /// At most [`PART_ROUTES_MAX`] routes; none only where the table has none.
    pub routes: Vec<Route>,
}

/// Why a part is not the next one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PartError {
    /// More than may be.
    #[error("the peer announces {0} routes; at most {ROUTES_MAX} are allowed")]
    Total(u32),
    /// Too many in one part, more than were announced, or none.
    #[error("the peer sent a part of {0} routes")]
    Count(usize),
    /// A part is missing, or comes again.
    #[error("the peer sent the routes from {sent} on, expected those from {expected} on")]
    Order {
        /// The first route of the part.
        sent: u32,
        /// How many there were.
        expected: u32,
    },
}

/// Cuts a table into parts: at least one, which tells of a table without routes.
pub fn parts(table: u64, routes: &[Route]) -> impl Iterator<Item = RoutesPart> {
    let total = routes.len() as u32;
    let first = routes.is_empty().then(|| RoutesPart { table, total, from: 0, routes: vec![] });
    let chunks = (0..).step_by(PART_ROUTES_MAX).zip(routes.chunks(PART_ROUTES_MAX));
    first.into_iter().chain(chunks.map(move |(from, routes)| RoutesPart { table, total, from, routes: routes.into() }))
}

/// Puts parts together. Holds at most one table that is not whole.
#[derive(Debug, Default)]
pub struct Assembly {
    table: u64,
    routes: Vec<Route>,
}

impl Assembly {
    /// Takes the next part. Returns the routes once they are all there, for
    /// [`RouteTable::compile`](super::RouteTable::compile).
    ///
    /// # Errors
    /// When it is not what can come next. What was there is forgotten then.
    pub fn add(&mut self, part: RoutesPart) -> Result<Option<Vec<Route>>, PartError> {
        let mut routes = std::mem::take(&mut self.routes);
        if part.from == 0 {
            (self.table, routes) = (part.table, vec![]);
        }
        let expected = if part.table == self.table { routes.len() } else { 0 };
        if part.total as usize > ROUTES_MAX {
            return Err(PartError::Total(part.total));
        }
        if part.from as usize != expected {
            return Err(PartError::Order { sent: part.from, expected: expected as u32 });
        }
        let count = part.routes.len();
        let missing = (part.total as usize).saturating_sub(expected);
        if count > PART_ROUTES_MAX.min(missing) || count == 0 && part.total > 0 {
            return Err(PartError::Count(count));
        }
        routes.extend(part.routes);
        if routes.len() == part.total as usize {
            return Ok(Some(routes));
        }
        self.routes = routes;
        Ok(None)
    }
}

#[cfg(test)]
mod tests;
