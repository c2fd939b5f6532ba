//! A limit on what comes in.

use super::*;

const RATE: u64 = 1 << 20;

/// One fast peer that has everything, and the limit.
fn limited() -> Harness {
    let mut h = Harness::with_known_holders(&[1]);
    h.scheduler.limit(RATE);
    h
}

fn bytes(asked: &[Asked]) -> u64 {
    let blocks = asked
        .iter()
        .map(|asked| asked.blocks.end - asked.blocks.start);
    blocks.sum::<u64>() * BLOCK_BYTES
}

#[test]
fn no_more_is_asked_for_than_the_limit_lets_in_and_nothing_is_late() {
    let mut h = limited();
    let large = object(1, 10_000);
    let wish = h.wish(large, 0..10_000, Priority::Prefetch, &BlockSet::default());
    h.has(1, large, Held::Whole);
    let mut asked = 0;
    for _ in 0..600 {
        h.pass(ms(100));
        asked += bytes(&h.asked);
        while let Some(one) = h.asked.pop() {
            h.answer(&one, Answer::Blocks);
        }
        asked += bytes(&h.asked);
        while let Some(one) = h.asked.pop() {
            h.answer(&one, Answer::Blocks);
        }
    }
    assert!(
        !h.ended.contains_key(&wish),
        "it takes longer, and does not fail"
    );
    let whole = 60 * RATE;
    assert!(asked <= whole + RATE, "{asked}");
    assert!(asked >= whole / 10 * 8, "{asked}");
    assert!(h.cancelled.is_empty() && h.verdicts.is_empty());
}

#[test]
fn what_somebody_waits_for_finds_room_at_once_beside_what_nobody_waits_for() {
    let mut h = limited();
    let large = object(1, 10_000);
    h.wish(large, 0..10_000, Priority::Prefetch, &BlockSet::default());
    h.has(1, large, Held::Whole);
    for turn in 0..20 {
        h.pass(ms(500));
        while let Some(one) = h.asked.pop() {
            h.answer(&one, Answer::Blocks);
        }
        let wanted = object(2, 1000);
        h.demand(wanted, turn * 40..turn * 40 + 1);
        if turn == 0 {
            h.has(1, wanted, Held::Whole);
        }
        assert!(h.asked.iter().any(|asked| asked.object == wanted), "{turn}");
        while let Some(one) = h.asked.pop() {
            h.answer(&one, Answer::Blocks);
        }
    }
}

#[test]
fn many_readers_that_wait_for_the_limit_do_not_fail() {
    let mut h = Harness::with_known_holders(&[1]);
    h.scheduler.limit(64 * 1024);
    let wishes: Vec<WishId> = (0..60)
        .map(|number| {
            let wish = h.demand(object(number, 20), 0..1);
            h.has(1, object(number, 20), Held::Whole);
            wish
        })
        .collect();
    for _ in 0..1000 {
        h.pass(ms(100));
        while let Some(one) = h.asked.pop() {
            h.answer(&one, Answer::Blocks);
        }
    }
    for wish in wishes {
        assert_eq!(h.ended.get(&wish).map(Result::is_ok), Some(true));
    }
}

#[test]
fn what_nobody_has_fails_in_time_with_a_limit_too() {
    let mut h = limited();
    let wish = h.demand(object(1, 20), 0..1);
    h.has(1, object(1, 20), Held::No);
    h.pass(TIMEOUT + ms(100));
    assert_eq!(h.ended.get(&wish).map(Result::is_ok), Some(false));
}

#[test]
fn what_is_answered_after_much_that_was_asked_later_is_lost_only_if_it_takes_long() {
    let mut h = Harness::with_known_holders(&[1]);
    let file = object(1, 20_000);
    h.wish(file, 0..20_000, Priority::Prefetch, &BlockSet::default());
    h.has(1, file, Held::Whole);
    // It waits for the disk, while all else is in memory there.
    let waits = h.asked.remove(0);
    let begun = h.now;
    let mut answered = 0;
    while h.cancelled.is_empty() && !h.asked.is_empty() {
        let asked = h.asked.remove(0);
        assert_ne!(asked.blocks, waits.blocks, "not asked for again");
        answered += asked.blocks.end - asked.blocks.start;
        h.pass(ms(3));
        h.answer(&asked, Answer::Blocks);
    }
    assert_eq!(h.cancelled, [waits.id]);
    assert!(
        h.now - begun > Duration::from_secs(1),
        "{:?}",
        h.now - begun
    );
    assert!(answered * BLOCK_BYTES > 50 << 20);
}

#[test]
fn requests_on_a_guess_stay_within_what_may_be_asked_for_at_a_time() {
    let mut h = Harness::new();
    for number in 0..200 {
        h.up(number);
    }
    for number in 0..20 {
        for size in 1000..1016 {
            h.demand(object(number, size), 0..16);
        }
        let asked = h.scheduler.in_flight_bytes();
        assert!(asked <= Scheduler::in_flight_bytes_max(), "{asked}");
    }
    let asked = h.scheduler.in_flight_bytes();
    let close = Scheduler::in_flight_bytes_max() / 10 * 9;
    assert!(asked >= close, "only {asked} bytes are asked for");
}
