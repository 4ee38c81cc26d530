//! `oht console`: the command, interactively, with history and completion.
//!
//! A line is a command of `oht` with a slash before it: `/vm list` does what `oht vm list` does. Some have short forms
//! ([`line::SHORT_FORMS`]). Changes of the configuration wait until `/save`. Nothing that is typed here is a secret:
//! passphrases are asked for by the commands that need them, and are in no history.
//!
//! Where standard input is no terminal, lines are read from it without editing, and the first that fails ends it: so a
//! file of lines is a script.

mod line;

use std::{fs, io::IsTerminal as _, os::unix::fs::PermissionsExt as _, path::PathBuf};

use clap::{CommandFactory as _, Parser as _};
use rustyline::{
    Completer, Config, Editor, Helper, Highlighter, Hinter, Validator, completion::Completer, error::ReadlineError,
    history::FileHistory,
};

use super::{Oht, output, settings_file::SettingsFile};
use crate::paths;
use line::Line;

/// Lines of the history.
const HISTORY_LINES_MAX: usize = 1000;

/// What every command is given besides its words, such as `--run-dir`.
#[derive(Clone, Debug, Default)]
pub struct Given {
    /// `--config`.
    pub config: Option<PathBuf>,
    /// `--json`.
    pub json: bool,
    /// Options of the places: pairs of a name and a value, for the commands that know them.
    pub places: Vec<(&'static str, String)>,
}

/// What a line came to.
enum Outcome {
    Next,
    Quit,
}

type Lines = Editor<Completion, FileHistory>;

/// Reads lines and does what they say until `/quit` or the end of the input.
///
/// # Errors
/// When the terminal cannot be used, or, without a terminal, when a line fails.
pub async fn console(given: Given) -> anyhow::Result<()> {
    let interactive = std::io::stdin().is_terminal();
    let mut console = Console { file: SettingsFile::open(given.config.as_deref())?, given, dirty: false };
    let mut lines = editor()?;
    let history = history_file();
    if interactive {
        // None yet, at the first time.
        let _ = lines.load_history(&history);
        output::text("/help says what there is, Tab completes, /quit ends")?;
    }
    loop {
        // Reading blocks, and this is the only thing that is going on.
        let (line, back) = tokio::task::spawn_blocking(move || (lines.readline("oht> "), lines)).await?;
        lines = back;
        let line = match line {
            Ok(line) => line,
            Err(ReadlineError::Interrupted) => continue,
            Err(ReadlineError::Eof) => break,
            Err(error) => return Err(error.into()),
        };
        if interactive && !line.trim().is_empty() {
            lines.add_history_entry(line.trim())?;
        }
        match console.obey(&line).await {
            Ok(Outcome::Next) => {}
            Ok(Outcome::Quit) => break,
            Err(error) if interactive => eprintln!("{error:#}"),
            Err(error) => return Err(error),
        }
    }
    if interactive && let Err(error) = keep(&mut lines, &history) {
        eprintln!("the history could not be kept in {}: {error}", history.display());
    }
    Ok(())
}

struct Console {
    given: Given,
    file: SettingsFile,
    /// Whether the configuration has changes that are not saved.
    dirty: bool,
}

impl Console {
    async fn obey(&mut self, line: &str) -> anyhow::Result<Outcome> {
        match Line::read(line)? {
            Line::Nothing => {}
            Line::Help => output::text(&line::help(&Oht::command()))?,
            Line::Config => output::text(&self.file.show())?,
            Line::Set { key, value } => {
                self.file.set(&key, &value)?;
                self.dirty = true;
                output::text(&format!("{key} is set; /save keeps it"))?;
            }
            Line::Unset { key } => {
                self.file.unset(&key)?;
                self.dirty = true;
                output::text(&format!("{key} is not set any more; /save keeps it so"))?;
            }
            Line::Save => {
                self.file.save()?;
                self.dirty = false;
                output::text("saved; what has changed holds from the next `/tor stop` and `/tor start` on")?;
            }
            Line::Quit if self.dirty => {
                self.dirty = false;
                anyhow::bail!("the configuration has changes: /save keeps them, /quit once more forgets them");
            }
            Line::Quit => return Ok(Outcome::Quit),
            Line::Command(words) => self.run(words).await?,
        }
        Ok(Outcome::Next)
    }

    /// Does what `oht` would; an interrupt ends it and not the console.
    async fn run(&self, words: Vec<String>) -> anyhow::Result<()> {
        let oht = match Oht::try_parse_from(self.given.arguments(words)) {
            Ok(oht) => oht,
            // Help is one of these, and goes where it belongs.
            Err(error) => return Ok(error.print()?),
        };
        tokio::select! {
            done = Box::pin(oht.run()) => match done? {
                0 => Ok(()),
                code => anyhow::bail!("it ended with the exit code {code}"),
            },
            _ = tokio::signal::ctrl_c() => anyhow::bail!("interrupted"),
        }
    }
}

impl Given {
    /// The arguments of `oht` for these words.
    fn arguments(&self, words: Vec<String>) -> Vec<String> {
        let mut command = &Oht::command();
        for word in &words {
            match command.find_subcommand(word) {
                Some(inner) => command = inner,
                None => break,
            }
        }
        let known = |name: &str| command.get_arguments().any(|argument| argument.get_long() == Some(name));
        let mut arguments = vec!["oht".to_owned()];
        arguments.extend(words);
        for (name, value) in self.places.iter().filter(|(name, _)| known(name)) {
            arguments.extend([format!("--{name}"), value.clone()]);
        }
        arguments.extend(self.json.then(|| "--json".to_owned()));
        // It may be still to be written, by `/save`.
        if let Some(config) = self.config.as_ref().filter(|config| config.exists()) {
            arguments.extend(["--config".to_owned(), config.display().to_string()]);
        }
        arguments
    }
}

/// Completes commands, options and files.
#[derive(Helper, Completer, Hinter, Highlighter, Validator)]
struct Completion {
    #[rustyline(Completer)]
    words: Words,
}

struct Words(clap::Command);

impl Completer for Words {
    type Candidate = String;

    fn complete(
        &self,
        line: &str,
        position: usize,
        _: &rustyline::Context<'_>,
    ) -> rustyline::Result<(usize, Vec<String>)> {
        Ok(line::complete(&self.0, line.get(..position).unwrap_or(line)))
    }
}

fn editor() -> anyhow::Result<Lines> {
    let config = Config::builder().max_history_size(HISTORY_LINES_MAX)?.history_ignore_space(true).build();
    let mut lines = Editor::with_config(config)?;
    let mut command = Oht::command();
    // Gives every command its help and its global options.
    command.build();
    lines.set_helper(Some(Completion { words: Words(command) }));
    Ok(lines)
}

fn history_file() -> PathBuf {
    paths::xdg("XDG_STATE_HOME", ".local/state").join("oht/console-history")
}

/// The names of VMs are nobody else's business.
fn keep(lines: &mut Lines, path: &std::path::Path) -> anyhow::Result<()> {
    if let Some(directory) = path.parent() {
        fs::create_dir_all(directory)?;
    }
    lines.save_history(path)?;
    Ok(fs::set_permissions(path, fs::Permissions::from_mode(0o600))?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_is_given_the_places_that_it_knows() {
        let given = Given { json: true, places: vec![("run-dir", "/r".into()), ("socket", "/s".into())], config: None };
        let arguments = |line: &str| given.arguments(line.split(' ').map(str::to_owned).collect()).join(" ");
        assert_eq!(arguments("vm list"), "oht vm list --run-dir /r --socket /s --json");
        assert_eq!(arguments("completions bash"), "oht completions bash --json");
    }
}
