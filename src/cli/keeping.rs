//! `transfers`, `fetch`: what comes into the cache.

use std::{path::PathBuf, process::ExitCode, time::Duration};

use super::{
    Failure, Outcome, What,
    args::{Common, PathsArgs, ReportArgs, Which},
    locate::{self, Found, refused},
    progress::{Far, Progress},
    reports::{print_json, transfer_line},
    units::{count, plain, size},
};
use crate::control::{
    client::Lines,
    keeping::{FailedReport, FetchLine, FetchReport, PathsRequest, TransfersReport},
    text::hex,
};

/// How long a report may take.
const REPORT_WITHIN: Duration = Duration::from_secs(30);
/// How long it may take to begin: where the paths lead may have to be fetched first.
const BEGIN_WITHIN: Duration = Duration::from_secs(120);

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
        println!("no transfers");
    } else {
        for transfer in &report.transfers {
            println!("{}", plain(&transfer_line(transfer)));
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
        println!(
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
        let line = lines.next().await.map_err(refused(broken))?;
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
        println!("failed  {}: {}", plain(&failed.path), plain(&failed.reason));
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
