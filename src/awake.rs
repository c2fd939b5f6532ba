//! Time asleep: a process that is stopped, or whose machine is suspended, does nothing, and nothing that it waits for can
//! happen. Such time doesn't count against deadlines, and what it did to connections is found out at once.
//!
//! It shows as a short sleep that takes far longer than it should.

use std::{
    sync::atomic::{AtomicU64, Ordering::Relaxed},
    time::{Duration, Instant},
};

use rustix::time::{ClockId, clock_gettime};

/// A step that should take no longer than [`STEP`] and took this long was slept through. A busy machine stays below it.
const ASLEEP_MIN: Duration = Duration::from_secs(3);
/// How often those who wait look.
pub(crate) const STEP: Duration = Duration::from_secs(1);

/// How much of a step of this length was slept through.
fn asleep(took: Duration) -> Duration {
    if took < ASLEEP_MIN {
        return Duration::ZERO;
    }
    took.saturating_sub(STEP)
}

/// A clock that stands still while this process sleeps, for who looks at it at least every [`STEP`] while it matters.
#[derive(Debug)]
pub(crate) struct AwakeClock {
    started: Instant,
    asleep_ms: AtomicU64,
}

impl AwakeClock {
    pub(crate) fn start() -> Self {
        Self {
            started: Instant::now(),
            asleep_ms: AtomicU64::new(0),
        }
    }

    /// Time awake since the start.
    pub(crate) fn now(&self) -> Duration {
        let asleep = Duration::from_millis(self.asleep_ms.load(Relaxed));
        self.started.elapsed().saturating_sub(asleep)
    }

    /// When that will be, as things are.
    pub(crate) fn instant(&self, awake: Duration) -> Instant {
        self.started + awake + Duration::from_millis(self.asleep_ms.load(Relaxed))
    }

    /// Notes a step that should have taken at most [`STEP`].
    pub(crate) fn note(&self, took: Duration) {
        let millis = u64::try_from(asleep(took).as_millis()).unwrap_or_default();
        self.asleep_ms.fetch_add(millis, Relaxed);
    }
}

/// Does again what failed, if it was slept through. `attempt` bounds its own time.
///
/// # Errors
/// Those of the last attempt.
pub(crate) async fn undisturbed<T, E, F: Future<Output = Result<T, E>>>(
    mut attempt: impl FnMut() -> F,
) -> Result<T, E> {
    loop {
        let mut slept = false;
        let outcome = {
            let work = attempt();
            tokio::pin!(work);
            loop {
                let begun = Instant::now();
                let outcome = tokio::time::timeout(STEP, &mut work).await;
                slept |= asleep(begun.elapsed()) > Duration::ZERO;
                if let Ok(outcome) = outcome {
                    break outcome;
                }
            }
        };
        match outcome {
            Err(_) if slept => {}
            outcome => return outcome,
        }
    }
}

/// Returns after the next time that was slept through, the machine's suspension included.
pub(crate) async fn woken() {
    loop {
        let before = since_boot();
        tokio::time::sleep(STEP).await;
        if asleep(since_boot().saturating_sub(before)) > Duration::ZERO {
            return;
        }
    }
}

/// The clock that counts while the machine is suspended; the one of [`Instant`] doesn't.
fn since_boot() -> Duration {
    let now = clock_gettime(ClockId::Boottime);
    Duration::new(
        u64::try_from(now.tv_sec).unwrap_or_default(),
        u32::try_from(now.tv_nsec).unwrap_or_default(),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_clock_stands_still_while_asleep_and_no_busy_machine_stops_it() {
        let clock = AwakeClock::start();
        let before = clock.now();
        clock.note(Duration::from_millis(2900));
        assert!(clock.now() >= before);
        clock.note(Duration::from_secs(3600));
        assert_eq!(clock.now(), Duration::ZERO, "less than an hour has passed");
        let in_ten = clock.instant(Duration::from_secs(10));
        assert!(in_ten > Instant::now() + Duration::from_secs(3600));
    }

    #[tokio::test]
    async fn what_failed_while_asleep_is_done_again_and_what_failed_awake_is_not() {
        let mut attempts = 0;
        let awake: Result<(), u32> = undisturbed(|| {
            attempts += 1;
            std::future::ready(Err(attempts))
        })
        .await;
        assert_eq!(awake, Err(1));
        let mut attempts = 0;
        let stopped = undisturbed(|| {
            attempts += 1;
            let attempt = attempts;
            async move {
                if attempt > 1 {
                    return Ok(attempt);
                }
                // As good as stopped: nothing else runs.
                std::thread::sleep(ASLEEP_MIN);
                Err(attempt)
            }
        })
        .await;
        assert_eq!(stopped, Ok(2));
    }
}
