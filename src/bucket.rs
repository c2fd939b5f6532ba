//! A bucket of bytes, for limits of rates: pure.
//!
//! Time is the [`Duration`] since some fixed moment. In any time no more is let through than the rate gives, what had gathered
//! before, and the last thing taken.

use std::time::Duration;

/// The lowest limit, in bytes a second: with less, a block takes longer than peers wait for one.
pub(crate) const LIMIT_MIN: u64 = 64 * 1024;
/// What may have gathered while nothing moved, in time; at least [`BURST_BYTES_MIN`].
const BURST: Duration = Duration::from_millis(250);
const BURST_BYTES_MIN: u64 = 128 * 1024;

/// Fills at a constant rate.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Bucket {
    bytes_per_s: u64,
    /// What it holds when it is full.
    size: i64,
    /// Below zero: more was taken than was there.
    level: i64,
    filled_at: Duration,
}

impl Bucket {
    /// A full one; limits below [`LIMIT_MIN`] count as that.
    pub(crate) fn new(bytes_per_s: u64) -> Self {
        let bytes_per_s = bytes_per_s.clamp(LIMIT_MIN, 1 << 50);
        let size = bytes_in(BURST, bytes_per_s).max(BURST_BYTES_MIN) as i64;
        Self {
            bytes_per_s,
            size,
            level: size,
            filled_at: Duration::ZERO,
        }
    }

    /// One that gathers next to nothing while nothing moves: whoever measures how fast answers come measures the limit.
    pub(crate) fn steady(bytes_per_s: u64) -> Self {
        let mut bucket = Self::new(bytes_per_s);
        bucket.size = 1;
        bucket.level = 1;
        bucket
    }

    fn fill(&mut self, now: Duration) {
        let gained = bytes_in(now.saturating_sub(self.filled_at), self.bytes_per_s);
        let level = self.level.saturating_add(gained as i64);
        if level >= self.size {
            self.level = self.size;
            self.filled_at = now.max(self.filled_at);
        } else {
            // What is left of a byte stays in the time.
            self.level = level;
            self.filled_at += time_for(gained, self.bytes_per_s);
        }
    }

    /// Whether anything may be taken: what somebody waits for.
    pub(crate) fn is_open(&mut self, now: Duration) -> bool {
        self.fill(now);
        self.level > 0
    }

    /// Whether it is more than half full: what nobody waits for takes no more than that half, and leaves the rest to what
    /// somebody may wait for next.
    pub(crate) fn is_at_ease(&mut self, now: Duration) -> bool {
        self.fill(now);
        self.level > self.size / 2
    }

    /// When it will be so.
    pub(crate) fn at_ease_at(&self) -> Duration {
        let lacking = (self.size / 2 + 1).saturating_sub(self.level).max(0);
        self.filled_at + time_for(lacking as u64, self.bytes_per_s)
    }

    /// When something may be taken.
    pub(crate) fn opens_at(&self) -> Duration {
        let lacking = 1i64.saturating_sub(self.level).max(0);
        self.filled_at + time_for(lacking as u64, self.bytes_per_s)
    }

    /// Takes bytes, whether they are there or not: the next one waits longer.
    pub(crate) fn take(&mut self, now: Duration, bytes: u64) {
        self.fill(now);
        self.level = self.level.saturating_sub(bytes.min(i64::MAX as u64) as i64);
    }

    /// What was taken did not move after all.
    pub(crate) fn give_back(&mut self, bytes: u64) {
        let level = self.level.saturating_add(bytes.min(i64::MAX as u64) as i64);
        self.level = level.min(self.size);
    }

    /// What it holds when it is full.
    pub(crate) fn share_bytes(&self) -> u64 {
        self.size as u64
    }
}

/// How many bytes move in this time.
fn bytes_in(time: Duration, bytes_per_s: u64) -> u64 {
    let bytes = time.as_nanos().saturating_mul(u128::from(bytes_per_s)) / 1_000_000_000;
    u64::try_from(bytes).unwrap_or(u64::MAX).min(1 << 60)
}

/// How long bytes take, rounded up.
pub(crate) fn time_for(bytes: u64, bytes_per_s: u64) -> Duration {
    let nanos = (u128::from(bytes) * 1_000_000_000).div_ceil(u128::from(bytes_per_s.max(1)));
    Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn no_more_moves_in_any_time_than_the_rate_and_a_burst(
            rate in LIMIT_MIN..100_000_000,
            steps in proptest::collection::vec((0u64..50_000_000, 1u64..500_000), 1..200),
        ) {
            let mut bucket = Bucket::new(rate);
            let burst = bucket.share_bytes();
            let (mut now, mut moved) = (Duration::ZERO, 0);
            for (wait, bytes) in steps {
                now += Duration::from_nanos(wait);
                if !bucket.is_open(now) {
                    prop_assert!(bucket.opens_at() > now);
                    now = bucket.opens_at();
                    prop_assert!(bucket.is_open(now));
                }
                bucket.take(now, bytes);
                moved += bytes;
                prop_assert!(moved <= bytes_in(now, rate) + burst + bytes);
            }
        }

        #[test]
        fn what_always_waits_gets_the_whole_rate(rate in LIMIT_MIN..100_000_000) {
            let mut bucket = Bucket::new(rate);
            let (mut now, mut moved) = (Duration::ZERO, 0);
            while now < Duration::from_secs(20) {
                now = now.max(bucket.opens_at());
                bucket.take(now, 65_536);
                moved += 65_536;
            }
            prop_assert!(moved >= rate * 20);
        }
    }

    #[test]
    fn what_nobody_waits_for_leaves_room_for_what_somebody_does() {
        let mut bucket = Bucket::new(1 << 20);
        let now = Duration::from_secs(1);
        while bucket.is_at_ease(now) {
            bucket.take(now, 10_000);
        }
        assert!(bucket.is_open(now));
        assert!(!bucket.is_at_ease(now));
        let later = bucket.at_ease_at();
        assert!(later > now && bucket.is_at_ease(later));
        bucket.give_back(u64::MAX);
        assert!(bucket.is_at_ease(now));
    }
}
