//! Trackers, peers and what they find of each other.

use std::{fs, io, time::Duration};

use p2pfs_mount_tests::{LONG, Lab, SOON, eventually, hash, noise, until};
use serde_json::Value;

use super::pair;

/// State of the only tracker as `status` tells it.
fn tracker_state(status: &Value) -> String {
    status["trackers"][0]["state"]
        .as_str()
        .unwrap_or_default()
        .to_owned()
}

#[test]
fn a_peer_that_comes_after_its_tracker_joins() {
    let lab = Lab::new();
    let (t, a) = (lab.host("t"), lab.host("a"));
    let _tracker = t.tracker("");
    a.create("--tracker 10.77.0.1");
    let a = a.mount("c", "");
    until(SOON, "it is registered", || {
        tracker_state(&a.status()) == "registered"
    });
    assert_eq!(a.list("").unwrap(), Vec::<String>::new());
}

#[test]
fn a_peer_that_comes_before_its_tracker_joins_when_that_comes_up() {
    let lab = Lab::new();
    let (t, a, b) = (lab.host("t"), lab.host("a"), lab.host("b"));
    let made = a.p2pfs("create --name c --tracker 10.77.0.1");
    assert!(
        made.stderr
            .contains("warning: the tracker 10.77.0.1 did not answer"),
        "{made}"
    );
    let id = made.ok().lines().next().unwrap().to_owned();
    let a = a.mount("c", "");
    a.write("early", "written before there was a tracker");
    // The newcomer has nobody to ask: it mounts, but shows no folder that it doesn't know.
    let b = b.mount(&id, "--read-timeout 1s");
    assert_eq!(b.list("").unwrap_err().raw_os_error(), Some(5));
    assert_ne!(tracker_state(&b.status()), "registered");
    let _tracker = t.tracker("");
    until(LONG, "both are registered", || {
        [&a, &b]
            .iter()
            .all(|mount| tracker_state(&mount.status()) == "registered")
    });
    b.shows_within(LONG, "early", "written before there was a tracker");
}

#[test]
fn two_peers_find_each_other_and_an_idle_peer_has_load_0() {
    let pair = pair();
    let peers = pair.a.json("peers");
    let peer = &peers.as_array().unwrap()[0];
    assert_eq!(peer["id"], pair.b.id());
    assert_eq!(peer["node"], "b");
    assert_eq!(peer["connected"], true);
    assert_eq!(peer["direct"], true);
    assert_eq!(peer["load"], 0);
    assert_eq!(peer["blamed"], Value::Null);
    assert!(
        peer["address"]
            .as_str()
            .unwrap()
            .starts_with("/ip4/10.77.0.3/"),
        "{peer}"
    );
    until(SOON, "the round trip is measured", || {
        pair.a.json("peers")[0]["rtt_s"].is_f64()
    });
}

#[test]
fn a_remote_file_is_found_with_its_holder_then_downloaded_and_has_two() {
    let pair = pair();
    let bytes = noise(1, 300_000);
    pair.a.write("data.bin", &bytes);
    let find = |name: &str| pair.b.ask(&format!("find {name} --json"));
    let found: Value = eventually(SOON, "the file is found", || {
        let finished = find("data.bin");
        if finished.code() == Some(0) {
            Ok(serde_json::from_str(&finished.stdout).unwrap())
        } else {
            Err(finished)
        }
    });
    let entry = &found["matches"][0];
    assert_eq!(entry["size"], 300_000);
    assert_eq!(entry["hash"], hash(&bytes));
    let holders = |entry: &Value| -> Vec<String> {
        let holders = entry["holders"].as_array().unwrap();
        holders
            .iter()
            .map(|holder| holder["node"].as_str().unwrap().to_owned())
            .collect()
    };
    assert_eq!(holders(entry), ["a"]);
    assert_eq!(pair.b.read("data.bin").unwrap(), bytes);
    pair.b.keeps("data.bin", 300_000);
    let found = pair.b.json("find data.*");
    let mut both = holders(&found["matches"][0]);
    both.sort();
    assert_eq!(both, ["a", "b"]);
    assert_eq!(find("nothing-of-that-name").code(), Some(1));
}

#[test]
fn a_file_added_while_everybody_runs_is_listed_and_found() {
    let pair = pair();
    pair.a.write("first", "1");
    pair.b.shows("first", "1");
    let before = pair.b.status()["manifest"].clone();
    pair.a.write("second", "2");
    until(SOON, "the list is updated", || {
        pair.b.list("").unwrap() == ["first", "second"]
    });
    let after = pair.b.status()["manifest"].clone();
    assert_ne!(before["hash"], after["hash"]);
    assert_eq!(after["files"], 2);
    assert_eq!(
        pair.b.json("find second")["matches"][0]["path"]
            .as_str()
            .unwrap()
            .trim_matches('/'),
        "second"
    );
    until(SOON, "both have the same state", || {
        pair.a.status()["manifest"]["hash"] == pair.b.status()["manifest"]["hash"]
    });
}

#[test]
fn peers_named_by_address_need_no_tracker() {
    let lab = Lab::new();
    let (a, b) = (lab.host("a"), lab.host("b"));
    let (id, _) = a.create("");
    let a = a.mount("c", "");
    a.write("x", "from a");
    let b = b.mount(&id, &format!("--peer {}", a.multiaddr()));
    b.shows("x", "from a");
    b.write("y", "from b");
    a.shows("y", "from b");
    // They remember each other: the address is needed once.
    b.unmount();
    a.write("x", "changed while b was away");
    let b = b.host().mount(&id, "");
    b.shows_within(LONG, "x", "changed while b was away");
}

#[test]
fn one_of_two_holders_killed_the_other_is_found_and_used() {
    let pair = pair();
    let bytes = noise(2, 2_000_000);
    pair.a.write("data", &bytes);
    pair.b.shows("data", &bytes);
    pair.a.kill();
    let c = pair.another("c", "");
    c.meets(1);
    c.shows("data", &bytes);
    c.keeps("data", bytes.len() as u64);
    let found = c.json("find data");
    let holders = found["matches"][0]["holders"].as_array().unwrap();
    let mut nodes: Vec<_> = holders
        .iter()
        .map(|holder| holder["node"].as_str().unwrap())
        .collect();
    nodes.sort_unstable();
    assert_eq!(nodes, ["b", "c"]);
}

#[test]
fn a_tracker_that_lost_its_state_knows_everybody_again_within_a_lease() {
    let pair = pair();
    pair.a.write("data", "kept by the peers");
    pair.b.shows("data", "kept by the peers");
    pair.tracker.kill();
    fs::remove_dir_all(pair.t.path("tracker")).unwrap();
    let _tracker = pair.t.tracker("");
    // A newcomer knows the tracker alone: it finds the others through it, once they have registered again.
    let c = pair.lab.host("c").mount(&pair.id, "--read-timeout 2s");
    c.shows_within(Duration::from_secs(90), "data", "kept by the peers");
    c.meets(2);
}

#[test]
fn a_tracker_that_restarts_with_its_state_forgets_nothing() {
    let pair = pair();
    pair.a.write("data", "x");
    pair.b.shows("data", "x");
    let b = pair.b.host().clone();
    pair.b.unmount();
    pair.tracker.kill();
    let _tracker = pair.t.tracker("");
    until(LONG, "a is registered again", || {
        tracker_state(&pair.a.status()) == "registered"
    });
    let b = b.mount(&pair.id, "");
    b.meets(1);
    b.shows("data", "x");
}

#[test]
fn silent_peers_are_left_out_and_taken_up_again_when_they_are_back() {
    let pair = pair();
    let bytes = noise(3, 400_000);
    pair.a.write("data", &bytes);
    until(SOON, "the entry is seen", || pair.b.has("data"));
    pair.a.host().cut_off();
    let found = pair.b.json("find data");
    assert_eq!(found["matches"][0]["holders"], Value::Array(Vec::new()));
    let said = pair.b.ask("find data");
    assert!(said.stdout.contains("no holder"), "{said}");
    pair.a.host().reconnect();
    pair.b.shows_within(LONG, "data", &bytes);
}

#[test]
fn a_report_of_a_living_peer_takes_nothing_from_it() {
    let pair = pair();
    pair.a.ask("report b").ok();
    let itself = pair.a.ask(&format!("report {}", pair.a.id()));
    assert!(itself.fails(1).contains("this member itself"), "{itself}");
    let unknown = pair.a.ask("report nobody");
    assert!(unknown.fails(1).contains("nobody"), "{unknown}");
    // The tracker has dialed back and still hands it out.
    let c = pair.another("c", "");
    c.meets(2);
}

#[test]
fn a_mount_that_has_never_seen_a_head_shows_errors_and_never_an_empty_folder() {
    let lab = Lab::new();
    let (a, b) = (lab.host("a"), lab.host("b"));
    let (id, _) = a.create("");
    let mounted = b.p2pfs(&format!(
        "mount {id} {} --read-timeout 1s",
        b.path("mnt").display()
    ));
    mounted.ok();
    assert!(
        mounted
            .stderr
            .contains("p2pfs: warning: nothing is known of the folder yet"),
        "{mounted}"
    );
    let listed = b.try_sh("ls mnt");
    assert_eq!(
        (listed.code(), listed.stdout.as_str()),
        (Some(2), ""),
        "{listed}"
    );
    assert!(listed.stderr.contains("Input/output error"), "{listed}");
    let written = b.try_sh("touch mnt/x");
    assert!(written.stderr.contains("Input/output error"), "{written}");
    b.p2pfs(&format!("unmount {}", b.path("mnt").display()))
        .ok();
    // Unless it is told to start from nothing.
    let b = b.mount(&id, "--new");
    assert_eq!(b.list("").unwrap(), Vec::<String>::new());
    b.write("x", "y");
    // Both sides began on their own, and both are kept when they meet.
    let a = a.mount("c", &format!("--peer {}", b.multiaddr()));
    a.shows("x", "y");
    a.write("z", "w");
    b.shows("z", "w");
    assert_eq!(
        b.read("nothing").unwrap_err().kind(),
        io::ErrorKind::NotFound
    );
}
