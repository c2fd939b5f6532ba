//! The filesystem over a real store and namespace, without a kernel; and a few times with one.

mod apart;
mod cases;
mod copies;
mod crashes;
mod model;
mod mounted;
mod moves;

use std::{
    cell::RefCell,
    collections::HashMap,
    ops::Range,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use futures::future::BoxFuture;
use parking_lot::Mutex;
use tempfile::TempDir;
use tokio::runtime::Runtime;

use super::{
    OwnerMode,
    core::{Attr, Caller, Core, Fail, Options},
    drive::drive,
    inodes::ROOT,
    ops::Mode,
    parts::Bring,
    publish,
};
use crate::{
    cluster::ClusterId,
    content::{self, BLOCK_BYTES, BlockSet, Leaves, Object},
    manifest::{NodeHash, TreePath},
    node::namespace::{Edit, Fetched, Namespace, NodeFetcher},
    store::Store,
    transfer::{Prefetch, TransferError},
};

/// Nobody else is there to ask.
struct Alone;

impl NodeFetcher for Alone {
    fn fetch(
        &self,
        _nodes: Vec<NodeHash>,
        _prefer: Option<libp2p::PeerId>,
        _within: Duration,
    ) -> BoxFuture<'static, Fetched> {
        Box::pin(async { Fetched::default() })
    }

    fn offence(&self, _peer: libp2p::PeerId, _reason: &str) {}
}

/// A peer that has some contents.
#[derive(Clone)]
pub(super) struct Elsewhere {
    store: Store,
    contents: Arc<Mutex<HashMap<Object, Vec<u8>>>>,
    /// Bytes that were asked for.
    brought: Arc<Mutex<u64>>,
    /// Whether it makes and keeps what it is asked to.
    keeps: Arc<AtomicBool>,
}

impl Elsewhere {
    fn bring(&self, object: Object, bytes: Range<u64>) -> Result<(), TransferError> {
        let failed = |error: &dyn std::fmt::Display| TransferError::Store(error.to_string());
        let contents = self.contents.lock();
        let mut scratch = vec![0; object.size as usize];
        if self
            .store
            .read(
                &object,
                bytes.start,
                &mut scratch[..(bytes.end - bytes.start) as usize],
            )
            .is_ok()
        {
            return Ok(());
        }
        let Some(data) = contents.get(&object) else {
            return Err(TransferError::Stalled {
                waited: Duration::from_secs(1),
                asked: "nobody is there".into(),
            });
        };
        let mut tree = Vec::new();
        content::hash_into(data, object.size, &mut tree).map_err(|error| failed(&error))?;
        let blocks = object.blocks_of(bytes);
        *self.brought.lock() += (blocks.end - blocks.start) * BLOCK_BYTES;
        let length = content::encoded_bytes(object, blocks.clone()) as usize;
        let mut encoded = vec![0; length];
        content::encode_range(data, &tree, object, blocks.clone(), &mut encoded)
            .map_err(|error| failed(&error))?;
        let range =
            content::verify_range(object, blocks, &encoded).map_err(|error| failed(&error))?;
        self.store.insert(&range).map_err(|error| failed(&error))
    }
}

impl Elsewhere {
    /// Makes a content of an older one and of what is here of it.
    fn make(&self, new: Object, old: Object) -> bool {
        let mut contents = self.contents.lock();
        let mut data = contents.get(&old).cloned().unwrap_or_default();
        data.resize(new.size as usize, 0);
        for block in 0..new.blocks() {
            let bytes = new.bytes_of(block..block + 1);
            let place = &mut data[bytes.start as usize..bytes.end as usize];
            let mut there = vec![0; place.len()];
            if self.store.read(&new, bytes.start, &mut there).is_ok() {
                place.copy_from_slice(&there);
            }
        }
        let is_it = content::hash_bytes(&data) == new.content;
        if is_it {
            contents.insert(new, data);
        }
        is_it
    }
}

impl Bring for Elsewhere {
    fn ensure<'a>(
        &'a self,
        object: Object,
        bytes: Range<u64>,
        _label: &'a str,
    ) -> BoxFuture<'a, Result<(), TransferError>> {
        Box::pin(async move { self.bring(object, bytes) })
    }
    fn ensure_kept<'a>(
        &'a self,
        object: Object,
        bytes: Range<u64>,
        label: &'a str,
    ) -> BoxFuture<'a, Result<(), TransferError>> {
        self.ensure(object, bytes, label)
    }
    fn prefetch(&self, _object: Object, _bytes: Range<u64>, _label: &str) -> Option<Prefetch> {
        None
    }
    fn replaced(&self, _new: Object, _old: Object) {}
    fn leaves<'a>(&'a self, object: Object, blocks: &'a BlockSet) -> BoxFuture<'a, Option<Leaves>> {
        let contents = self.contents.lock();
        let leaves = contents.get(&object).map(|data| {
            let mut leaves = Leaves::default();
            for block in blocks.ranges().iter().cloned().flatten() {
                let bytes = object.bytes_of(block..block + 1);
                let bytes = &data[bytes.start as usize..bytes.end as usize];
                leaves.put(block, content::leaf_hash(block, bytes));
            }
            leaves
        });
        Box::pin(async { leaves })
    }
    fn entrust(&self, new: Object, old: Object) -> BoxFuture<'_, bool> {
        Box::pin(async move {
            let keeps = self.keeps.load(Ordering::Relaxed);
            keeps && self.make(new, old)
        })
    }
    fn ahead(&self, _objects: Vec<Object>) {}
}

thread_local! {
    /// Where this thread works: paths are below it.
    pub(super) static UNDER: RefCell<&'static str> = const { RefCell::new("") };
}

/// A filesystem on its own, with its state in a temporary folder.
pub(super) struct Fixture {
    pub(super) runtime: Runtime,
    pub(super) core: Arc<Core>,
    pub(super) namespace: Namespace,
    pub(super) store: Store,
    pub(super) elsewhere: Elsewhere,
    pub(super) dir: Arc<TempDir>,
}

impl Fixture {
    pub(super) fn new() -> Self {
        let fixture = Self::open(Arc::new(folder()));
        fixture.namespace.create().expect("a first head");
        fixture
    }

    /// A filesystem whose folder nobody has seen a state of.
    pub(super) fn open(dir: Arc<TempDir>) -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build()
            .expect("a runtime");
        let store = Store::open(&dir.path().join("state")).expect("a store");
        let namespace = {
            let _inside = runtime.enter();
            let keys = ClusterId::generate([7; 32]).keys();
            let identity = libp2p::identity::Keypair::ed25519_from_bytes([9; 32]).expect("a key");
            Namespace::open(
                store.clone(),
                keys,
                identity,
                "here".into(),
                Arc::new(Alone),
            )
            .expect("a namespace")
        };
        let elsewhere = Elsewhere {
            store: store.clone(),
            contents: Arc::default(),
            brought: Arc::default(),
            keeps: Arc::default(),
        };
        let options = Options {
            read_only: false,
            owner: OwnerMode::Stored,
            uid: 0,
            gid: 0,
            wait: Duration::from_millis(200),
            state_dir: dir.path().to_owned(),
            pinned: Arc::new(|_| false),
        };
        let core = Arc::new(Core::new(
            Arc::new(namespace.clone()),
            store.clone(),
            Arc::new(elsewhere.clone()),
            Arc::new(|_| 0),
            options,
        ));
        runtime.spawn(publish::publisher(core.clone()));
        runtime.spawn(publish::settler(core.clone()));
        runtime.spawn(publish::hasher(core.clone()));
        Self {
            runtime,
            core,
            namespace,
            store,
            elsewhere,
            dir,
        }
    }

    /// Does an operation, waiting for what it needs, as the kernel shell does.
    pub(super) fn act<T: Send + 'static>(
        &self,
        mut operation: impl FnMut(&Arc<Core>) -> Result<T, Fail> + Send + 'static,
    ) -> Result<T, i32> {
        match operation(&self.core) {
            Ok(done) => Ok(done),
            Err(Fail::Error(error)) => Err(error.errno()),
            Err(Fail::Need(need)) => self
                .runtime
                .block_on(drive(&self.core, 0, need, operation))
                .map_err(|error| error.errno()),
        }
    }

    /// Looks a path up; every step counts as known to the kernel until [`Fixture::forget`].
    pub(super) fn walk(&self, path: &str) -> Result<u64, i32> {
        let mut at = ROOT;
        let path = format!("{}/{path}", UNDER.with_borrow(|under| *under));
        for name in path.split('/').filter(|name| !name.is_empty()) {
            let (folder, name) = (at, name.as_bytes().to_vec());
            at = self.act(move |core| core.lookup(folder, &name))?.number;
        }
        Ok(at)
    }

    /// The folder of a path, and the name in it.
    pub(super) fn place(&self, path: &str) -> Result<(u64, Vec<u8>), i32> {
        let (folder, name) = path.rsplit_once('/').unwrap_or(("", path));
        Ok((self.walk(folder)?, name.as_bytes().to_vec()))
    }

    pub(super) fn attr(&self, path: &str) -> Result<Attr, i32> {
        let number = self.walk(path)?;
        self.act(move |core| core.getattr(number))
    }

    pub(super) fn create(&self, path: &str) -> Result<u64, i32> {
        let (folder, name) = self.place(path)?;
        let mode = Mode::of(libc::O_RDWR | libc::O_EXCL);
        self.act(move |core| core.create(CALLER, folder, &name, 0o644, mode))
            .map(|(_, handle)| handle)
    }

    pub(super) fn open_file(&self, path: &str, flags: i32) -> Result<u64, i32> {
        let number = self.walk(path)?;
        self.act(move |core| core.open(number, Mode::of(flags)))
    }

    pub(super) fn write_at(&self, handle: u64, offset: u64, data: &[u8]) -> Result<(), i32> {
        let data = data.to_vec();
        self.act(move |core| core.write(handle, offset, &data, false, false))
    }

    pub(super) fn read_at(&self, handle: u64, offset: u64, len: usize) -> Result<Vec<u8>, i32> {
        self.act(move |core| {
            let mut buf = vec![0xaa; len];
            let read = core.read(handle, offset, &mut buf, true)?;
            buf.truncate(read);
            Ok(buf)
        })
    }

    /// Writes a whole new file and closes it.
    pub(super) fn put(&self, path: &str, data: &[u8]) -> Result<(), i32> {
        let handle = self.create(path)?;
        let written = self.write_at(handle, 0, data);
        self.core.release(handle);
        written
    }

    pub(super) fn content(&self, path: &str) -> Result<Vec<u8>, i32> {
        let handle = self.open_file(path, libc::O_RDONLY)?;
        let size = self.attr(path)?.size;
        let read = self.read_at(handle, 0, size as usize + 10);
        self.core.release(handle);
        read
    }

    /// Names in a folder.
    pub(super) fn names(&self, path: &str) -> Result<Vec<String>, i32> {
        let number = self.walk(path)?;
        let prepared = self.act(move |core| core.prepare_listing(number, 0, true));
        let mut names = Vec::new();
        let mut add = |line: super::ops::Listed<'_>| {
            names.push(String::from_utf8_lossy(line.name).into_owned());
            false
        };
        let core = self.core.clone();
        let listed = prepared.and_then(|taken| match core.list(&taken, 0, false, &mut add) {
            Ok(()) => Ok(()),
            Err(_) => Err(libc::EIO),
        });
        listed?;
        names.retain(|name| name != "." && name != "..");
        names.sort();
        Ok(names)
    }

    /// Waits until everything is published and its staging is gone.
    pub(super) fn settle(&self) {
        self.runtime.block_on(self.core.publish_all());
        wait_until("nothing is live", || self.core.lives.lock().is_empty());
    }

    /// What another member would do: the entry changes without this filesystem's doing.
    pub(super) fn change_behind(&self, path: &str, data: &[u8]) {
        let object = Object {
            content: content::hash_bytes(data),
            size: data.len() as u64,
        };
        self.elsewhere.contents.lock().insert(object, data.to_vec());
        let path = format!("{}/{path}", UNDER.with_borrow(|under| *under));
        let path = TreePath::parse(path.as_bytes()).expect("a path");
        let shown = self.namespace.get(&path).expect("known");
        let seen = shown
            .as_ref()
            .map_or(Vec::new(), |shown| shown.seen.clone());
        let entry = super::live::plain_entry(
            crate::manifest::Kind::File(object),
            0o644,
            0,
            0,
            super::core::now(),
        );
        self.namespace
            .change(vec![Edit {
                path,
                entry: Some(entry),
                seen,
                held: false,
                written: None,
                moved: None,
            }])
            .expect("changed");
    }
}

impl Drop for Fixture {
    fn drop(&mut self) {
        // The runtime waits for its tasks no longer than this.
        let runtime = std::mem::replace(&mut self.runtime, idle());
        runtime.shutdown_timeout(Duration::from_secs(5));
    }
}

fn idle() -> Runtime {
    tokio::runtime::Builder::new_current_thread()
        .build()
        .expect("a runtime")
}

/// A temporary folder, in memory where that can be: what a disk takes to sync is not what these tests look at.
pub(super) fn folder() -> TempDir {
    TempDir::new_in("/dev/shm")
        .or_else(|_| TempDir::new())
        .expect("a temporary folder")
}

pub(super) const CALLER: Caller = Caller { uid: 0, gid: 0 };

/// Takes up what the last process has left, as a mount does.
pub(super) fn taken_up(fixture: &Fixture) {
    let unfinished = fixture.core.aftermath().expect("sorted out");
    assert_eq!(fixture.core.recover_here(unfinished), []);
}

/// Polls, with a deadline.
pub(super) fn wait_until(what: &str, mut is_so: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(30);
    while !is_so() {
        assert!(Instant::now() < deadline, "not within 30 s: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}
