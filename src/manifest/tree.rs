//! The tree: look-up, scans, edits and differences, each touching only the nodes it needs.
//!
//! Every child is checked against its parent when it is reached, so that a node which is valid by itself but forged for
//! its place ends an operation with an error and never with a wrong answer outside of its own range of keys.

mod diff;
mod edit;
mod outdated;
#[cfg(test)]
pub(super) mod testing;
#[cfg(test)]
mod tests;

use std::{ops::Range, sync::Arc};

use super::{
    Key, Node, NodeHash, Summary, Versions,
    node::{Child, Rows, Value},
};

pub(super) use diff::here;
pub use diff::{diff, diff_after};
pub use edit::apply;
pub use outdated::outdated;

/// Most missing nodes that are named at once.
pub const MISSING_MAX: usize = 1024;

/// Where nodes come from. A tree's nodes are read again and again: sources keep decoded ones in memory.
pub trait NodeSource {
    /// The node, or `None` when it is not here. The source has checked that the encoding has this hash.
    fn node(&self, hash: &NodeHash) -> Result<Option<Arc<Node>>, TreeError>;
}

/// Why an operation on the tree could not be done.
#[derive(Debug, thiserror::Error)]
pub enum TreeError {
    /// Nodes that must be fetched first; the operation is then simply repeated. All that are known to be needed are
    /// named at once (neighbours in one round trip), at most 1024.
    #[error("{} manifest nodes are not here yet", .0.len())]
    Missing(Vec<NodeHash>),
    /// A node contradicts its parent (bounds, level, order).
    #[error("the manifest node {0} does not fit where it stands")]
    Misplaced(NodeHash),
    /// An edit that fits into no node (the key, and what is beyond its bound).
    #[error("{0} cannot be stored: {1}")]
    Bounds(String, &'static str),
    /// The source failed.
    #[error("reading the manifest failed: {0}")]
    Source(String),
}

/// The result of edits: the new root and the nodes that are new.
#[derive(Clone, Debug)]
pub struct Applied {
    /// The new root.
    pub root: NodeHash,
    /// New nodes with their encodings, children before parents.
    pub nodes: Vec<(NodeHash, Vec<u8>)>,
}

/// One difference between two roots.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    /// The key.
    pub key: Key,
    /// What the first root has.
    pub old: Option<Versions>,
    /// What the second root has.
    pub new: Option<Versions>,
}

/// The root of the empty map; its node needs no source.
pub fn empty_root() -> NodeHash {
    Node::empty().0
}

fn load(source: &impl NodeSource, hash: &NodeHash) -> Result<Option<Arc<Node>>, TreeError> {
    let (empty, node) = Node::empty();
    if hash == empty {
        return Ok(Some(node.clone()));
    }
    source.node(hash)
}

fn load_root(source: &impl NodeSource, root: &NodeHash) -> Result<Arc<Node>, TreeError> {
    let node = load(source, root)?.ok_or_else(|| TreeError::Missing(vec![*root]))?;
    node.check_root(root)?;
    Ok(node)
}

/// The child of an inner node, checked; `None` when it is not here. `leftmost`: nothing of the map is to the left.
fn load_child(
    source: &impl NodeSource,
    parent: &Node,
    row: &(Key, Child),
    upper: Option<&Key>,
    leftmost: bool,
) -> Result<Option<Arc<Node>>, TreeError> {
    let Some(node) = source.node(&row.1.hash)? else {
        return Ok(None);
    };
    // A parent is an inner node, so its level is at least 1.
    node.check_child(parent.level() - 1, row, upper, leftmost)?;
    Ok(Some(node))
}

/// Index of the row below which a key stands: the last that is not above it, or the first.
fn row_of(rows: &[(Key, Child)], key: &[u8]) -> usize {
    rows.partition_point(|(first, _)| first.as_bytes() <= key)
        .saturating_sub(1)
}

/// The versions under a key.
pub fn get(
    source: &impl NodeSource,
    root: NodeHash,
    key: &Key,
) -> Result<Option<Versions>, TreeError> {
    let mut node = load_root(source, &root)?;
    let mut upper: Option<Key> = None;
    let mut leftmost = true;
    loop {
        let rows = match node.rows() {
            Rows::Leaf(rows) => {
                let found = rows.binary_search_by(|(row, _)| row.cmp(key));
                return Ok(found
                    .ok()
                    .and_then(|index| Some(rows.get(index)?.1.clone())));
            }
            Rows::Inner(rows) => rows,
        };
        let index = row_of(rows, key.as_bytes());
        let Some(row) = rows.get(index).filter(|(first, _)| first <= key) else {
            return Ok(None);
        };
        leftmost &= index == 0;
        if let Some((next, _)) = rows.get(index + 1) {
            upper = Some(next.clone());
        }
        let child = load_child(source, &node, row, upper.as_ref(), leftmost)?;
        node = child.ok_or_else(|| TreeError::Missing(vec![row.1.hash]))?;
    }
}

/// What a walk does with a child node, or after a row.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Step {
    /// Look inside; go on.
    Enter,
    /// Leave the child out; go on.
    Skip,
    /// End the walk.
    Stop,
}

/// What a walk meets, in order of keys.
pub(super) trait Visitor {
    /// A child that may hold keys of the range: its first key, a bound that all its keys are below (`None`: it is the
    /// last of the map), and what is known of it. No node is read for this.
    fn child(&mut self, first: &Key, upper: Option<&Key>, child: &Child) -> Step;
    /// A row of the range.
    fn row(&mut self, key: &Key, versions: &Versions) -> Step;
    /// A child that was to be entered is not here. The walk goes on, to name what else is needed.
    fn missing(&mut self, _summary: &Summary, _inside_range: bool) {}
}

/// Walks a range of raw key bytes; when nodes are missing, names all of those that are known to be needed.
pub(super) fn walk(
    source: &impl NodeSource,
    root: NodeHash,
    range: &Range<Vec<u8>>,
    visitor: &mut impl Visitor,
) -> Result<(), TreeError> {
    if range.start >= range.end {
        return Ok(());
    }
    let node = load_root(source, &root)?;
    let mut walk = Walk {
        source,
        range,
        visitor,
        missing: Vec::new(),
    };
    walk.node(&node, None, true)?;
    if walk.missing.is_empty() {
        Ok(())
    } else {
        Err(TreeError::Missing(walk.missing))
    }
}

struct Walk<'a, S, V> {
    source: &'a S,
    range: &'a Range<Vec<u8>>,
    visitor: &'a mut V,
    missing: Vec<NodeHash>,
}

impl<S: NodeSource, V: Visitor> Walk<'_, S, V> {
    /// Whether to go on. Recursion is bounded by the depth of a tree: a child's level is one less than its parent's.
    fn node(
        &mut self,
        node: &Node,
        upper: Option<&Key>,
        leftmost: bool,
    ) -> Result<bool, TreeError> {
        let (start, end) = (self.range.start.as_slice(), self.range.end.as_slice());
        let rows = match node.rows() {
            Rows::Leaf(rows) => {
                let first = rows.partition_point(|(key, _)| key.as_bytes() < start);
                let rows = rows.get(first..).unwrap_or_default().iter();
                for (key, versions) in rows.take_while(|(key, _)| key.as_bytes() < end) {
                    if self.visitor.row(key, versions) == Step::Stop {
                        return Ok(false);
                    }
                }
                return Ok(true);
            }
            Rows::Inner(rows) => rows,
        };
        for (index, row) in rows.iter().enumerate().skip(row_of(rows, start)) {
            let (first, child) = row;
            if first.as_bytes() >= end {
                break;
            }
            let upper = rows.get(index + 1).map(|(next, _)| next).or(upper);
            match self.visitor.child(first, upper, child) {
                Step::Enter => {}
                Step::Skip => continue,
                Step::Stop => return Ok(false),
            }
            let leftmost = leftmost && index == 0;
            if let Some(inside) = load_child(self.source, node, row, upper, leftmost)? {
                if !self.node(&inside, upper, leftmost)? {
                    return Ok(false);
                }
            } else {
                self.missing.push(child.hash);
                if self.missing.len() >= MISSING_MAX {
                    return Ok(false);
                }
                let inside = is_inside(self.range, first, upper);
                self.visitor.missing(&child.summary, inside);
            }
        }
        Ok(true)
    }
}

/// Whether all keys from `first` to below `upper` are in the range.
pub(super) fn is_inside(range: &Range<Vec<u8>>, first: &Key, upper: Option<&Key>) -> bool {
    first.as_bytes() >= range.start.as_slice()
        && upper.is_some_and(|upper| upper.as_bytes() <= range.end.as_slice())
}

/// Up to `limit` keys of a range of raw key bytes, in order.
pub fn scan(
    source: &impl NodeSource,
    root: NodeHash,
    range: Range<Vec<u8>>,
    limit: usize,
) -> Result<Vec<(Key, Versions)>, TreeError> {
    struct Scan {
        found: Vec<(Key, Versions)>,
        /// Keys of the range that are certainly in nodes that are missing.
        beyond_reach: u64,
        limit: usize,
    }
    impl Scan {
        fn step(&self) -> Step {
            let seen = (self.found.len() as u64).saturating_add(self.beyond_reach);
            if seen < self.limit as u64 {
                Step::Enter
            } else {
                Step::Stop
            }
        }
    }
    impl Visitor for Scan {
        fn child(&mut self, _first: &Key, _upper: Option<&Key>, _child: &Child) -> Step {
            self.step()
        }
        fn row(&mut self, key: &Key, versions: &Versions) -> Step {
            self.found.push((key.clone(), versions.clone()));
            self.step()
        }
        fn missing(&mut self, summary: &Summary, inside_range: bool) {
            if inside_range {
                self.beyond_reach = self.beyond_reach.saturating_add(summary.keys);
            }
        }
    }
    if limit == 0 {
        return Ok(Vec::new());
    }
    let mut scan = Scan {
        found: Vec::new(),
        beyond_reach: 0,
        limit,
    };
    walk(source, root, &range, &mut scan)?;
    Ok(scan.found)
}

/// What the whole map holds, from its root node alone.
pub fn summary(source: &impl NodeSource, root: NodeHash) -> Result<Summary, TreeError> {
    Ok(load_root(source, &root)?.summary())
}

/// What a range of raw key bytes holds. Reads the nodes at the range's two ends alone; of those between, their parents
/// know. For direct children ([`Key::children_of`]) `newest` is the newest change of a folder's living entries; a
/// deletion leaves no trace in it.
pub fn range_summary(
    source: &impl NodeSource,
    root: NodeHash,
    range: &Range<Vec<u8>>,
) -> Result<Summary, TreeError> {
    struct Sum<'a> {
        range: &'a Range<Vec<u8>>,
        total: Summary,
    }
    impl Visitor for Sum<'_> {
        fn child(&mut self, first: &Key, upper: Option<&Key>, child: &Child) -> Step {
            if is_inside(self.range, first, upper) {
                self.total.add(&child.summary);
                return Step::Skip;
            }
            Step::Enter
        }
        fn row(&mut self, key: &Key, versions: &Versions) -> Step {
            self.total.add(&Summary::of_row(key, versions));
            Step::Enter
        }
    }
    let mut sum = Sum {
        range,
        total: Summary::default(),
    };
    walk(source, root, range, &mut sum)?;
    Ok(sum.total)
}

/// Whether a range holds any key: one descent.
pub(super) fn any_in(
    source: &impl NodeSource,
    root: NodeHash,
    range: &Range<Vec<u8>>,
) -> Result<bool, TreeError> {
    struct Any<'a>(&'a Range<Vec<u8>>, bool);
    impl Visitor for Any<'_> {
        fn child(&mut self, first: &Key, _upper: Option<&Key>, _child: &Child) -> Step {
            // A child's first key is a key of the map.
            if first.as_bytes() >= self.0.start.as_slice() {
                self.1 = true;
                return Step::Stop;
            }
            Step::Enter
        }
        fn row(&mut self, _key: &Key, _versions: &Versions) -> Step {
            self.1 = true;
            Step::Stop
        }
    }
    let mut any = Any(range, false);
    match walk(source, root, range, &mut any) {
        Err(TreeError::Missing(_)) if any.1 => Ok(true),
        Err(error) => Err(error),
        Ok(()) => Ok(any.1),
    }
}
