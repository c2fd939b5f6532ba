//! What is here is read at the speed of the disk: by the kernel itself, or from its cache.

use std::{
    fs,
    io::{Read, Seek, SeekFrom, Write},
    os::unix::fs::{FileExt, MetadataExt},
    ptr,
};

use p2pfs_mount_tests::{LONG, Mount, SOON, eventually, hash, noise, until};
use rustix::{
    fs::{Advice, fadvise},
    mm::{MapFlags, ProtFlags, mmap, munmap},
};

use super::{pair, pair_with};

const MIB: u64 = 1 << 20;

/// Bytes that its process has written since it started: answers to the kernel among them.
fn answered(mount: &Mount) -> u64 {
    let path = format!("/proc/{}/io", mount.pid().as_raw_nonzero());
    let counts = fs::read_to_string(path).unwrap();
    let written = counts.lines().find_map(|line| line.strip_prefix("wchar: "));
    written.unwrap().parse().unwrap()
}

/// Does something; returns how many bytes were answered meanwhile.
fn answers<T>(mount: &Mount, act: impl FnOnce() -> T) -> (T, u64) {
    let before = answered(mount);
    let done = act();
    (done, answered(mount) - before)
}

/// Drops a file's pages from the kernel's cache.
fn forget_pages(file: &fs::File) {
    fadvise(file, 0, None, Advice::DontNeed).unwrap();
}

/// A file that `b` has fetched, and nobody has open.
fn fetched(pair: &super::Pair, name: &str, size: usize) -> Vec<u8> {
    let bytes = noise(size as u64, size);
    pair.a.write(name, &bytes);
    pair.b.shows_within(LONG, name, &bytes);
    pair.b.keeps(name, size as u64);
    assert_eq!(pair.b.attribute(name, "state").unwrap(), "cached");
    bytes
}

/// All of a file, by mapping it.
fn mapped(file: &fs::File) -> Vec<u8> {
    let length = usize::try_from(file.metadata().unwrap().len()).unwrap();
    // SAFETY: a new mapping, read within its length while it is there.
    unsafe {
        let flags = (ProtFlags::READ, MapFlags::SHARED);
        let at = mmap(ptr::null_mut(), length, flags.0, flags.1, file, 0).unwrap();
        let bytes = std::slice::from_raw_parts(at.cast::<u8>(), length).to_vec();
        munmap(at, length).unwrap();
        bytes
    }
}

/// A shared mapping of a file, to be written to as well.
struct Map {
    at: *mut u8,
    length: usize,
}

impl Map {
    fn of(file: &fs::File, length: usize) -> Self {
        let flags = (ProtFlags::READ | ProtFlags::WRITE, MapFlags::SHARED);
        // SAFETY: a new mapping, at an address of the kernel's choice.
        let at = unsafe { mmap(ptr::null_mut(), length, flags.0, flags.1, file, 0) };
        let at = at.unwrap().cast();
        Self { at, length }
    }

    fn bytes(&self) -> Vec<u8> {
        // SAFETY: within the mapping; others change the file only between calls.
        unsafe { std::slice::from_raw_parts(self.at, self.length) }.to_vec()
    }

    fn put(&self, at: usize, byte: u8) {
        assert!(at < self.length);
        // SAFETY: within the mapping, to which nothing refers meanwhile.
        unsafe { self.at.add(at).write(byte) };
    }
}

impl Drop for Map {
    fn drop(&mut self) {
        // SAFETY: nothing refers to the mapping any more.
        unsafe { munmap(self.at.cast(), self.length) }.unwrap();
    }
}

#[test]
fn a_complete_file_is_read_by_the_kernel_itself_in_every_way() {
    let pair = pair();
    let b = &pair.b;
    let bytes = fetched(&pair, "big", 32 << 20);
    b.with("big", |path| {
        let (first, second) = (fs::File::open(path).unwrap(), fs::File::open(path).unwrap());
        for file in [&first, &second] {
            forget_pages(file);
            let (read, answered) = answers(b, || {
                let mut read = Vec::new();
                let mut file = file;
                file.seek(SeekFrom::Start(0)).unwrap();
                file.read_to_end(&mut read).unwrap();
                read
            });
            assert_eq!(hash(&read), hash(&bytes));
            assert!(answered < MIB, "{answered} bytes were answered");
        }
        drop(first);
        forget_pages(&second);
        let (read, answered) = answers(b, || mapped(&second));
        assert_eq!(hash(&read), hash(&bytes));
        assert!(answered < MIB, "{answered} bytes were answered");
    });
}

#[test]
fn without_passthrough_a_second_read_causes_no_request() {
    let pair = pair_with("--no-passthrough");
    let b = &pair.b;
    let bytes = fetched(&pair, "big", 32 << 20);
    let read = || b.with("big", |path| fs::read(path).unwrap());
    b.with("big", |path| forget_pages(&fs::File::open(path).unwrap()));
    let (first, answered) = answers(b, read);
    assert_eq!(hash(&first), hash(&bytes));
    assert!(answered >= 32 * MIB, "{answered} bytes were answered");
    let (second, answered) = answers(b, read);
    assert_eq!(hash(&second), hash(&bytes));
    assert!(answered < MIB, "{answered} bytes were answered");
}

#[test]
fn a_file_that_is_partly_here_is_read_once_through_requests() {
    let pair = pair();
    let b = &pair.b;
    let bytes = noise(1, 16 << 20);
    pair.a.write("big", &bytes);
    until(LONG, "the size is seen", || {
        b.with("big", |path| {
            fs::metadata(path).is_ok_and(|data| data.len() == 16 << 20)
        })
    });
    let open = b.with("big", |path| fs::File::open(path).unwrap());
    let read = || {
        let mut read = vec![0; 16 << 20];
        b.with("big", |_| open.read_exact_at(&mut read, 0).unwrap());
        hash(&read)
    };
    assert_eq!(read(), hash(&bytes));
    b.keeps("big", 16 << 20);
    // It is complete now, and its handles go on as they began, new ones as well.
    let again = b.with("big", |path| fs::File::open(path).unwrap());
    let (second, answered) = answers(b, read);
    assert_eq!(second, hash(&bytes));
    assert!(answered < MIB, "{answered} bytes were answered");
    assert_eq!(hash(&b.with("big", |_| mapped(&again))), hash(&bytes));
}

#[test]
fn pages_of_a_large_file_that_is_read_or_written_once_are_given_up_as_it_goes_on() {
    let pair = pair();
    let bytes = noise(2, 96 << 20);
    // What the kernel keeps of the mount's own file, while somebody has it open.
    let kept = |mount: &Mount, name: &str| {
        let fincore = "fincore --bytes --noheadings --output RES mnt/";
        let kept = mount.host().sh(&format!("{fincore}{name}"));
        kept.trim().parse::<u64>().unwrap()
    };
    let few = 40 * MIB;
    // Nobody goes back to what was written through a handle that can't read it.
    for (name, reads, few) in [("big", true, few), ("written", false, 12 * MIB)] {
        let writer = pair.a.with(name, |path| {
            let mut file = fs::File::options()
                .read(reads)
                .write(true)
                .create(true)
                .truncate(true)
                .open(path)
                .unwrap();
            for part in bytes.chunks(1 << 20) {
                file.write_all(part).unwrap();
            }
            file
        });
        until(SOON, "the writer's pages are given up", || {
            kept(&pair.a, name) < few
        });
        drop(writer);
    }
    until(LONG, "the size is seen", || {
        pair.b.with("big", |path| {
            fs::metadata(path).is_ok_and(|data| data.len() == 96 << 20)
        })
    });
    let open = pair.b.with("big", |path| fs::File::open(path).unwrap());
    // Where the machine is busy, the kernel's read-ahead may come in such disorder that it looks like no run.
    until(LONG, "the reader's pages are given up", || {
        let mut read = vec![0; 96 << 20];
        pair.b.with("big", |_| {
            fadvise(&open, 0, None, Advice::DontNeed).unwrap();
            for (part, at) in read.chunks_mut(1 << 20).zip((0..).step_by(1 << 20)) {
                open.read_exact_at(part, at).unwrap();
            }
        });
        assert_eq!(hash(&read), hash(&bytes));
        let mut looks = std::iter::repeat_with(|| kept(&pair.b, "big") < few).take(5);
        looks.any(|is_few| is_few)
    });
    // They are read again where somebody wants them.
    let mut read = vec![0; 96 << 20];
    pair.b
        .with("big", |_| open.read_exact_at(&mut read, 0).unwrap());
    assert_eq!(hash(&read), hash(&bytes));
}

#[test]
fn who_makes_a_file_to_write_it_is_told_to_write_much_at_a_time() {
    let pair = pair();
    let (much, little) = (1 << 20, 64 << 10);
    pair.a.with("new", |path| {
        let mut file = fs::File::create(path).unwrap();
        assert_eq!(file.metadata().unwrap().blksize(), much);
        file.write_all(b"something").unwrap();
        let again = fs::File::create(path).unwrap();
        assert_eq!(again.metadata().unwrap().blksize(), much);
        drop((file, again));
        fs::write(path, b"something else").unwrap();
        assert_eq!(fs::metadata(path).unwrap().blksize(), little);
        // What is read here and there is not fetched by the megabyte.
        let other = path.with_file_name("other");
        let mut options = fs::File::options();
        options.read(true).write(true).create_new(true);
        let file = options.open(&other).unwrap();
        assert_eq!(file.metadata().unwrap().blksize(), little);
    });
    pair.b.shows("new", b"something else");
    let seen = pair.b.with("new", |path| fs::metadata(path).unwrap());
    assert_eq!(seen.blksize(), little);
}

#[test]
fn a_folder_is_listed_and_looked_at_again_without_requests() {
    let pair = pair();
    let b = &pair.b;
    pair.a.host().sh(
        "mkdir mnt/d; cd mnt/d; for n in $(seq 1000); do echo $n > file-with-a-long-name-$n; done",
    );
    until(LONG, "all of it is seen", || {
        b.list("d").is_ok_and(|names| names.len() == 1000)
    });
    let list = || b.host().sh("ls -l mnt/d | sha256sum");
    let mut before = list();
    // What is seen may be told to the kernel only after that, and the last file's text follows its name.
    eventually(SOON, "it is listed as before without requests", || {
        let (now, answered) = answers(b, list);
        let is_same = std::mem::replace(&mut before, now) == before;
        // A thousand lines with attributes take 200 KB.
        match is_same && answered < 64 << 10 {
            true => Ok(()),
            false => Err(format!("same: {is_same}, {answered} bytes were answered")),
        }
    });
}

#[test]
fn opening_for_writing_what_is_being_read_leaves_the_reader_what_it_opened() {
    let pair = pair();
    let b = &pair.b;
    let mut bytes = fetched(&pair, "file", 3_000_000);
    let old = hash(&bytes);
    let reader = b.with("file", |path| fs::File::open(path).unwrap());
    let number = reader.metadata().unwrap().ino();
    let also = b.with("file", |path| fs::File::open(path).unwrap());
    b.with("file", |path| {
        let file = fs::File::options()
            .read(true)
            .write(true)
            .open(path)
            .unwrap();
        file.write_all_at(b"patched", 1_000_000).unwrap();
        assert_ne!(file.metadata().unwrap().ino(), number);
        let mut patched = [0; 7];
        file.read_exact_at(&mut patched, 1_000_000).unwrap();
        assert_eq!(&patched, b"patched");
    });
    bytes[1_000_000..1_000_007].copy_from_slice(b"patched");
    b.with("file", |path| {
        let mut file = fs::File::options().append(true).open(path).unwrap();
        file.write_all(b"tail").unwrap();
    });
    bytes.extend_from_slice(b"tail");
    let read = |file: &fs::File| {
        let mut read = vec![0; 3_000_000];
        b.with("file", |_| file.read_exact_at(&mut read, 0).unwrap());
        hash(&read)
    };
    assert_eq!((read(&reader), read(&also)), (old.clone(), old.clone()));
    assert_eq!(hash(&b.with("file", |_| mapped(&reader))), old);
    b.shows("file", &bytes);
    pair.a.shows("file", &bytes);
    assert_eq!(pair.a.status()["manifest"]["conflicts"], 0);
}

#[test]
fn what_is_being_read_can_be_truncated_replaced_and_removed() {
    let pair = pair();
    let b = &pair.b;
    for (name, change) in [
        ("truncated", "truncate -s 1000 mnt/truncated"),
        ("emptied", ": > mnt/emptied"),
        (
            "replaced",
            "echo new > mnt/other; mv mnt/other mnt/replaced",
        ),
        ("rewritten", "head -c 2000000 /dev/zero > mnt/rewritten"),
        ("removed", "rm mnt/removed"),
    ] {
        let bytes = fetched(&pair, name, 1_500_000);
        let reader = b.with(name, |path| fs::File::open(path).unwrap());
        b.host().sh(change);
        let mut read = Vec::new();
        b.with(name, |_| (&reader).read_to_end(&mut read).unwrap());
        assert_eq!(hash(&read), hash(&bytes), "{name}");
        match b.read(name) {
            Ok(now) => {
                assert_ne!(hash(&now), hash(&bytes), "{name}");
                pair.a.shows(name, &now);
            }
            Err(_) => pair.a.lacks(name),
        }
    }
    assert_eq!(b.read("truncated").unwrap().len(), 1000);
    assert_eq!(b.read("replaced").unwrap(), b"new\n");
    assert_eq!(pair.a.status()["manifest"]["conflicts"], 0);
}

#[test]
fn damage_is_repaired_under_whoever_reads() {
    let pair = pair();
    let b = &pair.b;
    let bytes = fetched(&pair, "file", 3_000_000);
    let reader = b.with("file", |path| fs::File::open(path).unwrap());
    b.corrupt(&hash(&bytes), 1_000_000);
    let report = b.json("verify");
    assert_eq!(report["repaired"], 1, "{report}");
    let mut read = vec![0; 3_000_000];
    b.with("file", |_| reader.read_exact_at(&mut read, 0).unwrap());
    assert_eq!(hash(&read), hash(&bytes));
}

#[test]
fn a_log_that_is_written_here_is_followed_here() {
    let pair = pair();
    let b = &pair.b;
    b.host().sh("head -c 100000 /dev/zero > mnt/log");
    b.publishes();
    let mut follower = b.with("log", |path| fs::File::open(path).unwrap());
    for line in ["one", "two", "three"] {
        b.host().sh(&format!("echo {line} >> mnt/log"));
        b.publishes();
    }
    follower.seek(SeekFrom::Start(100_000)).unwrap();
    until(SOON, "the lines are read", || {
        let mut tail = String::new();
        follower.seek(SeekFrom::Start(100_000)).unwrap();
        b.with("log", |_| follower.read_to_string(&mut tail).unwrap());
        tail == "one\ntwo\nthree\n"
    });
}

#[test]
fn what_is_written_by_who_only_writes_is_seen_at_once_by_who_reads_or_maps() {
    for options in ["", "--no-passthrough"] {
        let pair = pair_with(options);
        let a = &pair.a;
        let mut bytes = noise(3, 300_000);
        a.write("file", &bytes);
        a.with("file", |path| {
            let both = fs::File::options()
                .read(true)
                .write(true)
                .open(path)
                .unwrap();
            let reader = fs::File::open(path).unwrap();
            let writer = fs::File::options().write(true).open(path).unwrap();
            let map = Map::of(&both, bytes.len());
            assert_eq!(hash(&map.bytes()), hash(&bytes));
            for (turn, at) in [0, 4095, 70_000, 131_070, 299_990].into_iter().enumerate() {
                // Before the next write comes to the same page, and not by the same way.
                let near = if at > 10 { at - 5 } else { at + 20 };
                map.put(near, turn as u8);
                bytes[near] = turn as u8;
                let piece = noise(turn as u64, 10);
                writer.write_all_at(&piece, at as u64).unwrap();
                bytes[at..at + 10].copy_from_slice(&piece);
                let mut read = vec![0; bytes.len()];
                for file in [&reader, &both] {
                    file.read_exact_at(&mut read, 0).unwrap();
                    assert_eq!(hash(&read), hash(&bytes), "{options} {at}");
                }
                assert_eq!(hash(&map.bytes()), hash(&bytes), "{options} {at}");
            }
            let mut end = fs::File::options().append(true).open(path).unwrap();
            end.write_all(b"tail").unwrap();
            bytes.extend_from_slice(b"tail");
            writer.set_len(150_001).unwrap();
            bytes.truncate(150_001);
            writer.set_len(200_000).unwrap();
            bytes.resize(200_000, 0);
            let mut read = Vec::new();
            (&reader).read_to_end(&mut read).unwrap();
            assert_eq!(hash(&read), hash(&bytes));
        });
        a.publishes();
        pair.b.shows("file", &bytes);
    }
}

#[test]
fn who_follows_a_file_that_is_appended_to_never_reads_what_was_not_written() {
    let pair = pair();
    let a = &pair.a;
    let bytes = noise(4, 3_000_000);
    a.write("log", []);
    a.with("log", |path| {
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let mut file = fs::File::options().append(true).open(path).unwrap();
                let (mut at, mut length) = (0, 1);
                while at < bytes.len() {
                    let end = (at + length).min(bytes.len());
                    file.write_all(&bytes[at..end]).unwrap();
                    (at, length) = (end, length * 31 % 4999);
                }
            });
            for _ in 0..2 {
                scope.spawn(|| {
                    let file = fs::File::open(path).unwrap();
                    let (mut at, mut part) = (0, vec![0; 20_000]);
                    while at < bytes.len() {
                        // From a little before, which is in the kernel's pages.
                        let from = at.saturating_sub(300);
                        let read = file.read_at(&mut part, from as u64).unwrap();
                        assert_eq!(
                            hash(&part[..read]),
                            hash(&bytes[from..from + read]),
                            "{from}"
                        );
                        at = at.max(from + read);
                    }
                });
            }
        });
    });
    assert_eq!(hash(&a.read("log").unwrap()), hash(&bytes));
}
