//! When the committer may commit, and when it tries again. Pure: the caller brings the time.

use std::time::{Duration, Instant};

/// The least time between two commits.
const GAP_MIN: Duration = Duration::from_millis(20);
/// In the long run a commit may be made so often: a burst of changes becomes four heads a second…
const EVERY: Duration = Duration::from_millis(250);
/// …but for so many at first, for who changes one thing after the other and waits for each to be seen.
const AT_ONCE: u32 = 16;

/// Groups changes: the first ones after a pause go at once, those of a burst together. The generic cell rate algorithm
/// (ITU-T I.371), with commits for cells.
#[derive(Debug, Default)]
pub(super) struct Pace {
    last: Option<Instant>,
    /// When as many commits will be allowed at once as ever are.
    rested: Option<Instant>,
}

impl Pace {
    pub(super) fn new() -> Self {
        Self::default()
    }

    /// The moment from which a commit may be made.
    pub(super) fn due(&self, now: Instant) -> Instant {
        let apart = self.last.map_or(now, |last| last + GAP_MIN);
        let ahead = EVERY * (AT_ONCE - 1);
        let paced = self.rested.and_then(|rested| rested.checked_sub(ahead));
        paced.map_or(apart, |paced| apart.max(paced))
    }

    /// Notes a commit, which may have been made before it was due, for somebody who waits. However many of those there were,
    /// the next one is due after one pause.
    pub(super) fn committed(&mut self, now: Instant) {
        let rested = self.rested.map_or(now, |rested| rested.max(now));
        self.rested = Some((rested + EVERY).min(now + EVERY * AT_ONCE));
        self.last = Some(now);
    }
}

/// Waits between attempts that doubles from one to 60 seconds.
#[derive(Clone, Debug, Default)]
pub(super) struct BackOff {
    failures: u32,
    until: Option<Instant>,
}

impl BackOff {
    /// Attempts that failed in a row.
    pub(super) fn failures(&self) -> u32 {
        self.failures
    }

    /// The moment of the next attempt, when one has failed.
    pub(super) fn until(&self) -> Option<Instant> {
        self.until
    }

    pub(super) fn failed(&mut self, now: Instant) {
        let seconds = 1u64 << self.failures.min(6);
        self.failures = self.failures.saturating_add(1);
        self.until = Some(now + Duration::from_secs(seconds.min(60)));
    }

    /// The next attempt may succeed: it comes within a second.
    pub(super) fn soon(&mut self, now: Instant) {
        let soon = now + Duration::from_secs(1);
        self.until = self.until.map(|until| until.min(soon));
    }

    pub(super) fn reset(&mut self) {
        *self = Self::default();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_changes_go_at_once_and_a_burst_is_grouped() {
        let start = Instant::now();
        let mut pace = Pace::new();
        assert_eq!(pace.due(start), start);
        let mut now = start;
        let mut commits = Vec::new();
        while now < start + Duration::from_secs(2) {
            pace.committed(now);
            commits.push((now - start).as_millis());
            now = pace.due(now);
        }
        let at_once = (0..=320).step_by(20);
        let later = (500..2000).step_by(250);
        assert_eq!(commits, at_once.chain(later).collect::<Vec<_>>());
        let later = now + Duration::from_secs(5);
        assert!(pace.due(later) < later);
        pace.committed(later);
        assert_eq!(pace.due(later), later + GAP_MIN);
    }

    #[test]
    fn changes_that_come_one_after_the_other_are_a_burst_too() {
        let start = Instant::now();
        let mut pace = Pace::new();
        let mut commits = 0;
        for tenth in 0..40 {
            let made = start + tenth * Duration::from_millis(100);
            if pace.due(made) <= made {
                pace.committed(made);
                commits += 1;
            }
        }
        assert!((24..=32).contains(&commits), "{commits} in four seconds");
    }

    #[test]
    fn who_changes_something_now_and_then_never_waits() {
        let start = Instant::now();
        let mut pace = Pace::new();
        for pair in 0..20 {
            for (change, millis) in [(0, 0), (1, 120)] {
                let made = start + Duration::from_millis(600 * pair + millis);
                assert!(pace.due(made) <= made, "{change} of pair {pair}");
                pace.committed(made);
            }
        }
    }

    #[test]
    fn who_has_waited_for_no_turn_makes_others_wait_for_no_more_than_one() {
        let start = Instant::now();
        let mut pace = Pace::new();
        let mut now = start;
        for _ in 0..1000 {
            // As with every `fsync` of a folder.
            pace.committed(now);
            now += Duration::from_millis(5);
        }
        assert!(pace.due(now) <= now + EVERY, "{:?}", pace.due(now) - now);
        // From then on it is as with any burst.
        now = pace.due(now);
        pace.committed(now);
        assert_eq!(pace.due(now), now + EVERY);
    }

    #[test]
    fn attempts_grow_rarer_up_to_a_minute() {
        let now = Instant::now();
        let mut back_off = BackOff::default();
        let waits: Vec<_> = (0..9)
            .map(|_| {
                back_off.failed(now);
                back_off.until().unwrap().duration_since(now).as_secs()
            })
            .collect();
        assert_eq!(waits, [1, 2, 4, 8, 16, 32, 60, 60, 60]);
        back_off.reset();
        assert_eq!(back_off.until(), None);
    }
}
