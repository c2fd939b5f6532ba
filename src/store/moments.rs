//! Moments of the store's work at which a test may hold it, to show what becomes of what others do meanwhile.

#[cfg(test)]
use std::{
    sync::atomic::{AtomicUsize, Ordering},
    time::{Duration, Instant},
};

#[cfg(test)]
use parking_lot::{Mutex, MutexGuard};

use super::cache::Core;

/// Where it may be held.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Moment {
    /// A durable journal record is written: before the file is synced.
    Journal,
    /// A staging file becomes an object: before anything is read of it.
    Import,
    /// Files that are done with go: before the index is flushed for that.
    Unlink,
}

/// What is held.
#[cfg(test)]
#[derive(Debug, Default)]
pub(super) struct Moments {
    gates: [Mutex<()>; 3],
    waiting: [AtomicUsize; 3],
}

/// Nobody goes on there before this is dropped.
#[cfg(test)]
pub(crate) struct Held<'a> {
    waiting: &'a AtomicUsize,
    _gate: MutexGuard<'a, ()>,
}

#[cfg(test)]
impl Held<'_> {
    /// Returns once somebody waits there.
    pub(crate) fn is_reached(&self) {
        let deadline = Instant::now() + Duration::from_secs(30);
        while self.waiting.load(Ordering::SeqCst) == 0 {
            assert!(Instant::now() < deadline, "nobody came there within 30 s");
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}

impl Core {
    /// It has come.
    pub(super) fn at(&self, moment: Moment) {
        #[cfg(test)]
        {
            let waiting = &self.moments.waiting[moment as usize];
            waiting.fetch_add(1, Ordering::SeqCst);
            drop(self.moments.gates[moment as usize].lock());
            waiting.fetch_sub(1, Ordering::SeqCst);
        }
        #[cfg(not(test))]
        let _ = moment;
    }

    /// Whoever comes there waits until this is dropped.
    #[cfg(test)]
    pub(super) fn hold(&self, moment: Moment) -> Held<'_> {
        Held {
            waiting: &self.moments.waiting[moment as usize],
            _gate: self.moments.gates[moment as usize].lock(),
        }
    }
}
