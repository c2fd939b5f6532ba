use proptest::prelude::*;

use super::*;
use crate::manifest::{
    CausalContext, Entry, InternalKey, Timestamp, TreePath, WriterNumber, empty_root,
    tree::testing::{
        self, Edits, Memory, directory, hex, key, many, one, path, unhex, version, versions,
    },
};

fn leaf() -> Vec<u8> {
    let row = |name: &str, sequence| {
        (
            key(name),
            versions([version(0x10, sequence, 9, directory())]),
        )
    };
    Versions::into_node(0, vec![row("a/b", 1), row("a/bc", 2)]).encode()
}

#[test]
fn golden_bytes() {
    assert_eq!(hex(&Node::empty().1.encode()), "83020080");
    assert_eq!(
        empty_root().to_string(),
        "fd4028a66a3370492994c09c0f3ac2cadaab890dcece331e9a8fce1405200ca4"
    );
    let entry = "a50001 081901e8 091903e8 0a1903e8 0b05";
    let expected = format!(
        "830200 82 83 00 44 2f610062 81 84 10 01 09 {entry} 83 04 41 63 81 84 10 02 09 {entry}"
    );
    assert_eq!(hex(&leaf()), expected.replace(' ', ""));

    let child = |byte, keys| Child {
        hash: NodeHash([byte; 32]),
        summary: Summary {
            keys,
            files: 2,
            bytes: 1000,
            conflicts: 1,
            newest: crate::manifest::HybridTime(9),
        },
    };
    let rows = vec![(key("a/b"), child(0xaa, 3)), (key("a/c"), child(0xbb, 4))];
    let inner = Child::into_node(1, rows);
    let expected = format!(
        "830201 82 88 00 44 2f610062 5820{} 03 02 1903e8 01 09 88 03 41 63 5820{} 04 02 1903e8 01 09",
        "aa".repeat(32),
        "bb".repeat(32)
    );
    assert_eq!(hex(&inner.encode()), expected.replace(' ', ""));
    assert_eq!(Node::decode(&inner.encode()).unwrap(), inner);
    assert_eq!(
        inner.children(),
        [NodeHash([0xaa; 32]), NodeHash([0xbb; 32])]
    );
    assert_eq!(inner.summary().keys, 7);
}

/// Keys of all kinds, in one leaf, with what they share written once.
#[test]
fn golden_bytes_of_keys() {
    let internal = |key: InternalKey| Key::of_internal(&key);
    let kind = |kind| Entry::new(kind, 0o644, 0, 0, Timestamp(0));
    let record = || kind(Kind::Record(vec![9]));
    let writer = Kind::Writer {
        peer: vec![1],
        node: "n".into(),
    };
    let Kind::File(content) = testing::file(0).kind else {
        panic!("a file is no file")
    };
    let content = crate::content::Object {
        content: crate::content::ContentId([0xab; 32]),
        ..content
    };
    let moved = Kind::Move {
        to: path("b"),
        seen: CausalContext::default(),
    };
    let rows = [
        (
            internal(InternalKey::Writer(WriterNumber(0x0102))),
            kind(writer),
        ),
        (
            internal(InternalKey::File([7; 16])),
            kind(Kind::File(content)),
        ),
        (internal(InternalKey::Move(path("a/b"))), kind(moved)),
        (internal(InternalKey::Snapshot(b"s 1".to_vec())), record()),
        (internal(InternalKey::Member(vec![1, 2])), record()),
        (internal(InternalKey::Policy(TreePath::root())), record()),
        (internal(InternalKey::Policy(path("a/b"))), record()),
        (internal(InternalKey::Folder(TreePath::root())), record()),
        (internal(InternalKey::Name([1; 16], path("a"))), record()),
        (internal(InternalKey::Unknown(9, Vec::new())), record()),
        (internal(InternalKey::Unknown(255, vec![0])), record()),
        (key("c"), kind(Kind::Fifo)),
        (key("c/d"), kind(Kind::Fifo)),
        (key("c/de"), kind(Kind::Fifo)),
        (key("c/d/e"), kind(Kind::Fifo)),
    ];
    let rows = rows.map(|(key, entry)| (key, versions([version(1, 1, 1, entry)])));
    let leaf = Versions::into_node(0, rows.to_vec()).encode();
    let expected = format!(
        "83 02 00 8f \
         83 00 4a 00010000000000000102 81 84010101 a3 0008 064101 07616e \
         83 01 51 02{} 81 84010101 a2 0000 025820{} \
         83 01 44 03612f62 81 84010101 a3 0009 0d4162 0ea0 \
         83 01 44 04732031 81 84010101 a2 000a 0f4109 \
         83 01 43 050102 81 84010101 a2 000a 0f4109 \
         83 01 41 06 81 84010101 a2 000a 0f4109 \
         83 02 43 612f62 81 84010101 a2 000a 0f4109 \
         83 01 41 07 81 84010101 a2 000a 0f4109 \
         83 01 52 08{}61 81 84010101 a2 000a 0f4109 \
         83 01 41 09 81 84010101 a2 000a 0f4109 \
         83 01 42 ff00 81 84010101 a2 000a 0f4109 \
         83 00 43 2f0063 81 84010101 a1 0003 \
         83 01 43 630064 81 84010101 a1 0003 \
         83 04 41 65 81 84010101 a1 0003 \
         83 02 44 2f640065 81 84010101 a1 0003",
        "07".repeat(16),
        "ab".repeat(32),
        "01".repeat(16),
    );
    assert_eq!(hex(&leaf), expected.replace(' ', ""));
    assert_eq!(Node::decode(&unhex(&expected)).unwrap().encode(), leaf);
}

/// Where nodes are cut is part of the format: this root must never change.
#[test]
fn golden_root() {
    let memory = Memory::default();
    let root = memory.build(&many(1_000));
    assert_eq!(
        root.to_string(),
        "467b8b84fa92ab85684be0c927acfd281f92deb382258a6eae85ea55440ab612"
    );
}

#[test]
fn what_starts_a_node_is_not_accepted_inside_of_one() {
    let started = (0..)
        .map(|n| key(&format!("n{n}")))
        .find(|key| levels_started(key) == 1);
    let started = started.unwrap();
    let rows = |first: &str| vec![(key(first), one(1)), (started.clone(), one(2))];
    let both = Versions::into_node(0, rows("a")).encode();
    assert!(Node::decode(&both).is_err());
    let alone = Versions::into_node(0, rows("a").split_off(1)).encode();
    assert!(Node::decode(&alone).is_ok());

    let mut large = directory();
    large.attributes.insert(b"a".to_vec(), vec![0; 2048]);
    let large = versions([version(1, 1, 1, large)]);
    let inside = vec![(key("a"), one(1)), (key("b"), large)];
    assert!(Node::decode(&Versions::into_node(0, inside).encode()).is_err());
}

#[test]
fn unordered_and_misshapen_nodes_are_refused() {
    let rows = vec![(key("b"), one(1)), (key("a"), one(1))];
    assert!(Node::decode(&Versions::into_node(0, rows).encode()).is_err());
    let twice = vec![(key("a"), one(1)), (key("a"), one(1))];
    assert!(Node::decode(&Versions::into_node(0, twice).encode()).is_err());
    assert!(Node::decode(&Child::into_node(1, Vec::new()).encode()).is_err());
    let child = Child {
        hash: NodeHash([1; 32]),
        summary: Summary::default(),
    };
    let level = |level| Child::into_node(level, vec![(key("a"), child.clone())]).encode();
    assert!(Node::decode(&level(LEVEL_MAX)).is_ok());
    assert!(Node::decode(&level(LEVEL_MAX + 1)).is_err());
    assert!(Node::decode(&vec![0; NODE_BYTES_MAX + 1]).is_err());
}

/// Each internal key has its kind, and no path has one of these.
#[test]
fn kinds_stand_under_their_own_keys_alone() {
    let kinds = [
        Kind::Writer {
            peer: vec![1],
            node: "n".into(),
        },
        Kind::Move {
            to: path("b"),
            seen: CausalContext::default(),
        },
        Kind::Record(vec![1]),
        testing::file(1).kind,
        Kind::Directory,
        Kind::Fifo,
        Kind::Link([1; 16]),
    ];
    let keys = [
        (
            Key::of_internal(&InternalKey::Writer(WriterNumber(1))),
            [0].as_slice(),
        ),
        (Key::of_internal(&InternalKey::Move(path("a"))), &[1]),
        (
            Key::of_internal(&InternalKey::Snapshot(b"s".to_vec())),
            &[2],
        ),
        (Key::of_internal(&InternalKey::Member(vec![1])), &[2]),
        (Key::of_internal(&InternalKey::Policy(path("a"))), &[2]),
        (Key::of_internal(&InternalKey::Folder(path("a"))), &[2]),
        (Key::of_internal(&InternalKey::Unknown(9, vec![1])), &[2]),
        (Key::of_internal(&InternalKey::File([1; 16])), &[3, 5]),
        (key("a"), &[3, 4, 5, 6]),
    ];
    for (key, admitted) in keys {
        for (index, kind) in kinds.iter().enumerate() {
            let entry = Entry::new(kind.clone(), 0o644, 0, 0, Timestamp(0));
            let row = versions([version(1, 1, 1, entry)]);
            let edits = Edits::from([(key.clone(), Some(row.clone()))]);
            let applied = crate::manifest::apply(&Memory::default(), empty_root(), &edits);
            let leaf = Versions::into_node(0, vec![(key.clone(), row)]).encode();
            let admitted = admitted.contains(&index);
            assert_eq!(Node::decode(&leaf).is_ok(), admitted, "{key:?} {kind:?}");
            assert_eq!(applied.is_ok(), admitted, "{key:?} {kind:?}");
        }
    }
    // Keys that no decoder takes are not put either.
    for bad in [
        InternalKey::Move(TreePath::root()),
        InternalKey::Snapshot(Vec::new()),
        InternalKey::Unknown(0, vec![1]),
    ] {
        let entry = Entry::new(kinds[2].clone(), 0o644, 0, 0, Timestamp(0));
        let row = versions([version(1, 1, 1, entry)]);
        let edits = Edits::from([(Key::of_internal(&bad), Some(row))]);
        let applied = crate::manifest::apply(&Memory::default(), empty_root(), &edits);
        assert!(matches!(applied, Err(TreeError::Bounds(..))), "{bad:?}");
    }
}

/// Few bytes that stand for long keys unfold only so far; and edits make no node that others would refuse.
#[test]
fn a_node_cannot_unfold_without_end() {
    let folder = ["f".repeat(250).as_str(); 15].join("/");
    let keys = (0..).map(|n| key(&format!("{folder}/{n:06}")));
    let keys = keys.filter(|key| levels_started(key) == 0);
    let rows = |count| {
        let rows = keys.clone().take(count).map(|key| (key, one(1)));
        Versions::into_node(0, rows.collect())
    };
    for (count, fits) in [(4_000, true), (5_000, false)] {
        let node = rows(count);
        let bytes = node.encode();
        assert!(bytes.len() < NODE_BYTES_MAX);
        assert_eq!(Node::decode(&bytes).is_ok(), fits);
        assert_eq!(node.is_within_bounds(&bytes), fits);
    }
    let edits: Edits = keys.take(5_000).map(|key| (key, Some(one(1)))).collect();
    let memory = Memory::default();
    let applied = crate::manifest::apply(&memory, Node::empty().0, &edits);
    assert!(matches!(applied, Err(TreeError::Bounds(..))));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1500))]

    /// Whatever is accepted is the one encoding of what it says; and nothing makes it panic.
    #[test]
    fn damaged_nodes_are_refused_or_canonical(
        place in any::<prop::sample::Index>(),
        byte in any::<u8>(),
        noise in prop::collection::vec(any::<u8>(), 0..80),
        which in 0_usize..8,
    ) {
        static NODES: LazyLock<Vec<Vec<u8>>> = LazyLock::new(|| {
            let memory = Memory::default();
            memory.build(&Edits::from_iter(many(500)));
            let mut nodes: Vec<_> = memory.nodes.take().into_values().collect();
            nodes.sort_by_key(Vec::len);
            nodes.truncate(7);
            nodes.push(leaf());
            nodes
        });
        let good = &NODES[which.min(NODES.len() - 1)];
        prop_assert!(Node::decode(good).is_ok());
        prop_assert!(Node::decode(&good[..place.index(good.len())]).is_err());
        let mut changed = good.clone();
        changed[place.index(good.len())] = byte;
        let mut inserted = good.clone();
        inserted.insert(place.index(good.len()), byte);
        let mut noisy = good[..place.index(good.len())].to_vec();
        noisy.extend(&noise);
        for bytes in [changed, inserted, noisy, noise] {
            if let Ok(node) = Node::decode(&bytes) {
                prop_assert_eq!(node.encode(), bytes);
            }
        }
    }
}
