//! The limit on what is sent: how many bytes of contents may leave in a second, all peers together.
//!
//! Answers wait for their bytes: peers take turns, piece by piece, and a request that could not be answered in time is refused
//! as busy, which no peer is blamed for. (What comes in is limited by the scheduler, before it is asked for.)

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use tokio::{sync::Mutex, time::sleep_until};

use crate::bucket::{Bucket, LIMIT_MIN, time_for};

/// Answers accepted take no longer than this together, unless it is a single one.
const ACCEPTED: Duration = Duration::from_secs(1);

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
    use super::*;

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
