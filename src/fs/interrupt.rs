//! Notices that a process which waits for us is being killed.
//!
//! The kernel marks a fatal signal by making SIGKILL pending, and a request that was handed to us already waits
//! uninterruptibly until it is answered. So while an operation waits for the network, this looks at the process. Processes
//! of other pid namespaces (pid 0 in the request) can't be looked at: the deadline covers them.

use std::time::Duration;

/// After how long to look first, and at most how long later, twice as long each time: a killed process ends within about this. One
/// that reads a large file has many operations that wait, and each of them looks.
const LOOK_AFTER: (Duration, Duration) = (Duration::from_millis(20), Duration::from_millis(100));

/// SIGKILL's bit in the masks of `/proc/<pid>/status`.
const KILL_BIT: u64 = 1 << (libc::SIGKILL - 1);

/// Returns once the thread has a fatal signal pending, or is gone. Never returns for pid 0.
pub(crate) async fn fatal_signal(pid: u32) {
    if pid == 0 {
        return std::future::pending().await;
    }
    let path = format!("/proc/{pid}/status");
    let mut pause = LOOK_AFTER.0;
    loop {
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(LOOK_AFTER.1);
        // A read of procfs never blocks on a disk.
        match std::fs::read_to_string(&path) {
            Ok(status) if has_pending_kill(&status) => return,
            Ok(_) => {}
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return,
            Err(_) => return std::future::pending().await,
        }
    }
}

fn has_pending_kill(status: &str) -> bool {
    status
        .lines()
        .filter_map(|line| {
            line.strip_prefix("SigPnd:")
                .or_else(|| line.strip_prefix("ShdPnd:"))
        })
        .filter_map(|mask| u64::from_str_radix(mask.trim(), 16).ok())
        .any(|mask| mask & KILL_BIT != 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pending_kill_is_seen_in_either_mask() {
        let with = |thread: &str, group: &str| {
            has_pending_kill(&format!(
                "Name:\tcat\nSigQ:\t1/3\nSigPnd:\t{thread}\nShdPnd:\t{group}\nSigBlk:\t0000000000000100\n"
            ))
        };
        assert!(!with("0000000000000000", "0000000000000000"));
        assert!(with("0000000000000100", "0000000000000000"));
        assert!(with("0000000000000000", "0000000000000100"));
        assert!(!with("0000000000000002", "0000000000004000"));
    }

    #[tokio::test]
    async fn a_process_that_is_gone_counts_as_killed() {
        let mut child = std::process::Command::new("true").spawn().expect("spawn");
        let pid = child.id();
        child.wait().expect("wait");
        tokio::time::timeout(Duration::from_secs(5), fatal_signal(pid))
            .await
            .expect("noticed");
    }
}
