//! Typed errors of the filesystem and the one table that maps them to what the kernel understands.

use crate::{
    manifest::NameError, node::namespace::NamespaceError, store::StoreError,
    transfer::TransferError,
};

/// Why an operation failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum FsError {
    #[error("no such file or folder")]
    NotFound,
    #[error("it exists already")]
    Exists,
    #[error("not a folder")]
    NotDirectory,
    #[error("a folder")]
    IsDirectory,
    #[error("the folder is not empty")]
    NotEmpty,
    #[error("the name is too long")]
    NameTooLong,
    #[error("not valid here")]
    Invalid,
    #[error("not permitted")]
    NotPermitted,
    #[error("the folder is read-only here")]
    ReadOnly,
    #[error("the file has been replaced")]
    Stale,
    #[error("no such open file")]
    BadHandle,
    #[error("no such attribute")]
    NoAttribute,
    #[error("the attribute is too large")]
    AttributeTooLarge,
    #[error("no room for more attributes")]
    AttributesFull,
    #[error("no data, or no hole, from there on")]
    BeyondEnd,
    #[error("the file has too many names")]
    TooManyLinks,
    #[error("the file would be too large")]
    TooLarge,
    #[error("not supported")]
    NotSupported,
    #[error("the calling process is being killed")]
    Interrupted,
    #[error("no state of the cluster has been seen yet")]
    NoHead,
    #[error("what is needed keeps changing or vanishing")]
    Stuck,
    #[error("the mount is stopping")]
    Stopping,
    #[error(transparent)]
    Namespace(#[from] NamespaceError),
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Transfer(#[from] TransferError),
    #[error(transparent)]
    Io(#[from] std::io::Error),
}

impl From<NameError> for FsError {
    fn from(error: NameError) -> Self {
        match error {
            NameError::TooLong => Self::NameTooLong,
            NameError::Forbidden => Self::Invalid,
        }
    }
}

impl FsError {
    /// The error number for the kernel.
    pub(crate) fn errno(&self) -> i32 {
        match self {
            Self::NotFound => libc::ENOENT,
            Self::Exists => libc::EEXIST,
            Self::NotDirectory => libc::ENOTDIR,
            Self::IsDirectory => libc::EISDIR,
            Self::NotEmpty => libc::ENOTEMPTY,
            Self::NameTooLong => libc::ENAMETOOLONG,
            Self::Invalid => libc::EINVAL,
            Self::NotPermitted => libc::EPERM,
            Self::ReadOnly => libc::EROFS,
            Self::Stale => libc::ESTALE,
            Self::BadHandle => libc::EBADF,
            Self::NoAttribute => libc::ENODATA,
            Self::AttributeTooLarge => libc::E2BIG,
            Self::AttributesFull => libc::ENOSPC,
            Self::BeyondEnd => libc::ENXIO,
            Self::TooManyLinks => libc::EMLINK,
            Self::TooLarge => libc::EFBIG,
            Self::NotSupported => libc::EOPNOTSUPP,
            Self::Interrupted => libc::EINTR,
            Self::NoHead | Self::Stuck | Self::Stopping => libc::EIO,
            Self::Namespace(error) => namespace_errno(error),
            Self::Store(error) => store_errno(error),
            Self::Transfer(
                TransferError::Stalled { .. }
                | TransferError::WrongSize { .. }
                | TransferError::Store(_)
                | TransferError::Stopping,
            ) => libc::EIO,
            Self::Io(error) => io_errno(error),
        }
    }

    /// Whether it tells of trouble that the log should have and has not, rather than of what a program asked for.
    pub(crate) fn is_trouble(&self) -> bool {
        let is_told = matches!(self, Self::AttributesFull | Self::Transfer(_));
        matches!(self.errno(), libc::EIO | libc::ENOSPC) && !is_told
    }
}

fn namespace_errno(error: &NamespaceError) -> i32 {
    match error {
        NamespaceError::ReadOnly => libc::EROFS,
        NamespaceError::Full => libc::ENOSPC,
        NamespaceError::Missing(_)
        | NamespaceError::NoHead
        | NamespaceError::Unreachable(_)
        | NamespaceError::Failed(_) => libc::EIO,
    }
}

fn store_errno(error: &StoreError) -> i32 {
    match error {
        StoreError::Full | StoreError::NoRoom { .. } => libc::ENOSPC,
        StoreError::Io { source, .. } => io_errno(source),
        StoreError::Locked { .. }
        | StoreError::Format { .. }
        | StoreError::Absent(_)
        | StoreError::Index(_)
        | StoreError::Damaged(_) => libc::EIO,
    }
}

/// A full disk stays a full disk; every other failure of the disk below is an I/O error to programs above.
fn io_errno(error: &std::io::Error) -> i32 {
    match error.raw_os_error() {
        Some(libc::ENOSPC | libc::EDQUOT) => libc::ENOSPC,
        Some(libc::EFBIG) => libc::EFBIG,
        _ => libc::EIO,
    }
}
