//! A disk that fails: calls of a process into the kernel that concern one folder are counted, and the n-th is answered with
//! an error, or does only half of what it was asked.
//!
//! This is the kernel's user notification (seccomp): every process that is started in [`FailingDisk::around`], with all its
//! threads and libraries, stops at such a call until it is said here what becomes of it. So it holds for whatever way the
//! program does its I/O, and takes nothing in the program itself.
//!
//! The same way the program can be told that the machine was booted anew, which is what a power loss is to it.

use std::{
    fs::{self, File},
    io::{Seek, Write},
    os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd},
    path::{Path, PathBuf},
    ptr,
    sync::{Arc, mpsc},
    thread,
};

use std::sync::Mutex;

/// What happens to a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// It fails with this error number, if it is a call that can.
    Error(i32),
    /// A write does half of it.
    Short,
}

/// Which calls fail.
#[derive(Clone, Copy, Debug)]
pub struct Plan {
    /// What happens to them.
    pub fault: Fault,
    /// Which call is the first, counted from 1 among those that could fail so.
    pub nth: u64,
    /// Whether those after it fail as well.
    pub lasting: bool,
}

/// What a call does, as far as errors go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Read,
    Write,
    Sync,
    Open,
    Create,
    Name,
    Remove,
    List,
}

impl Fault {
    fn can_hit(self, call: i64, kind: Kind, length: u64) -> bool {
        match self {
            Self::Error(libc::EMFILE) => matches!(kind, Kind::Open | Kind::Create),
            Self::Error(libc::ENOSPC | libc::EDQUOT) => {
                matches!(kind, Kind::Write | Kind::Create | Kind::Name | Kind::Sync)
            }
            Self::Error(_) => true,
            Self::Short => matches!(call, libc::SYS_write | libc::SYS_pwrite64) && length >= 2,
        }
    }
}

/// A call that stopped, with its arguments.
struct Call {
    id: u64,
    thread: u32,
    number: i64,
    arguments: [u64; 6],
}

#[derive(Default)]
struct State {
    plan: Option<Plan>,
    seen: u64,
    hits: Vec<String>,
    boot: Option<String>,
}

/// See the module.
#[derive(Clone)]
pub struct FailingDisk {
    folder: PathBuf,
    state: Arc<Mutex<State>>,
}

/// What `/proc` tells of the boot that the machine is in.
const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";
/// What of a state folder holds its data; locks and logs are left alone.
const PARTS: [&str; 4] = ["objects", "staging", "index", "lost"];

impl FailingDisk {
    /// Below this folder; it works until [`FailingDisk::fail`].
    pub fn new(folder: &Path) -> Self {
        Self {
            folder: folder.to_path_buf(),
            state: Arc::default(),
        }
    }

    /// From now on, and counted from now on.
    pub fn fail(&self, plan: Plan) {
        let mut state = self.state();
        state.plan = Some(plan);
        state.seen = 0;
        state.hits.clear();
    }

    /// It works again. What failed, call by call, and how many calls could have.
    pub fn heal(&self) -> (Vec<String>, u64) {
        let mut state = self.state();
        state.plan = None;
        (std::mem::take(&mut state.hits), state.seen)
    }

    /// Who is started from now on sees another boot of the machine.
    pub fn boot_anew(&self, boot: u64) {
        self.state().boot = Some(format!("00000000-0000-4000-8000-{boot:012x}\n"));
    }

    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.state
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// Runs `start`; the processes that it starts use this disk for as long as they live.
    ///
    /// # Panics
    /// Where the kernel has no such notifications (before 5.19).
    pub fn around<T: Send>(&self, start: impl FnOnce() -> T + Send) -> T {
        let (sender, receiver) = mpsc::channel::<OwnedFd>();
        let disk = self.clone();
        // Not a scoped one: it serves for as long as there are processes to serve.
        thread::spawn(move || {
            if let Ok(listener) = receiver.recv() {
                disk.serve(&listener);
            }
        });
        thread::scope(|scope| {
            let thread = scope.spawn(move || {
                let listener = listen().expect("the kernel has seccomp notifications");
                sender.send(listener).expect("the other thread listens");
                start()
            });
            thread
                .join()
                .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }

    /// Answers calls until nobody is left who could make one.
    fn serve(&self, listener: &OwnedFd) {
        while let Some(call) = next_call(listener) {
            let answer = self.answer(listener, &call);
            let (error, value, flags) = match answer {
                Answer::GoOn => (0, 0, libc::SECCOMP_USER_NOTIF_FLAG_CONTINUE as u32),
                Answer::Error(number) => (-number, 0, 0),
                Answer::Value(value) => (0, value, 0),
                Answer::Sent => continue,
            };
            let response = libc::seccomp_notif_resp {
                id: call.id,
                val: value,
                error,
                flags,
            };
            // SAFETY: the kernel reads the structure that it is given. An error says that the process is gone.
            unsafe {
                libc::ioctl(
                    listener.as_raw_fd(),
                    libc::SECCOMP_IOCTL_NOTIF_SEND,
                    ptr::from_ref(&response),
                );
            }
        }
    }

    fn answer(&self, listener: &OwnedFd, call: &Call) -> Answer {
        let Some((kind, path)) = call.meaning() else {
            return Answer::GoOn;
        };
        let mut state = self.state();
        if path == Path::new(BOOT_ID) {
            let given = state
                .boot
                .as_ref()
                .and_then(|boot| give(listener, call, boot));
            return given.map_or(Answer::GoOn, |()| Answer::Sent);
        }
        let Some(plan) = state.plan else {
            return Answer::GoOn;
        };
        let length = call.arguments[2];
        if !self.concerns(&path) || !plan.fault.can_hit(call.number, kind, length) {
            return Answer::GoOn;
        }
        state.seen += 1;
        if state.seen < plan.nth || state.seen > plan.nth && !plan.lasting {
            return Answer::GoOn;
        }
        let below = path.strip_prefix(&self.folder).unwrap_or(&path);
        let hit = format!("{kind:?} of {}", below.display());
        state.hits.push(hit);
        match plan.fault {
            Fault::Error(number) => Answer::Error(number),
            Fault::Short => call.half().map_or(Answer::GoOn, Answer::Value),
        }
    }

    /// Whether a path is one of the data of a state folder: `<folder>/<cluster>/<part>/…`.
    fn concerns(&self, path: &Path) -> bool {
        let Ok(below) = path.strip_prefix(&self.folder) else {
            return false;
        };
        let part = below.iter().nth(1);
        part.is_some_and(|part| PARTS.iter().any(|known| part == *known))
    }
}

enum Answer {
    /// The kernel does it.
    GoOn,
    Error(i32),
    Value(i64),
    /// It was given already.
    Sent,
}

impl Call {
    /// What it does, and to which file; `None` if that can't be told.
    fn meaning(&self) -> Option<(Kind, PathBuf)> {
        let at = |argument: usize| self.arguments[argument];
        let file = |argument: usize| {
            fs::read_link(format!("/proc/{}/fd/{}", self.thread, at(argument) as i32)).ok()
        };
        let name = |argument: usize| self.text(at(argument)).map(PathBuf::from);
        Some(match self.number {
            libc::SYS_read | libc::SYS_pread64 | libc::SYS_preadv => (Kind::Read, file(0)?),
            libc::SYS_write
            | libc::SYS_pwrite64
            | libc::SYS_writev
            | libc::SYS_pwritev
            | libc::SYS_ftruncate
            | libc::SYS_fallocate => (Kind::Write, file(0)?),
            libc::SYS_copy_file_range => (Kind::Write, file(2)?),
            libc::SYS_fsync | libc::SYS_fdatasync | libc::SYS_sync_file_range => {
                (Kind::Sync, file(0)?)
            }
            libc::SYS_openat if at(2) as i32 & libc::O_CREAT != 0 => (Kind::Create, name(1)?),
            libc::SYS_openat => (Kind::Open, name(1)?),
            libc::SYS_renameat2 | libc::SYS_linkat | libc::SYS_mkdirat => (Kind::Name, name(1)?),
            libc::SYS_unlinkat => (Kind::Remove, name(1)?),
            libc::SYS_getdents64 => (Kind::List, file(0)?),
            #[cfg(target_arch = "x86_64")]
            libc::SYS_open if at(1) as i32 & libc::O_CREAT != 0 => (Kind::Create, name(0)?),
            #[cfg(target_arch = "x86_64")]
            libc::SYS_open => (Kind::Open, name(0)?),
            #[cfg(target_arch = "x86_64")]
            libc::SYS_rename | libc::SYS_link | libc::SYS_mkdir => (Kind::Name, name(0)?),
            #[cfg(target_arch = "x86_64")]
            libc::SYS_unlink | libc::SYS_rmdir => (Kind::Remove, name(0)?),
            _ => return None,
        })
    }

    /// Does half of a write in the caller's place; the bytes that were written.
    fn half(&self) -> Option<i64> {
        let length = usize::try_from(self.arguments[2] / 2).ok()?;
        let bytes = self.memory(self.arguments[1], length)?;
        let file = self.file(self.arguments[0] as RawFd)?;
        // SAFETY: descriptor and buffer are ours, and the buffer is that long.
        let written = unsafe {
            match self.number {
                libc::SYS_write => libc::write(file.as_raw_fd(), bytes.as_ptr().cast(), length),
                _ => libc::pwrite(
                    file.as_raw_fd(),
                    bytes.as_ptr().cast(),
                    length,
                    self.arguments[3] as libc::off_t,
                ),
            }
        };
        (written > 0).then_some(written as i64)
    }

    /// A descriptor of the caller's, with its position.
    fn file(&self, descriptor: RawFd) -> Option<OwnedFd> {
        let status = fs::read_to_string(format!("/proc/{}/status", self.thread)).ok()?;
        let process = status.lines().find_map(|line| line.strip_prefix("Tgid:"))?;
        let process: libc::pid_t = process.trim().parse().ok()?;
        let own = |descriptor: libc::c_long| {
            let descriptor = RawFd::try_from(descriptor)
                .ok()
                .filter(|number| *number >= 0)?;
            // SAFETY: the kernel has just made it, and nobody else knows it.
            Some(unsafe { OwnedFd::from_raw_fd(descriptor) })
        };
        // SAFETY: takes and gives numbers.
        let process = own(unsafe { libc::syscall(libc::SYS_pidfd_open, process, 0) })?;
        // SAFETY: as above.
        own(unsafe { libc::syscall(libc::SYS_pidfd_getfd, process.as_raw_fd(), descriptor, 0) })
    }

    /// Bytes of the caller's memory; fewer than asked for count as none.
    fn memory(&self, from: u64, length: usize) -> Option<Vec<u8>> {
        let mut bytes = vec![0u8; length];
        let local = libc::iovec {
            iov_base: bytes.as_mut_ptr().cast(),
            iov_len: length,
        };
        let remote = libc::iovec {
            iov_base: ptr::without_provenance_mut(usize::try_from(from).ok()?),
            iov_len: length,
        };
        // SAFETY: the kernel writes no more than `length` bytes, to the buffer.
        let read =
            unsafe { libc::process_vm_readv(self.thread as libc::pid_t, &local, 1, &remote, 1, 0) };
        (usize::try_from(read) == Ok(length)).then_some(bytes)
    }

    /// A string of the caller's.
    fn text(&self, from: u64) -> Option<String> {
        const PAGE: u64 = 4096;
        let mut text = Vec::new();
        let mut at = from;
        while text.len() <= libc::PATH_MAX as usize {
            // What follows the string's page may not be there.
            let part = self.memory(at, usize::try_from(PAGE - at % PAGE).ok()?)?;
            if let Some(end) = part.iter().position(|byte| *byte == 0) {
                text.extend_from_slice(&part[..end]);
                return String::from_utf8(text).ok();
            }
            at += part.len() as u64;
            text.extend(part);
        }
        None
    }
}

/// Gives the caller a file with this text in place of the one that it opens.
fn give(listener: &OwnedFd, call: &Call, text: &str) -> Option<()> {
    // SAFETY: the name is a string that ends in NUL.
    let made = unsafe { libc::memfd_create(c"boot".as_ptr(), libc::MFD_CLOEXEC) };
    if made < 0 {
        return None;
    }
    // SAFETY: just made.
    let mut file = unsafe { File::from_raw_fd(made) };
    file.write_all(text.as_bytes()).ok()?;
    file.rewind().ok()?;
    let add = libc::seccomp_notif_addfd {
        id: call.id,
        flags: libc::SECCOMP_ADDFD_FLAG_SEND as u32,
        srcfd: made as u32,
        newfd: 0,
        newfd_flags: libc::O_CLOEXEC as u32,
    };
    // SAFETY: the kernel reads the structure that it is given.
    let added = unsafe {
        libc::ioctl(
            listener.as_raw_fd(),
            libc::SECCOMP_IOCTL_NOTIF_ADDFD,
            ptr::from_ref(&add),
        )
    };
    (added >= 0).then_some(())
}

/// Has this thread, and whatever it starts from now on, stop at the calls that matter.
fn listen() -> std::io::Result<OwnedFd> {
    let mut calls = vec![
        libc::SYS_read,
        libc::SYS_pread64,
        libc::SYS_preadv,
        libc::SYS_write,
        libc::SYS_pwrite64,
        libc::SYS_writev,
        libc::SYS_pwritev,
        libc::SYS_ftruncate,
        libc::SYS_fallocate,
        libc::SYS_copy_file_range,
        libc::SYS_fsync,
        libc::SYS_fdatasync,
        libc::SYS_sync_file_range,
        libc::SYS_openat,
        libc::SYS_renameat2,
        libc::SYS_linkat,
        libc::SYS_mkdirat,
        libc::SYS_unlinkat,
        libc::SYS_getdents64,
    ];
    #[cfg(target_arch = "x86_64")]
    calls.extend([
        libc::SYS_open,
        libc::SYS_rename,
        libc::SYS_link,
        libc::SYS_mkdir,
        libc::SYS_unlink,
        libc::SYS_rmdir,
    ]);
    let step = |code: u32, jt: u8, jf: u8, k: u32| libc::sock_filter {
        code: code as u16,
        jt,
        jf,
        k,
    };
    let load = libc::BPF_LD | libc::BPF_W | libc::BPF_ABS;
    let is = libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K;
    let end = libc::BPF_RET | libc::BPF_K;
    // The number of the call comes first in what the filter looks at.
    let mut program = vec![step(load, 0, 0, 0)];
    for (at, call) in calls.iter().enumerate() {
        let to_the_end = calls.len() - at;
        program.push(step(is, to_the_end as u8, 0, *call as u32));
    }
    program.push(step(end, 0, 0, libc::SECCOMP_RET_ALLOW));
    program.push(step(end, 0, 0, libc::SECCOMP_RET_USER_NOTIF));
    let filter = libc::sock_fprog {
        len: program.len() as u16,
        filter: program.as_mut_ptr(),
    };
    let flags =
        libc::SECCOMP_FILTER_FLAG_NEW_LISTENER | libc::SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV;
    // SAFETY: the program is as long as it says, and the kernel copies it.
    let listener = unsafe {
        libc::syscall(
            libc::SYS_seccomp,
            libc::SECCOMP_SET_MODE_FILTER,
            flags,
            ptr::from_ref(&filter),
        )
    };
    match RawFd::try_from(listener) {
        // SAFETY: the kernel has just made it for this thread.
        Ok(listener) if listener >= 0 => Ok(unsafe { OwnedFd::from_raw_fd(listener) }),
        _ => Err(std::io::Error::last_os_error()),
    }
}

/// The next call that stops; `None` once nobody is left.
fn next_call(listener: &OwnedFd) -> Option<Call> {
    loop {
        let mut poll = libc::pollfd {
            fd: listener.as_raw_fd(),
            events: libc::POLLIN,
            revents: 0,
        };
        // SAFETY: one structure, as it says.
        let ready = unsafe { libc::poll(&mut poll, 1, -1) };
        if ready > 0 && poll.revents & libc::POLLIN == 0 {
            return None;
        }
        // SAFETY: all zeros is what the kernel wants to find in it.
        let mut notice: libc::seccomp_notif = unsafe { std::mem::zeroed() };
        // SAFETY: the kernel writes to the structure that it is given.
        let received = unsafe {
            libc::ioctl(
                listener.as_raw_fd(),
                libc::SECCOMP_IOCTL_NOTIF_RECV,
                ptr::from_mut(&mut notice),
            )
        };
        if received == 0 {
            return Some(Call {
                id: notice.id,
                thread: notice.pid,
                number: notice.data.nr.into(),
                arguments: notice.data.args,
            });
        }
        // It was killed meanwhile: the next.
    }
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    /// What a shell says of a script that runs on the disk.
    fn run(disk: &FailingDisk, script: &str) -> String {
        let output = disk
            .around(|| Command::new("sh").args(["-c", script]).output())
            .unwrap();
        String::from_utf8_lossy(&output.stdout).into_owned()
            + &String::from_utf8_lossy(&output.stderr)
    }

    #[test]
    fn the_nth_call_fails_and_others_do_not() {
        let dir = std::env::temp_dir().join(format!("p2pfs-failing-{}", std::process::id()));
        let data = dir.join("c/staging");
        fs::create_dir_all(&data).unwrap();
        let disk = FailingDisk::new(&dir);
        let script = format!(
            "cd {}; for n in 1 2 3; do echo $n > {}/$n && echo made $n; done",
            dir.display(),
            data.display()
        );
        disk.fail(Plan {
            fault: Fault::Error(libc::ENOSPC),
            nth: 3,
            lasting: false,
        });
        let said = run(&disk, &script);
        // The second file's creation; each is created, then written.
        assert!(said.contains("made 1") && said.contains("made 3"), "{said}");
        assert!(said.contains("No space left"), "{said}");
        assert_eq!(disk.heal().0.len(), 1);
        assert!(run(&disk, &script).contains("made 2"));

        disk.fail(Plan {
            fault: Fault::Short,
            nth: 1,
            lasting: false,
        });
        let whole = data.join("whole");
        run(&disk, &format!("printf 123456 > {}", whole.display()));
        // A shell that is told goes on with the rest, or leaves it: half of it is there in any case.
        assert!(fs::read(&whole).unwrap().starts_with(b"123"));
        assert_eq!(disk.heal().0, ["Write of c/staging/whole"]);

        disk.boot_anew(7);
        let boot = run(&disk, &format!("cat {BOOT_ID}"));
        assert_eq!(boot.trim(), "00000000-0000-4000-8000-000000000007");
        fs::remove_dir_all(dir).unwrap();
    }
}
