//! What the tests need of the machine, and what they must give back: namespaces, mounts, processes.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::OnceLock,
};

use rustix::{
    mount::{MountFlags, UnmountFlags, mount, unmount},
    process::{Pid, Signal, geteuid, getpid, kill_process},
};

/// What every namespace and temporary directory of these tests starts with; the process id of the test run follows.
pub(crate) const PREFIX: &str = "p2pfs-test-";

const CONNECTIONS: &str = "/sys/fs/fuse/connections";

/// Panics with what to do where the machine lacks something. Clears what killed test runs left.
pub(crate) fn require() {
    static LACKING: OnceLock<Option<String>> = OnceLock::new();
    let lacking = LACKING.get_or_init(|| {
        let lacking = lacking();
        if lacking.is_none() {
            sweep();
        }
        lacking
    });
    if let Some(lacking) = lacking {
        panic!("the mount tests cannot run: {lacking}");
    }
}

fn lacking() -> Option<String> {
    if !geteuid().is_root() {
        return Some(
            "they make network namespaces: run them as root (mount-tests/run does what is needed)"
                .into(),
        );
    }
    if !Path::new("/dev/fuse").exists() {
        return Some("there is no /dev/fuse: load the kernel module (modprobe fuse), or give the container the device".into());
    }
    for (program, package) in [
        ("ip", "iproute2"),
        ("tc", "iproute2"),
        ("nsenter", "util-linux"),
        ("setpriv", "util-linux"),
        ("git", "git"),
        ("cc", "gcc"),
    ] {
        if !on_path(program) {
            return Some(format!(
                "{program} is not installed: apt-get install {package}"
            ));
        }
    }
    let connections_shown =
        fs::read_to_string("/proc/self/mounts").is_ok_and(|mounts| mounts.contains(CONNECTIONS));
    if !connections_shown
        && let Err(error) = mount("fusectl", CONNECTIONS, "fusectl", MountFlags::empty(), None)
    {
        return Some(format!(
            "{CONNECTIONS}, needed to abort a mount that hangs, cannot be mounted: {error}"
        ));
    }
    None
}

/// Whether a program is installed.
pub(crate) fn on_path(program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).any(|dir| dir.join(program).is_file())
}

/// Whether a process runs. One that ended and that nobody has asked about yet doesn't: in a container there may be nobody
/// who would.
pub fn runs(pid: Pid) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    // The name in parentheses may contain anything.
    let state = stat
        .rsplit_once(") ")
        .and_then(|(_, rest)| rest.chars().next());
    state.is_some_and(|state| !matches!(state, 'Z' | 'X'))
}

/// A lab of this process: names its namespaces and its directory.
pub(crate) fn new_tag() -> String {
    use std::sync::atomic::{AtomicU32, Ordering::Relaxed};
    static NEXT: AtomicU32 = AtomicU32::new(0);
    format!(
        "{PREFIX}{}-{}",
        getpid().as_raw_nonzero(),
        NEXT.fetch_add(1, Relaxed)
    )
}

/// Directory of a lab.
pub(crate) fn dir_of(tag: &str) -> PathBuf {
    std::env::temp_dir().join(tag)
}

/// Clears everything of labs whose test run is dead.
fn sweep() {
    let names = |dir: &Path| {
        let entries = fs::read_dir(dir).into_iter().flatten().flatten();
        entries
            .map(|entry| entry.file_name().to_string_lossy().into_owned())
            .collect::<Vec<_>>()
    };
    let mut labs = names(Path::new("/var/run/netns"));
    labs.extend(names(&std::env::temp_dir()));
    for name in labs {
        let mut parts = name
            .strip_prefix(PREFIX)
            .into_iter()
            .flat_map(|rest| rest.split('-'));
        let (Some(pid), Some(number)) = (parts.next(), parts.next()) else {
            continue;
        };
        let dead = pid
            .parse()
            .ok()
            .and_then(Pid::from_raw)
            .is_some_and(|pid| !runs(pid));
        if dead {
            clear(&format!("{PREFIX}{pid}-{number}"));
        }
    }
}

/// Clears a lab: processes, mounts, namespaces, directory. Goes on after failures; there is nobody to tell but the log.
pub(crate) fn clear(tag: &str) {
    let dir = dir_of(tag);
    let namespaces = namespaces(tag);
    // Whoever is stuck in a mount cannot be killed before its connection is aborted.
    for (_, minor) in mounts_below(&dir) {
        abort(minor);
    }
    for namespace in &namespaces {
        for pid in pids_in(namespace) {
            let _ = kill_process(pid, Signal::KILL);
        }
    }
    // Disks of hosts, too.
    for (mountpoint, ..) in all_mounts_below(&dir).iter().rev() {
        let _ = unmount(mountpoint, UnmountFlags::DETACH);
    }
    for namespace in &namespaces {
        crate::wait::until(crate::SOON, "killed processes go away", || {
            pids_in(namespace).is_empty()
        });
        let _ = ip(&["netns", "delete", namespace]);
    }
    if dir.exists()
        && let Err(error) = fs::remove_dir_all(&dir)
    {
        eprintln!("{} stays behind: {error}", dir.display());
    }
}

fn namespaces(tag: &str) -> Vec<String> {
    let entries = fs::read_dir("/var/run/netns")
        .into_iter()
        .flatten()
        .flatten();
    entries
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .filter(|name| {
            name.strip_prefix(tag)
                .is_some_and(|rest| rest.starts_with('-'))
        })
        .collect()
}

fn pids_in(namespace: &str) -> Vec<Pid> {
    let listed = ip(&["netns", "pids", namespace]).unwrap_or_default();
    let pids = listed
        .split_whitespace()
        .filter_map(|pid| Pid::from_raw(pid.parse().ok()?));
    // Threads of the tests that play a host are in its namespace; the process itself is not.
    pids.filter(|pid| *pid != getpid()).collect()
}

/// Runs `ip`; standard output, or standard error as the error.
pub(crate) fn ip(args: &[&str]) -> Result<String, String> {
    tool("ip", args)
}

/// Runs a tool that ends by itself.
pub(crate) fn tool(program: &str, args: &[&str]) -> Result<String, String> {
    let output = Command::new(program)
        .args(args)
        .stdin(Stdio::null())
        .output()
        .map_err(|error| format!("{program}: {error}"))?;
    if output.status.success() {
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    } else {
        Err(format!(
            "{program} {}: {}",
            args.join(" "),
            String::from_utf8_lossy(&output.stderr).trim()
        ))
    }
}

/// FUSE mounts below a directory with the minor numbers of their devices, which name their connections.
pub(crate) fn mounts_below(dir: &Path) -> Vec<(PathBuf, u32)> {
    let mounts = all_mounts_below(dir).into_iter();
    let fuse = mounts.filter(|(.., kind)| kind.starts_with("fuse"));
    fuse.map(|(mountpoint, minor, _)| (mountpoint, minor))
        .collect()
}

/// Mounts below a directory with minor numbers and types. Read from the kernel's table, since looking at a mount itself may
/// hang.
fn all_mounts_below(dir: &Path) -> Vec<(PathBuf, u32, String)> {
    let table = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let mounts = table.lines().filter_map(|line| {
        let mut fields = line.split(' ');
        let (_, minor) = fields.nth(2)?.split_once(':')?;
        let mountpoint = PathBuf::from(fields.nth(1)?.replace("\\040", " "));
        let kind = line.split(" - ").nth(1)?.split(' ').next()?;
        (mountpoint.starts_with(dir)).then_some((mountpoint, minor.parse().ok()?, kind.to_owned()))
    });
    mounts.collect()
}

/// Ends a FUSE connection: everybody who waits in it gets an error.
pub(crate) fn abort(minor: u32) {
    // Gone already is as good.
    let _ = fs::write(format!("{CONNECTIONS}/{minor}/abort"), "1");
}
