//! `p2pfs fetch`: brings all files below some paths here, many small ones side by side, large ones in windows.
//!
//! A second walk counts ahead, so that the rest can be told; what it finds the first needs anyway. Both end with the
//! future: whoever asked and goes away thereby gives it all up.

use std::sync::Arc;

use bytes::Bytes;
use futures::{StreamExt, stream, stream::BoxStream};
use parking_lot::Mutex;
use tokio_util::task::AbortOnDropHandle;

use super::{
    bring::{Room, bring, bytes_in, here},
    walk::{Step, Walk},
};
use crate::{
    content::Object,
    control::{
        ControlError,
        keeping::{FailedReport, FetchLine, FetchProgress, FetchReport},
        text::json_line,
    },
    manifest::TreePath,
    node::{Node, conflicts::path_text},
    transfer::TransferError,
};

/// Files under way at a time.
const FILES_AT_ONCE: usize = 64;
/// How often progress is told.
const TOLD_EVERY: std::time::Duration = std::time::Duration::from_millis(200);
/// Most failed paths that are named.
const NAMED_MAX: usize = 1000;
/// So many files in a row that nobody gives, and the rest is not tried.
const IN_A_ROW_MAX: u64 = 256;

/// What is told while it runs, and at the end.
#[derive(Default)]
struct Tally {
    progress: FetchProgress,
    report: FetchReport,
    /// Files that nobody gave since one was brought.
    in_a_row: u64,
}

impl Tally {
    fn failed(&mut self, path: &TreePath, reason: String) {
        self.progress.failed_files += 1;
        self.report.failed_files += 1;
        if self.report.failed.len() < NAMED_MAX {
            let (path, path_hex) = path_text(path);
            self.report.failed.push(FailedReport {
                path,
                path_hex,
                reason,
            });
        }
    }
}

/// Starts a fetch; the lines tell how it goes ([`FetchLine`]). Dropping them ends it.
///
/// # Errors
/// Where nothing stands at one of the paths.
pub(in crate::node) async fn fetch(
    node: Arc<Node>,
    paths: Vec<TreePath>,
) -> Result<BoxStream<'static, Bytes>, ControlError> {
    let walk = Walk::start(node.clone(), &paths).await?;
    let ahead = Walk::start(node.clone(), &paths).await?;
    let tally = Arc::new(Mutex::new(Tally::default()));
    let work = tokio::spawn({
        let tally = tally.clone();
        async move {
            let counting = async {
                count(ahead, &tally).await;
                std::future::pending().await
            };
            tokio::select! {
                () = counting => {}
                () = bring_all(&node, walk, &tally) => {}
            }
        }
    });
    let work = Some(AbortOnDropHandle::new(work));
    let lines = stream::unfold((work, tally), |(work, tally)| async move {
        let mut work = work?;
        let ended = tokio::time::timeout(TOLD_EVERY, &mut work).await.is_ok();
        let told = match ended {
            true => FetchLine::Done(std::mem::take(&mut tally.lock().report)),
            false => FetchLine::Progress(tally.lock().progress.clone()),
        };
        Some((line(&told), ((!ended).then_some(work), tally)))
    });
    Ok(lines.boxed())
}

/// One line of JSON with its end.
fn line(told: &FetchLine) -> Bytes {
    match json_line(told) {
        Ok(text) => Bytes::from(text + "\n"),
        // Plain data with names for keys: there is nothing that JSON could not say.
        Err(error) => unreachable!("progress could not be written: {error}"),
    }
}

/// Adds up what there is.
async fn count(mut walk: Walk, tally: &Mutex<Tally>) {
    while let Some(step) = walk.next().await {
        if let Step::File(_, object) = step {
            let mut tally = tally.lock();
            tally.progress.files += 1;
            tally.progress.bytes = tally.progress.bytes.saturating_add(object.size);
        }
    }
    tally.lock().progress.counted = true;
}

async fn bring_all(node: &Node, walk: Walk, tally: &Mutex<Tally>) {
    let room = Room::new();
    let steps = stream::unfold(walk, |mut walk| async move {
        let step = walk.next().await?;
        Some((step, walk))
    });
    let outcomes = steps
        .map(|step| take(node, step, &room, tally))
        .buffer_unordered(FILES_AT_ONCE);
    let mut outcomes = std::pin::pin!(outcomes);
    while outcomes.next().await.is_some() {
        let mut tally = tally.lock();
        if tally.in_a_row >= IN_A_ROW_MAX {
            tally.report.gave_up = true;
            return;
        }
    }
}

async fn take(node: &Node, step: Step, room: &Room, tally: &Mutex<Tally>) {
    let (path, object) = match step {
        Step::File(path, object) => (path, object),
        Step::Failed(path, reason) => return tally.lock().failed(&path, reason),
    };
    let outcome = take_file(node, &path, object, room, tally).await;
    let mut tally = tally.lock();
    match outcome {
        Ok(()) => {
            tally.progress.done_files += 1;
            tally.in_a_row = 0;
        }
        Err(error) => {
            let nobody = matches!(error, TransferError::Stalled { .. });
            tally.in_a_row = if nobody { tally.in_a_row + 1 } else { 0 };
            tally.failed(&path, error.to_string());
        }
    }
}

async fn take_file(
    node: &Node,
    path: &TreePath,
    object: Object,
    room: &Room,
    tally: &Mutex<Tally>,
) -> Result<(), TransferError> {
    let here = here(node, &object).map_err(|error| TransferError::Store(error.to_string()))?;
    let here_bytes = bytes_in(&object, &here);
    let whole = here_bytes == object.size;
    {
        let mut tally = tally.lock();
        tally.progress.done_bytes += here_bytes;
        tally.progress.already_here_bytes += here_bytes;
        let report = &mut tally.report;
        report.files += 1;
        report.bytes = report.bytes.saturating_add(object.size);
        report.already_here_bytes += here_bytes;
        report.already_here_files += u64::from(whole);
    }
    if whole {
        return Ok(());
    }
    let came = |bytes| {
        let mut tally = tally.lock();
        tally.progress.done_bytes += bytes;
        tally.report.fetched_bytes += bytes;
    };
    bring(node, object, &path_text(path).0, room, &came).await
}
