//! The socket and its routes.

use std::{io, os::unix::fs::PermissionsExt, path::Path, sync::Arc};

use axum::{
    Json, Router,
    body::Body,
    extract::{Query, State},
    http::{StatusCode, header::CONTENT_TYPE},
    response::{IntoResponse, Response},
    routing::{get, post},
};
use bytes::Bytes;
use futures::{StreamExt, stream::BoxStream};
use serde::{Deserialize, Serialize};
use tokio::{net::UnixListener, task::JoinHandle};

use super::{
    Control, ControlError,
    keeping::{PathsRequest, PinRequest, TransfersReport, WaitRequest},
    short_socket_path,
    types::{ConflictsRequest, LeaveRequest, ResolveRequest, UnmountRequest},
};

/// A running control socket; removed when dropped.
pub struct ControlServer {
    task: JoinHandle<()>,
    path: std::path::PathBuf,
}

impl Drop for ControlServer {
    fn drop(&mut self) {
        self.task.abort();
        // The state folder's lock is still held, so the socket there is this one.
        if let Err(error) = std::fs::remove_file(&self.path) {
            tracing::debug!(%error, "control socket was gone already");
        }
    }
}

/// Serves `control` on `control.sock` in `dir`, replacing what a killed process left there. The caller holds the folder's
/// lock.
pub fn serve(dir: &Path, control: Arc<dyn Control>) -> io::Result<ControlServer> {
    let path = dir.join("control.sock");
    match std::fs::remove_file(&path) {
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(error),
    }
    let folder = std::fs::File::open(dir)?;
    let listener = UnixListener::bind(short_socket_path(&folder, "control.sock"))?;
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600))?;
    let routes = Router::new()
        .route("/version", get(version))
        .route("/ending", get(ending))
        .route("/status", get(status))
        .route("/peers", get(peers))
        .route("/find", get(find))
        .route("/transfers", get(transfers))
        .route("/fetch", post(fetch))
        .route("/pin", post(pin))
        .route("/evict", post(evict))
        .route("/wait", post(wait))
        .route("/why", post(why))
        .route("/verify", post(verify))
        .route("/conflicts", get(conflicts))
        .route("/conflicts/resolve", post(resolve))
        .route("/events", get(events))
        .route("/publish", post(publish))
        .route("/report", post(report))
        .route("/unmount", post(unmount))
        .route("/leave", post(leave))
        .with_state(control);
    let task = tokio::spawn(async move {
        if let Err(error) = axum::serve(listener, routes).await {
            tracing::error!(%error, "the control socket failed");
        }
    });
    Ok(ControlServer { task, path })
}

type Node = State<Arc<dyn Control>>;

fn answer<T: Serialize>(result: Result<T, ControlError>) -> Response {
    match result {
        Ok(report) => Json(report).into_response(),
        Err(error) if error.wrong => (StatusCode::BAD_REQUEST, error.message).into_response(),
        Err(error) => (StatusCode::CONFLICT, error.message).into_response(),
    }
}

async fn version() -> &'static str {
    env!("CARGO_PKG_VERSION")
}

async fn ending(State(node): Node) -> Json<bool> {
    Json(node.is_ending())
}

async fn status(State(node): Node) -> Response {
    answer(node.status().await)
}

async fn peers(State(node): Node) -> Response {
    answer(node.peers().await)
}

#[derive(Deserialize)]
struct Pattern {
    pattern: String,
}

async fn find(State(node): Node, Query(query): Query<Pattern>) -> Response {
    answer(node.find(query.pattern).await)
}

async fn transfers(State(node): Node) -> Json<TransfersReport> {
    Json(node.transfers())
}

/// Lines of JSON until it is done. A client that goes away drops them, and with them the fetch.
async fn fetch(State(node): Node, Json(request): Json<PathsRequest>) -> Response {
    match node.fetch(request).await {
        Ok(lines) => ndjson(lines),
        Err(error) => answer::<()>(Err(error)),
    }
}

async fn pin(State(node): Node, Json(request): Json<PinRequest>) -> Response {
    answer(node.pin(request).await)
}

async fn evict(State(node): Node, Json(request): Json<PathsRequest>) -> Response {
    answer(node.evict(request).await)
}

async fn wait(State(node): Node, Json(request): Json<WaitRequest>) -> Response {
    answer(node.wait(request).await)
}

async fn why(State(node): Node, Json(request): Json<PathsRequest>) -> Response {
    answer(node.why(request).await)
}

/// Lines of JSON until it is done. A client that goes away ends it.
async fn verify(State(node): Node) -> Response {
    ndjson(node.verify())
}

async fn conflicts(State(node): Node, Query(query): Query<ConflictsRequest>) -> Response {
    answer(node.conflicts(query).await)
}

async fn resolve(State(node): Node, Json(request): Json<ResolveRequest>) -> Response {
    answer(node.resolve(request).await)
}

#[derive(Deserialize)]
struct Recent {
    #[serde(default)]
    recent: bool,
}

/// Lines of JSON until the mount ends. What is sent is read from the ring when the reader takes it, so a slow one costs
/// nothing and keeps nobody waiting.
async fn events(State(node): Node, Query(query): Query<Recent>) -> Response {
    let lines = futures::stream::unfold(node.follow(query.recent), |mut follower| async move {
        let line = follower.next().await?;
        Some((line, follower))
    });
    ndjson(lines.boxed())
}

fn ndjson(lines: BoxStream<'static, Bytes>) -> Response {
    let kind = [(CONTENT_TYPE, "application/x-ndjson")];
    let body = Body::from_stream(lines.map(Ok::<_, std::convert::Infallible>));
    (kind, body).into_response()
}

async fn publish(State(node): Node) -> Response {
    answer(node.publish().await)
}

#[derive(Deserialize)]
struct Reported {
    peer: String,
}

async fn report(State(node): Node, Query(query): Query<Reported>) -> Response {
    answer(node.report(query.peer).await)
}

async fn unmount(State(node): Node, Json(request): Json<UnmountRequest>) -> Response {
    answer(node.unmount(request).await)
}

async fn leave(State(node): Node, Json(request): Json<LeaveRequest>) -> Response {
    answer(node.leave(request).await)
}
