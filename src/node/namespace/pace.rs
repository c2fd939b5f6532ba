//! When the committer may commit, and when it tries again. Pure: the caller brings the time.

use std::time::{Duration, Instant};

/// The least time between two commits of an idle committer.
const GAP_MIN: Duration = Duration::from_millis(50);
/// And of a busy one: a burst of changes becomes four heads a second.
const GAP_MAX: Duration = Duration::from_millis(250);

/// Groups changes: the first one after a pause goes at once, those of a burst together.
#[derive(Debug)]
pub(super) struct Pace {
    last: Option<Instant>,
    gap: Duration,
}

impl Pace {
    pub(super) fn new() -> Self {
        Self {
            last: None,
            gap: GAP_MIN,
        }
    }

    /// The moment from which a commit may be made.
    pub(super) fn due(&self, now: Instant) -> Instant {
        self.last.map_or(now, |last| last + self.gap)
    }

    /// Notes a commit.
    pub(super) fn committed(&mut self, now: Instant) {
        let close = GAP_MAX.max(2 * self.gap);
        let busy = self.last.is_some_and(|last| now < last + close);
        self.gap = if busy {
            (self.gap * 2).min(GAP_MAX)
        } else {
            GAP_MIN
        };
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

    pub(super) fn reset(&mut self) {
        *self = Self::default();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lone_change_goes_at_once_and_a_burst_is_grouped() {
        let start = Instant::now();
        let mut pace = Pace::new();
        assert_eq!(pace.due(start), start);
        pace.committed(start);
        assert_eq!(pace.due(start), start + GAP_MIN);
        let mut now = start;
        let mut commits = 0;
        while now < start + Duration::from_secs(2) {
            now = pace.due(now);
            pace.committed(now);
            commits += 1;
        }
        assert!((8..=12).contains(&commits), "{commits}");
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
        assert!((12..=18).contains(&commits), "{commits} in four seconds");
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
