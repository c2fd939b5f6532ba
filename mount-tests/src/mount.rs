//! A mounted cluster, used as any program would use it.

use std::{
    fs, io,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    time::Duration,
};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use crate::{
    Finished, Host, SOON, eventually,
    run::guarded,
    system::{mounts_below, runs},
    until,
};

/// How long an operation may take unless a test says otherwise: longer than the default time-out of reads.
const OPERATION_WITHIN: Duration = Duration::from_secs(45);

/// A cluster mounted on a host. Every operation is bounded; see the crate's invariants.
pub struct Mount {
    host: Host,
    dir: PathBuf,
}

impl Mount {
    pub(crate) fn new(host: Host, dir: &str) -> Self {
        let dir = host.path(dir);
        Self { host, dir }
    }

    /// Its host.
    pub fn host(&self) -> &Host {
        &self.host
    }

    /// Where it is mounted.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// A path in it.
    pub fn path(&self, below: &str) -> PathBuf {
        self.dir.join(below)
    }

    /// Does something with a path in it, under the watchdog.
    #[track_caller]
    pub fn with<T>(&self, below: &str, operation: impl FnOnce(&Path) -> T) -> T {
        self.with_within(OPERATION_WITHIN, below, operation)
    }

    /// Does something that may take so long.
    #[track_caller]
    pub fn with_within<T>(
        &self,
        within: Duration,
        below: &str,
        operation: impl FnOnce(&Path) -> T,
    ) -> T {
        let path = self.path(below);
        let what = path.display().to_string();
        guarded(self.host.lab(), &what, within, || operation(&path))
    }

    /// Reads a file.
    #[track_caller]
    pub fn read(&self, path: &str) -> io::Result<Vec<u8>> {
        self.with(path, |path| fs::read(path))
    }

    /// Reads some bytes of a file.
    #[track_caller]
    pub fn read_at(&self, path: &str, offset: u64, length: usize) -> io::Result<Vec<u8>> {
        self.with(path, |path| {
            let mut bytes = vec![0; length];
            fs::File::open(path)?.read_exact_at(&mut bytes, offset)?;
            Ok(bytes)
        })
    }

    /// Writes a file; it must work.
    #[track_caller]
    pub fn write(&self, path: &str, bytes: impl AsRef<[u8]>) {
        self.with(path, |path| fs::write(path, bytes))
            .unwrap_or_else(|error| panic!("{path} is not written: {error}"));
    }

    /// Names in a folder, sorted.
    #[track_caller]
    pub fn list(&self, path: &str) -> io::Result<Vec<String>> {
        self.with(path, |path| {
            let mut names = Vec::new();
            for entry in fs::read_dir(path)? {
                names.push(entry?.file_name().to_string_lossy().into_owned());
            }
            names.sort();
            Ok(names)
        })
    }

    /// Whether something stands there.
    #[track_caller]
    pub fn has(&self, path: &str) -> bool {
        self.with(path, |path| path.symlink_metadata().is_ok())
    }

    /// One of its `user.p2pfs.*` attributes.
    #[track_caller]
    pub fn attribute(&self, path: &str, name: &str) -> io::Result<String> {
        self.with(path, |path| {
            let mut value = vec![0; 4096];
            let length = rustix::fs::getxattr(path, format!("user.p2pfs.{name}"), &mut value[..])?;
            value.truncate(length);
            Ok(String::from_utf8_lossy(&value).into_owned())
        })
    }

    /// Waits until a file reads as this.
    #[track_caller]
    pub fn shows(&self, path: &str, bytes: impl AsRef<[u8]>) {
        self.shows_within(SOON, path, bytes);
    }

    /// Waits until a file reads as this.
    #[track_caller]
    pub fn shows_within(&self, within: Duration, path: &str, bytes: impl AsRef<[u8]>) {
        let bytes = bytes.as_ref();
        eventually(
            within,
            &format!("{path} shows at {}", self.host.name()),
            || match self.read(path) {
                Ok(there) if there == bytes => Ok(()),
                Ok(there) => Err(format!(
                    "it has {} bytes, not the {} expected, or others",
                    there.len(),
                    bytes.len()
                )),
                Err(error) => Err(error.to_string()),
            },
        );
    }

    /// Waits until so many bytes of a file are in the cache: a reader has its bytes before they are kept.
    #[track_caller]
    pub fn keeps(&self, path: &str, bytes_min: u64) {
        let what = format!("{} keeps {bytes_min} bytes of {path}", self.host.name());
        eventually(SOON, &what, || {
            let cached = self.attribute(path, "cached");
            let cached = cached.map_err(|error| error.to_string())?;
            match cached.parse::<u64>() {
                Ok(bytes) if bytes >= bytes_min => Ok(()),
                _ => Err(format!("it keeps {cached}")),
            }
        });
    }

    /// Waits until nothing stands there.
    #[track_caller]
    pub fn lacks(&self, path: &str) {
        until(
            SOON,
            &format!("{path} is gone at {}", self.host.name()),
            || {
                self.with(path, |path| {
                    path.symlink_metadata()
                        .is_err_and(|error| error.kind() == io::ErrorKind::NotFound)
                })
            },
        );
    }

    /// `p2pfs COMMAND … -C DIR`.
    #[track_caller]
    pub fn ask(&self, words: &str) -> Finished {
        self.host
            .p2pfs(&format!("{words} -C {}", self.dir.display()))
    }

    /// `p2pfs COMMAND … -C DIR --json`, parsed.
    #[track_caller]
    pub fn json(&self, words: &str) -> Value {
        self.host
            .json(&format!("{words} -C {}", self.dir.display()))
    }

    /// `p2pfs status --json`, parsed.
    #[track_caller]
    pub fn status(&self) -> Value {
        self.json("status")
    }

    /// Its peer id.
    #[track_caller]
    pub fn id(&self) -> String {
        let status = self.status();
        status["self"]["id"]
            .as_str()
            .expect("a node has an id")
            .to_owned()
    }

    /// An address at which others reach it, its peer id included.
    #[track_caller]
    pub fn multiaddr(&self) -> String {
        let status = self.status();
        let addresses = status["self"]["addresses"]
            .as_array()
            .expect("a node has addresses");
        let own = format!("/ip4/{}/", self.host.address());
        let named = addresses
            .iter()
            .filter_map(Value::as_str)
            .find(|address| address.starts_with(&own));
        let address =
            named.unwrap_or_else(|| panic!("{} is not among {addresses:?}", self.host.address()));
        format!("{address}/p2p/{}", self.id())
    }

    /// Waits until it is connected with so many members.
    #[track_caller]
    pub fn meets(&self, peers: usize) {
        eventually(
            crate::LONG,
            &format!("{} meets {peers} peers", self.host.name()),
            || {
                let status = self.status();
                match status["peers"].as_array() {
                    Some(there) if there.len() >= peers => Ok(()),
                    _ => Err(format!(
                        "peers {}, trackers {}",
                        status["peers"], status["trackers"]
                    )),
                }
            },
        );
    }

    /// Waits until nothing local is unpublished.
    #[track_caller]
    pub fn publishes(&self) {
        self.publishes_within(SOON);
    }

    /// Waits until nothing local is unpublished.
    #[track_caller]
    pub fn publishes_within(&self, within: Duration) {
        until(within, "everything is published", || {
            self.status()["manifest"]["unpublished"] == 0
        });
    }

    /// Its process.
    #[track_caller]
    pub fn pid(&self) -> Pid {
        let status = self.status();
        let pid = status["pid"]
            .as_i64()
            .and_then(|pid| i32::try_from(pid).ok())
            .and_then(Pid::from_raw);
        pid.expect("a mount has a process")
    }

    /// Sends its process a signal.
    #[track_caller]
    pub fn signal(&self, signal: Signal) {
        kill_process(self.pid(), signal).expect("root may signal it");
    }

    /// Kills its process, as a power cut would; the dead mount stays.
    #[track_caller]
    pub fn kill(&self) {
        let pid = self.pid();
        kill_process(pid, Signal::KILL).expect("root may kill it");
        ends(pid);
    }

    /// `p2pfs unmount`; it must work, and leave neither mount nor process.
    #[track_caller]
    pub fn unmount(&self) {
        let pid = self.pid();
        self.host
            .p2pfs(&format!("unmount {}", self.dir.display()))
            .ok();
        self.is_gone(pid);
    }

    /// Checks that nothing is left of it.
    #[track_caller]
    pub fn is_gone(&self, pid: Pid) {
        ends(pid);
        assert!(
            mounts_below(&self.dir).is_empty(),
            "{} is still mounted",
            self.dir.display()
        );
        let left = fs::read_dir(&self.dir).map(Iterator::count);
        assert_eq!(
            left.ok(),
            Some(0),
            "{} is an empty folder again",
            self.dir.display()
        );
    }

    /// Where the bytes of a content lie on its host.
    #[track_caller]
    pub fn backing_file(&self, hash: &str) -> PathBuf {
        let mut files = crate::files_below(&self.host.state())
            .into_iter()
            .map(|(path, _)| path);
        let named = |path: &PathBuf| {
            let name = path
                .file_name()
                .unwrap_or_default()
                .to_string_lossy()
                .into_owned();
            name.starts_with(hash) && !name.ends_with(".tree")
        };
        files
            .find(named)
            .unwrap_or_else(|| panic!("{} has no backing file of {hash}", self.host.name()))
    }

    /// Flips bits of one byte of a content where it is stored.
    #[track_caller]
    pub fn corrupt(&self, hash: &str, offset: u64) {
        let file = fs::OpenOptions::new()
            .read(true)
            .write(true)
            .open(self.backing_file(hash))
            .expect("it can be opened");
        let mut byte = [0];
        file.read_exact_at(&mut byte, offset)
            .expect("the offset is in it");
        file.write_all_at(&[byte[0] ^ 0xff], offset)
            .expect("it can be written");
    }
}

/// Waits until a process has ended.
#[track_caller]
pub fn ends(pid: Pid) {
    until(SOON, "the process of the mount ends", || !runs(pid));
}
