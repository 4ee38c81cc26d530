//! Routes that anybody wrote, as text and as they cross the link: refused, or they survive; what is compiled decides as
//! what is explained; and no line that is called dead decides.
#![no_main]

use std::net::IpAddr;

use libfuzzer_sys::fuzz_target;
use wire::{
    VmName,
    route::{Finding, Host, Line, Route, RouteTable, RoutesPart, check, explain, parse},
};

fuzz_target!(|input: (&str, &str, u128, u16)| {
    let (text, name, address, port) = (input.0, input.1, input.2, input.3.max(1));
    if let Ok(part) = serde_json::from_str::<RoutesPart>(text) {
        let again = serde_json::to_string(&part).expect("routes are JSON");
        assert_eq!(serde_json::from_str::<RoutesPart>(&again).expect("our own routes"), part);
    }
    let lines = match parse("fuzz", text) {
        Ok(lines) => lines,
        Err(errors) => return assert!(!errors.is_empty()),
    };
    for line in &lines {
        assert_eq!(line.route.written().parse::<Route>().as_ref(), Ok(&line.route));
    }
    let v4 = IpAddr::V4((address as u32).into());
    decided(&lines, [Host::Name(name), Host::Address(v4), Host::Address(IpAddr::V6(address.into()))], port);
});

fn decided(lines: &[Line], hosts: [Host<'_>; 3], port: u16) {
    let vm: VmName = "web".parse().expect("a name");
    let routes = lines.iter().map(|line| line.route.clone()).collect();
    let compiled = RouteTable::compile(routes).expect("parsed lines are not too many").for_vm(&vm);
    let findings = check(lines, None);
    for host in hosts {
        let (decision, explained) = (compiled.decide(host, port), explain(lines, &vm, host, port));
        assert_eq!(decision.line.map(|at| &lines[at]), explained.line);
        assert_eq!(decision.verdict, explained.verdict);
        let dead = |finding: &Finding<'_>| match finding {
            Finding::Repeats { line, .. } | Finding::Covered { line, .. } => Some(*line) == explained.line,
            Finding::NoVm { .. } => false,
        };
        assert!(!findings.iter().any(dead));
    }
}
