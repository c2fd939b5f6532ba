//! Damage of the disk, whoever found it: what is wrong is dropped, had from other members, and told of.

use std::{sync::Arc, time::Duration};

use crate::{
    control::types::Happened,
    node::{Node, run_blocking},
    store::Damage,
};

/// How long somebody may take to give a damaged range.
const REPAIR_WITHIN: Duration = Duration::from_secs(20);

impl Node {
    /// Drops what proves to be damaged and fetches it; says so in the log and as an event. The error says why it could not be
    /// had.
    pub(super) async fn treat(&self, damage: &Damage) -> Result<(), String> {
        let outcome = match self.drop_damaged(damage).await {
            Ok(()) => self.fetch_dropped(damage).await,
            Err(reason) => Err(reason),
        };
        self.tell_of_damage(damage, &outcome);
        outcome
    }

    /// Drops what proves to be damaged; the error says why that could not be found out.
    pub(super) async fn drop_damaged(&self, damage: &Damage) -> Result<(), String> {
        let (store, damage) = (self.store.clone(), damage.clone());
        let dropped = run_blocking(move || store.reprove(&damage.object, damage.blocks)).await;
        dropped.map_err(|error| error.to_string())
    }

    async fn fetch_dropped(&self, damage: &Damage) -> Result<(), String> {
        let bytes = damage.object.bytes_of(damage.blocks.clone());
        let label = format!("repair {}", damage.object.content);
        let repair = self.transfers.ensure(damage.object, bytes, &label);
        match tokio::time::timeout(REPAIR_WITHIN, repair).await {
            Ok(outcome) => outcome.map_err(|error| error.to_string()),
            Err(_) => Err(format!(
                "nobody gave it within {} s",
                REPAIR_WITHIN.as_secs()
            )),
        }
    }

    /// Says what came of damage.
    pub(super) fn tell_of_damage(&self, damage: &Damage, outcome: &Result<(), String>) {
        let (content, blocks) = (damage.object.content, &damage.blocks);
        match outcome {
            Ok(()) => tracing::warn!(%content, ?blocks, "damaged on the disk, and repaired"),
            Err(reason) => tracing::error!(
                %content,
                ?blocks,
                reason,
                "damaged on the disk, and not repaired: reading it fails until a member gives it"
            ),
        }
        let bytes = damage.object.bytes_of(blocks.clone());
        self.happened(Happened::Damaged {
            hash: content.to_string(),
            offset: bytes.start,
            length: bytes.end - bytes.start,
            repaired: outcome.is_ok(),
        });
    }
}

/// Repairs what is found while something is read; never returns.
pub(in crate::node) async fn repair_found(node: Arc<Node>) {
    loop {
        let damage = node.store.damage_found().await;
        // It is told of, and nobody waits for it here.
        let _ = node.treat(&damage).await;
    }
}
