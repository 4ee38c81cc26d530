//! `oht route …`.

use std::{
    io::Read,
    path::{Path, PathBuf},
};

use anyhow::{Context, bail};
use clap::Subcommand;
use hyper::Method;
use wire::{
    VmName,
    route::{self, Action},
};

use super::{Places, output};
use crate::{
    client::Client,
    routes::files::{OWN_FILE, TEXT_BYTES_MAX},
    status::routes::{NewRoute, RouteAnswer, RouteChange, RouteFindings, RouteList, RouteQuestion, RouteText},
};

/// The exit code where a tested connection is blocked, or a line can never match.
pub const BLOCKED: u8 = 4;

/// What a line says, for those who have only the command.
const LANGUAGE: &str = "\
A route is a line SOURCE TARGET ACTION; the first that matches a connection decides, and without one it goes through Tor.

  SOURCE  *  |  a VM's name  |  a pattern, such as work-*
  TARGET  *  |  example.org  |  .example.org (the name and all below it)  |  .onion
          |  192.0.2.1  |  192.0.2.0/24  |  2001:db8::/32  |  any of these with :PORTS, such as :443 or example.org:80,8000-8100
  ACTION  tor  |  onion-only  |  via socks5://[USER:PASSWORD@]HOST:PORT  |  block  |  block drop
          options of the first three: isolate=vm|destination|credential, optimistic;
          of tor and via: exit=CH,LI  exit!=US  resolve

A line about addresses never matches a name, nor one about names an address.
Drop-ins (*.conf in /etc/oht/routes.d or ~/.config/oht/routes.d) and the routes of this command are one table, in the
order of the files' names; those of this command stand in it as 50-api.conf.";

/// Which connections of which VMs go where.
#[derive(Debug, Subcommand)]
pub(super) enum What {
    /// List the routes in force, in order, with the files and lines where they are written.
    List(Places),
    /// Add a route, behind those that were added before.
    #[command(after_long_help = LANGUAGE)]
    Add {
        /// SOURCE TARGET ACTION, or - to read it from standard input, as a password should be.
        #[arg(required = true, value_name = "ROUTE")]
        route: Vec<String>,
        /// Put it before those that were added before.
        #[arg(long)]
        first: bool,
        #[command(flatten)]
        places: Places,
    },
    /// Remove a route that was added.
    Rm {
        /// Its line in 50-api.conf, as `oht route list` shows it.
        line: u32,
        #[command(flatten)]
        places: Places,
    },
    /// Put the routes of a file in the place of all that were added.
    #[command(after_long_help = LANGUAGE)]
    Set {
        /// The file, or - for standard input.
        file: PathBuf,
        #[command(flatten)]
        places: Places,
    },
    /// Say which line decides about a connection, and why. The exit code is 4 if it is blocked.
    Test {
        /// The VM.
        vm: VmName,
        /// Where to: example.org:443, 192.0.2.1:80 or `[2001:db8::1]:80`.
        target: String,
        #[command(flatten)]
        places: Places,
    },
    /// Find lines that can never match; the exit code is 4 if there are any. Says also what is wrong with files.
    Check(Places),
    /// Read the drop-ins again.
    Reload(Places),
}

impl What {
    /// Where the agent is.
    pub(super) fn places(&self) -> &Places {
        match self {
            What::List(places) | What::Check(places) | What::Reload(places) => places,
            What::Add { places, .. }
            | What::Rm { places, .. }
            | What::Set { places, .. }
            | What::Test { places, .. } => places,
        }
    }
}

/// Does what was asked; returns the exit code.
///
/// # Errors
/// When the agent refuses, or is not there.
pub(super) async fn run(client: &Client, what: What, json: bool) -> anyhow::Result<u8> {
    match what {
        What::List(_) => list(client, json).await?,
        What::Add { route, first, .. } => {
            let route = given(route)?;
            let changed: RouteChange = client.post("/routes", &NewRoute { route, first }).await?;
            let line = changed.line.unwrap_or_default();
            say(changed, &format!("added as {OWN_FILE}:{line}"), json)?;
        }
        What::Rm { line, .. } => {
            let changed = client.send(Method::DELETE, &format!("/routes/{line}"), &()).await?;
            say(changed, "removed", json)?;
        }
        What::Set { file, .. } => {
            let changed = client.send(Method::PUT, "/routes", &RouteText { text: text_of(&file)? }).await?;
            say(changed, "set", json)?;
        }
        What::Reload(_) => say(client.send(Method::POST, "/routes/reload", &()).await?, "read again", json)?,
        What::Test { vm, target, .. } => {
            let answer: RouteAnswer = client.post("/routes/test", &RouteQuestion { vm, target }).await?;
            if json {
                output::json(&answer)?
            } else {
                output::text(&answer.text)?
            }
            return Ok(if answer.passes { 0 } else { BLOCKED });
        }
        What::Check(_) => return check(client, json).await,
    }
    Ok(0)
}

async fn list(client: &Client, json: bool) -> anyhow::Result<()> {
    let list: RouteList = client.get("/routes").await?;
    if json {
        return output::json(&list);
    }
    let mut lines: Vec<_> =
        list.lines.iter().map(|line| format!("{}:{}: {}", line.file, line.line, line.route)).collect();
    if lines.is_empty() {
        lines.push("no routes: everything goes through Tor; `oht route add --help` shows how to say otherwise".into());
    }
    lines.extend(list.problems.iter().map(|problem| format!("wrong: {problem}")));
    output::text(&lines.join("\n"))
}

async fn check(client: &Client, json: bool) -> anyhow::Result<u8> {
    let found: RouteFindings = client.get("/routes/check").await?;
    if json {
        output::json(&found)?;
    } else {
        let mut lines: Vec<_> = found.problems.iter().map(|problem| format!("wrong: {problem}")).collect();
        lines.extend(found.findings.iter().map(|finding| finding.text.clone()));
        output::text(if lines.is_empty() { "every line can match".into() } else { lines.join("\n") }.as_str())?;
    }
    let is_wrong = !found.problems.is_empty() || found.findings.iter().any(|finding| finding.never_matches);
    Ok(if is_wrong { BLOCKED } else { 0 })
}

fn say(changed: RouteChange, what: &str, json: bool) -> anyhow::Result<()> {
    if json {
        return output::json(&changed);
    }
    let when = if changed.in_force { "in force" } else { "in force once the router is there" };
    output::text(&format!("{what}; {when}"))
}

/// The route that was given, as words or on standard input.
fn given(words: Vec<String>) -> anyhow::Result<String> {
    if words == ["-"] {
        return Ok(text_of(Path::new("-"))?.trim().to_owned());
    }
    let route = words.join(" ");
    let parsed: route::Route = route.parse()?;
    if let Action::Tor(options) = parsed.action()
        && options.via.as_ref().is_some_and(|hop| hop.login().is_some())
    {
        bail!("others see a password on a command line: write the route to the standard input of `oht route add -`");
    }
    Ok(route)
}

fn text_of(file: &Path) -> anyhow::Result<String> {
    let mut text = String::new();
    let limit = TEXT_BYTES_MAX as u64 + 1;
    let read = if file == Path::new("-") {
        std::io::stdin().take(limit).read_to_string(&mut text)
    } else {
        std::fs::File::open(file).and_then(|opened| opened.take(limit).read_to_string(&mut text))
    };
    read.with_context(|| format!("cannot read {}", file.display()))?;
    Ok(text)
}
