//! Local control: HTTP/JSON on a Unix socket in the state folder (mode 0600).
//!
//! Every report of the command line comes from here, and `curl --unix-socket` sees the same. The handlers decide nothing:
//! they call [`Control`], which the node implements.

pub mod client;
pub mod events;
pub mod keeping;
mod server;
pub mod text;
pub mod types;

use std::{path::PathBuf, sync::Arc};

use bytes::Bytes;
use futures::{future::BoxFuture, stream::BoxStream};

use events::Follower;
use keeping::{
    EvictReport, PathsRequest, PinReport, PinRequest, TransfersReport, WaitReport, WaitRequest,
    WhyReport,
};
pub use server::{ControlServer, serve};
use types::{
    ConflictsReport, ConflictsRequest, FindReport, LeaveReport, LeaveRequest, PeerReport,
    ResolveReport, ResolveRequest, StatusReport, UnmountRequest,
};

/// A refusal: one sentence, and whether what was asked for makes no sense rather than failed.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{message}")]
pub struct ControlError {
    /// What failed and why.
    pub message: String,
    /// What was asked for makes no sense: the command line was wrong.
    pub wrong: bool,
}

impl ControlError {
    /// A refusal.
    pub fn new(message: impl std::fmt::Display) -> Self {
        Self {
            message: message.to_string(),
            wrong: false,
        }
    }

    /// A refusal of what makes no sense.
    pub fn wrong(message: impl std::fmt::Display) -> Self {
        Self {
            wrong: true,
            ..Self::new(message)
        }
    }
}

/// What a mount answers.
pub trait Control: Send + Sync + 'static {
    /// Whether the mount is coming to its end.
    fn is_ending(&self) -> bool;
    /// For `status`.
    fn status(self: Arc<Self>) -> BoxFuture<'static, Result<StatusReport, ControlError>>;
    /// For `peers`.
    fn peers(self: Arc<Self>) -> BoxFuture<'static, Result<Vec<PeerReport>, ControlError>>;
    /// For `find`: a name or a glob.
    fn find(
        self: Arc<Self>,
        pattern: String,
    ) -> BoxFuture<'static, Result<FindReport, ControlError>>;
    /// For `transfers`.
    fn transfers(&self) -> TransfersReport;
    /// For `fetch`: lines of JSON, each with its end, that tell how it goes ([`keeping::FetchLine`]); dropped, they end it.
    fn fetch(
        self: Arc<Self>,
        request: PathsRequest,
    ) -> BoxFuture<'static, Result<BoxStream<'static, Bytes>, ControlError>>;
    /// For `pin` and `unpin`.
    fn pin(
        self: Arc<Self>,
        request: PinRequest,
    ) -> BoxFuture<'static, Result<PinReport, ControlError>>;
    /// For `evict`.
    fn evict(
        self: Arc<Self>,
        request: PathsRequest,
    ) -> BoxFuture<'static, Result<EvictReport, ControlError>>;
    /// For `wait`.
    fn wait(
        self: Arc<Self>,
        request: WaitRequest,
    ) -> BoxFuture<'static, Result<WaitReport, ControlError>>;
    /// For `why`: of one path.
    fn why(
        self: Arc<Self>,
        request: PathsRequest,
    ) -> BoxFuture<'static, Result<WhyReport, ControlError>>;
    /// For `verify`: lines of JSON, each a [`types::VerifyLine`].
    fn verify(self: Arc<Self>) -> BoxStream<'static, Bytes>;
    /// For `conflicts`: a page of them.
    fn conflicts(
        self: Arc<Self>,
        request: ConflictsRequest,
    ) -> BoxFuture<'static, Result<ConflictsReport, ControlError>>;
    /// For `conflicts resolve`.
    fn resolve(
        self: Arc<Self>,
        request: ResolveRequest,
    ) -> BoxFuture<'static, Result<ResolveReport, ControlError>>;
    /// For `events`: those from now on, or with those that are still remembered.
    fn follow(&self, recent: bool) -> Follower;
    /// Publishes what is closed and pending; returns when it is in a signed head.
    fn publish(self: Arc<Self>) -> BoxFuture<'static, Result<(), ControlError>>;
    /// For `report`: a peer id or a node name.
    fn report(self: Arc<Self>, peer: String) -> BoxFuture<'static, Result<(), ControlError>>;
    /// For `unmount`: returns when the mount is gone and everything is on disk; the process ends soon after.
    fn unmount(
        self: Arc<Self>,
        request: UnmountRequest,
    ) -> BoxFuture<'static, Result<(), ControlError>>;
    /// For `leave`.
    fn leave(
        self: Arc<Self>,
        request: LeaveRequest,
    ) -> BoxFuture<'static, Result<LeaveReport, ControlError>>;
}

/// A path of at most 108 bytes by which a socket in `dir` can be bound or connected to, whatever the length of the
/// folder's own path: through the descriptor of the folder, which must stay open meanwhile.
fn short_socket_path(dir: &std::fs::File, name: &str) -> PathBuf {
    use std::os::fd::AsRawFd;
    PathBuf::from(format!("/proc/self/fd/{}/{name}", dir.as_raw_fd()))
}
