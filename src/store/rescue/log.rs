//! Reads sled's files without sled: whether they are sound, and what can still be read of them where they are not.
//!
//! sled 0.34 has a checksum on everything it writes, and makes little of it: what it can't read while it starts it passes
//! over, with all that follows in the same half mebibyte, or it takes the place for the end of the log and clears what
//! comes behind. So its files are looked at before it gets to see them. Nothing here writes.
//!
//! ```text
//! db        segments of 512 KiB: header, messages, zeros
//! header    CRC-32 of the rest, inverted (4) ‖ LSN ‖ LSN up to which all was on disk (8 each, little-endian, xor 2^63 - 1)
//! message   CRC-32 of body and rest of the header, inverted (4) ‖ kind (1) ‖ length ‖ segment number ‖ page ‖ body
//! blobs/N   CRC-32 of the rest (4) ‖ kind (1) ‖ body of a message that was too long for a segment
//! snap.N    page table ‖ its length (8) ‖ its CRC-32 (4): only saves time
//! conf      settings ‖ their CRC-32 (4)
//! ```
//!
//! Numbers are SQLite's variable-length integers, with the bytes little-endian. The state of a page is its newest node with
//! the newer links applied.
//!
//! Invariants: whatever the bytes are, reading them ends, without a panic and with no more memory than they take.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    fs::{self, File},
    io,
    ops::Range,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
};

use crate::store::{StoreError, failed};

/// sled's default, which the index is made with.
const SEGMENT_BYTES: u64 = 512 * 1024;
const SEGMENT_HEADER_BYTES: usize = 20;
/// No message begins so near to the end of a segment.
const MESSAGE_HEADER_BYTES_MAX: usize = 32;
const LSN_MASK: u64 = 0x7fff_ffff_ffff_ffff;
/// The page that names the trees.
const META_PAGE: u64 = 0;

/// The first kind; what was begun and not made.
const CANCELED: u8 = 1;
const CAP: u8 = 2;
const FREE: u8 = 4;
const META: u8 = 6;
const META_BLOB: u8 = 7;
const NODE: u8 = 8;
const NODE_BLOB: u8 = 9;
const LINK: u8 = 10;
const LINK_BLOB: u8 = 11;

/// What a look through the files of an index found.
#[derive(Debug, Default)]
pub(super) struct Findings {
    /// What can't be read, in words; where some of it is, what stood there is lost unless it stands elsewhere too.
    pub(super) damage: Vec<String>,
    /// Whether the settings are damaged, which sled makes anew.
    pub(super) bad_settings: bool,
    /// Whether the page table is damaged, which is not needed.
    pub(super) bad_snapshot: bool,
    /// Where the log ends: what comes after the last message.
    pub(super) end: u64,
    /// Whether something that stood there can't be made out any more.
    pub(super) is_lossy: bool,
    /// Bits of the log that turned out to be the wrong way round: byte and bits.
    fixes: BTreeMap<u64, u8>,
    /// Whether pages are noted, and bits set right.
    for_pairs: bool,
    /// Pages, with where their messages are.
    pages: HashMap<u64, Page>,
}

/// Where the messages that make a page are, the oldest first.
#[derive(Debug, Default)]
struct Page {
    messages: Vec<At>,
}

/// A message that is wanted again.
#[derive(Clone, Copy, Debug)]
struct At {
    lsn: u64,
    kind: u8,
    /// Where its body is in the log, and how long it is.
    offset: u64,
    length: u64,
}

/// Key and value of a tree.
pub(super) type Pair = (Vec<u8>, Vec<u8>);

/// Takes a pair with the name of its tree.
pub(super) type Take<'a> = dyn FnMut(&[u8], Pair) -> Result<(), StoreError> + 'a;

/// Files of an index.
pub(super) struct IndexFolder {
    dir: PathBuf,
    log: File,
}

/// A page's node.
struct Node {
    next: Option<u64>,
    prefix: Vec<u8>,
    data: Data,
}

enum Data {
    Leaf(BTreeMap<Vec<u8>, Vec<u8>>),
    Index(Vec<u64>),
}

enum Link {
    Set(Vec<u8>, Vec<u8>),
    Remove(Vec<u8>),
    /// Merges of pages: what they move stands in other messages as well.
    Other,
}

impl IndexFolder {
    /// `None` if there is no index.
    pub(super) fn open(dir: &Path) -> io::Result<Option<Self>> {
        match File::open(dir.join("db")) {
            Ok(log) => Ok(Some(Self {
                dir: dir.to_owned(),
                log,
            })),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Looks through all files. `end`: where the log ended when the index was closed in order; without it, damage at the end
    /// can't be told from what a crash leaves. `for_pairs`: they are to be read from what is found, which takes some memory.
    pub(super) fn look(&self, end: Option<u64>, for_pairs: bool) -> io::Result<Findings> {
        let mut findings = Findings {
            bad_settings: !is_checked(&self.dir.join("conf"), 4)?,
            for_pairs,
            ..Findings::default()
        };
        for entry in fs::read_dir(&self.dir)? {
            let path = entry?.path();
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            if name.starts_with("snap.") && !name.ends_with(".generating") {
                findings.bad_snapshot |= !is_checked(&path, 12)?;
            }
        }
        let segments = self.segments(&mut findings)?;
        let stable = segments.values().map(|segment| segment.stable).max();
        let whole = stable.unwrap_or(0) / SEGMENT_BYTES * SEGMENT_BYTES;
        let certain = whole.max(end.unwrap_or(0));
        for (lsn, segment) in &segments {
            let (torn, end) = self.look_through(*lsn, segment.offset, certain, &mut findings)?;
            if let Some(torn) = torn.filter(|torn| *torn < certain) {
                findings.is_lossy = true;
                findings.damage.push(format!(
                    "a record of the log can't be read, at byte {} of db",
                    segment.offset + (torn - lsn)
                ));
            }
            findings.end = findings.end.max(end);
        }
        if findings.end < certain && findings.damage.is_empty() {
            findings.is_lossy = true;
            findings
                .damage
                .push("the end of the log is missing".to_owned());
        }
        Ok(findings)
    }

    /// Removes sled's settings: it makes them anew.
    pub(super) fn remove_settings(&self) -> io::Result<()> {
        fs::remove_file(self.dir.join("conf"))
    }

    /// Where the log ends.
    pub(super) fn end(&self) -> io::Result<u64> {
        let mut findings = Findings::default();
        match self.segments(&mut findings)?.last_key_value() {
            Some((lsn, last)) => Ok(self.look_through(*lsn, last.offset, 0, &mut findings)?.1),
            None => Ok(0),
        }
    }

    /// Segments with a readable header, by LSN.
    fn segments(&self, findings: &mut Findings) -> io::Result<BTreeMap<u64, Segment>> {
        let length = self.log.metadata()?.len();
        let mut segments = BTreeMap::new();
        for offset in (0..length).step_by(SEGMENT_BYTES as usize) {
            let mut header = [0; SEGMENT_HEADER_BYTES];
            if length - offset < SEGMENT_HEADER_BYTES as u64 {
                break;
            }
            self.log.read_exact_at(&mut header, offset)?;
            match Segment::parse(&header, offset) {
                Some((lsn, segment)) => {
                    if segments.insert(lsn, segment).is_some() {
                        findings.is_lossy = true;
                        let what = format!("two parts of the log are one, at byte {offset} of db");
                        findings.damage.push(what);
                    }
                }
                // Free.
                None if header == [0; SEGMENT_HEADER_BYTES] => {}
                None => {
                    let what = format!("a header of the log can't be read, at byte {offset} of db");
                    findings.damage.push(what);
                    // What follows may be read all the same: the messages say where they belong.
                    match self.lsn_inside(offset)? {
                        Some(lsn) => {
                            let segment = Segment { offset, stable: 0 };
                            segments.entry(lsn).or_insert(segment);
                        }
                        None => findings.is_lossy = true,
                    }
                }
            }
        }
        Ok(segments)
    }

    /// The LSN of a segment by its first message.
    fn lsn_inside(&self, offset: u64) -> io::Result<Option<u64>> {
        let bytes = self.segment(offset)?;
        let segment = Message::segment_of(&bytes, SEGMENT_HEADER_BYTES);
        // Only if that is what its messages say.
        Ok(segment
            .filter(|segment| Message::parse(&bytes, SEGMENT_HEADER_BYTES, *segment).is_some())
            .and_then(|segment| segment.checked_mul(SEGMENT_BYTES)))
    }

    fn segment(&self, offset: u64) -> io::Result<Vec<u8>> {
        let mut bytes = Vec::new();
        let mut part = [0; 64 * 1024];
        while (bytes.len() as u64) < SEGMENT_BYTES {
            match self.log.read_at(&mut part, offset + bytes.len() as u64) {
                Ok(0) => break,
                Ok(read) => bytes.extend_from_slice(part.get(..read).unwrap_or_default()),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        bytes.truncate(SEGMENT_BYTES as usize);
        Ok(bytes)
    }

    /// Notes the messages of a segment, those behind a place that can't be read too. Returns the first such place, and where the
    /// last message ends. Before `certain` there should be none.
    fn look_through(
        &self,
        lsn: u64,
        offset: u64,
        certain: u64,
        findings: &mut Findings,
    ) -> io::Result<(Option<u64>, u64)> {
        let mut bytes = self.segment(offset)?;
        let number = lsn / SEGMENT_BYTES;
        let (mut at, mut end) = (SEGMENT_HEADER_BYTES, SEGMENT_HEADER_BYTES);
        let mut torn = None;
        while at + MESSAGE_HEADER_BYTES_MAX <= SEGMENT_BYTES as usize {
            let mut message = Message::parse(&bytes, at, number);
            let is_certain = lsn + (at as u64) < certain;
            if message.is_none()
                && at == end
                && (findings.for_pairs && is_certain || Message::may_begin(&bytes, at))
                && let Some((byte, bits)) = Message::wrong_bit(&bytes, at, number)
            {
                if !is_certain {
                    // Nothing that a crash leaves: with one bit turned it is whole. What follows it would be taken for nothing.
                    let place = offset + byte as u64;
                    let what = format!("a bit of the log is wrong, at byte {place} of db");
                    findings.damage.push(what);
                }
                if findings.for_pairs {
                    findings.fixes.insert(offset + byte as u64, bits);
                    if let Some(byte) = bytes.get_mut(byte) {
                        *byte ^= bits;
                    }
                    message = Message::parse(&bytes, at, number);
                }
            }
            let Some(message) = message else {
                torn.get_or_insert(lsn + at as u64);
                at += 1;
                continue;
            };
            if message.kind == CAP {
                return Ok((torn, lsn + SEGMENT_BYTES));
            }
            let place = At {
                lsn: lsn + at as u64,
                kind: message.kind,
                offset: offset + message.body.start as u64,
                length: message.body.len() as u64,
            };
            if is_blob(message.kind) {
                self.look_at_blob(&place, findings)?;
            }
            findings.note(message.page, place);
            at = message.body.end;
            end = at;
        }
        let is_full = end + MESSAGE_HEADER_BYTES_MAX > SEGMENT_BYTES as usize;
        let end = if is_full { SEGMENT_BYTES } else { end as u64 };
        Ok((torn, lsn + end))
    }

    /// Notes if a blob doesn't have its checksum. One that is not there any more belonged to a message that was replaced.
    fn look_at_blob(&self, at: &At, findings: &mut Findings) -> io::Result<()> {
        let what = || "a large value can't be read, in blobs".to_owned();
        match self.blob(at, findings) {
            Ok((_, false)) => {}
            Ok((_, true)) => findings.damage.push(what()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) if error.kind() == io::ErrorKind::InvalidData => {
                findings.is_lossy = true;
                findings.damage.push(what());
            }
            Err(error) => return Err(error),
        }
        Ok(())
    }

    /// A value that is a file, and whether a bit of it had to be set right.
    fn blob(&self, at: &At, findings: &Findings) -> io::Result<(Vec<u8>, bool)> {
        let bad = || io::Error::from(io::ErrorKind::InvalidData);
        let id = self.inline(at, findings)?;
        let id = i64::from_le_bytes(id.try_into().map_err(|_| bad())?);
        let mut bytes = fs::read(self.dir.join("blobs").join(id.to_string()))?;
        let (crc, rest) = bytes.split_first_chunk_mut().ok_or_else(bad)?;
        let syndrome = crc32fast::hash(rest) ^ u32::from_le_bytes(*crc);
        // With one bit it is the checksum itself that is wrong.
        if syndrome.count_ones() > 1 {
            set_right(rest, syndrome).ok_or_else(bad)?;
        }
        Ok((rest.get(1..).unwrap_or_default().to_vec(), syndrome != 0))
    }

    fn inline(&self, at: &At, findings: &Findings) -> io::Result<Vec<u8>> {
        // No longer than a segment.
        let mut body = vec![0; usize::try_from(at.length).unwrap_or_default()];
        self.log.read_exact_at(&mut body, at.offset)?;
        for (byte, bits) in findings.fixes.range(at.offset..at.offset + at.length) {
            let byte = usize::try_from(byte - at.offset).unwrap_or(usize::MAX);
            if let Some(byte) = body.get_mut(byte) {
                *byte ^= bits;
            }
        }
        Ok(body)
    }

    /// The body of a message; `None` if it has gone.
    fn body(&self, at: &At, findings: &Findings) -> io::Result<Option<Vec<u8>>> {
        let body = match is_blob(at.kind) {
            true => self.blob(at, findings).map(|(body, _)| body),
            false => self.inline(at, findings),
        };
        match body {
            Ok(body) => Ok(Some(body)),
            Err(error)
                if matches!(
                    error.kind(),
                    io::ErrorKind::NotFound | io::ErrorKind::InvalidData
                ) =>
            {
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }

    /// Hands out all pairs that can be read, with the tree they are in; a pair that is handed out later is the newer one.
    /// Pairs of leaves to which no way leads any more come first, with an empty name.
    pub(super) fn pairs(&self, findings: &Findings, take: &mut Take<'_>) -> Result<(), StoreError> {
        let log = self.dir.join("db");
        let failed = |error| failed("reading", &log)(error);
        let mut trees: Vec<(Vec<u8>, BTreeSet<u64>)> = Vec::new();
        let mut assigned = BTreeSet::new();
        for (name, root) in self.trees(findings).map_err(failed)? {
            let leaves = self.leaves(findings, root).map_err(failed)?;
            assigned.extend(leaves.iter().copied());
            trees.push((name, leaves));
        }
        let stray = findings.pages.keys().copied();
        let stray = stray.filter(|page| !assigned.contains(page)).collect();
        trees.insert(0, (Vec::new(), stray));
        for (name, pages) in trees {
            let age = |page: &u64| findings.pages.get(page).and_then(Page::age);
            let mut pages: Vec<u64> = pages.into_iter().collect();
            pages.sort_by_key(age);
            for page in pages {
                let Some(node) = self.node(findings, page).map_err(failed)? else {
                    continue;
                };
                if let Data::Leaf(pairs) = node.data {
                    for (key, value) in pairs {
                        take(&name, ([&node.prefix[..], &key].concat(), value))?;
                    }
                }
            }
        }
        Ok(())
    }

    /// Names of trees and their roots.
    fn trees(&self, findings: &Findings) -> io::Result<Vec<(Vec<u8>, u64)>> {
        let Some(meta) = findings.pages.get(&META_PAGE) else {
            return Ok(Vec::new());
        };
        for at in meta.messages.iter().rev() {
            if matches!(at.kind, META | META_BLOB)
                && let Some(body) = self.body(at, findings)?
            {
                return Ok(parse_meta(&body).unwrap_or_default());
            }
        }
        Ok(Vec::new())
    }

    /// The pages below a root that are leaves, as far as a way leads there: downwards, and from neighbour to neighbour.
    fn leaves(&self, findings: &Findings, root: u64) -> io::Result<BTreeSet<u64>> {
        let mut leaves = BTreeSet::new();
        let mut seen = BTreeSet::from([root]);
        let mut to_see = vec![root];
        while let Some(page) = to_see.pop() {
            let Some(node) = self.node(findings, page)? else {
                continue;
            };
            let below = match node.data {
                Data::Leaf(_) => {
                    leaves.insert(page);
                    Vec::new()
                }
                Data::Index(pages) => pages,
            };
            for page in below.into_iter().chain(node.next) {
                if seen.insert(page) {
                    to_see.push(page);
                }
            }
        }
        Ok(leaves)
    }

    /// A page as it was last; `None` if it is no node, or nothing of it can be read.
    fn node(&self, findings: &Findings, page: u64) -> io::Result<Option<Node>> {
        let Some(page) = findings.pages.get(&page) else {
            return Ok(None);
        };
        let mut node = None;
        for at in &page.messages {
            let Some(body) = self.body(at, findings)? else {
                continue;
            };
            if matches!(at.kind, NODE | NODE_BLOB) {
                node = Node::parse(&body).or(node);
            } else if let Some(Node {
                data: Data::Leaf(pairs),
                ..
            }) = &mut node
            {
                match Link::parse(&body) {
                    Some(Link::Set(key, value)) => drop(pairs.insert(key, value)),
                    Some(Link::Remove(key)) => drop(pairs.remove(&key)),
                    Some(Link::Other) | None => {}
                }
            }
        }
        Ok(node)
    }
}

impl Findings {
    /// Whether all can be read.
    pub(super) fn is_sound(&self) -> bool {
        self.damage.is_empty()
    }

    /// Notes a message; they come in the order of their LSN.
    fn note(&mut self, page: u64, at: At) {
        match at.kind {
            _ if !self.for_pairs => {}
            FREE => drop(self.pages.remove(&page)),
            META | META_BLOB | NODE | NODE_BLOB => {
                let messages = &mut self.pages.entry(page).or_default().messages;
                messages.clear();
                messages.push(at);
            }
            // Without its node a link says nothing: that stands in a segment that was given up since.
            LINK | LINK_BLOB => {
                if let Some(page) = self.pages.get_mut(&page) {
                    page.messages.push(at);
                }
            }
            _ => {}
        }
    }
}

impl Page {
    /// When its node was written.
    fn age(&self) -> Option<u64> {
        self.messages.first().map(|at| at.lsn)
    }
}

#[derive(Clone, Copy, Debug)]
struct Segment {
    offset: u64,
    stable: u64,
}

impl Segment {
    fn parse(header: &[u8; SEGMENT_HEADER_BYTES], offset: u64) -> Option<(u64, Self)> {
        let (crc, rest) = header.split_first_chunk()?;
        if crc32fast::hash(rest) != !u32::from_le_bytes(*crc) {
            return None;
        }
        let (lsn, stable) = rest.split_first_chunk()?;
        let lsn = u64::from_le_bytes(*lsn) ^ LSN_MASK;
        let stable = u64::from_le_bytes(stable.try_into().ok()?) ^ LSN_MASK;
        // Before anything is on disk it is -1.
        let stable = if stable > LSN_MASK { 0 } else { stable };
        (lsn.is_multiple_of(SEGMENT_BYTES) && lsn <= LSN_MASK - SEGMENT_BYTES)
            .then_some((lsn, Self { offset, stable }))
    }
}

struct Message {
    kind: u8,
    page: u64,
    body: Range<usize>,
}

impl Message {
    /// The number of the segment that a message says it is in.
    fn segment_of(bytes: &[u8], at: usize) -> Option<u64> {
        let mut rest = bytes.get(at + 5..)?;
        number(&mut rest)?;
        number(&mut rest)
    }

    /// The message at a place of a segment; `None` if there is none that has its checksum and belongs to this segment.
    fn parse(segment: &[u8], at: usize, segment_number: u64) -> Option<Self> {
        let mut rest = segment.get(at..)?;
        let crc = u32::from_le_bytes(take(&mut rest, 4)?.try_into().ok()?);
        let [kind] = *take(&mut rest, 1)? else {
            return None;
        };
        let length = usize::try_from(number(&mut rest)?).ok()?;
        // Before anything is hashed: this is asked of every place behind one that can't be read.
        if !(CANCELED..=LINK_BLOB).contains(&kind) || number(&mut rest)? != segment_number {
            return None;
        }
        let page = number(&mut rest)?;
        let start = segment.len() - rest.len();
        let body = take(&mut rest, length)?;
        let mut hasher = crc32fast::Hasher::new();
        hasher.update(body);
        hasher.update(segment.get(at + 4..start)?);
        (hasher.finalize() == !crc).then_some(Self {
            kind,
            page,
            body: start..start + length,
        })
    }
}

impl Message {
    /// Whether bytes may be the begin of a message but for one bit: where the log ends there are zeros.
    fn may_begin(segment: &[u8], at: usize) -> bool {
        let header = segment.get(at..at + MESSAGE_HEADER_BYTES_MAX);
        let held = header.map_or(0, |header| header.iter().filter(|byte| **byte != 0).count());
        held > 1
    }

    /// The bit that has to be turned so that there is a message at a place: byte and bit. A checksum of 32 bits tells which of all
    /// that are in a message, if it is one.
    fn wrong_bit(segment: &[u8], at: usize, number: u64) -> Option<(usize, u8)> {
        let mut turning = segment.to_vec();
        let mut turned = |byte: usize, bits: u8| {
            *turning.get_mut(byte)? ^= bits;
            let found = Self::parse(&turning, at, number).map(|_| (byte, bits));
            *turning.get_mut(byte)? ^= bits;
            found
        };
        // In the header it may be what tells how long the message is: all are tried.
        let in_header = (at..at + MESSAGE_HEADER_BYTES_MAX)
            .flat_map(|byte| (0..8).map(move |bit| (byte, 1 << bit)))
            .find_map(|(byte, bits)| turned(byte, bits));
        if in_header.is_some() {
            return in_header;
        }
        let mut rest = segment.get(at..)?;
        let crc = u32::from_le_bytes(take(&mut rest, 4)?.try_into().ok()?);
        take(&mut rest, 1)?;
        let length = usize::try_from(self::number(&mut rest)?).ok()?;
        self::number(&mut rest)?;
        self::number(&mut rest)?;
        let start = segment.len() - rest.len();
        let body = take(&mut rest, length)?;
        let mut hashed = [body, segment.get(at + 4..start)?].concat();
        let syndrome = crc32fast::hash(&hashed) ^ !crc;
        let (byte, bits) = set_right(&mut hashed, syndrome)?;
        (byte < length)
            .then(|| turned(start + byte, bits))
            .flatten()
    }
}

/// Turns the bit whose being wrong makes a checksum differ so; `None` if there is none such. Returns byte and bit.
fn set_right(bytes: &mut [u8], syndrome: u32) -> Option<(usize, u8)> {
    const POLYNOMIAL: u32 = 0xedb8_8320;
    // What turning the last bit does, then the one before, and so on.
    let mut effect = POLYNOMIAL;
    for (at, byte) in bytes.iter_mut().enumerate().rev() {
        for bit in (0..8).rev() {
            if effect == syndrome {
                *byte ^= 1 << bit;
                return Some((at, 1 << bit));
            }
            effect = (effect >> 1) ^ if effect & 1 == 1 { POLYNOMIAL } else { 0 };
        }
    }
    None
}

impl Node {
    fn parse(mut body: &[u8]) -> Option<Self> {
        let from = &mut body;
        let next = number(from)?;
        let _merging_child = number(from)?;
        let _merging = take(from, 1)?;
        let [prefix] = *take(from, 1)? else {
            return None;
        };
        let low = bytes(from)?;
        let _high = bytes(from)?;
        let [kind] = *take(from, 1)? else {
            return None;
        };
        let count = number(from)?;
        let mut keys = Vec::new();
        for _ in 0..count {
            keys.push(bytes(from)?);
        }
        let data = match kind {
            0 => {
                let mut pairs = BTreeMap::new();
                for key in keys {
                    pairs.insert(key, bytes(from)?);
                }
                Data::Leaf(pairs)
            }
            1 => Data::Index(
                keys.iter()
                    .map(|_| number(from))
                    .collect::<Option<Vec<_>>>()?,
            ),
            _ => return None,
        };
        Some(Self {
            next: Some(next).filter(|next| *next != 0),
            prefix: low.get(..usize::from(prefix))?.to_vec(),
            data,
        })
    }
}

impl Link {
    fn parse(mut body: &[u8]) -> Option<Self> {
        let from = &mut body;
        Some(match *take(from, 1)? {
            [0] => Self::Set(bytes(from)?, bytes(from)?),
            [1] => Self::Remove(bytes(from)?),
            _ => Self::Other,
        })
    }
}

fn parse_meta(mut body: &[u8]) -> Option<Vec<(Vec<u8>, u64)>> {
    let mut trees = Vec::new();
    while !body.is_empty() {
        trees.push((bytes(&mut body)?, number(&mut body)?));
    }
    Some(trees)
}

fn is_blob(kind: u8) -> bool {
    matches!(kind, META_BLOB | NODE_BLOB | LINK_BLOB)
}

/// Whether a file has the checksum that its last four bytes are, over what comes before the last `tail`. One that isn't
/// there has.
fn is_checked(path: &Path, tail: usize) -> io::Result<bool> {
    let bytes = match fs::read(path) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(true),
        Err(error) => return Err(error),
    };
    let Some((_, crc)) = bytes.split_last_chunk() else {
        return Ok(false);
    };
    let checked = bytes
        .len()
        .checked_sub(tail)
        .and_then(|end| bytes.get(..end));
    Ok(checked.is_some_and(|checked| crc32fast::hash(checked) == u32::from_le_bytes(*crc)))
}

fn take<'a>(from: &mut &'a [u8], count: usize) -> Option<&'a [u8]> {
    let (taken, rest) = from.split_at_checked(count)?;
    *from = rest;
    Some(taken)
}

fn bytes(from: &mut &[u8]) -> Option<Vec<u8>> {
    let length = usize::try_from(number(from)?).ok()?;
    take(from, length).map(<[u8]>::to_vec)
}

fn number(from: &mut &[u8]) -> Option<u64> {
    let [first] = *take(from, 1)? else {
        return None;
    };
    let mut byte = || take(from, 1).map(|byte| u64::from(byte[0]));
    let first = u64::from(first);
    match first {
        0..=240 => Some(first),
        241..=248 => Some(240 + 256 * (first - 241) + byte()?),
        249 => Some(2288 + 256 * byte()? + byte()?),
        _ => {
            let mut number = 0;
            for place in 0..first - 247 {
                number |= byte()? << (8 * place);
            }
            Some(number)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_one_bit_that_makes_a_checksum_wrong_is_found() {
        let bytes: Vec<u8> = (0..5000u32).map(|at| (at * at % 251) as u8).collect();
        let right = crc32fast::hash(&bytes);
        for (at, bit) in [(0, 0), (0, 7), (1, 3), (2500, 5), (4999, 0), (4999, 7)] {
            let mut wrong = bytes.clone();
            wrong[at] ^= 1 << bit;
            let syndrome = crc32fast::hash(&wrong) ^ right;
            assert_eq!(set_right(&mut wrong, syndrome), Some((at, 1 << bit)));
            assert!(wrong == bytes);
        }
    }
}
