//! Sequential-read detection for one open file handle.
//!
//! Pure: told of each read, it answers with the bytes that are worth fetching ahead. It never asks for the same byte
//! twice within one sequential run, and never for anything while reads jump about.
//!
//! The kernel issues its own read-ahead from several threads, so reads of one sequential reader arrive slightly out of
//! order: whatever lands within [`REORDER_BYTES`] of the furthest byte read so far still counts as sequential.

use std::ops::Range;

/// First window of a sequential reader.
const WINDOW_BYTES_MIN: u64 = 256 * 1024;
/// Largest window.
const WINDOW_BYTES_MAX: u64 = 64 * 1024 * 1024;
/// How far from the furthest read another one may land and still be part of the run: twice the largest read-ahead of a
/// kernel with default settings and some.
const REORDER_BYTES: u64 = 1024 * 1024;
/// Files up to this size are fetched whole once their beginning is read.
const SMALL_FILE_BYTES: u64 = 1024 * 1024;

/// Sequential-read detection for one open file handle: pure.
#[derive(Clone, Debug, Default)]
pub struct Readahead {
    /// One past the furthest byte of the present run; `None` before the first read.
    front: Option<u64>,
    /// The present window; 0 while reads are not sequential.
    window_bytes: u64,
    /// Everything of the run before this has been asked for.
    asked_until: u64,
}

impl Readahead {
    /// Notes a read of `len` bytes at `offset` in a file of `size` bytes; tells which bytes to fetch ahead, if any.
    pub fn on_read(&mut self, offset: u64, len: u64, size: u64) -> Option<Range<u64>> {
        let end = offset.saturating_add(len).min(size);
        if offset >= end {
            return None;
        }
        let Some(front) = self.front else {
            self.front = Some(end);
            return if offset == 0 {
                self.advance(end, size)
            } else {
                None
            };
        };
        if offset.abs_diff(front) > REORDER_BYTES {
            *self = Self {
                front: Some(end),
                ..Self::default()
            };
            return None;
        }
        let front = front.max(end);
        self.front = Some(front);
        self.advance(front, size)
    }

    /// The next window, once the reader has passed half of the previous one.
    fn advance(&mut self, front: u64, size: u64) -> Option<Range<u64>> {
        let start = self.asked_until.max(front);
        if self.window_bytes > 0 && front < self.asked_until.saturating_sub(self.window_bytes / 2) {
            return None;
        }
        if size <= SMALL_FILE_BYTES {
            self.window_bytes = WINDOW_BYTES_MAX;
        } else if self.window_bytes == 0 {
            self.window_bytes = WINDOW_BYTES_MIN;
        } else {
            self.window_bytes = (self.window_bytes * 2).min(WINDOW_BYTES_MAX);
        }
        self.asked_until = start.saturating_add(self.window_bytes).min(size);
        (start < self.asked_until).then_some(start..self.asked_until)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KIB: u64 = 1024;
    const MIB: u64 = 1024 * KIB;
    const GIB: u64 = 1024 * MIB;

    /// Reads from start to end in steps and collects what was asked for.
    fn read_through(size: u64, step: u64) -> Vec<Range<u64>> {
        let mut readahead = Readahead::default();
        (0..size)
            .step_by(step as usize)
            .filter_map(|offset| readahead.on_read(offset, step, size))
            .collect()
    }

    #[test]
    fn windows_double_from_256_kib_to_64_mib() {
        let windows: Vec<u64> = read_through(GIB, 128 * KIB)
            .iter()
            .map(|range| range.end - range.start)
            .collect();
        let doubled: Vec<u64> = (0..9).map(|power| (256 * KIB) << power).collect();
        assert_eq!(windows[..9], doubled);
        assert!(windows[9..windows.len() - 1].iter().all(|w| *w == 64 * MIB));
    }

    #[test]
    fn nothing_is_asked_for_twice_and_everything_once() {
        for (size, step) in [(100 * MIB + 17, 128 * KIB), (MIB + 1, 4 * KIB)] {
            let asked = read_through(size, step);
            assert_eq!(asked[0].start, step.min(size));
            for pair in asked.windows(2) {
                assert_eq!(pair[0].end, pair[1].start);
            }
            assert_eq!(asked.last().unwrap().end, size);
        }
    }

    #[test]
    fn the_next_window_comes_when_half_of_the_last_is_read() {
        let mut readahead = Readahead::default();
        let size = GIB;
        assert_eq!(
            readahead.on_read(0, 64 * KIB, size),
            Some(64 * KIB..320 * KIB)
        );
        assert_eq!(readahead.on_read(64 * KIB, 64 * KIB, size), None);
        assert_eq!(
            readahead.on_read(128 * KIB, 64 * KIB, size),
            Some(320 * KIB..832 * KIB)
        );
    }

    #[test]
    fn random_reads_fetch_nothing_ahead() {
        let mut readahead = Readahead::default();
        for offset in [700 * KIB, 90 * MIB, 5 * MIB, 300 * MIB, 2 * MIB] {
            assert_eq!(readahead.on_read(offset, 4 * KIB, GIB), None);
        }
    }

    #[test]
    fn a_jump_ends_the_run_and_a_new_run_starts_small() {
        let mut readahead = Readahead::default();
        for offset in (0..64 * MIB).step_by(MIB as usize) {
            readahead.on_read(offset, MIB, GIB);
        }
        assert_eq!(readahead.on_read(500 * MIB, 128 * KIB, GIB), None);
        let start = 500 * MIB + 256 * KIB;
        assert_eq!(
            readahead.on_read(start - 128 * KIB, 128 * KIB, GIB),
            Some(start..start + 256 * KIB)
        );
        assert_eq!(
            readahead.on_read(0, 128 * KIB, GIB),
            None,
            "backward is a jump too"
        );
    }

    #[test]
    fn reads_that_arrive_out_of_order_keep_the_run_going() {
        let mut readahead = Readahead::default();
        let mut asked = 0;
        for pair in 0..200 {
            for offset in [pair * 256 * KIB + 128 * KIB, pair * 256 * KIB] {
                if let Some(range) = readahead.on_read(offset, 128 * KIB, GIB) {
                    assert!(range.start >= asked);
                    asked = range.end;
                }
            }
        }
        assert!(
            asked > 50 * MIB,
            "the window kept growing, up to {asked} bytes"
        );
    }

    #[test]
    fn a_small_file_is_fetched_whole_after_its_first_read() {
        let mut readahead = Readahead::default();
        assert_eq!(readahead.on_read(0, 4 * KIB, MIB), Some(4 * KIB..MIB));
        assert_eq!(readahead.on_read(4 * KIB, 4 * KIB, MIB), None);
        assert_eq!(readahead.on_read(MIB - 4 * KIB, 4 * KIB, MIB), None);
    }

    #[test]
    fn odd_arguments_ask_for_nothing() {
        let mut readahead = Readahead::default();
        assert_eq!(readahead.on_read(0, 10, 0), None);
        assert_eq!(readahead.on_read(0, 0, 10), None);
        assert_eq!(readahead.on_read(10, 10, 10), None);
        assert_eq!(readahead.on_read(u64::MAX, u64::MAX, u64::MAX), None);
        assert_eq!(
            readahead.on_read(0, u64::MAX, 5),
            None,
            "the whole file was read"
        );
    }
}
