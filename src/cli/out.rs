//! Lines for who runs the program. The standard library's macros panic where a line can't be written: on a full disk, say.

use std::{
    fmt::Arguments,
    io::{self, Write},
};

/// A line of what was asked for. Where it can't be written nothing else matters: the program ends, with status 1.
macro_rules! out {
    ($($line:tt)*) => { $crate::cli::out::report(format_args!($($line)*)) };
}

/// A line of a process that stays, or has done what was wanted of it, whether or not that can be written.
macro_rules! told {
    ($($line:tt)*) => { $crate::cli::out::tell(format_args!($($line)*)) };
}

/// A line on standard error. Where that can't be written there is nowhere to say so.
macro_rules! err {
    ($($line:tt)*) => { $crate::cli::out::complain(format_args!($($line)*)) };
}

/// Part of a line on standard error that is drawn over again.
macro_rules! draw {
    ($($text:tt)*) => { $crate::cli::out::redraw(format_args!($($text)*)) };
}

pub(crate) fn report(line: Arguments<'_>) {
    if let Err(error) = writeln!(io::stdout().lock(), "{line}") {
        complain(format_args!(
            "p2pfs: the report can't be written to standard output: {error}"
        ));
        std::process::exit(1);
    }
}

pub(crate) fn tell(line: Arguments<'_>) {
    let mut output = io::stdout().lock();
    if let Err(error) = writeln!(output, "{line}").and_then(|()| output.flush()) {
        tracing::warn!(%error, "standard output can't be written");
    }
}

pub(crate) fn complain(line: Arguments<'_>) {
    let _ = writeln!(io::stderr().lock(), "{line}");
}

pub(crate) fn redraw(text: Arguments<'_>) {
    let _ = write!(io::stderr().lock(), "{text}");
}
