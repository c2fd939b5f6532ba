//! Ends what waits on a mount whose process was killed.
//!
//! The kernel fails all operations on a mount once the last handle of its process is closed, and that is when the last thread of
//! it is gone. A thread that tells the kernel to forget a name waits, deaf to every signal, for whoever has the folder
//! locked: perhaps an operation that this process was to answer. Killed in that moment it never ends, and who uses the mount
//! waits for ever. So a second process breaks the connection, through `/sys/fs/fuse/connections`, as soon as the first one is
//! gone; where that has unmounted, the connection is, too, and nothing happens.

use std::{
    fs::{File, OpenOptions},
    io::{self, Write},
    os::unix::process::CommandExt,
    path::Path,
    process::{Command, Stdio},
    time::Duration,
};

use rustix::process::{Pid, Signal, getpid, getppid, set_parent_process_death_signal};
use tokio::signal::unix::{SignalKind, signal};

/// Where the kernel has a folder for each connection.
const CONNECTIONS: &str = "/sys/fs/fuse/connections";
/// The command that makes a program a guard; see [`run`].
pub const COMMAND: &str = "guard";
/// How often it is looked whether a process that seems to be gone is.
const LOOK_AGAIN: Duration = Duration::from_millis(50);

/// Starts the guard of the connection with this device number (`major:minor`).
pub(super) fn start(program: &Path, device: &str) -> io::Result<()> {
    let minor = device.rsplit(':').next().unwrap_or(device);
    let abort = Path::new(CONNECTIONS).join(minor).join("abort");
    // Opened now: later the number may be another mount's.
    let abort = OpenOptions::new().write(true).open(abort)?;
    let mut guard = Command::new(program);
    guard
        .arg(COMMAND)
        .arg(getpid().to_string())
        .stdin(Stdio::null())
        .stdout(abort)
        .stderr(Stdio::null())
        // Ctrl-C is for the mount alone.
        .process_group(0);
    // The guard is told of the end of the thread that has started it: one that lasts.
    let guarded = move || {
        let ended = guard.spawn().and_then(|mut guard| guard.wait());
        tracing::warn!(
            ?ended,
            "the guard has ended: should this process be killed, programs may wait for it until the folder is unmounted by force"
        );
    };
    std::thread::Builder::new()
        .name("p2pfs-guard".into())
        .spawn(guarded)?;
    Ok(())
}

/// What the guard of a process does: waits for the end of that, then breaks the connection that is its standard output.
///
/// # Errors
/// Where signals can't be had, or the connection can't be broken.
pub async fn run(guarded: Pid) -> io::Result<()> {
    let mut gone = signal(SignalKind::user_defined1())?;
    // Whoever ends all processes of a service lets the mount end in order first.
    let _deaf = [
        signal(SignalKind::interrupt())?,
        signal(SignalKind::terminate())?,
        signal(SignalKind::hangup())?,
    ];
    set_parent_process_death_signal(Some(Signal::USR1))?;
    match getppid() {
        // Not to be told from here (in another namespace of processes).
        None => return Ok(()),
        Some(parent) if parent == guarded => {
            gone.recv().await;
        }
        Some(_) => {}
    }
    // The first thread of it goes at once, whatever becomes of others; the signal may come from anybody.
    while is_running(guarded) {
        tokio::time::sleep(LOOK_AGAIN).await;
    }
    let mut connection = File::from(rustix::io::dup(rustix::stdio::stdout())?);
    connection.write_all(b"1")
}

/// Whether the first thread of a process runs.
fn is_running(process: Pid) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{}/stat", process.as_raw_nonzero()));
    let state = stat
        .ok()
        .and_then(|stat| stat.rsplit_once(") ")?.1.chars().next());
    !matches!(state, None | Some('Z' | 'X'))
}
