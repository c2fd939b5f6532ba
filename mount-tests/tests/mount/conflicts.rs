//! Files changed on two sides at once: shown, counted, listed, announced and ended, the same on both.

use std::{fs, io::Write, time::Duration};

use p2pfs_mount_tests::{Finished, LONG, Mount, Process, SOON, eventually, hash, until};
use serde_json::Value;

use super::{Pair, pair};

/// Works on both sides while the line is cut, heals it, and waits until both show one state.
fn apart(pair: &Pair, work: impl FnOnce(&Mount, &Mount)) {
    pair.b.host().cut_off();
    work(&pair.a, &pair.b);
    pair.a.publishes();
    pair.b.publishes();
    pair.b.host().reconnect();
    settled(pair);
}

/// Waits until both show one state with nothing unpublished.
fn settled(pair: &Pair) {
    eventually(LONG, "both show one state", || {
        let states = [&pair.a, &pair.b].map(|mount| mount.status()["manifest"].clone());
        let same = states[0]["hash"] == states[1]["hash"];
        if same && states.iter().all(|state| state["unpublished"] == 0) {
            Ok(())
        } else {
            Err(format!("{} and {}", states[0], states[1]))
        }
    });
}

fn conflicts(mount: &Mount) -> Vec<Value> {
    let report = mount.json("conflicts");
    assert_eq!(report["more"], false, "{report}");
    let listed = report["conflicts"].as_array().unwrap().clone();
    assert_eq!(report["total"], listed.len(), "{report}");
    assert_eq!(mount.status()["manifest"]["conflicts"], listed.len());
    listed
}

/// The one conflict there is, which both sides must tell alike but for what they wrote themselves.
fn the_conflict(pair: &Pair) -> Value {
    let mut told = [&pair.a, &pair.b].map(|mount| {
        let mut listed = conflicts(mount);
        assert_eq!(listed.len(), 1, "{listed:?}");
        let conflict = listed.remove(0);
        let own = mount.host().name();
        for version in versions(&conflict) {
            assert_eq!(version["here"], version["node"] == own, "{conflict}");
        }
        conflict
    });
    for conflict in &mut told {
        conflict["shown"]["here"] = Value::Null;
        for copy in conflict["copies"].as_array_mut().unwrap() {
            copy["here"] = Value::Null;
        }
    }
    assert_eq!(told[0], told[1]);
    told[0].clone()
}

fn versions(conflict: &Value) -> Vec<&Value> {
    let copies = conflict["copies"].as_array().unwrap().iter();
    std::iter::once(&conflict["shown"]).chain(copies).collect()
}

fn text(value: &Value) -> &str {
    value
        .as_str()
        .unwrap_or_else(|| panic!("{value} is a text"))
}

/// `p2pfs events` of a mount, which follows by the time this returns.
fn events(mount: &Mount) -> Process {
    let events = mount
        .host()
        .start_p2pfs(&format!("events -C {}", mount.dir().display()));
    events.says("\"event\":\"following\"");
    events
}

/// Events of a kind so far. Every line must be an object that says when, and what.
fn told(events: &Process, kind: &str) -> Vec<Value> {
    let output = events.output();
    // The last line may be half written.
    let whole = output.rfind('\n').map_or("", |end| &output[..end]);
    let lines = whole.lines().filter(|line| line.starts_with('{'));
    let parsed = lines.map(|line| serde_json::from_str::<Value>(line).unwrap());
    parsed
        .inspect(|event| {
            assert!(
                event["at_s"].is_f64() && event["event"].is_string(),
                "{event}"
            )
        })
        .filter(|event| event["event"] == kind)
        .collect()
}

/// Waits for an event of a kind that fits.
fn tells(events: &Process, kind: &str, fits: impl Fn(&Value) -> bool) -> Value {
    eventually(LONG, &format!("{kind} is told"), || {
        let mut told = told(events, kind);
        let index = told.iter().position(&fits);
        index
            .map(|index| told.swap_remove(index))
            .ok_or_else(|| events.output())
    })
}

fn resolve(mount: &Mount, path: &str, keep: &str) -> Finished {
    let path = mount.path(path).display().to_string();
    mount
        .host()
        .p2pfs_with(&["conflicts", "resolve", &path, "--keep", keep])
}

#[test]
fn both_sides_show_count_list_and_announce_a_conflict_alike_and_one_ends_it_for_both() {
    let pair = pair();
    pair.a.with("docs", |path| fs::create_dir(path)).unwrap();
    pair.a.write("docs/report.txt", "before");
    pair.b.shows("docs/report.txt", "before");
    assert_eq!(pair.a.ask("conflicts").ok(), "no conflicts");
    let missing = pair.a.host().p2pfs("conflicts mnt/missing");
    assert!(
        missing.fails(1).contains("no such file or folder"),
        "{missing}"
    );
    let (told_a, told_b) = (events(&pair.a), events(&pair.b));
    apart(&pair, |a, b| {
        a.write("docs/report.txt", "of a");
        a.publishes();
        // Time decides, and this is later.
        b.write("docs/report.txt", "of b, and longer");
    });
    let conflict = the_conflict(&pair);
    assert_eq!(conflict["path"], "docs/report.txt");
    let (shown, copy) = (&conflict["shown"], &conflict["copies"][0]);
    assert_eq!((&shown["node"], &copy["node"]), (&"b".into(), &"a".into()));
    assert_eq!((&shown["size"], &copy["size"]), (&16.into(), &4.into()));
    assert_eq!(shown["hash"], hash("of b, and longer".as_bytes()));
    assert_eq!(copy["hash"], hash("of a".as_bytes()));
    assert!(
        shown["time_s"].as_f64() > copy["time_s"].as_f64(),
        "{conflict}"
    );
    let copy_path = text(&copy["path"]).to_owned();
    assert!(
        copy_path.starts_with("docs/report (conflict, a, ") && copy_path.ends_with(").txt"),
        "{copy_path}"
    );
    for mount in [&pair.a, &pair.b] {
        mount.shows("docs/report.txt", "of b, and longer");
        mount.shows(&copy_path, "of a");
        let listed = mount.ask("conflicts");
        for told in [
            "docs/report.txt",
            "shown  b",
            "copy   a",
            text(&copy["hash"]),
        ] {
            assert!(listed.ok().contains(told), "{listed}");
        }
    }

    // The side that lost is told so, the other that there is a conflict.
    let lost = tells(&told_a, "conflict", |event| event["lost_here"] == true);
    assert_eq!(lost["path"], "docs/report.txt");
    assert_eq!(lost["copies"][0]["path"], copy_path.as_str());
    assert_eq!(lost["copies"][0]["here"], true);
    let won = tells(&told_b, "conflict", |event| {
        event["path"] == "docs/report.txt"
    });
    assert_eq!(won["lost_here"], false, "{won}");
    assert!(told(&told_a, "conflict").len() == 1 && told(&told_b, "conflict").len() == 1);

    // Only what is below a path, and only so many.
    let of = |words: &str| pair.a.json(&format!("conflicts {words}"))["conflicts"].clone();
    let inside = pair.a.path("docs").display().to_string();
    assert_eq!(of(&inside).as_array().unwrap().len(), 1);
    assert_eq!(of("docs/report.txt").as_array().unwrap().len(), 1);
    assert_eq!(of("elsewhere"), Value::Array(Vec::new()));

    // By the path of a copy, and by the node's name: the version that was not shown.
    let ended = resolve(&pair.a, &copy_path, "a");
    let lines: Vec<_> = ended.ok().lines().collect();
    assert_eq!(lines.len(), 2, "{ended}");
    assert!(
        lines[0].contains("kept") && lines[0].contains(text(&copy["hash"])),
        "{ended}"
    );
    assert!(
        lines[1].contains("dropped") && lines[1].contains(text(&shown["hash"])),
        "{ended}"
    );
    for mount in [&pair.a, &pair.b] {
        mount.shows("docs/report.txt", "of a");
        mount.lacks(&copy_path);
        assert_eq!(mount.list("docs").unwrap(), ["report.txt"]);
    }
    settled(&pair);
    for (mount, told) in [(&pair.a, &told_a), (&pair.b, &told_b)] {
        assert!(conflicts(mount).is_empty());
        tells(told, "settled", |event| event["path"] == "docs/report.txt");
    }
}

#[test]
fn each_way_of_naming_a_version_keeps_it_and_the_ends_of_two_conflicts_meet() {
    let pair = pair();
    for name in ["by-hash", "by-name", "shown", "both"] {
        pair.a.write(name, "before");
        pair.b.shows(name, "before");
    }
    apart(&pair, |a, b| {
        for name in ["by-hash", "by-name", "shown", "both"] {
            a.write(name, format!("{name} of a"));
            a.publishes();
            b.write(name, format!("{name} of b"));
        }
    });
    let listed = conflicts(&pair.a);
    assert_eq!(listed.len(), 4);
    let copy_of = |name: &str| {
        let conflict = listed.iter().find(|conflict| conflict["path"] == name);
        conflict.unwrap()["copies"][0].clone()
    };
    let limited = pair.a.json("conflicts --limit 3");
    assert_eq!(limited["conflicts"].as_array().unwrap().len(), 3);
    assert_eq!(
        (&limited["more"], &limited["total"]),
        (&true.into(), &4.into())
    );
    assert!(
        pair.a
            .ask("conflicts --limit 3")
            .stderr
            .contains("--limit 0")
    );

    let by_hash = copy_of("by-hash");
    resolve(&pair.a, "by-hash", &text(&by_hash["hash"])[..8]).ok();
    resolve(&pair.a, "by-name", text(&copy_of("by-name")["path"])).ok();
    resolve(&pair.b, "shown", "shown").ok();
    // Both end the same one, in the same way, before they know of each other: that is no new conflict.
    pair.b.host().cut_off();
    resolve(&pair.a, "both", "a").ok();
    resolve(&pair.b, "both", "a").ok();
    pair.b.host().reconnect();
    for mount in [&pair.a, &pair.b] {
        mount.shows_within(LONG, "both", "both of a");
        mount.shows("by-hash", "by-hash of a");
        mount.shows("by-name", "by-name of a");
        mount.shows("shown", "shown of b");
        until(LONG, "nothing is in conflict", || {
            mount.status()["manifest"]["conflicts"] == 0
        });
        assert_eq!(
            mount.list("").unwrap(),
            ["both", "by-hash", "by-name", "shown"]
        );
    }
}

#[test]
fn equal_contents_are_no_conflict() {
    let pair = pair();
    let told_a = events(&pair.a);
    apart(&pair, |a, b| {
        a.write("same", "the same");
        b.write("same", "the same");
        b.write("last", "x");
    });
    for mount in [&pair.a, &pair.b] {
        mount.shows("last", "x");
        mount.shows("same", "the same");
        assert!(conflicts(mount).is_empty());
        assert_eq!(mount.list("").unwrap(), ["last", "same"]);
    }
    tells(&told_a, "changed", |event| {
        let changes = event["changes"].as_array().unwrap();
        changes.iter().any(|change| {
            change["path"] == "last" && change["change"] == "created" && change["node"] == "b"
        })
    });
    assert!(told(&told_a, "conflict").is_empty());
}

#[test]
fn a_folder_keeps_the_name_beside_a_file_which_can_take_it_only_when_the_folder_is_empty() {
    let pair = pair();
    apart(&pair, |a, b| {
        a.with("both", |path| fs::create_dir(path)).unwrap();
        a.write("both/inside", "x");
        b.write("both", "a file");
    });
    let conflict = the_conflict(&pair);
    assert_eq!(conflict["shown"]["kind"], "directory");
    assert_eq!(conflict["copies"][0]["kind"], "file");
    let copy = text(&conflict["copies"][0]["path"]).to_owned();
    for mount in [&pair.a, &pair.b] {
        mount.shows("both/inside", "x");
        mount.shows(&copy, "a file");
    }
    let refused = resolve(&pair.b, "both", "b");
    assert!(
        refused.fails(1).contains("has something in it"),
        "{refused}"
    );
    pair.b
        .with("both/inside", |path| fs::remove_file(path))
        .unwrap();
    resolve(&pair.b, "both", "b").ok();
    for mount in [&pair.a, &pair.b] {
        mount.shows("both", "a file");
        mount.lacks(&copy);
    }
    settled(&pair);
    assert!(conflicts(&pair.a).is_empty() && conflicts(&pair.b).is_empty());
}

#[test]
fn removing_a_copy_ends_the_conflict_too() {
    let pair = pair();
    apart(&pair, |a, b| {
        a.write("x", "of a");
        a.publishes();
        b.write("x", "of b");
    });
    let copy = text(&the_conflict(&pair)["copies"][0]["path"]).to_owned();
    let told_b = events(&pair.b);
    pair.a.with(&copy, |path| fs::remove_file(path)).unwrap();
    for mount in [&pair.a, &pair.b] {
        mount.lacks(&copy);
        mount.shows("x", "of b");
        until(SOON, "nothing is in conflict", || {
            mount.status()["manifest"]["conflicts"] == 0
        });
        assert!(conflicts(mount).is_empty());
    }
    tells(&told_b, "settled", |event| event["path"] == "x");
}

#[test]
fn what_makes_no_sense_or_cannot_be_done_says_so() {
    let pair = pair();
    let reader = pair.lab.host("r").mount(&pair.read_only, "");
    apart(&pair, |a, b| {
        a.write("x", "of a");
        a.write("plain", "no conflict");
        a.publishes();
        b.write("x", "of b");
    });
    until(LONG, "the reader sees the conflict", || {
        reader.status()["manifest"]["conflicts"] == 1
    });
    assert_eq!(conflicts(&reader).len(), 1);
    let a = &pair.a;
    // The command line was wrong: the versions that there are, are named.
    let unknown = resolve(a, "x", "nobody");
    for told in [
        "\"nobody\" names no version",
        "shown (b, ",
        "(a, ",
        "x (conflict, a, ",
    ] {
        assert!(unknown.fails(2).contains(told), "{unknown}");
    }
    let x = a.path("x").display().to_string();
    for wrong in [
        "conflicts resolve".to_owned(),
        format!("conflicts resolve {x}"),
        format!("conflicts {x} resolve {x} --keep shown"),
        format!(
            "conflicts resolve {x} --keep shown -C {}",
            pair.b.dir().display()
        ),
        "conflicts --limit many".to_owned(),
        "events x".to_owned(),
    ] {
        let words: Vec<_> = wrong.split(' ').collect();
        assert_eq!(a.host().p2pfs_with(&words).code(), Some(2), "{wrong}");
    }
    // It failed.
    for none in ["plain", "nothing", ""] {
        let refused = resolve(a, none, "shown");
        assert!(
            refused.fails(1).contains("no conflict is there"),
            "{refused}"
        );
    }
    let outside = a
        .host()
        .p2pfs("conflicts resolve /etc/hostname --keep shown");
    assert!(
        outside.fails(1).contains("not inside a p2pfs mount"),
        "{outside}"
    );
    let refused = resolve(&reader, "x", "shown");
    assert!(refused.fails(1).contains("read-only"), "{refused}");
    assert_eq!(conflicts(a).len(), 1);
}

#[test]
fn events_tell_what_happens_and_end_with_reader_signal_and_mount() {
    let pair = pair();
    // What the first state brings to a member that knows nothing is not told one by one.
    pair.a.write("first", "x");
    pair.b.shows("first", "x");
    let (mut told_a, mut told_b) = (events(&pair.a), events(&pair.b));
    pair.a.write("odd \u{9b}31m\u{202e}\u{1b}name", "x");
    let published = tells(&told_a, "published", |event| {
        !event["changes"].as_array().unwrap().is_empty()
    });
    assert_eq!(published["changes"][0]["node"], "a", "{published}");
    assert_eq!(published["all"], false, "{published}");
    tells(&told_b, "changed", |event| {
        event["changes"][0]["change"] == "created"
    });
    // A name can't steer the terminal that shows it, and yet is told in full.
    let change = &published["changes"][0];
    assert_eq!(change["path"], "odd \u{9b}31m\u{202e}\u{1b}name");
    let raw = told_a.output() + &told_b.output();
    assert!(
        !raw.replace('\n', "")
            .chars()
            .any(|c| c.is_control() || c == '\u{202e}'),
        "{raw:?}"
    );

    pair.a.write("data", vec![7; 300_000]);
    pair.b.shows("data", vec![7; 300_000]);
    let transfer = tells(&told_b, "transfer", |event| {
        event["path"]
            .as_str()
            .is_some_and(|path| path.ends_with("data"))
    });
    assert_eq!(transfer["state"], "finished", "{transfer}");
    assert_eq!(transfer["total_bytes"], 300_000);
    pair.a.with("data", |path| fs::remove_file(path)).unwrap();
    tells(&told_b, "changed", |event| {
        event["changes"][0]["change"] == "removed"
    });

    // Its reader ends: so does it, without waiting for another event.
    let script = format!("$P2PFS events -C {} | head -n 1", pair.a.dir().display());
    let piped = pair.a.host().try_sh(&script);
    assert!(piped.ok().contains("following"), "{piped}");
    assert!(piped.took < Duration::from_secs(30), "{piped}");
    // What is remembered can be had later.
    let recent = format!(
        "$P2PFS events --recent -C {} | grep -m 1 removed",
        pair.b.dir().display()
    );
    pair.b.host().sh(&recent);
    // Ctrl-C is a clean end; that of the mount is none.
    told_a.signal(rustix::process::Signal::INT);
    assert_eq!(told_a.ends_within(SOON).code(), Some(0));
    pair.a.unmount();
    tells(&told_b, "peer-down", |event| event["node"] == "a");
    pair.b.unmount();
    assert_eq!(told_b.ends_within(SOON).code(), Some(1));
    let output = told_b.output();
    let mut last = output.lines().rev();
    assert!(
        last.next()
            .unwrap()
            .starts_with("p2pfs: the events are at their end"),
        "{output}"
    );
    assert!(
        last.next().unwrap().contains("\"event\":\"ended\""),
        "{output}"
    );
}

/// Who goes on writing has not seen it: it must not move, go or be replaced along with the file.
#[test]
fn a_change_of_somebody_else_outlives_what_is_done_to_the_name_of_a_file_that_is_being_written() {
    let pair = pair();
    let cases: [(&str, &str); 6] = [
        ("rename", "mv d/b d/c"),
        ("over", "mv d/b d/o"),
        ("folder", "mv d e"),
        ("unlink", "rm d/b"),
        ("save", "echo new > d/t && mv d/t d/b"),
        ("none", "true"),
    ];
    for (case, _) in cases {
        fs::create_dir_all(pair.a.path(&format!("{case}/d"))).unwrap();
        pair.a.write(&format!("{case}/d/b"), "base");
        pair.a.write(&format!("{case}/d/o"), "other");
    }
    pair.b.shows("none/d/o", "other");
    let open = cases.map(|(case, _)| {
        pair.b.with(&format!("{case}/d/b"), |path| {
            let mut file = fs::OpenOptions::new().append(true).open(path).unwrap();
            file.write_all(b", written here").unwrap();
            file
        })
    });
    for (case, _) in cases {
        let append = |path: &std::path::Path| {
            let mut file = fs::OpenOptions::new().append(true).open(path).unwrap();
            file.write_all(b", and there").unwrap();
        };
        pair.a.with(&format!("{case}/d/b"), append);
    }
    pair.a.publishes();
    pair.a.write("heard", "of");
    pair.b.shows("heard", "of");
    for (case, command) in cases {
        let at = pair.b.path(case);
        pair.b
            .host()
            .sh(&format!("cd {} && {command}", at.display()));
    }
    drop(open);
    pair.b.publishes();
    settled(&pair);
    for mount in [&pair.a, &pair.b] {
        for (case, _) in cases {
            let contents = |wanted: &str| {
                let script = format!("cat {}/*/*", mount.path(case).display());
                mount.host().sh(&script).contains(wanted)
            };
            until(LONG, case, || contents("base, and there"));
            let is_removed = ["unlink", "save"].contains(&case);
            assert_eq!(contents("base, written here"), !is_removed, "{case}");
        }
    }
}

#[test]
fn a_file_with_several_names_in_conflict_is_counted_listed_announced_and_ended_like_others() {
    let pair = pair();
    pair.a.write("doc.txt", "before");
    pair.a
        .with("", |dir| {
            fs::hard_link(dir.join("doc.txt"), dir.join("same"))
        })
        .unwrap();
    pair.b.shows("same", "before");
    pair.b.shows("doc.txt", "before");
    let told = events(&pair.a);
    let write_apart = || {
        apart(&pair, |a, b| {
            a.write("doc.txt", "of a");
            a.publishes();
            // Time decides, and this is later.
            b.write("same", "of b, and longer");
        });
    };
    write_apart();
    let conflict = the_conflict(&pair);
    let (shown, copy) = (&conflict["shown"], &conflict["copies"][0]);
    assert_eq!((&shown["node"], &copy["node"]), (&"b".into(), &"a".into()));
    assert_eq!(shown["hash"], hash("of b, and longer".as_bytes()));
    assert_eq!(copy["hash"], hash("of a".as_bytes()));
    let copy_path = text(&copy["path"]).to_owned();
    assert!(copy_path.contains(" (conflict, a, "), "{copy_path}");
    for mount in [&pair.a, &pair.b] {
        for name in ["doc.txt", "same"] {
            mount.shows(name, "of b, and longer");
        }
        mount.shows(&copy_path, "of a");
    }
    let lost = tells(&told, "conflict", |event| event["lost_here"] == true);
    assert_eq!(lost["copies"][0]["path"], copy_path.as_str());
    // What is kept is the file, under all of its names.
    resolve(&pair.a, &copy_path, "a").ok();
    for mount in [&pair.a, &pair.b] {
        for name in ["doc.txt", "same"] {
            mount.shows(name, "of a");
        }
        mount.lacks(&copy_path);
    }
    settled(&pair);
    assert!(conflicts(&pair.b).is_empty());
    write_apart();
    let path = text(&the_conflict(&pair)["path"]).to_owned();
    resolve(&pair.b, &path, "shown").ok();
    settled(&pair);
    for mount in [&pair.a, &pair.b] {
        assert!(conflicts(mount).is_empty());
        assert_eq!(mount.list("").unwrap(), ["doc.txt", "same"]);
        for name in ["doc.txt", "same"] {
            mount.shows(name, "of b, and longer");
        }
    }
}

#[test]
fn whoever_removes_or_renames_the_version_that_is_shown_sees_the_other_one_in_its_place() {
    let pair = pair();
    for (name, to) in [
        ("removed", None),
        ("looked-at", None),
        ("renamed", Some("elsewhere")),
    ] {
        apart(&pair, |a, b| {
            a.write(name, "of a");
            b.write(name, "of b");
        });
        let b = &pair.b;
        let look = || {
            for name in b.list("").unwrap() {
                let _ = b.read(&name);
            }
        };
        look();
        let shown = b.read(name).unwrap();
        let other = if shown == b"of a" { "of b" } else { "of a" };
        b.with(name, |path| match to {
            Some(to) => fs::rename(path, path.with_file_name(to)).unwrap(),
            None => fs::remove_file(path).unwrap(),
        });
        if name != "removed" {
            look();
        }
        settled(&pair);
        for mount in [&pair.a, b] {
            mount.shows(name, other);
            until(SOON, "the copy has its old name no more", || {
                let names = mount.list("").unwrap();
                names.iter().all(|name| !name.contains("conflict"))
            });
        }
    }
}
