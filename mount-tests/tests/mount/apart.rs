//! Peers that were alone or away: what they did is kept, and what they missed is little.

use std::{fs, os::unix::fs::MetadataExt};

use p2pfs_mount_tests::{LONG, Lab, Mount, eventually, until};

/// Every file with its content, and every empty folder.
fn contents(mount: &Mount) -> Result<Vec<(String, String)>, String> {
    let mut found = Vec::new();
    for (path, item) in mount.tree().map_err(|error| error.to_string())? {
        if let p2pfs_mount_tests::Item::File { .. } = item {
            let text = mount.read(&path).map_err(|error| error.to_string())?;
            found.push((path, String::from_utf8_lossy(&text).into_owned()));
        }
    }
    Ok(found)
}

#[test]
fn what_two_did_without_any_peer_or_tracker_is_merged_both_ways_when_they_meet() {
    let lab = Lab::new();
    let (a, b) = (lab.host("a"), lab.host("b"));
    let (id, _) = a.create("");
    let first = a.mount("c", "");
    first.with("", |root| {
        fs::create_dir(root.join("docs")).unwrap();
        fs::create_dir(root.join("pictures")).unwrap();
        for name in [
            "kept",
            "edited by a",
            "edited by b",
            "removed by a",
            "removed by b",
            "contested",
            "docs/one",
            "docs/two",
            "pictures/one",
        ] {
            fs::write(root.join(name), "first").unwrap();
        }
    });
    let second = b.mount(&id, &format!("--peer {}", first.multiaddr()));
    until(LONG, "the other one knows everything", || {
        contents(&second).is_ok_and(|there| there.len() == 9)
    });
    first.unmount();
    second.unmount();
    a.cut_off();

    // Each alone, from the moment it is mounted. What they do survives an unmount, too.
    let alone = a.mount("c", "");
    alone.with("", |root| {
        fs::write(root.join("edited by a"), "second").unwrap();
        fs::write(root.join("contested"), "by a").unwrap();
        fs::write(root.join("new by a"), "new").unwrap();
        fs::remove_file(root.join("removed by a")).unwrap();
        fs::rename(root.join("pictures"), root.join("photographs")).unwrap();
        fs::rename(root.join("docs/one"), root.join("docs/three")).unwrap();
    });
    alone.unmount();
    let alone = b.mount(&id, "");
    assert_eq!(alone.read("edited by a").unwrap(), b"first");
    alone.with("", |root| {
        fs::write(root.join("edited by b"), "second").unwrap();
        fs::write(root.join("contested"), "by b").unwrap();
        fs::create_dir(root.join("more")).unwrap();
        fs::write(root.join("more/new by b"), "new").unwrap();
        fs::remove_file(root.join("removed by b")).unwrap();
        fs::remove_file(root.join("docs/two")).unwrap();
    });
    alone.unmount();

    let mounts = [a.mount("c", ""), b.mount(&id, "")];
    a.reconnect();
    let common = [
        ("docs/three", "first"),
        ("edited by a", "second"),
        ("edited by b", "second"),
        ("kept", "first"),
        ("more/new by b", "new"),
        ("new by a", "new"),
        ("photographs/one", "first"),
    ];
    let mut states = Vec::new();
    for mount in &mounts {
        states.push(eventually(LONG, "all of both is there", || {
            let there = contents(mount)?;
            let (contested, rest): (Vec<_>, Vec<_>) = there
                .iter()
                .cloned()
                .partition(|(name, _)| name.starts_with("contested"));
            let mut texts: Vec<_> = contested.iter().map(|(_, text)| text.as_str()).collect();
            texts.sort_unstable();
            let rest: Vec<_> = rest
                .iter()
                .map(|(name, text)| (name.as_str(), text.as_str()))
                .collect();
            if rest == common && texts == ["by a", "by b"] {
                Ok(there)
            } else {
                Err(format!("{there:?}"))
            }
        }));
    }
    assert_eq!(states[0], states[1]);
    until(LONG, "they agree", || {
        mounts[0].status()["manifest"]["hash"] == mounts[1].status()["manifest"]["hash"]
    });
    for mount in mounts {
        mount.lacks("pictures");
    }
}

#[test]
fn a_peer_that_was_away_fetches_only_what_changed() {
    const FOLDERS: usize = 10;
    const FILES: usize = 500;
    const KIB: u64 = 1024;
    let lab = Lab::new();
    let (a, b) = (lab.host("a"), lab.host("b"));
    let (id, _) = a.create("");
    let a = a.mount("c", "");
    a.with_within(LONG, "", |root| {
        for folder in 0..FOLDERS {
            let folder = root.join(folder.to_string());
            fs::create_dir(&folder).unwrap();
            (0..FILES).for_each(|file| {
                fs::write(folder.join(format!("{file:03}")), file.to_string()).unwrap()
            });
        }
    });
    a.publishes_within(LONG);
    let away = b.mount(&id, &format!("--peer {}", a.multiaddr()));
    until(LONG, "it has seen everything", || {
        away.paths()
            .is_ok_and(|paths| paths.len() == FOLDERS * (1 + FILES))
    });
    let received = |mount: &Mount| {
        mount.status()["network"]["manifest_bytes_received"]
            .as_u64()
            .unwrap()
    };
    let all = received(&away);
    away.unmount();

    let changed = ["2/100", "5/250", "8/400"];
    changed
        .iter()
        .for_each(|path| a.write(path, "changed while the other one was away"));
    a.publishes();
    let b = b.mount(&id, "");
    for path in changed {
        until(LONG, "the change is seen", || {
            b.with(path, |path| fs::metadata(path).unwrap().size()) == 36
        });
    }
    until(LONG, "they agree", || {
        a.status()["manifest"]["hash"] == b.status()["manifest"]["hash"]
    });
    assert_eq!(b.paths().unwrap().len(), FOLDERS * (1 + FILES));
    let missed = received(&b);
    println!(
        "everything: {all} bytes; three changed files of {}: {missed} bytes",
        FOLDERS * FILES
    );
    // The nodes on three paths. One folder of 500 files takes more than 32 KiB: the three that changed would be too much.
    assert!(all > 320 * KIB, "{all} bytes for everything");
    assert!(missed < 80 * KIB, "{missed} bytes for three files");
}
