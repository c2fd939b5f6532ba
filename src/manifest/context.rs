//! Causality: who wrote what, and which writes a state has seen.

use std::{collections::BTreeMap, fmt};

use serde::{
    Deserialize, Deserializer, Serialize, Serializer,
    de::{self, Unexpected},
};
use smallvec::SmallVec;

use super::cbor::{Malformed, Reader, Writer};

/// Most writers of a context that is decoded.
pub const WRITERS_MAX: usize = 65_536;
/// Most ranges of one writer's sequences that are told apart.
const RANGES_MAX: usize = 4;

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

/// The sequences seen of each writer: ranges, ascending. There is one, from 1 on, where sequences were seen in order; a writer
/// that cannot know whether it has forgotten some of its own (see [`CausalContext::add_apart`]) begins another.
/// Encoded as a map in order of the writers, each with the last sequence of its one range from 1 on, or with an array: that
/// number, where there is such a range, and the first and the last sequence of each further one. Anything else is refused.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct CausalContext(BTreeMap<WriterNumber, Seen>);

/// Sequences of one writer: ranges (first, last) from 1 on, ascending, at least one sequence apart; there is one at least.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
struct Seen(SmallVec<[(u64, u64); 1]>);

impl Seen {
    fn covers(&self, first: u64, last: u64) -> bool {
        self.0
            .iter()
            .any(|range| range.0 <= first && last <= range.1)
    }

    fn last(&self) -> u64 {
        self.0.last().map_or(0, |range| range.1)
    }

    /// Adds a range. Of more than [`RANGES_MAX`] the lowest become one.
    fn insert(&mut self, mut first: u64, mut last: u64) {
        self.0.retain(|range| {
            let is_apart = range.1.saturating_add(1) < first || last.saturating_add(1) < range.0;
            if !is_apart {
                (first, last) = (first.min(range.0), last.max(range.1));
            }
            is_apart
        });
        let place = self.0.partition_point(|range| range.0 < first);
        self.0.insert(place, (first, last));
        while self.0.len() > RANGES_MAX {
            let (lowest, _) = self.0.remove(0);
            self.0[0].0 = lowest;
        }
    }

    /// As it is encoded.
    fn numbers(&self) -> SmallVec<[u64; 2 * RANGES_MAX]> {
        let numbers = self.0.iter().flat_map(|&(first, last)| [first, last]);
        let is_whole = self.0.first().is_some_and(|range| range.0 == 1);
        numbers.skip(usize::from(is_whole)).collect()
    }

    /// What [`Self::numbers`] gives; `None` for anything else.
    fn of(numbers: &[u64]) -> Option<Self> {
        let (whole, apart) = match numbers.len() % 2 {
            0 => (None, numbers),
            _ => (numbers.first(), numbers.get(1..)?),
        };
        let mut seen = Self(whole.map(|&last| (1, last)).into_iter().collect());
        seen.0
            .extend(apart.chunks(2).map(|range| (range[0], range[1])));
        let mut next = Some(1);
        for &(first, last) in &seen.0 {
            if next.is_none_or(|next| first < next)
                || last < first
                || (first == 1 && whole.is_none())
            {
                return None;
            }
            next = last.checked_add(2);
        }
        (1..=RANGES_MAX).contains(&seen.0.len()).then_some(seen)
    }
}

impl CausalContext {
    /// Whether the write has been seen.
    pub fn covers(&self, dot: Dot) -> bool {
        let seen = self.0.get(&dot.writer);
        dot.sequence == 0 || seen.is_some_and(|seen| seen.covers(dot.sequence, dot.sequence))
    }
    /// The highest sequence seen of a writer; 0 for none.
    pub fn sequence(&self, writer: WriterNumber) -> u64 {
        self.0.get(&writer).map_or(0, Seen::last)
    }
    /// Whether everything that `other` has seen has been seen here.
    pub fn includes(&self, other: &Self) -> bool {
        let mut ranges = other.ranges();
        ranges.all(|(writer, first, last)| {
            let seen = self.0.get(&writer);
            seen.is_some_and(|seen| seen.covers(first, last))
        })
    }
    /// Notes a write, and what lies between it and the last one before it that was seen. There is no write 0.
    pub fn add(&mut self, dot: Dot) {
        if dot.sequence > 0 {
            let seen = self.0.entry(dot.writer).or_default();
            let before = seen.0.iter().rev().find(|range| range.0 <= dot.sequence);
            let first = before.map_or(1, |range| range.0);
            seen.insert(first, dot.sequence);
        }
    }
    /// Notes a write, and those from `since` on, but not what lies before: a writer whose disk may have been set back has
    /// signed there what it does not know of, perhaps. Whoever has seen that keeps it when the two states are merged, while a
    /// context that stands for all below would have it removed.
    pub fn add_apart(&mut self, dot: Dot, since: u64) {
        let since = since.clamp(1, dot.sequence.max(1));
        if dot.sequence > 0 {
            self.0
                .entry(dot.writer)
                .or_default()
                .insert(since, dot.sequence);
        }
    }
    /// Notes everything that `other` has seen.
    pub fn join(&mut self, other: &Self) {
        for (writer, first, last) in other.ranges() {
            self.0.entry(writer).or_default().insert(first, last);
        }
    }
    /// Notes everything that lies between what was seen of each writer.
    pub fn close_gaps(&mut self) {
        for seen in self.0.values_mut() {
            *seen = Seen(SmallVec::from([(1, seen.last())]));
        }
    }
    /// What was seen before the given write of each writer.
    pub fn before(&self, limits: &[Dot]) -> Self {
        let mut result = Self::default();
        for (writer, first, last) in self.ranges() {
            let limits = limits.iter().filter(|limit| limit.writer == writer);
            let limits = limits.map(|limit| limit.sequence.saturating_sub(1));
            let last = limits.min().unwrap_or(last).min(last);
            if first <= last {
                result.0.entry(writer).or_default().insert(first, last);
            }
        }
        result
    }
    /// What was seen of all but one writer.
    pub fn of_others(&self, writer: WriterNumber) -> Self {
        let mut others = self.clone();
        others.0.remove(&writer);
        others
    }
    /// The last write of each range that was seen of a writer, ascending.
    pub fn last_of(&self, writer: WriterNumber) -> impl Iterator<Item = u64> + '_ {
        let seen = self.0.get(&writer).into_iter();
        seen.flat_map(|seen| seen.0.iter().map(|range| range.1))
    }
    /// Writers with the first and the last sequence of each range, in order.
    pub fn ranges(&self) -> impl Iterator<Item = (WriterNumber, u64, u64)> + '_ {
        self.0.iter().flat_map(|(writer, seen)| {
            let ranges = seen.0.iter();
            ranges.map(|&(first, last)| (*writer, first, last))
        })
    }
    /// What a signature covers of it: writers with the numbers that they are encoded with, in order.
    pub fn numbers(&self) -> impl Iterator<Item = (WriterNumber, u64)> + '_ {
        self.0.iter().flat_map(|(writer, seen)| {
            let numbers = seen.numbers().into_iter();
            numbers.map(|number| (*writer, number))
        })
    }
    /// As serde encodes it.
    pub(super) fn write(&self, out: &mut Writer) {
        out.map(self.len());
        for (writer, seen) in &self.0 {
            out.uint(writer.0);
            let numbers = seen.numbers();
            if numbers.len() > 1 {
                out.array(numbers.len());
            }
            numbers.into_iter().for_each(|number| out.uint(number));
        }
    }
    /// Reads what [`Self::write`] wrote, of at most `max` writers. Accepts other orders, and zeros, which it drops;
    /// callers re-encode and compare.
    pub(super) fn read(input: &mut Reader<'_>, max: usize) -> Result<Self, Malformed> {
        let mut context = Self::default();
        for _ in 0..input.map(max)? {
            let writer = WriterNumber(input.uint()?);
            let seen = match input.is_array() {
                false => match input.uint()? {
                    0 => continue,
                    last => Seen(SmallVec::from([(1, last)])),
                },
                true => {
                    let mut numbers = SmallVec::<[u64; 2 * RANGES_MAX]>::new();
                    for _ in 0..input.array(2 * RANGES_MAX)? {
                        numbers.push(input.uint()?);
                    }
                    Seen::of(&numbers).ok_or(Malformed("ranges out of order"))?
                }
            };
            context.0.insert(writer, seen);
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

impl Serialize for CausalContext {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(&self.0)
    }
}

impl Serialize for Seen {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self.numbers().as_slice() {
            [last] => serializer.serialize_u64(*last),
            numbers => serializer.collect_seq(numbers),
        }
    }
}

impl<'de> Deserialize<'de> for CausalContext {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(ContextVisitor)
    }
}

impl<'de> Deserialize<'de> for Seen {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(SeenVisitor)
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
        while let Some((writer, seen)) = map.next_entry::<WriterNumber, Seen>()? {
            let in_order = context
                .last_key_value()
                .is_none_or(|(last, _)| *last < writer);
            if !in_order || context.len() >= WRITERS_MAX {
                return Err(de::Error::custom(
                    "a causal context out of order, or too long",
                ));
            }
            context.insert(writer, seen);
        }
        Ok(CausalContext(context))
    }
}

struct SeenVisitor;

impl<'de> de::Visitor<'de> for SeenVisitor {
    type Value = Seen;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a sequence above 0, or ranges of them in order")
    }
    fn visit_u64<E: de::Error>(self, last: u64) -> Result<Self::Value, E> {
        Seen::of(&[last]).ok_or_else(|| de::Error::invalid_value(Unexpected::Unsigned(last), &self))
    }
    fn visit_seq<A: de::SeqAccess<'de>>(self, mut items: A) -> Result<Self::Value, A::Error> {
        let mut numbers = SmallVec::<[u64; 2 * RANGES_MAX]>::new();
        while let Some(number) = items.next_element()? {
            if numbers.len() >= 2 * RANGES_MAX {
                return Err(de::Error::custom("too many ranges"));
            }
            numbers.push(number);
        }
        let is_short = numbers.len() < 2;
        let seen = Seen::of(&numbers).filter(|_| !is_short);
        seen.ok_or_else(|| de::Error::invalid_value(Unexpected::Seq, &self))
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::{collection::vec, prelude::*};

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
        assert!(decode(&[0xa1, 1, 0x82, 3, 4]).is_some());
        assert!(decode(&[0xa1, 1, 0x83, 3, 5, 5]).is_some());
        for refused in [
            &[0xa1, 1, 0x80][..],
            &[0xa1, 1, 0x81, 3],
            &[0xa1, 1, 0x82, 1, 4],
            &[0xa1, 1, 0x82, 4, 3],
            &[0xa1, 1, 0x82, 0, 3],
            &[0xa1, 1, 0x83, 3, 4, 4],
            &[0xa1, 1, 0x83, 3, 3, 4],
            &[0xa1, 1, 0x89, 1, 3, 3, 5, 5, 7, 7, 9, 9],
            // Behind the last number.
            &[
                0xa1, 1, 0x84, 3, 0x1b, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x1b, 0xff,
                0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x1b, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff,
                0xff, 0xff,
            ],
        ] {
            assert!(decode(refused).is_none(), "{refused:?}");
            assert!(
                CausalContext::read(&mut Reader::new(refused), 1).map(|context| {
                    let mut out = Writer::default();
                    context.write(&mut out);
                    out.into_bytes() == refused
                }) != Ok(true)
            );
        }
        assert!(decode(&[0xbb, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 1, 1]).is_none());
        let many = |count: u64| {
            let all: Vec<_> = (0..count).map(|writer| (writer, 1)).collect();
            cbor4ii::serde::to_vec(Vec::new(), &context(&all)).unwrap()
        };
        assert!(decode(&many(65_536)).is_some());
        assert!(decode(&many(65_537)).is_none());
    }

    /// What a context says of one writer's sequences up to a number.
    fn seen(context: &CausalContext, up_to: u64) -> Vec<u64> {
        let writer = WriterNumber(1);
        let covered = |sequence: &u64| {
            context.covers(Dot {
                writer,
                sequence: *sequence,
            })
        };
        (1..=up_to).filter(covered).collect()
    }

    /// A context of one writer, of ranges.
    fn apart(ranges: &[(u64, u64)]) -> CausalContext {
        let mut context = CausalContext::default();
        for &(since, sequence) in ranges {
            let writer = WriterNumber(1);
            context.add_apart(Dot { writer, sequence }, since);
        }
        context
    }

    #[test]
    fn what_lies_before_a_range_that_stands_apart_is_not_taken_for_seen() {
        let mut context = apart(&[(1, 3), (7, 8)]);
        assert_eq!(seen(&context, 20), [1, 2, 3, 7, 8]);
        assert_eq!(context.sequence(WriterNumber(1)), 8);
        assert!(context.last_of(WriterNumber(1)).eq([3, 8]));
        let forgotten = self::context(&[(1, 5)]);
        assert!(!context.includes(&forgotten) && !forgotten.includes(&context));
        let writer = WriterNumber(1);
        context.add(Dot {
            writer,
            sequence: 10,
        });
        assert_eq!(seen(&context, 20), [1, 2, 3, 7, 8, 9, 10]);
        let limit = Dot {
            writer,
            sequence: 9,
        };
        assert_eq!(seen(&context.before(&[limit]), 20), [1, 2, 3, 7, 8]);
        let first = Dot {
            writer,
            sequence: 1,
        };
        assert!(context.before(&[first]).is_empty());
        context.join(&forgotten);
        assert_eq!(seen(&context, 20), [1, 2, 3, 4, 5, 7, 8, 9, 10]);
        assert!(context.includes(&forgotten));
        let before = context.clone();
        context.close_gaps();
        assert!(context.includes(&before));
        assert_eq!(context, self::context(&[(1, 10)]));
        // Of too many the lowest are one.
        let many = apart(&[(3, 3), (5, 5), (7, 7), (9, 9), (11, 11)]);
        assert_eq!(seen(&many, 20), [3, 4, 5, 7, 9, 11]);
    }

    proptest! {
        #[test]
        fn ranges_are_the_sets_that_they_stand_for(
            one in vec((1u64..24, 0u64..4), 0..3),
            other in vec((1u64..24, 0u64..4), 0..2),
        ) {
            let ends = |ranges: &[(u64, u64)]| {
                let ends = ranges.iter().map(|(first, more)| (*first, first + more));
                ends.collect::<Vec<_>>()
            };
            let (one, other) = (apart(&ends(&one)), apart(&ends(&other)));
            let mut both = one.clone();
            both.join(&other);
            let set = |context| seen(context, 40).into_iter().collect::<BTreeSet<_>>();
            let union: BTreeSet<_> = set(&one).union(&set(&other)).copied().collect();
            prop_assert!(set(&both).is_superset(&union));
            let starts = union.iter().filter(|sequence| !union.contains(&(*sequence - 1)));
            if starts.count() <= RANGES_MAX {
                prop_assert_eq!(&set(&both), &union);
            }
            prop_assert_eq!(one.includes(&other), set(&one).is_superset(&set(&other)));
            for context in [one, other, both] {
                let bytes = cbor4ii::serde::to_vec(Vec::new(), &context).unwrap();
                prop_assert_eq!(decode(&bytes), Some(context.clone()));
                let mut out = Writer::default();
                context.write(&mut out);
                let written = out.into_bytes();
                prop_assert_eq!(&written, &bytes);
                prop_assert_eq!(CausalContext::read(&mut Reader::new(&bytes), 1), Ok(context));
            }
        }
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
