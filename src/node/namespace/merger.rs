//! The merger's task: brings the nodes that it takes to merge the heads of others.
//!
//! Heads whose nodes are here never wait for those whose nodes nobody gives: each is fetched for beside the others, and has
//! pauses of its own.

use std::{
    collections::BTreeMap,
    fmt,
    sync::{Arc, atomic::Ordering},
    time::{Duration, Instant},
};

use futures::{StreamExt, stream::FuturesUnordered};
use libp2p::PeerId;
use tokio_util::sync::CancellationToken;

use super::{
    Brought, NamespaceError, Shared, blocking,
    heads::KnownHead,
    merge::{Effort, LATE_AFTER, Step},
    pace::BackOff,
    replica::Moment,
};
use crate::manifest::{NodeHash, WriterNumber};

/// Rounds of fetching for one head; each brings up to 1024 nodes.
const ROUNDS_MAX: usize = 1024;
/// How long nodes are waited for at a time.
const FETCH_MAX: Duration = Duration::from_secs(10);
/// Heads that are fetched for at once.
const FETCHES_MAX: usize = 4;

/// Merges until `closing`.
pub(super) async fn run(shared: Arc<Shared>, closing: CancellationToken) {
    tokio::select! {
        () = closing.cancelled() => {}
        () = merge_forever(&shared) => {}
    }
}

/// What is fetched for.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Goal {
    /// The root of the first head that was seen.
    First,
    /// The head of this name.
    Head([u8; 32]),
    /// What was here of an earlier state.
    BringUp,
}

struct Attempt {
    /// Whose head it is for.
    writer: Option<WriterNumber>,
    effort: Effort,
    begun: Instant,
    fetching: bool,
}

/// Why an attempt ended without a result.
enum Failure {
    /// Nobody gave any of these nodes.
    InVain(Effort, Vec<NodeHash>),
    Other(String),
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::InVain(_, nodes) => {
                let count = nodes.len();
                write!(
                    f,
                    "nobody gave any of the {count} manifest nodes that it takes"
                )
            }
            Self::Other(reason) => f.write_str(reason),
        }
    }
}

impl Attempt {
    fn new(head: Option<&KnownHead>) -> Self {
        Self {
            writer: head.map(|head| head.writer),
            effort: Effort::default(),
            begun: Instant::now(),
            fetching: false,
        }
    }
}

async fn merge_forever(shared: &Arc<Shared>) {
    let mut attempts: BTreeMap<Goal, Attempt> = BTreeMap::new();
    let mut fetches = FuturesUnordered::new();
    let mut first = BackOff::default();
    let mut bring_up = BackOff::default();
    // All that was due then was tried, or is being fetched for: that wakes the task by itself.
    let mut tried = Instant::now();
    loop {
        let due = shared.replica.state.read().heads.next_due(tried);
        let others = [&first, &bring_up].into_iter().filter_map(BackOff::until);
        let due = others.filter(|due| *due > tried).chain(due).min();
        let retry = async {
            match due {
                Some(due) => tokio::time::sleep_until(due.into()).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = shared.signals.merge_wake.notified() => {}
            () = retry => {}
            Some((goal, brought)) = fetches.next() => note(shared, &mut attempts, goal, brought),
        }
        if shared.signals.bring_up.swap(false, Ordering::AcqRel) {
            bring_up.soon(Instant::now());
        }
        if shared.signals.merge_all.swap(false, Ordering::AcqRel) {
            shared.replica.need_all();
        }
        let now = Instant::now();
        tried = now;
        let heads = {
            let state = shared.replica.state.read();
            // What was tried for heads that have left is nobody's concern.
            attempts.retain(|goal, attempt| match goal {
                Goal::Head(digest) => attempt.fetching || state.heads.get(digest).is_some(),
                Goal::First | Goal::BringUp => true,
            });
            state.heads.to_merge(now)
        };
        let is_due = |back_off: &BackOff| back_off.until().is_none_or(|until| until <= now);
        let another = shared.replica.state.read().another_first().is_some();
        let first_due = (another || is_due(&first)).then_some((Goal::First, None));
        let heads = heads
            .into_iter()
            .map(|head| (Goal::Head(head.digest()), Some(head)));
        let outdated = shared.replica.is_outdated() && is_due(&bring_up);
        let outdated = outdated.then_some((Goal::BringUp, None));
        for (goal, head) in first_due.into_iter().chain(heads).chain(outdated) {
            let attempt = attempts
                .entry(goal)
                .or_insert_with(|| Attempt::new(head.as_ref()));
            if attempt.fetching {
                continue;
            }
            let failure = match shared.step(goal, attempt.effort.clone()).await {
                Ok(Step::Missing(nodes)) if attempt.effort.was_in_vain(&nodes) => {
                    Some(Failure::InVain(attempt.effort.clone(), nodes))
                }
                Ok(Step::Missing(_)) if attempt.effort.rounds >= ROUNDS_MAX => {
                    Some(Failure::Other(
                        "it takes more manifest nodes than are fetched in one go".into(),
                    ))
                }
                Ok(Step::Missing(nodes)) => {
                    if fetches.len() < FETCHES_MAX {
                        attempt.fetching = true;
                        let from = head.as_ref().and_then(|head| shared.showed(head));
                        attempt.effort.wanted.clone_from(&nodes);
                        fetches.push(fetch(shared.clone(), goal, nodes, from));
                    }
                    continue;
                }
                Ok(Step::Done | Step::Later) => None,
                Err(error) => Some(Failure::Other(error.to_string())),
            };
            attempts.remove(&goal);
            let Some(failure) = failure else {
                match goal {
                    Goal::First => first.reset(),
                    Goal::BringUp => bring_up.reset(),
                    Goal::Head(_) => {}
                }
                continue;
            };
            let reason = failure.to_string();
            match head {
                None if goal == Goal::BringUp => {
                    tracing::debug!(reason, "what is here is not all brought up to the state");
                    bring_up.failed(now);
                }
                Some(head) => {
                    tracing::info!(
                        writer = format_args!("{:016x}", head.writer.0),
                        sequence = head.sequence,
                        reason,
                        "a head waits to be merged"
                    );
                    if let Err(error) = shared.failed(head.digest(), failure).await {
                        tracing::warn!(%error, "a head that nobody has could not be given up");
                    }
                }
                None => {
                    tracing::info!(reason, "the first head waits to be looked at");
                    first.failed(now);
                }
            }
        }
    }
}

/// Notes how a fetch went.
fn note(
    shared: &Shared,
    attempts: &mut BTreeMap<Goal, Attempt>,
    goal: Goal,
    brought: Result<Brought, NamespaceError>,
) {
    let Some(attempt) = attempts.get_mut(&goal) else {
        return;
    };
    attempt.fetching = false;
    let brought = brought.unwrap_or_else(|error| {
        tracing::warn!(%error, "manifest nodes could not be kept");
        attempt.effort.not_kept = true;
        Brought::default()
    });
    if goal == Goal::BringUp
        && let Err(error) = shared.replica.note_brought_up(&brought, Moment::now())
    {
        tracing::warn!(%error, "that nobody gives some manifest nodes could not be noted");
    }
    if let (Goal::Head(digest), Some(writer)) = (goal, attempt.writer)
        && brought.nodes > 0
    {
        let mut state = shared.replica.state.write();
        state.heads.given(&digest, writer);
    }
    attempt.effort.rounds += 1;
    attempt.effort.nodes += brought.nodes;
    // It may still do without.
    attempt.effort.unreachable = brought.nodes == 0;
    attempt.effort.denied = brought.nodes == 0 && brought.denied;
    attempt.effort.late = attempt.begun.elapsed() > LATE_AFTER;
    // Others may have waited for this one to make room.
    shared.signals.merge_wake.notify_one();
}

async fn fetch(
    shared: Arc<Shared>,
    goal: Goal,
    nodes: Vec<NodeHash>,
    from: Option<PeerId>,
) -> (Goal, Result<Brought, NamespaceError>) {
    (goal, shared.bring(nodes, from, FETCH_MAX).await)
}

impl Shared {
    /// One attempt with what is here.
    async fn step(self: &Arc<Self>, goal: Goal, effort: Effort) -> Result<Step, NamespaceError> {
        let shared = self.clone();
        blocking(move || match goal {
            Goal::First => shared.replica.prove_first(effort.denied, Moment::now()),
            Goal::Head(digest) => shared.replica.merge(&digest, &effort, Moment::now()),
            Goal::BringUp => shared.replica.bring_up(&effort),
        })
        .await
    }

    async fn failed(
        self: &Arc<Self>,
        digest: [u8; 32],
        failure: Failure,
    ) -> Result<(), NamespaceError> {
        let shared = self.clone();
        let note = move || match failure {
            Failure::InVain(effort, nodes) => {
                let now = Moment::now();
                shared.replica.was_in_vain(&digest, &effort, &nodes, now)
            }
            Failure::Other(_) => {
                let mut state = shared.replica.state.write();
                state.heads.failed(&digest, Instant::now());
                Ok(())
            }
        };
        blocking(note).await
    }

    /// Who showed a head: the first to ask for its nodes.
    fn showed(&self, head: &KnownHead) -> Option<PeerId> {
        self.replica.state.write().showed.get(&head.digest())
    }
}
