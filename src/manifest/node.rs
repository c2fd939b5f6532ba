//! Nodes of the Merkle map: their content address, their canonical encoding, their bounds.
//!
//! The map is a prolly tree: its sorted rows are cut into leaves (level 0), the leaves' rows of (first key, hash, summary)
//! are cut into nodes of level 1, and so on up to the first level that is a single node, the root. Where a node starts is
//! decided by the row alone, so equal maps have equal nodes, whatever the order of edits. A row starts a node of level
//! *n* when the BLAKE3 hash of its key begins with at least 6 × (n + 1) zero bits, or, in a leaf, when its versions take
//! more than 2 KiB. So nodes have 64 rows on average: about 8 KiB.
//!
//! Encoding (CBOR, one form only): `[1, level, [row…]]`, a row being `[shared, rest, versions]` in a leaf and
//! `[shared, rest, hash, keys, files, bytes, conflicts, newest]` above, where a key is the first `shared` bytes of the key before it
//! (as many as possible) followed by `rest`. The empty map is the leaf without rows; no other node is without rows, and no
//! root above level 0 has one row only.

use std::sync::{Arc, LazyLock};

use serde::{Deserialize, Serialize};

use super::{
    Key, Kind, TreeError, Versions,
    cbor::{Malformed, Reader, Writer},
    entry::{EntryError, VERSIONS_BYTES_MAX},
    key::KEY_BYTES_MAX,
    view::groups,
};

/// Most bytes of an encoded node: it fits a sync message of 4 MiB with what goes around it.
pub const NODE_BYTES_MAX: usize = 4 * 1024 * 1024 - 4096;
/// Most rows of a node, and most bytes of their whole keys: front-coding makes long keys short, and a node must not be
/// able to unfold into gigabytes. Far beyond what the rule of where nodes start lets come about.
const ROWS_MAX: usize = 16_384;
const KEYS_BYTES_MAX: usize = 16 * 1024 * 1024;
/// Highest level; a tree is at most 16 nodes deep.
pub(super) const LEVEL_MAX: u8 = 15;
/// Zero bits of a key's hash per level: 2^6 rows in a node on average.
const LEVEL_BITS: u32 = 6;
/// A row whose versions take more bytes starts a leaf of its own, so that rows of many kilobytes don't pile up in one
/// node: to pass 4 MiB, 2000 small rows would have to come without a boundary (probability e^-32).
const LARGE_ROW_BYTES: usize = 2048;
const FORMAT: u64 = 2;
/// What rounding up costs for each block of memory, more or less.
const BLOCK: usize = 8;

/// BLAKE3 hash of a node's encoding; a root's hash is the state of the whole folder.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct NodeHash(#[serde(with = "serde_bytes")] pub [u8; 32]);

impl std::fmt::Display for NodeHash {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}
impl std::fmt::Debug for NodeHash {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        std::fmt::Display::fmt(self, f)
    }
}

/// What lies below a node.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Summary {
    /// Keys of any kind.
    pub keys: u64,
    /// Regular files.
    pub files: u64,
    /// Bytes of their contents.
    pub bytes: u64,
    /// Paths that show conflict copies.
    pub conflicts: u64,
    /// The newest version's time.
    pub newest: super::HybridTime,
}

impl Summary {
    /// What both hold together. Saturating, so that the order of adding does not matter even for absurd sizes.
    pub(super) fn add(&mut self, other: &Self) {
        self.keys = self.keys.saturating_add(other.keys);
        self.files = self.files.saturating_add(other.files);
        self.bytes = self.bytes.saturating_add(other.bytes);
        self.conflicts = self.conflicts.saturating_add(other.conflicts);
        self.newest = self.newest.max(other.newest);
    }
    pub(super) fn of_row(key: &Key, versions: &Versions) -> Self {
        let mut summary = Self {
            keys: 1,
            newest: versions.newest(),
            ..Self::default()
        };
        let groups = groups(versions);
        summary.conflicts = u64::from(groups.len() > 1 && key.internal().is_none());
        for group in groups {
            if let Kind::File(object) = &group.newest.entry.kind {
                summary.files += 1;
                summary.bytes = summary.bytes.saturating_add(object.size);
            }
        }
        summary
    }
}

/// What an inner node knows of a child.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Child {
    pub(super) hash: NodeHash,
    pub(super) summary: Summary,
}

/// The rows of a node, in strict order of their keys.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Rows {
    Leaf(Vec<(Key, Versions)>),
    /// The key is the first of what lies below the child.
    Inner(Vec<(Key, Child)>),
}

/// A decoded, fully validated node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Node {
    level: u8,
    rows: Rows,
    summary: Summary,
    /// Whether the first row starts a node of this level by itself; only the leftmost node's needn't.
    bounded: bool,
}

/// Why bytes are not a node.
#[derive(Debug, thiserror::Error)]
#[error("not a manifest node: {0}")]
pub struct NodeError(pub String);

impl From<Malformed> for NodeError {
    fn from(malformed: Malformed) -> Self {
        Self(malformed.0.to_owned())
    }
}

impl From<EntryError> for NodeError {
    fn from(error: EntryError) -> Self {
        Self(error.0.to_owned())
    }
}

fn refuse<T>(what: &str) -> Result<T, NodeError> {
    Err(NodeError(what.to_owned()))
}

/// How many levels a key starts nodes of, by its hash.
pub(super) fn levels_started(key: &Key) -> u32 {
    let hash = blake3::hash(key.as_bytes());
    let mut first = [0; 16];
    first.copy_from_slice(&hash.as_bytes()[..16]);
    u128::from_be_bytes(first).leading_zeros() / LEVEL_BITS
}

/// What stands beside a key in a row; edits of leaves and of inner nodes are the same but for this.
pub(super) trait Value: Clone + PartialEq {
    /// Whether the row starts a node of this level.
    fn starts(level: u8, key: &Key, value: &Self) -> bool;
    fn of_node(node: &Node) -> &[(Key, Self)];
    fn into_node(level: u8, rows: Vec<(Key, Self)>) -> Node;
}

impl Value for Versions {
    fn starts(_level: u8, key: &Key, versions: &Self) -> bool {
        levels_started(key) > 0 || versions.encode().len() > LARGE_ROW_BYTES
    }
    fn of_node(node: &Node) -> &[(Key, Self)] {
        match &node.rows {
            Rows::Leaf(rows) => rows,
            Rows::Inner(_) => &[],
        }
    }
    fn into_node(_level: u8, rows: Vec<(Key, Self)>) -> Node {
        let bounded = rows
            .first()
            .is_some_and(|(key, versions)| Self::starts(0, key, versions));
        Node::leaf(rows, bounded)
    }
}

impl Value for Child {
    fn starts(level: u8, key: &Key, _child: &Self) -> bool {
        levels_started(key) > u32::from(level)
    }
    fn of_node(node: &Node) -> &[(Key, Self)] {
        match &node.rows {
            Rows::Leaf(_) => &[],
            Rows::Inner(rows) => rows,
        }
    }
    fn into_node(level: u8, rows: Vec<(Key, Self)>) -> Node {
        let bounded = rows
            .first()
            .is_some_and(|(key, child)| Self::starts(level, key, child));
        Node::inner(level, rows, bounded)
    }
}

impl Node {
    fn leaf(rows: Vec<(Key, Versions)>, bounded: bool) -> Self {
        let mut summary = Summary::default();
        for (key, versions) in &rows {
            summary.add(&Summary::of_row(key, versions));
        }
        Self {
            level: 0,
            rows: Rows::Leaf(rows),
            summary,
            bounded,
        }
    }
    fn inner(level: u8, rows: Vec<(Key, Child)>, bounded: bool) -> Self {
        let mut summary = Summary::default();
        for (_, child) in &rows {
            summary.add(&child.summary);
        }
        Self {
            level,
            rows: Rows::Inner(rows),
            summary,
            bounded,
        }
    }
    /// The node of the empty map.
    pub(super) fn empty() -> &'static (NodeHash, Arc<Node>) {
        static EMPTY: LazyLock<(NodeHash, Arc<Node>)> = LazyLock::new(|| {
            let node = Node::leaf(Vec::new(), false);
            (NodeHash::of(&node.encode()), Arc::new(node))
        });
        &EMPTY
    }

    /// Checks and decodes; re-encodes and compares, so that a node has one encoding only. What depends on where the node
    /// stands (level, range of keys, summary) is checked when it is reached from its parent.
    pub fn decode(bytes: &[u8]) -> Result<Self, NodeError> {
        if bytes.len() > NODE_BYTES_MAX {
            return refuse("longer than allowed");
        }
        let mut input = Reader::new(bytes);
        if input.array(3)? != 3 || input.uint()? != FORMAT {
            return refuse("of another format");
        }
        let level = input.uint_max(u64::from(LEVEL_MAX))? as u8;
        let count = input.array(ROWS_MAX)?;
        let node = if level == 0 {
            let (rows, bounded) = read_rows(&mut input, count, level, read_versions)?;
            Self::leaf(rows, bounded)
        } else {
            let (rows, bounded) = read_rows(&mut input, count, level, read_child)?;
            if rows.is_empty() {
                return refuse("an inner node without rows");
            }
            Self::inner(level, rows, bounded)
        };
        input.end()?;
        if node.encode() != bytes {
            return refuse("not the canonical encoding");
        }
        Ok(node)
    }

    /// The canonical encoding.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Writer::default();
        out.array(3);
        out.uint(FORMAT);
        out.uint(u64::from(self.level));
        match &self.rows {
            Rows::Leaf(rows) => write_rows(&mut out, rows, 3, |out, versions| versions.write(out)),
            Rows::Inner(rows) => write_rows(&mut out, rows, 8, |out, child| {
                out.bytes(&child.hash.0);
                out.uint(child.summary.keys);
                out.uint(child.summary.files);
                out.uint(child.summary.bytes);
                out.uint(child.summary.conflicts);
                out.uint(child.summary.newest.0);
            }),
        }
        out.into_bytes()
    }

    /// Whether a node with this encoding is within the bounds that decoding holds it to.
    pub(super) fn is_within_bounds(&self, encoding: &[u8]) -> bool {
        fn fits<V>(rows: &[(Key, V)]) -> bool {
            let keys: usize = rows.iter().map(|(key, _)| key.as_bytes().len()).sum();
            rows.len() <= ROWS_MAX && keys <= KEYS_BYTES_MAX
        }
        let rows_fit = match &self.rows {
            Rows::Leaf(rows) => fits(rows),
            Rows::Inner(rows) => fits(rows),
        };
        rows_fit && encoding.len() <= NODE_BYTES_MAX && self.level <= LEVEL_MAX
    }

    /// About how many bytes it takes in memory, decoded.
    pub fn memory(&self) -> usize {
        fn of<V>(rows: &Vec<(Key, V)>, value: impl Fn(&V) -> usize) -> usize {
            let keys = rows.iter().map(|(key, _)| key.as_bytes().len() + BLOCK);
            let values = rows.iter().map(|(_, own)| value(own));
            rows.capacity() * size_of::<(Key, V)>() + keys.sum::<usize>() + values.sum::<usize>()
        }
        let rows = match &self.rows {
            Rows::Leaf(rows) => of(rows, |versions| versions.memory() + BLOCK),
            Rows::Inner(rows) => of(rows, |_| 0),
        };
        size_of::<Self>() + rows
    }

    /// The hashes of its children; none for a leaf.
    pub fn children(&self) -> Vec<NodeHash> {
        let rows = Child::of_node(self);
        rows.iter().map(|(_, child)| child.hash).collect()
    }
    /// 0 for a leaf, one more than its children's for others.
    pub fn level(&self) -> u8 {
        self.level
    }
    /// What lies below it.
    pub fn summary(&self) -> Summary {
        self.summary
    }
    pub(super) fn rows(&self) -> &Rows {
        &self.rows
    }
    pub(super) fn first_key(&self) -> Option<&Key> {
        match &self.rows {
            Rows::Leaf(rows) => rows.first().map(|(key, _)| key),
            Rows::Inner(rows) => rows.first().map(|(key, _)| key),
        }
    }
    fn last_key(&self) -> Option<&Key> {
        match &self.rows {
            Rows::Leaf(rows) => rows.last().map(|(key, _)| key),
            Rows::Inner(rows) => rows.last().map(|(key, _)| key),
        }
    }

    /// Checks what a root must be beyond a valid node.
    pub(super) fn check_root(&self, hash: &NodeHash) -> Result<(), TreeError> {
        match &self.rows {
            Rows::Inner(rows) if rows.len() < 2 => Err(TreeError::Misplaced(*hash)),
            _ => Ok(()),
        }
    }
    /// Checks a child against the row that led to it: level, first key, range, summary, and that it starts where a node
    /// of its level starts.
    pub(super) fn check_child(
        &self,
        level: u8,
        (key, row): &(Key, Child),
        upper: Option<&Key>,
        leftmost: bool,
    ) -> Result<(), TreeError> {
        let fits = self.level == level
            && self.first_key() == Some(key)
            && (leftmost || self.bounded)
            && self.summary == row.summary
            && upper.is_none_or(|upper| self.last_key() < Some(upper));
        if fits {
            Ok(())
        } else {
            Err(TreeError::Misplaced(row.hash))
        }
    }
}

fn read_versions(input: &mut Reader<'_>, key: &Key) -> Result<(Versions, bool), NodeError> {
    let before = input.left();
    let versions = Versions::read(input)?;
    let length = before - input.left();
    if length > VERSIONS_BYTES_MAX {
        return refuse("versions longer than allowed");
    }
    let mut kinds = versions
        .as_slice()
        .iter()
        .map(|version| &version.entry.kind);
    if !kinds.all(|kind| key.admits(kind)) {
        return refuse("an entry under a key of another kind");
    }
    Ok((versions, length > LARGE_ROW_BYTES))
}

fn read_child(input: &mut Reader<'_>, _key: &Key) -> Result<(Child, bool), NodeError> {
    let child = Child {
        hash: NodeHash(input.fixed()?),
        summary: Summary {
            keys: input.uint()?,
            files: input.uint()?,
            bytes: input.uint()?,
            conflicts: input.uint()?,
            newest: super::HybridTime(input.uint()?),
        },
    };
    Ok((child, false))
}

/// Rows, and whether the first of them starts a node by itself. `read` gives a row's value and whether its size alone
/// makes it start a node.
fn read_rows<V>(
    input: &mut Reader<'_>,
    count: usize,
    level: u8,
    read: impl Fn(&mut Reader<'_>, &Key) -> Result<(V, bool), NodeError>,
) -> Result<(Vec<(Key, V)>, bool), NodeError> {
    let parts = if level == 0 { 3 } else { 8 };
    // Nothing is reserved by the count, which is not to be trusted; rows grow with the bytes that were really there.
    let mut rows: Vec<(Key, V)> = Vec::new();
    let mut bounded = false;
    let mut keys_bytes = 0;
    for _ in 0..count {
        if input.array(parts)? != parts {
            return refuse("a row with the wrong number of parts");
        }
        let previous = rows.last().map(|(key, _)| key.as_bytes());
        let shared = input.uint_max(KEY_BYTES_MAX as u64)? as usize;
        let Some(shared) = previous.unwrap_or_default().get(..shared) else {
            return refuse("a key shares more than the one before has");
        };
        let rest = input.bytes(KEY_BYTES_MAX)?;
        keys_bytes += shared.len() + rest.len();
        if keys_bytes > KEYS_BYTES_MAX {
            return refuse("keys that are too long together");
        }
        let key = Key::from_bytes([shared, rest].concat())
            .map_err(|error| NodeError(format!("a key: {error}")))?;
        if previous.is_some_and(|previous| previous >= key.as_bytes()) {
            return refuse("keys out of order");
        }
        let (value, large) = read(input, &key)?;
        let starts = large || levels_started(&key) > u32::from(level);
        if rows.is_empty() {
            bounded = starts;
        } else if starts {
            return refuse("a row that starts a node stands inside of one");
        }
        rows.push((key, value));
    }
    // Nodes are kept for long.
    rows.shrink_to_fit();
    Ok((rows, bounded))
}

fn write_rows<V>(
    out: &mut Writer,
    rows: &[(Key, V)],
    parts: usize,
    write: impl Fn(&mut Writer, &V),
) {
    out.array(rows.len());
    let mut previous: &[u8] = &[];
    for (key, value) in rows {
        let key = key.as_bytes();
        let shared = previous.iter().zip(key).take_while(|(a, b)| a == b).count();
        out.array(parts);
        out.uint(shared as u64);
        out.bytes(key.get(shared..).unwrap_or_default());
        write(out, value);
        previous = key;
    }
}

impl NodeHash {
    /// The hash of an encoded node.
    pub fn of(bytes: &[u8]) -> Self {
        Self(*blake3::hash(bytes).as_bytes())
    }
}

#[cfg(test)]
mod tests;
