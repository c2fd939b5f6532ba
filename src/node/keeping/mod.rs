//! What is kept in the cache at somebody's wish, and what is told of it: `fetch`, `pin`, `evict`, `wait`, `why`.
//!
//! - `walk` finds the files below paths, a folder at a time, and fetches the manifest nodes that this takes.
//! - `pins` has what is below pinned paths brought here, now and as it changes.
//! - `evict` drops what others promised to keep, and gives such promises.
//! - `room` finds out what may go by itself when the cache needs room.
//! - `repair` drops what is damaged, has it brought here again and tells of it. `verify` looks for damage everywhere, at once, and
//!   `scrub` slowly and all the time.
//! - `bring` has one file brought here, in windows; `fetch` does so for all below some paths, and tells how far it is.
//!
//! All of it goes behind what reads wait for, and memory is bounded by the folder that is being looked at, not by the tree.

mod bring;
mod evict;
mod fetch;
pub(super) mod pins;
pub(super) mod repair;
pub(super) mod room;
pub(super) mod scrub;
mod verify;
mod wait;
mod walk;
mod why;

use crate::{
    control::{ControlError, text::unhex},
    manifest::TreePath,
};

use super::Node;

pub(super) use {
    evict::{Evictions, Running, evict, take_kept_elsewhere},
    fetch::fetch,
    verify::verify,
    wait::wait,
    why::why,
};

/// The paths that a request names, without those inside others of them.
pub(super) fn paths_of(hex: &[String]) -> Result<Vec<TreePath>, ControlError> {
    let mut paths = Vec::new();
    for hex in hex {
        let bytes =
            unhex(hex).ok_or_else(|| ControlError::wrong("a path that is not hexadecimal"))?;
        paths.push(TreePath::parse(&bytes).map_err(ControlError::wrong)?);
    }
    Ok(outermost(paths))
}

/// The one path that a request names.
pub(super) fn path_of(hex: &[String]) -> Result<TreePath, ControlError> {
    match paths_of(hex)?.as_slice() {
        [path] => Ok(path.clone()),
        _ => Err(ControlError::wrong("one path is asked for")),
    }
}

impl Node {
    /// Whether something at or below the path is in no signed head yet.
    pub(super) fn is_unpublished(&self, path: &TreePath) -> bool {
        let is_open = self
            .mounted()
            .is_some_and(|mounted| mounted.is_unpublished(path));
        is_open || self.namespace.is_pending(path)
    }
}

/// Those of the paths that are not inside others, each once, in order.
fn outermost(mut paths: Vec<TreePath>) -> Vec<TreePath> {
    paths.sort();
    let mut outer: Vec<TreePath> = Vec::new();
    for path in paths {
        // Whatever contains a path comes before it, but not always right before.
        if !outer.iter().any(|folder| path.is_within(folder)) {
            outer.push(path);
        }
    }
    outer
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_inside_others_are_left_out() {
        let path = |text: &str| TreePath::parse(text.as_bytes()).unwrap();
        let outer = outermost(["a/b", "a", "a b", "a/c/d", "e/f", "e/f"].map(path).into());
        assert_eq!(outer, ["a", "a b", "e/f"].map(path));
        assert_eq!(outermost(vec![path("a"), path("")]), [path("")]);
    }
}
