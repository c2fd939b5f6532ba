//! A small filesystem of its own for a host's state folders, which can be filled and whose power can be cut.

use std::{
    fs::File,
    io::Write,
    os::fd::AsRawFd,
    path::{Path, PathBuf},
};

use rustix::mount::{UnmountFlags, unmount};

use crate::{Host, SOON, eventually};

/// An ext4 filesystem in a file, mounted where a host has its state folders; detached when dropped.
pub struct Disk {
    host: Host,
    dir: PathBuf,
}

impl Disk {
    /// Makes and mounts it, before the host has any state.
    #[track_caller]
    pub fn mount(host: &Host, size: &str) -> Self {
        let disk = Self {
            host: host.clone(),
            dir: host.state(),
        };
        host.sh(&format!(
            "truncate -s {size} disk && mkfs.ext4 -q -m 0 disk && mkdir -p {}",
            disk.dir.display()
        ));
        disk.attach();
        disk
    }

    fn attach(&self) {
        let dir = self.dir.display();
        self.host
            .sh(&format!("mount -o loop disk {dir} && chmod 700 {dir}"));
    }

    /// Fills it with a file that is nobody's; its path.
    pub fn fill(&self) -> PathBuf {
        self.fill_more(0)
    }

    /// Fills it to the last block with another one.
    pub fn fill_more(&self, number: u64) -> PathBuf {
        let path = self.dir.join(format!("somebody-elses{number}"));
        let mut file = File::create(&path).expect("it can be written");
        for size in [64 * 1024, 1024] {
            let block = vec![1; size];
            while file.write_all(&block).is_ok() {}
        }
        path
    }

    /// See [`cut_power`].
    pub fn cut_power(&self) {
        cut_power(&self.dir);
    }

    /// Mounts it again, as a machine does that comes up. Nobody may use it any more.
    #[track_caller]
    pub fn restart(&self) {
        eventually(SOON, "nobody uses the disk", || {
            unmount(&self.dir, UnmountFlags::empty())
        });
        self.attach();
    }
}

/// What happens to the disk that a folder is on when the machine goes down: nothing that is not on the disk yet gets there any
/// more, the filesystem's own journal included. Who uses it gets errors.
pub fn cut_power(folder: &Path) {
    /// `EXT4_IOC_SHUTDOWN`, and its argument for not even writing the journal.
    const SHUTDOWN: libc::Ioctl = 0x8004_587d_u32 as libc::Ioctl;
    const NO_LOG_FLUSH: u32 = 2;
    let folder = File::open(folder).expect("it is mounted");
    let how = NO_LOG_FLUSH;
    // SAFETY: the kernel reads one number.
    let cut = unsafe { libc::ioctl(folder.as_raw_fd(), SHUTDOWN, std::ptr::from_ref(&how)) };
    assert_eq!(cut, 0, "{}", std::io::Error::last_os_error());
}

impl Drop for Disk {
    fn drop(&mut self) {
        let _ = unmount(&self.dir, UnmountFlags::DETACH);
    }
}
