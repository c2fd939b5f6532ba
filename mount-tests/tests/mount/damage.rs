//! Bits that flip on the disk while a member is down: what it shows and gives to others is right, or an error that its log
//! explains.

use std::{
    fs,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
};

use p2pfs_mount_tests::{LONG, Lab, Mount, SOON, files_below, hash, noise, until};
use rand::{Rng, SeedableRng, rngs::StdRng};

use super::{pair, pair_with};

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

#[test]
fn verify_shows_how_far_it_is_and_names_what_nobody_gives() {
    let pair = pair_with("--read-timeout 2s");
    pair.lab.expects_errors();
    let (both, alone) = (noise(1, 40_000_000), noise(2, 300_000));
    pair.a.write("both", &both);
    pair.b.shows_within(LONG, "both", &both);
    pair.b.keeps("both", 40_000_000);
    pair.b.write("alone", &alone);
    pair.b.publishes();
    let host = pair.b.host();
    let events = host.start_p2pfs("events -C mnt");
    events.says("following");
    pair.b.corrupt(&hash(&both), 1_000_000);
    pair.b.corrupt(&hash(&both), 39_000_000);
    pair.b.corrupt(&hash(&alone), 100_000);
    // To a terminal.
    let shown = host.try_sh(r#"script -qec "$P2PFS verify -C mnt" /dev/null"#);
    assert_eq!(shown.code(), Some(1), "{shown}");
    let said = &shown.stdout;
    for words in [
        "[####",
        "3 damaged, 2 fetched again, 1 unreachable",
        &format!("{} bytes 65536 to 131072: ", hash(&alone)),
    ] {
        assert!(said.contains(words), "{words} is not in {shown}");
    }
    until(SOON, "what was found is told", || {
        let told = events.output();
        let repaired = |yes: bool| told.matches(&format!("\"repaired\":{yes}")).count();
        (repaired(true), repaired(false)) == (2, 1)
    });
    assert_eq!(hash(&pair.b.read("both").unwrap()), hash(&both));
    // It is said once: what is not here any more is not damaged.
    let report = pair.b.json("verify");
    assert_eq!(report["damaged"], 0, "{report}");
}

#[test]
fn what_is_damaged_and_read_by_nobody_is_found_and_repaired_while_the_mount_is_idle() {
    let pair = pair();
    pair.lab.expects_errors();
    let (both, alone) = (noise(1, 2_000_000), noise(2, 300_000));
    pair.b.write("both", &both);
    pair.a.shows("both", &both);
    pair.a.keeps("both", 2_000_000);
    pair.a.write("alone", &alone);
    pair.a.publishes();
    pair.a.corrupt(&hash(&both), 1_000_000);
    pair.a.corrupt(&hash(&alone), 100_000);
    let scrub = || pair.a.status()["cache"]["scrub"].clone();
    until(2 * LONG, "it has gone over all", || {
        scrub()["ended_s"].is_u64()
    });
    let report = scrub();
    assert_eq!(
        (&report["damaged"], &report["unrepaired"]),
        (&2.into(), &1.into()),
        "{report}"
    );
    let log = log(&pair.a);
    assert!(log.contains("damaged on the disk, and repaired"), "{log}");
    assert!(log.contains(&hash(&alone)), "{log}");
    assert_eq!(pair.a.json("verify")["damaged"], 0);
    assert_eq!(hash(&pair.a.read("both").unwrap()), hash(&both));
    // It is known what was checked after a restart too.
    pair.a.unmount();
    let a = pair.a.host().mount("c", "");
    assert_eq!(a.status()["cache"]["scrub"], report);
}
