//! What was found in the tree a moment ago: whoever writes many files asks for their folder with each of them, and for each
//! name several times. It holds for one root alone, which says all that is below it, so it is never wrong; the next head
//! ends it.

use std::collections::HashMap;

use parking_lot::Mutex;

use crate::manifest::{HybridTime, NodeHash, Shown, TreePath};

/// As many paths are remembered; then all are forgotten.
const PATHS_MAX: usize = 1024;

/// See the module.
#[derive(Default)]
pub(super) struct Looked(Mutex<Found>);

#[derive(Default)]
struct Found {
    root: Option<NodeHash>,
    shown: HashMap<TreePath, Option<Shown>>,
    newest: HashMap<TreePath, Option<HybridTime>>,
}

impl Found {
    /// What is remembered of a root, which may be nothing.
    fn of(&mut self, root: NodeHash) -> &mut Self {
        let is_full = self.shown.len() + self.newest.len() >= PATHS_MAX;
        if self.root != Some(root) || is_full {
            self.shown.clear();
            self.newest.clear();
            self.root = Some(root);
        }
        self
    }
}

impl Looked {
    /// What the tree of a root shows under a path; `look` finds it where that is not remembered.
    pub(super) fn shown<E>(
        &self,
        root: NodeHash,
        path: &TreePath,
        look: impl FnOnce() -> Result<Option<Shown>, E>,
    ) -> Result<Option<Shown>, E> {
        if let Some(shown) = self.0.lock().of(root).shown.get(path) {
            return Ok(shown.clone());
        }
        // Whoever looks at something else meanwhile does not wait.
        let shown = look()?;
        let mut found = self.0.lock();
        found.of(root).shown.insert(path.clone(), shown.clone());
        Ok(shown)
    }

    /// The same of when something was last changed directly in a folder.
    pub(super) fn newest<E>(
        &self,
        root: NodeHash,
        folder: &TreePath,
        look: impl FnOnce() -> Result<Option<HybridTime>, E>,
    ) -> Result<Option<HybridTime>, E> {
        if let Some(newest) = self.0.lock().of(root).newest.get(folder) {
            return Ok(*newest);
        }
        let newest = look()?;
        self.0.lock().of(root).newest.insert(folder.clone(), newest);
        Ok(newest)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_found_holds_for_its_root_and_is_bounded() {
        let looked = Looked::default();
        let (one, other) = (NodeHash([1; 32]), NodeHash([2; 32]));
        let path = |number: usize| TreePath::parse(number.to_string().as_bytes()).unwrap();
        let there = || Ok::<_, ()>(Some(Shown::implied_directory()));
        assert_eq!(looked.shown(one, &path(0), || Err(())), Err(()));
        assert_eq!(looked.shown(one, &path(0), || Ok::<_, ()>(None)), Ok(None));
        assert_eq!(looked.shown(one, &path(0), there), Ok(None), "remembered");
        assert_eq!(looked.shown(other, &path(0), there), there());
        assert_eq!(looked.shown(one, &path(0), there), there());
        let time = Some(HybridTime(1));
        assert_eq!(looked.newest(one, &path(0), || Ok::<_, ()>(time)), Ok(time));
        assert_eq!(looked.newest(one, &path(0), || Err(())), Ok(time));
        for number in 0..3 * PATHS_MAX {
            assert_eq!(looked.shown(one, &path(number), there), there());
        }
        assert!(looked.0.lock().shown.len() <= PATHS_MAX);
    }
}
