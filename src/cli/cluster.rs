//! `create`, `id`, `leave`, and how a cluster is named on a command line.

use std::{io::Read, path::Path, process::ExitCode, time::Duration};

use serde_json::json;

use super::{
    Failure, Outcome, What,
    args::{Common, CreateArgs, IdArgs, LeaveArgs},
    locate::{self, refused, state_base},
    units::{count, plain, size},
};
use crate::{
    cluster::{ClusterId, ParsedCluster, Role},
    control::{
        client::ClientError,
        types::{LeaveReport, LeaveRequest},
    },
    node::{
        self, address,
        state::{SavedCluster, read_secret},
    },
};

/// An id file holds one word.
const ID_FILE_BYTES_MAX: u64 = 64 * 1024;
/// How long trackers are given to take a new cluster's first head.
const HAND_OVER_HEAD_WITHIN: Duration = Duration::from_secs(5);

pub(crate) async fn create(common: &Common, options: CreateArgs) -> Outcome {
    let base = state_base(common)?;
    let trackers = parse_trackers(&options.tracker)?;
    if let Some(name) = &options.name
        && base.by_name(name).is_ok()
    {
        return Err(Failure::new(format_args!(
            "the cluster was not made: the name {name} is taken"
        ))
        .hint("choose another with --name"));
    }
    let cluster = ParsedCluster {
        id: ClusterId::generate(rand::random()),
        trackers: options.tracker.clone(),
    };
    let saved = base
        .save(&cluster, options.name.as_ref())
        .what("the cluster could not be saved")?;
    let unreached = node::create(&saved, &trackers, HAND_OVER_HEAD_WITHIN)
        .await
        .what("the cluster could not be made")?;
    for (tracker, why) in unreached {
        err!("p2pfs: warning: the tracker {tracker} did not answer: {why}; mounts tell it later");
    }
    let read_write = saved.word(&saved.id);
    let read_only = saved.word(&saved.id.read_only());
    if options.json {
        let name = saved.name.to_string();
        out!(
            "{}",
            json!({ "name": name, "read_write": read_write, "read_only": read_only })
        );
        return Ok(ExitCode::SUCCESS);
    }
    out!("{read_write}\n{read_only}");
    if !common.quiet {
        err!(
            "The first id lets its holders read and write, the second read only. Both are secrets: who has one is a member.\n\
             The cluster is saved as {name}. Next:\n    p2pfs mount {name} DIR\n\
             and on another machine, with the id from above:\n    p2pfs mount ID DIR",
            name = saved.name
        );
    }
    Ok(ExitCode::SUCCESS)
}

pub(crate) fn id(common: &Common, options: &IdArgs) -> Outcome {
    let saved = state_base(common)?
        .by_name(&options.name)
        .what("the id cannot be shown")?;
    let id = if options.read_only {
        saved.id.read_only()
    } else {
        saved.id.clone()
    };
    out!("{}", saved.word(&id));
    if options.read_only || saved.id.role() == Role::ReadWrite || common.quiet {
        return Ok(ExitCode::SUCCESS);
    }
    err!("This member holds the read-only id alone.");
    Ok(ExitCode::SUCCESS)
}

/// Whether a word is meant as a cluster id.
pub(crate) fn is_id(word: &str) -> bool {
    let word = word.trim().to_ascii_lowercase();
    word.starts_with("p2pfsrw1") || word.starts_with("p2pfsro1")
}

/// The cluster that a word on the command line means: an id, `-`, a saved name, or a file. New ids are saved.
pub(crate) fn resolve(common: &Common, word: &str) -> Result<SavedCluster, Failure> {
    let base = state_base(common)?;
    let text = if word == "-" {
        let mut text = zeroize::Zeroizing::new(String::new());
        std::io::stdin()
            .take(ID_FILE_BYTES_MAX)
            .read_to_string(&mut text)
            .what("the cluster id could not be read from standard input")?;
        text
    } else if is_id(word) {
        zeroize::Zeroizing::new(word.to_owned())
    } else if let Some(saved) = word.parse().ok().and_then(|name| base.by_name(&name).ok()) {
        return Ok(saved);
    } else if Path::new(word).is_file() {
        let bytes = read_secret(Path::new(word))
            .what("the cluster id could not be read")
            .map_err(|failure| {
                failure.hint(format_args!(
                    "a file with an id is a secret: chmod 600 {word}"
                ))
            })?;
        zeroize::Zeroizing::new(String::from_utf8_lossy(&bytes).into_owned())
    } else {
        return Err(Failure::usage(format_args!(
            "{word:?} is no cluster id, no saved name and no file"
        ))
        .hint("an id starts with p2pfsrw1 or p2pfsro1; p2pfs create makes one"));
    };
    let cluster: ParsedCluster = text.trim().parse().map_err(|error| {
        Failure::usage(format_args!("the cluster id is wrong: {error}"))
            .hint("copy it again, whole: it is one word")
    })?;
    parse_trackers(&cluster.trackers)?;
    base.save(&cluster, None)
        .what("the cluster could not be saved")
}

pub(crate) fn parse_trackers(
    words: &[String],
) -> Result<Vec<(String, libp2p::Multiaddr)>, Failure> {
    words
        .iter()
        .map(|word| {
            Ok((
                word.clone(),
                address::tracker(word).map_err(Failure::usage)?,
            ))
        })
        .collect()
}

/// How long `leave` and `leave --hand-over` wait between looks.
const HAND_OVER_EVERY: Duration = Duration::from_secs(2);
const LEAVE_WITHIN: Duration = Duration::from_secs(300);

pub(crate) async fn leave(common: &Common, options: LeaveArgs) -> Outcome {
    let mount = locate::find(common, &options.which).await;
    let dir = match (&mount, &options.which.mount) {
        (Ok(mount), _) => mount.dir.clone(),
        (Err(_), Some(named)) => locate::resolve(common, named)?,
        (Err(_), None) => return mount.map(|_| ExitCode::SUCCESS),
    };
    let saved = SavedCluster::load(&dir).what("leaving failed")?;
    let report = match mount {
        Ok(mount) => {
            let request = LeaveRequest {
                force: options.force,
            };
            leave_running(common, &mount, &request, options.hand_over).await?
        }
        // Nothing runs: registrations run out by themselves, and what exists only here cannot be asked about.
        Err(_) if !options.force => {
            return Err(Failure::new("leaving failed: the cluster is not mounted, so nobody can say what exists only here")
                .hint(format_args!("mount it first, or leave with --force: p2pfs leave -C {} --force", saved.name)));
        }
        Err(_) => {
            saved.forget().what("the keys could not be removed")?;
            LeaveReport {
                left: true,
                ..LeaveReport::default()
            }
        }
    };
    if report.left && options.purge {
        std::fs::remove_dir_all(&dir).what(format_args!(
            "the cache in {} could not be removed",
            dir.display()
        ))?;
    }
    if options.json {
        out!(
            "{}",
            serde_json::to_string(&report).what("leaving was not reported")?
        );
    } else {
        for path in &report.only_here {
            out!("{}", plain(path));
        }
    }
    let lost = format!(
        "{} ({})",
        count(report.totals.files, "content exists", "contents exist") + " only here",
        size(report.totals.bytes)
    );
    if !report.left {
        return Err(Failure::new(format_args!(
            "leaving was not done: {lost}, or no other member promises to keep what it has of them"
        ))
        .hint("wait until others hold them with --hand-over, or go anyway with --force"));
    }
    if !common.quiet {
        err!("Left the cluster {}; its keys are forgotten.", saved.name);
        if report.totals.files > 0 {
            err!("{lost}, and nobody can fetch them any more.");
        }
    }
    Ok(ExitCode::SUCCESS)
}

async fn leave_running(
    common: &Common,
    mount: &locate::Found,
    request: &LeaveRequest,
    hand_over: bool,
) -> Result<LeaveReport, Failure> {
    loop {
        let report: LeaveReport = mount
            .client
            .post("/leave", request, LEAVE_WITHIN)
            .await
            .map_err(refused("leaving failed"))?;
        if report.left {
            // The process lets go of its lock a moment after it has answered.
            while !matches!(mount.client.version().await, Err(ClientError::NotRunning)) {
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
            return Ok(report);
        }
        if !hand_over {
            return Ok(report);
        }
        if !common.quiet {
            err!(
                "waiting until others hold {} ({})",
                count(report.totals.files, "content", "contents"),
                size(report.totals.bytes)
            );
        }
        tokio::time::sleep(HAND_OVER_EVERY).await;
    }
}
