//! The running kernel: which it is, a call of it that no crate here has, and what it takes best.

use std::{
    fs::File,
    io,
    ops::Range,
    os::{fd::AsRawFd, unix::fs::FileExt},
};

/// Files are written in pieces of at most this. For more at a time the kernel looks for memory that is all in one piece, which on
/// a virtual machine that gives free memory back to its host is memory it doesn't have yet: four times as dear. No faster than this
/// on others.
pub(crate) const PIECE_BYTES: usize = 256 * 1024;

/// Writes all of it.
pub(crate) fn write_all_at(file: &File, data: &[u8], mut offset: u64) -> io::Result<()> {
    for piece in data.chunks(PIECE_BYTES) {
        file.write_all_at(piece, offset)?;
        offset += piece.len() as u64;
    }
    Ok(())
}

/// Writes all of a file over the start of another, or of itself.
pub(crate) fn copy_over(from: &File, to: &File) -> io::Result<()> {
    let mut buffer = vec![0; PIECE_BYTES];
    let mut at = 0;
    loop {
        let read = from.read_at(&mut buffer, at)?;
        let Some(bytes) = buffer.get(..read).filter(|bytes| !bytes.is_empty()) else {
            return Ok(());
        };
        to.write_all_at(bytes, at)?;
        at += read as u64;
    }
}

/// Its version; 0.0 where that can't be told.
pub(crate) fn version() -> (u32, u32) {
    let system = rustix::system::uname();
    parse_version(&system.release().to_string_lossy())
}

fn parse_version(release: &str) -> (u32, u32) {
    let mut numbers = release.split(['.', '-']).map(str::parse);
    match (numbers.next(), numbers.next()) {
        (Some(Ok(major)), Some(Ok(minor))) => (major, minor),
        _ => (0, 0),
    }
}

/// Has the disk begin with what was written to a part of a file, and waits for none of it. It proves nothing: whoever needs to
/// know syncs the file, which is told of any failure, and finds less to do.
pub(crate) fn begin_writing(file: &File, bytes: Range<u64>) {
    let offset = i64::try_from(bytes.start).unwrap_or(i64::MAX);
    let length = i64::try_from(bytes.end.saturating_sub(bytes.start)).unwrap_or(0);
    // SAFETY: the call takes no pointers, and the descriptor is open as long as `file` is.
    let begun = unsafe {
        libc::sync_file_range(
            file.as_raw_fd(),
            offset,
            length,
            libc::SYNC_FILE_RANGE_WRITE,
        )
    };
    if begun != 0 {
        let error = std::io::Error::last_os_error();
        tracing::debug!(%error, "the disk could not begin with what was written");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_read_however_kernels_are_called() {
        assert_eq!(parse_version("6.18.44-fc-v669"), (6, 18));
        assert_eq!(parse_version("7.0-rc1"), (7, 0));
        assert_eq!(parse_version("5.10.0"), (5, 10));
        assert_eq!(parse_version("nonsense"), (0, 0));
        assert!(version() > (0, 0));
    }

    #[test]
    fn beginning_to_write_changes_nothing_that_is_read() {
        let mut file = tempfile::tempfile().unwrap();
        std::io::Write::write_all(&mut file, &[7; 10_000]).unwrap();
        begin_writing(&file, 0..8192);
        begin_writing(&file, 8192..u64::MAX);
        let mut read = vec![0; 10_000];
        std::os::unix::fs::FileExt::read_exact_at(&file, &mut read, 0).unwrap();
        assert_eq!(read, [7; 10_000]);
    }
}
