//! The JSON objects of the commands about what is in the cache: `transfers`, `fetch`, `wait`, `why`. As those of [`super::types`]: sizes in
//! bytes, times in seconds, fields are only ever added.

use serde::{Deserialize, Serialize};

use super::types::{HolderReport, TransferReport};

/// `p2pfs transfers`.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct TransfersReport {
    /// Those that run, and those that ended within the last ten seconds.
    pub transfers: Vec<TransferReport>,
}

/// Asks for something about paths.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct PathsRequest {
    /// Paths inside the cluster, each as hex of its bytes; the root is empty.
    pub paths_hex: Vec<String>,
}

/// A line of the answer to a fetch: any number that tell how far it is, then one that tells how it ended.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum FetchLine {
    /// How far it is.
    Progress(FetchProgress),
    /// How it ended.
    Done(FetchReport),
}

/// How far a fetch is.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct FetchProgress {
    /// Files found so far.
    pub files: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Whether these are all.
    pub counted: bool,
    /// Files that are whole here.
    pub done_files: u64,
    /// Bytes that are here, those of unfinished files included.
    pub done_bytes: u64,
    /// Bytes of these that were here already.
    pub already_here_bytes: u64,
    /// Files that could not be fetched.
    pub failed_files: u64,
}

/// `p2pfs fetch`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct FetchReport {
    /// Files found below the paths, each name counted.
    pub files: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Files that were whole here already.
    pub already_here_files: u64,
    /// Bytes that were here already, those of partly cached files included.
    pub already_here_bytes: u64,
    /// Bytes that were brought.
    pub fetched_bytes: u64,
    /// Files and folders that could not be had.
    pub failed_files: u64,
    /// The first 1000 of them.
    pub failed: Vec<FailedReport>,
    /// Given up before the end: nobody gave any of 256 files in a row. The files behind them are not counted.
    pub gave_up: bool,
}

/// A path with which something could not be done.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FailedReport {
    /// Path inside the cluster.
    pub path: String,
    /// See [`super::types::Happened`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path_hex: Option<String>,
    /// Why not.
    pub reason: String,
}

/// Asks to wait.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct WaitRequest {
    /// Until what is at the paths, or everything, is in a signed head. This is so by default.
    pub published: bool,
    /// Until nothing is being fetched.
    pub idle: bool,
    /// Until each content at the paths, or everywhere, is whole at so many members, this one included.
    pub copies: Option<u64>,
    /// As in [`PathsRequest`]; none for everything.
    pub paths_hex: Vec<String>,
    /// For how long; for ever without.
    pub timeout_ms: Option<u64>,
}

/// `p2pfs wait`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct WaitReport {
    /// Whether all that was asked for is so.
    pub done: bool,
    /// What is not, when time was up.
    pub missing: Option<String>,
    /// How long it took.
    pub waited_s: f64,
}

/// `p2pfs why`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct WhyReport {
    /// Path inside the cluster.
    pub path: String,
    /// See [`super::types::Happened`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path_hex: Option<String>,
    /// Bytes.
    pub size: u64,
    /// Content id, hex.
    pub hash: String,
    /// Whether it has changes that are not published yet: they are here.
    pub unpublished: bool,
    /// Where each part would come from right now, in order and without gaps.
    pub parts: Vec<PartReport>,
    /// There are more parts behind the first 1000.
    pub more: bool,
    /// Members that did not answer within two seconds.
    pub silent: Vec<String>,
    /// Peer ids that trackers name as holders and that are not connected.
    pub elsewhere: Vec<String>,
    /// What running reads and fetches of this content wait for.
    pub transfers: Vec<TransferReport>,
}

/// A part of a file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PartReport {
    /// First byte.
    pub offset: u64,
    /// Bytes.
    pub length: u64,
    /// It is here.
    pub here: bool,
    /// Members that have it, where it is not here; when there are none, nobody has it who is connected.
    pub peers: Vec<HolderReport>,
}

/// Asks for paths to be pinned, or unpinned.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct PinRequest {
    /// As in [`PathsRequest`]; none to be told what is pinned.
    pub paths_hex: Vec<String>,
    /// Pin rather than unpin.
    pub pinned: bool,
}

/// `p2pfs pin`, `p2pfs unpin`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PinReport {
    /// All pinned paths; the root is empty.
    pub pinned: Vec<String>,
    /// Everything is kept while this mount runs.
    pub keep_all: bool,
}

/// `p2pfs evict`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct EvictReport {
    /// Files found below the paths, each name counted.
    pub files: u64,
    /// Contents that were dropped.
    pub freed_files: u64,
    /// Their bytes that were here.
    pub freed_bytes: u64,
    /// Files of which nothing was here.
    pub not_here_files: u64,
    /// Files that were kept.
    pub kept_files: u64,
    /// Bytes of them that are here.
    pub kept_bytes: u64,
    /// The first 1000 of them, and why.
    pub kept: Vec<FailedReport>,
}
