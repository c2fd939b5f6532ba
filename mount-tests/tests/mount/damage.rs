//! Bits that flip on the disk while a member is down: what it shows and gives to others is right, or an error that its log
//! explains.

use std::{
    fs,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
};

use p2pfs_mount_tests::{LONG, Lab, Mount, SOON, files_below, noise, until};
use rand::{Rng, SeedableRng, rngs::StdRng};

use super::pair_with;

/// What is in the folder: small files and large ones.
fn files() -> Vec<(String, Vec<u8>)> {
    [30, 2000, 4096, 70_000, 300_000, 3_000_000]
        .into_iter()
        .enumerate()
        .map(|(number, size)| (format!("file{number}"), noise(number as u64, size)))
        .collect()
}

/// The files of a state folder whose names begin so, the largest first.
fn files_of(state: &Path, kind: &str) -> Vec<PathBuf> {
    let mut files: Vec<_> = files_below(state)
        .into_iter()
        .filter(|(path, size)| {
            let name = path.strip_prefix(state).unwrap().to_string_lossy();
            let is_tree = name.ends_with(".tree");
            let wanted = kind.strip_suffix(".tree").unwrap_or(kind);
            *size > 0 && name.starts_with(wanted) && is_tree == kind.ends_with(".tree")
        })
        .collect();
    files.sort_by_key(|(path, size)| (std::cmp::Reverse(*size), path.clone()));
    files.into_iter().map(|(path, _)| path).collect()
}

/// Flips a bit of a file, where it holds something.
fn flip(path: &Path, random: &mut StdRng) {
    let bytes = fs::read(path).unwrap();
    let held: Vec<_> = (0..bytes.len()).filter(|at| bytes[*at] != 0).collect();
    let place = held[random.random_range(0..held.len())];
    let bit = random.random_range(0..8);
    println!("{}: byte {place}, bit {bit}", path.display());
    let file = fs::OpenOptions::new().write(true).open(path).unwrap();
    file.write_all_at(&[bytes[place] ^ (1 << bit)], place as u64)
        .unwrap();
}

fn random() -> StdRng {
    let seed = std::env::var("P2PFS_SEED").ok();
    StdRng::seed_from_u64(seed.and_then(|seed| seed.parse().ok()).unwrap_or(1))
}

/// Kinds of files of a state folder, some of which count more.
const KINDS: [&str; 14] = [
    "cluster",
    "index/db",
    "objects",
    "index/db",
    "objects/.tree",
    "node.key",
    "index/conf",
    "index/db",
    "objects",
    "index/snap",
    "index/db",
    "index.end",
    "objects",
    "index/db",
];

fn log(mount: &Mount) -> String {
    fs::read_to_string(mount.host().state().join("c/log")).unwrap_or_default()
}

#[test]
fn what_flips_while_a_member_is_down_is_had_from_others_and_spoils_nobody() {
    let pair = pair_with("--no-passthrough");
    pair.lab.expects_errors();
    let files = files();
    for (name, bytes) in &files {
        pair.a.write(name, bytes);
        pair.b.shows(name, bytes);
    }
    let mut random = random();
    let host = pair.a.host();
    pair.a.unmount();
    for (round, kind) in KINDS.iter().enumerate() {
        let state = host.state().join("c");
        let kinds = match *kind {
            "objects/.tree" => files_of(&state.join("objects"), ".tree"),
            kind => files_of(&state, kind),
        };
        // Of what is empty (no snapshot was made, say) there is nothing to flip.
        let Some(path) = kinds.get(round % kinds.len().max(1)).or(kinds.first()) else {
            continue;
        };
        flip(path, &mut random);
        let a = host.mount("c", "--no-passthrough");
        a.meets(1);
        for (name, bytes) in &files {
            a.shows_within(LONG, name, bytes);
        }
        assert_eq!(a.json("verify")["unreachable"].as_array().unwrap().len(), 0);
        a.write("new", format!("{round}"));
        pair.b.shows("new", format!("{round}"));
        a.unmount();
    }
    // What it has now is good enough for a newcomer.
    let a = host.mount("c", "");
    until(SOON, "it is back", || a.has("file0"));
    pair.b.unmount();
    let c = pair.another("c", "--read-timeout 3s");
    for (name, bytes) in &files {
        c.shows_within(LONG, name, bytes);
    }
    assert_eq!(c.status()["network"]["blocks_rejected"], 0);
}

#[test]
fn what_flips_and_nobody_else_has_is_an_error_that_the_log_explains() {
    let lab = Lab::new();
    lab.expects_errors();
    let host = lab.host("a");
    host.create("");
    let options = "--no-passthrough --read-timeout 1s";
    let a = host.mount("c", options);
    let files = files();
    for (name, bytes) in &files {
        a.write(name, bytes);
    }
    a.unmount();
    let state = host.state().join("c");
    let kept = host.path("kept");
    host.sh("cp -a state/c kept");
    let mut random = random();
    for (round, kind) in [
        "index/db", "objects", "index/db", "format", "index/db", "objects",
    ]
    .iter()
    .enumerate()
    {
        fs::remove_dir_all(&state).unwrap();
        host.sh(&format!("cp -a {} {}", kept.display(), state.display()));
        let kinds = files_of(&state, kind);
        flip(&kinds[round % kinds.len()], &mut random);
        let words = format!("mount c {} {options}", a.dir().display());
        let mounted = host.p2pfs(&words);
        if !mounted.stderr.is_empty() && mounted.code() != Some(0) {
            assert_eq!(*kind, "format", "{mounted}");
            assert!(mounted.stderr.contains("format"), "{mounted}");
            continue;
        }
        let mut lost = 0;
        for (name, bytes) in &files {
            match a.read(name) {
                Ok(there) => assert!(there == *bytes, "{name} is wrong"),
                Err(error) => {
                    println!("{name}: {error}");
                    lost += 1;
                }
            }
        }
        let said = log(&a);
        assert!(lost == 0 || said.contains("damage"), "{said}");
        a.unmount();
    }
}
