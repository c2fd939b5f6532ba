//! Older versions of a content help with newer ones, and never harm.

use std::{fs, os::unix::fs::FileExt};

use super::*;
use crate::content::verify_range;

pub(super) const OLD_BLOCKS: u64 = 1100;
/// What the new version has that the old one has not: a block in the middle, and three at its end.
pub(super) const CHANGED: [u64; 4] = [1050, 1100, 1101, 1102];

/// A content and a later version of it.
pub(super) fn versions() -> (Arc<Content>, Arc<Content>) {
    let old = Content::new(OLD_BLOCKS * BLOCK_BYTES, 1);
    let mut data = old.data.clone();
    data[(CHANGED[0] * BLOCK_BYTES) as usize + 7] ^= 1;
    data.extend(&Content::new(2 * BLOCK_BYTES + 5, 2).data);
    (old, Content::of(data))
}

impl Fixture {
    /// Has blocks of a content here.
    pub(super) fn has(&self, content: &Content, blocks: Range<u64>) {
        for start in blocks.clone().step_by(16) {
            let part = start..(start + 16).min(blocks.end);
            let encoded = content.prove(part.clone());
            let range = verify_range(content.object, part, &encoded).unwrap();
            self.store.insert(&range).unwrap();
        }
    }

    /// Brings all of a content, checks it, and tells which blocks were asked for.
    async fn bring(&self, engine: &Transfers, content: &Content) -> BTreeSet<u64> {
        let all = 0..content.object.size;
        engine
            .ensure_behind(content.object, all.clone(), "a")
            .await
            .unwrap();
        assert!(self.read(content.object, all) == content.data);
        self.net.requested().into_iter().flatten().collect()
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_a_new_version_only_what_differs_is_fetched() {
    let f = Fixture::new();
    let (old, new) = versions();
    f.has(&old, 0..OLD_BLOCKS);
    f.net.add(&[&new], Behaviour::Honest);
    let engine = f.start(TIMEOUT);
    engine.replaced(new.object, old.object);
    assert_eq!(f.bring(&engine, &new).await, BTreeSet::from(CHANGED));
    // Each part of the tree was asked for once.
    let state = f.net.state.lock();
    let asked: Vec<_> = state
        .trees
        .iter()
        .map(|(_, blocks)| blocks.clone())
        .collect();
    assert_eq!(asked, [0..1024, 1024..1103]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_not_here_of_the_old_version_is_fetched_and_asks_for_no_hashes() {
    let f = Fixture::new();
    let (old, new) = versions();
    f.has(&old, 1030..1060);
    f.net.add(&[&new], Behaviour::Honest);
    let engine = f.start(TIMEOUT);
    engine.replaced(new.object, old.object);
    let fetched = f.bring(&engine, &new).await;
    let expected: BTreeSet<u64> = (0..1103)
        .filter(|block| !(1030..1060).contains(block) || *block == 1050)
        .collect();
    assert_eq!(fetched, expected);
    assert_eq!(f.net.state.lock().trees.len(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_version_that_nobody_read_passes_its_older_one_on() {
    let f = Fixture::new();
    let (old, new) = versions();
    let between = Content::new(OLD_BLOCKS * BLOCK_BYTES, 9);
    f.has(&old, 0..OLD_BLOCKS);
    f.net.add(&[&new], Behaviour::Honest);
    let engine = f.start(TIMEOUT);
    engine.replaced(between.object, old.object);
    engine.replaced(new.object, between.object);
    assert_eq!(f.bring(&engine, &new).await, BTreeSet::from(CHANGED));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hashes_that_prove_nothing_block_their_sender_and_harm_nobody() {
    let f = Fixture::new();
    let (old, new) = versions();
    f.has(&old, 0..OLD_BLOCKS);
    let corrupt = f.net.add(&[&new], Behaviour::Corrupt);
    let engine = f.start(TIMEOUT);
    engine.replaced(new.object, old.object);
    let bring = f.bring(&engine, &new);
    let helped = async {
        until("the corrupt peer is blocked", || {
            !f.net.state.lock().blocked.is_empty()
        })
        .await;
        f.net.add(&[&new], Behaviour::Honest);
    };
    let (_, ()) = tokio::join!(bring, helped);
    assert_eq!(f.net.state.lock().blocked, BTreeSet::from([corrupt]));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn where_nobody_tells_hashes_all_is_fetched_and_who_waits_does_not_wait_for_them() {
    for behaviour in [
        Behaviour::SilentBut(BlockSet::of(0..1103)),
        Behaviour::Honest,
    ] {
        let f = Fixture::new();
        let (old, new) = versions();
        f.has(&old, 0..OLD_BLOCKS);
        let peer = f.net.add(&[&new], behaviour.clone());
        if behaviour == Behaviour::Honest {
            f.net.state.lock().treeless.insert(peer);
        }
        let engine = f.start(TIMEOUT);
        engine.replaced(new.object, old.object);
        engine.ensure(new.object, 0..1, "a").await.unwrap();
        assert!(f.net.requested().contains(&(0..1)));
        assert_eq!(f.bring(&engine, &new).await.len(), 1103);
        let asked = !f.net.state.lock().trees.is_empty();
        assert_eq!(asked, behaviour != Behaviour::Honest);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_relation_that_is_none_and_an_old_file_that_is_damaged_cost_no_more_than_fetching() {
    let f = Fixture::new();
    let (old, new) = versions();
    let other = Content::new(new.object.size, 5);
    f.has(&old, 0..OLD_BLOCKS);
    f.net.add(&[&new, &other], Behaviour::Honest);
    let engine = f.start(TIMEOUT);
    engine.replaced(other.object, old.object);
    assert_eq!(f.bring(&engine, &other).await.len(), 1103);

    f.net.state.lock().requests.clear();
    let id = old.object.content;
    let path = format!("objects/{:02x}/{id}-{}", id.0[0], old.object.size);
    let file = fs::OpenOptions::new()
        .write(true)
        .open(f.dir.path().join(path));
    file.unwrap()
        .write_all_at(&[1; 9], 20 * BLOCK_BYTES)
        .unwrap();
    engine.replaced(new.object, old.object);
    assert!(f.bring(&engine, &new).await.contains(&20));
}

#[tokio::test]
async fn relations_are_bounded() {
    let f = Fixture::new();
    let engine = f.start(TIMEOUT);
    let object = |number: u64| Object {
        content: ContentId([(number % 251) as u8; 32]),
        size: BLOCK_BYTES * (10 + number),
    };
    for number in 0..1000 {
        engine.replaced(object(number + 1), object(number));
    }
    assert!(engine.kin.knows(&object(1000)));
    assert!(!engine.kin.knows(&object(1)));
}
