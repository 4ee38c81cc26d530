//! What a line of the console says, and how it can go on. No I/O.

/// Why a line cannot be read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum LineError {
    #[error("a line begins with a slash, as in /status; /help says what there is")]
    NoSlash,
    #[error("a quotation mark is open")]
    Quotes,
    #[error("write it as {0}")]
    Usage(&'static str),
}

/// A line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Line {
    Nothing,
    Help,
    /// Show the configuration, with what is not saved yet.
    Config,
    Set {
        key: String,
        value: String,
    },
    Unset {
        key: String,
    },
    Save,
    Quit,
    /// These words after `oht`.
    Command(Vec<String>),
}

/// Short forms: what is typed, what `oht` is told, and what that is for.
pub(super) const SHORT_FORMS: &[(&str, &str, &str)] = &[
    ("/tor start", "up", "start the router VM, and wait until Tor is usable"),
    ("/tor stop", "down", "end everything"),
    ("/newtor", "vm new-circuits", "take fresh circuits for all VMs, or for the one that is named"),
    ("/accounts", "key tree", "show the identities: the VMs' keys and what they are for"),
    ("/generate", "key grant --purpose signing", "give a VM a signing key: /generate VM [--name NAME]"),
    ("/delete", "key revoke", "revoke a key: /delete VM/signing/NAME"),
    ("/sign", "key sign", "sign a file with a VM's key: /sign VM FILE"),
    ("/verify", "key verify", "verify a signature: /verify FILE SIGNATURE"),
];

/// What is the console's own.
const OWN: &[(&str, &str)] = &[
    ("/help", "this"),
    ("/config", "show the configuration file, with what is not saved yet"),
    ("/set KEY VALUE", "change a value of the configuration; /save keeps it"),
    ("/unset KEY", "remove a value of the configuration"),
    ("/save", "write the configuration file"),
    ("/quit", "end the console; the agent goes on"),
];

impl Line {
    /// Reads a line.
    ///
    /// # Errors
    /// Says how it is to be written.
    pub(super) fn read(line: &str) -> Result<Line, LineError> {
        let words = shlex::split(line.trim()).ok_or(LineError::Quotes)?;
        let Some(first) = words.first() else { return Ok(Line::Nothing) };
        if first.starts_with('#') {
            return Ok(Line::Nothing);
        }
        let name = first.strip_prefix('/').ok_or(LineError::NoSlash)?;
        let rest: Vec<&str> = words[1..].iter().map(String::as_str).collect();
        Ok(match (name, &rest[..]) {
            ("help", []) => Line::Help,
            ("config", []) => Line::Config,
            ("set", [key, value]) => Line::Set { key: (*key).into(), value: (*value).into() },
            ("set", _) => return Err(LineError::Usage("/set KEY VALUE")),
            ("unset", [key]) => Line::Unset { key: (*key).into() },
            ("unset", _) => return Err(LineError::Usage("/unset KEY")),
            ("save", []) => Line::Save,
            ("quit" | "exit", []) => Line::Quit,
            _ => Line::Command(expanded(name, &words[1..])),
        })
    }
}

/// The words with a short form written out.
fn expanded(name: &str, rest: &[String]) -> Vec<String> {
    let mut words = vec![name.to_owned()];
    words.extend_from_slice(rest);
    for (short, long, _) in SHORT_FORMS {
        let short: Vec<&str> = short.trim_start_matches('/').split(' ').collect();
        if words.len() >= short.len() && words.iter().zip(&short).all(|(word, short)| word == short) {
            let rest = words.split_off(short.len());
            return long.split(' ').map(str::to_owned).chain(rest).collect();
        }
    }
    words
}

/// What there is, for people.
pub(super) fn help(command: &clap::Command) -> String {
    let mut lines: Vec<(String, String)> = Vec::new();
    lines.extend(OWN.iter().map(|(form, what)| ((*form).into(), (*what).into())));
    lines.extend(SHORT_FORMS.iter().map(|(short, _, what)| ((*short).into(), (*what).into())));
    let visible = command.get_subcommands().filter(|inner| !inner.is_hide_set() && inner.get_name() != "console");
    lines.extend(visible.map(|inner| {
        let about = inner.get_about().map(ToString::to_string).unwrap_or_default();
        (format!("/{}", inner.get_name()), about)
    }));
    let width = lines.iter().map(|(form, _)| form.len()).max().unwrap_or_default();
    let lines: Vec<_> = lines.iter().map(|(form, what)| format!("{form:width$}  {what}")).collect();
    format!("{}\n\nMore about one: /vm --help", lines.join("\n"))
}

/// Where the word at the end of `line` begins, and what it could become.
pub(super) fn complete(command: &clap::Command, line: &str) -> (usize, Vec<String>) {
    let start = line.rfind(' ').map_or(0, |space| space + 1);
    let partial = &line[start..];
    let before = line[..start].trim();
    let mut candidates: Vec<String> = if before.is_empty() {
        let own = OWN.iter().filter_map(|(form, _)| form.split(' ').next());
        let short = SHORT_FORMS.iter().filter_map(|(form, ..)| form.split(' ').next());
        let nouns = command.get_subcommands().map(|inner| format!("/{}", inner.get_name()));
        own.chain(short).map(str::to_owned).chain(nouns).collect()
    } else if before == "/tor" {
        vec!["start".into(), "stop".into()]
    } else {
        after(command, before)
    };
    candidates.retain(|candidate| candidate.starts_with(partial));
    candidates.sort_unstable();
    candidates.dedup();
    (start, candidates)
}

/// Subcommands and options that can follow these words.
fn after(command: &clap::Command, before: &str) -> Vec<String> {
    let Ok(Line::Command(words)) = Line::read(before) else { return Vec::new() };
    let mut command = command;
    for word in &words {
        match command.find_subcommand(word) {
            Some(inner) => command = inner,
            None => break,
        }
    }
    let inner = command.get_subcommands().map(|inner| inner.get_name().to_owned());
    let options = command.get_arguments().filter_map(|argument| Some(format!("--{}", argument.get_long()?)));
    inner.chain(options).collect()
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::{super::Oht, *};

    fn command(line: &str) -> String {
        match Line::read(line).unwrap() {
            Line::Command(words) => words.join("|"),
            other => panic!("{line} is {other:?}"),
        }
    }

    #[test]
    fn a_line_is_a_command_of_oht_or_the_consoles_own() {
        assert_eq!(command("/vm add web"), "vm|add|web");
        assert_eq!(command(" /sign web 'a file' "), "key|sign|web|a file");
        assert_eq!(command("/tor start"), "up");
        assert_eq!(command("/tor"), "tor", "which `oht` then refuses, with words");
        assert_eq!(command("/newtor web"), "vm|new-circuits|web");
        assert_eq!(Line::read("/set memory_mib 128"), Ok(Line::Set { key: "memory_mib".into(), value: "128".into() }));
        for nothing in ["", "   ", "# a comment"] {
            assert_eq!(Line::read(nothing), Ok(Line::Nothing));
        }
        assert_eq!(Line::read("vm list"), Err(LineError::NoSlash));
        assert_eq!(Line::read("/sign 'a"), Err(LineError::Quotes));
        assert!(matches!(Line::read("/set a"), Err(LineError::Usage(_))));
    }

    #[test]
    fn every_short_form_is_a_command_that_there_is() {
        let oht = Oht::command();
        for (short, long, _) in SHORT_FORMS {
            let mut command = &oht;
            for word in long.split(' ').take_while(|word| !word.starts_with('-')) {
                command = command.find_subcommand(word).unwrap_or_else(|| panic!("{short}: there is no {word}"));
            }
        }
    }

    #[test]
    fn completion_goes_as_deep_as_the_commands_do() {
        let mut oht = Oht::command();
        oht.build();
        let all = |line: &str| complete(&oht, line).1;
        assert!(all("/").contains(&"/vm".to_owned()) && all("/").contains(&"/newtor".to_owned()));
        assert_eq!(all("/sta"), ["/status"]);
        assert_eq!(all("/tor st"), ["start", "stop"]);
        assert!(all("/vm ").contains(&"attach".to_owned()));
        assert_eq!(all("/vm attach web --mem"), ["--memory"]);
        assert_eq!(complete(&oht, "/vm li"), (4, vec!["list".to_owned()]));
        assert_eq!(all("'"), [] as [String; 0]);
    }

    #[test]
    fn help_names_everything() {
        let help = help(&Oht::command());
        for name in ["/set KEY VALUE", "/tor stop", "/vm", "/status", "/quit"] {
            assert!(help.contains(name), "{name} is missing in\n{help}");
        }
    }
}
