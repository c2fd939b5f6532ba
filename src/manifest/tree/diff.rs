//! Differences: two cursors go through both trees in step and pass over what is equal by its hash.

use super::{
    Arc, Change, Child, Key, MISSING_MAX, Node, NodeHash, NodeSource, Rows, TreeError, Versions,
    load, load_child, row_of,
};

/// The differences, in order of keys; at most `limit` of them. Reads the nodes whose hashes differ, on both sides.
///
/// # Errors
/// [`TreeError::Misplaced`] for a node of the new tree alone: one of the old tree is trouble of whoever has that tree.
pub fn diff(
    source: &impl NodeSource,
    old: NodeHash,
    new: NodeHash,
    limit: usize,
) -> Result<Vec<Change>, TreeError> {
    diff_after(source, old, new, None, limit)
}

/// The differences after a key, in order; at most `limit` of them. Getting there costs the depth of the trees.
pub fn diff_after(
    source: &impl NodeSource,
    old: NodeHash,
    new: NodeHash,
    after: Option<&Key>,
    limit: usize,
) -> Result<Vec<Change>, TreeError> {
    let mut changes = Vec::new();
    if old == new || limit == 0 {
        return Ok(changes);
    }
    let (mut a, mut b) = match (load(source, &old)?, load(source, &new)?) {
        (Some(a), Some(b)) => {
            a.check_root(&old).map_err(here)?;
            b.check_root(&new)?;
            (Cursor::new(a, after), Cursor::new(b, after))
        }
        (a, b) => {
            let absent = [(a, old), (b, new)].into_iter();
            let absent = absent.filter(|(node, _)| node.is_none());
            return Err(TreeError::Missing(absent.map(|(_, hash)| hash).collect()));
        }
    };
    let mut missing = Missing::default();
    while missing.hashes.len() < MISSING_MAX && changes.len() < limit {
        a.settle();
        b.settle();
        if let Some(until) = missing.until.take() {
            let behind = |head: &Option<Head<'_>>| {
                let head = head.as_ref();
                head.is_some_and(|head| below(head.key, until.as_ref()))
            };
            let (in_a, in_b) = (behind(&a.head()), behind(&b.head()));
            if !in_a && !in_b {
                continue;
            }
            missing.until = Some(until);
            if in_a {
                a.pass(source, &mut missing).map_err(here)?;
            } else {
                b.pass(source, &mut missing)?;
            }
            continue;
        }
        let (first, second) = (a.head(), b.head());
        let order = match (&first, &second) {
            (None, None) => break,
            (Some(_), None) => std::cmp::Ordering::Less,
            (None, Some(_)) => std::cmp::Ordering::Greater,
            (Some(first), Some(second)) => first.key.cmp(second.key),
        };
        // What to do is decided while the heads are borrowed, and done afterwards.
        let (from_a, from_b) = match order {
            std::cmp::Ordering::Less => (true, false),
            std::cmp::Ordering::Greater => (false, true),
            std::cmp::Ordering::Equal => {
                let below = (
                    first.as_ref().and_then(|head| head.below),
                    second.as_ref().and_then(|head| head.below),
                );
                match below {
                    (Some(one), Some(other)) if one.child.hash == other.child.hash => {
                        // What is said of it elsewhere must be said here, or the new tree lies.
                        if (one.level, one.child.summary) != (other.level, other.child.summary) {
                            return Err(TreeError::Misplaced(other.child.hash));
                        }
                        if other.asks_no_more_than(&one) {
                            a.advance();
                            b.advance();
                            continue;
                        }
                        (true, true)
                    }
                    (one, other) => {
                        let level = |below: Option<Below<'_>>| below.map(|below| below.level + 1);
                        (level(one) >= level(other), level(other) >= level(one))
                    }
                }
            }
        };
        let row = |head: Option<Head<'_>>, wanted: bool| {
            let head = head.filter(|head| wanted && head.below.is_none())?;
            Some((head.key.clone(), head.versions?.clone()))
        };
        let rows = (row(first, from_a), row(second, from_b));
        if let (None, None) = rows {
            if from_a {
                a.enter(source, &mut missing).map_err(here)?;
            }
            if from_b {
                b.enter(source, &mut missing)?;
            }
            continue;
        }
        if from_a {
            a.advance();
        }
        if from_b {
            b.advance();
        }
        let key = match &rows {
            (Some((key, _)), _) | (None, Some((key, _))) => key.clone(),
            (None, None) => continue,
        };
        let change = Change {
            key,
            old: rows.0.map(|(_, versions)| versions),
            new: rows.1.map(|(_, versions)| versions),
        };
        if change.old != change.new {
            changes.push(change);
        }
    }
    if missing.hashes.is_empty() {
        Ok(changes)
    } else {
        Err(TreeError::Missing(missing.hashes))
    }
}

/// What is said of the old tree.
pub(in crate::manifest) fn here(error: TreeError) -> TreeError {
    match error {
        TreeError::Misplaced(_) => TreeError::Source(format!("of the state here, {error}")),
        error => error,
    }
}

/// Nodes that were to be entered and are not here. The comparison is blind up to the last one's upper bound: what lies
/// below it on either side is passed over, and is named only where it reaches beyond and so is needed in any case.
#[derive(Default)]
pub(super) struct Missing {
    pub(super) hashes: Vec<NodeHash>,
    /// Outer `None`: not blind. Inner `None`: to the end.
    pub(super) until: Option<Option<Key>>,
}

impl Missing {
    fn add(&mut self, hash: NodeHash, upper: Option<Key>) {
        if !self.hashes.contains(&hash) {
            self.hashes.push(hash);
        }
        self.until = match (self.until.take(), upper) {
            (None, upper) => Some(upper),
            (Some(Some(before)), Some(upper)) => Some(Some(before.max(upper))),
            (Some(_), _) => Some(None),
        };
    }
}

pub(super) fn below(key: &Key, upper: Option<&Key>) -> bool {
    upper.is_none_or(|upper| key < upper)
}

/// The item that a cursor stands at: a row, or a whole child that was not entered.
pub(super) struct Head<'a> {
    pub(super) key: &'a Key,
    pub(super) below: Option<Below<'a>>,
    /// Of a row.
    versions: Option<&'a Versions>,
}

/// A child, and what its place asks of it.
#[derive(Clone, Copy)]
pub(super) struct Below<'a> {
    pub(super) level: u8,
    pub(super) child: &'a Child,
    pub(super) upper: Option<&'a Key>,
    leftmost: bool,
}

impl Below<'_> {
    /// Whether a child that fits the other place fits this one too, so that it need not be looked at.
    fn asks_no_more_than(&self, other: &Self) -> bool {
        let upper = match (self.upper, other.upper) {
            (None, _) => true,
            (Some(upper), Some(other)) => upper >= other,
            (Some(_), None) => false,
        };
        upper && (self.leftmost || !other.leftmost)
    }
}

#[derive(Clone)]
struct Frame {
    node: Arc<Node>,
    /// The row that comes next.
    next: usize,
    upper: Option<Key>,
    leftmost: bool,
}

impl Frame {
    /// Stands at the first row that may lead beyond a key.
    fn new(node: Arc<Node>, upper: Option<Key>, leftmost: bool, after: Option<&Key>) -> Self {
        let next = match (node.rows(), after) {
            (_, None) => 0,
            (Rows::Leaf(rows), Some(after)) => rows.partition_point(|(key, _)| key <= after),
            (Rows::Inner(rows), Some(after)) => row_of(rows, after.as_bytes()),
        };
        Self {
            node,
            next,
            upper,
            leftmost,
        }
    }
    fn length(&self) -> usize {
        match self.node.rows() {
            Rows::Leaf(rows) => rows.len(),
            Rows::Inner(rows) => rows.len(),
        }
    }
    /// The child that comes next, and the bound of its keys.
    fn child(&self) -> Option<(&(Key, Child), Option<&Key>)> {
        let Rows::Inner(rows) = self.node.rows() else {
            return None;
        };
        let upper = rows.get(self.next + 1).map(|(next, _)| next);
        Some((rows.get(self.next)?, upper.or(self.upper.as_ref())))
    }
}

/// A place in a tree.
#[derive(Clone)]
pub(super) struct Cursor<'k> {
    /// The nodes that were entered, outermost first.
    frames: Vec<Frame>,
    /// Rows up to this key are passed over.
    after: Option<&'k Key>,
}

impl<'k> Cursor<'k> {
    pub(super) fn new(root: Arc<Node>, after: Option<&'k Key>) -> Self {
        Self {
            frames: vec![Frame::new(root, None, true, after)],
            after,
        }
    }
    /// Leaves nodes that are done with.
    pub(super) fn settle(&mut self) {
        while self
            .frames
            .pop_if(|frame| frame.next >= frame.length())
            .is_some()
        {}
    }
    /// What comes next, once settled; `None` at the end.
    pub(super) fn head(&self) -> Option<Head<'_>> {
        let frame = self.frames.last()?;
        match frame.node.rows() {
            Rows::Leaf(rows) => rows.get(frame.next).map(|(key, versions)| Head {
                key,
                below: None,
                versions: Some(versions),
            }),
            Rows::Inner(rows) => rows.get(frame.next).map(|(key, child)| Head {
                key,
                below: Some(Below {
                    level: frame.node.level() - 1,
                    child,
                    upper: frame.child().and_then(|(_, upper)| upper),
                    leftmost: frame.leftmost && frame.next == 0,
                }),
                versions: None,
            }),
        }
    }
    pub(super) fn advance(&mut self) {
        if let Some(frame) = self.frames.last_mut() {
            frame.next += 1;
        }
    }
    /// Goes into the child that comes next; passes over it when it is not here.
    pub(super) fn enter(
        &mut self,
        source: &impl NodeSource,
        missing: &mut Missing,
    ) -> Result<(), TreeError> {
        let Some(frame) = self.frames.last_mut() else {
            return Ok(());
        };
        let leftmost = frame.leftmost && frame.next == 0;
        let Some((row, upper)) = frame.child() else {
            return Ok(());
        };
        let upper = upper.cloned();
        match load_child(source, &frame.node, row, upper.as_ref(), leftmost)? {
            None => {
                missing.add(row.1.hash, upper);
                frame.next += 1;
            }
            Some(node) => {
                frame.next += 1;
                let frame = Frame::new(node, upper, leftmost, self.after);
                self.frames.push(frame);
            }
        }
        Ok(())
    }
    /// Passes over what comes next, as far as the comparison is blind.
    fn pass(&mut self, source: &impl NodeSource, missing: &mut Missing) -> Result<(), TreeError> {
        let reaches_beyond = match (self.frames.last().and_then(Frame::child), &missing.until) {
            (Some((_, upper)), Some(Some(until))) => upper.is_none_or(|upper| upper > until),
            _ => false,
        };
        if reaches_beyond {
            self.enter(source, missing)
        } else {
            self.advance();
            Ok(())
        }
    }
}
