//! Small contents, in batches.

use super::*;

/// A content of one block; the number tells them apart.
fn small(number: u64, size: u64) -> Object {
    let mut content = [9; 32];
    content[..8].copy_from_slice(&number.to_le_bytes());
    Object {
        content: ContentId(content),
        size,
    }
}

fn smalls(count: u64) -> Vec<Object> {
    (0..count).map(|number| small(number, 4096)).collect()
}

impl Harness {
    fn ahead(&mut self, objects: &[Object]) {
        self.scheduler.handle_ahead(self.now, objects);
        self.drain();
    }

    /// The next batch is answered: all that `has` says so is there.
    fn answer_batch(&mut self, has: impl Fn(&Object) -> bool) -> (PeerId, Vec<Object>) {
        let (id, peer, objects) = self.batches.remove(0);
        let here: Vec<bool> = objects.iter().map(has).collect();
        self.scheduler.handle_batch(self.now, id, Ok(&here));
        self.drain();
        (peer, objects)
    }

    fn fail_batch(&mut self, answer: Answer) -> (PeerId, Vec<Object>) {
        let (id, peer, objects) = self.batches.remove(0);
        self.scheduler.handle_batch(self.now, id, Err(&answer));
        self.drain();
        (peer, objects)
    }
}

#[test]
fn a_small_content_is_asked_for_without_asking_who_has_it() {
    let mut h = Harness::with_known_holders(&[1]);
    let wish = h.demand(small(1, 4096), 0..1);
    assert!(h.asked_have.is_empty() && h.asked.is_empty() && h.searched.is_empty());
    assert_eq!(h.batches.len(), 1);
    h.answer_batch(|_| true);
    assert_eq!(h.ended.get(&wish).map(Result::is_ok), Some(true));
    assert_eq!(h.scheduler.poll_timeout(), None);
}

#[test]
fn batches_are_full_but_no_fuller_and_each_content_is_asked_for_once() {
    let mut h = Harness::with_known_holders(&[1]);
    h.ahead(&smalls(600));
    h.ahead(&smalls(600));
    let mut named = Vec::new();
    let mut counts = Vec::new();
    while !h.batches.is_empty() {
        let (_, objects) = h.answer_batch(|_| true);
        counts.push(objects.len());
        named.extend(objects);
    }
    assert_eq!(counts, [256, 256, 88]);
    assert_eq!(named, smalls(600));
    let large: Vec<Object> = (0..40).map(|number| small(number, BLOCK_BYTES)).collect();
    h.ahead(&large);
    assert!(h.batches.iter().all(|(_, _, objects)| objects.len() <= 16));
}

#[test]
fn holders_share_the_batches() {
    let mut h = Harness::with_known_holders(&[1, 2]);
    h.ahead(&smalls(1024));
    let asked: BTreeSet<PeerId> = h.batches.iter().map(|(_, peer, _)| *peer).collect();
    assert_eq!(asked.len(), 2, "{:?}", h.batches.len());
}

#[test]
fn a_reader_joins_a_batch_that_is_under_way() {
    let mut h = Harness::with_known_holders(&[1]);
    h.ahead(&smalls(10));
    let wish = h.demand(small(7, 4096), 0..1);
    assert_eq!(h.batches.len(), 1);
    assert!(h.asked_have.is_empty() && h.asked.is_empty());
    h.answer_batch(|_| true);
    assert_eq!(h.ended.get(&wish).map(Result::is_ok), Some(true));
}

#[test]
fn what_somebody_waits_for_goes_before_what_is_fetched_ahead() {
    let mut h = Harness::with_known_holders(&[1]);
    // More than the windows take, and a large prefetch beside it.
    let many: Vec<Object> = (0..4000).map(|number| small(number, BLOCK_BYTES)).collect();
    let large = object(1, 100_000);
    h.wish(large, 0..100_000, Priority::Prefetch, &BlockSet::default());
    h.has(1, large, Held::Whole);
    h.ahead(&many);
    h.batches.clear();
    h.asked.clear();
    let queued = small(3999, BLOCK_BYTES);
    let wishes = [h.demand(queued, 0..1), h.demand(small(5000, 1), 0..1)];
    let first: Vec<Object> = h.batches.iter().flat_map(|batch| batch.2.clone()).collect();
    assert_eq!(first, [queued, small(5000, 1)]);
    let ordinary = object(2, 3);
    h.demand(ordinary, 0..3);
    h.has(1, ordinary, Held::Whole);
    assert_eq!(
        h.asked
            .iter()
            .filter(|asked| asked.object == ordinary)
            .count(),
        1
    );
    while !h.batches.is_empty() {
        h.answer_batch(|_| true);
        if wishes.iter().all(|wish| h.ended.contains_key(wish)) {
            return;
        }
    }
    panic!("the wishes did not end");
}

#[test]
fn what_the_peer_lacks_goes_the_ordinary_way_for_a_reader() {
    let mut h = Harness::with_known_holders(&[1, 2]);
    let wanted = small(1, 4096);
    let wish = h.demand(wanted, 0..1);
    let (first, _) = h.answer_batch(|_| false);
    let second = if first == peer(1) { 2 } else { 1 };
    assert!(h.batches.is_empty());
    assert_eq!(
        h.asked_have,
        [(peer(second), wanted)],
        "the first one has said so"
    );
    h.has(second, wanted, Held::Whole);
    let asked = h.asked.remove(0);
    assert_eq!(asked.peer, peer(second));
    h.answer(&asked, Answer::Blocks);
    assert_eq!(h.ended.get(&wish).map(Result::is_ok), Some(true));
}

#[test]
fn what_nobody_waits_for_is_tried_at_three_peers_and_let_go() {
    let mut h = Harness::with_known_holders(&[1, 2, 3, 4]);
    h.ahead(&smalls(5));
    let mut asked = BTreeSet::new();
    while !h.batches.is_empty() {
        let (peer, _) = h.answer_batch(|object| *object == small(0, 4096));
        assert!(asked.insert(peer));
    }
    assert_eq!(asked.len(), 3);
    assert!(h.asked_have.is_empty());
    assert_eq!(h.scheduler.poll_timeout(), None);
}

#[test]
fn a_peer_that_had_nothing_is_asked_after_one_that_had_something() {
    let mut h = Harness::with_known_holders(&[1, 2]);
    for number in 0..20 {
        h.ahead(&[small(number, 4096)]);
        while !h.batches.is_empty() {
            let has = h.batches[0].1 == peer(2);
            h.pass(ms(10));
            let (peer_asked, _) = h.answer_batch(|_| has);
            assert!(number < 2 || peer_asked == peer(2), "{number}");
        }
    }
}

#[test]
fn a_late_batch_is_left_to_come_and_its_reader_asks_others() {
    let mut h = Harness::with_known_holders(&[1, 2]);
    h.ahead(&smalls(3));
    let wanted = small(1, 4096);
    let wish = h.demand(wanted, 0..1);
    let late = h.batches[0].1;
    h.pass(ms(400));
    assert!(h.asked_have.iter().all(|(_, object)| *object == wanted));
    let other = if late == peer(1) { 2 } else { 1 };
    h.has(other, wanted, Held::Whole);
    assert_eq!(h.asked.len(), 1);
    // Whichever comes first counts.
    h.answer_batch(|_| true);
    assert_eq!(h.ended.get(&wish).map(Result::is_ok), Some(true));
    assert_eq!(h.cancelled, [h.asked[0].id]);
}

#[test]
fn batches_that_time_out_count_as_failures_and_a_bad_one_blocks() {
    let mut h = Harness::with_known_holders(&[1]);
    for _ in 0..3 {
        let wish = h.demand(small(1, 4096), 0..1);
        assert_eq!(h.batches.len(), 1);
        h.pass(Duration::from_secs(2));
        assert_eq!(h.cancelled.len(), 1);
        h.scheduler.handle_give_up(h.now, wish);
        h.drain();
        h.pass(Duration::from_secs(2));
        h.batches.clear();
        h.forget();
    }
    assert_eq!(h.verdicts, [(peer(1), Verdict::Dropped)]);
    let mut h = Harness::with_known_holders(&[1, 2]);
    h.ahead(&smalls(10));
    let (liar, objects) = h.fail_batch(Answer::Bad("no".into()));
    assert_eq!(h.verdicts, [(liar, Verdict::Blocked)]);
    let (other, again) = h.answer_batch(|_| true);
    assert!(other != liar && again == objects);
}

#[test]
fn a_departed_peers_batches_go_to_others() {
    let mut h = Harness::with_known_holders(&[1, 2]);
    h.ahead(&smalls(10));
    let (id, first, objects) = h.batches.remove(0);
    h.scheduler.handle_peer_down(h.now, first);
    h.drain();
    assert_eq!(h.cancelled, [id]);
    let (second, again) = h.answer_batch(|_| true);
    assert!(second != first && again == objects);
    assert!(h.verdicts.is_empty());
}

#[test]
fn with_nobody_there_nothing_is_kept_and_a_reader_goes_the_ordinary_way() {
    let mut h = Harness::new();
    h.ahead(&smalls(100));
    assert_eq!(h.scheduler.poll_timeout(), None);
    h.demand(small(1, 4096), 0..1);
    assert_eq!(h.searched, [small(1, 4096)]);
}

#[test]
fn a_reader_that_goes_away_is_not_asked_for() {
    let mut h = Harness::with_known_holders(&[1]);
    // The window is full.
    let many: Vec<Object> = (0..4000).map(|number| small(number, BLOCK_BYTES)).collect();
    h.ahead(&many);
    let wish = h.demand(small(5000, 1), 0..1);
    h.scheduler.handle_give_up(h.now, wish);
    h.drain();
    assert!(!h.scheduler.is_active(&small(5000, 1)));
    // What waits is bounded.
    let more: Vec<Object> = (10_000..20_000)
        .map(|number| small(number, BLOCK_BYTES))
        .collect();
    h.ahead(&more);
    let mut count = 0;
    while !h.batches.is_empty() {
        count += h.answer_batch(|_| true).1.len();
    }
    assert!(count < 10_000, "{count}");
}
