//! Sizes, rates, durations and times as people write and read them.

use std::time::Duration;

use crate::{bucket::LIMIT_MIN, control::text::steers};

/// A size: a number with an optional `K M G T` or `KiB…` suffix, powers of 1024.
pub(crate) fn parse_size(text: &str) -> Result<u64, String> {
    let text = text.trim();
    let digits = text
        .find(|c: char| !c.is_ascii_digit() && c != '.')
        .unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let factor: u64 = match unit.trim().to_ascii_lowercase().as_str() {
        "" | "b" => 1,
        "k" | "kb" | "kib" => 1 << 10,
        "m" | "mb" | "mib" => 1 << 20,
        "g" | "gb" | "gib" => 1 << 30,
        "t" | "tb" | "tib" => 1 << 40,
        _ => {
            return Err(format!(
                "{text:?} is no size: use a number with K, M, G or T, such as 10G"
            ));
        }
    };
    let no_size = || format!("{text:?} is no size: use a number with K, M, G or T, such as 10G");
    if let Ok(whole) = number.parse::<u64>() {
        return whole.checked_mul(factor).ok_or_else(no_size);
    }
    let fraction: f64 = number.parse().map_err(|_| no_size())?;
    let bytes = fraction * factor as f64;
    if bytes.is_finite() && bytes < u64::MAX as f64 {
        Ok(bytes as u64)
    } else {
        Err(no_size())
    }
}

/// A rate: a size a second, with or without `/s`; no lower than what peers can work with.
pub(crate) fn parse_rate(text: &str) -> Result<u64, String> {
    let size = text.trim();
    let rate = parse_size(size.strip_suffix("/s").unwrap_or(size))?;
    match rate < LIMIT_MIN {
        true => Err(format!(
            "{text:?} is too low a limit: {} a second is the least",
            self::size(LIMIT_MIN)
        )),
        false => Ok(rate),
    }
}

/// A duration: a number with `ms`, `s`, `m`, `h` or `d`.
pub(crate) fn parse_duration(text: &str) -> Result<Duration, String> {
    let text = text.trim();
    let no_duration =
        || format!("{text:?} is no duration: use a number with ms, s, m, h or d, such as 20s");
    let digits = text
        .find(|c: char| !c.is_ascii_digit() && c != '.')
        .unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let seconds_each = match unit.trim() {
        "ms" => 0.001,
        "s" => 1.0,
        "m" => 60.0,
        "h" => 3600.0,
        "d" => 86400.0,
        _ => return Err(no_duration()),
    };
    let number: f64 = number.parse().map_err(|_| no_duration())?;
    Duration::try_from_secs_f64(number * seconds_each).map_err(|_| no_duration())
}

/// Bytes with a binary unit and three significant digits.
pub(crate) fn size(bytes: u64) -> String {
    const UNITS: [&str; 5] = ["B", "KiB", "MiB", "GiB", "TiB"];
    let mut value = bytes as f64;
    let mut unit = 0;
    while value >= 1024.0 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    if unit == 0 {
        format!("{bytes} B")
    } else if value < 10.0 {
        format!("{value:.2} {}", UNITS[unit])
    } else {
        format!("{value:.1} {}", UNITS[unit])
    }
}

/// Text of other members, safe on a terminal: what could steer it, or turn the direction of writing, is shown as U+FFFD.
/// `--json` has it escaped.
pub(crate) fn plain(text: &str) -> String {
    let safe = |c| if steers(c) { '\u{fffd}' } else { c };
    text.chars().map(safe).collect()
}

/// A moment as `2025-11-20 17.28.05`, UTC, as the names of conflict copies have it.
pub(crate) fn utc(seconds: f64) -> String {
    // Times of entries are never negative; what doesn't fit is cut off.
    crate::manifest::utc(crate::manifest::HybridTime((seconds * 1e9) as u64))
}

/// `1 file`, `2 files`.
pub(crate) fn count(number: u64, one: &str, many: &str) -> String {
    format!("{number} {}", if number == 1 { one } else { many })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_powers_of_1024_whatever_the_suffix() {
        for (text, bytes) in [
            ("0", 0),
            ("512", 512),
            ("1K", 1024),
            ("1KiB", 1024),
            ("1.5M", 3 << 19),
            ("10G", 10 << 30),
            ("2 TiB", 2 << 40),
        ] {
            assert_eq!(parse_size(text), Ok(bytes), "{text}");
        }
        for text in ["", "G", "-1", "1X", "99999999999999T"] {
            assert!(parse_size(text).is_err(), "{text}");
        }
    }

    #[test]
    fn names_of_others_cannot_steer_a_terminal() {
        assert_eq!(plain("a b\u{e9}"), "a b\u{e9}");
        assert_eq!(
            plain("a\x1b]52;c;\x07\nb"),
            "a\u{fffd}]52;c;\u{fffd}\u{fffd}b"
        );
        assert_eq!(plain("gpj.\u{202e}exe"), "gpj.\u{fffd}exe");
    }

    #[test]
    fn durations_need_a_unit() {
        assert_eq!(parse_duration("250ms"), Ok(Duration::from_millis(250)));
        assert_eq!(parse_duration("20s"), Ok(Duration::from_secs(20)));
        assert_eq!(parse_duration("1.5h"), Ok(Duration::from_secs(5400)));
        for text in ["", "20", "s", "-1s", "1y"] {
            assert!(parse_duration(text).is_err(), "{text}");
        }
    }
}
