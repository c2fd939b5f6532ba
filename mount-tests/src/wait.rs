//! Waiting for conditions.

use std::{
    fmt::Display,
    thread,
    time::{Duration, Instant},
};

/// For what happens without anybody's time-out being involved. Generous: a busy machine is no failure.
pub const SOON: Duration = Duration::from_secs(15);

/// For what may first have to wait for a connection to be given up and made again, or for a 30 s comparison of heads.
pub const LONG: Duration = Duration::from_secs(60);

const POLL_EVERY: Duration = Duration::from_millis(20);

/// Polls until the probe succeeds; panics with its last complaint when it does not within the time given.
#[track_caller]
pub fn eventually<T, E: Display>(
    within: Duration,
    what: &str,
    mut probe: impl FnMut() -> Result<T, E>,
) -> T {
    let deadline = Instant::now() + within;
    loop {
        match probe() {
            Ok(value) => return value,
            Err(complaint) if Instant::now() > deadline => {
                panic!("not within {within:?}: {what}: {complaint}")
            }
            Err(_) => thread::sleep(POLL_EVERY),
        }
    }
}

/// Polls until a condition holds.
#[track_caller]
pub fn until(within: Duration, what: &str, mut holds: impl FnMut() -> bool) {
    eventually(within, what, || {
        if holds() {
            Ok(())
        } else {
            Err("it never held")
        }
    });
}
