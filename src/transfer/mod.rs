//! The transfer engine: brings blocks here that somebody waits for.
//!
//! [`scheduler`] decides (pure), `executor` carries out (tokio), `source` is what both need of the network, `board` is
//! what reports say. Nothing here knows names or folders: objects come with a label for reports only. A transfer isn't
//! kept anywhere: what the store has of an object is where the next wish for it goes on, across restarts too.

mod board;
mod entrust;
mod executor;
mod kin;
mod readahead;
pub mod scheduler;
mod small;
mod source;

#[cfg(test)]
mod tests;

use std::{
    collections::VecDeque,
    ops::Range,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use futures::future::BoxFuture;
use libp2p::PeerId;
use parking_lot::Mutex;
use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;

pub use self::entrust::LEASE;
pub(crate) use self::readahead::STREAMS;
pub use self::readahead::{Advice, Readahead};
use self::{
    board::Board,
    entrust::Made,
    executor::{Command, Executor, Limits, Parts, here},
    kin::{Kin, Wait},
    scheduler::{Priority, WishId},
    source::BlockSource,
};
use crate::{
    awake::AwakeClock,
    content::{BlockSet, Object},
    net::Net,
    store::Store,
};

/// Commands that wait for the engine; [`Transfers::ensure`] waits when it is full, the others are dropped.
const COMMANDS_MAX: usize = 1024;

/// Who may hold an object, beyond the peers that are connected.
pub trait Holders: Send + Sync + 'static {
    /// Asks the trackers (and connects to whom they name). Bounded by two seconds.
    fn find(&self, object: Object) -> BoxFuture<'static, Vec<PeerId>>;
    /// Reports a peer that was dropped.
    fn report(&self, peer: PeerId, reason: &str);
}

/// Why bytes could not be brought here.
#[derive(Clone, Debug, thiserror::Error)]
pub enum TransferError {
    /// Nobody could serve them in time.
    #[error("no progress for {} s: {asked}", waited.as_secs())]
    Stalled {
        /// How long.
        waited: Duration,
        /// Who was asked and what they said, for the log.
        asked: String,
    },
    /// The entry's size is wrong.
    #[error("the content has {actual} bytes, its entry says {claimed}")]
    WrongSize {
        /// In the entry.
        claimed: u64,
        /// Proven.
        actual: u64,
    },
    /// The store failed.
    #[error("{0}")]
    Store(String),
    /// The node is stopping.
    #[error("the mount is stopping")]
    Stopping,
}

/// State of a transfer, in the words of `p2pfs transfers`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TransferState {
    /// Looking for holders.
    Requesting,
    /// Blocks arrive.
    Downloading,
    /// Done a moment ago.
    Finished,
    /// No progress: why.
    Stalled(String),
}

/// One transfer.
#[derive(Clone, Debug)]
pub struct TransferStatus {
    /// The path it was asked for under.
    pub label: String,
    /// What.
    pub object: Object,
    /// How it goes.
    pub state: TransferState,
    /// Bytes here.
    pub done_bytes: u64,
    /// Bytes a second, lately.
    pub rate_bytes_per_s: u64,
    /// Peers that it comes from.
    pub sources: usize,
}

/// What a peer was last blamed for.
#[derive(Clone, Debug)]
pub struct Blame {
    /// Who.
    pub peer: PeerId,
    /// For what.
    pub reason: String,
    /// Nanoseconds since 1970.
    pub at_ns: u64,
}

/// The engine. Cheap to clone; it stops when told so or with its last handle.
#[derive(Clone)]
pub struct Transfers {
    store: Store,
    commands: mpsc::Sender<Command>,
    next_wish: Arc<AtomicU64>,
    board: Arc<Mutex<Board>>,
    clock: Arc<AwakeClock>,
    stop: CancellationToken,
    stalls: Arc<Stalls>,
    kin: Arc<Kin>,
    made: Arc<Mutex<Made>>,
}

/// Ranges that nobody could serve a moment ago.
#[derive(Default)]
struct Stalls(Mutex<VecDeque<Stall>>);

struct Stall {
    object: Object,
    blocks: Range<u64>,
    at: Instant,
    error: TransferError,
}

impl Stalls {
    fn note(&self, object: Object, blocks: Range<u64>, error: TransferError) {
        let mut stalls = self.0.lock();
        if stalls.len() >= STALLS_MAX {
            stalls.pop_front();
        }
        stalls.push_back(Stall {
            object,
            blocks,
            at: Instant::now(),
            error,
        });
    }

    fn of(&self, object: &Object, blocks: &Range<u64>) -> Option<TransferError> {
        let mut stalls = self.0.lock();
        stalls.retain(|stall| stall.at.elapsed() < STALLED_FOR);
        let covers = |stall: &&Stall| {
            stall.object == *object
                && stall.blocks.start <= blocks.start
                && blocks.end <= stall.blocks.end
        };
        stalls.iter().find(covers).map(|stall| stall.error.clone())
    }

    /// Somebody is there who may have it, or have anything.
    fn forget(&self, object: Option<&Object>) {
        let mut stalls = self.0.lock();
        stalls.retain(|stall| object.is_some_and(|object| stall.object != *object));
    }
}

/// For so long a part of a range that stalled fails at once, unless somebody has said meanwhile that it is there. The kernel asks
/// again, page by page and right away, for what its own readahead could not get: without this, one read would wait twice.
const STALLED_FOR: Duration = Duration::from_millis(300);
/// Objects that a peer may ask about at a time and be taken to want them all.
const INTERESTS_MAX: usize = 16;
/// How long a wish waits that found too many of its kind.
const REFUSED_PAUSE: Duration = Duration::from_millis(100);
/// Stalls remembered; the oldest makes room.
const STALLS_MAX: usize = 256;

impl Transfers {
    /// Starts it on the current runtime. `read_timeout` is the longest time a read waits without progress;
    /// `download_limit` is in bytes a second.
    pub fn start(
        store: Store,
        net: Net,
        holders: Arc<dyn Holders>,
        read_timeout: Duration,
        download_limit: Option<u64>,
    ) -> Self {
        let limits = Limits {
            read_timeout,
            download_bytes_per_s: download_limit,
        };
        Self::start_with(store, Arc::new(net), holders, limits, rand::random())
    }

    fn start_with(
        store: Store,
        source: Arc<dyn BlockSource>,
        holders: Arc<dyn Holders>,
        limits: Limits,
        seed: u64,
    ) -> Self {
        let (commands, commanded) = mpsc::channel(COMMANDS_MAX);
        let engine = Self {
            store: store.clone(),
            commands,
            next_wish: Arc::new(AtomicU64::new(0)),
            board: Arc::new(Mutex::new(Board::default())),
            clock: Arc::new(AwakeClock::start()),
            stop: CancellationToken::new(),
            stalls: Arc::default(),
            kin: Arc::new(Kin::new(store.clone(), source.clone())),
            made: Arc::default(),
        };
        let parts = Parts {
            store,
            source,
            holders,
            board: engine.board.clone(),
            stalls: engine.stalls.clone(),
            clock: engine.clock.clone(),
            stop: engine.stop.clone(),
        };
        tokio::spawn(Executor::run(parts, limits, seed, commanded));
        engine
    }

    /// Returns when the bytes are in the store. Dropping the future gives the wish up. `label` is for reports.
    ///
    /// # Errors
    /// Fails when no block of the range came for the time-out that the engine was started with, when the object's size
    /// turns out wrong, when the store cannot keep what comes, or when the engine stops.
    pub async fn ensure(
        &self,
        object: Object,
        bytes: Range<u64>,
        label: &str,
    ) -> Result<(), TransferError> {
        let wish = self.wish_for(object, bytes, label, Priority::Demand, false);
        wish.await.unwrap_or(Err(TransferError::Stopping))
    }

    /// As [`Transfers::ensure`], but returns once the store gives the bytes to who reads them, which may be before it has
    /// them on the disk.
    ///
    /// # Errors
    /// As [`Transfers::ensure`].
    pub async fn ensure_readable(
        &self,
        object: Object,
        bytes: Range<u64>,
        label: &str,
    ) -> Result<(), TransferError> {
        let wish = self.wish_for(object, bytes, label, Priority::Demand, true);
        wish.await.unwrap_or(Err(TransferError::Stopping))
    }

    /// As [`Transfers::ensure`], but behind everything that somebody waits for in a read. Waits while the engine has too much to
    /// fetch ahead already.
    ///
    /// # Errors
    /// As [`Transfers::ensure`].
    pub async fn ensure_behind(
        &self,
        object: Object,
        bytes: Range<u64>,
        label: &str,
    ) -> Result<(), TransferError> {
        loop {
            let wish = self.wish_for(object, bytes.clone(), label, Priority::Prefetch, false);
            match wish.await {
                Some(outcome) => return outcome,
                None if self.stop.is_cancelled() => return Err(TransferError::Stopping),
                None => tokio::time::sleep(REFUSED_PAUSE).await,
            }
        }
    }

    /// `None` when the engine did not take the wish, or is stopping.
    async fn wish_for(
        &self,
        object: Object,
        bytes: Range<u64>,
        label: &str,
        priority: Priority,
        to_read: bool,
    ) -> Option<Result<(), TransferError>> {
        let blocks = object.blocks_of(bytes);
        if blocks.is_empty() {
            return Some(Ok(()));
        }
        let (present, size_proven) = match here(&self.store, &object) {
            Ok(here) => here,
            Err(error) => return Some(Err(TransferError::Store(error.to_string()))),
        };
        if (size_proven || to_read) && present.contains(blocks.clone()) {
            return Some(Ok(()));
        }
        if let Some(error) = self.stalls.of(&object, &blocks) {
            return Some(Err(error));
        }
        if self.kin.knows(&object) {
            let wait = match priority {
                Priority::Demand => Wait::Briefly,
                Priority::Prefetch => Wait::Shortly,
            };
            self.kin.take(object, blocks.clone(), wait).await;
        }
        let id = self.new_wish();
        let (done, answer) = oneshot::channel();
        let wish = Command::Wish {
            id,
            object,
            blocks: blocks.clone(),
            priority,
            to_read,
            label: label.to_owned(),
            done: Some(done),
        };
        self.commands.send(wish).await.ok()?;
        let mut given_up = GiveUp {
            wish: Some(id),
            commands: &self.commands,
        };
        let answer = answer.await;
        given_up.wish = None;
        let result = answer.ok()?;
        if let Err(error @ TransferError::Stalled { .. }) = &result {
            self.stalls.note(object, blocks, error.clone());
        }
        Some(result)
    }

    /// Fetches ahead, without anybody waiting; goes behind every [`Transfers::ensure`]. Passed over when there is too much
    /// to do already. Dropping what it gives gives the rest up.
    pub fn prefetch(&self, object: Object, bytes: Range<u64>, label: &str) -> Option<Prefetch> {
        let blocks = object.blocks_of(bytes);
        if blocks.is_empty() {
            return None;
        }
        let (id, ahead) = (self.new_wish(), blocks.clone());
        let wish = Command::Wish {
            id,
            object,
            blocks,
            priority: Priority::Prefetch,
            to_read: false,
            label: label.to_owned(),
            done: None,
        };
        if self.kin.knows(&object) {
            let (kin, commands) = (self.kin.clone(), self.commands.clone());
            let taking = self.kin.runtime.spawn(async move {
                kin.take(object, ahead, Wait::Shortly).await;
                if commands.try_send(wish).is_err() {
                    tracing::debug!("the engine is busy, a prefetch is passed over");
                }
            });
            return Some(Prefetch {
                wish: id,
                commands: self.commands.clone(),
                taking: Some(taking.abort_handle()),
            });
        }
        if self.commands.try_send(wish).is_err() {
            tracing::debug!(label, "the engine is busy, a prefetch is passed over");
            return None;
        }
        Some(Prefetch {
            wish: id,
            commands: self.commands.clone(),
            taking: None,
        })
    }

    /// A content took another's place under a name: what is equal in both isn't fetched, as far as the older one is here. A
    /// hint: nothing breaks if it is wrong.
    pub fn replaced(&self, new: Object, old: Object) {
        self.kin.note(new, old);
    }

    /// Fetches small contents ahead, whole and in batches, without anybody waiting: what is here already, on its way or larger
    /// than a block is passed over, as all is when there is too much to do.
    pub fn ahead(&self, objects: Vec<Object>) {
        if !objects.is_empty() && self.commands.try_send(Command::Ahead(objects)).is_err() {
            tracing::debug!("the engine is busy, small contents are not fetched ahead");
        }
    }

    /// A peer told what it has. Lost when there is too much to do: peers are asked again anyway.
    pub fn peer_has(&self, peer: PeerId, object: Object, blocks: &BlockSet) {
        let announced = Command::Announced {
            peer,
            object,
            blocks: blocks.clone(),
        };
        if self.commands.try_send(announced).is_err() {
            tracing::debug!(%peer, "the engine is busy, an announcement is passed over");
        }
    }

    /// A peer asks what is here of these objects. Who asks about few at a time most likely fetches them; who takes stock of many
    /// doesn't.
    pub fn peer_asks(&self, peer: PeerId, objects: &[Object]) {
        if objects.len() <= INTERESTS_MAX {
            let asks = Command::Asks {
                peer,
                objects: objects.to_vec(),
            };
            // Lost when there is too much to do: the peer announces what it gets as well.
            let _ = self.commands.try_send(asks);
        }
    }

    /// Running transfers and those that ended within the last ten seconds.
    pub fn status(&self) -> Vec<TransferStatus> {
        self.board.lock().status(self.clock.now())
    }

    /// The last blame of each peer.
    pub fn blames(&self) -> Vec<Blame> {
        self.board.lock().blames()
    }

    /// Blocks of answers that failed verification since the start.
    pub fn rejected(&self) -> u64 {
        self.board.lock().rejected
    }

    /// Bytes of blocks that were asked for and haven't come, and how many may be at most.
    pub fn requested(&self) -> (u64, u64) {
        (
            self.board.lock().requested,
            scheduler::Scheduler::in_flight_bytes_max(),
        )
    }

    /// Ends all transfers with [`TransferError::Stopping`].
    pub fn stop(&self) {
        self.stop.cancel();
    }

    fn new_wish(&self) -> WishId {
        WishId(self.next_wish.fetch_add(1, Ordering::Relaxed))
    }
}

/// Something that is being fetched ahead: what of it is not here yet is given up when this is dropped. Where the queue is
/// full then, it comes all the same.
#[derive(Debug)]
pub struct Prefetch {
    wish: WishId,
    commands: mpsc::Sender<Command>,
    /// What is taken from an older version first.
    taking: Option<tokio::task::AbortHandle>,
}

impl Drop for Prefetch {
    fn drop(&mut self) {
        if let Some(taking) = &self.taking {
            taking.abort();
        }
        let _ = self.commands.try_send(Command::GiveUp(self.wish));
    }
}

/// Gives a wish up when its reader goes away. Where the queue is full the engine notices by itself, a moment later.
struct GiveUp<'a> {
    wish: Option<WishId>,
    commands: &'a mpsc::Sender<Command>,
}

impl Drop for GiveUp<'_> {
    fn drop(&mut self) {
        if let Some(wish) = self.wish {
            let _ = self.commands.try_send(Command::GiveUp(wish));
        }
    }
}
