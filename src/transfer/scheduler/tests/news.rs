//! What is told to others, and when.

use super::*;

fn told(h: &mut Harness) -> Vec<(Duration, u64)> {
    std::mem::take(&mut h.announced)
        .into_iter()
        .map(|(at, _, blocks)| (at, blocks.len()))
        .collect()
}

#[test]
fn what_a_source_sent_is_told_at_once_and_no_more_often_than_every_20_ms() {
    let mut h = Harness::with_known_holders(&[1]);
    let file = object(1, 200);
    h.demand(file, 0..200);
    h.has(1, file, Held::Whole);
    let begun = h.now;
    while !h.asked.is_empty() {
        let asked = h.asked.remove(0);
        h.answer(&asked, Answer::Blocks);
        h.pass(ms(5));
    }
    h.pass(ms(100));
    let told = told(&mut h);
    assert_eq!(told.first().map(|(at, _)| *at), Some(begun));
    assert!(told.windows(2).all(|two| two[1].0 >= two[0].0 + ms(20)));
    assert!(told.len() > 2);
    assert_eq!(told.iter().map(|(_, blocks)| blocks).sum::<u64>(), 200);
}

#[test]
fn what_another_member_sent_is_told_later_or_goes_along() {
    let mut h = Harness::with_known_holders(&[1, 2]);
    let file = object(1, 200);
    h.demand(file, 0..32);
    h.guess_wrong();
    h.scheduler.handle_interest(h.now, peer(2), &file);
    h.has(2, file, Held::Part(BlockSet::of(0..16)));
    let begun = h.now;
    let theirs = h.asked.remove(0);
    assert_eq!((theirs.peer, theirs.blocks.clone()), (peer(2), 0..16));
    h.answer(&theirs, Answer::Blocks);
    h.pass(ms(249));
    assert!(h.announced.is_empty());
    h.pass(ms(1));
    assert_eq!(told(&mut h), [(begun + ms(250), 16)]);

    h.demand(file, 100..116);
    h.scheduler
        .handle_announcement(h.now, peer(2), file, BlockSet::of(100..116));
    h.drain();
    while !h.asked.is_empty() {
        let theirs = h.asked.remove(0);
        assert_eq!(theirs.peer, peer(2));
        h.answer(&theirs, Answer::Blocks);
    }
    h.pass(ms(30));
    assert!(h.announced.is_empty());
    h.has(1, file, Held::Whole);
    let own = h.asked.remove(0);
    assert_eq!((own.peer, own.blocks.clone()), (peer(1), 16..32));
    h.answer(&own, Answer::Blocks);
    assert_eq!(told(&mut h), [(h.now, 32)], "both at once");
}

#[test]
fn what_somebody_sent_who_has_a_part_and_fetches_nothing_is_told_at_once() {
    let mut h = Harness::with_known_holders(&[1]);
    let file = object(1, 200);
    h.demand(file, 0..32);
    h.guess_wrong();
    h.has(1, file, Held::Part(BlockSet::of(0..16)));
    let begun = h.now;
    let asked = h.asked.remove(0);
    h.answer(&asked, Answer::Blocks);
    assert_eq!(told(&mut h), [(begun, 16)]);
}
