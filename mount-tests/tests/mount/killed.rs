//! Programs that wait for the network can be killed, whatever it is that waits; and what they were at is no worse for it.

use std::{
    fs,
    io::{self, Read, Write},
    os::unix::fs::{FileExt, symlink},
    path::Path,
    time::Duration,
};

use p2pfs_mount_tests::{Host, LONG, Lab, Process, SOON, ends, until};
use rustix::{
    fs::SeekFrom,
    process::{Signal, kill_process},
};

/// Which operation a test process is to do, in the folder `mnt`.
const VARIABLE: &str = "P2PFS_TEST_OPERATION";

/// Much longer than a killed program takes, shorter than anything waits here: a read for minutes, a hash for 10 s.
const AT_ONCE: Duration = Duration::from_secs(8);

/// What programs do, and whether it can't be done without the network: with files `far…` whose bytes are elsewhere, and
/// folders `dir…` that nothing is known of but their names.
const OPERATIONS: [(&str, bool); 20] = [
    ("open", true),
    ("stat", true),
    ("readdir", true),
    ("read", true),
    ("map", true),
    ("create", true),
    ("mkdir", true),
    ("unlink", true),
    ("symlink", true),
    ("rename", true),
    ("rename-folder", true),
    ("getxattr", true),
    ("setxattr", true),
    ("copy", true),
    ("write", false),
    ("fsync", false),
    ("truncate", false),
    ("fsync-folder", false),
    ("statfs", false),
    ("lseek", false),
];

fn operate(operation: &str, dir: &Path) -> io::Result<()> {
    let far = |name: &str| {
        let mut open = fs::OpenOptions::new();
        open.read(true).write(true).open(dir.join(name))
    };
    match operation {
        "open" => drop(fs::File::open(dir.join("dir1/1"))?),
        "stat" => fs::metadata(dir.join("dir2/1")).map(|_| ())?,
        "readdir" => drop(fs::read_dir(dir.join("dir3"))?.count()),
        "read" => fs::File::open(dir.join("far1"))?.read_exact(&mut [0; 10])?,
        "map" => {
            let file = fs::File::open(dir.join("far2"))?;
            // SAFETY: a new mapping, of which one byte within the file is read.
            unsafe {
                use rustix::mm::{MapFlags, ProtFlags, mmap};
                let (read, shared) = (ProtFlags::READ, MapFlags::SHARED);
                let at = mmap(std::ptr::null_mut(), 1000, read, shared, file, 0)?;
                std::ptr::read_volatile(at.cast::<u8>());
            }
        }
        "create" => drop(fs::File::create_new(dir.join("dir4/new"))?),
        "mkdir" => fs::create_dir(dir.join("dir5/new"))?,
        "unlink" => fs::remove_file(dir.join("dir6/1"))?,
        "symlink" => symlink("1", dir.join("dir7/new"))?,
        "rename" => fs::rename(dir.join("far3"), dir.join("dir8/new"))?,
        "rename-folder" => fs::rename(dir.join("dir9"), dir.join("moved"))?,
        "getxattr" => {
            // Of what is written it has none before that is published, for which the rest is needed.
            far("far10")?.write_all_at(b"some", 100_000)?;
            rustix::fs::getxattr(dir.join("far10"), "user.p2pfs.hash", &mut [0; 100])?;
        }
        "setxattr" => {
            let flags = rustix::fs::XattrFlags::empty();
            rustix::fs::setxattr(dir.join("dir10/1"), "user.a", b"b", flags)?;
        }
        "copy" => {
            let (from, to) = (fs::File::open(dir.join("far4"))?, far("far5")?);
            // Not what can be taken by reference: another place in the file.
            let (mut source, mut target) = (0, 300_001);
            rustix::fs::copy_file_range(from, Some(&mut source), to, Some(&mut target), 10_000)?;
        }
        "write" => far("far6")?.write_all_at(b"some", 100_000)?,
        "fsync" => {
            let mut file = far("far7")?;
            file.write_all(b"some")?;
            file.sync_all()?;
        }
        "truncate" => far("far8")?.set_len(100_000)?,
        "fsync-folder" => {
            fs::write(dir.join("new"), "text")?;
            fs::File::open(dir)?.sync_all()?;
        }
        "statfs" => drop(rustix::fs::statfs(dir.join("dir12"))?),
        "lseek" => drop(rustix::fs::seek(far("far9")?, SeekFrom::Hole(0))?),
        _ => panic!("{operation} is no operation"),
    }
    Ok(())
}

/// Not a test by itself: the program that the one below kills.
#[test]
#[ignore = "a program that another test starts"]
fn an_operation_of_a_program() {
    let operation = std::env::var(VARIABLE).expect("the test that starts it says what it is to do");
    println!(
        "thread {} begins",
        rustix::thread::gettid().as_raw_nonzero()
    );
    println!("{operation}: {:?}", operate(&operation, Path::new("mnt")));
}

/// Starts it.
fn starts(host: &Host, operation: &str) -> Process {
    let program = std::env::current_exe().unwrap();
    let process = host.start_sh(&format!(
        "exec env {VARIABLE}={operation} {} --ignored --exact killed::an_operation_of_a_program --nocapture",
        program.display()
    ));
    process.says(" begins");
    process
}

/// Starts it and sends the signal once it waits; whether it did, and had not ended by itself.
fn is_killed(host: &Host, operation: &str, signal: Signal) -> bool {
    let mut process = starts(host, operation);
    let said = process.output();
    let thread = said
        .split("thread ")
        .nth(1)
        .and_then(|rest| rest.split(' ').next());
    let stat = format!("/proc/{0}/task/{1}/stat", process.pid(), thread.unwrap());
    let mut looks = 0;
    until(SOON, "it waits, or has ended", || {
        let state = fs::read_to_string(&stat).unwrap_or_default();
        let state = state
            .rsplit(") ")
            .next()
            .and_then(|rest| rest.chars().next());
        looks = match state {
            Some('S' | 'D') => looks + 1,
            _ => 0,
        };
        looks == 10 || state.is_none() || process.output().contains(&format!("{operation}: "))
    });
    let waits = looks == 10;
    process.signal(signal);
    process.ends_within(AT_ONCE);
    println!(
        "{operation}, {signal:?}: waits: {waits}; {}",
        process.output()
    );
    waits
}

#[test]
fn a_program_that_waits_for_the_network_in_any_operation_dies_at_once() {
    let lab = Lab::new();
    let (a, b) = (lab.host("a"), lab.host("b"));
    let (id, _) = a.create("");
    let a = a.mount("c", "");
    // So many names that a newcomer does not get them along with the first look at the root.
    a.host().sh(
        "cd mnt; for dir in 1 2 3 4 5 6 7 8 9 10 11 12; do mkdir dir$dir; (cd dir$dir; touch $(seq 300)); done
         head -c 3000000 /dev/urandom > far1; for i in 2 3 4 5 6 7 8 9 10; do cp far1 far$i; done",
    );
    a.publishes_within(LONG);
    let options = format!("--read-timeout 300s --peer {}", a.multiaddr());
    let b = b.mount(&id, &options);
    until(SOON, "all names are seen", || {
        b.list("").is_ok_and(|names| names.len() == 22)
    });
    let stopped = a.pid();
    kill_process(stopped, Signal::STOP).unwrap();
    for (operation, waits) in OPERATIONS {
        for signal in [Signal::INT, Signal::KILL] {
            let did = is_killed(b.host(), operation, signal);
            assert!(did || !waits, "{operation} did not wait for the network");
        }
    }
    // Nothing of it stands in the way of others, nor is half done.
    b.write("after", "x");
    assert_eq!(b.read("after").unwrap(), b"x");
    kill_process(stopped, Signal::CONT).unwrap();
    a.shows_within(LONG, "after", "x");
    until(LONG, "the folders are whole at both", || {
        [&a, &b].into_iter().all(|side| {
            side.list("dir9").is_ok_and(|names| names.len() == 300)
                && side.list("dir6").is_ok_and(|names| names.len() == 300)
        })
    });
    assert!(!b.has("moved"));
    assert_eq!(b.read("far3").unwrap().len(), 3_000_000);
}

/// The kernel is told to forget a name in a folder that is locked by an operation which this very process is to answer.
#[test]
fn whoever_waits_for_a_process_that_is_killed_hears_of_it_even_while_the_kernel_is_told_something()
{
    let lab = Lab::new();
    let (a, b, c) = (lab.host("a"), lab.host("b"), lab.host("c"));
    let (id, _) = a.create("");
    let a = a.mount("c", "");
    // So many names that a newcomer does not get them along with the first look at the root.
    a.host().sh(
        "cd mnt; for dir in 1 2 3 4 5 6 7 8 9 10 11 12; do mkdir dir$dir; (cd dir$dir; touch $(seq 300)); done
         echo one > other; echo far > far3",
    );
    a.publishes_within(LONG);
    let options = format!("--read-timeout 300s --peer {}", a.multiaddr());
    let b = b.mount(&id, &options);
    let c = c.mount(&id, &format!("{options} --peer {}", b.multiaddr()));
    for side in [&b, &c] {
        side.shows_within(LONG, "other", "one\n");
        side.shows_within(LONG, "far3", "far\n");
    }
    c.meets(2);
    let (stopped, killed) = (a.pid(), b.pid());
    kill_process(stopped, Signal::STOP).unwrap();
    // Has the root locked, and waits for what is in the folder.
    let mut waiting = starts(b.host(), "rename");
    until(LONG, "the kernel is told something and waits", || {
        c.write("other", "two\n");
        threads_that_wait(killed.as_raw_nonzero().get())
            .iter()
            .any(|name| name.starts_with("p2pfs-notify"))
    });
    kill_process(killed, Signal::KILL).unwrap();
    waiting.ends_within(AT_ONCE);
    ends(killed);
    kill_process(stopped, Signal::CONT).unwrap();
    let b = b.host().mount(&id, &options);
    b.shows_within(LONG, "other", "two\n");
    b.shows_within(LONG, "far3", "far\n");
}

/// The names of a process's threads that wait for the kernel, deaf to signals.
fn threads_that_wait(pid: i32) -> Vec<String> {
    let threads = fs::read_dir(format!("/proc/{pid}/task"))
        .into_iter()
        .flatten();
    let stats =
        threads.filter_map(|thread| fs::read_to_string(thread.ok()?.path().join("stat")).ok());
    let waits = stats.filter_map(|stat| {
        let (before, after) = stat.rsplit_once(") ")?;
        after
            .starts_with('D')
            .then(|| before.split_once('(').map(|(_, name)| name.to_owned()))?
    });
    waits.collect()
}
