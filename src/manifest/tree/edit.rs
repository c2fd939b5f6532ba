//! Edits: level by level from the leaves up, each level's changed nodes being the edits of the level above.

use std::collections::{BTreeMap, BTreeSet};

use super::{
    Applied, Arc, Child, Key, MISSING_MAX, Node, NodeHash, NodeSource, TreeError, Value, Versions,
    empty_root, load_child, load_root,
};
use crate::manifest::entry::VERSIONS_BYTES_MAX;

type Edits<V> = BTreeMap<Key, Option<V>>;

/// Puts (`Some`) and deletes (`None`); rewrites only the touched paths. Reads the nodes on these paths, and the left
/// neighbour of a node whose first row goes; from the empty map it is one linear pass. What is put must keep the bounds of
/// entries, and stand under a key of its kind.
pub fn apply(
    source: &impl NodeSource,
    root: NodeHash,
    edits: &BTreeMap<Key, Option<Versions>>,
) -> Result<Applied, TreeError> {
    for (key, versions) in edits {
        if let Some(versions) = versions {
            check(key, versions)?;
        }
    }
    let root_node = load_root(source, &root)?;
    let top = root_node.level();
    let mut editor = Editor {
        source,
        root: (root, root_node),
        inner: BTreeMap::new(),
        single: BTreeMap::new(),
        nodes: Vec::new(),
    };
    let mut changed = editor.level(0, edits)?;
    for level in 1..=top {
        if changed.is_empty() {
            break;
        }
        changed = editor.level(level, &changed)?;
    }
    if changed.is_empty() {
        return Ok(Applied {
            root,
            nodes: Vec::new(),
        });
    }
    let (hash, node) = &editor.root;
    if let Some(first) = node.first_key() {
        // The old root is no edit where it came out as it was, beside new neighbours.
        let child = Child {
            hash: *hash,
            summary: node.summary(),
        };
        changed.entry(first.clone()).or_insert(Some(child));
    }
    let nodes_of_top = changed
        .into_iter()
        .filter_map(|(key, child)| Some((key, child?)))
        .collect();
    let root = editor.crown(top, nodes_of_top)?;
    Ok(Applied {
        root,
        nodes: editor.nodes,
    })
}

fn check(key: &Key, versions: &Versions) -> Result<(), TreeError> {
    let refuse = |what| Err(TreeError::Bounds(shown_key(key), what));
    if key.path().is_none() && Key::from_bytes(key.as_bytes().to_vec()).is_err() {
        return refuse("its key is out of bounds");
    }
    if let Err(error) = versions.check() {
        return refuse(error.0);
    }
    let mut kinds = versions
        .as_slice()
        .iter()
        .map(|version| &version.entry.kind);
    if !kinds.all(|kind| key.admits(kind)) {
        return refuse("an entry of this kind does not belong under this key");
    }
    // Only many versions can be longer than this; one of them is bounded by its parts.
    if versions.as_slice().len() > 1 && versions.encode().len() > VERSIONS_BYTES_MAX {
        return refuse("the concurrent versions are too long together");
    }
    Ok(())
}

fn shown_key(key: &Key) -> String {
    match key.path() {
        Some(path) => path.to_string(),
        None => format!("{:?}", key.internal()),
    }
}

/// A node that was found, and where it stands.
struct Place {
    hash: NodeHash,
    node: Arc<Node>,
    /// First key of the node to the right.
    upper: Option<Key>,
    leftmost: bool,
}

/// A node on the way is not here; everything below `upper` is out of reach.
struct Gap {
    hash: NodeHash,
    upper: Option<Key>,
}

struct Editor<'a, S> {
    source: &'a S,
    root: (NodeHash, Arc<Node>),
    /// Inner nodes that were read: levels above the leaves look at them again.
    inner: BTreeMap<NodeHash, Arc<Node>>,
    /// New inner nodes with one child only.
    single: BTreeMap<NodeHash, NodeHash>,
    nodes: Vec<(NodeHash, Vec<u8>)>,
}

impl<S: NodeSource> Editor<'_, S> {
    /// The node of a level in which a key stands, or with `before` the node left of the one that starts with the key.
    fn locate(
        &mut self,
        level: u8,
        key: &Key,
        before: bool,
    ) -> Result<Result<Place, Gap>, TreeError> {
        let (hash, node) = self.root.clone();
        let mut place = Place {
            hash,
            node,
            upper: None,
            leftmost: true,
        };
        while place.node.level() > level {
            let rows = Child::of_node(&place.node);
            let left = |(first, _): &(Key, Child)| first < key || (!before && first == key);
            let index = rows.partition_point(left).saturating_sub(1);
            let Some(row) = rows.get(index) else {
                return Err(TreeError::Misplaced(place.hash));
            };
            place.leftmost &= index == 0;
            if let Some((next, _)) = rows.get(index + 1) {
                place.upper = Some(next.clone());
            }
            let hash = row.1.hash;
            let node = if let Some(node) = self.inner.get(&hash) {
                node.clone()
            } else {
                let upper = place.upper.as_ref();
                let Some(node) = load_child(self.source, &place.node, row, upper, place.leftmost)?
                else {
                    return Ok(Err(Gap {
                        hash,
                        upper: place.upper,
                    }));
                };
                if node.level() > 0 {
                    self.inner.insert(hash, node.clone());
                }
                node
            };
            place.hash = hash;
            place.node = node;
        }
        Ok(Ok(place))
    }

    /// Edits the nodes of one level; the result is the edits of the level above.
    fn level<V: Value>(&mut self, level: u8, edits: &Edits<V>) -> Result<Edits<Child>, TreeError> {
        let mut cutter = Cutter::new(level);
        let mut missing = BTreeSet::new();
        let mut edits = edits.iter().peekable();
        // Up to where the old rows have gone into the cutter without a gap; the inner `None` is the end of the map.
        let mut done: Option<Option<Key>> = None;
        while let Some(&(next, value)) = edits.peek() {
            let place = match self.locate(level, next, false)? {
                Ok(place) => place,
                Err(gap) => {
                    missing.insert(gap.hash);
                    if missing.len() >= MISSING_MAX {
                        break;
                    }
                    while edits
                        .next_if(|(key, _)| is_below(key, &gap.upper))
                        .is_some()
                    {}
                    continue;
                }
            };
            let first = place.node.first_key();
            if done.as_ref().is_none_or(|upper| upper.as_ref() != first) {
                cutter.cut(self)?;
                // Where the first row goes, or stops being a boundary, the rest joins the node to the left.
                let stays = value
                    .as_ref()
                    .is_some_and(|value| V::starts(level, next, value));
                if Some(next) == first && !place.leftmost && !stays {
                    match self.locate(level, next, true)? {
                        Ok(left) => cutter.open(&left),
                        Err(gap) => {
                            missing.insert(gap.hash);
                        }
                    }
                }
            }
            cutter.replaces(&place);
            for (index, (key, value)) in V::of_node(&place.node).iter().enumerate() {
                while let Some((key, new)) = edits.next_if(|&(edited, _)| edited < key) {
                    if let Some(new) = new {
                        cutter.push(self, key, new, true)?;
                    }
                }
                match edits.next_if(|&(edited, _)| edited == key) {
                    Some((_, Some(new))) => cutter.push(self, key, new, true)?,
                    Some((_, None)) => {}
                    // An old row inside of a node is no boundary: that was checked when the node was decoded.
                    None => cutter.push(self, key, value, index == 0)?,
                }
            }
            while let Some((key, new)) = edits.next_if(|(key, _)| is_below(key, &place.upper)) {
                if let Some(new) = new {
                    cutter.push(self, key, new, true)?;
                }
            }
            done = Some(place.upper);
        }
        if !missing.is_empty() {
            return Err(TreeError::Missing(missing.into_iter().collect()));
        }
        cutter.cut(self)?;
        Ok(cutter.into_edits())
    }

    /// Builds what stands above the nodes of the old root's level, down to a single root.
    fn crown(&mut self, top: u8, mut rows: Vec<(Key, Child)>) -> Result<NodeHash, TreeError> {
        let mut level = top;
        while rows.len() > 1 {
            level += 1;
            let mut cutter = Cutter::new(level);
            for (key, child) in &rows {
                cutter.push(self, key, child, true)?;
            }
            cutter.cut(self)?;
            rows = cutter
                .into_edits()
                .into_iter()
                .filter_map(|(key, child)| Some((key, child?)))
                .collect();
        }
        let Some((_, child)) = rows.pop() else {
            return Ok(empty_root());
        };
        // A root with one child only gives way to the child.
        let mut root = child.hash;
        while level > 0 {
            if let Some(child) = self.single.remove(&root) {
                self.nodes.retain(|(hash, _)| *hash != root);
                root = child;
            } else if self.nodes.iter().any(|(hash, _)| *hash == root) {
                break;
            } else {
                let node = self.source.node(&root)?;
                let node = node.ok_or_else(|| TreeError::Missing(vec![root]))?;
                match node.children().as_slice() {
                    [child] => root = *child,
                    _ => break,
                }
            }
            level -= 1;
        }
        Ok(root)
    }
}

fn is_below(key: &Key, upper: &Option<Key>) -> bool {
    upper.as_ref().is_none_or(|upper| key < upper)
}

/// Cuts a level's rows into nodes.
struct Cutter<V> {
    level: u8,
    rows: Vec<(Key, V)>,
    replaced: BTreeMap<Key, NodeHash>,
    new: BTreeMap<Key, Child>,
}

impl<V: Value> Cutter<V> {
    fn new(level: u8) -> Self {
        Self {
            level,
            rows: Vec::new(),
            replaced: BTreeMap::new(),
            new: BTreeMap::new(),
        }
    }
    /// Notes that a node's rows come again, as they are or edited.
    fn replaces(&mut self, place: &Place) {
        if let Some(first) = place.node.first_key() {
            self.replaced.insert(first.clone(), place.hash);
        }
    }
    /// Starts with the rows of a node that is otherwise untouched.
    fn open(&mut self, place: &Place) {
        self.replaces(place);
        self.rows = V::of_node(&place.node).to_vec();
    }
    /// Adds a row; `may_start` is false where it is known not to start a node.
    fn push<S: NodeSource>(
        &mut self,
        editor: &mut Editor<'_, S>,
        key: &Key,
        value: &V,
        may_start: bool,
    ) -> Result<(), TreeError> {
        if may_start && !self.rows.is_empty() && V::starts(self.level, key, value) {
            self.cut(editor)?;
        }
        self.rows.push((key.clone(), value.clone()));
        Ok(())
    }
    /// Makes a node of the rows that were added since the last.
    fn cut<S: NodeSource>(&mut self, editor: &mut Editor<'_, S>) -> Result<(), TreeError> {
        let rows = std::mem::take(&mut self.rows);
        let Some((first, _)) = rows.first() else {
            return Ok(());
        };
        let first = first.clone();
        let node = V::into_node(self.level, rows);
        let encoding = node.encode();
        if !node.is_within_bounds(&encoding) {
            let what = "the node around it would grow beyond its bound";
            return Err(TreeError::Bounds(shown_key(&first), what));
        }
        let hash = NodeHash::of(&encoding);
        if self.replaced.get(&first) != Some(&hash) {
            if let [child] = node.children().as_slice() {
                editor.single.insert(hash, *child);
            }
            editor.nodes.push((hash, encoding));
        }
        let summary = node.summary();
        self.new.insert(first, Child { hash, summary });
        Ok(())
    }
    /// The edits of the level above: without the nodes that came out as they were.
    fn into_edits(mut self) -> Edits<Child> {
        let mut edits = Edits::new();
        for (key, hash) in self.replaced {
            match self.new.remove(&key) {
                Some(child) if child.hash == hash => {}
                changed => {
                    edits.insert(key, changed);
                }
            }
        }
        edits.extend(self.new.into_iter().map(|(key, child)| (key, Some(child))));
        edits
    }
}
