//! Two and three members wired in memory, each with a store on disk.

use std::{path::Path, sync::atomic::AtomicUsize};

use parking_lot::Mutex;
use tempfile::TempDir;

use super::*;
use crate::{
    cluster::ClusterId,
    content::{ContentId, Object},
    manifest::{self, Kind, Timestamp},
};

mod clones;
mod collect;
mod lazy;
mod moves;
mod sharing;
mod single;

/// Asks other namespaces for nodes, and counts what they gave.
#[derive(Default)]
struct Wire {
    peers: Mutex<Vec<Namespace>>,
    fetched: AtomicUsize,
}

impl NodeFetcher for Wire {
    fn fetch(
        &self,
        nodes: Vec<NodeHash>,
        _prefer: Option<PeerId>,
        _within: Duration,
    ) -> BoxFuture<'static, Fetched> {
        let peers = self.peers.lock().clone();
        let found: Vec<_> = nodes
            .iter()
            .filter_map(|hash| peers.iter().find_map(|peer| peer.node(hash).ok()?))
            .map(|bytes| bytes.to_vec())
            .collect();
        self.fetched.fetch_add(found.len(), Ordering::Relaxed);
        let denied = found.is_empty() && !peers.is_empty();
        let nodes = found;
        Box::pin(async move { Fetched { nodes, denied } })
    }

    fn offence(&self, _peer: PeerId, _reason: &str) {}
}

struct Cluster {
    id: ClusterId,
    temp: TempDir,
}

impl Cluster {
    fn new() -> Self {
        Self {
            id: ClusterId::generate([7; 32]),
            temp: tempfile::tempdir().unwrap(),
        }
    }

    fn dir(&self, name: &str) -> std::path::PathBuf {
        self.temp.path().join(name)
    }

    fn member(&self, name: &str) -> Member {
        self.open(name, self.id.keys(), |_| {})
    }

    fn reader(&self, name: &str) -> Member {
        self.open(name, self.id.read_only().keys(), |_| {})
    }

    /// Opens the member's folder, with its identity beside it; `prepare` may change the store first.
    fn open(&self, name: &str, keys: ClusterKeys, prepare: impl Fn(&Store)) -> Member {
        let dir = self.dir(name);
        std::fs::create_dir_all(&dir).unwrap();
        let file = dir.join("identity");
        if !file.exists() {
            let fresh = Keypair::generate_ed25519();
            std::fs::write(&file, fresh.to_protobuf_encoding().unwrap()).unwrap();
        }
        let identity = Keypair::from_protobuf_encoding(&std::fs::read(&file).unwrap()).unwrap();
        let store = open_store(&dir.join("state"));
        prepare(&store);
        let wire = Arc::new(Wire::default());
        let ns = Namespace::open(store, keys, identity, name.to_owned(), wire.clone()).unwrap();
        Member { ns, wire }
    }

    /// What `cp -a` does, and a restored backup.
    fn copy(&self, from: &str, to: &str) {
        let status = std::process::Command::new("cp")
            .arg("-a")
            .args([self.dir(from), self.dir(to)])
            .status()
            .unwrap();
        assert!(status.success());
    }
}

/// Opens a store, as soon as an earlier owner has let go of it.
fn open_store(dir: &Path) -> Store {
    let start = std::time::Instant::now();
    loop {
        match Store::open(dir) {
            Ok(store) => return store,
            Err(error) if start.elapsed() > Duration::from_secs(10) => panic!("{error}"),
            Err(_) => std::thread::sleep(Duration::from_millis(5)),
        }
    }
}

struct Member {
    ns: Namespace,
    wire: Arc<Wire>,
}

impl Drop for Member {
    fn drop(&mut self) {
        self.wire.peers.lock().clear();
    }
}

impl Member {
    fn peer(&self) -> PeerId {
        self.ns.writer_identity().public().to_peer_id()
    }

    fn fetched(&self) -> usize {
        self.wire.fetched.load(Ordering::Relaxed)
    }

    /// Lets the member fetch nodes from these, and from no others.
    fn reaches(&self, peers: &[&Member]) {
        *self.wire.peers.lock() = peers.iter().map(|peer| peer.ns.clone()).collect();
    }

    fn change(&self, path: &str, entry: Option<Entry>) {
        let path = at(path);
        let seen = self.ns.get(&path).unwrap().map(|shown| shown.seen);
        self.edit(Edit {
            path,
            entry,
            seen: seen.unwrap_or_default(),
            held: false,
            written: None,
            moved: None,
        });
    }

    fn edit(&self, edit: Edit) {
        self.ns.change(vec![edit]).unwrap();
    }

    async fn write(&self, path: &str, content: u64) {
        self.look(path).await;
        self.change(path, Some(file(content)));
        self.ns.flush().await.unwrap();
    }

    async fn remove(&self, path: &str) {
        self.look(path).await;
        self.change(path, None);
        self.ns.flush().await.unwrap();
    }

    /// What is shown at a path, fetched if need be.
    async fn look(&self, path: &str) -> Option<Shown> {
        loop {
            match self.ns.get(&at(path)) {
                Err(NamespaceError::Missing(nodes)) => {
                    self.ns.fetch(nodes, Duration::from_secs(5)).await.unwrap();
                }
                shown => return shown.unwrap(),
            }
        }
    }

    /// Names and contents of everything, fetched if need be.
    async fn everything(&self) -> Vec<(String, Kind)> {
        loop {
            match self.ns.below(&TreePath::root()) {
                Err(NamespaceError::Missing(nodes)) => {
                    self.ns.fetch(nodes, Duration::from_secs(5)).await.unwrap();
                }
                found => {
                    let found = found.unwrap().into_iter();
                    return found
                        .map(|(path, shown)| (path.to_string(), shown.entry.kind))
                        .collect();
                }
            }
        }
    }

    async fn shows(&self, path: &str, content: u64) -> bool {
        let wanted = file(content).kind;
        self.look(path)
            .await
            .is_some_and(|shown| shown.entry.kind == wanted)
    }

    /// Takes the heads that another shows.
    async fn hears(&self, other: &Member) {
        let heads = other.ns.heads();
        self.ns.take_heads(Some(other.peer()), heads).await.unwrap();
    }

    /// Heads that are not in the state yet.
    fn unmerged(&self) -> usize {
        self.ns.shared.replica.state.read().heads.unmerged().count()
    }

    async fn merged(&self) {
        until("all heads are merged", async || {
            self.unmerged() == 0 && self.ns.shared.replica.state.read().redo.is_none()
        })
        .await;
    }

    fn root(&self) -> NodeHash {
        self.ns.status().root.unwrap()
    }
}

/// Two members show each other their heads until both have the same state.
async fn agree(members: &[&Member]) {
    until("the members agree", async || {
        for one in members {
            for other in members {
                one.hears(other).await;
            }
        }
        let first = members[0].root();
        members
            .iter()
            .all(|member| member.root() == first && member.unmerged() == 0)
    })
    .await;
}

/// Members show each other their heads until one is left that stands for all.
async fn one_head(members: &[&Member]) {
    until("one head is left", async || {
        for one in members {
            for other in members {
                one.hears(other).await;
            }
        }
        members.iter().all(|member| member.ns.heads().len() == 1)
    })
    .await;
}

async fn until(what: &str, mut holds: impl AsyncFnMut() -> bool) {
    let deadline = tokio::time::Instant::now() + Duration::from_secs(15);
    while !holds().await {
        assert!(tokio::time::Instant::now() < deadline, "never: {what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

fn at(path: &str) -> TreePath {
    TreePath::parse(path.as_bytes()).unwrap()
}

fn file(content: u64) -> Entry {
    let object = Object {
        content: ContentId(*blake3::hash(&content.to_le_bytes()).as_bytes()),
        size: content,
    };
    Entry::new(Kind::File(object), 0o644, 0, 0, Timestamp(1))
}

fn directory() -> Entry {
    Entry::new(Kind::Directory, 0o700, 0, 0, Timestamp(1))
}
