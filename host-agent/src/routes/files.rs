//! The files that routes stand in.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use wire::route::{Line, ROUTES_MAX, parse};

/// What the API's routes are called, and the place that they have among the drop-ins.
pub const OWN_FILE: &str = "50-api.conf";

/// Drop-ins at most.
pub const FILES_MAX: usize = 256;

/// Bytes of one file at most: 20,000 routes of two hundred bytes.
pub const TEXT_BYTES_MAX: usize = 4 << 20;

/// How the name of a drop-in ends.
const SUFFIX: &str = ".conf";

/// What all files say.
#[derive(Clone, Debug, Default)]
pub struct Files {
    /// In order.
    before: Vec<Line>,
    own: String,
    own_lines: Vec<Line>,
    after: Vec<Line>,
}

impl Files {
    /// Reads the drop-ins of `directory` and the API's routes in the file `own`. What is not there is empty.
    ///
    /// # Errors
    /// Everything that is wrong, each with its file and line.
    pub fn read(directory: &Path, own: &Path) -> Result<Files, Vec<String>> {
        let mut files = Files::default();
        let mut problems = vec![];
        let names = drop_ins(directory).unwrap_or_else(|problem| {
            problems.push(problem);
            vec![]
        });
        for (name, path) in names {
            match lines(&path.display().to_string(), &path) {
                Ok((_, lines)) if name.as_str() < OWN_FILE => files.before.extend(lines),
                Ok((_, lines)) => files.after.extend(lines),
                Err(wrong) => problems.extend(wrong),
            }
        }
        match lines(OWN_FILE, own) {
            Ok((text, lines)) => (files.own, files.own_lines) = (text, lines),
            Err(wrong) => problems.extend(wrong),
        }
        problems.extend(files.problem());
        if problems.is_empty() { Ok(files) } else { Err(problems) }
    }

    /// The lines in order.
    #[must_use]
    pub fn lines(&self) -> Vec<Line> {
        [&self.before[..], &self.own_lines, &self.after].concat()
    }

    /// The API's routes as text.
    #[must_use]
    pub fn own(&self) -> &str {
        &self.own
    }

    /// The API's routes.
    #[must_use]
    pub fn own_lines(&self) -> &[Line] {
        &self.own_lines
    }

    /// The same with other routes of the API.
    ///
    /// # Errors
    /// When they are too many together.
    pub fn with_own(&self, own: String, own_lines: Vec<Line>) -> Result<Files, String> {
        let files = Files { own, own_lines, ..self.clone() };
        files.problem().map_or(Ok(files), Err)
    }

    fn problem(&self) -> Option<String> {
        let count = self.before.len() + self.own_lines.len() + self.after.len();
        (count > ROUTES_MAX).then(|| format!("there are {count} routes in all files; at most {ROUTES_MAX} may be"))
    }
}

/// The drop-ins by name, in order.
fn drop_ins(directory: &Path) -> Result<Vec<(String, PathBuf)>, String> {
    let unreadable = |error: io::Error| format!("cannot read the directory {}: {error}", directory.display());
    let entries = match fs::read_dir(directory) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(vec![]),
        Err(error) => return Err(unreadable(error)),
    };
    let mut found = vec![];
    for entry in entries {
        let entry = entry.map_err(unreadable)?;
        let Ok(name) = entry.file_name().into_string() else { continue };
        // A name that begins with a dot is an editor's.
        if !name.ends_with(SUFFIX) || name.starts_with('.') {
            continue;
        }
        if name == OWN_FILE {
            return Err(format!("{} is in the way: the routes of the API have that name", entry.path().display()));
        }
        if found.len() == FILES_MAX {
            return Err(format!("there are more than {FILES_MAX} files in {}", directory.display()));
        }
        found.push((name, entry.path()));
    }
    found.sort();
    Ok(found)
}

/// The text of a file and its lines, which call it `name`.
fn lines(name: &str, path: &Path) -> Result<(String, Vec<Line>), Vec<String>> {
    let failed = |why: String| vec![format!("cannot read {}: {why}", path.display())];
    let length = match fs::metadata(path) {
        Ok(meta) => meta.len(),
        Err(error) if error.kind() == io::ErrorKind::NotFound && name == OWN_FILE => return Ok(Default::default()),
        Err(error) => return Err(failed(error.to_string())),
    };
    if length > TEXT_BYTES_MAX as u64 {
        return Err(failed(format!("it has {length} bytes; at most {TEXT_BYTES_MAX} may be")));
    }
    let text = fs::read_to_string(path).map_err(|error| failed(error.to_string()))?;
    match parse(name, &text) {
        Ok(lines) => Ok((text, lines)),
        Err(errors) => Err(errors.iter().map(ToString::to_string).collect()),
    }
}
