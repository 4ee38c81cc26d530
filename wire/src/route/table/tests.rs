use super::*;

fn table(lines: &[&str]) -> RouteTable {
    RouteTable::compile(lines.iter().map(|line| line.parse().unwrap()).collect()).unwrap()
}

fn routes(lines: &[&str]) -> VmRoutes {
    table(lines).for_vm(&"web".parse().unwrap())
}

fn line(routes: &VmRoutes, host: &str, port: u16) -> Option<usize> {
    let host = host.parse().map_or(Host::Name(host), Host::Address);
    routes.decide(host, port).line
}

#[test]
fn a_name_and_all_its_subdomains() {
    let routes = routes(&["web .bad.example block", "* bad.example tor"]);
    for (host, expected) in [
        ("bad.example", Some(0)),
        ("a.bad.example", Some(0)),
        ("A.B.Bad.EXAMPLE.", Some(0)),
        ("notbad.example", None),
        ("bad.example.org", None),
        ("example", None),
        ("", None),
        (".", None),
        ("..bad.example", Some(0)),
    ] {
        assert_eq!(line(&routes, host, 443), expected, "{host}");
    }
    assert_eq!(line(&routes, &format!("{}BAD.example", "x.".repeat(4000)), 1), None, "too long to be a name");
}

#[test]
fn the_first_line_wins_whatever_its_form() {
    let lines =
        ["* :22 block", "web .a.example tor", "* www.a.example block", "work * block", "* .example:80 block drop"];
    let routes = routes(&lines);
    for (host, port, expected) in [
        ("www.a.example", 22, Some(0)),
        ("www.a.example", 80, Some(1)),
        ("example", 80, Some(4)),
        ("example", 81, None),
        ("192.0.2.1", 22, Some(0)),
        ("192.0.2.1", 80, None),
    ] {
        assert_eq!(line(&routes, host, port), expected, "{host}:{port}");
    }
}

#[test]
fn addresses_are_not_names_and_names_are_not_addresses() {
    let routes = routes(&["* 192.0.2.0/24 block", "* 0.0.0.0/0 tor", "* ::/0 block drop", "* .example tor"]);
    assert_eq!(line(&routes, "192.0.2.7", 80), Some(0));
    assert_eq!(line(&routes, "::ffff:192.0.2.7", 80), Some(0), "IPv4 within IPv6 is IPv4");
    assert_eq!(line(&routes, "192.0.3.7", 80), Some(1));
    assert_eq!(line(&routes, "2001:db8::1", 80), Some(2));
    assert_eq!(line(&routes, "www.example", 80), Some(3));
}

#[test]
fn where_no_line_matches_it_goes_through_tor() {
    let empty = VmRoutes::default();
    let decision = empty.decide(Host::Name("example.org"), 443);
    assert_eq!((decision.line, decision.verdict), (None, Verdict::Tor(&TorOptions::default())));
    assert!(matches!(empty.decide(Host::Name("x.onion"), 80).verdict, Verdict::Onion(_)));
}

#[test]
fn onion_only_lets_onion_services_pass_and_nothing_that_looks_like_them() {
    let routes = routes(&["* * onion-only optimistic"]);
    for (host, onion) in [("x.onion", true), ("a.X.ONION.", true), ("onion", false), ("x.onion.example", false)] {
        let verdict = routes.decide(Host::Name(host), 80).verdict;
        assert_eq!(matches!(verdict, Verdict::Onion(_)), onion, "{host}");
        assert_eq!(matches!(verdict, Verdict::Block(super::super::Block::Reject)), !onion, "{host}");
    }
    assert!(matches!(routes.decide(Host::Address([1, 1, 1, 1].into()), 80).verdict, Verdict::Block(_)));
}

#[test]
fn vms_with_the_same_lines_share_them() {
    let mut table = table(&["* * tor", "work-* .a block", "work-1 .b block"]);
    let mut vm = |name: &str| table.for_vm(&name.parse().unwrap());
    let [one, two, three, other] = ["work-1", "work-2", "work-3", "web"].map(&mut vm);
    let own = |routes: &VmRoutes| routes.own.clone().unwrap();
    assert!(Arc::ptr_eq(&own(&two), &own(&three)) && !Arc::ptr_eq(&own(&one), &own(&two)));
    assert!(other.own.is_none());
    drop((one, two, three));
    vm("work-1");
    assert_eq!(table.for_some.len(), 1, "what nobody uses is forgotten");
}

#[test]
fn open_connections_stay_as_far_as_the_same_is_said_of_them() {
    let old = routes(&["* .a tor exit=CH", "* .b block", "* .c isolate=destination"]);
    let new = routes(&["* .c isolate=vm", "* .a exit=CH optimistic resolve", "* .b tor"]);
    for (host, keeps) in [("x.a", true), ("b", false), ("c", false), ("d", true), ("x.onion", true)] {
        assert_eq!(old.keeps(&new, Host::Name(host), 443), keeps, "{host}");
    }
    let (any, swiss) = (routes(&["* * tor"]), routes(&["* * exit=CH"]));
    assert!(!any.keeps(&swiss, Host::Name("a.example"), 443));
    assert!(any.keeps(&swiss, Host::Name("x.onion"), 443), "an onion service has no exit");
    let blocked = routes(&["* * block"]);
    assert!(!blocked.keeps(&blocked, Host::Name("x.onion"), 443), "there is no such connection");
}

#[test]
fn no_line_about_a_name_is_evaded_by_resolving() {
    let routes = routes(&[
        "* :25 block",
        "* mail.a.example:80 block",
        "* .onion tor",
        "* .a.example resolve",
        "web b.example tor",
        "* * resolve",
    ]);
    for (name, resolves) in [
        ("www.a.example", true),
        ("A.example.", true),
        ("mail.a.example", false),
        ("b.example", false),
        ("c.example", true),
        ("x.onion", false),
    ] {
        assert_eq!(routes.resolves(name), resolves, "{name}");
    }
    assert!(!VmRoutes::default().resolves("a.example"));
}

#[test]
fn a_table_is_bounded() {
    let route: Route = "* * tor".parse().unwrap();
    assert!(RouteTable::compile(vec![route.clone(); ROUTES_MAX]).is_ok());
    assert_eq!(RouteTable::compile(vec![route; ROUTES_MAX + 1]).unwrap_err(), Problem::TooMany);
}
