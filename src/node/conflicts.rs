//! Conflicts as the control socket tells them, and the end of one.

use std::time::{Duration, Instant};

use super::{
    Node,
    namespace::{Namespace, NamespaceError},
    run_blocking,
};
use crate::{
    cluster::Role,
    control::{
        ControlError,
        text::{hex, unhex},
        types::{
            ConflictReport, ConflictsReport, ConflictsRequest, ResolveReport, ResolveRequest,
            VersionReport,
        },
    },
    manifest::{Conflict, ConflictVersion, Kind, TreePath, WriterNumber},
};

/// How long an answer waits for manifest nodes that are not here.
const NODES_WITHIN: Duration = Duration::from_secs(20);
/// Most conflicts on a page, and most bytes of them but for the last one.
const PAGE_CONFLICTS_MAX: usize = 256;
const PAGE_BYTES_MAX: usize = 256 * 1024;
/// The least of a hash that names a version.
const HASH_DIGITS_MIN: usize = 4;
/// As much of a hash tells versions apart for people.
const HASH_DIGITS_SHOWN: usize = 12;
/// The word that names the version which the name shows.
const SHOWN: &str = "shown";

impl Node {
    pub(super) async fn conflicts_report(
        &self,
        request: ConflictsRequest,
    ) -> Result<ConflictsReport, ControlError> {
        let under = path_of(&request.under)?;
        let after = request.after.as_deref().map(path_of).transpose()?;
        let total = self.namespace.status().conflicts;
        let found = self
            .with_nodes(move |namespace| {
                namespace.conflicts(&under, after.as_ref(), PAGE_CONFLICTS_MAX)
            })
            .await?;
        let own = self.namespace.own_number();
        let mut page = ConflictsReport {
            total,
            more: found.len() == PAGE_CONFLICTS_MAX,
            ..ConflictsReport::default()
        };
        let mut bytes = 0;
        for conflict in &found {
            if bytes > PAGE_BYTES_MAX {
                page.more = true;
                break;
            }
            let report = conflict_report(conflict, own);
            bytes += report_bytes(&report);
            page.after = Some(hex(&conflict.path.to_bytes()));
            page.conflicts.push(report);
        }
        if !page.more {
            page.after = None;
        }
        Ok(page)
    }

    pub(super) async fn resolve_conflict(
        &self,
        request: ResolveRequest,
    ) -> Result<ResolveReport, ControlError> {
        if self.role() == Role::ReadOnly {
            return Err(ControlError::new("this mount is read-only"));
        }
        let path = path_of(&request.path_hex)?;
        let ask = move |namespace: &Namespace| {
            let conflict = namespace.conflict_at(namespace.root()?, &path)?;
            if let Some(conflict) = &conflict {
                // Whether a folder is empty must be known below.
                namespace.children(&conflict.path)?;
            }
            Ok(conflict)
        };
        let conflict = self
            .with_nodes(ask)
            .await?
            .ok_or_else(|| ControlError::new("no conflict is there"))?;
        let kept = chosen(&conflict, &request.keep)?;
        let published = self.namespace.resolve(&conflict, kept).await;
        let published = published.map_err(ControlError::new)?;
        Ok(self.resolved(&conflict, kept, published))
    }

    fn resolved(
        &self,
        conflict: &Conflict,
        kept: &ConflictVersion,
        published: bool,
    ) -> ResolveReport {
        let own = self.namespace.own_number();
        let (path, path_hex) = path_text(&conflict.path);
        let dropped = conflict.versions().filter(|version| *version != kept);
        ResolveReport {
            path,
            path_hex,
            kept: version_report(kept, own),
            dropped: dropped
                .map(|version| version_report(version, own))
                .collect(),
            published,
        }
    }

    /// Asks the namespace, and fetches what it lacks to answer.
    pub(super) async fn with_nodes<T: Send + 'static>(
        &self,
        ask: impl Fn(&Namespace) -> Result<T, NamespaceError> + Clone + Send + 'static,
    ) -> Result<T, ControlError> {
        let deadline = Instant::now() + NODES_WITHIN;
        loop {
            let (namespace, ask) = (self.namespace.clone(), ask.clone());
            let nodes = match run_blocking(move || ask(&namespace)).await {
                Err(NamespaceError::Missing(nodes)) => nodes,
                answer => return answer.map_err(ControlError::new),
            };
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(ControlError::new(format_args!(
                    "its manifest nodes did not come within {} s",
                    NODES_WITHIN.as_secs()
                )));
            }
            let fetched = self.namespace.fetch(nodes, left).await;
            fetched.map_err(ControlError::new)?;
        }
    }
}

fn path_of(hex: &str) -> Result<TreePath, ControlError> {
    let bytes = unhex(hex).ok_or_else(|| ControlError::wrong("a path that is not hexadecimal"))?;
    TreePath::parse(&bytes).map_err(ControlError::wrong)
}

/// A path as text without a `/` in front, and its bytes where text cannot say it.
pub(super) fn path_text(path: &TreePath) -> (String, Option<String>) {
    match String::from_utf8(path.to_bytes()) {
        Ok(text) => (text, None),
        Err(error) => {
            let bytes = error.into_bytes();
            (
                String::from_utf8_lossy(&bytes).into_owned(),
                Some(hex(&bytes)),
            )
        }
    }
}

pub(super) fn conflict_report(conflict: &Conflict, own: WriterNumber) -> ConflictReport {
    let (path, path_hex) = path_text(&conflict.path);
    let copies = conflict.copies.iter();
    ConflictReport {
        path,
        path_hex,
        shown: version_report(&conflict.shown, own),
        copies: copies.map(|copy| version_report(copy, own)).collect(),
    }
}

fn version_report(version: &ConflictVersion, own: WriterNumber) -> VersionReport {
    let (path, path_hex) = version.path.as_ref().map(path_text).unzip();
    let kind = match version.shown.entry.kind {
        Kind::File(_) => "file",
        Kind::Directory => "directory",
        Kind::Symlink(_) => "symlink",
        Kind::Fifo => "fifo",
        Kind::Socket => "socket",
        Kind::Device { .. } => "device",
        Kind::Link(_) => "link",
        // These stand under no path.
        _ => "internal",
    };
    let object = object_of(version);
    VersionReport {
        path,
        path_hex: path_hex.flatten(),
        kind: kind.into(),
        node: version.node.clone(),
        here: version.writer == Some(own),
        time_s: version.shown.time.0 as f64 / 1e9,
        size: object.map_or(0, |object| object.size),
        hash: object.map(|object| object.content.to_string()),
    }
}

fn object_of(version: &ConflictVersion) -> Option<crate::content::Object> {
    match version.shown.entry.kind {
        Kind::File(object) => Some(object),
        _ => None,
    }
}

/// About what a conflict takes as JSON.
fn report_bytes(report: &ConflictReport) -> usize {
    let of_version = |version: &VersionReport| {
        let path = version.path.as_ref().map_or(0, String::len);
        let bytes = version.path_hex.as_ref().map_or(0, String::len);
        250 + path + bytes + version.node.as_ref().map_or(0, String::len)
    };
    let copies: usize = report.copies.iter().map(of_version).sum();
    report.path.len() + of_version(&report.shown) + copies
}

/// The one version that a word names: [`SHOWN`], a node's name, a copy's name, or the start of a hash.
fn chosen<'a>(conflict: &'a Conflict, word: &str) -> Result<&'a ConflictVersion, ControlError> {
    // A copy may be named by any path that leads to it.
    let name = word.rsplit('/').next().unwrap_or(word);
    let names = |(index, version): &(usize, &ConflictVersion)| {
        let hash = object_of(version).map(|object| object.content.to_string());
        (*index == 0 && word == SHOWN)
            || version.node.as_deref() == Some(word)
            || name_of(version).as_deref() == Some(name)
            || (word.len() >= HASH_DIGITS_MIN && hash.is_some_and(|hash| hash.starts_with(word)))
    };
    let mut named = conflict.versions().enumerate().filter(names);
    let problem = match (named.next(), named.next()) {
        (Some((_, version)), None) => return Ok(version),
        (Some(_), Some(_)) => "names more than one version",
        (None, _) => "names no version",
    };
    let choices: Vec<String> = conflict
        .versions()
        .enumerate()
        .map(|(index, version)| {
            let name = match index {
                0 => SHOWN.to_owned(),
                _ => name_of(version).map_or_else(String::new, |name| format!("{name:?}")),
            };
            let hash = object_of(version).map(|object| {
                let hash = object.content.to_string();
                hash.get(..HASH_DIGITS_SHOWN).unwrap_or(&hash).to_owned()
            });
            let told = version.node.iter().chain(&hash).cloned();
            format!("{name} ({})", told.collect::<Vec<_>>().join(", "))
        })
        .collect();
    Err(ControlError::wrong(format_args!(
        "{word:?} {problem}: there are {}",
        choices.join(", ")
    )))
}

fn name_of(version: &ConflictVersion) -> Option<String> {
    let (_, name) = version.path.as_ref()?.split()?;
    Some(String::from_utf8_lossy(name.as_bytes()).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        content::{ContentId, Object},
        manifest::{Entry, HybridTime, Shown, Timestamp},
    };

    fn version(path: &str, node: &str, content: u8) -> ConflictVersion {
        let object = Object {
            content: ContentId([content; 32]),
            size: 5,
        };
        ConflictVersion {
            path: TreePath::parse(path.as_bytes()).ok(),
            shown: Shown {
                entry: Entry::new(Kind::File(object), 0o644, 0, 0, Timestamp(0)),
                seen: Vec::new(),
                time: HybridTime(1_500_000_000),
                link: None,
            },
            writer: Some(WriterNumber(u64::from(content))),
            node: Some(node.to_owned()),
        }
    }

    fn conflict() -> Conflict {
        Conflict {
            path: TreePath::parse(b"d/x").unwrap(),
            shown: version("d/x", "attic", 0xab),
            copies: vec![
                version("d/x (conflict, cellar, 1)", "cellar", 0xac),
                version("d/x (conflict, attic, 0)", "attic", 0xad),
            ],
        }
    }

    #[test]
    fn a_version_is_chosen_by_each_of_its_names() {
        let conflict = conflict();
        for (word, copy) in [
            ("shown", None),
            ("x", None),
            ("abab", None),
            ("cellar", Some(0)),
            ("acac", Some(0)),
            ("x (conflict, cellar, 1)", Some(0)),
            ("/home/me/mnt/d/x (conflict, attic, 0)", Some(1)),
        ] {
            let expected = copy.map_or(&conflict.shown, |copy: usize| &conflict.copies[copy]);
            assert_eq!(chosen(&conflict, word).unwrap(), expected, "{word}");
        }
    }

    #[test]
    fn a_word_that_names_none_or_several_is_refused_with_the_choices() {
        let conflict = conflict();
        for (word, problem) in [
            ("attic", "names more than one"),
            ("nobody", "names no"),
            // So short a start of a hash is a slip.
            ("ab", "names no"),
            ("", "names no"),
        ] {
            let refused = chosen(&conflict, word).unwrap_err();
            assert!(refused.wrong);
            assert!(refused.message.contains(problem), "{refused}");
            for choice in ["shown (attic, abababababab)", "\"x (conflict, cellar, 1)\""] {
                assert!(refused.message.contains(choice), "{refused}");
            }
        }
    }

    #[test]
    fn paths_that_are_no_text_come_with_their_bytes() {
        let path = TreePath::parse(b"d/\xff").unwrap();
        let (text, bytes) = path_text(&path);
        assert_eq!(text, "d/\u{fffd}");
        assert_eq!(path_of(&bytes.unwrap()).unwrap(), path);
        assert_eq!(path_text(&TreePath::parse(b"d/x").unwrap()).1, None);
    }
}
