//! Keys of the map: paths of the folder, and internal keys beside them.

use std::{ffi::OsStr, fmt, ops::Range, os::unix::ffi::OsStrExt, sync::Arc};

use super::{Kind, WriterNumber};

/// Longest name, in bytes.
pub const NAME_BYTES_MAX: usize = 255;
/// Longest path, in bytes, with one `/` between names and none in front.
pub const PATH_BYTES_MAX: usize = 4096;
/// Which of the files that have several names.
pub type FileId = [u8; 16];
/// Longest encoded key: an internal one with a file id and a path.
pub(super) const KEY_BYTES_MAX: usize = PATH_BYTES_MAX + 18;
/// Longest name of a snapshot, in bytes.
const SNAPSHOT_NAME_BYTES_MAX: usize = 255;
/// Longest peer id, in bytes.
pub(super) const PEER_BYTES_MAX: usize = 64;

/// Room for what mostly follows a path in a key, so that it need not be copied for that.
const NAME_ROOM: usize = 64;

const SLASH: u8 = b'/';
/// Ends the parent's path in a key; no name contains it.
const END: u8 = 0;
/// Tags: the first byte after the 0 of an internal key. Those after the last are of later versions.
const WRITER: u8 = 1;
const FILE: u8 = 2;
const MOVE: u8 = 3;
const SNAPSHOT: u8 = 4;
const MEMBER: u8 = 5;
const POLICY: u8 = 6;
const FOLDER: u8 = 7;
const NAME: u8 = 8;

/// One component of a path: 1 to 255 bytes, no `/`, no NUL, not `.` or `..`. Shared: paths are copied with every operation.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Name(Arc<[u8]>);

/// Why bytes are not a name or a path.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum NameError {
    /// Longer than 255 bytes (a name) or 4096 (a path).
    #[error("the name is too long")]
    TooLong,
    /// Empty, `.`, `..`, or with `/` or NUL in it.
    #[error("the name is not allowed")]
    Forbidden,
}

fn check_name(bytes: &[u8]) -> Result<(), NameError> {
    if bytes.len() > NAME_BYTES_MAX {
        return Err(NameError::TooLong);
    }
    if matches!(bytes, b"" | b"." | b"..") || bytes.iter().any(|&byte| matches!(byte, SLASH | END))
    {
        return Err(NameError::Forbidden);
    }
    Ok(())
}

impl Name {
    /// Checks and takes a name.
    pub fn new(bytes: impl Into<Vec<u8>>) -> Result<Self, NameError> {
        let bytes = bytes.into();
        check_name(&bytes)?;
        Ok(Self(bytes.into()))
    }
    /// Its bytes.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }
    /// For use with the operating system.
    pub fn as_os_str(&self) -> &OsStr {
        OsStr::from_bytes(&self.0)
    }
}

/// A path inside the cluster: names from the root down; no names for the root itself. At most 4096 bytes.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TreePath(Vec<Name>);

impl TreePath {
    /// The root folder.
    pub fn root() -> Self {
        Self(Vec::new())
    }
    /// From `a/b/c`; leading and trailing slashes are passed over.
    pub fn parse(bytes: &[u8]) -> Result<Self, NameError> {
        let start = bytes
            .iter()
            .position(|&byte| byte != SLASH)
            .unwrap_or(bytes.len());
        let end = bytes
            .iter()
            .rposition(|&byte| byte != SLASH)
            .map_or(start, |last| last + 1);
        let Some(bytes) = bytes.get(start..end).filter(|bytes| !bytes.is_empty()) else {
            return Ok(Self::root());
        };
        if bytes.len() > PATH_BYTES_MAX {
            return Err(NameError::TooLong);
        }
        bytes
            .split(|&byte| byte == SLASH)
            .map(Name::new)
            .collect::<Result<_, _>>()
            .map(Self)
    }
    /// Of these names from the root down.
    pub(crate) fn of_names(names: Vec<Name>) -> Result<Self, NameError> {
        Self(names).bounded()
    }
    /// The path of a child.
    pub fn join(&self, name: &Name) -> Result<Self, NameError> {
        let mut names = Vec::with_capacity(self.0.len() + 1);
        names.extend_from_slice(&self.0);
        names.push(name.clone());
        Self(names).bounded()
    }
    /// The folder it stands in and its name there; `None` for the root.
    pub fn split(&self) -> Option<(TreePath, &Name)> {
        let (name, parent) = self.0.split_last()?;
        Some((Self(parent.to_vec()), name))
    }
    /// Its names from the root down.
    pub fn names(&self) -> &[Name] {
        &self.0
    }
    /// Whether it is `ancestor` or lies below it.
    pub fn is_within(&self, ancestor: &TreePath) -> bool {
        self.0.starts_with(&ancestor.0)
    }
    /// What comes, in the order of paths, after the child of this name and all below that, and before the next child. It is
    /// no path itself: its last name has a byte that no name may have.
    pub(crate) fn behind_all_below(&self, child: &Name) -> TreePath {
        let end = Name([child.as_bytes(), &[0]].concat().into());
        Self(self.0.iter().chain([&end]).cloned().collect())
    }
    /// The same place below `to` that this has below `from`; `None` when it is not within `from`.
    pub fn moved(&self, from: &TreePath, to: &TreePath) -> Option<Result<TreePath, NameError>> {
        let rest = self.0.strip_prefix(from.0.as_slice())?;
        let names = to.0.iter().chain(rest).cloned().collect();
        Some(Self(names).bounded())
    }
    /// Stands for the record of a file with several names where changes are kept by their paths. It is no path of the
    /// folder: its only name begins with a byte that no name may have.
    pub(crate) fn of_record(file: &FileId) -> Self {
        let mut name = vec![END];
        for byte in file {
            name.extend(format!("{byte:02x}").bytes());
        }
        Self(vec![Name(name.into())])
    }
    /// The file whose record this stands for, if it does.
    pub(crate) fn record(&self) -> Option<FileId> {
        let [name] = self.0.as_slice() else {
            return None;
        };
        let digits = name.0.strip_prefix(&[END])?;
        let mut file = FileId::default();
        let mut pairs = digits.chunks_exact(2);
        for byte in &mut file {
            let pair = std::str::from_utf8(pairs.next()?).ok()?;
            *byte = u8::from_str_radix(pair, 16).ok()?;
        }
        Some(file)
    }
    /// Its bytes, `a/b`; what [`TreePath::parse`] reads.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(self.byte_length());
        self.put_bytes(&mut bytes);
        bytes
    }
    fn put_bytes(&self, bytes: &mut Vec<u8>) {
        for (index, name) in self.0.iter().enumerate() {
            if index > 0 {
                bytes.push(SLASH);
            }
            bytes.extend_from_slice(name.as_bytes());
        }
    }
    /// From what [`TreePath::to_bytes`] gives, of a record's stand-in, too.
    pub(crate) fn restore(bytes: &[u8]) -> Result<Self, NameError> {
        if bytes.first() == Some(&END) {
            let stand_in = Self(vec![Name(bytes.into())]);
            return match stand_in.record() {
                Some(_) => Ok(stand_in),
                None => Err(NameError::Forbidden),
            };
        }
        Self::parse(bytes)
    }
    /// From exactly what [`TreePath::to_bytes`] gives.
    pub(super) fn from_bytes(bytes: &[u8]) -> Result<Self, NameError> {
        // Slashes that parsing passes over make the path shorter.
        let path = Self::parse(bytes)?;
        if path.byte_length() != bytes.len() {
            return Err(NameError::Forbidden);
        }
        Ok(path)
    }
    fn byte_length(&self) -> usize {
        let names: usize = self.0.iter().map(|name| name.0.len()).sum();
        names + self.0.len().saturating_sub(1)
    }
    fn bounded(self) -> Result<Self, NameError> {
        if self.byte_length() > PATH_BYTES_MAX {
            return Err(NameError::TooLong);
        }
        Ok(self)
    }
    /// `/a/b`, as the keys of children and of deeper entries start; `/` for the root.
    fn prefix(&self) -> Vec<u8> {
        let mut prefix = Vec::with_capacity(self.byte_length() + NAME_ROOM);
        prefix.push(SLASH);
        self.put_bytes(&mut prefix);
        prefix
    }
}

impl fmt::Display for TreePath {
    /// `/a/b`, with U+FFFD for what is not UTF-8; `/` for the root.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&String::from_utf8_lossy(&self.prefix()))
    }
}

/// What the internal keys hold; they are no paths and are shown to nobody.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum InternalKey {
    /// A row of the table of writers.
    Writer(WriterNumber),
    /// The record of a file that has several names.
    File(FileId),
    /// Where what stood at a path was moved to; the root is never moved.
    Move(TreePath),
    /// A named snapshot: 1 to 255 bytes without control characters.
    Snapshot(Vec<u8>),
    /// A member, by its peer id of 1 to 64 bytes.
    Member(Vec<u8>),
    /// The policy of a folder and what is below it.
    Policy(TreePath),
    /// What is remembered of a folder: see the module `folders`.
    Folder(TreePath),
    /// One of the names of a file that has several; not the root.
    Name(FileId, TreePath),
    /// A key of a later version, carried along: its tag (9 or more), and the bytes after it.
    Unknown(u8, Vec<u8>),
}

/// An encoded key. Ordered by its bytes, so that the direct children of a folder are one contiguous range:
/// `/` ‖ parent's names joined by `/` ‖ 0 ‖ name for a path, and a first byte of 0 for an internal key.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Key(Box<[u8]>);

impl Key {
    /// The key of a path, or of the record of a file with several names that [`TreePath::of_record`] stands for; `None`
    /// for the root, which has no entry of its own.
    pub fn of_path(path: &TreePath) -> Option<Self> {
        if let Some(file) = path.record() {
            return Some(Self::of_internal(&InternalKey::File(file)));
        }
        let (parent, name) = path.split()?;
        let mut bytes = parent.prefix();
        bytes.push(END);
        bytes.extend(name.as_bytes());
        Some(Self(bytes.into()))
    }
    /// The key of an internal record. A tree takes only what [`Key::from_bytes`] takes.
    pub fn of_internal(key: &InternalKey) -> Self {
        let (tag, rest) = match key {
            InternalKey::Writer(number) => (WRITER, number.0.to_be_bytes().to_vec()),
            InternalKey::File(id) => (FILE, id.to_vec()),
            InternalKey::Move(path) => (MOVE, path.to_bytes()),
            InternalKey::Snapshot(name) => (SNAPSHOT, name.clone()),
            InternalKey::Member(peer) => (MEMBER, peer.clone()),
            InternalKey::Policy(path) => (POLICY, path.to_bytes()),
            InternalKey::Folder(path) => (FOLDER, path.to_bytes()),
            InternalKey::Name(id, path) => (NAME, [&id[..], &path.to_bytes()].concat()),
            InternalKey::Unknown(tag, rest) => (*tag, rest.clone()),
        };
        let mut bytes = vec![END, tag];
        bytes.extend(rest);
        Self(bytes.into())
    }
    /// Checks bytes from a node in full.
    pub fn from_bytes(bytes: Vec<u8>) -> Result<Self, NameError> {
        let longest = match bytes.as_slice() {
            [END, NAME, ..] => KEY_BYTES_MAX,
            _ => PATH_BYTES_MAX + 2,
        };
        if bytes.len() > longest {
            return Err(NameError::TooLong);
        }
        match bytes.as_slice() {
            [END, rest @ ..] => check_internal(rest)?,
            [SLASH, rest @ ..] => {
                let end = rest.iter().position(|&byte| byte == END);
                let (parent, name) = end
                    .and_then(|end| rest.split_at_checked(end))
                    .ok_or(NameError::Forbidden)?;
                check_name(name.get(1..).unwrap_or_default())?;
                if !parent.is_empty() {
                    parent
                        .split(|&byte| byte == SLASH)
                        .try_for_each(check_name)?;
                }
            }
            _ => return Err(NameError::Forbidden),
        }
        Ok(Self(bytes.into()))
    }
    /// The encoded bytes.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }
    /// The path, where it is one.
    pub fn path(&self) -> Option<TreePath> {
        let rest = self.0.strip_prefix(&[SLASH])?;
        let end = rest.iter().position(|&byte| byte == END)?;
        let (parent, name) = (rest.get(..end)?, rest.get(end + 1..)?);
        // What is in a key was checked when the key was made.
        let mut names: Vec<Name> = parent
            .split(|&byte| byte == SLASH)
            .filter(|name| !name.is_empty())
            .map(|name| Name(name.into()))
            .collect();
        names.push(Name(name.into()));
        Some(TreePath(names))
    }
    /// The last name of the path, where it is one.
    pub fn name(&self) -> Option<Name> {
        let end = self.0.iter().position(|&byte| byte == END)?;
        // An internal key starts with the 0.
        (end > 0).then(|| Name(self.0.get(end + 1..).unwrap_or_default().into()))
    }
    /// The internal key, where it is one.
    pub fn internal(&self) -> Option<InternalKey> {
        match &*self.0 {
            [END, WRITER, number @ ..] => Some(InternalKey::Writer(WriterNumber(
                u64::from_be_bytes(number.try_into().ok()?),
            ))),
            [END, FILE, id @ ..] => Some(InternalKey::File(id.try_into().ok()?)),
            [END, MOVE, path @ ..] => Some(InternalKey::Move(TreePath::parse(path).ok()?)),
            [END, SNAPSHOT, name @ ..] => Some(InternalKey::Snapshot(name.to_vec())),
            [END, MEMBER, peer @ ..] => Some(InternalKey::Member(peer.to_vec())),
            [END, POLICY, path @ ..] => Some(InternalKey::Policy(TreePath::parse(path).ok()?)),
            [END, FOLDER, path @ ..] => Some(InternalKey::Folder(TreePath::parse(path).ok()?)),
            [END, NAME, rest @ ..] => {
                let (id, path) = rest.split_first_chunk()?;
                Some(InternalKey::Name(*id, TreePath::parse(path).ok()?))
            }
            [END, tag, rest @ ..] => Some(InternalKey::Unknown(*tag, rest.to_vec())),
            _ => None,
        }
    }
    /// Whether an entry of this kind may stand under this key: each internal key has its kind, and a path what a folder
    /// can show. A file's record under an internal key is what can have several names.
    pub(super) fn admits(&self, kind: &Kind) -> bool {
        let is_internal = matches!(
            kind,
            Kind::Writer { .. } | Kind::Move { .. } | Kind::Record(_)
        );
        match &*self.0 {
            [END, WRITER, ..] => matches!(kind, Kind::Writer { .. }),
            [END, FILE, ..] => !is_internal && !matches!(kind, Kind::Directory | Kind::Link(_)),
            [END, MOVE, ..] => matches!(kind, Kind::Move { .. }),
            [END, ..] => matches!(kind, Kind::Record(_)),
            _ => !is_internal,
        }
    }
    /// The range of raw key bytes that holds all move hints.
    pub(super) fn moves() -> Range<Vec<u8>> {
        vec![END, MOVE]..vec![END, MOVE + 1]
    }
    /// What the keys of the records of all folders below one start with.
    pub(super) fn folders_prefix(folder: &TreePath) -> Vec<u8> {
        let mut prefix = vec![END, FOLDER];
        prefix.extend(folder.to_bytes());
        if !folder.0.is_empty() {
            prefix.push(SLASH);
        }
        prefix
    }
    /// The range of raw key bytes that holds the records of all files that have several names.
    pub(crate) fn files() -> Range<Vec<u8>> {
        vec![END, FILE]..vec![END, FILE + 1]
    }
    /// The range of raw key bytes that holds the names of such a file.
    pub(super) fn names_of(file: &FileId) -> Range<Vec<u8>> {
        let start = [&[END, NAME], &file[..]].concat();
        let end = after_prefix(&start).unwrap_or_else(|| vec![END, NAME + 1]);
        start..end
    }
    /// The range of raw key bytes that holds the direct children of a folder.
    pub fn children_of(folder: &TreePath) -> Range<Vec<u8>> {
        let prefix = folder.prefix();
        followed_by(&prefix, END)..followed_by(&prefix, END + 1)
    }
    /// The two ranges of raw key bytes that hold everything below a folder: direct children, then deeper ones. For the
    /// root they meet and hold every path.
    pub fn below(folder: &TreePath) -> [Range<Vec<u8>>; 2] {
        let prefix = folder.prefix();
        let deeper = if folder.0.is_empty() {
            followed_by(&prefix, END + 1)..vec![SLASH + 1]
        } else {
            followed_by(&prefix, SLASH)..followed_by(&prefix, SLASH + 1)
        };
        [Self::children_of(folder), deeper]
    }
    /// The range of raw key bytes of the direct children whose names start with `start`.
    pub(super) fn children_starting(folder: &TreePath, start: &[u8]) -> Range<Vec<u8>> {
        let all = Self::children_of(folder);
        let mut first = all.start;
        first.extend(start);
        let end = after_prefix(&first).unwrap_or(all.end);
        first..end
    }
}

/// What follows the 0 of an internal key.
fn check_internal(bytes: &[u8]) -> Result<(), NameError> {
    let holds = match bytes {
        [WRITER, number @ ..] => number.len() == 8,
        [FILE, id @ ..] => id.len() == 16,
        [MOVE, path @ ..] => !path.is_empty() && TreePath::from_bytes(path).is_ok(),
        [SNAPSHOT, name @ ..] => {
            (1..=SNAPSHOT_NAME_BYTES_MAX).contains(&name.len())
                && !name.iter().any(u8::is_ascii_control)
        }
        [MEMBER, peer @ ..] => (1..=PEER_BYTES_MAX).contains(&peer.len()),
        [POLICY | FOLDER, path @ ..] => TreePath::from_bytes(path).is_ok(),
        [NAME, rest @ ..] => rest
            .split_first_chunk::<16>()
            .is_some_and(|(_, path)| !path.is_empty() && TreePath::from_bytes(path).is_ok()),
        [tag, ..] => *tag > NAME,
        [] => false,
    };
    if holds {
        Ok(())
    } else {
        Err(NameError::Forbidden)
    }
}

fn followed_by(prefix: &[u8], byte: u8) -> Vec<u8> {
    let mut bytes = prefix.to_vec();
    bytes.push(byte);
    bytes
}

/// The least byte string above everything that starts with `prefix`; `None` when there is none (all bytes 0xff).
pub(super) fn after_prefix(prefix: &[u8]) -> Option<Vec<u8>> {
    let last = prefix.iter().rposition(|&byte| byte < 0xff)?;
    let mut bytes = prefix.get(..=last)?.to_vec();
    if let Some(byte) = bytes.last_mut() {
        *byte += 1;
    }
    Some(bytes)
}

#[cfg(test)]
mod tests;
