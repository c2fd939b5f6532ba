//! Through the kernel: that requests and answers are translated rightly. Needs root and `/dev/fuse`.

use std::{
    fs,
    io::{Read, Seek, SeekFrom, Write},
    os::unix::fs::{FileExt, MetadataExt, PermissionsExt, symlink},
    path::PathBuf,
};

use super::*;
use crate::fs::{
    Config,
    mount::{MountError, Mounted, mount_parts},
};

/// A mount, and a guard that never leaves it behind.
struct Mount {
    mounted: Option<Mounted>,
    fixture: Fixture,
    dir: PathBuf,
}

impl Mount {
    fn new() -> Self {
        Self::with(true)
    }

    fn with(passthrough: bool) -> Self {
        assert!(
            rustix::process::geteuid().is_root() && std::path::Path::new("/dev/fuse").exists(),
            "this test mounts: it needs root and /dev/fuse"
        );
        let fixture = Fixture::new();
        let dir = fixture.dir.path().join("mount");
        let config = Config {
            mountpoint: dir.clone(),
            name: "test".into(),
            read_only: false,
            allow_other: false,
            passthrough,
            guard: None,
            owner: OwnerMode::Stored,
            wait: Duration::from_secs(2),
            state_dir: fixture.dir.path().to_owned(),
            holders: Arc::new(|_| 0),
            pinned: Arc::new(|_| false),
        };
        let mounted = mount_parts(
            config,
            Arc::new(fixture.namespace.clone()),
            fixture.namespace.remote_changes(),
            fixture.store.clone(),
            Arc::new(fixture.elsewhere.clone()),
            fixture.runtime.handle().clone(),
        )
        .expect("mounts");
        Self {
            mounted: Some(mounted),
            fixture,
            dir,
        }
    }

    fn path(&self, path: &str) -> PathBuf {
        self.dir.join(path)
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        let _ = rustix::mount::unmount(&self.dir, rustix::mount::UnmountFlags::DETACH);
        self.mounted = None;
    }
}

fn attribute(path: &std::path::Path, name: &str) -> Option<String> {
    let mut value = [0; 256];
    let length = rustix::fs::getxattr(path, name, &mut value[..]).ok()?;
    String::from_utf8(value[..length].to_vec()).ok()
}

#[test]
fn files_behave_as_on_a_disk() {
    behave_as_on_a_disk(Mount::new());
}

#[test]
fn files_behave_as_on_a_disk_without_passthrough() {
    behave_as_on_a_disk(Mount::with(false));
}

fn behave_as_on_a_disk(mount: Mount) {
    fs::create_dir_all(mount.path("a/b")).expect("folders");
    let data: Vec<u8> = (0..3_000_000u32).map(|at| (at % 253) as u8).collect();
    fs::write(mount.path("a/b/big"), &data).expect("written");
    assert!(fs::read(mount.path("a/b/big")).expect("read") == data);
    let hash = content::hash_bytes(&data).to_string();
    wait_until("the hash is told", || {
        attribute(&mount.path("a/b/big"), "user.p2pfs.hash").as_deref() == Some(&hash)
    });

    let mut file = fs::OpenOptions::new()
        .read(true)
        .write(true)
        .open(mount.path("a/b/big"))
        .expect("opened");
    file.write_all_at(b"patch", 1_000_001).expect("patched");
    file.seek(SeekFrom::End(0)).expect("seek");
    file.write_all(b"tail").expect("appended");
    file.sync_all().expect("synced");
    drop(file);
    let mut expected = data.clone();
    expected[1_000_001..1_000_006].copy_from_slice(b"patch");
    expected.extend_from_slice(b"tail");
    assert!(fs::read(mount.path("a/b/big")).expect("read") == expected);

    let time = std::time::UNIX_EPOCH + Duration::new(1_600_000_000, 123_456_789);
    let file = fs::OpenOptions::new()
        .write(true)
        .open(mount.path("a/b/big"))
        .expect("opened");
    file.set_modified(time).expect("time set");
    file.set_permissions(fs::Permissions::from_mode(0o640))
        .expect("mode set");
    drop(file);
    let looked = fs::metadata(mount.path("a/b/big")).expect("looked");
    assert_eq!(looked.modified().expect("time"), time);
    assert_eq!(looked.mode() & 0o7777, 0o640);

    symlink("b/big", mount.path("a/link")).expect("linked");
    assert_eq!(
        fs::read_link(mount.path("a/link")).expect("link").to_str(),
        Some("b/big")
    );
    assert_eq!(
        fs::metadata(mount.path("a/link")).expect("followed").len(),
        expected.len() as u64
    );
    fs::hard_link(mount.path("a/b/big"), mount.path("hard")).expect("linked");
    let both = ["a/b/big", "hard"].map(|path| fs::metadata(mount.path(path)).expect("there"));
    assert_eq!((both[0].nlink(), both[0].ino()), (2, both[1].ino()));
    fs::remove_file(mount.path("hard")).expect("removed");
    let left = fs::metadata(mount.path("a/b/big")).expect("there");
    assert_eq!(left.nlink(), 1);

    fs::write(mount.path("a/new"), b"new").expect("written");
    fs::rename(mount.path("a/new"), mount.path("a/b/big")).expect("renamed over");
    assert_eq!(fs::read(mount.path("a/b/big")).expect("read"), b"new");
    fs::rename(mount.path("a/b"), mount.path("c")).expect("folder renamed");
    let mut names: Vec<_> = fs::read_dir(mount.path(""))
        .expect("listed")
        .map(|entry| {
            entry
                .expect("entry")
                .file_name()
                .into_string()
                .expect("utf-8")
        })
        .collect();
    names.sort();
    assert_eq!(names, ["a", "c"]);
    assert_eq!(
        fs::remove_dir(mount.path("c"))
            .expect_err("not empty")
            .raw_os_error(),
        Some(libc::ENOTEMPTY)
    );
    fs::remove_file(mount.path("c/big")).expect("removed");
    fs::remove_dir(mount.path("c")).expect("removed");
    assert!(!mount.path("c").exists());

    for number in 0..500 {
        fs::write(mount.path(&format!("a/{number}")), format!("{number}")).expect("written");
    }
    assert_eq!(fs::read_dir(mount.path("a")).expect("listed").count(), 501);
    fs::write(mount.path("a/0"), b"shorter").expect("rewritten");
    fs::write(mount.path("a/0"), b"x").expect("rewritten");
    assert_eq!(fs::read(mount.path("a/0")).expect("read"), b"x");

    let mounted = mount.mounted.as_ref().expect("mounted");
    let open = fs::File::open(mount.path("a/1")).expect("opened");
    match mounted.unmount(false) {
        Err(MountError::Busy { users, .. }) => {
            assert!(
                users.contains(&format!("pid {}", std::process::id())),
                "{users}"
            );
        }
        other => panic!("expected it to be busy: {other:?}"),
    }
    drop(open);
    mount
        .fixture
        .runtime
        .block_on(mounted.publish_all(Duration::from_secs(10)));
    assert_eq!(mounted.status().unpublished_files, 0);
    mounted.unmount(false).expect("unmounted");
    mount.fixture.runtime.block_on(async {
        tokio::time::timeout(Duration::from_secs(5), mounted.ended())
            .await
            .expect("ended");
    });
}

#[test]
fn a_change_elsewhere_is_seen_by_name_and_content_while_old_handles_stay() {
    let mount = Mount::new();
    let core = mount.mounted.as_ref().expect("mounted").core().clone();
    mount.fixture.change_behind("a", b"first");
    core.stirred
        .lock()
        .insert(TreePath::parse(b"a").expect("path"));
    core.stir.notify_one();
    let mut old = fs::File::open(mount.path("a")).expect("opened");
    assert_eq!(fs::read(mount.path("a")).expect("read"), b"first");
    mount.fixture.change_behind("a", b"second one");
    mount.fixture.change_behind("d/new", b"new");
    for path in ["a", "d/new"] {
        core.stirred
            .lock()
            .insert(TreePath::parse(path.as_bytes()).expect("path"));
    }
    core.stir.notify_one();
    wait_until("the new content is there", || {
        fs::read(mount.path("a")).expect("read") == b"second one"
    });
    wait_until("the new name is there", || {
        fs::read_dir(mount.path("")).expect("listed").count() == 2
    });
    assert_eq!(fs::read(mount.path("d/new")).expect("read"), b"new");
    let mut kept = Vec::new();
    old.read_to_end(&mut kept).expect("read");
    assert_eq!(kept, b"first");
}

#[test]
fn the_kernel_keeps_that_a_name_is_absent_until_something_has_it() {
    let mount = Mount::new();
    let core = mount.mounted.as_ref().expect("mounted").core().clone();
    let is_there = |path: &str| mount.path(path).exists();
    fs::create_dir(mount.path("d")).expect("made");
    for path in ["a", "d/a", "mine", "mine too"] {
        assert!(!is_there(path), "{path}");
    }
    for path in ["a", "d/a"] {
        mount.fixture.change_behind(path, b"made elsewhere");
        assert!(!is_there(path), "nobody was asked");
        core.tell(TreePath::parse(path.as_bytes()).expect("path"));
        wait_until("the new name is there", || is_there(path));
    }
    // What is made here the kernel knows by itself.
    fs::write(mount.path("mine"), b"1").expect("written");
    fs::rename(mount.path("mine"), mount.path("mine too")).expect("renamed");
    assert!(is_there("mine too") && !is_there("mine"));
    fs::hard_link(mount.path("mine too"), mount.path("mine")).expect("linked");
    assert!(is_there("mine"));
    fs::remove_file(mount.path("mine")).expect("removed");
    assert!(!is_there("mine"));
    fs::create_dir(mount.path("mine")).expect("made");
    assert!(is_there("mine"));
}

#[test]
fn a_name_does_not_stay_old_after_a_local_writer_closed_it() {
    let mount = Mount::new();
    fs::write(mount.path("a"), b"first").expect("written");
    let core = mount.mounted.as_ref().expect("mounted").core().clone();
    mount.fixture.runtime.block_on(core.publish_all());
    wait_until("nothing is live", || core.lives.lock().is_empty());
    let writer = fs::OpenOptions::new()
        .append(true)
        .open(mount.path("a"))
        .expect("opened");
    mount.fixture.change_behind("a", b"second one");
    core.tell(TreePath::parse(b"a").expect("path"));
    wait_until("it was told", || core.stirred.lock().is_empty());
    assert_eq!(fs::read(mount.path("a")).expect("read"), b"first");
    drop(writer);
    wait_until("the new content is there", || {
        fs::read(mount.path("a")).expect("read") == b"second one"
    });
}

#[test]
fn a_mount_whose_process_is_dead_is_found_and_cleared() {
    assert!(
        rustix::process::geteuid().is_root(),
        "this test mounts: it needs root and /dev/fuse"
    );
    let dir = TempDir::new().expect("dir");
    let device = fs::OpenOptions::new()
        .read(true)
        .write(true)
        .open("/dev/fuse")
        .expect("/dev/fuse");
    let options = format!(
        "fd={},rootmode=40755,user_id=0,group_id=0,subtype=p2pfs",
        std::os::fd::AsRawFd::as_raw_fd(&device)
    );
    let options = std::ffi::CString::new(options).expect("no NUL");
    rustix::mount::mount(
        "p2pfs:dead",
        dir.path(),
        "fuse",
        rustix::mount::MountFlags::empty(),
        Some(options.as_c_str()),
    )
    .expect("mounted");
    // The process behind it goes.
    drop(device);
    assert!(fs::read_dir(dir.path()).is_err());
    let cleared = crate::fs::clear_stale(dir.path());
    let _ = rustix::mount::unmount(dir.path(), rustix::mount::UnmountFlags::DETACH);
    assert!(cleared.expect("cleared"));
    assert_eq!(fs::read_dir(dir.path()).expect("usable again").count(), 0);
}

/// `copy_file_range(2)` until there is no more.
fn copy_through_kernel(from: &fs::File, to: &fs::File, mut at: (u64, u64), mut len: usize) {
    while len > 0 {
        let (mut source, mut target) = at;
        let copied =
            rustix::fs::copy_file_range(from, Some(&mut source), to, Some(&mut target), len)
                .expect("copied");
        if copied == 0 {
            return;
        }
        at = (source, target);
        len -= copied;
    }
}

#[test]
fn the_kernel_copies_by_reference_where_that_can_be_and_bytes_elsewhere() {
    let mount = Mount::new();
    let data: Vec<u8> = (0..500_000u32).map(|at| (at % 249) as u8).collect();
    mount.fixture.change_behind("remote", &data);
    let brought = || *mount.fixture.elsewhere.brought.lock();
    let hash = content::hash_bytes(&data).to_string();
    let remote = fs::File::open(mount.path("remote")).expect("opened");
    let copy = fs::File::create(mount.path("copy")).expect("created");
    copy_through_kernel(&remote, &copy, (0, 0), usize::MAX >> 1);
    drop(copy);
    wait_until("the copy is published", || {
        attribute(&mount.path("copy"), "user.p2pfs.hash").as_deref() == Some(&hash)
    });
    let output = std::process::Command::new("cp")
        .args(["--reflink=auto", "remote", "cp"])
        .current_dir(&mount.dir)
        .output()
        .expect("cp runs");
    assert!(output.status.success(), "{output:?}");
    wait_until("cp's copy is published", || {
        attribute(&mount.path("cp"), "user.p2pfs.hash").as_deref() == Some(&hash)
    });
    assert_eq!(brought(), 0, "nothing was fetched");

    // A part, mapped and written over; then to another offset, from what is being written, and out of the mount.
    let part = fs::File::options()
        .read(true)
        .write(true)
        .create_new(true)
        .open(mount.path("part"))
        .expect("created");
    copy_through_kernel(&remote, &part, (0, 0), 300_001);
    assert_eq!(brought(), 0, "nothing was fetched");
    assert_eq!(part.metadata().expect("looked").len(), 300_001);
    part.write_all_at(b"patch", 4_000).expect("written");
    copy_through_kernel(&remote, &part, (300_001, 310_000), 50_000);
    let mut expected = data[..300_001].to_vec();
    expected[4_000..4_005].copy_from_slice(b"patch");
    expected.resize(310_000, 0);
    expected.extend_from_slice(&data[300_001..350_001]);
    let moved = fs::File::create(mount.path("moved")).expect("created");
    copy_through_kernel(&part, &moved, (0, 0), usize::MAX >> 1);
    assert!(fs::read(mount.path("moved")).expect("read") == expected);
    drop((part, moved));
    assert!(fs::read(mount.path("part")).expect("read") == expected);
    let outside = mount.fixture.dir.path().join("outside");
    fs::copy(mount.path("copy"), &outside).expect("copied out");
    assert!(fs::read(&outside).expect("read") == data);
    fs::copy(&outside, mount.path("inside")).expect("copied in");
    assert!(fs::read(mount.path("inside")).expect("read") == data);
}
