//! Heads that others show: checked, kept if they say anything new, and left to the merger.

use std::time::Duration;

use libp2p::PeerId;
use serde_bytes::ByteBuf;

use super::{
    NamespaceError, Pushed, RefusedPush,
    commit::PUSHED_CHANGES_BYTES_MAX,
    disk::Disk,
    heads::{KnownHead, Offered},
    plan::Edits,
    replica::{Event, Moment, Replica},
    state::known,
};
use crate::{
    cluster::{CertificateError, Head, HeadError},
    manifest::{self, Key, NodeHash, TreeError, Versions, WriterNumber},
};

/// Writers that a head may name: well below what fits one, or nobody could sign a head that has seen it.
pub(super) const HEAD_WRITERS_MAX: usize = 2048;
/// Heads that stand beside each other and are kept; each has a writer of its own.
const HEADS_KEPT_MAX: usize = 1024;
/// With those that have seen one of the others, which goes when they are merged.
const HEADS_KEPT_AND_JOINED_MAX: usize = 2 * HEADS_KEPT_MAX;
/// A head that was given up is tried again no sooner than that when others than its writer show it.
const TRY_AGAIN_AFTER: Duration = Duration::from_secs(600);

impl<D: Disk> Replica<D> {
    /// Takes heads. Returns whether any was news, and the first reason for which one was refused; the others are taken
    /// all the same.
    pub(super) fn admit(
        &self,
        from: Option<PeerId>,
        heads: Vec<Vec<u8>>,
        now: Moment,
    ) -> (bool, Result<(), String>) {
        let mut news = false;
        let mut refused = Ok(());
        for bytes in heads {
            match self.admit_one(from, bytes, now) {
                Ok(new) => {
                    news |= new;
                    self.state.write().has_heard = true;
                }
                Err(reason) if refused.is_ok() => refused = Err(reason),
                Err(_) => {}
            }
        }
        (news, refused)
    }

    /// Takes a push: with its changes the nodes are made here, and nothing needs to be fetched.
    pub(super) fn admit_push(
        &self,
        from: PeerId,
        bytes: Vec<u8>,
        base: NodeHash,
        changes: Option<Vec<(ByteBuf, ByteBuf)>>,
        now: Moment,
    ) -> Result<Pushed, RefusedPush> {
        let Some(head) = self.check(Some(from), &bytes, now)? else {
            return Ok(Pushed::Known);
        };
        let mut changes_hold = false;
        // Nothing is worked out for a head that adds nothing.
        if let Some(changes) = changes
            && !self.state.read().heads.covers(&head)
        {
            let edits = pushed(changes).map_err(RefusedPush::Offence)?;
            match manifest::apply(&self.nodes, base, &edits) {
                Ok(applied) if applied.root != head.root => {
                    let reason = "the changes of a push do not lead to its root";
                    return Err(RefusedPush::Offence(reason.into()));
                }
                Ok(applied) => {
                    let kept = self.nodes.put(&applied.nodes);
                    kept.map_err(|error| RefusedPush::Other(error.to_string()))?;
                    changes_hold = true;
                }
                // The merger fetches what it needs.
                Err(TreeError::Missing(_)) => {}
                Err(error) => {
                    let reason = format!("the changes of a push do not fit: {error}");
                    return Err(match error {
                        TreeError::Bounds(..) => RefusedPush::Offence(reason),
                        // The base is not the sender's work, nor is this machine's disk.
                        _ => RefusedPush::Other(reason),
                    });
                }
            }
        }
        match self.take(Some(from), head, now) {
            Ok(true) => Ok(Pushed::News { changes_hold }),
            Ok(false) => Ok(Pushed::Known),
            Err(reason) => Err(RefusedPush::Other(reason)),
        }
    }

    fn admit_one(&self, from: Option<PeerId>, bytes: Vec<u8>, now: Moment) -> Result<bool, String> {
        if from.is_some() {
            self.hear_of_own(&bytes)
                .map_err(|error| error.to_string())?;
        }
        match self
            .check(from, &bytes, now)
            .map_err(|error| error.to_string())?
        {
            Some(head) => self.take(from, head, now),
            None => Ok(false),
        }
    }

    /// Decodes and verifies a head; `None` for one that was looked at before.
    fn check(
        &self,
        from: Option<PeerId>,
        bytes: &[u8],
        now: Moment,
    ) -> Result<Option<KnownHead>, HeadError> {
        let digest = *blake3::hash(bytes).as_bytes();
        {
            let mut state = self.state.write();
            if let Some((writer, tried)) = state.given_up.get(&digest)
                && now.at < tried + TRY_AGAIN_AFTER
                && from.map(|from| WriterNumber::of(&from)) != Some(writer)
            {
                return Ok(None);
            }
            if state.seen_heads.get(&digest).is_some() {
                if state.outdated.is_some() {
                    self.tell(Event::ToBringUp);
                }
                if state.heads.shown_again(&digest) {
                    self.tell(Event::ToMerge);
                }
                return Ok(None);
            }
        }
        let head = Head::decode(bytes)?;
        head.verify(&self.keys, now.wall_ns)?;
        if head.covers.ranges().count() > HEAD_WRITERS_MAX {
            let reason = "it names more writers than a head that follows it could";
            return Err(HeadError::Malformed(reason.into()));
        }
        Ok(Some(known(&head, bytes.to_vec())))
    }

    /// Takes a verified head.
    fn take(&self, from: Option<PeerId>, head: KnownHead, now: Moment) -> Result<bool, String> {
        self.watch_own_number(&head)
            .and_then(|()| self.keep(from, head, now))
            .map_err(|error| {
                // The peer is not to blame: it may show the head again.
                tracing::warn!(%error, "a head could not be kept");
                error.to_string()
            })
    }

    /// Takes another identity when the head shows that this one is used elsewhere, and otherwise learns what of this
    /// node's work has reached others.
    fn watch_own_number(&self, head: &KnownHead) -> Result<(), NamespaceError> {
        let elsewhere = {
            let state = self.state.read();
            let writer = state.writer.as_ref();
            writer.is_some_and(|writer| writer.is_used_elsewhere(head))
        };
        if elsewhere {
            return self.yield_identity();
        }
        let reached = {
            let state = self.state.read();
            let number = state.writer.as_ref().map(|writer| writer.number);
            number.map_or(0, |number| head.covers.sequence(number))
        };
        self.note_reached(reached)
    }

    /// A member that shows this node's own head has its work, though it writes nothing itself.
    fn hear_of_own(&self, bytes: &[u8]) -> Result<(), NamespaceError> {
        let shown = {
            let state = self.state.read();
            let number = state.writer.as_ref().map(|writer| writer.number);
            let mut heads = state.heads.iter();
            heads
                .find(|head| Some(head.writer) == number && head.bytes == bytes)
                .map(|head| head.sequence)
        };
        shown.map_or(Ok(()), |sequence| self.note_reached(sequence))
    }

    /// Notes that this node's work up to a sequence has reached somebody.
    fn note_reached(&self, sequence: u64) -> Result<(), NamespaceError> {
        let mut state = self.state.write();
        let Some(writer) = &mut state.writer else {
            return Ok(());
        };
        let reached = sequence.min(writer.last);
        if reached > writer.confirmed {
            self.records.save_confirmed(writer.number, reached)?;
            for dot in writer.confirm(reached) {
                self.records.remove_own_head(dot)?;
            }
        }
        Ok(())
    }

    fn keep(
        &self,
        from: Option<PeerId>,
        head: KnownHead,
        now: Moment,
    ) -> Result<bool, NamespaceError> {
        let digest = head.digest();
        let mut state = self.state.write();
        let joins = |known: &KnownHead| head.covers.includes(&known.covers);
        let kept = state.heads.len();
        let follows = |known: &KnownHead| known.writer == head.writer && joins(known);
        let is_room = kept < HEADS_KEPT_MAX
            || kept < HEADS_KEPT_AND_JOINED_MAX && state.heads.iter().any(joins)
            || state.heads.iter().any(follows);
        if !is_room {
            return Err(NamespaceError::Failed(format!(
                "{kept} heads stand beside each other already"
            )));
        }
        state.saw(head.time);
        if state.heads.covers(&head) {
            state.seen_heads.put(digest, ());
            return Ok(false);
        }
        // What may fail comes first: of a head that memory has nobody is told a second time.
        self.records.put_head(&head)?;
        let Offered::Taken { dropped, clash } = state.heads.offer(head.clone(), false) else {
            return Ok(false);
        };
        state.seen_heads.put(digest, ());
        if clash {
            tracing::warn!(
                writer = head.writer.0,
                sequence = head.sequence,
                "one writer signed two heads with the same number: a restored backup, or a clone"
            );
        }
        let was_given_up = state.given_up.get(&digest).is_some();
        if was_given_up {
            // Nobody is told of it, and nothing gives way to it, before somebody gives its nodes.
            state.denied(&digest, now.at);
            let tried = (head.writer, now.at);
            state.given_up.put(digest, tried);
            for head in &dropped {
                state.seen_heads.remove(&head.digest());
            }
        }
        if let Some(from) = from {
            state.showed.put(digest, from);
        }
        let is_first = state.root.is_none();
        // What pending changes wait for may have given way to this one.
        let waited = state.waits_for_merge.take().is_some();
        self.plan_join(&mut state, now.at);
        drop(state);
        self.tell(Event::HeadKnown(true));
        self.tell(Event::ToMerge);
        if waited {
            self.tell(Event::ToCommit);
        }
        if is_first {
            // Nothing is fetched for this: its root node alone is looked at next.
            self.show_first(&head, now)?;
        }
        self.drop_heads(&dropped)?;
        Ok(!was_given_up)
    }
}

impl From<HeadError> for RefusedPush {
    fn from(error: HeadError) -> Self {
        let reason = error.to_string();
        match error {
            HeadError::Malformed(_) | HeadError::Foreign | HeadError::Signature => {
                Self::Offence(reason)
            }
            HeadError::Certificate(CertificateError::Invalid | CertificateError::ReadOnly) => {
                Self::Offence(reason)
            }
            // Two clocks may differ.
            HeadError::Certificate(CertificateError::Expired) | HeadError::Future { .. } => {
                Self::Other(reason)
            }
        }
    }
}

/// Decodes the changes of a push.
fn pushed(changes: Vec<(ByteBuf, ByteBuf)>) -> Result<Edits, String> {
    let bytes: usize = changes
        .iter()
        .map(|(key, versions)| key.len() + versions.len())
        .sum();
    if bytes > PUSHED_CHANGES_BYTES_MAX {
        return Err("the changes of a push are larger than allowed".into());
    }
    let mut edits = Edits::new();
    for (key, versions) in changes {
        let key =
            Key::from_bytes(key.into_vec()).map_err(|error| format!("a key in a push: {error}"))?;
        let versions = if versions.is_empty() {
            None
        } else {
            let versions = Versions::decode(&versions)
                .map_err(|error| format!("an entry in a push: {error}"))?;
            Some(versions)
        };
        edits.insert(key, versions);
    }
    Ok(edits)
}
