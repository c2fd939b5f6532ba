//! The merger's task: brings the nodes that it takes to merge the heads of others.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use tokio_util::sync::CancellationToken;

use super::{
    NamespaceError, Shared, blocking,
    heads::KnownHead,
    merge::{Effort, Step},
    pace::BackOff,
    replica::Moment,
};

/// Rounds of fetching for one head; each brings up to 1024 nodes.
const ROUNDS_MAX: usize = 1024;
/// How long nodes are waited for at a time.
const FETCH_MAX: Duration = Duration::from_secs(10);
/// What a head changes is told in full if that can be found out in this time.
const LATE_AFTER: Duration = Duration::from_secs(3);

/// Merges until `closing`.
pub(super) async fn run(shared: Arc<Shared>, closing: CancellationToken) {
    tokio::select! {
        () = closing.cancelled() => {}
        () = merge_forever(&shared) => {}
    }
}

async fn merge_forever(shared: &Arc<Shared>) {
    let mut back_off = BackOff::default();
    loop {
        let retry = async {
            match back_off.until() {
                Some(until) => tokio::time::sleep_until(until.into()).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = shared.signals.merge_wake.notified() => {}
            () = retry => {}
        }
        let mut failed = false;
        if let Err(error) = shared.prove_first().await {
            tracing::info!(%error, "the first head waits to be looked at");
            failed = true;
        }
        let heads = shared.replica.state.read().heads.to_merge();
        for head in heads {
            if let Err(error) = shared.merge(&head).await {
                tracing::info!(
                    writer = format_args!("{:016x}", head.writer.0),
                    sequence = head.sequence,
                    %error,
                    "a head waits to be merged"
                );
                failed = true;
            }
        }
        if failed {
            back_off.failed(Instant::now());
        } else {
            back_off.reset();
        }
    }
}

impl Shared {
    async fn prove_first(self: &Arc<Self>) -> Result<(), NamespaceError> {
        loop {
            let shared = self.clone();
            let step = blocking(move || shared.replica.prove_first(Moment::now()));
            let Step::Missing(nodes) = step.await? else {
                return Ok(());
            };
            if self.bring(nodes, None, FETCH_MAX).await? == 0 {
                return Err(unreachable(1));
            }
        }
    }

    async fn merge(self: &Arc<Self>, head: &KnownHead) -> Result<(), NamespaceError> {
        let digest = head.digest();
        let from = self.replica.state.write().showed.get(&digest);
        let mut effort = Effort::default();
        let begun = Instant::now();
        while effort.rounds < ROUNDS_MAX {
            let shared = self.clone();
            let step = blocking(move || shared.replica.merge(&digest, effort, Moment::now()));
            let Step::Missing(nodes) = step.await? else {
                return Ok(());
            };
            if effort.unreachable {
                return Err(unreachable(nodes.len()));
            }
            let brought = self.bring(nodes, from, FETCH_MAX).await?;
            effort.rounds += 1;
            effort.nodes += brought;
            // It may still do without.
            effort.unreachable = brought == 0;
            effort.late = begun.elapsed() > LATE_AFTER;
        }
        Err(NamespaceError::Unreachable(
            "the merge needs more nodes than are fetched in one go".into(),
        ))
    }
}

fn unreachable(count: usize) -> NamespaceError {
    NamespaceError::Unreachable(format!("nobody gave any of {count} nodes"))
}
