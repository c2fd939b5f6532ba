//! A host: a network namespace and a directory, and the processes that run there.

use std::{
    ffi::OsStr,
    fs::{self, File},
    net::{Ipv4Addr, TcpStream},
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering::Relaxed},
    },
    thread,
    time::Duration,
};

use rustix::{
    process::{Pid, Signal, kill_process},
    thread::{LinkNameSpaceType, move_into_link_name_space},
};

use crate::{
    Finished, Mount, SOON, eventually, p2pfs,
    run::run,
    system::{ip, tool},
    until,
};

/// How long a command may take unless a test says otherwise.
const COMMAND_WITHIN: Duration = Duration::from_secs(60);
/// The port of trackers.
const TRACKER_PORT: u16 = 7474;

/// A host of a lab. Cheap to clone.
#[derive(Clone)]
pub struct Host(Arc<Inner>);

struct Inner {
    name: String,
    namespace: String,
    address: String,
    port: (String, String),
    lab: PathBuf,
    dir: PathBuf,
    logs: AtomicU32,
}

impl Host {
    pub(crate) fn new(
        name: &str,
        namespace: String,
        address: String,
        port: (String, String),
        lab: &Path,
    ) -> Self {
        let dir = lab.join(name);
        fs::create_dir(&dir).expect("the lab's directory can be written");
        Self(Arc::new(Inner {
            name: name.to_owned(),
            namespace,
            address,
            port,
            lab: lab.to_path_buf(),
            dir,
            logs: AtomicU32::new(0),
        }))
    }

    /// Its name, which is its node name too.
    pub fn name(&self) -> &str {
        &self.0.name
    }

    /// Its address.
    pub fn address(&self) -> &str {
        &self.0.address
    }

    /// Its directory: home, state folders, mounts.
    pub fn dir(&self) -> &Path {
        &self.0.dir
    }

    /// A path in its directory.
    pub fn path(&self, below: &str) -> PathBuf {
        self.0.dir.join(below)
    }

    /// The lab's directory, below which every mount of every host is.
    pub(crate) fn lab(&self) -> &Path {
        &self.0.lab
    }

    /// Where its state folders are: one for each cluster.
    pub fn state(&self) -> PathBuf {
        self.path("state")
    }

    /// A command on this host: in its network namespace, with its home and state folders.
    pub fn command(&self, program: impl AsRef<OsStr>) -> Command {
        let mut command = Command::new("nsenter");
        // Not `ip netns exec`: that one gives a mount namespace of its own, and mounts made there would be hidden.
        command
            .arg(format!("--net=/var/run/netns/{}", self.0.namespace))
            .arg("--")
            .arg(program)
            .current_dir(&self.0.dir)
            .env("HOME", &self.0.dir)
            .env("P2PFS_STATE_DIR", self.state())
            .env("NO_COLOR", "1")
            .env("GIT_CONFIG_NOSYSTEM", "1")
            .env_remove("RUST_LOG")
            .env_remove("XDG_STATE_HOME")
            .env_remove("XDG_CONFIG_HOME")
            .env_remove("P2PFS_CONFIG")
            .env_remove("P2PFS_TRACKER");
        // SAFETY: signal(2) is async-signal-safe and touches no memory.
        unsafe {
            command.pre_exec(|| {
                // Tests that run in the background of a script have been told to ignore it, and so would every child.
                libc::signal(libc::SIGINT, libc::SIG_DFL);
                Ok(())
            });
        }
        command
    }

    /// Runs `p2pfs` with words separated by blanks.
    #[track_caller]
    pub fn p2pfs(&self, words: &str) -> Finished {
        self.p2pfs_with(&words.split_whitespace().collect::<Vec<_>>())
    }

    /// Runs `p2pfs` with words that may contain blanks.
    #[track_caller]
    pub fn p2pfs_with(&self, words: &[&str]) -> Finished {
        let mut command = self.command(p2pfs());
        command.args(words);
        self.run(
            &format!("{}: p2pfs {}", self.0.name, words.join(" ")),
            command,
        )
    }

    /// Runs a shell script in the host's directory; `$P2PFS` is the program. It must succeed.
    #[track_caller]
    pub fn sh(&self, script: &str) -> String {
        self.try_sh(script).ok().to_owned()
    }

    /// Runs a shell script in the host's directory.
    #[track_caller]
    pub fn try_sh(&self, script: &str) -> Finished {
        self.run(&format!("{}: {script}", self.0.name), self.shell(script))
    }

    fn shell(&self, script: &str) -> Command {
        let mut command = self.command("sh");
        command.args(["-euc", script]).env("P2PFS", p2pfs());
        command
    }

    #[track_caller]
    fn run(&self, what: &str, command: Command) -> Finished {
        run(&self.0.lab, what, command, COMMAND_WITHIN)
    }

    /// Starts a shell script in the background, with its output in a log of this host.
    #[track_caller]
    pub fn start_sh(&self, script: &str) -> Process {
        self.start(self.shell(script), script)
    }

    /// Starts `p2pfs` in the background, with its output in a log of this host.
    #[track_caller]
    pub fn start_p2pfs(&self, words: &str) -> Process {
        let mut command = self.command(p2pfs());
        command.args(words.split_whitespace());
        self.start(command, words)
    }

    #[track_caller]
    fn start(&self, mut command: Command, what: &str) -> Process {
        let log = self.path(&format!("output-{}.log", self.0.logs.fetch_add(1, Relaxed)));
        let file = File::create(&log).expect("the host's directory can be written");
        let child = command
            .stdin(Stdio::null())
            .stdout(file.try_clone().expect("a descriptor can be cloned"))
            .stderr(file)
            .process_group(0)
            .spawn()
            .unwrap_or_else(|error| panic!("{what}: {error}"));
        Process {
            child,
            log,
            what: what.to_owned(),
        }
    }

    /// Starts a tracker; returns once it is ready. Its state is in `tracker` of the host's directory.
    #[track_caller]
    pub fn tracker(&self, options: &str) -> Process {
        let tracker = self.start_p2pfs(&format!(
            "tracker --state-dir {} {options}",
            self.path("tracker").display()
        ));
        tracker.says("tracker ready on ");
        until(SOON, "the tracker's port is open", || {
            let address = (self.ip(), TRACKER_PORT);
            self.inside(move || TcpStream::connect(address).is_ok())
        });
        tracker
    }

    /// Makes a cluster that is called `c`, with this host's own state folder; its read-write and read-only ids.
    #[track_caller]
    pub fn create(&self, options: &str) -> (String, String) {
        let made = self.p2pfs(&format!("create --name c {options}"));
        let mut lines = made.ok().lines();
        let mut id = || lines.next().expect("two ids on two lines").to_owned();
        (id(), id())
    }

    /// Mounts a cluster on `mnt` in the host's directory.
    #[track_caller]
    pub fn mount(&self, cluster: &str, options: &str) -> Mount {
        self.mount_on("mnt", cluster, options)
    }

    /// Mounts a cluster on a folder in the host's directory.
    #[track_caller]
    pub fn mount_on(&self, dir: &str, cluster: &str, options: &str) -> Mount {
        let mount = Mount::new(self.clone(), dir);
        let words = format!(
            "mount {cluster} {} --node-name {} {options}",
            mount.dir().display(),
            self.0.name
        );
        self.p2pfs(&words).ok();
        mount
    }

    /// What `p2pfs … --json` prints.
    #[track_caller]
    pub fn json(&self, words: &str) -> serde_json::Value {
        let finished = self.p2pfs(&format!("{words} --json"));
        serde_json::from_str(finished.ok()).unwrap_or_else(|error| panic!("{error}: {finished}"))
    }

    /// Bytes that came in over its network interface so far.
    pub fn received(&self) -> u64 {
        let shown = ip(&["-n", &self.0.namespace, "-j", "-s", "link", "show", "eth0"])
            .expect("eth0 is there");
        let shown: serde_json::Value = serde_json::from_str(&shown).expect("ip prints JSON");
        shown[0]["stats64"]["rx"]["bytes"]
            .as_u64()
            .expect("ip counts bytes")
    }

    /// Takes it off the network.
    pub fn cut_off(&self) {
        self.link("down");
    }

    /// Puts it back.
    pub fn reconnect(&self) {
        self.link("up");
    }

    fn link(&self, state: &str) {
        let (hub, port) = &self.0.port;
        ip(&["-n", hub, "link", "set", port, state]).expect("the bridge's port is there");
    }

    /// Plugs it into another bridge of the hub. Its own link stays up.
    pub(crate) fn plug_into(&self, bridge: &str) {
        let (hub, port) = &self.0.port;
        ip(&["-n", hub, "link", "set", port, "master", bridge]).expect("the bridge is there");
    }

    /// Gives it another address in place of the one that it has.
    pub fn moves_to(&self, address: &str) {
        let namespace = &self.0.namespace;
        for words in [
            format!("-n {namespace} addr del {}/24 dev eth0", self.0.address),
            format!("-n {namespace} addr add {address}/24 dev eth0"),
        ] {
            ip(&words.split(' ').collect::<Vec<_>>()).expect("the lab gave it an address");
        }
    }

    /// Limits what it sends, such as `200mbit`.
    pub fn limit(&self, rate: &str) {
        let words = format!(
            "-n {} qdisc replace dev eth0 root tbf rate {rate} burst 256k latency 50ms",
            self.0.namespace
        );
        tool("tc", &words.split(' ').collect::<Vec<_>>()).expect("the kernel has tbf");
    }

    /// Runs something on this host's network, in a thread of its own.
    pub fn inside<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> T {
        let namespace = File::open(format!("/var/run/netns/{}", self.0.namespace))
            .expect("the namespace is there");
        let thread = thread::spawn(move || {
            move_into_link_name_space(
                std::os::fd::AsFd::as_fd(&namespace),
                Some(LinkNameSpaceType::Network),
            )
            .expect("root may enter a namespace");
            work()
        });
        thread
            .join()
            .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    }

    /// Its address as a number.
    pub fn ip(&self) -> Ipv4Addr {
        self.0.address.parse().expect("the lab gave it an address")
    }

    /// Logs of its mounts and of what was started in the background.
    pub fn logs(&self) -> Vec<PathBuf> {
        let named = |path: &Path| {
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            name == "log" || name.ends_with(".log")
        };
        let mut dirs = vec![self.0.dir.clone(), self.state()];
        dirs.extend(entries(&self.state()));
        dirs.iter()
            .flat_map(|dir| entries(dir))
            .filter(|path| named(path) && path.is_file())
            .collect()
    }
}

fn entries(dir: &Path) -> Vec<PathBuf> {
    fs::read_dir(dir)
        .into_iter()
        .flatten()
        .flatten()
        .map(|entry| entry.path())
        .collect()
}

/// The last lines of a log.
pub(crate) fn tail(path: &Path) -> String {
    let text = String::from_utf8_lossy(&fs::read(path).unwrap_or_default()).into_owned();
    let lines: Vec<_> = text.lines().collect();
    lines[lines.len().saturating_sub(40)..].join("\n")
}

/// A background process. Killed when dropped.
pub struct Process {
    child: Child,
    log: PathBuf,
    what: String,
}

impl Process {
    /// Its id.
    pub fn pid(&self) -> Pid {
        Pid::from_child(&self.child)
    }

    /// What it printed so far.
    pub fn output(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// Waits until it has printed something.
    #[track_caller]
    pub fn says(&self, text: &str) {
        eventually(SOON, &format!("{} says {text:?}", self.what), || {
            let output = self.output();
            if output.contains(text) {
                Ok(())
            } else {
                Err(output)
            }
        });
    }

    /// Sends a signal.
    pub fn signal(&self, signal: Signal) {
        kill_process(self.pid(), signal).expect("a child may be signalled");
    }

    /// Waits until it has ended by itself.
    #[track_caller]
    pub fn ends_within(&mut self, within: Duration) -> ExitStatus {
        let child = &mut self.child;
        eventually(within, &format!("{} ends", self.what), || {
            match child.try_wait() {
                Ok(Some(status)) => Ok(status),
                Ok(None) => Err("it runs".to_owned()),
                Err(error) => Err(error.to_string()),
            }
        })
    }

    /// Kills it, as a power cut would.
    pub fn kill(mut self) {
        self.end();
    }

    fn end(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.end();
    }
}
