//! Limits of rates: how many bytes of contents may move in a second, all peers together.
//!
//! [`Bucket`] is pure. The scheduler takes what is asked for from one, before it is asked for; so a limit on what comes in makes
//! no request late. [`Upload`] makes answers wait for theirs: peers take turns, piece by piece, and a request that could not be
//! answered in time is refused as busy, which no peer is blamed for.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use tokio::{sync::Mutex, time::sleep_until};

/// The lowest limit, in bytes a second: with less, a block takes longer than peers wait for one.
pub const LIMIT_MIN: u64 = 64 * 1024;
/// What may have gathered while nothing moved, in time; at least [`BURST_BYTES_MIN`].
const BURST: Duration = Duration::from_millis(250);
const BURST_BYTES_MIN: u64 = 128 * 1024;
/// Answers accepted take no longer than this together, unless it is a single one.
const ACCEPTED: Duration = Duration::from_secs(1);

/// A bucket of bytes that fills at a constant rate: pure. Time is the [`Duration`] since some fixed moment.
#[derive(Clone, Copy, Debug)]
pub struct Bucket {
    bytes_per_s: u64,
    /// What it holds when it is full.
    size: i64,
    /// Below zero: more was taken than was there.
    level: i64,
    filled_at: Duration,
}

impl Bucket {
    /// A full one; limits below [`LIMIT_MIN`] count as that.
    pub fn new(bytes_per_s: u64) -> Self {
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
    fn steady(bytes_per_s: u64) -> Self {
        let mut bucket = Self::new(bytes_per_s);
        bucket.size = 1;
        bucket.level = 1;
        bucket
    }

    fn size(&self) -> i64 {
        self.size
    }

    fn fill(&mut self, now: Duration) {
        let gained = bytes_in(now.saturating_sub(self.filled_at), self.bytes_per_s);
        let level = self.level.saturating_add(gained as i64);
        if level >= self.size() {
            self.level = self.size();
            self.filled_at = now.max(self.filled_at);
        } else {
            // What is left of a byte stays in the time.
            self.level = level;
            self.filled_at += time_for(gained, self.bytes_per_s);
        }
    }

    /// Whether anything may be taken: what somebody waits for.
    pub fn is_open(&mut self, now: Duration) -> bool {
        self.fill(now);
        self.level > 0
    }

    /// Whether it is more than half full: what nobody waits for takes no more than that half, and leaves the rest to what
    /// somebody may wait for next.
    pub fn is_at_ease(&mut self, now: Duration) -> bool {
        self.fill(now);
        self.level > self.size() / 2
    }

    /// When it will be so.
    pub fn at_ease_at(&self) -> Duration {
        let lacking = (self.size() / 2 + 1).saturating_sub(self.level).max(0);
        self.filled_at + time_for(lacking as u64, self.bytes_per_s)
    }

    /// When something may be taken.
    pub fn opens_at(&self) -> Duration {
        let lacking = 1i64.saturating_sub(self.level).max(0);
        self.filled_at + time_for(lacking as u64, self.bytes_per_s)
    }

    /// Takes bytes, whether they are there or not: the next one waits longer.
    pub fn take(&mut self, now: Duration, bytes: u64) {
        self.fill(now);
        self.level = self.level.saturating_sub(bytes.min(i64::MAX as u64) as i64);
    }

    /// What was taken did not move after all.
    pub fn give_back(&mut self, bytes: u64) {
        let level = self.level.saturating_add(bytes.min(i64::MAX as u64) as i64);
        self.level = level.min(self.size());
    }

    /// What it holds when it is full.
    pub fn share_bytes(&self) -> u64 {
        self.size() as u64
    }
}

/// How many bytes move in this time.
fn bytes_in(time: Duration, bytes_per_s: u64) -> u64 {
    let bytes = time.as_nanos().saturating_mul(u128::from(bytes_per_s)) / 1_000_000_000;
    u64::try_from(bytes).unwrap_or(u64::MAX).min(1 << 60)
}

/// How long bytes take, rounded up.
fn time_for(bytes: u64, bytes_per_s: u64) -> Duration {
    let nanos = (u128::from(bytes) * 1_000_000_000).div_ceil(u128::from(bytes_per_s.max(1)));
    Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX))
}

/// The limit on what is sent.
pub(super) struct Upload {
    limited: Option<Limited>,
}

struct Limited {
    bytes_per_s: u64,
    since: Instant,
    /// Whoever holds it has its turn, in the order of coming.
    bucket: Mutex<Bucket>,
    accepted: Arc<AtomicU64>,
}

/// Bytes of an answer that was accepted and is not sent yet.
pub(super) struct Accepted(Option<(Arc<AtomicU64>, u64)>);

impl Drop for Accepted {
    fn drop(&mut self) {
        if let Some((accepted, bytes)) = &self.0 {
            accepted.fetch_sub(*bytes, Relaxed);
        }
    }
}

impl Upload {
    /// With this limit, or none.
    pub(super) fn new(bytes_per_s: Option<u64>) -> Self {
        let limited = bytes_per_s.map(|bytes_per_s| Limited {
            bytes_per_s: bytes_per_s.max(LIMIT_MIN),
            since: Instant::now(),
            bucket: Mutex::new(Bucket::steady(bytes_per_s)),
            accepted: Arc::default(),
        });
        Self { limited }
    }

    /// Accepts an answer of at most so many bytes, if it can be sent soon.
    pub(super) fn accept(&self, bytes: u64) -> Option<Accepted> {
        let Some(limited) = &self.limited else {
            return Some(Accepted(None));
        };
        let before = limited.accepted.fetch_add(bytes, Relaxed);
        let accepted = Accepted(Some((limited.accepted.clone(), bytes)));
        let fits = time_for(before.saturating_add(bytes), limited.bytes_per_s) <= ACCEPTED;
        (before == 0 || fits).then_some(accepted)
    }

    /// Waits until so many bytes may be sent. `turn` is the peer's.
    pub(super) async fn pass(&self, turn: &Mutex<()>, bytes: usize) {
        let Some(limited) = &self.limited else { return };
        let _turn = turn.lock().await;
        let mut bucket = limited.bucket.lock().await;
        while !bucket.is_open(limited.since.elapsed()) {
            sleep_until((limited.since + bucket.opens_at()).into()).await;
        }
        bucket.take(limited.since.elapsed(), bytes as u64);
    }

    /// Bytes that are sent at a time: few, where there are few, so that peers take turns.
    pub(super) fn piece_bytes(&self, most: usize) -> usize {
        match &self.limited {
            Some(limited) => usize::try_from(limited.bytes_per_s / 16)
                .map_or(most, |piece| piece.clamp(4096, most)),
            None => most,
        }
    }
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
            let (mut now, mut moved, mut last) = (Duration::ZERO, 0, 0);
            for (wait, bytes) in steps {
                now += Duration::from_nanos(wait);
                if !bucket.is_open(now) {
                    prop_assert!(bucket.opens_at() > now);
                    now = bucket.opens_at();
                    prop_assert!(bucket.is_open(now));
                }
                bucket.take(now, bytes);
                moved += bytes;
                last = bytes;
                prop_assert!(moved <= bytes_in(now, rate) + burst + last);
            }
            let _ = last;
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

    #[test]
    fn requests_that_could_not_be_answered_in_time_are_refused() {
        let upload = Upload::new(Some(1 << 20));
        let first = upload.accept(10 << 20).expect("a single one is accepted");
        assert!(upload.accept(1).is_none());
        drop(first);
        let held: Vec<Accepted> = (0..10).filter_map(|_| upload.accept(1 << 20)).collect();
        assert_eq!(held.len(), 1);
        assert!(Upload::new(None).accept(u64::MAX).is_some());
    }
}
