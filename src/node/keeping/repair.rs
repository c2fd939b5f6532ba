//! Damage of the disk that was found while something was read: what was dropped for it is had from other members.

use std::{sync::Arc, time::Duration};

use crate::{node::Node, store::Damage};

/// How long somebody may take to give a damaged range.
const REPAIR_WITHIN: Duration = Duration::from_secs(20);

impl Node {
    /// Fetches what was dropped as damaged; an error says why it could not be had.
    pub(in crate::node) async fn repair(&self, damage: &Damage) -> Result<(), String> {
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
}

/// Repairs what is found; never returns.
pub(in crate::node) async fn repair_found(node: Arc<Node>) {
    loop {
        let damage = node.store.damage_found().await;
        let (content, blocks) = (damage.object.content, damage.blocks.clone());
        match node.repair(&damage).await {
            Ok(()) => tracing::info!(%content, ?blocks, "what was damaged on the disk is repaired"),
            Err(reason) => tracing::error!(
                %content,
                ?blocks,
                reason,
                "what is damaged on the disk can't be repaired now: reading it fails until a member has it"
            ),
        }
    }
}
