//! What can be said about files by their names and by a glance into them.

use std::{
    fs,
    path::{Component, Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context as _, Result, bail};

/// Names that say nothing about what is in the file, and the `mod.rs` that we do not use.
const NAMELESS: [&str; 5] = ["mod.rs", "util.rs", "common.rs", "helpers.rs", "misc.rs"];

/// Lines that a Rust file should not pass, tests apart.
const LINES_MAX: usize = 500;

/// Fails with every file that breaks a rule.
pub(super) fn check(root: &Path) -> Result<()> {
    let files = tracked(root)?;
    let mut wrong = vec![];
    for file in &files {
        let name = file.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        if NAMELESS.contains(&name.as_str()) {
            wrong.push(format!("{} needs a name that says what is in it", file.display()));
        }
        // A file that is tracked and was deleted is somebody's work in progress.
        let Ok(bytes) = fs::read(root.join(file)) else { continue };
        let text = String::from_utf8_lossy(&bytes);
        if name.ends_with(".md") {
            wrong.extend(broken_links(root, file, &text));
        }
        if name.ends_with(".rs") && lines_without_tests(&text) > LINES_MAX {
            wrong.push(format!("{} has more than {LINES_MAX} lines and wants to be two files", file.display()));
        }
    }
    wrong.extend(folders_the_readme_forgot(root, &files));
    if !wrong.is_empty() {
        bail!("{}", wrong.join("; "));
    }
    Ok(())
}

/// The bash scripts of the checkout.
pub(super) fn scripts(root: &Path) -> Result<Vec<PathBuf>> {
    let is_script = |file: &PathBuf| {
        fs::read(root.join(file)).is_ok_and(|bytes| {
            let first = bytes.split(|&b| b == b'\n').next().unwrap_or_default();
            first.starts_with(b"#!") && (first.ends_with(b"bash") || first.ends_with(b"/sh"))
        })
    };
    Ok(tracked(root)?.into_iter().filter(is_script).collect())
}

/// What git tracks, and what it would track if it were added.
fn tracked(root: &Path) -> Result<Vec<PathBuf>> {
    let done = Command::new("git")
        .args(["-c", "safe.directory=*", "ls-files", "-z", "--cached", "--others", "--exclude-standard"])
        .current_dir(root)
        .stdin(Stdio::null())
        .output()
        .context("cannot start git: run ci/setup")?;
    if !done.status.success() {
        bail!("git ls-files failed: {}", String::from_utf8_lossy(&done.stderr).trim());
    }
    let names = String::from_utf8(done.stdout).context("a file name is not UTF-8")?;
    Ok(names.split('\0').filter(|name| !name.is_empty()).map(PathBuf::from).collect())
}

fn lines_without_tests(text: &str) -> usize {
    text.lines().take_while(|line| *line != "#[cfg(test)]").count()
}

/// The relative links of a Markdown file that lead nowhere, or out of the checkout.
fn broken_links(root: &Path, file: &Path, text: &str) -> Vec<String> {
    let folder = file.parent().unwrap_or(Path::new(""));
    let targets = text.split("](").skip(1).filter_map(|rest| rest.split(')').next());
    let relative = targets.filter(|target| !target.contains("://") && !target.starts_with('#'));
    relative
        .filter(|target| {
            let path = target.split('#').next().unwrap_or_default();
            !resolved(&folder.join(path)).is_some_and(|path| root.join(path).exists())
        })
        .map(|target| format!("{} links to {target}, which is not there", file.display()))
        .collect()
}

/// `a/b/../c` as `a/c`; `None` when the path leaves the checkout.
fn resolved(path: &Path) -> Option<PathBuf> {
    let mut resolved = PathBuf::new();
    for part in path.components() {
        match part {
            Component::Normal(name) => resolved.push(name),
            Component::ParentDir if resolved.pop() => {}
            Component::CurDir => {}
            _ => return None,
        }
    }
    Some(resolved)
}

/// "Finding your way" has a line for each folder: `` `name/` `` must stand somewhere in the README.
fn folders_the_readme_forgot(root: &Path, files: &[PathBuf]) -> Vec<String> {
    let Ok(readme) = fs::read_to_string(root.join("README.md")) else { return vec!["there is no README.md".into()] };
    let mut folders: Vec<_> = files
        .iter()
        .filter_map(|file| file.parent()?.iter().next()?.to_str())
        .filter(|f| !f.starts_with('.'))
        .collect();
    folders.sort_unstable();
    folders.dedup();
    let forgotten = folders.into_iter().filter(|folder| !readme.contains(&format!("`{folder}/`")));
    forgotten.map(|folder| format!("the README does not say what {folder}/ is")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn links_must_lead_to_something_in_the_checkout() {
        let root = tempfile::tempdir().unwrap();
        fs::create_dir(root.path().join("docs")).unwrap();
        fs::write(root.path().join("README.md"), "").unwrap();
        let broken = |text: &str| broken_links(root.path(), Path::new("docs/a.md"), text).len();
        assert_eq!(broken("[a](../README.md) [b](../README.md#part) [c](#here) [d](https://example.org/x)"), 0);
        assert_eq!(broken("[a](missing.md)"), 1);
        assert_eq!(broken("[a](../../README.md)"), 1, "outside of the checkout");
        assert_eq!(broken("[a](/etc/passwd)"), 1);
    }

    #[test]
    fn tests_do_not_count_as_lines() {
        assert_eq!(lines_without_tests("a\nb\n#[cfg(test)]\nmod tests {}\n"), 2);
    }

    #[test]
    fn a_folder_that_the_readme_forgot_is_named() {
        let root = tempfile::tempdir().unwrap();
        fs::write(root.path().join("README.md"), "| `wire/` | what crosses vsock |").unwrap();
        let files = ["wire/src/lib.rs", ".ci/run", "qemu/src/lib.rs", "README.md"].map(PathBuf::from);
        assert_eq!(folders_the_readme_forgot(root.path(), &files), ["the README does not say what qemu/ is"]);
    }
}
