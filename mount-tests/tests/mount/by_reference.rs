//! Copies, renames and touches move no content.

use std::fs;

use p2pfs_mount_tests::{LONG, Mount, SOON, hash, noise, until};

use super::pair;

/// What both have sent and received since they started, in bytes.
fn moved(mounts: [&Mount; 2]) -> u64 {
    let of = |mount: &Mount| {
        let network = mount.status()["network"].clone();
        let count = |name: &str| network[name].as_u64().expect("a figure");
        count("sent_bytes") + count("received_bytes")
    };
    mounts.into_iter().map(of).sum()
}

#[test]
fn copying_renaming_and_touching_a_file_that_is_elsewhere_move_less_than_64_kib() {
    moves_no_content(64 << 20);
}

#[test]
#[ignore = "a file of 1 GiB"]
fn copying_renaming_and_touching_a_gibibyte_that_is_elsewhere_move_less_than_64_kib() {
    moves_no_content(1 << 30);
}

fn moves_no_content(length: usize) {
    let pair = pair();
    let (a, b) = (&pair.a, &pair.b);
    let bytes = noise(1, length);
    a.write("big", &bytes);
    let id = hash(&bytes);
    until(LONG, "the entry is seen", || {
        b.attribute("big", "hash").is_ok_and(|there| there == id)
    });
    assert_eq!(b.attribute("big", "state").unwrap(), "remote");
    let before = moved([a, b]);
    b.host().sh("cd mnt
        cp --reflink=auto big cp
        cp -p cp kept
        mv kept moved
        touch -m big
        chmod 600 big");
    b.with("portions", |path| {
        let source = fs::File::open(b.path("big")).unwrap();
        let target = fs::File::create(path).unwrap();
        while rustix::fs::copy_file_range(&source, None, &target, None, 20 << 20).unwrap() > 0 {}
    });
    let copies = ["big", "cp", "moved", "portions"];
    for mount in [b, a] {
        for name in copies {
            let what = format!("{name} is published and seen at {}", mount.host().name());
            until(SOON, &what, || {
                mount.attribute(name, "hash").is_ok_and(|there| there == id)
            });
        }
        until(SOON, "the mode is seen", || {
            use std::os::unix::fs::PermissionsExt;
            mount.with("big", |path| {
                fs::metadata(path).is_ok_and(|data| data.permissions().mode() & 0o777 == 0o600)
            })
        });
    }
    let moved = moved([a, b]) - before;
    println!("{moved} bytes moved");
    assert!(moved < 64 << 10, "{moved} bytes moved");
    for name in copies {
        assert_eq!(b.attribute(name, "state").unwrap(), "remote");
    }
    assert_eq!(hash(&b.read("moved").unwrap()), id);
    // They are one content, so the others are here now.
    b.keeps("cp", bytes.len() as u64);
    assert_eq!(b.attribute("cp", "state").unwrap(), "cached");
}
