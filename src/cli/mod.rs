//! The command line: parses, finds the mount that is meant, asks it, prints.
//!
//! Reports and data go to standard output, progress and diagnostics to standard error. Exit status: 0 done, 1 it failed,
//! 2 the command line was wrong. An error is one sentence `p2pfs: what failed: why`, then, where there is one, a line with
//! what to do.

#[macro_use]
mod out;

mod args;
mod background;
mod cluster;
mod config;
mod conflicts;
mod demo;
mod events;
mod keeping;
mod locate;
mod logging;
mod mount;
mod progress;
mod reports;
mod share;
mod tracker;
mod units;

use std::process::ExitCode;

use clap::Parser;

use args::{Args, Command};

/// A failure as the user reads it.
#[derive(Debug)]
pub(crate) struct Failure {
    message: String,
    hint: Option<String>,
    wrong_usage: bool,
}

type Outcome = Result<ExitCode, Failure>;

impl Failure {
    /// It failed: `what failed: why`.
    pub(crate) fn new(message: impl std::fmt::Display) -> Self {
        Self {
            message: message.to_string(),
            hint: None,
            wrong_usage: false,
        }
    }

    /// The command line was wrong.
    pub(crate) fn usage(message: impl std::fmt::Display) -> Self {
        Self {
            wrong_usage: true,
            ..Self::new(message)
        }
    }

    /// Adds what to do about it.
    pub(crate) fn hint(self, hint: impl std::fmt::Display) -> Self {
        Self {
            hint: Some(hint.to_string()),
            ..self
        }
    }

    fn print(&self) -> ExitCode {
        err!("p2pfs: {}", self.message);
        if let Some(hint) = &self.hint {
            err!("{hint}");
        }
        ExitCode::from(if self.wrong_usage { 2 } else { 1 })
    }
}

/// Gives an error its first half: what failed.
pub(crate) trait What<T> {
    /// `what: why`.
    fn what(self, what: impl std::fmt::Display) -> Result<T, Failure>;
}

impl<T, E: std::fmt::Display> What<T> for Result<T, E> {
    fn what(self, what: impl std::fmt::Display) -> Result<T, Failure> {
        self.map_err(|error| Failure::new(format_args!("{what}: {error}")))
    }
}

/// Runs the program.
pub fn run() -> ExitCode {
    forget_empty_variables();
    let mut args = match Args::try_parse() {
        Ok(args) => args,
        Err(error) if error.use_stderr() => {
            let text = error.render().to_string();
            let text = text.strip_prefix("error: ").unwrap_or(&text);
            err!("p2pfs: {}", text.trim_end());
            return ExitCode::from(2);
        }
        // Help and version.
        Err(error) => error.exit(),
    };
    match config::apply(&mut args).and_then(|()| dispatch(args)) {
        Ok(status) => status,
        Err(failure) => failure.print(),
    }
}

/// A variable that is set to nothing, as service managers do, is as good as none.
fn forget_empty_variables() {
    for name in ["P2PFS_STATE_DIR", "P2PFS_TRACKER", "P2PFS_CONFIG"] {
        if std::env::var_os(name).is_some_and(|value| value.is_empty()) {
            // SAFETY: no other thread has been started yet, so nobody reads the environment meanwhile.
            unsafe { std::env::remove_var(name) }
        }
    }
}

fn dispatch(args: Args) -> Outcome {
    let common = args.common;
    match args.command {
        // These two set up logging for a process that stays.
        Command::Mount(options) => mount::run(&common, options),
        Command::Tracker(options) => tracker::run(&common, options),
        Command::Guard(options) => mount::guard(&options),
        command => {
            logging::to_stderr(&common);
            if !matches!(command, Command::Demo(_)) {
                end_with_reader();
            }
            let runtime = tokio::runtime::Builder::new_multi_thread()
                .enable_all()
                .on_thread_start(outlive_sockets)
                .build()
                .what("starting failed")?;
            let outcome = runtime.block_on(ask(&common, command));
            // A blocking read of standard input or of a slow disk must not keep the program from ending.
            runtime.shutdown_background();
            outcome
        }
    }
}

/// A report that is piped into `head` ends when that does, quietly, as other programs do. Not for commands that must clean
/// up behind themselves.
fn end_with_reader() {
    // SAFETY: the default disposition runs no code of this process; no other thread has been started yet.
    unsafe {
        libc::signal(libc::SIGPIPE, libc::SIG_DFL);
    }
}

/// A thread that talks to a mount gets an error when that ends meanwhile, not the signal: `unmount` waits for just that. Reports
/// are printed by the main thread.
fn outlive_sockets() {
    // SAFETY: the set is initialised before it is used, and the mask is this thread's own.
    unsafe {
        let mut signals = std::mem::zeroed();
        libc::sigemptyset(&mut signals);
        libc::sigaddset(&mut signals, libc::SIGPIPE);
        libc::pthread_sigmask(libc::SIG_BLOCK, &signals, std::ptr::null_mut());
    }
}

pub(crate) fn runtime() -> Result<tokio::runtime::Runtime, Failure> {
    tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .what("starting failed")
}

async fn ask(common: &args::Common, command: Command) -> Outcome {
    match command {
        Command::Create(options) => cluster::create(common, options).await,
        Command::Id(options) => cluster::id(common, &options),
        Command::Unmount(options) => mount::unmount(common, options).await,
        Command::Share(options) => share::run(common, options).await,
        Command::Status(options) => reports::status(common, options).await,
        Command::Peers(options) => reports::peers(common, options).await,
        Command::Transfers(options) => keeping::transfers(common, options).await,
        Command::Fetch(options) => keeping::fetch(common, options).await,
        Command::Pin(options) => keeping::pin(common, options).await,
        Command::Unpin(options) => keeping::unpin(common, options).await,
        Command::Evict(options) => keeping::evict(common, options).await,
        Command::Wait(options) => keeping::wait(common, options).await,
        Command::Why(options) => keeping::why(common, options).await,
        Command::Find(options) => reports::find(common, options).await,
        Command::Conflicts(options) => conflicts::run(common, options).await,
        Command::Events(options) => events::run(common, options).await,
        Command::Verify(options) => reports::verify(common, options).await,
        Command::Leave(options) => cluster::leave(common, options).await,
        Command::Report(options) => reports::report(common, options).await,
        Command::Demo(options) => demo::run(common, options).await,
        Command::Mount(_) | Command::Tracker(_) | Command::Guard(_) => {
            Err(Failure::new("internal: dispatched twice"))
        }
    }
}
