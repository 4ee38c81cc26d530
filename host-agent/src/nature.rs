//! What a VM is for, and how long it stays: words that the agent keeps with a VM and shows. No I/O.
//!
//! The router treats all kinds alike: a kind opens nothing and closes nothing.

use std::fmt;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// What a VM is for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema, clap::ValueEnum)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// It runs the programs that somebody uses.
    #[default]
    Application,
    /// It works for other VMs: fetches their updates, builds their images, keeps their backups.
    Utility,
    /// It is the one that the others are managed from.
    Controller,
}

/// What a VM is for, and how long it stays.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Nature {
    /// What it is for.
    pub kind: Kind,
    /// Whether it is gone when the agent ends, and never in the table's file.
    pub ephemeral: bool,
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Kind::Application => "application",
            Kind::Utility => "utility",
            Kind::Controller => "controller",
        })
    }
}
