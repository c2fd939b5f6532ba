//! The mounted folder.
//!
//! * `core.rs` and `ops/` are the filesystem itself: operations on inode numbers and names, free of kernel types, tested
//!   without a mount. An operation is a plain function over what is on this machine. Where something is missing it changes
//!   nothing and returns a `Need`; `drive.rs` waits for that (with a deadline, and an eye on signals) and calls it again.
//! * `inodes.rs`, `overlay.rs`, `hashed.rs`, `modes.rs`, `behind.rs` and `aftermath.rs` are pure: the table of inode numbers,
//!   which bytes of a file that is being written come from where, which of its blocks are hashed, how open files reach their
//!   bytes, which of the kernel's pages have served their purpose, and what a crash has left where.
//! * `ahead.rs` notices who reads the files of a folder one after the other, and has them fetched ahead.
//! * `live.rs` holds files that are being written, `publish.rs` hands them to the cluster, `recovery.rs` does so after a crash;
//!   `fates.rs` notes for that what becomes of their names.
//! * `fuse.rs` only translates between the kernel and the core; `notify.rs` tells the kernel what changed elsewhere;
//!   `mount.rs` mounts and unmounts.
//!
//! Never here: waiting for the network in a callback thread; overwriting published bytes; an empty listing for a folder
//! whose state is not known.

mod absent;
mod aftermath;
mod ahead;
mod apart;
mod attributes;
mod behind;
mod convert;
mod core;
mod drive;
mod errno;
mod fates;
mod fuse;
pub mod guard;
mod hashed;
mod inodes;
mod interrupt;
mod live;
mod modes;
mod mount;
mod notify;
mod ops;
mod overlay;
mod parts;
mod publish;
mod recovery;
#[cfg(test)]
mod tests;

use std::{path::PathBuf, sync::Arc, time::Duration};

use crate::{content::Object, manifest::TreePath};

pub use core::InUse;
pub use mount::{MountError, Mounted, Status, clear_stale, mount};

/// Whose files are shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OwnerMode {
    /// Everything belongs to the user who mounted.
    Mounter,
    /// Owner and group as they are stored.
    Stored,
}

/// How to mount.
#[derive(Clone)]
pub struct Config {
    /// Where; made if it is missing.
    pub mountpoint: PathBuf,
    /// Saved name of the cluster, shown in the table of mounts.
    pub name: String,
    /// Refuse every change with EROFS.
    pub read_only: bool,
    /// Other users may look in, too.
    pub allow_other: bool,
    /// Have the kernel read what is here by itself, where this process may. Small writes are not cached then.
    pub passthrough: bool,
    /// The program that is its guard as `p2pfs guard` ([`guard`]); `None` for no guard.
    pub guard: Option<PathBuf>,
    /// Whose files are shown.
    pub owner: OwnerMode,
    /// How long an operation waits for the network without progress.
    pub wait: Duration,
    /// The state folder, whose disk `statfs` describes; shown as an attribute of the root.
    pub state_dir: PathBuf,
    /// How many peers are known to hold all of an object.
    pub holders: Arc<dyn Fn(Object) -> u64 + Send + Sync>,
    /// Whether what stands at a path is pinned.
    pub pinned: Arc<dyn Fn(&TreePath) -> bool + Send + Sync>,
}
