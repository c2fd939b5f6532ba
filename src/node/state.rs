//! State folders: where a mount keeps its keys, its store and its control socket, and how they are named.
//!
//! ```text
//! <base>/<name>/            mode 0700, one for each cluster and mount
//!     cluster, cluster.copy the cluster id and its trackers, mode 0600, twice: a damaged one is replaced by the other
//!     node.key              this node's libp2p identity, mode 0600
//!     control.sock          HTTP on a Unix socket, mode 0600, while mounted
//!     log, log.1 …          rotated
//!     lock, format, index/, objects/, staging/     the store
//! ```
//! The cluster id is a secret: it stands in `cluster` alone and is shown by nothing but `p2pfs id`.

use std::{
    fs,
    io::{self, Write},
    os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt},
    path::{Path, PathBuf},
};

use libp2p::identity::Keypair;
use serde::{Deserialize, Serialize};

use crate::cluster::{ClusterId, ClusterName, ParsedCluster};

const CLUSTER_FILE: &str = "cluster";
const CLUSTER_COPY_FILE: &str = "cluster.copy";
const IDENTITY_FILE: &str = "node.key";

/// Why a state folder could not be used.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    /// The system refused.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// A file doesn't hold what it should.
    #[error("{} is damaged: {why}", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        why: String,
    },
    /// Others could read a secret.
    #[error("{} can be read by other users (mode {mode:03o})", path.display())]
    Exposed {
        /// The file.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// Somebody else's folder, or a link.
    #[error("{} belongs to another user, or is no folder", .0.display())]
    Foreign(PathBuf),
    /// The name is taken by another cluster.
    #[error("the name {0} is taken by another cluster")]
    NameTaken(ClusterName),
    /// No such cluster.
    #[error("no cluster is saved under the name {0}")]
    Unknown(String),
}

fn io_error(path: &Path) -> impl FnOnce(io::Error) -> StateError + '_ {
    move |source| StateError::Io {
        path: path.to_path_buf(),
        source,
    }
}

/// The folder that holds one state folder for each cluster.
#[derive(Clone, Debug)]
pub struct StateBase {
    dir: PathBuf,
}

/// What `cluster` holds. The id is written in its text form, so that a person can recover it.
#[derive(Serialize, Deserialize)]
struct ClusterFile {
    version: u32,
    id: String,
    trackers: Vec<String>,
    /// Of the other fields; earlier versions wrote none.
    #[serde(default)]
    check: Option<String>,
}

impl ClusterFile {
    /// What `check` is if nothing is damaged.
    fn right_check(&self) -> String {
        let mut hasher = blake3::Hasher::new_derive_key("p2pfs cluster file v1");
        for field in std::iter::once(&self.id).chain(&self.trackers) {
            hasher.update(&(field.len() as u64).to_le_bytes());
            hasher.update(field.as_bytes());
        }
        hasher.finalize().to_hex().chars().take(16).collect()
    }
}

/// A saved cluster.
#[derive(Clone, Debug)]
pub struct SavedCluster {
    /// The name it is saved under.
    pub name: ClusterName,
    /// Its state folder.
    pub dir: PathBuf,
    /// The id.
    pub id: ClusterId,
    /// Its trackers, as they were given.
    pub trackers: Vec<String>,
}

impl StateBase {
    /// The folder named, or `$XDG_STATE_HOME/p2pfs`, or `~/.local/state/p2pfs`.
    pub fn new(named: Option<PathBuf>) -> Result<Self, StateError> {
        let dir = match named {
            Some(dir) => dir,
            None => {
                let from_env = |name: &str| {
                    std::env::var_os(name)
                        .map(PathBuf::from)
                        .filter(|path| path.is_absolute())
                };
                from_env("XDG_STATE_HOME")
                    .or_else(|| from_env("HOME").map(|home| home.join(".local/state")))
                    .map(|state| state.join("p2pfs"))
                    .ok_or_else(|| StateError::Io {
                        path: PathBuf::from("$HOME"),
                        source: io::Error::new(io::ErrorKind::NotFound, "not set"),
                    })?
            }
        };
        Ok(Self {
            dir: std::path::absolute(&dir).map_err(io_error(&dir))?,
        })
    }

    /// The folder itself.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// All saved clusters, by name. Folders that hold none are passed over.
    pub fn clusters(&self) -> Result<Vec<SavedCluster>, StateError> {
        let entries = match fs::read_dir(&self.dir) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(io_error(&self.dir)(error)),
        };
        let mut clusters = Vec::new();
        for entry in entries {
            let dir = entry.map_err(io_error(&self.dir))?.path();
            if dir.join(CLUSTER_FILE).exists() {
                match SavedCluster::load(&dir) {
                    Ok(cluster) => clusters.push(cluster),
                    // Said to whoever asks for it by its name; it keeps nobody from the others.
                    Err(error @ StateError::Damaged { .. }) => {
                        tracing::warn!(%error, "a saved cluster is passed over");
                    }
                    Err(error) => return Err(error),
                }
            }
        }
        clusters.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(clusters)
    }

    /// The cluster saved under a name.
    pub fn by_name(&self, name: &ClusterName) -> Result<SavedCluster, StateError> {
        let dir = self.dir.join(name.to_string());
        if !dir.join(CLUSTER_FILE).exists() {
            return Err(StateError::Unknown(name.to_string()));
        }
        SavedCluster::load(&dir)
    }

    /// Saves an id: under the name it already has, else under `name`, else under one made from its topic. Trackers that are
    /// new are added to those saved; a read-write id replaces a read-only one.
    pub fn save(
        &self,
        cluster: &ParsedCluster,
        name: Option<&ClusterName>,
    ) -> Result<SavedCluster, StateError> {
        let topic = cluster.id.keys().topic();
        let known = self
            .clusters()?
            .into_iter()
            .find(|saved| saved.id.keys().topic() == topic);
        let mut saved = match known {
            Some(saved) if name.is_none_or(|name| *name == saved.name) => saved,
            _ => {
                let name = name
                    .cloned()
                    .unwrap_or_else(|| ClusterName::default_for(&topic));
                let dir = self.dir.join(name.to_string());
                if dir.join(CLUSTER_FILE).exists()
                    && SavedCluster::load(&dir)?.id.keys().topic() != topic
                {
                    return Err(StateError::NameTaken(name));
                }
                SavedCluster {
                    name,
                    dir,
                    id: cluster.id.clone(),
                    trackers: Vec::new(),
                }
            }
        };
        if cluster.id.role() == crate::cluster::Role::ReadWrite {
            saved.id = cluster.id.clone();
        }
        for tracker in &cluster.trackers {
            if !saved.trackers.contains(tracker) {
                saved.trackers.push(tracker.clone());
            }
        }
        saved.store()?;
        Ok(saved)
    }
}

impl SavedCluster {
    /// Reads the cluster of a state folder; a damaged file is replaced by its copy.
    pub fn load(dir: &Path) -> Result<Self, StateError> {
        let error = match Self::load_file(dir, CLUSTER_FILE) {
            Err(error @ StateError::Damaged { .. }) => error,
            loaded => return loaded,
        };
        let Ok(saved) = Self::load_file(dir, CLUSTER_COPY_FILE) else {
            return Err(error);
        };
        tracing::error!(%error, "it is replaced by its copy");
        saved.store()?;
        Ok(saved)
    }

    fn load_file(dir: &Path, file: &str) -> Result<Self, StateError> {
        let path = dir.join(file);
        let damaged = |why: String| StateError::Damaged {
            path: path.clone(),
            why,
        };
        let name = dir
            .file_name()
            .and_then(|name| name.to_str())
            .ok_or_else(|| damaged("its folder's name is not a cluster name".into()))?
            .parse()
            .map_err(|error| damaged(format!("{error}")))?;
        let text = read_secret(&path)?;
        let file: ClusterFile =
            serde_json::from_slice(&text).map_err(|error| damaged(error.to_string()))?;
        if file.version != 1 {
            return Err(damaged(format!("its version is {}", file.version)));
        }
        if file
            .check
            .as_ref()
            .is_some_and(|check| *check != file.right_check())
        {
            return Err(damaged("it does not have its checksum".into()));
        }
        let parsed: ParsedCluster = file
            .id
            .parse()
            .map_err(|error| damaged(format!("{error}")))?;
        Ok(Self {
            name,
            dir: dir.to_path_buf(),
            id: parsed.id,
            trackers: file.trackers,
        })
    }

    fn store(&self) -> Result<(), StateError> {
        make_private_dir(&self.dir)?;
        let mut file = ClusterFile {
            version: 1,
            id: self.id.to_string(),
            trackers: self.trackers.clone(),
            check: None,
        };
        file.check = Some(file.right_check());
        let text = zeroize::Zeroizing::new(serde_json::to_vec(&file).map_err(|error| {
            StateError::Damaged {
                path: self.dir.join(CLUSTER_FILE),
                why: error.to_string(),
            }
        })?);
        write_secret(&self.dir.join(CLUSTER_FILE), &text)?;
        write_secret(&self.dir.join(CLUSTER_COPY_FILE), &text)
    }

    /// The id with its trackers, as a second machine takes it.
    pub fn word(&self, id: &ClusterId) -> String {
        if self.trackers.is_empty() {
            id.to_string()
        } else {
            format!("{id}@{}", self.trackers.join(","))
        }
    }

    /// This node's identity; made on first use, and anew where it is damaged: as a member it is another one then, what it
    /// signed before stays valid.
    pub fn identity(&self) -> Result<Keypair, StateError> {
        let path = self.dir.join(IDENTITY_FILE);
        if path.exists() {
            let bytes = read_secret(&path)?;
            match Keypair::from_protobuf_encoding(&bytes) {
                Ok(identity) => return Ok(identity),
                Err(error) => {
                    tracing::error!(path = %path.display(), %error, "the identity is damaged: a new one takes its place");
                }
            }
        }
        let identity = Keypair::generate_ed25519();
        self.keep_identity(&identity)?;
        Ok(identity)
    }

    /// Replaces the identity (a restored or cloned state folder takes a new one).
    pub fn keep_identity(&self, identity: &Keypair) -> Result<(), StateError> {
        let path = self.dir.join(IDENTITY_FILE);
        let bytes = zeroize::Zeroizing::new(identity.to_protobuf_encoding().map_err(|error| {
            StateError::Damaged {
                path: path.clone(),
                why: error.to_string(),
            }
        })?);
        write_secret(&path, &bytes)
    }

    /// Forgets the keys; the cache stays.
    pub fn forget(&self) -> Result<(), StateError> {
        for file in [CLUSTER_FILE, CLUSTER_COPY_FILE, IDENTITY_FILE] {
            let path = self.dir.join(file);
            match fs::remove_file(&path) {
                Ok(()) => {}
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(io_error(&path)(error)),
            }
        }
        Ok(())
    }

    /// The control socket of the mount.
    pub fn socket(&self) -> PathBuf {
        self.dir.join("control.sock")
    }

    /// Where the mount logs unless told otherwise.
    pub fn log_file(&self) -> PathBuf {
        self.dir.join("log")
    }
}

/// Makes a folder of mode 0700, with its parents.
pub fn make_private_dir(dir: &Path) -> Result<(), StateError> {
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(dir)
        .map_err(io_error(dir))?;
    let metadata = fs::symlink_metadata(dir).map_err(io_error(dir))?;
    if metadata.is_dir() && metadata.uid() == rustix::process::geteuid().as_raw() {
        fs::set_permissions(dir, fs::Permissions::from_mode(0o700)).map_err(io_error(dir))
    } else {
        Err(StateError::Foreign(dir.to_path_buf()))
    }
}

/// Reads a file that must not be readable by others.
pub fn read_secret(path: &Path) -> Result<zeroize::Zeroizing<Vec<u8>>, StateError> {
    let mode = fs::metadata(path)
        .map_err(io_error(path))?
        .permissions()
        .mode()
        & 0o777;
    if mode & 0o077 != 0 {
        return Err(StateError::Exposed {
            path: path.to_path_buf(),
            mode,
        });
    }
    fs::read(path).map(Into::into).map_err(io_error(path))
}

/// Writes a file of mode 0600: whole and durable, or not at all.
fn write_secret(path: &Path, bytes: &[u8]) -> Result<(), StateError> {
    let temporary = path.with_extension("new");
    let write = || {
        // What a crash left there, or what somebody put there.
        match fs::remove_file(&temporary) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let mut file = fs::OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&temporary)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        fs::rename(&temporary, path)?;
        match path.parent() {
            Some(dir) => fs::File::open(dir)?.sync_all(),
            None => Ok(()),
        }
    };
    write().map_err(io_error(path))
}
