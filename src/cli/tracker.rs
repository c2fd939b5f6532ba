//! `tracker`.

use std::{process::ExitCode, time::Duration};

use p2pfs_tracker::server::{self, ServerConfig};

use super::{
    Failure, Outcome, What,
    args::{Common, TrackerArgs},
    locate::state_base,
    logging,
    mount::end_signal,
};
use crate::node::address;

/// The shortest lease that peers can renew in time.
const LEASE_MIN: Duration = Duration::from_secs(1);

pub(crate) fn run(common: &Common, options: TrackerArgs) -> Outcome {
    logging::story_to_stderr(common);
    let listen = address::socket(&options.listen).map_err(Failure::usage)?;
    if options.lease < LEASE_MIN {
        return Err(Failure::usage(
            "a lease of less than a second is too short: peers renew theirs within it",
        ));
    }
    // A tracker given its own state folder keeps its state right there; by default it stands beside the clusters.
    let state_dir = match &common.state_dir {
        Some(dir) => {
            super::locate::is_outside(dir)?;
            dir.clone()
        }
        None => state_base(common)?.dir().join("tracker"),
    };
    let config = ServerConfig {
        listen: vec![listen],
        state_dir,
        lease: options.lease,
    };
    let ready = |addresses: Vec<libp2p::Multiaddr>| {
        let addresses: Vec<_> = addresses.iter().map(ToString::to_string).collect();
        told!("tracker ready on {}", addresses.join(" "));
    };
    super::runtime()?
        .block_on(async { server::run(config, ready, end_signal()).await })
        .what("the tracker failed")?;
    Ok(ExitCode::SUCCESS)
}
