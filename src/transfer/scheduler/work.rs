//! What is known of one object while it is wanted, and a while longer: who holds which of its blocks.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    ops::Range,
    time::Duration,
};

use libp2p::PeerId;

use super::{Held, WishId, crowd::Crowd};
use crate::content::BlockSet;

/// Most peers that a summary names.
const SUMMARY_PEERS_MAX: usize = 8;
/// Most bytes of what a peer said that are kept.
const SAID_BYTES_MAX: usize = 128;

/// What a peer last said about an object, or what became of asking it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Said {
    /// Was asked, hasn't answered.
    Nothing,
    /// Could not be asked what it has.
    NoHaveAnswer,
    /// Has none of it.
    HasNone,
    /// Has some blocks.
    HasPart(u64),
    /// Has all of it.
    HasAll,
    /// Has not what was asked for.
    DoesNotHave,
    /// Sent blocks.
    Sent,
    /// Too busy.
    Busy,
    /// Gave no block in time.
    TimedOut,
    /// The request failed.
    Failed(String),
    /// Sent something that doesn't verify.
    Bad,
    /// Went away.
    Left,
}

impl Said {
    /// A failure, cut to a length fit for a log line.
    pub(super) fn failed(reason: &str) -> Self {
        Self::Failed(cut(reason).to_owned())
    }
}

impl fmt::Display for Said {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Nothing => f.write_str("no answer yet"),
            Self::NoHaveAnswer => f.write_str("did not say what it has"),
            Self::HasNone => f.write_str("doesn't have it"),
            Self::HasPart(blocks) => write!(f, "has {blocks} blocks of it"),
            Self::HasAll => f.write_str("has it"),
            Self::DoesNotHave => f.write_str("doesn't have these blocks"),
            Self::Sent => f.write_str("sent some blocks"),
            Self::Busy => f.write_str("too busy"),
            Self::TimedOut => f.write_str("timed out"),
            Self::Failed(reason) => write!(f, "failed: {reason}"),
            Self::Bad => f.write_str("sent bad blocks"),
            Self::Left => f.write_str("went away"),
        }
    }
}

/// Cuts a text from elsewhere at a character boundary.
pub(super) fn cut(text: &str) -> &str {
    let mut end = text.len().min(SAID_BYTES_MAX);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    &text[..end]
}

/// One peer's part in an object.
#[derive(Debug)]
pub(super) struct Holder {
    /// What it has, as far as known.
    pub(super) held: Held,
    /// When it was last asked what it has.
    pub(super) asked_at: Option<Duration>,
    /// That question is open.
    pub(super) waiting: bool,
    /// It lacked what it was asked for: not asked for blocks before this, unless it announces some.
    pub(super) shunned_until: Duration,
    /// When it last showed that it fetches this too.
    pub(super) fetches_at: Option<Duration>,
    /// It did not fetch in time what was its part: others take it over until then.
    pub(super) excused_until: Duration,
    /// It was asked for a block on a guess, or although it says that it has nothing: once is enough.
    pub(super) probed: bool,
    /// For the log.
    pub(super) said: Said,
}

impl Holder {
    pub(super) fn new() -> Self {
        Self {
            held: Held::No,
            asked_at: None,
            waiting: false,
            shunned_until: Duration::ZERO,
            fetches_at: None,
            excused_until: Duration::ZERO,
            probed: false,
            said: Said::Nothing,
        }
    }

    /// Takes what the peer says it has, in place of what was known.
    pub(super) fn tells(&mut self, held: Held) {
        self.said = match &held {
            Held::No => Said::HasNone,
            Held::Part(blocks) => Said::HasPart(blocks.len()),
            Held::Whole => Said::HasAll,
        };
        self.held = held;
    }
}

/// What the directory was asked and said.
#[derive(Debug, Default)]
pub(super) struct Directory {
    /// When it was last asked.
    pub(super) asked_at: Option<Duration>,
    /// How many holders its last answer named.
    pub(super) named: Option<usize>,
}

/// One object.
#[derive(Debug)]
pub(super) struct Work {
    /// Whether the store has the proof of the object's size.
    pub(super) size_proven: bool,
    /// It is tried in a batch, and not asked for otherwise meanwhile.
    pub(super) in_batch: bool,
    /// How often a peer was asked for blocks before anybody had said what it has, and which.
    pub(super) guesses: u32,
    pub(super) guessed: Option<PeerId>,
    /// Unfinished wishes for it.
    pub(super) wishes: BTreeSet<WishId>,
    /// Blocks asked for and not answered.
    pub(super) in_flight: BlockSet,
    /// Who shares the work, as it was when that was looked at last.
    pub(super) crowd: Option<Crowd>,
    /// Peers that were asked.
    pub(super) holders: BTreeMap<PeerId, Holder>,
    /// The directory.
    pub(super) directory: Directory,
    /// When the oldest of the present wishes came, while there are any; when the last one ended, otherwise.
    pub(super) since: Duration,
}

impl Work {
    pub(super) fn new(now: Duration, size_proven: bool) -> Self {
        Self {
            size_proven,
            in_batch: false,
            guesses: 0,
            guessed: None,
            wishes: BTreeSet::new(),
            in_flight: BlockSet::default(),
            crowd: None,
            holders: BTreeMap::new(),
            directory: Directory::default(),
            since: now,
        }
    }

    /// Who was asked and what they said, for a log line. `all` is how many peers are connected.
    pub(super) fn summary(&self, all: usize) -> String {
        let mut parts: Vec<String> = self
            .holders
            .iter()
            .take(SUMMARY_PEERS_MAX)
            .map(|(peer, holder)| format!("{peer} {}", holder.said))
            .collect();
        if self.holders.len() > SUMMARY_PEERS_MAX {
            parts.push(format!(
                "{} more peers",
                self.holders.len() - SUMMARY_PEERS_MAX
            ));
        }
        if all == 0 {
            parts.push("no peer is connected".to_owned());
        }
        parts.push(match (&self.directory.asked_at, self.directory.named) {
            (None, _) => "trackers were not asked".to_owned(),
            (Some(_), None) => "trackers have not answered".to_owned(),
            (Some(_), Some(0)) => "trackers know no holder".to_owned(),
            (Some(_), Some(named)) => format!("trackers named {named}"),
        });
        parts.join("; ")
    }
}

impl Held {
    /// Whether the block is there.
    pub(super) fn has(&self, block: u64) -> bool {
        match self {
            Self::No => false,
            Self::Part(blocks) => blocks.contains(block..block + 1),
            Self::Whole => true,
        }
    }

    /// The first run of blocks within the range that is there.
    pub(super) fn first_run(&self, range: &Range<u64>) -> Option<Range<u64>> {
        match self {
            Self::No => None,
            Self::Part(blocks) => blocks.present(range.clone()).next(),
            Self::Whole => Some(range.clone()),
        }
    }

    /// Adds blocks.
    pub(super) fn add(&mut self, blocks: &BlockSet) {
        match self {
            Self::No => *self = Self::Part(blocks.clone()),
            Self::Part(held) => held.union(blocks),
            Self::Whole => {}
        }
    }

    /// Takes blocks out, of an object of `all` blocks.
    pub(super) fn remove(&mut self, blocks: Range<u64>, all: u64) {
        let mut held = match std::mem::replace(self, Self::No) {
            Self::No => return,
            Self::Part(held) => held,
            Self::Whole => BlockSet::of(0..all),
        };
        held.remove(blocks);
        if !held.is_empty() {
            *self = Self::Part(held);
        }
    }
}
