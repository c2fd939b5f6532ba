//! Which nodes that are here some trees need, so that the others can go.
//!
//! A tree may be here in part. What lies below a node that is not here can't be told, so whatever may stand there is needed
//! as well: this member may be the only one who has it, while others go on with trees that name it.

use std::collections::HashSet;

use super::{
    Key, Node, NodeHash, NodeSource, TreeError,
    node::{Child, LEVEL_MAX, Value},
};

/// Ranges that are remembered one by one; with more, everything is needed.
const GAPS_MAX: usize = 4096;

/// What trees need: 32 bytes of memory for each of their nodes that is here.
#[derive(Debug, Default)]
pub struct Reach {
    /// Nodes of trees that were added as whole ones.
    whole: HashSet<NodeHash>,
    /// Nodes of others.
    partly: HashSet<NodeHash>,
    gaps: Vec<Gap>,
}

/// A node that is not here.
#[derive(Clone, Debug)]
struct Gap {
    hash: NodeHash,
    level: u8,
    /// Its keys: from one on (`None`: from the first), below another (`None`: to the last).
    from: Option<Key>,
    below: Option<Key>,
}

impl Reach {
    /// Adds what a tree needs. `whole`: also what may lie below nodes that are not here. Costs what it has that no tree had
    /// which was added before.
    ///
    /// # Errors
    /// What the source says, but for missing nodes.
    pub fn add(
        &mut self,
        source: &impl NodeSource,
        root: NodeHash,
        whole: bool,
    ) -> Result<(), TreeError> {
        let mut open = vec![Gap {
            hash: root,
            level: LEVEL_MAX + 1,
            from: None,
            below: None,
        }];
        while let Some(place) = open.pop() {
            let is_new = match whole {
                true => self.whole.insert(place.hash),
                false => !self.whole.contains(&place.hash) && self.partly.insert(place.hash),
            };
            // Below a leaf there is nothing, so it need not be looked at.
            if !is_new || place.level == 0 {
                continue;
            }
            let Some(node) = source.node(&place.hash)? else {
                if whole && self.gaps.len() <= GAPS_MAX {
                    self.gaps.push(place);
                }
                continue;
            };
            let rows = Child::of_node(&node);
            let nexts = rows.iter().skip(1).map(|(key, _)| Some(key));
            let nexts = nexts.chain([place.below.as_ref()]);
            open.extend(rows.iter().zip(nexts).map(|((key, child), next)| Gap {
                hash: child.hash,
                level: node.level().saturating_sub(1),
                from: Some(key.clone()),
                below: next.cloned(),
            }));
        }
        Ok(())
    }

    /// Nodes of the trees that were added as whole ones: all of them, if all that are not leaves are here.
    pub fn of_whole_trees(&self) -> &HashSet<NodeHash> {
        &self.whole
    }

    /// Whether the trees are known to need a node.
    pub fn needs(&self, hash: &NodeHash) -> bool {
        self.whole.contains(hash) || self.partly.contains(hash)
    }

    /// Whether a node that they are not known to need may lie below one that is not here.
    pub fn may_need(&self, node: &Node) -> bool {
        let holds = |gap: &Gap| {
            let first = node.first_key();
            gap.level > node.level()
                && gap.from.as_ref().is_none_or(|from| first >= Some(from))
                && (gap.below.as_ref()).is_none_or(|below| first < Some(below))
        };
        self.gaps.len() > GAPS_MAX || self.gaps.iter().any(holds)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::manifest::{
        empty_root,
        tree::testing::{Memory, key, many, one},
    };

    fn all(memory: &Memory, root: NodeHash) -> Vec<NodeHash> {
        let mut found = vec![root];
        let mut next = 0;
        while let Some(hash) = found.get(next).copied() {
            found.extend(memory.node(&hash).unwrap().unwrap().children());
            next += 1;
        }
        found
    }

    #[test]
    fn a_tree_needs_its_nodes_and_no_others() {
        let memory = Memory::default();
        let root = memory.build(&many(20_000));
        let edits = [(key("folder 003/new"), Some(one(1)))].into();
        let newer = memory.apply(root, &edits);
        let mut reach = Reach::default();
        reach.add(&memory, newer, true).unwrap();
        assert!(all(&memory, newer).iter().all(|hash| reach.needs(hash)));
        let gone: Vec<_> = all(&memory, root)
            .into_iter()
            .filter(|hash| !reach.needs(hash))
            .collect();
        assert!((2..=5).contains(&gone.len()), "{}", gone.len());
        for hash in gone {
            assert!(!reach.may_need(&memory.node(&hash).unwrap().unwrap()));
        }
        reach.add(&memory, root, false).unwrap();
        assert!(all(&memory, root).iter().all(|hash| reach.needs(hash)));
        let mut reach = Reach::default();
        reach.add(&memory, empty_root(), true).unwrap();
        assert!(!reach.needs(&root));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        /// Whatever nodes of a tree are not here: those that are, and belong to it, are needed, or may be.
        #[test]
        fn what_lies_below_a_node_that_is_not_here_may_be_needed(
            lacking in prop::collection::vec(any::<prop::sample::Index>(), 1..6),
        ) {
            let memory = Memory::default();
            let root = memory.build(&many(8_000));
            let nodes = all(&memory, root);
            let decoded: Vec<_> = nodes.iter().map(|hash| (*hash, memory.node(hash).unwrap().unwrap())).collect();
            // Those of high levels as often as others: they come first.
            for lacking in lacking {
                let near = lacking.index(nodes.len() * 2);
                let hash = nodes[if near < nodes.len() { near } else { near % 4 }];
                memory.nodes.borrow_mut().remove(&hash);
            }
            let mut reach = Reach::default();
            reach.add(&memory, root, true).unwrap();
            for (hash, node) in decoded {
                prop_assert!(reach.needs(&hash) || reach.may_need(&node));
            }
        }
    }
}
