//! Which bytes of a file that is being written come from where. Pure.
//!
//! A byte below `size` is *written* (it stands in the staging file), or *base* (below `base_bytes`, in the content that the
//! file had), or zero. A truncation lowers `base_bytes`: what was cut off never shows again, but
//! where it is taken anew from a file that has it.
//! Written ranges are disjoint, non-adjacent, non-empty, and below `size`.

use std::{collections::BTreeMap, ops::Range};

use super::hashed::Hashed;
use crate::content::{BLOCK_BYTES, BlockSet};

/// The largest size of a file: what the system's offsets can say.
pub(crate) const FILE_BYTES_MAX: u64 = i64::MAX as u64;

/// So many written ranges are added up whenever somebody asks how much a file takes.
const COUNTED_MAX: usize = 1024;

/// Where bytes come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Source {
    /// The staging file, at the same offset.
    Staging,
    /// The content that the file had, at the same offset.
    Base,
    /// Zeros.
    Zero,
}

/// See the module.
#[derive(Clone, Debug, Default)]
pub(crate) struct Overlay {
    base_bytes: u64,
    size: u64,
    written: BTreeMap<u64, u64>,
    /// What was hashed of it so far.
    pub(crate) hashed: Hashed,
}

/// Whatever is hashed.
impl PartialEq for Overlay {
    fn eq(&self, other: &Self) -> bool {
        let of = |overlay: &Self| (overlay.base_bytes, overlay.size);
        of(self) == of(other) && self.written == other.written
    }
}

impl Overlay {
    /// A file that is all base.
    pub(crate) fn over(base_bytes: u64) -> Self {
        Self {
            base_bytes,
            size: base_bytes,
            ..Self::default()
        }
    }

    /// From a journal record; `None` when it contradicts itself.
    pub(crate) fn restore(base_bytes: u64, size: u64, written: &[(u64, u64)]) -> Option<Self> {
        if base_bytes > size || size > FILE_BYTES_MAX {
            return None;
        }
        let mut overlay = Self {
            base_bytes,
            size,
            ..Self::default()
        };
        for &(start, end) in written {
            if start >= end || end > size {
                return None;
            }
            overlay.mark(start..end);
        }
        Some(overlay)
    }

    /// Length of the file.
    pub(crate) fn size(&self) -> u64 {
        self.size
    }

    /// How many bytes of the base still show, where nothing is written over them.
    pub(crate) fn base_bytes(&self) -> u64 {
        self.base_bytes
    }

    /// Bytes that are no hole; all of them where it would take long to tell.
    pub(crate) fn taken(&self) -> u64 {
        if self.written.len() > COUNTED_MAX {
            return self.size;
        }
        let pieces = self.pieces(0..self.size);
        let taken = pieces.iter().filter(|(_, source)| *source != Source::Zero);
        taken.map(|(piece, _)| piece.end - piece.start).sum()
    }

    /// The next byte from `offset` on that is data, or that is not; the end of the file is not. `None` beyond the end, and
    /// where no data follows.
    pub(crate) fn seek(&self, offset: u64, data: bool) -> Option<u64> {
        if offset >= self.size {
            return None;
        }
        let pieces = self.pieces(offset..self.size).into_iter();
        let mut found = pieces.filter(|(_, source)| (*source != Source::Zero) == data);
        match found.next() {
            Some((piece, _)) => Some(piece.start),
            None => (!data).then_some(self.size),
        }
    }

    /// The written ranges in order, as pairs of start and end.
    pub(crate) fn written(&self) -> Vec<(u64, u64)> {
        self.written
            .iter()
            .map(|(&start, &end)| (start, end))
            .collect()
    }

    /// Whether the file is its base and nothing else, of which there are `base_size` bytes.
    pub(crate) fn is_base(&self, base_size: u64) -> bool {
        self.written.is_empty() && self.base_bytes == base_size && self.size == base_size
    }

    /// Notes that the range stands in the staging file now; the file grows where needed.
    pub(crate) fn write(&mut self, range: Range<u64>) {
        if range.is_empty() {
            return;
        }
        self.size = self.size.max(range.end);
        self.hashed.wrote(&range);
        self.mark(range);
    }

    /// Whole blocks of which every byte is the base's, but the file's last one.
    pub(crate) fn untouched(&self) -> BlockSet {
        let mut blocks = BlockSet::default();
        for (piece, source) in self.pieces(0..self.size) {
            if source == Source::Base {
                blocks.insert(piece.start.div_ceil(BLOCK_BYTES)..piece.end / BLOCK_BYTES);
            }
        }
        let last = self.size.saturating_sub(1) / BLOCK_BYTES;
        blocks.remove(last..last + 1);
        blocks
    }

    /// Sets the length. What is cut off is gone; what is added is zeros.
    pub(crate) fn truncate(&mut self, size: u64) {
        if size < self.size {
            self.base_bytes = self.base_bytes.min(size);
            self.cut(size..u64::MAX);
            self.hashed.spoil(&(size..u64::MAX));
        }
        self.size = size;
    }

    /// Makes a range within the file zeros.
    pub(crate) fn punch(&mut self, range: Range<u64>) {
        let range = range.start..range.end.min(self.size);
        if range.is_empty() {
            return;
        }
        self.hashed.spoil(&range);
        if range.end >= self.base_bytes {
            self.base_bytes = self.base_bytes.min(range.start);
            self.cut(range);
        } else {
            // Inside the base, zeros must stand in the staging file: the caller has cleared it there.
            self.mark(range);
        }
    }

    /// Whether [`Overlay::take`] may take a range that begins here: all below it is written, or base.
    pub(crate) fn may_take_from(&self, start: u64) -> bool {
        let below = self.pieces(0..start);
        start <= self.size && below.iter().all(|(_, source)| *source != Source::Zero)
    }

    /// Has the base show in a range, whatever was written there; the file grows where needed.
    pub(crate) fn take(&mut self, range: Range<u64>) {
        if range.is_empty() {
            return;
        }
        self.base_bytes = self.base_bytes.max(range.end);
        self.size = self.size.max(range.end);
        self.hashed.spoil(&range);
        self.cut(range);
    }

    /// The next whole blocks to hash, all of which stand in the staging file; [`Hashed::put`] takes their hashes.
    pub(crate) fn take_ripe(&mut self) -> Option<Range<u64>> {
        let (written, size) = (&self.written, self.size);
        self.hashed.take(|range| {
            let around = written.range(..=range.start).next_back();
            range.end <= size && around.is_some_and(|(_, end)| range.end <= *end)
        })
    }

    /// What a range is made of, in order, cut to the file.
    pub(crate) fn pieces(&self, range: Range<u64>) -> Vec<(Range<u64>, Source)> {
        let end = range.end.min(self.size);
        let mut at = range.start;
        let mut pieces = Vec::new();
        let first = self
            .written
            .range(..=at)
            .next_back()
            .map(|(&start, _)| start);
        for (&start, &stop) in self.written.range(first.unwrap_or(at)..) {
            if at >= end || start >= end {
                break;
            }
            if stop <= at {
                continue;
            }
            self.unwritten(at..start.max(at), &mut pieces);
            at = at.max(start);
            pieces.push((at..stop.min(end), Source::Staging));
            at = stop.min(end);
        }
        if at < end {
            self.unwritten(at..end, &mut pieces);
        }
        pieces
    }

    fn unwritten(&self, range: Range<u64>, pieces: &mut Vec<(Range<u64>, Source)>) {
        let split = self.base_bytes.clamp(range.start, range.end);
        if range.start < split {
            pieces.push((range.start..split, Source::Base));
        }
        if split < range.end {
            pieces.push((split..range.end, Source::Zero));
        }
    }

    fn mark(&mut self, range: Range<u64>) {
        let (mut start, mut end) = (range.start, range.end);
        // Joins every range that touches the new one.
        while let Some((&before, &stop)) = self.written.range(..=end).next_back() {
            if stop < start {
                break;
            }
            self.written.remove(&before);
            start = start.min(before);
            end = end.max(stop);
        }
        self.written.insert(start, end);
    }

    fn cut(&mut self, range: Range<u64>) {
        while let Some((&start, &stop)) = self.written.range(..range.end).next_back() {
            if stop <= range.start {
                break;
            }
            self.written.remove(&start);
            if stop > range.end {
                self.written.insert(range.end, stop);
            }
            if start < range.start {
                self.written.insert(start, range.start);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const SPACE: u64 = 200;

    #[derive(Clone, Debug)]
    enum Step {
        Write(u64, u64, u8),
        Truncate(u64),
        Punch(u64, u64),
        Take(u64, u64),
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            4 => (0..SPACE, 0..40u64, 1..=255u8).prop_map(|(at, len, byte)| Step::Write(at, len, byte)),
            2 => (0..SPACE).prop_map(Step::Truncate),
            1 => (0..SPACE, 0..60u64).prop_map(|(at, len)| Step::Punch(at, len)),
            2 => (0..SPACE, 0..60u64).prop_map(|(at, len)| Step::Take(at, len)),
        ]
    }

    fn shown(overlay: &Overlay, base: &[u8], staging: &[u8], range: Range<u64>) -> Vec<u8> {
        let mut out = Vec::new();
        for (piece, source) in overlay.pieces(range.clone()) {
            assert_eq!(
                piece.start,
                range.start + out.len() as u64,
                "pieces join up"
            );
            for at in piece {
                out.push(match source {
                    Source::Staging => staging[at as usize],
                    Source::Base => base[at as usize],
                    Source::Zero => 0,
                });
            }
        }
        out
    }

    proptest! {
        #[test]
        fn it_shows_what_a_plain_file_would(
            base in proptest::collection::vec(any::<u8>(), 0..150),
            steps in proptest::collection::vec(step(), 0..40),
            look in (0..SPACE, 0..SPACE),
        ) {
            let mut plain = base.clone();
            let mut staging = vec![0xee; 300];
            let mut overlay = Overlay::over(base.len() as u64);
            for step in steps {
                match step {
                    Step::Write(at, len, byte) => {
                        let (from, to) = (at as usize, (at + len) as usize);
                        if len > 0 && plain.len() < to {
                            plain.resize(to, 0);
                        }
                        if len > 0 {
                            plain[from..to].fill(byte);
                            staging[from..to].fill(byte);
                        }
                        overlay.write(at..at + len);
                    }
                    Step::Truncate(size) => {
                        plain.resize(size as usize, 0);
                        overlay.truncate(size);
                    }
                    Step::Punch(at, len) => {
                        let end = (at + len).min(plain.len() as u64);
                        if at < end {
                            plain[at as usize..end as usize].fill(0);
                            staging[at as usize..end as usize].fill(0);
                        }
                        overlay.punch(at..at + len);
                    }
                    Step::Take(at, len) => {
                        let (from, to) = (at as usize, ((at + len) as usize).min(base.len()));
                        if from < to && overlay.may_take_from(at) {
                            plain.resize(plain.len().max(to), 0);
                            plain[from..to].copy_from_slice(&base[from..to]);
                            overlay.take(from as u64..to as u64);
                        }
                    }
                }
                prop_assert_eq!(overlay.size(), plain.len() as u64);
                prop_assert_eq!(&shown(&overlay, &base, &staging, 0..u64::MAX), &plain);
                let written = overlay.written();
                prop_assert!(written.iter().all(|(start, end)| start < end && *end <= overlay.size()));
                prop_assert!(written.windows(2).all(|pair| pair[0].1 < pair[1].0));
                let restored = Overlay::restore(overlay.base_bytes(), overlay.size(), &written);
                prop_assert_eq!(restored.as_ref(), Some(&overlay));
            }
            let (from, to) = (look.0.min(look.1), look.0.max(look.1));
            let cut = to.min(plain.len() as u64).max(from) as usize;
            let expected = plain.get(from as usize..cut).unwrap_or(&[]);
            prop_assert_eq!(shown(&overlay, &base, &staging, from..to), expected);
        }
    }

    #[test]
    fn a_record_that_contradicts_itself_is_refused() {
        assert_eq!(Overlay::restore(5, 4, &[]), None);
        assert_eq!(Overlay::restore(0, 4, &[(3, 3)]), None);
        assert_eq!(Overlay::restore(0, 4, &[(3, 5)]), None);
        assert_eq!(Overlay::restore(0, u64::MAX, &[]), None);
    }

    #[test]
    fn whole_blocks_of_the_base_are_untouched_but_the_last() {
        let at = |blocks: u64| blocks * BLOCK_BYTES;
        let mut overlay = Overlay::over(at(10) + 5);
        assert_eq!(overlay.untouched(), BlockSet::of(0..10));
        overlay.write(at(3) + 7..at(5));
        overlay.write(at(7) + 9..at(7) + 10);
        let mut untouched = BlockSet::of(0..3);
        untouched.insert(5..7);
        untouched.insert(8..10);
        assert_eq!(overlay.untouched(), untouched);
        // The last block proves the size, so it is always made here.
        overlay.truncate(at(9));
        untouched.remove(8..10);
        assert_eq!(overlay.untouched(), untouched);
        overlay.truncate(at(12));
        untouched.insert(8..9);
        assert_eq!(overlay.untouched(), untouched);
        overlay.punch(at(1)..at(2));
        untouched.remove(1..2);
        assert_eq!(overlay.untouched(), untouched);
        assert!(Overlay::default().untouched().is_empty());
    }

    #[test]
    fn what_a_truncation_cut_off_never_shows_again() {
        let mut overlay = Overlay::over(10);
        overlay.truncate(4);
        overlay.truncate(10);
        assert_eq!(
            overlay.pieces(0..10),
            vec![(0..4, Source::Base), (4..10, Source::Zero)]
        );
        assert!(!overlay.is_base(10));
    }
}
