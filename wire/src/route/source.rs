//! Whom a line is for.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};

use super::Problem;
use crate::{VmName, vm_name::VM_NAME_BYTES_MAX, vm_name::VmNameError};

/// The VMs that a line is for: a VM's name, in which `*` stands for any number of any characters, none too.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Source(String);

impl Source {
    /// Whether it is `*`: every VM.
    #[must_use]
    pub fn is_any(&self) -> bool {
        self.0 == "*"
    }

    /// Whether the line is for this VM.
    #[must_use]
    pub fn matches(&self, vm: &VmName) -> bool {
        matches(self.0.as_bytes(), vm.as_str().as_bytes())
    }

    /// Whether the line is for every VM that the other is for. Two patterns that mean the same are found when they are
    /// written alike.
    #[must_use]
    pub fn covers(&self, other: &Source) -> bool {
        // A star of the other is an ordinary character here, that only a star of ours takes.
        matches(self.0.as_bytes(), other.0.as_bytes())
    }

    /// The pattern as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// Whether a pattern matches a text. Goes back to the last star only, so it takes at most their lengths' product.
fn matches(pattern: &[u8], text: &[u8]) -> bool {
    let (mut p, mut t) = (0, 0);
    let mut star = None;
    while t < text.len() {
        if pattern.get(p) == Some(&b'*') {
            star = Some((p, t));
            p += 1;
        } else if pattern.get(p) == Some(&text[t]) {
            (p, t) = (p + 1, t + 1);
        } else if let Some((at, taken)) = star {
            star = Some((at, taken + 1));
            (p, t) = (at + 1, taken + 1);
        } else {
            return false;
        }
    }
    pattern[p..].iter().all(|&b| b == b'*')
}

impl FromStr for Source {
    type Err = Problem;

    fn from_str(text: &str) -> Result<Source, Problem> {
        let mut pattern = String::new();
        for c in text.chars() {
            if !(c == '*' && pattern.ends_with('*')) {
                pattern.push(c);
            }
            if pattern.len() > VM_NAME_BYTES_MAX {
                return Err(Problem::Source(VmNameError::TooLong(text.chars().count())));
            }
        }
        // A pattern is a name with something for each star.
        let example: Result<VmName, _> = pattern.replace('*', "x").parse();
        example.map_err(Problem::Source)?;
        Ok(Source(pattern))
    }
}

impl TryFrom<String> for Source {
    type Error = Problem;

    fn try_from(text: String) -> Result<Source, Problem> {
        text.parse()
    }
}

impl From<Source> for String {
    fn from(source: Source) -> String {
        source.0
    }
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn source(text: &str) -> Source {
        text.parse().unwrap()
    }

    #[test]
    fn patterns_match_whole_names() {
        for (pattern, yes, no) in [
            ("*", "web", ""),
            ("web", "web", "web2"),
            ("work-*", "work-1", "work"),
            ("*-1", "work-1", "work-12"),
            ("w*k*1", "work-a-k-1", "work-a-1-b"),
            ("a*a", "aa", "a"),
            ("***", "web", ""),
        ] {
            assert!(source(pattern).matches(&yes.parse().unwrap()), "{pattern} {yes}");
            assert!(no.parse().is_ok_and(|no| !source(pattern).matches(&no)) || no.is_empty(), "{pattern} {no}");
        }
    }

    #[test]
    fn patterns_cover_patterns() {
        for (wide, narrow, covers) in [
            ("*", "work-*", true),
            ("work-*", "work-a", true),
            ("work-*", "work-a*", true),
            ("w*", "w*k", true),
            ("work-*", "*", false),
            ("work-a", "work-*", false),
            ("*a*", "*b*", false),
            ("*a", "*a*", false),
        ] {
            assert_eq!(source(wide).covers(&source(narrow)), covers, "{wide} {narrow}");
        }
    }

    #[test]
    fn what_no_vm_can_be_called_is_refused() {
        for text in ["", "Web", "a_b", "-*", "*-", "a.b", "a?", "../x", &"x".repeat(64)] {
            assert!(matches!(text.parse::<Source>(), Err(Problem::Source(_))), "{text}");
        }
        assert_eq!(source("a**b").as_str(), "a*b");
        let hostile = format!("{}a", "a*".repeat(31));
        assert!(!source(&hostile).matches(&format!("{}b", "a".repeat(62)).parse().unwrap()));
    }
}
