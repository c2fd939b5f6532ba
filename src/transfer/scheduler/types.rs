//! What goes into the scheduler and what comes out.

use std::ops::Range;

use libp2p::PeerId;

use crate::{
    content::{BlockSet, Object},
    transfer::TransferError,
};

/// Names a wish; chosen by the caller, each once.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct WishId(pub u64);

/// Names a request; chosen by the scheduler.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RequestId(pub u64);

/// How urgent a wish is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Priority {
    /// Somebody waits.
    Demand,
    /// Nobody waits yet.
    Prefetch,
}

/// What somebody wants.
#[derive(Clone, Debug)]
pub struct Wanted<'a> {
    /// Of what.
    pub object: Object,
    /// Which blocks; cut to the object.
    pub blocks: Range<u64>,
    /// How urgently.
    pub priority: Priority,
    /// It is enough that they can be read: they need not be in the store yet, nor need the size be proven.
    pub to_read: bool,
    /// What the store has of the object right now.
    pub present: &'a BlockSet,
    /// Whether the store has the proof of the object's size.
    pub size_proven: bool,
}

/// What a peer has of an object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Held {
    /// Nothing.
    No,
    /// These blocks.
    Part(BlockSet),
    /// All of it.
    Whole,
}

/// How a request ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// The blocks were verified and are in the store.
    Blocks,
    /// The peer lacks them; what it has.
    DontHave(Held),
    /// The peer has too much to do.
    Busy,
    /// The peer proved that the content has another size.
    WrongSize {
        /// The proven size.
        actual: u64,
    },
    /// The answer didn't verify, or made no sense.
    Bad(String),
    /// The request failed.
    Failed(String),
    /// No answer in time.
    TimedOut,
    /// The answer was good but the store could not keep it.
    NotStored(String),
}

/// What became of a peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It sent something that doesn't verify: to be disconnected and refused.
    Blocked,
    /// It failed three times in a row: to be reported. It is left alone for a while.
    Dropped,
}

/// Something to be done by the caller.
#[derive(Clone, Debug)]
pub enum Output {
    /// Ask the peer what it has of the object; tell [`Scheduler::handle_have`] either way.
    AskHave {
        /// Whom.
        peer: PeerId,
        /// About what.
        object: Object,
    },
    /// Ask the peer for its load; tell [`Scheduler::handle_load`] if it answers.
    AskLoad {
        /// Whom.
        peer: PeerId,
    },
    /// Ask the directory who else holds the object; tell [`Scheduler::handle_holders`] either way.
    FindHolders {
        /// Of what.
        object: Object,
    },
    /// Ask the peer for blocks; tell [`Scheduler::handle_answer`] either way.
    Request {
        /// Its name.
        id: RequestId,
        /// Whom.
        peer: PeerId,
        /// Of what.
        object: Object,
        /// At most [`REQUEST_BLOCKS_MAX`].
        blocks: Range<u64>,
        /// The late request that this one doubles.
        hedge_of: Option<RequestId>,
    },
    /// Ask the peer for whole small contents, whether it has them or not; tell [`Scheduler::handle_batch`] either way.
    Batch {
        /// Its name.
        id: RequestId,
        /// Whom.
        peer: PeerId,
        /// At most [`super::BATCH_OBJECTS_MAX`] of one block each, of [`super::BATCH_BYTES_MAX`] together.
        objects: Vec<Object>,
    },
    /// Drop the request or batch; its answer is of no interest any more.
    Cancel {
        /// Which.
        id: RequestId,
    },
    /// Tell all peers that these blocks are here.
    Announce {
        /// Of what.
        object: Object,
        /// Which.
        blocks: BlockSet,
    },
    /// Act on what a peer did.
    Verdict {
        /// Who.
        peer: PeerId,
        /// What it comes to.
        verdict: Verdict,
        /// What it did.
        reason: String,
    },
    /// All blocks of the wish can be read.
    Done {
        /// Which.
        wish: WishId,
    },
    /// The wish failed.
    Failed {
        /// Which.
        wish: WishId,
        /// Why.
        error: TransferError,
    },
}
