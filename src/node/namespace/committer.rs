//! The committer's task: has the replica commit when it is time, and brings the nodes that it lacks. Changes that wait for
//! nodes which nobody gives hold up no others: those are tried again ever more rarely, and what is new goes ahead.

use std::{
    sync::{Arc, atomic::Ordering},
    time::{Duration, Instant},
};

use tokio_util::sync::CancellationToken;

use super::{
    FETCH_MAX, NamespaceError, Progress, Shared, blocking,
    commit::{Extent, Step},
    pace::{BackOff, Pace},
    replica::Moment,
};

/// How long what a head can do without is waited for, and after how long it is again.
const EXTRAS_WITHIN: Duration = Duration::from_secs(1);
const EXTRAS_AGAIN: Duration = Duration::from_secs(30);
/// How often changes that wait are put on the disk as they are.
const KEEP_EVERY: Duration = Duration::from_secs(1);

/// After how long it is tried again where that failed.
const KEEP_AGAIN: Duration = Duration::from_secs(30);
/// How often it is said that others will refuse what is published.
const TOLD_AHEAD_EVERY: Duration = Duration::from_secs(600);

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
    // The last change that was tried in vain.
    let mut tried = 0;
    let mut kept = Kept::default();
    let mut told_ahead: Option<Instant> = None;
    // Until then nobody is asked for what a head can do without.
    let mut without_until: Option<Instant> = None;
    loop {
        let now = Instant::now();
        let hurried = shared.hurry.load(Ordering::Acquire);
        let made = shared.replica.state.read().overlay.generation();
        let keep_due = kept.due(made, now);
        if keep_due.is_some_and(|due| due <= now) {
            kept.put(shared, made).await;
            continue;
        }
        let keep = async {
            match keep_due {
                Some(due) => tokio::time::sleep_until(due.into()).await,
                None => std::future::pending().await,
            }
        };
        let wanted = shared.replica.commit_due(now);
        let due = wanted.map(|due| {
            let paced = if hurried { now } else { pace.due(now) };
            match back_off.until() {
                Some(until) if !hurried && made <= tried => due.max(paced).max(until),
                _ => due.max(paced),
            }
        });
        match due {
            Some(due) if due <= now => {}
            Some(due) => {
                // Only somebody's hurry makes it sooner where it is but the pace that it waits for: a burst of changes is not to
                // wake this task with each of them.
                let is_paced = wanted <= Some(now) && back_off.until().is_none();
                let paced = &shared.signals.commit_paced;
                paced.store(is_paced, Ordering::Release);
                let pause = tokio::time::sleep_until(due.into());
                tokio::select! {
                    () = pause => {}
                    () = keep => {}
                    () = shared.signals.commit_wake.notified() => {}
                }
                // Before it looks again: what came meanwhile is seen then.
                paced.store(false, Ordering::Release);
                continue;
            }
            None => {
                shared.hurry.store(false, Ordering::Release);
                tokio::select! {
                    () = shared.signals.commit_wake.notified() => {}
                    () = keep => {}
                }
                continue;
            }
        }
        shared.hurry.store(false, Ordering::Release);
        let again = hurried || back_off.until().is_none_or(|until| until <= now);
        let progress = if again {
            shared.commit_or_fetch(now, &mut without_until).await
        } else {
            shared.commit_here().await
        };
        // Of what is made meanwhile nothing is known yet.
        kept.waits = shared.replica.state.read().overlay.waits(made);
        if let Some(ahead) = shared.replica.clock_ahead(Moment::now())
            && told_ahead.is_none_or(|told| told.elapsed() >= TOLD_AHEAD_EVERY)
        {
            told_ahead = Some(Instant::now());
            tracing::warn!(
                minutes = ahead.as_secs().div_ceil(60),
                "this machine's clock is behind what was published here, or was ahead before: other members refuse what is \
                 published here for so long"
            );
        }
        match &progress {
            Progress::Well => {
                pace.committed(now);
                back_off.reset();
            }
            Progress::Unreachable(_) if !again => {
                pace.committed(now);
                tried = made;
            }
            Progress::Unreachable(reason) => {
                tracing::info!(reason, "local changes wait to be published");
                tried = made;
                back_off.failed(now);
            }
            Progress::Failed(error) => {
                tried = made;
                tracing::warn!(%error, "local changes could not be committed yet");
                back_off.failed(now);
            }
        }
        shared.progress.send_replace(progress);
    }
}

/// What waits to be published, for nodes or for a merge, is put on the disk meanwhile: that may take days.
#[derive(Default)]
struct Kept {
    /// Something waited after the last attempt.
    waits: bool,
    /// The last change that is there.
    made: u64,
    at: Option<Instant>,
}

impl Kept {
    /// When it is to be put there next, if something new waits.
    fn due(&self, made: u64, now: Instant) -> Option<Instant> {
        let is_new = self.waits && made > self.made;
        is_new.then(|| self.at.map_or(now, |at| at + KEEP_EVERY))
    }

    async fn put(&mut self, shared: &Arc<Shared>, made: u64) {
        let replica = shared.clone();
        let begun = Instant::now();
        let put = blocking(move || replica.replica.keep_pending()).await;
        // It is all that waits each time.
        let pause = match put {
            Ok(()) => {
                self.made = made;
                10 * begun.elapsed()
            }
            Err(error) => {
                tracing::warn!(%error, "what waits to be published could not be put on the disk");
                KEEP_AGAIN
            }
        };
        self.at = Some(Instant::now() + pause);
    }
}

impl Shared {
    async fn commit_or_fetch(
        self: &Arc<Self>,
        now: Instant,
        without_until: &mut Option<Instant>,
    ) -> Progress {
        let deadline = now + FETCH_MAX;
        let extras_until = now + EXTRAS_WITHIN;
        loop {
            let shared = self.clone();
            let attempt = move || shared.replica.commit(Extent::All, Moment::now());
            let missing = match blocking(attempt).await {
                Ok(Step::Missing(nodes)) => nodes,
                Ok(Step::MissingExtras(nodes)) => {
                    let left = extras_until.saturating_duration_since(Instant::now());
                    let is_asked = without_until.is_none_or(|until| until <= Instant::now());
                    if is_asked && left > Duration::ZERO {
                        let brought = self.bring(nodes, None, left).await;
                        if brought.is_ok_and(|brought| brought.nodes > 0) {
                            continue;
                        }
                    }
                    if is_asked {
                        *without_until = Some(Instant::now() + EXTRAS_AGAIN);
                    }
                    return self.commit_here().await;
                }
                step => return came_to(step),
            };
            let left = deadline.saturating_duration_since(Instant::now());
            if left == Duration::ZERO {
                return self.commit_here().await;
            }
            match self.bring(missing, None, left).await {
                Ok(brought) if brought.nodes == 0 => return self.commit_here().await,
                Ok(_) => {}
                Err(error) => return Progress::Failed(error),
            }
        }
    }

    /// Commits what can be with the nodes that are here.
    async fn commit_here(self: &Arc<Self>) -> Progress {
        let shared = self.clone();
        came_to(blocking(move || shared.replica.commit(Extent::Here, Moment::now())).await)
    }
}

fn came_to(step: Result<Step, NamespaceError>) -> Progress {
    match step {
        Ok(Step::Done | Step::Idle) => Progress::Well,
        Ok(Step::Waiting(reason)) => Progress::Unreachable(reason),
        Ok(Step::Missing(nodes) | Step::MissingExtras(nodes)) => {
            let count = nodes.len();
            Progress::Unreachable(format!("nobody gives {count} manifest nodes that it takes"))
        }
        Err(error) => Progress::Failed(error),
    }
}
