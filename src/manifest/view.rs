//! How versions look as files: which one is shown under the name, and what the conflict copies are called.
//!
//! All of it derives from the map alone, so that peers with equal maps show equal folders; and a [`View`] of several states
//! shows what the map would that merging them gives.

use std::collections::{BTreeMap, BTreeSet};

use super::{
    Dot, Entry, HybridTime, InternalKey, Key, Kind, Name, NodeSource, Timestamp, TreeError,
    TreePath, Version, Versions, View, WriterNumber,
    key::{FileId, NAME_BYTES_MAX},
    merge::list,
    parts::{child_folders, complete, gather, lives_below, rows, versions},
    tree::MISSING_MAX,
};

/// What the names of all conflict copies have in them.
const MARKER: &str = " (conflict, ";
/// A longer ending (with its dot) is no extension, and goes before the note about the conflict.
const EXTENSION_BYTES_MAX: usize = 32;
/// Copies whose names would be equal are told apart by a number up to this.
pub(super) const EQUAL_NAMES_MAX: u32 = 65_536;

/// Whether a name may be that of a conflict copy; an ordinary name may look like one.
pub fn may_be_copy(name: &Name) -> bool {
    let marker = MARKER.as_bytes();
    name.as_bytes()
        .windows(marker.len())
        .any(|part| part == marker)
}

/// An entry as it is shown in the folder.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Shown {
    /// What it is. A directory that exists only because something lives below it has default attributes.
    pub entry: Entry,
    /// The versions that a change through this name replaces.
    pub seen: Vec<Dot>,
    /// When it was written.
    pub time: HybridTime,
    /// One of several names of a file, whose record `entry` and `time` then are; see [`super::resolve`].
    pub link: Option<Linked>,
}

/// The file that a name shares with others.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Linked {
    /// Which.
    pub file: FileId,
    /// The versions of its record that a change of it replaces.
    pub seen: Vec<Dot>,
}

impl Shown {
    /// A directory that exists only because something lives below it: mode 0o755, owner 0, no version to replace.
    pub fn implied_directory() -> Self {
        Self {
            entry: Entry::implied_directory(),
            seen: Vec::new(),
            time: HybridTime::default(),
            link: None,
        }
    }

    /// The entry that stands under the name itself.
    pub fn own_entry(&self) -> Entry {
        match &self.link {
            Some(link) => Entry::link(link.file),
            None => self.entry.clone(),
        }
    }

    /// The time of a folder, of whose direct entries the newest changed at `newest`: one that was set holds until a direct
    /// entry changes after it was.
    pub fn folder_time(&self, newest: HybridTime) -> Timestamp {
        match self.time >= newest {
            true => self.entry.modified,
            false => Timestamp(i64::try_from(newest.0).unwrap_or(i64::MAX)),
        }
    }
}

/// Versions of equal kind and content.
pub(super) struct Group<'a> {
    /// The one that gives the other fields.
    pub(super) newest: &'a Version,
    dots: Vec<Dot>,
}

impl Group<'_> {
    pub(super) fn shown(&self) -> Shown {
        Shown {
            entry: self.newest.entry.clone(),
            seen: self.dots.clone(),
            time: self.newest.time,
            link: None,
        }
    }
    pub(super) fn is_directory(&self) -> bool {
        self.newest.entry.kind == Kind::Directory
    }
}

/// The groups of versions of equal kind and content: a directory first, then by their newest, latest first.
pub(super) fn groups(versions: &Versions) -> Vec<Group<'_>> {
    groups_by(versions, Version::rank)
}

/// The same, where something else makes a version newer than others.
pub(super) fn groups_by<R: Ord>(
    versions: &Versions,
    rank: impl Fn(&Version) -> R,
) -> Vec<Group<'_>> {
    let mut groups: Vec<Group<'_>> = Vec::new();
    for version in versions.as_slice() {
        let same = |group: &&mut Group<'_>| group.newest.entry.kind == version.entry.kind;
        if let Some(group) = groups.iter_mut().find(same) {
            group.dots.push(version.dot);
            if rank(version) > rank(group.newest) {
                group.newest = version;
            }
        } else {
            groups.push(Group {
                newest: version,
                dots: vec![version.dot],
            });
        }
    }
    groups.sort_by_key(|group| std::cmp::Reverse((group.is_directory(), rank(group.newest))));
    groups
}

/// Which version is shown under the plain name, and the others, largest (time, writer) first. Versions of equal kind and
/// content are one: the larger (time, writer) gives the other fields and `seen` has the dots of all of them. A directory
/// keeps the name.
pub fn shown(versions: &Versions) -> (Shown, Vec<Shown>) {
    let mut groups = groups(versions).into_iter().map(|group| group.shown());
    // There is at least one version, so the default never shows.
    let first = groups.next().unwrap_or_else(Shown::implied_directory);
    (first, groups.collect())
}

/// The folder's direct children as they are shown, conflict copies included, in byte order of their names.
/// Folders that exist only through what lives below them are found by looking at the edges of each, not inside.
pub fn children(
    source: &impl NodeSource,
    view: &View,
    folder: &TreePath,
) -> Result<Vec<(Name, Shown)>, TreeError> {
    let listed = listing(source, view, folder, &[])?.into_iter();
    Ok(listed.map(|(name, item)| (name, item.shown)).collect())
}

/// What is shown at a path: an entry, a directory that exists only through what lives below it, or a conflict copy by its
/// name. The root is always a directory. Costs a few descents, except for the names of conflict copies, which take a
/// listing of the folder's names that start alike.
pub fn lookup(
    source: &impl NodeSource,
    view: &View,
    path: &TreePath,
) -> Result<Option<Shown>, TreeError> {
    let Some(key) = Key::of_path(path) else {
        return Ok(Some(Shown::implied_directory()));
    };
    let mut missing = BTreeSet::new();
    let versions = gather(&mut missing, versions(source, view, &key))?.flatten();
    let entry = versions.map(|versions| shown(&versions).0);
    if let Some(entry) = &entry
        && entry.entry.kind == Kind::Directory
    {
        return Ok(Some(entry.clone()));
    }
    let lives = gather(&mut missing, lives_below(source, view, path))?;
    complete(missing)?;
    if lives == Some(true) {
        return Ok(Some(Shown::implied_directory()));
    }
    if entry.is_some() {
        return Ok(entry);
    }
    Ok(find_copy(source, view, path)?.map(|(_, copy)| copy))
}

/// The conflict copy that is shown at a path, and under which name of the same folder its versions stand; `None` when the
/// path is not that of a conflict copy.
pub fn find_copy(
    source: &impl NodeSource,
    view: &View,
    path: &TreePath,
) -> Result<Option<(Name, Shown)>, TreeError> {
    let Some((folder, name)) = path.split() else {
        return Ok(None);
    };
    let Some(start) = before_marker(name) else {
        return Ok(None);
    };
    let mut listed = listing(source, view, &folder, start)?;
    let item = listed.remove(name);
    Ok(item.and_then(|item| Some((item.copy_of?, item.shown))))
}

/// Whether a version, which stands under `original`, is shown as the conflict copy of this name where another one is shown
/// there: as which of so many with equal names is not looked at further than to the 256th.
pub fn may_be_shown_as(
    source: &impl NodeSource,
    view: &View,
    (original, version): (&TreePath, &Version),
    copy: &Name,
) -> Result<bool, TreeError> {
    let Some((_, name)) = original.split() else {
        return Ok(false);
    };
    let writer = version.author(original);
    let node = in_a_name(node_name(source, view, writer)?.as_deref(), writer);
    let mut names = (1..=256).map(|nth| copy_name(name, &node, version.time, nth));
    Ok(names.any(|name| name.as_ref() == Some(copy)))
}

/// What stands before the first marker in a copy's name is the start of the original's name, cut or not, and of all names
/// that could be in this one's way.
pub(super) fn before_marker(name: &Name) -> Option<&[u8]> {
    let bytes = name.as_bytes();
    let mut windows = bytes.windows(MARKER.len());
    let marker = windows.position(|window| window == MARKER.as_bytes())?;
    bytes.get(..marker)
}

pub(super) struct Item {
    pub(super) shown: Shown,
    /// The name under which a conflict copy's versions stand.
    pub(super) copy_of: Option<Name>,
}

/// What is shown in a folder under names that start with `start`, and the copies of what is.
pub(super) fn listing(
    source: &impl NodeSource,
    view: &View,
    folder: &TreePath,
    start: &[u8],
) -> Result<BTreeMap<Name, Item>, TreeError> {
    let mut missing = BTreeSet::new();
    let range = Key::children_starting(folder, start);
    let rows = gather(&mut missing, rows(source, view, &range))?;
    let folders = gather(&mut missing, child_folders(source, view, folder, start))?;
    complete(missing)?;
    let rows = rows.unwrap_or_default().into_iter();
    let rows = rows.filter_map(|(key, versions)| Some((key.name()?, versions)));
    let rows = rows.collect();
    let implied = implied_folders(source, view, folder, &rows, folders.unwrap_or_default())?;

    let mut items = BTreeMap::new();
    let mut copies = Vec::new();
    for (name, versions) in &rows {
        let mut groups = groups(versions);
        let own = !implied.contains(name) || groups.first().is_some_and(Group::is_directory);
        let shown = if own && !groups.is_empty() {
            groups.remove(0).shown()
        } else {
            Shown::implied_directory()
        };
        copies.extend(groups.into_iter().map(|group| (name.clone(), group)));
        let copy_of = None;
        items.insert(name.clone(), Item { shown, copy_of });
    }
    for name in implied {
        items.entry(name).or_insert_with(|| Item {
            shown: Shown::implied_directory(),
            copy_of: None,
        });
    }

    let author = |name: &Name, group: &Group<'_>| match folder.join(name) {
        Ok(path) => group.newest.author(&path),
        Err(_) => group.newest.dot.writer,
    };
    let writers = copies.iter().map(|(name, group)| author(name, group));
    let nodes = node_names(source, view, writers.collect())?;
    // The next number to try, by the first two names that a copy could have: where these are equal, so are all further
    // ones. Names are only ever taken, so that what was taken once need not be tried again.
    let mut numbers: BTreeMap<[Option<Name>; 2], u32> = BTreeMap::new();
    for (original, group) in copies {
        let node = nodes.get(&author(&original, &group));
        let node = node.map_or("", String::as_str);
        let nth_name = |nth| copy_name(&original, node, group.newest.time, nth);
        let next = numbers.entry([nth_name(1), nth_name(2)]).or_insert(1);
        let mut names = (*next..=EQUAL_NAMES_MAX).filter_map(|nth| Some((nth, nth_name(nth)?)));
        let free = names.find(|(_, name)| !items.contains_key(name));
        *next = free.as_ref().map_or(EQUAL_NAMES_MAX, |(nth, _)| *nth) + 1;
        if let Some((_, name)) = free {
            let item = Item {
                shown: group.shown(),
                copy_of: Some(original),
            };
            items.insert(name, item);
        }
    }
    Ok(items)
}

/// Of the folder's direct children that have something below them in some part, those of which something survives, or
/// that are shown as directories in any case.
fn implied_folders(
    source: &impl NodeSource,
    view: &View,
    folder: &TreePath,
    rows: &BTreeMap<Name, Versions>,
    candidates: BTreeMap<Name, bool>,
) -> Result<BTreeSet<Name>, TreeError> {
    let mut missing = BTreeSet::new();
    let mut names = BTreeSet::new();
    for (name, survives) in candidates {
        let mut own = list(rows.get(&name)).iter();
        let is_directory = own.any(|version| version.entry.kind == Kind::Directory);
        let lives = || match folder.join(&name) {
            Ok(path) => lives_below(source, view, &path),
            // What is below it has a longer path.
            Err(_) => Ok(false),
        };
        if survives || is_directory || gather(&mut missing, lives())? == Some(true) {
            names.insert(name);
        }
        if missing.len() >= MISSING_MAX {
            break;
        }
    }
    complete(missing)?;
    Ok(names)
}

/// The node name of a writer, from their table; `None` when it isn't in it.
pub fn node_name(
    source: &impl NodeSource,
    view: &View,
    writer: WriterNumber,
) -> Result<Option<String>, TreeError> {
    let key = Key::of_internal(&InternalKey::Writer(writer));
    let row = versions(source, view, &key)?;
    Ok(match row.map(|versions| shown(&versions).0.entry.kind) {
        Some(Kind::Writer { node, .. }) => Some(node),
        _ => None,
    })
}

/// Node names of writers as names of copies have them.
fn node_names(
    source: &impl NodeSource,
    view: &View,
    writers: BTreeSet<WriterNumber>,
) -> Result<BTreeMap<WriterNumber, String>, TreeError> {
    let mut missing = BTreeSet::new();
    let mut names = BTreeMap::new();
    for writer in writers {
        let node = gather(&mut missing, node_name(source, view, writer))?.flatten();
        names.insert(writer, in_a_name(node.as_deref(), writer));
    }
    complete(missing)?;
    Ok(names)
}

/// How the name of a copy names its writer: the number in hexadecimal where the node's name isn't known.
pub(super) fn in_a_name(node: Option<&str>, writer: WriterNumber) -> String {
    match node {
        Some(node) => node.replace('/', "_"),
        None => format!("{:016x}", writer.0),
    }
}

/// `stem (conflict, node, time).ext`; from the second of equal names on with their number after the time. The stem is cut
/// where the whole would be longer than 255 bytes.
pub(super) fn copy_name(original: &Name, node: &str, time: HybridTime, nth: u32) -> Option<Name> {
    let (stem, extension) = stem_and_extension(original);
    let time = utc(time);
    let note = match nth {
        1 => format!("{MARKER}{node}, {time})"),
        nth => format!("{MARKER}{node}, {time}, {nth})"),
    };
    let room = NAME_BYTES_MAX.checked_sub(note.len() + extension.len())?;
    let mut cut = stem.len().min(room);
    // Not inside of a character of UTF-8, whose bytes after the first are 0b10xxxxxx.
    for _ in 0..3 {
        if stem.get(cut).is_some_and(|byte| byte & 0xc0 == 0x80) {
            cut = cut.saturating_sub(1);
        }
    }
    let stem = stem.get(..cut)?;
    Name::new([stem, note.as_bytes(), extension].concat()).ok()
}

/// The note about a conflict goes between the two.
pub(super) fn stem_and_extension(name: &Name) -> (&[u8], &[u8]) {
    let bytes = name.as_bytes();
    let dot = bytes.iter().rposition(|&byte| byte == b'.');
    // Not the time in the name of what was a copy once.
    let is_extension =
        |dot: usize| !bytes.ends_with(b")") && bytes.len() - dot <= EXTENSION_BYTES_MAX;
    let dot = dot.filter(|&dot| dot > 0 && is_extension(dot));
    bytes
        .split_at_checked(dot.unwrap_or(bytes.len()))
        .unwrap_or((bytes, &[]))
}

/// `YYYY-MM-DD HH.MM.SS`, UTC.
pub fn utc(time: HybridTime) -> String {
    let seconds = time.0 / 1_000_000_000;
    let (days, second) = (seconds / 86_400, seconds % 86_400);
    // Days since 0000-03-01 in the proleptic Gregorian calendar, where leap days end the year: a cycle of 400 years has
    // 146,097 days (Howard Hinnant, "chrono-compatible low-level date algorithms").
    let days = days + 719_468;
    let (era, day) = (days / 146_097, days % 146_097);
    let year = (day - day / 1_460 + day / 36_524 - day / 146_096) / 365;
    let day = day - (365 * year + year / 4 - year / 100);
    let month = (5 * day + 2) / 153;
    let day = day - (153 * month + 2) / 5 + 1;
    let month = if month < 10 { month + 3 } else { month - 9 };
    let year = era * 400 + year + u64::from(month <= 2);
    let (hour, minute, second) = (second / 3600, second / 60 % 60, second % 60);
    format!("{year:04}-{month:02}-{day:02} {hour:02}.{minute:02}.{second:02}")
}

#[cfg(test)]
mod tests;
