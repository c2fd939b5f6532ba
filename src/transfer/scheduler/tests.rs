//! A test for each rule of the scheduler.

use super::*;
use crate::content::{BLOCK_BYTES, ContentId};
use libp2p::multihash::Multihash;

mod batches;
mod crowd;
mod limits;
mod links;
mod news;

const TIMEOUT: Duration = Duration::from_secs(20);

pub(super) fn peer(number: u8) -> PeerId {
    let hash = Multihash::wrap(0, &[number; 8]).expect("8 bytes fit");
    PeerId::from_multihash(hash).expect("identity hashes are peer ids")
}

pub(super) fn object(number: u8, blocks: u64) -> Object {
    Object {
        content: ContentId([number; 32]),
        size: blocks * BLOCK_BYTES,
    }
}

fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

/// A request as it went out.
#[derive(Clone, Debug, PartialEq)]
struct Asked {
    id: RequestId,
    peer: PeerId,
    object: Object,
    blocks: Range<u64>,
    hedge_of: Option<RequestId>,
}

/// A scheduler, a clock, and what came out of it, sorted by kind.
struct Harness {
    scheduler: Scheduler,
    now: Duration,
    next_wish: u64,
    asked: Vec<Asked>,
    batches: Vec<(RequestId, PeerId, Vec<Object>)>,
    asked_have: Vec<(PeerId, Object)>,
    asked_load: Vec<PeerId>,
    announced: Vec<(Duration, Object, BlockSet)>,
    searched: Vec<Object>,
    cancelled: Vec<RequestId>,
    verdicts: Vec<(PeerId, Verdict)>,
    ended: BTreeMap<WishId, Result<(), TransferError>>,
}

impl Harness {
    fn new() -> Self {
        Self {
            scheduler: Scheduler::new(TIMEOUT, 7),
            now: Duration::from_secs(1000),
            next_wish: 0,
            asked: Vec::new(),
            batches: Vec::new(),
            asked_have: Vec::new(),
            asked_load: Vec::new(),
            announced: Vec::new(),
            searched: Vec::new(),
            cancelled: Vec::new(),
            verdicts: Vec::new(),
            ended: BTreeMap::new(),
        }
    }

    /// Peers that are there, hold all of everything, and whose speed is known: 10 ms away, about 100 MiB/s.
    fn with_known_holders(peers: &[u8]) -> Self {
        let mut harness = Self::new();
        for number in peers {
            harness
                .scheduler
                .handle_peer_up(harness.now, peer(*number), Some(ms(10)));
        }
        // Each brings some blocks of an object that it alone has.
        for number in peers {
            let known = object(255 - number, 16);
            let wish = harness.demand(known, 0..16);
            harness.pass(ms(10));
            harness.guess_wrong();
            harness.has(*number, known, Held::Whole);
            while let Some(asked) = harness.asked.pop() {
                harness.pass(ms(12));
                harness.answer(&asked, Answer::Blocks);
            }
            assert_eq!(harness.ended.get(&wish).map(Result::is_ok), Some(true));
        }
        harness.pass(Duration::from_secs(61));
        harness.forget();
        harness
    }

    fn forget(&mut self) {
        self.asked.clear();
        self.asked_have.clear();
        self.asked_load.clear();
        self.announced.clear();
        self.searched.clear();
        self.cancelled.clear();
        self.ended.clear();
    }

    /// What is kept of a wish is what follows from the rest.
    fn check(&self) {
        for wish in self.scheduler.wishes.values() {
            let work = &self.scheduler.works[&wish.object];
            let unasked = unasked_of(&wish.missing, &work.in_flight);
            assert_eq!(wish.unasked, unasked);
        }
    }

    fn drain(&mut self) {
        while let Some(output) = self.scheduler.poll_output() {
            match output {
                Output::AskHave { peer, object } => self.asked_have.push((peer, object)),
                Output::AskLoad { peer } => self.asked_load.push(peer),
                Output::FindHolders { object } => self.searched.push(object),
                Output::Announce { object, blocks } => {
                    self.announced.push((self.now, object, blocks));
                }
                Output::Request {
                    id,
                    peer,
                    object,
                    blocks,
                    hedge_of,
                } => {
                    assert!(!blocks.is_empty() && blocks.end - blocks.start <= REQUEST_BLOCKS_MAX);
                    self.asked.push(Asked {
                        id,
                        peer,
                        object,
                        blocks,
                        hedge_of,
                    });
                }
                Output::Batch {
                    id, peer, objects, ..
                } => self.batches.push((id, peer, objects)),
                Output::Cancel { id } => self.cancelled.push(id),
                Output::Verdict { peer, verdict, .. } => self.verdicts.push((peer, verdict)),
                Output::Done { wish } => {
                    assert!(self.ended.insert(wish, Ok(())).is_none());
                }
                Output::Failed { wish, error } => {
                    assert!(self.ended.insert(wish, Err(error)).is_none());
                }
            }
        }
        self.check();
    }

    /// A wish for an object whose size is proven.
    fn wish(
        &mut self,
        object: Object,
        blocks: Range<u64>,
        priority: Priority,
        present: &BlockSet,
    ) -> WishId {
        self.wish_unproven(object, blocks, priority, present, true)
    }

    fn wish_unproven(
        &mut self,
        object: Object,
        blocks: Range<u64>,
        priority: Priority,
        present: &BlockSet,
        proven: bool,
    ) -> WishId {
        let id = WishId(self.next_wish);
        self.next_wish += 1;
        let wanted = Wanted {
            object,
            blocks,
            priority,
            to_read: priority == Priority::Demand && proven,
            present,
            size_proven: proven,
        };
        assert!(self.scheduler.handle_wish(self.now, id, wanted));
        self.drain();
        id
    }

    fn demand(&mut self, object: Object, blocks: Range<u64>) -> WishId {
        self.wish(object, blocks, Priority::Demand, &BlockSet::default())
    }

    /// A read of an object whose size is not proven.
    fn read(&mut self, object: Object, blocks: Range<u64>) -> WishId {
        let id = WishId(self.next_wish);
        self.next_wish += 1;
        let wanted = Wanted {
            object,
            blocks,
            priority: Priority::Demand,
            to_read: true,
            present: &BlockSet::default(),
            size_proven: false,
        };
        assert!(self.scheduler.handle_wish(self.now, id, wanted));
        self.drain();
        id
    }

    fn up(&mut self, number: u8) {
        self.scheduler.handle_peer_up(self.now, peer(number), None);
        self.drain();
    }

    fn has(&mut self, number: u8, object: Object, held: Held) {
        self.scheduler
            .handle_have(self.now, peer(number), object, Some(held));
        self.drain();
    }

    /// What was asked for on a guess isn't there; forgets that it was asked.
    fn guess_wrong(&mut self) {
        for asked in std::mem::take(&mut self.asked) {
            self.answer(&asked, Answer::DontHave(Held::No));
        }
        assert!(self.asked.is_empty(), "a wrong guess is the last");
    }

    fn answer(&mut self, asked: &Asked, answer: Answer) {
        self.scheduler.handle_answer(self.now, asked.id, answer);
        self.drain();
    }

    /// Lets time pass, waking the scheduler when it wants.
    fn pass(&mut self, time: Duration) {
        let end = self.now + time;
        let mut woken = 0;
        self.drain();
        while let Some(at) = self.scheduler.poll_timeout().filter(|at| *at <= end) {
            assert!(at > self.now, "the next wake-up is always ahead");
            self.now = at;
            self.scheduler.handle_timeout(at);
            self.drain();
            woken += 1;
            assert!(woken < 10_000, "wakes up without end");
        }
        self.now = end;
    }

    /// Answers everything that is asked until nothing more is.
    fn answer_all(&mut self) {
        while !self.asked.is_empty() {
            for asked in std::mem::take(&mut self.asked) {
                self.pass(ms(1));
                self.answer(&asked, Answer::Blocks);
            }
        }
    }

    fn failure(&self, wish: WishId) -> String {
        match self.ended.get(&wish) {
            Some(Err(error)) => error.to_string(),
            other => panic!("the wish was to fail, but {other:?}"),
        }
    }
}

fn blocks_of(asked: &[Asked]) -> Vec<u64> {
    let mut blocks: Vec<u64> = asked
        .iter()
        .flat_map(|asked| asked.blocks.clone())
        .collect();
    blocks.sort_unstable();
    blocks
}

#[test]
fn a_small_read_asks_for_exactly_its_blocks() {
    let mut h = Harness::with_known_holders(&[1]);
    let file = object(1, 1000);
    let wish = h.demand(file, 501..503);
    h.guess_wrong();
    assert_eq!(h.asked_have, [(peer(1), file)]);
    h.has(1, file, Held::Whole);
    assert_eq!(h.asked.len(), 1);
    assert_eq!(h.asked[0].blocks, 501..503);
    h.answer_all();
    assert!(matches!(h.ended[&wish], Ok(())));
}

#[test]
fn who_only_reads_does_not_wait_until_blocks_are_stored_and_nobody_asks_for_them_again() {
    let mut h = Harness::with_known_holders(&[1]);
    let file = object(1, 1000);
    let wish = h.demand(file, 500..501);
    let ahead = h.wish(file, 500..501, Priority::Prefetch, &BlockSet::default());
    let asked = h.asked.pop().unwrap();
    h.scheduler.handle_received(asked.id);
    h.scheduler.handle_readable(h.now, asked.id);
    h.drain();
    assert!(h.ended[&wish].is_ok());
    assert!(!h.ended.contains_key(&ahead), "it is not in the store yet");
    h.has(1, file, Held::Whole);
    let stored = h.demand(file, 500..501);
    assert_eq!(h.asked, []);
    h.answer(&asked, Answer::Blocks);
    assert!(h.ended[&ahead].is_ok() && h.ended[&stored].is_ok());
    assert_eq!(h.cancelled, []);
    // Of an answer that was cancelled meanwhile nothing is known any more.
    h.scheduler.handle_readable(h.now, asked.id);
    assert_eq!(h.asked, []);
}

#[test]
fn who_only_reads_does_not_wait_for_the_proof_of_the_size() {
    let mut h = Harness::with_known_holders(&[1]);
    let file = object(1, 1000);
    let first = h.read(file, 500..501);
    let asked = h.asked.pop().unwrap();
    assert_eq!((asked.blocks.clone(), h.asked.len()), (500..501, 0));
    h.answer(&asked, Answer::Blocks);
    assert!(h.ended[&first].is_ok());
    assert!(!h.scheduler.is_active(&file), "nobody waits any more");
    // The proof comes behind, once, from who says to have it.
    h.has(1, file, Held::Whole);
    let proof = h.asked.pop().unwrap();
    assert_eq!((proof.blocks.clone(), h.asked.len()), (999..1000, 0));
    h.read(file, 3..4);
    let asked = h.asked.pop().unwrap();
    h.answer(&asked, Answer::Blocks);
    assert!(h.asked.is_empty() && h.cancelled.is_empty());
    assert!(h.scheduler.is_busy(), "what comes for the proof is counted");
    h.answer(&proof, Answer::Blocks);
    assert!(h.scheduler.wishes.is_empty() && h.ended.len() == 2);
    assert!(!h.scheduler.is_busy());
}

#[test]
fn a_proof_that_does_not_come_is_given_up_and_keeps_nobody_waiting() {
    let mut h = Harness::with_known_holders(&[1]);
    let file = object(1, 1000);
    let first = h.read(file, 500..501);
    h.guess_wrong();
    h.has(1, file, Held::Part(BlockSet::of(0..900)));
    let asked = h.asked.pop().unwrap();
    h.answer(&asked, Answer::Blocks);
    assert!(h.ended[&first].is_ok());
    assert_eq!(h.scheduler.wishes.len(), 1);
    h.pass(TIMEOUT);
    assert!(h.scheduler.wishes.is_empty() && h.ended.len() == 1);
}

#[test]
fn an_answer_that_comes_together_with_the_loss_of_its_peer_is_to_a_request_that_is_not_open() {
    let mut h = Harness::with_known_holders(&[1]);
    let file = object(1, 1000);
    let wish = h.demand(file, 500..501);
    let asked = h.asked.pop().unwrap();
    assert!(h.scheduler.is_open(asked.id));
    h.scheduler.handle_peer_down(h.now, peer(1));
    // Before anybody has looked at what comes out.
    assert!(!h.scheduler.is_open(asked.id));
    h.scheduler.handle_arrived(h.now, file, 500..501);
    h.drain();
    assert!(h.ended[&wish].is_ok());
    assert_eq!(h.cancelled, [asked.id]);
}

#[test]
fn few_proofs_are_waited_for_at_a_time_nobody_is_looked_for_and_none_for_long() {
    let mut h = Harness::new();
    h.scheduler = Scheduler::new(Duration::from_secs(1000), 7);
    h.scheduler.handle_peer_up(h.now, peer(1), Some(ms(10)));
    for number in 0..PROOFS_MAX as u8 + 9 {
        let file = object(number, 1000);
        let wish = h.read(file, 0..1);
        let asked = h.asked.pop().unwrap();
        h.answer(&asked, Answer::Blocks);
        assert!(h.ended[&wish].is_ok());
        h.has(1, file, Held::Part(BlockSet::of(0..900)));
    }
    assert_eq!(h.scheduler.wishes.len(), PROOFS_MAX);
    for _ in 0..PROOF_WITHIN.as_secs() - 1 {
        h.pass(ms(1000));
    }
    assert_eq!(
        (h.searched.len(), h.scheduler.wishes.len()),
        (0, PROOFS_MAX)
    );
    h.pass(ms(2000));
    assert!(h.scheduler.wishes.is_empty());
}

#[test]
fn a_proof_is_had_from_who_holds_the_content_under_its_true_size() {
    let mut h = Harness::with_known_holders(&[1, 2]);
    let file = object(1, 1000);
    let wish = h.read(file, 0..1);
    let asked = h.asked.pop().unwrap();
    let (liar, honest) = match asked.peer == peer(1) {
        true => (1, 2),
        false => (2, 1),
    };
    h.has(honest, file, Held::No);
    h.answer(&asked, Answer::Blocks);
    assert!(h.ended[&wish].is_ok());
    h.has(liar, file, Held::Part(BlockSet::of(0..999)));
    h.pass(ms(400));
    let proof = h.asked.pop().unwrap();
    assert_eq!(
        (proof.peer, proof.blocks.clone()),
        (peer(honest), 999..1000)
    );
    let later = h.read(file, 5..6);
    h.answer(&proof, Answer::WrongSize { actual: 5 });
    assert!(h.ended[&later].is_err(), "whoever reads on is told");
}

#[test]
fn who_was_found_out_meanwhile_is_not_asked_what_it_has_and_who_answered_is() {
    for answer in [Answer::Bad("lies".into()), Answer::Blocks] {
        let mut h = Harness::new();
        h.up(1);
        let file = object(1, 1000);
        h.wish_unproven(file, 0..1, Priority::Demand, &BlockSet::default(), true);
        let asked = h.asked.pop().unwrap();
        assert_eq!(h.asked_have, []);
        h.answer(&asked, answer.clone());
        h.pass(ms(4));
        let is_asked = answer == Answer::Blocks;
        assert_eq!(!h.asked_have.is_empty(), is_asked);
    }
}

#[test]
fn who_is_asked_for_blocks_on_a_guess_is_asked_what_it_has_behind_that_or_a_moment_later() {
    for answers in [true, false] {
        let mut h = Harness::new();
        h.up(1);
        h.up(2);
        let file = object(1, 1000);
        h.read(file, 0..1);
        let asked = h.asked.pop().unwrap();
        let other = match asked.peer == peer(1) {
            true => peer(2),
            false => peer(1),
        };
        assert_eq!(h.asked_have, [(other, file)]);
        assert_eq!(h.asked_load, [other]);
        h.asked_have.clear();
        if answers {
            h.now += ms(1);
            h.answer(&asked, Answer::Blocks);
        } else {
            h.pass(ms(4));
        }
        assert_eq!(h.asked_have, [(asked.peer, file)]);
        assert_eq!(h.asked_load, [other, asked.peer]);
    }
}

#[test]
fn at_first_what_is_fetched_ahead_gives_way_to_what_somebody_waits_for_but_not_for_long() {
    for answers in [true, false] {
        let mut h = Harness::with_known_holders(&[1]);
        let file = object(1, 1000);
        h.wish(file, 1..5, Priority::Prefetch, &BlockSet::default());
        let wish = h.demand(file, 0..1);
        h.has(1, file, Held::Whole);
        assert_eq!(blocks_of(&h.asked), [0]);
        let asked = h.asked.remove(0);
        if answers {
            h.scheduler.handle_received(asked.id);
            h.scheduler.handle_readable(h.now, asked.id);
            h.drain();
            assert!(h.ended[&wish].is_ok());
        } else {
            h.pass(ms(4));
        }
        assert_eq!(blocks_of(&h.asked), [1, 2, 3, 4]);
        // Later nothing gives way any more.
        h.pass(ms(4));
        h.demand(file, 500..501);
        h.wish(file, 501..505, Priority::Prefetch, &BlockSet::default());
        assert_eq!(blocks_of(&h.asked), [1, 2, 3, 4, 500, 501, 502, 503, 504]);
    }
}

#[test]
fn no_block_is_asked_for_while_it_is_in_flight() {
    let mut h = Harness::with_known_holders(&[1, 2]);
    let file = object(1, 1000);
    let first = h.demand(file, 10..40);
    h.has(1, file, Held::Whole);
    h.has(2, file, Held::Whole);
    h.pass(ms(4));
    let second = h.demand(file, 0..30);
    let third = h.wish(file, 5..45, Priority::Prefetch, &BlockSet::default());
    assert_eq!(blocks_of(&h.asked), (0..45).collect::<Vec<u64>>());
    h.answer_all();
    assert_eq!(h.ended.len(), 3);
    assert!(
        [first, second, third]
            .iter()
            .all(|wish| h.ended[wish].is_ok())
    );
}

#[test]
fn what_is_here_is_not_asked_for() {
    let mut h = Harness::with_known_holders(&[1]);
    let file = object(1, 100);
    let mut present = BlockSet::of(0..20);
    present.insert(30..31);
    let wish = h.wish(file, 10..40, Priority::Demand, &present);
    h.has(1, file, Held::Whole);
    let mut expected: Vec<u64> = (20..30).collect();
    expected.extend(31..40);
    assert_eq!(blocks_of(&h.asked), expected);
    h.answer_all();
    assert!(h.ended[&wish].is_ok());

    let here = h.wish(file, 0..20, Priority::Demand, &present);
    assert!(h.ended[&here].is_ok(), "all of it is here");
}

#[test]
fn large_reads_are_striped_in_requests_of_a_mebibyte() {
    let mut h = Harness::with_known_holders(&[1, 2, 3]);
    let file = object(1, 1000);
    h.demand(file, 0..1);
    for number in [1, 2, 3] {
        h.has(number, file, Held::Whole);
    }
    h.asked.clear();
    h.demand(file, 320..416);
    assert!(
        h.asked
            .iter()
            .all(|asked| asked.blocks.end - asked.blocks.start == 16)
    );
    for number in [1, 2, 3] {
        assert!(h.asked.iter().any(|asked| asked.peer == peer(number)));
    }
}

#[test]
fn the_peer_with_the_least_expected_time_is_asked() {
    let mut h = Harness::with_known_holders(&[1, 2, 3]);
    let file = object(1, 1000);
    h.demand(file, 0..1);
    for number in [1, 2, 3] {
        h.has(number, file, Held::Whole);
    }
    h.answer_all();
    h.scheduler.handle_load(h.now, peer(1), 50);
    h.scheduler.handle_load(h.now, peer(3), 50);
    h.demand(file, 100..101);
    assert_eq!(h.asked[0].peer, peer(2), "the others are loaded");
    h.scheduler.handle_load(h.now, peer(2), 100);
    h.scheduler.handle_load(h.now, peer(1), 0);
    h.demand(file, 200..201);
    assert_eq!(h.asked[1].peer, peer(1));
}

#[test]
fn only_blocks_that_a_peer_has_are_asked_of_it() {
    let mut h = Harness::with_known_holders(&[1, 2]);
    let file = object(1, 100);
    h.demand(file, 0..32);
    h.guess_wrong();
    h.has(1, file, Held::Part(BlockSet::of(0..5)));
    let mut second = BlockSet::of(5..20);
    second.insert(25..99_999);
    h.has(2, file, Held::Part(second));
    for asked in &h.asked {
        if asked.peer == peer(1) {
            assert!(asked.blocks.end <= 5);
        } else {
            assert!(asked.blocks.start >= 5);
        }
    }
    let mut expected: Vec<u64> = (0..20).collect();
    expected.extend(25..32);
    assert_eq!(blocks_of(&h.asked), expected);
}

#[test]
fn windows_bound_what_is_in_flight_and_demand_still_gets_through() {
    let mut h = Harness::with_known_holders(&[1]);
    let file = object(1, 100_000);
    h.wish(file, 0..100_000, Priority::Prefetch, &BlockSet::default());
    h.has(1, file, Held::Whole);
    let prefetched = blocks_of(&h.asked).len() as u64 * BLOCK_BYTES;
    assert!(
        prefetched <= 32 * 1024 * 1024,
        "{prefetched} bytes in flight"
    );
    assert!(prefetched >= 1024 * 1024);
    h.asked.clear();
    h.demand(file, 50_000..50_002);
    assert_eq!(blocks_of(&h.asked), [50_000, 50_001]);
}

#[test]
fn requests_in_flight_are_bounded_over_all_peers() {
    let mut h = Harness::new();
    let file = object(1, 1_000_000);
    for number in 0..200 {
        h.up(number);
    }
    h.wish(file, 0..1_000_000, Priority::Prefetch, &BlockSet::default());
    for number in 0..200 {
        h.has(number, file, Held::Whole);
    }
    let bytes = blocks_of(&h.asked).len() as u64 * BLOCK_BYTES;
    assert_eq!(bytes, 64 * 1024 * 1024);
}

#[test]
fn demand_goes_before_prefetch_and_wishes_take_turns() {
    let mut h = Harness::with_known_holders(&[1]);
    let (ahead, first, second) = (object(1, 10_000), object(2, 10_000), object(3, 10_000));
    h.wish(ahead, 0..10_000, Priority::Prefetch, &BlockSet::default());
    h.demand(first, 0..10_000);
    h.demand(second, 0..10_000);
    for file in [first, second, ahead] {
        h.scheduler
            .handle_have(h.now, peer(1), file, Some(Held::Whole));
    }
    h.drain();
    // All windows are full of the first; from now on turns are taken.
    h.forget_asked_and_answer(40);
    let count = |object| {
        h.asked
            .iter()
            .filter(|asked| asked.object == object)
            .count()
    };
    assert_eq!(count(ahead), 0, "demand fills the window alone");
    assert!(count(first).abs_diff(count(second)) <= 1);
    assert!(count(first) >= 15);
}

impl Harness {
    /// Answers the oldest requests one by one, keeping in `asked` those that came out meanwhile.
    fn forget_asked_and_answer(&mut self, count: usize) {
        let mut open: VecDeque<Asked> = std::mem::take(&mut self.asked).into();
        let mut later = Vec::new();
        for _ in 0..count {
            let Some(oldest) = open.pop_front() else {
                break;
            };
            self.pass(ms(10));
            self.answer(&oldest, Answer::Blocks);
            later.extend(self.asked.iter().cloned());
            open.extend(std::mem::take(&mut self.asked));
        }
        self.asked = later;
    }
}

#[test]
fn demand_goes_in_order_and_prefetch_rarest_first_in_a_swarm() {
    let mut h = Harness::with_known_holders(&[1, 2]);
    let file = object(1, 640);
    h.wish(file, 0..640, Priority::Prefetch, &BlockSet::default());
    h.has(2, file, Held::Part(BlockSet::of(0..320)));
    h.forget();
    h.pass(ms(1));
    // Now the source appears: what only it has is rarer than what the other reader has too.
    h.scheduler
        .handle_announcement(h.now, peer(1), file, BlockSet::of(0..640));
    h.drain();
    let of_source: Vec<&Asked> = h.asked.iter().filter(|a| a.peer == peer(1)).collect();
    let starts: Vec<u64> = of_source.iter().map(|asked| asked.blocks.start).collect();
    let rare = &starts[..starts.len().min(20)];
    assert!(rare.iter().all(|start| *start >= 320), "{starts:?}");
    assert!(!starts.is_sorted(), "ties are random: {starts:?}");

    let mut h = Harness::with_known_holders(&[1]);
    h.demand(file, 0..640);
    h.has(1, file, Held::Whole);
    assert!(h.asked.iter().map(|asked| asked.blocks.start).is_sorted());
}

#[test]
fn a_late_request_is_hedged_once_and_the_loser_cancelled() {
    let mut h = Harness::with_known_holders(&[1, 2, 3]);
    let file = object(1, 100);
    let wish = h.demand(file, 0..2);
    for number in [1, 2, 3] {
        h.has(number, file, Held::Whole);
    }
    assert_eq!(h.asked.len(), 1);
    h.pass(ms(900));
    assert_eq!(h.asked.len(), 2, "hedged, and once only");
    let (first, hedge) = (h.asked[0].clone(), h.asked[1].clone());
    assert_eq!(hedge.hedge_of, Some(first.id));
    assert_eq!(hedge.blocks, first.blocks);
    assert_ne!(hedge.peer, first.peer);
    h.answer(&hedge, Answer::Blocks);
    assert!(h.ended[&wish].is_ok());
    assert_eq!(h.cancelled, [first.id]);
}

#[test]
fn a_third_is_asked_where_the_second_failed_too() {
    let mut h = Harness::with_known_holders(&[1, 2, 3]);
    let file = object(1, 100);
    let wish = h.demand(file, 0..2);
    for number in [1, 2, 3] {
        h.has(number, file, Held::Whole);
    }
    h.pass(ms(900));
    let (first, second) = (h.asked[0].clone(), h.asked[1].clone());
    h.answer(&second, Answer::Bad("a block of something else".into()));
    assert_eq!(h.asked.len(), 3, "at once");
    let third = h.asked[2].clone();
    assert_eq!(third.hedge_of, Some(first.id));
    assert!(![first.peer, second.peer].contains(&third.peer));
    h.answer(&third, Answer::Blocks);
    assert!(h.ended[&wish].is_ok());
    assert_eq!(h.cancelled, [first.id]);
}

#[test]
fn a_late_prefetch_is_not_hedged() {
    let mut h = Harness::with_known_holders(&[1, 2]);
    let file = object(1, 100);
    h.wish(file, 0..2, Priority::Prefetch, &BlockSet::default());
    h.has(1, file, Held::Whole);
    h.has(2, file, Held::Whole);
    h.pass(ms(900));
    assert_eq!(h.asked.len(), 1);
    h.demand(file, 0..1);
    assert_eq!(h.asked.len(), 2, "somebody waits for it now");
}

#[test]
fn three_failures_in_a_row_drop_a_peer_which_gets_another_chance_later() {
    let mut h = Harness::with_known_holders(&[1]);
    let file = object(1, 100);
    let wish = h.demand(file, 0..2);
    h.has(1, file, Held::Whole);
    for tries in 1..=3 {
        assert_eq!(h.asked.len(), tries, "tried again");
        assert!(h.verdicts.is_empty());
        let asked = h.asked[tries - 1].clone();
        h.answer(&asked, Answer::Failed("the connection was reset".into()));
        h.pass(ms(500));
    }
    assert_eq!(h.verdicts, [(peer(1), Verdict::Dropped)]);
    h.pass(TIMEOUT);
    assert_eq!(h.asked.len(), 3, "not asked any more");
    let failure = h.failure(wish);
    assert!(failure.contains("the connection was reset"), "{failure}");
    h.pass(Duration::from_secs(30));
    h.demand(file, 0..2);
    h.has(1, file, Held::Whole);
    assert_eq!(h.asked.len(), 4);
}

#[test]
fn time_outs_count_as_failures_and_another_peer_is_preferred() {
    let mut h = Harness::with_known_holders(&[1, 2]);
    let file = object(1, 100);
    h.wish(file, 0..1, Priority::Prefetch, &BlockSet::default());
    h.has(1, file, Held::Whole);
    let first = h.asked[0].clone();
    h.has(2, file, Held::Whole);
    h.pass(Duration::from_secs(4));
    assert_eq!(h.cancelled[0], first.id);
    assert_eq!(h.asked[1].peer, peer(2));
}

#[test]
fn a_bad_block_blocks_its_sender_for_good_and_comes_from_elsewhere() {
    let mut h = Harness::with_known_holders(&[1, 2]);
    let file = object(1, 100);
    let wish = h.demand(file, 0..4);
    h.has(1, file, Held::Whole);
    let bad = h.asked[0].clone();
    h.answer(&bad, Answer::Bad("doesn't hash".into()));
    assert_eq!(h.verdicts, [(peer(1), Verdict::Blocked)]);
    assert_eq!(h.scheduler.rejected(), 4);
    h.has(2, file, Held::Whole);
    assert_eq!(h.asked[1].peer, peer(2));
    let good = h.asked[1].clone();
    h.answer(&good, Answer::Blocks);
    assert!(h.ended[&wish].is_ok());

    // Not even after it came back.
    h.forget();
    h.scheduler.handle_peer_down(h.now, peer(1));
    h.scheduler.handle_peer_down(h.now, peer(2));
    h.up(1);
    let other = h.demand(file, 10..11);
    h.scheduler
        .handle_announcement(h.now, peer(1), file, BlockSet::of(0..100));
    h.pass(TIMEOUT);
    assert!(h.asked.is_empty() && h.asked_have.is_empty());
    assert!(h.failure(other).contains("no peer is connected"));
}

#[test]
fn a_bad_answer_after_its_cancellation_blocks_too() {
    let mut h = Harness::with_known_holders(&[1, 2]);
    let file = object(1, 100);
    h.scheduler
        .handle_bad_answer(h.now, peer(1), file, 0..4, "doesn't hash");
    h.drain();
    assert_eq!(h.verdicts, [(peer(1), Verdict::Blocked)]);
    assert_eq!(h.scheduler.rejected(), 4);
}

#[test]
fn a_peer_that_lacks_it_is_left_alone_until_it_announces_it_or_two_seconds_passed() {
    let mut h = Harness::with_known_holders(&[1]);
    let file = object(1, 100);
    h.demand(file, 0..4);
    h.guess_wrong();
    h.has(1, file, Held::Whole);
    let asked = h.asked[0].clone();
    h.answer(&asked, Answer::DontHave(Held::Whole));
    h.pass(ms(1900));
    assert_eq!(
        h.asked.len(),
        1,
        "what it claims to have are not these blocks"
    );
    h.scheduler
        .handle_announcement(h.now, peer(1), file, BlockSet::of(0..4));
    h.drain();
    assert_eq!(h.asked.len(), 2, "it announced them");
    let asked = h.asked[1].clone();
    h.answer(&asked, Answer::DontHave(Held::No));
    h.asked_have.clear();
    h.pass(ms(2100));
    assert_eq!(h.asked_have, [(peer(1), file)], "asked again what it has");
    h.has(1, file, Held::Whole);
    assert_eq!(h.asked.len(), 3);
}

#[test]
fn a_busy_peer_is_left_alone_for_growing_pauses_and_not_blamed() {
    let mut h = Harness::with_known_holders(&[1]);
    let file = object(1, 100);
    let wish = h.demand(file, 0..4);
    h.has(1, file, Held::Whole);
    let mut pauses = Vec::new();
    for tries in 0..6 {
        let asked = h.asked[tries].clone();
        h.answer(&asked, Answer::Busy);
        let start = h.now;
        while h.asked.len() == tries + 1 {
            h.pass(ms(10));
        }
        pauses.push(h.now - start);
    }
    assert!(pauses.is_sorted() && pauses[0] < ms(200) && pauses[5] >= ms(1900));
    assert!(h.verdicts.is_empty());
    let asked = h.asked[6].clone();
    h.answer(&asked, Answer::Blocks);
    assert!(h.ended[&wish].is_ok());
}

#[test]
fn a_wish_waits_for_a_holder_to_appear() {
    let mut h = Harness::new();
    let file = object(1, 10);
    let wish = h.demand(file, 0..2);
    assert_eq!(
        h.searched,
        [file],
        "nobody is connected: the directory is asked at once"
    );
    h.pass(Duration::from_secs(15));
    assert!(h.ended.is_empty());
    h.up(1);
    assert_eq!(h.asked_have, [(peer(1), file)]);
    h.has(1, file, Held::Whole);
    h.answer_all();
    assert!(h.ended[&wish].is_ok());
}

#[test]
fn a_wish_fails_after_the_time_out_without_progress_and_says_who_was_asked() {
    let mut h = Harness::new();
    let file = object(1, 10);
    h.up(1);
    let start = h.now;
    let wish = h.demand(file, 0..2);
    h.has(1, file, Held::No);
    h.scheduler.handle_holders(h.now, file, &[]);
    h.pass(TIMEOUT - ms(1));
    assert!(h.ended.is_empty());
    h.pass(ms(1));
    assert_eq!(h.now, start + TIMEOUT);
    let failure = h.failure(wish);
    assert!(failure.contains("no progress for 20 s"), "{failure}");
    assert!(failure.contains(&peer(1).to_string()), "{failure}");
    assert!(failure.contains("trackers know no holder"), "{failure}");
}

#[test]
fn progress_counts_for_the_wish_whose_block_came_only() {
    let mut h = Harness::with_known_holders(&[1]);
    let file = object(1, 100);
    let stuck = h.demand(file, 90..92);
    let moving = h.demand(file, 0..3);
    for block in 0..3 {
        h.pass(Duration::from_secs(9));
        h.scheduler.handle_arrived(h.now, file, block..block + 1);
        h.drain();
    }
    assert!(h.failure(stuck).contains("no progress"));
    assert!(
        h.ended[&moving].is_ok(),
        "after 27 s, but never 20 s without a block"
    );
}

#[test]
fn holders_are_asked_again_while_a_wish_is_unfinished() {
    let mut h = Harness::with_known_holders(&[1, 2]);
    let file = object(1, 100_000);
    h.wish(file, 0..100_000, Priority::Prefetch, &BlockSet::default());
    h.has(1, file, Held::No);
    h.has(2, file, Held::No);
    let wish_made = h.now;
    let mut asked_have_at = Vec::new();
    let mut searched_at = Vec::new();
    h.forget();
    while h.now < wish_made + Duration::from_secs(18) {
        h.pass(ms(100));
        h.scheduler.handle_arrived(h.now, file, 0..1);
        let answered: Vec<(PeerId, Object)> = std::mem::take(&mut h.asked_have);
        for (peer, object) in answered {
            asked_have_at.push((peer, (h.now - wish_made).as_secs()));
            h.scheduler.handle_have(h.now, peer, object, Some(Held::No));
        }
        if !h.searched.is_empty() {
            h.searched.clear();
            searched_at.push((h.now - wish_made).as_secs());
            h.scheduler.handle_holders(h.now, file, &[]);
        }
        h.drain();
    }
    for number in [1, 2] {
        let times: Vec<u64> = asked_have_at
            .iter()
            .filter(|(id, _)| *id == peer(number))
            .map(|(_, at)| *at)
            .collect();
        assert_eq!(times.len(), 3, "{times:?}");
    }
    assert_eq!(searched_at.len(), 3, "{searched_at:?}");
}

#[test]
fn the_directory_is_asked_when_no_peer_tells_in_time_that_it_has_it() {
    let mut h = Harness::with_known_holders(&[1, 2]);
    let file = object(1, 10);
    h.demand(file, 0..1);
    h.has(1, file, Held::No);
    h.pass(ms(290));
    assert!(h.searched.is_empty(), "one hasn't answered yet");
    h.pass(ms(20));
    assert_eq!(h.searched, [file]);

    let other = object(2, 10);
    h.demand(other, 0..1);
    h.has(1, other, Held::No);
    h.has(2, other, Held::No);
    assert_eq!(h.searched, [file, other], "all have answered: at once");

    let third = object(3, 10);
    h.demand(third, 0..1);
    h.has(1, third, Held::Whole);
    h.pass(ms(900));
    assert!(!h.searched.contains(&third), "somebody has it");
}

#[test]
fn an_only_holder_that_is_lost_is_looked_for_at_once_and_often() {
    let mut h = Harness::with_known_holders(&[1]);
    let file = object(1, 10);
    h.demand(file, 0..1);
    h.has(1, file, Held::Whole);
    h.pass(Duration::from_secs(6));
    h.searched.clear();
    h.scheduler.handle_peer_down(h.now, peer(1));
    h.drain();
    assert_eq!(h.searched.len(), 1);
    h.pass(Duration::from_secs(5));
    assert_eq!(h.searched.len(), 3);
}

#[test]
fn what_is_known_of_holders_serves_the_next_read() {
    let mut h = Harness::with_known_holders(&[1]);
    let file = object(1, 100);
    h.demand(file, 0..1);
    h.has(1, file, Held::Whole);
    h.answer_all();
    h.forget();
    h.pass(ms(100));
    h.demand(file, 1..2);
    assert_eq!(h.asked.len(), 1);
    assert!(h.asked_have.is_empty());
}

#[test]
fn loads_are_asked_along_with_holdings_but_not_for_each_object() {
    let mut h = Harness::with_known_holders(&[1]);
    for number in 1..10 {
        h.demand(object(number, 10), 0..1);
    }
    h.pass(ms(4));
    assert_eq!(h.asked_have.len(), 9);
    assert_eq!(h.asked_load, [peer(1)]);
}

#[test]
fn the_last_block_of_a_cold_object_comes_first_and_nothing_is_done_before_it() {
    let mut h = Harness::with_known_holders(&[1]);
    let file = object(1, 100);
    let wish = h.wish_unproven(file, 0..2, Priority::Demand, &BlockSet::default(), false);
    let other = h.wish_unproven(file, 2..3, Priority::Demand, &BlockSet::default(), false);
    h.has(1, file, Held::Whole);
    assert_eq!(h.asked[0].blocks, 99..100);
    assert_eq!(blocks_of(&h.asked), [0, 1, 2, 99]);
    let asked = std::mem::take(&mut h.asked);
    for asked in &asked[1..] {
        h.answer(asked, Answer::Blocks);
    }
    assert!(h.ended.is_empty());
    h.answer(&asked[0], Answer::Blocks);
    assert!(h.ended[&wish].is_ok() && h.ended[&other].is_ok());
}

#[test]
fn a_proven_wrong_size_fails_the_wishes_and_blames_nobody() {
    let mut h = Harness::with_known_holders(&[1]);
    let file = object(1, 100);
    let wish = h.wish_unproven(file, 0..2, Priority::Demand, &BlockSet::default(), false);
    let ahead = h.wish_unproven(file, 2..9, Priority::Prefetch, &BlockSet::default(), false);
    h.has(1, file, Held::Whole);
    let asked = h.asked[0].clone();
    h.answer(&asked, Answer::WrongSize { actual: 17 });
    for wish in [wish, ahead] {
        assert!(matches!(
            h.ended[&wish],
            Err(TransferError::WrongSize { claimed, actual: 17 }) if claimed == file.size
        ));
    }
    assert!(h.verdicts.is_empty());
    assert_eq!(h.scheduler.rejected(), 0);
    assert_eq!(
        h.cancelled.len() + 1,
        h.asked.len(),
        "the rest is cancelled"
    );
}

#[test]
fn peers_that_say_to_have_nothing_are_asked_once_for_a_proof_of_the_size() {
    let mut h = Harness::with_known_holders(&[1, 2]);
    let file = object(1, 100);
    let wish = h.wish_unproven(file, 0..2, Priority::Demand, &BlockSet::default(), false);
    let guesses: Vec<_> = h
        .asked
        .iter()
        .map(|asked| (asked.peer, asked.blocks.clone()))
        .collect();
    assert_eq!(guesses, [(peer(1), 99..100), (peer(1), 0..2)]);
    h.guess_wrong();
    h.has(1, file, Held::No);
    assert!(h.asked.is_empty(), "the other one may have it");
    h.has(2, file, Held::No);
    assert_eq!(
        (h.asked[0].peer, h.asked[0].blocks.clone()),
        (peer(2), 99..100)
    );
    let asked = h.asked[0].clone();
    h.answer(&asked, Answer::WrongSize { actual: 17 });
    assert!(matches!(
        h.ended[&wish],
        Err(TransferError::WrongSize { actual: 17, .. })
    ));

    let unknown = object(2, 100);
    h.forget();
    h.wish_unproven(unknown, 0..2, Priority::Demand, &BlockSet::default(), false);
    for _ in 0..15 {
        for (peer, object) in std::mem::take(&mut h.asked_have) {
            h.scheduler.handle_have(h.now, peer, object, Some(Held::No));
        }
        h.drain();
        for asked in h.asked.clone() {
            h.answer(&asked, Answer::DontHave(Held::No));
        }
        h.pass(Duration::from_secs(1));
    }
    let proofs = h.asked.iter().filter(|asked| asked.blocks == (99..100));
    assert_eq!(proofs.count(), 2, "once each");
}

#[test]
fn the_first_blocks_are_asked_of_the_nearest_peer_before_anybody_has_said_what_it_has() {
    let mut h = Harness::new();
    for (number, round_trip) in [(1, 50), (2, 10), (3, 100)] {
        let at = Some(ms(round_trip));
        h.scheduler.handle_peer_up(h.now, peer(number), at);
    }
    let file = object(1, 100);
    let wish = h.wish_unproven(file, 0..2, Priority::Demand, &BlockSet::default(), false);
    assert_eq!(h.asked_have.len(), 2, "the others are asked what they have");
    let guesses: Vec<_> = h
        .asked
        .iter()
        .map(|asked| (asked.peer, asked.blocks.clone()))
        .collect();
    assert_eq!(guesses, [(peer(2), 99..100), (peer(2), 0..2)]);
    h.demand(file, 2..4);
    assert_eq!(h.asked.len(), 2, "no more than that");
    let asked = h.asked.clone();
    h.answer(&asked[0], Answer::Blocks);
    h.answer(&asked[1], Answer::Blocks);
    assert!(matches!(h.ended[&wish], Ok(())));

    let ahead = object(2, 100);
    h.forget();
    h.wish(ahead, 0..2, Priority::Prefetch, &BlockSet::default());
    assert!(h.asked.is_empty(), "nobody waits for it");
}

#[test]
fn after_a_wrong_guess_the_blocks_come_from_whoever_says_to_have_them() {
    let mut h = Harness::with_known_holders(&[1, 2]);
    let file = object(1, 100);
    let wish = h.demand(file, 0..2);
    let guess = h.asked[0].clone();
    h.answer(&guess, Answer::DontHave(Held::Part(BlockSet::of(50..60))));
    assert_eq!(h.asked.len(), 1, "nobody else has said anything");
    h.has(2, file, Held::Whole);
    assert_eq!(
        (h.asked[1].peer, h.asked[1].blocks.clone()),
        (peer(2), 0..2)
    );
    let asked = h.asked[1].clone();
    h.answer(&asked, Answer::Blocks);
    assert!(matches!(h.ended[&wish], Ok(())));
    // Who was asked by mistake is asked for what it has.
    h.demand(file, 52..54);
    assert!(h.asked.len() > 2);
}

#[test]
fn a_guess_that_nobody_answers_holds_up_neither_the_directory_nor_who_has_the_blocks() {
    let mut h = Harness::with_known_holders(&[1, 2]);
    let file = object(1, 100);
    let wish = h.demand(file, 0..2);
    let guess = h.asked[0].clone();
    h.pass(ms(310));
    assert_eq!(h.searched, [file]);
    let other = if guess.peer == peer(1) { 2 } else { 1 };
    h.has(other, file, Held::Whole);
    h.pass(ms(200));
    let hedge = h.asked[1].clone();
    assert_eq!((hedge.peer, hedge.hedge_of), (peer(other), Some(guess.id)));
    h.answer(&hedge, Answer::Blocks);
    assert!(matches!(h.ended[&wish], Ok(())));
}

#[test]
fn a_wish_given_up_cancels_what_nobody_else_wants() {
    let mut h = Harness::with_known_holders(&[1]);
    let file = object(1, 100);
    let first = h.demand(file, 0..16);
    let second = h.demand(file, 16..20);
    let third = h.demand(file, 0..1);
    h.has(1, file, Held::Whole);
    let kept: Vec<RequestId> = h.asked.iter().map(|asked| asked.id).collect();
    h.scheduler.handle_give_up(h.now, second);
    h.drain();
    assert_eq!(h.cancelled.len(), 1);
    assert!(kept.contains(&h.cancelled[0]));
    h.scheduler.handle_give_up(h.now, first);
    h.drain();
    assert_eq!(h.cancelled.len(), 1, "a part of it is wanted");
    h.scheduler.handle_give_up(h.now, third);
    h.drain();
    assert_eq!(h.cancelled.len(), kept.len());
    assert!(h.ended.is_empty());
}

#[test]
fn a_departed_peers_requests_go_to_others_and_count_against_nobody() {
    let mut h = Harness::with_known_holders(&[1, 2]);
    let file = object(1, 100);
    let wish = h.demand(file, 0..4);
    h.has(1, file, Held::Whole);
    h.has(2, file, Held::Whole);
    let first = h.asked[0].clone();
    h.scheduler.handle_peer_down(h.now, first.peer);
    h.drain();
    assert_eq!(h.cancelled, [first.id]);
    assert_ne!(h.asked[1].peer, first.peer);
    h.asked.remove(0);
    h.answer_all();
    assert!(h.ended[&wish].is_ok());
    assert!(h.verdicts.is_empty());
}

#[test]
fn after_missed_events_the_list_of_peers_counts() {
    let mut h = Harness::with_known_holders(&[1, 2]);
    let file = object(1, 100);
    h.demand(file, 0..1);
    h.has(1, file, Held::Whole);
    h.asked_have.clear();
    h.scheduler
        .handle_peers(h.now, &[(peer(2), None), (peer(3), Some(ms(3)))]);
    h.drain();
    assert_eq!(h.cancelled, [h.asked[0].id]);
    assert_eq!(h.asked_have, [(peer(3), file)]);
}

#[test]
fn a_failing_store_fails_the_wishes_and_blames_nobody() {
    let mut h = Harness::with_known_holders(&[1]);
    let file = object(1, 100);
    let wish = h.demand(file, 0..1);
    let other = h.demand(file, 50..51);
    h.has(1, file, Held::Whole);
    let asked = h.asked[0].clone();
    h.answer(&asked, Answer::NotStored("the disk is full".into()));
    assert_eq!(h.failure(wish), "the disk is full");
    assert!(!h.ended.contains_key(&other));
    assert!(h.verdicts.is_empty());
}

#[test]
fn prefetches_are_bounded_demand_is_not() {
    let mut h = Harness::new();
    let mut wish = |number, priority| {
        let wanted = Wanted {
            object: object(1, 10_000),
            blocks: number..number + 1,
            priority,
            to_read: true,
            present: &BlockSet::default(),
            size_proven: true,
        };
        h.scheduler.handle_wish(h.now, WishId(number), wanted)
    };
    let many = PREFETCHES_MAX as u64;
    assert!((0..many).all(|number| wish(number, Priority::Prefetch)));
    assert!(!wish(many, Priority::Prefetch));
    assert!(wish(many + 1, Priority::Demand));
}

#[test]
fn an_answer_that_is_being_verified_is_not_late() {
    let mut h = Harness::with_known_holders(&[1, 2]);
    let file = object(1, 100);
    let wish = h.demand(file, 0..1);
    h.has(1, file, Held::Whole);
    h.has(2, file, Held::Whole);
    let asked = h.asked[0].clone();
    h.scheduler.handle_received(asked.id);
    h.pass(Duration::from_secs(15));
    assert_eq!(h.asked.len(), 1, "no hedge, no second try");
    assert!(h.cancelled.is_empty() && h.verdicts.is_empty());
    h.answer(&asked, Answer::Blocks);
    assert!(h.ended[&wish].is_ok());
}

#[test]
fn objects_that_nobody_wants_are_forgotten() {
    let mut h = Harness::with_known_holders(&[1]);
    for number in 0..2 * LINGERING_MAX as u64 {
        let mut file = object(1, 1);
        file.content.0[..8].copy_from_slice(&number.to_le_bytes());
        h.demand(file, 0..1);
        h.scheduler.handle_arrived(h.now, file, 0..1);
        h.drain();
    }
    assert!(h.scheduler.works.len() <= LINGERING_MAX + 1);
    h.pass(LINGER);
    h.demand(object(1, 1), 0..1);
    assert_eq!(h.scheduler.works.len(), 1);
}

#[test]
fn nothing_wakes_it_up_while_nothing_is_wanted() {
    let mut h = Harness::with_known_holders(&[1]);
    let file = object(1, 100);
    h.demand(file, 0..1);
    h.has(1, file, Held::Whole);
    assert!(h.scheduler.poll_timeout().is_some());
    h.answer_all();
    assert_eq!(h.scheduler.poll_timeout(), None);
}

#[test]
fn claims_of_peers_are_cut_to_the_object_and_bounded() {
    let file = object(1, 100_000);
    let mut scattered = BlockSet::default();
    for block in 0..50_000 {
        scattered.insert(block * 2..block * 2 + 1);
    }
    let Held::Part(blocks) = bounded(Held::Part(scattered), file) else {
        panic!("a part stays a part");
    };
    assert_eq!(blocks.ranges().len(), HELD_RANGES_MAX);
    assert_eq!(
        bounded(Held::Part(BlockSet::of(100_000..200_000)), file),
        Held::No
    );
}

#[test]
fn a_peer_that_trickles_for_ever_does_not_keep_a_read_for_ever() {
    let mut h = Harness::with_known_holders(&[1]);
    let file = object(1, 100);
    let begun = h.now;
    let wish = h.demand(file, 0..2);
    h.has(1, file, Held::Whole);
    let mut received = 0;
    while !h.ended.contains_key(&wish) {
        assert!(h.now - begun < Duration::from_secs(3600));
        // What it sends never comes to an answer; the network gives each up in the end.
        for asked in std::mem::take(&mut h.asked) {
            for _ in 0..128 {
                received += 5000;
                h.pass(Duration::from_secs(2));
                h.scheduler.handle_progress(h.now, peer(1), received);
                h.drain();
            }
            h.answer(&asked, Answer::TimedOut);
        }
        h.pass(Duration::from_secs(1));
    }
    assert!(matches!(h.ended[&wish], Err(TransferError::Stalled { .. })));
}
