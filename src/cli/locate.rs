//! Which mount a command means.

use std::{
    os::unix::{ffi::OsStrExt, fs::MetadataExt},
    path::{Path, PathBuf},
    sync::mpsc,
    thread,
    time::Duration,
};

use super::{
    Failure, What,
    args::{Common, Which},
    units::plain,
};
use crate::{
    control::client::{ClientError, ControlClient},
    node::state::{SavedCluster, StateBase},
};

/// The attribute of a mount's root that names its state folder.
const STATE_DIR_ATTRIBUTE: &str = "user.p2pfs.state-dir";

/// How long the process behind a mount has to answer the kernel.
const ANSWERS_WITHIN: Duration = Duration::from_secs(5);

/// What to do with a process that does not answer.
const STOPPED: &str =
    "it may be stopped (kill -CONT it); if you end it (kill -9), `p2pfs unmount` clears its mount";

/// A mount that runs.
pub(crate) struct Found {
    pub(crate) dir: PathBuf,
    pub(crate) client: ControlClient,
}

impl Found {
    fn at(dir: PathBuf) -> Self {
        let client = ControlClient::new(&dir);
        Self { dir, client }
    }

    /// Asks that something answers there.
    async fn checked(self, named: &str) -> Result<Self, Failure> {
        match self.client.version().await {
            Ok(version) => {
                let own = env!("CARGO_PKG_VERSION");
                if version != own {
                    err!("p2pfs: this is version {own}, the running mount is version {version}");
                }
                Ok(self)
            }
            Err(error @ ClientError::TimedOut(_)) => {
                Err(Failure::new(format_args!("{named}: {error}")).hint(STOPPED))
            }
            Err(error) => Err(Failure::new(format_args!("{named}: {error}"))
                .hint(format_args!("mount it first: p2pfs mount {named} DIR"))),
        }
    }
}

pub(crate) fn state_base(common: &Common) -> Result<StateBase, Failure> {
    let base = StateBase::new(common.state_dir.clone()).what("the state folder cannot be found")?;
    is_outside(base.dir())?;
    Ok(base)
}

/// What a state folder holds is not to be told to the members of a cluster.
///
/// # Errors
/// Where it is in a mount.
pub(crate) fn is_outside(dir: &Path) -> Result<(), Failure> {
    let absolute = std::path::absolute(dir).unwrap_or_else(|_| dir.to_path_buf());
    let real = absolute
        .ancestors()
        .find_map(|folder| folder.canonicalize().ok());
    let mut folders = absolute
        .ancestors()
        .chain(real.iter().flat_map(|real| real.ancestors()));
    if folders.any(|folder| state_dir(folder).is_some()) {
        return Err(Failure::new(format_args!(
            "the state folder {} is in a mount: all of its members would be told what it holds, ids included",
            dir.display()
        ))
        .hint("choose one elsewhere with --state-dir or P2PFS_STATE_DIR"));
    }
    Ok(())
}

/// The mount that `-C` names, else the only one that runs.
pub(crate) async fn find(common: &Common, which: &Which) -> Result<Found, Failure> {
    match &which.mount {
        Some(named) => {
            let dir = resolve(common, named)?;
            Found::at(dir).checked(named).await
        }
        None => {
            let mut running = running(common).await?;
            match running.len() {
                0 => Err(Failure::new("no mount is running")
                    .hint("mount a cluster first: p2pfs mount CLUSTER DIR")),
                1 => Ok(running.remove(0)),
                _ => {
                    let names: Vec<_> = running
                        .iter()
                        .filter_map(|found| found.dir.file_name())
                        .map(|name| name.to_string_lossy())
                        .collect();
                    Err(Failure::usage(format_args!(
                        "several mounts are running: {}",
                        names.join(", ")
                    ))
                    .hint("name one with -C"))
                }
            }
        }
    }
}

/// All mounts under the state folder that answer; a warning of those that are there and don't.
pub(crate) async fn running(common: &Common) -> Result<Vec<Found>, Failure> {
    let mut running = Vec::new();
    for saved in state_base(common)?
        .clusters()
        .what("the state folder cannot be read")?
    {
        let found = Found::at(saved.dir);
        match found.client.version().await {
            Ok(_) => running.push(found),
            Err(error @ ClientError::TimedOut(_)) => {
                err!("p2pfs: warning: {}: {error}; {STOPPED}", saved.name);
            }
            Err(_) => {}
        }
    }
    Ok(running)
}

/// The state folder behind a mount's folder, a path inside it, a saved name, or a state folder.
pub(crate) fn resolve(common: &Common, named: &str) -> Result<PathBuf, Failure> {
    let path = Path::new(named);
    answers(path)?;
    // Not by a name in it that nothing has, which was meant to be something else.
    if let Some(dir) = behind(path).filter(|_| path.symlink_metadata().is_ok()) {
        return Ok(dir);
    }
    if path.join("cluster").is_file() {
        return std::path::absolute(path).what(named);
    }
    let saved = named
        .parse()
        .ok()
        .and_then(|name| state_base(common).ok()?.by_name(&name).ok());
    match saved {
        Some(SavedCluster { dir, .. }) => Ok(dir),
        None => {
            is_alive(path)?;
            is_allowed(path)?;
            Err(Failure::new(format_args!(
                "{named}: no mount is there, and no cluster is saved under that name"
            )))
        }
    }
}

/// What is another user's is no reason to say that nothing is there.
///
/// # Errors
/// Where it may not be looked at, and in a mount to which only another user may give commands.
pub(crate) fn is_allowed(path: &Path) -> Result<(), Failure> {
    let absolute = std::path::absolute(path).unwrap_or_else(|_| path.to_path_buf());
    let nearest = absolute.ancestors().find_map(state_dir);
    if nearest.is_some_and(|dir| !is_own(&dir)) {
        let named = path.display();
        return Err(
            Failure::new(format_args!("{named} is in a mount of another user"))
                .hint("only who made a mount can give it commands: try it as that user"),
        );
    }
    match rustix::fs::stat(path) {
        Err(rustix::io::Errno::ACCESS | rustix::io::Errno::PERM) => Err(Failure::new(
            format_args!(
                "{}: it may not be looked at (permission denied)",
                path.display()
            ),
        )
        .hint(
            "a mount is open to the user who made it alone, unless it was made with --allow-other",
        )),
        _ => Ok(()),
    }
}

/// Makes sure that looking at a path does not take for ever: the kernel asks the process behind a mount, which may be
/// stopped.
///
/// # Errors
/// When there is no answer in time.
pub(crate) fn answers(path: &Path) -> Result<(), Failure> {
    let looked_at = path.to_owned();
    let (looked, look) = mpsc::channel();
    // A look that gets no answer ends with this program.
    thread::spawn(move || {
        let _ = looked.send(behind(&looked_at));
    });
    if look.recv_timeout(ANSWERS_WITHIN).is_ok() {
        return Ok(());
    }
    let (path, seconds) = (path.display(), ANSWERS_WITHIN.as_secs());
    Err(Failure::new(format_args!(
        "{path}: the process behind the mount does not answer within {seconds} s"
    ))
    .hint(STOPPED))
}

/// The state folder of the mount that a path is in: its root says so. The path may lead there through links.
pub(crate) fn behind(path: &Path) -> Option<PathBuf> {
    let absolute = std::path::absolute(path).ok()?;
    let found =
        named_by_ancestor(&absolute).or_else(|| named_by_ancestor(&path.canonicalize().ok()?));
    Some(found?.0)
}

/// The same with the path inside the cluster. What stands there need not be there, nor is a link there followed.
fn place(path: &Path) -> Option<(PathBuf, Vec<u8>)> {
    let inside = |path: &Path, folder: &Path| {
        let (dir, root) = named_by_ancestor(folder)?;
        let below = path.strip_prefix(&root).ok()?;
        Some((dir, below.as_os_str().as_bytes().to_vec()))
    };
    let absolute = std::path::absolute(path).ok()?;
    let in_folder = || {
        let folder = absolute.parent()?.canonicalize().ok()?;
        inside(&folder.join(absolute.file_name()?), &folder)
    };
    // A link in a mount is what is meant, be it one to the mount's folder.
    let is_link = |path: &Path| path.symlink_metadata().is_ok_and(|seen| seen.is_symlink());
    let link = is_link(&absolute).then(in_folder).flatten();
    link.or_else(|| inside(&absolute, &absolute))
        .or_else(in_folder)
}

/// The mount whose path is given, and the path inside the cluster. With `-C` a path that is in no mount is taken for one
/// inside the cluster.
pub(crate) async fn within(
    common: &Common,
    which: &Which,
    path: &Path,
) -> Result<(Found, Vec<u8>), Failure> {
    let named = path.display();
    answers(path)?;
    let Some(mount) = &which.mount else {
        let found = mount_of(path).await?;
        return match place(path) {
            Some((_, below)) => Ok((found, below)),
            None => Err(Failure::new(format_args!("{named} cannot be followed"))),
        };
    };
    let dir = resolve(common, mount)?;
    let below = match place(path) {
        Some((other, below)) if is_same(&other, &dir) => below,
        None if path.is_relative() => path.as_os_str().as_bytes().to_vec(),
        _ => {
            return Err(Failure::usage(format_args!(
                "{named} is not in the mount that -C names"
            )));
        }
    };
    Ok((Found::at(dir).checked(mount).await?, below))
}

fn is_same(one: &Path, other: &Path) -> bool {
    let id = |path: &Path| path.metadata().ok().map(|seen| (seen.dev(), seen.ino()));
    id(one).is_some_and(|one| id(other) == Some(one))
}

/// The state folder that an ancestor's attribute names, and that ancestor.
fn named_by_ancestor(path: &Path) -> Option<(PathBuf, PathBuf)> {
    path.ancestors().find_map(|ancestor| {
        let dir = state_dir(ancestor).filter(|dir| is_own(dir))?;
        Some((dir, ancestor.to_path_buf()))
    })
}

/// The state folder that a folder's attribute names, whosever that is.
fn state_dir(folder: &Path) -> Option<PathBuf> {
    let mut value = vec![0; 4096];
    let length = rustix::fs::getxattr(folder, STATE_DIR_ATTRIBUTE, &mut value[..]).ok()?;
    let text = std::str::from_utf8(value.get(..length)?).ok()?;
    Some(PathBuf::from(text))
}

/// A mount whose process was killed answers nothing that the kernel has to ask it.
///
/// # Errors
/// Where a path is in one.
fn is_alive(path: &Path) -> Result<(), Failure> {
    let is_dead = |path: &&Path| {
        let about = rustix::fs::statfs(*path);
        matches!(
            about,
            Err(rustix::io::Errno::NOTCONN | rustix::io::Errno::CONNABORTED)
        )
    };
    let absolute = std::path::absolute(path).unwrap_or_else(|_| path.to_path_buf());
    let Some(mount) = absolute.ancestors().filter(is_dead).last() else {
        return Ok(());
    };
    let (named, mount) = (path.display(), mount.display());
    Err(Failure::new(format_args!(
        "{named}: the process behind the mount is gone"
    ))
    .hint(format_args!(
        "clear it with: p2pfs unmount {mount}; mounting again does too"
    )))
}

/// Any folder can carry the attribute: what it names is believed only where it is this user's and nobody else can write.
fn is_own(dir: &Path) -> bool {
    std::fs::symlink_metadata(dir).is_ok_and(|metadata| {
        metadata.is_dir()
            && metadata.uid() == rustix::process::geteuid().as_raw()
            && metadata.mode() & 0o022 == 0
    })
}

/// The mount that a path given to a command is in.
pub(crate) async fn mount_of(path: &Path) -> Result<Found, Failure> {
    let named = path.display();
    answers(path)?;
    match behind(path) {
        Some(dir) => Found::at(dir).checked(&named.to_string()).await,
        None => {
            is_alive(path)?;
            is_allowed(path)?;
            Err(
                Failure::new(format_args!("{named} is not inside a p2pfs mount"))
                    .hint("mount the cluster first: p2pfs mount CLUSTER DIR"),
            )
        }
    }
}

/// What asking a mount failed with.
pub(crate) fn refused(what: impl std::fmt::Display) -> impl FnOnce(ClientError) -> Failure {
    move |error| {
        // The words may have names of others in them.
        let message = plain(&format!("{what}: {error}"));
        match error {
            ClientError::Wrong(_) => Failure::usage(message),
            _ => Failure::new(message),
        }
    }
}
