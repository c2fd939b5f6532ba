//! The thread that brings the index up to date behind what is in memory, and unlinks staging files that are done.

use std::{io, sync::Arc, thread::JoinHandle, time::Duration};

use parking_lot::{Condvar, Mutex};

use super::cache::Core;

/// How long the index may lag behind.
const LAG: Duration = Duration::from_millis(200);

/// Tells the worker that there is something to do.
#[derive(Default)]
pub(super) struct Bell {
    signal: Mutex<Signal>,
    changed: Condvar,
}

#[derive(Default)]
struct Signal {
    pending: bool,
    stop: bool,
}

impl Bell {
    pub(super) fn ring(&self) {
        let mut signal = self.signal.lock();
        if !signal.pending {
            signal.pending = true;
            self.changed.notify_all();
        }
    }

    fn stop(&self) {
        self.signal.lock().stop = true;
        self.changed.notify_all();
    }

    /// Waits until it was rung, then gathers what else comes; false when the worker shall end.
    fn wait(&self) -> bool {
        let mut signal = self.signal.lock();
        while !signal.pending && !signal.stop {
            self.changed.wait(&mut signal);
        }
        signal.pending = false;
        if !signal.stop {
            self.changed
                .wait_while_for(&mut signal, |signal| !signal.stop, LAG);
        }
        !signal.stop
    }
}

/// The running thread.
pub(super) struct Worker {
    core: Arc<Core>,
    thread: Option<JoinHandle<()>>,
}

impl Worker {
    pub(super) fn start(core: Arc<Core>) -> io::Result<Self> {
        let shared = Arc::clone(&core);
        let thread = std::thread::Builder::new()
            .name("p2pfs-index".to_owned())
            .spawn(move || run(&shared))?;
        Ok(Self {
            core,
            thread: Some(thread),
        })
    }

    /// Ends the thread and waits for it; what is pending is left to [`Core::close`].
    pub(super) fn stop(&mut self) {
        self.core.bell.stop();
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("the index thread had panicked");
        }
    }
}

fn run(core: &Core) {
    let mut failing = false;
    while core.bell.wait() {
        match core.catch_up() {
            Ok(()) => failing = false,
            Err(error) => {
                // Tried again until it works or the store is closed; said once.
                if !failing {
                    tracing::error!(%error, "the index could not be written; trying again");
                }
                failing = true;
                core.bell.ring();
            }
        }
    }
}
