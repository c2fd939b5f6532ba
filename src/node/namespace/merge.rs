//! Bringing the heads of others into the state.
//!
//! A head that has seen everything here becomes the state; others are merged. What a head brings is checked first, as far as
//! it is looked at: one whose tree is not what a tree must be is refused, and those that it covers take its place.

use std::{
    cell::RefCell,
    collections::BTreeSet,
    sync::Arc,
    time::{Duration, Instant},
};

use rand::Rng;

use super::{
    Arrival, NamespaceError, RemoteChanges,
    admit::HEAD_WRITERS_MAX,
    commit::Signing,
    disk::Disk,
    heads::{KnownHead, Way},
    nodes::Nodes,
    plan::{self, Copied, Edits},
    refresh::NODES_AT_ONCE,
    replica::{Event, Moment, Replica},
    state::State,
};
use crate::{
    manifest::{
        self, Applied, CausalContext, Change, Dot, HybridTime, InternalKey, Key, Node, NodeHash,
        NodeSource, TreeError, TreePath, Version,
    },
    store::StoreError,
};

/// How many nodes merging a head may fetch at once. With more it can wait a while: another member may merge it, and what is
/// looked at is shown as if it were merged.
#[derive(Clone, Copy, Debug)]
pub(super) struct Eagerness {
    /// Of members that have nothing of their own to be merged with it.
    pub(super) others: usize,
    /// Of those whose own work stands beside it: they don't leave it to others.
    pub(super) authors: usize,
}

impl Default for Eagerness {
    fn default() -> Self {
        Self {
            others: 16,
            authors: 4096,
        }
    }
}

/// What a head changes is told in full if that can be found out in this time.
pub(super) const LATE_AFTER: Duration = Duration::from_secs(3);
/// What is fetched at most to tell how a head that is taken over differs: the kernel's caches want it, and can do
/// without.
const DIFFERENCE_ROUNDS_MAX: usize = 16;
const DIFFERENCE_NODES_MAX: usize = 64;
/// How long a head that joins others is put off, in milliseconds: another member may be first.
const JOIN_DELAY_MS: std::ops::Range<u64> = 500..3000;
/// Contents that gave way to others under the same number and are named in the log.
const CONTRADICTED_TOLD_MAX: usize = 64;
/// Differences merged at a time: memory follows this, not the whole.
const PORTION_MAX: usize = 8192;
/// Changes that are named; more are "all".
pub(super) const NAMED_CHANGES_MAX: usize = 4096;

/// What an attempt came to.
#[derive(Debug)]
pub(super) enum Step {
    /// The state holds the head, or the head has gone.
    Done,
    /// These nodes are needed first.
    Missing(Vec<NodeHash>),
    /// Other work comes first, and will wake the merger.
    Later,
}

/// What has been tried for a head so far.
#[derive(Clone, Debug, Default)]
pub(super) struct Effort {
    /// Rounds of fetching.
    pub(super) rounds: usize,
    /// Nodes that they brought.
    pub(super) nodes: usize,
    /// What the last round was for.
    pub(super) wanted: Vec<NodeHash>,
    /// Nobody gave any of it.
    pub(super) unreachable: bool,
    /// Among those was somebody who said that they have none of it.
    pub(super) denied: bool,
    /// It has taken so long that what can be done without is.
    pub(super) late: bool,
    /// What came could not be kept.
    pub(super) not_kept: bool,
}

impl Effort {
    /// Whether these nodes are what nobody gave. Where it can be done without those, it may take others.
    pub(super) fn was_in_vain(&self, missing: &[NodeHash]) -> bool {
        self.unreachable && missing.iter().all(|node| self.wanted.contains(node))
    }
}

/// Nodes, and of which of two trees they are: a node that is read names its children.
pub(super) struct Traced<'a, S> {
    nodes: &'a S,
    ours: RefCell<BTreeSet<NodeHash>>,
    theirs: RefCell<BTreeSet<NodeHash>>,
}

impl<'a, S> Traced<'a, S> {
    fn new(nodes: &'a S, ours: NodeHash, theirs: NodeHash) -> Self {
        Self {
            nodes,
            ours: RefCell::new(BTreeSet::from([ours])),
            theirs: RefCell::new(BTreeSet::from([theirs])),
        }
    }

    /// Whether a node is of the second tree alone.
    pub(super) fn is_theirs(&self, node: &NodeHash) -> bool {
        self.theirs.borrow().contains(node) && !self.ours.borrow().contains(node)
    }
}

impl<S: NodeSource> NodeSource for Traced<'_, S> {
    fn node(&self, hash: &NodeHash) -> Result<Option<Arc<Node>>, TreeError> {
        let node = self.nodes.node(hash)?;
        for tree in [&self.ours, &self.theirs] {
            let mut tree = tree.borrow_mut();
            if tree.contains(hash) {
                tree.extend(node.iter().flat_map(|node| node.children()));
            }
        }
        Ok(node)
    }
}

/// Two trees merged.
struct MergedTree {
    root: NodeHash,
    /// The root before renames were completed.
    plain: NodeHash,
    /// How it differs from ours; `None` for more than are named.
    changes: Option<Vec<Change>>,
    /// Renames were completed, as this write.
    completed_as: Option<Dot>,
    /// Records that were put anew by that.
    copied: Vec<Copied>,
}

impl MergedTree {
    fn note(&mut self, changes: impl IntoIterator<Item = Change>) {
        if let Some(noted) = &mut self.changes {
            noted.extend(changes);
            if noted.len() > NAMED_CHANGES_MAX {
                self.changes = None;
            }
        }
    }
}

impl<D: Disk> Replica<D> {
    /// One attempt to bring a head into the state, with the nodes that are here.
    pub(super) fn merge(
        &self,
        digest: &[u8; 32],
        effort: &Effort,
        now: Moment,
    ) -> Result<Step, NamespaceError> {
        let _turn = self.take_turn()?;
        let step = self.merge_here(digest, effort, now)?;
        // What its hash names and is no node will not become one.
        let Step::Missing(nodes) = &step else {
            return Ok(step);
        };
        let bad: Vec<_> = nodes
            .iter()
            .filter(|node| self.nodes.is_bad(node))
            .collect();
        let Some(first) = bad.first() else {
            return Ok(step);
        };
        let (head, root) = {
            let state = self.state.read();
            (state.heads.get(digest).cloned(), state.root)
        };
        let (Some(head), Some(root)) = (head, root) else {
            return Ok(Step::Done);
        };
        let looked = self.compared(root, head.root);
        match bad.iter().find(|bad| looked.is_theirs(bad)) {
            Some(bad) => {
                self.refuse(&head, &format!("{bad} is not a valid manifest node"), now)?;
                Ok(Step::Done)
            }
            // The state has it: no fault of this head's.
            None => Err(NamespaceError::Failed(format!(
                "the state has {first}, which is not a valid manifest node"
            ))),
        }
    }

    /// Two trees, compared as far as their nodes are here: what that needs next is of which of them.
    pub(super) fn compared(&self, ours: NodeHash, theirs: NodeHash) -> Traced<'_, Nodes<D>> {
        let traced = Traced::new(&self.nodes, ours, theirs);
        let mut after = None;
        while let Ok(changes) =
            manifest::diff_after(&traced, ours, theirs, after.as_ref(), PORTION_MAX)
        {
            match changes.last() {
                Some(last) if changes.len() >= PORTION_MAX => after = Some(last.key.clone()),
                _ => break,
            }
        }
        traced
    }

    /// `turn` is held.
    fn merge_here(
        &self,
        digest: &[u8; 32],
        effort: &Effort,
        now: Moment,
    ) -> Result<Step, NamespaceError> {
        let (head, way, root, covers) = {
            let state = self.state.read();
            let (Some(root), Some(head)) = (state.root, state.heads.get(digest)) else {
                return Ok(Step::Done);
            };
            if state.redo.is_some() {
                return Ok(Step::Later);
            }
            let Some(way) = state.heads.way(digest, root, &state.covers) else {
                return Ok(Step::Done);
            };
            let is_other = state.first.is_some_and(|first| first != *digest);
            if way == Way::InState
                && is_other
                && root != manifest::empty_root()
                && self.nodes.node(&root)?.is_none()
            {
                // That it is in the state is what a head says that nobody here has looked at.
                return Ok(Step::Later);
            }
            (head.clone(), way, root, state.covers.clone())
        };
        if way == Way::InState {
            let mut state = self.state.write();
            let dropped = state.heads.set_in_state(digest);
            self.plan_join(&mut state, now.at);
            return self.drop_heads(&dropped).map(|()| Step::Done);
        }
        // Where nothing is shown so far, an empty folder would be a lie: the new state is, and what of it can't be had is an
        // error.
        let blindly = way == Way::Adopt && root == manifest::empty_root();
        if !blindly {
            match self.check_root(&head) {
                Err(NamespaceError::Missing(nodes)) => return Ok(Step::Missing(nodes)),
                Err(error) => return Err(error),
                Ok(Some(reason)) => return self.refuse(&head, &reason, now).map(|()| Step::Done),
                Ok(None) => {}
            }
        }
        let (since, given) = self.state.write().heads.tried(digest, now.at);
        let effort = &Effort {
            late: effort.late || now.at.duration_since(since) > LATE_AFTER,
            // Of a writer that goes on writing, what was given for earlier heads counts.
            rounds: effort.rounds + usize::from(given),
            ..effort.clone()
        };
        let mut joined = covers.clone();
        joined.join(&head.covers);
        if joined.len() > HEAD_WRITERS_MAX {
            let reason = "with it there are more writers than a head can name";
            return self.refuse(&head, reason, now).map(|()| Step::Done);
        }
        let merged = match &way {
            Way::InState | Way::Adopt => {
                let difference = if blindly {
                    Ok(None)
                } else {
                    self.difference(root, head.root, effort)
                };
                return match difference {
                    Ok(changes) => {
                        self.become_state(digest, head.root, joined, changes, now)?;
                        if blindly {
                            self.state.write().first = Some(*digest);
                            self.tell(Event::ToMerge);
                        }
                        Ok(Step::Done)
                    }
                    Err(TreeError::Missing(nodes)) => Ok(Step::Missing(nodes)),
                    Err(error) => self.refuse_or_fail(&head, error, now),
                };
            }
            Way::Merge => {
                let completing = self.state.read().writer.is_some();
                self.merge_trees((root, &covers), (head.root, &head.covers), completing)
            }
            Way::Union(ours, theirs) => self.merge_trees((root, ours), (head.root, theirs), false),
        };
        let merged = match merged {
            Err(TreeError::Missing(nodes)) if effort.unreachable && way == Way::Merge => {
                match self.merge_own_work((root, &covers), &head) {
                    Ok(Some(merged)) => {
                        tracing::info!(
                            writer = format_args!("{:016x}", head.writer.0),
                            sequence = head.sequence,
                            "a head was merged with a state that nobody has all of any more"
                        );
                        Ok(merged)
                    }
                    Ok(None) => Err(TreeError::Missing(nodes)),
                    Err(error) => Err(error),
                }
            }
            merged => merged,
        };
        match merged {
            Ok(merged) => {
                match merged.completed_as {
                    None => self.become_state(digest, merged.root, joined, merged.changes, now)?,
                    Some(dot) => self.sign_completed(merged, joined, dot, now)?,
                }
                Ok(Step::Done)
            }
            Err(TreeError::Missing(nodes)) => {
                if way != Way::Merge || effort.unreachable {
                    return Ok(Step::Missing(nodes));
                }
                let total = effort.nodes + nodes.len();
                match self.may_put_off(&head, total, now) {
                    false => Ok(Step::Missing(nodes)),
                    true if effort.rounds > 0 => {
                        self.put_off(&head, now);
                        Ok(Step::Done)
                    }
                    // Not before somebody gives of it: nothing of the folder can be read without the nodes of all that is shown.
                    true => {
                        let first = nodes.into_iter().take(NODES_AT_ONCE);
                        Ok(Step::Missing(first.collect()))
                    }
                }
            }
            Err(error) => self.refuse_or_fail(&head, error, now),
        }
    }

    /// `turn` is held. Merges in portions, and keeps the nodes. `completing`: what others did under a path that was renamed
    /// meanwhile follows to the new one, which takes a head of this node's.
    fn merge_trees(
        &self,
        ours: (NodeHash, &CausalContext),
        theirs: (NodeHash, &CausalContext),
        completing: bool,
    ) -> Result<MergedTree, TreeError> {
        let mut merged = MergedTree {
            root: ours.0,
            plain: ours.0,
            changes: Some(Vec::new()),
            completed_as: None,
            copied: Vec::new(),
        };
        let keep = |nodes: &[_]| {
            let kept = self.nodes.put(nodes);
            kept.map_err(|error| TreeError::Source(error.to_string()))
        };
        let mut after = None;
        loop {
            let from = (merged.root, ours.1);
            let portion =
                manifest::merge_portion(&self.nodes, from, theirs, after.as_ref(), PORTION_MAX)?;
            keep(&portion.nodes)?;
            tell_contradicted(&portion.contradicted);
            merged.root = portion.root;
            merged.note(portion.changes);
            match portion.rest {
                Some(rest) => after = Some(rest),
                None => break,
            }
        }
        merged.plain = merged.root;
        if completing {
            self.complete_renames(&mut merged, ours, theirs)?;
        }
        Ok(merged)
    }

    /// `turn` is held. Merges a head without those nodes of the state that neither it nor this node's own work has changed:
    /// others have gone on from that state, and may have let go of them. `None` where that can't be told apart.
    ///
    /// What others wrote, all of which the head has seen, is in its tree as it is to be. So this node's work since that it has
    /// not seen is put there, and the two are merged like any. Under every key they are as the state and the head would be:
    /// where this node's work did not touch the state, all that it has there, or had and lacks, the head has seen.
    fn merge_own_work(
        &self,
        state: (NodeHash, &CausalContext),
        head: &KnownHead,
    ) -> Result<Option<MergedTree>, TreeError> {
        let (root, covers) = state;
        let work = {
            let state = self.state.read();
            let Some(writer) = &state.writer else {
                return Ok(None);
            };
            if !head.covers.includes(&covers.of_others(writer.number)) {
                return Ok(None);
            }
            match writer.work_after(head.covers.sequence(writer.number)) {
                Some(work) => work,
                None => return Ok(None),
            }
        };
        let failed = |error: StoreError| TreeError::Source(error.to_string());
        let mut grafted = head.root;
        for own in work {
            let mut after: Option<Key> = None;
            loop {
                let changes = manifest::diff_after(
                    &self.nodes,
                    own.base,
                    own.root,
                    after.as_ref(),
                    PORTION_MAX,
                )?;
                let keys = changes.iter().map(|change| &change.key);
                let applied = manifest::graft(&self.nodes, root, keys, grafted)?;
                self.nodes.put(&applied.nodes).map_err(failed)?;
                grafted = applied.root;
                let last = changes.last().filter(|_| changes.len() >= PORTION_MAX);
                after = last.map(|change| change.key.clone());
                if after.is_none() {
                    break;
                }
            }
        }
        let theirs = (head.root, &head.covers);
        let mut merged = self.merge_trees(theirs, (grafted, covers), true)?;
        // Those are from the head's tree.
        merged.changes = None;
        Ok(Some(merged))
    }

    /// `turn` is held. Looks through what a merge has changed, once all of it is there.
    fn complete_renames(
        &self,
        merged: &mut MergedTree,
        ours: (NodeHash, &CausalContext),
        theirs: (NodeHash, &CausalContext),
    ) -> Result<(), TreeError> {
        let failed = |error: &dyn std::fmt::Display| TreeError::Source(error.to_string());
        // The number is used up only once something is signed under it.
        let dot = self.next_dot(1).map_err(|error| failed(&error))?;
        let whole = merged.root;
        let mut after: Option<Key> = None;
        loop {
            let changes =
                manifest::diff_after(&self.nodes, ours.0, whole, after.as_ref(), PORTION_MAX)?;
            let last = changes.last().filter(|_| changes.len() >= PORTION_MAX);
            after = last.map(|change| change.key.clone());
            let mut edits =
                manifest::complete_moves(&self.nodes, merged.root, ours, theirs, &changes, dot)?;
            let contested = manifest::contested_files(&changes);
            let sides = [ours, theirs];
            manifest::complete_links(&self.nodes, merged.root, &mut edits, contested, &sides, dot)?;
            if !edits.is_empty() {
                // What moves keeps its time, so it does not make a folder newer.
                let time_of = |_: &_| HybridTime::default();
                let root = merged.root;
                manifest::record_folders(&self.nodes, root, &mut edits, dot, time_of)?;
                let copied = plan::copied_records(&self.nodes, root, &edits, dot)?;
                merged.copied.extend(copied);
                let applied = manifest::apply(&self.nodes, merged.root, &edits)?;
                let kept = self.nodes.put(&applied.nodes);
                kept.map_err(|error| failed(&error))?;
                merged.root = applied.root;
                merged.completed_as = Some(dot);
                merged.note(edits.into_iter().map(|(key, new)| Change {
                    key,
                    old: None,
                    new,
                }));
            }
            if after.is_none() {
                return Ok(());
            }
        }
    }

    /// `turn` is held. A merge that completed renames is a head of its own.
    fn sign_completed(
        &self,
        merged: MergedTree,
        mut covers: CausalContext,
        dot: Dot,
        now: Moment,
    ) -> Result<(), NamespaceError> {
        let base = merged.root;
        let with_row = || {
            let mut row = Edits::new();
            self.add_row(base, &mut row, dot, now)?;
            Ok(manifest::apply(&self.nodes, base, &row)?)
        };
        let applied = match with_row() {
            // It comes with a later head.
            Err(NamespaceError::Missing(_)) => Applied {
                root: base,
                nodes: Vec::new(),
            },
            applied => applied?,
        };
        self.state.read().note_own(&mut covers, dot);
        let signing = Signing {
            applied,
            covers,
            sequence: dot.sequence,
            base: merged.plain,
            edits: None,
            copied: merged.copied,
            pending: Vec::new(),
            renames: Vec::new(),
            commits: false,
            kept: None,
        };
        // How the state changes is not how the view does, where that shows more.
        let (before, is_known) = {
            let state = self.state.read();
            (state.root, state.parts.is_empty())
        };
        let published = self.sign(signing, now, |_| {})?;
        let root = published.head.root;
        if merged.changes.is_none() {
            self.note_outdated(before)?;
        }
        self.tell(Event::Published(Arc::new(published)));
        self.tell(Event::Changed(Arrival {
            root,
            before,
            changes: merged.changes.filter(|_| is_known),
        }));
        self.tell(Event::ToCommit);
        Ok(())
    }

    /// The changes between two roots; `None` when telling them takes too much. What is here does not give way to what nobody
    /// gives, whether those who were asked lack it or there is nobody to ask.
    fn difference(
        &self,
        old: NodeHash,
        new: NodeHash,
        effort: &Effort,
    ) -> Result<Option<Vec<Change>>, TreeError> {
        match manifest::diff(&self.nodes, old, new, NAMED_CHANGES_MAX + 1) {
            Ok(changes) => Ok((changes.len() <= NAMED_CHANGES_MAX).then_some(changes)),
            Err(TreeError::Missing(nodes)) => {
                let is_bad = |node: &NodeHash| self.nodes.is_bad(node);
                if effort.unreachable || nodes.iter().any(is_bad) {
                    let looked = self.compared(old, new);
                    let theirs = |node: &&NodeHash| looked.is_theirs(node);
                    if nodes
                        .iter()
                        .filter(theirs)
                        .any(|node| effort.unreachable || is_bad(node))
                    {
                        return Err(TreeError::Missing(nodes));
                    }
                }
                // Of the state: it gives way.
                if effort.unreachable || nodes.iter().any(is_bad) {
                    return Ok(None);
                }
                let enough = effort.late
                    || effort.rounds >= DIFFERENCE_ROUNDS_MAX
                    || effort.nodes + nodes.len() > DIFFERENCE_NODES_MAX;
                if !enough {
                    return Err(TreeError::Missing(nodes));
                }
                // What can be read without others is to be so of the new state as well: the rest of that follows once it takes
                // long, while somebody gives it.
                let lacking = self.outdated_nodes(old, new, false)?;
                match lacking.is_empty() || effort.late && effort.rounds > 0 {
                    true => Ok(None),
                    false => Err(TreeError::Missing(lacking)),
                }
            }
            Err(error) => Err(error),
        }
    }

    /// `turn` is held. `changes`: how it differs from the state before; `None` when that is not known.
    fn become_state(
        &self,
        digest: &[u8; 32],
        root: NodeHash,
        covers: CausalContext,
        changes: Option<Vec<Change>>,
        now: Moment,
    ) -> Result<(), NamespaceError> {
        let mut state = self.state.write();
        let before = state.root;
        // How the state changes is not how the view does, where that shows more.
        let is_known = state.parts.is_empty();
        let mut record = state.record();
        record.root = Some(root);
        record.covers = covers.clone();
        // What may fail comes before the state: were the disk's another one than memory's, nodes that it is made of could be let go.
        self.records.note_root(now.wall_ns, root)?;
        self.records.save_state(&record)?;
        state.set_state(root, covers);
        state.first = None;
        let dropped = state.heads.set_in_state(digest);
        self.plan_join(&mut state, now.at);
        drop(state);
        self.drop_heads(&dropped)?;
        let is_known_all = changes.is_some();
        let changes = changes.filter(|changes| is_known && changes.len() <= NAMED_CHANGES_MAX);
        self.tell(Event::Changed(Arrival {
            root,
            before,
            changes,
        }));
        self.tell(Event::ToCommit);
        if !is_known_all {
            self.note_outdated(before)?;
        }
        Ok(())
    }

    /// Forgets the records of heads that are not needed any more.
    pub(super) fn drop_heads(&self, dropped: &[KnownHead]) -> Result<(), NamespaceError> {
        dropped
            .iter()
            .try_for_each(|head| self.records.remove_head(head))
    }

    /// Sees to it that a state which no single head stands for gets one, some time from now.
    pub(super) fn plan_join(&self, state: &mut State, now: Instant) {
        let delay = || self.random(|random| random.random_range(JOIN_DELAY_MS));
        state.plan_join(now, || Duration::from_millis(delay()));
    }
}

/// What two machines wrote under one number cannot both be kept; what gives way is at least named, with its content.
fn tell_contradicted(contradicted: &[(Key, Version)]) {
    for (key, version) in contradicted.iter().take(CONTRADICTED_TOLD_MAX) {
        // A writer's row says the same on all its machines.
        if let Some(path) = key.path() {
            tracing::warn!(
                %path,
                writer = version.dot.writer.0,
                sequence = version.dot.sequence,
                dropped = ?version.entry.kind,
                "two machines wrote different contents under one number: one of them was dropped"
            );
        }
    }
    if contradicted.len() > CONTRADICTED_TOLD_MAX {
        let more = contradicted.len() - CONTRADICTED_TOLD_MAX;
        tracing::warn!(more, "further contents were dropped for the same reason");
    }
}

/// The paths of changes; for files with several names the stand-ins of their records.
pub(super) fn named(changes: &[Change]) -> RemoteChanges {
    let mut paths = BTreeSet::new();
    for change in changes {
        match (change.key.path(), change.key.internal()) {
            (Some(path), _) => {
                paths.insert(path);
            }
            // All names of the file show another content, or that there is one more or less of them.
            (None, Some(InternalKey::File(file) | InternalKey::Name(file, _))) => {
                paths.insert(TreePath::of_record(&file));
            }
            (None, _) => {}
        }
    }
    RemoteChanges::Paths(Arc::new(paths.into_iter().collect()))
}
