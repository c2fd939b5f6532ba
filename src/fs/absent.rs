//! Names of which the kernel was told that nothing has them. Pure.
//!
//! Compilers, shells and `git` ask for names that are not there all the time, so the kernel keeps what it was told of them for a
//! while. A change elsewhere that says which names it brings tells the kernel of these, whether they were asked for or not
//! ([`super::notify`]). One of unknown extent takes this list.

use std::{
    collections::HashSet,
    time::{Duration, Instant},
};

use crate::manifest::{Name, may_be_copy};

/// How long the kernel keeps it.
pub(super) const ABSENT_FOR: Duration = Duration::from_secs(600);
/// Names are listed for longer: answers take their time.
const LISTED_FOR: Duration = ABSENT_FOR.saturating_add(Duration::from_secs(60));
/// As many are listed at most, twice: some 100 bytes each. Others are asked for every time.
const LISTED_MAX: usize = 1 << 15;

/// Folders' numbers and names in them.
type Names = HashSet<(u64, Name)>;

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Absent {
    /// Told since this moment…
    young: Names,
    since: Option<Instant>,
    /// …and before, where the kernel may keep it still.
    old: Names,
}

impl Absent {
    /// Lists a name of which the kernel is about to be told that nothing has it. False where it may not keep that.
    pub(super) fn note(&mut self, folder: u64, name: &Name, now: Instant) -> bool {
        // Copies come and go with changes of another name.
        if may_be_copy(name) {
            return false;
        }
        self.forget_old(now);
        let name = (folder, name.clone());
        if self.young.len() >= LISTED_MAX {
            return self.young.contains(&name);
        }
        self.young.insert(name);
        true
    }

    /// All that the kernel may keep.
    pub(super) fn all(&self) -> impl Iterator<Item = &(u64, Name)> {
        self.young.union(&self.old)
    }

    /// Forgets what the kernel has forgotten.
    pub(super) fn forget_old(&mut self, now: Instant) {
        let since = *self.since.get_or_insert(now);
        let age = now.saturating_duration_since(since);
        if age >= LISTED_FOR {
            self.old = std::mem::take(&mut self.young);
            self.since = Some(now);
        }
        if age >= LISTED_FOR * 2 {
            self.old = Names::new();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(number: usize) -> Name {
        Name::new(number.to_string().as_bytes()).unwrap()
    }

    #[test]
    fn a_name_is_listed_for_as_long_as_the_kernel_keeps_it_and_few_are() {
        let start = Instant::now();
        let mut absent = Absent::default();
        assert!(absent.note(1, &name(1), start));
        // Those just before the lists change are listed for long enough, too.
        let late = start + LISTED_FOR - Duration::from_millis(1);
        assert!(absent.note(1, &name(2), late));
        let listed = |absent: &Absent, number| absent.all().any(|at| *at == (1, name(number)));
        for at in [late, late + ABSENT_FOR] {
            absent.forget_old(at);
            assert!(listed(&absent, 2), "the kernel keeps it");
        }
        absent.forget_old(late + LISTED_FOR * 2);
        assert_eq!(absent.all().count(), 0);
        for number in 0..2 * LISTED_MAX {
            assert_eq!(absent.note(1, &name(number), late), number < LISTED_MAX);
        }
        assert!(absent.note(1, &name(0), late), "it is listed already");
        absent.forget_old(late + LISTED_FOR * 3);
        absent.forget_old(late + LISTED_FOR * 5);
        assert_eq!(absent.all().count(), 0);
    }

    #[test]
    fn what_may_be_the_name_of_a_copy_is_asked_for_every_time() {
        let copy = Name::new(*b"a (conflict, node, 2026-11-29 10-00-00).txt").unwrap();
        assert!(may_be_copy(&copy));
        assert!(!Absent::default().note(1, &copy, Instant::now()));
    }
}
