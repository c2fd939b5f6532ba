//! `status`, `peers`, `find`, `verify`, `report`: what a mount says of itself, for people and as JSON.

use std::{process::ExitCode, time::Duration};

use serde::Serialize;

use super::{
    Failure, Outcome, What,
    args::{Common, FindArgs, ReportArgs, ReportPeerArgs, StatusArgs},
    locate::{self, refused},
    progress::{Far, Progress},
    units::{count, plain, size},
};
use crate::control::{
    client::escape,
    text::json_pretty,
    types::{
        FindReport, PeerReport, ScrubReport, StatusReport, TrackerState, TransferReport, VerifyLine,
    },
};

/// How long a report may take.
const REPORT_WITHIN: Duration = Duration::from_secs(30);
/// How long a search may take: it may have to fetch the whole manifest.
const FIND_WITHIN: Duration = Duration::from_secs(300);

/// Names of others in it cannot steer a terminal.
pub(super) fn print_json(report: &impl Serialize) -> Result<(), Failure> {
    out!(
        "{}",
        json_pretty(report).what("the report could not be written")?
    );
    Ok(())
}

pub(crate) async fn status(common: &Common, options: StatusArgs) -> Outcome {
    let mounts = if options.all {
        locate::running(common).await?
    } else {
        vec![locate::find(common, &options.which).await?]
    };
    let mut reports: Vec<StatusReport> = Vec::new();
    for mount in mounts {
        let report = mount.client.get("/status", REPORT_WITHIN).await;
        reports.push(report.map_err(refused("the status could not be read"))?);
    }
    match (options.json, options.all, reports.as_slice()) {
        (true, false, [report]) => print_json(report)?,
        (true, _, reports) => print_json(&reports)?,
        (false, _, reports) => {
            for report in reports {
                print_status(report);
            }
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn print_status(report: &StatusReport) {
    let line = |label: &str, text: String| out!("{label:<12}{}", plain(&text));
    line(
        "cluster",
        format!(
            "{} on {} (pid {}, version {})",
            report.name, report.mountpoint, report.pid, report.version
        ),
    );
    line("topic", report.topic.clone());
    let manifest = &report.manifest;
    let hash = if manifest.hash.is_empty() {
        "no state seen yet"
    } else {
        &manifest.hash
    };
    line(
        "manifest",
        format!(
            "{hash}, {}, {}",
            count(manifest.files, "file", "files"),
            size(manifest.bytes)
        ),
    );
    line(
        "unpublished",
        count(manifest.unpublished, "change", "changes"),
    );
    line("conflicts", manifest.conflicts.to_string());
    line("node", format!("{} {}", report.this.node, report.this.id));
    for address in &report.this.addresses {
        line("", address.clone());
    }
    line("peers", report.peers.len().to_string());
    for peer in &report.peers {
        line("", format!("{} {} {}", peer.node, peer.id, peer.address));
    }
    for tracker in &report.trackers {
        let state = match tracker.state {
            TrackerState::Registered => "registered",
            TrackerState::Connecting => "connecting",
            TrackerState::Unreachable => "unreachable",
        };
        let reason = tracker
            .reason
            .as_ref()
            .map(|reason| format!(": {reason}"))
            .unwrap_or_default();
        line("tracker", format!("{} {state}{reason}", tracker.address));
    }
    line(
        "cache",
        format!(
            "{} of {}: contents {}, being written {}, index {}",
            size(report.cache.used_bytes),
            size(report.cache.limit_bytes),
            size(report.cache.files_bytes),
            size(report.cache.staging_bytes),
            size(report.cache.index_bytes)
        ),
    );
    if let Some(why) = &report.cache.full {
        line(
            "cache full",
            format!(
                "{why}. Stays: pinned {}, only here {}, the index {}, being written, promised to others, open, or what no member \
                 that is reached promises to keep",
                size(report.cache.pinned_bytes),
                size(report.cache.only_here_bytes),
                size(report.cache.index_bytes)
            ),
        );
    }
    if let Some(scrub) = &report.cache.scrub {
        line("checked", scrub_line(scrub));
    }
    line(
        "only here",
        format!(
            "{}, {}",
            count(report.only_here.files, "content", "contents"),
            size(report.only_here.bytes)
        ),
    );
    line(
        "network",
        format!(
            "{} received, {} sent",
            size(report.network.received_bytes),
            size(report.network.sent_bytes)
        ),
    );
    let memory = &report.memory;
    line(
        "memory",
        format!(
            "{}; {} of blocks asked for, at most {}; {} of at most {} answers being made",
            size(memory.resident_bytes),
            size(memory.requested_bytes),
            size(memory.requested_max_bytes),
            memory.answers,
            memory.answers_max
        ),
    );
    for transfer in &report.transfers {
        line("transfer", transfer_line(transfer));
    }
}

/// `photos/a.jpg: downloading, 1.00 MiB of 2.00 MiB, 500.0 KiB/s from 2 peers`.
pub(super) fn transfer_line(transfer: &TransferReport) -> String {
    format!(
        "{}: {}, {} of {}, {}/s from {}",
        transfer.path,
        transfer.state,
        size(transfer.done_bytes),
        size(transfer.total_bytes),
        size(transfer.rate_bytes_per_s),
        count(transfer.sources as u64, "peer", "peers")
    )
}

pub(crate) async fn peers(common: &Common, options: ReportArgs) -> Outcome {
    let mount = locate::find(common, &options.which).await?;
    let peers: Vec<PeerReport> = mount
        .client
        .get("/peers", REPORT_WITHIN)
        .await
        .map_err(refused("the peers could not be read"))?;
    if options.json {
        print_json(&peers)?;
        return Ok(ExitCode::SUCCESS);
    }
    if peers.is_empty() && !common.quiet {
        err!(
            "No other peer of this cluster is known yet; `p2pfs status` says how its trackers are."
        );
    }
    for peer in peers {
        let rtt = peer
            .rtt_s
            .map_or("-".into(), |seconds| format!("{:.1} ms", seconds * 1e3));
        let how = match (peer.connected, peer.direct) {
            (false, _) => "not connected",
            (true, true) => "direct",
            (true, false) => "relayed",
        };
        out!(
            "{}  {}  version {}  {}  {how}  rtt {rtt}  load {}  received {}  sent {}",
            if peer.node.is_empty() {
                "-"
            } else {
                &peer.node
            },
            peer.id,
            if peer.version.is_empty() {
                "-"
            } else {
                &peer.version
            },
            if peer.address.is_empty() {
                "-"
            } else {
                &peer.address
            },
            peer.load,
            size(peer.received_bytes),
            size(peer.sent_bytes),
        );
        if let Some(blamed) = peer.blamed {
            out!("    blamed: {}", plain(&blamed.reason));
        }
    }
    Ok(ExitCode::SUCCESS)
}

pub(crate) async fn find(common: &Common, options: FindArgs) -> Outcome {
    let mount = locate::find(common, &options.report.which).await?;
    if let Err(error) = globset::Glob::new(&options.pattern) {
        return Err(Failure::usage(format_args!(
            "{:?} is no pattern: {}",
            options.pattern,
            error.kind()
        )));
    }
    let path = format!("/find?pattern={}", escape(&options.pattern));
    let found: FindReport = mount
        .client
        .get(&path, FIND_WITHIN)
        .await
        .map_err(refused("nothing could be looked for"))?;
    if options.report.json {
        print_json(&found)?;
    } else {
        for entry in &found.matches {
            let Some(hash) = &entry.hash else {
                out!("{}", plain(&entry.path));
                continue;
            };
            let holders: Vec<&str> = entry
                .holders
                .iter()
                .map(|holder| {
                    if holder.node.is_empty() {
                        holder.id.as_str()
                    } else {
                        holder.node.as_str()
                    }
                })
                .collect();
            let holders = if holders.is_empty() {
                "no holder".to_owned()
            } else {
                holders.join(", ")
            };
            out!(
                "{}  {}  {hash}  {holders}",
                plain(&entry.path),
                size(entry.size)
            );
        }
        for peer in &found.silent {
            err!("p2pfs: warning: {peer} did not answer");
        }
        if found.matches.is_empty() && !common.quiet {
            err!("Nothing in the cluster is called {:?}.", options.pattern);
        }
    }
    Ok(if found.matches.is_empty() {
        ExitCode::FAILURE
    } else {
        ExitCode::SUCCESS
    })
}

fn scrub_line(scrub: &ScrubReport) -> String {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    let now_s = now.map_or(0, |now| now.as_secs());
    let days = now_s.saturating_sub(scrub.began_s) / (24 * 3600);
    let state = match scrub.ended_s {
        Some(_) => "all of it",
        None => "going on",
    };
    format!(
        "{state}, begun {} ago: {}, {} damaged, {} not repaired",
        count(days, "day", "days"),
        size(scrub.bytes),
        scrub.damaged,
        scrub.unrepaired
    )
}

pub(crate) async fn verify(common: &Common, options: ReportArgs) -> Outcome {
    let broken = "the cache could not be verified";
    let mount = locate::find(common, &options.which).await?;
    let lines = mount.client.start("/verify", &(), REPORT_WITHIN).await;
    let mut lines = lines.map_err(refused(broken))?;
    let mut progress = Progress::new(common.quiet);
    let report = loop {
        let line = lines.next_told().await.map_err(refused(broken))?;
        let line =
            line.ok_or_else(|| Failure::new(format_args!("{broken}: the mount ended it")))?;
        match serde_json::from_str(&line).what(broken)? {
            VerifyLine::Done(report) => break report,
            VerifyLine::Failed(why) => return Err(Failure::new(format_args!("{broken}: {why}"))),
            VerifyLine::Progress {
                bytes, total_bytes, ..
            } => progress.show(Far {
                done_bytes: bytes,
                already_bytes: 0,
                total_bytes,
                counted: true,
                done_files: 0,
                files: 0,
            }),
        }
    };
    progress.clear();
    if options.json {
        print_json(&report)?;
    } else {
        out!(
            "{} checked, {}: {} damaged, {} fetched again, {} unreachable",
            count(report.objects, "content", "contents"),
            size(report.bytes),
            report.damaged,
            report.repaired,
            report.unreachable_ranges
        );
        for damage in &report.unreachable {
            out!(
                "{} bytes {} to {}: {}",
                damage.hash,
                damage.offset,
                damage.offset + damage.length,
                damage.reason
            );
        }
    }
    Ok(if report.unreachable_ranges == 0 {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

pub(crate) async fn report(common: &Common, options: ReportPeerArgs) -> Outcome {
    let mount = locate::find(common, &options.which).await?;
    let path = format!("/report?peer={}", escape(&options.peer));
    mount
        .client
        .post::<()>(&path, &(), REPORT_WITHIN)
        .await
        .map_err(refused("the peer could not be reported"))?;
    Ok(ExitCode::SUCCESS)
}
