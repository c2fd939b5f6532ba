//! Tells the kernel what changed elsewhere, so that it may keep names and attributes for long.
//!
//! An invalidation of a name waits for operations in its folder that are under way, which may wait for the network. So it is
//! sent from threads of their own that hold no lock, never from a callback.

use std::{collections::BTreeSet, ffi::OsStr, ops::Range, os::unix::ffi::OsStrExt, sync::Arc};

use parking_lot::{Condvar, Mutex};
use tokio::sync::broadcast;

use super::core::Core;
use crate::{
    manifest::{FileId, Kind, Name, TreePath},
    node::namespace::RemoteChanges,
};

/// Threads that send notices. Each has its share of the folders, so that one in which a look-up waits for the network holds
/// up only what concerns the same share.
const THREADS: usize = 8;
/// Places of which it is remembered what stands there by changes from elsewhere that nobody here has looked at.
const HEIRS_MAX: usize = 256;
/// Notices that wait for a thread; of more than that it is no longer known which they are, and everything in the thread's
/// folders is named instead.
const WAITING_MAX: usize = 1024;

/// Something for the kernel to forget.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Notice {
    /// A name in a folder.
    Name(u64, Name),
    /// A folder's attributes and listing.
    Folder(u64),
}

/// Pages of a file that nobody needs any more.
#[derive(Debug)]
pub(super) struct LeftPages {
    pub(super) number: u64,
    pub(super) range: Range<u64>,
}

/// As many wait at most; more are not worth a wait, and stay with the kernel.
const LEFT_MAX: usize = 16;

impl Notice {
    fn folder(&self) -> u64 {
        match self {
            Self::Name(folder, _) | Self::Folder(folder) => *folder,
        }
    }
}

/// Notices on their way to the kernel. Never makes anybody wait. The threads end when it is dropped.
pub(crate) struct Notices {
    queues: Vec<Arc<Queue>>,
}

/// What one thread has to send.
#[derive(Default)]
struct Queue {
    waiting: Mutex<Waiting>,
    changed: Condvar,
}

#[derive(Default)]
struct Waiting {
    notices: BTreeSet<Notice>,
    /// More came than can wait: everything that the kernel knows is to be named.
    everything: bool,
    ended: bool,
}

/// What a thread takes from its queue.
#[derive(Debug, PartialEq, Eq)]
enum Taken {
    Some(BTreeSet<Notice>),
    Everything,
}

impl Notices {
    /// Starts the threads, each of which sends what is in its queue.
    pub(crate) fn start(core: &Arc<Core>, notifier: &fuser::Notifier) -> std::io::Result<Self> {
        let notices = Self::new();
        for (share, queue) in notices.queues.iter().enumerate() {
            // A thread that the kernel keeps waiting must not keep all of it.
            let (core, notifier, queue) = (Arc::downgrade(core), notifier.clone(), queue.clone());
            std::thread::Builder::new()
                .name(format!("p2pfs-notify-{share}"))
                .spawn(move || {
                    while let Some(taken) = queue.take() {
                        let due = match taken {
                            Taken::Some(due) => due,
                            Taken::Everything => match core.upgrade() {
                                Some(core) => core.notices_for_all(),
                                None => return,
                            },
                        };
                        for notice in due.iter().filter(|notice| share_of(notice) == share) {
                            send(&notifier, notice);
                        }
                    }
                })?;
        }
        Ok(notices)
    }

    fn new() -> Self {
        let queues = (0..THREADS).map(|_| Arc::default());
        Self {
            queues: queues.collect(),
        }
    }

    /// Has them sent.
    fn add(&self, notices: BTreeSet<Notice>) {
        for notice in notices {
            if let Some(queue) = self.queues.get(share_of(&notice)) {
                queue.add(notice);
            }
        }
    }
}

impl Drop for Notices {
    fn drop(&mut self) {
        for queue in &self.queues {
            queue.waiting.lock().ended = true;
            queue.changed.notify_all();
        }
    }
}

impl Queue {
    fn add(&self, notice: Notice) {
        let mut waiting = self.waiting.lock();
        if !waiting.everything {
            waiting.notices.insert(notice);
            if waiting.notices.len() > WAITING_MAX {
                waiting.notices.clear();
                waiting.everything = true;
            }
        }
        self.changed.notify_all();
    }

    /// Waits for something to send; `None` at the end.
    fn take(&self) -> Option<Taken> {
        let mut waiting = self.waiting.lock();
        loop {
            if waiting.ended {
                return None;
            }
            if std::mem::take(&mut waiting.everything) {
                return Some(Taken::Everything);
            }
            if !waiting.notices.is_empty() {
                return Some(Taken::Some(std::mem::take(&mut waiting.notices)));
            }
            self.changed.wait(&mut waiting);
        }
    }
}

/// Which thread sends a notice: all of a folder go to one.
fn share_of(notice: &Notice) -> usize {
    // Numbers are hashes of paths.
    usize::try_from(notice.folder() % THREADS as u64).unwrap_or(0)
}

fn send(notifier: &fuser::Notifier, notice: &Notice) {
    let sent = match notice {
        Notice::Name(folder, name) => {
            notifier.inval_entry(fuser::INodeNo(*folder), OsStr::from_bytes(name.as_bytes()))
        }
        Notice::Folder(number) => notifier.inval_inode(fuser::INodeNo(*number), 0, 0),
    };
    if let Err(error) = sent {
        // The mount is gone, or the kernel doesn't know what it should forget.
        tracing::debug!(?notice, %error, "the kernel did not take a notice");
    }
}

/// Has the kernel give up the pages that are left behind from now on, by a thread that ends with the core. It has a queue of its
/// own, as pages that are being read make it wait.
pub(super) fn give_up_pages(core: &Core, notifier: fuser::Notifier) -> std::io::Result<()> {
    let (sender, pages) = std::sync::mpsc::sync_channel::<LeftPages>(LEFT_MAX);
    let give_up = move || {
        for LeftPages { number, range } in pages {
            let len = range.end.saturating_sub(range.start);
            let (Ok(start), Ok(len)) = (i64::try_from(range.start), i64::try_from(len)) else {
                continue;
            };
            if let Err(error) = notifier.inval_inode(fuser::INodeNo(number), start, len) {
                // The mount is gone, or the kernel has forgotten the file: the pages went with it.
                tracing::debug!(number, %error, "the kernel did not give up pages");
            }
        }
    };
    std::thread::Builder::new()
        .name("p2pfs-pages".into())
        .spawn(give_up)?;
    // Set once, when it is mounted.
    let _ = core.left.set(sender);
    Ok(())
}

/// Turns changes from elsewhere into notices, for as long as the mount lives.
pub(crate) async fn follow(
    core: Arc<Core>,
    mut changes: broadcast::Receiver<RemoteChanges>,
    notices: Notices,
) {
    loop {
        let paths = tokio::select! {
            change = changes.recv() => match change {
                Ok(RemoteChanges::Paths(paths)) => Some(paths.iter().cloned().collect()),
                Ok(RemoteChanges::All) | Err(broadcast::error::RecvError::Lagged(_)) => None,
                Err(broadcast::error::RecvError::Closed) => return,
            },
            () = core.stir.notified() => Some(std::mem::take(&mut *core.stirred.lock())),
        };
        let with = core.clone();
        let due = tokio::task::spawn_blocking(move || match paths {
            Some(paths) => with.notices_for(&paths),
            None => with.notices_for_all(),
        });
        let Ok(due) = due.await else { return };
        notices.add(due);
    }
}

impl Core {
    /// What the kernel may know that has to do with these paths.
    pub(super) fn notices_for(&self, paths: &BTreeSet<TreePath>) -> BTreeSet<Notice> {
        self.note_change();
        let mut notices = BTreeSet::new();
        for path in paths {
            if let Some(file) = path.record() {
                self.notice_names(&mut notices, &file);
                continue;
            }
            let mut folder = super::inodes::ROOT;
            let mut at = TreePath::root();
            for name in path.names() {
                let Ok(next) = at.join(name) else { break };
                at = next;
                let child = self.inodes.lock().child(folder, name);
                if at == *path {
                    self.tell_replaced(child, path);
                }
                let was_folder = child.is_some_and(|child| self.was_folder(child));
                if at == *path || !was_folder || !self.is_folder(&at) {
                    notices.insert(Notice::Folder(folder));
                    self.notice_name(&mut notices, folder, name, child, &at);
                    // One inode under several names: what was told of it is old under all of them.
                    let links = child.map(|child| self.inodes.lock().links(child));
                    let links = links.filter(|links| links.len() > 1).into_iter().flatten();
                    notices.extend(links.map(|(folder, name)| Notice::Name(folder, name)));
                    // A change of a name may make, resolve or rename the copies beside it.
                    let inodes = self.inodes.lock();
                    let beside = inodes.copies(folder);
                    notices.extend(beside.map(|copy| Notice::Name(folder, copy.clone())));
                    break;
                }
                let Some(child) = child else { break };
                if !self.inodes.lock().is_told(child) {
                    // It has the name for absent, and maybe a listing without it.
                    notices.insert(Notice::Name(folder, name.clone()));
                    notices.insert(Notice::Folder(folder));
                }
                folder = child;
            }
        }
        notices
    }

    /// Tells the engine which content took the place of the one that an inode stands for, before the kernel forgets that, or of the one
    /// that did so before, while nobody looked.
    fn tell_replaced(&self, number: Option<u64>, path: &TreePath) {
        let mut heirs = self.heirs.lock();
        let heir = heirs.remove(path);
        let known = number.and_then(|number| self.content_of(number));
        if let Some(old) = known.or(heir)
            && let Ok(Some(shown)) = self.tree.get(path)
            && let Kind::File(new) = shown.entry.kind
        {
            self.bring.replaced(new, old);
            if heirs.len() >= HEIRS_MAX {
                // Any will do: what is forgotten is fetched whole.
                heirs.pop_first();
            }
            heirs.insert(path.clone(), new);
        }
    }

    /// What changes about a file with several names changes under all that are known.
    fn notice_names(&self, notices: &mut BTreeSet<Notice>, file: &FileId) {
        let inodes = self.inodes.lock();
        let links = inodes.of_file(file).map(|number| inodes.links(number));
        for (folder, name) in links.into_iter().flatten() {
            notices.insert(Notice::Name(folder, name));
        }
    }

    /// Everything that the kernel may know.
    pub(super) fn notices_for_all(&self) -> BTreeSet<Notice> {
        self.note_change();
        let links = self.inodes.lock().all_links();
        let mut notices = BTreeSet::from([Notice::Folder(super::inodes::ROOT)]);
        for (folder, names) in links {
            notices.insert(Notice::Folder(folder));
            let place = self.inodes.lock().path(folder);
            for name in names {
                let path = place.as_ref().and_then(|place| place.join(&name).ok());
                let child = self.inodes.lock().child(folder, &name);
                if let Some(path) = path {
                    self.notice_name(&mut notices, folder, &name, child, &path);
                }
            }
        }
        let absent: Vec<_> = self.absent.lock().all().cloned().collect();
        let inodes = self.inodes.lock();
        for (folder, name) in absent {
            // What the kernel found there since was named above.
            let child = inodes.child(folder, &name);
            if !child.is_some_and(|child| inodes.is_told(child)) {
                notices.insert(Notice::Name(folder, name));
            }
        }
        notices
    }

    /// A folder that is still one keeps its name in the kernel: whoever works in it must not lose the ground.
    fn notice_name(
        &self,
        notices: &mut BTreeSet<Notice>,
        folder: u64,
        name: &Name,
        child: Option<u64>,
        path: &TreePath,
    ) {
        let told = child.filter(|number| self.inodes.lock().is_told(*number));
        match told.filter(|number| self.was_folder(*number)) {
            Some(number) if self.is_folder(path) => {
                notices.insert(Notice::Folder(number));
            }
            _ => {
                notices.insert(Notice::Name(folder, name.clone()));
            }
        }
    }

    /// Whether what an inode stands for was a folder when it was last looked at.
    fn was_folder(&self, number: u64) -> bool {
        let inodes = self.inodes.lock();
        inodes.facts(number).map(|facts| &facts.kind) == Some(&Kind::Directory)
    }

    fn is_folder(&self, path: &TreePath) -> bool {
        matches!(self.tree.get(path), Ok(Some(shown)) if shown.entry.kind == Kind::Directory)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(folder: u64, number: usize) -> Notice {
        let name = Name::new(number.to_string().as_bytes());
        Notice::Name(folder, name.expect("a name"))
    }

    #[test]
    fn a_folder_that_waits_holds_up_only_its_share_and_nothing_is_dropped() {
        let notices = Notices::new();
        let (stuck, other) = (8, 9);
        // Nobody takes from the first queue.
        for number in 0..10 * WAITING_MAX {
            notices.add([name(stuck, number)].into());
        }
        notices.add([name(other, 1), Notice::Folder(other)].into());
        let of = |folder: u64| &notices.queues[share_of(&Notice::Folder(folder))];
        let expected = [name(other, 1), Notice::Folder(other)].into();
        assert_eq!(of(other).take(), Some(Taken::Some(expected)));
        assert_eq!(of(stuck).take(), Some(Taken::Everything));
        notices.add([name(stuck, 1), name(stuck, 1)].into());
        let expected = [name(stuck, 1)].into();
        assert_eq!(of(stuck).take(), Some(Taken::Some(expected)));
        let queue = of(stuck).clone();
        drop(notices);
        assert_eq!(queue.take(), None);
    }
}
