//! The tracker as a process: libp2p and sled around the [`crate::registry`].
//!
//! The swarm, the registry's keeper and each session are tasks of their own. The keeper alone touches the registry and its
//! records, one command after the other, and writes a change down before the peer hears of it. Everything is bounded:
//! connections, sessions, the rate of requests of each, the commands that wait, the dial-backs under way. A peer that sends
//! faster than it may is not refused but read more slowly.
//!
//! The state folder holds `identity` (the key behind the tracker's peer id, mode 0600) and `registry/` (sled). Both may be
//! deleted while no tracker runs: it is then another tracker that knows nothing yet, and is told everything by the peers as
//! they come back.

mod answer;
mod identity;
mod keeper;
mod network;
mod session;

use std::{
    future::Future,
    io,
    net::{SocketAddr, TcpListener},
    os::unix::fs::DirBuilderExt,
    path::{Path, PathBuf},
    time::Duration,
};

use libp2p::Multiaddr;
use tokio::sync::mpsc;

use crate::registry::{Limits, Registry};
use keeper::Keeper;

/// How long a lease runs by default; peers renew it after a third of that.
pub const LEASE: Duration = Duration::from_secs(90);
/// Commands that wait for the keeper; sessions wait when it is full.
const COMMANDS_MAX: usize = 256;
/// Dial-backs under way at a time.
const DIALS_MAX: usize = 32;

/// How a tracker runs.
#[derive(Clone, Debug)]
pub struct ServerConfig {
    /// Where to listen (TCP); port 0 chooses one.
    pub listen: Vec<SocketAddr>,
    /// Where its identity and its records are; made if missing.
    pub state_dir: PathBuf,
    /// How long a lease runs: [`LEASE`], less in tests.
    pub lease: Duration,
}

/// Why a tracker could not start, or had to stop.
#[derive(Debug, thiserror::Error)]
pub enum ServerError {
    /// The state folder can't be used.
    #[error("could not use the tracker's state folder {}: {source}", path.display())]
    StateDir {
        /// Which file or folder.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Another tracker uses the state folder.
    #[error("the tracker's state folder {} is in use by another process", .0.display())]
    Locked(PathBuf),
    /// The identity file can't be read as one.
    #[error("{} is damaged: restore it, or delete it to give this tracker a new identity", .0.display())]
    Identity(PathBuf),
    /// The records can't be read or written.
    #[error("the tracker's records in {} failed: {source}", path.display())]
    Records {
        /// Where they are.
        path: PathBuf,
        /// Why.
        source: sled::Error,
    },
    /// The address is taken.
    #[error("{0} is already in use; is another tracker running?")]
    InUse(SocketAddr),
    /// Could not listen.
    #[error("could not listen on {address}: {reason}")]
    Listen {
        /// Where.
        address: SocketAddr,
        /// Why.
        reason: String,
    },
    /// The network could not be set up.
    #[error("could not set up the network: {0}")]
    Network(String),
}

/// Runs a tracker on the current tokio runtime (a multi-threaded one with time and I/O) until `shutdown` resolves.
///
/// `ready` is called once, when it listens everywhere, with the addresses (ending in `/p2p/<its peer id>`).
pub async fn run(
    config: ServerConfig,
    ready: impl FnOnce(Vec<Multiaddr>),
    shutdown: impl Future<Output = ()>,
) -> Result<(), ServerError> {
    for address in &config.listen {
        check_free(*address)?;
    }
    let dir = &config.state_dir;
    // Who is in which cluster is nobody else's business.
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(dir)
        .map_err(in_dir(dir))?;
    let records_dir = dir.join("registry");
    let records = keeper::open_records(&records_dir)?;
    let identity = identity::load_or_create(&dir.join("identity"))?;

    let lease_ms = u64::try_from(config.lease.as_millis()).unwrap_or(u64::MAX);
    let registry = Registry::new(Limits::default(), lease_ms);
    let (commands, queue) = mpsc::channel(COMMANDS_MAX);
    let (dials, dials_due) = mpsc::channel(DIALS_MAX);
    // Loading and writing block, so the keeper has a thread to itself.
    let runtime = tokio::runtime::Handle::current();
    let mut keeper_task = tokio::task::spawn_blocking(move || {
        Keeper::load(registry, records)?.run(&runtime, queue, &dials)
    });

    let mut network = match network::Network::start(&config, identity, commands, dials_due) {
        Ok(network) => network,
        Err(error) => {
            // Its commands are closed: it ends, and with it the lock on the state folder.
            let stopped = keeper_outcome(keeper_task.await, &records_dir);
            return Err(stopped.err().unwrap_or(error));
        }
    };
    let outcome = tokio::select! {
        outcome = network.run(ready) => outcome,
        stopped = &mut keeper_task => return keeper_outcome(stopped, &records_dir),
        () = shutdown => Ok(()),
    };
    // With the sessions goes the last sender of commands: the keeper writes down what it has and ends.
    network.stop().await;
    outcome.and(keeper_outcome(keeper_task.await, &records_dir))
}

fn keeper_outcome(
    outcome: Result<Result<(), sled::Error>, tokio::task::JoinError>,
    records_dir: &Path,
) -> Result<(), ServerError> {
    match outcome {
        Ok(Ok(())) => Ok(()),
        Ok(Err(source)) => Err(ServerError::Records {
            path: records_dir.to_owned(),
            source,
        }),
        Err(error) => Err(ServerError::Network(error.to_string())),
    }
}

fn in_dir(path: &Path) -> impl FnOnce(io::Error) -> ServerError {
    let path = path.to_owned();
    move |source| ServerError::StateDir { path, source }
}

/// libp2p listens with SO_REUSEPORT, so two trackers of one user would share a port without a word: ask for it plainly first.
fn check_free(address: SocketAddr) -> Result<(), ServerError> {
    match TcpListener::bind(address) {
        Ok(_) => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::AddrInUse => Err(ServerError::InUse(address)),
        Err(error) => Err(ServerError::Listen {
            address,
            reason: error.to_string(),
        }),
    }
}
