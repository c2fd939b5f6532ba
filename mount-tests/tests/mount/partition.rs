//! A network that is cut in two while everybody works, and heals.
//!
//! The large forms, with a thousand files of each peer as in a bad week:
//!
//! ```text
//! cargo test --release -p p2pfs-mount-tests --test mount -- --ignored --nocapture --test-threads 1 partition
//! ```

use std::{
    collections::{BTreeMap, BTreeSet},
    fs, thread,
    time::{Duration, Instant},
};

use p2pfs_mount_tests::{Host, Item, LONG, Lab, Mount, SOON, eventually, noise, until};

/// For what every file has a part in.
const VERY_LONG: Duration = Duration::from_secs(180);
const FOLDERS: usize = 10;

type Tree = BTreeMap<String, Item>;

#[test]
fn what_five_did_while_links_were_down_is_one_tree_when_they_are_up() {
    cut_in_two(Cut::Links, 200);
}

#[test]
fn what_five_did_while_packets_were_lost_is_one_tree_when_they_are_not() {
    cut_in_two(Cut::Packets, 200);
}

#[test]
#[ignore = "a thousand files of each of five peers: see the module"]
fn five_thousand_files_made_while_links_were_down_are_one_tree_when_they_are_up() {
    cut_in_two(Cut::Links, 1000);
}

#[test]
#[ignore = "a thousand files of each of five peers: see the module"]
fn five_thousand_files_made_while_packets_were_lost_are_one_tree_when_they_are_not() {
    cut_in_two(Cut::Packets, 1000);
}

#[derive(Clone, Copy, PartialEq)]
enum Cut {
    /// Two hosts lose their links, each for itself.
    Links,
    /// Two hosts reach each other only; what is sent to the others is lost, and nobody is told.
    Packets,
}

/// Everybody's work: files of their own, and under every fiftieth number one of a name that all use. Contents differ.
fn work(mount: &Mount, files: usize) {
    let by = mount.host().name();
    mount.with_within(VERY_LONG, "", |root| {
        for number in 0..files {
            let folder = root.join(format!("folder {}", number % FOLDERS));
            fs::create_dir_all(&folder).unwrap();
            let name = if number % 50 == 7 {
                format!("report {number}.txt")
            } else {
                format!("{by} {number}.txt")
            };
            let mut bytes = format!("{number} by {by}\n").into_bytes();
            if number % 100 == 50 {
                bytes.extend(noise(number as u64, 70_000));
            }
            fs::write(folder.join(name), bytes).unwrap();
        }
    });
}

/// Waits until all show the same state and nothing is pending; its hash.
fn settle(mounts: &[&Mount]) -> String {
    eventually(VERY_LONG, "all come to the same state", || {
        let states = mounts
            .iter()
            .map(|mount| mount.status()["manifest"].clone());
        let states: Vec<_> = states.collect();
        let hashes: BTreeSet<_> = states
            .iter()
            .map(|state| state["hash"].to_string())
            .collect();
        let pending = states.iter().any(|state| state["unpublished"] != 0);
        match (hashes.first(), hashes.len(), pending) {
            (Some(hash), 1, false) => Ok(hash.clone()),
            _ => Err(format!("{states:?}")),
        }
    })
}

fn cut_in_two(cut: Cut, files: usize) {
    let lab = Lab::new();
    let t = lab.host("t");
    let _tracker = t.tracker("");
    let hosts = ["a", "b", "c", "d", "e"].map(|name| lab.host(name));
    let (id, _) = hosts[0].create(&format!("--tracker {}", t.address()));
    let mounts = hosts.each_ref().map(|host| host.mount(&id, ""));
    mounts.iter().for_each(|mount| mount.meets(4));
    // Half of the folders were there before, the others are made on all sides.
    mounts[0].with("", |root| {
        for number in 0..FOLDERS / 2 {
            fs::create_dir(root.join(format!("folder {number}"))).unwrap();
        }
    });
    until(SOON, "all have the folders", || {
        mounts
            .iter()
            .all(|mount| mount.list("").unwrap().len() == FOLDERS / 2)
    });
    let [a, b, c, d, e] = mounts.each_ref();
    let apart: [&Host; 2] = [d.host(), e.host()];
    let begun = Instant::now();
    match cut {
        Cut::Links => apart.iter().for_each(|host| host.cut_off()),
        Cut::Packets => lab.split_off(&apart),
    }
    thread::scope(|scope| {
        for mount in &mounts {
            scope.spawn(move || work(mount, files));
        }
    });
    println!(
        "{files} files of each of five made in {:?}",
        begun.elapsed()
    );
    let sides: Vec<Vec<&Mount>> = match cut {
        Cut::Links => vec![vec![a, b, c], vec![d], vec![e]],
        Cut::Packets => vec![vec![a, b, c], vec![d, e]],
    };
    let before: Vec<Tree> = sides
        .iter()
        .map(|side| {
            settle(side);
            side[0].tree().unwrap()
        })
        .collect();
    println!("each side is settled {:?} after the cut", begun.elapsed());

    match cut {
        Cut::Links => apart.iter().for_each(|host| host.reconnect()),
        Cut::Packets => lab.heal(),
    }
    let healed = Instant::now();
    let expected = expected_paths(&before);
    thread::scope(|scope| {
        for mount in &mounts {
            let expected = &expected;
            scope.spawn(move || {
                eventually(VERY_LONG, "every file is seen", || {
                    let paths = mount.paths().map_err(|error| error.to_string())?;
                    match expected.difference(&paths).next() {
                        None => Ok(()),
                        Some(path) => Err(format!("{path} is not among {} paths", paths.len())),
                    }
                });
                println!(
                    "{} has every name {:?} after the heal",
                    mount.host().name(),
                    healed.elapsed()
                );
            });
        }
    });
    let hash = settle(&mounts.each_ref());
    println!(
        "all have the same state {:?} after the heal",
        healed.elapsed()
    );
    let trees: Vec<Tree> = mounts.iter().map(|mount| mount.tree().unwrap()).collect();
    check(&before, &trees[0]);
    for (tree, mount) in trees.iter().zip(&mounts).skip(1) {
        let there: BTreeSet<_> = tree.iter().collect();
        let first: BTreeSet<_> = trees[0].iter().collect();
        let odd: Vec<_> = there.symmetric_difference(&first).take(5).collect();
        assert!(
            odd.is_empty(),
            "{} shows another tree: {odd:?}",
            mount.host().name()
        );
    }
    // Nobody signs one head after the other: what is settled stays.
    let looks = Instant::now() + Duration::from_secs(4);
    while Instant::now() < looks {
        assert_eq!(settle(&mounts.each_ref()), hash, "the state moves on");
    }
    assert!(a.status()["manifest"]["conflicts"].as_u64().unwrap() > 0);
    // And they can read what the others made.
    let large = "folder 0/a 50.txt";
    d.shows_within(LONG, large, a.read(large).unwrap());
}

/// The names of both sides; what is beside them are conflict copies.
fn expected_paths(sides: &[Tree]) -> BTreeSet<String> {
    sides.iter().flat_map(|side| side.keys().cloned()).collect()
}

/// Every file of every side is there: under its name, or as a conflict copy of that name where another version has it.
fn check(sides: &[Tree], now: &Tree) {
    let mut versions: BTreeMap<&String, BTreeSet<&String>> = BTreeMap::new();
    for (path, item) in sides.iter().flatten() {
        if let Item::File { hash, .. } = item {
            versions.entry(path).or_default().insert(hash);
        }
    }
    let copies = |path: &str| {
        let stem = path.trim_end_matches(".txt").to_owned();
        let copies = now.range(format!("{stem} (conflict, ")..);
        copies.take_while(move |(copy, _)| copy.starts_with(&stem))
    };
    let (mut files, mut contested) = (0, 0);
    for (path, hashes) in &versions {
        files += hashes.len();
        let Some(Item::File { hash, .. }) = now.get(*path) else {
            panic!("{path} is not a file: {:?}", now.get(*path));
        };
        assert!(hashes.contains(hash), "{path} is none of its versions");
        for lost in hashes.iter().filter(|version| **version != hash) {
            contested += 1;
            let kept = copies(path)
                .any(|(_, item)| matches!(item, Item::File { hash, .. } if hash == *lost));
            assert!(kept, "a version of {path} has no copy");
        }
    }
    let there = now
        .values()
        .filter(|item| matches!(item, Item::File { .. }))
        .count();
    assert_eq!(there, files, "nothing else is there");
    assert!(contested > 0, "no name was contested");
    println!("{files} files, {contested} of them as conflict copies of this cut");
}
