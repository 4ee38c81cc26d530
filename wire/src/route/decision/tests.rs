use super::*;

#[test]
fn destinations_are_what_people_write() {
    for (text, name, port) in
        [("Example.org.:443", "example.org", 443), ("bücher.example:1", "xn--bcher-kva.example", 1)]
    {
        let destination: Destination = text.parse().unwrap();
        assert_eq!((destination.host(), destination.port()), (Host::Name(name), port));
    }
    for (text, address) in [("192.0.2.1:80", "192.0.2.1"), ("[2001:db8::1]:80", "2001:db8::1")] {
        let destination: Destination = text.parse().unwrap();
        assert_eq!((destination.host(), destination.port()), (Host::Address(address.parse().unwrap()), 80));
    }
    for text in
        ["", "example.org", ":80", "a:0", "a:80,81", "a:1-2", "2001:db8::1:80", "[::1]", "[a]:1", "1.2.3:4", ".a:1"]
    {
        assert!(text.parse::<Destination>().is_err(), "{text}");
    }
}
