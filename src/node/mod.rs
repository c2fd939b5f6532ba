//! The node: owns the parts of one mount and wires them.
//!
//! Start: lock the state folder, open the namespace, start the network, the transfers and the trackers, wait for a first
//! head, mount, open the control socket. End, whichever way it comes (unmount command, `umount`, signal): publish what is
//! pending, unmount, complete the trackers' copy, give up leases, tell the peers, put everything on disk. Each step of the
//! end has a deadline; none depends on another machine being there.

pub mod address;
mod background;
mod conflicts;
mod create;
mod events;
mod keeping;
mod members;
pub mod namespace;
mod reports;
pub mod state;
mod trackers;

use std::{
    collections::BTreeMap,
    path::PathBuf,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use futures::{FutureExt, future::BoxFuture, stream::BoxStream};
use libp2p::{Multiaddr, PeerId};
use parking_lot::Mutex;
use tokio::sync::watch;

use crate::{
    cluster::{ClusterKeys, Role},
    control::{self, Control, ControlError, types},
    fs,
    net::{
        Net, NetConfig, NetError,
        proto::{PROTOCOL, PeerHello},
    },
    store::{Limits, Store, StoreError},
    transfer::Transfers,
};
use keeping::{Evictions, Running, pins::Pins};
use members::{KnownHolders, Late, Members, PeerFetcher};
use namespace::{Namespace, NamespaceError};
use state::{SavedCluster, StateError};
use trackers::{Directory, Trackers};

pub use create::create;

/// The setting that remembers the port chosen on first use.
const LISTEN_SETTING: &str = "listen-port";
/// How long a fresh mount waits for a first head where trackers or peers are named.
const FIRST_HEAD_WITHIN: Duration = Duration::from_secs(10);
/// How long a mount that knows the folder already waits for a first member.
const FIRST_PEER_WITHIN: Duration = Duration::from_millis(500);
/// How long a process that is ending may keep its lock before another mount is refused.
const LOCK_WITHIN: Duration = Duration::from_secs(5);
/// How long any other process may.
const LOCK_GRACE: Duration = Duration::from_millis(500);
/// How long a lazy unmount takes for nobody having anything open.
const LET_GO_WITHIN: Duration = Duration::from_secs(1);
/// How long the end waits for files to be published.
const PUBLISH_WITHIN: Duration = Duration::from_secs(30);

/// How long the end waits for the trackers' copy of the manifest.
const COPY_WITHIN: Duration = Duration::from_secs(5);

/// How long the control socket outlives the mount.
const ANSWER_GOES_OUT: Duration = Duration::from_millis(100);

/// What a mount is to be.
#[derive(Clone, Debug)]
pub struct NodeConfig {
    /// Where to mount.
    pub mountpoint: PathBuf,
    /// No writing, whatever the id grants.
    pub read_only: bool,
    /// Trackers: as they were given, and parsed.
    pub trackers: Vec<(String, Multiaddr)>,
    /// Where to listen; empty for a free port, chosen once and kept.
    pub listen: Vec<Multiaddr>,
    /// Members to connect to.
    pub peers: Vec<Multiaddr>,
    /// What the cache may take; a third of what is free or its own when this is not said.
    pub cache_bytes_max: Option<u64>,
    /// What is left free on the disk.
    pub free_bytes_min: u64,
    /// Longest time a read waits without progress.
    pub read_timeout: Duration,
    /// Bytes of contents a second that may be sent to all members together.
    pub upload_limit: Option<u64>,
    /// The same for what is fetched.
    pub download_limit: Option<u64>,
    /// Other users may use the mount.
    pub allow_other: bool,
    /// The kernel may read what is here by itself; see [`fs::Config`].
    pub passthrough: bool,
    /// The program that guards the mount; see [`fs::Config`].
    pub guard: Option<PathBuf>,
    /// Whose files they appear to be.
    pub owner: fs::OwnerMode,
    /// Start from an empty folder where no head is known.
    pub new: bool,
    /// Keep everything here, as if the root were pinned.
    pub keep_all: bool,
    /// What hello calls this node.
    pub node_name: String,
}

/// Why a mount could not start.
#[derive(Debug, thiserror::Error)]
pub enum NodeError {
    /// The state folder.
    #[error(transparent)]
    State(#[from] StateError),
    /// The store.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The namespace.
    #[error(transparent)]
    Namespace(#[from] NamespaceError),
    /// The network.
    #[error(transparent)]
    Net(#[from] NetError),
    /// The mount.
    #[error(transparent)]
    Mount(#[from] fs::MountError),
    /// The control socket.
    #[error("the control socket could not be opened: {0}")]
    Control(std::io::Error),
    /// The end was asked for before it was mounted.
    #[error("it was asked to end while it started")]
    Ended,
    /// `--new` with a read-only id.
    #[error("a read-only cluster id cannot start a new folder")]
    NewReadOnly,
}

/// One mount.
pub struct Node {
    config: NodeConfig,
    saved: SavedCluster,
    keys: ClusterKeys,
    store: Store,
    namespace: Namespace,
    net: Net,
    transfers: Transfers,
    trackers: Arc<Trackers>,
    holders: Arc<KnownHolders>,
    pins: Arc<Pins>,
    evictions: Arc<Evictions>,
    events: Arc<control::events::EventLog>,
    /// Block answers that peers said they are working on.
    loads: Mutex<BTreeMap<PeerId, u32>>,
    mounted: OnceLock<Arc<fs::Mounted>>,
    socket: Mutex<Option<control::ControlServer>>,
    /// How far the scrub is; nothing before the first.
    scrub: Mutex<Option<types::ScrubReport>>,
    /// Unmounted by the command, with what could be published.
    unmounted: AtomicBool,
    /// True once the mount is to end.
    ending: watch::Sender<bool>,
    /// True once everything is on disk.
    ended: watch::Sender<bool>,
}

/// How a mount came up, for the user.
#[derive(Clone, Debug)]
pub struct Started {
    /// Members connected so far.
    pub peers: usize,
    /// What the user should know though it did not keep the mount from starting.
    pub warnings: Vec<String>,
}

impl Node {
    /// Starts and mounts. Returns when the mount is usable; [`Node::run`] then keeps it until it ends. `ending` becomes true
    /// when that is wanted, also while it starts.
    ///
    /// # Errors
    /// Then nothing is mounted.
    pub async fn start(
        saved: SavedCluster,
        config: NodeConfig,
        ending: watch::Sender<bool>,
    ) -> Result<(Arc<Self>, Started), NodeError> {
        let keys = saved.id.keys();
        let store = open_store(&saved).await?;
        store.set_limits(limits(&config, &store));
        let late = Arc::new(Late::default());
        let fetcher = Arc::new(PeerFetcher { late: late.clone() });
        let namespace = Namespace::open(
            store.clone(),
            keys.clone(),
            saved.identity()?,
            config.node_name.clone(),
            fetcher,
        )?;
        // A restored or cloned state folder has taken a new identity; it is this node's name on the network as well.
        let identity = namespace.writer_identity();
        if identity.public() != saved.identity()?.public() {
            saved.keep_identity(&identity)?;
        }
        if config.new && !namespace.has_head() {
            if keys.role() == Role::ReadOnly {
                return Err(NodeError::NewReadOnly);
            }
            namespace.create()?;
        }
        let holders = Arc::new(KnownHolders::default());
        let evictions = Arc::new(Evictions::new(store.clone()));
        let service = Arc::new(Members {
            store: store.clone(),
            late: late.clone(),
            holders: holders.clone(),
            evictions: evictions.clone(),
        });
        // Set before the network is up: the first request may come at once.
        let _ = late.namespace.set(namespace.clone());
        let hello = PeerHello {
            protocol: PROTOCOL,
            node: config.node_name.clone(),
            version: env!("CARGO_PKG_VERSION").into(),
            epoch: keys.epoch(),
            keeps_all: config.keep_all,
            promises: true,
            trees: true,
            sole: false,
        };
        let net = start_net(&store, &config, identity, &keys, hello, service).await?;
        let _ = late.net.set(net.clone());
        let trackers = Trackers::start(&config.trackers, &keys, &net, &namespace, &store);
        let _ = late.trackers.set(trackers.clone());
        let directory = Arc::new(Directory {
            trackers: trackers.clone(),
            net: net.clone(),
        });
        let transfers = Transfers::start(
            store.clone(),
            net.clone(),
            directory,
            config.read_timeout,
            config.download_limit,
        );
        let _ = late.transfers.set(transfers.clone());
        let pins = Arc::new(Pins::open(store.clone(), config.keep_all)?);
        let node = Arc::new(Self {
            pins,
            evictions,
            config,
            saved,
            keys,
            store,
            namespace,
            net,
            transfers,
            trackers,
            holders,
            events: Arc::default(),
            loads: Mutex::default(),
            mounted: OnceLock::new(),
            socket: Mutex::default(),
            scrub: Mutex::default(),
            unmounted: AtomicBool::new(false),
            ending,
            ended: watch::Sender::new(false),
        });
        background::start(&node);
        let mut warnings = Vec::new();
        let mut ending = node.ending.subscribe();
        let ended = tokio::select! {
            _ = ending.wait_for(|ending| *ending) => true,
            () = node.first_head(&mut warnings).then(|()| node.first_peer()) => false,
        };
        if ended {
            node.close().await;
            return Err(NodeError::Ended);
        }
        if let Err(error) = node.mount().and_then(|()| node.open_socket()) {
            node.close().await;
            return Err(error);
        }
        let started = Started {
            peers: node.net.peers().len(),
            warnings,
        };
        Ok((node, started))
    }

    /// Waits a while for a first head, so that the folder shows its contents from the beginning.
    async fn first_head(&self, warnings: &mut Vec<String>) {
        if self.namespace.has_head() {
            return;
        }
        let anybody = !self.config.trackers.is_empty() || !self.config.peers.is_empty();
        let found = anybody && {
            // Trackers and peers that all refuse at once are not waited for any longer.
            let nobody_answers = async {
                loop {
                    tokio::time::sleep(Duration::from_millis(200)).await;
                    if self.config.peers.is_empty() && self.trackers.all_unreachable() {
                        break;
                    }
                }
            };
            tokio::select! {
                found = self.namespace.wait_head(FIRST_HEAD_WITHIN) => found,
                () = nobody_answers => false,
            }
        };
        if !found {
            let why = if !anybody {
                "no tracker and no peer is named".to_owned()
            } else if let Some(reason) = self.trackers.failure() {
                format!("no member was reached ({reason})")
            } else {
                "no member that has it was reached".to_owned()
            };
            warnings.push(format!(
                "nothing is known of the folder yet: {why}; until a member is found, using it fails with an input/output error"
            ));
        }
    }

    /// Gives members a moment to be found, so that the mount can say how many there are.
    async fn first_peer(&self) {
        let mut events = self.net.events();
        let found = async { while self.net.peers().is_empty() && events.recv().await.is_ok() {} };
        if !self.config.peers.is_empty() || !self.trackers.all_unreachable() {
            // Nobody being there is as good an outcome.
            let _ = tokio::time::timeout(FIRST_PEER_WITHIN, found).await;
        }
    }

    fn mount(&self) -> Result<(), NodeError> {
        let (holders, net, runtime) = (
            self.holders.clone(),
            self.net.clone(),
            tokio::runtime::Handle::current(),
        );
        // The kernel waits for the answer: what is known is told, and where nothing is, members are asked for the next time.
        let count = move |object| {
            let known = holders.count(&object);
            if known == 0 {
                let (holders, net) = (holders.clone(), net.clone());
                runtime
                    .spawn(async move { members::whole_holders(&net, &holders, &[object]).await });
            }
            known
        };
        let config = fs::Config {
            mountpoint: self.config.mountpoint.clone(),
            name: self.saved.name.to_string(),
            read_only: self.role() == Role::ReadOnly,
            allow_other: self.config.allow_other,
            passthrough: self.config.passthrough,
            guard: self.config.guard.clone(),
            owner: self.config.owner,
            wait: self.config.read_timeout,
            state_dir: self.saved.dir.clone(),
            holders: Arc::new(count),
            pinned: {
                let pins = self.pins.clone();
                Arc::new(move |path| pins.covers(path))
            },
        };
        let mounted = fs::mount(
            config,
            self.namespace.clone(),
            self.store.clone(),
            self.transfers.clone(),
            tokio::runtime::Handle::current(),
        )?;
        let _ = self.mounted.set(Arc::new(mounted));
        Ok(())
    }

    /// Opened before the mount is called usable: a command may ask it right away.
    fn open_socket(self: &Arc<Self>) -> Result<(), NodeError> {
        let control: Arc<dyn Control> = self.clone();
        let socket = control::serve(&self.saved.dir, control).map_err(NodeError::Control)?;
        *self.socket.lock() = Some(socket);
        Ok(())
    }

    fn mounted(&self) -> Option<&Arc<fs::Mounted>> {
        self.mounted.get()
    }

    /// What this mount may do.
    pub fn role(&self) -> Role {
        if self.config.read_only {
            Role::ReadOnly
        } else {
            self.keys.role()
        }
    }

    /// Keeps the mount until it ends: by [`Node::end`], by the unmount command, or because the kernel's side is gone.
    pub async fn run(&self) {
        let mut ending = self.ending.subscribe();
        let gone = async {
            match self.mounted() {
                Some(mounted) => mounted.ended().await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            _ = ending.wait_for(|ending| *ending) => {}
            () = gone => tracing::info!("the folder was unmounted"),
        }
        self.end();
        self.close().await;
        self.events.end();
        // Whoever asked for the end over the socket still gets the answer.
        self.ended.send_replace(true);
        tokio::time::sleep(ANSWER_GOES_OUT).await;
        drop(self.socket.lock().take());
    }

    /// Asks the mount to end.
    pub fn end(&self) {
        self.ending.send_replace(true);
    }

    /// The orderly end. Publication comes first: it needs no peer, and after it everything is safe on this disk.
    async fn close(&self) {
        if let Some(mounted) = self.mounted() {
            // What could not be published when the unmount was asked for can't be now.
            let within = match self.unmounted.load(Ordering::Acquire) {
                true => Duration::ZERO,
                false => PUBLISH_WITHIN,
            };
            mounted.publish_all(within).await;
        }
        if let Err(error) = self.namespace.flush().await {
            tracing::warn!(%error, "some changes stay unpublished; they are kept and published by the next mount");
        }
        if let Some(mounted) = self.mounted()
            && let Err(error) = mounted.unmount(true)
        {
            tracing::debug!(%error, "unmounting at the end");
        }
        self.transfers.stop();
        // For who comes while nobody is up. What isn't there by then is handed in by the next mount.
        let _ = tokio::time::timeout(COPY_WITHIN, self.trackers.all_have_copy()).await;
        let _ = tokio::time::timeout(Duration::from_secs(2), self.trackers.leave()).await;
        self.net.stop().await;
        let store = self.store.clone();
        // Some task may hold it until the process is gone.
        if let Err(error) = run_blocking(move || store.close()).await {
            tracing::error!(%error, "the store could not be put on disk");
        }
    }
}

/// What the store may take. By default a third of the disk's free space, what the cache takes already counted as free: a restart
/// changes nothing.
fn limits(config: &NodeConfig, store: &Store) -> Limits {
    let third = || {
        let room = store.room();
        let disk = rustix::fs::statvfs(store.dir());
        let free = disk.map_or(0, |disk| disk.f_bavail.saturating_mul(disk.f_frsize));
        let own = [room.files_bytes, room.staging_bytes, room.index_bytes];
        own.into_iter().fold(free, u64::saturating_add) / 3
    };
    Limits {
        cache_bytes_max: config.cache_bytes_max.unwrap_or_else(third),
        free_bytes_min: config.free_bytes_min,
    }
}

/// Opens the store. A process whose folder was unmounted a moment ago is waited for: it publishes before it lets go.
async fn open_store(saved: &SavedCluster) -> Result<Store, NodeError> {
    let begun = tokio::time::Instant::now();
    let other = control::client::ControlClient::new(&saved.dir);
    loop {
        let dir = saved.dir.clone();
        match run_blocking(move || Store::open(&dir)).await {
            Err(StoreError::Locked { dir, pid }) => {
                let ending = !matches!(other.is_ending().await, Ok(false));
                let patience = if ending { LOCK_WITHIN } else { LOCK_GRACE };
                if begun.elapsed() >= patience {
                    return Err(StoreError::Locked { dir, pid }.into());
                }
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
            opened => return Ok(opened?),
        }
    }
}

async fn start_net(
    store: &Store,
    config: &NodeConfig,
    identity: libp2p::identity::Keypair,
    keys: &ClusterKeys,
    hello: PeerHello,
    service: Arc<Members>,
) -> Result<Net, NodeError> {
    let listen = if config.listen.is_empty() {
        let kept = store.setting(LISTEN_SETTING)?;
        let port = kept
            .and_then(|port| port.try_into().ok())
            .map_or(0, u16::from_be_bytes);
        listen_on(port)
    } else {
        config.listen.clone()
    };
    let start = |listen| {
        Net::start(
            NetConfig {
                identity: identity.clone(),
                keys: keys.clone(),
                hello: hello.clone(),
                listen,
                upload_limit: config.upload_limit,
            },
            service.clone(),
        )
    };
    let net = match start(listen).await {
        // The kept port was taken by somebody else meanwhile: another one does as well, it is announced anyway.
        Err(NetError::Listen { address, reason }) if config.listen.is_empty() => {
            tracing::warn!(%address, %reason, "the kept port is in use; another one is taken");
            start(listen_on(0)).await?
        }
        started => started?,
    };
    if config.listen.is_empty() {
        let port = net.addresses().iter().find_map(|address| {
            address.iter().find_map(|part| match part {
                libp2p::multiaddr::Protocol::Tcp(port) => Some(port),
                _ => None,
            })
        });
        if let Some(port) = port {
            store.set_setting(LISTEN_SETTING, Some(&port.to_be_bytes()))?;
        }
    }
    for peer in &config.peers {
        net.add_peer(peer.clone(), true);
    }
    Ok(net)
}

fn listen_on(port: u16) -> Vec<Multiaddr> {
    use libp2p::multiaddr::Protocol;
    let any = Protocol::Ip4(std::net::Ipv4Addr::UNSPECIFIED);
    vec![Multiaddr::empty().with(any).with(Protocol::Tcp(port))]
}

/// Runs disk work off the async threads. A panic there goes on here.
async fn run_blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    match tokio::task::spawn_blocking(work).await {
        Ok(value) => value,
        Err(error) => match error.try_into_panic() {
            Ok(panic) => std::panic::resume_unwind(panic),
            // The runtime ends, and whoever waits here with it.
            Err(_) => std::future::pending().await,
        },
    }
}

impl Control for Node {
    fn is_ending(&self) -> bool {
        *self.ending.borrow()
    }

    fn status(self: Arc<Self>) -> BoxFuture<'static, Result<types::StatusReport, ControlError>> {
        async move { self.status_report().await }.boxed()
    }

    fn peers(self: Arc<Self>) -> BoxFuture<'static, Result<Vec<types::PeerReport>, ControlError>> {
        async move {
            background::refresh_loads(&self).await;
            Ok(self.peer_reports())
        }
        .boxed()
    }

    fn find(
        self: Arc<Self>,
        pattern: String,
    ) -> BoxFuture<'static, Result<types::FindReport, ControlError>> {
        async move { self.find_report(&pattern).await }.boxed()
    }

    fn transfers(&self) -> control::keeping::TransfersReport {
        control::keeping::TransfersReport {
            transfers: self.transfer_reports(),
        }
    }

    fn fetch(
        self: Arc<Self>,
        request: control::keeping::PathsRequest,
    ) -> BoxFuture<'static, Result<BoxStream<'static, Bytes>, ControlError>> {
        async move { keeping::fetch(self, keeping::paths_of(&request.paths_hex)?).await }.boxed()
    }

    fn pin(
        self: Arc<Self>,
        request: control::keeping::PinRequest,
    ) -> BoxFuture<'static, Result<control::keeping::PinReport, ControlError>> {
        async move {
            let paths = keeping::paths_of(&request.paths_hex)?;
            self.set_pins(paths, request.pinned).await
        }
        .boxed()
    }

    fn evict(
        self: Arc<Self>,
        request: control::keeping::PathsRequest,
    ) -> BoxFuture<'static, Result<control::keeping::EvictReport, ControlError>> {
        async move { keeping::evict(self, keeping::paths_of(&request.paths_hex)?).await }.boxed()
    }

    fn wait(
        self: Arc<Self>,
        request: control::keeping::WaitRequest,
    ) -> BoxFuture<'static, Result<control::keeping::WaitReport, ControlError>> {
        keeping::wait(self, request).boxed()
    }

    fn why(
        self: Arc<Self>,
        request: control::keeping::PathsRequest,
    ) -> BoxFuture<'static, Result<control::keeping::WhyReport, ControlError>> {
        async move { keeping::why(&self, keeping::path_of(&request.paths_hex)?).await }.boxed()
    }

    fn verify(self: Arc<Self>) -> BoxStream<'static, Bytes> {
        keeping::verify(self)
    }

    fn conflicts(
        self: Arc<Self>,
        request: types::ConflictsRequest,
    ) -> BoxFuture<'static, Result<types::ConflictsReport, ControlError>> {
        async move { self.conflicts_report(request).await }.boxed()
    }

    fn resolve(
        self: Arc<Self>,
        request: types::ResolveRequest,
    ) -> BoxFuture<'static, Result<types::ResolveReport, ControlError>> {
        async move { self.resolve_conflict(request).await }.boxed()
    }

    fn follow(&self, recent: bool) -> control::events::Follower {
        let greeting = types::Happened::Following {
            name: self.saved.name.to_string(),
            mountpoint: self.config.mountpoint.display().to_string(),
        };
        self.events.follow(recent, greeting)
    }

    fn publish(self: Arc<Self>) -> BoxFuture<'static, Result<(), ControlError>> {
        async move {
            if let Some(mounted) = self.mounted() {
                mounted.publish_all(PUBLISH_WITHIN).await;
            }
            self.namespace.flush().await.map_err(ControlError::new)
        }
        .boxed()
    }

    fn report(self: Arc<Self>, peer: String) -> BoxFuture<'static, Result<(), ControlError>> {
        async move {
            let known = self.net.peers();
            let named: Vec<PeerId> = match peer.parse() {
                Ok(id) => vec![id],
                Err(_) => {
                    let named = known.iter().filter(|info| info.hello.node == peer);
                    named.map(|info| info.peer).collect()
                }
            };
            match named.as_slice() {
                [id] if *id == self.net.local_peer() => {
                    Err(ControlError::new("that is this member itself"))
                }
                [id] => self.trackers.report(*id).await.map_err(ControlError::new),
                [] => Err(ControlError::new(format_args!(
                    "no peer is known as {peer:?}"
                ))),
                _ => Err(ControlError::new(format_args!(
                    "several peers are called {peer:?}: give the peer id"
                ))),
            }
        }
        .boxed()
    }

    fn unmount(
        self: Arc<Self>,
        request: types::UnmountRequest,
    ) -> BoxFuture<'static, Result<(), ControlError>> {
        async move {
            if let Some(mounted) = self.mounted() {
                mounted.publish_all(PUBLISH_WITHIN).await;
                mounted.unmount(request.lazy).map_err(ControlError::new)?;
                // Who has files open goes on with them; the end comes with the last one, as after `umount -l`.
                let in_use = request.lazy
                    && tokio::time::timeout(LET_GO_WITHIN, mounted.ended())
                        .await
                        .is_err();
                if in_use {
                    return Ok(());
                }
                self.unmounted.store(true, Ordering::Release);
            }
            self.end();
            let mut ended = self.ended.subscribe();
            let wait = ended.wait_for(|ended| *ended);
            match tokio::time::timeout(PUBLISH_WITHIN * 2, wait).await {
                Ok(_) => Ok(()),
                Err(_) => Err(ControlError::new(
                    "the mount is gone, but its process is still busy",
                )),
            }
        }
        .boxed()
    }

    fn leave(
        self: Arc<Self>,
        request: types::LeaveRequest,
    ) -> BoxFuture<'static, Result<types::LeaveReport, ControlError>> {
        async move { self.leave_cluster(request).await }.boxed()
    }
}

impl Node {
    async fn leave_cluster(
        self: &Arc<Self>,
        request: types::LeaveRequest,
    ) -> Result<types::LeaveReport, ControlError> {
        Control::publish(self.clone()).await?;
        let made = self.namespace.made();
        let mut named = self.only_here(true).await?;
        // Until the end: what others were asked to keep is not promised to them meanwhile.
        let mut running = Running {
            evictions: &self.evictions,
            objects: Vec::new(),
        };
        if named.is_empty() && !request.force {
            named = self.kept_by_nobody(&mut running).await?;
        }
        let totals = reports::totals(&named);
        let report = types::LeaveReport {
            left: false,
            only_here: named
                .iter()
                .take(1000)
                .map(|(object, path)| {
                    path.as_ref()
                        .map_or_else(|| object.content.to_string(), ToString::to_string)
                })
                .collect(),
            totals,
        };
        // Handing over is polled by the command line, which shows what is still to go.
        if report.totals.files > 0 && !request.force {
            return Ok(report);
        }
        Control::unmount(self.clone(), types::UnmountRequest { lazy: false }).await?;
        let is_unpublished = self.is_unpublished(&crate::manifest::TreePath::root());
        if !request.force && (is_unpublished || self.namespace.made() != made) {
            return Err(ControlError::new(
                "something was changed meanwhile, or could not be published, and may exist only here: it is unmounted, but \
                 nothing is forgotten; mount it again to have it handed over, or leave with --force",
            ));
        }
        self.saved.forget().map_err(ControlError::new)?;
        Ok(types::LeaveReport {
            left: true,
            ..report
        })
    }
}
