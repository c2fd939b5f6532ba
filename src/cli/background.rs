//! The background process of a mount.
//!
//! `mount` starts the same program again, in a session of its own, with the cluster's saved name in place of its id: a
//! secret never stands on the command line of a running process. The child reports once on its standard output, a line of
//! JSON, when the mount is usable or has failed; then it lets go of it.

use std::{
    io::{BufRead, BufReader, Write},
    os::unix::process::CommandExt,
    process::{Command, ExitCode, Stdio},
};

use serde::{Deserialize, Serialize};

use super::{
    Failure, Outcome, What,
    args::{Common, MountArgs},
};
use crate::{cluster::Role, node::state::SavedCluster};

/// A mount that came up.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Report {
    pub(crate) name: String,
    pub(crate) mountpoint: String,
    pub(crate) role: Role,
    pub(crate) peers: usize,
    pub(crate) warnings: Vec<String>,
}

/// What the child says.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Word {
    Usable(Report),
    Failed {
        message: String,
        hint: Option<String>,
        wrong_usage: bool,
    },
}

/// Starts the background process and waits for its word. It is bounded by the child's own deadlines; a child that dies
/// closes the pipe.
pub(crate) fn spawn(
    common: &Common,
    options: &MountArgs,
    saved: &SavedCluster,
) -> Result<Report, Failure> {
    let what = || {
        format!(
            "{} could not be mounted on {}",
            saved.name,
            options.dir.display()
        )
    };
    let program = std::env::current_exe().what(what())?;
    let mut command = Command::new(program);
    command
        .arg("mount")
        .arg(saved.name.to_string())
        // Not to be taken for an option.
        .arg(match options.dir.as_os_str().as_encoded_bytes() {
            [b'-', ..] => std::path::Path::new(".").join(&options.dir),
            _ => options.dir.clone(),
        })
        .arg("--background");
    let mut pass = |option: &str, value: &dyn AsRef<std::ffi::OsStr>| {
        command.arg(option).arg(value);
    };
    if let Some(base) = saved.dir.parent() {
        pass("--state-dir", &base.as_os_str());
    }
    for tracker in &options.tracker {
        pass("--tracker", tracker);
    }
    for address in &options.listen {
        pass("--listen", address);
    }
    for peer in &options.peer {
        pass("--peer", peer);
    }
    for (option, limit) in [
        ("--cache-size", options.cache_size),
        ("--min-free", options.min_free),
        ("--upload-limit", options.upload_limit),
        ("--download-limit", options.download_limit),
    ] {
        if let Some(bytes) = limit {
            pass(option, &bytes.to_string());
        }
    }
    if let Some(time) = options.read_timeout {
        pass("--read-timeout", &format!("{}ms", time.as_millis()));
    }
    if let Some(owner) = options.owner {
        let whose = clap::ValueEnum::to_possible_value(&owner);
        pass(
            "--owner",
            &whose
                .map(|value| value.get_name().to_owned())
                .unwrap_or_default(),
        );
    }
    if let Some(file) = &options.log_file {
        pass(
            "--log-file",
            &std::path::absolute(file).what(file.display())?,
        );
    }
    if let Some(name) = &options.node_name {
        pass("--node-name", name);
    }
    for (option, given) in [
        ("--read-only", options.read_only),
        ("--allow-other", options.allow_other),
        ("--no-passthrough", options.no_passthrough),
        ("--new", options.new),
        ("--keep-all", options.keep_all),
        ("--no-lan", options.no_lan),
        ("--quiet", common.quiet),
    ] {
        if given {
            command.arg(option);
        }
    }
    for _ in 0..common.verbose {
        command.arg("--verbose");
    }
    command
        .env_remove("P2PFS_TRACKER")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null());
    // SAFETY: setsid is async-signal-safe and touches no memory of this process.
    unsafe {
        command.pre_exec(|| {
            rustix::process::setsid()?;
            Ok(())
        });
    }
    let mut child = command.spawn().what(what())?;
    let mut line = String::new();
    if let Some(output) = child.stdout.take() {
        BufReader::new(output).read_line(&mut line).what(what())?;
    }
    match serde_json::from_str(&line) {
        Ok(Word::Usable(report)) => Ok(report),
        Ok(Word::Failed {
            message,
            hint,
            wrong_usage,
        }) => Err(Failure {
            message,
            hint,
            wrong_usage,
        }),
        Err(_) => {
            let log = options.log_file.clone().unwrap_or_else(|| saved.log_file());
            Err(Failure::new(format_args!(
                "{}: the background process ended unexpectedly",
                what()
            ))
            .hint(format_args!("its log may say why: {}", log.display())))
        }
    }
}

/// The child's side: runs a mount and passes its first word on.
pub(crate) fn serve(mount: impl FnOnce(&mut dyn FnMut(Report)) -> Outcome) -> Outcome {
    let mut said = false;
    let outcome = mount(&mut |report| {
        said = true;
        say(&Word::Usable(report));
    });
    match outcome {
        Err(failure) if !said => {
            say(&Word::Failed {
                message: failure.message,
                hint: failure.hint,
                wrong_usage: failure.wrong_usage,
            });
            Ok(ExitCode::FAILURE)
        }
        Err(failure) => {
            tracing::error!("{}", failure.message);
            Ok(ExitCode::FAILURE)
        }
        done => done,
    }
}

/// Writes the line and closes standard output, so that whoever waits for its end (a pipe around `mount`) goes on.
fn say(word: &Word) {
    let Ok(line) = serde_json::to_string(word) else {
        return;
    };
    let mut output = std::io::stdout().lock();
    if writeln!(output, "{line}")
        .and_then(|()| output.flush())
        .is_err()
    {
        tracing::debug!("nobody waits for the mount's word");
    }
    if let Ok(null) = std::fs::OpenOptions::new().write(true).open("/dev/null")
        && let Err(error) = rustix::stdio::dup2_stdout(null)
    {
        tracing::debug!(%error, "standard output stays open");
    }
}
