//! The commands about what is in the cache, and what comes into it.

use std::{fs, time::Instant};

use p2pfs_mount_tests::{Finished, LONG, Lab, Mount, SOON, eventually, hash, noise, until};
use serde_json::Value;

use super::pair;

const MIB: usize = 1 << 20;

/// Runs a command about paths of the mount.
fn about(mount: &Mount, command: &str, paths: &[&str]) -> Finished {
    let paths: Vec<String> = paths
        .iter()
        .map(|path| mount.path(path).display().to_string())
        .collect();
    let words = command.split_whitespace();
    let words: Vec<&str> = words.chain(paths.iter().map(String::as_str)).collect();
    mount.host().p2pfs_with(&words)
}

/// What it reports.
fn told(finished: &Finished) -> Value {
    serde_json::from_str(&finished.stdout).unwrap_or_else(|error| panic!("{error}: {finished}"))
}

fn received(mount: &Mount) -> u64 {
    let status = mount.status();
    status["network"]["block_bytes_received"].as_u64().unwrap()
}

fn cached(mount: &Mount, path: &str) -> u64 {
    let cached = mount.attribute(path, "cached").unwrap();
    cached.parse().unwrap()
}

/// A folder `docs` with a few files, as `a` wrote them; names and contents.
fn docs(mount: &Mount) -> Vec<(String, Vec<u8>)> {
    mount
        .with("docs/deep", |path| fs::create_dir_all(path))
        .unwrap();
    let sizes = [0, 1, 4096, 70_000, 3 * MIB, 20 * MIB + 17];
    let files: Vec<_> = (0..)
        .zip(sizes)
        .map(|(number, size)| {
            let folder = ["docs", "docs/deep"][number % 2];
            (format!("{folder}/{number}"), noise(number as u64, size))
        })
        .collect();
    for (path, bytes) in &files {
        mount.write(path, bytes);
    }
    mount.publishes();
    files
}

#[test]
fn fetch_brings_a_tree_here_and_says_what_was_there_already() {
    let pair = pair();
    let files = docs(&pair.a);
    let bytes: usize = files.iter().map(|(_, bytes)| bytes.len()).sum();
    let (last, content) = files.last().unwrap();
    until(SOON, "b sees the last file", || pair.b.has(last));
    // A part of the largest one is here before.
    pair.b.read_at(last, 0, 100_000).unwrap();
    pair.b.keeps(last, 100_000);
    let before = cached(&pair.b, last);
    assert!(before < content.len() as u64);

    let report = told(&about(&pair.b, "fetch --json", &["docs"]));
    assert_eq!(report["files"], files.len());
    assert_eq!(report["bytes"], bytes);
    assert_eq!(report["failed_files"], 0, "{report}");
    assert_eq!(report["failed"], Value::Array(Vec::new()));
    let already = report["already_here_bytes"].as_u64().unwrap();
    assert!(already >= before, "{report}");
    assert_eq!(
        report["fetched_bytes"].as_u64().unwrap() + already,
        bytes as u64
    );
    for (path, bytes) in &files {
        assert_eq!(cached(&pair.b, path), bytes.len() as u64, "{path}");
    }

    // Again there is nothing to do, by the root as well.
    let before = received(&pair.b);
    let report = told(&about(&pair.b, "fetch --json", &["", "docs/deep"]));
    assert_eq!(report["already_here_files"], files.len(), "{report}");
    assert_eq!(report["fetched_bytes"], 0);
    assert_eq!(received(&pair.b), before);

    // It reads without anybody there.
    pair.a.host().cut_off();
    for (path, bytes) in &files {
        assert_eq!(hash(&pair.b.read(path).unwrap()), hash(bytes), "{path}");
    }
    let said = about(&pair.b, "fetch", &["docs/deep"]);
    assert!(said.ok().starts_with("3 files, "), "{said}");
    assert_eq!(said.stderr, "", "no progress where nobody watches");
}

#[test]
fn fetch_names_what_could_not_be_had_and_fails() {
    let pair = super::pair_with("--read-timeout 2s");
    docs(&pair.a);
    until(SOON, "b sees the last file", || pair.b.has("docs/deep/5"));
    assert_eq!(
        told(&about(&pair.b, "fetch --json", &["docs/4"]))["files"],
        1
    );
    pair.a.host().cut_off();
    let said = about(&pair.b, "fetch --json", &["docs"]);
    let report = told(&said);
    let why = said.fails(1);
    assert!(
        why.starts_with("p2pfs: 4 files could not be fetched: "),
        "{why}"
    );
    assert_eq!(report["files"], 6);
    // The empty one, and the one that was fetched.
    assert_eq!(report["already_here_files"], 2, "{report}");
    assert_eq!(report["failed_files"], 4);
    let failed = report["failed"].as_array().unwrap();
    let mut paths: Vec<_> = failed.iter().map(|one| one["path"].as_str()).collect();
    paths.sort();
    let expected = ["docs/2", "docs/deep/1", "docs/deep/3", "docs/deep/5"];
    assert_eq!(paths, expected.map(Some));

    let nothing = about(&pair.b, "fetch", &["docs/none"]);
    let why = nothing.fails(1);
    assert!(why.contains("nothing is called /docs/none"), "{why}");
    let outside = pair.b.host().p2pfs("fetch /");
    assert!(outside.fails(1).contains("is not inside a p2pfs mount"));
    assert_eq!(pair.b.host().p2pfs("fetch").code(), Some(2));
}

#[test]
fn a_fetch_whose_client_goes_away_ends_and_transfers_show_it_while_it_runs() {
    let pair = pair();
    pair.a.write("large", noise(1, 64 * MIB));
    pair.a.publishes();
    until(SOON, "b sees it", || pair.b.has("large"));
    assert_eq!(pair.b.ask("transfers").ok(), "no transfers");
    pair.a.host().limit("40mbit");
    let path = pair.b.path("large").display().to_string();
    let mut fetch = pair.b.host().start_p2pfs(&format!("fetch {path}"));
    eventually(LONG, "the transfer shows", || {
        let report = pair.b.json("transfers");
        let transfer = &report["transfers"][0];
        let runs = transfer["state"] == "downloading"
            && transfer["path"] == "large"
            && transfer["total_bytes"] == 64 * MIB
            && transfer["rate_bytes_per_s"].as_u64() > Some(0)
            && transfer["sources"] == 1;
        if runs {
            Ok(())
        } else {
            Err(report.to_string())
        }
    });
    fetch.signal(rustix::process::Signal::INT);
    fetch.ends_within(SOON);
    until(LONG, "it has ended", || {
        pair.b.json("transfers")["transfers"]
            .as_array()
            .unwrap()
            .iter()
            .all(|transfer| transfer["state"] != "downloading")
    });
    let here = cached(&pair.b, "large");
    assert!(here < 64 * MIB as u64, "{here} bytes came");
}

#[test]
fn a_fetch_over_a_slow_link_shows_how_far_it_is_all_the_time() {
    let pair = pair();
    pair.a.write("large", noise(1, 6 * MIB));
    pair.a.publishes();
    until(SOON, "b sees it", || pair.b.has("large"));
    pair.a.host().limit("16mbit");
    // With a terminal of its own.
    let shown = pair
        .b
        .host()
        .sh(r#"script -qec "$P2PFS fetch mnt/large" /dev/null"#);
    let done = |line: &str| {
        line.split_once(" %  ")?
            .1
            .split_once(" MiB of 6.0")
            .map(|(done, _)| done.to_owned())
    };
    let mut steps: Vec<_> = shown.split('\r').filter_map(done).collect();
    steps.dedup();
    assert!(steps.len() >= 3, "{steps:?} of {shown:?}");
}

/// The store follows what came by 200 ms or 64 MiB, and its index by 500 ms: at 160 Mbit/s that is less than this.
const FORGOTTEN_MAX: u64 = 24 * MIB as u64;

#[test]
fn a_fetch_goes_on_where_a_killed_mount_stopped() {
    let pair = pair();
    let count = 24;
    pair.a.with("many", |path| fs::create_dir(path)).unwrap();
    for number in 0..count {
        pair.a
            .write(&format!("many/{number}"), noise(number, 4 * MIB));
    }
    pair.a.publishes_within(LONG);
    let all = count * 4 * MIB as u64;
    let last = format!("many/{}", count - 1);
    until(LONG, "b sees all", || pair.b.has(&last));
    pair.a.host().limit("160mbit");
    let path = pair.b.path("many").display().to_string();
    let fetch = pair.b.host().start_p2pfs(&format!("fetch {path}"));
    until(LONG, "half of it is here", || received(&pair.b) > all / 2);
    let came = received(&pair.b);
    pair.b.kill();
    drop(fetch);
    let again = pair.b.host().mount(&pair.id, "");
    again.meets(1);
    let report = told(&about(&again, "fetch --json", &["many"]));
    assert_eq!(report["failed_files"], 0, "{report}");
    assert_eq!(report["bytes"], all);
    let (already, brought) = (
        report["already_here_bytes"].as_u64().unwrap(),
        received(&again),
    );
    assert!(
        already + FORGOTTEN_MAX > came,
        "{already} of {came} bytes were kept"
    );
    // Besides the data there are proofs, 0.15 %, and what a hedge fetches twice.
    assert!(
        brought < all - already + 8 * MIB as u64,
        "{brought} bytes for {} that were missing",
        all - already
    );
    for number in 0..count {
        let read = again.read(&format!("many/{number}")).unwrap();
        assert_eq!(hash(&read), hash(&noise(number, 4 * MIB)));
    }
}

#[test]
fn why_tells_where_each_part_of_a_file_would_come_from() {
    let pair = pair();
    let bytes = noise(1, 4 * MIB);
    pair.a.write("file", &bytes);
    pair.a.publishes();
    until(SOON, "b sees it", || pair.b.has("file"));
    let c = pair.another("c", "");
    c.meets(2);
    until(SOON, "c sees it", || c.has("file"));
    assert_eq!(
        told(&about(&c, "fetch --json", &["file"]))["failed_files"],
        0
    );
    // The random reader gets the block and no more.
    pair.b.read_at("file", 2 * MIB as u64, 10).unwrap();
    pair.b.keeps("file", 10);
    // The last block comes behind, as the proof of the size.
    pair.b.ask("wait --idle --timeout 15s").ok();
    let report = told(&about(&pair.b, "why --json", &["file"]));
    assert_eq!(report["hash"], hash(&bytes));
    assert_eq!(
        (&report["path"], &report["size"]),
        (&"file".into(), &(4 * MIB).into())
    );
    let parts = report["parts"].as_array().unwrap();
    let (mut end, mut here) = (0, 0);
    for part in parts {
        assert_eq!(part["offset"], end, "parts have no gaps: {report}");
        let length = part["length"].as_u64().unwrap();
        end += length;
        let mut nodes: Vec<_> = part["peers"]
            .as_array()
            .unwrap()
            .iter()
            .map(|peer| peer["node"].as_str().unwrap())
            .collect();
        nodes.sort();
        if part["here"] == true {
            here += length;
            assert!(nodes.is_empty(), "{report}");
        } else {
            assert_eq!(nodes, ["a", "c"], "{report}");
        }
    }
    assert_eq!(end, 4 * MIB as u64);
    assert_eq!(here, cached(&pair.b, "file"));

    // Nobody else has what is gone with the others.
    pair.a.host().cut_off();
    c.unmount();
    eventually(LONG, "nobody has the rest", || {
        let said = about(&pair.b, "why", &["file"]);
        if said.ok().contains("  nobody") && said.ok().contains("  here") {
            Ok(())
        } else {
            Err(said.to_string())
        }
    });
    let none = about(&pair.b, "why", &["none"]);
    assert!(none.fails(1).contains("nothing is called /none"), "{none}");
    assert!(about(&pair.b, "why", &[""]).fails(1).contains("no file"));
}

#[test]
fn wait_returns_when_it_is_so_and_names_what_is_missing_when_time_is_up() {
    let pair = pair();
    pair.a.with("d", |path| fs::create_dir(path)).unwrap();
    pair.a.write("d/file", noise(1, MIB));
    // Published, then visible at the other one.
    about(&pair.a, "wait", &[]).ok();
    assert_eq!(pair.a.json("wait")["done"], true);
    about(&pair.b, "wait --published --timeout 15s", &["d/file"]).ok();
    let late = about(&pair.b, "wait --published --timeout 2s", &["d/none"]);
    let why = late.fails(1);
    assert!(why.contains("nothing is called \"d/none\""), "{why}");

    let late = about(&pair.b, "wait --copies 2 --timeout 5s", &["d"]);
    let why = late.fails(1);
    assert!(
        why.contains("\"d/file\" is whole at 1 of 2 members"),
        "{why}"
    );
    let path = pair.b.path("d").display().to_string();
    let mut waits = pair.a.host().start_p2pfs(&format!(
        "wait --copies 2 --idle --timeout 60s {}",
        pair.a.path("d").display()
    ));
    pair.b.host().p2pfs(&format!("fetch {path}")).ok();
    assert!(waits.ends_within(LONG).success(), "{}", waits.output());
    let report = pair.b.json("wait --copies 2");
    assert_eq!(
        (&report["done"], &report["missing"]),
        (&true.into(), &Value::Null)
    );

    // A file that is being written is not published.
    let file = pair
        .a
        .with("d/open", |path| fs::File::create(path))
        .unwrap();
    std::io::Write::write_all(&mut &file, b"half").unwrap();
    let late = about(&pair.a, "wait --json --timeout 2s", &["d"]);
    let report = told(&late);
    assert!(late.fails(1).contains("\"d\" is not published"), "{late}");
    assert_eq!(report["done"], false);
    drop(file);
    about(&pair.a, "wait --timeout 15s", &["d"]).ok();

    // Something that is being fetched.
    pair.a.write("large", noise(2, 32 * MIB));
    about(&pair.a, "wait", &[]).ok();
    about(&pair.b, "wait", &["large"]).ok();
    pair.a.host().limit("60mbit");
    let path = pair.b.path("large").display().to_string();
    let fetch = pair.b.host().start_p2pfs(&format!("fetch {path}"));
    until(SOON, "it is being fetched", || {
        let late = pair.b.ask("wait --idle --timeout 100ms");
        late.code() == Some(1) && late.stderr.contains("large")
    });
    pair.b.ask("wait --idle --timeout 60s").ok();
    pair.b.keeps("large", 32 * MIB as u64);
    drop(fetch);
}

fn state(mount: &Mount, path: &str) -> String {
    mount.attribute(path, "state").unwrap()
}

fn pinned_bytes(mount: &Mount) -> u64 {
    mount.status()["cache"]["pinned_bytes"].as_u64().unwrap()
}

/// Waits until these bytes are pinned, and here.
fn pins(mount: &Mount, bytes: usize) {
    eventually(LONG, "what is pinned is here", || {
        match pinned_bytes(mount) {
            pinned if pinned == bytes as u64 => Ok(()),
            pinned => Err(format!("{pinned} of {bytes} bytes")),
        }
    });
}

#[test]
fn what_is_pinned_comes_here_now_and_as_it_changes_across_a_restart_and_until_it_is_unpinned() {
    let pair = pair();
    pair.a
        .with("docs/deep", |path| fs::create_dir_all(path))
        .unwrap();
    pair.a.write("docs/one", noise(1, MIB));
    pair.a.write("docs/deep/two", noise(2, 2 * MIB));
    // The same content twice takes its bytes once.
    pair.a.write("docs/deep/again", noise(2, 2 * MIB));
    pair.a.write("beside", noise(3, MIB));
    pair.a.publishes();
    about(&pair.b, "wait", &["beside", "docs/deep/again"]).ok();
    assert_eq!(pair.b.ask("pin").ok(), "nothing is pinned");
    let none = about(&pair.b, "pin", &["docs", "none"]);
    assert!(none.fails(1).contains("nothing is called /none"), "{none}");

    let report = told(&about(&pair.b, "pin --json", &["docs"]));
    assert_eq!(report["pinned"], serde_json::json!(["docs"]));
    pins(&pair.b, 3 * MIB);
    assert_eq!(state(&pair.b, "docs/deep/two"), "pinned");
    assert_eq!(state(&pair.b, "beside"), "remote");

    // Changes: a new file, a changed one, one that is moved in and one that is moved away.
    pair.a.write("docs/deep/three", noise(4, 3 * MIB));
    pair.a.write("docs/one", noise(5, MIB / 2));
    pair.a
        .with("beside", |path| {
            fs::rename(path, pair.a.path("docs/beside"))
        })
        .unwrap();
    pair.a
        .with("docs/deep/again", |path| fs::remove_file(path))
        .unwrap();
    pins(&pair.b, 2 * MIB + 3 * MIB + MIB / 2 + MIB);
    pair.b.ask("wait --idle --timeout 30s").ok();
    assert_eq!(state(&pair.b, "docs/beside"), "pinned");

    // It is not forgotten, and what came meanwhile is brought.
    pair.b.unmount();
    pair.a.write("docs/four", noise(6, MIB));
    pair.a.publishes();
    let again = pair.b.host().mount(&pair.id, "");
    assert_eq!(again.ask("pin").ok(), "docs");
    pins(&again, 2 * MIB + 3 * MIB + MIB / 2 + MIB + MIB);

    let inside = about(&again, "unpin", &["docs/four"]);
    assert!(
        inside
            .fails(1)
            .contains("is not pinned itself: it is inside")
    );
    // Of two pins, the outer one goes.
    about(&again, "pin", &["docs/deep"]).ok();
    about(&again, "unpin", &["docs"]).ok();
    pins(&again, 5 * MIB);
    assert_eq!(state(&again, "docs/four"), "cached");
    assert_eq!(state(&again, "docs/deep/three"), "pinned");
    about(&again, "unpin", &["docs/deep"]).ok();
    pins(&again, 0);
}

#[test]
fn a_mount_that_keeps_all_holds_a_copy_of_everything_and_says_so() {
    let pair = pair();
    pair.a.write("before", noise(1, MIB));
    let c = pair.another("c", "--keep-all");
    c.meets(2);
    pair.a.write("after", noise(2, MIB));
    about(&pair.a, "wait --copies 2 --timeout 20s", &[""]).ok();
    pins(&c, 2 * MIB);
    assert_eq!(state(&c, "after"), "pinned");
    assert!(c.ask("pin").ok().contains("--keep-all"));
    let peers = pair.a.json("peers");
    for peer in peers.as_array().unwrap() {
        assert_eq!(peer["keeps_all"], peer["node"] == "c", "{peers}");
    }
    pair.a.host().cut_off();
    pair.b.shows("after", noise(2, MIB));
}

#[test]
fn evict_frees_what_another_member_promised_to_keep_and_nothing_else() {
    let pair = pair();
    pair.a.with("d", |path| fs::create_dir(path)).unwrap();
    pair.a.write("d/large", noise(1, 3 * MIB));
    pair.a.write("d/small", noise(2, 1000));
    pair.a.write("pinned", noise(3, MIB));
    pair.a.publishes();
    // The author's copy is the only one.
    let report = told(&about(&pair.a, "evict --json", &[""]));
    assert_eq!(
        (&report["freed_files"], &report["kept_files"]),
        (&0.into(), &3.into())
    );
    for kept in report["kept"].as_array().unwrap() {
        assert_eq!(kept["reason"], "no other member promised to keep it");
    }
    about(&pair.b, "wait", &["pinned"]).ok();
    about(&pair.b, "fetch", &[""]).ok();
    about(&pair.a, "pin", &["pinned"]).ok();
    let report = told(&about(&pair.a, "evict --json", &["d", "pinned"]));
    assert_eq!(report["freed_files"], 2, "{report}");
    assert_eq!(report["freed_bytes"], 3 * MIB + 1000);
    assert_eq!(report["kept_files"], 1);
    let reasons: Vec<_> = report["kept"]
        .as_array()
        .unwrap()
        .iter()
        .map(|kept| {
            (
                kept["path"].as_str().unwrap(),
                kept["reason"].as_str().unwrap(),
            )
        })
        .collect();
    assert_eq!(reasons, [("pinned", "it is pinned")]);
    assert_eq!(state(&pair.a, "d/large"), "remote");

    // The promise holds, after a restart too; and it is not passed on.
    pair.b.unmount();
    let b = pair.b.host().mount(&pair.id, "");
    b.meets(1);
    let report = told(&about(&b, "evict --json", &["d"]));
    assert_eq!(report["freed_files"], 0, "{report}");
    assert_eq!(
        report["kept"][0]["reason"],
        "another member was promised that it stays here"
    );
    // What is gone comes again when it is read.
    pair.a.meets(1);
    pair.a.shows("d/large", noise(1, 3 * MIB));
    pair.a.shows("d/small", noise(2, 1000));
}

#[test]
fn two_members_that_evict_the_same_thing_at_once_do_not_both_succeed() {
    let pair = pair();
    for round in 0..6 {
        let name = format!("file{round}");
        pair.a.write(&name, noise(round, MIB));
        pair.a.publishes();
        about(&pair.b, "wait", &[&name]).ok();
        about(&pair.b, "fetch", &[&name]).ok();
        let mut running = [&pair.a, &pair.b].map(|mount| {
            let path = mount.path(&name).display().to_string();
            mount.host().start_p2pfs(&format!("evict {path}"))
        });
        for evict in &mut running {
            assert!(evict.ends_within(LONG).success(), "{}", evict.output());
        }
        let copies = [&pair.a, &pair.b].map(|mount| cached(mount, &name));
        assert!(copies.contains(&(MIB as u64)), "round {round}: {copies:?}");
        for mount in [&pair.a, &pair.b] {
            mount.shows(&name, noise(round, MIB));
        }
    }
}

#[test]
fn a_link_to_the_folder_of_a_mount_is_followed_outside_of_it_and_not_in_it() {
    let pair = pair();
    pair.a.write("file", noise(1, MIB));
    pair.a.publishes();
    pair.b.shows("file", noise(1, MIB));
    pair.b
        .with("", |root| std::os::unix::fs::symlink(".", root.join("up")))
        .unwrap();
    let host = pair.b.host();
    host.sh("ln -s mnt link");
    let report = |path: &str| told(&host.p2pfs(&format!("evict --json {path}")));
    assert_eq!(report("mnt/up")["files"], 0);
    assert_eq!(report("link/up")["files"], 0);
    assert_eq!(report("link")["freed_files"], 1);
}

#[test]
fn find_tells_nothing_found_from_nothing_known() {
    let lab = Lab::new();
    let (a, b) = (lab.host("a"), lab.host("b"));
    let (id, _) = a.create("");
    let a = a.mount("c", "");
    let found = a.ask("find none");
    assert_eq!(found.code(), Some(1));
    assert_eq!(found.stderr, "Nothing in the cluster is called \"none\".\n");
    let b = b.mount(&id, "");
    let said = b.ask("find none").fails(1).to_owned();
    assert!(said.contains("no state of the cluster"), "{said}");
}

#[test]
fn a_command_for_something_in_a_dead_mount_says_so_and_how_to_clear_it() {
    let lab = Lab::new();
    let host = lab.host("a");
    host.create("");
    let mount = host.mount("c", "");
    host.sh("mkdir mnt/d && echo x > mnt/d/f");
    mount.kill();
    let hint = format!("p2pfs unmount {}/mnt;", host.dir().display());
    for words in [
        "fetch mnt/d/f",
        "why mnt/d/f",
        "status -C mnt/d/f",
        "wait -C mnt",
    ] {
        let finished = host.p2pfs(words);
        let said = finished.to_string();
        assert!(
            said.contains("the process behind the mount is gone"),
            "{words}: {said}"
        );
        assert!(said.contains(&hint), "{words}: {said}");
    }
    host.p2pfs("unmount mnt").ok();
}

#[test]
fn a_machine_without_any_network_mounts_all_the_same() {
    let lab = Lab::new();
    let host = lab.host("a");
    for link in ["eth0", "lo"] {
        host.sh(&format!(
            "ip link set {link} down && ip addr flush dev {link}"
        ));
    }
    host.create("");
    let begun = Instant::now();
    let mount = host.mount("c", "");
    println!("mounted after {:?}", begun.elapsed());
    mount.write("f", b"x");
    mount.shows("f", b"x");
}
