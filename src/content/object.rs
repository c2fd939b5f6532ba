//! Names and geometry of contents.

use std::{fmt, ops::Range, str::FromStr};

use serde::{Deserialize, Serialize};

/// Bytes in a block: the unit that is fetched, verified, cached and evicted.
pub const BLOCK_BYTES: u64 = 64 * 1024;

/// Contents up to this many bytes are values in the index; larger ones have a backing file.
pub const INLINE_BYTES_MAX: u64 = 4096;

/// The BLAKE3 hash of a file's bytes: what `b3sum` prints.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct ContentId(#[serde(with = "serde_bytes")] pub [u8; 32]);

impl fmt::Display for ContentId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for ContentId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Why a string is not a content id.
#[derive(Debug, thiserror::Error)]
#[error("a content id is 64 hexadecimal digits")]
pub struct ParseContentIdError;

impl FromStr for ContentId {
    type Err = ParseContentIdError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let hash = blake3::Hash::from_hex(text).map_err(|_| ParseContentIdError)?;
        Ok(Self(*hash.as_bytes()))
    }
}

/// A content together with its length: what an entry of the manifest names and what peers ask each other for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Object {
    /// The content id.
    pub content: ContentId,
    /// Length in bytes.
    pub size: u64,
}

impl Object {
    /// The empty content.
    pub fn empty() -> Self {
        Self {
            content: super::hash_bytes(&[]),
            size: 0,
        }
    }

    /// How many blocks the content has; the last one may be short. 0 for the empty content.
    pub fn blocks(&self) -> u64 {
        self.size.div_ceil(BLOCK_BYTES)
    }

    /// The blocks that hold the given bytes, cut to the content.
    pub fn blocks_of(&self, bytes: Range<u64>) -> Range<u64> {
        let end = bytes.end.min(self.size);
        let start = bytes.start.min(end);
        if start == end {
            return start / BLOCK_BYTES..start / BLOCK_BYTES;
        }
        start / BLOCK_BYTES..end.div_ceil(BLOCK_BYTES)
    }

    /// The bytes that the given blocks hold, cut to the content.
    pub fn bytes_of(&self, blocks: Range<u64>) -> Range<u64> {
        let start = blocks.start.saturating_mul(BLOCK_BYTES).min(self.size);
        start
            ..blocks
                .end
                .saturating_mul(BLOCK_BYTES)
                .min(self.size)
                .max(start)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::content::sizes::INTERESTING_SIZES;

    #[test]
    fn blocks_and_bytes_agree_at_every_size() {
        for &size in INTERESTING_SIZES {
            let object = Object {
                size,
                ..Object::empty()
            };
            let all = 0..object.blocks();
            assert_eq!(object.bytes_of(all.clone()), 0..size);
            assert_eq!(object.bytes_of(0..u64::MAX), 0..size);
            assert_eq!(object.blocks_of(0..u64::MAX), all);
            assert!(object.blocks_of(size..u64::MAX).is_empty());
            for block in all {
                let bytes = object.bytes_of(block..block + 1);
                assert!((1..=BLOCK_BYTES).contains(&(bytes.end - bytes.start)));
                for byte in [bytes.start, bytes.end - 1] {
                    assert_eq!(object.blocks_of(byte..byte + 1), block..block + 1);
                }
            }
        }
    }

    #[test]
    fn content_ids_are_read_as_they_are_written() {
        let id = super::super::hash_bytes(b"x");
        assert_eq!(id.to_string().parse::<ContentId>().unwrap(), id);
        assert!("xyz".parse::<ContentId>().is_err());
        assert!(id.to_string()[1..].parse::<ContentId>().is_err());
    }
}
