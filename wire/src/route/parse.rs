//! From text to lines. Every error of a text is found at once, up to a bound.

use std::{str::FromStr, sync::Arc};

use super::{
    Action, Block, Exit, Hop, Isolation, LINE_BYTES_MAX, Line, ParseError, Problem, ROUTES_MAX, Route, Source,
    StreamOptions, Target, TorOptions,
    problem::{nearest, shown},
};

/// After so many errors the rest of a text is not looked at.
pub const ERRORS_MAX: usize = 50;

/// Reads the routes of a text that is called `file`. Its size is for the caller to bound.
///
/// # Errors
/// Everything that is wrong with it, in order, at most [`ERRORS_MAX`]; never an empty list.
pub fn parse(file: &str, text: &str) -> Result<Vec<Line>, Vec<ParseError>> {
    let file: Arc<str> = file.into();
    let (mut lines, mut errors) = (vec![], vec![]);
    for (number, text) in (1..).zip(text.lines()) {
        let mut faults = vec![];
        match route(text, &mut faults) {
            Some(_) if lines.len() == ROUTES_MAX => faults.push(Fault { at: 0, word: "", problem: Problem::TooMany }),
            Some(route) => lines.push(Line { file: Arc::clone(&file), number, route }),
            None => {}
        }
        errors.extend(faults.into_iter().map(|fault| fault.into_error(&file, number, text)));
        if errors.len() >= ERRORS_MAX || lines.len() == ROUTES_MAX && !errors.is_empty() {
            break;
        }
    }
    errors.truncate(ERRORS_MAX);
    if errors.is_empty() { Ok(lines) } else { Err(errors) }
}

impl FromStr for Route {
    type Err = ParseError;

    /// Reads one line; the error calls it `route`.
    fn from_str(text: &str) -> Result<Route, ParseError> {
        let mut lines = parse("route", text).map_err(|mut errors| errors.swap_remove(0))?;
        match (lines.pop(), lines.is_empty()) {
            (Some(line), true) => Ok(line.route),
            _ => Err(Fault { at: 0, word: "", problem: Problem::NotOne }.into_error(&"route".into(), 1, text)),
        }
    }
}

/// A word and the byte at which it begins.
type Word<'a> = (usize, &'a str);

struct Fault<'a> {
    at: usize,
    word: &'a str,
    problem: Problem,
}

impl Fault<'_> {
    fn into_error(self, file: &Arc<str>, line: u32, text: &str) -> ParseError {
        let before = text.get(..self.at).map_or(0, |before| before.chars().count());
        let column = u32::try_from(before + 1).unwrap_or(u32::MAX);
        ParseError { file: Arc::clone(file), line, column, word: shown(self.word), problem: self.problem }
    }
}

/// The words of a line, up to a comment.
fn words(text: &str) -> impl Iterator<Item = Word<'_>> {
    let is_blank = |c: char| c == ' ' || c == '\t';
    let words = text.split(is_blank).filter(|word| !word.is_empty());
    words.take_while(|word| !word.starts_with('#')).map(|word| (word.as_ptr() as usize - text.as_ptr() as usize, word))
}

/// The route of a line, if it has one and nothing is wrong with it.
fn route<'a>(text: &'a str, faults: &mut Vec<Fault<'a>>) -> Option<Route> {
    let end = text.trim_end().len();
    let mut words = words(text).peekable();
    words.peek()?;
    if text.len() > LINE_BYTES_MAX {
        faults.push(Fault { at: 0, word: "", problem: Problem::LineTooLong });
        return None;
    }
    let source = words.next().and_then(|word| part::<Source>(word, faults));
    let Some(word) = words.next() else {
        faults.push(Fault { at: end, word: "", problem: Problem::NoTarget });
        return None;
    };
    if words.peek().is_none() {
        let is_action = ACTIONS.contains(&word.1);
        faults.push(match is_action {
            true => Fault { at: word.0, word: word.1, problem: Problem::ActionForTarget },
            false => Fault { at: end, word: "", problem: Problem::NoAction },
        });
        return None;
    }
    let target = part::<Target>(word, faults);
    let first = *words.peek()?;
    let action = action(words, faults)?;
    let route = Route::new(source?, target?, action);
    route.map_err(|conflict| faults.push(Fault { at: first.0, word: first.1, problem: conflict.into() })).ok()
}

fn part<'a, T: FromStr<Err = Problem>>((at, word): Word<'a>, faults: &mut Vec<Fault<'a>>) -> Option<T> {
    word.parse().map_err(|problem| faults.push(Fault { at, word, problem })).ok()
}

const ACTIONS: [&str; 4] = ["tor", "onion-only", "via", "block"];

const OPTIONS: [&str; 5] = ["isolate=", "exit=", "exit!=", "optimistic", "resolve"];

/// What the words of an action have said so far. Each may be said once.
#[derive(Default)]
struct Draft {
    /// Which of [`ACTIONS`]; `tor` when only options are there.
    action: Option<&'static str>,
    block: Option<Block>,
    via: Option<Hop>,
    isolate: Option<Isolation>,
    exit: Option<(&'static str, Exit)>,
    optimistic: bool,
    resolve: bool,
}

fn action<'a>(mut words: impl Iterator<Item = Word<'a>>, faults: &mut Vec<Fault<'a>>) -> Option<Action> {
    let mut draft = Draft::default();
    let before = faults.len();
    while let Some((at, word)) = words.next() {
        // What belongs to a word is the next one.
        let argument = if word == "via" { words.next() } else { None };
        if let Err(problem) = draft.take(word, argument.map(|(_, argument)| argument)) {
            let (at, word) = argument.filter(|_| is_about_argument(&problem)).unwrap_or((at, word));
            faults.push(Fault { at, word, problem });
        }
    }
    (faults.len() == before).then(|| draft.finish())
}

fn is_about_argument(problem: &Problem) -> bool {
    !matches!(problem, Problem::Twice(_) | Problem::Excludes(_))
}

impl Draft {
    fn take(&mut self, word: &str, argument: Option<&str>) -> Result<(), Problem> {
        if self.action == Some("block") {
            return self.take_block(word);
        }
        if let Some(action) = ACTIONS.into_iter().find(|action| *action == word) {
            self.begin(action)?;
            if action == "via" {
                self.via = Some(argument.ok_or(Problem::NoHop)?.parse()?);
            }
            return Ok(());
        }
        let option = OPTIONS.into_iter().find(|option| match option.ends_with('=') {
            true => word.starts_with(option),
            false => word == *option,
        });
        let Some(option) = option else { return Err(Problem::Word(guess(word))) };
        self.option(option, &word[option.len()..])
    }

    fn begin(&mut self, action: &'static str) -> Result<(), Problem> {
        match self.action {
            Some(before) if before == action => return Err(Problem::Twice(action)),
            Some(before) => return Err(Problem::Excludes(before)),
            None => {}
        }
        let [option, ..] = self.options()[..] else {
            self.action = Some(action);
            return Ok(());
        };
        // Options may stand before `tor` and `via`, and some before `onion-only`.
        match action {
            "block" => Err(Problem::Excludes(option)),
            "onion-only" if self.exit.is_some() || self.resolve => Err(Problem::Excludes(option)),
            _ => {
                self.action = Some(action);
                Ok(())
            }
        }
    }

    /// The options that are there, those first that go with Tor's exits only.
    fn options(&self) -> Vec<&'static str> {
        let exit = self.exit.as_ref().map(|(option, _)| *option);
        let flags = [(self.resolve, "resolve"), (self.isolate.is_some(), "isolate="), (self.optimistic, "optimistic")];
        exit.into_iter().chain(flags.into_iter().filter_map(|(is, option)| is.then_some(option))).collect()
    }

    fn option(&mut self, option: &'static str, value: &str) -> Result<(), Problem> {
        if self.action == Some("onion-only") && !matches!(option, "isolate=" | "optimistic") {
            return Err(Problem::Excludes("onion-only"));
        }
        if self.options().contains(&option) {
            return Err(Problem::Twice(option));
        }
        match option {
            "optimistic" => self.optimistic = true,
            "resolve" => self.resolve = true,
            "isolate=" => self.isolate = Some(isolation(value)?),
            _ => {
                if let Some((before, _)) = self.exit {
                    return Err(Problem::Excludes(before));
                }
                let countries = value.parse()?;
                self.exit =
                    Some((option, if option == "exit=" { Exit::In(countries) } else { Exit::NotIn(countries) }));
            }
        }
        Ok(())
    }

    fn take_block(&mut self, word: &str) -> Result<(), Problem> {
        let known = [("reject", Block::Reject), ("drop", Block::Drop)];
        if self.block.is_some() {
            return Err(Problem::Excludes("block reject and block drop"));
        }
        if let Some((_, block)) = known.into_iter().find(|(name, _)| *name == word) {
            self.block = Some(block);
            return Ok(());
        }
        match OPTIONS.into_iter().chain(ACTIONS).any(|known| word.starts_with(known)) {
            true => Err(Problem::Excludes("block")),
            false => Err(Problem::Block(nearest(word, known.map(|(name, _)| name)))),
        }
    }

    fn finish(self) -> Action {
        let stream = StreamOptions { isolate: self.isolate, optimistic: self.optimistic };
        match self.action {
            Some("block") => Action::Block(self.block.unwrap_or(Block::Reject)),
            Some("onion-only") => Action::OnionOnly(stream),
            _ => {
                let exit = self.exit.map_or(Exit::Any, |(_, exit)| exit);
                Action::Tor(TorOptions { stream, exit, via: self.via, resolve: self.resolve })
            }
        }
    }
}

fn isolation(value: &str) -> Result<Isolation, Problem> {
    let known = [Isolation::Vm, Isolation::Destination, Isolation::Credential];
    let is = |isolation: &Isolation| isolation.to_string() == value;
    known.into_iter().find(is).ok_or_else(|| Problem::Isolation(nearest(value, ["vm", "destination", "credential"])))
}

fn guess(word: &str) -> Option<&'static str> {
    // An option with a value is known by what stands before the value.
    let name = word.find('=').map_or(word, |at| &word[..=at]);
    nearest(name, ACTIONS.into_iter().chain(OPTIONS))
}

#[cfg(test)]
mod tests;
