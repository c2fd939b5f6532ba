//! Many small files.

use std::time::Duration;

use p2pfs_mount_tests::{LONG, SOON, noise, until};

use super::{Pair, pair};

const SIZES: [usize; 5] = [1000, 4096, 4097, 20_000, 65_536];

fn name(number: usize) -> String {
    format!("d/f{number:04}")
}

fn content(number: usize) -> Vec<u8> {
    noise(number as u64, SIZES[number % SIZES.len()])
}

/// A folder of small files, seen by the other one, who has none of them.
fn folder(count: usize) -> Pair {
    let pair = pair();
    pair.a.with("d", |path| std::fs::create_dir(path)).unwrap();
    for number in 0..count {
        pair.a.write(&name(number), content(number));
    }
    pair.a.publishes();
    until(LONG, "all files are seen", || {
        pair.b.list("d").is_ok_and(|names| names.len() == count)
    });
    pair
}

#[test]
fn files_read_in_order_bring_the_next_ones_along_and_one_at_random_none() {
    let pair = folder(200);
    let b = &pair.b;
    let cached = |number: usize| b.attribute(&name(number), "cached").unwrap();
    let is_here = |number: usize| cached(number) == content(number).len().to_string();
    for number in [150, 7, 90] {
        b.shows(&name(number), content(number));
    }
    for number in 20..26 {
        b.shows(&name(number), content(number));
    }
    until(SOON, "the next files have come by themselves", || {
        (26..36).all(is_here)
    });
    let here = (0..200).filter(|number| is_here(*number)).count();
    assert!(here < 100, "{here} files came");
    for number in [0, 6, 8, 91, 149, 151, 199] {
        assert_eq!(cached(number), "0", "nobody has read near file {number}");
    }
}

#[test]
fn a_folder_packed_by_tar_comes_whole_and_stays() {
    let pair = folder(600);
    let b = &pair.b;
    let mut reader = b.host().start_sh("tar -cf packed mnt/d && tar -df packed");
    assert!(reader.ends_within(Duration::from_secs(60)).success());
    // The next time nobody is needed for it, not even after a restart.
    pair.a.unmount();
    b.unmount();
    let b = b.host().mount(&pair.id, "");
    for number in 0..600 {
        assert_eq!(b.read(&name(number)).unwrap(), content(number));
    }
    assert_eq!(b.status()["network"]["block_bytes_received"], 0);
    assert_eq!(b.json("verify")["damaged"], 0);
}

#[test]
fn readers_that_are_killed_and_holders_that_go_leave_nothing_hanging() {
    let pair = folder(400);
    let c = pair.another("c", "");
    c.meets(2);
    until(LONG, "all files are seen", || {
        c.list("d").is_ok_and(|names| names.len() == 400)
    });
    // Half of them come from a second holder.
    c.host().sh("cat mnt/d/f00* mnt/d/f01* > /dev/null");
    let reader = pair.b.host().start_sh("tar -cf packed mnt/d");
    reader.kill();
    pair.a.kill();
    for number in [0, 50, 100, 199] {
        pair.b.shows(&name(number), content(number));
    }
    let mut reader = pair
        .b
        .host()
        .start_sh("cat mnt/d/f00* mnt/d/f01* > /dev/null");
    assert!(reader.ends_within(Duration::from_secs(60)).success());
}
