//! The configuration file as lines: values are changed, comments and order stay.
//!
//! Every value of the configuration is at the top level, and nearly always on a line of its own. So a change replaces a
//! line; and since a file may be written otherwise, what came of it is read back, and has to be what was meant.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use toml::{Table, Value};

use crate::{
    config::{self, ConfigError, Options},
    paths::write_atomically,
};

/// Why the configuration is not changed.
#[derive(Debug, thiserror::Error)]
pub enum SettingsFileError {
    /// The file cannot be read, or is wrong.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The agent would not take it so.
    #[error("the configuration would be wrong then: {0}")]
    Value(String),
    /// There is no such value.
    #[error("{0} is not set in the configuration file")]
    Unset(String),
    /// A value over several lines, for example.
    #[error("{0} is written in a way that only an editor can change")]
    Lines(String),
    /// It cannot be written.
    #[error("cannot write the configuration {path}")]
    Write {
        /// Which.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
}

/// A configuration file, or one that is still to be written.
#[derive(Debug)]
pub struct SettingsFile {
    path: PathBuf,
    text: String,
    /// What the text says.
    values: Table,
}

impl SettingsFile {
    /// Reads the file, the usual one where none is given; one that is not there is empty.
    ///
    /// # Errors
    /// When it cannot be read, or the agent would not take it.
    pub fn open(given: Option<&Path>) -> Result<SettingsFile, SettingsFileError> {
        let path = given.map_or_else(config::usual_file, Path::to_owned);
        let text = match fs::read_to_string(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => String::new(),
            Err(source) => return Err(ConfigError::Read { path, source }.into()),
        };
        let wrong = |message| ConfigError::Toml { path: path.clone(), message };
        check(&text).map_err(wrong)?;
        let values = text.parse().map_err(|error: toml::de::Error| wrong(error.to_string()))?;
        Ok(SettingsFile { path, text, values })
    }

    /// The file's path, and its content with all changes.
    #[must_use]
    pub fn show(&self) -> String {
        let content = if self.text.trim().is_empty() { "# nothing is set\n" } else { &self.text };
        format!("# {}\n{content}", self.path.display())
    }

    /// Sets a value: TOML, or a text where it is none.
    ///
    /// # Errors
    /// When the agent does not know the key or does not take the value; nothing has changed then.
    pub fn set(&mut self, key: &str, text: &str) -> Result<(), SettingsFileError> {
        let value = format!("x = {text}").parse::<Table>().ok().and_then(|mut table| table.remove("x"));
        let value = value.unwrap_or_else(|| Value::String(text.into()));
        let line = format!("{key} = {value}\n");
        let mut values = self.values.clone();
        let is_there = values.insert(key.into(), value).is_some();
        let lines = self.text.split_inclusive('\n').map(|old| if sets(old, key) { line.as_str() } else { old });
        let mut text: String = lines.collect();
        if !is_there {
            text.extend((!text.is_empty() && !text.ends_with('\n')).then_some('\n'));
            text.push_str(&line);
        }
        self.change(key, text, values)
    }

    /// Removes a value.
    ///
    /// # Errors
    /// When it is not there, or cannot be removed without touching others.
    pub fn unset(&mut self, key: &str) -> Result<(), SettingsFileError> {
        let mut values = self.values.clone();
        values.remove(key).ok_or_else(|| SettingsFileError::Unset(key.into()))?;
        let text = self.text.split_inclusive('\n').filter(|line| !sets(line, key)).collect();
        self.change(key, text, values)
    }

    /// Takes a new text, if it says `values` and the agent takes it.
    fn change(&mut self, key: &str, text: String, values: Table) -> Result<(), SettingsFileError> {
        check(&text).map_err(SettingsFileError::Value)?;
        if text.parse::<Table>().ok().as_ref() != Some(&values) {
            return Err(SettingsFileError::Lines(key.into()));
        }
        (self.text, self.values) = (text, values);
        Ok(())
    }

    /// Writes the file, whole or not at all.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn save(&self) -> Result<(), SettingsFileError> {
        let directory = self.path.parent().map_or(Ok(()), fs::create_dir_all);
        let written = directory.and_then(|()| write_atomically(&self.path, self.text.as_bytes()));
        written.map_err(|source| SettingsFileError::Write { path: self.path.clone(), source })
    }
}

/// Whether this line sets the value.
fn sets(line: &str, key: &str) -> bool {
    line.split_once('=').is_some_and(|(name, _)| name.trim() == key)
}

fn check(text: &str) -> Result<(), String> {
    toml::from_str::<Options>(text).map(drop).map_err(|error| error.message().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_change_and_comments_stay() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("new/agent.toml");
        let mut file = SettingsFile::open(Some(&path)).unwrap();
        file.set("memory_mib", "128").unwrap();
        file.set("accel", "tcg").unwrap();
        file.save().unwrap();
        let text = fs::read_to_string(&path).unwrap();
        assert_eq!(text, "memory_mib = 128\naccel = \"tcg\"\n");
        fs::write(&path, format!("# why\n{text}")).unwrap();
        let mut file = SettingsFile::open(Some(&path)).unwrap();
        file.unset("accel").unwrap();
        file.set("programs", "[\"/a\", \"/b\"]").unwrap();
        file.set("memory_mib", "96").unwrap();
        file.save().unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), "# why\nmemory_mib = 96\nprograms = [\"/a\", \"/b\"]\n");
        fs::write(&path, "programs = [\n  \"/a\",\n]\nlog = \"info\"").unwrap();
        let mut file = SettingsFile::open(Some(&path)).unwrap();
        assert!(matches!(file.unset("programs"), Err(SettingsFileError::Value(_) | SettingsFileError::Lines(_))));
        assert!(file.set("programs", "[]").is_err());
        file.set("accel", "tcg").unwrap();
        assert!(file.show().ends_with("log = \"info\"\naccel = \"tcg\"\n"), "{}", file.show());
    }

    #[test]
    fn what_the_agent_would_not_take_is_refused_and_changes_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("agent.toml");
        let mut file = SettingsFile::open(Some(&path)).unwrap();
        let unknown = file.set("memory", "1").unwrap_err().to_string();
        assert!(unknown.contains("memory_mib"), "{unknown}");
        assert!(matches!(file.set("memory_mib", "much"), Err(SettingsFileError::Value(_))));
        assert!(matches!(file.unset("accel"), Err(SettingsFileError::Unset(_))));
        assert!(file.show().contains("nothing is set"));
        fs::write(&path, "memory_mib = \"much\"").unwrap();
        assert!(SettingsFile::open(Some(&path)).is_err());
    }
}
