//! How the open files of an inode reach its bytes. Pure.
//!
//! An inode is open *cached* (requests come here, pages stay in the kernel's cache), or *passed through* (the kernel reads a
//! backing file itself and asks nothing), never both at a time: the kernel answers EIO to whoever mixes them. All opens that
//! are passed through share one backing file until the last of them is released.
//!
//! The counts here are never below the kernel's: an open is counted before it is answered, and the kernel has let go of it
//! before it says so.

use std::{any::Any, collections::HashMap, sync::Arc};

use crate::store::Lent;

/// What an inode is passed through to.
#[derive(Clone)]
pub(crate) struct Through {
    /// What the kernel's side knows it by.
    pub(crate) token: Arc<dyn Any + Send + Sync>,
    /// The content stays as it is for as long as this is held.
    _lent: Arc<Lent>,
}

impl Through {
    pub(crate) fn new(lent: Lent, token: Arc<dyn Any + Send + Sync>) -> Self {
        Self {
            token,
            _lent: Arc::new(lent),
        }
    }
}

enum Opens {
    Cached(u32),
    Passed(u32, Through),
}

/// See the module.
#[derive(Default)]
pub(crate) struct Modes {
    by_number: HashMap<u64, Opens>,
}

impl Modes {
    /// One more cached open; false, with nothing changed, where the inode is passed through.
    pub(crate) fn cache(&mut self, number: u64) -> bool {
        match self.by_number.entry(number).or_insert(Opens::Cached(0)) {
            Opens::Cached(users) => {
                *users += 1;
                true
            }
            Opens::Passed(..) => false,
        }
    }

    /// One more open that is passed through. `begin` gives what to, if this is the first; it isn't asked where the inode is
    /// open cached. `None`: not passed through.
    pub(crate) fn pass(
        &mut self,
        number: u64,
        begin: impl FnOnce() -> Option<Through>,
    ) -> Option<Through> {
        match self.by_number.get_mut(&number) {
            Some(Opens::Cached(_)) => None,
            Some(Opens::Passed(users, through)) => {
                *users += 1;
                Some(through.clone())
            }
            None => {
                let through = begin()?;
                self.by_number
                    .insert(number, Opens::Passed(1, through.clone()));
                Some(through)
            }
        }
    }

    /// Whether it is passed through at the moment.
    pub(crate) fn is_passed(&self, number: u64) -> bool {
        matches!(self.by_number.get(&number), Some(Opens::Passed(..)))
    }

    /// Whether one open is all there is, and a cached one.
    pub(crate) fn is_alone(&self, number: u64) -> bool {
        matches!(self.by_number.get(&number), Some(Opens::Cached(1)))
    }

    /// An open has ended. Returns what it was passed through to if that has no user left, to be dropped outside of locks.
    pub(crate) fn close(&mut self, number: u64) -> Option<Through> {
        let users = match self.by_number.get_mut(&number)? {
            Opens::Cached(users) | Opens::Passed(users, _) => users,
        };
        *users = users.saturating_sub(1);
        if *users > 0 {
            return None;
        }
        match self.by_number.remove(&number)? {
            Opens::Passed(_, through) => Some(through),
            Opens::Cached(_) => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        content::{self, BLOCK_BYTES, Object, VerifiedRange},
        store::Store,
    };

    fn through(store: &Store) -> Through {
        let data = vec![7; 10_000];
        let object = Object {
            content: content::hash_bytes(&data),
            size: data.len() as u64,
        };
        assert!(object.size < BLOCK_BYTES);
        let range = VerifiedRange {
            object,
            blocks: 0..1,
            data: vec![&data],
            nodes: Vec::new(),
        };
        store.insert(&range).expect("inserted");
        let lent = store.lend(&object).expect("looked").expect("complete");
        Through::new(lent, Arc::new(()))
    }

    #[test]
    fn an_inode_is_open_in_one_way_at_a_time_and_passed_through_to_one_file() {
        let dir = tempfile::tempdir().expect("dir");
        let store = Store::open(dir.path()).expect("a store");
        let mut modes = Modes::default();
        assert!(modes.cache(5));
        assert!(modes.pass(5, || panic!("it is open cached")).is_none());
        assert!(modes.close(5).is_none());
        assert!(modes.pass(5, || None).is_none());
        assert!(!modes.is_passed(5));

        let first = modes.pass(5, || Some(through(&store))).expect("passed");
        let second = modes.pass(5, || panic!("there is one")).expect("passed");
        assert!(Arc::ptr_eq(&first.token, &second.token));
        assert!(modes.is_passed(5) && !modes.is_passed(6));
        assert!(!modes.cache(5));
        assert!(modes.cache(6));
        assert!(modes.is_alone(6) && !modes.is_alone(5));
        assert!(modes.cache(6));
        assert!(!modes.is_alone(6));
        assert!(modes.close(5).is_none(), "one user is left");
        assert!(modes.close(5).is_some());
        assert!(modes.close(5).is_none(), "there is none");
        assert!(modes.cache(5));
    }
}
