//! How long a decision takes, as JSON lines: `cargo run -p wire --example routes`.
//!
//! | field | what it is |
//! | --- | --- |
//! | `lines` | lines of the table: a third each of names, suffixes and prefixes; one in eight has ports, one in ten is for one VM |
//! | `query` | what is decided about |
//! | `ns` | nanoseconds for a decision: the median of [`ROUNDS`] rounds, each over [`QUERIES`] different queries |
//! | `ns_min`, `ns_max` | the best and the worst round |
//! | `compile_ms` | milliseconds to compile the table and one VM's routes |

use std::{
    hint::black_box,
    net::IpAddr,
    time::{Duration, Instant},
};

use wire::route::{Host, Route, RouteTable, VmRoutes};

/// How often each kind of query is measured. Rounds are short: few of them are interrupted by other processes.
const ROUNDS: usize = 301;

/// Different queries of a round, in an order that is not that of the lines.
const QUERIES: usize = 4096;

/// What is asked for.
enum Query {
    Name(String),
    Address(IpAddr),
}

fn main() {
    for lines in [1, 100, 10_000] {
        let routes: Vec<Route> = (0..lines).map(route).collect();
        let begin = Instant::now();
        let mut table = RouteTable::compile(routes).expect("less than the bound");
        let vm = table.for_vm(&"web".parse().expect("a name"));
        let compile_ms = begin.elapsed().as_secs_f64() * 1e3;
        for (query, make) in KINDS {
            let queries: Vec<Query> = (0..QUERIES).map(|n| make(n * 7919 % lines)).collect();
            let mut rounds: Vec<f64> = (0..ROUNDS).map(|_| ns(round(&vm, &queries))).collect();
            rounds.sort_unstable_by(f64::total_cmp);
            let (ns, ns_min, ns_max) = (rounds[ROUNDS / 2], rounds[0], rounds[ROUNDS - 1]);
            println!(
                "{{\"lines\":{lines},\"query\":\"{query}\",\"ns\":{ns:.1},\"ns_min\":{ns_min:.1},\
                 \"ns_max\":{ns_max:.1},\"compile_ms\":{compile_ms:.3}}}"
            );
        }
    }
}

/// A kind of queries, each made of the number of a line.
type Kind = (&'static str, fn(usize) -> Query);

const KINDS: [Kind; 7] = [
    ("name_hit", |n| Query::Name(name(n / 3 * 3))),
    ("name_miss", |n| Query::Name(format!("www.other{n}.example"))),
    ("subdomain_hit", |n| Query::Name(format!("www.{}", name(n / 3 * 3 + 1)))),
    ("deep_subdomain_hit", |n| Query::Name(format!("a.bc.def.ghij.{}", name(n / 3 * 3 + 1)))),
    ("ipv4_hit", |n| Query::Address(IpAddr::from([10, (n / 768) as u8, (n / 6 * 2) as u8, 7]))),
    ("ipv4_miss", |n| Query::Address(IpAddr::from([11, (n >> 8) as u8, n as u8, 7]))),
    ("ipv6_hit", |n| Query::Address(IpAddr::from([0x2001, 0xdb8, (n / 6) as u16, 0, 0, 0, 0, 7]))),
];

fn round(vm: &VmRoutes, queries: &[Query]) -> Duration {
    let begin = Instant::now();
    for query in queries {
        let host = match query {
            Query::Name(name) => Host::Name(name),
            Query::Address(address) => Host::Address(*address),
        };
        black_box(vm.decide(black_box(host), black_box(443)));
    }
    begin.elapsed()
}

fn ns(round: Duration) -> f64 {
    round.as_secs_f64() * 1e9 / QUERIES as f64
}

/// The line of a number.
fn route(n: usize) -> Route {
    let source = if n % 10 == 9 { "web" } else { "*" };
    let ports = if n % 8 == 7 { ":80,443,8000-8100" } else { "" };
    let target = match n % 12 {
        0 | 3 | 6 | 9 => format!("{}{ports}", name(n)),
        1 | 4 | 7 | 10 => format!(".{}{ports}", name(n)),
        2 | 8 => format!("10.{}.{}.0/24{ports}", n / 768, n / 3 % 256),
        _ => format!("[2001:db8:{:x}::/48]{ports}", n / 6),
    };
    format!("{source} {target} block").parse().expect("a route")
}

fn name(n: usize) -> String {
    format!("site{n}.zone{}.example", n % 100)
}
