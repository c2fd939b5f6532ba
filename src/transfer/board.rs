//! What `p2pfs transfers` and `p2pfs peers` report: rows of transfers, blames, counts. Written by the executor, read by
//! whoever asks.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    time::Duration,
};

use libp2p::PeerId;

use super::{Blame, TransferState, TransferStatus};
use crate::content::{BlockSet, Object};

/// How long an ended transfer stays in the report.
const ENDED_FOR: Duration = Duration::from_secs(10);
/// Rates are over this long.
const RATE_OVER: Duration = Duration::from_secs(5);
/// Received bytes are summed up in slots of this length.
const RATE_SLOT: Duration = Duration::from_millis(100);
/// A transfer without progress for this long counts as stalled.
pub(super) const STALLED_AFTER: Duration = Duration::from_secs(5);
/// Most transfers in the report; the ones that ended first go first.
const ROWS_MAX: usize = 1024;
/// Most peers whose blame is remembered; the oldest goes first.
const BLAMES_MAX: usize = 256;

struct Row {
    label: String,
    since: Duration,
    progress_at: Duration,
    ended_at: Option<Duration>,
    trouble: Option<String>,
    here: BlockSet,
    received: VecDeque<(Duration, u64)>,
    sources: BTreeSet<PeerId>,
}

/// The report.
#[derive(Default)]
pub(super) struct Board {
    rows: BTreeMap<Object, Row>,
    blames: BTreeMap<PeerId, Blame>,
    pub(super) rejected: u64,
    /// Bytes of blocks that were asked for and haven't come.
    pub(super) requested: u64,
}

impl Board {
    /// A wish for the object came; `here` is what the store has.
    pub(super) fn on_wish(&mut self, now: Duration, object: Object, label: String, here: BlockSet) {
        self.prune(now);
        let row = self.rows.entry(object).or_insert_with(|| Row {
            label: String::new(),
            since: now,
            progress_at: now,
            ended_at: None,
            trouble: None,
            here: BlockSet::default(),
            received: VecDeque::new(),
            sources: BTreeSet::new(),
        });
        row.label = label;
        row.here = here;
        if row.ended_at.take().is_some() {
            row.progress_at = now;
            row.trouble = None;
        }
    }

    /// Blocks came from a peer.
    pub(super) fn on_blocks(
        &mut self,
        now: Duration,
        object: Object,
        blocks: std::ops::Range<u64>,
        peer: PeerId,
    ) {
        let Some(row) = self.rows.get_mut(&object) else {
            return;
        };
        let range = object.bytes_of(blocks.clone());
        let bytes = range.end - range.start;
        row.here.insert(blocks);
        row.progress_at = now;
        row.trouble = None;
        row.sources.insert(peer);
        match row.received.back_mut() {
            Some((slot, sum)) if now < *slot + RATE_SLOT => *sum += bytes,
            _ => row.received.push_back((now, bytes)),
        }
        while row
            .received
            .front()
            .is_some_and(|(slot, _)| *slot + RATE_OVER < now)
        {
            row.received.pop_front();
        }
    }

    /// The last wish for the object ended, well or with an error.
    pub(super) fn on_end(&mut self, now: Duration, object: &Object, error: Option<String>) {
        if let Some(row) = self.rows.get_mut(object) {
            row.ended_at = Some(now);
            row.trouble = error;
        }
    }

    /// Running transfers without progress for [`STALLED_AFTER`].
    pub(super) fn without_progress(&self, now: Duration) -> Vec<Object> {
        self.rows
            .iter()
            .filter(|(_, row)| row.ended_at.is_none() && row.progress_at + STALLED_AFTER <= now)
            .map(|(object, _)| *object)
            .collect()
    }

    /// Says why one makes no progress.
    pub(super) fn on_trouble(&mut self, object: &Object, trouble: String) {
        if let Some(row) = self.rows.get_mut(object) {
            row.trouble = Some(trouble);
        }
    }

    /// A peer is blamed.
    pub(super) fn on_blame(&mut self, blame: Blame) {
        self.blames.insert(blame.peer, blame);
        if self.blames.len() > BLAMES_MAX {
            let oldest = self.blames.values().min_by_key(|blame| blame.at_ns);
            if let Some(peer) = oldest.map(|blame| blame.peer) {
                self.blames.remove(&peer);
            }
        }
    }

    /// The last blame of each peer.
    pub(super) fn blames(&self) -> Vec<Blame> {
        self.blames.values().cloned().collect()
    }

    /// The report as of now.
    pub(super) fn status(&self, now: Duration) -> Vec<TransferStatus> {
        self.rows
            .iter()
            .filter(|(_, row)| !row.is_over(now))
            .map(|(object, row)| row.status(*object, now))
            .collect()
    }

    fn prune(&mut self, now: Duration) {
        self.rows.retain(|_, row| !row.is_over(now));
        while self.rows.len() >= ROWS_MAX {
            let first = self
                .rows
                .iter()
                .min_by_key(|(_, row)| (row.ended_at.is_none(), row.ended_at, row.since))
                .map(|(object, _)| *object);
            let Some(first) = first else { break };
            self.rows.remove(&first);
        }
    }
}

impl Row {
    fn is_over(&self, now: Duration) -> bool {
        self.ended_at.is_some_and(|at| at + ENDED_FOR <= now)
    }

    fn status(&self, object: Object, now: Duration) -> TransferStatus {
        let state = match (&self.trouble, self.ended_at) {
            (Some(trouble), _) => TransferState::Stalled(trouble.clone()),
            (None, Some(_)) => TransferState::Finished,
            (None, None) if self.sources.is_empty() => TransferState::Requesting,
            (None, None) => TransferState::Downloading,
        };
        let done_bytes = self
            .here
            .ranges()
            .iter()
            .map(|range| object.bytes_of(range.clone()))
            .map(|bytes| bytes.end - bytes.start)
            .sum();
        let lately: u64 = self
            .received
            .iter()
            .filter(|(slot, _)| now < *slot + RATE_OVER)
            .map(|(_, bytes)| bytes)
            .sum();
        let over = now
            .saturating_sub(self.since)
            .clamp(RATE_SLOT, RATE_OVER)
            .as_millis();
        TransferStatus {
            label: self.label.clone(),
            object,
            state,
            done_bytes,
            rate_bytes_per_s: lately * 1000 / u64::try_from(over).unwrap_or(u64::MAX).max(1),
            sources: self.sources.len(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::content::{BLOCK_BYTES, ContentId};

    fn object(number: u8) -> Object {
        Object {
            content: ContentId([number; 32]),
            size: 100 * BLOCK_BYTES,
        }
    }

    fn at(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    #[test]
    fn a_transfer_is_requested_then_downloading_then_finished_then_gone() {
        let mut board = Board::default();
        let peer = PeerId::random();
        board.on_wish(at(0), object(1), "a/b".into(), BlockSet::of(0..10));
        let state = |board: &Board, now| board.status(now).pop().map(|row| row.state);
        assert_eq!(state(&board, at(1)), Some(TransferState::Requesting));
        board.on_blocks(at(1), object(1), 10..26, peer);
        let row = board.status(at(2)).remove(0);
        assert_eq!(row.state, TransferState::Downloading);
        assert_eq!(
            (row.label.as_str(), row.done_bytes, row.sources),
            ("a/b", 26 * BLOCK_BYTES, 1)
        );
        assert_eq!(row.rate_bytes_per_s, 16 * BLOCK_BYTES / 2);
        board.on_end(at(2), &object(1), None);
        assert_eq!(state(&board, at(3)), Some(TransferState::Finished));
        assert_eq!(state(&board, at(12)), None);
    }

    #[test]
    fn a_transfer_without_progress_says_why() {
        let mut board = Board::default();
        board.on_wish(at(0), object(1), "a".into(), BlockSet::default());
        assert!(board.without_progress(at(4)).is_empty());
        assert_eq!(board.without_progress(at(5)), [object(1)]);
        board.on_trouble(&object(1), "no peer is connected".into());
        assert_eq!(
            board.status(at(5))[0].state,
            TransferState::Stalled("no peer is connected".into())
        );
        board.on_blocks(at(6), object(1), 0..1, PeerId::random());
        assert_eq!(board.status(at(6))[0].state, TransferState::Downloading);
    }

    #[test]
    fn the_report_is_bounded() {
        let mut board = Board::default();
        for number in 0..2000u64 {
            let mut content = [0; 32];
            content[..8].copy_from_slice(&number.to_le_bytes());
            let object = Object {
                content: ContentId(content),
                size: 1,
            };
            board.on_wish(at(0), object, String::new(), BlockSet::default());
            board.on_end(at(0), &object, None);
            board.on_blame(Blame {
                peer: PeerId::random(),
                reason: String::new(),
                at_ns: number,
            });
        }
        assert_eq!(board.status(at(0)).len(), ROWS_MAX);
        assert_eq!(board.blames().len(), BLAMES_MAX);
        assert!(board.blames().iter().all(|blame| blame.at_ns >= 2000 - 256));
    }
}
