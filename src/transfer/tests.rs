//! The engine over a real store and peers that are simulated in memory.

mod entrust;
mod kin;

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use tokio::sync::broadcast;

use super::*;
use crate::{
    content::{
        BLOCK_BYTES, ContentId, encode_nodes, encode_range, encoded_bytes, hash_into,
        sizes::INTERESTING_SIZES,
    },
    net::{
        NetError, NetEvent,
        proto::{BatchRequest, BlockAnswer, BlockRequest, Have, Push},
    },
    store::Presence,
};

const TIMEOUT: Duration = Duration::from_secs(20);
/// Time-out for wishes that are to fail.
const SHORT: Duration = Duration::from_millis(400);

/// A content in memory.
struct Content {
    object: Object,
    data: Vec<u8>,
    tree: Vec<u8>,
}

impl Content {
    fn new(size: u64, seed: u8) -> Arc<Self> {
        let mut data = vec![0; size as usize];
        blake3::Hasher::new()
            .update(&[seed])
            .finalize_xof()
            .fill(&mut data);
        Self::of(data)
    }

    fn of(data: Vec<u8>) -> Arc<Self> {
        let size = data.len() as u64;
        let mut tree = Vec::new();
        let content = hash_into(&&data[..], size, &mut tree).unwrap();
        Arc::new(Self {
            object: Object { content, size },
            data,
            tree,
        })
    }

    fn prove(&self, blocks: Range<u64>) -> Bytes {
        let mut out = vec![0; encoded_bytes(self.object, blocks.clone()) as usize];
        encode_range(
            &&self.data[..],
            &&self.tree[..],
            self.object,
            blocks,
            &mut out,
        )
        .unwrap();
        out.into()
    }
}

#[derive(Clone, PartialEq)]
enum Behaviour {
    Honest,
    /// One bit of each answer is wrong.
    Corrupt,
    /// Never answers block requests, but for these blocks.
    SilentBut(BlockSet),
    /// Its requests fail.
    Failing,
    /// Claims another size, with a useless proof.
    ClaimsSize(u64),
}

struct FakePeer {
    contents: BTreeMap<ContentId, Arc<Content>>,
    behaviour: Behaviour,
}

#[derive(Default)]
struct State {
    peers: BTreeMap<PeerId, FakePeer>,
    requests: Vec<(PeerId, BlockRequest)>,
    batches: Vec<(PeerId, Vec<Object>)>,
    trees: Vec<(PeerId, Range<u64>)>,
    /// Who was asked to make what.
    makes: Vec<(PeerId, Object)>,
    /// Who doesn't know what a tree is.
    treeless: BTreeSet<PeerId>,
    open: usize,
    pushes: Vec<(Object, BlockSet)>,
    blocked: BTreeSet<PeerId>,
    searched: Vec<Object>,
    reported: Vec<(PeerId, String)>,
}

/// Peers in memory, and the directory.
struct FakeNet {
    state: Mutex<State>,
    events: broadcast::Sender<NetEvent>,
}

/// Counts a request as open for as long as its future lives.
struct Open(Arc<FakeNet>);

impl Drop for Open {
    fn drop(&mut self) {
        self.0.state.lock().open -= 1;
    }
}

impl FakeNet {
    fn new() -> Arc<Self> {
        Arc::new(Self {
            state: Mutex::default(),
            events: broadcast::channel(64).0,
        })
    }

    fn add(&self, contents: &[&Arc<Content>], behaviour: Behaviour) -> PeerId {
        let peer = PeerId::random();
        let contents = contents
            .iter()
            .map(|content| (content.object.content, (*content).clone()))
            .collect();
        let fake = FakePeer {
            contents,
            behaviour,
        };
        self.state.lock().peers.insert(peer, fake);
        // Nobody listens before the engine has started; it looks at the list then.
        let _ = self.events.send(NetEvent::Up(peer));
        peer
    }

    fn requested(&self) -> Vec<Range<u64>> {
        let state = self.state.lock();
        let mut blocks: Vec<Range<u64>> = state
            .requests
            .iter()
            .map(|(_, request)| request.start..request.end)
            .collect();
        blocks.sort_by_key(|blocks| blocks.start);
        blocks
    }

    fn answer(
        &self,
        peer: PeerId,
        request: &BlockRequest,
    ) -> Option<Result<BlockAnswer, NetError>> {
        let state = self.state.lock();
        let Some(fake) = state.peers.get(&peer) else {
            return Some(Err(NetError::NotConnected(peer)));
        };
        let blocks = request.start..request.end;
        let answer = match (fake.contents.get(&request.object.content), &fake.behaviour) {
            (_, Behaviour::Failing) => return Some(Err(NetError::Lost(peer))),
            (_, Behaviour::SilentBut(loud)) if !loud.contains(blocks.clone()) => return None,
            (_, Behaviour::ClaimsSize(size)) => BlockAnswer::WrongSize {
                size: *size,
                proof: Bytes::from_static(b"useless"),
            },
            (None, _) => BlockAnswer::DontHave(Have::No),
            (Some(content), _) if content.object != request.object => {
                let last = content.object.blocks().saturating_sub(1);
                BlockAnswer::WrongSize {
                    size: content.object.size,
                    proof: content.prove(last..last + 1),
                }
            }
            (Some(content), Behaviour::Corrupt) => {
                let mut encoded = content.prove(blocks).to_vec();
                if let Some(last) = encoded.last_mut() {
                    *last ^= 1;
                }
                BlockAnswer::Data(encoded.into())
            }
            (Some(content), _) => BlockAnswer::Data(content.prove(blocks)),
        };
        Some(Ok(answer))
    }
}

impl FakeNet {
    fn answer_batch(
        &self,
        peer: PeerId,
        objects: &[Object],
    ) -> Option<Result<BlockAnswer, NetError>> {
        let state = self.state.lock();
        let Some(fake) = state.peers.get(&peer) else {
            return Some(Err(NetError::NotConnected(peer)));
        };
        let mut here = Vec::new();
        let mut data = Vec::new();
        for object in objects {
            let content = fake.contents.get(&object.content);
            let content = content.filter(|content| content.object == *object);
            here.push(content.is_some());
            data.extend(content.iter().flat_map(|content| &content.data));
        }
        match &fake.behaviour {
            Behaviour::Failing => return Some(Err(NetError::Lost(peer))),
            Behaviour::SilentBut(_) => return None,
            Behaviour::Corrupt => data.iter_mut().take(1).for_each(|byte| *byte ^= 1),
            Behaviour::Honest | Behaviour::ClaimsSize(_) => {}
        }
        Some(Ok(BlockAnswer::Batch {
            here,
            data: data.into(),
        }))
    }
}

/// The engine's view of [`FakeNet`].
struct FakeSource(Arc<FakeNet>);

impl BlockSource for FakeSource {
    fn local(&self) -> PeerId {
        PeerId::random()
    }

    fn received(&self, _peer: &PeerId) -> Option<u64> {
        None
    }

    fn peers(&self) -> Vec<(PeerId, Option<Duration>)> {
        let state = self.0.state.lock();
        state.peers.keys().map(|peer| (*peer, None)).collect()
    }

    fn events(&self) -> broadcast::Receiver<NetEvent> {
        self.0.events.subscribe()
    }

    fn have(
        &self,
        peer: PeerId,
        objects: Vec<Object>,
        _within: Duration,
    ) -> BoxFuture<'static, Result<Vec<Have>, NetError>> {
        let state = self.0.state.lock();
        let answers = state.peers.get(&peer).map(|fake| {
            let have = |object: &Object| match fake.contents.get(&object.content) {
                Some(content) if content.object == *object => Have::Whole,
                _ => Have::No,
            };
            objects.iter().map(have).collect()
        });
        Box::pin(async move { answers.ok_or(NetError::NotConnected(peer)) })
    }

    fn tree_peers(&self) -> Vec<(PeerId, Option<Duration>)> {
        let mut peers = self.peers();
        peers.retain(|(peer, _)| !self.0.state.lock().treeless.contains(peer));
        peers
    }

    fn tree(
        &self,
        peer: PeerId,
        object: Object,
        blocks: Range<u64>,
        _within: Duration,
    ) -> BoxFuture<'static, Result<Vec<u8>, NetError>> {
        let mut state = self.0.state.lock();
        state.trees.push((peer, blocks.clone()));
        let Some(fake) = state.peers.get(&peer) else {
            return Box::pin(async move { Err(NetError::NotConnected(peer)) });
        };
        let content = fake.contents.get(&object.content);
        let encoded = content.map(|content| encode_nodes(&&content.tree[..], object, blocks));
        let mut encoded = encoded.transpose().unwrap().unwrap_or_default();
        match &fake.behaviour {
            Behaviour::SilentBut(_) => return Box::pin(std::future::pending()),
            Behaviour::Failing => return Box::pin(async move { Err(NetError::Lost(peer)) }),
            Behaviour::Corrupt => encoded.iter_mut().take(1).for_each(|byte| *byte ^= 1),
            Behaviour::Honest | Behaviour::ClaimsSize(_) => {}
        }
        Box::pin(async { Ok(encoded) })
    }

    fn make(
        &self,
        peer: PeerId,
        new: Object,
        old: Object,
        _within: Duration,
    ) -> BoxFuture<'static, Result<bool, NetError>> {
        let mut state = self.0.state.lock();
        state.makes.push((peer, new));
        let fake = state.peers.get(&peer);
        let made = fake.map(|fake| fake.contents.contains_key(&old.content));
        Box::pin(async move { made.ok_or(NetError::NotConnected(peer)) })
    }

    fn keep(
        &self,
        peer: PeerId,
        object: Object,
        _lease: Duration,
        _within: Duration,
    ) -> BoxFuture<'static, Result<bool, NetError>> {
        let state = self.0.state.lock();
        let fake = state.peers.get(&peer);
        let kept = fake.map(|fake| fake.contents.contains_key(&object.content));
        Box::pin(async move { kept.ok_or(NetError::NotConnected(peer)) })
    }

    fn load(&self, peer: PeerId, _within: Duration) -> BoxFuture<'static, Result<u32, NetError>> {
        Box::pin(async move { Err(NetError::Lost(peer)) })
    }

    fn blocks(
        &self,
        peer: PeerId,
        request: BlockRequest,
        _within: Duration,
    ) -> BoxFuture<'static, Result<BlockAnswer, NetError>> {
        let net = self.0.clone();
        net.state.lock().open += 1;
        net.state.lock().requests.push((peer, request.clone()));
        let open = Open(net.clone());
        Box::pin(async move {
            let _open = open;
            tokio::task::yield_now().await;
            match net.answer(peer, &request) {
                Some(answer) => answer,
                None => std::future::pending().await,
            }
        })
    }

    fn batch(
        &self,
        peer: PeerId,
        request: BatchRequest,
        _within: Duration,
    ) -> BoxFuture<'static, Result<BlockAnswer, NetError>> {
        assert_eq!(request.check(), Ok(()));
        let net = self.0.clone();
        net.state.lock().open += 1;
        net.state.lock().batches.push((peer, request.0.clone()));
        let open = Open(net.clone());
        Box::pin(async move {
            let _open = open;
            tokio::task::yield_now().await;
            match net.answer_batch(peer, &request.0) {
                Some(answer) => answer,
                None => std::future::pending().await,
            }
        })
    }

    fn push(&self, push: Push) {
        if let Push::Have(object, blocks) = push {
            self.0.state.lock().pushes.push((object, blocks));
        }
    }

    fn block_peer(&self, peer: PeerId, _for_how_long: Duration, _reason: &str) {
        let mut state = self.0.state.lock();
        state.blocked.insert(peer);
        state.peers.remove(&peer);
        let _ = self.0.events.send(NetEvent::Down(peer));
    }
}

struct FakeDirectory(Arc<FakeNet>);

impl Holders for FakeDirectory {
    fn find(&self, object: Object) -> BoxFuture<'static, Vec<PeerId>> {
        self.0.state.lock().searched.push(object);
        Box::pin(async { Vec::new() })
    }

    fn report(&self, peer: PeerId, reason: &str) {
        let report = (peer, reason.to_owned());
        self.0.state.lock().reported.push(report);
    }
}

struct Fixture {
    dir: tempfile::TempDir,
    store: Store,
    net: Arc<FakeNet>,
}

impl Fixture {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        Self {
            store: Store::open(dir.path()).unwrap(),
            dir,
            net: FakeNet::new(),
        }
    }

    fn start(&self, read_timeout: Duration) -> Transfers {
        Transfers::start_with(
            self.store.clone(),
            Arc::new(FakeSource(self.net.clone())),
            Arc::new(FakeDirectory(self.net.clone())),
            Limits {
                read_timeout,
                download_bytes_per_s: None,
            },
            7,
        )
    }

    fn read(&self, object: Object, bytes: Range<u64>) -> Vec<u8> {
        let mut buffer = vec![0; (bytes.end - bytes.start) as usize];
        let read = self.store.read(&object, bytes.start, &mut buffer).unwrap();
        buffer.truncate(read);
        buffer
    }
}

/// Waits for a condition, with a deadline.
async fn until(what: &str, condition: impl Fn() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(10);
    while !condition() {
        assert!(Instant::now() < deadline, "waited in vain: {what}");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn contents_of_all_sizes_arrive_whole() {
    let f = Fixture::new();
    let contents: Vec<Arc<Content>> = INTERESTING_SIZES
        .iter()
        .map(|size| Content::new(*size, 1))
        .collect();
    let all: Vec<&Arc<Content>> = contents.iter().collect();
    f.net.add(&all, Behaviour::Honest);
    f.net.add(&all, Behaviour::Honest);
    let engine = f.start(TIMEOUT);
    for content in &contents {
        let object = content.object;
        engine.ensure(object, 0..object.size, "a").await.unwrap();
        assert!(f.read(object, 0..object.size) == content.data);
    }
    assert_eq!(engine.rejected(), 0);
}

#[tokio::test]
async fn a_read_fetches_its_blocks_and_the_proof_of_the_size_and_no_more() {
    let f = Fixture::new();
    let content = Content::new(100 * BLOCK_BYTES, 1);
    f.net.add(&[&content], Behaviour::Honest);
    let engine = f.start(TIMEOUT);
    let bytes = 10 * BLOCK_BYTES + 5..11 * BLOCK_BYTES + 5;
    engine
        .ensure(content.object, bytes.clone(), "a")
        .await
        .unwrap();
    assert_eq!(f.net.requested(), [10..12, 99..100]);
    assert!(
        f.read(content.object, bytes.clone())
            == content.data[bytes.start as usize..bytes.end as usize]
    );
}

#[tokio::test]
async fn who_reads_a_block_has_the_size_proven_behind_it() {
    let f = Fixture::new();
    let content = Content::new(100 * BLOCK_BYTES, 1);
    f.net.add(&[&content], Behaviour::Honest);
    let engine = f.start(TIMEOUT);
    let bytes = 10 * BLOCK_BYTES..10 * BLOCK_BYTES + 5;
    let reading = engine.ensure_readable(content.object, bytes, "a");
    reading.await.unwrap();
    let deadline = Instant::now() + Duration::from_secs(10);
    while !f.store.size_proven(&content.object).unwrap() {
        assert!(Instant::now() < deadline, "the proof comes by itself");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert_eq!(f.net.requested(), [10..11, 99..100]);
}

#[tokio::test]
async fn who_waits_for_bytes_gets_them_where_they_cannot_be_kept() {
    let f = Fixture::new();
    let content = Content::new(3 * BLOCK_BYTES, 1);
    f.net.add(&[&content], Behaviour::Honest);
    // No hash tree can be made there.
    let id = content.object.content;
    let tree = format!("objects/{:02x}/{id}-{}.tree", id.0[0], content.object.size);
    std::os::unix::fs::symlink("/nonexistent/tree", f.dir.path().join(tree)).unwrap();
    let engine = f.start(TIMEOUT);
    let all = 0..content.object.size;
    engine
        .ensure(content.object, all.clone(), "a")
        .await
        .unwrap();
    assert!(f.read(content.object, all) == content.data);
    assert_eq!(f.store.presence(&content.object).unwrap(), Presence::Absent);
}

#[tokio::test]
async fn what_is_here_needs_nobody() {
    let f = Fixture::new();
    let content = Content::new(300_000, 1);
    let peer = f.net.add(&[&content], Behaviour::Honest);
    let engine = f.start(SHORT);
    let all = 0..content.object.size;
    engine
        .ensure(content.object, all.clone(), "a")
        .await
        .unwrap();
    f.net.state.lock().peers.remove(&peer);
    engine.stop();
    engine.ensure(content.object, all, "a").await.unwrap();
    engine.ensure(Object::empty(), 0..10, "a").await.unwrap();
}

#[tokio::test]
async fn after_a_restart_only_what_is_missing_is_asked_for() {
    let f = Fixture::new();
    let content = Content::new(40 * BLOCK_BYTES, 1);
    f.net.add(&[&content], Behaviour::Honest);
    let engine = f.start(TIMEOUT);
    engine
        .ensure(content.object, 0..20 * BLOCK_BYTES, "a")
        .await
        .unwrap();
    engine.stop();
    f.net.state.lock().requests.clear();
    let engine = f.start(TIMEOUT);
    engine
        .ensure(content.object, 0..content.object.size, "a")
        .await
        .unwrap();
    let requested = f.net.requested();
    assert_eq!(requested.first().map(|first| first.start), Some(20));
    assert_eq!(requested.last().map(|last| last.end), Some(39));
    assert!(
        requested
            .windows(2)
            .all(|pair| pair[0].end == pair[1].start)
    );
}

#[tokio::test]
async fn a_corrupt_peer_is_blocked_blamed_and_reported_and_its_data_never_stored() {
    let f = Fixture::new();
    let content = Content::new(64 * BLOCK_BYTES, 1);
    let corrupt = f.net.add(&[&content], Behaviour::Corrupt);
    let engine = f.start(TIMEOUT);
    let read = engine.ensure(content.object, 0..content.object.size, "a");
    let helped = async {
        until("the corrupt peer is blocked", || engine.rejected() > 0).await;
        f.net.add(&[&content], Behaviour::Honest);
    };
    let (result, ()) = tokio::join!(read, helped);
    result.unwrap();
    assert!(f.read(content.object, 0..content.object.size) == content.data);
    let blames = engine.blames();
    assert_eq!(blames.len(), 1);
    assert_eq!(blames[0].peer, corrupt);
    assert!(blames[0].reason.contains("does not match"));
    let state = f.net.state.lock();
    assert_eq!(state.blocked, BTreeSet::from([corrupt]));
    assert_eq!(state.reported[0].0, corrupt);
}

#[tokio::test]
async fn a_failing_peer_is_tried_three_times_then_reported() {
    let f = Fixture::new();
    let content = Content::new(10, 1);
    let failing = f.net.add(&[&content], Behaviour::Failing);
    let engine = f.start(Duration::from_secs(2));
    let error = engine.ensure(content.object, 0..10, "a").await.unwrap_err();
    assert!(error.to_string().contains("was lost"), "{error}");
    let state = f.net.state.lock();
    assert_eq!(state.batches.len() + state.requests.len(), 3);
    assert_eq!(state.reported.len(), 1);
    assert_eq!(state.reported[0].0, failing);
    assert!(state.blocked.is_empty());
}

#[tokio::test]
async fn a_prefetch_that_is_dropped_is_given_up_with_its_requests() {
    let f = Fixture::new();
    let content = Content::new(64 * BLOCK_BYTES, 1);
    f.net
        .add(&[&content], Behaviour::SilentBut(BlockSet::default()));
    let engine = f.start(TIMEOUT);
    let ahead = engine.prefetch(content.object, 0..content.object.size, "a");
    until("requests are under way", || f.net.state.lock().open > 0).await;
    drop(ahead);
    until("they are cancelled", || f.net.state.lock().open == 0).await;
}

#[tokio::test]
async fn a_read_is_not_held_up_by_a_prefetch() {
    let f = Fixture::new();
    let content = Content::new(2000 * BLOCK_BYTES, 1);
    let mut loud = BlockSet::of(1500..1501);
    loud.insert(1999..2000);
    f.net.add(&[&content], Behaviour::SilentBut(loud));
    let engine = f.start(TIMEOUT);
    let _ahead = engine.prefetch(content.object, 0..content.object.size, "a");
    until("the prefetch runs", || f.net.state.lock().open > 0).await;
    let at = 1500 * BLOCK_BYTES;
    engine
        .ensure(content.object, at..at + 10, "a")
        .await
        .unwrap();
    assert!(f.net.state.lock().open > 0, "the prefetch still runs");
}

#[tokio::test]
async fn a_prefetch_brings_what_later_reads_find() {
    let f = Fixture::new();
    let content = Content::new(100 * BLOCK_BYTES, 1);
    f.net.add(&[&content], Behaviour::Honest);
    let engine = f.start(TIMEOUT);
    let _ahead = engine.prefetch(content.object, 0..content.object.size, "a");
    until("all of it is here", || {
        f.store.presence(&content.object).unwrap() == crate::store::Presence::Complete
    })
    .await;
}

#[tokio::test]
async fn dropping_a_read_cancels_its_requests() {
    let f = Fixture::new();
    let content = Content::new(100 * BLOCK_BYTES, 1);
    f.net
        .add(&[&content], Behaviour::SilentBut(BlockSet::default()));
    let engine = f.start(TIMEOUT);
    let running = tokio::spawn({
        let (engine, object) = (engine.clone(), content.object);
        async move { engine.ensure(object, 0..object.size, "a").await }
    });
    until("it asks", || f.net.state.lock().open > 0).await;
    running.abort();
    until("it is cancelled", || f.net.state.lock().open == 0).await;
}

#[tokio::test]
async fn a_read_that_nobody_can_serve_fails_in_time_and_says_so() {
    let f = Fixture::new();
    let engine = f.start(SHORT);
    let content = Content::new(10, 1);
    let started = Instant::now();
    let error = engine
        .ensure(content.object, 0..10, "a/b")
        .await
        .unwrap_err();
    assert!(started.elapsed() >= SHORT);
    assert!(matches!(error, TransferError::Stalled { .. }));
    assert!(error.to_string().contains("no peer is connected"));
    assert_eq!(f.net.state.lock().searched, [content.object]);
    let status = engine.status();
    assert_eq!(status[0].label, "a/b");
    assert!(matches!(status[0].state, TransferState::Stalled(_)));
}

#[tokio::test]
async fn a_part_of_a_range_that_has_just_stalled_does_not_wait_again() {
    let f = Fixture::new();
    let engine = f.start(TIMEOUT);
    let content = Content::new(10 * BLOCK_BYTES, 1);
    let stall = TransferError::Stalled {
        waited: TIMEOUT,
        asked: "nobody".into(),
    };
    let page = 3 * BLOCK_BYTES..3 * BLOCK_BYTES + 4096;
    engine.stalls.note(content.object, 2..6, stall);
    let read = || engine.ensure(content.object, page.clone(), "a");
    let error = read().await.unwrap_err();
    assert!(matches!(error, TransferError::Stalled { .. }));
    assert!(f.net.state.lock().searched.is_empty());
    // What did not stall is looked for as ever.
    f.net.add(&[&content], Behaviour::Honest);
    engine
        .ensure(content.object, 0..BLOCK_BYTES, "a")
        .await
        .unwrap();
    // Since then somebody is known to have it.
    read().await.unwrap();
}

#[tokio::test]
async fn a_read_goes_on_when_a_holder_appears() {
    let f = Fixture::new();
    let content = Content::new(10 * BLOCK_BYTES, 1);
    f.net.add(&[], Behaviour::Honest);
    let engine = f.start(TIMEOUT);
    let read = engine.ensure(content.object, 0..100, "a");
    let appear = async {
        until("the directory is asked", || {
            !f.net.state.lock().searched.is_empty()
        })
        .await;
        f.net.add(&[&content], Behaviour::Honest);
    };
    let (result, ()) = tokio::join!(read, appear);
    result.unwrap();
}

#[tokio::test]
async fn a_wrong_size_is_proven_and_blames_nobody() {
    let f = Fixture::new();
    for true_size in [1, BLOCK_BYTES, 3 * BLOCK_BYTES + 7] {
        let content = Content::new(true_size, 1);
        f.net.add(&[&content], Behaviour::Honest);
    }
    let engine = f.start(TIMEOUT);
    for true_size in [1, BLOCK_BYTES, 3 * BLOCK_BYTES + 7] {
        let wrong = Object {
            size: 10 * BLOCK_BYTES,
            ..Content::new(true_size, 1).object
        };
        let error = engine.ensure(wrong, 0..10, "a").await.unwrap_err();
        assert!(
            matches!(error, TransferError::WrongSize { claimed, actual }
                if claimed == wrong.size && actual == true_size),
            "{error}"
        );
    }
    assert!(engine.blames().is_empty());
    assert_eq!(engine.rejected(), 0);
}

#[tokio::test]
async fn a_claim_of_a_wrong_size_without_proof_blocks_who_makes_it() {
    for claimed in [0, 17, 10 * BLOCK_BYTES, u64::MAX] {
        let f = Fixture::new();
        let content = Content::new(10 * BLOCK_BYTES, 1);
        let liar = f.net.add(&[&content], Behaviour::ClaimsSize(claimed));
        let engine = f.start(SHORT);
        let error = engine.ensure(content.object, 0..10, "a").await.unwrap_err();
        assert!(matches!(error, TransferError::Stalled { .. }), "{error}");
        assert_eq!(f.net.state.lock().blocked, BTreeSet::from([liar]));
    }
}

#[tokio::test]
async fn newly_verified_blocks_are_announced_together() {
    let f = Fixture::new();
    let content = Content::new(64 * BLOCK_BYTES, 1);
    f.net.add(&[&content], Behaviour::Honest);
    let engine = f.start(TIMEOUT);
    engine
        .ensure(content.object, 0..content.object.size, "a")
        .await
        .unwrap();
    let announced = || {
        let mut all = BlockSet::default();
        for (object, blocks) in &f.net.state.lock().pushes {
            assert_eq!(*object, content.object);
            all.union(blocks);
        }
        all
    };
    until("all is announced", || announced() == BlockSet::of(0..64)).await;
    let pushes = f.net.state.lock().pushes.len();
    assert!(pushes < f.net.state.lock().requests.len());
}

#[tokio::test]
async fn an_announcement_makes_a_peer_a_holder() {
    let f = Fixture::new();
    let content = Content::new(64 * BLOCK_BYTES, 1);
    let peer = f.net.add(&[], Behaviour::Honest);
    let engine = f.start(TIMEOUT);
    let read = engine.ensure(content.object, 0..content.object.size, "a");
    let announce = async {
        until("it was asked", || !f.net.state.lock().searched.is_empty()).await;
        if let Some(fake) = f.net.state.lock().peers.get_mut(&peer) {
            fake.contents
                .insert(content.object.content, content.clone());
        }
        engine.peer_has(peer, content.object, &BlockSet::of(0..64));
    };
    let (result, ()) = tokio::join!(read, announce);
    result.unwrap();
}

#[tokio::test]
async fn stopping_ends_all_reads() {
    let f = Fixture::new();
    let content = Content::new(10, 1);
    let engine = f.start(TIMEOUT);
    let read = engine.ensure(content.object, 0..10, "a");
    let stop = async {
        until("it runs", || !engine.status().is_empty()).await;
        engine.stop();
    };
    let (result, ()) = tokio::join!(read, stop);
    assert!(matches!(result, Err(TransferError::Stopping)));
    let later = engine.ensure(content.object, 0..10, "a").await;
    assert!(matches!(later, Err(TransferError::Stopping)));
}

#[tokio::test]
async fn the_report_tells_how_a_transfer_goes() {
    let f = Fixture::new();
    let content = Content::new(64 * BLOCK_BYTES, 1);
    f.net.add(&[&content], Behaviour::Honest);
    let engine = f.start(TIMEOUT);
    engine
        .ensure(content.object, 0..content.object.size, "photos/a.jpg")
        .await
        .unwrap();
    until("it is finished", || {
        engine
            .status()
            .iter()
            .any(|row| row.state == TransferState::Finished)
    })
    .await;
    let row = engine.status().remove(0);
    assert_eq!(row.label, "photos/a.jpg");
    assert_eq!(row.object, content.object);
    assert_eq!(row.done_bytes, content.object.size);
    assert_eq!(row.sources, 1);
    assert!(row.rate_bytes_per_s > 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_readers_of_one_object_share_its_transfer() {
    let f = Fixture::new();
    let content = Content::new(64 * BLOCK_BYTES + 1, 1);
    // One peer only: with a second one a late request may be hedged.
    f.net.add(&[&content], Behaviour::Honest);
    let engine = f.start(TIMEOUT);
    let readers: Vec<_> = (0..50u64)
        .map(|reader| {
            let (engine, object) = (engine.clone(), content.object);
            let start = reader * BLOCK_BYTES;
            tokio::spawn(async move { engine.ensure(object, start..object.size, "a").await })
        })
        .collect();
    for reader in readers {
        reader.await.unwrap().unwrap();
    }
    let mut asked = BTreeSet::new();
    for blocks in f.net.requested() {
        for block in blocks {
            assert!(asked.insert(block), "block {block} was asked for twice");
        }
    }
}

/// Small contents of many sizes, all different.
fn small(count: u64) -> Vec<Arc<Content>> {
    let size = |number: u64| [100, 4096, 5000, BLOCK_BYTES][(number % 4) as usize];
    (0..count)
        .map(|number| Content::new(size(number), number as u8))
        .collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn small_contents_come_in_batches_without_a_question_first() {
    let f = Fixture::new();
    let contents = small(200);
    let all: Vec<&Arc<Content>> = contents.iter().collect();
    f.net.add(&all, Behaviour::Honest);
    let engine = f.start(TIMEOUT);
    // One is here; what has more blocks is not fetched so.
    let first = contents[1].object;
    engine.ensure(first, 0..first.size, "a").await.unwrap();
    let large = Content::new(BLOCK_BYTES + 1, 1).object;
    let mut objects: Vec<Object> = contents.iter().map(|content| content.object).collect();
    objects.push(large);
    engine.ahead(objects);
    until("all are here", || {
        let here = |content: &Arc<Content>| {
            f.store.presence(&content.object).unwrap() == Presence::Complete
        };
        contents.iter().all(here)
    })
    .await;
    for content in &contents {
        let object = content.object;
        assert!(f.read(object, 0..object.size) == content.data);
    }
    let state = f.net.state.lock();
    assert!(state.requests.is_empty(), "{:?}", state.requests);
    let named: Vec<Object> = state
        .batches
        .iter()
        .flat_map(|batch| batch.1.clone())
        .collect();
    assert_eq!(named.len(), contents.len(), "each is asked for once");
    assert!(state.batches.len() < 20, "{} batches", state.batches.len());
    assert!(!named.contains(&large));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whoever_sends_a_wrong_small_content_is_blamed_and_others_bring_it() {
    let f = Fixture::new();
    let contents = small(40);
    let all: Vec<&Arc<Content>> = contents.iter().collect();
    let liar = f.net.add(&all, Behaviour::Corrupt);
    f.net.add(&[], Behaviour::Honest);
    let engine = f.start(TIMEOUT);
    engine.ahead(contents.iter().map(|content| content.object).collect());
    until("the liar is blocked", || {
        f.net.state.lock().blocked.contains(&liar)
    })
    .await;
    until("it is blamed", || {
        engine.blames().iter().any(|blame| blame.peer == liar)
    })
    .await;
    for content in &contents {
        assert_eq!(
            f.store.presence(&content.object).unwrap(),
            Presence::Absent,
            "nothing of its answer is kept"
        );
    }
    f.net.add(&all, Behaviour::Honest);
    for content in &contents {
        let object = content.object;
        engine.ensure(object, 0..object.size, "a").await.unwrap();
        assert!(f.read(object, 0..object.size) == content.data);
    }
}
