//! Limits of the cache, as `du` and `df` see them.

use std::{
    fs,
    os::unix::fs::MetadataExt,
    path::Path,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use p2pfs_mount_tests::{Disk, LONG, Mount, noise, until};
use rustix::process::{Signal, kill_process};

use super::{pair, pair_with};

const MIB: usize = 1024 * 1024;

/// What the state folder takes, the logs apart.
fn taken(state: &Path) -> u64 {
    let Ok(entries) = fs::read_dir(state) else {
        return 0;
    };
    let mut bytes = 0;
    for entry in entries.flatten() {
        // What goes meanwhile takes nothing.
        let Ok(file) = entry.metadata() else { continue };
        let name = entry.file_name();
        if name.to_string_lossy().starts_with("log") {
            continue;
        }
        // A file that is being published has two names here.
        let names = if file.is_dir() {
            1
        } else {
            file.nlink().max(1)
        };
        bytes += file.blocks() * 512 / names;
        if file.is_dir() {
            bytes += taken(&entry.path());
        }
    }
    bytes
}

fn parts(state: &Path) -> String {
    let folders = fs::read_dir(state).into_iter().flatten().flatten();
    let below = folders.flat_map(|folder| fs::read_dir(folder.path()).into_iter().flatten());
    below
        .flatten()
        .map(|part| format!(" {:?} {}", part.file_name(), taken(&part.path())))
        .collect()
}

/// Looks at a state folder all the time. The process stands still meanwhile: what it takes is what it takes at one moment.
struct Watch {
    /// The most that was taken, and by what.
    peak: Arc<Mutex<(u64, String)>>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Watch {
    fn start(of: &Mount) -> Self {
        let (state, pid) = (of.host().state(), of.pid());
        let (peak, stop) = (
            Arc::<Mutex<(u64, String)>>::default(),
            Arc::<AtomicBool>::default(),
        );
        let (to, stopped) = (peak.clone(), stop.clone());
        let thread = thread::spawn(move || {
            while !stopped.load(Ordering::Relaxed) {
                let _ = kill_process(pid, Signal::STOP);
                let bytes = taken(&state);
                let mut peak = to.lock().unwrap();
                if bytes > peak.0 {
                    *peak = (bytes, parts(&state));
                }
                drop(peak);
                let _ = kill_process(pid, Signal::CONT);
                // As often as it can without keeping it from its work.
                thread::sleep(Duration::from_millis(20));
            }
        });
        Self {
            peak,
            stop,
            thread: Some(thread),
        }
    }

    fn end(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }

    fn peak(mut self) -> (u64, String) {
        self.end();
        self.peak.lock().unwrap().clone()
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.end();
    }
}

/// Writes files of 2 MiB until one is refused; the names of the others.
fn fill(mount: &Mount) -> Vec<String> {
    let mut written = Vec::new();
    let refused = loop {
        let number = written.len() as u64;
        let name = format!("b{number}");
        match write(mount, &name, &noise(100 + number, 2 * MIB)) {
            Ok(()) => written.push(name),
            Err(error) => break error,
        }
        assert!(written.len() < 20, "the limit is passed");
    };
    assert_eq!(refused.raw_os_error(), Some(libc::ENOSPC));
    written
}

/// Where `open`, `write` or `close` failed.
fn write(mount: &Mount, name: &str, bytes: &[u8]) -> std::io::Result<()> {
    let bytes = bytes.to_vec();
    mount.with_within(LONG, name, move |path| fs::write(path, bytes))
}

#[test]
fn the_cache_stays_within_its_limit_while_many_times_as_much_is_read_and_written() {
    const LIMIT: usize = 48 * MIB;
    const FILES: usize = 40;
    let pair = pair();
    let content = |number: usize| noise(number as u64, 4 * MIB + number * 1000);
    pair.a.with("small", |path| fs::create_dir(path)).unwrap();
    for number in 0..FILES {
        pair.a.write(&format!("f{number}"), content(number));
    }
    for number in 0..2000 {
        pair.a
            .write(&format!("small/{number}"), noise(number, 4096));
    }
    pair.a.publishes_within(LONG);
    let c = pair.another("c", &format!("--cache-size {LIMIT} --min-free 0"));
    c.meets(2);
    until(LONG, "all files are seen", || {
        c.list("small").is_ok_and(|names| names.len() == 2000)
    });
    let watch = Watch::start(&c);
    thread::scope(|scope| {
        for reader in 0..3 {
            let c = &c;
            scope.spawn(move || {
                for round in 0..FILES * 2 {
                    let number = (round * 7 + reader * 13) % FILES;
                    let offset = (round * 12_345) % (3 * MIB);
                    let length = MIB + 5;
                    let name = format!("f{number}");
                    let read = c.read_at(&name, offset as u64, length).unwrap();
                    assert!(read == content(number)[offset..offset + length]);
                }
            });
        }
        let c = &c;
        scope.spawn(move || {
            for round in 0..12 {
                // One name: earlier versions are nobody's.
                write(c, "own", &noise(1000 + round, 3 * MIB)).unwrap();
            }
        });
        scope.spawn(move || {
            for number in 0..2000 {
                c.shows(&format!("small/{number}"), noise(number, 4096));
            }
        });
    });
    for number in 0..FILES {
        c.shows(&format!("f{number}"), content(number));
    }
    let (peak, parts) = watch.peak();
    assert!(peak <= LIMIT as u64, "{peak} bytes were taken:{parts}");
    assert!(peak > LIMIT as u64 / 2, "only {peak} bytes were taken");
    let cache = &c.status()["cache"];
    assert!(
        cache["used_bytes"].as_u64().unwrap() <= LIMIT as u64,
        "{cache}"
    );
    assert_eq!(c.json("verify")["damaged"], 0);
}

#[test]
fn with_nothing_that_may_go_writers_hear_of_it_and_readers_go_on() {
    let pair = pair_with("--cache-size 24M --min-free 0");
    let (a, b) = (&pair.a, &pair.b);
    a.write("a", noise(1, 6 * MIB));
    a.publishes();
    // Nobody else has these, so none of them may go.
    let written = fill(b);
    assert!(written.len() >= 5, "{written:?}");
    let cache = &b.status()["cache"];
    assert!(
        cache["full"].as_str().unwrap().contains("--cache-size"),
        "{cache}"
    );
    assert!(b.ask("status").ok().contains("cache full"));
    b.shows_within(LONG, "a", noise(1, 6 * MIB));
    for (number, name) in written.iter().enumerate() {
        b.shows(name, noise(100 + number as u64, 2 * MIB));
    }
    // What is removed is nobody's any more, and makes room.
    for name in &written[..3] {
        b.with(name, |path| fs::remove_file(path)).unwrap();
    }
    b.with("b-refused", |path| {
        let _ = fs::remove_file(path);
    });
    write(b, "again", &noise(7, 3 * MIB)).unwrap();
    b.publishes_within(LONG);
    // So does what somebody else has and promises to keep.
    a.host()
        .p2pfs(&format!("fetch {}", a.path("b4").display()))
        .ok();
    a.shows_within(LONG, "b4", noise(104, 2 * MIB));
    a.shows_within(LONG, "again", noise(7, 3 * MIB));
}

#[test]
fn earlier_versions_make_room_in_a_folder_that_changes_all_the_time_and_where_files_have_several_names()
 {
    let pair = pair_with("--cache-size 24M --min-free 0 --read-timeout 1s");
    let b = &pair.b;
    b.write("one", noise(1, 1000));
    b.with("one", |path| {
        fs::hard_link(path, path.with_file_name("two"))
    })
    .unwrap();
    let (done, mut changes) = (AtomicBool::new(false), 0);
    thread::scope(|scope| {
        let busy = scope.spawn(|| {
            while !done.load(Ordering::Acquire) {
                changes += 1;
                write(b, "busy", &noise(changes, 1000)).unwrap();
            }
        });
        let written = (0..16).try_for_each(|version| {
            write(b, "one", &noise(version, 2 * MIB))?;
            b.ask(&format!("wait --published {}", b.path("one").display()))
                .ok();
            Ok::<_, std::io::Error>(())
        });
        done.store(true, Ordering::Release);
        busy.join().unwrap();
        written.unwrap();
    });
    b.shows("two", noise(15, 2 * MIB));
    b.shows("busy", noise(changes, 1000));
}

#[test]
fn on_a_disk_that_others_fill_readers_go_on_and_all_is_well_when_there_is_room_again() {
    let pair = pair();
    pair.a.write("a", noise(1, 6 * MIB));
    pair.a.write("later", noise(2, 3 * MIB));
    pair.a.publishes();
    let host = pair.lab.host("c");
    let disk = Disk::mount(&host, "96M");
    let c = host.mount(&pair.id, "--cache-size 64M --min-free 8M");
    c.meets(2);
    write(&c, "kept", &noise(3, MIB)).unwrap();
    c.publishes();
    let foreign = disk.fill();
    c.shows_within(LONG, "a", noise(1, 6 * MIB));
    c.shows("kept", noise(3, MIB));
    let refused = write(&c, "refused", &noise(4, 2 * MIB)).unwrap_err();
    assert_eq!(refused.raw_os_error(), Some(libc::ENOSPC));
    assert!(
        c.status()["cache"]["full"]
            .as_str()
            .unwrap()
            .contains("--min-free")
    );
    fs::remove_file(foreign).unwrap();
    write(&c, "again", &noise(5, 2 * MIB)).unwrap();
    c.publishes_within(LONG);
    pair.a.shows_within(LONG, "again", noise(5, 2 * MIB));
    c.shows_within(LONG, "later", noise(2, 3 * MIB));
    until(LONG, "what is read is kept again", || {
        c.read("later").is_ok()
            && c.attribute("later", "state")
                .is_ok_and(|state| state == "cached")
    });
    c.kill();
    let c = host.mount(&pair.id, "--cache-size 64M --min-free 8M");
    c.shows("kept", noise(3, MIB));
    c.shows("again", noise(5, 2 * MIB));
    c.unmount();
}

#[test]
fn open_and_mapped_files_stay_readable_while_their_contents_go_and_are_replaced() {
    let pair = pair();
    let content = |number: usize| noise(number as u64, 3 * MIB);
    for number in 0..12 {
        pair.a.write(&format!("f{number}"), content(number));
    }
    pair.a.publishes();
    for options in ["", "--no-passthrough"] {
        let name = format!("c{}", options.len());
        let c = pair.another(&name, &format!("--cache-size 24M --min-free 0 {options}"));
        c.meets(1);
        until(LONG, "all files are seen", || c.has("f11"));
        for first in ["partly", "wholly"] {
            let read = if first == "wholly" { 3 * MIB } else { 4096 };
            c.read_at("f0", 0, read).unwrap();
            let file = c.with("f0", |path| fs::File::open(path)).unwrap();
            // SAFETY: a private mapping of a file that is read only through it.
            let mapped = unsafe {
                rustix::mm::mmap(
                    std::ptr::null_mut(),
                    3 * MIB,
                    rustix::mm::ProtFlags::READ,
                    rustix::mm::MapFlags::PRIVATE,
                    &file,
                    0,
                )
            }
            .unwrap()
            .expose_provenance();
            for number in 1..12 {
                c.shows(&format!("f{number}"), content(number));
            }
            let bytes = c.with_within(LONG, "f0", move |_| {
                let mut bytes = vec![0; 3 * MIB];
                std::os::unix::fs::FileExt::read_exact_at(&file, &mut bytes, 0).unwrap();
                let at = std::ptr::with_exposed_provenance::<u8>(mapped);
                // SAFETY: it was mapped above with this length, and is unmapped below.
                let through = unsafe { std::slice::from_raw_parts(at, 3 * MIB) }.to_vec();
                // SAFETY: nothing refers to it any more.
                unsafe {
                    rustix::mm::munmap(std::ptr::with_exposed_provenance_mut(mapped), 3 * MIB)
                }
                .unwrap();
                assert!(through == bytes);
                bytes
            });
            assert!(bytes == content(0));
        }
        // Replaced elsewhere while it is open here, and then let go: who opened it keeps it.
        let version = 100 + options.len() as u64;
        let file = c.with("f1", |path| fs::File::open(path)).unwrap();
        pair.a.write("f1", noise(version, 2 * MIB));
        pair.a.publishes();
        c.shows("f1", noise(version, 2 * MIB));
        for number in 2..12 {
            c.shows(&format!("f{number}"), content(number));
        }
        let bytes = c.with_within(LONG, "f1", move |_| {
            let mut bytes = vec![0; 3 * MIB];
            std::os::unix::fs::FileExt::read_exact_at(&file, &mut bytes, 0).unwrap();
            bytes
        });
        assert!(bytes == content(1));
        pair.a.write("f1", content(1));
        pair.a.publishes();
        c.unmount();
    }
}

#[test]
fn a_full_cache_goes_on_while_nobody_is_reachable_and_after() {
    let pair = pair_with("--cache-size 24M --min-free 0 --read-timeout 5s");
    let (a, b) = (&pair.a, &pair.b);
    a.write("a", noise(1, 3 * MIB));
    a.publishes();
    b.shows("a", noise(1, 3 * MIB));
    a.host().cut_off();
    let written = fill(b);
    // Again and again, for all that come: small ones, and what can't fit at all.
    for round in 0..3 {
        let name = format!("more{round}");
        let refused = write(b, &name, &noise(200 + round, 3 * MIB)).unwrap_err();
        assert_eq!(refused.raw_os_error(), Some(libc::ENOSPC));
        let refused = b.with_within(LONG, &name, |path| {
            let file = fs::File::create(path).unwrap();
            rustix::fs::fallocate(&file, rustix::fs::FallocateFlags::empty(), 0, 1 << 40)
        });
        assert_eq!(refused.unwrap_err(), rustix::io::Errno::NOSPC);
    }
    let full = b.status()["cache"]["full"].as_str().unwrap().to_owned();
    assert!(full.contains("--cache-size"), "{full}");
    for (number, name) in written.iter().enumerate() {
        b.shows(name, noise(100 + number as u64, 2 * MIB));
    }
    b.shows("a", noise(1, 3 * MIB));
    a.host().reconnect();
    a.meets(1);
    // What is here and there may go now.
    for number in 0..2 {
        let name = format!("b{number}");
        a.shows_within(LONG, &name, noise(100 + number, 2 * MIB));
    }
    until(LONG, "there is room again", || {
        write(b, "again", &noise(300, 2 * MIB)).is_ok()
    });
    a.shows_within(LONG, "again", noise(300, 2 * MIB));
    b.shows_within(LONG, "b0", noise(100, 2 * MIB));
}

#[test]
fn a_full_cache_takes_writes_after_a_restart_without_anybody() {
    const LIMIT: usize = 48 * MIB;
    let pair = pair();
    for number in 0..12 {
        pair.a.write(&format!("f{number}"), noise(number, 4 * MIB));
    }
    pair.a.publishes_within(LONG);
    let host = pair.lab.host("c");
    let options = format!("--cache-size {LIMIT} --min-free 0 --read-timeout 2s");
    let c = host.mount(&pair.id, &options);
    c.meets(2);
    until(LONG, "all files are seen", || c.has("f11"));
    for number in 0..12 {
        c.shows(&format!("f{number}"), noise(number, 4 * MIB));
    }
    let may_go = |c: &Mount| c.status()["cache"]["evictable_bytes"].as_u64().unwrap();
    until(LONG, "others have promised to keep some", || {
        may_go(&c) >= 8 * MIB as u64
    });
    c.unmount();
    pair.a.host().cut_off();
    pair.b.host().cut_off();
    let c = host.mount(&pair.id, &options);
    write(&c, "new", &noise(100, 6 * MIB)).unwrap();
    c.shows("new", noise(100, 6 * MIB));
}

#[test]
fn evict_pin_and_status_agree() {
    const SIZE: u64 = 3 * MIB as u64;
    let pair = pair();
    let (a, b) = (&pair.a, &pair.b);
    a.with("d", |path| fs::create_dir(path)).unwrap();
    a.write("d/large", noise(1, SIZE as usize));
    a.write("d/small", noise(2, 1000));
    a.publishes();
    let size = SIZE + 1000;
    b.shows("d/large", noise(1, SIZE as usize));
    b.shows("d/small", noise(2, 1000));
    b.keeps("d/large", SIZE);
    b.keeps("d/small", 1000);
    let command = |command: &str, path: &str| {
        let path = b.path(path).display().to_string();
        b.host().json(&format!("{command} {path}"))
    };
    let pinned = || b.status()["cache"]["pinned_bytes"].as_u64().unwrap();
    let state = |path: &str| b.attribute(path, "state").unwrap();
    assert_eq!((state("d/large"), pinned()), ("cached".into(), 0));
    command("pin", "d");
    until(LONG, "what is pinned is counted", || pinned() == size);
    assert_eq!(state("d/small"), "pinned");
    let evicted = command("evict", "d");
    assert_eq!(
        (&evicted["freed_bytes"], &evicted["kept_bytes"]),
        (&0.into(), &size.into()),
        "{evicted}"
    );
    assert_eq!(evicted["kept"][0]["reason"], "it is pinned");
    command("unpin", "d");
    until(LONG, "nothing is pinned", || pinned() == 0);
    let before = b.status()["cache"]["files_bytes"].as_u64().unwrap();
    let evicted = command("evict", "d");
    assert_eq!(
        (&evicted["freed_bytes"], &evicted["kept_bytes"]),
        (&size.into(), &0.into()),
        "{evicted}"
    );
    let after = b.status()["cache"]["files_bytes"].as_u64().unwrap();
    assert!(after + SIZE <= before, "{before} {after}");
    for path in ["d/large", "d/small"] {
        assert_eq!(state(path), "remote");
        assert_eq!(b.attribute(path, "cached").unwrap(), "0");
    }
    // Who promised to keep it says so, and keeps it.
    let path = a.path("d").display().to_string();
    let refused = a.host().json(&format!("evict {path}"));
    assert_eq!(refused["kept_bytes"], size);
    b.shows_within(LONG, "d/large", noise(1, SIZE as usize));
    command("pin", "d");
    until(LONG, "what is pinned is brought", || pinned() == size);
}

/// A disk of which others took everything: the index must outlive that.
#[test]
fn a_disk_that_is_full_to_the_last_byte_is_survived_without_a_remount() {
    let pair = pair();
    pair.a.write("a", noise(1, 3 * MIB));
    pair.a.publishes();
    let host = pair.lab.host("c");
    let disk = Disk::mount(&host, "96M");
    let c = host.mount(&pair.id, "--cache-size 1G --min-free 0");
    c.meets(2);
    write(&c, "kept", &noise(3, MIB)).unwrap();
    c.with("names", |path| fs::create_dir(path)).unwrap();
    c.publishes();
    let mut foreign = vec![disk.fill()];
    c.shows_within(LONG, "a", noise(1, 3 * MIB));
    // Whatever makes the index grow, many times what it may still write.
    let mut refused = 0;
    for number in 0..2000 {
        let name = format!("names/{number}");
        let outcome = c.with_within(LONG, &name, |path| match number % 3 {
            0 => fs::create_dir(path),
            1 => fs::write(path, noise(number, 3000)),
            _ => fs::rename(path.with_file_name((number - 2).to_string()), path),
        });
        if let Err(error) = outcome {
            let code = error.raw_os_error();
            let expected = [libc::ENOSPC, libc::ENOENT].map(Some);
            assert!(expected.contains(&code), "{error}");
            refused += 1;
        }
        if number % 500 == 499 {
            // What went meanwhile is taken, too.
            foreign.push(disk.fill_more(number));
        }
    }
    assert!(refused > 0, "the disk was never full");
    c.shows("kept", noise(3, MIB));
    pair.a.write("b", noise(2, 3 * MIB));
    pair.a.publishes();
    assert_eq!(c.json("verify")["damaged"], 0);
    for path in foreign {
        fs::remove_file(path).unwrap();
    }
    until(LONG, "there is room again", || {
        write(&c, "again", &noise(5, 2 * MIB)).is_ok()
    });
    c.publishes_within(LONG);
    pair.a.shows_within(LONG, "again", noise(5, 2 * MIB));
    c.shows_within(LONG, "b", noise(2, 3 * MIB));
    let names = c.list("names").unwrap();
    until(LONG, "the others see all names", || {
        pair.a.list("names").is_ok_and(|seen| seen == names)
    });
    c.kill();
    let c = host.mount(&pair.id, "--cache-size 1G --min-free 0");
    c.shows("kept", noise(3, MIB));
    c.shows("again", noise(5, 2 * MIB));
    assert_eq!(c.list("names").unwrap(), names);
    c.unmount();
}

/// `P2PFS_SMALL_FILES`: how many files; the cache is a tenth of them. 500,000 is the long form.
#[test]
fn small_files_in_one_folder_turned_over_ten_times_stay_within_the_limit() {
    let files = std::env::var("P2PFS_SMALL_FILES").map_or(3000, |files| files.parse().unwrap());
    let limit = (files * 4096 / 10).max(16 * MIB as u64);
    let pair = pair();
    let a = &pair.a;
    a.with("small", |path| fs::create_dir(path)).unwrap();
    let begun = std::time::Instant::now();
    for number in 0..files {
        a.write(&format!("small/{number}"), noise(number, 4096));
    }
    a.publishes_within(20 * LONG);
    let wrote = begun.elapsed();
    let c = pair.another("c", &format!("--cache-size {limit} --min-free 0"));
    c.meets(2);
    until(20 * LONG, "all files are seen", || {
        c.list("small")
            .is_ok_and(|names| names.len() as u64 == files)
    });
    let watch = Watch::start(&c);
    let begun = std::time::Instant::now();
    // The order in which nothing is ahead, several at a time.
    thread::scope(|scope| {
        for reader in 0..4 {
            let c = &c;
            scope.spawn(move || {
                for round in (reader..files).step_by(4) {
                    let number = round * 7919 % files;
                    let read = c.with_within(LONG, "small", |path| {
                        fs::read(path.join(number.to_string()))
                    });
                    assert!(read.unwrap() == noise(number, 4096), "{number}");
                }
            });
        }
    });
    let read = begun.elapsed();
    let (peak, parts) = watch.peak();
    assert!(peak <= limit, "{peak} bytes of {limit} were taken:{parts}");
    let cache = c.status()["cache"].clone();
    let index = cache["index_bytes"].as_u64().unwrap();
    assert!(index <= limit / 4 * 3, "{cache}");
    let memory = fs::read_to_string(format!("/proc/{}/status", c.pid().as_raw_nonzero())).unwrap();
    let memory: Vec<_> = memory
        .lines()
        .filter(|line| line.starts_with("VmHWM") || line.starts_with("RssAnon"))
        .collect();
    println!(
        "{files} files, a cache of {limit}: written in {wrote:?}, read in {read:?}, {peak} bytes at most, the index {index}, {memory:?}"
    );
    // Those that went come again.
    for number in (0..files).step_by(1 + files as usize / 50) {
        c.shows(&format!("small/{number}"), noise(number, 4096));
    }
}
