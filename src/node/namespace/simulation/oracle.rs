//! What must be, and must not be, in the end: every content is written once, so that it tells which write it came from.

use std::collections::{BTreeMap, BTreeSet};

use crate::manifest::TreePath;

/// What happened to one content.
#[derive(Clone, Debug, Default)]
struct Fate {
    /// Its write was acknowledged: it is on a disk.
    acknowledged: bool,
    /// A deletion, or a write in its place, saw it.
    superseded: bool,
    /// And was acknowledged.
    gone: bool,
    /// It was given another name: that is a write of its own, which a deletion of the old name has not seen.
    renamed: bool,
    /// Its machine was rolled back to before it was written: nobody else may have it.
    rolled_back: bool,
    /// Where it was written: what follows a rename of that path is given another name too.
    at: Option<TreePath>,
}

/// A local change, by the contents that it writes and replaces.
#[derive(Clone, Debug, Default)]
pub(super) struct Deed {
    pub(super) writes: Option<u64>,
    pub(super) replaces: Option<u64>,
    /// What it gives another name, and where each was.
    pub(super) renames: Vec<(u64, TreePath)>,
    /// Where it writes.
    pub(super) at: Option<TreePath>,
    /// The folder that it renames: what others do below follows.
    pub(super) folder: Option<TreePath>,
}

#[derive(Debug, Default)]
pub(super) struct Oracle(BTreeMap<u64, Fate>, Renamed);

/// Paths from which something was renamed, and folders that were.
#[derive(Debug, Default)]
struct Renamed(BTreeSet<TreePath>, BTreeSet<TreePath>);

impl Renamed {
    fn has(&self, path: &TreePath) -> bool {
        self.0.contains(path) || self.1.iter().any(|folder| path.is_within(folder))
    }
}

impl Oracle {
    pub(super) fn done(&mut self, deed: &Deed) {
        if let Some(content) = deed.writes {
            self.0.entry(content).or_default().at = deed.at.clone();
        }
        if let Some(content) = deed.replaces {
            self.0.entry(content).or_default().superseded = true;
        }
        for (content, from) in &deed.renames {
            self.0.entry(*content).or_default().renamed = true;
            self.1.0.insert(from.clone());
        }
        self.1.1.extend(deed.folder.clone());
    }

    /// Notes that a machine was rolled back to before it wrote these.
    pub(super) fn rolled_back(&mut self, contents: &[u64]) {
        for content in contents {
            self.0.entry(*content).or_default().rolled_back = true;
        }
    }

    pub(super) fn acknowledged(&mut self, deed: &Deed) {
        if let Some(content) = deed.writes {
            self.0.entry(content).or_default().acknowledged = true;
        }
        if let Some(content) = deed.replaces {
            self.0.entry(content).or_default().gone = true;
        }
    }

    /// What was acknowledged and is neither there nor was replaced by anybody who saw it.
    pub(super) fn lost(&self, there: &BTreeSet<u64>) -> Vec<u64> {
        let lost = |content: &u64, fate: &Fate| {
            fate.acknowledged && !fate.superseded && !fate.rolled_back && !there.contains(content)
        };
        let all = self.0.iter();
        all.filter(|(content, fate)| lost(content, fate))
            .map(|(content, _)| *content)
            .collect()
    }

    /// What was certainly replaced by somebody who saw it, and is there all the same.
    pub(super) fn risen(&self, there: &BTreeSet<u64>) -> Vec<u64> {
        let fates = there
            .iter()
            .filter_map(|content| Some((content, self.0.get(content)?)));
        fates
            .filter(|(_, fate)| fate.gone && !fate.renamed)
            .filter(|(_, fate)| fate.at.as_ref().is_none_or(|at| !self.1.has(at)))
            .map(|(content, _)| *content)
            .collect()
    }
}
