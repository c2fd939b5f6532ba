//! What is worth fetching ahead for one open file handle, from how it is read.
//!
//! Pure: told of each read, it answers with the bytes that are worth fetching ahead. A handle may be read in several places
//! at a time (threads of one program, a player that looks at a file's index meanwhile): each is a stream of its own, up to
//! [`STREAMS`]. A stream goes on as long as its reads join on to each other, forward or backward, and its window grows by four
//! while it does: members that fetch the same side by side get on only with windows that have many parts in them. Reads that
//! don't join on, at random or in strides, get what they read and nothing else.
//!
//! Invariants: nothing is asked for twice within one run of a stream, and nothing while reads jump about.
//!
//! The kernel issues its own read-ahead from several threads, so reads of one sequential reader arrive slightly out of
//! order: one that lands within [`REORDER_BYTES`] of the place where a stream is waits for those in between. It also leaves out
//! pages that it has: a stream goes on over a gap that is small beside what was read around it.

use std::ops::Range;

/// Streams of one handle; the one that was read least lately makes room for a new one.
pub(crate) const STREAMS: usize = 4;
/// First window of a sequential reader.
const WINDOW_BYTES_MIN: u64 = 256 * 1024;
/// How much larger each window is than the one before.
const GROWTH: u64 = 4;
/// Largest window.
const WINDOW_BYTES_MAX: u64 = 64 * 1024 * 1024;
/// How far from the furthest read another one may land and still be part of the run: twice the largest read-ahead of a
/// kernel with default settings and some.
const REORDER_BYTES: u64 = 1024 * 1024;
/// Reads beyond a stream's end that wait for those in between; with more, the oldest is forgotten.
const WAITING_MAX: usize = 16;
/// Files up to this size are fetched whole once their beginning is read.
const SMALL_FILE_BYTES: u64 = 1024 * 1024;
/// Reads that join on before anything is fetched, for a stream that doesn't begin at the file's start.
const JOINED_MIN: u32 = 2;

/// What is worth doing after a read.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Advice {
    /// Bytes to fetch ahead; may be empty.
    pub fetch: Range<u64>,
    /// For which stream, below [`STREAMS`].
    pub stream: usize,
    /// The stream has just begun: what was fetched ahead for the one whose place it took is no longer wanted.
    pub is_new: bool,
}

/// What was asked for in one direction.
#[derive(Clone, Copy, Debug, Default)]
struct Window {
    /// Reads that joined on in this direction.
    joined: u32,
    /// 0 while nothing was asked for.
    bytes: u64,
    /// Everything of the run up to here has been asked for.
    asked: u64,
}

impl Window {
    fn grow(&mut self) {
        self.bytes = (self.bytes * GROWTH).clamp(WINDOW_BYTES_MIN, WINDOW_BYTES_MAX);
    }
}

/// One place in the file where reads join on to each other: `start..front` was read.
#[derive(Clone, Debug, Default)]
struct Stream {
    used: u64,
    start: u64,
    front: u64,
    forward: Window,
    backward: Window,
    /// Reads beyond the front.
    waiting: Vec<Range<u64>>,
}

/// How a read stands to a stream; the closest first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Fit {
    Forward,
    Backward,
    Within,
    Beyond,
}

impl Stream {
    fn fit(&self, read: &Range<u64>) -> Option<Fit> {
        if read.start <= self.front && read.end > self.front && read.start >= self.start {
            Some(Fit::Forward)
        } else if read.start < self.start && read.end >= self.start && read.end <= self.front {
            Some(Fit::Backward)
        } else if read.start >= self.start && read.end <= self.front {
            Some(Fit::Within)
        } else if read.start > self.front && read.start - self.front <= REORDER_BYTES {
            Some(Fit::Beyond)
        } else {
            None
        }
    }

    /// Takes a read that fits; what is worth fetching then.
    fn take(&mut self, fit: Fit, read: Range<u64>, size: u64) -> Range<u64> {
        match fit {
            Fit::Within => return 0..0,
            Fit::Backward => {
                self.start = read.start;
                self.backward.joined += 1;
                return self.retreat();
            }
            Fit::Forward => {
                self.front = read.end;
                self.forward.joined += 1;
            }
            Fit::Beyond => {
                if self.waiting.len() >= WAITING_MAX {
                    self.waiting.remove(0);
                }
                self.waiting.push(read);
            }
        }
        let before = self.front;
        self.join_waiting();
        if fit == Fit::Beyond && self.front == before {
            return 0..0;
        }
        self.advance(size)
    }

    /// Goes on over reads that waited, where they join on, or cover nearly all of the way.
    fn join_waiting(&mut self) {
        self.waiting.sort_unstable_by_key(|read| read.start);
        let mut covered = 0;
        let mut end = self.front;
        let mut reached = self.front;
        for read in &self.waiting {
            covered += read.end.saturating_sub(read.start.max(end));
            end = end.max(read.end);
            let span = end - self.front;
            // A stride never covers more than half of its way.
            if covered == span || covered > WINDOW_BYTES_MIN && covered >= span / 4 * 3 {
                reached = end;
            }
        }
        if reached > self.front {
            self.front = reached;
            self.forward.joined += 1;
        }
        let front = self.front;
        self.waiting.retain(|read| read.end > front);
    }

    /// The next window, once the reader has passed half of the previous one.
    fn advance(&mut self, size: u64) -> Range<u64> {
        let window = &mut self.forward;
        let is_enough =
            window.bytes > 0 && self.front < window.asked.saturating_sub(window.bytes / 2);
        if is_enough || self.start > 0 && window.joined < JOINED_MIN {
            return 0..0;
        }
        window.grow();
        if self.start == 0 && size <= SMALL_FILE_BYTES {
            window.bytes = WINDOW_BYTES_MAX;
        }
        let start = window.asked.max(self.front).min(size);
        window.asked = start.saturating_add(window.bytes).min(size);
        start..window.asked
    }

    /// The same for a reader that goes backward.
    fn retreat(&mut self) -> Range<u64> {
        let window = &mut self.backward;
        let asked = if window.bytes == 0 {
            self.start
        } else {
            window.asked
        };
        let is_enough = window.bytes > 0 && self.start > asked.saturating_add(window.bytes / 2);
        if is_enough || window.joined < JOINED_MIN {
            return 0..0;
        }
        window.grow();
        let end = asked.min(self.start);
        window.asked = end.saturating_sub(window.bytes);
        window.asked..end
    }
}

/// What is known of how one open file handle is read: pure.
#[derive(Clone, Debug, Default)]
pub struct Readahead {
    tick: u64,
    streams: Vec<Stream>,
}

impl Readahead {
    /// Notes a read of `len` bytes at `offset` in a file of `size` bytes.
    pub fn on_read(&mut self, offset: u64, len: u64, size: u64) -> Advice {
        let end = offset.saturating_add(len).min(size);
        if offset >= end {
            return Advice::default();
        }
        let read = offset..end;
        self.tick += 1;
        let fits = self.streams.iter().enumerate();
        let best = fits
            .filter_map(|(at, stream)| Some((stream.fit(&read)?, at)))
            .min();
        if let Some((fit, at)) = best
            && let Some(stream) = self.streams.get_mut(at)
        {
            stream.used = self.tick;
            return Advice {
                fetch: stream.take(fit, read, size),
                stream: at,
                is_new: false,
            };
        }
        let mut stream = Stream {
            used: self.tick,
            start: offset,
            front: end,
            ..Stream::default()
        };
        let fetch = if offset == 0 {
            stream.advance(size)
        } else {
            0..0
        };
        let oldest = self.streams.iter().enumerate();
        let oldest = oldest
            .min_by_key(|(_, stream)| stream.used)
            .map(|(at, _)| at);
        let at = match oldest {
            Some(at) if self.streams.len() >= STREAMS => {
                if let Some(place) = self.streams.get_mut(at) {
                    *place = stream;
                }
                at
            }
            _ => {
                self.streams.push(stream);
                self.streams.len() - 1
            }
        };
        Advice {
            fetch,
            stream: at,
            is_new: true,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KIB: u64 = 1024;
    const MIB: u64 = 1024 * KIB;
    const GIB: u64 = 1024 * MIB;

    impl Readahead {
        /// What a read has fetched, if anything.
        fn fetched(&mut self, offset: u64, len: u64, size: u64) -> Option<Range<u64>> {
            let fetch = self.on_read(offset, len, size).fetch;
            (!fetch.is_empty()).then_some(fetch)
        }
    }

    /// Reads from start to end in steps and collects what was asked for.
    fn read_through(size: u64, step: u64) -> Vec<Range<u64>> {
        let mut readahead = Readahead::default();
        (0..size)
            .step_by(step as usize)
            .filter_map(|offset| readahead.fetched(offset, step, size))
            .collect()
    }

    #[test]
    fn windows_grow_by_four_from_256_kib_to_64_mib() {
        let windows: Vec<u64> = read_through(GIB, 128 * KIB)
            .iter()
            .map(|range| range.end - range.start)
            .collect();
        assert_eq!(windows[..4], [256 * KIB, MIB, 4 * MIB, 16 * MIB]);
        assert!(windows[4..windows.len() - 1].iter().all(|w| *w == 64 * MIB));
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
            readahead.fetched(0, 64 * KIB, size),
            Some(64 * KIB..320 * KIB)
        );
        assert_eq!(readahead.fetched(64 * KIB, 64 * KIB, size), None);
        assert_eq!(
            readahead.fetched(128 * KIB, 64 * KIB, size),
            Some(320 * KIB..1344 * KIB)
        );
    }

    #[test]
    fn random_reads_fetch_nothing_ahead() {
        let mut readahead = Readahead::default();
        for offset in [700 * KIB, 90 * MIB, 5 * MIB, 300 * MIB, 2 * MIB] {
            assert_eq!(readahead.fetched(offset, 4 * KIB, GIB), None);
        }
        // Nor do many in a file that is hardly larger than what counts as near.
        let mut seed = 1u64;
        for _ in 0..10_000 {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            let page = 1 + (seed >> 33) % 4095;
            assert_eq!(readahead.fetched(page * 16 * KIB, 4 * KIB, 64 * MIB), None);
        }
    }

    #[test]
    fn strides_fetch_nothing_ahead_in_either_direction() {
        for stride in [8 * KIB, 64 * KIB, 128 * KIB, MIB, 3 * MIB] {
            let mut readahead = Readahead::default();
            for turn in 1..2000 {
                assert_eq!(readahead.fetched(turn * stride, 4 * KIB, 8 * GIB), None);
            }
            let mut readahead = Readahead::default();
            for turn in (1..2000).rev() {
                assert_eq!(readahead.fetched(turn * stride, 4 * KIB, 8 * GIB), None);
            }
        }
    }

    #[test]
    fn a_backward_reader_has_what_lies_before_fetched_once_and_nothing_else() {
        let mut readahead = Readahead::default();
        let size = 100 * MIB;
        let mut asked = size;
        for offset in (0..size / (64 * KIB)).rev().map(|turn| turn * 64 * KIB) {
            if let Some(range) = readahead.fetched(offset, 64 * KIB, size) {
                assert!(range.end <= offset && range.end <= asked);
                assert!(asked == size || range.end == asked, "no gap");
                asked = range.start;
            }
        }
        assert_eq!(asked, 0);
    }

    #[test]
    fn several_places_are_read_at_a_time_each_with_its_window() {
        let mut readahead = Readahead::default();
        let mut asked = [0u64; 3];
        for turn in 0..400 {
            for (place, asked) in asked.iter_mut().enumerate() {
                let start = place as u64 * 200 * MIB + turn * 128 * KIB;
                let advice = readahead.on_read(start, 128 * KIB, GIB);
                assert_eq!(advice.is_new, turn == 0);
                if !advice.fetch.is_empty() {
                    assert!(*asked == 0 || advice.fetch.start == *asked);
                    *asked = advice.fetch.end;
                }
            }
        }
        for (place, asked) in asked.iter().enumerate() {
            assert!(*asked >= place as u64 * 200 * MIB + 50 * MIB);
        }
    }

    #[test]
    fn a_jump_ends_the_run_that_was_read_least_lately_and_a_new_run_starts_small() {
        let mut readahead = Readahead::default();
        for offset in (0..64 * MIB).step_by(MIB as usize) {
            readahead.on_read(offset, MIB, GIB);
        }
        let at = |turn: u64| 500 * MIB + turn * 128 * KIB;
        assert_eq!(readahead.fetched(at(0), 128 * KIB, GIB), None);
        assert_eq!(readahead.fetched(at(1), 128 * KIB, GIB), None);
        assert_eq!(readahead.fetched(at(2), 128 * KIB, GIB), Some(at(3)..at(5)));
        for place in 1..STREAMS as u64 {
            let advice = readahead.on_read(place * 100 * MIB + 7, 4 * KIB, GIB);
            assert!(advice.is_new);
            // The first run is the oldest one by the last of these.
            assert_eq!(advice.stream == 0, place == STREAMS as u64 - 1);
        }
    }

    #[test]
    fn reads_that_arrive_out_of_order_keep_the_run_going() {
        let mut readahead = Readahead::default();
        let mut asked = 0;
        for pair in 0..200 {
            for offset in [pair * 256 * KIB + 128 * KIB, pair * 256 * KIB] {
                if let Some(range) = readahead.fetched(offset, 128 * KIB, GIB) {
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
    fn pages_that_the_kernel_has_do_not_end_a_run() {
        let mut readahead = Readahead::default();
        let mut asked = 0;
        for turn in 0..500 {
            // The first page of every mebibyte is never asked for.
            let offset = turn * 128 * KIB;
            let skipped = if offset.is_multiple_of(MIB) && turn > 0 {
                4 * KIB
            } else {
                0
            };
            if let Some(range) = readahead.fetched(offset + skipped, 128 * KIB - skipped, GIB) {
                asked = range.end;
            }
        }
        assert!(asked > 60 * MIB, "{asked}");
    }

    #[test]
    fn a_small_file_is_fetched_whole_after_its_first_read() {
        let mut readahead = Readahead::default();
        assert_eq!(readahead.fetched(0, 4 * KIB, MIB), Some(4 * KIB..MIB));
        assert_eq!(readahead.fetched(4 * KIB, 4 * KIB, MIB), None);
        assert_eq!(readahead.fetched(MIB - 4 * KIB, 4 * KIB, MIB), None);
    }

    #[test]
    fn odd_arguments_ask_for_nothing() {
        let mut readahead = Readahead::default();
        for (offset, len, size) in [
            (0, 10, 0),
            (0, 0, 10),
            (10, 10, 10),
            (u64::MAX, u64::MAX, u64::MAX),
            (0, u64::MAX, 5),
        ] {
            assert_eq!(readahead.fetched(offset, len, size), None);
        }
    }
}
