//! Text of other members, made safe for a terminal: names of files and nodes may hold whatever their writers like.

use serde::Serialize;

/// Whether a character could steer a terminal or turn the direction of writing: C0, DEL and C1 controls, line and
/// paragraph separators, and the marks of bidirectional text.
pub fn steers(c: char) -> bool {
    c.is_control()
        || matches!(c, '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

/// One line of JSON in which every character that [`steers`] is escaped, so that it may be printed as it is.
///
/// # Errors
/// As `serde_json`; none of the types of [`super::types`] gives one.
pub fn json_line(value: &impl Serialize) -> Result<String, serde_json::Error> {
    Ok(escaped(&serde_json::to_string(value)?, false))
}

/// The same over several lines, for people to read.
///
/// # Errors
/// See [`json_line`].
pub fn json_pretty(value: &impl Serialize) -> Result<String, serde_json::Error> {
    Ok(escaped(&serde_json::to_string_pretty(value)?, true))
}

/// Outside of its strings JSON is ASCII without controls (but for the line ends of the pretty form, which strings have
/// escaped), so that characters can be escaped without a look at where they stand.
fn escaped(json: &str, line_ends: bool) -> String {
    let mut safe = String::with_capacity(json.len());
    for c in json.chars() {
        if steers(c) && !(line_ends && c == '\n') {
            // All of them are in the basic plane: one escape does.
            safe.push_str(&format!("\\u{:04x}", u32::from(c)));
        } else {
            safe.push(c);
        }
    }
    safe
}

/// Lower-case hexadecimal, for bytes that are no text.
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// What [`hex`] wrote; `None` for anything else.
pub fn unhex(text: &str) -> Option<Vec<u8>> {
    let digit = |byte: &u8| char::from(*byte).to_digit(16);
    let pairs = text.as_bytes().chunks(2).map(|pair| match pair {
        [high, low] => u8::try_from(digit(high)? * 16 + digit(low)?).ok(),
        _ => None,
    });
    pairs.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_survive_as_hexadecimal() {
        let bytes: Vec<u8> = (0..=255).collect();
        assert_eq!(unhex(&hex(&bytes)), Some(bytes));
        assert_eq!(unhex(""), Some(Vec::new()));
        for wrong in ["a", "0g", "é1", "abc"] {
            assert_eq!(unhex(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn json_can_be_printed_whatever_a_name_holds_and_reads_back_as_it_was() {
        let name = "a\x1b]52;c;\x07\nb\u{7f}\u{9b}31m\u{202e}gpj\u{2066}\u{61c}é\u{2028}";
        for json in [json_line(&[name]).unwrap(), json_pretty(&[name]).unwrap()] {
            assert!(
                !json.trim().replace('\n', "").chars().any(steers),
                "{json:?}"
            );
            assert!(json.contains('é'));
            let back: Vec<String> = serde_json::from_str(&json).unwrap();
            assert_eq!(back, [name]);
        }
        assert_eq!(json_line(&[name]).unwrap().lines().count(), 1);
        assert_eq!(json_pretty(&[1]).unwrap(), "[\n  1\n]");
    }
}
