//! What stands in the manifest: nodes, versions of entries, keys, paths.

use std::collections::BTreeMap;

use p2pfs::manifest::{
    CausalContext, Entry, InternalKey, Key, Kind, Moved, Name, Node, NodeHash, Timestamp, TreePath,
    Version, Versions, merge_versions, shown,
};
use p2pfs::{
    content::{ContentId, Object},
    manifest::{Dot, HybridTime, WriterNumber},
};

use crate::{run_chosen, seed};

pub(crate) fn run(data: &[u8]) {
    run_chosen(data, &[node, versions, key, path]);
}

fn node(bytes: &[u8]) {
    if let Ok(node) = Node::decode(bytes) {
        assert_eq!(node.encode(), bytes);
        assert_eq!(node.children().is_empty(), node.level() == 0);
        let _ = (node.summary(), NodeHash::of(bytes));
    }
}

fn versions(bytes: &[u8]) {
    let Ok(versions) = Versions::decode(bytes) else {
        return;
    };
    assert_eq!(versions.encode(), bytes);
    let (first, others) = shown(&versions);
    let dots: usize = others.iter().map(|other| other.seen.len()).sum();
    assert_eq!(first.seen.len() + dots, versions.as_slice().len());
    let mut context = CausalContext::default();
    for version in versions.as_slice() {
        context.add(version.dot);
        assert!(version.entry.check().is_ok());
    }
    let both = Some(&versions);
    assert_eq!(
        merge_versions(both, &context, both, &context).as_ref(),
        both
    );
    // Who has seen them all and has none of them has deleted them.
    assert_eq!(merge_versions(both, &context, None, &context), None);
    assert_eq!(
        merge_versions(both, &context, None, &CausalContext::default()).as_ref(),
        both
    );
}

fn key(bytes: &[u8]) {
    let Ok(key) = Key::from_bytes(bytes.to_vec()) else {
        return;
    };
    assert_eq!(key.as_bytes(), bytes);
    match (key.path(), key.internal()) {
        (Some(path), None) => {
            assert_eq!(Key::of_path(&path).as_ref(), Some(&key));
            let (folder, name) = path.split().expect("the root has no key");
            assert_eq!(key.name().as_ref(), Some(name));
            let children = Key::children_of(&folder);
            assert!(children.contains(&bytes.to_vec()));
            assert_eq!(folder.join(name), Ok(path));
        }
        (None, Some(internal)) => assert_eq!(Key::of_internal(&internal), key),
        other => panic!("a key that is both or neither: {other:?}"),
    }
}

fn path(bytes: &[u8]) {
    if let Ok(path) = TreePath::parse(bytes) {
        let again = path.to_bytes();
        assert_eq!(TreePath::parse(&again).as_ref(), Ok(&path));
        if let Some(key) = Key::of_path(&path) {
            assert_eq!(Key::from_bytes(key.as_bytes().to_vec()), Ok(key));
        }
        let _ = path.to_string();
    }
    if let Ok(name) = Name::new(bytes) {
        assert_eq!(name.as_bytes(), bytes);
    }
}

fn version(writer: u64, sequence: u64, kind: Kind) -> Version {
    let modified = Timestamp(1_700_000_000_123_456_789);
    Version {
        dot: Dot {
            writer: WriterNumber(writer),
            sequence,
        },
        time: HybridTime(1_700_000_000_000_000_000 + sequence),
        entry: Entry::new(kind, 0o640, 1000, 1000, modified),
        moved: None,
    }
}

fn file(content: u8) -> Kind {
    Kind::File(Object {
        content: ContentId([content; 32]),
        size: 70_000,
    })
}

pub(crate) fn seeds() -> Vec<Vec<u8>> {
    let device = Kind::Device {
        block: true,
        number: 0x0801,
    };
    let mut moved = version(6, 1, file(3));
    moved.moved = TreePath::parse(b"old/name")
        .ok()
        .and_then(|from| Moved::new(from, &[moved.dot]));
    let mut tagged = version(2, 9, Kind::Symlink(b"../there".to_vec()));
    tagged.entry.attributes =
        BTreeMap::from([(b"mime_type".to_vec(), b"text/plain".to_vec())]).into();
    tagged.entry.unknown = BTreeMap::from([(200, vec![0x82, 1, 0x61, b'x'])]).into();
    let lists = [
        vec![version(1, 1, file(1))],
        vec![
            version(1, 2, Kind::Directory),
            version(2, 1, file(2)),
            version(3, 4, file(2)),
        ],
        vec![tagged, version(3, 1, device), version(4, 1, Kind::Fifo)],
        vec![version(1, 1, Kind::Link([4; 16]))],
        vec![moved],
        vec![version(1, 1, Kind::Record(b"a record".to_vec()))],
    ];
    let lists = lists.into_iter().filter_map(Versions::new);
    let of_path = |text: &[u8]| {
        TreePath::parse(text)
            .ok()
            .and_then(|path| Key::of_path(&path))
    };
    let folder = TreePath::parse(b"photos/2026").unwrap_or_default();
    let internal = [
        InternalKey::Writer(WriterNumber(77)),
        InternalKey::File([4; 16]),
        InternalKey::Move(folder.clone()),
        InternalKey::Snapshot(b"before".to_vec()),
        InternalKey::Member(vec![8; 38]),
        InternalKey::Policy(folder.clone()),
        InternalKey::Folder(folder.clone()),
        InternalKey::Name([4; 16], folder),
        InternalKey::Unknown(9, b"later".to_vec()),
    ];
    let keys = [of_path(b"a"), of_path(b"photos/2026/beach.jpg")];
    let keys = keys.into_iter().flatten();
    let keys = keys.chain(internal.iter().map(Key::of_internal));

    let mut seeds: Vec<_> = crate::tree::real_nodes()
        .iter()
        .map(|node| seed(0, node))
        .collect();
    seeds.extend(lists.map(|versions| seed(1, &versions.encode())));
    seeds.extend(keys.map(|key| seed(2, key.as_bytes())));
    seeds.push(seed(3, b"/photos/2026/beach.jpg"));
    seeds
}
