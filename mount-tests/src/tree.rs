//! The whole folder as a mount shows it.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs, io,
    path::{Path, PathBuf},
    time::Duration,
};

use crate::Mount;

/// How long looking at everything may take.
const WALK_WITHIN: Duration = Duration::from_secs(120);

/// What stands under a path.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Item {
    /// A directory.
    Folder,
    /// A file: its size, and the hash of its content as `user.p2pfs.hash` tells it. Nothing is fetched to tell them.
    File {
        /// Bytes.
        size: u64,
        /// Hex.
        hash: String,
    },
}

impl Mount {
    /// Every path below the root.
    ///
    /// # Errors
    /// What the mount answered to listing a folder.
    #[track_caller]
    pub fn paths(&self) -> io::Result<BTreeSet<String>> {
        let mut paths = BTreeSet::new();
        self.with_within(WALK_WITHIN, "", |root| {
            walk(root, |path, _| {
                paths.insert(path);
                Ok(())
            })
        })?;
        Ok(paths)
    }

    /// Every path below the root with what stands there.
    ///
    /// # Errors
    /// What the mount answered to a look at a folder or a file.
    #[track_caller]
    pub fn tree(&self) -> io::Result<BTreeMap<String, Item>> {
        let mut items = BTreeMap::new();
        self.with_within(WALK_WITHIN, "", |root| {
            walk(root, |path, entry| {
                let item = if entry.file_type()?.is_dir() {
                    Item::Folder
                } else {
                    let mut hash = [0; 64];
                    rustix::fs::getxattr(entry.path(), "user.p2pfs.hash", &mut hash)?;
                    Item::File {
                        size: entry.metadata()?.len(),
                        hash: String::from_utf8_lossy(&hash).into_owned(),
                    }
                };
                items.insert(path, item);
                Ok(())
            })
        })?;
        Ok(items)
    }
}

fn walk(
    root: &Path,
    mut each: impl FnMut(String, &fs::DirEntry) -> io::Result<()>,
) -> io::Result<()> {
    let mut folders = vec![PathBuf::new()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(root.join(&folder))? {
            let entry = entry?;
            let path = folder.join(entry.file_name());
            each(path.to_string_lossy().into_owned(), &entry)?;
            if entry.file_type()?.is_dir() {
                folders.push(path);
            }
        }
    }
    Ok(())
}
