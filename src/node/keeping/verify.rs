//! `p2pfs verify`: checks all that is here, and has what is damaged brought again while it goes on.

use std::{
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use bytes::Bytes;
use futures::{StreamExt, stream, stream::BoxStream};
use parking_lot::Mutex;
use tokio::sync::mpsc;
use tokio_util::task::AbortOnDropHandle;

use crate::{
    control::{
        text::json_line,
        types::{DamageReport, VerifyLine, VerifyReport},
    },
    node::{Node, run_blocking},
    store::{Damage, VerifyProgress},
};

/// How often progress is told.
const TOLD_EVERY: Duration = Duration::from_millis(200);
/// Repairs under way at a time.
const REPAIRS_AT_ONCE: usize = 8;
/// Damage that is found and waits for its repair.
const WAITING_MAX: usize = 64;
/// Most ranges that are named.
const NAMED_MAX: usize = 1000;
/// So many ranges in a row that nobody gives, and the others are only counted.
const IN_A_ROW_MAX: u64 = 64;

/// Ends the check with whoever follows it.
struct Stop(Arc<VerifyProgress>);

impl Drop for Stop {
    fn drop(&mut self) {
        self.0.stop.store(true, Ordering::Relaxed);
    }
}

/// Starts it; the lines tell how it goes ([`VerifyLine`]). Dropping them ends it.
pub(in crate::node) fn verify(node: Arc<Node>) -> BoxStream<'static, Bytes> {
    let progress = Arc::new(VerifyProgress::default());
    let work = tokio::spawn(check_all(node.clone(), progress.clone()));
    let work = Some(AbortOnDropHandle::new(work));
    let stop = Stop(progress);
    stream::unfold((work, node, stop), |(work, node, stop)| async move {
        let mut work = work?;
        let ended = tokio::time::timeout(TOLD_EVERY, &mut work).await;
        let (told, work) = match ended {
            Ok(Ok(told)) => (told, None),
            Ok(Err(error)) => (VerifyLine::Failed(error.to_string()), None),
            Err(_) => (far(&node, &stop.0), Some(work)),
        };
        Some((line(&told), (work, node, stop)))
    })
    .boxed()
}

fn far(node: &Node, progress: &VerifyProgress) -> VerifyLine {
    let bytes = progress.bytes.load(Ordering::Relaxed);
    // Only for the bar: what it can't tell, it doesn't.
    let total = node.store.usage().map_or(0, |usage| usage.objects_bytes);
    VerifyLine::Progress {
        objects: progress.objects.load(Ordering::Relaxed),
        bytes,
        total_bytes: total.max(bytes),
    }
}

/// One line of JSON with its end.
fn line(told: &VerifyLine) -> Bytes {
    match json_line(told) {
        Ok(text) => Bytes::from(text + "\n"),
        // Plain data with names for keys: there is nothing that JSON could not say.
        Err(error) => unreachable!("progress could not be written: {error}"),
    }
}

/// What came of the repairs.
#[derive(Default)]
struct Tally {
    report: VerifyReport,
    in_a_row: u64,
}

async fn check_all(node: Arc<Node>, progress: Arc<VerifyProgress>) -> VerifyLine {
    let (found, damages) = mpsc::channel(WAITING_MAX);
    let store = node.store.clone();
    let checking = run_blocking(move || {
        // Nobody takes it when the whole is ended.
        store.verify(&progress, &mut |damage| drop(found.blocking_send(damage)))
    });
    let tally = Arc::new(Mutex::new(Tally::default()));
    let damages = stream::unfold(damages, |mut damages| async move {
        Some((damages.recv().await?, damages))
    });
    // What is found while these are under way waits, and the check with it: memory is bounded.
    let repairs = damages.for_each_concurrent(REPAIRS_AT_ONCE, |damage| {
        repair(node.clone(), damage, tally.clone())
    });
    let (checked, ()) = tokio::join!(checking, repairs);
    let mut report = std::mem::take(&mut tally.lock().report);
    match checked {
        Ok((objects, bytes)) => {
            (report.objects, report.bytes) = (objects, bytes);
            VerifyLine::Done(report)
        }
        Err(error) => VerifyLine::Failed(error.to_string()),
    }
}

async fn repair(node: Arc<Node>, damage: Damage, tally: Arc<Mutex<Tally>>) {
    let gave_up = tally.lock().in_a_row >= IN_A_ROW_MAX;
    let outcome = match gave_up {
        false => node.treat(&damage).await,
        true => {
            let outcome = match node.drop_damaged(&damage).await {
                Ok(()) => Err("not tried, since nobody gave those before".to_owned()),
                Err(reason) => Err(reason),
            };
            node.tell_of_damage(&damage, &outcome);
            outcome
        }
    };
    let mut tally = tally.lock();
    tally.report.damaged += 1;
    let Err(reason) = outcome else {
        tally.report.repaired += 1;
        tally.in_a_row = 0;
        return;
    };
    tally.in_a_row += 1;
    tally.report.unreachable_ranges += 1;
    if tally.report.unreachable.len() < NAMED_MAX {
        let bytes = damage.object.bytes_of(damage.blocks);
        tally.report.unreachable.push(DamageReport {
            hash: damage.object.content.to_string(),
            offset: bytes.start,
            length: bytes.end - bytes.start,
            reason,
        });
    }
}
