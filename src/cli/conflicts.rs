//! `conflicts`: lists files that were changed on two sides at once, and picks one of the versions.

use std::{path::Path, process::ExitCode, time::Duration};

use super::{
    Failure, Outcome,
    args::{Common, ConflictsArgs, ConflictsCommand, ResolveArgs, Which},
    locate::{self, Found, refused},
    reports::print_json,
    units::{count, plain, size, utc},
};
use crate::control::{
    text::hex,
    types::{ConflictReport, ConflictsReport, ResolveReport, ResolveRequest, VersionReport},
};

/// How long a page may take: its manifest nodes may have to be fetched.
const PAGE_WITHIN: Duration = Duration::from_secs(60);
/// How long the end of a conflict may take: as long again until it is published.
const RESOLVE_WITHIN: Duration = Duration::from_secs(120);

pub(crate) async fn run(common: &Common, options: ConflictsArgs) -> Outcome {
    let which = Which {
        mount: options.mount,
    };
    match (options.command, options.path) {
        (Some(ConflictsCommand::Resolve(resolve)), None) => {
            self::resolve(common, &which, options.json, &resolve).await
        }
        (Some(_), Some(_)) => Err(Failure::usage(
            "conflicts resolve takes its path behind the word resolve",
        )),
        (None, path) => list(common, &which, path.as_deref(), options.json, options.limit).await,
    }
}

async fn list(
    common: &Common,
    which: &Which,
    under_path: Option<&Path>,
    json: bool,
    limit: u64,
) -> Outcome {
    let (mount, under) = match under_path {
        Some(path) => locate::within(common, which, path).await?,
        None => (locate::find(common, which).await?, Vec::new()),
    };
    let limit = if limit == 0 { u64::MAX } else { limit };
    let mut listed = ConflictsReport::default();
    let mut told: u64 = 0;
    let mut after = None;
    loop {
        let mut page = page(&mount, &under, after).await?;
        let left = usize::try_from(limit - told).unwrap_or(usize::MAX);
        listed.total = page.total;
        listed.more = page.more || page.conflicts.len() > left;
        page.conflicts.truncate(left);
        told += page.conflicts.len() as u64;
        if json {
            listed.conflicts.append(&mut page.conflicts);
        } else {
            page.conflicts.iter().for_each(print);
        }
        after = page.after;
        if !listed.more || told >= limit || after.is_none() {
            break;
        }
    }
    if told == 0
        && let Some(path) = under_path.filter(|_| which.mount.is_none())
        && path.symlink_metadata().is_err()
    {
        return Err(Failure::new(format_args!(
            "{}: no such file or folder",
            path.display()
        )));
    }
    if json {
        print_json(&listed)?;
    } else if told == 0 {
        out!("no conflicts");
    }
    if listed.more && !json && !common.quiet {
        err!(
            "p2pfs: {} in all are more than --limit; --limit 0 lists all",
            count(listed.total, "conflict", "conflicts")
        );
    }
    Ok(ExitCode::SUCCESS)
}

async fn page(
    mount: &Found,
    under: &[u8],
    after: Option<String>,
) -> Result<ConflictsReport, Failure> {
    let after = after.map_or_else(String::new, |after| format!("&after={after}"));
    let path = format!("/conflicts?under={}{after}", hex(under));
    let page = mount.client.get(&path, PAGE_WITHIN).await;
    page.map_err(refused("the conflicts could not be listed"))
}

fn print(conflict: &ConflictReport) {
    out!("{}", plain(&conflict.path));
    out!("    shown  {}", told(&conflict.shown));
    for copy in &conflict.copies {
        out!("    copy   {}  {}", told(copy), plain(name(copy)));
    }
}

/// Node, time, size and hash of a version.
fn told(version: &VersionReport) -> String {
    let node = version.node.as_deref().unwrap_or("-");
    let what = match &version.hash {
        Some(hash) => format!("{}  {hash}", size(version.size)),
        None => version.kind.clone(),
    };
    format!("{}  {}  {what}", plain(node), utc(version.time_s))
}

fn name(version: &VersionReport) -> &str {
    let path = version.path.as_deref().unwrap_or("-");
    path.rsplit('/').next().unwrap_or(path)
}

async fn resolve(common: &Common, which: &Which, json: bool, options: &ResolveArgs) -> Outcome {
    let (mount, path) = locate::within(common, which, &options.path).await?;
    let Some(keep) = options.keep.to_str() else {
        return Err(Failure::usage(
            "--keep: a name that is not UTF-8 cannot be given; the start of the version's hash can",
        ));
    };
    let request = ResolveRequest {
        path_hex: hex(&path),
        keep: keep.to_owned(),
    };
    let shown = plain(&options.path.display().to_string());
    let report: ResolveReport = mount
        .client
        .post("/conflicts/resolve", &request, RESOLVE_WITHIN)
        .await
        .map_err(refused(format_args!("{shown}: nothing was resolved")))?;
    if json {
        print_json(&report)?;
    } else {
        out!("{}: kept     {}", plain(&report.path), told(&report.kept));
        for dropped in &report.dropped {
            out!("{}: dropped  {}", plain(&report.path), told(dropped));
        }
    }
    if !report.published && !common.quiet {
        err!(
            "p2pfs: this is on disk here, and is published as soon as its manifest nodes can be had"
        );
    }
    Ok(ExitCode::SUCCESS)
}
