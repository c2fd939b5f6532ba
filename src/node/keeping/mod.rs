//! What is kept in the cache at somebody's wish: `fetch`.
//!
//! - `walk` finds the files below paths, a folder at a time, and fetches the manifest nodes that this takes.
//! - `bring` has one file brought here, in windows; `fetch` does so for all below some paths, and tells how far it is.
//!
//! All of it goes behind what reads wait for, and memory is bounded by the folder that is being looked at, not by the tree.

mod bring;
mod fetch;
mod walk;

use crate::{
    control::{ControlError, text::unhex},
    manifest::TreePath,
};

pub(super) use fetch::fetch;

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
