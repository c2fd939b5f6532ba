//! `events`: follows what happens in a mount, one JSON object a line.

use std::{fs::File, io, os::fd::AsFd, process::ExitCode, time::Duration};

use serde::Deserialize;
use tokio::{
    io::{AsyncWriteExt, Interest, unix::AsyncFd},
    signal::unix::{SignalKind, signal},
};

use super::{
    Failure, Outcome, What,
    args::{Common, EventsArgs},
    locate::{self, refused},
};
use crate::control::client::Lines;

/// How long the mount may take to answer at all.
const ANSWER_WITHIN: Duration = Duration::from_secs(10);

pub(crate) async fn run(common: &Common, options: EventsArgs) -> Outcome {
    let mount = locate::find(common, &options.which).await?;
    let path = format!("/events?recent={}", options.recent);
    let lines = mount.client.follow(&path, ANSWER_WITHIN).await;
    let lines = lines.map_err(refused("the events could not be followed"))?;
    let failed = "the signals could not be watched";
    let mut interrupted = signal(SignalKind::interrupt()).what(failed)?;
    let mut terminated = signal(SignalKind::terminate()).what(failed)?;
    // The reader may be slow, or gone: neither keeps the command from ending.
    tokio::select! {
        outcome = print(lines) => outcome,
        _ = interrupted.recv() => Ok(ExitCode::SUCCESS),
        _ = terminated.recv() => Ok(ExitCode::SUCCESS),
        () = reader_gone() => Ok(ExitCode::SUCCESS),
    }
}

/// Prints lines as they come: the mount has made them safe for a terminal.
async fn print(mut lines: Lines) -> Outcome {
    let unwritable = "standard output could not be written";
    let output = io::stdout().as_fd().try_clone_to_owned().what(unwritable)?;
    let mut output = tokio::fs::File::from_std(File::from(output));
    loop {
        let next = lines.next().await;
        let Some(line) = next.map_err(refused("the mount was followed until now"))? else {
            return Err(ended());
        };
        let written = async {
            output.write_all((line.clone() + "\n").as_bytes()).await?;
            output.flush().await
        };
        match written.await {
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => {
                return Ok(ExitCode::SUCCESS);
            }
            written => written.what(unwritable)?,
        }
        if is_the_end(&line) {
            return Err(ended());
        }
    }
}

fn ended() -> Failure {
    Failure::new("the events are at their end: the mount has ended")
}

fn is_the_end(line: &str) -> bool {
    #[derive(Deserialize)]
    struct Named {
        event: String,
    }
    // A line that does not say what it is, of a later version, is not the end.
    serde_json::from_str(line).is_ok_and(|Named { event }| event == "ended")
}

/// Returns when nobody reads standard output any more, so that `events | grep -m 1` ends when `grep` does and not at the
/// next event. A file always has a reader.
async fn reader_gone() {
    // SAFETY: standard output stays open for as long as the process runs.
    let watched = unsafe { AsyncFd::register_with_interest(io::stdout(), Interest::ERROR) };
    match watched {
        Ok(output) => match output.ready(Interest::ERROR).await {
            Ok(_) => {}
            Err(error) => {
                tracing::debug!(%error, "standard output is not watched");
                std::future::pending().await
            }
        },
        Err(_) => std::future::pending().await,
    }
}
