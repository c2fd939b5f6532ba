//! The harness of the end-to-end tests: real `p2pfs` processes, real FUSE mounts, hosts in network namespaces.
//!
//! A [`Lab`] is a few [`Host`]s on one bridge, each in a network namespace of its own and with folders of its own under
//! one temporary directory; the root namespace of the network is never touched. A [`Mount`] is a cluster mounted on a host.
//! The tests' sentences are about those three.
//!
//! Invariants
//! - Nothing hangs: every command has a time limit, and every operation on a mount runs under a watchdog. When time is up
//!   the FUSE connection is aborted, which frees whoever is stuck in it, and the test fails.
//! - Nothing stays behind, after a panic either: dropping a lab kills every process in its namespaces, detaches every mount
//!   under its directory, and removes both. What a killed test run left is cleared by the next one.
//! - Nothing waits for a fixed time: [`eventually`] polls a condition with a deadline.

mod binary;
mod disk;
mod failing;
mod host;
mod lab;
mod mount;
mod promises;
mod run;
mod system;
mod tree;
mod wait;

pub use binary::p2pfs;
pub use disk::{Disk, cut_power};
pub use failing::{FailingDisk, Fault, Plan};
pub use host::{Host, Process};
pub use lab::Lab;
pub use mount::{Mount, ends};
pub use promises::{After, Name, Op, Promises, Seen, Work, look};
pub use run::Finished;
pub use system::runs;
pub use tree::Item;
pub use wait::{LONG, SOON, eventually, until};

use std::path::Path;

/// What makes a run what it is, printed: `P2PFS_SEED`, or a new one.
pub fn seed() -> u64 {
    let given = number("P2PFS_SEED");
    let seed = given.unwrap_or_else(|| {
        let now = std::time::UNIX_EPOCH.elapsed().unwrap_or_default();
        u64::from(now.subsec_nanos()) / 1000
    });
    println!("P2PFS_SEED={seed}");
    seed
}

/// Numbers of the runs of a test: `P2PFS_RUNS` of them or so many, and none begins after `P2PFS_SECONDS`.
pub fn turns(otherwise: u64) -> impl Iterator<Item = u64> {
    let begun = std::time::Instant::now();
    let seconds = number("P2PFS_SECONDS").unwrap_or(u64::MAX);
    (0..number("P2PFS_RUNS").unwrap_or(otherwise))
        .take_while(move |_| begun.elapsed().as_secs() < seconds)
}

fn number(variable: &str) -> Option<u64> {
    let value = std::env::var(variable).ok()?;
    Some(value.parse().expect("it is a number"))
}

/// `length` bytes that compress to nothing and differ for every seed.
pub fn noise(seed: u64, length: usize) -> Vec<u8> {
    let mut bytes = vec![0; length];
    let mut hasher = blake3::Hasher::new();
    hasher.update(&seed.to_le_bytes());
    hasher.finalize_xof().fill(&mut bytes);
    bytes
}

/// What `b3sum` prints for these bytes.
pub fn hash(bytes: &[u8]) -> String {
    blake3::hash(bytes).to_string()
}

/// Every file below a directory with its size.
pub fn files_below(dir: &Path) -> Vec<(std::path::PathBuf, u64)> {
    let mut files = Vec::new();
    let mut dirs = vec![dir.to_path_buf()];
    while let Some(dir) = dirs.pop() {
        for entry in std::fs::read_dir(&dir).into_iter().flatten().flatten() {
            match entry.metadata() {
                Ok(data) if data.is_dir() => dirs.push(entry.path()),
                Ok(data) if data.is_file() => files.push((entry.path(), data.len())),
                _ => {}
            }
        }
    }
    files
}
