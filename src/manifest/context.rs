//! Causality: who wrote what, and which writes a state has seen.

use std::{collections::BTreeMap, fmt};

use serde::{Deserialize, Deserializer, Serialize, de};

use super::cbor::{Malformed, Reader, Writer};

/// Most writers of a context that is decoded.
pub const WRITERS_MAX: usize = 65_536;

/// Number of a writer: the first eight bytes, big-endian, of the BLAKE3 hash of its peer id's bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct WriterNumber(pub u64);

/// One write: the sequence of the head that brought it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Dot {
    /// Who wrote.
    pub writer: WriterNumber,
    /// Which of its heads brought it; the first is 1.
    pub sequence: u64,
}

/// Hybrid logical time (Kulkarni et al. 2014): nanoseconds since 1970 that never run backwards at one writer and are
/// later than everything that writer has seen.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize,
)]
pub struct HybridTime(pub u64);

/// The highest sequence seen of each writer. Sequences of a writer are seen in order, so this stands for all below.
/// Encoded as a map in order of the writers, without zeros; anything else is refused.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize)]
pub struct CausalContext(BTreeMap<WriterNumber, u64>);

impl CausalContext {
    /// Whether the write has been seen.
    pub fn covers(&self, dot: Dot) -> bool {
        self.sequence(dot.writer) >= dot.sequence
    }
    /// The highest sequence seen of a writer; 0 for none.
    pub fn sequence(&self, writer: WriterNumber) -> u64 {
        self.0.get(&writer).copied().unwrap_or(0)
    }
    /// Whether everything that `other` has seen has been seen here.
    pub fn includes(&self, other: &Self) -> bool {
        other
            .0
            .iter()
            .all(|(writer, sequence)| self.sequence(*writer) >= *sequence)
    }
    /// Notes a write. There is no write 0.
    pub fn add(&mut self, dot: Dot) {
        if dot.sequence == 0 {
            return;
        }
        let seen = self.0.entry(dot.writer).or_insert(0);
        *seen = (*seen).max(dot.sequence);
    }
    /// Notes everything that `other` has seen.
    pub fn join(&mut self, other: &Self) {
        for (&writer, &sequence) in &other.0 {
            self.add(Dot { writer, sequence });
        }
    }
    /// Writers with their highest sequence, in order.
    pub fn iter(&self) -> impl Iterator<Item = Dot> + '_ {
        self.0
            .iter()
            .map(|(&writer, &sequence)| Dot { writer, sequence })
    }
    /// As serde encodes it.
    pub(super) fn write(&self, out: &mut Writer) {
        out.map(self.len());
        for dot in self.iter() {
            out.uint(dot.writer.0);
            out.uint(dot.sequence);
        }
    }
    /// Reads what [`Self::write`] wrote, of at most `max` writers. Accepts other orders, and zeros, which it drops;
    /// callers re-encode and compare.
    pub(super) fn read(input: &mut Reader<'_>, max: usize) -> Result<Self, Malformed> {
        let mut context = Self::default();
        for _ in 0..input.map(max)? {
            context.add(Dot {
                writer: WriterNumber(input.uint()?),
                sequence: input.uint()?,
            });
        }
        Ok(context)
    }
    /// Number of writers.
    pub fn len(&self) -> usize {
        self.0.len()
    }
    /// Whether nothing has been seen.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl<'de> Deserialize<'de> for CausalContext {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(ContextVisitor)
    }
}

struct ContextVisitor;

impl<'de> de::Visitor<'de> for ContextVisitor {
    type Value = CausalContext;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a map from writers to sequences above 0, in order")
    }
    fn visit_map<A: de::MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let mut context = BTreeMap::new();
        while let Some((writer, sequence)) = map.next_entry::<WriterNumber, u64>()? {
            let in_order = context
                .last_key_value()
                .is_none_or(|(last, _)| *last < writer);
            if !in_order || sequence == 0 || context.len() >= WRITERS_MAX {
                return Err(de::Error::custom(
                    "a causal context out of order, with a 0, or too long",
                ));
            }
            context.insert(writer, sequence);
        }
        Ok(CausalContext(context))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn context(dots: &[(u64, u64)]) -> CausalContext {
        let mut context = CausalContext::default();
        for &(writer, sequence) in dots {
            let writer = WriterNumber(writer);
            context.add(Dot { writer, sequence });
        }
        context
    }
    fn decode(bytes: &[u8]) -> Option<CausalContext> {
        cbor4ii::serde::from_slice(bytes).ok()
    }

    #[test]
    fn a_context_survives_its_encoding() {
        let context = context(&[(9, 3), (1, 2), (9, 1), (4, 0)]);
        let bytes = cbor4ii::serde::to_vec(Vec::new(), &context).unwrap();
        assert_eq!(bytes, [0xa2, 1, 2, 9, 3]);
        assert_eq!(decode(&bytes), Some(context.clone()));
        let mut out = Writer::default();
        context.write(&mut out);
        assert_eq!(out.into_bytes(), bytes);
        assert_eq!(
            CausalContext::read(&mut Reader::new(&bytes), 2),
            Ok(context)
        );
        assert!(CausalContext::read(&mut Reader::new(&bytes), 1).is_err());
    }

    #[test]
    fn other_encodings_are_refused() {
        assert!(decode(&[0xa2, 9, 3, 1, 2]).is_none(), "out of order");
        assert!(decode(&[0xa2, 1, 2, 1, 3]).is_none(), "a writer twice");
        assert!(decode(&[0xa1, 1, 0]).is_none(), "a sequence of 0");
        assert!(decode(&[0xbb, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 1, 1]).is_none());
        let many = |count: u64| {
            let all: Vec<_> = (0..count).map(|writer| (writer, 1)).collect();
            cbor4ii::serde::to_vec(Vec::new(), &context(&all)).unwrap()
        };
        assert!(decode(&many(65_536)).is_some());
        assert!(decode(&many(65_537)).is_none());
    }

    #[test]
    fn joining_covers_both_sides() {
        let (one, other) = (context(&[(1, 2), (2, 1)]), context(&[(1, 1), (3, 5)]));
        let mut both = one.clone();
        both.join(&other);
        assert!(both.includes(&one) && both.includes(&other));
        assert!(!one.includes(&both) && !other.includes(&one));
        assert_eq!(both, context(&[(1, 2), (2, 1), (3, 5)]));
        assert_eq!(both.sequence(WriterNumber(3)), 5);
        let dot = |writer, sequence| Dot {
            writer: WriterNumber(writer),
            sequence,
        };
        assert!(both.covers(dot(3, 5)) && !both.covers(dot(3, 6)) && !both.covers(dot(4, 1)));
    }
}
