//! When the scrub reads, how much, and from where on. Pure: times come in as seconds since 1970.
//!
//! - It reads only once nobody has used the cache for [`QUIET_S`], at most [`BYTES_PER_S`], and [`DAY_BYTES`] a day.
//! - A round goes over all that is here, in the order of content ids; the next one begins [`ROUND_EVERY_S`] after it began, at
//!   the earliest.
//! - A clock that is set, forward or back, makes it neither hurry nor stop for longer than a round.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_bytes::ByteBuf;

use crate::{
    content::{ContentId, Object},
    control::types::ScrubReport,
    store::{Place, Step},
};

/// How long nobody has used the cache before it is read.
const QUIET_S: u64 = 30;
/// Bytes of a step, about: what a reader may have to wait for.
pub(super) const STEP_BYTES: u64 = 1024 * 1024;
/// A tenth of what an old disk can do, or less.
const BYTES_PER_S: u64 = 8 * 1024 * 1024;
/// Bytes of a day (UTC): a cache of 400 GiB is gone over in a week.
const DAY_BYTES: u64 = 64 * 1024 * 1024 * 1024;
/// Pause after a step, at least: one of many small contents has few bytes.
const PAUSE_MIN: Duration = Duration::from_millis(100);
/// A round begins so long after the one before began: a week.
const ROUND_EVERY_S: u64 = 7 * DAY_S;
const DAY_S: u64 = 24 * 3600;
/// How long it waits at a time: a machine may have slept meanwhile.
const WAIT_MAX_S: u64 = 3600;
/// Steps after which it should be kept how far it is, so that a restart repeats little.
const KEPT_EVERY: u32 = 64;
/// Of what is kept; another one is begun anew.
const VERSION: u32 = 1;

/// The present round, or the last one, and what was read today. As it is kept.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Round {
    version: u32,
    began_s: u64,
    /// When all was checked.
    ended_s: Option<u64>,
    /// Content id, size and block at which it goes on; from the beginning without.
    place: Option<(ByteBuf, u64, u64)>,
    bytes: u64,
    damaged: u64,
    unrepaired: u64,
    /// Days since 1970…
    day: u64,
    /// …and bytes of that one.
    day_bytes: u64,
}

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Plan {
    round: Round,
    unkept_steps: u32,
    /// When it had something repaired itself: that was no use by anybody else.
    repaired_s: u64,
}

/// What to do now.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Next {
    /// To check [`STEP_BYTES`] from there on, or from the beginning.
    Step(Option<Place>),
    /// To ask again then.
    Wait(Duration),
}

impl Plan {
    /// Goes on with what was kept. What can't be read is begun anew.
    pub(super) fn load(kept: Option<&[u8]>) -> Self {
        let round = kept.and_then(|kept| cbor4ii::serde::from_slice::<Round>(kept).ok());
        Self {
            round: round
                .filter(|round| round.version == VERSION)
                .unwrap_or_default(),
            ..Self::default()
        }
    }

    /// What is to be kept; `None` if the encoder has no memory.
    pub(super) fn encode(&self) -> Option<Vec<u8>> {
        cbor4ii::serde::to_vec(Vec::new(), &self.round).ok()
    }

    /// What to do, where the cache was used last at `used_s`.
    pub(super) fn next(&mut self, now_s: u64, used_s: u64) -> Next {
        let round = &mut self.round;
        // Of a later time only after the clock was set back: then it has begun now, as far as anybody can tell.
        round.began_s = round.began_s.min(now_s);
        if round.version != VERSION
            || (round.ended_s.is_some() && now_s - round.began_s >= ROUND_EVERY_S)
        {
            *round = Round {
                version: VERSION,
                began_s: now_s,
                day: round.day,
                day_bytes: round.day_bytes,
                ..Round::default()
            };
        }
        if round.ended_s.is_some() {
            return wait(ROUND_EVERY_S - (now_s - round.began_s));
        }
        let day = now_s / DAY_S;
        if round.day != day {
            (round.day, round.day_bytes) = (day, 0);
        }
        if round.day_bytes >= DAY_BYTES {
            return wait(DAY_S - now_s % DAY_S);
        }
        // A use in the future is one before the clock was set back.
        let quiet_s = now_s.checked_sub(used_s).unwrap_or(QUIET_S);
        if quiet_s < QUIET_S && used_s > self.repaired_s {
            return wait(QUIET_S - quiet_s);
        }
        Next::Step(round.place.as_ref().and_then(place_of))
    }

    /// Notes what a step did, and how many of the ranges that it found nobody gave; returns how long to pause.
    pub(super) fn stepped(&mut self, now_s: u64, step: &Step, unrepaired: u64) -> Duration {
        if !step.damage.is_empty() {
            self.repaired_s = now_s;
        }
        let round = &mut self.round;
        round.bytes += step.bytes;
        round.day_bytes += step.bytes;
        round.damaged += step.damage.len() as u64;
        round.unrepaired += unrepaired;
        round.place = step.next.map(|place| {
            let content = ByteBuf::from(place.object.content.0);
            (content, place.object.size, place.block)
        });
        if round.place.is_none() {
            round.ended_s = Some(now_s);
        }
        self.unkept_steps += 1;
        PAUSE_MIN.max(Duration::from_millis(step.bytes * 1000 / BYTES_PER_S))
    }

    /// Whether it should be kept now how far it is: true once.
    pub(super) fn is_to_keep(&mut self) -> bool {
        let is_due = self.unkept_steps >= KEPT_EVERY
            || (self.unkept_steps > 0 && self.round.ended_s.is_some());
        if is_due {
            self.unkept_steps = 0;
        }
        is_due
    }

    /// How far it is; nothing before the first round.
    pub(super) fn report(&self) -> Option<ScrubReport> {
        (self.round.version == VERSION).then_some(ScrubReport {
            began_s: self.round.began_s,
            ended_s: self.round.ended_s,
            bytes: self.round.bytes,
            damaged: self.round.damaged,
            unrepaired: self.round.unrepaired,
        })
    }
}

fn wait(seconds: u64) -> Next {
    Next::Wait(Duration::from_secs(seconds.clamp(1, WAIT_MAX_S)))
}

fn place_of((content, size, block): &(ByteBuf, u64, u64)) -> Option<Place> {
    let object = Object {
        content: ContentId(content.as_slice().try_into().ok()?),
        size: *size,
    };
    let block = *block;
    Some(Place { object, block })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::Damage;

    /// The first second of a day.
    const BEGUN: u64 = 20_000 * DAY_S;

    fn place(block: u64) -> Place {
        let content = ContentId([7; 32]);
        let object = Object {
            content,
            size: 1 << 30,
        };
        Place { object, block }
    }

    fn step(next: Option<Place>, bytes: u64) -> Step {
        let damage = Vec::new();
        Step {
            next,
            bytes,
            damage,
        }
    }

    fn seconds(seconds: u64) -> Next {
        Next::Wait(Duration::from_secs(seconds))
    }

    /// One that has begun, and one that is all done.
    fn begun() -> Plan {
        let mut plan = Plan::load(None);
        assert_eq!(plan.next(BEGUN, 0), Next::Step(None));
        plan
    }

    fn done() -> Plan {
        let mut plan = begun();
        plan.stepped(BEGUN, &step(None, 1), 0);
        plan
    }

    #[test]
    fn a_round_goes_over_everything_and_the_next_one_begins_a_week_after_it() {
        let mut plan = begun();
        let pause = plan.stepped(BEGUN, &step(Some(place(16)), 4 * STEP_BYTES), 0);
        assert_eq!(pause, Duration::from_millis(500));
        assert_eq!(plan.next(BEGUN + 1, 0), Next::Step(Some(place(16))));
        plan.stepped(BEGUN + 2 * DAY_S, &step(None, 0), 0);
        assert_eq!(plan.next(BEGUN + 2 * DAY_S, 0), seconds(WAIT_MAX_S));
        let last = BEGUN + 7 * DAY_S - 20;
        assert_eq!(plan.next(last, 0), seconds(20));
        assert_eq!(plan.next(last + 20, 0), Next::Step(None));
        let report = plan.report().unwrap();
        assert_eq!((report.bytes, report.began_s), (0, last + 20));
    }

    #[test]
    fn it_waits_until_nobody_has_read_or_written_for_a_while() {
        let mut plan = begun();
        assert_eq!(plan.next(BEGUN + 60, BEGUN + 60), seconds(30));
        assert_eq!(plan.next(BEGUN + 89, BEGUN + 60), seconds(1));
        assert_eq!(plan.next(BEGUN + 90, BEGUN + 60), Next::Step(None));
    }

    #[test]
    fn a_day_has_its_measure_whether_it_is_restarted_or_not() {
        let mut plan = begun();
        plan.stepped(BEGUN, &step(Some(place(16)), DAY_BYTES - 1), 0);
        assert_eq!(plan.next(BEGUN + 100, 0), Next::Step(Some(place(16))));
        plan.stepped(BEGUN + 100, &step(Some(place(32)), STEP_BYTES), 0);
        let evening = BEGUN + DAY_S - 100;
        for mut plan in [Plan::load(plan.encode().as_deref()), plan] {
            assert_eq!(plan.next(BEGUN + 101, 0), seconds(WAIT_MAX_S));
            assert_eq!(plan.next(evening, 0), seconds(100));
            assert_eq!(plan.next(evening + 100, 0), Next::Step(Some(place(32))));
        }
        // Nor does a new round begin the day anew.
        let mut plan = begun();
        plan.stepped(BEGUN, &step(None, DAY_BYTES), 0);
        plan.round.began_s -= ROUND_EVERY_S;
        assert_eq!(plan.next(BEGUN + 1, 0), seconds(WAIT_MAX_S));
    }

    #[test]
    fn it_goes_on_after_a_restart_where_it_was() {
        let mut plan = begun();
        let mut found = step(Some(place(99)), STEP_BYTES);
        let object = place(0).object;
        found.damage = [3..4, 5..6]
            .map(|blocks| Damage { object, blocks })
            .to_vec();
        plan.stepped(BEGUN + 5, &found, 1);
        let mut again = Plan::load(plan.encode().as_deref());
        assert_eq!(again.report(), plan.report());
        let report = again.report().unwrap();
        assert_eq!((report.damaged, report.unrepaired), (2, 1));
        assert_eq!(again.next(BEGUN + 9, 0), Next::Step(Some(place(99))));
        // What it had repaired was put into the cache, and is no reason to wait.
        assert_eq!(plan.next(BEGUN + 6, BEGUN + 5), Next::Step(Some(place(99))));
        assert_eq!(plan.next(BEGUN + 6, BEGUN + 6), seconds(QUIET_S));
    }

    #[test]
    fn what_was_kept_by_another_version_is_begun_anew() {
        let mut round = done().round;
        round.version += 1;
        let kept = cbor4ii::serde::to_vec(Vec::new(), &round).unwrap();
        for kept in [&kept[..], b"", b"nonsense"] {
            let mut plan = Plan::load(Some(kept));
            assert_eq!(plan.report(), None);
            assert_eq!(plan.next(BEGUN, 0), Next::Step(None));
        }
    }

    #[test]
    fn it_is_kept_now_and_then_and_when_a_round_has_ended() {
        let mut plan = begun();
        assert!(!plan.is_to_keep());
        let mut kept = 0;
        for block in 0..3 * u64::from(KEPT_EVERY) {
            plan.stepped(BEGUN, &step(Some(place(block)), STEP_BYTES), 0);
            kept += u32::from(plan.is_to_keep());
        }
        assert_eq!(kept, 3);
        plan.stepped(BEGUN, &step(None, 1), 0);
        assert!(plan.is_to_keep());
        assert!(!plan.is_to_keep());
    }

    #[test]
    fn a_clock_that_is_set_neither_hurries_nor_stops_it() {
        // Back: the round that has ended is taken to have begun then.
        let mut plan = done();
        let back = BEGUN - 900 * DAY_S;
        assert_eq!(plan.next(back, 0), seconds(WAIT_MAX_S));
        assert_eq!(plan.next(back + ROUND_EVERY_S, 0), Next::Step(None));
        // A use that is in the future now keeps nobody waiting.
        assert_eq!(plan.next(back + ROUND_EVERY_S, BEGUN), Next::Step(None));
        // Forward: one round, no more.
        let mut plan = done();
        assert_eq!(plan.next(BEGUN + 900 * DAY_S, 0), Next::Step(None));
        plan.stepped(BEGUN + 900 * DAY_S, &step(None, 1), 0);
        assert_eq!(plan.next(BEGUN + 900 * DAY_S, 0), seconds(WAIT_MAX_S));
    }
}
