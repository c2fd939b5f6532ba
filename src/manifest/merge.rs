//! Merging two states (observed-remove map: Bieniusa et al. 2012).
//!
//! Versions are only ever kept or dropped, never combined: two versions of equal content stay two until somebody writes
//! (they are shown as one), because joining them here would make the result depend on the order of merges.

use std::collections::BTreeMap;

use super::{
    CausalContext, Change, Key, NodeHash, NodeSource, TreeError, Version, Versions, apply, diff,
};

/// A merged state.
#[derive(Clone, Debug)]
pub struct Merged {
    /// Its root.
    pub root: NodeHash,
    /// What it has seen.
    pub context: CausalContext,
    /// Nodes that are new, with their encodings.
    pub nodes: Vec<(NodeHash, Vec<u8>)>,
    /// How it differs from the first of the two states.
    pub changes: Vec<Change>,
    /// What gave way to another version with the same dot: two machines wrote under one writer's number (a restored backup,
    /// a clone). See [`Versions::new`] for which one stays.
    pub contradicted: Vec<(Key, Version)>,
}

/// Merges the versions under one key: one survives if both sides have it, or if the side that lacks it doesn't cover
/// its dot.
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
    Versions::new(of_a.chain(of_b).cloned().collect())
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
    let mut changes = diff(source, ours.0, theirs.0, usize::MAX)?;
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
    let applied = apply(source, ours.0, &edits)?;
    let mut context = ours.1.clone();
    context.join(theirs.1);
    Ok(Merged {
        root: applied.root,
        context,
        nodes: applied.nodes,
        changes,
        contradicted,
    })
}

#[cfg(test)]
mod tests;
