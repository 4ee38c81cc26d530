//! What the API says of routes, as it stands in JSON.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use wire::route::Line;

/// A route, and where it is written.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct RouteLine {
    /// The file of a drop-in, or `50-api.conf` for what the API was told.
    pub file: String,
    /// The line in it, from 1.
    pub line: u32,
    /// `source target action`, without the password of a proxy.
    pub route: String,
}

impl From<&Line> for RouteLine {
    fn from(line: &Line) -> RouteLine {
        RouteLine { file: line.file.to_string(), line: line.number, route: line.route.to_string() }
    }
}

/// All routes.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct RouteList {
    /// In order: the first that matches decides.
    pub lines: Vec<RouteLine>,
    /// What is wrong with the files; the lines are those of before then.
    pub problems: Vec<String>,
    /// Whether every VM is blocked because the files were wrong when the agent started.
    pub blocked: bool,
}

/// A route to add.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NewRoute {
    /// `source target action`.
    pub route: String,
    /// Whether it goes before the others of the API, in place of behind them.
    #[serde(default)]
    pub first: bool,
}

/// All routes of the API.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct RouteText {
    /// A route on each line; comments are kept.
    pub text: String,
}

/// What came of a change.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct RouteChange {
    /// The line of `50-api.conf` that was added, if one was.
    pub line: Option<u32>,
    /// Whether the router obeys it: then no stream goes by what was before. Else no router is connected, or it is slow; it
    /// is on the disk and will be obeyed.
    pub in_force: bool,
}

/// A connection to ask about.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct RouteQuestion {
    /// The VM, whether or not there is one of that name.
    #[schema(value_type = String, max_length = 63)]
    pub vm: wire::VmName,
    /// `host:port`.
    pub target: String,
}

/// What happens to a connection, and why.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct RouteAnswer {
    /// Whether it goes anywhere.
    pub passes: bool,
    /// What is done with it.
    pub verdict: String,
    /// The line that says so; none where no line matches.
    pub line: Option<RouteLine>,
    /// Lines before it that nearly match, and why they do not; the first eight.
    pub not: Vec<String>,
    /// What else is to be known.
    pub notes: Vec<String>,
    /// All of it in words.
    pub text: String,
}

/// What is remarkable about the lines.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct RouteFindings {
    /// One for each line that can never match, or is for no VM.
    pub findings: Vec<RouteFinding>,
    /// What is wrong with the files.
    pub problems: Vec<String>,
}

/// What is remarkable about a line.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct RouteFinding {
    /// The line.
    pub line: RouteLine,
    /// Whether lines before it take all that it is for. Else there is no VM now that it is for.
    pub never_matches: bool,
    /// In words.
    pub text: String,
}
