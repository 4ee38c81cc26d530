use super::*;

fn route(text: &str) -> Route {
    text.parse().unwrap_or_else(|error| panic!("{error}"))
}

/// The errors of a text, as a person sees them.
fn errors(text: &str) -> Vec<String> {
    parse("f", text).unwrap_err().iter().map(ToString::to_string).collect()
}

#[test]
fn every_example_of_the_manual_is_read() {
    let manual = include_str!("../../route.rs");
    let text: Vec<_> = manual.lines().map(|line| line.trim_start_matches("//!")).collect();
    let begin = text.iter().position(|line| *line == " ```text").unwrap();
    let end = text.iter().position(|line| *line == " ```").unwrap();
    let lines = parse("manual", &text[begin + 1..end].join("\n")).unwrap();
    assert_eq!(lines.len(), 5);
    assert_eq!(lines[1].to_string(), "manual:4: work-* * onion-only");
}

#[test]
fn lines_are_read_and_written() {
    for (text, written) in [
        ("* * tor", "* * tor"),
        ("\tweb   example.org\t tor # why", "web example.org tor"),
        ("web example.org block", "web example.org block reject"),
        ("web .example.org block drop", "web .example.org block drop"),
        ("web * onion-only optimistic", "web * onion-only optimistic"),
        ("web * isolate=vm onion-only", "web * onion-only isolate=vm"),
        ("web :443 exit=de,CH", "web *:443 tor exit=CH,DE"),
        ("web * exit!=us", "web * tor exit!=US"),
        ("web * resolve optimistic isolate=destination", "web * tor isolate=destination optimistic resolve"),
        ("web * optimistic via socks5://h:1 exit=CH", "web * via socks5://h:1 exit=CH optimistic"),
        ("web * via socks5://u:p@h:1", "web * via socks5://u:p@h:1"),
        ("web * via socks5://x.onion:1 isolate=credential", "web * via socks5://x.onion:1 isolate=credential"),
    ] {
        let route = route(text);
        assert_eq!(route.written(), written);
        assert_eq!(written.parse(), Ok(route));
    }
    assert_eq!(route("* * via socks5://u:p@h:1").to_string(), "* * via socks5://…@h:1");
}

#[test]
fn comments_and_empty_lines_mean_nothing_and_lines_are_counted() {
    let lines = parse("f", "# a\n\n \t\r\nweb * tor # b\r\n#c\n* x#y.example block\n").unwrap_err();
    assert_eq!(lines.len(), 1, "a # within a word is part of it");
    let lines = parse("f", "# a\n\n \t\r\nweb * tor # b\r\n#c\n* * block").unwrap();
    assert_eq!(lines.iter().map(|line| line.number).collect::<Vec<_>>(), [4, 6]);
    assert_eq!(parse("f", "").unwrap(), []);
}

#[test]
fn every_error_of_a_text_is_told_with_its_place() {
    let text =
        "* * tor\nWeb *.example.org optimstic exit=CHE\n\tweb 1.2.3.4/8 block harshly\nweb example.org\nweb\n* tor";
    let errors = errors(text);
    let expected = [
        "f:2:1: \"Web\": expected a VM's name",
        "f:2:5: \"*.example.org\": *.name is ambiguous; did you mean .example.org,",
        "f:2:19: \"optimstic\": expected an action (tor,",
        "f:2:29: \"exit=CHE\": expected countries of two letters",
        "f:3:6: \"1.2.3.4/8\": bits are set behind the prefix's length; did you mean 1.0.0.0/8?",
        "f:3:22: \"harshly\": expected nothing, reject or drop after block",
        "f:4:16: the line ends before its action",
        "f:5:4: the line ends before its target",
        "f:6:3: \"tor\": this is an action, expected a target before it",
    ];
    assert_eq!(errors.len(), expected.len(), "{errors:#?}");
    for (error, expected) in errors.iter().zip(expected) {
        assert!(error.starts_with(expected), "{error}");
    }
    assert!(errors[2].ends_with("did you mean optimistic?"), "{}", errors[2]);
}

#[test]
fn what_contradicts_itself_is_refused() {
    for (action, expected) in [
        ("tor tor", "\"tor\": tor is there already"),
        ("tor block", "\"block\": this cannot go with tor"),
        ("block drop tor", "\"tor\": this cannot go with block reject and block drop"),
        ("block reject drop", "\"drop\": this cannot go with block"),
        ("block optimistic", "\"optimistic\": this cannot go with block"),
        ("exit=CH block", "\"block\": this cannot go with exit="),
        ("block dorp", "did you mean drop?"),
        ("exit=CH exit=DE", "\"exit=DE\": exit= is there already"),
        ("exit=CH exit!=DE", "\"exit!=DE\": this cannot go with exit="),
        ("exit=CH,ch", "CH is there twice"),
        ("exit=", "expected countries"),
        ("onion-only exit=CH", "\"exit=CH\": this cannot go with onion-only"),
        ("onion-only resolve", "\"resolve\": this cannot go with onion-only"),
        ("resolve onion-only", "\"onion-only\": this cannot go with resolve"),
        ("onion-only via socks5://h:1", "\"via\": this cannot go with onion-only"),
        ("via socks5://h:1 via socks5://h:1", "\"via\": via is there already"),
        ("via", "\"via\": expected a proxy after via"),
        ("via http://h:1", "\"http://…\": expected socks5://host:port"),
        ("via socks5://x.onion:1 exit=CH", "\"via\": there is no exit on the way to a proxy"),
        ("isolate=vm isolate=vm", "\"isolate=vm\": isolate= is there already"),
        ("isolate=dest", "expected isolate=vm"),
        ("isolate=destinatoin", "did you mean destination?"),
        ("isolat=vm", "did you mean isolate=?"),
        ("optimistic optimistic", "optimistic is there already"),
        ("optimistic=yes", "expected an action"),
        ("TOR", "did you mean tor?"),
    ] {
        let errors = errors(&format!("* * {action}"));
        assert_eq!(errors.len(), 1, "{action}: {errors:#?}");
        assert!(errors[0].contains(expected), "{action}: {}", errors[0]);
    }
    for (line, expected) in [
        ("* .onion exit=CH", "no exit on the way to an onion service"),
        ("* x.onion:80 via socks5://h:1", "not reached through a proxy"),
        ("* .onion resolve", "have no addresses"),
        ("* 192.0.2.1 resolve", "needs no resolving"),
        ("* example.org:80 resolve", "has no port"),
        ("* example.org onion-only", "no onion service is among"),
        ("* 192.0.2.0/24 onion-only", "no onion service is among"),
        ("* onion onion-only", "no onion service is among"),
    ] {
        assert!(errors(line)[0].contains(expected), "{line}: {:?}", errors(line));
    }
    route("* .onion onion-only");
}

#[test]
fn no_error_shows_a_password() {
    for line in [
        "* * via socks5://alice:hunter2@h:0",
        "* * via http://alice:hunter2@h:1",
        "* * socks5://alice:hunter2@h:1",
        "* * via alice:hunter2@h:1",
        "* socks5://alice:hunter2@h:1 tor",
        "socks5://alice:hunter2@h:1 * tor",
        "* * via socks5://alice:hunter2",
        "* .onion via socks5://alice:hunter2@h:1",
    ] {
        let errors = parse("f", line).unwrap_err();
        let told = format!("{errors:?} {}", errors[0]);
        assert!(!told.contains("hunter2") && !told.contains("alice"), "{told}");
    }
}

#[test]
fn bounds() {
    let long = format!("* * tor # {}", "x".repeat(LINE_BYTES_MAX));
    assert!(errors(&long)[0].contains("at most 4096 bytes"));
    let many = "* * tor\n".repeat(ROUTES_MAX);
    assert_eq!(parse("f", &many).unwrap().len(), ROUTES_MAX);
    assert_eq!(errors(&format!("{many}* * tor\n* * tor")), ["f:20001:1: there are at most 20000 routes"]);
    assert_eq!(errors(&"x\n".repeat(1000)).len(), ERRORS_MAX);
    for text in ["", "#", "* * tor\n* * tor"] {
        assert!(text.parse::<Route>().unwrap_err().to_string().contains("expected one line"));
    }
}
