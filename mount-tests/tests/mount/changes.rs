//! Large files that are written, and changed a little.

use std::{
    fs,
    io::Write,
    os::unix::fs::FileExt,
    time::{Duration, Instant},
};

use p2pfs_mount_tests::{LONG, Mount, hash, noise, until};

use super::{pair, pair_with};

/// Waits until a file's content at a mount has this hash, by what is published of it.
fn has(mount: &Mount, name: &str, bytes: &[u8]) {
    let id = hash(bytes);
    let what = format!("the content of {name} at {}", mount.host().name());
    until(LONG, &what, || {
        mount.attribute(name, "hash").is_ok_and(|there| there == id)
    });
}

/// Patches, appends, cuts, and writes over what was hashed while it was being written.
fn changed_in_every_way(options: &str) {
    let pair = pair_with(options);
    let (a, b) = (&pair.a, &pair.b);
    let mut bytes = noise(1, 20_000_000);
    a.with("big", |path| {
        let file = fs::File::options()
            .read(true)
            .write(true)
            .create_new(true)
            .open(path)
            .unwrap();
        for (number, piece) in bytes.chunks(1_000_000).enumerate() {
            file.write_all_at(piece, number as u64 * 1_000_000).unwrap();
        }
        // Back into what is hashed by now, or being hashed.
        file.write_all_at(b"patch", 1_000_001).unwrap();
        file.set_len(9_000_000).unwrap();
        file.set_len(12_000_000).unwrap();
        file.write_all_at(b"end", 20_000_000).unwrap();
    });
    bytes[1_000_001..1_000_006].copy_from_slice(b"patch");
    bytes[9_000_000..].fill(0);
    bytes.extend_from_slice(b"end");
    has(a, "big", &bytes);
    has(b, "big", &bytes);
    assert_eq!(hash(&b.read("big").unwrap()), hash(&bytes));

    // Each is a version of its own, made of the one before.
    for side in [a, b, a] {
        side.with("big", |path| {
            let mut file = fs::File::options().append(true).open(path).unwrap();
            file.write_all(b" and more").unwrap();
        });
        bytes.extend_from_slice(b" and more");
        has(a, "big", &bytes);
        has(b, "big", &bytes);
        side.with("big", |path| {
            let file = fs::File::options().write(true).open(path).unwrap();
            file.write_all_at(b"here", 5_000_000).unwrap();
            file.write_all_at(&[7; 200_000], 6_553_600).unwrap();
        });
        bytes[5_000_000..5_000_004].copy_from_slice(b"here");
        bytes[6_553_600..6_753_600].fill(7);
        has(a, "big", &bytes);
        has(b, "big", &bytes);
        side.with("big", |path| {
            let file = fs::File::options().write(true).open(path).unwrap();
            file.set_len(bytes.len() as u64 - 100_000).unwrap();
        });
        bytes.truncate(bytes.len() - 100_000);
        has(a, "big", &bytes);
        has(b, "big", &bytes);
    }
    for side in [a, b] {
        assert_eq!(hash(&side.read("big").unwrap()), hash(&bytes));
        let report = side.json("verify");
        assert_eq!(report["damaged"], 0, "{report}");
        assert_eq!(side.status()["manifest"]["conflicts"], 0);
    }
}

#[test]
fn a_large_file_is_changed_in_every_way_and_both_sides_agree() {
    changed_in_every_way("");
}

#[test]
fn a_large_file_is_changed_in_every_way_without_passthrough() {
    changed_in_every_way("--no-passthrough");
}

#[test]
fn what_a_kill_leaves_of_a_changed_file_is_the_old_or_the_new_one() {
    let pair = pair();
    let a = &pair.a;
    let old = noise(1, 8_000_000);
    a.write("big", &old);
    has(a, "big", &old);
    has(&pair.b, "big", &old);
    let mut new = old.clone();
    new[3_000_000..3_000_005].copy_from_slice(b"patch");
    new.extend_from_slice(b"tail");
    a.with("big", |path| {
        let file = fs::File::options().write(true).open(path).unwrap();
        file.write_all_at(b"patch", 3_000_000).unwrap();
        file.write_all_at(b"tail", 8_000_000).unwrap();
        file.sync_all().unwrap();
    });
    a.kill();
    let a = a.host().mount("c", "");
    // It was on disk, so it is published in the end; until then it is what it was.
    until(LONG, "the change is published", || {
        let there = a.attribute("big", "hash").unwrap_or_default();
        assert!(
            [String::new(), hash(&old), hash(&new)].contains(&there),
            "{there}"
        );
        there == hash(&new)
    });
    has(&pair.b, "big", &new);
    assert_eq!(hash(&a.read("big").unwrap()), hash(&new));
    assert_eq!(a.json("verify")["damaged"], 0);
}

/// What copying and changing takes. Prints figures; run it by name, in a release build, on an idle machine:
/// `cargo test --release -p p2pfs-mount-tests --test mount -- --ignored --nocapture figures_of_writing`.
#[test]
#[ignore = "figures, not a test"]
fn figures_of_writing() {
    for options in ["", "--no-passthrough"] {
        let pair = pair_with(options);
        let a = &pair.a;
        let sh = |what: &str, script: &str| {
            let began = Instant::now();
            a.host().sh(script);
            let done = began.elapsed();
            until(LONG, "it is published", || {
                a.status()["manifest"]["unpublished"] == 0
            });
            let published = began.elapsed();
            println!("{options:16} {what:40} {done:8.3?}, published after {published:8.3?}");
        };
        let long = Duration::from_secs(600);
        a.with_within(long, "", |_| {
            a.host().sh("head -c 1G /dev/urandom > big; mkdir small; cd small; for n in $(seq 2000); do echo $n > f$n; done; sync");
            sh("cp 1 GiB", "cp big mnt/big");
            sh("cp 1 GiB, sync", "cp big mnt/big2; sync");
            sh("cp -r 2,000 files", "cp -r small mnt/small");
            sh("append to 1 GiB", "echo x >> mnt/big");
            sh("patch 1 GiB", "echo x | dd of=mnt/big bs=1 seek=500000000 conv=notrunc 2> /dev/null");
            sh("write 64 MiB in 4 KiB", "dd if=big of=mnt/pieces bs=4k count=16384 2> /dev/null");
            sh("write 256 MiB in 1 MiB", "dd if=big of=mnt/large bs=1M count=256 2> /dev/null");
        });
    }
}
