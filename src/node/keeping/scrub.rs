//! The scrub: goes over all that is here again and again, slowly, and has what is damaged repaired. What the kernel reads by
//! itself, and what nobody reads, is checked by nothing else.
//!
//! It reads while nobody else does, in the idle class of I/O; [`plan`] says when and how much.

mod plan;

use std::{
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use crate::{
    idle,
    node::{Node, run_blocking},
};
use plan::{Next, Plan, STEP_BYTES};

/// How long it leaves a disk or a process in trouble alone.
const AFTER_FAILURE: Duration = Duration::from_secs(600);
/// The setting that keeps how far it is.
const SETTING: &str = "scrub";

/// Scrubs; never returns.
pub(in crate::node) async fn scrub(node: Arc<Node>) {
    let kept = node.store.setting(SETTING).unwrap_or_else(|error| {
        tracing::warn!(%error, "how far the scrub was could not be read: it begins anew");
        None
    });
    let mut plan = Plan::load(kept.as_deref());
    loop {
        *node.scrub.lock() = plan.report();
        let place = match plan.next(now_s(), node.store.used_at()) {
            Next::Step(place) => place,
            Next::Wait(wait) => {
                tokio::time::sleep(wait).await;
                continue;
            }
        };
        let store = node.store.clone();
        let step = run_blocking(move || idle::run(|| store.verify_step(place, STEP_BYTES))).await;
        let step = match step {
            Ok(step) => step,
            Err(error) => {
                tracing::warn!(%error, "the scrub stops for a while");
                tokio::time::sleep(AFTER_FAILURE).await;
                continue;
            }
        };
        let mut unrepaired = 0;
        for damage in &step.damage {
            unrepaired += u64::from(node.treat(damage).await.is_err());
        }
        let pause = plan.stepped(now_s(), &step, unrepaired);
        if plan.is_to_keep() {
            keep(&node, &plan).await;
        }
        tokio::time::sleep(pause).await;
    }
}

async fn keep(node: &Node, plan: &Plan) {
    let (store, kept) = (node.store.clone(), plan.encode());
    let kept = run_blocking(move || store.set_setting(SETTING, kept.as_deref())).await;
    if let Err(error) = kept {
        tracing::warn!(%error, "how far the scrub is could not be kept");
    }
}

fn now_s() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.map_or(0, |since| since.as_secs())
}
