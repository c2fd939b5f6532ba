//! Members that fetch the same object share the work.

use super::*;

const BLOCKS: u64 = 640;

/// A member that begins to fetch all of a file, of which peer 0 has everything, while the other members do so as well.
fn member(local: u8, members: &[u8]) -> (Harness, Object) {
    let mut h = Harness::with_known_holders(&[0]);
    h.scheduler.take_part(peer(local));
    let file = object(1, BLOCKS);
    for other in members.iter().filter(|other| **other != local) {
        h.scheduler
            .handle_peer_up(h.now, peer(*other), Some(ms(10)));
    }
    h.wish(file, 0..BLOCKS, Priority::Prefetch, &BlockSet::default());
    for other in members.iter().filter(|other| **other != local) {
        h.scheduler.handle_interest(h.now, peer(*other), &file);
        h.has(*other, file, Held::No);
    }
    (h, file)
}

/// What a member asks the source for until it has asked for its part.
fn part_of(local: u8, members: &[u8]) -> Vec<u64> {
    let (mut h, file) = member(local, members);
    h.has(0, file, Held::Whole);
    let mut part = Vec::new();
    while !h.asked.is_empty() {
        let asked = h.asked.remove(0);
        assert_eq!(asked.peer, peer(0));
        part.extend(asked.blocks.clone());
        h.answer(&asked, Answer::Blocks);
    }
    part
}

#[test]
fn each_block_is_one_members_part_and_all_parts_are_equal() {
    let members = [1, 2, 3, 4];
    let mut whose = BTreeMap::new();
    for local in members {
        let part = part_of(local, &members);
        assert_eq!(part.len() as u64, BLOCKS / 4, "member {local}");
        for block in part {
            // The last block proves the size: everybody asks for it first.
            assert!(whose.insert(block, local).is_none() || block == BLOCKS - 1);
        }
    }
    assert_eq!(whose.len() as u64, BLOCKS);
}

#[test]
fn what_another_member_has_comes_from_that_one() {
    let (mut h, file) = member(1, &[1, 2]);
    h.has(0, file, Held::Whole);
    let mine: Vec<u64> = blocks_of(&h.asked);
    let theirs = (0..BLOCKS - 1).find(|block| !mine.contains(block)).unwrap();
    h.asked.clear();
    let mut news = BlockSet::default();
    news.insert(theirs..theirs + 1);
    h.scheduler.handle_announcement(h.now, peer(2), file, news);
    h.drain();
    assert_eq!(h.asked.len(), 1);
    assert_eq!(
        (h.asked[0].peer, h.asked[0].blocks.start),
        (peer(2), theirs)
    );
}

#[test]
fn what_is_waited_for_comes_from_the_source_when_its_member_is_late() {
    let (mut h, file) = member(1, &[1, 2]);
    h.has(0, file, Held::Whole);
    while !h.asked.is_empty() {
        let asked = h.asked.remove(0);
        h.answer(&asked, Answer::Blocks);
    }
    let lacks =
        |h: &Harness, block: u64| !h.asked.iter().any(|asked| asked.blocks.contains(&block));
    let theirs = {
        let part = part_of(2, &[1, 2]);
        part.into_iter().find(|block| *block != BLOCKS - 1).unwrap()
    };
    h.demand(file, theirs..theirs + 1);
    assert!(lacks(&h, theirs), "it is not this member's part");
    h.pass(Duration::from_secs(3));
    assert!(!lacks(&h, theirs), "nobody waits for long");
}

#[test]
fn who_reads_here_and_there_waits_for_no_other_member() {
    let mut h = Harness::with_known_holders(&[0]);
    h.scheduler.take_part(peer(1));
    let file = object(1, BLOCKS);
    h.scheduler.handle_peer_up(h.now, peer(2), Some(ms(10)));
    h.demand(file, 0..1);
    h.scheduler.handle_interest(h.now, peer(2), &file);
    h.has(2, file, Held::No);
    h.has(0, file, Held::Whole);
    h.answer_all();
    for block in (7..BLOCKS).step_by(50) {
        h.asked.clear();
        h.demand(file, block..block + 1);
        let asked: Vec<_> = h.asked.iter().map(|asked| asked.peer).collect();
        assert_eq!(asked, [peer(0)], "at once");
        h.answer_all();
    }
}

#[test]
fn a_member_that_never_fetches_its_part_holds_up_nobody_for_long() {
    let (mut h, file) = member(1, &[1, 2]);
    h.has(0, file, Held::Whole);
    let begun = h.now;
    let mut waits = 0;
    let mut lacks: BTreeSet<u64> = (0..BLOCKS).collect();
    while !lacks.is_empty() {
        if h.asked.is_empty() {
            waits += 1;
            h.pass(ms(100));
            h.scheduler.handle_interest(h.now, peer(2), &file);
            h.drain();
            continue;
        }
        let asked = h.asked.remove(0);
        // A block in 50 ms: the whole takes half a minute.
        h.pass(ms(50) * (asked.blocks.end - asked.blocks.start) as u32);
        lacks.retain(|block| !asked.blocks.contains(block));
        h.answer(&asked, Answer::Blocks);
    }
    let took = h.now - begun;
    assert!(
        ms(100) * waits < took / 5,
        "{waits} waits of 0.1 s in {took:?}"
    );
}

#[test]
fn who_is_found_to_fetch_the_same_is_asked_once_so_that_it_hears_of_this_one() {
    let mut h = Harness::with_known_holders(&[1]);
    h.up(2);
    let file = object(1, BLOCKS);
    h.wish(file, 0..BLOCKS, Priority::Prefetch, &BlockSet::default());
    h.has(2, file, Held::No);
    h.asked_have.clear();
    for _ in 0..3 {
        h.scheduler.handle_interest(h.now, peer(2), &file);
        h.drain();
        h.has(2, file, Held::No);
        assert_eq!(h.asked_have, [(peer(2), file)]);
    }
}

/// The most that is queued at the source, which sends a block in 5 ms, once that is known.
fn blocks_queued_at_the_source(members: &[u8]) -> u64 {
    let (mut h, file) = member(1, members);
    h.has(0, file, Held::Whole);
    let (mut came, mut most) = (0, 0);
    while came < BLOCKS / 3 {
        let asked = h.asked.remove(0);
        let blocks = asked.blocks.end - asked.blocks.start;
        h.pass(ms(5) * blocks as u32);
        for other in members.iter().filter(|other| **other != 1) {
            h.scheduler.handle_interest(h.now, peer(*other), &file);
        }
        h.answer(&asked, Answer::Blocks);
        came += blocks;
        if came > BLOCKS / 6 {
            most = most.max(blocks_of(&h.asked).len() as u64);
        }
    }
    most
}

#[test]
fn what_members_share_is_asked_for_a_shorter_time_ahead() {
    let (alone, shared) = (
        blocks_queued_at_the_source(&[1]),
        blocks_queued_at_the_source(&[1, 2]),
    );
    assert!((40..=60).contains(&alone), "{alone} blocks of 5 ms");
    assert!((10..=25).contains(&shared), "{shared} blocks of 5 ms");
}
