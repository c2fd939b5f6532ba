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
