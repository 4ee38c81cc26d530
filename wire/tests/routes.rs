//! Routes against their meaning: what is compiled, explained and said to be dead is compared with an interpreter that
//! looks at one line after the other.
#![allow(clippy::unwrap_used, reason = "a strategy that cannot go on fails its test")]

use std::net::IpAddr;

use proptest::{collection::vec, option, prelude::*, sample::select};
use wire::{
    VmName,
    route::{
        Action, Assembly, Block, Countries, Exit, Finding, Hop, HopHost, HostName, Isolation, Line, Login, Place,
        Ports, Prefix, Route, RouteTable, Source, StreamOptions, Target, TorOptions, Verdict, check, explain, parse,
        parts,
    },
};

/// A host of a test. The library's borrows its name.
#[derive(Clone, Debug)]
enum Host {
    Name(String),
    Address(IpAddr),
}

impl Host {
    fn as_route(&self) -> wire::route::Host<'_> {
        match self {
            Host::Name(name) => wire::route::Host::Name(name),
            Host::Address(address) => wire::route::Host::Address(*address),
        }
    }
}

/// The first line that matches, by the words of the manual and nothing of the library's own matching.
fn naive(routes: &[Route], vm: &str, host: &Host, port: u16) -> Option<usize> {
    routes.iter().position(|route| {
        let ports = route.target().ports.ranges().iter().any(|(first, last)| *first <= port && port <= *last);
        ports && glob(route.source().as_str(), vm) && is_in(&route.target().place, host)
    })
}

fn glob(pattern: &str, text: &str) -> bool {
    match pattern.split_at_checked(1) {
        None => text.is_empty(),
        Some(("*", rest)) => (0..=text.len()).any(|taken| glob(rest, &text[taken..])),
        Some((letter, rest)) => text.strip_prefix(letter).is_some_and(|text| glob(rest, text)),
    }
}

fn is_in(place: &Place, host: &Host) -> bool {
    match (place, host) {
        (Place::Any, _) => true,
        (Place::Name(name), Host::Name(host)) => name.as_str() == host,
        (Place::Suffix(name), Host::Name(host)) => format!(".{host}").ends_with(&format!(".{name}")),
        (Place::Prefix(prefix), Host::Address(address)) => {
            let (IpAddr::V4(net), bits) = prefix.parts() else {
                let (IpAddr::V6(net), bits) = prefix.parts() else { unreachable!() };
                let IpAddr::V6(address) = address else { return false };
                return (0..bits).all(|bit| (net.to_bits() ^ address.to_bits()) >> (127 - bit) & 1 == 0);
            };
            let IpAddr::V4(address) = address else { return false };
            (0..bits).all(|bit| (net.to_bits() ^ address.to_bits()) >> (31 - bit) & 1 == 0)
        }
        _ => false,
    }
}

const VMS: [&str; 4] = ["web", "work-a", "work-b", "mail"];

fn source() -> impl Strategy<Value = Source> {
    select(vec!["*", "*", "*", "web", "work-a", "work-*", "w*", "*-a", "*a*"]).prop_map(|text| text.parse().unwrap())
}

/// Few names, so that they meet.
fn name() -> impl Strategy<Value = String> {
    vec(select(vec!["a", "b", "ab", "onion"]), 1..5).prop_map(|labels| labels.join("."))
}

/// Few addresses, and the last ones of each family.
fn address() -> impl Strategy<Value = IpAddr> {
    let v4 = select(vec![0u32, 0x0a00_0000, u32::MAX - 7]);
    let v6 = select(vec![0x2001_0db8_u128 << 96, u128::MAX - 7]);
    prop_oneof![
        (v4, 0u32..8).prop_map(|(base, n)| IpAddr::V4((base + n).into())),
        (v6, 0u128..8).prop_map(|(base, n)| IpAddr::V6((base + n).into())),
    ]
}

fn host() -> impl Strategy<Value = Host> {
    prop_oneof![name().prop_map(Host::Name), address().prop_map(Host::Address)]
}

fn prefix() -> impl Strategy<Value = Prefix> {
    (address(), select(vec![0, 0, 1, 2, 3, 4, 8, 31])).prop_map(|(address, free)| {
        let width: u8 = if address.is_ipv4() { 32 } else { 128 };
        // What is refused for bits behind the prefix says which prefix was meant.
        match Prefix::new(address, width - free) {
            Ok(prefix) | Err(wire::route::Problem::HostBits(prefix)) => prefix,
            Err(problem) => panic!("{problem}"),
        }
    })
}

fn place() -> impl Strategy<Value = Place> {
    let name = || name().prop_map(|name| name.parse::<HostName>().unwrap());
    prop_oneof![
        1 => Just(Place::Any),
        3 => name().prop_map(Place::Name),
        3 => name().prop_map(Place::Suffix),
        4 => prefix().prop_map(Place::Prefix),
    ]
}

const PORTS: [u16; 7] = [1, 2, 3, 80, 443, 65_534, 65_535];

fn ports() -> impl Strategy<Value = Ports> {
    let port = || select(PORTS.to_vec());
    let ranges = vec((port(), port()).prop_map(|(a, b)| (a.min(b), a.max(b))), 1..4);
    prop_oneof![Just(Ports::all()), ranges.prop_map(|ranges| ranges.try_into().unwrap())]
}

fn action() -> impl Strategy<Value = Action> {
    let isolate = option::of(select(vec![Isolation::Vm, Isolation::Destination, Isolation::Credential]));
    let stream = (isolate, any::<bool>()).prop_map(|(isolate, optimistic)| StreamOptions { isolate, optimistic });
    let countries = || select(vec!["CH", "CH,DE", "US"]).prop_map(|text| text.parse::<Countries>().unwrap());
    let exit = prop_oneof![Just(Exit::Any), countries().prop_map(Exit::In), countries().prop_map(Exit::NotIn)];
    let tor = (stream.clone(), exit, option::of(hop()), any::<bool>())
        .prop_map(|(stream, exit, via, resolve)| Action::Tor(TorOptions { stream, exit, via, resolve }));
    prop_oneof![
        tor,
        stream.prop_map(Action::OnionOnly),
        select(vec![Block::Reject, Block::Drop]).prop_map(Action::Block)
    ]
}

fn hop() -> impl Strategy<Value = Hop> {
    let host =
        prop_oneof![name().prop_map(|name| HopHost::Name(name.parse().unwrap())), address().prop_map(HopHost::Address)];
    let text = || "\\PC{1,20}";
    let login = option::of((text(), text()).prop_map(|(user, password)| Login { user, password }));
    (host, 1u16.., login).prop_map(|(host, port, login)| Hop::new(host, port, login).unwrap())
}

fn route() -> impl Strategy<Value = Route> {
    (source(), place(), ports(), action()).prop_filter_map("a contradiction", |(source, place, ports, action)| {
        Route::new(source, Target { place, ports }, action).ok()
    })
}

fn lines(routes: &[Route]) -> Vec<Line> {
    let line = |(number, route): (u32, &Route)| Line { file: "f".into(), number, route: route.clone() };
    (1..).zip(routes).map(line).collect()
}

proptest! {
    #[test]
    fn what_is_compiled_and_what_is_explained_is_what_the_lines_say(
        routes in vec(route(), 0..40),
        queries in vec((host(), select(PORTS.to_vec())), 1..60),
    ) {
        let mut table = RouteTable::compile(routes.clone()).unwrap();
        let lines = lines(&routes);
        for vm in VMS {
            let name: VmName = vm.parse().unwrap();
            let compiled = table.for_vm(&name);
            for (host, port) in &queries {
                let expected = naive(&routes, vm, host, *port);
                let decision = compiled.decide(host.as_route(), *port);
                prop_assert_eq!(decision.line, expected, "{} {:?} {}", vm, host, port);
                let explained = explain(&lines, &name, host.as_route(), *port);
                prop_assert_eq!(explained.line.map(|line| line.number as usize - 1), expected);
                prop_assert_eq!(explained.verdict, decision.verdict);
                if let (Some(line), Verdict::Block(_)) = (expected, decision.verdict) {
                    prop_assert!(!matches!(routes[line].action(), Action::Tor(_)));
                }
            }
        }
    }

    #[test]
    fn what_is_called_dead_never_decides(
        routes in vec(route(), 2..40),
        hosts in vec(host(), 30),
    ) {
        let lines = lines(&routes);
        for finding in check(&lines, None) {
            let (Finding::Repeats { line, .. } | Finding::Covered { line, .. }) = finding else { continue };
            for (vm, port) in VMS.iter().flat_map(|vm| PORTS.map(|port| (vm, port))) {
                for host in &hosts {
                    let decides = naive(&routes, vm, host, port);
                    prop_assert_ne!(decides, Some(line.number as usize - 1), "{} for {} {:?} {}", line, vm, host, port);
                }
            }
        }
    }

    #[test]
    fn a_line_behind_a_wider_one_is_found(route in route(), before in vec(route(), 0..5)) {
        let wide = Route::new(
            route.source().clone(),
            Target { place: Place::Any, ports: route.target().ports.clone() },
            Action::Block(Block::Drop),
        );
        let lines = lines(&[before, vec![wide.unwrap(), route]].concat());
        let last = lines.last().unwrap();
        let found = |finding: &Finding<'_>| match finding {
            Finding::Repeats { line, .. } | Finding::Covered { line, .. } => *line == last,
            Finding::NoVm { .. } => false,
        };
        prop_assert!(check(&lines, None).iter().any(found));
    }

    #[test]
    fn routes_survive_text_and_link(route in route()) {
        prop_assert_eq!(route.written().parse(), Ok(route.clone()));
        let json = serde_json::to_string(&route).unwrap();
        prop_assert_eq!(serde_json::from_str::<Route>(&json).unwrap(), route);
    }

    #[test]
    fn a_table_survives_its_parts(routes in vec(route(), 0..600)) {
        let mut assembly = Assembly::default();
        let mut whole = None;
        for part in parts(1, &routes) {
            prop_assert!(whole.is_none());
            whole = assembly.add(part).unwrap();
        }
        prop_assert_eq!(whole, Some(routes));
    }

    #[test]
    fn hostile_text_is_refused_or_survives(text in "(\\PC|[ \t\n.:*#,=@%\\[\\]-]|tor|via|socks5://|exit){0,60}") {
        survives(&text)?;
    }

    #[test]
    fn hostile_lines_are_refused_or_survive(source in ".{0,4}|\\*", target in "\\PC{0,12}|\\*", action in "\\PC{0,12}|tor") {
        survives(&format!("{source} {target} {action}"))?;
    }
}

fn survives(text: &str) -> Result<(), TestCaseError> {
    match parse("f", text) {
        Ok(lines) => {
            for line in lines {
                prop_assert_eq!(line.route.written().parse(), Ok(line.route));
            }
        }
        Err(errors) => {
            prop_assert!(!errors.is_empty());
            for error in errors {
                prop_assert!(error.to_string().len() < 1024, "{}", error);
            }
        }
    }
    Ok(())
}
