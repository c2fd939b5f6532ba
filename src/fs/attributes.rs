//! Extended attributes: `user.*` is kept in entries, `user.p2pfs.*` is computed and can't be set. No other namespace exists.
//!
//! Computed attributes are answered by name but not listed, so that programs which copy attributes don't try to copy them.

use std::{os::unix::ffi::OsStrExt, time::Duration};

use super::{
    core::{Core, Fail, Need},
    errno::FsError,
    inodes::ROOT,
};
use crate::{
    content::Object,
    manifest::{Entry, Kind},
    store::Presence,
};

/// All attributes of an entry together, names and values: entries are small and travel as a whole.
const ATTRIBUTES_BYTES_MAX: usize = 4096;
/// And as many at most.
const ATTRIBUTES_MAX: usize = 64;

/// How long the hash of a file waits for its publication when it is closed, and when somebody still has it open.
const HASH_WAIT_CLOSED: Duration = Duration::from_secs(10);
const HASH_WAIT_OPEN: Duration = Duration::from_millis(300);

impl Core {
    /// The value of an attribute. `last`: this is a repetition; it doesn't wait again.
    pub(crate) fn getxattr(&self, number: u64, name: &[u8], last: bool) -> Result<Vec<u8>, Fail> {
        let name = own_name(name)?;
        if let Some(name) = name.strip_prefix(b"p2pfs.") {
            return self.computed(number, name, last);
        }
        let entry = self.entry_of(number)?;
        let value = entry.attributes.get(name);
        Ok(value.cloned().ok_or(FsError::NoAttribute)?)
    }

    /// The names of the attributes that are kept, each ended by a NUL.
    pub(crate) fn listxattr(&self, number: u64) -> Result<Vec<u8>, Fail> {
        let mut names = Vec::new();
        for name in self.entry_of(number)?.attributes.keys() {
            names.extend_from_slice(b"user.");
            names.extend_from_slice(name);
            names.push(0);
        }
        Ok(names)
    }

    /// Sets an attribute; `flags` as for `setxattr(2)`.
    pub(crate) fn setxattr(
        &self,
        number: u64,
        name: &[u8],
        value: &[u8],
        flags: i32,
    ) -> Result<(), Fail> {
        self.writable()?;
        let name = settable(name)?;
        if value.len() > ATTRIBUTES_BYTES_MAX {
            return Err(FsError::AttributeTooLarge.into());
        }
        let _order = self.order.read();
        let attributes = self.entry_of(number)?.attributes;
        let exists = attributes.contains_key(name);
        if exists && flags & libc::XATTR_CREATE != 0 {
            return Err(FsError::Exists.into());
        }
        if !exists && flags & libc::XATTR_REPLACE != 0 {
            return Err(FsError::NoAttribute.into());
        }
        let others = attributes.iter().filter(|(other, _)| *other != name);
        let taken: usize = others.map(|(name, value)| name.len() + value.len()).sum();
        let is_full = !exists && attributes.len() >= ATTRIBUTES_MAX;
        if is_full || taken + name.len() + value.len() > ATTRIBUTES_BYTES_MAX {
            return Err(FsError::AttributesFull.into());
        }
        self.change_entry(number, |entry| {
            entry.attributes.insert(name.to_vec(), value.to_vec());
        })
    }

    /// Removes an attribute.
    pub(crate) fn removexattr(&self, number: u64, name: &[u8]) -> Result<(), Fail> {
        self.writable()?;
        let name = settable(name)?;
        let _order = self.order.read();
        if !self.entry_of(number)?.attributes.contains_key(name) {
            return Err(FsError::NoAttribute.into());
        }
        self.change_entry(number, |entry| {
            entry.attributes.remove(name);
        })
    }

    /// The entry of an inode, as it is now.
    fn entry_of(&self, number: u64) -> Result<Entry, Fail> {
        if let Some(entry) = self.with_live(number, |live| live.entry.clone()) {
            return Ok(entry);
        }
        let (_, shown, _) = self.stands(number)?.ok_or(FsError::Stale)?;
        Ok(shown.entry)
    }

    fn computed(&self, number: u64, name: &[u8], last: bool) -> Result<Vec<u8>, Fail> {
        if name == b"state-dir" && number == ROOT {
            return Ok(self.options.state_dir.as_os_str().as_bytes().to_vec());
        }
        let kind = self
            .inodes
            .lock()
            .facts(number)
            .map(|facts| facts.kind.clone());
        let Some(Kind::File(_)) = kind else {
            return Err(FsError::NoAttribute.into());
        };
        let text = match name {
            b"hash" => self.hash(number, last)?.content.to_string(),
            b"cached" => self.cached(number)?.to_string(),
            b"holders" => match self.unpublished(number) {
                true => "0".to_owned(),
                false => (self.holders)(self.content(number)?.0).to_string(),
            },
            b"state" => self.file_state(number)?.to_owned(),
            _ => return Err(FsError::NoAttribute.into()),
        };
        Ok(text.into_bytes())
    }

    fn unpublished(&self, number: u64) -> bool {
        self.with_live(number, |live| live.is_dirty()) == Some(true)
    }

    /// The content that is published. A publication that is under way is waited for; a file that somebody goes on writing
    /// has no hash.
    fn hash(&self, number: u64, last: bool) -> Result<Object, Fail> {
        let pending = self.with_live(number, |live| {
            (live.is_dirty() || live.importing).then_some(live.writers > 0)
        });
        match pending.flatten() {
            None => Ok(self.content(number)?.0),
            Some(_) if last => Err(FsError::NoAttribute.into()),
            Some(true) => Err(Fail::Need(Need::Publication(number, HASH_WAIT_OPEN))),
            Some(false) => Err(Fail::Need(Need::Publication(number, HASH_WAIT_CLOSED))),
        }
    }

    /// Bytes that are here.
    fn cached(&self, number: u64) -> Result<u64, Fail> {
        if let Some(size) = self.with_live(number, |live| {
            live.is_dirty().then_some(live.overlay.size())
        }) && let Some(size) = size
        {
            return Ok(size);
        }
        let object = self.content(number)?.0;
        Ok(match self.store.presence(&object)? {
            Presence::Absent => 0,
            Presence::Complete => object.size,
            Presence::Partial(blocks) => {
                let bytes = blocks.ranges().iter().map(|range| {
                    let bytes = object.bytes_of(range.clone());
                    bytes.end - bytes.start
                });
                bytes.sum()
            }
        })
    }

    fn file_state(&self, number: u64) -> Result<&'static str, Fail> {
        if self.unpublished(number) {
            return Ok("unpublished");
        }
        let object = self.content(number)?.0;
        Ok(match self.store.presence(&object)? {
            Presence::Absent => "remote",
            Presence::Partial(_) => "partial",
            Presence::Complete if (self.options.pinned)(&self.path(number)?) => "pinned",
            Presence::Complete => "cached",
        })
    }
}

/// The name without `user.`; other namespaces don't exist here.
fn own_name(name: &[u8]) -> Result<&[u8], Fail> {
    match name.strip_prefix(b"user.") {
        Some(name) if !name.is_empty() => Ok(name),
        _ => Err(FsError::NotSupported.into()),
    }
}

fn settable(name: &[u8]) -> Result<&[u8], Fail> {
    let name = own_name(name)?;
    match name.starts_with(b"p2pfs.") {
        true => Err(FsError::NotPermitted.into()),
        false => Ok(name),
    }
}
