//! The one owner of the registry and its records: takes commands one by one, writes each change down, then answers.

use std::{
    io,
    path::Path,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use libp2p::PeerId;
use tokio::{
    runtime::Handle,
    sync::{mpsc, oneshot},
    time::timeout,
};
use tracing::{error, info, warn};

use super::{
    ServerError,
    answer::{Asker, answer},
};
use crate::{
    protocol::{Ask, Refusal, Told, Topic},
    registry::{Delta, DialBack, Registry, companion_of_record, sealed_nodes_prefix},
};

/// Memory that sled may use for its page cache; the registry itself is in memory anyway.
const RECORDS_CACHE_BYTES: u64 = 16 * 1024 * 1024;
/// Records deleted in one batch.
const DELETE_BATCH: usize = 4096;
/// The keeper looks at its timers at least, and at most, this often while nothing is asked.
const WAIT_MAX: Duration = Duration::from_secs(1);
const WAIT_MIN: Duration = Duration::from_millis(50);

/// What the keeper is told.
pub(super) enum Command {
    /// Answer a request.
    Ask {
        asker: Asker,
        ask: Ask,
        told: oneshot::Sender<Told>,
    },
    /// A dial-back ended.
    Dialed {
        topic: Topic,
        peer: PeerId,
        reachable: bool,
    },
}

/// Opens the records, which also locks the state folder.
pub(super) fn open_records(path: &Path) -> Result<sled::Db, ServerError> {
    let opened = sled::Config::new()
        .path(path)
        .cache_capacity(RECORDS_CACHE_BYTES)
        .open();
    opened.map_err(|source| match &source {
        // sled tells a held lock by this text alone.
        sled::Error::Io(error)
            if error.kind() == io::ErrorKind::Other
                && error.to_string().contains("could not acquire lock") =>
        {
            ServerError::Locked(path.parent().unwrap_or(path).to_owned())
        }
        _ => ServerError::Records {
            path: path.to_owned(),
            source,
        },
    })
}

/// Milliseconds since the Unix epoch that never decrease while the process runs, whatever is done to the system's clock.
struct Clock {
    base_ms: u64,
    start: Instant,
}

impl Clock {
    fn new() -> Self {
        let since_epoch = SystemTime::now().duration_since(UNIX_EPOCH);
        Self {
            base_ms: since_epoch.map_or(0, millis),
            start: Instant::now(),
        }
    }

    fn now_ms(&self) -> u64 {
        self.base_ms.saturating_add(millis(self.start.elapsed()))
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// The registry, its records and its clock.
pub(super) struct Keeper {
    registry: Registry,
    records: sled::Db,
    clock: Clock,
}

impl Keeper {
    /// Takes in the records of an earlier run; those that can't be used are deleted.
    pub(super) fn load(mut registry: Registry, records: sled::Db) -> Result<Self, sled::Error> {
        let clock = Clock::new();
        let now = clock.now_ms();
        let mut refused = 0u64;
        for record in records.range(..sealed_nodes_prefix()) {
            let (key, value) = record?;
            if let Err(error) = registry.load(now, &key, &value) {
                if refused == 0 {
                    warn!(%error, "a record of the earlier run is passed over, as others may be");
                }
                refused += 1;
                if let Some(companion) = companion_of_record(&key) {
                    records.remove(companion)?;
                }
                records.remove(key)?;
            }
        }
        let counts = registry.counts();
        info!(
            clusters = counts.topics,
            peers = counts.peers,
            contents = counts.keys,
            nodes = counts.nodes,
            refused,
            "records are loaded"
        );
        let mut keeper = Self {
            registry,
            records,
            clock,
        };
        keeper.write_down()?;
        Ok(keeper)
    }

    /// Runs until every sender of commands is gone; blocks its thread.
    pub(super) fn run(
        mut self,
        runtime: &Handle,
        mut commands: mpsc::Receiver<Command>,
        dials: &mpsc::Sender<DialBack>,
    ) -> Result<(), sled::Error> {
        loop {
            let now = self.clock.now_ms();
            self.registry.handle_timeout(now);
            self.write_down()?;
            // A dial-back is taken only when there is room for it; what is due stays due.
            while let Ok(room) = dials.try_reserve() {
                match self.registry.poll_output(now) {
                    Some(dial) => room.send(dial),
                    None => break,
                }
            }
            let due_in = self
                .registry
                .poll_timeout()
                .map_or(WAIT_MAX, |at| Duration::from_millis(at.saturating_sub(now)));
            let wait = due_in.clamp(WAIT_MIN, WAIT_MAX);
            match runtime.block_on(async { timeout(wait, commands.recv()).await }) {
                Ok(Some(command)) => self.handle(command)?,
                Ok(None) => break,
                Err(_) => {}
            }
        }
        self.records.flush()?;
        Ok(())
    }

    fn handle(&mut self, command: Command) -> Result<(), sled::Error> {
        let now = self.clock.now_ms();
        match command {
            Command::Ask { asker, ask, told } => {
                let records = |key: &[u8]| match self.records.get(key) {
                    Ok(value) => Ok(value.map(|value| value.to_vec())),
                    Err(error) => {
                        error!(%error, "a record could not be read");
                        Err(Refusal::Unavailable)
                    }
                };
                let random = rand::random();
                let answer = answer(&mut self.registry, &records, now, &asker, ask, random);
                self.write_down()?;
                // The session may be gone meanwhile; what it asked for holds all the same.
                let _ = told.send(answer);
            }
            Command::Dialed {
                topic,
                peer,
                reachable,
            } => {
                self.registry.handle_dialed(now, topic, &peer, reachable);
                self.write_down()?;
            }
        }
        Ok(())
    }

    /// In as few steps as can be, so that a crash leaves what belongs together.
    fn write_down(&mut self) -> Result<(), sled::Error> {
        let mut batch = sled::Batch::default();
        for delta in self.registry.take_deltas() {
            match delta {
                Delta::Put { key, value } => batch.insert(key, value),
                Delta::Delete { key } => batch.remove(key),
                Delta::DeletePrefix { prefix } => {
                    self.records.apply_batch(std::mem::take(&mut batch))?;
                    delete_prefix(&self.records, &prefix)?;
                }
            }
        }
        self.records.apply_batch(batch)
    }
}

fn delete_prefix(records: &sled::Db, prefix: &[u8]) -> Result<(), sled::Error> {
    loop {
        let mut batch = sled::Batch::default();
        let mut deleted = 0;
        for key in records.scan_prefix(prefix).keys().take(DELETE_BATCH) {
            batch.remove(key?);
            deleted += 1;
        }
        records.apply_batch(batch)?;
        if deleted < DELETE_BATCH {
            return Ok(());
        }
    }
}
