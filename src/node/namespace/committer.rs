//! The committer's task: has the replica commit when it is time, and brings the nodes that it lacks.

use std::{
    sync::{Arc, atomic::Ordering},
    time::{Duration, Instant},
};

use tokio_util::sync::CancellationToken;

use super::{
    FETCH_MAX, Progress, Shared, blocking,
    commit::Step,
    pace::{BackOff, Pace},
    replica::Moment,
};

/// Commits until `closing`.
pub(super) async fn run(shared: Arc<Shared>, closing: CancellationToken) {
    tokio::select! {
        () = closing.cancelled() => {}
        () = commit_forever(&shared) => {}
    }
}

async fn commit_forever(shared: &Arc<Shared>) {
    let mut pace = Pace::new();
    let mut back_off = BackOff::default();
    loop {
        let now = Instant::now();
        let hurried = shared.hurry.load(Ordering::Acquire);
        let due = shared.replica.commit_due(now).map(|due| {
            let paced = if hurried { now } else { pace.due(now) };
            match back_off.until() {
                Some(until) if !hurried => due.max(paced).max(until),
                _ => due.max(paced),
            }
        });
        match due {
            Some(due) if due <= now => {}
            Some(due) => {
                let pause = tokio::time::sleep_until(due.into());
                tokio::select! {
                    () = pause => {}
                    () = shared.signals.commit_wake.notified() => {}
                }
                continue;
            }
            None => {
                shared.hurry.store(false, Ordering::Release);
                shared.signals.commit_wake.notified().await;
                continue;
            }
        }
        shared.hurry.store(false, Ordering::Release);
        let progress = shared.commit_or_fetch(now).await;
        match &progress {
            Progress::Well => {
                pace.committed(now);
                back_off.reset();
            }
            Progress::Unreachable => {
                tracing::info!("local changes wait for manifest nodes that nobody gives");
                back_off.failed(now);
            }
            Progress::Failed(reason) => {
                tracing::warn!(reason, "local changes could not be committed yet");
                back_off.failed(now);
            }
        }
        shared.progress.send_replace(progress);
    }
}

impl Shared {
    async fn commit_or_fetch(self: &Arc<Self>, now: Instant) -> Progress {
        let deadline = now + FETCH_MAX;
        loop {
            let shared = self.clone();
            let missing = match blocking(move || shared.replica.commit(Moment::now())).await {
                Ok(Step::Done | Step::Idle) => return Progress::Well,
                Ok(Step::Missing(nodes)) => nodes,
                Err(error) => return Progress::Failed(error.to_string()),
            };
            let left = deadline.saturating_duration_since(Instant::now());
            if left == Duration::ZERO {
                return Progress::Unreachable;
            }
            match self.bring(missing, None, left).await {
                Ok(0) => return Progress::Unreachable,
                Ok(_) => {}
                Err(error) => return Progress::Failed(error.to_string()),
            }
        }
    }
}
