use super::super::{HopHost, HostName, Login};
use super::*;
use crate::control::encode;

fn route() -> Route {
    "* * tor".parse().unwrap()
}

fn cut(table: u64, count: usize) -> Vec<RoutesPart> {
    parts(table, &vec![route(); count]).collect()
}

#[test]
fn a_table_is_whole_with_its_last_part() {
    for (count, number) in [(0, 1), (1, 1), (256, 1), (257, 2), (ROUTES_MAX, 79)] {
        let parts = cut(1, count);
        assert_eq!(parts.len(), number);
        let mut assembly = Assembly::default();
        for (at, part) in parts.into_iter().enumerate() {
            let whole = assembly.add(part).unwrap();
            assert_eq!(whole.map(|routes| routes.len()), (at + 1 == number).then_some(count));
        }
    }
}

#[test]
fn a_new_table_takes_the_place_of_one_that_is_not_whole() {
    let mut assembly = Assembly::default();
    assembly.add(cut(1, 300).remove(0)).unwrap();
    let mut parts = cut(2, 257).into_iter();
    assert_eq!(assembly.add(parts.next().unwrap()), Ok(None));
    assert_eq!(assembly.add(parts.next().unwrap()).unwrap().map(|routes| routes.len()), Some(257));
}

#[test]
fn parts_that_do_not_follow_are_refused_and_what_was_there_is_forgotten() {
    let [first, second] = cut(1, 300).try_into().unwrap();
    for (wrong, error) in [
        (RoutesPart { table: 2, ..second.clone() }, PartError::Order { sent: 256, expected: 0 }),
        (RoutesPart { from: 255, ..second.clone() }, PartError::Order { sent: 255, expected: 256 }),
        (RoutesPart { total: 20_001, ..second.clone() }, PartError::Total(20_001)),
        (RoutesPart { total: 299, ..second.clone() }, PartError::Count(44)),
        (RoutesPart { routes: vec![], ..second.clone() }, PartError::Count(0)),
        (RoutesPart { routes: vec![route(); 257], total: 20_000, ..second.clone() }, PartError::Count(257)),
    ] {
        let mut assembly = Assembly::default();
        assert_eq!(assembly.add(first.clone()), Ok(None));
        assert_eq!(assembly.add(wrong), Err(error));
        assert_eq!(assembly.add(second.clone()), Err(PartError::Order { sent: 256, expected: 0 }));
    }
}

#[test]
fn the_longest_routes_fit_a_message_and_a_line() {
    let name = ["x".repeat(63), "y".repeat(63), "z".repeat(63), "w".repeat(61)].join(".");
    let ports: Vec<_> = (0..64).map(|n| format!("{}-{}", 10_000 + n * 3, 10_001 + n * 3)).collect();
    let letters = || (b'A'..=b'Z').map(char::from);
    let countries: Vec<_> = letters().flat_map(|a| letters().map(move |b| format!("{a}{b}"))).take(64).collect();
    let login = "%22".repeat(255);
    let vm = "v".repeat(63);
    let text = format!(
        "{vm} .{name}:{} via socks5://{login}:{login}@{name}:65535 exit!={} isolate=destination optimistic",
        ports.join(","),
        countries.join(",")
    );
    assert!(text.len() < super::super::LINE_BYTES_MAX, "{}", text.len());
    let route: Route = text.parse().unwrap();
    let part = RoutesPart { table: u64::MAX, total: 20_000, from: 19_000, routes: vec![route; PART_ROUTES_MAX] };
    encode(&part).unwrap();
    let host = HopHost::Name(HostName::try_from(name).unwrap());
    let longer = Login { user: "\"".repeat(256), password: "p".into() };
    assert!(super::super::Hop::new(host, 1, Some(longer)).is_err());
}

#[test]
fn what_is_unknown_or_makes_no_sense_is_refused() {
    let good = serde_json::to_string(&cut(1, 1)[0]).unwrap();
    assert!(serde_json::from_str::<RoutesPart>(&good).is_ok());
    for (from, to) in [
        ("\"total\"", "\"more\":1,\"total\""),
        ("\"source\":\"*\"", "\"source\":\"*\",\"more\":1"),
        ("\"source\":\"*\"", "\"source\":\"Web\""),
        ("\"place\":\"any\"", "\"place\":\"some\""),
        ("\"place\":\"any\"", "\"place\":{\"suffix\":\"onion\"},\"more\":1"),
        ("[1,65535]", "[0,65535]"),
        ("\"exit\":\"any\"", "\"exit\":{\"in\":[]}"),
        ("\"exit\":\"any\"", "\"exit\":{\"in\":[\"CHE\"]}"),
        ("\"resolve\":false", "\"resolve\":false,\"more\":1"),
        ("\"isolate\":null", "\"isolate\":\"host\""),
    ] {
        assert!(good.contains(from), "{from}: {good}");
        assert!(serde_json::from_str::<RoutesPart>(&good.replace(from, to)).is_err(), "{to}");
    }
    let conflict = good
        .replace("\"any\",\"ports\"", "{\"suffix\":\"onion\"},\"ports\"")
        .replace("\"resolve\":false", "\"resolve\":true");
    let error = serde_json::from_str::<RoutesPart>(&conflict).unwrap_err().to_string();
    assert!(error.contains("onion services have no addresses"), "{error}");
}
