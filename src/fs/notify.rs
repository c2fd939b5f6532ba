//! Tells the kernel what changed elsewhere, so that it may keep names and attributes for long.
//!
//! An invalidation of a name waits for operations in its folder that are under way. So it is sent from a thread of its own
//! that holds no lock, never from a callback.

use std::{collections::BTreeSet, ffi::OsStr, os::unix::ffi::OsStrExt, sync::Arc};

use tokio::sync::{broadcast, mpsc};

use super::core::Core;
use crate::{
    manifest::{Kind, Name, TreePath},
    node::namespace::RemoteChanges,
};

/// Notices on their way to the kernel; when so many wait, whoever has more waits too.
const QUEUE_MAX: usize = 1024;

/// Something for the kernel to forget.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Notice {
    /// A name in a folder.
    Name(u64, Name),
    /// A folder's attributes and listing.
    Folder(u64),
}

/// Starts the thread that sends notices; it ends when the sender is dropped.
pub(crate) fn start(notifier: fuser::Notifier) -> std::io::Result<mpsc::Sender<Notice>> {
    let (sender, mut receiver) = mpsc::channel(QUEUE_MAX);
    std::thread::Builder::new()
        .name("p2pfs-notify".into())
        .spawn(move || {
            while let Some(notice) = receiver.blocking_recv() {
                let sent = match &notice {
                    Notice::Name(folder, name) => notifier
                        .inval_entry(fuser::INodeNo(*folder), OsStr::from_bytes(name.as_bytes())),
                    Notice::Folder(number) => notifier.inval_inode(fuser::INodeNo(*number), 0, 0),
                };
                if let Err(error) = sent {
                    // The mount is gone, or the kernel doesn't know what it should forget.
                    tracing::debug!(?notice, %error, "the kernel did not take a notice");
                }
            }
        })?;
    Ok(sender)
}

/// Turns changes from elsewhere into notices, for as long as the mount lives.
pub(crate) async fn follow(
    core: Arc<Core>,
    mut changes: broadcast::Receiver<RemoteChanges>,
    notices: mpsc::Sender<Notice>,
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
        for notice in due {
            if notices.send(notice).await.is_err() {
                return;
            }
        }
    }
}

impl Core {
    /// What the kernel may know that has to do with these paths.
    pub(super) fn notices_for(&self, paths: &BTreeSet<TreePath>) -> BTreeSet<Notice> {
        self.note_change();
        let mut notices = BTreeSet::new();
        // A change of a name may make, resolve or rename the copies beside it.
        let copies = self.inodes.lock().copies();
        for path in paths {
            let mut folder = super::inodes::ROOT;
            let mut at = TreePath::root();
            for name in path.names() {
                let Ok(next) = at.join(name) else { break };
                at = next;
                let child = self.inodes.lock().child(folder, name);
                if at == *path || child.is_none() || !self.is_folder(&at) {
                    notices.insert(Notice::Folder(folder));
                    self.notice_name(&mut notices, folder, name, child, &at);
                    let beside = copies.get(&folder).into_iter().flatten();
                    notices.extend(beside.map(|copy| Notice::Name(folder, copy.clone())));
                    break;
                }
                let Some(child) = child else { break };
                folder = child;
            }
        }
        notices
    }

    /// Everything that the kernel may know.
    fn notices_for_all(&self) -> BTreeSet<Notice> {
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
        let was_folder = child.filter(|number| {
            let inodes = self.inodes.lock();
            inodes.facts(*number).map(|facts| &facts.kind) == Some(&Kind::Directory)
        });
        match was_folder {
            Some(number) if self.is_folder(path) => {
                notices.insert(Notice::Folder(number));
            }
            _ => {
                notices.insert(Notice::Name(folder, name.clone()));
            }
        }
    }

    fn is_folder(&self, path: &TreePath) -> bool {
        matches!(self.tree.get(path), Ok(Some(shown)) if shown.entry.kind == Kind::Directory)
    }
}
