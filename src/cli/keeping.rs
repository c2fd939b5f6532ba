//! `transfers`, `fetch`, `pin`, `unpin`, `evict`, `wait`, `why`: what comes into the cache, and from where.

use std::{path::PathBuf, process::ExitCode, time::Duration};

use super::{
    Failure, Outcome, What,
    args::{Common, PathsArgs, PinArgs, ReportArgs, WaitArgs, Which, WhyArgs},
    locate::{self, Found, refused},
    progress::{Far, Progress},
    reports::{print_json, transfer_line},
    units::{count, plain, size},
};
use crate::control::{
    client::Lines,
    keeping::{
        EvictReport, FailedReport, FetchLine, FetchReport, PartReport, PathsRequest, PinReport,
        PinRequest, TransfersReport, WaitReport, WaitRequest, WhyReport,
    },
    text::hex,
};

/// How long a report may take.
const REPORT_WITHIN: Duration = Duration::from_secs(30);
/// How long it may take to begin: where the paths lead may have to be fetched first.
const BEGIN_WITHIN: Duration = Duration::from_secs(120);
/// How long the mount's answer may take beyond the time that was asked for.
const ANSWER_SLACK: Duration = Duration::from_secs(10);
/// As good as for ever.
const FOR_EVER: Duration = Duration::from_secs(10 * 365 * 24 * 3600);

pub(crate) async fn transfers(common: &Common, options: ReportArgs) -> Outcome {
    let mount = locate::find(common, &options.which).await?;
    let report: TransfersReport = mount
        .client
        .get("/transfers", REPORT_WITHIN)
        .await
        .map_err(refused("the transfers could not be read"))?;
    if options.json {
        print_json(&report)?;
    } else if report.transfers.is_empty() {
        out!("no transfers");
    } else {
        for transfer in &report.transfers {
            out!("{}", plain(&transfer_line(transfer)));
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// The mount that all the paths are in, and what to ask it about them.
async fn request(
    common: &Common,
    which: &Which,
    paths: &[PathBuf],
) -> Result<(Found, PathsRequest), Failure> {
    let mut found: Option<Found> = None;
    let mut request = PathsRequest::default();
    for path in paths {
        let (mount, below) = locate::within(common, which, path).await?;
        if found.as_ref().is_some_and(|other| other.dir != mount.dir) {
            return Err(Failure::usage(format_args!(
                "{} is in another mount than {}",
                path.display(),
                paths[0].display()
            )));
        }
        found = Some(mount);
        request.paths_hex.push(hex(&below));
    }
    match found {
        Some(mount) => Ok((mount, request)),
        None => Ok((locate::find(common, which).await?, request)),
    }
}

pub(crate) async fn fetch(common: &Common, options: PathsArgs) -> Outcome {
    let (mount, request) = request(common, &options.which, &options.paths).await?;
    let lines = mount.client.start("/fetch", &request, BEGIN_WITHIN).await;
    let lines = lines.map_err(refused("nothing was fetched"))?;
    let report = follow(lines, Progress::new(common.quiet)).await?;
    if options.json {
        print_json(&report)?;
    } else {
        out!(
            "{}, {}: {} fetched, {} here already",
            count(report.files, "file", "files"),
            size(report.bytes),
            size(report.fetched_bytes),
            size(report.already_here_bytes),
        );
        print_failed(&report.failed);
    }
    if report.failed_files == 0 {
        return Ok(ExitCode::SUCCESS);
    }
    Err(incomplete(&report))
}

async fn follow(mut lines: Lines, mut progress: Progress) -> Result<FetchReport, Failure> {
    let broken = "the fetch broke off";
    loop {
        let line = lines.next_told().await.map_err(refused(broken))?;
        let line =
            line.ok_or_else(|| Failure::new(format_args!("{broken}: the mount ended it")))?;
        let line: FetchLine = serde_json::from_str(&line).what(broken)?;
        match line {
            FetchLine::Done(report) => return Ok(report),
            FetchLine::Progress(told) => progress.show(Far {
                done_bytes: told.done_bytes,
                already_bytes: told.already_here_bytes,
                total_bytes: told.bytes,
                counted: told.counted,
                done_files: told.done_files,
                files: told.files,
            }),
        }
    }
}

fn print_failed(failed: &[FailedReport]) {
    for failed in failed {
        out!("failed  {}: {}", plain(&failed.path), plain(&failed.reason));
    }
}

fn incomplete(report: &FetchReport) -> Failure {
    let named = report.failed.first();
    let first = named.map_or_else(String::new, |first| {
        format!(": {}: {}", plain(&first.path), plain(&first.reason))
    });
    let failed = count(report.failed_files, "file", "files");
    let stopped = match report.gave_up {
        true => " and the rest was not tried",
        false => "",
    };
    Failure::new(format_args!(
        "{failed} could not be fetched{stopped}{first}"
    ))
    .hint("what came stays here: the same command goes on where this one stopped")
}

pub(crate) async fn pin(common: &Common, options: PinArgs) -> Outcome {
    set_pins(common, &options.which, &options.paths, true, options.json).await
}

pub(crate) async fn unpin(common: &Common, options: PathsArgs) -> Outcome {
    set_pins(common, &options.which, &options.paths, false, options.json).await
}

async fn set_pins(
    common: &Common,
    which: &Which,
    paths: &[PathBuf],
    pinned: bool,
    json: bool,
) -> Outcome {
    let (mount, request) = request(common, which, paths).await?;
    let request = PinRequest {
        paths_hex: request.paths_hex,
        pinned,
    };
    let what = match pinned {
        true => "nothing was pinned",
        false => "nothing was unpinned",
    };
    let report: PinReport = mount
        .client
        .post("/pin", &request, BEGIN_WITHIN)
        .await
        .map_err(refused(what))?;
    if json {
        print_json(&report)?;
    } else if paths.is_empty() {
        for path in &report.pinned {
            out!("{}", if path.is_empty() { "." } else { path });
        }
        if report.keep_all {
            out!("everything, as the mount was made with --keep-all");
        } else if report.pinned.is_empty() {
            out!("nothing is pinned");
        }
    }
    Ok(ExitCode::SUCCESS)
}

pub(crate) async fn evict(common: &Common, options: PathsArgs) -> Outcome {
    let (mount, request) = request(common, &options.which, &options.paths).await?;
    let report: EvictReport = mount
        .client
        .post("/evict", &request, FOR_EVER)
        .await
        .map_err(refused("nothing was evicted"))?;
    if options.json {
        print_json(&report)?;
        return Ok(ExitCode::SUCCESS);
    }
    out!(
        "{}: {} freed in {}, {} kept in {}",
        count(report.files, "file", "files"),
        size(report.freed_bytes),
        count(report.freed_files, "content", "contents"),
        size(report.kept_bytes),
        count(report.kept_files, "file", "files"),
    );
    for kept in &report.kept {
        out!("kept  {}: {}", plain(&kept.path), plain(&kept.reason));
    }
    Ok(ExitCode::SUCCESS)
}

pub(crate) async fn wait(common: &Common, options: WaitArgs) -> Outcome {
    let (mount, paths) = request(common, &options.which, &options.paths).await?;
    let timeout = options.timeout.map(|timeout| timeout.min(FOR_EVER));
    let request = WaitRequest {
        published: options.published,
        idle: options.idle,
        copies: options.copies,
        paths_hex: paths.paths_hex,
        // Ten years of milliseconds fit.
        timeout_ms: timeout.map(|timeout| timeout.as_millis() as u64),
    };
    let within = timeout.unwrap_or(FOR_EVER) + ANSWER_SLACK;
    let report: WaitReport = mount
        .client
        .post("/wait", &request, within)
        .await
        .map_err(refused("the wait broke off"))?;
    if options.json {
        print_json(&report)?;
    }
    match (report.done, report.missing) {
        (true, _) => Ok(ExitCode::SUCCESS),
        (false, missing) => Err(Failure::new(format_args!(
            "waited {:.1} s in vain: {}",
            report.waited_s,
            plain(missing.as_deref().unwrap_or("no reason was given"))
        ))),
    }
}

pub(crate) async fn why(common: &Common, options: WhyArgs) -> Outcome {
    let paths = [options.file];
    let (mount, request) = request(common, &options.which, &paths).await?;
    let report: WhyReport = mount
        .client
        .post("/why", &request, REPORT_WITHIN)
        .await
        .map_err(refused("nothing can be said of it"))?;
    if options.json {
        print_json(&report)?;
        return Ok(ExitCode::SUCCESS);
    }
    out!(
        "{}  {}  {}",
        plain(&report.path),
        size(report.size),
        report.hash
    );
    for part in &report.parts {
        let (from, to) = (part.offset, part.offset + part.length);
        out!(
            "    {} to {}  {}",
            size(from),
            size(to),
            plain(&source(part))
        );
    }
    if report.more {
        out!("    and more parts, which --json does not have either");
    }
    if report.unpublished {
        out!("    it has changes that are not published yet");
    }
    for peer in &report.elsewhere {
        out!("    a tracker names {peer}, which is not connected");
    }
    for transfer in &report.transfers {
        out!("    transfer  {}", plain(&transfer_line(transfer)));
    }
    for peer in &report.silent {
        err!("p2pfs: warning: {} did not answer", plain(peer));
    }
    Ok(ExitCode::SUCCESS)
}

/// `here`, `nobody`, or the names of members.
fn source(part: &PartReport) -> String {
    let names: Vec<&str> = part.peers.iter().map(|peer| peer.node.as_str()).collect();
    match (part.here, names.as_slice()) {
        (true, _) => "here".to_owned(),
        (false, []) => "nobody".to_owned(),
        (false, names) => names.join(", "),
    }
}
