//! What becomes of transfers over shaped links, in virtual time: exact figures, the same on every machine.

use std::time::Duration;

use crate::{
    content::BLOCK_BYTES,
    transfer::scheduler::swarm::{Member, Rate, Swarm, bound},
};

/// Blocks in a mebibyte.
const MIB: u64 = 16;
const LONGEST: Duration = Duration::from_secs(600);

fn falling(from: u64, to: u64) -> Rate {
    Rate {
        then: Some((Duration::from_millis(500), to * 125_000)),
        ..Rate::megabits(from)
    }
}

fn one_reader(rate: Rate) -> [Member; 2] {
    let first = Rate { then: None, ..rate };
    [Member::source(rate), Member::reader(first)]
}

#[test]
fn a_read_from_an_only_source_survives_however_slow_its_link_becomes() {
    for (from, to, mib) in [
        (1000, 20, 100),
        (1000, 10, 80),
        (1000, 2, 62),
        (8000, 10, 500),
        (100, 1, 10),
    ] {
        let members = one_reader(falling(from, to));
        let outcome = Swarm::new(1, mib * MIB, &members).run(LONGEST);
        assert!(
            outcome.failed.is_empty(),
            "{from} to {to}: {:?}",
            outcome.failed
        );
        assert_eq!(outcome.dropped, 0, "{from} to {to}");
        // Next to nothing is asked for twice.
        assert!(outcome.received < 1.02, "{from} to {to}: {outcome:?}");
    }
}

#[test]
fn a_lone_reader_fills_its_link() {
    for megabits in [10, 100, 1000] {
        let (members, blocks) = (one_reader(Rate::megabits(megabits)), 2 * megabits);
        let outcome = Swarm::new(1, blocks, &members).run(LONGEST);
        let bound = bound(&members, blocks * BLOCK_BYTES);
        assert!(outcome.took() < bound * 11 / 10, "{:?}", outcome.took());
        assert_eq!(outcome.received, 1.0);
    }
}

fn swarm(readers: usize, megabits: u64) -> Vec<Member> {
    let rate = Rate::megabits(megabits);
    let mut members = vec![Member::source(rate)];
    members.resize(1 + readers, Member::reader(rate));
    members
}

#[test]
fn readers_who_start_together_share_one_copy_of_the_source() {
    for (readers, megabits, mib) in [(2, 100, 32), (4, 200, 32), (8, 100, 32)] {
        let members = swarm(readers, megabits);
        let outcome = Swarm::new(1, mib * MIB, &members).run(LONGEST);
        let bound = bound(&members, mib * MIB * BLOCK_BYTES);
        assert!(outcome.failed.is_empty(), "{outcome:?}");
        // What all of them ask for before they know of each other, and little else, leaves the source more than once.
        assert!(outcome.source_copies < 1.3, "{readers}: {outcome:?}");
        assert!(outcome.received < 1.01, "{readers}: {outcome:?}");
        assert!(outcome.took() < bound * 8 / 5, "{readers}: {outcome:?}");
        assert_eq!(outcome.dropped, 0);
    }
}

#[test]
fn a_swarm_bears_members_that_are_slow_lie_or_go_away() {
    let mut members = swarm(8, 100);
    members[2].up = Rate::megabits(2);
    members[2].down = Rate::megabits(10);
    members[3].reads_at = None;
    members[3].lies = true;
    members[4].gone = Some(Duration::from_millis(700)..LONGEST);
    members[4].reads_at = None;
    members[5].up = falling(100, 1);
    members[6].reads_at = Some(Duration::from_secs(1));
    let outcome = Swarm::new(2, 16 * MIB, &members).run(LONGEST);
    assert!(outcome.failed.is_empty(), "{outcome:?}");
    assert_eq!(outcome.done_at.len(), 6);
    // The slow one takes 13 s, and one asks for everything through an uplink that others use up; nobody else is held up.
    let (others, slow) = outcome.done_at.split_at(4);
    assert!(
        others.iter().all(|at| *at < Duration::from_secs(5)),
        "{outcome:?}"
    );
    assert!(
        slow.iter().all(|at| *at < Duration::from_secs(25)),
        "{outcome:?}"
    );
    assert_eq!(outcome.dropped, 0, "{outcome:?}");
}

#[test]
fn a_seed_replays_a_swarm_exactly() {
    let run = |seed| Swarm::new(seed, 2 * MIB, &swarm(4, 100)).run(LONGEST);
    assert_eq!(run(3), run(3));
}
