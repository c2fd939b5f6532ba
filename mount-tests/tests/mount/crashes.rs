//! Work that ends at any moment: killed processes, and machines that go down.
//!
//! What may be seen afterwards is what `close` and `fsync` confirmed, or later (`p2pfs_mount_tests::Promises`). `P2PFS_SEED`
//! replays a run, as far as threads and time allow; `P2PFS_RUNS` sets how many crashes are made at most, `P2PFS_SECONDS` for how
//! long.

use std::{
    fs,
    os::unix::process::ExitStatusExt,
    path::Path,
    process::{Command, Stdio},
    sync::{
        Barrier,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use p2pfs::{manifest::NodeHash, store::Store};
use p2pfs_mount_tests::{
    After, Disk, FailingDisk, Host, LONG, Lab, Mount, Name, Op, Promises, Work, cut_power, ends,
    look, noise, seed, turns, until,
};
use rand::{Rng, SeedableRng, rngs::StdRng};
use rustix::process::{Pid, Signal, kill_process};

/// What random work is done on.
const NAMES: &[Name] = &[
    "a", "b", "c", "d", "d/a", "d/b", "d/c", "e", "e/a", "e/b", "e/c",
];
/// The same where things meet often: most of it is about several names of a file, and names that change hands.
const FEW_NAMES: &[Name] = &["a", "b", "d", "d/a", "d/b"];
/// Names, and how many programs work at the same time, each in a folder of its own.
type Where = (&'static [Name], usize);
const SPREAD: Where = (NAMES, 4);
const CROWDED: Where = (FEW_NAMES, 16);

/// A machine whose process is killed, or which goes down, again and again.
struct Machine {
    host: Host,
    mount: Mount,
    pid: Pid,
    after: After,
    disk: Option<Disk>,
    kernel: FailingDisk,
    boots: u64,
    slowest: Duration,
    id: String,
    lab: Lab,
}

impl Machine {
    fn new(after: After) -> Self {
        let lab = Lab::new();
        lab.expects_errors();
        let host = lab.host("a");
        let disk = (after == After::PowerLoss).then(|| Disk::mount(&host, "4G"));
        let (id, _) = host.create("");
        let kernel = FailingDisk::new(&host.state());
        let mount = start(&host, &kernel, after, 0);
        Self {
            pid: mount.pid(),
            host,
            mount,
            after,
            disk,
            kernel,
            boots: 0,
            slowest: Duration::ZERO,
            id,
            lab,
        }
    }

    /// Ends it abruptly, now.
    fn crash(&self) {
        if let Some(disk) = &self.disk {
            disk.cut_power();
        }
        kill_process(self.pid, Signal::KILL).unwrap();
    }

    /// Starts it again.
    fn restart(&mut self) {
        ends(self.pid);
        if let Some(disk) = &self.disk {
            disk.restart();
        }
        self.boots += 1;
        let begun = Instant::now();
        self.mount = start(&self.host, &self.kernel, self.after, self.boots);
        // With everything in it: the first look waits for what is taken up.
        self.mount.list("").unwrap();
        self.slowest = self.slowest.max(begun.elapsed());
        self.pid = self.mount.pid();
    }

    /// Programs work until it ends while they do; what they were promised. Each begins with something that is published.
    fn work(&self, run: u64, (names, programs): Where, random: &mut StdRng) -> Vec<Work> {
        let folder = self.mount.path(&format!("run{run}"));
        let mut works = Vec::new();
        for program in 0..programs {
            let root = folder.join(program.to_string());
            fs::create_dir_all(&root).unwrap();
            works.push((
                Work::new(root, names),
                StdRng::seed_from_u64(random.random()),
            ));
        }
        for (work, _) in &mut works {
            for op in BEFORE {
                work.act(*op).unwrap();
            }
        }
        self.publish(works.iter_mut().map(|(work, _)| work));
        let time = Duration::from_millis(random.random_range(5..1200));
        let (gone, deadline) = (AtomicBool::new(false), Instant::now() + time);
        thread::scope(|scope| {
            let gone = &gone;
            let workers: Vec<_> = works
                .into_iter()
                .map(|(mut work, mut random)| {
                    scope.spawn(move || {
                        while !gone.load(Ordering::Acquire) {
                            let op = work.random(&mut |below| random.random_range(0..below));
                            let outcome = work.act(op);
                            // Only a process that is gone gives errors.
                            if let Err(error) = outcome
                                && !gone.load(Ordering::Acquire)
                            {
                                panic!("{op:?}: {error}");
                            }
                        }
                        work.abandon();
                        work
                    })
                })
                .collect();
            thread::sleep(deadline.saturating_duration_since(Instant::now()));
            gone.store(true, Ordering::Release);
            self.crash();
            workers
                .into_iter()
                .map(|worker| worker.join().unwrap())
                .collect()
        })
    }

    /// What was done in these folders is published and on disk.
    fn publish<'a>(&self, works: impl Iterator<Item = &'a mut Work>) {
        self.mount.publishes_within(LONG);
        self.host.sh("sync mnt");
        works.for_each(|work| work.promises.all_is_kept());
    }

    fn check<'a>(&self, works: impl IntoIterator<Item = &'a Work>, after: After) {
        let broken: Vec<_> = works
            .into_iter()
            .map(|work| work.broken(after))
            .filter(|broken| !broken.is_empty())
            .collect();
        assert!(broken.is_empty(), "{broken:#?}");
    }

    /// A member that comes new sees all of it as it is here, and nothing is damaged.
    fn ends(self) {
        println!("{} crashes, slowest start {:?}", self.boots, self.slowest);
        self.mount.publishes_within(LONG);
        let verified = self.mount.json("verify");
        assert_eq!(verified["damaged"], 0, "{verified}");
        let other = self.lab.host("b");
        let there = other.mount(&self.id, &format!("--peer {}", self.mount.multiaddr()));
        let whole = |mount: &Mount| mount.with_within(4 * LONG, "", look);
        let here = whole(&self.mount).unwrap();
        until(LONG, "a new member sees the same", || {
            whole(&there).is_ok_and(|there| there == here)
        });
    }
}

/// After a power loss the process is to know that the machine was started anew.
fn start(host: &Host, kernel: &FailingDisk, after: After, boots: u64) -> Mount {
    let options = "--read-timeout 2s --min-free 0";
    if after != After::PowerLoss {
        return host.mount("c", options);
    }
    kernel.boot_anew(boots);
    kernel.around(|| host.mount("c", options))
}

fn random_work_survives(after: After, place: Where, crashes: u64) {
    let mut random = StdRng::seed_from_u64(seed());
    let mut machine = Machine::new(after);
    for run in turns(crashes) {
        let works = machine
            .mount
            .with_within(2 * LONG, "", |_| machine.work(run, place, &mut random));
        machine.restart();
        // Now and then it does not come far.
        if random.random_range(0..4) == 0 {
            thread::sleep(Duration::from_millis(random.random_range(0..300)));
            machine.crash();
            machine.restart();
        }
        machine.check(&works, after);
    }
    machine.ends();
}

#[test]
fn random_work_keeps_its_promises_when_the_process_is_killed() {
    random_work_survives(After::Kill, SPREAD, 10);
}

#[test]
fn random_work_keeps_its_promises_when_the_machine_goes_down() {
    random_work_survives(After::PowerLoss, SPREAD, 6);
}

#[test]
fn random_work_on_few_names_keeps_its_promises_when_the_process_is_killed() {
    random_work_survives(After::Kill, CROWDED, 6);
}

#[test]
fn random_work_on_few_names_keeps_its_promises_when_the_machine_goes_down() {
    random_work_survives(After::PowerLoss, CROWDED, 4);
}

const INDEX_VARIABLE: &str = "P2PFS_TEST_INDEX";
/// Records that are on disk, each among so many others that change.
const KEPT: u64 = 600;
const OTHERS_EACH: u64 = 20;
const OTHERS: u64 = 4000;

fn kept(number: u64) -> ([u8; 32], Vec<u8>) {
    let bytes = noise(number, 200);
    (*blake3::hash(&bytes).as_bytes(), bytes)
}

/// Not a test by itself: fills an index, and has the machine go down when more has come than was there.
#[test]
fn process_that_fills_an_index() {
    let Ok(state) = std::env::var(INDEX_VARIABLE) else {
        return;
    };
    let (state, more) = state.split_once('*').unwrap();
    let store = Store::open(Path::new(state)).unwrap();
    let other = |number: u64| {
        let name = *blake3::hash(&(number * number % OTHERS).to_le_bytes()).as_bytes();
        let bytes = noise(number, 300 + number as usize % 700);
        store.put_nodes(&[(NodeHash(name), bytes)]).unwrap();
    };
    for number in 0..KEPT {
        let (name, bytes) = kept(number);
        store.put_nodes(&[(NodeHash(name), bytes)]).unwrap();
        (0..OTHERS_EACH).for_each(|at| other(number * OTHERS_EACH + at));
        if number % 100 == 99 {
            store.flush().unwrap();
        }
    }
    (0..more.parse().unwrap()).for_each(other);
    cut_power(Path::new(state));
    std::process::abort();
}

/// The index moves what it has while it takes more: what is not synced then may not stand where something was that is.
#[test]
fn what_the_index_takes_takes_nothing_along_that_was_on_disk_when_the_machine_goes_down() {
    let lab = Lab::new();
    let host = lab.host("a");
    let disk = Disk::mount(&host, "1G");
    for more in [1000, 5000, 10_000, 20_000, 40_000] {
        let state = host.state().join(more.to_string());
        let ended = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "crashes::process_that_fills_an_index"])
            .env(INDEX_VARIABLE, format!("{}*{more}", state.display()))
            .stdout(Stdio::null())
            .status()
            .unwrap();
        assert_eq!(ended.signal(), Some(libc::SIGABRT));
        disk.restart();
        let store = Store::open(&state).unwrap();
        let lost = (0..KEPT).filter(|number| {
            let (name, bytes) = kept(*number);
            store.node(&NodeHash(name)).unwrap().as_deref() != Some(&bytes[..])
        });
        assert_eq!(lost.count(), 0, "of {KEPT}, with {more} more");
    }
}

/// What the sequences are made of. There are a file `a` of three cells, a small one `b`, a folder `d` with a file `a`.
const OPS: &[&[Op]] = &[
    &[Op::Write("a", 0, 1)],
    &[Op::Write("a", 3, 20)],
    &[Op::Write("a", 1, 1), Op::Close("a")],
    &[Op::Write("new", 0, 1)],
    &[Op::Write("new", 0, 20), Op::Close("new")],
    &[Op::Write("d/new", 2, 2)],
    &[Op::Truncate("a", 1)],
    &[Op::Truncate("a", 6)],
    &[Op::Truncate("b", 0)],
    &[Op::Chmod("a", 0o600)],
    &[Op::Mkdir("e")],
    &[Op::Unlink("a")],
    &[Op::Unlink("d/a")],
    &[Op::Rename("a", "new")],
    &[Op::Rename("a", "b")],
    &[Op::Rename("b", "a")],
    &[Op::Rename("a", "d/new")],
    &[Op::Rename("d/a", "a")],
    &[Op::Rename("new", "a")],
    &[Op::Rename("d", "e")],
    &[Op::Symlink("new")],
    &[Op::Link("a", "new")],
    &[Op::Link("a", "d/new")],
    &[Op::Fsync("a")],
];
const FOLDER: &[Name] = &["a", "b", "new", "d", "d/a", "d/new", "e", "e/a", "e/new"];
/// Sequences that are under way when it crashes.
const AT_ONCE: usize = 48;
/// Those that one thread does.
const SHARE: usize = 6;
/// What each sequence begins with; it is published.
const BEFORE: &[Op] = &[
    Op::Write("a", 0, 3),
    Op::Close("a"),
    Op::Write("b", 0, 1),
    Op::Close("b"),
    Op::Mkdir("d"),
    Op::Write("d/a", 0, 1),
    Op::Close("d/a"),
];

/// Every sequence of one or two of [`OPS`] that can be done, with every file or folder to sync at the end.
fn sequences() -> Vec<[&'static [Op]; 3]> {
    const SYNCS: &[&[Op]] = &[
        &[Op::Fsync("")],
        &[Op::Fsync("a")],
        &[Op::Fsync("b")],
        &[Op::Fsync("new")],
        &[Op::Fsync("d/a")],
        &[Op::Fsync("d/new")],
        &[Op::Fsync("e/a")],
        &[Op::Fsync("d")],
    ];
    let mut all = Vec::new();
    for first in [&[][..]].iter().chain(OPS) {
        for second in OPS {
            for sync in SYNCS {
                let sequence = [*first, *second, *sync];
                let mut promises = Promises::default();
                let mut ops = BEFORE.iter().chain(sequence.into_iter().flatten());
                if ops.all(|op| promises.try_out(*op, FOLDER)) {
                    all.push(sequence);
                }
            }
        }
    }
    all
}

fn sequences_survive(after: After, crashes: u64) {
    let mut random = StdRng::seed_from_u64(seed());
    let mut sequences = sequences();
    shuffle(&mut sequences, &mut random);
    let mut machine = Machine::new(after);
    let mut done = 0;
    for (batch, _) in sequences.chunks(AT_ONCE).zip(turns(crashes)) {
        let mut works = Vec::new();
        for (number, sequence) in batch.iter().enumerate() {
            let folder = machine.mount.path(&format!("{}-{number}", machine.boots));
            fs::create_dir(&folder).unwrap();
            let mut work = Work::new(folder, FOLDER);
            for op in BEFORE {
                work.act(*op).unwrap();
            }
            works.push((work, sequence));
        }
        machine.publish(works.iter_mut().map(|(work, _)| work));
        // Each step of all before the next of any: so little time passes from the first one to the crash.
        let barrier = Barrier::new(works.len().div_ceil(SHARE));
        thread::scope(|scope| {
            for share in works.chunks_mut(SHARE) {
                let barrier = &barrier;
                scope.spawn(move || {
                    for step in 0..3 {
                        barrier.wait();
                        for (work, sequence) in share.iter_mut() {
                            for op in sequence[step] {
                                work.act(*op).unwrap();
                            }
                        }
                    }
                });
            }
        });
        machine.crash();
        works.iter_mut().for_each(|(work, _)| work.abandon());
        machine.restart();
        machine.check(works.iter().map(|(work, _)| work), after);
        done += batch.len();
    }
    println!("{done} sequences");
    machine.ends();
}

fn shuffle<T>(items: &mut [T], random: &mut impl Rng) {
    for at in (1..items.len()).rev() {
        items.swap(at, random.random_range(0..=at));
    }
}

#[test]
fn one_or_two_operations_and_a_sync_keep_their_promises_when_the_process_is_killed() {
    sequences_survive(After::Kill, 6);
}

#[test]
fn one_or_two_operations_and_a_sync_keep_their_promises_when_the_machine_goes_down() {
    sequences_survive(After::PowerLoss, 5);
}
