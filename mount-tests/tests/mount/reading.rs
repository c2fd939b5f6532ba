//! Lazy, verified reading.

use std::{
    fs,
    os::unix::fs::FileExt,
    time::{Duration, Instant},
};

use p2pfs_mount_tests::{LONG, SOON, hash, noise, until};

use super::{pair, pair_with};

const GIB: u64 = 1 << 30;

#[test]
fn four_kib_in_the_middle_of_a_gibibyte_move_less_than_256_kib() {
    let pair = pair();
    // Noise around the place that is read, holes elsewhere: what is not here cannot be told from noise by its reader.
    let middle = noise(1, 4 << 20);
    pair.a.with("big", |path| {
        let file = fs::File::create(path).unwrap();
        file.set_len(GIB).unwrap();
        file.write_all_at(&middle, GIB / 2 - (2 << 20)).unwrap();
    });
    let b = &pair.b;
    until(LONG, "the true size is shown", || {
        b.with("big", |path| {
            fs::metadata(path).is_ok_and(|data| data.len() == GIB)
        })
    });
    assert_eq!(b.attribute("big", "cached").unwrap(), "0");
    assert_eq!(b.attribute("big", "state").unwrap(), "remote");
    assert!(b.host().sh("ls -l mnt").contains("1073741824"));
    let before = b.host().received();
    assert_eq!(
        b.read_at("big", GIB / 2, 4096).unwrap(),
        middle[2 << 20..][..4096]
    );
    let moved = b.host().received() - before;
    assert!(moved < 256 << 10, "{moved} bytes moved");
    b.keeps("big", 4096);
    assert_eq!(b.attribute("big", "state").unwrap(), "partial");
    // And the second time none at all: it is here.
    assert_eq!(
        b.read_at("big", GIB / 2 + 4096, 4096).unwrap(),
        middle[(2 << 20) + 4096..][..4096]
    );
}

#[test]
fn the_hash_attribute_is_what_b3sum_prints_on_both_sides() {
    let pair = pair();
    for (name, size) in [
        ("empty", 0),
        ("byte", 1),
        ("inline", 4096),
        ("chunk", 4097),
        ("block", 65536),
        ("block-and-a-byte", 65537),
        ("blocks", 1_000_000),
    ] {
        let bytes = noise(size as u64, size);
        pair.a.write(name, &bytes);
        for mount in [&pair.a, &pair.b] {
            until(
                SOON,
                &format!("the hash of {name} is shown at {}", mount.host().name()),
                || {
                    mount
                        .attribute(name, "hash")
                        .is_ok_and(|there| there == hash(&bytes))
                },
            );
        }
        let cached = |mount: &p2pfs_mount_tests::Mount| mount.attribute(name, "cached").unwrap();
        assert_eq!(cached(&pair.a), size.to_string());
        pair.b.shows(name, &bytes);
        pair.b.keeps(name, size as u64);
        assert_eq!(cached(&pair.b), size.to_string());
        assert_eq!(pair.b.attribute(name, "state").unwrap(), "cached");
    }
}

#[test]
fn a_whole_file_arrives_equal_once_and_from_then_on_from_the_cache() {
    let pair = pair();
    let bytes = noise(1, 40 << 20);
    pair.a.write("data", &bytes);
    until(SOON, "the entry is seen", || pair.b.has("data"));
    assert_eq!(hash(&pair.b.read("data").unwrap()), hash(&bytes));
    let network = pair.b.status()["network"].clone();
    let received = network["block_bytes_received"].as_u64().unwrap();
    // On a busy machine a request or two may be given up and made again.
    assert!((40 << 20..44 << 20).contains(&received), "{network}");
    assert_eq!(network["blocks_rejected"], 0);
    pair.b.keeps("data", 40 << 20);
    pair.a.unmount();
    assert_eq!(hash(&pair.b.read("data").unwrap()), hash(&bytes));
    // A restart forgets nothing of it either.
    pair.b.unmount();
    let b = pair.b.host().mount(&pair.id, "");
    assert_eq!(hash(&b.read("data").unwrap()), hash(&bytes));
    assert_eq!(b.status()["network"]["block_bytes_received"], 0);
}

#[test]
fn an_interrupted_download_resumes_after_a_restart() {
    let pair = pair();
    let bytes = noise(1, 24 << 20);
    pair.a.write("data", &bytes);
    until(SOON, "the entry is seen", || pair.b.has("data"));
    pair.a.host().limit("40mbit");
    let mut reader = pair.b.host().start_sh("cat mnt/data > /dev/null");
    let cached = || {
        pair.b
            .attribute("data", "cached")
            .unwrap()
            .parse::<u64>()
            .unwrap()
    };
    until(SOON, "a part has arrived", || cached() >= 8 << 20);
    pair.b.kill();
    assert!(!reader.ends_within(SOON).success());
    pair.a.host().limit("4gbit");
    let b = pair.b.host().mount(&pair.id, "");
    assert_eq!(
        b.json("verify")["damaged"],
        0,
        "no block is claimed that isn't there"
    );
    assert_eq!(hash(&b.read("data").unwrap()), hash(&bytes));
    let received = b.status()["network"]["block_bytes_received"]
        .as_u64()
        .unwrap();
    // What arrived in the last moments before the kill may come again.
    assert!(received < 21 << 20, "{received} bytes came in again");
}

#[test]
fn readers_of_the_same_file_feed_each_other() {
    let pair = pair();
    let bytes = noise(1, 8 << 20);
    pair.a.write("data", &bytes);
    pair.b.shows("data", &bytes);
    let c = pair.another("c", "");
    c.meets(2);
    until(SOON, "the entry is seen", || c.has("data"));
    assert_eq!(hash(&c.read("data").unwrap()), hash(&bytes));
    // Either may have been so much faster that it gave most, but the source did not have to give it twice.
    let sent = |mount: &p2pfs_mount_tests::Mount| {
        mount.status()["network"]["block_bytes_sent"]
            .as_u64()
            .unwrap()
    };
    assert!(sent(&pair.a) + sent(&pair.b) < 24 << 20);
}

#[test]
fn limits_on_rates_are_kept_and_nobody_is_blamed_for_them() {
    for option in ["--download-limit 2M", "--upload-limit 2M"] {
        let pair = pair_with(option);
        let bytes = noise(1, 10 << 20);
        pair.a.write("data", &bytes);
        until(SOON, "the entry is seen", || pair.b.has("data"));
        let began = Instant::now();
        assert_eq!(hash(&pair.b.read("data").unwrap()), hash(&bytes));
        // At the limit it takes 5 s; a burst at the beginning is allowed.
        let took = began.elapsed();
        assert!(took > Duration::from_secs(3), "{option}: {took:?}");
        let network = pair.b.status()["network"].clone();
        assert_eq!(network["blocks_rejected"], 0);
        let received = network["block_bytes_received"].as_u64().unwrap();
        assert!(received < 14 << 20, "{option}: {received} bytes for 10 MiB");
        pair.b.meets(1);
    }
}

#[test]
fn the_tracker_killed_in_the_middle_of_a_gibibyte_stops_nothing() {
    let pair = pair();
    let start = noise(1, 32 << 20);
    pair.a.with("data", |path| {
        let file = fs::File::create(path).unwrap();
        file.set_len(GIB).unwrap();
        file.write_all_at(&start, 0).unwrap();
    });
    until(LONG, "the entry is seen", || {
        pair.b.with("data", |path| {
            fs::metadata(path).is_ok_and(|data| data.len() == GIB)
        })
    });
    let mut reader = pair.b.host().start_sh("cat mnt/data > copy");
    let copy = pair.b.host().path("copy");
    until(SOON, "the read runs", || {
        fs::metadata(&copy).is_ok_and(|data| data.len() > 4 << 20)
    });
    pair.tracker.kill();
    assert!(
        fs::metadata(&copy).unwrap().len() < GIB,
        "the read was over"
    );
    assert!(reader.ends_within(Duration::from_secs(120)).success());
    let mut hasher = blake3::Hasher::new();
    hasher
        .update_reader(fs::File::open(&copy).unwrap())
        .unwrap();
    assert_eq!(
        pair.a.attribute("data", "hash").unwrap(),
        hasher.finalize().to_hex().as_str()
    );
}

/// What a member takes in memory at most, whatever is read from it and by it: requests, answers, the manifest's nodes, the index, and the
/// program itself.
const MEMORY_BYTES_MAX: u64 = 512 << 20;

#[test]
fn memory_stays_within_its_limits_while_many_read_much_at_once() {
    let pair = pair();
    let c = pair.another("c", "");
    c.meets(2);
    let files = 12;
    for number in 0..files {
        pair.a
            .write(&format!("large{number}"), noise(number, 32 << 20));
    }
    pair.a.publishes_within(LONG);
    let members = [&pair.a, &pair.b, &c];
    let readers = &members[1..];
    for reader in readers {
        until(LONG, "all files are seen", || {
            (0..files).all(|number| reader.has(&format!("large{number}")))
        });
    }
    // All files at once, at both, which give each other what they have.
    let script = format!(
        "for number in $(seq 0 {}); do cat mnt/large$number > /dev/null & done; wait",
        files - 1
    );
    let mut running: Vec<_> = readers
        .iter()
        .map(|reader| reader.host().start_sh(&script))
        .collect();
    let mut most = (0, 0);
    until(3 * LONG, "all is read", || {
        for member in members {
            let memory = member.status()["memory"].clone();
            let figure = |name: &str| memory[name].as_u64().unwrap();
            let (requested, answers) = (figure("requested_bytes"), figure("answers"));
            assert!(requested <= figure("requested_max_bytes"), "{memory}");
            assert!(answers <= figure("answers_max"), "{memory}");
            assert!(figure("resident_bytes") <= MEMORY_BYTES_MAX, "{memory}");
            most = (most.0.max(requested), most.1.max(answers));
        }
        readers.iter().all(|reader| {
            (0..files).all(|number| {
                reader
                    .attribute(&format!("large{number}"), "state")
                    .is_ok_and(|state| state == "cached")
            })
        })
    });
    for reader in &mut running {
        assert!(reader.ends_within(SOON).success(), "{}", reader.output());
    }
    assert!(most.0 > 0, "something was asked for");
    for member in members {
        let status =
            fs::read_to_string(format!("/proc/{}/status", member.pid().as_raw_nonzero())).unwrap();
        let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
        let peak = peak.and_then(|peak| peak.trim().strip_suffix(" kB"));
        let peak: u64 = peak.unwrap().parse().unwrap();
        let name = member.host().name();
        println!("{name}: {peak} KiB at most; asked for and answers at most {most:?}");
        assert!(peak << 10 <= MEMORY_BYTES_MAX, "{name}: {peak} KiB");
    }
}
