//! The routes of this host: where they are written, which are in force, and how they change.
//!
//! They stand in files: drop-ins (`*.conf` of the directory of the option `--routes-dir`), which a person writes, and
//! one of the agent's own in its state directory, which the API writes. All are one table, in the order of their names;
//! the agent's own stands among them as [`OWN_FILE`]. So a drop-in `10-…` goes before what the API says, and a `90-…`
//! after it. What a line says: [`wire::route`].
//!
//! | when | a file that is wrong |
//! | --- | --- |
//! | the agent starts | nothing is known to be allowed: every VM is blocked until it is mended |
//! | files are read again | the table stays as it was |
//! | the API is told | nothing changes, and the answer says what is wrong |
//!
//! The first two are failures in the status. Files are read again when a drop-in changes ([`watch`]), or on request.
//!
//! The API's routes are acknowledged after they are on the disk and, where a router is connected, in force there.

pub mod files;
pub mod geoip;
pub mod watch;

use std::{
    path::PathBuf,
    sync::Arc,
    time::{SystemTime, UNIX_EPOCH},
};

use tokio::sync::{Mutex, MutexGuard};
use wire::route::{Action, Exit, Line, ParseError, Route, parse};

use crate::paths::write_privately;
use files::{Files, OWN_FILE, TEXT_BYTES_MAX};

/// Why routes do not change.
#[derive(Debug, thiserror::Error)]
pub enum RoutesError {
    /// Lines that are none.
    #[error("{}", .0.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n"))]
    Lines(Vec<ParseError>),
    /// Files that cannot be read or are wrong.
    #[error("the routes stay as they were: {}; mend it, then `oht route reload`", .0.join("\n"))]
    Files(Vec<String>),
    /// No such line of the API's.
    #[error(
        "line {0} of {OWN_FILE} is no route: `oht route list` shows which there are (drop-ins are changed where they are)"
    )]
    NoLine(u32),
    /// Larger than may be.
    #[error("the routes of the API may have {TEXT_BYTES_MAX} bytes")]
    TooLong,
    /// They could not be kept.
    #[error("cannot keep the routes in {path}")]
    Write {
        /// Where.
        path: PathBuf,
        /// Why not.
        #[source]
        source: std::io::Error,
    },
}

/// A table of routes, as it is meant to be in force.
#[derive(Debug)]
pub struct Table {
    /// A number that no other table of this or an earlier agent has.
    pub number: u64,
    /// The lines in order.
    pub lines: Vec<Line>,
    /// What is wrong with the files. Empty where the lines are theirs.
    pub problems: Vec<String>,
    /// Whether every VM is blocked because of that.
    pub blocked: bool,
}

/// The routes of this host.
pub struct Routes {
    directory: PathBuf,
    own: PathBuf,
    files: Mutex<Files>,
    table: tokio::sync::watch::Sender<Arc<Table>>,
}

/// A change that is on the disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Changed {
    /// The table to wait for.
    pub table: u64,
    /// The line that was added, if one was.
    pub line: Option<u32>,
}

impl Routes {
    /// Reads the drop-ins of `directory` and the API's routes in the file `own`. Files that are wrong block every VM.
    #[must_use]
    pub fn load(directory: PathBuf, own: PathBuf) -> Routes {
        let (files, problems) = match Files::read(&directory, &own) {
            Ok(files) => (files, vec![]),
            Err(problems) => (Files::default(), problems),
        };
        let blocked = !problems.is_empty();
        let lines = if blocked { vec![blocking()] } else { files.lines() };
        let since_1970 = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let number = u64::try_from(since_1970.as_micros()).unwrap_or(u64::MAX / 2);
        let (table, _) = tokio::sync::watch::channel(Arc::new(Table { number, lines, problems, blocked }));
        Routes { directory, own, files: Mutex::new(files), table }
    }

    /// The table, and every later one.
    #[must_use]
    pub fn tables(&self) -> tokio::sync::watch::Receiver<Arc<Table>> {
        self.table.subscribe()
    }

    /// The table.
    #[must_use]
    pub fn table(&self) -> Arc<Table> {
        Arc::clone(&self.table.borrow())
    }

    /// Reads all files again. Returns the number of the table.
    ///
    /// # Errors
    /// When one is wrong; the table stays as it was, and says so.
    pub async fn reload(&self) -> Result<Changed, RoutesError> {
        let mut files = self.files.lock().await;
        match Files::read(&self.directory, &self.own) {
            Ok(read) => {
                // What is the same already need not be told.
                if read.lines() != self.table().lines || !self.table().problems.is_empty() {
                    self.publish(&read);
                }
                *files = read;
                Ok(Changed { table: self.table().number, line: None })
            }
            Err(problems) => {
                self.table.send_modify(|table| {
                    let (number, lines, blocked) = (table.number, table.lines.clone(), table.blocked);
                    *table = Arc::new(Table { number, lines, problems: problems.clone(), blocked });
                });
                Err(RoutesError::Files(problems))
            }
        }
    }

    /// Puts `text` in the place of all routes of the API.
    ///
    /// # Errors
    /// When it is wrong or cannot be kept; nothing has changed then.
    pub async fn set(&self, text: String) -> Result<Changed, RoutesError> {
        let files = self.changeable().await?;
        self.keep(files, text)
    }

    /// Adds a route to those of the API: behind them, or before.
    ///
    /// # Errors
    /// As [`Routes::set`].
    pub async fn add(&self, route: &str, first: bool) -> Result<Changed, RoutesError> {
        let route: Route = route.parse().map_err(|error| RoutesError::Lines(vec![error]))?;
        let files = self.changeable().await?;
        let mut text = files.own().to_owned();
        if !text.is_empty() && !text.ends_with('\n') {
            text.push('\n');
        }
        let line = if first { 1 } else { u32::try_from(text.lines().count()).unwrap_or(u32::MAX).saturating_add(1) };
        let written = route.written();
        let text = if first { format!("{written}\n{text}") } else { format!("{text}{written}\n") };
        self.keep(files, text).map(|changed| Changed { line: Some(line), ..changed })
    }

    /// Removes the route on a line of the API's.
    ///
    /// # Errors
    /// When there is none, or as [`Routes::set`].
    pub async fn remove(&self, number: u32) -> Result<Changed, RoutesError> {
        let files = self.changeable().await?;
        if !files.own_lines().iter().any(|line| line.number == number) {
            return Err(RoutesError::NoLine(number));
        }
        let kept = (1..).zip(files.own().lines()).filter(|(line, _)| *line != number);
        let text = kept.map(|(_, line)| format!("{line}\n")).collect();
        self.keep(files, text)
    }

    /// The files, for a change: what is wrong with them must be mended before.
    async fn changeable(&self) -> Result<MutexGuard<'_, Files>, RoutesError> {
        let files = self.files.lock().await;
        let table = self.table();
        if table.blocked { Err(RoutesError::Files(table.problems.clone())) } else { Ok(files) }
    }

    fn keep(&self, mut files: MutexGuard<'_, Files>, text: String) -> Result<Changed, RoutesError> {
        if text.len() > TEXT_BYTES_MAX {
            return Err(RoutesError::TooLong);
        }
        let lines = parse(OWN_FILE, &text).map_err(RoutesError::Lines)?;
        let changed = files.with_own(text, lines).map_err(|problem| RoutesError::Files(vec![problem]))?;
        write_privately(&self.own, changed.own().as_bytes())
            .map_err(|source| RoutesError::Write { path: self.own.clone(), source })?;
        self.publish(&changed);
        *files = changed;
        Ok(Changed { table: self.table().number, line: None })
    }

    fn publish(&self, files: &Files) {
        let (lines, problems) = (files.lines(), vec![]);
        self.table.send_modify(|table| {
            *table = Arc::new(Table { number: table.number + 1, lines, problems, blocked: false });
        });
    }
}

impl Table {
    /// The routes, for the router.
    #[must_use]
    pub fn routes(&self) -> Vec<Route> {
        self.lines.iter().map(|line| line.route.clone()).collect()
    }

    /// Whether a route asks in which country an exit is.
    #[must_use]
    pub fn asks_for_countries(&self) -> bool {
        let asks = |line: &Line| matches!(line.route.action(), Action::Tor(options) if options.exit != Exit::Any);
        self.lines.iter().any(asks)
    }
}

/// The line that is in force where it is not known what may be.
fn blocking() -> Line {
    let route = "* * block".parse().expect("this is a route");
    Line { file: "the agent, as the files are wrong".into(), number: 1, route }
}

#[cfg(test)]
mod tests;
