//! A member that is no mount: it holds a cluster id, speaks the members' protocols, and shows and serves exactly what a
//! test gives it.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, mpsc},
    thread::{self, JoinHandle},
};

use futures::{AsyncWriteExt, StreamExt};
use libp2p::Stream;
use p2pfs::{
    cluster::{Certificate, ClusterKeys, Head},
    content::Object,
    manifest::{
        Applied, CausalContext, Dot, Entry, HybridTime, Key, Kind, Node, NodeHash, NodeSource,
        Timestamp, TreeError, TreePath, Version, Versions, WriterNumber, apply,
    },
    net::proto::{Have, Push, SYNC, SyncAnswer, SyncRequest},
};
use p2pfs_mount_tests::{Host, LONG};
use serde_bytes::ByteBuf;
use tokio::sync::oneshot;

use super::attacker::{self, Attacker, SyncCall, SyncReply, next, now_ns, write};

/// What it shows to whoever asks.
#[derive(Default)]
struct Shown {
    heads: Vec<Vec<u8>>,
    nodes: BTreeMap<NodeHash, Vec<u8>>,
    /// How often it was asked for heads.
    asked: usize,
}

/// A member connected with one mount.
pub(super) struct Member {
    peer: Attacker,
    keys: ClusterKeys,
    shown: Arc<Mutex<Shown>>,
    /// The last head of its own.
    sequence: u64,
}

struct Known<'a>(&'a BTreeMap<NodeHash, Vec<u8>>);

impl NodeSource for Known<'_> {
    fn node(&self, hash: &NodeHash) -> Result<Option<Arc<Node>>, TreeError> {
        Ok(self
            .0
            .get(hash)
            .map(|bytes| Arc::new(Node::decode(bytes).unwrap())))
    }
}

impl Member {
    /// Connects to a mount, proves itself, and knows what the mount knows: it shows the same heads and nodes.
    pub(super) async fn join(address: &str, keys: ClusterKeys) -> Self {
        let mut peer = Attacker::connect(address).await;
        let shown: Arc<Mutex<Shown>> = Arc::default();
        let mut streams = peer.control().accept(SYNC).unwrap();
        let serving = shown.clone();
        tokio::spawn(async move {
            while let Some((_, stream)) = streams.next().await {
                tokio::spawn(serve(stream, serving.clone()));
            }
        });
        peer.prove(&keys).await.expect("a member is let in");
        let mut member = Self {
            peer,
            keys,
            shown,
            sequence: 0,
        };
        member.learn().await;
        member
    }

    /// Takes over the heads whose nodes the mount has; it may hold others that wait for theirs.
    async fn learn(&mut self) {
        let Some(SyncAnswer::Heads(heads)) = self.peer.ask(SyncRequest::Heads).await else {
            panic!("no heads")
        };
        for head in heads {
            let mut nodes = BTreeMap::new();
            let mut missing = vec![Head::decode(&head).unwrap().root];
            let mut whole = true;
            while let Some(hash) = missing.pop() {
                let Some(SyncAnswer::Nodes(answer)) =
                    self.peer.ask(SyncRequest::Nodes(vec![hash])).await
                else {
                    panic!("no nodes")
                };
                match Node::decode(&answer[0]) {
                    Ok(node) => missing.extend(node.children()),
                    Err(_) => whole = false,
                }
                nodes.insert(hash, answer[0].to_vec());
            }
            if whole {
                self.shown().nodes.extend(nodes);
                self.shown().heads.push(head.into_vec());
            }
        }
    }

    fn shown(&self) -> MutexGuard<'_, Shown> {
        self.shown.lock().unwrap()
    }

    /// The newest head that it shows.
    pub(super) fn newest(&self) -> Head {
        let shown = self.shown();
        let heads = shown.heads.iter().map(|head| Head::decode(head).unwrap());
        heads.max_by_key(|head| head.time).expect("it has joined")
    }

    /// A node that it has.
    pub(super) fn node(&self, hash: &NodeHash) -> Vec<u8> {
        self.shown().nodes[hash].clone()
    }

    /// Its next write.
    pub(super) fn next_dot(&self) -> Dot {
        Dot {
            writer: WriterNumber::of(&self.peer.identity().public().to_peer_id()),
            sequence: self.sequence + 1,
        }
    }

    /// A tree with files added to it; its new nodes are served from now on.
    pub(super) fn add(
        &self,
        root: NodeHash,
        files: &[(&str, Object)],
        time: HybridTime,
    ) -> NodeHash {
        let edits = files.iter().map(|(path, object)| {
            let path = TreePath::parse(path.as_bytes()).unwrap();
            let modified = Timestamp(i64::try_from(now_ns()).unwrap());
            let version = Version {
                dot: self.next_dot(),
                time,
                entry: Entry::new(Kind::File(*object), 0o644, 0, 0, modified),
                moved: None,
            };
            (Key::of_path(&path).unwrap(), Versions::new(vec![version]))
        });
        let Applied { root, nodes } =
            apply(&Known(&self.shown().nodes.clone()), root, &edits.collect()).unwrap();
        self.shown().nodes.extend(nodes);
        root
    }

    /// Serves these bytes as a node, whatever they are.
    pub(super) fn serve(&self, bytes: Vec<u8>) -> NodeHash {
        let hash = NodeHash::of(&bytes);
        self.shown().nodes.insert(hash, bytes);
        hash
    }

    /// Signs its next head, for what has seen everything that it knows.
    pub(super) fn sign(&mut self, root: NodeHash, time: HybridTime) -> Head {
        let identity = self.peer.identity();
        let certificate = Certificate::issue(&self.keys, &identity.public().to_peer_id()).unwrap();
        let mut covers: CausalContext = self.newest().covers;
        let dot = self.next_dot();
        covers.add(dot);
        self.sequence = dot.sequence;
        Head::sign(
            &self.keys,
            &identity,
            &certificate,
            root,
            covers,
            dot.sequence,
            time,
        )
        .unwrap()
    }

    /// Answers with this head from now on, and tells nobody.
    pub(super) fn show(&self, head: &Head) {
        self.shown().heads = vec![head.encode()];
    }

    /// Pushes a head, without changes.
    pub(super) async fn push(&mut self, head: &Head, base: NodeHash) {
        let push = Push::Manifest {
            head: ByteBuf::from(head.encode()),
            base,
            changes: None,
        };
        self.peer.push(push).await;
    }

    /// Waits until it has been asked for heads, as a member is when it appears.
    pub(super) async fn is_greeted(&self) {
        let greeted = async {
            while self.shown().asked == 0 {
                tokio::time::sleep(std::time::Duration::from_millis(20)).await;
            }
        };
        tokio::time::timeout(LONG, greeted)
            .await
            .expect("it is greeted");
    }
}

async fn serve(mut stream: Stream, shown: Arc<Mutex<Shown>>) -> Option<()> {
    stream.write_all(&[1]).await.ok()?;
    stream.flush().await.ok()?;
    loop {
        let SyncCall::Request(number, request) = next(&mut stream).await? else {
            continue;
        };
        let answer = {
            let mut shown = shown.lock().unwrap();
            let bytes = |bytes: &Vec<u8>| ByteBuf::from(bytes.clone());
            match request {
                SyncRequest::Heads => {
                    shown.asked += 1;
                    SyncAnswer::Heads(shown.heads.iter().map(bytes).collect())
                }
                SyncRequest::Nodes(hashes) => {
                    let nodes = hashes.iter().map(|hash| shown.nodes.get(hash));
                    SyncAnswer::Nodes(
                        nodes
                            .map(|node| node.map_or_else(ByteBuf::new, bytes))
                            .collect(),
                    )
                }
                SyncRequest::Have(objects) => SyncAnswer::Have(vec![Have::No; objects.len()]),
                SyncRequest::Keep { objects, .. } => SyncAnswer::Keep(vec![false; objects.len()]),
                SyncRequest::Tree { .. } => SyncAnswer::Tree(Default::default()),
                SyncRequest::Make { .. } => SyncAnswer::Make(false),
                SyncRequest::Status => SyncAnswer::Status {
                    load: 0,
                    members: Vec::new(),
                },
            }
        };
        write(&mut stream, &SyncReply(number, answer)).await?;
    }
}

/// A member at work on a host; it goes when this is dropped.
pub(super) struct Playing {
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

/// Has a member do its work on a host, and then stay there.
pub(super) fn play<F: Future<Output = Member>>(
    host: &Host,
    work: impl FnOnce() -> F + Send + 'static,
) -> Playing {
    let (ready, is_ready) = mpsc::channel();
    let (stop, stopped) = oneshot::channel::<()>();
    let host = host.clone();
    let thread = thread::spawn(move || {
        host.inside(move || {
            attacker::run(async move {
                let _member = work().await;
                let _ = ready.send(());
                let _ = stopped.await;
            });
        });
    });
    let mut playing = Playing {
        stop: Some(stop),
        thread: Some(thread),
    };
    if is_ready.recv_timeout(LONG).is_err() {
        playing.end();
        panic!("the member's work did not end");
    }
    playing
}

impl Playing {
    fn end(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take()
            && let Err(panic) = thread.join()
            && !thread::panicking()
        {
            std::panic::resume_unwind(panic);
        }
    }
}

impl Drop for Playing {
    fn drop(&mut self) {
        self.end();
    }
}
