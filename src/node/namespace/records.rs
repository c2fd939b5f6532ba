//! What the namespace keeps in the store, under names of its own.
//!
//! Settings: `namespace/state` (root, context, time), `namespace/sequence` (up to which sequence a writer may have
//! signed), `namespace/signed` (a head of this node with all that changes with it, until each is where it belongs), `namespace/confirmed` (up to which its work is known to have reached others), `namespace/pending` (changes that
//! could not be committed), `namespace/renames` (those of them that were renames, by their paths), `namespace/kept` (the sequence that stands for them), `namespace/identity` (the identity taken in place of the node's
//! first one), `namespace/redo` (work to be published again under it), `namespace/outdated` (an earlier state, and what was brought in its place), `namespace/nodes` (bytes of manifest nodes that came since the
//! last collection, and that stayed then). Records among the heads: `h` ‖ digest → a head that
//! is needed; `o` ‖ writer ‖ sequence → what a head of this node stood for.

use std::sync::Arc;

use serde::{Deserialize, Serialize, de::DeserializeOwned};
use serde_bytes::ByteBuf;

use super::{
    NamespaceError,
    disk::Disk,
    heads::KnownHead,
    overlay::{Changes, Pending, Rename},
    refresh::OutdatedRecord,
    state::known,
};
use crate::{
    cluster::Head,
    manifest::{
        CausalContext, Dot, HybridTime, NodeHash, TreePath, Version, Versions, WriterNumber,
    },
    store::StoreError,
};

const STATE: &str = "namespace/state";
const SIGNED: &str = "namespace/signed";
const SEQUENCE: &str = "namespace/sequence";
const CONFIRMED: &str = "namespace/confirmed";
const PENDING: &str = "namespace/pending";
const RENAMES: &str = "namespace/renames";
const KEPT: &str = "namespace/kept";
const IDENTITY: &str = "namespace/identity";
const REDO: &str = "namespace/redo";
const OUTDATED: &str = "namespace/outdated";
const NODES: &str = "namespace/collected";
const MINUTE_NS: u64 = 60 * 1_000_000_000;
/// How long roots are remembered.
const ROOTS_MINUTES: u64 = 30 * 24 * 60;
/// Version of all records here.
const FORMAT: u32 = 1;

impl From<StoreError> for NamespaceError {
    fn from(error: StoreError) -> Self {
        match error {
            StoreError::Full | StoreError::NoRoom { .. } => Self::Full,
            other => Self::Failed(other.to_string()),
        }
    }
}

#[derive(Serialize, Deserialize)]
struct Versioned<T> {
    format: u32,
    record: T,
}

/// The merged state.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct StateRecord {
    pub(super) root: Option<NodeHash>,
    pub(super) covers: CausalContext,
    pub(super) clock: HybridTime,
}

/// What a head of this node stood for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct OwnHead {
    pub(super) root: NodeHash,
    /// The state that it was made on: all that this node wrote under sequences after those of the head before is in the
    /// difference.
    pub(super) base: NodeHash,
    pub(super) time: HybridTime,
    /// Whether all local changes made before it are in it.
    pub(super) commits: bool,
}

/// A head of this node, with what changes on the disk along with it.
pub(super) struct Signed {
    pub(super) head: KnownHead,
    pub(super) own: OwnHead,
    /// When it was signed, by the clock on the wall: nanoseconds since 1970.
    pub(super) wall_ns: u64,
    /// What the record of pending changes has from then on, where it had some of those that are in the head.
    pub(super) kept: Option<Kept>,
}

/// Pending changes that are kept for the next start.
#[derive(Default)]
pub(super) struct Kept {
    pub(super) pending: Changes,
    /// The renames among them that no head tells of.
    pub(super) renames: Vec<Rename>,
}

impl Kept {
    pub(super) fn is_empty(&self) -> bool {
        self.pending.is_empty() && self.renames.is_empty()
    }
}

#[derive(Serialize, Deserialize)]
struct SignedRecord {
    head: ByteBuf,
    base: NodeHash,
    commits: bool,
    wall_ns: u64,
    kept: Option<(Vec<PendingRecord>, Vec<RenameRecord>)>,
}

type RenameRecord = (ByteBuf, ByteBuf, HybridTime);

/// Work under a writer number that turned out to be used elsewhere, to be published again under the present one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Redo {
    /// The former number.
    pub(super) writer: WriterNumber,
    /// The work after this sequence is not known to have reached anybody.
    pub(super) above: u64,
    /// The state before that work.
    pub(super) base: NodeHash,
}

#[derive(Serialize, Deserialize)]
struct PendingRecord {
    path: ByteBuf,
    /// A single version with a dot that means nothing; empty for a deletion.
    entry: ByteBuf,
    seen: Vec<Dot>,
    time: HybridTime,
}

/// The records.
pub(super) struct Records<D> {
    disk: D,
}

impl<D: Disk> Records<D> {
    pub(super) fn new(disk: D) -> Self {
        Self { disk }
    }

    pub(super) fn settle(&self) -> Result<(), NamespaceError> {
        Ok(self.disk.settle()?)
    }

    pub(super) fn flush(&self) -> Result<(), NamespaceError> {
        Ok(self.disk.flush()?)
    }

    fn load<T: DeserializeOwned>(&self, name: &str) -> Result<Option<T>, NamespaceError> {
        let Some(bytes) = self.disk.setting(name)? else {
            return Ok(None);
        };
        decode(name, &bytes).map(Some)
    }

    fn save<T: Serialize>(&self, name: &str, record: &T) -> Result<(), NamespaceError> {
        Ok(self.disk.set_setting(name, Some(&encode(record)?))?)
    }

    pub(super) fn state(&self) -> Result<StateRecord, NamespaceError> {
        Ok(self.load(STATE)?.unwrap_or_default())
    }

    pub(super) fn save_state(&self, state: &StateRecord) -> Result<(), NamespaceError> {
        self.save(STATE, state)
    }

    /// A head that was signed and of which not everything may be where it belongs yet.
    pub(super) fn signed(&self) -> Result<Option<Signed>, NamespaceError> {
        let Some(record) = self.load::<SignedRecord>(SIGNED)? else {
            return Ok(None);
        };
        let head = Head::decode(&record.head)
            .map_err(|error| NamespaceError::Failed(format!("a signed head: {error}")))?;
        let head = known(&head, record.head.into_vec());
        let kept = record
            .kept
            .map(|(pending, renames)| restore(pending, renames));
        Ok(Some(Signed {
            own: OwnHead {
                root: head.root,
                base: record.base,
                time: head.time,
                commits: record.commits,
            },
            head,
            wall_ns: record.wall_ns,
            kept: kept.transpose()?,
        }))
    }

    /// Keeps a head with all that changes with it.
    pub(super) fn save_signed(&self, signed: &Signed) -> Result<(), NamespaceError> {
        let kept = signed.kept.as_ref();
        let record = SignedRecord {
            head: ByteBuf::from(signed.head.bytes.as_slice()),
            base: signed.own.base,
            commits: signed.own.commits,
            wall_ns: signed.wall_ns,
            kept: kept.map(|kept| {
                (
                    pending_records(&kept.pending),
                    rename_records(&kept.renames),
                )
            }),
        };
        self.save(SIGNED, &record)
    }

    /// All that changed with the last head is where it belongs, or the head is not to be.
    pub(super) fn forget_signed(&self) -> Result<(), NamespaceError> {
        Ok(self.disk.set_setting(SIGNED, None)?)
    }

    /// The highest sequence that the writer may have used.
    pub(super) fn sequence(&self, writer: WriterNumber) -> Result<u64, NamespaceError> {
        self.of_writer(SEQUENCE, writer)
    }

    pub(super) fn save_sequence(
        &self,
        writer: WriterNumber,
        sequence: u64,
    ) -> Result<(), NamespaceError> {
        self.save(SEQUENCE, &(writer, sequence))
    }

    /// The highest sequence of the writer that is known to have reached others.
    pub(super) fn confirmed(&self, writer: WriterNumber) -> Result<u64, NamespaceError> {
        self.of_writer(CONFIRMED, writer)
    }

    pub(super) fn save_confirmed(
        &self,
        writer: WriterNumber,
        sequence: u64,
    ) -> Result<(), NamespaceError> {
        self.save(CONFIRMED, &(writer, sequence))
    }

    /// The sequence of a writer with which changes were kept that no head has.
    pub(super) fn kept(&self, writer: WriterNumber) -> Result<Option<Dot>, NamespaceError> {
        let kept: Option<Dot> = self.load(KEPT)?;
        Ok(kept.filter(|kept| kept.writer == writer))
    }

    pub(super) fn save_kept(&self, kept: Dot) -> Result<(), NamespaceError> {
        self.save(KEPT, &kept)
    }

    fn of_writer(&self, name: &str, writer: WriterNumber) -> Result<u64, NamespaceError> {
        let kept: Option<(WriterNumber, u64)> = self.load(name)?;
        Ok(kept.map_or(0, |(of, sequence)| if of == writer { sequence } else { 0 }))
    }

    /// The identity taken in place of the node's first one, as the protocol buffer that libp2p makes of it.
    pub(super) fn identity(&self) -> Result<Option<Vec<u8>>, NamespaceError> {
        Ok(self.load::<ByteBuf>(IDENTITY)?.map(ByteBuf::into_vec))
    }

    pub(super) fn save_identity(&self, identity: &[u8]) -> Result<(), NamespaceError> {
        self.save(IDENTITY, &serde_bytes::Bytes::new(identity))
    }

    pub(super) fn redo(&self) -> Result<Option<Redo>, NamespaceError> {
        self.load(REDO)
    }

    pub(super) fn save_redo(&self, redo: Option<&Redo>) -> Result<(), NamespaceError> {
        match redo {
            Some(redo) => self.save(REDO, redo),
            None => Ok(self.disk.set_setting(REDO, None)?),
        }
    }

    pub(super) fn outdated(&self) -> Result<Option<OutdatedRecord>, NamespaceError> {
        self.load(OUTDATED)
    }

    pub(super) fn save_outdated(
        &self,
        outdated: Option<&OutdatedRecord>,
    ) -> Result<(), NamespaceError> {
        match outdated {
            Some(outdated) => self.save(OUTDATED, outdated),
            None => Ok(self.disk.set_setting(OUTDATED, None)?),
        }
    }

    /// The heads that no other covers, encoded.
    pub(super) fn heads(&self) -> Result<Vec<Vec<u8>>, NamespaceError> {
        let records = self.disk.heads()?;
        Ok(records
            .into_iter()
            .filter(|(key, _)| key.first() == Some(&b'h'))
            .map(|(_, head)| head)
            .collect())
    }

    pub(super) fn put_head(&self, head: &KnownHead) -> Result<(), NamespaceError> {
        Ok(self.disk.put_head(&head_key(head), &head.bytes)?)
    }

    pub(super) fn remove_head(&self, head: &KnownHead) -> Result<(), NamespaceError> {
        Ok(self.disk.remove_head(&head_key(head))?)
    }

    /// What the heads of a writer of this node stood for; records of other writers are dropped.
    pub(super) fn own_heads(
        &self,
        writer: WriterNumber,
    ) -> Result<Vec<(u64, OwnHead)>, NamespaceError> {
        let mut heads = Vec::new();
        for (key, record) in self.disk.heads()? {
            let [b'o', of @ ..] = key.as_slice() else {
                continue;
            };
            let (number, sequence) = of.split_at(of.len().min(8));
            match <[u8; 8]>::try_from(sequence) {
                Ok(sequence) if number == writer.0.to_be_bytes() => {
                    heads.push((u64::from_be_bytes(sequence), decode("own head", &record)?));
                }
                _ => self.disk.remove_head(&key)?,
            }
        }
        Ok(heads)
    }

    pub(super) fn put_own_head(&self, dot: Dot, head: &OwnHead) -> Result<(), NamespaceError> {
        Ok(self.disk.put_head(&own_key(dot), &encode(head)?)?)
    }

    pub(super) fn remove_own_head(&self, dot: Dot) -> Result<(), NamespaceError> {
        Ok(self.disk.remove_head(&own_key(dot))?)
    }

    /// Remembers the root of a moment: the last one of its minute stays, for 30 days.
    pub(super) fn note_root(&self, wall_ns: u64, root: NodeHash) -> Result<(), NamespaceError> {
        let minute = wall_ns / MINUTE_NS;
        let oldest = minute.saturating_sub(ROOTS_MINUTES);
        Ok(self
            .disk
            .put_root(minute, &encode(&(wall_ns, root))?, oldest)?)
    }

    /// Forgets the roots of the minutes that `too_many` names, of all and the present one. Returns the others.
    pub(super) fn thin_roots(
        &self,
        wall_ns: u64,
        too_many: impl Fn(&[u64], u64) -> Vec<u64>,
    ) -> Result<Vec<NodeHash>, NamespaceError> {
        let records = self.disk.roots()?;
        let minutes: Vec<_> = records.iter().map(|(minute, _)| *minute).collect();
        self.disk
            .remove_roots(&too_many(&minutes, wall_ns / MINUTE_NS))?;
        Ok(self.roots()?.into_iter().map(|(_, root)| root).collect())
    }

    /// Bytes of nodes that came since the last collection, and that stayed then; `None` before the first.
    pub(super) fn nodes_grown(&self) -> Result<Option<(u64, u64)>, NamespaceError> {
        self.load(NODES)
    }

    pub(super) fn save_nodes_grown(&self, grown: u64, stayed: u64) -> Result<(), NamespaceError> {
        self.save(NODES, &(grown, stayed))
    }

    /// Times (nanoseconds since 1970) and roots, oldest first.
    pub(super) fn roots(&self) -> Result<Vec<(u64, NodeHash)>, NamespaceError> {
        let records = self.disk.roots()?.into_iter();
        records.map(|(_, record)| decode("root", &record)).collect()
    }

    pub(super) fn pending(&self) -> Result<Kept, NamespaceError> {
        restore(
            self.load(PENDING)?.unwrap_or_default(),
            self.load(RENAMES)?.unwrap_or_default(),
        )
    }

    /// Keeps pending changes for the next start. A rename is there behind what it changed, or not: a head can do without its
    /// hint, and is not to tell of one that was not made.
    pub(super) fn save_pending(&self, kept: &Kept) -> Result<(), NamespaceError> {
        match kept.pending.is_empty() {
            true => self.disk.set_setting(PENDING, None)?,
            false => self.save(PENDING, &pending_records(&kept.pending))?,
        }
        match kept.renames.is_empty() {
            true => Ok(self.disk.set_setting(RENAMES, None)?),
            false => self.save(RENAMES, &rename_records(&kept.renames)),
        }
    }
}

fn pending_records(pending: &Changes) -> Vec<PendingRecord> {
    let record = |path: &TreePath, pending: &Pending| {
        let version = pending.entry.clone().map(|entry| Version {
            dot: Dot {
                writer: WriterNumber(0),
                sequence: 1,
            },
            time: pending.time,
            entry,
            moved: pending.moved.clone(),
        });
        let versions = version.and_then(|version| Versions::new(vec![version]));
        let entry = versions.map_or_else(Vec::new, |versions| versions.encode());
        PendingRecord {
            path: ByteBuf::from(path.to_bytes()),
            entry: ByteBuf::from(entry),
            seen: pending.seen.to_vec(),
            time: pending.time,
        }
    };
    let records = pending.iter().map(|(path, pending)| record(path, pending));
    records.collect()
}

fn rename_records(renames: &[Rename]) -> Vec<RenameRecord> {
    let path = |path: &TreePath| ByteBuf::from(path.to_bytes());
    let records = renames.iter();
    records
        .map(|rename| (path(&rename.from), path(&rename.to), rename.time))
        .collect()
}

fn restore(
    pending: Vec<PendingRecord>,
    renames: Vec<RenameRecord>,
) -> Result<Kept, NamespaceError> {
    let damaged = |error: &dyn std::fmt::Display| {
        NamespaceError::Failed(format!("the record of pending changes is damaged: {error}"))
    };
    let path = |bytes: &ByteBuf| TreePath::restore(bytes).map_err(|error| damaged(&error));
    let change = |record: PendingRecord| {
        let path = path(&record.path)?;
        let version = if record.entry.is_empty() {
            None
        } else {
            let versions = Versions::decode(&record.entry).map_err(|error| damaged(&error))?;
            versions.as_slice().first().cloned()
        };
        let (entry, moved) =
            version.map_or((None, None), |version| (Some(version.entry), version.moved));
        let pending = Pending {
            entry,
            seen: record.seen.into_iter().collect(),
            held: false,
            under: None,
            generation: 0,
            since: 0,
            time: record.time,
            moved,
            calls: None,
        };
        Ok::<_, NamespaceError>((Arc::new(path), Arc::new(pending)))
    };
    let rename = |(from, to, time): RenameRecord| {
        Ok::<_, NamespaceError>(Rename {
            from: path(&from)?,
            to: path(&to)?,
            time,
            generation: 0,
        })
    };
    Ok(Kept {
        pending: pending.into_iter().map(change).collect::<Result<_, _>>()?,
        renames: renames.into_iter().map(rename).collect::<Result<_, _>>()?,
    })
}

fn head_key(head: &KnownHead) -> Vec<u8> {
    [&b"h"[..], &head.digest()].concat()
}

fn own_key(dot: Dot) -> Vec<u8> {
    [
        &b"o"[..],
        &dot.writer.0.to_be_bytes(),
        &dot.sequence.to_be_bytes(),
    ]
    .concat()
}

fn encode<T: Serialize>(record: &T) -> Result<Vec<u8>, NamespaceError> {
    let versioned = Versioned {
        format: FORMAT,
        record,
    };
    cbor4ii::serde::to_vec(Vec::new(), &versioned)
        .map_err(|error| NamespaceError::Failed(format!("a record could not be encoded: {error}")))
}

fn decode<T: DeserializeOwned>(what: &str, bytes: &[u8]) -> Result<T, NamespaceError> {
    let versioned: Versioned<T> = cbor4ii::serde::from_slice(bytes).map_err(|error| {
        NamespaceError::Failed(format!("the record {what} is damaged: {error}"))
    })?;
    if versioned.format != FORMAT {
        return Err(NamespaceError::Failed(format!(
            "the record {what} has format {}, this version knows {FORMAT}",
            versioned.format
        )));
    }
    Ok(versioned.record)
}
