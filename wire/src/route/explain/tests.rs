use super::super::{Destination, parse};
use super::*;

fn explained(text: &str, target: &str) -> String {
    let lines = parse("10.conf", text).unwrap();
    let target: Destination = target.parse().unwrap();
    explain(&lines, &"web".parse().unwrap(), target.host(), target.port()).to_string()
}

#[test]
fn the_line_and_why_not_those_before_it() {
    let text = "\
        work .example.org tor\n\
        work-* www.example.org tor\n\
        * example.org block\n\
        * www.example.org:80 block drop\n\
        web other.example tor\n\
        work :80 tor\n\
        * 192.0.2.0/24 block\n\
        * ::/0 block\n\
        * .org via socks5://alice:hunter2@p.example:1080";
    let expected = "\
        via socks5://…@p.example:1080\n  \
        because of 10.conf:9: * .org via socks5://…@p.example:1080\n  \
        not 10.conf:1: work .example.org tor: it is for VM work\n  \
        not 10.conf:2: work-* www.example.org tor: it is for VMs work-*\n  \
        not 10.conf:3: * example.org block reject: it is for that name only; .example.org has those below it too\n  \
        not 10.conf:4: * www.example.org:80 block drop: it has port 80 only\n  \
        note: 2 lines about addresses (the first is 10.conf:7) were not asked: the name is resolved by the exit, so \
        prefix routes do not see it";
    assert_eq!(explained(text, "www.example.org:443"), expected);
}

#[test]
fn where_no_line_matches() {
    let told = explained("* example.org:80,443 block", "192.0.2.1:80");
    assert!(
        told.starts_with("tor\n  because no line matches\n  note: a line about names (10.conf:1) was not asked: "),
        "{told}"
    );
    assert_eq!(explained("", "example.org:80"), "tor\n  because no line matches");
}

#[test]
fn onion_services_have_no_exit() {
    let told = explained("* * exit=CH optimistic", "x.onion:80");
    assert!(told.starts_with("tor optimistic, to the onion service\n"), "{told}");
    assert!(told.ends_with("note: an onion service is reached without an exit: exit and via do not apply"), "{told}");
    let told = explained("* * onion-only", "[2001:db8::1]:80");
    assert!(told.starts_with("block reject\n"), "{told}");
    assert!(told.ends_with("note: onion-only refuses what is no onion service"), "{told}");
}

#[test]
fn the_list_is_bounded() {
    let told = explained(&"work * block\n".repeat(20), "example.org:80");
    assert_eq!(told.matches("it is for VM work").count(), MISSES_MAX);
    assert!(told.ends_with("nor 12 other lines that nearly match"), "{told}");
}
