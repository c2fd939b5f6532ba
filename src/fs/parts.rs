//! What the filesystem needs from the rest of the node, and nothing more: small enough that tests stand in for it.

use std::{collections::BTreeSet, ops::Range, time::Duration};

use futures::future::BoxFuture;
use parking_lot::RwLockReadGuard;

use super::core::Fail;
use crate::{
    content::{BlockSet, Leaves, Object},
    manifest::{Dot, FileId, HybridTime, Name, NodeHash, Shown, TreePath},
    node::namespace::{Edit, Namespace, NamespaceError},
    transfer::{Prefetch, TransferError, Transfers},
};

/// The folder's state: names and entries. See [`Namespace`] for what the functions mean.
pub(crate) trait Tree: Send + Sync + 'static {
    fn has_head(&self) -> bool;
    fn wait_head(&self, within: Duration) -> BoxFuture<'_, bool>;
    fn get(&self, path: &TreePath) -> Result<Option<Shown>, NamespaceError>;
    fn children(&self, folder: &TreePath) -> Result<Vec<(Name, Shown)>, NamespaceError>;
    fn below(&self, folder: &TreePath) -> Result<Vec<(TreePath, Shown)>, NamespaceError>;
    fn names_of(&self, file: FileId) -> Result<BTreeSet<TreePath>, NamespaceError>;
    fn count_names(&self, file: FileId) -> Result<u64, NamespaceError>;
    fn folder_newest(&self, folder: &TreePath) -> Result<HybridTime, NamespaceError>;
    fn fetch(
        &self,
        missing: Vec<NodeHash>,
        within: Duration,
    ) -> BoxFuture<'_, Result<(), NamespaceError>>;
    fn change(&self, edits: Vec<Edit>) -> Result<(), NamespaceError>;
    /// The same, where they rename one path to another.
    fn rename(&self, edits: Vec<Edit>, from: TreePath, to: TreePath) -> Result<(), NamespaceError>;
    /// Gathers many changes and works them out; what it returns makes them in a moment.
    fn prepare(
        &self,
        gather: Box<dyn FnOnce() -> Result<Vec<Edit>, Fail> + '_>,
        rename: Option<(TreePath, TreePath)>,
    ) -> Result<Box<dyn FnOnce() + '_>, Fail>;
    fn flush(&self) -> BoxFuture<'_, Result<(), NamespaceError>>;
    fn settled(&self) -> BoxFuture<'_, Result<(), NamespaceError>>;
    fn keep(&self) -> BoxFuture<'_, Result<(), NamespaceError>>;
    fn committed_by(&self) -> Option<Dot>;
    fn was_committed(&self, by: Dot) -> bool;
    fn is_committed(&self, by: Dot) -> bool;
    /// No head is begun until this is dropped.
    fn hold(&self) -> RwLockReadGuard<'_, ()>;
    /// Number of regular files, as far as known.
    fn files(&self) -> u64;
}

impl Tree for Namespace {
    fn has_head(&self) -> bool {
        Namespace::has_head(self)
    }
    fn wait_head(&self, within: Duration) -> BoxFuture<'_, bool> {
        Box::pin(Namespace::wait_head(self, within))
    }
    fn get(&self, path: &TreePath) -> Result<Option<Shown>, NamespaceError> {
        Namespace::get(self, path)
    }
    fn children(&self, folder: &TreePath) -> Result<Vec<(Name, Shown)>, NamespaceError> {
        Namespace::children(self, folder)
    }
    fn below(&self, folder: &TreePath) -> Result<Vec<(TreePath, Shown)>, NamespaceError> {
        Namespace::below(self, folder)
    }
    fn names_of(&self, file: FileId) -> Result<BTreeSet<TreePath>, NamespaceError> {
        Namespace::names_of(self, file)
    }
    fn count_names(&self, file: FileId) -> Result<u64, NamespaceError> {
        Namespace::count_names(self, file)
    }
    fn folder_newest(&self, folder: &TreePath) -> Result<HybridTime, NamespaceError> {
        Namespace::folder_newest(self, folder)
    }
    fn fetch(
        &self,
        missing: Vec<NodeHash>,
        within: Duration,
    ) -> BoxFuture<'_, Result<(), NamespaceError>> {
        Box::pin(Namespace::fetch(self, missing, within))
    }
    fn rename(&self, edits: Vec<Edit>, from: TreePath, to: TreePath) -> Result<(), NamespaceError> {
        self.rename(edits, from, to)
    }
    fn change(&self, edits: Vec<Edit>) -> Result<(), NamespaceError> {
        Namespace::change(self, edits)
    }
    fn prepare(
        &self,
        gather: Box<dyn FnOnce() -> Result<Vec<Edit>, Fail> + '_>,
        rename: Option<(TreePath, TreePath)>,
    ) -> Result<Box<dyn FnOnce() + '_>, Fail> {
        Namespace::prepare(self, gather, rename)
    }
    fn flush(&self) -> BoxFuture<'_, Result<(), NamespaceError>> {
        Box::pin(Namespace::flush(self))
    }
    fn settled(&self) -> BoxFuture<'_, Result<(), NamespaceError>> {
        Box::pin(Namespace::settled(self))
    }
    fn keep(&self) -> BoxFuture<'_, Result<(), NamespaceError>> {
        Box::pin(Namespace::keep(self))
    }
    fn committed_by(&self) -> Option<Dot> {
        Namespace::committed_by(self)
    }
    fn was_committed(&self, by: Dot) -> bool {
        Namespace::was_committed(self, by)
    }
    fn is_committed(&self, by: Dot) -> bool {
        Namespace::is_committed(self, by)
    }
    fn hold(&self) -> RwLockReadGuard<'_, ()> {
        Namespace::hold(self)
    }
    fn files(&self) -> u64 {
        self.status().summary.map_or(0, |summary| summary.files)
    }
}

/// Brings bytes of contents into the store. See [`Transfers`].
pub(crate) trait Bring: Send + Sync + 'static {
    /// Returns once the store gives these bytes to who reads them.
    fn ensure<'a>(
        &'a self,
        object: Object,
        bytes: Range<u64>,
        label: &'a str,
    ) -> BoxFuture<'a, Result<(), TransferError>>;
    /// Returns once the store keeps them.
    fn ensure_kept<'a>(
        &'a self,
        object: Object,
        bytes: Range<u64>,
        label: &'a str,
    ) -> BoxFuture<'a, Result<(), TransferError>>;
    fn prefetch(&self, object: Object, bytes: Range<u64>, label: &str) -> Option<Prefetch>;
    /// One content took the place of another.
    fn replaced(&self, new: Object, old: Object);
    /// The hashes of blocks, here or not; `None` where not all could be had.
    fn leaves<'a>(&'a self, object: Object, blocks: &'a BlockSet) -> BoxFuture<'a, Option<Leaves>>;
    /// Has another member make a content, and promise to keep it, of which only what differs from an older one is here.
    fn entrust(&self, new: Object, old: Object) -> BoxFuture<'_, bool>;
    /// Small contents that are worth having soon.
    fn ahead(&self, objects: Vec<Object>);
}

impl Bring for Transfers {
    fn ensure<'a>(
        &'a self,
        object: Object,
        bytes: Range<u64>,
        label: &'a str,
    ) -> BoxFuture<'a, Result<(), TransferError>> {
        Box::pin(self.ensure_readable(object, bytes, label))
    }
    fn ensure_kept<'a>(
        &'a self,
        object: Object,
        bytes: Range<u64>,
        label: &'a str,
    ) -> BoxFuture<'a, Result<(), TransferError>> {
        Box::pin(Transfers::ensure(self, object, bytes, label))
    }
    fn prefetch(&self, object: Object, bytes: Range<u64>, label: &str) -> Option<Prefetch> {
        Transfers::prefetch(self, object, bytes, label)
    }
    fn replaced(&self, new: Object, old: Object) {
        Transfers::replaced(self, new, old);
    }
    fn leaves<'a>(&'a self, object: Object, blocks: &'a BlockSet) -> BoxFuture<'a, Option<Leaves>> {
        Box::pin(Transfers::leaves(self, object, blocks))
    }
    fn entrust(&self, new: Object, old: Object) -> BoxFuture<'_, bool> {
        Box::pin(Transfers::entrust(self, new, old))
    }
    fn ahead(&self, objects: Vec<Object>) {
        Transfers::ahead(self, objects);
    }
}
