//! The folder without other members: the tracker's copy of the manifest, and changes that come through the tracker alone.

use std::{
    collections::BTreeSet,
    time::{Duration, Instant},
};

use p2pfs_mount_tests::{LONG, Lab, Mount, hash, noise, until};

const EIO: Option<i32> = Some(5);
/// For what waits for a poll of the tracker every 30 s, twice, and then some.
const POLLED: Duration = Duration::from_secs(120);

/// Every path below a mount, as `find` shows them.
fn found(mount: &Mount) -> BTreeSet<String> {
    let script = format!("cd {} && find . -mindepth 1", mount.dir().display());
    let found = mount.host().sh(&script);
    found.lines().map(str::to_owned).collect()
}

/// Reading fails in bounded time, and the log says what was missing.
fn cannot_be_read(mount: &Mount, path: &str) {
    let begun = Instant::now();
    let error = mount.read(path).unwrap_err();
    assert_eq!(error.raw_os_error(), EIO, "{error}");
    assert!(begun.elapsed() < Duration::from_secs(30));
    let logs = mount.host().logs();
    let told = logs.iter().any(|log| {
        let text = std::fs::read_to_string(log).unwrap_or_default();
        text.lines().any(|line| line.contains(path))
    });
    assert!(told, "no line of {logs:?} names {path}");
}

#[test]
fn a_newcomer_sees_the_whole_tree_while_only_the_tracker_is_up_and_reads_it_later() {
    let lab = Lab::new();
    let t = lab.host("t");
    let _tracker = t.tracker("");
    let (a, b) = (lab.host("a"), lab.host("b"));
    let (id, _) = a.create(&format!("--tracker {}", t.address()));
    let writer = a.mount("c", "");
    // Enough for a tree of several nodes.
    let script = format!(
        "cd {} && for d in $(seq 1 10); do mkdir d$d; for f in $(seq 1 40); do echo $d-$f > d$d/f$f; done; done",
        writer.dir().display()
    );
    a.sh(&script);
    let bytes = noise(5, 300_000);
    writer.write("large", &bytes);
    writer.publishes();
    let expected = found(&writer);
    assert_eq!(expected.len(), 411);
    writer.unmount();

    let newcomer = b.mount(&id, "--read-timeout 2s");
    assert_eq!(newcomer.status()["peers"].as_array().unwrap().len(), 0);
    let is_whole = || {
        newcomer
            .attribute("large", "hash")
            .is_ok_and(|there| there == hash(&bytes))
    };
    until(LONG, "the tracker's copy is shown", is_whole);
    assert_eq!(found(&newcomer), expected);
    cannot_be_read(&newcomer, "large");
    let age = newcomer.status()["trackers"][0]["head_age_s"].as_f64();
    assert!(age.is_some_and(|age| age >= 0.0), "{age:?}");

    let writer = a.mount("c", "");
    newcomer.shows_within(POLLED, "large", &bytes);
    newcomer.shows_within(LONG, "d7/f33", "7-33\n");
    drop(writer);
}

#[test]
fn members_that_reach_only_the_tracker_see_each_others_changes_and_read_them_once_they_meet() {
    let lab = Lab::new();
    let t = lab.host("t");
    let _tracker = t.tracker("");
    let (a, b) = (lab.host("a"), lab.host("b"));
    let apart = |verb: &str| {
        for (host, other) in [(&a, &b), (&b, &a)] {
            host.sh(&format!("ip route {verb} blackhole {}", other.address()));
        }
    };
    apart("add");
    let (id, _) = a.create(&format!("--tracker {}", t.address()));
    let one = a.mount("c", "--no-lan --read-timeout 2s");
    let other = b.mount(&id, "--no-lan --read-timeout 2s");
    let bytes = noise(6, 200_000);
    one.write("from a", &bytes);
    one.publishes();
    until(POLLED, "the name comes through the tracker", || {
        other.has("from a")
    });
    assert_eq!(other.list("").unwrap(), ["from a"]);
    assert_eq!(other.status()["peers"].as_array().unwrap().len(), 0);
    cannot_be_read(&other, "from a");
    // And the other way, on top of it.
    other.write("from b", "small");
    until(POLLED, "the name comes back", || one.has("from b"));
    assert_eq!(one.list("").unwrap(), ["from a", "from b"]);

    apart("del");
    other.shows_within(POLLED, "from a", &bytes);
    one.shows_within(POLLED, "from b", "small");
}

/// The only one who has handed anything in has looked at one folder.
#[test]
fn what_the_tracker_has_of_the_tree_is_shown_and_the_rest_is_an_error_until_somebody_has_it() {
    let lab = Lab::new();
    let t = lab.host("t");
    let (a, b, c) = (lab.host("a"), lab.host("b"), lab.host("c"));
    let (id, _) = a.create("");
    let author = a.mount("c", "");
    let script = format!(
        "cd {} && for d in $(seq 1 9); do mkdir d$d; (cd d$d; for f in $(seq 1 250); do : > $f; done); done",
        author.dir().display()
    );
    a.sh(&script);
    author.publishes_within(LONG);
    let lazy = b.mount(&id, &format!("--peer {}", author.multiaddr()));
    until(LONG, "the folder is seen whole", || {
        lazy.list("d1").is_ok_and(|names| names.len() == 250)
    });
    author.unmount();
    lazy.unmount();

    let _tracker = t.tracker("");
    let with_tracker = format!("--read-timeout 2s --tracker {}", t.address());
    let lazy = b.mount(&id, &with_tracker);
    lazy.write("d1/late", "");
    lazy.publishes();
    lazy.unmount();

    let newcomer = c.mount(&id, &with_tracker);
    assert_eq!(newcomer.list("d1").unwrap().len(), 251);
    let begun = Instant::now();
    let error = newcomer.list("d9").unwrap_err();
    assert_eq!(error.raw_os_error(), EIO, "{error}");
    assert!(begun.elapsed() < Duration::from_secs(30));
    let logs = newcomer.host().logs();
    let told = logs.iter().any(|log| {
        let text = std::fs::read_to_string(log).unwrap_or_default();
        text.lines().any(|line| line.contains("manifest nodes"))
    });
    assert!(told, "no line of {logs:?} says what lacks");

    let _author = a.mount("c", &with_tracker);
    until(POLLED, "the rest is seen", || {
        newcomer.list("d9").is_ok_and(|names| names.len() == 250)
    });
    assert_eq!(newcomer.list("d1").unwrap().len(), 251);
}
