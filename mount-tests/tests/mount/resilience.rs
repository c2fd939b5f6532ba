//! Reads that go on while sources fail, machines sleep and addresses change.
//!
//! Each read is slowed down to last some seconds, and is disturbed in its middle. Times are printed, not asserted.

use std::{
    fs,
    time::{Duration, Instant},
};

use p2pfs_mount_tests::{Host, LONG, Lab, Mount, Process, SOON, hash, noise, until};
use rustix::process::{Pid, Signal, kill_process};

/// What each test reads.
const BYTES: usize = 24 * 1024 * 1024;

struct Read {
    _tracker: Option<Process>,
    sources: Vec<Mount>,
    reader: Mount,
    bytes: Vec<u8>,
    _lab: Lab,
}

/// Sources that hold `data` whole and send slowly, and a reader that knows them.
fn prepare(sources: usize, rate: &str, tracker: bool) -> Read {
    // Shorter than what it sleeps below.
    prepare_for(sources, rate, tracker, "8s")
}

/// The same; the reader waits so long for a source.
fn prepare_for(sources: usize, rate: &str, tracker: bool, read_timeout: &str) -> Read {
    let lab = Lab::new();
    let mut options = String::new();
    let tracker = tracker.then(|| {
        let host = lab.host("t");
        options = format!("--tracker {}", host.address());
        host.tracker("--lease 5s")
    });
    let bytes = noise(77, BYTES);
    let first = lab.host("a");
    let (id, _) = first.create(&options);
    let mut mounts = vec![first.mount("c", "")];
    mounts[0].write("data", &bytes);
    mounts[0].publishes();
    for number in 1..sources {
        let host = lab.host(&format!("a{number}"));
        let mount = host.mount(&id, &format!("--peer {}", mounts[0].multiaddr()));
        mount.shows_within(LONG, "data", &bytes);
        mounts.push(mount);
    }
    for mount in &mounts {
        mount.host().limit(rate);
    }
    let peers: Vec<_> = mounts
        .iter()
        .map(|mount| format!("--peer {}", mount.multiaddr()))
        .collect();
    let options = format!("--read-timeout {read_timeout} {}", peers.join(" "));
    let reader = lab.host("r").mount(&id, &options);
    reader.meets(sources);
    until(SOON, "the entry is seen", || reader.has("data"));
    Read {
        _tracker: tracker,
        sources: mounts,
        reader,
        bytes,
        _lab: lab,
    }
}

fn cached(mount: &Mount) -> u64 {
    let report = mount.status();
    report["network"]["block_bytes_received"].as_u64().unwrap()
}

impl Read {
    /// Reads all, with `disturb` in the middle of it; what was read is right. `disturb` tells when it was over.
    fn survives(&self, disturb: impl FnOnce(&Self) -> Instant) {
        let mut reader = self.reader.host().start_sh("exec cat mnt/data > copy");
        until(LONG, "a part of it is here", || {
            cached(&self.reader) > BYTES as u64 / 4
        });
        let over = disturb(self);
        let before = cached(&self.reader);
        until(LONG, "it goes on", || {
            cached(&self.reader) > before + 200_000
        });
        println!("recovered in {:?}", over.elapsed());
        let status = reader.ends_within(LONG);
        assert!(status.success(), "{}", reader.output());
        let copy = fs::read(self.reader.host().path("copy")).unwrap();
        assert_eq!(hash(&copy), hash(&self.bytes));
    }
}

fn sleeps(pid: Pid) -> Instant {
    kill_process(pid, Signal::STOP).unwrap();
    // Longer than a connection may be silent, a lease lasts, and a read waits.
    let until_then = Duration::from_secs(12);
    std::thread::sleep(until_then);
    kill_process(pid, Signal::CONT).unwrap();
    Instant::now()
}

#[test]
fn a_read_goes_on_after_its_machine_has_slept() {
    let read = prepare(1, "40mbit", true);
    read.survives(|read| sleeps(read.reader.pid()));
}

#[test]
fn a_read_goes_on_after_its_only_source_has_slept() {
    let read = prepare_for(1, "40mbit", true, "60s");
    read.survives(|read| sleeps(read.sources[0].pid()));
}

#[test]
fn a_read_goes_on_from_an_only_source_whose_link_becomes_slow() {
    let read = prepare(1, "80mbit", false);
    read.survives(|read| {
        read.sources[0].host().limit("10mbit");
        Instant::now()
    });
}

#[test]
fn a_read_over_a_link_that_is_slow_from_the_start_comes_to_its_end() {
    let lab = Lab::new();
    let (a, b) = (lab.host("a"), lab.host("b"));
    let (id, _) = a.create("");
    let source = a.mount("c", "");
    let bytes = noise(78, 700_000);
    source.write("data", &bytes);
    source.publishes();
    // A queue of ten seconds: what is sent next, and so each answer to a ping, waits for all that was sent before.
    let queue = "tbf rate 256kbit burst 16k limit 320k";
    a.sh(&format!("tc qdisc replace dev eth0 root {queue}"));
    let options = format!("--read-timeout 8s --peer {}", source.multiaddr());
    let reader = b.mount(&id, &options);
    until(LONG, "the entry is seen", || reader.has("data"));
    let mut read = b.start_sh("exec cat mnt/data > copy");
    let status = read.ends_within(2 * LONG);
    assert!(status.success(), "{}", read.output());
    assert!(fs::read(b.path("copy")).unwrap() == bytes);
    // Nothing was asked for twice, or only little.
    let received = cached(&reader);
    assert!(received < 1_000_000, "{received} bytes");
}

#[test]
fn a_read_goes_on_from_another_source_while_one_is_stopped() {
    let read = prepare(2, "20mbit", false);
    let stopped = read.sources[0].pid();
    read.survives(|_| {
        kill_process(stopped, Signal::STOP).unwrap();
        Instant::now()
    });
    kill_process(stopped, Signal::CONT).unwrap();
}

#[test]
fn a_read_goes_on_from_another_source_when_one_is_killed() {
    let read = prepare(2, "20mbit", false);
    read.survives(|read| {
        read.sources[0].kill();
        Instant::now()
    });
}

#[test]
fn a_read_goes_on_from_another_source_when_one_trickles_or_is_cut_off() {
    for disturb in [
        (|host: &Host| host.limit("16kbit")) as fn(&Host),
        |host: &Host| host.cut_off(),
    ] {
        let read = prepare(2, "20mbit", false);
        read.survives(|read| {
            disturb(read.sources[0].host());
            Instant::now()
        });
    }
}

#[test]
fn a_read_goes_on_from_another_source_when_one_lies() {
    let read = prepare(2, "20mbit", false);
    for place in (0..BYTES as u64).step_by(65_536) {
        read.sources[0].corrupt(&hash(&read.bytes), place);
    }
    read.survives(|_| Instant::now());
    let rejected = read.reader.status()["network"]["blocks_rejected"].as_u64();
    assert!(rejected.unwrap() > 0);
}

#[test]
fn a_read_goes_on_after_its_machine_or_its_source_has_got_another_address() {
    let read = prepare(1, "40mbit", true);
    read.survives(|read| {
        read.reader.host().moves_to("10.77.0.200");
        Instant::now()
    });
    let read = prepare(1, "40mbit", true);
    read.survives(|read| {
        read.sources[0].host().moves_to("10.77.0.201");
        Instant::now()
    });
}

#[test]
fn a_machine_that_gets_another_address_while_it_dials_is_connected_again_at_once() {
    let lab = Lab::new();
    let (a, b) = (lab.host("a"), lab.host("b"));
    let (id, _) = a.create("");
    let first = a.mount("c", "");
    let second = b.mount(&id, &format!("--peer {}", first.multiaddr()));
    first.meets(1);
    lab.split_off(&[&a]);
    // Nobody says that the other side is unreachable: what it dials waits.
    until(LONG, "it dials", || {
        let dials = a.sh("ss -Htn state syn-sent");
        first.status()["peers"] == serde_json::json!([]) && !dials.is_empty()
    });
    a.moves_to("10.77.0.200");
    lab.heal();
    let over = Instant::now();
    until(Duration::from_secs(5), "they are connected again", || {
        first.status()["peers"]
            .as_array()
            .is_some_and(|peers| peers.len() == 1)
    });
    println!("recovered in {:?}", over.elapsed());
    second.meets(1);
}
