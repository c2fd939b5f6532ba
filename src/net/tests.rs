//! Whole networks on the loopback interface: members with each other, and what strangers and offenders get.

mod hostile;

use std::{
    collections::BTreeMap,
    sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst},
};

use bytes::Bytes;
use futures::FutureExt;
use parking_lot::Mutex;
use rand::Rng;
use serde_bytes::ByteBuf;

use super::*;
use crate::{
    cluster::{Certificate, ClusterId},
    content::{BlockSet, ContentId, Object},
};
use proto::Have;

/// Longest wait for anything that should happen soon. The machine may be busy.
const SOON: Duration = Duration::from_secs(20);

/// Waits for a condition.
async fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + SOON;
    while !holds() {
        assert!(Instant::now() < deadline, "in vain: {what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

fn object(size: u64) -> Object {
    Object {
        content: ContentId([9; 32]),
        size,
    }
}

/// The data that [`Answering`] gives for a request.
fn data(request: &BlockRequest) -> Bytes {
    let bytes = ((request.end - request.start) * 64 * 1024) as usize;
    vec![request.start as u8; bytes].into()
}

/// A service that answers everything and notes what it is asked.
#[derive(Default)]
struct Answering {
    asked: AtomicUsize,
    /// Reads of a disk that have begun, and whether it answers.
    reading: AtomicUsize,
    is_answering: AtomicBool,
    pushed: Mutex<Vec<Push>>,
}

impl Service for Answering {
    fn answer(self: Arc<Self>, _: PeerId, request: SyncRequest) -> BoxFuture<'static, SyncAnswer> {
        self.asked.fetch_add(1, SeqCst);
        async move {
            match request {
                SyncRequest::Heads => SyncAnswer::Heads(vec![ByteBuf::from(vec![1, 2, 3])]),
                SyncRequest::Nodes(nodes) => {
                    SyncAnswer::Nodes(vec![ByteBuf::from(vec![0; 200_000]); nodes.len()])
                }
                SyncRequest::Have(objects) => SyncAnswer::Have(vec![Have::Whole; objects.len()]),
                SyncRequest::Keep { objects, .. } => SyncAnswer::Keep(vec![false; objects.len()]),
                SyncRequest::Tree { .. } => SyncAnswer::Tree(ByteBuf::new()),
                SyncRequest::Make { .. } => SyncAnswer::Make(false),
                SyncRequest::Status => std::future::pending().await,
            }
        }
        .boxed()
    }

    fn pushed(self: Arc<Self>, _: PeerId, push: Push) -> BoxFuture<'static, ()> {
        self.pushed.lock().push(push);
        futures::future::ready(()).boxed()
    }

    /// Blocks from 1000 on never arrive, from 2000 on a disk holds them up; an object of one byte has another size; an empty one is not there.
    fn blocks(
        self: Arc<Self>,
        _: PeerId,
        request: BlockRequest,
        place: Place,
    ) -> BoxFuture<'static, BlockAnswer> {
        self.asked.fetch_add(1, SeqCst);
        async move {
            if request.start >= 2000 {
                let read = tokio::task::spawn_blocking(move || {
                    let _place = place;
                    self.reading.fetch_add(1, SeqCst);
                    while !self.is_answering.load(SeqCst) {
                        std::thread::sleep(Duration::from_millis(1));
                    }
                });
                let _ = read.await;
            }
            match request.object.size {
                0 => BlockAnswer::DontHave(Have::Part(BlockSet::of(2..5))),
                1 => BlockAnswer::WrongSize {
                    size: 2,
                    proof: Bytes::from_static(b"proof"),
                },
                _ if request.start >= 1000 => std::future::pending().await,
                _ => BlockAnswer::Data(data(&request)),
            }
        }
        .boxed()
    }

    /// Contents of odd sizes are there; sizes above 60,000 are never answered.
    fn batch(
        self: Arc<Self>,
        _: PeerId,
        request: BatchRequest,
        _: Place,
    ) -> BoxFuture<'static, BlockAnswer> {
        self.asked.fetch_add(1, SeqCst);
        async move {
            if request.0.iter().any(|object| object.size > 60_000) {
                return std::future::pending().await;
            }
            let here: Vec<bool> = request
                .0
                .iter()
                .map(|object| object.size % 2 == 1)
                .collect();
            let sent = request.0.iter().zip(&here).filter(|(_, here)| **here);
            let data: Vec<u8> = sent
                .flat_map(|(object, _)| vec![object.size as u8; object.size as usize])
                .collect();
            BlockAnswer::Batch {
                here,
                data: data.into(),
            }
        }
        .boxed()
    }
}

fn hello(node: &str) -> PeerHello {
    PeerHello {
        protocol: proto::PROTOCOL,
        node: node.into(),
        version: "test".into(),
        epoch: 0,
        keeps_all: false,
        promises: false,
        trees: false,
        sole: false,
    }
}

fn cluster() -> ClusterKeys {
    ClusterId::generate(rand::rng().random()).keys()
}

fn config(keys: &ClusterKeys, node: &str) -> NetConfig {
    NetConfig {
        identity: Keypair::generate_ed25519(),
        keys: keys.clone(),
        hello: hello(node),
        listen: vec!["/ip4/127.0.0.1/tcp/0".parse().unwrap()],
        upload_limit: None,
    }
}

async fn start(keys: &ClusterKeys, node: &str) -> (Net, Arc<Answering>) {
    let service = Arc::new(Answering::default());
    let net = Net::start(config(keys, node), service.clone()).await;
    (net.unwrap(), service)
}

fn address(net: &Net) -> Multiaddr {
    net.addresses()[0]
        .clone()
        .with_p2p(net.local_peer())
        .unwrap()
}

fn knows(net: &Net, other: &Net) -> bool {
    let peers = net.peers();
    peers.iter().any(|peer| peer.peer == other.local_peer())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_certificate_lets_its_own_peer_write_and_no_other() {
    let id = ClusterId::generate(rand::rng().random());
    let (writer, _) = start(&id.keys(), "anna").await;
    let (reader, _) = start(&id.read_only().keys(), "bert").await;
    let certificate = writer.certificate().unwrap();
    assert_eq!(reader.certificate(), None);
    assert!(reader.may_write(&writer.local_peer(), &certificate));
    assert!(!writer.may_write(&reader.local_peer(), &certificate));
    let foreign = Certificate::issue(&cluster(), &reader.local_peer()).unwrap();
    assert!(!writer.may_write(&reader.local_peer(), &foreign));
}

/// Two members that know each other.
async fn pair() -> [(Net, Arc<Answering>); 2] {
    let keys = cluster();
    let (a, b) = (start(&keys, "anna").await, start(&keys, "bert").await);
    a.0.add_peer(address(&b.0), false);
    until("both are up", || knows(&a.0, &b.0) && knows(&b.0, &a.0)).await;
    [a, b]
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn members_find_each_other_ask_and_push() {
    let [(a, _), (b, service)] = pair().await;
    let peer = b.local_peer();
    assert_eq!(a.peers()[0].hello, hello("bert"));
    assert_eq!(b.peers()[0].hello, hello("anna"));
    let heads = a.request(peer, SyncRequest::Heads, SOON).await.unwrap();
    assert_eq!(heads, SyncAnswer::Heads(vec![ByteBuf::from(vec![1, 2, 3])]));
    // Larger than what a stream takes at once, and in the other direction.
    let nodes = SyncRequest::Nodes(vec![crate::manifest::NodeHash([0; 32]); 20]);
    let answer = b.request(a.local_peer(), nodes, SOON).await.unwrap();
    assert!(matches!(answer, SyncAnswer::Nodes(nodes) if nodes.len() == 20));
    let push = Push::Have(object(1 << 20), BlockSet::of(3..9));
    a.push(push.clone(), None);
    a.push(push.clone(), Some(peer));
    until("the push arrives", || !service.pushed.lock().is_empty()).await;
    a.request(peer, SyncRequest::Heads, SOON).await.unwrap();
    assert_eq!(*service.pushed.lock(), [push]);
    until("identify and ping", || {
        b.peers()[0].round_trip.is_some() && b.peers()[0].listen == a.addresses()
    })
    .await;
    let counters = a.counters();
    assert!(counters.manifest_bytes_received > 0 && counters.received_bytes > 0);
    assert!(counters.sent_bytes > 4_000_000 && b.counters().manifest_bytes_received > 4_000_000);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_blocks_at_once_come_back_each_to_its_request() {
    let [(a, _), (b, _)] = pair().await;
    let request = |start| BlockRequest {
        object: object(1 << 30),
        start,
        end: start + 1 + start % 16,
    };
    let fetched = (0..150).map(|start| a.blocks(b.local_peer(), request(start), SOON));
    let mut bytes = 0;
    for (start, answer) in join_all(fetched).await.into_iter().enumerate() {
        let expected = data(&request(start as u64));
        bytes += expected.len() as u64;
        assert!(answer.unwrap() == BlockAnswer::Data(expected), "{start}");
    }
    assert_eq!(a.counters().block_bytes_received, bytes);
    assert_eq!(a.peers()[0].block_bytes_received, bytes);
    until("what was sent is counted", || {
        b.counters().block_bytes_sent == bytes && b.load() == 0
    })
    .await;

    let odd = |size| BlockRequest {
        object: object(size),
        ..request(0)
    };
    let answer = a.blocks(b.local_peer(), odd(0), SOON).await.unwrap();
    assert_eq!(
        answer,
        BlockAnswer::DontHave(Have::Part(BlockSet::of(2..5)))
    );
    let answer = a.blocks(b.local_peer(), odd(1), SOON).await.unwrap();
    assert!(matches!(answer, BlockAnswer::WrongSize { size: 2, .. }));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_sent_keeps_to_the_limit_and_peers_take_turns() {
    const RATE: u64 = 1 << 20;
    let keys = cluster();
    let service = Arc::new(Answering::default());
    let limited = NetConfig {
        upload_limit: Some(RATE),
        ..config(&keys, "limited")
    };
    let source = Net::start(limited, service).await.unwrap();
    let (a, _) = start(&keys, "a").await;
    let (b, _) = start(&keys, "b").await;
    for net in [&a, &b] {
        net.add_peer(address(&source), false);
        until("they meet", || knows(net, &source)).await;
    }
    let began = Instant::now();
    let request = BlockRequest {
        object: object(1 << 30),
        start: 0,
        end: 4,
    };
    let deadline = began + Duration::from_secs(3);
    let read = |net: Net| {
        let (peer, request) = (source.local_peer(), request.clone());
        async move {
            let (mut bytes, mut busy) = (0, 0);
            while Instant::now() < deadline {
                match net.blocks(peer, request.clone(), SOON).await.unwrap() {
                    BlockAnswer::Data(data) => bytes += data.len() as u64,
                    BlockAnswer::Busy => {
                        busy += 1;
                        tokio::time::sleep(Duration::from_millis(100)).await;
                    }
                    other => panic!("{other:?}"),
                }
            }
            (bytes, busy)
        }
    };
    let many = join_all((0..3).map(|_| read(a.clone())));
    let (many, (one, _)) = futures::join!(many, read(b.clone()));
    let many: u64 = many.iter().map(|(bytes, _)| bytes).sum();
    let most = RATE * began.elapsed().as_millis() as u64 / 1000 + RATE;
    assert!(many + one <= most, "{many} and {one} bytes");
    assert!(one * 4 >= many, "{one} bytes beside {many}");
    assert!(source.peers().len() == 2, "nobody was blamed");
}

/// A batch of contents of these sizes, all different.
fn batch(sizes: impl IntoIterator<Item = u64>) -> BatchRequest {
    let numbered = sizes.into_iter().enumerate();
    let object = |(number, size): (usize, u64)| {
        let mut content = [0; 32];
        content[..8].copy_from_slice(&(number as u64).to_le_bytes());
        Object {
            content: crate::content::ContentId(content),
            size,
        }
    };
    BatchRequest(numbered.map(object).collect())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_batch_brings_what_is_there_and_says_what_is_not() {
    let [(a, _), (b, _)] = pair().await;
    let asked = a.batch(b.local_peer(), batch([3, 4, 5]), SOON).await;
    let expected = BlockAnswer::Batch {
        here: vec![true, false, true],
        data: Bytes::from_static(&[3, 3, 3, 5, 5, 5, 5, 5]),
    };
    assert_eq!(asked.unwrap(), expected);
    // Beside ordinary requests, and with as much as may be in one.
    let many = a.batch(b.local_peer(), batch(vec![4095; 256]), SOON);
    let request = BlockRequest {
        object: object(1 << 30),
        start: 0,
        end: 16,
    };
    let (many, block) = futures::join!(many, a.blocks(b.local_peer(), request.clone(), SOON));
    assert!(block.unwrap() == BlockAnswer::Data(data(&request)));
    let BlockAnswer::Batch { here, data } = many.unwrap() else {
        panic!("an answer of another kind");
    };
    assert!(here == [true; 256] && data.len() == 256 * 4095);
    // One that is given up leaves the stream in step.
    let never = a.batch(b.local_peer(), batch([60_001]), Duration::from_millis(50));
    assert!(matches!(never.await, Err(NetError::TimedOut { .. })));
    let again = a.batch(b.local_peer(), batch([1]), SOON).await.unwrap();
    assert!(matches!(again, BlockAnswer::Batch { .. }));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_that_is_given_up_is_given_up_at_the_other_side_too() {
    let [(a, _), (b, _)] = pair().await;
    let request = |start| BlockRequest {
        object: object(1 << 30),
        start,
        end: start + 1,
    };
    // More than what may be on its way at once: without cancellation nothing would ever get through again.
    for _ in 0..3 {
        let (asking, peer) = (a.clone(), b.local_peer());
        let never = tokio::spawn(async move {
            join_all((0..16).map(|n| asking.blocks(peer, request(1000 + n), SOON))).await;
        });
        until("all are worked on", || b.load() == 16).await;
        never.abort();
        until("none is worked on", || b.load() == 0).await;
    }
    let answer = a.blocks(b.local_peer(), request(1), SOON).await.unwrap();
    assert_eq!(answer, BlockAnswer::Data(data(&request(1))));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_reads_from_the_disk_keeps_its_place_when_its_request_is_given_up() {
    let [(a, _), (b, service)] = pair().await;
    let request = |start| BlockRequest {
        object: object(1 << 30),
        start,
        end: start + 1,
    };
    for _ in 0..3 {
        let (asking, peer) = (a.clone(), b.local_peer());
        let never = tokio::spawn(async move {
            join_all((0..16).map(|n| asking.blocks(peer, request(2000 + n), SOON))).await;
        });
        until("as many are read as may be", || {
            service.reading.load(SeqCst) == 16
        })
        .await;
        never.abort();
        let _ = never.await;
        let asked = a.request(b.local_peer(), SyncRequest::Heads, SOON);
        asked.await.unwrap();
    }
    assert_eq!(service.reading.load(SeqCst), 16);
    assert_eq!(b.load(), 16);
    service.is_answering.store(true, SeqCst);
    until("none is read", || b.load() == 0).await;
    let answer = a.blocks(b.local_peer(), request(1), SOON).await.unwrap();
    assert_eq!(answer, BlockAnswer::Data(data(&request(1))));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_deadline_holds_when_no_answer_comes() {
    let [(a, _), (b, _)] = pair().await;
    let within = Duration::from_millis(100);
    let answer = a.request(b.local_peer(), SyncRequest::Status, within).await;
    assert!(matches!(answer, Err(NetError::TimedOut { .. })));
    let nobody = PeerId::random();
    let answer = a.request(nobody, SyncRequest::Heads, within).await;
    assert!(matches!(answer, Err(NetError::NotConnected(_))));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn both_may_dial_at_once() {
    let keys = cluster();
    let ((a, _), (b, _)) = (start(&keys, "anna").await, start(&keys, "bert").await);
    a.add_peer(address(&b), true);
    b.add_peer(address(&a), true);
    until("both are up", || knows(&a, &b) && knows(&b, &a)).await;
    for _ in 0..20 {
        a.request(b.local_peer(), SyncRequest::Heads, SOON)
            .await
            .unwrap();
        b.request(a.local_peer(), SyncRequest::Heads, SOON)
            .await
            .unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_cluster_gets_nothing() {
    let ((a, asked_a), (b, asked_b)) = (
        start(&cluster(), "anna").await,
        start(&cluster(), "bert").await,
    );
    let mut events = a.events();
    a.add_peer(address(&b), false);
    until("the stranger is blocked", || {
        let book = b.shared.book.lock();
        book.is_blocked(Instant::now(), &a.local_peer())
    })
    .await;
    assert!(a.peers().is_empty() && b.peers().is_empty());
    let refused = a.request(b.local_peer(), SyncRequest::Heads, SOON).await;
    assert!(matches!(refused, Err(NetError::NotConnected(_))));
    assert_eq!(asked_a.asked.load(SeqCst) + asked_b.asked.load(SeqCst), 0);
    until("the connection is closed", || {
        a.shared.connected.read().is_empty() && b.shared.connected.read().is_empty()
    })
    .await;
    let mut seen = BTreeMap::new();
    while let Ok(event) = events.try_recv() {
        if let NetEvent::Up(peer) = event {
            seen.insert(peer, ());
        }
    }
    assert!(seen.is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_blocked_peer_is_disconnected_and_stays_out() {
    let [(a, _), (b, _)] = pair().await;
    a.block(b.local_peer(), Duration::from_millis(700), "test");
    until("it is out", || !knows(&a, &b) && !knows(&b, &a)).await;
    // It keeps coming back, and is let in once its time is over.
    until("it is in again", || knows(&a, &b) && knows(&b, &a)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_peer_that_restarts_is_found_again() {
    let keys = cluster();
    let (a, _) = start(&keys, "anna").await;
    let mut again = config(&keys, "bert");
    let service = Arc::new(Answering::default());
    let b = Net::start(again_config(&again), service.clone())
        .await
        .unwrap();
    // Nobody asked for it permanently: it is looked for where it was.
    a.add_peer(address(&b), false);
    until("both are up", || knows(&a, &b) && knows(&b, &a)).await;
    again.listen = b.addresses();
    // Without a goodbye, as when a process is killed.
    let mut events = a.events();
    drop(b);
    until("it is down", || {
        std::iter::from_fn(|| events.try_recv().ok())
            .any(|event| matches!(event, NetEvent::Down(_)))
    })
    .await;
    let mut b = Net::start(again_config(&again), service.clone()).await;
    // The operating system may take a moment to give the port back.
    let deadline = Instant::now() + SOON;
    while b.is_err() && Instant::now() < deadline {
        tokio::time::sleep(Duration::from_millis(20)).await;
        b = Net::start(again_config(&again), service.clone()).await;
    }
    let b = b.unwrap();
    until("both are up again", || knows(&a, &b) && knows(&b, &a)).await;
    a.request(b.local_peer(), SyncRequest::Heads, SOON)
        .await
        .unwrap();
}

fn again_config(config: &NetConfig) -> NetConfig {
    NetConfig {
        identity: config.identity.clone(),
        keys: config.keys.clone(),
        hello: config.hello.clone(),
        listen: config.listen.clone(),
        upload_limit: config.upload_limit,
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_peer_that_leaves_says_so_and_is_not_dialed_again() {
    let [(a, asked), (b, _)] = pair().await;
    timeout(SOON, b.stop()).await.expect("it stops");
    until("it is down", || a.peers().is_empty()).await;
    assert_eq!(*asked.pushed.lock(), [Push::Leaving]);
    assert_eq!(a.shared.book.lock().next(|_| false), None);
    let after = b.request(a.local_peer(), SyncRequest::Heads, SOON).await;
    assert!(matches!(after, Err(NetError::NotConnected(_))));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_port_in_use_is_reported_plainly() {
    let keys = cluster();
    let (a, _) = start(&keys, "anna").await;
    let mut second = config(&keys, "bert");
    second.listen = a.addresses();
    match Net::start(second, Arc::new(Answering::default())).await {
        Err(NetError::Listen { reason, .. }) => assert_eq!(reason, "the port is in use"),
        other => panic!("{:?}", other.map(|_| ())),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_address_where_nobody_speaks_is_not_dialed_without_pause() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let (a, _) = start(&cluster(), "anna").await;
    let nobody: Multiaddr = format!("/ip4/127.0.0.1/tcp/{port}").parse().unwrap();
    a.add_peer(nobody.clone(), true);
    let mut dials = 0;
    let count = async {
        loop {
            drop(listener.accept().await.unwrap());
            dials += 1;
            a.add_peer(nobody.clone(), true);
        }
    };
    let _ = timeout(Duration::from_secs(2), count).await;
    assert!((1..=4).contains(&dials), "{dials} dials in two seconds");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_does_not_become_its_own_peer() {
    let (a, _) = start(&cluster(), "anna").await;
    let own = a.addresses()[0].clone();
    a.add_peer(own.clone(), true);
    a.add_peer(address(&a), true);
    let refused = a.connect(own, SOON).await;
    assert!(matches!(refused, Err(NetError::Dial { .. })));
    assert!(a.peers().is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_unspecified_address_becomes_those_of_the_interfaces() {
    let mut config = config(&cluster(), "anna");
    config.listen = vec!["/ip4/0.0.0.0/tcp/0".parse().unwrap()];
    let net = Net::start(config, Arc::new(Answering::default()))
        .await
        .unwrap();
    assert!(!net.addresses().is_empty());
    for address in net.addresses() {
        let text = address.to_string();
        assert!(
            !text.contains("0.0.0.0") && !text.ends_with("/tcp/0"),
            "{text}"
        );
    }
}
