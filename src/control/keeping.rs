//! The JSON objects of the commands about what is in the cache: `transfers`, `fetch`. As those of [`super::types`]: sizes in
//! bytes, times in seconds, fields are only ever added.

use serde::{Deserialize, Serialize};

use super::types::TransferReport;

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
