//! Commands with a time limit, and operations under a watchdog.

use std::{
    fs::{self, File},
    os::unix::process::{CommandExt, ExitStatusExt},
    path::Path,
    process::{Command, ExitStatus, Stdio},
    sync::{
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
        mpsc,
    },
    thread,
    time::{Duration, Instant},
};

use crate::system::{abort, mounts_below};

/// A command that ended.
#[derive(Debug)]
pub struct Finished {
    what: String,
    status: ExitStatus,
    /// What it printed.
    pub stdout: String,
    /// What it complained about.
    pub stderr: String,
    /// How long it took.
    pub took: Duration,
}

impl Finished {
    /// It must have succeeded; its standard output without the last line's end.
    #[track_caller]
    pub fn ok(&self) -> &str {
        assert!(self.status.success(), "{self}");
        self.stdout.trim_end()
    }

    /// It must have ended with this status and with an error of the form `p2pfs: …` on standard error.
    #[track_caller]
    pub fn fails(&self, code: i32) -> &str {
        assert_eq!(self.status.code(), Some(code), "{self}");
        let plain = self.stderr.starts_with("p2pfs: ") && self.stderr.lines().count() <= 2;
        assert!(
            plain,
            "an error is one sentence and a line with what to do: {self}"
        );
        self.stderr.trim_end()
    }

    /// Exit status; `None` when a signal ended it.
    pub fn code(&self) -> Option<i32> {
        self.status.code()
    }
}

impl std::fmt::Display for Finished {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let status = match self.status.signal() {
            Some(signal) => format!("signal {signal}"),
            None => format!("status {}", self.status.code().unwrap_or_default()),
        };
        write!(
            f,
            "{} ended with {status}\n{}{}",
            self.what, self.stdout, self.stderr
        )
    }
}

/// Runs a command in a process group of its own. When time is up the FUSE connections of the lab are aborted, the group is
/// killed, and the test fails. Output goes through files: a background process that keeps them open delays nobody.
#[track_caller]
pub(crate) fn run(lab: &Path, what: &str, mut command: Command, within: Duration) -> Finished {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    let number = NEXT.fetch_add(1, Relaxed);
    let (out, err) = (
        lab.join(format!("out-{number}")),
        lab.join(format!("err-{number}")),
    );
    let create = |path: &Path| File::create(path).expect("the lab's directory can be written");
    let begun = Instant::now();
    let mut child = command
        .stdin(Stdio::null())
        .stdout(create(&out))
        .stderr(create(&err))
        .process_group(0)
        .spawn()
        .unwrap_or_else(|error| panic!("{what}: {error}"));
    let mut late = false;
    let status = loop {
        match child
            .try_wait()
            .unwrap_or_else(|error| panic!("{what}: {error}"))
        {
            Some(status) => break status,
            None if !late && begun.elapsed() > within => {
                late = true;
                mounts_below(lab)
                    .iter()
                    .for_each(|(_, minor)| abort(*minor));
                let group = rustix::process::Pid::from_child(&child);
                let _ = rustix::process::kill_process_group(group, rustix::process::Signal::KILL);
            }
            None => thread::sleep(Duration::from_millis(4)),
        }
    };
    let text = |path: &Path| {
        let bytes = fs::read(path).unwrap_or_default();
        let _ = fs::remove_file(path);
        String::from_utf8_lossy(&bytes).into_owned()
    };
    let finished = Finished {
        what: what.to_owned(),
        status,
        stdout: text(&out),
        stderr: text(&err),
        took: begun.elapsed(),
    };
    assert!(
        !late,
        "not done within {within:?}, its mounts were aborted: {finished}"
    );
    finished
}

/// Runs an operation that may touch mounts below `lab`. When time is up their connections are aborted, which ends the
/// operation with an error, and the test fails.
#[track_caller]
pub(crate) fn guarded<T>(
    lab: &Path,
    what: &str,
    within: Duration,
    operation: impl FnOnce() -> T,
) -> T {
    let late = AtomicBool::new(false);
    let (done, waiting) = mpsc::channel::<()>();
    let value = thread::scope(|scope| {
        let late = &late;
        scope.spawn(move || {
            if waiting.recv_timeout(within) == Err(mpsc::RecvTimeoutError::Timeout) {
                late.store(true, Relaxed);
                mounts_below(lab)
                    .iter()
                    .for_each(|(_, minor)| abort(*minor));
            }
        });
        let value = operation();
        drop(done);
        value
    });
    assert!(
        !late.load(Relaxed),
        "not done within {within:?}, its mounts were aborted: {what}"
    );
    value
}
