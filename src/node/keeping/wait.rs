//! `p2pfs wait`: returns when something is so, or says what is missing when time is up.
//!
//! It looks again and again, the less often the longer a look takes, so that waiting for copies of a million files does not
//! keep members busy. All that is asked for must be so at one look.

use std::time::Duration;

use tokio::time::Instant;

use super::{
    bring::here,
    paths_of,
    walk::{Step, Walk},
};
use crate::{
    content::Object,
    control::{
        ControlError,
        keeping::{WaitReport, WaitRequest},
    },
    manifest::TreePath,
    net::proto::NAMED_MAX,
    node::{Node, conflicts::path_text, members::whole_holders},
    transfer::TransferState,
};

/// Shortest pause between looks.
const PAUSE_MIN: Duration = Duration::from_millis(100);
/// Longest one.
const PAUSE_MAX: Duration = Duration::from_secs(10);

/// Waits. Dropping the future ends it.
///
/// # Errors
/// For a request that makes no sense.
pub(in crate::node) async fn wait(
    node: std::sync::Arc<Node>,
    request: WaitRequest,
) -> Result<WaitReport, ControlError> {
    let begun = Instant::now();
    let paths = paths_of(&request.paths_hex)?;
    let within = request.timeout_ms.map(Duration::from_millis);
    let mut missing = "nothing is known yet".to_owned();
    let mut done = false;
    let looking = async {
        loop {
            let look = Instant::now();
            match lacking(&node, &request, &paths).await {
                None => break,
                Some(lacking) => missing = lacking,
            }
            tokio::time::sleep(look.elapsed().clamp(PAUSE_MIN, PAUSE_MAX)).await;
        }
    };
    match within {
        None => {
            looking.await;
            done = true;
        }
        Some(within) => done |= tokio::time::timeout(within, looking).await.is_ok(),
    }
    Ok(WaitReport {
        done,
        missing: (!done).then_some(missing),
        waited_s: begun.elapsed().as_secs_f64(),
    })
}

/// What is not as it was asked for, in words.
async fn lacking(
    node: &std::sync::Arc<Node>,
    request: &WaitRequest,
    paths: &[TreePath],
) -> Option<String> {
    let nothing_asked = !request.idle && request.copies.is_none();
    if request.published || nothing_asked {
        let unpublished = match paths {
            [] => all_unpublished(node),
            paths => unpublished(node, paths).await,
        };
        if unpublished.is_some() {
            return unpublished;
        }
    }
    if request.idle {
        if let Some(running) = running(node, paths) {
            return Some(running);
        }
        if !node.pins.is_idle() {
            return Some("something pinned is being fetched".to_owned());
        }
    }
    let copies = request.copies.filter(|copies| *copies > 0)?;
    let root = [TreePath::root()];
    let paths = if paths.is_empty() { &root[..] } else { paths };
    lacking_copies(node, paths, copies).await
}

fn all_unpublished(node: &Node) -> Option<String> {
    let live = node.mounted().map(|mounted| mounted.status());
    let files = live.map_or(0, |live| live.unpublished_files);
    let changes = node.namespace.status().unpublished.max(files);
    match changes {
        0 => None,
        1 => Some("1 change is not published".to_owned()),
        changes => Some(format!("{changes} changes are not published")),
    }
}

async fn unpublished(node: &Node, paths: &[TreePath]) -> Option<String> {
    for path in paths {
        let (text, at) = (path_text(path).0, path.clone());
        match node.with_nodes(move |namespace| namespace.get(&at)).await {
            Ok(Some(_)) => {}
            Ok(None) => return Some(format!("nothing is called {text:?} in the folder")),
            Err(error) => return Some(format!("{text:?} could not be looked up: {error}")),
        }
        if node.is_unpublished(path) {
            return Some(format!("{text:?} is not published"));
        }
    }
    None
}

/// A transfer that runs, of something at the paths.
fn running(node: &Node, paths: &[TreePath]) -> Option<String> {
    let about = |label: &str| {
        let label = TreePath::parse(label.trim_start_matches('/').as_bytes());
        // What is fetched for other reasons than a path's counts for all of them.
        paths.is_empty() || label.is_ok_and(|label| paths.iter().any(|path| label.is_within(path)))
    };
    let transfers = node.transfers.status().into_iter();
    let mut running = transfers
        .filter(|transfer| transfer.state != TransferState::Finished && about(&transfer.label));
    let first = running.next()?;
    Some(format!("{:?} is being fetched", first.label))
}

async fn lacking_copies(
    node: &std::sync::Arc<Node>,
    paths: &[TreePath],
    copies: u64,
) -> Option<String> {
    let mut walk = match Walk::start(node.clone(), paths).await {
        Ok(walk) => walk,
        Err(error) => return Some(error.message),
    };
    let mut batch: Vec<(TreePath, Object)> = Vec::new();
    loop {
        let step = walk.next().await;
        let ended = step.is_none();
        match step {
            Some(Step::File(path, object)) if object.size > 0 => batch.push((path, object)),
            Some(Step::Failed(path, reason)) => {
                return Some(format!(
                    "{:?} could not be looked into: {reason}",
                    path_text(&path).0
                ));
            }
            Some(Step::File(..)) | None => {}
        }
        if ended || batch.len() == NAMED_MAX {
            let objects: Vec<Object> = batch.iter().map(|(_, object)| *object).collect();
            let (holders, _) = whole_holders(&node.net, &node.holders, &objects).await;
            for (path, object) in batch.drain(..) {
                let whole = here(node, &object).is_ok_and(|here| here.contains(0..object.blocks()));
                let there = holders.get(&object).map_or(0, |peers| peers.len() as u64);
                let held = there + u64::from(whole);
                if held < copies {
                    let path = path_text(&path).0;
                    return Some(format!("{path:?} is whole at {held} of {copies} members"));
                }
            }
        }
        if ended {
            return None;
        }
    }
}
