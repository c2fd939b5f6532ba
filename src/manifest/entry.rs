//! Entries: what the map holds for a name, and their one encoding.
//!
//! The versions under a key are a CBOR array of `[writer, sequence, time, entry]`, with a fifth part where a rename brought
//! the version: from where, and the dots it had there, as `[old path, [[writer, sequence]…]]`. An entry is a map from small field numbers, ascending,
//! to values. A field is there only when it differs from its default, so that later versions can add
//! fields: unknown ones are kept as they came. Decoding re-encodes and compares: an entry has one encoding.
//!
//! | field | what | default |
//! |---|---|---|
//! | 0 | kind: 0 file, 1 directory, 2 symlink, 3 FIFO, 4 socket, 5 character device, 6 block device, 7 link, 8 writer, 9 move, 10 record | always there |
//! | 1 | size of a file | 0 |
//! | 2 | content id of a file, 32 bytes | always there |
//! | 3 | target of a symlink, bytes | always there |
//! | 4 | device number | 0 |
//! | 5 | file id of a link, 16 bytes | always there |
//! | 6, 7 | peer id (bytes) and node name (text) of a writer | always there |
//! | 8 | mode | 0o755 directory, 0o777 symlink, 0o644 others |
//! | 9, 10 | owner, group | 0 |
//! | 11 | modified, nanoseconds | 0 |
//! | 12 | map of attributes, in order of their names' bytes | empty |
//! | 13, 14 | of a move: the new path, bytes; the context it saw, a map from writers to sequences | always there |
//! | 15 | of a record: its bytes | always there |

use std::collections::BTreeSet;

use super::{
    CausalContext, Dot, HybridTime, TreePath, WriterNumber,
    cbor::{Malformed, Reader, Writer},
    few::Few,
    key::{FileId, PATH_BYTES_MAX, PEER_BYTES_MAX},
};
use crate::content::{ContentId, Object};

/// Most versions under one key.
pub const VERSIONS_MAX: usize = 256;
/// Most bytes of the encoded versions under one key.
pub const VERSIONS_BYTES_MAX: usize = 1024 * 1024;
/// Longest target of a symlink, in bytes.
pub const TARGET_BYTES_MAX: usize = 4095;
/// Most attributes of an entry.
pub const ATTRIBUTES_MAX: usize = 64;
/// Longest name of an attribute, without the `user.` in front.
pub const ATTRIBUTE_NAME_BYTES_MAX: usize = 255;
/// Longest value of an attribute.
pub const ATTRIBUTE_VALUE_BYTES_MAX: usize = 4096;
/// Names and values of an entry's attributes together.
pub const ATTRIBUTES_BYTES_MAX: usize = 16 * 1024;
/// Unknown fields of an entry together.
const UNKNOWN_BYTES_MAX: usize = 4096;
/// Longest node name in the table of writers.
const NODE_NAME_BYTES_MAX: usize = 64;
/// Most writers in the context of a move.
pub const MOVE_WRITERS_MAX: usize = 4096;
/// Longest record under an internal key.
pub const RECORD_BYTES_MAX: usize = 16 * 1024;
/// Most versions that a rename made one of.
pub const MOVED_MAX: usize = 16;
/// Set-id, sticky and permission bits.
const MODE_MAX: u32 = 0o7777;

const FIELD_KIND: u64 = 0;
const FIELD_SIZE: u64 = 1;
const FIELD_CONTENT: u64 = 2;
const FIELD_TARGET: u64 = 3;
const FIELD_DEVICE: u64 = 4;
const FIELD_LINK: u64 = 5;
const FIELD_PEER: u64 = 6;
const FIELD_NODE: u64 = 7;
const FIELD_MODE: u64 = 8;
const FIELD_OWNER: u64 = 9;
const FIELD_GROUP: u64 = 10;
const FIELD_MODIFIED: u64 = 11;
const FIELD_ATTRIBUTES: u64 = 12;
const FIELD_TO: u64 = 13;
const FIELD_SEEN: u64 = 14;
const FIELD_RECORD: u64 = 15;
/// Fields from here on are of later versions.
const FIELDS_KNOWN: u64 = 16;

/// Why an entry, or bytes that should be one, are refused.
#[derive(Clone, Copy, Debug, thiserror::Error, PartialEq, Eq)]
#[error("not a manifest entry: {0}")]
pub struct EntryError(pub &'static str);

impl From<Malformed> for EntryError {
    fn from(malformed: Malformed) -> Self {
        Self(malformed.0)
    }
}

/// Nanoseconds since 1970, negative before.
#[derive(
    Clone,
    Copy,
    Debug,
    Default,
    PartialEq,
    Eq,
    Hash,
    PartialOrd,
    Ord,
    serde::Serialize,
    serde::Deserialize,
)]
pub struct Timestamp(pub i64);

/// What a name stands for.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    /// A file with its content.
    File(Object),
    /// A folder.
    Directory,
    /// A symbolic link; the target is 1 to 4095 bytes.
    Symlink(Vec<u8>),
    /// A named pipe.
    Fifo,
    /// A socket.
    Socket,
    /// A device.
    Device {
        /// Block rather than character device.
        block: bool,
        /// Device number.
        number: u32,
    },
    /// One of several names of a file; its record stands under [`super::InternalKey::File`].
    Link(FileId),
    /// A row of the table of writers (internal keys only).
    Writer {
        /// The writer's peer id, as bytes.
        peer: Vec<u8>,
        /// Its node name.
        node: String,
    },
    /// What stood at the path of an [`super::InternalKey::Move`], and all below it, was moved (internal keys only).
    Move {
        /// The new path; not the root.
        to: TreePath,
        /// What the rename saw, of at most 4096 writers: it moved these versions, and no others.
        seen: CausalContext,
    },
    /// What other internal keys hold, snapshots, members and policies among them: bytes that this version carries along.
    Record(Vec<u8>),
}

/// What the map holds for a name: kind and attributes.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Entry {
    /// What it is.
    pub kind: Kind,
    /// Permission bits, with set-id and sticky bits (12 bits).
    pub mode: u32,
    /// Owner.
    pub owner: u32,
    /// Group.
    pub group: u32,
    /// Time of the last change of the content.
    pub modified: Timestamp,
    /// Small `user.*` attributes, name without the prefix; in order.
    pub attributes: Few<Vec<u8>, Vec<u8>>,
    /// Fields of later versions, kept as they came: field number (16 or more) and its CBOR; in order.
    pub unknown: Few<u64, Vec<u8>>,
}

/// An entry as one writer left it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Version {
    /// Which write.
    pub dot: Dot,
    /// When, at most its head's time.
    pub time: HybridTime,
    /// What.
    pub entry: Entry,
    /// Where a rename has brought it from; `None` for what was written in its place.
    pub moved: Option<Moved>,
}

/// What a rename has made a version of. Few versions have one, so it takes one word where there is none.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Moved(Box<Original>);

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Original {
    from: TreePath,
    dots: Vec<Dot>,
}

impl Moved {
    /// The versions with these dots, shown as one under a path; `None` for more than 16, for none, and for the root.
    pub fn new(from: TreePath, dots: &[Dot]) -> Option<Self> {
        let dots: BTreeSet<_> = dots.iter().copied().collect();
        let fits = !from.names().is_empty() && (1..=MOVED_MAX).contains(&dots.len());
        let dots = || dots.into_iter().collect();
        fits.then(|| Self(Box::new(Original { from, dots: dots() })))
    }
    /// The path they had.
    pub fn from(&self) -> &TreePath {
        &self.0.from
    }
    /// Their dots, in order.
    pub fn dots(&self) -> &[Dot] {
        &self.0.dots
    }
}

impl Kind {
    fn number(&self) -> u64 {
        match self {
            Self::File(_) => 0,
            Self::Directory => 1,
            Self::Symlink(_) => 2,
            Self::Fifo => 3,
            Self::Socket => 4,
            Self::Device { block: false, .. } => 5,
            Self::Device { block: true, .. } => 6,
            Self::Link(_) => 7,
            Self::Writer { .. } => 8,
            Self::Move { .. } => 9,
            Self::Record(_) => 10,
        }
    }
    fn default_mode(&self) -> u32 {
        match self {
            Self::Directory => 0o755,
            Self::Symlink(_) => 0o777,
            _ => 0o644,
        }
    }
}

impl Entry {
    /// An entry without attributes.
    pub fn new(kind: Kind, mode: u32, owner: u32, group: u32, modified: Timestamp) -> Self {
        Self {
            kind,
            mode,
            owner,
            group,
            modified,
            attributes: Few::default(),
            unknown: Few::default(),
        }
    }
    /// A directory that nobody described: it exists because something lives below it. Mode 0o755, owner 0, time 0.
    pub fn implied_directory() -> Self {
        Self::new(Kind::Directory, 0o755, 0, 0, Timestamp(0))
    }
    /// One of several names of a file; what else there is to say stands in the file's record.
    pub fn link(file: FileId) -> Self {
        Self::new(Kind::Link(file), 0o644, 0, 0, Timestamp(0))
    }
    /// Checks every bound; an entry that fails fits into no node.
    pub fn check(&self) -> Result<(), EntryError> {
        let within = |ok: bool, what| if ok { Ok(()) } else { Err(EntryError(what)) };
        within(self.mode <= MODE_MAX, "mode bits beyond 0o7777")?;
        match &self.kind {
            Kind::File(object) => {
                within(i64::try_from(object.size).is_ok(), "a size beyond 2^63")?;
            }
            Kind::Symlink(target) => within(
                (1..=TARGET_BYTES_MAX).contains(&target.len()) && !target.contains(&0),
                "a target that is empty, too long, or has a NUL",
            )?,
            Kind::Writer { peer, node } => within(
                (1..=PEER_BYTES_MAX).contains(&peer.len())
                    && (1..=NODE_NAME_BYTES_MAX).contains(&node.len())
                    && !node.chars().any(char::is_control),
                "a peer id or a node name that is empty, too long, or has control characters",
            )?,
            Kind::Move { to, seen } => within(
                !to.names().is_empty() && seen.len() <= MOVE_WRITERS_MAX,
                "a move to the root, or one that saw too many writers",
            )?,
            Kind::Record(bytes) => {
                within(bytes.len() <= RECORD_BYTES_MAX, "a record that is too long")?;
            }
            Kind::Directory | Kind::Fifo | Kind::Socket | Kind::Device { .. } | Kind::Link(_) => {}
        }
        within(
            self.attributes.len() <= ATTRIBUTES_MAX,
            "too many attributes",
        )?;
        let mut bytes = 0;
        for (name, value) in &self.attributes {
            bytes += name.len() + value.len();
            within(
                (1..=ATTRIBUTE_NAME_BYTES_MAX).contains(&name.len()) && !name.contains(&0),
                "an attribute's name is empty, too long, or has a NUL",
            )?;
            within(
                value.len() <= ATTRIBUTE_VALUE_BYTES_MAX,
                "an attribute's value is too long",
            )?;
        }
        within(
            bytes <= ATTRIBUTES_BYTES_MAX,
            "the attributes are too long together",
        )?;
        let mut bytes = 0;
        for (&field, value) in &self.unknown {
            bytes += value.len();
            within(
                field >= FIELDS_KNOWN,
                "an unknown field with a known number",
            )?;
            let mut reader = Reader::new(value);
            reader.raw(UNKNOWN_BYTES_MAX)?;
            reader.end()?;
        }
        within(
            bytes <= UNKNOWN_BYTES_MAX,
            "the unknown fields are too long together",
        )
    }

    fn write(&self, out: &mut Writer) {
        // What is optional is listed first, so that the map's length is known before its fields are written.
        let (size, device) = match &self.kind {
            Kind::File(object) => (object.size, 0),
            Kind::Device { number, .. } => (0, u64::from(*number)),
            _ => (0, 0),
        };
        let mode = (self.mode != self.kind.default_mode()).then_some(self.mode);
        let of_kind = match &self.kind {
            Kind::File(_) | Kind::Symlink(_) | Kind::Link(_) | Kind::Record(_) => 1,
            Kind::Writer { .. } | Kind::Move { .. } => 2,
            Kind::Directory | Kind::Fifo | Kind::Socket | Kind::Device { .. } => 0,
        };
        let optional = [
            size != 0,
            device != 0,
            mode.is_some(),
            self.owner != 0,
            self.group != 0,
            self.modified.0 != 0,
            !self.attributes.is_empty(),
        ];
        let optional = optional.into_iter().filter(|&there| there).count();
        out.map(1 + of_kind + optional + self.unknown.len());

        out.uint(FIELD_KIND);
        out.uint(self.kind.number());
        if size != 0 {
            out.uint(FIELD_SIZE);
            out.uint(size);
        }
        match &self.kind {
            Kind::File(object) => {
                out.uint(FIELD_CONTENT);
                out.bytes(&object.content.0);
            }
            Kind::Symlink(target) => {
                out.uint(FIELD_TARGET);
                out.bytes(target);
            }
            Kind::Link(file) => {
                out.uint(FIELD_LINK);
                out.bytes(file);
            }
            Kind::Writer { peer, node } => {
                out.uint(FIELD_PEER);
                out.bytes(peer);
                out.uint(FIELD_NODE);
                out.text(node);
            }
            _ => {}
        }
        if device != 0 {
            out.uint(FIELD_DEVICE);
            out.uint(device);
        }
        if let Some(mode) = mode {
            out.uint(FIELD_MODE);
            out.uint(u64::from(mode));
        }
        if self.owner != 0 {
            out.uint(FIELD_OWNER);
            out.uint(u64::from(self.owner));
        }
        if self.group != 0 {
            out.uint(FIELD_GROUP);
            out.uint(u64::from(self.group));
        }
        if self.modified.0 != 0 {
            out.uint(FIELD_MODIFIED);
            out.int(self.modified.0);
        }
        if !self.attributes.is_empty() {
            out.uint(FIELD_ATTRIBUTES);
            out.map(self.attributes.len());
            for (name, value) in &self.attributes {
                out.bytes(name);
                out.bytes(value);
            }
        }
        match &self.kind {
            Kind::Move { to, seen } => {
                out.uint(FIELD_TO);
                out.bytes(&to.to_bytes());
                out.uint(FIELD_SEEN);
                seen.write(out);
            }
            Kind::Record(bytes) => {
                out.uint(FIELD_RECORD);
                out.bytes(bytes);
            }
            _ => {}
        }
        for (&field, value) in &self.unknown {
            out.uint(field);
            out.raw(value);
        }
    }

    /// Reads what [`Self::write`] wrote. Accepts a few forms that it would not write (a default spelled out); callers
    /// re-encode and compare.
    fn read(input: &mut Reader<'_>) -> Result<Self, EntryError> {
        let mut fields = Fields::default();
        let count = input.map(usize::MAX)?;
        let mut previous = None;
        for _ in 0..count {
            let field = input.uint()?;
            if previous
                .replace(field)
                .is_some_and(|before| before >= field)
            {
                return Err(EntryError("fields out of order"));
            }
            fields.take(field, input)?;
        }
        let entry = fields.into_entry()?;
        entry.check()?;
        Ok(entry)
    }
}

/// The fields of an entry as they come.
#[derive(Default)]
struct Fields {
    kind: Option<u64>,
    size: u64,
    content: Option<[u8; 32]>,
    target: Option<Vec<u8>>,
    device: u32,
    link: Option<[u8; 16]>,
    peer: Option<Vec<u8>>,
    node: Option<String>,
    mode: Option<u32>,
    owner: u32,
    group: u32,
    modified: i64,
    attributes: Few<Vec<u8>, Vec<u8>>,
    to: Option<TreePath>,
    seen: Option<CausalContext>,
    record: Option<Vec<u8>>,
    unknown: Few<u64, Vec<u8>>,
}

impl Fields {
    fn take(&mut self, field: u64, input: &mut Reader<'_>) -> Result<(), Malformed> {
        match field {
            FIELD_KIND => self.kind = Some(input.uint()?),
            FIELD_SIZE => self.size = input.uint()?,
            FIELD_CONTENT => self.content = Some(input.fixed()?),
            FIELD_TARGET => self.target = Some(input.bytes(TARGET_BYTES_MAX)?.to_vec()),
            FIELD_DEVICE => self.device = input.u32()?,
            FIELD_LINK => self.link = Some(input.fixed()?),
            FIELD_PEER => self.peer = Some(input.bytes(PEER_BYTES_MAX)?.to_vec()),
            FIELD_NODE => self.node = Some(input.text(NODE_NAME_BYTES_MAX)?.to_owned()),
            FIELD_MODE => self.mode = Some(input.u32()?),
            FIELD_OWNER => self.owner = input.u32()?,
            FIELD_GROUP => self.group = input.u32()?,
            FIELD_MODIFIED => self.modified = input.int()?,
            FIELD_ATTRIBUTES => {
                for _ in 0..input.map(ATTRIBUTES_MAX)? {
                    let name = input.bytes(ATTRIBUTE_NAME_BYTES_MAX)?.to_vec();
                    let value = input.bytes(ATTRIBUTE_VALUE_BYTES_MAX)?.to_vec();
                    self.attributes.insert(name, value);
                }
            }
            FIELD_TO => self.to = Some(read_path(input)?),
            FIELD_SEEN => self.seen = Some(CausalContext::read(input, MOVE_WRITERS_MAX)?),
            FIELD_RECORD => self.record = Some(input.bytes(RECORD_BYTES_MAX)?.to_vec()),
            unknown => {
                let value = input.raw(UNKNOWN_BYTES_MAX)?.to_vec();
                self.unknown.insert(unknown, value);
            }
        }
        Ok(())
    }
    /// Fields of another kind than the entry's are passed over here; the comparison with the re-encoding refuses them.
    fn into_entry(self) -> Result<Entry, EntryError> {
        let absent = EntryError("a field is absent");
        let kind = match self.kind {
            Some(0) => Kind::File(Object {
                content: ContentId(self.content.ok_or(absent)?),
                size: self.size,
            }),
            Some(1) => Kind::Directory,
            Some(2) => Kind::Symlink(self.target.ok_or(absent)?),
            Some(3) => Kind::Fifo,
            Some(4) => Kind::Socket,
            Some(number @ (5 | 6)) => Kind::Device {
                block: number == 6,
                number: self.device,
            },
            Some(7) => Kind::Link(self.link.ok_or(absent)?),
            Some(8) => Kind::Writer {
                peer: self.peer.ok_or(absent)?,
                node: self.node.ok_or(absent)?,
            },
            Some(9) => Kind::Move {
                to: self.to.ok_or(absent)?,
                seen: self.seen.ok_or(absent)?,
            },
            Some(10) => Kind::Record(self.record.ok_or(absent)?),
            Some(_) => return Err(EntryError("a kind of a later version")),
            None => return Err(absent),
        };
        Ok(Entry {
            mode: self.mode.unwrap_or(kind.default_mode()),
            kind,
            owner: self.owner,
            group: self.group,
            modified: Timestamp(self.modified),
            attributes: self.attributes,
            unknown: self.unknown,
        })
    }
}

impl Version {
    /// What decides which of several versions is shown: later wins, then the larger writer.
    pub(super) fn rank(&self) -> (HybridTime, WriterNumber, u64) {
        (self.time, self.dot.writer, self.dot.sequence)
    }
    /// Who wrote what it says. One that tells it was brought from where it stands, at `path`, says what others wrote: a
    /// version of a file with several names that was put there (see the module `links`).
    pub(super) fn author(&self, path: &TreePath) -> WriterNumber {
        let moved = self.moved.as_ref().filter(|moved| moved.from() == path);
        let first = moved.and_then(|moved| moved.dots().last());
        first.unwrap_or(&self.dot).writer
    }
    /// Whether all of it is in its own place in memory.
    fn is_plain(&self) -> bool {
        let entry = &self.entry;
        let is_plain = match entry.kind {
            Kind::Symlink(_) | Kind::Writer { .. } | Kind::Move { .. } | Kind::Record(_) => false,
            Kind::File(_) | Kind::Directory | Kind::Fifo | Kind::Socket => true,
            Kind::Device { .. } | Kind::Link(_) => true,
        };
        is_plain && self.moved.is_none() && entry.attributes.is_empty() && entry.unknown.is_empty()
    }
    fn write(&self, out: &mut Writer) {
        out.array(4 + usize::from(self.moved.is_some()));
        out.uint(self.dot.writer.0);
        out.uint(self.dot.sequence);
        out.uint(self.time.0);
        self.entry.write(out);
        if let Some(moved) = &self.moved {
            out.array(2);
            out.bytes(&moved.from().to_bytes());
            out.array(moved.dots().len());
            for dot in moved.dots() {
                out.array(2);
                out.uint(dot.writer.0);
                out.uint(dot.sequence);
            }
        }
    }
    fn encoded(&self) -> Vec<u8> {
        let mut out = Writer::default();
        self.write(&mut out);
        out.into_bytes()
    }
    fn read(input: &mut Reader<'_>) -> Result<Self, EntryError> {
        let parts = input.array(5)?;
        if parts < 4 {
            return Err(EntryError("a version of other than four or five parts"));
        }
        let mut version = Self {
            dot: read_dot(input)?,
            time: HybridTime(input.uint()?),
            entry: Entry::read(input)?,
            moved: None,
        };
        if parts == 5 {
            let two = |input: &mut Reader<'_>| match input.array(2)? {
                2 => Ok(()),
                _ => Err(EntryError("one part where there are two")),
            };
            two(input)?;
            let from = read_path(input)?;
            let mut dots = Vec::new();
            for _ in 0..input.array(MOVED_MAX)? {
                two(input)?;
                dots.push(read_dot(input)?);
            }
            let moved = Moved::new(from, &dots);
            version.moved = Some(moved.ok_or(EntryError("moved from nothing"))?);
        }
        version.check()?;
        Ok(version)
    }
    /// Checks all but the entry.
    fn check(&self) -> Result<(), EntryError> {
        let mut moved = self.moved.iter().flat_map(Moved::dots);
        if self.dot.sequence == 0 || moved.any(|dot| dot.sequence == 0) {
            return Err(EntryError("a sequence of 0"));
        }
        Ok(())
    }
}

fn read_path(input: &mut Reader<'_>) -> Result<TreePath, Malformed> {
    let path = TreePath::from_bytes(input.bytes(PATH_BYTES_MAX)?);
    path.map_err(|_| Malformed("not a path"))
}

fn read_dot(input: &mut Reader<'_>) -> Result<Dot, EntryError> {
    Ok(Dot {
        writer: WriterNumber(input.uint()?),
        sequence: input.uint()?,
    })
}

/// The concurrent versions under one key: at least one, in order of their dots, no dot twice.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Versions(Vec<Version>);

impl Versions {
    /// `None` when there are no versions; sorts, and drops doubles. Should one dot come with two contents (a copied
    /// machine), the larger (time, encoding) stays, whatever the order.
    pub fn new(mut versions: Vec<Version>) -> Option<Self> {
        versions.sort_by(|a, b| {
            let by_dot = a.dot.cmp(&b.dot).then_with(|| b.time.cmp(&a.time));
            by_dot.then_with(|| b.encoded().cmp(&a.encoded()))
        });
        versions.dedup_by(|later, earlier| later.dot == earlier.dot);
        (!versions.is_empty()).then_some(Self(versions))
    }
    /// A local write: of what is there, the versions that the writer saw give way to the new one (to nothing, when it
    /// deletes); others stay as concurrent versions. `None` when nothing is left.
    pub fn replace(
        existing: Option<&Self>,
        seen: &[Dot],
        new: Option<Version>,
    ) -> Option<Versions> {
        let kept = existing
            .iter()
            .flat_map(|versions| versions.as_slice())
            .filter(|version| !seen.contains(&version.dot))
            .cloned();
        Self::fitting(kept.chain(new).collect())
    }
    /// Those that fit under one key: all, or the largest by (time, writer, sequence) where they are too many or too large
    /// together. So a state can always be merged, whatever was written at once, and the same way by everybody.
    pub(super) fn fitting(versions: Vec<Version>) -> Option<Self> {
        // So few can't take too much room, whatever they are.
        const CERTAINLY_FIT: usize = 8;
        let mut all = Self::new(versions)?;
        let fits = all.0.len() <= CERTAINLY_FIT
            || (all.0.len() <= VERSIONS_MAX && all.encode().len() <= VERSIONS_BYTES_MAX);
        if fits {
            return Some(all);
        }
        all.0
            .sort_by_key(|version| std::cmp::Reverse(version.rank()));
        all.0.truncate(VERSIONS_MAX);
        // The head of the list takes at most three bytes.
        let mut room = VERSIONS_BYTES_MAX - 3;
        let sizes = all.0.iter().map(|version| version.encoded().len());
        let fitting = sizes
            .take_while(|size| {
                let fits = *size <= room;
                room = room.saturating_sub(*size);
                fits
            })
            .count();
        all.0.truncate(fitting);
        Self::new(all.0)
    }
    /// All of them.
    pub fn as_slice(&self) -> &[Version] {
        &self.0
    }
    /// About how many bytes they take in memory beside their place in a row.
    pub(super) fn memory(&self) -> usize {
        let others = self.0.iter().filter(|version| !version.is_plain());
        // Of what varies in size the encoding has every byte.
        let others = others.map(|version| 2 * version.encoded().len());
        self.0.capacity() * size_of::<Version>() + others.sum::<usize>()
    }
    /// Time of the newest.
    pub fn newest(&self) -> HybridTime {
        let times = self.0.iter().map(|version| version.time);
        times.max().unwrap_or_default()
    }
    /// The canonical encoding; in a push it stands for the versions under a key.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Writer::default();
        self.write(&mut out);
        out.into_bytes()
    }
    /// Decodes in full, checks every bound, re-encodes and compares. Whether the kinds may stand under a key is checked
    /// when they are put there ([`super::apply`]).
    pub fn decode(bytes: &[u8]) -> Result<Self, EntryError> {
        if bytes.len() > VERSIONS_BYTES_MAX {
            return Err(EntryError("longer than allowed"));
        }
        let mut input = Reader::new(bytes);
        let versions = Self::read(&mut input)?;
        input.end()?;
        if versions.encode() != bytes {
            return Err(EntryError("not the canonical encoding"));
        }
        Ok(versions)
    }
    /// Checks the bounds of all of them and of their number.
    pub(super) fn check(&self) -> Result<(), EntryError> {
        if self.0.len() > VERSIONS_MAX {
            return Err(EntryError("too many concurrent versions"));
        }
        self.0.iter().try_for_each(|version| {
            version.check()?;
            version.entry.check()
        })
    }
    pub(super) fn write(&self, out: &mut Writer) {
        out.array(self.0.len());
        for version in &self.0 {
            version.write(out);
        }
    }
    /// Checks everything but that the encoding is the canonical one; callers re-encode and compare.
    pub(super) fn read(input: &mut Reader<'_>) -> Result<Self, EntryError> {
        let count = input.array(VERSIONS_MAX)?;
        // Mostly there is one. Room for four, which collecting would take, is most of what a decoded node takes.
        let mut versions = Vec::new();
        for _ in 0..count {
            versions.reserve_exact(1);
            versions.push(Version::read(input)?);
        }
        if !versions.is_sorted_by(|a, b| a.dot < b.dot) {
            return Err(EntryError("versions out of order"));
        }
        if versions.is_empty() {
            return Err(EntryError("no version"));
        }
        Ok(Self(versions))
    }
}

#[cfg(test)]
mod tests;
