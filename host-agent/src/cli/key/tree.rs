//! The tree of keys, for people.

use key_tree::Timestamp;

use crate::keys::report::{KeyBranch, KeyTree};

/// Digits of a key that tell it from the others here.
const KEY_DIGITS: usize = 16;

/// The whole tree, a line for each key, and one more where it cannot be used.
pub(super) fn text(tree: &KeyTree) -> String {
    let mut lines = vec![format!("keys: {}; the agent's time is {}", tree.keys.detail, time(tree.now))];
    lines.extend(tree.branches.iter().map(line));
    lines.join("\n")
}

/// One key.
pub(super) fn line(branch: &KeyBranch) -> String {
    let depth = match branch.level.as_str() {
        "root" => 0,
        "host" => 1,
        "vm" => 2,
        _ => 3,
    };
    let (indent, key) = ("  ".repeat(depth), branch.key.get(..KEY_DIGITS).unwrap_or(&branch.key));
    let name = match branch.level.as_str() {
        "vm" => format!("vm {}", branch.name),
        _ => branch.name.clone(),
    };
    let named = format!("{indent}{name}");
    let validity = match (branch.start, branch.end) {
        (Some(start), Some(end)) => format!("  {} to {}", time(start), time(end)),
        _ => String::new(),
    };
    let state = match (branch.state.as_str(), branch.replaced) {
        (_, true) => "replaced",
        ("not_yet", _) => "not yet",
        (state, _) => state,
    };
    let mut text = format!("{named:<36} {key}{validity}  {state}");
    let below = format!("\n{indent}    ");
    if let Some(why) = &branch.why {
        text.push_str(&format!("{below}cannot be used: {why}"));
    }
    branch.checks.iter().for_each(|check| text.push_str(&format!("{below}{check}")));
    text
}

fn time(unix: u64) -> Timestamp {
    Timestamp::from_unix(unix)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_that_cannot_be_used_says_why() {
        let mut branch = KeyBranch {
            level: "vm".into(),
            name: "web".into(),
            key: "ab".repeat(32),
            start: Some(0),
            end: Some(86_400),
            state: "live".into(),
            why: None,
            replaced: false,
            checks: vec![],
            revocation_id: None,
        };
        let live =
            "    vm web                           abababababababab  1970-01-01T00:00:00Z to 1970-01-02T00:00:00Z  live";
        assert_eq!(line(&branch), live);
        (branch.state, branch.why) = ("over".into(), Some("the grant ended".into()));
        branch.checks = vec!["check if port(80)".into()];
        assert!(line(&branch).ends_with("over\n        cannot be used: the grant ended\n        check if port(80)"));
    }
}
