//! Attributes and times between the core and the kernel's protocol.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use fuser::{FileAttr, FileType, INodeNo};

use super::core::{Attr, SUGGESTED_IO_BYTES};
use crate::manifest::{Kind, Timestamp};

pub(super) fn file_type(kind: &Kind) -> FileType {
    match kind {
        Kind::File(_) | Kind::Link(_) => FileType::RegularFile,
        // Under no path.
        Kind::Writer { .. } | Kind::Move { .. } | Kind::Record(_) => FileType::RegularFile,
        Kind::Directory => FileType::Directory,
        Kind::Symlink(_) => FileType::Symlink,
        Kind::Fifo => FileType::NamedPipe,
        Kind::Socket => FileType::Socket,
        Kind::Device { block: true, .. } => FileType::BlockDevice,
        Kind::Device { block: false, .. } => FileType::CharDevice,
    }
}

/// As the kernel's protocol has it.
pub(super) fn file_attr(attr: &Attr) -> FileAttr {
    FileAttr {
        ino: INodeNo(attr.number),
        size: attr.size,
        blocks: attr.taken.div_ceil(512),
        atime: to_system_time(attr.accessed_ns),
        mtime: to_system_time(attr.modified_ns),
        ctime: to_system_time(attr.changed_ns),
        crtime: UNIX_EPOCH,
        kind: file_type(&attr.kind),
        // 12 bits.
        perm: u16::try_from(attr.mode & 0o7777).unwrap_or(0),
        nlink: attr.links,
        uid: attr.uid,
        gid: attr.gid,
        rdev: attr.device,
        blksize: SUGGESTED_IO_BYTES,
        flags: 0,
    }
}

/// What stands in an answer that nothing has the name, which the kernel may keep: inode 0, whatever else there is.
pub(super) fn no_attr() -> FileAttr {
    FileAttr {
        ino: INodeNo(0),
        size: 0,
        blocks: 0,
        atime: UNIX_EPOCH,
        mtime: UNIX_EPOCH,
        ctime: UNIX_EPOCH,
        crtime: UNIX_EPOCH,
        kind: FileType::RegularFile,
        perm: 0,
        nlink: 0,
        uid: 0,
        gid: 0,
        rdev: 0,
        blksize: SUGGESTED_IO_BYTES,
        flags: 0,
    }
}

fn to_system_time(ns: i64) -> SystemTime {
    let offset = Duration::from_nanos(ns.unsigned_abs());
    match ns >= 0 {
        true => UNIX_EPOCH + offset,
        false => UNIX_EPOCH - offset,
    }
}

/// fuser takes seconds and nanoseconds of a time before 1970 for both negative, where the kernel's nanoseconds count
/// forward: undone here.
pub(super) fn from_system_time(time: SystemTime) -> Timestamp {
    let ns = match time.duration_since(UNIX_EPOCH) {
        Ok(since) => i128::try_from(since.as_nanos()).unwrap_or(i128::MAX),
        Err(before) => {
            let before = before.duration();
            i128::from(before.subsec_nanos()) - i128::from(before.as_secs()) * 1_000_000_000
        }
    };
    let clamped = ns.clamp(i128::from(i64::MIN), i128::from(i64::MAX));
    Timestamp(i64::try_from(clamped).unwrap_or(i64::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_keep_their_nanoseconds() {
        for ns in [0, 1, 1_700_000_000_123_456_789, i64::MAX] {
            assert_eq!(from_system_time(to_system_time(ns)), Timestamp(ns));
        }
        // As fuser hands on the kernel's -2 s + 800,000,000 ns.
        let mangled = UNIX_EPOCH - Duration::new(2, 800_000_000);
        assert_eq!(from_system_time(mangled), Timestamp(-1_200_000_000));
    }
}
