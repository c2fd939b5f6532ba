//! The files below paths, a folder at a time.
//!
//! Manifest nodes that are not here are fetched when their folder's turn comes. Held in memory are the files of one folder
//! and the folders that are still to be looked at beside the way down: no tree is held as a whole.

use std::{collections::VecDeque, sync::Arc};

use crate::{
    content::Object,
    control::ControlError,
    manifest::{Kind, TreePath},
    node::Node,
};

/// What a walk comes by.
#[derive(Debug)]
pub(super) enum Step {
    /// A file.
    File(TreePath, Object),
    /// A folder that could not be looked into, and why.
    Failed(TreePath, String),
}

/// See the module.
pub(super) struct Walk {
    node: Arc<Node>,
    /// The next one comes last.
    folders: Vec<TreePath>,
    files: VecDeque<(TreePath, Object)>,
}

impl Walk {
    /// Starts at these paths, none of which is inside another.
    ///
    /// # Errors
    /// Where nothing stands at one of them, or that cannot be found out.
    pub(super) async fn start(node: Arc<Node>, paths: &[TreePath]) -> Result<Self, ControlError> {
        let mut walk = Self {
            node,
            folders: Vec::new(),
            files: VecDeque::new(),
        };
        for path in paths.iter().rev() {
            let at = path.clone();
            let shown = walk
                .node
                .with_nodes(move |namespace| namespace.get(&at))
                .await?;
            match shown.map(|shown| shown.entry.kind) {
                Some(Kind::Directory) => walk.folders.push(path.clone()),
                Some(Kind::File(object)) => walk.files.push_front((path.clone(), object)),
                // Links are not followed, and other things have no content.
                Some(_) => {}
                None => {
                    return Err(ControlError::new(format_args!(
                        "nothing is called {path} in the folder"
                    )));
                }
            }
        }
        Ok(walk)
    }

    /// The next file; `None` at the end.
    pub(super) async fn next(&mut self) -> Option<Step> {
        loop {
            if let Some((path, object)) = self.files.pop_front() {
                return Some(Step::File(path, object));
            }
            let folder = self.folders.pop()?;
            let at = folder.clone();
            let listed = self
                .node
                .with_nodes(move |namespace| namespace.children(&at))
                .await;
            let children = match listed {
                Ok(children) => children,
                Err(error) => return Some(Step::Failed(folder, error.message)),
            };
            let mut deeper = Vec::new();
            for (name, shown) in children {
                // A longer path than is allowed cannot stand in a valid tree.
                let Ok(path) = folder.join(&name) else {
                    continue;
                };
                match shown.entry.kind {
                    Kind::Directory => deeper.push(path),
                    Kind::File(object) => self.files.push_back((path, object)),
                    _ => {}
                }
            }
            self.folders.extend(deeper.into_iter().rev());
        }
    }
}
