//! A disk in memory that loses, at a crash, what was not flushed.

use std::{collections::BTreeMap, ops::Range, sync::Arc};

use bytes::Bytes;
use parking_lot::Mutex;

use crate::{
    manifest::NodeHash,
    node::namespace::disk::{Disk, Pairs},
    store::StoreError,
};

#[derive(Clone)]
enum Put {
    Setting(String, Option<Vec<u8>>),
    Head(Vec<u8>, Option<Vec<u8>>),
    Nodes(Vec<(NodeHash, Bytes)>),
    Gone(Vec<NodeHash>),
    Root(u64, Vec<u8>, u64),
    RootsGone(Vec<u64>),
}

#[derive(Clone, Default)]
struct Content {
    settings: BTreeMap<String, Vec<u8>>,
    heads: BTreeMap<Vec<u8>, Vec<u8>>,
    nodes: BTreeMap<NodeHash, Bytes>,
    roots: BTreeMap<u64, Vec<u8>>,
}

impl Content {
    fn take(&mut self, put: Put) {
        match put {
            Put::Setting(name, Some(value)) => {
                self.settings.insert(name, value);
            }
            Put::Setting(name, None) => {
                self.settings.remove(&name);
            }
            Put::Head(key, Some(record)) => {
                self.heads.insert(key, record);
            }
            Put::Head(key, None) => {
                self.heads.remove(&key);
            }
            Put::Nodes(nodes) => self.nodes.extend(nodes),
            Put::Gone(nodes) => nodes.iter().for_each(|hash| {
                self.nodes.remove(hash);
            }),
            Put::RootsGone(minutes) => minutes.iter().for_each(|minute| {
                self.roots.remove(minute);
            }),
            Put::Root(minute, record, oldest) => {
                self.roots.insert(minute, record);
                self.roots = self.roots.split_off(&oldest);
            }
        }
    }
}

#[derive(Default)]
struct Inner {
    now: Content,
    /// As of the last flush.
    flushed: Content,
    /// What was put since, in order.
    since: Vec<Put>,
    /// Nothing reaches it from now on.
    is_cut_off: bool,
    /// Which of the next puts and flushes fail; what only takes something away does not.
    failing: Range<usize>,
    has_failed: bool,
}

impl Inner {
    fn may_fail(&mut self) -> Result<(), StoreError> {
        let fails = self.failing.contains(&0);
        self.failing = self.failing.start.saturating_sub(1)..self.failing.end.saturating_sub(1);
        self.has_failed |= fails;
        match fails {
            true => Err(StoreError::Full),
            false => Ok(()),
        }
    }
}

/// See the module. Clones are the same disk.
#[derive(Clone, Default)]
pub(super) struct MemoryDisk(Arc<Mutex<Inner>>);

impl MemoryDisk {
    fn put(&self, put: Put) -> Result<(), StoreError> {
        let mut inner = self.0.lock();
        if !matches!(
            put,
            Put::Setting(_, None) | Put::Head(_, None) | Put::Gone(_)
        ) {
            inner.may_fail()?;
        }
        inner.now.take(put.clone());
        inner.since.push(put);
        Ok(())
    }

    /// Has some of the next puts and flushes fail, by their numbers; none after that. [`MemoryDisk::crash`] ends it.
    pub(super) fn fail(&self, which: Range<usize>) {
        self.0.lock().failing = which;
    }

    /// Whether any did, since it was last asked.
    pub(super) fn has_failed(&self) -> bool {
        std::mem::take(&mut self.0.lock().has_failed)
    }

    /// From now on a flush does nothing, until [`MemoryDisk::crash`].
    pub(super) fn cut_off(&self) {
        self.0.lock().is_cut_off = true;
    }

    /// How much was put since the last flush.
    pub(super) fn unflushed(&self) -> usize {
        self.0.lock().since.len()
    }

    /// The process is killed: of what was not flushed, the first `kept` puts are there.
    pub(super) fn crash(&self, kept: usize) {
        let inner = &mut *self.0.lock();
        for put in inner.since.drain(..).take(kept) {
            inner.flushed.take(put);
        }
        inner.now = inner.flushed.clone();
        inner.is_cut_off = false;
        inner.failing = 0..0;
    }

    /// Another disk with what is on this one for certain.
    pub(super) fn copy(&self) -> Self {
        let content = self.0.lock().flushed.clone();
        Self(Arc::new(Mutex::new(Inner {
            now: content.clone(),
            flushed: content,
            ..Inner::default()
        })))
    }
}

impl Disk for MemoryDisk {
    fn setting(&self, name: &str) -> Result<Option<Vec<u8>>, StoreError> {
        Ok(self.0.lock().now.settings.get(name).cloned())
    }
    fn set_setting(&self, name: &str, value: Option<&[u8]>) -> Result<(), StoreError> {
        self.put(Put::Setting(name.to_owned(), value.map(<[u8]>::to_vec)))
    }
    fn heads(&self) -> Result<Pairs, StoreError> {
        Ok(self.0.lock().now.heads.clone().into_iter().collect())
    }
    fn put_head(&self, key: &[u8], record: &[u8]) -> Result<(), StoreError> {
        self.put(Put::Head(key.to_vec(), Some(record.to_vec())))
    }
    fn remove_head(&self, key: &[u8]) -> Result<(), StoreError> {
        self.put(Put::Head(key.to_vec(), None))
    }
    fn node(&self, hash: &NodeHash) -> Result<Option<Bytes>, StoreError> {
        Ok(self.0.lock().now.nodes.get(hash).cloned())
    }
    fn put_nodes(&self, nodes: &[(NodeHash, Vec<u8>)]) -> Result<(), StoreError> {
        let nodes = nodes.iter();
        let nodes = nodes.map(|(hash, bytes)| (*hash, Bytes::copy_from_slice(bytes)));
        self.put(Put::Nodes(nodes.collect()))
    }
    fn node_names(
        &self,
        after: Option<NodeHash>,
        limit: usize,
    ) -> Result<Vec<NodeHash>, StoreError> {
        let inner = self.0.lock();
        let names = inner.now.nodes.keys().copied();
        let names = names.filter(|name| after.is_none_or(|after| *name > after));
        Ok(names.take(limit).collect())
    }
    fn remove_nodes(&self, nodes: &[NodeHash]) -> Result<(), StoreError> {
        self.put(Put::Gone(nodes.to_vec()))
    }
    fn remove_roots(&self, minutes: &[u64]) -> Result<(), StoreError> {
        self.put(Put::RootsGone(minutes.to_vec()))
    }
    fn put_root(&self, minute: u64, record: &[u8], oldest: u64) -> Result<(), StoreError> {
        self.put(Put::Root(minute, record.to_vec(), oldest))
    }
    fn roots(&self) -> Result<Vec<(u64, Vec<u8>)>, StoreError> {
        Ok(self.0.lock().now.roots.clone().into_iter().collect())
    }
    fn settle(&self) -> Result<(), StoreError> {
        Ok(())
    }
    fn flush(&self) -> Result<(), StoreError> {
        let inner = &mut *self.0.lock();
        inner.may_fail()?;
        if !inner.is_cut_off {
            for put in inner.since.drain(..) {
                inner.flushed.take(put);
            }
        }
        Ok(())
    }
}
