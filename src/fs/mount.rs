//! Mounting, unmounting, and clearing what dead processes left mounted.

use std::{
    ffi::OsStr,
    io,
    os::unix::ffi::{OsStrExt, OsStringExt},
    path::{Path, PathBuf},
    process::Command,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use fuser::{MountOption, Session, SessionACL};
use rustix::{io::Errno, mount::UnmountFlags};
use tokio::{sync::watch, task::JoinHandle};

use super::{
    Config, ahead,
    core::{Core, InUse, Options},
    fuse::Shell,
    guard,
    notify::{self, Notices},
    parts::{Bring, Tree},
    publish,
};
use crate::{
    manifest::TreePath,
    node::namespace::{Namespace, RemoteChanges},
    store::{Store, StoreError},
    transfer::Transfers,
};

/// Threads that take requests from the kernel. They never wait for the network, only for the disk.
const SESSION_THREADS: usize = 4;
/// The kernel's readahead, where this process may raise it (root): a megabyte doubles sequential reads.
const READ_AHEAD_KIB: &str = "1024";
/// Numbers of the kernel's: a capability, and types of filesystems.
const CAP_SYS_ADMIN: u32 = 21;
const OVERLAYFS: u64 = 0x794c_7630;
const FUSE: u64 = 0x6573_5546;
/// Dead mounts on top of each other that are cleared; more than that is something else.
const STALE_MAX: usize = 16;
/// How long putting unpublished files on disk may take at the end.
const KEEP_WITHIN: Duration = Duration::from_secs(20);
/// As many users of a busy folder are named.
const USERS_NAMED_MAX: usize = 8;

/// Why the folder could not be mounted or unmounted.
#[derive(Debug, thiserror::Error)]
pub enum MountError {
    /// It can't be done as things are.
    #[error("{what}")]
    Refused {
        /// One sentence.
        what: String,
        /// What to do about it.
        hint: String,
    },
    /// Somebody uses the folder.
    #[error("{} is in use by {users}", dir.display())]
    Busy {
        /// The mount point.
        dir: PathBuf,
        /// Programs and process ids, as far as they can be seen.
        users: String,
    },
    /// The system failed.
    #[error("{what}: {source}")]
    Io {
        /// What was being done.
        what: String,
        /// What the system said.
        source: io::Error,
    },
    /// What is unpublished could not be read.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Figures for `status`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Status {
    /// Open file handles.
    pub open_files: u64,
    /// Files with something that is not published yet.
    pub unpublished_files: u64,
    /// Their sizes together.
    pub unpublished_bytes: u64,
}

impl std::fmt::Debug for Mounted {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Mounted")
            .field("mountpoint", &self.mountpoint)
            .finish_non_exhaustive()
    }
}

/// A mounted folder. Dropping it detaches the mount.
pub struct Mounted {
    core: Arc<Core>,
    mountpoint: PathBuf,
    /// It was unmounted from here, though somebody may still use it.
    is_detached: AtomicBool,
    ended: watch::Receiver<bool>,
    tasks: Vec<JoinHandle<()>>,
}

/// Mounts.
///
/// # Errors
/// See [`MountError`]; nothing stays mounted then.
pub fn mount(
    config: Config,
    namespace: Namespace,
    store: Store,
    transfers: Transfers,
    runtime: tokio::runtime::Handle,
) -> Result<Mounted, MountError> {
    let changes = namespace.remote_changes();
    mount_parts(
        config,
        Arc::new(namespace),
        changes,
        store,
        Arc::new(transfers),
        runtime,
    )
}

/// [`mount`], with what tests put in place of the node.
pub(super) fn mount_parts(
    config: Config,
    tree: Arc<dyn Tree>,
    changes: tokio::sync::broadcast::Receiver<RemoteChanges>,
    store: Store,
    bring: Arc<dyn Bring>,
    runtime: tokio::runtime::Handle,
) -> Result<Mounted, MountError> {
    let mountpoint = prepare(&config.mountpoint)?;
    let options = Options {
        read_only: config.read_only,
        owner: config.owner,
        uid: rustix::process::getuid().as_raw(),
        gid: rustix::process::getgid().as_raw(),
        wait: config.wait,
        state_dir: config.state_dir.clone(),
        pinned: config.pinned.clone(),
    };
    let core = Arc::new(Core::new(
        tree,
        store,
        bring,
        config.holders.clone(),
        options,
    ));
    let unfinished = core.aftermath()?;
    let later = if unfinished.is_empty() || config.read_only {
        Vec::new()
    } else {
        tracing::info!(
            files = unfinished.len(),
            "taking up files that were not published"
        );
        core.recover_here(unfinished)
    };
    let shell = Shell {
        core: core.clone(),
        runtime: runtime.clone(),
        may_pass: config.passthrough && may_pass(&config.state_dir),
        writeback: false,
        opens_folders: false,
    };
    let session = Session::new(shell, &mountpoint, &session_config(&config))
        .map_err(|error| refused(&mountpoint, &config, error))?;
    let notices =
        Notices::start(&core, &session.notifier()).map_err(io_error("starting a thread"))?;
    notify::give_up_pages(&core, session.notifier()).map_err(io_error("starting a thread"))?;
    let (ends, ended) = watch::channel(false);
    std::thread::Builder::new()
        .name("p2pfs-session".into())
        .spawn(move || {
            match session.run() {
                Ok(()) => {}
                // So it ends, too, with the last program that used what was detached.
                Err(error) if error.raw_os_error() == Some(libc::ECONNABORTED) => {
                    tracing::info!("the kernel has ended the connection");
                }
                Err(error) => tracing::error!(%error, "the connection to the kernel broke"),
            }
            ends.send_replace(true);
        })
        .map_err(io_error("starting a thread"))?;
    raise_readahead(&mountpoint);
    if let Some(program) = &config.guard {
        start_guard(program, &mountpoint);
    }
    let mut tasks = vec![
        runtime.spawn(publish::publisher(core.clone())),
        runtime.spawn(publish::settler(core.clone())),
        runtime.spawn(ahead::follow(core.clone())),
        runtime.spawn(publish::hasher(core.clone())),
        runtime.spawn(notify::follow(core.clone(), changes, notices)),
    ];
    if !later.is_empty() {
        let recovering = core.clone();
        tasks.push(runtime.spawn(async move {
            if let Err(error) = recovering.recover(later).await {
                tracing::error!(%error, "taking up unpublished files ended early");
            }
        }));
    }
    Ok(Mounted {
        core,
        mountpoint,
        is_detached: AtomicBool::new(false),
        ended,
        tasks,
    })
}

impl Mounted {
    /// Returns once the kernel's side is gone: unmounted by whatever means, and no longer used by anybody.
    pub async fn ended(&self) {
        // The sender goes with the thread that says so; either way it is over.
        let _ = self.ended.clone().wait_for(|ended| *ended).await;
    }

    /// Unmounts. `lazy`: detaches at once, and whoever uses the folder keeps it until done. Blocks on the kernel for a moment.
    pub fn unmount(&self, lazy: bool) -> Result<(), MountError> {
        if *self.ended.borrow() {
            return Ok(());
        }
        if self.is_detached.load(Ordering::Acquire) {
            // Another mount may be there by now.
            return match lazy {
                true => Ok(()),
                false => Err(busy(&self.mountpoint)),
            };
        }
        detach(&self.mountpoint, lazy)?;
        self.is_detached.store(true, Ordering::Release);
        Ok(())
    }

    /// Publishes every file with something unpublished, and puts it on disk. What isn't done within the time is put on disk
    /// for the next mount.
    pub async fn publish_all(&self, within: Duration) {
        if tokio::time::timeout(within, self.core.publish_all())
            .await
            .is_err()
        {
            tracing::warn!("some files are not published yet; they are kept for the next mount");
        }
        match tokio::time::timeout(KEEP_WITHIN, self.core.keep_unpublished()).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::error!(%error, "not all that is unpublished could be kept"),
            Err(_) => tracing::warn!("the disk is slow: not all that is unpublished is on it"),
        }
    }

    /// Figures.
    pub fn status(&self) -> Status {
        self.core.status()
    }

    /// Whether a file at or below the path has something that is not published.
    pub fn is_unpublished(&self, path: &TreePath) -> bool {
        let lives: Vec<_> = self.core.lives.lock().values().cloned().collect();
        lives.iter().any(|live| {
            let state = live.state.lock();
            (state.is_dirty() || state.importing) && !state.unlinked && state.path.is_within(path)
        })
    }

    /// Looks while nothing in the folder changes its name or is opened here, with what is in use then. Others wait meanwhile.
    /// `None` where that can't be now.
    pub fn at_rest<T>(&self, look: impl FnOnce(InUse) -> T) -> Option<T> {
        self.core.at_rest(look)
    }

    #[cfg(test)]
    pub(super) fn core(&self) -> &Arc<Core> {
        &self.core
    }

    /// The mount point, resolved.
    pub fn mountpoint(&self) -> &Path {
        &self.mountpoint
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        for task in &self.tasks {
            task.abort();
        }
        if let Err(error) = self.unmount(true) {
            tracing::debug!(%error, "unmounting at the end");
        }
    }
}

impl Core {
    fn status(&self) -> Status {
        let lives: Vec<_> = self.lives.lock().values().cloned().collect();
        let mut status = Status {
            open_files: self.files.lock().len() as u64,
            ..Status::default()
        };
        for live in lives {
            let state = live.state.lock();
            if state.is_dirty() && !state.unlinked {
                status.unpublished_files += 1;
                status.unpublished_bytes += state.overlay.size();
            }
        }
        status
    }
}

/// Unmounts a folder whose process is gone: the kernel answers ENOTCONN for it. True when there was one. Other mounts are
/// left alone.
pub fn clear_stale(dir: &Path) -> Result<bool, MountError> {
    let mut cleared = false;
    for _ in 0..STALE_MAX {
        // Not stat: the kernel answers that from its cache, for dead mounts as well.
        match rustix::fs::statfs(dir) {
            Err(Errno::NOTCONN | Errno::CONNABORTED) => {}
            _ => return Ok(cleared),
        }
        let place = without_touching(dir)?;
        if find_mount(&place)?.is_none() {
            return Err(MountError::Refused {
                what: format!(
                    "something else is mounted on {}, and its process is dead",
                    dir.display()
                ),
                hint: format!("unmount it first: umount -l {}", dir.display()),
            });
        }
        detach(&place, true)?;
        cleared = true;
    }
    Ok(cleared)
}

/// Makes the mount point ready, and resolves it.
fn prepare(dir: &Path) -> Result<PathBuf, MountError> {
    clear_stale(dir)?;
    std::fs::create_dir_all(dir).map_err(|source| match source.kind() {
        io::ErrorKind::AlreadyExists | io::ErrorKind::NotADirectory => MountError::Refused {
            what: format!("{} is not a folder", dir.display()),
            hint: "name a folder; it is made where it is missing".into(),
        },
        _ => io_error("making the mount point")(source),
    })?;
    let dir = dir
        .canonicalize()
        .map_err(io_error("looking at the mount point"))?;
    if find_mount(&dir)?.is_some() {
        return Err(MountError::Refused {
            what: format!("a cluster is mounted on {} already", dir.display()),
            hint: format!("unmount it first: p2pfs unmount {}", dir.display()),
        });
    }
    let mut inside = std::fs::read_dir(&dir).map_err(io_error("looking into the mount point"))?;
    if inside.next().is_some() {
        return Err(MountError::Refused {
            what: format!("{} is not empty", dir.display()),
            hint: "a mount would hide what is in it: move that away, or name another folder".into(),
        });
    }
    if !Path::new("/dev/fuse").exists() {
        return Err(MountError::Refused {
            what: "/dev/fuse is missing".into(),
            hint: "load it with: modprobe fuse (a container needs --device /dev/fuse --cap-add SYS_ADMIN)".into(),
        });
    }
    Ok(dir)
}

fn session_config(config: &Config) -> fuser::Config {
    let mut session = fuser::Config::default();
    session.mount_options = vec![
        MountOption::FSName(format!("p2pfs:{}", config.name)),
        // The variant for it is for fusermount alone; the kernel takes it, too.
        MountOption::CUSTOM("subtype=p2pfs".into()),
        MountOption::DefaultPermissions,
        MountOption::NoSuid,
        MountOption::NoDev,
        MountOption::NoAtime,
    ];
    if config.read_only {
        session.mount_options.push(MountOption::RO);
    }
    session.acl = match config.allow_other {
        true => SessionACL::All,
        false => SessionACL::Owner,
    };
    session.n_threads = Some(SESSION_THREADS);
    session.clone_fd = true;
    session
}

/// Whether the kernel may take backing files from this process: that needs CAP_SYS_ADMIN on the machine itself (in a user
/// namespace of its own it doesn't count), and a state folder on a filesystem that isn't stacked on another.
fn may_pass(state_dir: &Path) -> bool {
    let read = |path| std::fs::read_to_string(path).unwrap_or_default();
    let is_stacked = rustix::fs::statfs(state_dir)
        .is_ok_and(|disk| [OVERLAYFS, FUSE].contains(&u64::try_from(disk.f_type).unwrap_or(0)));
    is_privileged(&read("/proc/self/status"), &read("/proc/self/uid_map")) && !is_stacked
}

fn is_privileged(status: &str, uid_map: &str) -> bool {
    let effective = status
        .lines()
        .find_map(|line| line.strip_prefix("CapEff:"))
        .and_then(|set| u64::from_str_radix(set.trim(), 16).ok());
    let whole = ["0", "0", "4294967295"];
    effective.is_some_and(|set| set >> CAP_SYS_ADMIN & 1 == 1)
        && uid_map.split_whitespace().eq(whole)
}

/// What to say when the system wouldn't mount.
fn refused(dir: &Path, config: &Config, error: io::Error) -> MountError {
    let said = error.to_string();
    // fusermount3 ends what it says with a line break.
    let said = said.trim();
    let is_root = rustix::process::geteuid().is_root();
    let hint = if config.allow_other && said.contains("user_allow_other") {
        "let users share mounts: put the line user_allow_other into /etc/fuse.conf"
    } else if !is_root && !has_fusermount() {
        "install fusermount3 (package fuse3), with which users other than root mount"
    } else if error.kind() == io::ErrorKind::PermissionDenied
        || said.contains("EPERM")
        || said.contains("not permitted")
        // The kernel refused, and fusermount3 was to try next.
        || (error.kind() == io::ErrorKind::NotFound && !has_fusermount())
    {
        "mount as root, or with fusermount3 installed and access to /dev/fuse (a container needs --device /dev/fuse --cap-add SYS_ADMIN)"
    } else {
        "it takes /dev/fuse, and for who is not root fusermount3 (package fuse3)"
    };
    MountError::Refused {
        what: format!("the system refused to mount on {}: {said}", dir.display()),
        hint: hint.into(),
    }
}

fn has_fusermount() -> bool {
    let search = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&search).any(|dir| dir.join("fusermount3").exists())
}

fn detach(dir: &Path, lazy: bool) -> Result<(), MountError> {
    let flags = match lazy {
        true => UnmountFlags::DETACH,
        false => UnmountFlags::empty(),
    };
    match rustix::mount::unmount(dir, flags) {
        // Not mounted (any more).
        Ok(()) | Err(Errno::INVAL | Errno::NOENT) => Ok(()),
        Err(Errno::BUSY) => Err(busy(dir)),
        Err(Errno::PERM | Errno::ACCESS) => detach_as_user(dir, lazy),
        Err(error) => Err(io_error("unmounting")(error.into())),
    }
}

fn detach_as_user(dir: &Path, lazy: bool) -> Result<(), MountError> {
    let mut command = Command::new("fusermount3");
    command
        .arg(if lazy { "-uz" } else { "-u" })
        .arg("--")
        .arg(dir);
    let output = command.output().map_err(|source| match source.kind() {
        io::ErrorKind::NotFound => MountError::Refused {
            what: format!(
                "{} can't be unmounted: fusermount3 is missing",
                dir.display()
            ),
            hint: "install it (package fuse3), or unmount as root".into(),
        },
        _ => io_error("running fusermount3")(source),
    })?;
    if output.status.success() || find_mount(dir)?.is_none() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    if said.contains("busy") {
        return Err(busy(dir));
    }
    Err(io_error("unmounting")(io::Error::other(
        said.trim().to_owned(),
    )))
}

fn busy(dir: &Path) -> MountError {
    MountError::Busy {
        dir: dir.to_owned(),
        users: users(dir),
    }
}

/// Who has the folder, or something in it, open or as working folder; links in `/proc` alone are looked at.
fn users(dir: &Path) -> String {
    let mut users = Vec::new();
    for process in std::fs::read_dir("/proc").into_iter().flatten().flatten() {
        let place = process.path();
        let pid = process.file_name();
        let Some(pid) = pid.to_str().and_then(|pid| pid.parse::<u32>().ok()) else {
            continue;
        };
        let files = std::fs::read_dir(place.join("fd")).into_iter().flatten();
        let links = files.flatten().map(|file| file.path());
        let links = links.chain(["cwd", "root", "exe"].map(|link| place.join(link)));
        let mut targets = links.filter_map(|link| std::fs::read_link(link).ok());
        if targets.any(|target| target.starts_with(dir)) {
            let name = std::fs::read_to_string(place.join("comm")).unwrap_or_default();
            users.push(format!("{} (pid {pid})", name.trim()));
        }
    }
    if users.is_empty() {
        return "processes that can't be seen from here".into();
    }
    let more = users.len().saturating_sub(USERS_NAMED_MAX);
    users.truncate(USERS_NAMED_MAX);
    let named = users.join(", ");
    match more {
        0 => named,
        more => format!("{named} and {more} more"),
    }
}

/// Where that can't be, a process that is killed may keep others waiting, as without one.
fn start_guard(program: &Path, mountpoint: &Path) {
    let started = find_mount(mountpoint).and_then(|device| match device {
        Some(device) => guard::start(program, &device).map_err(io_error("starting a guard")),
        None => Ok(()),
    });
    if let Err(error) = started {
        tracing::info!(%error, "the mount has no guard");
    }
}

/// The device number of the cluster's mount on a folder, as `major:minor`, from the kernel's table; the folder itself is not
/// touched.
fn find_mount(dir: &Path) -> Result<Option<String>, MountError> {
    let table = std::fs::read("/proc/self/mountinfo").map_err(io_error("reading the mounts"))?;
    let mut found = None;
    for line in table.split(|byte| *byte == b'\n') {
        if let Some((place, device, kind, source)) = parse_mount(line)
            && place == dir
        {
            // The last one on a folder is the one on top.
            let is_ours = kind == b"fuse.p2pfs" || source.starts_with(b"p2pfs:");
            found = is_ours.then_some(device);
        }
    }
    Ok(found)
}

/// One line of `/proc/self/mountinfo`: place, device, type, source.
fn parse_mount(line: &[u8]) -> Option<(PathBuf, String, &[u8], &[u8])> {
    let mut fields = line.split(|byte| *byte == b' ');
    let device = fields.nth(2)?;
    let place = fields.nth(1)?;
    let mut rest = fields.skip_while(|field| *field != b"-").skip(1);
    let (kind, source) = (rest.next()?, rest.next()?);
    let place = PathBuf::from(std::ffi::OsString::from_vec(unescape(place)));
    Some((
        place,
        String::from_utf8_lossy(device).into_owned(),
        kind,
        source,
    ))
}

/// Undoes the kernel's octal escapes (`\040` for a space).
fn unescape(field: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((&byte, after)) = rest.split_first() {
        let code = after
            .get(..3)
            .and_then(|digits| std::str::from_utf8(digits).ok());
        match code.and_then(|code| u8::from_str_radix(code, 8).ok()) {
            Some(code) if byte == b'\\' => {
                out.push(code);
                rest = after.get(3..).unwrap_or_default();
            }
            _ => {
                out.push(byte);
                rest = after;
            }
        }
    }
    out
}

/// The resolved path of a folder that can't be looked at itself.
fn without_touching(dir: &Path) -> Result<PathBuf, MountError> {
    let whole = std::path::absolute(dir).map_err(io_error("looking at the mount point"))?;
    let (Some(parent), Some(name)) = (whole.parent(), whole.file_name()) else {
        return Ok(whole);
    };
    let name: &OsStr = OsStr::from_bytes(name.as_bytes());
    let parent = parent
        .canonicalize()
        .map_err(io_error("looking at the mount point"))?;
    Ok(parent.join(name))
}

/// Raises the kernel's readahead for this mount; without the right to, it stays as it is.
fn raise_readahead(dir: &Path) {
    let Ok(Some(device)) = find_mount(dir) else {
        return;
    };
    let setting = format!("/sys/class/bdi/{device}/read_ahead_kb");
    if let Err(error) = std::fs::write(&setting, READ_AHEAD_KIB) {
        tracing::debug!(setting, %error, "the kernel's readahead stays as it is");
    }
}

fn io_error(what: &'static str) -> impl Fn(io::Error) -> MountError {
    move |source| MountError::Io {
        what: what.into(),
        source,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_of_mounts_is_read_with_its_escapes() {
        let line = b"36 35 0:48 / /mnt/a\\040b rw,nosuid shared:1 master:2 - fuse.p2pfs p2pfs:home rw,user_id=0";
        let (place, device, kind, source) = parse_mount(line).expect("parses");
        assert_eq!(place, Path::new("/mnt/a b"));
        assert_eq!(device, "0:48");
        assert_eq!(kind, b"fuse.p2pfs");
        assert_eq!(source, b"p2pfs:home");
        assert_eq!(parse_mount(b""), None);
        assert_eq!(parse_mount(b"1 2 3 4"), None);
    }

    #[test]
    fn only_who_has_the_right_on_the_machine_itself_is_privileged() {
        let root = "Name:\tp2pfs\nCapPrm:\t000001ffffffffff\nCapEff:\t000001ffffffffff\n";
        let user = "Name:\tp2pfs\nCapEff:\t0000000000000000\n";
        let machine = "         0          0 4294967295\n";
        assert!(is_privileged(root, machine));
        assert!(!is_privileged(user, machine));
        assert!(!is_privileged(root, "         0       1000          1\n"));
        assert!(!is_privileged("", ""));
    }

    #[test]
    fn a_folder_that_is_fine_is_not_stale() {
        let dir = tempfile::tempdir().expect("dir");
        assert!(!clear_stale(dir.path()).expect("looked"));
        assert!(!clear_stale(&dir.path().join("missing")).expect("looked"));
    }

    #[test]
    fn what_can_not_be_a_mount_point_is_refused_with_advice() {
        let dir = tempfile::tempdir().expect("dir");
        let file = dir.path().join("file");
        std::fs::write(&file, b"x").expect("write");
        for place in [file.as_path(), dir.path()] {
            let error = prepare(place).expect_err("refused");
            assert!(matches!(error, MountError::Refused { .. }), "{error}");
        }
    }
}
