//! Where diagnostics go: standard error for commands, a rotated file for a mount in the background.

use std::{io, os::unix::fs::OpenOptionsExt, path::Path, sync::Mutex};

use file_rotate::{ContentLimit, FileRotate, compression::Compression, suffix::AppendCount};
use tracing_subscriber::{EnvFilter, fmt::MakeWriter};

use super::args::Common;

/// A log file is rotated at this size.
const LOG_BYTES_MAX: usize = 10 * 1024 * 1024;
/// So many old ones are kept.
const LOGS_KEPT: usize = 5;

fn filter(common: &Common, plain: &str) -> EnvFilter {
    let own = match (common.quiet, common.verbose) {
        (true, _) => "error",
        (_, 0) => plain,
        (_, 1) => "debug",
        (_, _) => "trace",
    };
    // fuser is left out: it calls it an error that whoever waited for an answer was killed, and a warning that a folder
    // which somebody else unmounted cannot be unmounted. What it really fails at comes back as a result. libp2p warns of each connection
    // that ends without a last word, as those to whoever went away do.
    EnvFilter::try_from_default_env().unwrap_or_else(|_| {
        EnvFilter::new(format!(
            "warn,fuser=off,libp2p_swarm=error,p2pfs={own},p2pfs_tracker={own}"
        ))
    })
}

fn colours() -> bool {
    use io::IsTerminal;
    std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty()) && io::stderr().is_terminal()
}

/// For commands: warnings on standard error.
pub(crate) fn to_stderr(common: &Common) {
    install(common, "warn", io::stderr, colours());
}

/// For a process that stays in the foreground: its story on standard error.
pub(crate) fn story_to_stderr(common: &Common) {
    install(common, "info", io::stderr, colours());
}

/// For a mount in the background.
pub(crate) fn to_file(common: &Common, path: &Path) -> io::Result<()> {
    let mut options = std::fs::OpenOptions::new();
    options.read(true).create(true).append(true).mode(0o600);
    // The rotation would panic where the file cannot be opened: try first, and say so.
    options.open(path)?;
    let file = FileRotate::new(
        path,
        AppendCount::new(LOGS_KEPT),
        ContentLimit::BytesSurpassed(LOG_BYTES_MAX),
        Compression::None,
        Some(options),
    );
    install(common, "info", Mutex::new(file), false);
    Ok(())
}

fn install<W>(common: &Common, plain: &str, writer: W, ansi: bool)
where
    W: for<'a> MakeWriter<'a> + Send + Sync + 'static,
{
    let subscriber = tracing_subscriber::fmt()
        .with_env_filter(filter(common, plain))
        .with_writer(writer)
        .with_ansi(ansi)
        .with_target(false);
    if subscriber.try_init().is_err() {
        // Only a test that runs several commands in one process comes here; the first subscriber serves it as well.
        tracing::trace!("logging is set up already");
    }
    std::panic::set_hook(Box::new(|panic| tracing::error!("internal error: {panic}")));
}
