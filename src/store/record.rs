//! What stands in the index: object records, journal records and notes of renames. The first byte of each is its version.

use bytes::Bytes;

use serde::{Serialize, de::DeserializeOwned};

use super::{Fate, JournalRecord, Origin, StagingId, StoreError, packs::Spot};
use crate::content::{BlockSet, INLINE_BYTES_MAX, Object};

const OBJECT_VERSION: u8 = 1;
const JOURNAL_VERSION: u8 = 2;
/// The version before, without a checksum.
const JOURNAL_VERSION_1: u8 = 1;

const INLINE: u8 = 1;
const WRITTEN: u8 = 2;
const SIZE_PROVEN: u8 = 4;
const COMPLETE: u8 = 8;
const PACKED: u8 = 16;

/// Bytes of an object's key: hash, then size, big-endian, so that the sizes of one content are neighbours.
const OBJECT_KEY_BYTES: usize = 40;

/// The record of an object.
///
/// ```text
/// key    hash (32) ‖ size (8, big-endian)
/// value  version (1) ‖ flags (1) ‖ last use, seconds since 1970 (8, little-endian) ‖
///        packed:    number of the pack ‖ offset in it; both LEB128
///        inline:    the content, from before there were packs
///        otherwise: present blocks (left out when complete) ‖ loose blocks
/// flags  1 inline · 2 written here (else fetched) · 4 size proven · 8 complete · 16 packed
/// blocks count of ranges, then for each: blocks since the end of the one before, length; all LEB128
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct ObjectRecord {
    pub(super) origin: Origin,
    /// Whether the last block has been seen, and with it the size been proven.
    pub(super) size_proven: bool,
    /// Seconds since 1970, within a minute or so.
    pub(super) last_use: u64,
    /// The content, for small ones that are in use.
    pub(super) inline: Option<Bytes>,
    /// Where a small one is, once it is there.
    pub(super) packed: Option<Spot>,
    /// Blocks that are here.
    pub(super) present: BlockSet,
    /// Those of them that may not survive the machine going down.
    pub(super) loose: BlockSet,
}

pub(super) fn object_key(object: &Object) -> [u8; OBJECT_KEY_BYTES] {
    let mut key = [0; OBJECT_KEY_BYTES];
    let (content, size) = key.split_at_mut(32);
    content.copy_from_slice(&object.content.0);
    size.copy_from_slice(&object.size.to_be_bytes());
    key
}

pub(super) fn parse_object_key(key: &[u8]) -> Result<Object, StoreError> {
    let (content, size) = key
        .split_first_chunk::<32>()
        .ok_or_else(|| damaged("object key"))?;
    Ok(Object {
        content: crate::content::ContentId(*content),
        size: u64::from_be_bytes(size.try_into().map_err(|_| damaged("object key"))?),
    })
}

impl ObjectRecord {
    /// Whether all of the object is here.
    pub(super) fn is_complete(&self, object: &Object) -> bool {
        object.blocks() > 0 && self.present.contains(0..object.blocks())
    }

    /// When the object was used last, from its record.
    pub(super) fn last_use_of(value: &[u8]) -> Option<u64> {
        let bytes = value.get(2..10)?.try_into().ok()?;
        Some(u64::from_le_bytes(bytes))
    }

    pub(super) fn encode(&self, object: &Object) -> Vec<u8> {
        let complete = self.is_complete(object);
        let mut flags = 0;
        for (flag, holds) in [
            (INLINE, self.inline.is_some() && self.packed.is_none()),
            (PACKED, self.packed.is_some()),
            (WRITTEN, self.origin == Origin::Written),
            (SIZE_PROVEN, self.size_proven),
            (COMPLETE, complete),
        ] {
            flags |= if holds { flag } else { 0 };
        }
        let mut out = vec![OBJECT_VERSION, flags];
        out.extend_from_slice(&self.last_use.to_le_bytes());
        if let Some(spot) = self.packed {
            put_number(u64::from(spot.pack), &mut out);
            put_number(u64::from(spot.offset), &mut out);
            return out;
        }
        if let Some(content) = &self.inline {
            out.extend_from_slice(content);
            return out;
        }
        if !complete {
            put_blocks(&self.present, &mut out);
        }
        put_blocks(&self.loose, &mut out);
        out
    }

    pub(super) fn decode(object: &Object, value: &[u8]) -> Result<Self, StoreError> {
        let bad = || damaged(&format!("object {}", object.content));
        let (&[version, flags], rest) = value.split_first_chunk().ok_or_else(bad)?;
        let (last_use, mut rest) = rest.split_first_chunk().ok_or_else(bad)?;
        if version != OBJECT_VERSION {
            return Err(bad());
        }
        let all = BlockSet::of(0..object.blocks());
        let mut record = Self {
            origin: if flags & WRITTEN != 0 {
                Origin::Written
            } else {
                Origin::Fetched
            },
            size_proven: flags & SIZE_PROVEN != 0,
            last_use: u64::from_le_bytes(*last_use),
            inline: None,
            packed: None,
            present: all,
            loose: BlockSet::default(),
        };
        if flags & INLINE != 0 {
            if object.size > INLINE_BYTES_MAX || rest.len() as u64 != object.size {
                return Err(bad());
            }
            record.inline = Some(Bytes::copy_from_slice(rest));
            return Ok(record);
        }
        if flags & PACKED != 0 {
            let mut number = || take_number(&mut rest).and_then(|number| number.try_into().ok());
            let (pack, offset) = (number().ok_or_else(bad)?, number().ok_or_else(bad)?);
            if object.size > INLINE_BYTES_MAX || !rest.is_empty() {
                return Err(bad());
            }
            record.packed = Some(Spot { pack, offset });
            return Ok(record);
        }
        if flags & COMPLETE == 0 {
            record.present = take_blocks(&mut rest, object.blocks()).ok_or_else(bad)?;
        }
        record.loose = take_blocks(&mut rest, object.blocks()).ok_or_else(bad)?;
        let loose_is_present = record
            .loose
            .ranges()
            .iter()
            .all(|range| record.present.contains(range.clone()));
        if !rest.is_empty() || !loose_is_present {
            return Err(bad());
        }
        Ok(record)
    }
}

fn put_blocks(blocks: &BlockSet, out: &mut Vec<u8>) {
    put_number(blocks.ranges().len() as u64, out);
    let mut end = 0;
    for range in blocks.ranges() {
        put_number(range.start - end, out);
        put_number(range.end - range.start, out);
        end = range.end;
    }
}

/// `None` unless the ranges are in order, apart, not empty, and end at `blocks_max` or before.
fn take_blocks(from: &mut &[u8], blocks_max: u64) -> Option<BlockSet> {
    let mut pairs = Vec::new();
    let mut end = 0u64;
    for index in 0..take_number(from)? {
        let gap = take_number(from)?;
        let length = take_number(from)?;
        let start = end.checked_add(gap)?;
        end = start.checked_add(length)?;
        if length == 0 || (gap == 0 && index > 0) || end > blocks_max {
            return None;
        }
        pairs.push((start, end));
    }
    BlockSet::try_from(pairs).ok()
}

fn put_number(mut number: u64, out: &mut Vec<u8>) {
    while number >= 0x80 {
        out.push(number as u8 | 0x80);
        number >>= 7;
    }
    out.push(number as u8);
}

fn take_number(from: &mut &[u8]) -> Option<u64> {
    let mut number = 0;
    for shift in (0..64).step_by(7) {
        let (&byte, rest) = from.split_first()?;
        *from = rest;
        let bits = u64::from(byte & 0x7f);
        if shift == 63 && bits > 1 {
            return None;
        }
        number |= bits << shift;
        if byte & 0x80 == 0 {
            return Some(number);
        }
    }
    None
}

/// Key of the durable journal record of a staging file.
///
/// ```text
/// key    staging id (8, big-endian) ‖ 0
/// value  version (1) ‖ first 8 bytes of the BLAKE3 hash of what follows ‖ CBOR map
/// ```
pub(super) fn journal_key(id: StagingId) -> [u8; 9] {
    let mut key = [0; 9];
    key[..8].copy_from_slice(&id.0.to_be_bytes());
    key
}

pub(super) fn parse_journal_key(key: &[u8]) -> Result<StagingId, StoreError> {
    match key.split_first_chunk::<8>() {
        Some((id, [0])) => Ok(StagingId(u64::from_be_bytes(*id))),
        _ => Err(damaged("journal key")),
    }
}

pub(super) fn encode_journal(record: &JournalRecord) -> Result<Vec<u8>, StoreError> {
    encode_checked(record)
}

pub(super) fn decode_journal(value: &[u8]) -> Result<JournalRecord, StoreError> {
    match value.split_first() {
        Some((&JOURNAL_VERSION_1, encoded)) => cbor4ii::serde::from_slice(encoded)
            .map_err(|error| StoreError::Damaged(format!("journal record: {error}"))),
        _ => decode_checked(value),
    }
}

/// What is known of a staging file's name is encoded as its journal record is; the key is its id (8, big-endian).
pub(super) fn encode_fate(fate: &Fate) -> Result<Vec<u8>, StoreError> {
    encode_checked(fate)
}

pub(super) fn decode_fate(value: &[u8]) -> Result<Fate, StoreError> {
    decode_checked(value)
}

fn encode_checked(record: &impl Serialize) -> Result<Vec<u8>, StoreError> {
    let encoded = cbor4ii::serde::to_vec(Vec::new(), record)
        .map_err(|error| StoreError::Damaged(format!("journal record: {error}")))?;
    let check = check_of(&encoded);
    Ok([&[JOURNAL_VERSION][..], &check, &encoded].concat())
}

fn decode_checked<T: DeserializeOwned>(value: &[u8]) -> Result<T, StoreError> {
    let checked = value
        .split_first()
        .filter(|(version, _)| **version == JOURNAL_VERSION)
        .and_then(|(_, rest)| rest.split_first_chunk())
        .filter(|(check, encoded)| **check == check_of(encoded));
    let (_, encoded) = checked.ok_or_else(|| damaged("journal record"))?;
    cbor4ii::serde::from_slice(encoded)
        .map_err(|error| StoreError::Damaged(format!("journal record: {error}")))
}

/// What tells that bytes are as they were written.
pub(super) fn check_of(bytes: &[u8]) -> [u8; 8] {
    let mut check = [0; 8];
    let hash = blake3::hash(bytes);
    let (first, _) = hash.as_bytes().split_at(8);
    check.copy_from_slice(first);
    check
}

fn damaged(what: &str) -> StoreError {
    StoreError::Damaged(what.to_owned())
}
