use tokio::io::{AsyncReadExt, AsyncWriteExt};
use wire::route::{RouteTable, parse};

use super::*;

fn routes(text: &str) -> VmRoutes {
    let routes = parse("t", text).unwrap().into_iter().map(|line| line.route).collect();
    RouteTable::compile(routes).unwrap().for_vm(&"web".parse().unwrap())
}

fn target(name: &str) -> Target {
    Target { host: Host::Name(name.into()), port: 443 }
}

#[test]
fn a_change_ends_what_it_does_not_keep_and_nothing_else() {
    let routing = VmRouting::new(routes("* b.example tor exit=CH\n* c.example tor"));
    let entries = ["a.example", "b.example", "c.example"].map(|name| routing.enter(&target(name)).unwrap());
    assert_eq!(routing.change(routes("* a.example block\n* b.example tor exit=LI\n* c.example tor optimistic")), 2);
    assert_eq!(entries.each_ref().map(|(entry, ..)| entry.cut().is_cut()), [true, true, false]);
    assert_eq!(routing.enter(&target("a.example")).unwrap_err(), Block::Reject);
    drop(entries);
    assert!(routing.lock().streams.is_empty());
    assert_eq!(routing.change(routes("* * block")), 0);
}

#[test]
fn all_streams_end_and_later_ones_do_not() {
    let routing = VmRouting::new(routes(""));
    let enter = || routing.enter(&target("a.example")).unwrap().0;
    let before = [enter(), enter()];
    assert_eq!(routing.end_all(), 2);
    let after = enter();
    drop(before);
    assert_eq!((routing.end_all(), after.cut().is_cut()), (1, true));
}

#[test]
fn the_policy_follows_the_routes() {
    let routing = VmRouting::new(routes("* .quick.example tor optimistic\n* .real.example resolve exit=CH"));
    assert!(routing.is_optimistic(&target("a.quick.example")) && !routing.is_optimistic(&target("a.example")));
    assert!(routing.resolves("a.real.example") && !routing.resolves("a.example"));
    let exit = routing.resolution("real.example").unwrap().exit;
    assert_eq!(exit, route::Exit::In("CH".parse().unwrap()));
    routing.change(routes("* * block"));
    assert!(!routing.is_optimistic(&target("a.quick.example")) && !routing.resolves("a.real.example"));
}

#[tokio::test]
async fn an_ended_stream_carries_no_byte_more_and_wakes_who_waits() {
    let routing = VmRouting::new(routes(""));
    let (entry, way, via) = routing.enter(&target("a.example")).unwrap();
    assert_eq!((way, via), (Way::default(), None));
    let (ours, mut theirs) = tokio::io::duplex(100);
    let mut stream = RoutedStream::new(ours, entry);
    stream.write_all(b"before").await.unwrap();
    let waiting = tokio::spawn(stream.ended());
    theirs.write_all(b"late").await.unwrap();
    assert_eq!(routing.change(routes("* * block drop")), 1);
    waiting.await.unwrap();
    stream.ended().await;
    assert!(stream.read(&mut [0; 4]).await.is_err());
    assert!(stream.write(b"more").await.is_err());
    assert!(stream.flush().await.is_err());
    drop(stream);
    let mut arrived = vec![];
    theirs.read_to_end(&mut arrived).await.unwrap();
    assert_eq!(arrived, b"before");
}

/// Streams begin while the routes flip: once a change to `block` has returned there is none that is not ended.
#[test]
fn no_stream_slips_through_between_two_tables() {
    let routing = VmRouting::new(routes(""));
    let (open, closed) = (routes(""), routes("* * block"));
    let is_over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let streams: Vec<_> = (0..3)
            .map(|_| {
                scope.spawn(|| {
                    let mut held = vec![];
                    while !is_over.load(Ordering::SeqCst) {
                        held.extend(routing.enter(&target("a.example")));
                        if held.len() > 100 {
                            held.clear();
                        }
                    }
                })
            })
            .collect();
        for _ in 0..2000 {
            routing.change(open.clone());
            std::thread::yield_now();
            routing.change(closed.clone());
            assert!(routing.lock().streams.is_empty(), "a stream that nothing has ended");
        }
        is_over.store(true, Ordering::SeqCst);
        streams.into_iter().for_each(|stream| stream.join().unwrap());
    });
}
