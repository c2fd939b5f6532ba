//! `mount` and `unmount`.

use std::{
    os::unix::process::CommandExt,
    path::PathBuf,
    process::{Command, ExitCode},
    time::Duration,
};

use tokio::sync::watch;

use super::{
    Failure, Outcome, What,
    args::{Common, GuardArgs, MountArgs, UnmountArgs},
    background::{self, Report},
    cluster::{is_id, parse_trackers, resolve},
    locate::{self, refused},
    logging,
    units::size,
};
use crate::{
    cluster::Role,
    control::{client::ClientError, types::UnmountRequest},
    fs::{self, OwnerMode},
    node::{Node, NodeConfig, NodeError, address, state::SavedCluster},
    store::StoreError,
};

/// What is left free on the disk, unless another size is asked for.
const MIN_FREE_BYTES: u64 = 1024 * 1024 * 1024;
/// The smallest limit of the cache: an empty index takes about 1 MiB.
const CACHE_BYTES_MIN: u64 = 16 * 1024 * 1024;
/// How long a read waits without progress, unless told otherwise.
const READ_TIMEOUT: Duration = Duration::from_secs(20);

pub(crate) fn run(common: &Common, options: MountArgs) -> Outcome {
    if !options.background {
        logging_before_mount(common, &options);
    }
    let saved = resolve(common, &options.cluster)?;
    if is_id(&options.cluster) {
        return run_under_name(&options.cluster, &saved);
    }
    let config = config(&saved, &options)?;
    if options.background {
        let log_file = options.log_file.clone().unwrap_or_else(|| saved.log_file());
        return background::serve(|ready| {
            logging::to_file(common, &log_file).what(format_args!(
                "the log {} cannot be written",
                log_file.display()
            ))?;
            super::runtime()?.block_on(mount(saved, config, ready))
        });
    }
    if options.foreground {
        return super::runtime()?.block_on(mount(saved, config, &mut |report| {
            announce(common, &report)
        }));
    }
    let report = background::spawn(common, &options, &saved)?;
    announce(common, &report);
    Ok(ExitCode::SUCCESS)
}

/// Every user can read the command line of a running process: goes on as a process that has the saved name in place of
/// the id.
fn run_under_name(id: &str, saved: &SavedCluster) -> Outcome {
    let what = "the mount could not be started";
    let program = std::env::current_exe().what(what)?;
    let words = std::env::args_os().skip(1);
    let words = words.map(|word| {
        if word == id {
            saved.name.to_string().into()
        } else {
            word
        }
    });
    Err(Command::new(program).args(words).exec()).what(what)
}

fn logging_before_mount(common: &Common, options: &MountArgs) {
    if options.foreground {
        logging::story_to_stderr(common);
    } else {
        logging::to_stderr(common);
    }
}

fn announce(common: &Common, report: &Report) {
    for warning in &report.warnings {
        err!("p2pfs: warning: {warning}");
    }
    if !common.quiet {
        told!(
            "{} mounted on {}, {}, {}",
            report.name,
            report.mountpoint,
            match report.role {
                Role::ReadWrite => "read-write",
                Role::ReadOnly => "read-only",
            },
            super::units::count(report.peers as u64, "peer", "peers") + " found",
        );
    }
}

/// Checks the words of the command line; what can be wrong with them is said before anything is started.
fn config(saved: &SavedCluster, options: &MountArgs) -> Result<NodeConfig, Failure> {
    let trackers = if options.tracker.is_empty() {
        &saved.trackers
    } else {
        &options.tracker
    };
    let addresses = |words: &[String]| -> Result<Vec<_>, Failure> {
        words
            .iter()
            .map(|word| address::peer(word).map_err(Failure::usage))
            .collect()
    };
    let node_name = match &options.node_name {
        None => address::host_name(),
        Some(name) if name.is_empty() || name.len() > 64 || name.chars().any(char::is_control) => {
            return Err(Failure::usage(format_args!(
                "{name:?} is no node name: use 1 to 64 bytes without control characters"
            )));
        }
        Some(name) => name.clone(),
    };
    let mountpoint = std::path::absolute(&options.dir).what(options.dir.display())?;
    let owner = match options.owner {
        Some(owner) => owner.into(),
        None if rustix::process::geteuid().is_root() && !options.allow_other => OwnerMode::Stored,
        None => OwnerMode::Mounter,
    };
    Ok(NodeConfig {
        mountpoint,
        read_only: options.read_only,
        trackers: parse_trackers(trackers)?,
        listen: addresses(&options.listen)?,
        peers: addresses(&options.peer)?,
        cache_bytes_max: options.cache_size.map(cache_size).transpose()?,
        free_bytes_min: options.min_free.unwrap_or(MIN_FREE_BYTES),
        read_timeout: options.read_timeout.unwrap_or(READ_TIMEOUT),
        upload_limit: options.upload_limit,
        download_limit: options.download_limit,
        allow_other: options.allow_other,
        passthrough: !options.no_passthrough,
        guard: std::env::current_exe().ok(),
        owner,
        new: options.new,
        keep_all: options.keep_all,
        node_name,
    })
}

fn cache_size(bytes: u64) -> Result<u64, Failure> {
    match bytes {
        CACHE_BYTES_MIN.. => Ok(bytes),
        _ => Err(Failure::usage(format_args!(
            "a cache of {bytes} bytes is too small: its index alone takes more; use 16M or more"
        ))),
    }
}

/// Mounts, tells `ready`, and stays until the mount ends.
async fn mount(saved: SavedCluster, config: NodeConfig, ready: &mut dyn FnMut(Report)) -> Outcome {
    let name = saved.name.to_string();
    let mountpoint = config.mountpoint.display().to_string();
    let mut warnings: Vec<String> = raise_open_files().into_iter().collect();
    warnings.extend(is_full(&saved.dir, &config));
    // From here on a signal ends it in order: none that comes while it starts leaves a mount without a process.
    let ending = watch::Sender::new(false);
    tokio::spawn({
        let (ending, signal) = (ending.clone(), end_signal());
        async move {
            signal.await;
            ending.send_replace(true);
        }
    });
    let made = prepare(&config.mountpoint)?;
    let (node, started) = match Node::start(saved, config.clone(), ending).await {
        Ok(started) => started,
        Err(error) => {
            // A folder that was made for a mount that didn't come about is not left behind.
            if made {
                let _ = std::fs::remove_dir(&config.mountpoint);
            }
            return Err(could_not_mount(&name, &mountpoint, error));
        }
    };
    ready(Report {
        name,
        mountpoint,
        role: node.role(),
        peers: started.peers,
        warnings: warnings.into_iter().chain(started.warnings).collect(),
    });
    node.run().await;
    Ok(ExitCode::SUCCESS)
}

/// Fewer descriptors than this are worth a word.
const OPEN_FILES_WANTED: u64 = 4096;

/// The store keeps several hundred files open, and each open handle of a program may hold one. A word where few may be.
fn raise_open_files() -> Option<String> {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit {
        current: limit.maximum,
        maximum: limit.maximum,
    };
    if let Err(error) = setrlimit(Resource::Nofile, raised) {
        tracing::warn!(%error, "the limit of open files could not be raised");
    }
    let few = limit.maximum.filter(|max| *max < OPEN_FILES_WANTED)?;
    Some(format!(
        "it may have {few} files open and no more, which many programs at work here may need: raise the limit (ulimit -Hn) to {OPEN_FILES_WANTED} or more"
    ))
}

/// A word where the disk has less free than is to be left.
fn is_full(dir: &std::path::Path, config: &NodeConfig) -> Option<String> {
    let disk = rustix::fs::statvfs(dir).ok()?;
    let free = disk.f_bavail.saturating_mul(disk.f_frsize);
    (free <= config.free_bytes_min).then(|| {
        format!(
            "the disk of {} has {} free, and {} are to be left (--min-free): nothing can be written here, nor kept of what is read",
            dir.display(),
            size(free),
            size(config.free_bytes_min)
        )
    })
}

/// Makes the folder where it is missing, and clears a mount whose process is dead. True when the folder was made.
fn prepare(mountpoint: &PathBuf) -> Result<bool, Failure> {
    let what = || format!("{} cannot be mounted on", mountpoint.display());
    locate::answers(mountpoint)?;
    fs::clear_stale(mountpoint).what(what())?;
    if mountpoint.exists() {
        if !mountpoint.is_dir() {
            return Err(Failure::new(format_args!("{}: it is not a folder", what()))
                .hint("name a folder; it is made where it is missing"));
        }
        if locate::behind(mountpoint).is_some() && is_mount_root(mountpoint) {
            return Err(Failure::new(format_args!(
                "{}: a cluster is mounted there already",
                what()
            ))
            .hint(format_args!(
                "unmount it first: p2pfs unmount {}",
                mountpoint.display()
            )));
        }
        return Ok(false);
    }
    std::fs::create_dir_all(mountpoint).what(what())?;
    Ok(true)
}

fn is_mount_root(dir: &std::path::Path) -> bool {
    let device = |path: &std::path::Path| rustix::fs::stat(path).map(|stat| stat.st_dev).ok();
    device(dir).is_some()
        && dir
            .parent()
            .is_none_or(|parent| device(parent) != device(dir))
}

fn could_not_mount(name: &str, mountpoint: &str, error: NodeError) -> Failure {
    let what = format!("{name} could not be mounted on {mountpoint}");
    match error {
        NodeError::Store(StoreError::Locked { .. }) => Failure::new(format_args!("{what}: {error}"))
            .hint("a second mount of the same cluster on one machine needs its own state folder: --state-dir DIR"),
        NodeError::Mount(fs::MountError::Refused { ref hint, .. }) => {
            let hint = hint.clone();
            Failure::new(format_args!("{what}: {error}")).hint(hint)
        }
        NodeError::NewReadOnly => Failure::usage(format_args!("{what}: {error}")),
        error => Failure::new(format_args!("{what}: {error}")),
    }
}

/// Returns at Ctrl-C, at a request to end, and when the terminal is closed; from the call on, not only while it is waited for.
pub(crate) fn end_signal() -> impl Future<Output = ()> + Send {
    use tokio::signal::unix::{SignalKind, signal};
    let kinds = [
        SignalKind::interrupt(),
        SignalKind::terminate(),
        SignalKind::hangup(),
    ];
    let waits: Vec<_> = kinds
        .into_iter()
        .filter_map(|kind| match signal(kind) {
            Ok(mut signals) => Some(Box::pin(async move { signals.recv().await })),
            Err(error) => {
                tracing::warn!(%error, "a signal cannot be waited for");
                None
            }
        })
        .collect();
    async move {
        match waits.is_empty() {
            true => std::future::pending().await,
            false => drop(futures::future::select_all(waits).await),
        }
    }
}

/// What the guard of a mount does, a process of its own.
pub(crate) fn guard(options: &GuardArgs) -> Outcome {
    let what = "the mount can't be guarded";
    let guarded = rustix::process::Pid::from_raw(options.pid);
    let guarded = guarded
        .ok_or_else(|| Failure::usage(format_args!("{what}: no process has that number")))?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build();
    runtime
        .what(what)?
        .block_on(fs::guard::run(guarded))
        .what(what)?;
    Ok(ExitCode::SUCCESS)
}

/// How long the process behind an unmounted folder is given to end.
const END_WITHIN: Duration = Duration::from_secs(90);

pub(crate) async fn unmount(common: &Common, options: UnmountArgs) -> Outcome {
    let named = options.dir.display();
    let what = format!("{named} could not be unmounted");
    locate::answers(&options.dir)?;
    if fs::clear_stale(&options.dir).what(&what)? {
        if !common.quiet {
            err!("The process behind {named} was gone; the dead mount is cleared.");
        }
        return Ok(ExitCode::SUCCESS);
    }
    locate::is_allowed(&options.dir)?;
    let Some(dir) = locate::behind(&options.dir).filter(|_| is_mount_root(&options.dir)) else {
        return Err(Failure::new(format_args!(
            "{what}: no cluster is mounted there"
        )));
    };
    let client = crate::control::client::ControlClient::new(&dir);
    let request = UnmountRequest { lazy: options.lazy };
    client
        .post::<()>("/unmount", &request, END_WITHIN)
        .await
        .map_err(refused(&what))?;
    if options.lazy {
        // It ends with the last who has something open.
        return Ok(ExitCode::SUCCESS);
    }
    let gone = async {
        while !matches!(client.version().await, Err(ClientError::NotRunning)) {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(END_WITHIN, gone).await.map_err(|_| {
        Failure::new(format_args!(
            "{named} is unmounted, but its process is still busy"
        ))
    })?;
    Ok(ExitCode::SUCCESS)
}
