//! A VM in memory against a session whose far ends are in memory too.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{
    future::Future,
    net::{IpAddr, Ipv4Addr},
    sync::Arc,
    time::Duration,
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, DuplexStream},
    sync::mpsc,
};
use vhost_net_onion::{
    Inbound, Session, Stats, StreamCarrier,
    egress::{Egress, Request},
    gateway::{Config, Failure, Host, Policy, Target, Unresolved},
    inbound::{self, Accepted, Incoming},
    memory_vm::{Connection, MemoryVm, MemoryVmError},
};
use wire::identity::{Answer, Question, Refusal};

const LIMIT: Duration = Duration::from_secs(60);

/// Hands the far end of every accepted stream to the test. Port 1 refuses, port 2 is unreachable, port 3 never answers.
struct FarEnds(mpsc::UnboundedSender<(Target, DuplexStream)>);

impl Egress for FarEnds {
    type Stream = DuplexStream;

    async fn connect(&self, Request { target, .. }: Request) -> Result<DuplexStream, Failure> {
        match target.port {
            1 => return Err(Failure::Refused),
            2 => return Err(Failure::Unreachable),
            3 => return std::future::pending().await,
            _ => {}
        }
        let (ours, theirs) = tokio::io::duplex(8 * 1024);
        self.0.send((target, theirs)).map_err(|_| Failure::Unreachable)?;
        Ok(ours)
    }

    async fn resolve(&self, name: &str) -> Result<Vec<IpAddr>, Unresolved> {
        tokio::task::yield_now().await;
        if name == "real.test" { Ok(vec![REAL.into()]) } else { Err(Unresolved::NoSuchName) }
    }

    async fn answer(&self, question: Question) -> Answer {
        tokio::task::yield_now().await;
        answer_to(question)
    }
}

/// Answers with what it was asked.
fn answer_to(question: Question) -> Answer {
    Refusal::Locked.because(format!("{question:?}"))
}

/// The address of `real.test`, the only name that can be resolved.
const REAL: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 7);

/// A stream that comes to the VM; the test hears of its fate.
struct Caller {
    stream: DuplexStream,
    refused: mpsc::UnboundedSender<Failure>,
}

impl Incoming for Caller {
    fn accept(self: Box<Self>) -> Accepted {
        Box::pin(async move { Ok(Box::new(self.stream) as Box<dyn inbound::Bytes>) })
    }

    fn refuse(self: Box<Self>, why: Failure) {
        self.refused.send(why).unwrap();
    }
}

/// Both ends of a stream that comes to a port of the VM, and why it is refused if it is.
fn call(inbound: &Inbound, port: u16) -> (DuplexStream, mpsc::UnboundedReceiver<Failure>) {
    let (ours, theirs) = tokio::io::duplex(8 * 1024);
    let (refused, why) = mpsc::unbounded_channel();
    inbound.call(port, Box::new(Caller { stream: theirs, refused }));
    (ours, why)
}

struct World {
    inbound: Arc<Inbound>,
    session: Session<FarEnds>,
    far_ends: mpsc::UnboundedReceiver<(Target, DuplexStream)>,
    stats: Arc<Stats>,
}

impl World {
    fn new(config: Config) -> World {
        let (sender, far_ends) = mpsc::unbounded_channel();
        let stats = Arc::new(Stats::default());
        let inbound = Arc::<Inbound>::default();
        let session = Session::new(FarEnds(sender), config, [3; 32], Arc::clone(&stats));
        World { session: session.with_inbound(Arc::clone(&inbound)), inbound, far_ends, stats }
    }
}

/// Runs `test` with a VM that has its lease, beside the session; both together within the limit.
fn with_vm<T, F>(test: T)
where
    T: FnOnce(MemoryVm<DuplexStream>, Ipv4Addr, mpsc::UnboundedReceiver<(Target, DuplexStream)>, Arc<Stats>) -> F,
    F: Future<Output = Result<(), MemoryVmError>>,
{
    with_vm_of(Config::default(), test);
}

fn with_vm_of<T, F>(config: Config, test: T)
where
    T: FnOnce(MemoryVm<DuplexStream>, Ipv4Addr, mpsc::UnboundedReceiver<(Target, DuplexStream)>, Arc<Stats>) -> F,
    F: Future<Output = Result<(), MemoryVmError>>,
{
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let World { mut session, far_ends, stats, .. } = World::new(config);
        let (link, cable) = tokio::io::duplex(256 * 1024);
        let guest = async {
            let mut vm = MemoryVm::new(cable);
            let server = vm.lease().await?;
            test(vm, server, far_ends, stats).await
        };
        let mut carrier = StreamCarrier::new(link);
        let both = async {
            tokio::select! {
                ended = session.serve(&mut carrier) => panic!("the session ended: {ended:?}"),
                done = guest => done.unwrap(),
            }
        };
        tokio::time::timeout(LIMIT, both).await.expect("the test takes too long");
    });
}

/// Connects to `port` of the name `far.test` and returns both ends.
async fn connect(
    vm: &mut MemoryVm<DuplexStream>,
    server: Ipv4Addr,
    far_ends: &mut mpsc::UnboundedReceiver<(Target, DuplexStream)>,
    port: u16,
) -> Result<(Connection, DuplexStream), MemoryVmError> {
    let address = vm.resolve(server, "far.test").await?;
    let connection = vm.connect(address, port).await?;
    let (target, far_end) = far_ends.recv().await.unwrap();
    assert_eq!(target, Target { host: Host::Name("far.test".into()), port });
    Ok((connection, far_end))
}

fn pattern(bytes: usize) -> Vec<u8> {
    (0..bytes).map(|n| (n * 31 % 251) as u8).collect()
}

#[test]
fn a_megabyte_goes_each_way_unchanged() {
    with_vm(|mut vm, server, mut far_ends, _| async move {
        let (connection, far_end) = connect(&mut vm, server, &mut far_ends, 80).await?;
        let (mut read, mut write) = tokio::io::split(far_end);
        let data = pattern(1 << 20);
        let (to_vm, to_far_end) = (data.clone(), data.clone());
        let writer = tokio::spawn(async move { write.write_all(&to_vm).await.map(|()| write) });
        let reader = tokio::spawn(async move {
            let mut bytes = vec![0; to_far_end.len()];
            read.read_exact(&mut bytes).await.map(|_| bytes == to_far_end)
        });
        let (mut sent, mut received) = (0, vec![]);
        while received.len() < data.len() || !reader.is_finished() {
            sent += vm.send(connection, &data[sent..]);
            received.extend(vm.recv(connection).unwrap());
            vm.turn().await?;
        }
        assert!(received == data, "towards the VM");
        assert!(reader.await.unwrap().unwrap(), "towards the far end");
        drop(writer.await);
        Ok(())
    });
}

#[test]
fn refused_unreachable_and_silent_are_three_different_things() {
    with_vm(|mut vm, server, _far_ends, stats| async move {
        let address = vm.resolve(server, "far.test").await?;
        assert!(matches!(vm.connect(address, 1).await, Err(MemoryVmError::Reset)));
        // smoltcp, as the VM, does not act on ICMP: unreachable and silent both look like waiting.
        for port in [2, 3] {
            assert!(tokio::time::timeout(Duration::from_millis(300), vm.connect(address, port)).await.is_err());
        }
        assert_eq!(stats.snapshot().flows, 1, "only the silent one is still open");
        Ok(())
    });
}

#[test]
fn names_are_resolved_if_that_is_wanted() {
    #[derive(Debug)]
    struct Resolving;
    impl Policy for Resolving {
        fn resolves(&self, _name: &str) -> bool {
            true
        }
    }
    let config = Config { policy: Arc::new(Resolving), ..Config::default() };
    with_vm_of(config, |mut vm, server, mut far_ends, _| async move {
        assert_eq!(vm.resolve(server, "real.test").await?, REAL);
        assert!(matches!(vm.resolve(server, "other.test").await, Err(MemoryVmError::Missing(_))));
        vm.connect(REAL, 80).await?;
        let (target, _far_end) = far_ends.recv().await.unwrap();
        assert_eq!(target, Target { host: Host::Address(REAL.into()), port: 80 });
        Ok(())
    });
}

#[test]
fn what_a_vm_asks_about_itself_is_answered_by_the_egress() {
    with_vm(|mut vm, server, _far_ends, _| async move {
        for (path, question) in [("/identity", Question::Who), ("/identity/onions", Question::Onions)] {
            let connection = vm.connect(server, 80).await?;
            vm.send(connection, format!("GET {path} HTTP/1.1\r\n\r\n").as_bytes());
            let mut heard = vec![];
            while let Some(bytes) = vm.recv(connection) {
                heard.extend(bytes);
                vm.turn().await?;
            }
            let heard = String::from_utf8(heard).unwrap();
            let body = String::from_utf8(answer_to(question).body()).unwrap();
            assert!(heard.starts_with("HTTP/1.1 423 ") && heard.ends_with(&body), "{heard}");
        }
        Ok(())
    });
}

#[test]
fn the_far_end_answers_after_the_vm_has_said_all() {
    with_vm(|mut vm, server, mut far_ends, stats| async move {
        let (connection, mut far_end) = connect(&mut vm, server, &mut far_ends, 80).await?;
        vm.send(connection, b"all I have to say");
        vm.shutdown(connection);
        let mut said = [0; 17];
        loop {
            let read = tokio::time::timeout(Duration::from_millis(1), far_end.read_exact(&mut said));
            if let Ok(read) = read.await {
                read.unwrap();
                break;
            }
            vm.turn().await?;
        }
        far_end.write_all(b"an answer").await.unwrap();
        drop(far_end);
        let mut answer = vec![];
        while let Some(bytes) = vm.recv(connection) {
            answer.extend(bytes);
            vm.turn().await?;
        }
        assert_eq!((said.as_slice(), answer.as_slice()), (b"all I have to say".as_slice(), b"an answer".as_slice()));
        while stats.snapshot().flows > 0 {
            vm.turn().await?;
        }
        Ok(())
    });
}

#[test]
fn a_vm_that_does_not_read_holds_the_far_end_up() {
    with_vm(|mut vm, server, mut far_ends, _| async move {
        let (_connection, mut far_end) = connect(&mut vm, server, &mut far_ends, 80).await?;
        let data = vec![7; 4 << 20];
        let mut accepted = 0;
        for _ in 0..200 {
            let write = tokio::time::timeout(Duration::from_millis(1), far_end.write(&data[accepted..]));
            accepted += write.await.map_or(0, Result::unwrap);
            vm.turn().await?;
        }
        // The VM's buffer, the gateway's, the credit and the pipe, and not one byte of the rest.
        assert!((64 << 10..512 << 10).contains(&accepted), "{accepted} bytes were taken for a VM that reads none");
        Ok(())
    });
}

#[test]
fn a_far_end_that_does_not_read_holds_the_vm_up() {
    with_vm(|mut vm, server, mut far_ends, _| async move {
        let (connection, _far_end) = connect(&mut vm, server, &mut far_ends, 80).await?;
        let data = vec![7; 4 << 20];
        let mut sent = 0;
        for _ in 0..200 {
            sent += vm.send(connection, &data[sent..]);
            vm.turn().await?;
        }
        assert!((64 << 10..512 << 10).contains(&sent), "{sent} bytes were taken for a far end that reads none");
        Ok(())
    });
}

#[test]
fn a_connection_that_the_vm_leaves_ends_the_stream() {
    with_vm(|mut vm, server, mut far_ends, stats| async move {
        let (connection, mut far_end) = connect(&mut vm, server, &mut far_ends, 80).await?;
        far_end.write_all(b"hello").await.unwrap();
        drop(far_end);
        vm.shutdown(connection);
        while stats.snapshot().flows > 0 {
            vm.turn().await?;
        }
        Ok(())
    });
}

#[test]
fn connections_survive_the_loss_of_the_link() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let both = async {
        let World { mut session, mut far_ends, .. } = World::new(Config::default());
        let (link, cable) = tokio::io::duplex(256 * 1024);
        let (relink, new_cable) = tokio::io::duplex(256 * 1024);
        let sessions = async {
            // How it ends depends on whether the session was writing when the cable was pulled.
            let _ended = session.serve(&mut StreamCarrier::new(link)).await;
            session.serve(&mut StreamCarrier::new(relink)).await.unwrap();
        };
        let guest = async {
            let mut vm = MemoryVm::new(cable);
            let server = vm.lease().await?;
            let (connection, mut far_end) = connect(&mut vm, server, &mut far_ends, 80).await?;
            vm.replace_link(new_cable);
            far_end.write_all(b"still here").await.unwrap();
            let mut received = vec![];
            while received.len() < 10 {
                vm.turn().await?;
                received.extend(vm.recv(connection).unwrap());
            }
            assert_eq!(received, b"still here");
            Ok::<_, MemoryVmError>(())
        };
        tokio::select! {
            () = sessions => panic!("the sessions ended"),
            done = guest => done.unwrap(),
        }
    };
    runtime.block_on(async { tokio::time::timeout(LIMIT, both).await.expect("the test takes too long") });
}

#[test]
fn a_stream_comes_to_a_vm_that_listens_and_ends_when_the_vm_has_answered() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let both = async {
        let World { mut session, inbound, stats, .. } = World::new(Config::default());
        let (link, cable) = tokio::io::duplex(256 * 1024);
        let guest = async {
            let mut vm = MemoryVm::new(cable);
            vm.lease().await?;
            // Nobody listens there.
            let (_stream, mut refused) = call(&inbound, 81);
            while refused.is_empty() {
                vm.turn().await?;
            }
            assert_eq!(refused.recv().await, Some(Failure::Refused));

            let connection = vm.listen(80);
            let (mut client, _refused) = call(&inbound, 80);
            client.write_all(b"GET /").await.unwrap();
            let mut asked = vec![];
            while asked.len() < 5 {
                vm.turn().await?;
                asked.extend(vm.recv(connection).unwrap_or_default());
            }
            assert_eq!(asked, b"GET /");
            let page = pattern(100_000);
            let expected = page.clone();
            // The client reads up to the end, which comes at once: it does not wait for what else the VM might say.
            let reader = tokio::spawn(async move {
                let mut bytes = vec![];
                client.read_to_end(&mut bytes).await.map(|_| bytes == expected)
            });
            let mut sent = 0;
            while sent < page.len() {
                sent += vm.send(connection, &page[sent..]);
                vm.turn().await?;
            }
            vm.shutdown(connection);
            let began = std::time::Instant::now();
            while !reader.is_finished() || stats.snapshot().flows > 0 {
                vm.turn().await?;
            }
            assert!(reader.await.unwrap().unwrap(), "the page is not what was sent");
            assert!(began.elapsed() < Duration::from_secs(8), "the end took {:?}", began.elapsed());
            Ok::<_, MemoryVmError>(())
        };
        let mut carrier = StreamCarrier::new(link);
        tokio::select! {
            ended = session.serve(&mut carrier) => panic!("the session ended: {ended:?}"),
            done = guest => done.unwrap(),
        }
    };
    runtime.block_on(async { tokio::time::timeout(LIMIT, both).await.expect("the test takes too long") });
}
