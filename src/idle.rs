//! Work that is to keep nobody from the disk: in the idle class of I/O, which gets what nobody else wants.

/// Of `ioprio_set(2)`: a thread.
const WHO_PROCESS: libc::c_int = 1;
/// The idle class, in its place of a priority.
const IDLE: libc::c_int = 3 << 13;

/// Runs something on this thread in the idle class; schedulers of disks that know no classes (most on flash do not) take no
/// notice.
pub(crate) fn run<T>(work: impl FnOnce() -> T) -> T {
    let before = priority();
    set(IDLE);
    let _back = Back(before);
    work()
}

/// Sets the priority back, whatever happens.
struct Back(libc::c_int);

impl Drop for Back {
    fn drop(&mut self) {
        set(self.0);
    }
}

fn priority() -> libc::c_int {
    // SAFETY: takes two numbers, of which 0 is the calling thread, and touches no memory.
    let priority = unsafe { libc::syscall(libc::SYS_ioprio_get, WHO_PROCESS, 0) };
    // None, which is what threads have, is 0 too.
    libc::c_int::try_from(priority).unwrap_or(0).max(0)
}

fn set(priority: libc::c_int) {
    // SAFETY: takes three numbers and touches no memory. A refusal changes nothing but the speed.
    unsafe { libc::syscall(libc::SYS_ioprio_set, WHO_PROCESS, 0, priority) };
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn work_is_idle_while_it_runs_and_not_afterwards() {
        let before = priority();
        assert_eq!(run(priority), IDLE);
        assert_eq!(priority(), before);
    }
}
