use super::super::parse;
use super::*;

fn findings(text: &str, vms: Option<&[VmName]>) -> Vec<String> {
    let lines = parse("f", text).unwrap();
    check(&lines, vms).iter().map(ToString::to_string).collect()
}

#[test]
fn dead_lines_are_found() {
    for (text, by) in [
        ("* * tor\nweb example.org block", "f:1 takes all of it"),
        ("* .org tor\n* www.example.org block", "f:1 takes all of it"),
        ("* .example.org tor\n* example.org block", "f:1 takes all of it"),
        ("* .org tor\n* .example.org block", "f:1 takes all of it"),
        ("w* :1-100 tor\nweb a.example:80 block", "f:1 takes all of it"),
        ("* 10.0.0.0/8 tor\n* 10.1.0.0/16:80 block", "f:1 takes all of it"),
        ("* ::/0 tor\n* 2001:db8::1 block", "f:1 takes all of it"),
        ("* :1-100 tor\n* x.example:101-65535 tor\n* x.example block", "f:1, f:2 take all of it together"),
        ("* :22 tor\n* .org:80 tor\nweb a.org:80,22 block", "f:1, f:2 take all of it together"),
        ("web a.org tor\n* b.org tor\nweb A.ORG. tor", "f:1 says the same"),
    ] {
        let findings = findings(text, None);
        assert_eq!(findings.len(), 1, "{text}: {findings:?}");
        assert!(findings[0].ends_with(&format!("can never match: {by}")), "{text}: {}", findings[0]);
    }
}

#[test]
fn lines_that_can_match_are_left_alone() {
    for text in [
        "* example.org tor\n* .example.org block",
        "* .example.org tor\n* .org block",
        "web * tor\n* * block",
        "work-* * tor\nwork * block",
        "* :80 tor\n* * block",
        "* :1-100 tor\nweb :101-200 tor\n* a.org:50-150 block",
        "* 0.0.0.0/0 tor\n* ::/0 tor\n* .org block",
        "* 10.0.0.0/9 tor\n* 10.128.0.0/9 tor\n* 10.0.0.0/8 block",
        "* .onion tor\n* * onion-only",
    ] {
        assert_eq!(findings(text, None), Vec::<String>::new(), "{text}");
    }
}

#[test]
fn vms_that_are_not_there_are_noted() {
    let vms: Vec<VmName> = ["web", "work-1"].map(|name| name.parse().unwrap()).into();
    let text = "* * tor\nwbe a.org tor\nwork-* b.org tor\nmail c.org tor";
    let notes: Vec<_> = findings(text, Some(&vms)).into_iter().filter(|text| text.contains("no VM")).collect();
    assert_eq!(
        notes,
        [
            "f:2: wbe a.org tor: there is no VM wbe now; did you mean web?",
            "f:4: mail c.org tor: there is no VM mail now"
        ]
    );
}

#[test]
fn many_covering_lines_are_cut_short() {
    let text: String = (1..=20).map(|port| format!("* :{port} tor\n")).collect();
    let findings = findings(&format!("{text}* a.org:1-20 block"), None);
    assert!(findings[0].ends_with("f:7, f:8 take all of it together"), "{findings:?}");
}
