//! What of a new tree stands where an old one has nodes here: with that, what could be read of the old one while nobody is
//! reached can be read of the new one.

use super::{
    Key, MISSING_MAX, NodeHash, NodeSource, TreeError,
    diff::{Cursor, Missing, below, here},
    load,
};

/// Nodes of the new tree that are not here and stand where the old one has rows here, up to 1024 of those that are known by now: once
/// they are here there may be more. `additions`: also those that stand beside such rows and have keys that the old tree has none of.
/// What does not fit where it stands is passed over. Reads the nodes whose hashes differ and are here, on both sides.
///
/// # Errors
/// What the source says; [`TreeError::Misplaced`] for the new root alone.
pub fn outdated(
    source: &impl NodeSource,
    old: NodeHash,
    new: NodeHash,
    additions: bool,
) -> Result<Vec<NodeHash>, TreeError> {
    let Some(old_root) = load(source, &old)?.filter(|_| old != new) else {
        return Ok(Vec::new());
    };
    let Some(new_root) = load(source, &new)? else {
        return Ok(vec![new]);
    };
    old_root.check_root(&old).map_err(here)?;
    new_root.check_root(&new)?;
    let (mut a, mut b) = (Cursor::new(old_root, None), Cursor::new(new_root, None));
    // Of the old tree: what is not here, and how far that reaches.
    let mut gaps = Missing::default();
    let mut missing = Missing::default();
    while missing.hashes.len() < MISSING_MAX {
        b.settle();
        let Some(head) = b.head() else { break };
        let Some(place) = head.below else {
            b.advance();
            continue;
        };
        let key = head.key;
        reach(&mut a, source, key, place.level, &mut gaps)?;
        // Where it has to answer for more keys than before, it is to be here for those.
        let reaches =
            |old: Option<&Key>| old.is_none_or(|old| place.upper.is_some_and(|upper| old >= upper));
        let same = a.head().is_some_and(|head| {
            let old = head.below.filter(|_| head.key == key);
            old.is_some_and(|old| old.child.hash == place.child.hash && reaches(old.upper))
        });
        let mut is_wanted = false;
        if !same {
            let is_blind = |gaps: &Missing| {
                let until = gaps.until.as_ref();
                until.is_some_and(|until| below(key, until.as_ref()))
            };
            let mut gap = is_blind(&gaps);
            let has_rows = has_rows(&a, source, place.upper, &mut gap)?;
            is_wanted = has_rows || additions && !gap;
        }
        if !is_wanted {
            b.advance();
            continue;
        }
        match b.enter(source, &mut missing) {
            Err(TreeError::Misplaced(_)) => b.advance(),
            entered => entered?,
        }
    }
    Ok(missing.hashes)
}

/// Goes on in the old tree to the first that is not below a key, or to a child of that level that begins with it.
fn reach(
    a: &mut Cursor<'_>,
    source: &impl NodeSource,
    key: &Key,
    level: u8,
    gaps: &mut Missing,
) -> Result<(), TreeError> {
    loop {
        a.settle();
        let Some(head) = a.head() else { return Ok(()) };
        let enters = match head.below {
            _ if head.key > key => return Ok(()),
            None if head.key == key => return Ok(()),
            None => false,
            Some(place) if head.key == key && place.level <= level => return Ok(()),
            Some(place) => below(key, place.upper),
        };
        if enters {
            a.enter(source, gaps).map_err(here)?;
            gaps.hashes.clear();
        } else {
            a.advance();
        }
    }
}

/// Whether the old tree has a row here from where a cursor stands, and below a key. Notes whether something before that is not here.
fn has_rows(
    a: &Cursor<'_>,
    source: &impl NodeSource,
    upper: Option<&Key>,
    gap: &mut bool,
) -> Result<bool, TreeError> {
    let is_row = |a: &Cursor<'_>| {
        let head = a.head().filter(|head| below(head.key, upper));
        head.map(|head| head.below.is_none())
    };
    if let Some(false) = is_row(a) {
        let mut inside = a.clone();
        let mut gaps = Missing::default();
        while let Some(false) = is_row(&inside) {
            inside.enter(source, &mut gaps).map_err(here)?;
            inside.settle();
            *gap |= !gaps.hashes.is_empty();
            gaps.hashes.clear();
        }
        return Ok(is_row(&inside).is_some());
    }
    Ok(is_row(a).is_some())
}
