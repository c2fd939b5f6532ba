//! New versions of a file: little more than what changed moves.

use std::{fs, io::Write, os::unix::fs::FileExt};

use p2pfs_mount_tests::{LONG, Mount, hash, noise, until};

use super::pair;

const MIB: usize = 1 << 20;

/// Waits for the newest version, and reads it.
fn read(reader: &Mount, expected: &[u8]) {
    let wanted = hash(expected);
    until(LONG, "the change is seen", || {
        reader.attribute("f", "hash").is_ok_and(|now| now == wanted)
    });
    let found = reader.with_within(LONG, "f", |path| fs::read(path));
    assert_eq!(hash(&found.unwrap()), wanted);
}

/// Reads the newest version; how many bytes came in for that.
fn moves(reader: &Mount, what: &str, expected: &[u8]) -> usize {
    let before = reader.host().received();
    read(reader, expected);
    let moved = (reader.host().received() - before) as usize;
    println!("{what}: {moved} bytes moved");
    moved
}

fn patch(writer: &Mount, bytes: &mut [u8], at: usize, with: &[u8]) {
    bytes[at..][..with.len()].copy_from_slice(with);
    writer.with_within(LONG, "f", |path| {
        let file = fs::OpenOptions::new().write(true).open(path).unwrap();
        file.write_all_at(with, at as u64).unwrap();
    });
}

#[test]
fn of_a_changed_file_only_what_changed_moves() {
    let pair = pair();
    let (a, b) = (&pair.a, &pair.b);
    let mut bytes = noise(31, 256 * MIB);
    a.with_within(LONG, "f", |path| fs::write(path, &bytes))
        .unwrap();
    assert!(moves(b, "all of it", &bytes) > bytes.len());

    patch(a, &mut bytes, 100 * MIB + 5, &noise(32, 64 << 10));
    assert!(moves(b, "a patch of 64 KiB", &bytes) < MIB);

    // Several changes between two looks follow on from each other.
    for (number, place) in [1, 60, 200].into_iter().enumerate() {
        patch(
            a,
            &mut bytes,
            place * MIB,
            &noise(40 + number as u64, 64 << 10),
        );
        a.publishes();
        let manifest = || b.status()["manifest"]["hash"] == a.status()["manifest"]["hash"];
        until(LONG, "it is heard of", manifest);
    }
    assert!(moves(b, "three patches", &bytes) < MIB);

    let more = noise(33, MIB);
    bytes.extend(&more);
    a.with_within(LONG, "f", |path| {
        let mut file = fs::OpenOptions::new().append(true).open(path).unwrap();
        file.write_all(&more).unwrap();
    });
    assert!(moves(b, "1 MiB appended", &bytes) < 2 * MIB);

    let length = 150 * MIB + 77;
    bytes.truncate(length);
    a.with_within(LONG, "f", |path| {
        let file = fs::OpenOptions::new().write(true).open(path).unwrap();
        file.set_len(length as u64).unwrap();
    });
    assert!(moves(b, "cut to 150 MiB", &bytes) < MIB);
}

#[test]
fn a_member_that_keeps_everything_takes_what_did_not_change_without_having_looked_at_it() {
    let pair = pair();
    let keeper = pair.another("k", "--keep-all");
    keeper.meets(2);
    let mut bytes = noise(41, 32 * MIB);
    pair.a.write("f", &bytes);
    let copied = || {
        let path = pair.a.path("f").display().to_string();
        let wait = ["wait", "--copies", "2", "--timeout", "60s", &path];
        pair.a.host().p2pfs_with(&wait).ok();
    };
    copied();
    let before = keeper.host().received();
    patch(&pair.a, &mut bytes, 7 * MIB, &noise(42, 64 << 10));
    copied();
    let moved = (keeper.host().received() - before) as usize;
    println!("a patch of 64 KiB at a member that keeps all: {moved} bytes moved");
    assert!(moved < MIB);
}

#[test]
fn a_change_of_a_file_of_which_little_is_here_moves_little_and_outlives_its_writer() {
    let pair = pair();
    let (a, b) = (&pair.a, &pair.b);
    let mut bytes = noise(51, 64 * MIB);
    a.with_within(LONG, "f", |path| fs::write(path, &bytes))
        .unwrap();
    a.publishes();
    let wanted = hash(&bytes);
    until(LONG, "it is seen", || {
        b.attribute("f", "hash").is_ok_and(|now| now == wanted)
    });
    let (to_a, to_b) = (a.host().received(), b.host().received());
    patch(b, &mut bytes, 20 * MIB + 5, &noise(52, 64 << 10));
    b.publishes_within(LONG);
    let moved = (a.host().received() - to_a, b.host().received() - to_b);
    println!(
        "a patch of 64 KiB where nothing is here: {moved:?} bytes moved to the holder and to the writer"
    );
    assert!(moved.0 < MIB as u64 && moved.1 < MIB as u64);
    let taken = b.status()["cache"]["files_bytes"].as_u64().unwrap();
    assert!(taken < MIB as u64, "{taken}");

    // Who wrote it is not needed any more, and who promised to keep it does so across a kill.
    b.kill();
    a.kill();
    let a = a.host().mount("c", "");
    read(&a, &bytes);
    let c = pair.another("c", "");
    read(&c, &bytes);
}

#[test]
fn a_change_waits_for_who_holds_the_rest_across_a_kill_and_is_published_then() {
    let pair = pair();
    let (a, b) = (&pair.a, &pair.b);
    let mut bytes = noise(61, 24 * MIB);
    a.write("f", &bytes);
    a.publishes();
    let wanted = hash(&bytes);
    until(LONG, "it is seen", || {
        b.attribute("f", "hash").is_ok_and(|now| now == wanted)
    });
    a.host().cut_off();
    patch(b, &mut bytes, 20 * MIB + 5, &noise(62, 64 << 10));
    until(LONG, "it waits", || {
        b.status()["manifest"]["unpublished"] == 1
    });
    b.kill();
    // What was written waits for the next mount, and for the holder.
    let b = b.host().mount(&pair.id, "");
    a.host().reconnect();
    b.publishes_within(LONG);
    read(a, &bytes);
    read(&b, &bytes);
}
