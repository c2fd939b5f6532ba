//! People and programs at work in the folder: what one side does the other sees, without remounting.

use std::{
    fs,
    os::unix::fs::{MetadataExt, PermissionsExt, symlink},
    time::{Duration, Instant},
};

use p2pfs_mount_tests::{LONG, SOON, eventually, hash, noise, until};

use super::pair;

#[test]
fn changes_are_seen_on_the_other_side_within_a_second() {
    let pair = pair();
    let mut took: Vec<Duration> = (0..11)
        .map(|round| {
            let (from, to) = if round % 2 == 0 {
                (&pair.a, &pair.b)
            } else {
                (&pair.b, &pair.a)
            };
            let bytes = noise(round, 20_000);
            from.write("file", &bytes);
            let written = Instant::now();
            to.shows("file", &bytes);
            written.elapsed()
        })
        .collect();
    took.sort();
    // The median: one round may meet a busy machine.
    assert!(took[took.len() / 2] < Duration::from_secs(1), "{took:?}");
}

#[test]
fn ordinary_commands_work_and_are_seen() {
    let pair = pair();
    let (a, b) = (&pair.a, &pair.b);
    a.host().sh("printf hello > plain; cp plain mnt/copied; mkdir mnt/folder; cp -r /etc/pam.d mnt/tree; ln -s copied mnt/link");
    b.shows("copied", "hello");
    b.shows("link", "hello");
    assert_eq!(
        b.host()
            .sh("cat mnt/copied; readlink mnt/link; cat mnt/link"),
        "hellocopied\nhello"
    );
    until(SOON, "a copied tree is the same", || {
        b.host().try_sh("diff -r /etc/pam.d mnt/tree").code() == Some(0)
    });
    b.host().sh(
        "mv mnt/copied mnt/folder/moved; echo more >> mnt/folder/moved; chmod 600 mnt/folder/moved",
    );
    a.lacks("copied");
    a.shows("folder/moved", "hellomore\n");
    until(SOON, "the mode is seen", || {
        a.with("folder/moved", |path| {
            fs::metadata(path).unwrap().mode() & 0o777
        }) == 0o600
    });
    a.host()
        .sh("rm -r mnt/tree mnt/link; rm mnt/folder/moved; rmdir mnt/folder");
    for gone in ["tree", "link", "folder"] {
        b.lacks(gone);
    }
    assert_eq!(b.list("").unwrap(), Vec::<String>::new());
    assert_eq!(pair.a.status()["manifest"]["conflicts"], 0);
}

#[test]
fn an_editors_save_replaces_the_file_at_once() {
    let pair = pair();
    pair.a.write("doc", "version 0");
    pair.b.shows("doc", "version 0");
    for version in 1..6 {
        let text = format!("version {version}");
        pair.a.with("", |dir| {
            fs::write(dir.join(".doc.swp"), &text).unwrap();
            fs::rename(dir.join(".doc.swp"), dir.join("doc")).unwrap();
        });
        eventually(SOON, "the save is seen", || match pair.b.read("doc") {
            Ok(there) if there == text.as_bytes() => Ok(()),
            // It is an earlier version or the new one, never half of one and never absent.
            Ok(there) => {
                assert!(there.starts_with(b"version ") && there.len() == text.len());
                Err("an earlier version".to_owned())
            }
            Err(error) => panic!("the file was gone for a moment: {error}"),
        });
        pair.b.lacks(".doc.swp");
    }
}

#[test]
fn an_open_file_stays_what_it_was_while_the_name_moves_on() {
    use std::{io::Read, os::unix::fs::FileExt};
    let pair = pair();
    let (old, new) = (noise(1, 500_000), noise(2, 400_000));
    pair.a.write("file", &old);
    pair.b.shows("file", &old);
    let opened = pair.b.with("file", |path| fs::File::open(path).unwrap());
    pair.a.write("file", &new);
    pair.b.shows("file", &new);
    pair.b.with("file", |_| {
        let mut bytes = Vec::new();
        (&opened).read_to_end(&mut bytes).unwrap();
        assert_eq!(hash(&bytes), hash(&old));
        let mut some = [0; 10];
        opened.read_exact_at(&mut some, 450_000).unwrap();
        assert_eq!(some, old[450_000..450_010]);
    });
}

#[test]
fn posix_operations_behave_as_on_a_disk() {
    let pair = pair();
    let a = &pair.a;
    a.with("", |dir| {
        use std::{io::Write, os::unix::fs::FileExt};
        let file = dir.join("file");
        fs::write(&file, "0123456789").unwrap();
        let open = fs::OpenOptions::new()
            .read(true)
            .write(true)
            .open(&file)
            .unwrap();
        open.write_all_at(b"ab", 3).unwrap();
        open.set_len(6).unwrap();
        open.write_all_at(b"end", 10).unwrap();
        assert_eq!(fs::read(&file).unwrap(), b"012ab5\0\0\0\0end");
        let mut append = fs::OpenOptions::new().append(true).open(&file).unwrap();
        append.write_all(b"!").unwrap();
        append.sync_all().unwrap();
        assert_eq!(open.metadata().unwrap().len(), 14);
        // Removed while open: the handle goes on.
        fs::write(dir.join("doomed"), "still here").unwrap();
        let doomed = fs::File::open(dir.join("doomed")).unwrap();
        fs::remove_file(dir.join("doomed")).unwrap();
        let mut bytes = [0; 10];
        doomed.read_exact_at(&mut bytes, 0).unwrap();
        assert_eq!(&bytes, b"still here");
        fs::create_dir(dir.join("full")).unwrap();
        fs::write(dir.join("full/x"), "").unwrap();
        assert_eq!(
            fs::remove_dir(dir.join("full")).unwrap_err().raw_os_error(),
            Some(39)
        );
        assert_eq!(
            fs::create_dir(dir.join("full")).unwrap_err().raw_os_error(),
            Some(17)
        );
        fs::rename(dir.join("full"), dir.join("renamed")).unwrap();
        symlink("nowhere", dir.join("dangling")).unwrap();
        let long = dir.join("n".repeat(256));
        assert_eq!(fs::write(long, "").unwrap_err().raw_os_error(), Some(36));
        let time = std::time::UNIX_EPOCH + Duration::from_secs(1_000_000_000);
        open.set_modified(time).unwrap();
        drop(open);
        fs::set_permissions(&file, fs::Permissions::from_mode(0o640)).unwrap();
        assert!(rustix::fs::statvfs(dir).unwrap().f_blocks > 0);
    });
    pair.b.shows("file", b"012ab5\0\0\0\0end!");
    pair.b.shows("renamed/x", "");
    until(SOON, "mode and time are seen", || {
        let data = pair.b.with("file", |path| fs::metadata(path).unwrap());
        data.mode() & 0o777 == 0o640 && data.mtime() == 1_000_000_000
    });
    pair.b.lacks("doomed");
    assert_eq!(
        pair.b.with("dangling", |path| fs::read_link(path)
            .unwrap()
            .into_os_string()),
        "nowhere"
    );
}

#[test]
fn a_repository_is_cloned_into_the_mount_and_whole_on_the_other_side() {
    let pair = pair();
    pair.a.host().sh(
        "git init -q repo && cd repo && git config user.email a@example.org && git config user.name a && \
         for n in 1 2 3; do seq $n 20000 > file$n; done && git add . && git commit -qm one && git gc -q && \
         git clone -q . ../mnt/cloned && cd ../mnt/cloned && git fsck --strict && git status --porcelain | wc -l | grep -qx 0",
    );
    eventually(LONG, "the clone is whole on the other side", || {
        let check = pair.b.host().try_sh("cd mnt/cloned && git -c safe.directory='*' fsck --strict && git -c safe.directory='*' log --oneline | grep -q one && diff file1 ../../../a/repo/file1");
        if check.code() == Some(0) {
            Ok(())
        } else {
            Err(check)
        }
    });
}

#[test]
fn files_are_mapped_into_memory_and_written_through_it() {
    use rustix::mm::{MapFlags, MsyncFlags, ProtFlags, mmap, msync, munmap};
    const LENGTH: usize = 200_000;
    let pair = pair();
    let mut bytes = noise(1, LENGTH);
    pair.b.write("mapped", &bytes);
    pair.a.shows("mapped", &bytes);
    let there = pair.a.with("mapped", |path| {
        let file = fs::OpenOptions::new()
            .read(true)
            .write(true)
            .open(path)
            .unwrap();
        // SAFETY: a fresh mapping at an address of the kernel's choice; nothing else in this process has it, and it is
        // used within its length until it is unmapped.
        unsafe {
            let map = mmap(
                std::ptr::null_mut(),
                LENGTH,
                ProtFlags::READ | ProtFlags::WRITE,
                MapFlags::SHARED,
                &file,
                0,
            )
            .unwrap();
            let there = std::slice::from_raw_parts_mut(map.cast::<u8>(), LENGTH);
            let read = there.to_vec();
            there[150_000..150_005].copy_from_slice(b"hello");
            msync(map, LENGTH, MsyncFlags::SYNC).unwrap();
            munmap(map, LENGTH).unwrap();
            read
        }
    });
    assert_eq!(hash(&there), hash(&bytes));
    bytes[150_000..150_005].copy_from_slice(b"hello");
    assert_eq!(hash(&pair.a.read("mapped").unwrap()), hash(&bytes));
    pair.b.shows("mapped", &bytes);
}

#[test]
fn a_crate_is_built_inside_the_mount_and_runs_on_both_sides() {
    let pair = pair();
    let cargo = std::env::var("CARGO").unwrap_or_else(|_| "cargo".into());
    // Toolchains are found through the home folder; it is the tests' own, not the host's.
    let home = std::env::var("HOME").unwrap_or_default();
    pair.a.host().sh(&format!(
        "export HOME={home}; cd mnt && {cargo} new --quiet --vcs none --name hello hello && cd hello && \
         CARGO_TARGET_DIR=$PWD/target {cargo} build --quiet --offline && ./target/debug/hello > ../../said"
    ));
    assert_eq!(
        fs::read_to_string(pair.a.host().path("said")).unwrap(),
        "Hello, world!\n"
    );
    until(SOON, "the program is seen", || {
        pair.b.has("hello/target/debug/hello")
    });
    eventually(SOON, "it runs there", || {
        let ran = pair.b.host().try_sh("mnt/hello/target/debug/hello");
        if ran.stdout == "Hello, world!\n" {
            Ok(())
        } else {
            Err(ran)
        }
    });
}

#[test]
fn concurrent_changes_of_different_files_are_all_kept() {
    let pair = pair();
    pair.a.host().cut_off();
    pair.a.write("from-a", "a");
    pair.b.write("from-b", "b");
    pair.a.host().reconnect();
    pair.a.shows_within(LONG, "from-b", "b");
    pair.b.shows_within(LONG, "from-a", "a");
    until(LONG, "both come to the same state", || {
        pair.a.status()["manifest"]["hash"] == pair.b.status()["manifest"]["hash"]
    });
    assert_eq!(pair.a.status()["manifest"]["conflicts"], 0);
}

#[test]
fn share_prints_hash_and_path_and_a_rerun_changes_nothing() {
    let pair = pair();
    let (one, two) = (noise(1, 100_000), noise(2, 5_000_000));
    let host = pair.a.host();
    fs::create_dir_all(host.path("src/sub")).unwrap();
    fs::write(host.path("src/one"), &one).unwrap();
    fs::write(host.path("src/sub/two"), &two).unwrap();
    let share = || {
        let shared = host.p2pfs("share src mnt");
        let mut lines: Vec<_> = shared.ok().lines().map(str::to_owned).collect();
        lines.sort_by_key(|line| line.split("  ").nth(1).unwrap().to_owned());
        lines
    };
    let lines = share();
    assert_eq!(
        lines,
        [
            format!("{}  mnt/src/one", hash(&one)),
            format!("{}  mnt/src/sub/two", hash(&two))
        ]
    );
    // It returned when the entries were published: they are in the state that others are told of.
    assert_eq!(pair.a.status()["manifest"]["unpublished"], 0);
    pair.b.shows("src/sub/two", &two);
    let state = pair.a.status()["manifest"]["hash"].clone();
    assert_eq!(share(), lines);
    assert_eq!(pair.a.status()["manifest"]["hash"], state);
    let outside = host.p2pfs("share src .");
    assert!(
        outside.fails(1).contains("not inside a p2pfs mount"),
        "{outside}"
    );
}

#[test]
fn share_tells_of_what_fails_and_copies_the_rest() {
    let pair = pair();
    let host = pair.a.host();
    host.sh("mkdir -p src/sub && echo a > src/a && echo b > src/b && echo c > src/sub/c && echo d > src/sub.d");
    // Folders where files are to be, and the other way round.
    host.sh("mkdir -p mnt/src/a && echo in the way > mnt/src/sub");
    let shared = host.p2pfs("share src mnt");
    assert_eq!(shared.code(), Some(1), "{shared}");
    let errors = shared.to_string();
    assert!(errors.contains("src/a could not be copied"), "{errors}");
    assert!(errors.contains("src/sub could not be copied"), "{errors}");
    assert!(!errors.contains("src/sub/c"), "{errors}");
    assert_eq!(host.sh("cat mnt/src/b mnt/src/sub.d"), "b\nd");
    pair.b.shows("src/b", b"b\n");
    host.sh("rmdir mnt/src/a && rm mnt/src/sub");
    host.p2pfs("share src mnt").ok();
    pair.b.shows("src/sub/c", b"c\n");
    let missing = host.p2pfs("share src/b nowhere mnt");
    assert!(missing.fails(1).contains("nowhere"), "{missing}");
    assert!(
        !pair.a.has("b"),
        "nothing is copied where a source is not there"
    );
}

#[test]
fn share_copies_links_as_links_and_writes_through_none() {
    let pair = pair();
    let host = pair.a.host();
    host.sh("mkdir -p src/tree victim && echo new > src/file && ln -s file src/link && ln -s tree src/way");
    // Somebody else planted links that lead out of the mount.
    host.sh("echo old > victim/file && ln -s ../victim/file mnt/file && ln -s ../victim mnt/tree");
    host.p2pfs("share src/link src/way src/file mnt").ok();
    assert_eq!(host.sh("readlink mnt/link mnt/way"), "file\ntree");
    assert_eq!(host.sh("cat victim/file"), "old");
    assert_eq!(host.sh("cat mnt/file"), "new");
    let refused = host.p2pfs("share src/tree mnt");
    assert!(refused.fails(1).contains("is not a folder"), "{refused}");
    let itself = host.p2pfs("share . mnt");
    assert!(itself.fails(2).contains("into itself"), "{itself}");
}

#[test]
fn a_read_only_member_sees_everything_and_changes_nothing() {
    let pair = pair();
    let c = pair.lab.host("c").mount(&pair.read_only, "");
    pair.a.write("file", "text");
    c.shows("file", "text");
    assert_eq!(c.status()["role"], "read-only");
    const EROFS: Option<i32> = Some(30);
    let begun = Instant::now();
    c.with("", |dir| {
        for denied in [
            fs::write(dir.join("new"), "x"),
            fs::write(dir.join("file"), "x"),
            fs::remove_file(dir.join("file")),
            fs::create_dir(dir.join("dir")),
            fs::rename(dir.join("file"), dir.join("other")),
            symlink("x", dir.join("link")),
            fs::set_permissions(dir.join("file"), fs::Permissions::from_mode(0o600)),
        ] {
            assert_eq!(denied.unwrap_err().raw_os_error(), EROFS);
        }
    });
    // Without asking anybody, who might have to be waited for.
    assert!(begun.elapsed() < SOON);
    // A read-write member may choose to mount so, too.
    let d = pair.another("d", "--read-only");
    d.shows("file", "text");
    assert_eq!(
        d.with("new", |path| fs::write(path, "x"))
            .unwrap_err()
            .raw_os_error(),
        EROFS
    );
}

#[test]
fn a_file_changed_on_two_sides_at_once_is_the_same_everywhere_and_both_versions_are_kept() {
    let pair = pair();
    pair.a.write("doc.txt", "common");
    pair.b.shows("doc.txt", "common");
    pair.a.host().cut_off();
    pair.a.write("doc.txt", "changed by a");
    pair.b.write("doc.txt", "changed by b");
    pair.a.host().reconnect();
    until(LONG, "both come to the same state", || {
        pair.a.status()["manifest"]["hash"] == pair.b.status()["manifest"]["hash"]
    });
    let versions = |mount: &p2pfs_mount_tests::Mount| {
        let names = mount.list("").unwrap();
        let mut versions: Vec<_> = names
            .iter()
            .flat_map(|name| Some((name.clone(), mount.read(name).ok()?)))
            .map(|(name, bytes)| (name, String::from_utf8(bytes).unwrap()))
            .collect();
        versions.sort_by(|one, other| one.1.cmp(&other.1));
        versions
    };
    let there = eventually(SOON, "both versions are shown", || {
        let there = versions(&pair.a);
        let texts: Vec<_> = there.iter().map(|(_, text)| text.as_str()).collect();
        match texts == ["changed by a", "changed by b"] {
            true => Ok(there),
            false => Err(format!("{there:?}")),
        }
    });
    assert!(there.iter().any(|(name, _)| name == "doc.txt"), "{there:?}");
    assert!(
        there
            .iter()
            .any(|(name, _)| name.starts_with("doc (conflict, ") && name.ends_with(").txt")),
        "{there:?}"
    );
    eventually(SOON, "the other side shows the same", || {
        let other = versions(&pair.b);
        if other == there {
            Ok(())
        } else {
            Err(format!("{other:?}, not {there:?}"))
        }
    });
    assert_eq!(pair.a.status()["manifest"]["conflicts"], 1);
}

#[test]
fn a_tree_of_many_files_arrives_while_several_read_it() {
    let pair = pair();
    pair.a.host().sh(
        "mkdir src; cd src; for dir in 1 2 3 4 5 6 7 8 9 10; do mkdir $dir; \
         for file in $(seq 60); do head -c $((file * 200)) /dev/urandom > $dir/$file; done; done; \
         head -c 6000000 /dev/urandom > large",
    );
    pair.a
        .host()
        .sh("$P2PFS share src mnt > listed; test $(wc -l < listed) = 601");
    until(SOON, "the tree is seen", || {
        pair.b
            .with("src", |path| fs::read_dir(path).map_or(0, Iterator::count))
            == 11
    });
    let original = pair.a.host().path("src");
    pair.b.host().sh(&format!(
        "for reader in 1 2 3 4; do diff -r {} mnt/src > differs-$reader 2>&1 & done; wait; cat differs-*; test ! -s differs-1 -a ! -s differs-2 -a ! -s differs-3 -a ! -s differs-4",
        original.display()
    ));
    // Four readers, but everything came once.
    let network = pair.b.status()["network"].clone();
    let received = network["block_bytes_received"].as_u64().unwrap();
    assert!(
        received < 6_000_000 + 10 * 60 * 61 / 2 * 200 + 6_000_000,
        "{network}"
    );
}
