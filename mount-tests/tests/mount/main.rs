//! End-to-end tests of p2pfs; the harness is the library beside them.
#![allow(clippy::unwrap_used)]

mod apart;
mod attacker;
mod by_reference;
mod changes;
mod commands;
mod conflicts;
mod crashes;
mod damage;
mod ending;
mod failing_disk;
mod faults;
mod hostile;
mod joining;
mod killed;
mod manners;
mod member;
mod native;
mod offline_copy;
mod packaging;
mod partition;
mod posix;
mod pushes;
mod reading;
mod recovery;
mod resilience;
mod room;
mod scale;
mod security;
mod small_files;
mod versions;
mod working;

use p2pfs_mount_tests::{Host, Lab, Mount, Process};

/// A tracker on a host of its own, and a cluster mounted on two others, which have met.
struct Pair {
    a: Mount,
    b: Mount,
    /// The read-write id with the tracker: all that another host needs.
    id: String,
    /// The read-only one.
    read_only: String,
    tracker: Process,
    t: Host,
    lab: Lab,
}

fn pair() -> Pair {
    pair_with("")
}

/// With these options for both mounts.
fn pair_with(options: &str) -> Pair {
    let lab = Lab::new();
    let t = lab.host("t");
    let tracker = t.tracker("");
    let (a, b) = (lab.host("a"), lab.host("b"));
    let (id, read_only) = a.create(&format!("--tracker {}", t.address()));
    let a = a.mount("c", options);
    let b = b.mount(&id, options);
    a.meets(1);
    b.meets(1);
    Pair {
        a,
        b,
        id,
        read_only,
        tracker,
        t,
        lab,
    }
}

impl Pair {
    /// Another member on a host of its own.
    fn another(&self, name: &str, options: &str) -> Mount {
        self.lab.host(name).mount(&self.id, options)
    }
}
