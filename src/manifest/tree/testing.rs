//! What the tests of this module share: a source in memory that counts, and small entries.

use std::{
    cell::{Cell, RefCell},
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use super::{Applied, Key, Node, NodeHash, NodeSource, TreeError, Versions, apply, empty_root};
use crate::{
    content::{ContentId, Object},
    manifest::{Dot, Entry, HybridTime, Kind, Timestamp, TreePath, Version, WriterNumber},
};

/// Nodes in memory, decoded at every read as if from the network.
#[derive(Default)]
pub(crate) struct Memory {
    pub(crate) nodes: RefCell<BTreeMap<NodeHash, Vec<u8>>>,
    /// Nodes that are kept back.
    pub(crate) hidden: RefCell<BTreeSet<NodeHash>>,
    pub(crate) reads: Cell<usize>,
}

impl NodeSource for Memory {
    fn node(&self, hash: &NodeHash) -> Result<Option<Arc<Node>>, TreeError> {
        self.reads.set(self.reads.get() + 1);
        if self.hidden.borrow().contains(hash) {
            return Ok(None);
        }
        let nodes = self.nodes.borrow();
        let Some(bytes) = nodes.get(hash) else {
            return Ok(None);
        };
        let node = Node::decode(bytes).map_err(|error| TreeError::Source(error.to_string()))?;
        Ok(Some(Arc::new(node)))
    }
}

impl Memory {
    pub(crate) fn keep(&self, nodes: Vec<(NodeHash, Vec<u8>)>) {
        for (hash, bytes) in nodes {
            assert_eq!(hash, NodeHash::of(&bytes));
            self.nodes.borrow_mut().insert(hash, bytes);
        }
    }
    pub(crate) fn apply(&self, root: NodeHash, edits: &Edits) -> NodeHash {
        let Applied { root, nodes } = apply(self, root, edits).unwrap();
        self.keep(nodes);
        root
    }
    pub(crate) fn build(&self, edits: &Edits) -> NodeHash {
        self.apply(empty_root(), edits)
    }
    pub(crate) fn hide_all(&self) {
        *self.hidden.borrow_mut() = self.nodes.borrow().keys().copied().collect();
    }
    /// Runs with all nodes hidden but those that it asks for; how many rounds it took, and how many nodes.
    pub(crate) fn fetching<T>(
        &self,
        run: impl Fn(&Self) -> Result<T, TreeError>,
    ) -> (T, usize, usize) {
        self.hide_all();
        let (mut rounds, mut fetched) = (0, 0);
        loop {
            match run(self) {
                Ok(value) => {
                    self.hidden.borrow_mut().clear();
                    return (value, rounds, fetched);
                }
                Err(TreeError::Missing(hashes)) => {
                    assert!(!hashes.is_empty() && hashes.len() <= super::MISSING_MAX);
                    rounds += 1;
                    for hash in hashes {
                        assert!(
                            self.hidden.borrow_mut().remove(&hash),
                            "asked for what is here"
                        );
                        fetched += 1;
                    }
                }
                Err(error) => panic!("{error}"),
            }
        }
    }
}

pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
/// Bytes from hexadecimal digits, with spaces anywhere.
pub(crate) fn unhex(text: &str) -> Vec<u8> {
    let digits: Vec<_> = text.bytes().filter(|byte| *byte != b' ').collect();
    let pairs = digits
        .chunks(2)
        .map(|pair| std::str::from_utf8(pair).unwrap());
    pairs
        .map(|pair| u8::from_str_radix(pair, 16).unwrap())
        .collect()
}

pub(crate) type Edits = BTreeMap<Key, Option<Versions>>;

pub(crate) fn path(text: &str) -> TreePath {
    TreePath::parse(text.as_bytes()).unwrap()
}
pub(crate) fn key(text: &str) -> Key {
    Key::of_path(&path(text)).unwrap()
}
pub(crate) fn dot(writer: u64, sequence: u64) -> Dot {
    Dot {
        writer: WriterNumber(writer),
        sequence,
    }
}
/// A file whose content is told by a number.
pub(crate) fn file(content: u64) -> Entry {
    let object = Object {
        content: ContentId(*blake3::hash(&content.to_le_bytes()).as_bytes()),
        size: content % 10_000,
    };
    let modified = Timestamp(1_700_000_000_000_000_000 + content as i64);
    Entry::new(Kind::File(object), 0o644, 1000, 1000, modified)
}
pub(crate) fn directory() -> Entry {
    Entry::new(Kind::Directory, 0o750, 1000, 1000, Timestamp(5))
}
pub(crate) fn version(writer: u64, sequence: u64, time: u64, entry: Entry) -> Version {
    Version {
        dot: dot(writer, sequence),
        time: HybridTime(time),
        entry,
        moved: None,
    }
}
pub(crate) fn versions(list: impl Into<Vec<Version>>) -> Versions {
    Versions::new(list.into()).unwrap()
}
pub(crate) fn one(content: u64) -> Versions {
    let time = 1_700_000_000_000_000_000 + content;
    versions([version(0x0123_4567_89ab_cdef, 7, time, file(content))])
}
/// A tree of `count` files in folders of about 100.
pub(crate) fn many(count: u64) -> Edits {
    (0..count)
        .map(|n| {
            let name = format!("folder {:03}/file {n:06}.dat", n % (count / 100).max(1));
            (key(&name), Some(one(n)))
        })
        .collect()
}
