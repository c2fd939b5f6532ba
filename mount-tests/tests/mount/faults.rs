//! Damaged, silent and dead holders.

use std::{
    fs,
    os::unix::fs::FileExt,
    time::{Duration, Instant},
};

use p2pfs_mount_tests::{Disk, LONG, Lab, Mount, SOON, hash, noise, until};
use rustix::process::{Signal, kill_process};

use super::{pair, pair_with};

const EIO: Option<i32> = Some(5);

#[test]
fn damaged_bytes_never_reach_a_reader_and_their_holder_is_blamed() {
    let pair = pair();
    pair.lab.expects_errors();
    let bytes = noise(1, 1_000_000);
    let content = hash(&bytes);
    pair.a.write("data", &bytes);
    pair.b.shows("data", &bytes);
    pair.b.keeps("data", 1_000_000);
    pair.b.unmount();
    pair.a.corrupt(&content, 500_000);
    let damaged = pair.a.id();
    let c = pair.another("c", "--read-timeout 3s");
    until(SOON, "the entry is seen", || c.has("data"));
    // Nobody else has it: an error, and not one wrong byte.
    assert_eq!(
        c.read_at("data", 499_000, 2_000)
            .unwrap_err()
            .raw_os_error(),
        EIO
    );
    let peers = c.json("peers");
    let blamed = peers
        .as_array()
        .unwrap()
        .iter()
        .find(|peer| peer["id"] == damaged.as_str());
    let blamed = blamed.unwrap_or_else(|| panic!("{damaged} is not in {peers}"));
    assert!(blamed["blamed"]["reason"].is_string(), "{peers}");
    assert!(c.status()["network"]["blocks_rejected"].as_u64().unwrap() > 0);
    // Another holder comes, and the reader gets the right bytes from it.
    let b = pair.b.host().mount(&pair.id, "");
    b.meets(1);
    c.shows_within(LONG, "data", &bytes);
}

#[test]
fn a_good_holder_serves_where_another_one_is_damaged() {
    let pair = pair();
    pair.lab.expects_errors();
    let bytes = noise(1, 3_000_000);
    pair.a.write("data", &bytes);
    pair.b.shows("data", &bytes);
    pair.b.keeps("data", 3_000_000);
    for place in (0..3_000_000).step_by(65_536) {
        pair.a.corrupt(&hash(&bytes), place);
    }
    let c = pair.another("c", "");
    c.meets(2);
    until(SOON, "the entry is seen", || c.has("data"));
    assert_eq!(hash(&c.read("data").unwrap()), hash(&bytes));
}

#[test]
fn verify_finds_damage_and_repairs_it_from_another_holder() {
    let pair = pair();
    pair.lab.expects_errors();
    let bytes = noise(1, 1_000_000);
    pair.a.write("data", &bytes);
    pair.b.shows("data", &bytes);
    pair.b.keeps("data", 1_000_000);
    assert_eq!(pair.b.json("verify")["damaged"], 0);
    pair.b.corrupt(&hash(&bytes), 300_000);
    let report = pair.b.json("verify");
    assert_eq!(
        (&report["damaged"], &report["repaired"]),
        (&1.into(), &1.into()),
        "{report}"
    );
    assert_eq!(pair.b.json("verify")["damaged"], 0);
    assert_eq!(hash(&pair.b.read("data").unwrap()), hash(&bytes));
    // With nobody to repair from it says so, and where.
    pair.a.unmount();
    pair.b.corrupt(&hash(&bytes), 300_000);
    let verified = pair.b.ask("verify --json");
    assert_eq!(verified.code(), Some(1), "{verified}");
    let report: serde_json::Value = serde_json::from_str(&verified.stdout).unwrap();
    assert_eq!(report["unreachable"][0]["hash"], hash(&bytes), "{report}");
}

#[test]
fn damage_below_a_change_is_had_anew_before_that_is_published() {
    let pair = pair();
    pair.lab.expects_errors();
    let (mut large, mut small) = (noise(1, 400_000), noise(2, 50_000));
    pair.a.write("large", &large);
    pair.a.write("small", &small);
    for (name, bytes) in [("large", &large), ("small", &small)] {
        pair.b.shows(name, bytes);
        pair.b.keeps(name, bytes.len() as u64);
    }
    pair.b.unmount();
    pair.b.corrupt(&hash(&large), 150_000);
    let b = pair.b.host().mount(&pair.id, "--no-passthrough");
    b.meets(1);
    // Of one block, that was looked at a moment ago and is new only in part.
    assert!(b.read_at("small", 0, 10).is_ok());
    b.corrupt(&hash(&small), 100);
    for (name, bytes) in [("large", &mut large), ("small", &mut small)] {
        let at = bytes.len() - 1_000;
        bytes[at..at + 10].copy_from_slice(b"new bytes.");
        b.with(name, |path| {
            let file = fs::OpenOptions::new().write(true).open(path).unwrap();
            file.write_all_at(b"new bytes.", at as u64).unwrap();
        });
    }
    for (name, bytes) in [("large", &large), ("small", &small)] {
        pair.a.shows_within(LONG, name, bytes);
        b.shows(name, bytes);
    }
}

#[test]
fn with_all_holders_stopped_reads_end_and_everything_else_goes_on() {
    let pair = pair_with("--read-timeout 20s");
    let (lost, here) = (noise(1, 4_000_000), noise(2, 500_000));
    pair.a.write("lost", &lost);
    pair.a.write("here", &here);
    let b = &pair.b;
    b.shows("here", &here);
    until(SOON, "the entry is seen", || b.has("lost"));
    pair.a.signal(Signal::STOP);

    // A reader that is interrupted ends, long before the read itself is given up.
    let begun = Instant::now();
    let mut reader = b.host().start_sh("exec cat mnt/lost > part");
    let mut interrupted = b.host().start_sh("exec cat mnt/lost > other");
    until(SOON, "it waits for the network", || {
        !b.status()["transfers"].as_array().unwrap().is_empty()
    });
    interrupted.signal(Signal::INT);
    interrupted.ends_within(SOON);
    for _ in 0..5 {
        assert_eq!(b.list("").unwrap(), ["here", "lost"]);
        assert_eq!(hash(&b.read("here").unwrap()), hash(&here));
        b.write("new", "written meanwhile");
        b.with("new", |path| fs::remove_file(path)).unwrap();
    }
    // All of that while the other reader waited.
    assert_eq!(reader.output(), "");
    let status = reader.ends_within(LONG);
    assert_eq!(status.code(), Some(1), "{}", reader.output());
    assert!(
        reader.output().contains("Input/output error"),
        "{}",
        reader.output()
    );
    let stalled = begun.elapsed();
    assert!(
        stalled >= Duration::from_secs(19),
        "given up after {stalled:?}"
    );

    // It is taken up again when the holder is back.
    let pid = pid_of(&pair.a);
    kill_process(pid, Signal::CONT).unwrap();
    b.shows_within(LONG, "lost", &lost);
}

#[test]
fn a_look_into_an_unknown_folder_ends_in_time_and_can_be_interrupted() {
    let lab = Lab::new();
    let (a, b) = (lab.host("a"), lab.host("b"));
    let (id, _) = a.create("");
    let a = a.mount("c", "");
    // So many names that a newcomer does not get them along with the first look at the root.
    a.host().sh("cd mnt; for dir in 1 2 3 4 5 6 7 8; do mkdir dir$dir; (cd dir$dir; touch $(seq 300)); done");
    a.publishes_within(LONG);
    let pid = a.pid();
    let b = b.mount(&id, &format!("--read-timeout 20s --peer {}", a.multiaddr()));
    assert_eq!(b.list("").unwrap().len(), 8);
    // At once, before more names come here.
    kill_process(pid, Signal::STOP).unwrap();
    let mut interrupted = b.host().start_sh("exec ls mnt/dir5/123");
    until(SOON, "it looks", || {
        fs::read_to_string(format!("/proc/{}/stat", interrupted.pid()))
            .is_ok_and(|stat| stat.contains("(ls) S") || stat.contains("(ls) D"))
    });
    interrupted.signal(Signal::INT);
    interrupted.ends_within(SOON);
    let begun = Instant::now();
    assert_eq!(b.list("dir6").unwrap_err().raw_os_error(), EIO);
    assert!(
        (19..60).contains(&begun.elapsed().as_secs()),
        "given up after {:?}",
        begun.elapsed()
    );
    assert_eq!(b.list("").unwrap().len(), 8);
    kill_process(pid, Signal::CONT).unwrap();
    until(LONG, "the folder is shown when the holder is back", || {
        b.list("dir6").is_ok_and(|names| names.len() == 300)
    });
}

/// The process of a mount that may not answer.
fn pid_of(mount: &Mount) -> rustix::process::Pid {
    let lock = p2pfs_mount_tests::files_below(&mount.host().state())
        .into_iter()
        .find(|(path, _)| path.ends_with("lock"));
    let text = fs::read_to_string(lock.unwrap().0).unwrap();
    rustix::process::Pid::from_raw(text.trim().parse().unwrap()).unwrap()
}

#[test]
fn a_cut_line_is_survived_by_both_sides() {
    let pair = pair();
    pair.a.write("before", "1");
    pair.b.shows("before", "1");
    pair.b.host().cut_off();
    pair.a.write("a-alone", "2");
    pair.b.write("b-alone", "3");
    // Cut off it works from what it has.
    assert_eq!(pair.b.read("before").unwrap(), b"1");
    pair.b.host().reconnect();
    pair.b.shows_within(LONG, "a-alone", "2");
    pair.a.shows_within(LONG, "b-alone", "3");
}

/// Everything that programs do, on a name that is known and whose bytes are elsewhere, in a folder that is known and in one
/// that isn't.
const EVERYTHING: &str = r#"
    stat mnt/far; ls -l mnt; ls mnt/deep/er; stat mnt/deep/er/file; cat mnt/far; head -c 10 mnt/deep/er/file
    echo text > mnt/new; sync mnt/new; mv mnt/new mnt/newer; ln mnt/newer mnt/other; ln -s newer mnt/symbolic
    mkdir mnt/made; mv mnt/newer mnt/made/new; chmod 600 mnt/made/new; touch mnt/made/new; rm mnt/made/new; rmdir mnt/made
    echo more >> mnt/far2; truncate -s 100000 mnt/far3; fallocate -l 5000000 mnt/far4; cp mnt/far5 mnt/copy
    cp --reflink=always mnt/far5 mnt/cloned; dd if=/dev/zero of=mnt/far6 bs=1000 count=3 seek=1000 conv=notrunc,fsync
    mv mnt/far7 mnt/moved; rm mnt/moved; mkfifo mnt/fifo; df mnt; sync -f mnt; du -s mnt/deep
    mkdir mnt/deep/made; echo text > mnt/deep/er/new; rm -r mnt/deep
"#;

/// Files and folders for it.
fn far(mount: &Mount) {
    mount.host().sh(
        "cd mnt; mkdir -p deep/er; head -c 3000000 /dev/urandom > far; for i in 2 3 4 5 6 7; do cp far far$i; done
         for i in 1 2 3 4 5 6 7 8; do mkdir deep/er/$i; (cd deep/er/$i; touch $(seq 300)); done; echo text > deep/er/file",
    );
}

fn each_ends(mount: &Mount) {
    for operation in EVERYTHING
        .split([';', '\n'])
        .map(str::trim)
        .filter(|line| !line.is_empty())
    {
        let mut process = mount.host().start_sh(&format!("exec {operation}"));
        // Several levels of several folders may wait one after the other.
        let status = process.ends_within(Duration::from_secs(150));
        println!("{operation}: {status} {}", process.output());
    }
}

/// Asks its process to end, and waits for that.
fn ends(mount: &Mount) {
    let pid = mount.pid();
    mount.signal(Signal::TERM);
    until(Duration::from_secs(90), "the process ends", || {
        !p2pfs_mount_tests::runs(pid)
    });
}

#[test]
fn every_operation_ends_with_all_members_stopped_and_the_tracker_gone() {
    let pair = pair_with("--read-timeout 2s");
    far(&pair.a);
    let b = &pair.b;
    until(SOON, "the entries are seen", || {
        b.has("far7") && b.has("deep")
    });
    let stopped = pair.a.pid();
    kill_process(stopped, Signal::STOP).unwrap();
    pair.tracker.kill();
    each_ends(b);
    // It is as usable as before for what is here.
    b.write("after", "x");
    assert_eq!(b.read("after").unwrap(), b"x");
    ends(b);
    kill_process(stopped, Signal::CONT).unwrap();
    let b = b
        .host()
        .mount(&pair.id, &format!("--peer {}", pair.a.multiaddr()));
    b.shows_within(LONG, "after", "x");
    pair.a.shows_within(LONG, "after", "x");
}

#[test]
fn every_operation_ends_with_all_members_stopped_the_tracker_gone_and_the_disk_full() {
    let pair = pair();
    pair.lab.expects_errors();
    far(&pair.a);
    let host = pair.lab.host("c");
    let disk = Disk::mount(&host, "96M");
    let options = "--read-timeout 2s --cache-size 1G --min-free 0";
    let c = host.mount(&pair.id, options);
    c.meets(2);
    until(SOON, "the entries are seen", || {
        c.has("far7") && c.has("deep")
    });
    c.write("here", "x");
    let stopped = [&pair.a, &pair.b].map(Mount::pid);
    for pid in stopped {
        kill_process(pid, Signal::STOP).unwrap();
    }
    pair.tracker.kill();
    let foreign = disk.fill();
    each_ends(&c);
    assert_eq!(c.read("here").unwrap(), b"x");
    fs::remove_file(foreign).unwrap();
    until(LONG, "there is room again", || {
        c.with("after", |path| fs::write(path, "x")).is_ok()
    });
    ends(&c);
    for pid in stopped {
        kill_process(pid, Signal::CONT).unwrap();
    }
    let c = host.mount(
        &pair.id,
        &format!("{options} --peer {}", pair.a.multiaddr()),
    );
    c.shows_within(LONG, "after", "x");
    pair.a.shows_within(LONG, "after", "x");
    c.unmount();
}
