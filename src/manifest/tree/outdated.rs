//! What of a new tree stands where an old one has nodes here: with that, what could be read of the old one while nobody is
//! reached can be read of the new one.

use super::{
    Child, Key, MISSING_MAX, Node, NodeHash, NodeSource, Rows, Step, TreeError, Versions, Visitor,
    diff::here, load, load_child, walk,
};
use crate::manifest::Summary;

/// Nodes of the new tree that are not here and stand where the old one has rows here, up to 1024 of those that are known by now: once
/// they are here there may be more. `additions`: also those that stand beside such rows and have keys that the old tree has none of.
/// Costs what differs and is here, times the depth.
///
/// # Errors
/// [`TreeError::Misplaced`] for a node of the new tree alone.
pub fn outdated(
    source: &impl NodeSource,
    old: NodeHash,
    new: NodeHash,
    additions: bool,
) -> Result<Vec<NodeHash>, TreeError> {
    if old == new || load(source, &old)?.is_none() {
        return Ok(Vec::new());
    }
    let Some(root) = load(source, &new)? else {
        return Ok(vec![new]);
    };
    root.check_root(&new)?;
    let mut search = Search {
        source,
        old,
        additions,
        missing: Vec::new(),
    };
    search.node(&root, None, true)?;
    Ok(search.missing)
}

struct Search<'a, S> {
    source: &'a S,
    old: NodeHash,
    additions: bool,
    missing: Vec<NodeHash>,
}

impl<S: NodeSource> Search<'_, S> {
    /// Recursion is bounded by the depth of a tree: a child's level is one less than its parent's.
    fn node(&mut self, node: &Node, upper: Option<&Key>, leftmost: bool) -> Result<(), TreeError> {
        let Rows::Inner(rows) = node.rows() else {
            return Ok(());
        };
        for (index, row) in rows.iter().enumerate() {
            if self.missing.len() >= MISSING_MAX {
                break;
            }
            let (first, child) = row;
            let upper = rows.get(index + 1).map(|(next, _)| next).or(upper);
            if !self.is_wanted(first, upper, child)? {
                continue;
            }
            let leftmost = leftmost && index == 0;
            match load_child(self.source, node, row, upper, leftmost)? {
                Some(inside) => self.node(&inside, upper, leftmost)?,
                None => self.missing.push(child.hash),
            }
        }
        Ok(())
    }

    fn is_wanted(
        &self,
        first: &Key,
        upper: Option<&Key>,
        child: &Child,
    ) -> Result<bool, TreeError> {
        // No key begins so.
        let end = upper.map_or_else(|| vec![u8::MAX], |upper| upper.as_bytes().to_vec());
        let range = first.as_bytes().to_vec()..end;
        let mut place = Place {
            hash: child.hash,
            upper,
            is_same: false,
            has_rows: false,
            has_gaps: false,
        };
        match walk(self.source, self.old, &range, &mut place) {
            Ok(()) | Err(TreeError::Missing(_)) => {}
            Err(error) => return Err(here(error)),
        }
        let is_beside = self.additions && !place.has_gaps;
        Ok(!place.is_same && (place.has_rows || is_beside))
    }
}

/// What the old tree has where a child of the new one stands.
struct Place<'a> {
    hash: NodeHash,
    upper: Option<&'a Key>,
    /// The child itself, for no fewer keys.
    is_same: bool,
    /// Rows that are here.
    has_rows: bool,
    /// Nodes that are not here, where no row was met before.
    has_gaps: bool,
}

impl Visitor for Place<'_> {
    fn child(&mut self, _first: &Key, upper: Option<&Key>, child: &Child) -> Step {
        let reaches = upper.is_none_or(|upper| self.upper.is_some_and(|wanted| upper >= wanted));
        if child.hash == self.hash && reaches {
            self.is_same = true;
            return Step::Stop;
        }
        Step::Enter
    }
    fn row(&mut self, _key: &Key, _versions: &Versions) -> Step {
        self.has_rows = true;
        Step::Stop
    }
    fn missing(&mut self, _summary: &Summary, _inside_range: bool) {
        self.has_gaps = true;
    }
}
