//! The line that shows how far something is, on standard error where that is a terminal.

use std::{
    collections::VecDeque,
    io::{self, IsTerminal},
    time::{Duration, Instant},
};

use super::units::size;

/// The rate is that of so long.
const RATE_OVER: Duration = Duration::from_secs(5);
/// Cells of the bar.
const BAR_CELLS: u64 = 24;

/// A progress line; nothing where standard error is no terminal, or nobody wants to see it.
pub(crate) struct Progress {
    shown: bool,
    visible: bool,
    /// When how many bytes were here that came since it began.
    seen: VecDeque<(Instant, u64)>,
}

/// How far it is.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Far {
    pub(crate) done_bytes: u64,
    /// Those of them that did not have to be brought.
    pub(crate) already_bytes: u64,
    pub(crate) total_bytes: u64,
    /// Whether the total is final.
    pub(crate) counted: bool,
    pub(crate) done_files: u64,
    /// 0 where it isn't about files, or there are none.
    pub(crate) files: u64,
}

impl Progress {
    pub(crate) fn new(quiet: bool) -> Self {
        Self {
            shown: !quiet && io::stderr().is_terminal(),
            visible: false,
            seen: VecDeque::new(),
        }
    }

    /// Shows how far it is now.
    pub(crate) fn show(&mut self, far: Far) {
        if !self.shown {
            return;
        }
        let now = Instant::now();
        let came = far.done_bytes.saturating_sub(far.already_bytes);
        self.seen.push_back((now, came));
        while self
            .seen
            .front()
            .is_some_and(|(at, _)| now.duration_since(*at) > RATE_OVER)
        {
            self.seen.pop_front();
        }
        let rate = self.seen.front().map_or(0.0, |(at, before)| {
            came.saturating_sub(*before) as f64 / now.duration_since(*at).as_secs_f64().max(0.2)
        });
        self.visible = true;
        draw!("\r{}\x1b[K", text(&far, rate));
    }

    /// Takes the line away: what follows has it to itself.
    pub(crate) fn clear(&mut self) {
        if std::mem::take(&mut self.visible) {
            draw!("\r\x1b[K");
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.clear();
    }
}

/// `[######··] 45 %  1.20 GiB of 2.60 GiB, 35 of 80 files, 120.0 MiB/s, 12 s left`.
fn text(far: &Far, bytes_per_s: f64) -> String {
    let total = far.total_bytes.max(far.done_bytes);
    let files = match far.files {
        0 => String::new(),
        files => format!("{} of {files} files, ", far.done_files),
    };
    let rate = size(bytes_per_s as u64);
    if !far.counted {
        let (done, total) = (size(far.done_bytes), size(total));
        return format!("counting: {done} of {total} so far, {files}{rate}/s");
    }
    let part = |of: u64| match total {
        0 => of,
        // Nothing is so large that this would matter, but it must not overflow.
        total => (u128::from(far.done_bytes) * u128::from(of) / u128::from(total)) as u64,
    };
    let bar: String = (0..BAR_CELLS)
        .map(|cell| if cell < part(BAR_CELLS) { '#' } else { '.' })
        .collect();
    let left_bytes = total - far.done_bytes;
    let left = match left_bytes {
        0 => String::new(),
        _ if bytes_per_s < 1.0 => ", no progress".to_owned(),
        left => format!(", {} left", duration(left as f64 / bytes_per_s)),
    };
    format!(
        "[{bar}] {} %  {} of {}, {files}{rate}/s{left}",
        part(100),
        size(far.done_bytes),
        size(total)
    )
}

/// `12 s`, `3 min 5 s`, `2 h 10 min`.
fn duration(seconds: f64) -> String {
    // Saturates.
    let seconds = seconds.ceil() as u64;
    match (seconds / 3600, seconds / 60 % 60, seconds % 60) {
        (0, 0, seconds) => format!("{seconds} s"),
        (0, minutes, seconds) => format!("{minutes} min {seconds} s"),
        (hours, minutes, _) => format!("{hours} h {minutes} min"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    fn far(done_bytes: u64, total_bytes: u64, counted: bool) -> Far {
        Far {
            done_bytes,
            already_bytes: 0,
            total_bytes,
            counted,
            done_files: 3,
            files: 8,
        }
    }

    #[test]
    fn the_line_says_how_far_it_is_how_fast_and_how_long_it_will_take() {
        let half = text(&far(50 * MIB, 100 * MIB, true), 10.0 * MIB as f64);
        assert_eq!(
            half,
            "[############............] 50 %  50.0 MiB of 100.0 MiB, 3 of 8 files, 10.0 MiB/s, 5 s left"
        );
        let stuck = text(&far(50 * MIB, 100 * MIB, true), 0.0);
        assert!(stuck.ends_with("0 B/s, no progress"), "{stuck}");
        let counting = text(&far(0, MIB, false), 0.0);
        assert!(counting.starts_with("counting: 0 B of 1.00 MiB so far"));
    }

    #[test]
    fn what_is_not_about_files_speaks_of_none() {
        let far = Far {
            files: 0,
            ..far(50 * MIB, 100 * MIB, true)
        };
        let half = text(&far, 10.0 * MIB as f64);
        assert!(
            half.ends_with("50 %  50.0 MiB of 100.0 MiB, 10.0 MiB/s, 5 s left"),
            "{half}"
        );
    }

    #[test]
    fn nothing_to_do_and_more_than_was_counted_are_no_trouble() {
        assert!(text(&far(0, 0, true), 0.0).contains("100 %  0 B of 0 B"));
        assert!(text(&far(2 * MIB, MIB, true), 1.0).contains("100 %"));
        assert!(text(&far(u64::MAX, u64::MAX, true), 1.0).contains("100 %"));
    }

    #[test]
    fn durations_are_told_in_two_units_at_most() {
        for (seconds, told) in [(0.2, "1 s"), (185.0, "3 min 5 s"), (7800.0, "2 h 10 min")] {
            assert_eq!(duration(seconds), told);
        }
    }
}
