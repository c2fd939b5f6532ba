//! The manifest: an ordered Merkle map from paths to versions of entries that merges as a CRDT.
//!
//! Pure: nodes come from a [`NodeSource`]; what is not there is reported as [`TreeError::Missing`], the shell fetches it
//! and asks again. Nothing here reads a clock, a socket or a file.

mod cbor;
mod conflicts;
mod context;
mod entry;
mod few;
mod folders;
#[cfg(test)]
mod histories;
mod key;
mod links;
mod merge;
mod moves;
mod node;
mod parts;
mod reach;
mod tree;
mod view;

pub use conflicts::{Conflict, ConflictVersion, conflict_at, conflicts};
pub use context::{CausalContext, Dot, HybridTime, WRITERS_MAX, WriterNumber};
pub use entry::{
    ATTRIBUTE_NAME_BYTES_MAX, ATTRIBUTE_VALUE_BYTES_MAX, ATTRIBUTES_BYTES_MAX, ATTRIBUTES_MAX,
    Entry, EntryError, Kind, MOVE_WRITERS_MAX, MOVED_MAX, Moved, RECORD_BYTES_MAX,
    TARGET_BYTES_MAX, Timestamp, VERSIONS_BYTES_MAX, VERSIONS_MAX, Version, Versions,
};
pub use few::Few;
pub use folders::{are_recorded, record_folders};
pub use key::{
    FileId, InternalKey, Key, NAME_BYTES_MAX, Name, NameError, PATH_BYTES_MAX, TreePath,
};
pub use links::{any_files, complete_links, contested_files, count_names, names, resolve};
pub use merge::{Merged, graft, merge, merge_portion, merge_versions};
pub use moves::{HINT_AGE_MAX_NS, complete_moves, move_hint, without_old_hints};
pub use node::{NODE_BYTES_MAX, Node, NodeError, NodeHash, Summary};
pub use parts::{View, folder_newest, versions};
pub use reach::Reach;
#[cfg(test)]
pub(crate) use tree::testing::Memory;
pub use tree::{
    Applied, Change, MISSING_MAX, NodeSource, TreeError, apply, diff, diff_after, empty_root, get,
    outdated, range_summary, scan, summary,
};
pub use view::{
    Linked, Shown, children, find_copy, lookup, may_be_copy, may_be_shown_as, node_name, shown, utc,
};
