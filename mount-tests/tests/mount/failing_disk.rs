//! A disk whose n-th read, write, sync or change of names fails, for errors of several kinds, once or from then on.
//!
//! `P2PFS_SEED` replays a run. `P2PFS_RUNS` sets how many cases are tried at most, `P2PFS_SECONDS` for how long; with more than
//! there are, every call that the work makes fails once in each way.

use std::{fs, io, path::PathBuf};

use p2pfs_mount_tests::{
    After, FailingDisk, Fault, LONG, Mount, Name, Op, Plan, Work, ends, noise, seed, turns, until,
};
use rand::{Rng, SeedableRng, rngs::StdRng};
use rustix::process::{Pid, Signal, kill_process};

use super::{Pair, pair};

const NAMES: &[Name] = &["a", "b", "c", "d", "d/a", "e", "e/a", "new"];

/// What is there before.
const BEFORE: &[Op] = &[
    Op::Write("a", 0, 40),
    Op::Close("a"),
    Op::Write("b", 0, 1),
    Op::Close("b"),
    Op::Mkdir("d"),
    Op::Write("d/a", 0, 1),
    Op::Close("d/a"),
];

/// What is done while the disk fails.
const WORK: &[Op] = &[
    Op::Write("new", 0, 20),
    Op::Write("new", 20, 20),
    Op::Fsync("new"),
    Op::Close("new"),
    Op::Write("a", 7, 2),
    Op::Fsync("a"),
    Op::Close("a"),
    Op::Write("c", 0, 1),
    Op::Close("c"),
    Op::Rename("d", "e"),
    Op::Unlink("b"),
    Op::Mkdir("d"),
    Op::Fsync(""),
];

/// One way to fail.
#[derive(Clone, Copy, Debug)]
struct Way {
    fault: Fault,
    lasting: bool,
    /// What programs may be told.
    told: &'static [i32],
}

const WAYS: &[Way] = &[
    way(Fault::Error(libc::EIO), false, &[libc::EIO]),
    way(Fault::Error(libc::EIO), true, &[libc::EIO]),
    way(Fault::Error(libc::ENOSPC), false, FULL),
    way(Fault::Error(libc::ENOSPC), true, FULL),
    way(Fault::Error(libc::EDQUOT), true, FULL),
    way(Fault::Error(libc::EMFILE), false, &[libc::EIO]),
    way(Fault::Error(libc::EMFILE), true, &[libc::EIO]),
    way(Fault::Short, false, &[]),
    way(Fault::Short, true, &[]),
];
const FULL: &[i32] = &[libc::ENOSPC];

const fn way(fault: Fault, lasting: bool, told: &'static [i32]) -> Way {
    Way {
        fault,
        lasting,
        told,
    }
}

/// Cases that one set of folders is prepared for.
const AT_ONCE: usize = 40;

/// A folder to work in, and a content of another member that is not here.
struct Case {
    work: Work,
    elsewhere: PathBuf,
    bytes: Vec<u8>,
}

struct Machine {
    pair: Pair,
    disk: FailingDisk,
    a: Mount,
    /// Of `a`, which may not say it on a disk that failed.
    pid: Pid,
    starts: u64,
    folders: usize,
}

impl Machine {
    fn new() -> Self {
        let pair = pair();
        pair.lab.expects_errors();
        pair.a.unmount();
        let disk = FailingDisk::new(&pair.a.host().state());
        let a = start(&pair, &disk);
        Self {
            pair,
            disk,
            pid: a.pid(),
            a,
            starts: 0,
            folders: 0,
        }
    }

    /// Each with something published in its folder.
    fn prepare(&mut self) -> Vec<Case> {
        let mut all = Vec::new();
        for _ in 0..AT_ONCE {
            self.folders += 1;
            let (name, seed) = (format!("{}", self.folders), self.folders as u64);
            let bytes = noise(seed, 200_000);
            let elsewhere = format!("elsewhere-{name}");
            self.pair.b.write(&elsewhere, &bytes);
            let root = self.a.path(&name);
            fs::create_dir(&root).unwrap();
            let mut work = Work::new(root, NAMES);
            for op in BEFORE {
                work.act(*op).unwrap();
            }
            all.push(Case {
                work,
                elsewhere: self.a.path(&elsewhere),
                bytes,
            });
        }
        self.a.publishes_within(LONG);
        fs::File::open(self.a.dir()).unwrap().sync_all().unwrap();
        for case in &mut all {
            case.work.promises.all_is_kept();
            until(LONG, "the entry is seen", || case.elsewhere.exists());
        }
        all
    }

    fn restart(&mut self) {
        kill_process(self.pid, Signal::KILL).unwrap();
        ends(self.pid);
        self.a = start(&self.pair, &self.disk);
        self.pid = self.a.pid();
        self.starts += 1;
        self.a.meets(1);
    }
}

fn start(pair: &Pair, disk: &FailingDisk) -> Mount {
    let host = pair.a.host();
    disk.around(|| host.mount("c", "--read-timeout 5s"))
}

/// What came of a case.
struct Came {
    hits: Vec<String>,
    /// Calls that could have failed.
    calls: u64,
    /// What programs do next on a disk that is well.
    next: io::Result<()>,
    case: String,
}

/// Whether one of the calls that failed was to the index.
fn hits_index(hits: &[String]) -> bool {
    hits.iter().any(|hit| hit.contains("/index"))
}

/// Works on a disk that fails, until it is well again.
fn work_on(mount: &Mount, disk: &FailingDisk, way: Way, nth: u64, case: &mut Case) -> Came {
    disk.fail(Plan {
        fault: way.fault,
        nth,
        lasting: way.lasting,
    });
    let work = &mut case.work;
    let mut told = Vec::new();
    for op in WORK {
        if !work.can(*op) {
            break;
        }
        if let Err(error) = work.act(*op) {
            told.push((*op, error));
            // Nobody knows what became of names.
            if matches!(op, Op::Rename(..) | Op::Unlink(_) | Op::Mkdir(_)) {
                break;
            }
        }
    }
    let read = fs::read(&case.elsewhere);
    work.abandon();
    let (hits, calls) = disk.heal();
    let case_name = format!("{way:?}, call {nth}: {hits:?}, told {told:?}");
    for (_, error) in &told {
        let number = error.raw_os_error().unwrap_or_default();
        // Nothing counts as synced once syncing the index failed, whatever the reason was, and whoever was told that.
        let is_old = number == libc::EIO && hits_index(&hits);
        assert!(way.told.contains(&number) || is_old, "{case_name}");
    }
    assert!(told.is_empty() || !hits.is_empty(), "{case_name}");
    // A disk that can't be written to keeps nobody from reading.
    let is_read = |hit: &String| {
        ["Read", "Open", "List"]
            .iter()
            .any(|kind| hit.starts_with(kind))
    };
    match &read {
        Ok(there) => assert!(*there == case.bytes, "{case_name}: other bytes"),
        // An index that could not write may not find everything (docs/semantics.md, Gaps), the name included.
        Err(error) if hits_index(&hits) && error.raw_os_error() == Some(libc::EIO) => {
            println!("{case_name}: not read, {error}");
        }
        Err(error) => assert!(hits.iter().any(is_read), "{case_name}: not read, {error}"),
    }
    // In the running process all is as the last operation left it, whatever reached the disk; with such an index, as far as
    // it finds that.
    let broken = work.broken(After::Nothing);
    match hits_index(&hits) {
        true if !broken.is_empty() => println!("{case_name}: {broken:#?}"),
        _ => assert!(broken.is_empty(), "{case_name}: {broken:#?}"),
    }
    let next = || {
        let name = mount.path("next");
        fs::write(&name, &case_name)?;
        fs::File::open(&name)?.sync_all()?;
        fs::remove_file(&name)?;
        fs::File::open(mount.dir())?.sync_all()
    };
    Came {
        next: next(),
        calls,
        hits,
        case: case_name,
    }
}

/// Tries a case; how many calls could have failed.
fn fails(machine: &mut Machine, way: Way, nth: u64, case: &mut Case) -> u64 {
    let (a, disk) = (&machine.a, &machine.disk);
    let came = a.with_within(2 * LONG, "", |_| work_on(a, disk, way, nth, case));
    let (is_index, next) = (hits_index(&came.hits), came.next);
    assert!(is_index || next.is_ok(), "{}: {next:?}", came.case);
    if is_index {
        // sled goes on only after a restart.
        machine.restart();
        let broken = case.work.broken(After::Kill);
        assert!(broken.is_empty(), "{}: {broken:#?}", came.case);
    }
    came.calls
}

#[test]
fn whatever_fails_on_the_disk_is_told_and_nothing_is_lost_or_wrong() {
    let mut random = StdRng::seed_from_u64(seed());
    let mut machine = Machine::new();
    let (mut prepared, mut done) = (Vec::new(), Vec::new());
    let mut tries = |machine: &mut Machine, way: Way, nth: u64| {
        if prepared.is_empty() {
            prepared = machine.prepare();
        }
        let mut case: Case = prepared.pop().unwrap();
        let calls = fails(machine, way, nth, &mut case);
        done.push(case.work);
        calls
    };
    let mut cases = Vec::new();
    for way in WAYS {
        // First nothing fails.
        let calls = tries(&mut machine, *way, u64::MAX);
        cases.extend((1..=calls).map(|nth| (*way, nth)));
    }
    let all = cases.len();
    for at in (1..all).rev() {
        cases.swap(at, random.random_range(0..=at));
    }
    let mut failures = 0;
    for ((way, nth), _) in cases.into_iter().zip(turns(30)) {
        tries(&mut machine, way, nth);
        failures += 1;
    }
    machine.restart();
    for work in &done {
        let broken = work.broken(After::Kill);
        assert!(broken.is_empty(), "{broken:#?}");
    }
    machine.a.publishes_within(LONG);
    let verified = machine.a.json("verify");
    assert_eq!(verified["damaged"], 0, "{verified}");
    println!("{failures} failures of {all}, {} starts", machine.starts);
}
