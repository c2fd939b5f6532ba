//! `share`: copies files and trees into a mount, as `cp -r` would, and waits until they are published.
//!
//! A rerun resumes: a file whose copy has the same length and modification time is passed over. A file that fails is told of
//! and left out, and the rest is copied; where the mount takes nothing any more, that ends it.

use std::{
    fs::{self, File},
    io,
    os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt, symlink},
    path::{Component, Path, PathBuf},
    process::ExitCode,
    time::{Duration, Instant},
};

use serde::Serialize;

use super::{
    Failure, Outcome, What,
    args::{Common, ShareArgs},
    locate::{self, refused},
    units::size,
};

/// How long publication may take.
const PUBLISH_WITHIN: Duration = Duration::from_secs(120);
/// How long a published file's hash may take to be shown.
const HASH_WITHIN: Duration = Duration::from_secs(30);
/// Progress is shown this often.
const PROGRESS_EVERY: Duration = Duration::from_millis(200);

#[derive(Serialize)]
struct Shared {
    path: String,
    hash: String,
    size: u64,
}

pub(crate) async fn run(common: &Common, options: ShareArgs) -> Outcome {
    let mount = locate::mount_of(&options.dir).await?;
    if !options.dir.is_dir() {
        return Err(
            Failure::new(format_args!("{} is not a folder", options.dir.display()))
                .hint("the last word names the folder inside the mount to copy into"),
        );
    }
    let mut pairs = Vec::new();
    for source in &options.sources {
        let name = name_of(source).what(source.display())?.ok_or_else(|| {
            Failure::usage(format_args!(
                "{} has no name to copy it under",
                source.display()
            ))
        })?;
        let target = options.dir.join(name);
        let (from, into) = (
            source.canonicalize().what(source.display())?,
            options.dir.canonicalize().what(options.dir.display())?,
        );
        if from.is_dir() && into.starts_with(&from) {
            return Err(Failure::usage(format_args!(
                "{} cannot be copied into itself, {}",
                source.display(),
                options.dir.display()
            )));
        }
        pairs.push((source, target));
    }
    let mut copier = Copier::new(!common.quiet);
    for (source, target) in pairs {
        let went = tokio::task::block_in_place(|| copier.copy(source, &target));
        if let Err(failure) = went {
            copier.end_line();
            return Err(failure);
        }
    }
    copier.end_line();
    let failed = copier.failed;
    mount
        .client
        .post::<()>("/publish", &(), PUBLISH_WITHIN)
        .await
        .map_err(refused(
            "the files are copied, but their entries could not be published",
        ))?;
    let mut shared = Vec::new();
    for (path, size) in copier.files {
        let hash = hash_of(&path).await?;
        if !options.json {
            out!("{hash}  {}", path.display());
        }
        shared.push(Shared {
            path: path.display().to_string(),
            hash,
            size,
        });
    }
    if options.json {
        out!(
            "{}",
            serde_json::to_string(&serde_json::json!({ "files": shared }))
                .what("the report could not be written")?
        );
    }
    // Each was told of.
    Ok(match failed {
        0 => ExitCode::SUCCESS,
        _ => ExitCode::FAILURE,
    })
}

/// The name that a copy gets: a link's own, as `cp -r` has it; for `.` and `..` that of the folder meant.
fn name_of(source: &Path) -> io::Result<Option<PathBuf>> {
    match source.components().next_back() {
        Some(Component::Normal(name)) => {
            fs::symlink_metadata(source)?;
            Ok(Some(PathBuf::from(name)))
        }
        _ => Ok(source.canonicalize()?.file_name().map(PathBuf::from)),
    }
}

async fn hash_of(path: &Path) -> Result<String, Failure> {
    let deadline = Instant::now() + HASH_WITHIN;
    let mut value = [0; 64];
    loop {
        match rustix::fs::getxattr(path, "user.p2pfs.hash", &mut value[..]) {
            Ok(64) => return Ok(String::from_utf8_lossy(&value).into_owned()),
            Err(rustix::io::Errno::NODATA | rustix::io::Errno::AGAIN)
                if Instant::now() < deadline =>
            {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            Ok(_) => {
                return Err(Failure::new(format_args!(
                    "{} has no content hash",
                    path.display()
                )));
            }
            Err(error) => {
                return Err(Failure::new(format_args!(
                    "the hash of {} could not be read: {error}",
                    path.display()
                )));
            }
        }
    }
}

/// Whether what failed so is the mount: there is no room, it can't be written, or it is gone.
fn takes_nothing(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::StorageFull
            | io::ErrorKind::QuotaExceeded
            | io::ErrorKind::ReadOnlyFilesystem
            | io::ErrorKind::NotConnected
            | io::ErrorKind::ConnectionAborted
    )
}

struct Copier {
    files: Vec<(PathBuf, u64)>,
    failed: u64,
    done_bytes: u64,
    begun: Instant,
    shown: Instant,
    progress: bool,
}

impl Copier {
    fn new(progress: bool) -> Self {
        use io::IsTerminal;
        Self {
            files: Vec::new(),
            failed: 0,
            done_bytes: 0,
            begun: Instant::now(),
            shown: Instant::now(),
            progress: progress && io::stderr().is_terminal(),
        }
    }

    /// Fails where nothing else can be copied either; what fails alone is told of and counted.
    fn copy(&mut self, source: &Path, target: &Path) -> Result<(), Failure> {
        let mut walk = walkdir::WalkDir::new(source)
            .follow_root_links(false)
            .sort_by_file_name()
            .into_iter();
        while let Some(entry) = walk.next() {
            let entry = match entry {
                Ok(entry) => entry,
                Err(error) => {
                    self.leave_out(&format_args!("{error}"));
                    continue;
                }
            };
            let below = entry.path().strip_prefix(source).what(source.display())?;
            let to = if below.as_os_str().is_empty() {
                target.to_path_buf()
            } else {
                target.join(below)
            };
            if let Err(error) = self.copy_entry(&entry, &to) {
                let what = format!("{} could not be copied", entry.path().display());
                if takes_nothing(&error) {
                    return Err(error).what(what);
                }
                self.leave_out(&format_args!("{what}: {error}"));
                if entry.file_type().is_dir() {
                    walk.skip_current_dir();
                }
            }
        }
        Ok(())
    }

    fn copy_entry(&mut self, entry: &walkdir::DirEntry, to: &Path) -> io::Result<()> {
        let kind = entry.file_type();
        if kind.is_dir() {
            match fs::create_dir(to) {
                // A link that somebody else put there would lead out of the mount.
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                    if !fs::symlink_metadata(to)?.is_dir() {
                        let message = format!("{} is not a folder", to.display());
                        return Err(io::Error::new(io::ErrorKind::NotADirectory, message));
                    }
                }
                made => made?,
            }
        } else if kind.is_symlink() {
            let link = fs::read_link(entry.path())?;
            if fs::read_link(to).ok().as_deref() != Some(&link) {
                symlink(&link, to)?;
            }
        } else if kind.is_file() {
            self.copy_file(entry.path(), to)?;
        } else {
            self.end_line();
            err!(
                "p2pfs: warning: {} is no file, folder or link; it was left out",
                entry.path().display()
            );
        }
        Ok(())
    }

    fn leave_out(&mut self, message: &std::fmt::Arguments<'_>) {
        self.end_line();
        err!("p2pfs: {message}");
        self.failed += 1;
    }

    fn copy_file(&mut self, from: &Path, to: &Path) -> io::Result<()> {
        let metadata = fs::metadata(from)?;
        let modified = metadata.modified()?;
        let there = fs::symlink_metadata(to);
        if there.as_ref().is_ok_and(fs::Metadata::is_symlink) {
            // Written through, it would lead out of the mount.
            fs::remove_file(to)?;
        }
        let same = there.is_ok_and(|there| {
            there.is_file()
                && there.len() == metadata.len()
                && there.modified().is_ok_and(|time| time == modified)
        });
        if !same {
            let mut input = File::open(from)?;
            let output = fs::OpenOptions::new()
                .write(true)
                .create(true)
                .truncate(true)
                .custom_flags(libc::O_NOFOLLOW)
                .open(to)?;
            self.copy_bytes(&mut input, &output)?;
            output.set_permissions(fs::Permissions::from_mode(metadata.mode() & 0o7777))?;
            output.set_modified(modified)?;
        }
        self.files.push((to.to_path_buf(), metadata.len()));
        Ok(())
    }

    fn copy_bytes(&mut self, input: &mut File, mut output: &File) -> io::Result<()> {
        use io::{Read, Write};
        let mut buffer = vec![0; 1 << 20];
        loop {
            let read = input.read(&mut buffer)?;
            if read == 0 {
                return Ok(());
            }
            output.write_all(&buffer[..read])?;
            self.done_bytes += read as u64;
            if self.progress && self.shown.elapsed() >= PROGRESS_EVERY {
                self.show();
            }
        }
    }

    fn show(&mut self) {
        self.shown = Instant::now();
        let rate = self.done_bytes as f64 / self.begun.elapsed().as_secs_f64().max(0.001);
        draw!(
            "\r{} files, {}, {}/s \x1b[K",
            self.files.len(),
            size(self.done_bytes),
            size(rate as u64)
        );
    }

    /// What is told next begins a line.
    fn end_line(&mut self) {
        if self.progress {
            self.show();
            err!("");
        }
    }
}
