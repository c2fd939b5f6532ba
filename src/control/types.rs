//! The JSON objects of the control API, which `--json` prints as they are. Sizes in bytes, times in seconds.
//!
//! Fields are only ever added: scripts outside the repository read them.

use serde::{Deserialize, Serialize};

use crate::cluster::Role;

/// `p2pfs status`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct StatusReport {
    /// Name the cluster is saved under.
    pub name: String,
    /// Topic, hex.
    pub topic: String,
    /// Where it is mounted.
    pub mountpoint: String,
    /// What this mount may do.
    pub role: Role,
    /// The process.
    pub pid: u32,
    /// Its version.
    pub version: String,
    /// Its state folder.
    pub state_dir: String,
    /// This node.
    #[serde(rename = "self")]
    pub this: SelfReport,
    /// The shared folder.
    pub manifest: ManifestReport,
    /// Connected members.
    pub peers: Vec<PeerReport>,
    /// Trackers.
    pub trackers: Vec<TrackerReport>,
    /// The cache.
    pub cache: CacheReport,
    /// Bytes since the mount began.
    pub network: NetworkReport,
    /// What the process holds in memory, and what transfers may.
    #[serde(default)]
    pub memory: MemoryReport,
    /// Running transfers.
    pub transfers: Vec<TransferReport>,
    /// What no other connected member confirmed to hold whole.
    pub only_here: OnlyHereReport,
}

/// This node.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct SelfReport {
    /// Peer id.
    pub id: String,
    /// Node name.
    pub node: String,
    /// Where it can be dialed.
    pub addresses: Vec<String>,
}

/// The shared folder.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct ManifestReport {
    /// Root hash, hex; empty before a first state was seen.
    pub hash: String,
    /// Regular files.
    pub files: u64,
    /// Bytes of their contents.
    pub bytes: u64,
    /// Local changes that are in no signed head yet.
    pub unpublished: u64,
    /// Names with concurrent versions.
    pub conflicts: u64,
    /// Bytes kept for earlier states; none are kept on purpose yet.
    pub history_bytes: u64,
}

/// A member.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct PeerReport {
    /// Peer id.
    pub id: String,
    /// Node name.
    pub node: String,
    /// Software version.
    pub version: String,
    /// Address of the connection; empty when not connected.
    pub address: String,
    /// Connected now.
    pub connected: bool,
    /// Direct rather than relayed.
    pub direct: bool,
    /// It says that it keeps every content.
    #[serde(default)]
    pub keeps_all: bool,
    /// Round-trip time, once measured.
    pub rtt_s: Option<f64>,
    /// Block answers it is working on, as it last said.
    pub load: u32,
    /// Block bytes received from it.
    pub received_bytes: u64,
    /// Block bytes sent to it.
    pub sent_bytes: u64,
    /// What it was last blamed for.
    pub blamed: Option<BlameReport>,
}

/// What a peer was blamed for.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct BlameReport {
    /// Why.
    pub reason: String,
    /// When, seconds since 1970.
    pub at_s: f64,
}

/// A tracker.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct TrackerReport {
    /// As it was given.
    pub address: String,
    /// How it stands.
    pub state: TrackerState,
    /// Why it is not reached.
    pub reason: Option<String>,
    /// Age of the newest head it showed, when it did.
    pub head_age_s: Option<f64>,
}

/// How a tracker stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum TrackerState {
    /// This node has a lease there.
    Registered,
    /// Being connected.
    Connecting,
    /// The last attempt failed.
    Unreachable,
}

/// The cache.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct CacheReport {
    /// What counts against the limit: the three that follow. What they take on the disk.
    pub used_bytes: u64,
    /// By backing files with their hash trees, and by packs.
    #[serde(default)]
    pub files_bytes: u64,
    /// By files that are being written, or not settled yet.
    #[serde(default)]
    pub staging_bytes: u64,
    /// By the index, with the manifest.
    #[serde(default)]
    pub index_bytes: u64,
    /// What all of it may take.
    pub limit_bytes: u64,
    /// What is left free on the disk.
    #[serde(default)]
    pub min_free_bytes: u64,
    /// What of it goes when room is needed, as far as was found out: that is done when three quarters are taken.
    #[serde(default)]
    pub evictable_bytes: u64,
    /// Why something found no room a moment ago: then what is read is not kept, and writing fails.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub full: Option<String>,
    /// The check of all that is here, which goes on slowly while nobody reads; nothing before the first.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scrub: Option<ScrubReport>,
    /// Bytes of the cache that are pinned.
    pub pinned_bytes: u64,
    /// Bytes of [`OnlyHereReport`].
    pub only_here_bytes: u64,
}

/// The present round of the scrub, or the last one.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ScrubReport {
    /// When it began, seconds since 1970.
    pub began_s: u64,
    /// When it had gone over all; nothing while it goes on.
    pub ended_s: Option<u64>,
    /// Bytes checked.
    pub bytes: u64,
    /// Damaged ranges found.
    pub damaged: u64,
    /// Those of them that nobody gave then.
    pub unrepaired: u64,
}

/// Bytes since the mount began.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct NetworkReport {
    /// Everything received above TCP.
    pub received_bytes: u64,
    /// Everything sent above TCP.
    pub sent_bytes: u64,
    /// Block answers received.
    pub block_bytes_received: u64,
    /// Block answers sent.
    pub block_bytes_sent: u64,
    /// Sync answers and pushes received.
    pub manifest_bytes_received: u64,
    /// Blocks that failed verification.
    pub blocks_rejected: u64,
}

/// Memory.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemoryReport {
    /// Of the process, as far as it is in RAM; 0 where the system doesn't tell.
    pub resident_bytes: u64,
    /// Of blocks that were asked for and haven't come.
    pub requested_bytes: u64,
    /// As many may be at most.
    pub requested_max_bytes: u64,
    /// Answers with blocks that are being made for other members, of up to 1.1 MiB each.
    pub answers: u64,
    /// As many may be at most: others are told to come again.
    pub answers_max: u64,
}

/// A transfer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TransferReport {
    /// Path it was asked for under.
    pub path: String,
    /// `requesting`, `downloading`, `finished`, `stalled: reason`.
    pub state: String,
    /// Bytes here.
    pub done_bytes: u64,
    /// Bytes in all.
    pub total_bytes: u64,
    /// Lately.
    pub rate_bytes_per_s: u64,
    /// Peers it comes from.
    pub sources: usize,
}

/// Contents of the folder that are whole here and that no connected member confirmed to hold whole when asked.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct OnlyHereReport {
    /// Contents.
    pub files: u64,
    /// Their bytes.
    pub bytes: u64,
}

/// `p2pfs find`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct FindReport {
    /// Matches in path order.
    pub matches: Vec<FindMatch>,
    /// Members that did not answer within two seconds.
    pub silent: Vec<String>,
}

/// A match.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct FindMatch {
    /// Path in the folder.
    pub path: String,
    /// Bytes; 0 for what is no file.
    pub size: u64,
    /// Content id, hex; none for what is no file.
    pub hash: Option<String>,
    /// Who holds it whole now, this node included.
    pub holders: Vec<HolderReport>,
}

/// A holder.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HolderReport {
    /// Peer id.
    pub id: String,
    /// Node name, when known.
    pub node: String,
}

/// A line of the answer to `verify`: any number that tell how far it is, then one that tells how it ended.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum VerifyLine {
    /// How far it is.
    Progress {
        /// Contents begun.
        objects: u64,
        /// Bytes checked.
        bytes: u64,
        /// Bytes that are here in all, about.
        total_bytes: u64,
    },
    /// All was checked.
    Done(VerifyReport),
    /// It could not be gone on with.
    Failed(String),
}

/// `p2pfs verify`.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct VerifyReport {
    /// Objects checked.
    pub objects: u64,
    /// Bytes checked.
    pub bytes: u64,
    /// Damaged ranges found, of at most 16 MiB each.
    pub damaged: u64,
    /// Damaged ranges that were fetched again.
    pub repaired: u64,
    /// Damaged ranges that nobody could give: the first thousand.
    pub unreachable: Vec<DamageReport>,
    /// How many there are in all.
    #[serde(default)]
    pub unreachable_ranges: u64,
}

/// A damaged range.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct DamageReport {
    /// Content id, hex.
    pub hash: String,
    /// First byte.
    pub offset: u64,
    /// Bytes.
    pub length: u64,
    /// Why it could not be fetched.
    pub reason: String,
}

/// Asks a mount to end.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct UnmountRequest {
    /// Detach now, end when the last user is gone.
    pub lazy: bool,
}

/// Asks a member to leave.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct LeaveRequest {
    /// Even with contents that exist only here.
    pub force: bool,
}

/// What leaving would lose, or lost.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct LeaveReport {
    /// Whether the member has left.
    pub left: bool,
    /// Paths whose content exists only here (at most 1000).
    pub only_here: Vec<String>,
    /// All of them.
    pub totals: OnlyHereReport,
}

/// A line of `p2pfs events`: when, and what, as one flat object.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Event {
    /// Seconds since 1970.
    pub at_s: f64,
    /// What happened; its name stands under `event`.
    #[serde(flatten)]
    pub what: Happened,
}

impl Event {
    /// Something that happens now.
    pub fn now(what: Happened) -> Self {
        let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
        Self {
            at_s: since.map_or(0.0, |since| since.as_secs_f64()),
            what,
        }
    }
}

/// What happened. Paths are those inside the cluster, without a `/` in front; where one is not UTF-8 it is shown with U+FFFD,
/// and `path_hex` has its bytes.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "kebab-case")]
pub enum Happened {
    /// The first line: everything after it is told.
    Following {
        /// Name the cluster is saved under.
        name: String,
        /// Where it is mounted.
        mountpoint: String,
    },
    /// This node has signed a head.
    Published {
        /// Its root, hex.
        root: String,
        /// What it changes; nothing when it only joins the heads of others.
        changes: Vec<ChangeReport>,
        /// More has changed than is named.
        all: bool,
    },
    /// What others have published is shown here now.
    Changed {
        /// The root that it led to, hex.
        root: String,
        /// What has changed.
        changes: Vec<ChangeReport>,
        /// More has changed than is named.
        all: bool,
    },
    /// A file turned out to be changed on two sides at once, or on one more.
    Conflict {
        /// The conflict.
        #[serde(flatten)]
        conflict: ConflictReport,
        /// A version that this node wrote is not the one shown, and has become a copy.
        lost_here: bool,
    },
    /// A conflict is none any more.
    Settled {
        /// The name that several versions stood under.
        path: String,
        /// See [`Happened`].
        #[serde(default, skip_serializing_if = "Option::is_none")]
        path_hex: Option<String>,
    },
    /// A member is connected.
    PeerUp {
        /// Peer id.
        id: String,
        /// Node name.
        node: String,
        /// Address of the connection.
        address: String,
    },
    /// The last connection to a member is gone.
    PeerDown {
        /// Peer id.
        id: String,
        /// Node name.
        node: String,
    },
    /// Bytes here were damaged on this node's disk, and have been dropped.
    Damaged {
        /// Content id, hex.
        hash: String,
        /// First byte.
        offset: u64,
        /// Bytes.
        length: u64,
        /// A member gave them again; else reading them fails until one does.
        repaired: bool,
    },
    /// A transfer has ended, or has made no progress for five seconds.
    Transfer {
        /// It.
        #[serde(flatten)]
        transfer: TransferReport,
        /// Content id, hex.
        hash: String,
    },
    /// The reader was too slow, or too much happened at once: so many events were passed over.
    Lagged {
        /// How many; 0 when that is not known.
        missed: u64,
    },
    /// The last line: the mount has come to its end.
    Ended,
}

/// A path that has changed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChangeReport {
    /// It.
    pub path: String,
    /// See [`Happened`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path_hex: Option<String>,
    /// How.
    pub change: ChangeKind,
    /// The node that wrote it, when known; who removed something isn't.
    pub node: Option<String>,
}

/// How a path has changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ChangeKind {
    /// It was not there.
    Created,
    /// Content, attributes, or the versions under its name.
    Changed,
    /// It is gone.
    Removed,
}

/// A file that was changed on two sides at once.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ConflictReport {
    /// The name that the versions stand under.
    pub path: String,
    /// See [`Happened`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path_hex: Option<String>,
    /// The version that the name shows.
    pub shown: VersionReport,
    /// The others, the latest first.
    pub copies: Vec<VersionReport>,
}

/// One of the versions.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct VersionReport {
    /// The name that shows it; for an event none when that could not be told in time.
    pub path: Option<String>,
    /// See [`Happened`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path_hex: Option<String>,
    /// `file`, `directory`, `symlink`, `fifo`, `socket`, `device`, `link`.
    pub kind: String,
    /// The node that wrote it, when known.
    pub node: Option<String>,
    /// Whether that is this node.
    pub here: bool,
    /// When, seconds since 1970.
    pub time_s: f64,
    /// Bytes; 0 for what is no file.
    pub size: u64,
    /// Content id, hex; none for what is no file.
    pub hash: Option<String>,
}

/// `p2pfs conflicts`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct ConflictsReport {
    /// Conflicts in the order of the manifest: a folder's own before those below its folders.
    pub conflicts: Vec<ConflictReport>,
    /// All that the cluster has, wherever.
    pub total: u64,
    /// There are more where these come from.
    pub more: bool,
    /// What to ask for next, for those who page through the control socket: `after`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub after: Option<String>,
}

/// Asks for a page of conflicts.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct ConflictsRequest {
    /// Where: a path inside the cluster, hex of its bytes; everywhere when it is empty.
    #[serde(default)]
    pub under: String,
    /// What the page before it said.
    pub after: Option<String>,
}

/// Asks for one version to be kept as the only one.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct ResolveRequest {
    /// Path of the conflict or of one of its copies, inside the cluster, hex of its bytes.
    pub path_hex: String,
    /// `shown`, a node's name, a copy's name, or the start of a hash.
    pub keep: String,
}

/// `p2pfs conflicts resolve`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ResolveReport {
    /// The name that has one version now.
    pub path: String,
    /// See [`Happened`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path_hex: Option<String>,
    /// The version that it has.
    pub kept: VersionReport,
    /// Those that gave way.
    pub dropped: Vec<VersionReport>,
    /// Whether it is in a signed head already; else it is on disk, and will be.
    pub published: bool,
}
