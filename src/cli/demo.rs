//! `demo`: a tracker and two mounts on this machine, real processes all three.
//!
//! With `--check` real files of this machine are copied into one mount and compared, byte for byte, in the other; without,
//! the two folders stay up to play with until one Ctrl-C.

use std::{
    fs::{self, File},
    io::{self, BufRead, BufReader, Read, Write},
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::{Child, Command, ExitCode, Stdio},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use super::{
    Failure, Outcome, What,
    args::{Common, DemoArgs},
    mount::end_signal,
    units::{count, size},
};

/// What `--check` copies at least.
const FILES_MIN: usize = 2_000;
const BYTES_MIN: u64 = 500 * 1024 * 1024;
/// One file is this large at least.
const LARGE_BYTES: u64 = 256 * 1024 * 1024;
/// How long the other side may take to show what was copied.
const SEEN_WITHIN: Duration = Duration::from_secs(60);
/// How long the tracker may take to come up.
const READY_WITHIN: Duration = Duration::from_secs(20);

/// Everything the demo started; ended and removed in the right order when dropped.
struct Stage {
    dir: PathBuf,
    /// The folder was made for the demo and goes with it.
    temporary: bool,
    program: PathBuf,
    tracker: Option<Child>,
    mounted: Vec<PathBuf>,
}

impl Stage {
    fn new(dir: Option<PathBuf>) -> Result<Self, Failure> {
        let (dir, temporary) = match dir {
            Some(dir) => (std::path::absolute(&dir).what(dir.display())?, false),
            None => {
                let name = format!("p2pfs-demo-{:08x}", rand::random::<u32>());
                (std::env::temp_dir().join(name), true)
            }
        };
        fs::create_dir_all(&dir).what(format_args!("{} could not be made", dir.display()))?;
        Ok(Self {
            dir,
            temporary,
            program: std::env::current_exe().what("the demo could not start itself")?,
            tracker: None,
            mounted: Vec::new(),
        })
    }

    fn command(&self, peer: &str) -> Command {
        let mut command = Command::new(&self.program);
        command
            .arg("--state-dir")
            .arg(self.dir.join("state").join(peer))
            .env_remove("P2PFS_TRACKER")
            // A Ctrl-C reaches the demo alone; it ends what it started in order.
            .process_group(0)
            .stdin(Stdio::null());
        command
    }

    /// Starts the tracker; returns its address.
    fn start_tracker(&mut self) -> Result<String, Failure> {
        let what = "the demo's tracker could not be started";
        let mut child = self
            .command("tracker")
            .args(["tracker", "--listen", "127.0.0.1:0", "--quiet"])
            .stdout(Stdio::piped())
            .spawn()
            .what(what)?;
        let output = child.stdout.take();
        self.tracker = Some(child);
        let (sender, receiver) = std::sync::mpsc::channel();
        std::thread::spawn(move || {
            let mut line = String::new();
            if let Some(output) = output {
                let read = BufReader::new(output).read_line(&mut line);
                // The receiver may have given up; then nobody needs the line.
                let _ = sender.send(read.map(|_| line));
            }
        });
        let line = receiver.recv_timeout(READY_WITHIN).what(what)?.what(what)?;
        let address = line
            .strip_prefix("tracker ready on ")
            .and_then(|rest| rest.split_whitespace().next());
        address
            .map(str::to_owned)
            .ok_or_else(|| Failure::new(format_args!("{what}: it ended at once")))
    }

    /// Makes the cluster, or takes up the one that an earlier demo left in the same folder; returns its id.
    fn create(&self) -> Result<String, Failure> {
        let known = self
            .command("first")
            .args(["id", "demo"])
            .stderr(Stdio::null())
            .output();
        if let Ok(output) = known
            && output.status.success()
        {
            return first_line(&output.stdout);
        }
        let output = self
            .command("first")
            .args(["create", "--name", "demo", "--quiet"])
            .stderr(Stdio::inherit())
            .output()
            .what("the demo's cluster could not be made")?;
        if output.status.success() {
            first_line(&output.stdout)
        } else {
            Err(Failure::new("the demo's cluster could not be made"))
        }
    }

    /// Mounts as one peer; the id goes in over standard input.
    fn mount(&mut self, peer: &str, id: &str, tracker: &str) -> Result<PathBuf, Failure> {
        let dir = self.dir.join(peer);
        let what = format!("the demo's {peer} peer could not be mounted");
        let mut child = self
            .command(peer)
            .args([
                "mount",
                "-",
                "--node-name",
                peer,
                "--tracker",
                tracker,
                "--quiet",
            ])
            .arg(&dir)
            .stdin(Stdio::piped())
            .spawn()
            .what(&what)?;
        if let Some(mut input) = child.stdin.take() {
            writeln!(input, "{id}").what(&what)?;
        }
        self.mounted.push(dir.clone());
        if child.wait().what(&what)?.success() {
            Ok(dir)
        } else {
            Err(Failure::new(what))
        }
    }

    /// Ends everything; says what did not end.
    fn end(&mut self) -> Result<(), Failure> {
        let mut outcome = Ok(());
        for dir in std::mem::take(&mut self.mounted) {
            // One that failed to come up said so already.
            if super::locate::behind(&dir).is_none() {
                continue;
            }
            let unmounted = self.command("any").arg("unmount").arg(&dir).status();
            if !unmounted.as_ref().is_ok_and(|status| status.success()) {
                // Somebody's shell may stand in the folder: it is detached, and its process ends with that.
                let lazily = self
                    .command("any")
                    .args(["unmount", "--lazy"])
                    .arg(&dir)
                    .status();
                if !lazily.is_ok_and(|status| status.success()) {
                    outcome = Err(
                        Failure::new(format_args!("{} is still mounted", dir.display()))
                            .hint(format_args!("unmount it with: umount -l {}", dir.display())),
                    );
                }
            }
        }
        if let Some(mut tracker) = self.tracker.take() {
            if let Some(pid) = rustix::process::Pid::from_raw(tracker.id() as i32) {
                let _ = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
            }
            tracker.wait().what("the demo's tracker did not end")?;
        }
        if self.temporary && outcome.is_ok() && self.dir.exists() {
            fs::remove_dir_all(&self.dir)
                .what(format_args!("{} could not be removed", self.dir.display()))?;
        }
        outcome
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        if let Err(failure) = self.end() {
            err!("p2pfs: {}", failure.message);
        }
    }
}

pub(crate) async fn run(common: &Common, options: DemoArgs) -> Outcome {
    let mut stage = Stage::new(options.dir)?;
    let quiet = common.quiet;
    let stop = Arc::new(AtomicBool::new(false));
    let mut work = tokio::task::spawn_blocking({
        let stop = stop.clone();
        move || {
            let tracker = stage.start_tracker()?;
            go_on(&stop)?;
            let id = stage.create()?;
            go_on(&stop)?;
            let first = stage.mount("first", &id, &tracker)?;
            go_on(&stop)?;
            let second = stage.mount("second", &id, &tracker)?;
            if options.check {
                check(&stage.dir, &first, &second, quiet, &stop)?;
            }
            Ok((stage, first, second))
        }
    });
    let done = tokio::select! {
        done = &mut work => done,
        () = end_signal() => {
            // The work ends at its next step; with it goes the stage, which ends all that was started.
            stop.store(true, Ordering::Relaxed);
            if let Ok(Ok(stage)) = work.await {
                tokio::task::block_in_place(|| drop(stage));
            }
            return Err(Failure::new("the demo was interrupted"));
        }
    };
    let (mut stage, first, second) = done.what("the demo failed")??;
    if !options.check {
        told!(
            "Two peers share one folder. What is written in one is there in the other:\n    {}\n    {}\nCtrl-C ends the demo.",
            first.display(),
            second.display()
        );
        end_signal().await;
    }
    tokio::task::spawn_blocking(move || stage.end())
        .await
        .what("the demo did not end")??;
    if options.check {
        told!("demo: all is as it should be; nothing is left mounted or running");
    }
    Ok(ExitCode::SUCCESS)
}

fn first_line(output: &[u8]) -> Result<String, Failure> {
    let text = String::from_utf8_lossy(output);
    let line = text
        .lines()
        .next()
        .ok_or_else(|| Failure::new("the demo's cluster has no id"))?;
    // The trackers of an earlier demo are gone.
    Ok(line.split('@').next().unwrap_or(line).to_owned())
}

fn go_on(stop: &AtomicBool) -> Result<(), Failure> {
    if stop.load(Ordering::Relaxed) {
        Err(Failure::new("the demo was interrupted"))
    } else {
        Ok(())
    }
}

/// A timed step, printed.
fn step<T>(
    quiet: bool,
    name: &str,
    work: impl FnOnce() -> Result<(T, usize, u64), Failure>,
) -> Result<T, Failure> {
    let begun = Instant::now();
    let (value, files, bytes) = work()?;
    let seconds = begun.elapsed().as_secs_f64();
    if !quiet {
        told!(
            "{name}: {}, {} in {seconds:.1} s, {}/s",
            count(files as u64, "file", "files"),
            size(bytes),
            size((bytes as f64 / seconds.max(1e-9)) as u64)
        );
    }
    Ok(value)
}

fn check(
    dir: &Path,
    first: &Path,
    second: &Path,
    quiet: bool,
    stop: &AtomicBool,
) -> Result<(), Failure> {
    let sources = choose()?;
    let large = dir.join("large");
    let large_bytes = make_large(&large, &sources)?;
    let mut copies: Vec<(PathBuf, PathBuf)> = vec![(large.clone(), PathBuf::from("large"))];
    for source in &sources.files {
        let below = source.strip_prefix(&sources.root).what("the demo's data")?;
        copies.push((source.clone(), Path::new("tree").join(below)));
    }
    let total = sources.bytes + large_bytes;
    step(quiet, "copied in at the first peer", || {
        for (from, below) in &copies {
            go_on(stop)?;
            let to = first.join(below);
            if let Some(parent) = to.parent() {
                fs::create_dir_all(parent).what(parent.display())?;
            }
            fs::copy(from, &to).what(to.display())?;
        }
        Ok(((), copies.len(), total))
    })?;
    step(quiet, "seen at the second peer", || {
        let deadline = Instant::now() + SEEN_WITHIN;
        for (from, below) in &copies {
            let wanted = fs::metadata(from).what(from.display())?.len();
            let at = second.join(below);
            go_on(stop)?;
            while fs::metadata(&at).map(|there| there.len()).ok() != Some(wanted) {
                if Instant::now() > deadline {
                    return Err(Failure::new(format_args!(
                        "{} is not seen at the second peer",
                        at.display()
                    )));
                }
                std::thread::sleep(Duration::from_millis(5));
            }
        }
        Ok(((), copies.len(), total))
    })?;
    for pass in [
        "fetched and compared at the second peer",
        "compared again, from its cache",
    ] {
        step(quiet, pass, || {
            for (from, below) in &copies {
                go_on(stop)?;
                let at = second.join(below);
                if !same_bytes(from, &at).what(at.display())? {
                    return Err(Failure::new(format_args!(
                        "{} differs from {}",
                        at.display(),
                        from.display()
                    )));
                }
            }
            Ok(((), copies.len(), total))
        })?;
    }
    Ok(())
}

/// Files of this machine to copy.
struct Sources {
    root: PathBuf,
    files: Vec<PathBuf>,
    bytes: u64,
}

/// The Rust toolchain's own folder, or else what the system has under /usr.
fn choose() -> Result<Sources, Failure> {
    let sysroot = Command::new("rustc")
        .args(["--print", "sysroot"])
        .stderr(Stdio::null())
        .output()
        .ok()
        .filter(|output| output.status.success())
        .map(|output| PathBuf::from(String::from_utf8_lossy(&output.stdout).trim()));
    let roots = sysroot
        .into_iter()
        .chain(["/usr/share".into(), "/usr".into()]);
    for root in roots {
        let sources = gather(&root);
        if sources.files.len() >= FILES_MIN && sources.bytes >= BYTES_MIN - LARGE_BYTES {
            return Ok(sources);
        }
    }
    Err(Failure::new(format_args!(
        "the demo found no folder with {FILES_MIN} files and {} to copy",
        size(BYTES_MIN - LARGE_BYTES)
    )))
}

/// Readable plain files below a folder: enough of them, large ones first come, until both minima are reached.
fn gather(root: &Path) -> Sources {
    let mut sources = Sources {
        root: root.to_path_buf(),
        files: Vec::new(),
        bytes: 0,
    };
    for entry in walkdir::WalkDir::new(root)
        .sort_by_file_name()
        .into_iter()
        .filter_map(Result::ok)
    {
        if !entry.file_type().is_file() || File::open(entry.path()).is_err() {
            continue;
        }
        let Ok(metadata) = entry.metadata() else {
            continue;
        };
        let enough_bytes = sources.bytes >= BYTES_MIN;
        let enough_files = sources.files.len() >= FILES_MIN + FILES_MIN / 10;
        if enough_bytes && enough_files {
            break;
        }
        // Once there are bytes enough, small files bring up the number.
        if enough_bytes && metadata.len() > 64 * 1024 {
            continue;
        }
        sources.bytes += metadata.len();
        sources.files.push(entry.path().to_path_buf());
    }
    sources
}

/// One large file out of the chosen ones' bytes, each copy of them shifted by a counter so that no two parts are equal.
fn make_large(path: &Path, sources: &Sources) -> Result<u64, Failure> {
    let what = || format!("{} could not be written", path.display());
    let mut output = io::BufWriter::new(File::create(path).what(what())?);
    let mut written = 0_u64;
    while written < LARGE_BYTES {
        let before = written;
        for source in &sources.files {
            output.write_all(&written.to_le_bytes()).what(what())?;
            let copied = File::open(source)
                .and_then(|file| io::copy(&mut file.take(LARGE_BYTES), &mut output))
                .what(what())?;
            written += copied + 8;
            if written >= LARGE_BYTES {
                break;
            }
        }
        if written == before {
            return Err(Failure::new(what()));
        }
    }
    output.flush().what(what())?;
    Ok(written)
}

fn same_bytes(one: &Path, other: &Path) -> io::Result<bool> {
    let (mut one, mut other) = (File::open(one)?, File::open(other)?);
    if one.metadata()?.len() != other.metadata()?.len() {
        return Ok(false);
    }
    let (mut left, mut right) = (vec![0; 1 << 20], vec![0; 1 << 20]);
    loop {
        let read = one.read(&mut left)?;
        if read == 0 {
            return Ok(other.read(&mut right)? == 0);
        }
        if other.read_exact(&mut right[..read]).is_err() || left[..read] != right[..read] {
            return Ok(false);
        }
    }
}
