//! Pinned paths: what is below them is brought here, now and as it changes.
//!
//! Two tasks. One counts, in the store, under how many names below pinned paths each content stands. It follows the merged
//! state from root to root by their differences, so a change costs what it changes; it walks a path only when that is pinned
//! or unpinned, or when the mount begins. The other brings what is counted and not whole here, behind what reads wait for; what nobody gives is
//! tried again when a member appears, and every half minute.
//!
//! A pin is a path: what is renamed away from below it is pinned no more, what is renamed or written to below it is. With
//! `--keep-all` the root is pinned while the mount runs.

use std::{
    collections::{BTreeSet, VecDeque},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use futures::{StreamExt, stream};
use parking_lot::{Mutex, RwLock};
use tokio::sync::{Notify, broadcast::error::RecvError, watch};

use super::bring::{Room, bring, here};
use crate::{
    content::Object,
    control::{ControlError, keeping::PinReport},
    manifest::{Change, Key, Kind, NodeHash, TreePath, Versions, shown},
    net::NetEvent,
    node::{Node, conflicts::path_text, run_blocking},
    store::{Store, StoreError},
};

/// Most pinned paths.
const PINS_MAX: usize = 10_000;
/// Contents brought at a time.
const AT_ONCE: usize = 16;
/// Contents that wait to be brought, or to be tried again, by name; of more the store is asked.
const QUEUED_MAX: usize = 4096;
/// How soon what nobody gave is tried again, and what could not be counted.
const AGAIN_AFTER: Duration = Duration::from_secs(30);
/// How soon what could not be looked at is looked at again.
const LOOK_AGAIN_AFTER: Duration = Duration::from_secs(5);
/// Changes, and contents, that are looked at in one go.
const PAGE: usize = 1024;

/// The pins of a mount.
pub(in crate::node) struct Pins {
    store: Store,
    /// Those that were asked for, in the store too.
    paths: RwLock<BTreeSet<TreePath>>,
    keep_all: bool,
    /// Rung when they change.
    changed: Notify,
    /// Whether all that is pinned has been counted.
    counted: watch::Sender<bool>,
    queue: Mutex<Queue>,
    /// Rung when there is something to bring.
    to_bring: Notify,
    bringing: AtomicUsize,
}

/// What is to be brought.
#[derive(Default)]
struct Queue {
    contents: VecDeque<(Object, String)>,
    /// More than are named: the store knows them. Where the search for them is.
    search: Option<Option<Object>>,
    /// Nobody gave these.
    failed: Vec<(Object, String)>,
    /// Nor some that are not named.
    failed_more: bool,
}

impl Queue {
    fn push(&mut self, object: Object, label: String) {
        if self.contents.len() < QUEUED_MAX {
            self.contents.push_back((object, label));
        } else {
            self.search = Some(None);
        }
    }

    fn failed(&mut self, object: Object, label: String) {
        if self.failed.len() < QUEUED_MAX {
            self.failed.push((object, label));
        } else {
            self.failed_more = true;
        }
    }

    fn try_again(&mut self) {
        self.contents.extend(self.failed.drain(..));
        if std::mem::take(&mut self.failed_more) {
            self.search = Some(None);
        }
    }

    fn has_failed(&self) -> bool {
        self.failed_more || !self.failed.is_empty()
    }
}

impl Pins {
    /// As the store has them.
    pub(in crate::node) fn open(store: Store, keep_all: bool) -> Result<Self, StoreError> {
        let mut paths = BTreeSet::new();
        for pin in store.pins()? {
            match TreePath::parse(&pin) {
                Ok(path) => {
                    paths.insert(path);
                }
                Err(error) => tracing::error!(%error, "a pin is no path and is passed over"),
            }
        }
        Ok(Self {
            store,
            paths: RwLock::new(paths),
            keep_all,
            changed: Notify::new(),
            counted: watch::Sender::new(false),
            queue: Mutex::default(),
            to_bring: Notify::new(),
            bringing: AtomicUsize::new(0),
        })
    }

    /// Whether what stands at the path is pinned.
    pub(in crate::node) fn covers(&self, path: &TreePath) -> bool {
        self.keep_all || is_below(path, &self.paths.read())
    }

    /// Returns true once it is known which contents are pinned, false after `within`.
    pub(super) async fn wait_counted(&self, within: Duration) -> bool {
        let mut counted = self.counted.subscribe();
        let known = tokio::time::timeout(within, counted.wait_for(|counted| *counted)).await;
        known.is_ok_and(|known| known.is_ok())
    }

    /// Whether all that is pinned and can be had is here.
    pub(super) fn is_idle(&self) -> bool {
        let queue = self.queue.lock();
        let waits = !queue.contents.is_empty() || queue.search.is_some();
        *self.counted.borrow() && !waits && self.bringing.load(Ordering::Acquire) == 0
    }

    /// The pinned paths that are not inside others.
    fn outermost(&self) -> BTreeSet<TreePath> {
        self.outermost_of(&self.paths.read())
    }

    fn outermost_of(&self, paths: &BTreeSet<TreePath>) -> BTreeSet<TreePath> {
        if self.keep_all {
            return BTreeSet::from([TreePath::root()]);
        }
        super::outermost(paths.iter().cloned().collect())
            .into_iter()
            .collect()
    }

    /// All below these paths has been counted.
    fn note_counted(&self, counted: &BTreeSet<TreePath>) {
        // Under the lock, under which a change of the pins says that not all is counted.
        let paths = self.paths.read();
        if self.outermost_of(&paths) == *counted {
            self.counted.send_replace(true);
        }
    }

    fn report(&self) -> PinReport {
        let paths = self.paths.read();
        PinReport {
            pinned: paths.iter().map(|path| path_text(path).0).collect(),
            keep_all: self.keep_all,
        }
    }
}

fn is_below(path: &TreePath, pins: &BTreeSet<TreePath>) -> bool {
    // As many look-ups as the path has names, whatever the number of pins.
    let mut at = Some(path.clone());
    while let Some(path) = at {
        if pins.contains(&path) {
            return true;
        }
        at = path.split().map(|(folder, _)| folder);
    }
    false
}

impl Node {
    /// Pins paths, or unpins them.
    ///
    /// # Errors
    /// Where nothing stands at one that is to be pinned, or one that is to be unpinned isn't pinned itself: nothing is
    /// changed then.
    pub(in crate::node) async fn set_pins(
        &self,
        paths: Vec<TreePath>,
        pinned: bool,
    ) -> Result<PinReport, ControlError> {
        for path in &paths {
            if pinned {
                let at = path.clone();
                let shown = self.with_nodes(move |namespace| namespace.get(&at)).await?;
                if shown.is_none() {
                    let nothing = format_args!("nothing is called {path} in the folder");
                    return Err(ControlError::new(nothing));
                }
            } else if !self.pins.paths.read().contains(path) {
                let inside = match self.pins.covers(path) {
                    true => ": it is inside something that is",
                    false => "",
                };
                return Err(ControlError::new(format_args!(
                    "{path} is not pinned itself{inside}"
                )));
            }
        }
        if pinned && self.pins.paths.read().len() + paths.len() > PINS_MAX {
            return Err(ControlError::new(format_args!(
                "more than {PINS_MAX} paths cannot be pinned: pin a folder above them"
            )));
        }
        let store = self.store.clone();
        let to_set = paths.clone();
        run_blocking(move || {
            let mut paths = to_set.iter();
            paths.try_for_each(|path| store.set_pin(&path.to_bytes(), pinned))
        })
        .await
        .map_err(ControlError::new)?;
        {
            let mut all = self.pins.paths.write();
            for path in paths {
                if pinned {
                    all.insert(path);
                } else {
                    all.remove(&path);
                }
            }
            self.pins.counted.send_replace(false);
        }
        self.pins.changed.notify_one();
        Ok(self.pins.report())
    }
}

/// What has been counted.
#[derive(Default)]
struct Counted {
    /// The state it is right for; `None` before the first.
    root: Option<NodeHash>,
    /// The paths it is right for, none inside another.
    pins: BTreeSet<TreePath>,
}

/// What is done with what is pinned.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Pass {
    /// It is looked at: the manifest nodes are here then.
    Look,
    /// It is counted.
    Count,
}

/// Counts what is pinned, and goes on doing so.
pub(in crate::node) async fn follow(node: Arc<Node>) {
    let (mut published, mut arrivals) = (node.namespace.published(), node.namespace.arrivals());
    let mut counted = Counted::default();
    loop {
        let wanted = node.pins.outermost();
        // Looked through before anything is counted: what can't be looked at leaves the count as it was, and what was counted is
        // pinned still.
        let mut outcome = match counted.pins.is_empty() {
            true => Ok(()),
            false => count(&node, &mut counted, &wanted, Pass::Look).await,
        };
        if outcome.is_ok() {
            outcome = count(&node, &mut counted, &wanted, Pass::Count).await;
            if outcome.is_err() {
                // What was counted in part is of no use.
                counted = Counted::default();
                node.pins.counted.send_replace(false);
                let store = node.store.clone();
                if let Err(error) = run_blocking(move || store.forget_pinned()).await {
                    tracing::error!(%error, "the count of what is pinned cannot be kept");
                }
            }
        }
        match &outcome {
            Ok(()) => node.pins.note_counted(&wanted),
            Err(error) => tracing::debug!(%error, "what is pinned could not be counted"),
        }
        tokio::select! {
            () = node.pins.changed.notified() => {}
            () = tokio::time::sleep(LOOK_AGAIN_AFTER), if outcome.is_err() => {}
            head = published.recv() => if let Err(RecvError::Closed) = head { return },
            arrival = arrivals.recv() => if let Err(RecvError::Closed) = arrival { return },
        }
    }
}

/// Brings the count up to the present state, for these paths.
async fn count(
    node: &Arc<Node>,
    counted: &mut Counted,
    wanted: &BTreeSet<TreePath>,
    pass: Pass,
) -> Result<(), ControlError> {
    let Ok(root) = node.namespace.root() else {
        // Nothing is known of the folder yet.
        return match wanted.is_empty() {
            true => Ok(()),
            false => Err(ControlError::new(
                "no state of the cluster has been seen yet",
            )),
        };
    };
    if wanted.is_empty() && counted.pins.is_empty() {
        counted.root = Some(root);
        return Ok(());
    }
    if let Some(from) = counted.root.filter(|from| *from != root) {
        apply_changes(node, from, root, &counted.pins, pass).await?;
    }
    for path in wanted.difference(&counted.pins) {
        if !is_below(path, &counted.pins) {
            count_below(node, root, path, &counted.pins, true, pass).await?;
        }
    }
    for path in counted.pins.difference(wanted) {
        if !is_below(path, wanted) {
            count_below(node, root, path, wanted, false, pass).await?;
        }
    }
    if pass == Pass::Count {
        counted.root = Some(root);
        counted.pins.clone_from(wanted);
    }
    Ok(())
}

/// Counts what one state has and another has not.
async fn apply_changes(
    node: &Arc<Node>,
    from: NodeHash,
    to: NodeHash,
    pins: &BTreeSet<TreePath>,
    pass: Pass,
) -> Result<(), ControlError> {
    let mut after: Option<Key> = None;
    loop {
        let start = after.clone();
        let changes = node
            .with_nodes(move |namespace| namespace.changes_after(from, to, start.as_ref(), PAGE))
            .await?;
        let Some(last) = changes.last() else {
            return Ok(());
        };
        after = Some(last.key.clone());
        let mut files = Vec::new();
        for Change { key, old, new } in changes {
            let Some(path) = key.path().filter(|path| is_below(path, pins)) else {
                continue;
            };
            if let ([new, ..], [old, ..]) =
                (&files_of(new.as_ref())[..], &files_of(old.as_ref())[..])
            {
                node.transfers.replaced(*new, *old);
            }
            // What it gains first: what stays is never uncounted in between.
            let gained = files_of(new.as_ref()).into_iter().map(|file| (file, true));
            let lost = files_of(old.as_ref()).into_iter().map(|file| (file, false));
            files.extend(
                gained
                    .chain(lost)
                    .map(|(file, more)| (file, path.clone(), more)),
            );
        }
        count_files(node, files, pass).await?;
    }
}

/// The contents that a key shows, conflict copies included.
fn files_of(versions: Option<&Versions>) -> Vec<Object> {
    let shown = versions.map(shown).into_iter();
    let all = shown.flat_map(|(first, copies)| std::iter::once(first).chain(copies));
    all.filter_map(|shown| match shown.entry.kind {
        Kind::File(object) => Some(object),
        _ => None,
    })
    .collect()
}

/// Counts (or uncounts) all files of a state at a path, but for those in the folders that are passed over.
async fn count_below(
    node: &Arc<Node>,
    root: NodeHash,
    path: &TreePath,
    pass_over: &BTreeSet<TreePath>,
    more: bool,
    pass: Pass,
) -> Result<(), ControlError> {
    let at = path.clone();
    let shown = node
        .with_nodes(move |namespace| namespace.get_at(root, &at))
        .await?;
    let mut folders = Vec::new();
    match shown.map(|shown| shown.entry.kind) {
        Some(Kind::Directory) => folders.push(path.clone()),
        Some(Kind::File(object)) => {
            count_files(node, vec![(object, path.clone(), more)], pass).await?;
        }
        _ => {}
    }
    while let Some(folder) = folders.pop() {
        let at = folder.clone();
        let children = node
            .with_nodes(move |namespace| namespace.children_at(root, &at))
            .await?;
        let mut files = Vec::new();
        for (name, shown) in children {
            let Ok(path) = folder.join(&name) else {
                continue;
            };
            if pass_over.contains(&path) {
                continue;
            }
            match shown.entry.kind {
                Kind::Directory => folders.push(path),
                Kind::File(object) => files.push((object, path, more)),
                _ => {}
            }
        }
        count_files(node, files, pass).await?;
    }
    Ok(())
}

/// Counts files, each with the path it stands at, or uncounts them, in this order; queues those that are new and not here.
async fn count_files(
    node: &Arc<Node>,
    files: Vec<(Object, TreePath, bool)>,
    pass: Pass,
) -> Result<(), ControlError> {
    if pass == Pass::Look {
        return Ok(());
    }
    let at = node.clone();
    let counted = run_blocking(move || {
        for (object, path, more) in files {
            let is_new = at.store.count_pinned(&object, &path.to_bytes(), more)?;
            if is_new && !is_whole(&at, &object) {
                at.pins.queue.lock().push(object, path.to_string());
                at.pins.to_bring.notify_one();
            }
        }
        Ok::<(), StoreError>(())
    });
    counted.await.map_err(ControlError::new)
}

fn is_whole(node: &Node, object: &Object) -> bool {
    here(node, object).is_ok_and(|here| here.contains(0..object.blocks()))
}

/// Brings what is pinned, and goes on doing so.
pub(in crate::node) async fn bring_pinned(node: Arc<Node>) {
    let room = Room::new();
    let contents = stream::unfold(node.clone(), |node| async move {
        let next = next(&node).await?;
        Some((next, node))
    });
    let bringing = contents.map(|(object, label)| bring_one(&node, object, label, &room));
    let mut bringing = std::pin::pin!(bringing.buffer_unordered(AT_ONCE));
    let mut network = node.net.events();
    let mut again = tokio::time::interval(AGAIN_AFTER);
    again.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        let is_again = tokio::select! {
            brought = bringing.next() => match brought {
                Some(()) => false,
                None => return,
            },
            event = network.recv() => match event {
                Ok(NetEvent::Up(_)) | Err(RecvError::Lagged(_)) => true,
                Ok(_) => false,
                Err(RecvError::Closed) => return,
            },
            _ = again.tick() => true,
        };
        if is_again && node.pins.queue.lock().has_failed() {
            node.pins.queue.lock().try_again();
            node.pins.to_bring.notify_one();
        }
    }
}

async fn bring_one(node: &Node, object: Object, label: String, room: &Room) {
    let outcome = match node.store.is_pinned(&object) {
        // Unpinned meanwhile.
        Ok(false) => Ok(()),
        _ => bring(node, object, &label, room, &|_| ()).await,
    };
    if let Err(error) = outcome {
        tracing::debug!(%label, %error, "something pinned was not given");
        node.pins.queue.lock().failed(object, label);
    }
    node.pins.bringing.fetch_sub(1, Ordering::AcqRel);
}

/// The next content to bring, as soon as there is one.
async fn next(node: &Arc<Node>) -> Option<(Object, String)> {
    loop {
        let search = {
            let mut queue = node.pins.queue.lock();
            if let Some(next) = queue.contents.pop_front() {
                node.pins.bringing.fetch_add(1, Ordering::AcqRel);
                return Some(next);
            }
            queue.search
        };
        match search {
            None => node.pins.to_bring.notified().await,
            Some(after) => {
                let at = node.clone();
                if let Err(error) = run_blocking(move || search_page(&at, after)).await {
                    tracing::error!(%error, "what is pinned could not be read");
                    tokio::time::sleep(LOOK_AGAIN_AFTER).await;
                }
            }
        }
    }
}

/// Queues what is not here among the next contents that are counted.
fn search_page(node: &Node, after: Option<Object>) -> Result<(), StoreError> {
    let page = node.pins.store.pinned_after(after.as_ref(), PAGE)?;
    let last = page.last().map(|(object, _)| *object);
    let missing: Vec<_> = page
        .into_iter()
        .filter(|(object, _)| !is_whole(node, object))
        .map(|(object, path)| (object, String::from_utf8_lossy(&path).into_owned()))
        .collect();
    let mut queue = node.pins.queue.lock();
    queue.contents.extend(missing);
    // Started over meanwhile? Then from the start.
    if queue.search == Some(after) {
        queue.search = last.map(Some);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_below_a_pin_is_covered_and_nothing_beside_it() {
        let path = |text: &str| TreePath::parse(text.as_bytes()).unwrap();
        let pins = BTreeSet::from(["a/b", "c"].map(path));
        for (at, covered) in [
            ("a/b", true),
            ("a/b/x/y", true),
            ("a", false),
            ("a/bc", false),
            ("c", true),
            ("", false),
        ] {
            assert_eq!(is_below(&path(at), &pins), covered, "{at}");
        }
        assert!(is_below(&path("any/thing"), &BTreeSet::from([path("")])));
    }

    #[test]
    fn what_does_not_fit_the_queue_is_searched_for() {
        let mut queue = Queue::default();
        for number in 0..QUEUED_MAX as u64 + 1 {
            let object = Object {
                content: crate::content::ContentId([1; 32]),
                size: number,
            };
            queue.failed(object, String::new());
        }
        assert!(queue.has_failed());
        queue.try_again();
        assert!(!queue.has_failed());
        assert_eq!(
            (queue.contents.len(), queue.search),
            (QUEUED_MAX, Some(None))
        );
    }
}
