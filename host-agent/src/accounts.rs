//! Users and groups of this machine, as its files have them (passwd(5), group(5)).
//!
//! Not by the name service of libc: the programs are linked statically, and glibc would load its modules into them, which
//! crashes when they are of another version. So users who are only in a directory service are members of a group by
//! their primary group alone.

use nix::unistd::{Gid, Uid};

/// The two files.
#[derive(Debug, Default)]
pub struct Accounts {
    passwd: String,
    group: String,
}

impl Accounts {
    /// Reads the files; one that cannot be read names nobody.
    #[must_use]
    pub fn read() -> Accounts {
        let read = |path| std::fs::read_to_string(path).unwrap_or_default();
        Accounts { passwd: read("/etc/passwd"), group: read("/etc/group") }
    }

    /// The name of a user.
    #[must_use]
    pub fn user(&self, uid: Uid) -> Option<String> {
        let mut users = self.passwd.lines().map(|line| line.split(':').collect::<Vec<_>>());
        let user = users.find(|fields| fields.get(2).and_then(|field| field.parse().ok()) == Some(uid.as_raw()))?;
        user.first().map(|name| (*name).to_owned())
    }

    /// Whether a user, with this primary group, is a member of the group that has this name.
    #[must_use]
    pub fn is_member(&self, uid: Uid, primary: Gid, group: &str) -> bool {
        let mut groups = self.group.lines().map(|line| line.split(':').collect::<Vec<_>>());
        let Some(fields) = groups.find(|fields| fields.first() == Some(&group)) else { return false };
        let gid = fields.get(2).and_then(|field| field.parse().ok());
        let is_listed = |user: String| fields.get(3).is_some_and(|members| members.split(',').any(|name| name == user));
        gid == Some(primary.as_raw()) || self.user(uid).is_some_and(is_listed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn members_are_listed_or_have_it_as_their_primary_group() {
        let accounts = Accounts {
            passwd: "root:x:0:0:root:/root:/bin/sh\nann:x:1000:1000::/:\nbroken\nbob:x:1001:1001::/:\n".into(),
            group: "root:x:0:\n\noht:x:990:ann,carol\nempty:x:991:\nbroken:x\n".into(),
        };
        let is_member = |uid, gid, group| accounts.is_member(Uid::from_raw(uid), Gid::from_raw(gid), group);
        assert!(is_member(1000, 1000, "oht") && is_member(1001, 990, "oht"));
        assert!(!is_member(1001, 1001, "oht") && !is_member(1000, 1000, "empty") && !is_member(1000, 1000, ""));
        assert!(!is_member(1000, 1000, "broken") && !is_member(1000, 1000, "nowhere"));
        assert_eq!(accounts.user(Uid::from_raw(1001)).as_deref(), Some("bob"));
        assert_eq!(accounts.user(Uid::from_raw(7)), None);
        assert_eq!(Accounts::read().user(Uid::from_raw(0)).as_deref(), Some("root"));
    }
}
