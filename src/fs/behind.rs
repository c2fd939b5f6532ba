//! Which pages a reader or writer of a large file has left behind. Pure.
//!
//! Where the kernel reads contents by itself (passthrough), what it keeps of a file that is still being fetched or written is
//! kept twice: as pages of the mount's file, which nobody looks at again once the next open is passed through, and as pages of
//! the backing file. Pages that a sequential run has left behind are therefore given up as it goes on, so that a large file
//! takes its size of memory once, and the kernel uses the same pages over and over for it.
//!
//! Invariants: every byte is named at most once in a run, none that is less than what is kept behind its front, and nothing where
//! reads or writes jump about.

use std::ops::Range;

/// So much behind the front stays: more than what the kernel reads ahead in any order, and what programs tend to go back.
const KEPT_BYTES: u64 = 16 * 1024 * 1024;
/// Pages are given up so many at a time.
const STEP_BYTES: u64 = 8 * 1024 * 1024;
/// The same for who only writes, and so never goes back to read: the fewer pages such a run goes round in, the more of them are in
/// the processor's caches.
const WRITTEN_KEPT_BYTES: u64 = 2 * 1024 * 1024;
const WRITTEN_STEP_BYTES: u64 = 2 * 1024 * 1024;
/// How far from the front a request may lie and still belong to the run: the kernel's read-ahead comes out of order.
const REORDER_BYTES: u64 = 8 * 1024 * 1024;

/// The run in which one handle is read or written: `left..front` may still have pages.
#[derive(Debug)]
pub(super) struct Behind {
    kept_bytes: u64,
    step_bytes: u64,
    left: u64,
    front: u64,
}

impl Behind {
    /// Of a handle that is read, or that is for writing alone.
    pub(super) fn of(only_write: bool) -> Self {
        let (kept_bytes, step_bytes) = match only_write {
            true => (WRITTEN_KEPT_BYTES, WRITTEN_STEP_BYTES),
            false => (KEPT_BYTES, STEP_BYTES),
        };
        Self {
            kept_bytes,
            step_bytes,
            left: 0,
            front: 0,
        }
    }

    /// Notes what was read or written; returns what may go.
    pub(super) fn on(&mut self, done: Range<u64>) -> Option<Range<u64>> {
        let near =
            self.front.saturating_sub(REORDER_BYTES)..=self.front.saturating_add(REORDER_BYTES);
        if !near.contains(&done.start) {
            (self.left, self.front) = (done.start, done.start);
        }
        self.front = self.front.max(done.end);
        if self.front - self.left < self.kept_bytes + self.step_bytes {
            return None;
        }
        let end = (self.front - self.kept_bytes) / self.step_bytes * self.step_bytes;
        let left = std::mem::replace(&mut self.left, end);
        (left < end).then_some(left..end)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1024 * 1024;

    #[test]
    fn a_run_leaves_everything_behind_once_but_for_what_is_near_its_front() {
        for only_write in [false, true] {
            let mut behind = Behind::of(only_write);
            let (kept, step) = (behind.kept_bytes, behind.step_bytes);
            let mut left = 0;
            // Two requests at a time come in the wrong order.
            for pair in 0..500 {
                for at in [2 * pair + 1, 2 * pair] {
                    let end = (at + 1) * MIB;
                    if let Some(gone) = behind.on(at * MIB..end) {
                        assert_eq!(gone.start, left, "nothing twice, nothing left out");
                        assert!(gone.end + kept <= end + MIB);
                        left = gone.end;
                    }
                }
            }
            assert!(left >= 1000 * MIB - kept - step);
        }
    }

    #[test]
    fn who_jumps_about_leaves_nothing_behind() {
        let mut behind = Behind::of(false);
        for turn in 0..10_000_u64 {
            let at = turn * 7919 % 5000 * 4 * MIB;
            assert_eq!(behind.on(at..at + MIB), None);
        }
        // Backward, too; and a run that begins anywhere has left nothing before its start.
        for at in (0..500).rev() {
            assert_eq!(behind.on(at * MIB..(at + 1) * MIB), None);
        }
        let starts = 900 * MIB;
        let first = (0..40).find_map(|at| behind.on(starts + at * MIB..starts + (at + 1) * MIB));
        assert_eq!(first.map(|gone| gone.start), Some(starts));
    }

    #[test]
    fn the_ends_of_what_can_be_addressed_are_no_trouble() {
        let mut behind = Behind::of(false);
        assert_eq!(behind.on(u64::MAX - MIB..u64::MAX), None);
        assert_eq!(behind.on(0..0), None);
    }
}
