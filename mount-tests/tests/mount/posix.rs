//! What programs expect of a filesystem, through the kernel; `mount-tests/outside` has what POSIX says of each call.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs, io,
    os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt, PermissionsExt, symlink},
    path::Path,
};

use p2pfs_mount_tests::{LONG, Mount, SOON, eventually, hash, noise, until};
use rustix::fs::{FallocateFlags, RenameFlags, SeekFrom, XattrFlags};

use super::{pair, pair_with};

/// Numbers of all that is below a folder, by path.
fn numbers(mount: &Mount, below: &str) -> Vec<(String, u64)> {
    let mut folders = vec![below.to_owned()];
    let mut numbers = Vec::new();
    while let Some(folder) = folders.pop() {
        for name in mount.list(&folder).unwrap() {
            let path = format!("{folder}/{name}");
            let data = mount.with(&path, |path| path.symlink_metadata().unwrap());
            if data.is_dir() {
                folders.push(path.clone());
            }
            numbers.push((path, data.ino()));
        }
    }
    numbers.sort();
    numbers
}

#[test]
fn after_a_remount_numbers_are_the_same_and_git_status_fetches_nothing() {
    let pair = pair();
    pair.a.host().sh(
        "mkdir mnt/work && cd mnt/work && git init -q . && git config user.email a@example.org && git config user.name a && \
         mkdir -p src/deep && for n in $(seq 40); do head -c 20000 /dev/urandom > src/deep/$n; done && \
         ln -s src link && touch -h -d 2020-01-01 src/deep/* link && git add . && git commit -qm one && git status --porcelain",
    );
    pair.a.publishes();
    // Changes are seen in their order, so with this one all are: a lock of git's that is still seen keeps the other side from
    // writing its index. And what is as new as the index (the dates above) git would read each time.
    pair.a.write("after", "");
    until(SOON, "all changes are seen", || pair.b.has("after"));
    let git = "cd mnt/work && git -c safe.directory='*' status --porcelain";
    // The other side makes an index of its own, of what it sees.
    eventually(SOON, "the work tree is here and clean", || {
        let said = pair.b.host().try_sh(git);
        match (said.code(), said.to_string().contains(" src/")) {
            (Some(0), false) => Ok(()),
            _ => Err(said),
        }
    });
    pair.b.host().sh(git);
    pair.b.publishes();
    let before = numbers(&pair.b, "work/src");
    assert!(before.len() > 40);
    let host = pair.b.host().clone();
    pair.b.ask("evict work");
    pair.b.unmount();
    let b = host.mount(&pair.id, "");
    b.meets(1);
    assert_eq!(numbers(&b, "work/src"), before);
    host.sh(git);
    let received = || {
        let network = b.status()["network"].clone();
        network["block_bytes_received"].as_u64().unwrap()
    };
    b.ask("wait --idle --timeout 15s").ok();
    let first = received();
    host.sh(git);
    assert!(first < 600_000, "the work tree was not read: {first}");
    assert_eq!(received(), first);
}

#[test]
fn a_read_only_mount_refuses_every_change() {
    let pair = pair();
    let a = &pair.a;
    a.with("", |dir| {
        fs::write(dir.join("file"), "text").unwrap();
        fs::create_dir(dir.join("folder")).unwrap();
        fs::create_dir(dir.join("empty")).unwrap();
        fs::write(dir.join("folder/inner"), "").unwrap();
        symlink("file", dir.join("link")).unwrap();
    });
    // By its id, and by an option.
    let readers = [
        pair.lab.host("r").mount(&pair.read_only, ""),
        pair.another("o", "--read-only"),
    ];
    for reader in &readers {
        reader.shows("file", "text");
        until(SOON, "all is there", || {
            reader.has("link") && reader.has("empty") && reader.has("folder/inner")
        });
        reader.with("", refuses_all);
    }
    assert_eq!(a.read("file").unwrap(), b"text");
}

fn refuses_all(dir: &Path) {
    use rustix::fs as sys;
    let (file, new) = (dir.join("file"), dir.join("new"));
    let open = |options: &mut fs::OpenOptions, path: &Path| options.open(path).map(drop);
    let mode = sys::Mode::from_raw_mode(0o644);
    let calls: Vec<(&str, io::Result<()>)> = vec![
        ("create", fs::write(&new, "")),
        ("write", open(fs::OpenOptions::new().write(true), &file)),
        ("append", open(fs::OpenOptions::new().append(true), &file)),
        (
            "open with O_TRUNC",
            open(
                fs::OpenOptions::new()
                    .read(true)
                    .custom_flags(libc::O_TRUNC),
                &file,
            ),
        ),
        ("truncate", rustix_truncate(&file)),
        ("mkdir", fs::create_dir(&new)),
        ("rmdir", fs::remove_dir(dir.join("empty"))),
        ("unlink", fs::remove_file(&file)),
        ("unlink of a link", fs::remove_file(dir.join("link"))),
        ("rename", fs::rename(&file, &new)),
        ("rename over", fs::rename(&file, dir.join("folder/inner"))),
        (
            "exchange",
            sys::renameat_with(
                sys::CWD,
                &file,
                sys::CWD,
                dir.join("link"),
                RenameFlags::EXCHANGE,
            )
            .map_err(Into::into),
        ),
        ("link", fs::hard_link(&file, &new)),
        ("symlink", symlink("x", &new)),
        (
            "mkfifo",
            sys::mknodat(sys::CWD, &new, sys::FileType::Fifo, mode, 0).map_err(Into::into),
        ),
        (
            "chmod",
            fs::set_permissions(&file, fs::Permissions::from_mode(0o600)),
        ),
        (
            "chmod of a folder",
            fs::set_permissions(dir.join("folder"), fs::Permissions::from_mode(0o700)),
        ),
        ("chown", std::os::unix::fs::chown(&file, Some(1), Some(1))),
        ("utimes", utimes(&file)),
        (
            "setxattr",
            sys::setxattr(&file, "user.x", b"1", XattrFlags::empty()).map_err(Into::into),
        ),
        (
            "removexattr",
            sys::removexattr(&file, "user.x").map_err(Into::into),
        ),
    ];
    for (what, outcome) in calls {
        let error = outcome.expect_err(what);
        assert_eq!(error.raw_os_error(), Some(libc::EROFS), "{what}: {error}");
    }
    // What changes nothing works.
    assert!(open(fs::OpenOptions::new().read(true), &file).is_ok());
    assert!(rustix::fs::access(&file, rustix::fs::Access::READ_OK).is_ok());
    let denied = rustix::fs::access(&file, rustix::fs::Access::WRITE_OK);
    assert_eq!(denied, Err(rustix::io::Errno::ROFS));
}

fn rustix_truncate(path: &Path) -> io::Result<()> {
    let path = std::ffi::CString::new(path.as_os_str().as_encoded_bytes()).unwrap();
    // SAFETY: the path ends with its NUL.
    match unsafe { libc::truncate(path.as_ptr(), 1) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

fn utimes(path: &Path) -> io::Result<()> {
    use rustix::fs::{AtFlags, CWD, Timespec, Timestamps, utimensat};
    let time = Timespec {
        tv_sec: 1,
        tv_nsec: 0,
    };
    let times = Timestamps {
        last_access: time,
        last_modification: time,
    };
    utimensat(CWD, path, &times, AtFlags::empty()).map_err(Into::into)
}

#[test]
fn holes_survive_publication_and_are_told() {
    const MIB: u64 = 1024 * 1024;
    for options in ["", "--no-passthrough"] {
        let pair = pair_with(options);
        let bytes = noise(1, 100_000);
        pair.a.with("sparse", |path| {
            let file = fs::File::create(path).unwrap();
            file.write_all_at(&bytes, 0).unwrap();
            file.write_all_at(&bytes, 8 * MIB).unwrap();
            rustix::fs::fallocate(
                &file,
                FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE,
                8 * MIB,
                65_536,
            )
            .unwrap();
            file.set_len(16 * MIB).unwrap();
        });
        pair.a.publishes();
        pair.a.with("sparse", |path| {
            let file = fs::File::open(path).unwrap();
            let hole = rustix::fs::seek(&file, SeekFrom::Hole(0)).unwrap();
            assert!((100_000..MIB).contains(&hole), "{hole}");
            let data = rustix::fs::seek(&file, SeekFrom::Data(hole)).unwrap();
            assert!((7 * MIB..=8 * MIB + 65_536).contains(&data), "{data}");
            let last = rustix::fs::seek(&file, SeekFrom::Hole(data)).unwrap();
            assert!((8 * MIB + 100_000..9 * MIB).contains(&last), "{last}");
            let none = rustix::fs::seek(&file, SeekFrom::Data(last));
            assert_eq!(none, Err(rustix::io::Errno::NXIO));
        });
        let mut expected = vec![0; 16 * MIB as usize];
        expected[..100_000].copy_from_slice(&bytes);
        expected[8 * MIB as usize + 65_536..][..100_000 - 65_536].copy_from_slice(&bytes[65_536..]);
        pair.b.shows("sparse", &expected);
    }
}

#[test]
fn names_of_one_file_are_one_file_at_every_member() {
    let pair = pair();
    let (a, b) = (&pair.a, &pair.b);
    let first = noise(1, 200_000);
    a.with("", |dir| {
        fs::create_dir(dir.join("folder")).unwrap();
        fs::write(dir.join("one"), &first).unwrap();
        fs::hard_link(dir.join("one"), dir.join("two")).unwrap();
        fs::hard_link(dir.join("two"), dir.join("folder/three")).unwrap();
        symlink("one", dir.join("soft")).unwrap();
        fs::hard_link(dir.join("soft"), dir.join("soft 2")).unwrap();
        let refused = fs::hard_link(dir.join("folder"), dir.join("x"));
        assert_eq!(refused.unwrap_err().raw_os_error(), Some(libc::EPERM));
    });
    let data = |mount: &Mount, path: &str| mount.with(path, |path| path.symlink_metadata());
    let shared = |mount: &Mount, names: u64| {
        let paths = ["one", "two", "folder/three"];
        let there: Vec<_> = paths
            .iter()
            .filter_map(|path| data(mount, path).ok())
            .collect();
        let same = there.windows(2).all(|two| two[0].ino() == two[1].ino());
        same && there.len() as u64 == names && there.iter().all(|one| one.nlink() == names)
    };
    assert!(shared(a, 3));
    until(SOON, "all names are at the other", || {
        shared(b, 3) && data(b, "soft 2").is_ok_and(|link| link.nlink() == 2)
    });
    // Written through one, seen in the others, at both.
    let second = noise(2, 150_000);
    b.write("two", &second);
    for mount in [b, a] {
        mount.shows("folder/three", &second);
        mount.shows("one", &second);
    }
    until(SOON, "they are still one at the first", || shared(a, 3));
    a.with("folder/three", |path| {
        fs::set_permissions(path, fs::Permissions::from_mode(0o600)).unwrap()
    });
    until(SOON, "the mode is seen under another name", || {
        data(b, "one").unwrap().mode() & 0o777 == 0o600
    });
    // A rename over another name of the same file does nothing, and removals leave the rest.
    a.with("", |dir| {
        fs::rename(dir.join("one"), dir.join("two")).unwrap()
    });
    assert!(shared(a, 3));
    a.with("", |dir| {
        fs::rename(dir.join("folder"), dir.join("moved")).unwrap()
    });
    b.shows("moved/three", &second);
    a.with("one", |path| fs::remove_file(path).unwrap());
    b.lacks("one");
    until(SOON, "one name less is counted", || {
        data(b, "two").unwrap().nlink() == 2 && data(b, "moved/three").unwrap().nlink() == 2
    });
    // As before after a remount.
    let number = data(b, "two").unwrap().ino();
    let host = b.host().clone();
    b.publishes();
    b.unmount();
    let b = host.mount(&pair.id, "");
    b.shows("two", &second);
    assert_eq!(data(&b, "moved/three").unwrap().ino(), number);
    assert_eq!(data(&b, "two").unwrap().ino(), number);
    a.with("moved/three", |path| fs::remove_file(path).unwrap());
    b.lacks("moved/three");
    until(SOON, "it is a file with one name again", || {
        data(&b, "two").unwrap().nlink() == 1
    });
    assert_eq!(b.read("two").unwrap(), second);
    assert_eq!(a.status()["manifest"]["conflicts"], 0);
}

#[test]
fn a_file_changed_through_two_names_at_once_is_kept_in_both_versions() {
    let pair = pair();
    let (a, b) = (&pair.a, &pair.b);
    a.write("doc.txt", "common");
    a.with("", |dir| {
        fs::hard_link(dir.join("doc.txt"), dir.join("same")).unwrap()
    });
    b.shows("same", "common");
    b.shows("doc.txt", "common");
    a.host().cut_off();
    a.write("doc.txt", "changed by a");
    a.publishes();
    b.write("same", "changed by b");
    b.publishes();
    // And a name that is given while the other side removes one.
    b.with("", |dir| {
        fs::hard_link(dir.join("same"), dir.join("new")).unwrap()
    });
    a.with("same", |path| fs::remove_file(path).unwrap());
    a.publishes();
    b.publishes();
    a.host().reconnect();
    until(LONG, "both come to the same state", || {
        a.status()["manifest"]["hash"] == b.status()["manifest"]["hash"]
    });
    for mount in [a, b] {
        until(SOON, "both versions are shown", || {
            let names = mount.list("").unwrap_or_default();
            let contents: Vec<_> = names.iter().flat_map(|name| mount.read(name)).collect();
            ["changed by a", "changed by b"]
                .iter()
                .all(|version| contents.iter().any(|there| there == version.as_bytes()))
        });
        mount.shows("new", b"changed by b");
    }
}

#[test]
fn links_that_tools_make_survive_a_kill_and_a_remount() {
    let pair = pair();
    let a = &pair.a;
    a.host().sh(
        "mkdir src && for n in $(seq 30); do echo $n > src/$n; done && cp -r src mnt/src && cp -al mnt/src mnt/copy && \\
         sync mnt/copy && test $(stat -c %h mnt/copy/7) = 2 && echo changed >> mnt/copy/7 && grep -q changed mnt/src/7 && \\
         tar cf links.tar -C mnt src copy && mkdir mnt/restored && tar xf links.tar -C mnt/restored && \\
         test $(stat -c %h mnt/restored/src/9) = 2 && sync mnt/restored",
    );
    a.kill();
    let host = a.host().clone();
    let a = host.mount("c", "");
    host.sh(
        "test $(stat -c %h mnt/copy/7) = 2 && test $(stat -c %i mnt/copy/7) = $(stat -c %i mnt/src/7) && \\
         grep -q changed mnt/src/7 && test $(stat -c %h mnt/restored/src/9) = 2 && diff -r mnt/src mnt/restored/copy && rm -r mnt/copy && \\
         test $(stat -c %h mnt/src/7) = 1 && diff -r mnt/src mnt/restored/src",
    );
    a.publishes();
    eventually(LONG, "the other side has the same", || {
        let check = pair.b.host().try_sh("test ! -e mnt/copy && diff -r mnt/src mnt/restored/src && test $(stat -c %h mnt/restored/src/9) = 2 && test $(stat -c %h mnt/src/9) = 1");
        match check.code() {
            Some(0) => Ok(()),
            _ => Err(check),
        }
    });
}

#[test]
fn a_folder_that_changes_while_it_is_read_tells_what_stays_exactly_once() {
    const FILES: usize = 3000;
    let pair = pair();
    let host = pair.a.host();
    host.sh(&format!(
        "mkdir mnt/many && cd mnt/many && seq {FILES} | xargs touch"
    ));
    pair.a.with_within(LONG, "many", |dir| {
        let mut told = BTreeMap::new();
        let mut reading = fs::read_dir(dir).unwrap();
        let mut gone = BTreeSet::new();
        // The kernel hands them on by the thousand.
        for round in 0..3 {
            for entry in reading.by_ref().take(FILES / 4) {
                let name = entry.unwrap().file_name().into_string().unwrap();
                if told.len() % 2 == 0 {
                    fs::remove_file(dir.join(&name)).unwrap();
                    gone.insert(name.clone());
                }
                *told.entry(name).or_insert(0) += 1;
            }
            fs::write(dir.join(format!("new {round}")), b"").unwrap();
            let now: Vec<_> = fs::read_dir(dir).unwrap().collect();
            assert_eq!(
                now.len(),
                FILES - gone.len() + round + 1,
                "by who begins now"
            );
        }
        for entry in reading {
            *told
                .entry(entry.unwrap().file_name().into_string().unwrap())
                .or_insert(0) += 1;
        }
        for number in 1..=FILES {
            assert_eq!(told.get(&number.to_string()), Some(&1), "{number}");
        }
        assert!(told.values().all(|times| *times == 1));
    });
    // A folder that is no more has nothing in it.
    pair.a.with_within(LONG, "many", |dir| {
        let open = fs::File::open(dir).unwrap();
        fs::remove_dir_all(dir).unwrap();
        let mut left = rustix::fs::Dir::read_from(&open).unwrap();
        let none = left
            .next()
            .is_none_or(|entry| entry.is_err() || entry.unwrap().file_name() == c".");
        assert!(none);
    });
}

#[test]
fn programs_of_one_machine_share_files_as_on_a_disk() {
    for options in ["", "--no-passthrough"] {
        let pair = pair_with(options);
        let a = &pair.a;
        // Several append at once, and several count under a lock.
        a.host().sh(
            "for p in 1 2 3 4; do (for n in $(seq 100); do echo \"$p $n\" >> mnt/log; done) & done; wait; \\
             test $(sort -u mnt/log | wc -l) = 400 && test $(wc -l < mnt/log) = 400; \\
             echo 0 > mnt/count; \\
             for p in 1 2 3 4; do (for n in $(seq 10); do \\
               flock mnt/lock sh -c 'n=$(cat mnt/count); echo $((n + 1)) > mnt/count'; done) & done; wait; \\
             test $(cat mnt/count) = 40",
        );
        // Databases, with a rollback journal and with a log in shared memory, by several programs.
        for mode in ["delete", "wal"] {
            a.host().sh(&format!(
                "sqlite3 mnt/{mode}.db 'pragma journal_mode={mode}; create table t (p, n);' > said && \\
                 for p in 1 2 3; do (for n in $(seq 15); do echo \"insert into t values ($p, $n);\"; done | \\
                   sqlite3 -cmd '.timeout 30000' mnt/{mode}.db) & done; wait; \\
                 test $(sqlite3 mnt/{mode}.db 'select count(*) from t') = 45 && \\
                 test $(sqlite3 mnt/{mode}.db 'pragma integrity_check') = ok"
            ));
        }
        a.with("", |dir| {
            // An open file goes on through a rename and a removal.
            let file = fs::OpenOptions::new()
                .read(true)
                .write(true)
                .create_new(true)
                .open(dir.join("open"))
                .unwrap();
            file.write_all_at(b"before", 0).unwrap();
            fs::rename(dir.join("open"), dir.join("renamed")).unwrap();
            file.write_all_at(b" and after", 6).unwrap();
            assert_eq!(fs::read(dir.join("renamed")).unwrap(), b"before and after");
            fs::remove_file(dir.join("renamed")).unwrap();
            file.write_all_at(b"BEFORE", 0).unwrap();
            let mut bytes = [0; 16];
            file.read_exact_at(&mut bytes, 0).unwrap();
            assert_eq!(&bytes, b"BEFORE and after");
            assert_eq!(file.metadata().unwrap().nlink(), 0);
        });
        a.publishes();
        eventually(SOON, "the databases are whole at the other member", || {
            let check = pair.b.host().try_sh(
                "cp mnt/delete.db copy.db && test $(sqlite3 copy.db 'select count(*) from t') = 45 && \\
                 test $(sqlite3 copy.db 'pragma integrity_check') = ok && test $(wc -l < mnt/log) = 400",
            );
            match check.code() {
                Some(0) => Ok(()),
                _ => Err(check),
            }
        });
    }
}

/// What random work is done with: one thing at a time, the same in a mount and in a plain folder.
struct Work {
    random: u64,
    done: Vec<String>,
}

impl Work {
    fn below(&mut self, limit: u64) -> u64 {
        // Marsaglia's xorshift: a test must come out the same again.
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        self.random % limit
    }

    fn path(&mut self) -> &'static str {
        const PATHS: [&str; 9] = ["a", "b", "c", "d", "d/a", "d/b", "e", "e/a", "d/e"];
        PATHS[self.below(PATHS.len() as u64) as usize]
    }

    /// Does the next thing in both folders: they must answer alike.
    fn step(&mut self, mounted: &Path, plain: &Path) {
        let (one, other) = (self.path(), self.path());
        let (kind, number) = (self.below(12), self.below(100_000));
        self.done.push(format!("{kind} {one} {other} {number}"));
        let outcomes = [mounted, plain].map(|dir| {
            let (one, other) = (dir.join(one), dir.join(other));
            let outcome = act(kind, &one, &other, number);
            outcome.map_err(|error| error.raw_os_error())
        });
        assert_eq!(outcomes[0], outcomes[1], "{:#?}", self.done);
    }
}

fn act(kind: u64, one: &Path, other: &Path, number: u64) -> io::Result<()> {
    let bytes = || noise(number, number as usize % 70_000);
    let existing = |path: &Path| fs::OpenOptions::new().read(true).write(true).open(path);
    match kind {
        0 | 1 => fs::write(one, bytes()),
        2 => existing(one)?.write_all_at(&bytes()[..number as usize % 50], number % 90_000),
        3 => {
            use io::Write;
            let mut file = fs::OpenOptions::new().append(true).open(one)?;
            file.write_all(&bytes()[..number as usize % 5000])
        }
        4 => existing(one)?.set_len(number),
        5 => fs::create_dir(one),
        6 => fs::remove_file(one),
        7 => fs::remove_dir(one),
        8 => fs::rename(one, other),
        9 => fs::hard_link(one, other),
        10 => symlink("nowhere", one),
        _ => {
            let mode = fs::Permissions::from_mode(0o700 | (number as u32 % 0o100));
            fs::set_permissions(one, mode)
        }
    }
}

/// All that is below a folder: kind, mode, number of names, and content.
fn tree(dir: &Path) -> Vec<String> {
    let mut folders = vec![dir.to_owned()];
    let mut found = Vec::new();
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            let data = path.symlink_metadata().unwrap();
            let links = if data.is_dir() { 0 } else { data.nlink() };
            let content = match data.file_type() {
                kind if kind.is_dir() => String::new(),
                kind if kind.is_symlink() => format!("{:?}", fs::read_link(&path).unwrap()),
                _ => hash(&fs::read(&path).unwrap()),
            };
            let name = path.strip_prefix(dir).unwrap().display().to_string();
            let mode = if data.is_symlink() { 0 } else { data.mode() };
            found.push(format!("{name} {mode:o} {links} {content}"));
            if data.is_dir() {
                folders.push(path);
            }
        }
    }
    found.sort();
    found
}

#[test]
fn random_work_at_two_members_comes_out_as_in_a_plain_folder() {
    let seed: u64 = std::env::var("P2PFS_SEED").map_or(1, |seed| seed.parse().unwrap());
    let pair = pair();
    let (a, b) = (&pair.a, &pair.b);
    let plain = a.host().path("plain");
    let folders = ["0", "1", "2", "3"];
    for folder in folders {
        fs::create_dir_all(plain.join(folder)).unwrap();
        a.with(folder, |path| fs::create_dir(path).unwrap());
        until(SOON, "the folder is seen", || b.has(folder));
    }
    let mut works: Vec<Work> = (1..)
        .zip(folders)
        .map(|(number, _)| Work {
            random: seed
                .wrapping_mul(0x9e37_79b9_7f4a_7c15)
                .wrapping_add(number),
            done: vec![format!("P2PFS_SEED={seed}")],
        })
        .collect();
    for round in 0..6 {
        // Each works in its folder, at one member and then at the other.
        std::thread::scope(|scope| {
            for (index, (work, folder)) in works.iter_mut().zip(folders).enumerate() {
                let mount = if (index + round) % 2 == 0 { a } else { b };
                let (mounted, plain) = (mount.path(folder), plain.join(folder));
                scope.spawn(move || {
                    for _ in 0..40 {
                        work.step(&mounted, &plain);
                    }
                });
            }
        });
        a.publishes();
        b.publishes();
        until(LONG, "both come to the same state", || {
            a.status()["manifest"]["hash"] == b.status()["manifest"]["hash"]
        });
        let expected = tree(&plain);
        for mount in [a, b] {
            eventually(SOON, "all is as in the plain folder", || {
                let there = mount.with("", tree);
                if there == expected {
                    return Ok(());
                }
                let differs = |one: &[String], other: &[String]| {
                    one.iter()
                        .filter(|line| !other.contains(line))
                        .cloned()
                        .collect::<Vec<_>>()
                };
                Err(format!(
                    "seed {seed}, round {round}: only here {:#?}, missing {:#?}",
                    differs(&there, &expected),
                    differs(&expected, &there)
                ))
            });
        }
    }
}

#[test]
fn a_file_that_is_cut_to_the_length_that_it_has_is_changed_now() {
    for options in ["", "--no-passthrough"] {
        let pair = pair_with(options);
        let seconds = |path: &str| {
            let time = pair.a.host().sh(&format!("stat -c %Y mnt/{path}"));
            time.trim().parse::<u64>().unwrap()
        };
        // What make does with a stamp; and the same for what has bytes.
        pair.a
            .host()
            .sh("cd mnt && : > stamp && echo x > full && touch -d 2020-01-01 stamp full");
        assert_eq!(seconds("stamp"), 1_577_836_800);
        pair.a
            .host()
            .sh("cd mnt && : > stamp && truncate -s 2 full");
        for path in ["stamp", "full"] {
            assert!(seconds(path) > 1_700_000_000, "{path} with {options:?}");
        }
    }
}
