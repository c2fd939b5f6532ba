//! Merging two states (observed-remove map: Bieniusa et al. 2012).
//!
//! Versions are only ever kept or dropped, never combined: two versions of equal content stay two until somebody writes
//! (they are shown as one), because joining them here would make the result depend on the order of merges.

use std::collections::{BTreeMap, BTreeSet};

use super::{
    Applied, CausalContext, Change, Key, NodeHash, NodeSource, TreeError, Version, Versions, apply,
    diff_after, get,
    parts::{complete, gather},
    tree::here,
};

/// A merged state, or a part of the way to it.
#[derive(Clone, Debug)]
pub struct Merged {
    /// Its root.
    pub root: NodeHash,
    /// What it has seen: all that both sides have, once nothing is left to merge, and until then what ours has.
    pub context: CausalContext,
    /// Nodes that are new, with their encodings.
    pub nodes: Vec<(NodeHash, Vec<u8>)>,
    /// How it differs from ours.
    pub changes: Vec<Change>,
    /// What gave way to another version with the same dot: two machines wrote under one writer's number (a restored backup,
    /// a clone). See [`Versions::new`] for which one stays.
    pub contradicted: Vec<(Key, Version)>,
    /// The key up to which differences are merged, when some may be left.
    pub rest: Option<Key>,
}

/// Merges the versions under one key: one survives if both sides have it, or if the side that lacks it doesn't cover
/// its dot. Of more than fit under a key ([`super::VERSIONS_MAX`], [`super::VERSIONS_BYTES_MAX`]) the latest do: with fewer
/// kept by some than by others, a removal in between can leave states that have seen the same and differ; such states are
/// merged with nothing seen, which leads all to one.
pub fn merge_versions(
    a: Option<&Versions>,
    a_context: &CausalContext,
    b: Option<&Versions>,
    b_context: &CausalContext,
) -> Option<Versions> {
    let (a, b) = (list(a), list(b));
    let survives = |version: &&Version, others: &[Version], context: &CausalContext| {
        !context.covers(version.dot) || others.iter().any(|other| other.dot == version.dot)
    };
    let of_a = a.iter().filter(|version| survives(version, b, b_context));
    let of_b = b.iter().filter(|version| survives(version, a, a_context));
    Versions::fitting(of_a.chain(of_b).cloned().collect())
}

pub(super) fn list(versions: Option<&Versions>) -> &[Version] {
    versions.map_or(&[], Versions::as_slice)
}

/// Merges `theirs` into `ours`; cost ~ differences × depth. The merged state is the same whichever is `ours`.
///
/// A state whose context includes the other's is the merged state already; callers who meet that case (a peer that was
/// away, a first mount) take it as it is, and need none of its nodes.
pub fn merge(
    source: &impl NodeSource,
    ours: (NodeHash, &CausalContext),
    theirs: (NodeHash, &CausalContext),
) -> Result<Merged, TreeError> {
    merge_portion(source, ours, theirs, None, usize::MAX)
}

/// Merges the next `limit` differences after a key (at least one), so that memory follows the portion and not the whole.
/// The next portion takes the new root, with ours' context as before, and goes on after [`Merged::rest`].
///
/// A root in between, taken with ours' context, is a state like any other to what is merged with it: merging theirs again
/// from the start, whatever else was merged meanwhile, comes to the merged state. It is no state to write on: a write that
/// replaces a version which the context doesn't cover would not keep it away. Whoever merges something else or writes
/// in between does it on ours, and begins again.
pub fn merge_portion(
    source: &impl NodeSource,
    ours: (NodeHash, &CausalContext),
    theirs: (NodeHash, &CausalContext),
    after: Option<&Key>,
    limit: usize,
) -> Result<Merged, TreeError> {
    let limit = limit.max(1);
    let mut changes = diff_after(source, ours.0, theirs.0, after, limit)?;
    let last = changes.last().filter(|_| changes.len() >= limit);
    let rest = last.map(|change| change.key.clone());
    let mut contradicted = Vec::new();
    changes.retain_mut(|change| {
        let (old, new) = (change.old.as_ref(), change.new.as_ref());
        let merged = merge_versions(old, ours.1, new, theirs.1);
        let both = list(old).iter().chain(list(new));
        for version in both {
            let kept = list(merged.as_ref());
            if kept
                .iter()
                .any(|kept| kept.dot == version.dot && kept.entry != version.entry)
            {
                contradicted.push((change.key.clone(), version.clone()));
            }
        }
        change.new = merged;
        change.new != change.old
    });
    let edits: BTreeMap<_, _> = changes
        .iter()
        .map(|change| (change.key.clone(), change.new.clone()))
        .collect();
    let applied = apply(source, ours.0, &edits).map_err(here)?;
    let mut context = ours.1.clone();
    if rest.is_none() {
        context.join(theirs.1);
    }
    Ok(Merged {
        root: applied.root,
        context,
        nodes: applied.nodes,
        changes,
        contradicted,
        rest,
    })
}

/// Puts what one tree has under some keys into another, in place of what that has there.
pub fn graft<'k>(
    source: &impl NodeSource,
    from: NodeHash,
    keys: impl IntoIterator<Item = &'k Key>,
    onto: NodeHash,
) -> Result<Applied, TreeError> {
    let mut missing = BTreeSet::new();
    let mut edits = BTreeMap::new();
    for key in keys {
        if let Some(versions) = gather(&mut missing, get(source, from, key))? {
            edits.insert(key.clone(), versions);
        }
    }
    complete(missing)?;
    apply(source, onto, &edits)
}

#[cfg(test)]
mod tests;
