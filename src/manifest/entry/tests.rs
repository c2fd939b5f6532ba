use proptest::prelude::*;

use super::*;
use crate::manifest::tree::testing::{self, dot, hex, path, unhex};

pub(in crate::manifest) fn any_kind() -> impl Strategy<Value = Kind> {
    prop_oneof![
        (any::<[u8; 32]>(), prop_oneof![Just(0), 0..i64::MAX as u64]).prop_map(
            |(content, size)| {
                Kind::File(Object {
                    content: ContentId(content),
                    size,
                })
            }
        ),
        Just(Kind::Directory),
        prop::collection::vec(1_u8.., 1..40).prop_map(Kind::Symlink),
        Just(Kind::Fifo),
        Just(Kind::Socket),
        (any::<bool>(), prop_oneof![Just(0), any::<u32>()])
            .prop_map(|(block, number)| Kind::Device { block, number }),
        any::<[u8; 16]>().prop_map(Kind::Link),
        prop::collection::btree_map(any::<u64>(), 1_u64.., 0..3).prop_map(|seen| {
            let seen = seen
                .into_iter()
                .map(|(writer, sequence)| dot(writer, sequence));
            let mut context = CausalContext::default();
            seen.for_each(|dot| context.add(dot));
            Kind::Move {
                to: path("a/b"),
                seen: context,
            }
        }),
        prop::collection::vec(any::<u8>(), 0..20).prop_map(Kind::Record),
    ]
}

fn any_entry() -> impl Strategy<Value = Entry> {
    let id = || prop_oneof![Just(0), any::<u32>()];
    let mode = prop_oneof![Just(0o644), Just(0o755), Just(0o777), 0_u32..0o10000];
    let bytes = |length| prop::collection::vec(1_u8.., 1..length);
    let attributes = prop::collection::btree_map(bytes(9), bytes(20), 0..4);
    // An integer, a nested array, a map, text, a float.
    const ITEMS: [&[u8]; 4] = [
        &[0x18, 0x2a],
        &[0x82, 0x81, 0x40, 0xf6],
        &[0xa1, 0x01, 0x61, b'x'],
        &[0xfb, 0, 0, 0, 0, 0, 0, 0, 0],
    ];
    let item = prop::sample::select(&ITEMS[..]);
    let unknown = prop::collection::btree_map(16_u64.., item.prop_map(<[u8]>::to_vec), 0..3);
    let time = prop_oneof![Just(0), any::<i64>()];
    (any_kind(), mode, id(), id(), time, attributes, unknown).prop_map(
        |(kind, mode, owner, group, modified, attributes, unknown)| Entry {
            attributes: attributes.into(),
            unknown: unknown.into(),
            ..Entry::new(kind, mode, owner, group, Timestamp(modified))
        },
    )
}

fn any_version() -> impl Strategy<Value = Version> {
    let moved = prop::collection::btree_set((0_u64..4, 1_u64..4), 0..3);
    (0_u64..4, 1_u64..4, any::<u64>(), any_entry(), moved).prop_map(
        |(writer, sequence, time, entry, moved)| Version {
            moved: {
                let dots = moved.into_iter();
                let dots: Vec<_> = dots
                    .map(|(writer, sequence)| dot(writer, sequence))
                    .collect();
                Moved::new(path("a/b"), &dots)
            },
            ..testing::version(writer, sequence, time, entry)
        },
    )
}

fn any_versions() -> impl Strategy<Value = Versions> {
    prop::collection::vec(any_version(), 1..5).prop_map(|versions| Versions::new(versions).unwrap())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1000))]

    #[test]
    fn versions_survive_their_encoding(versions in any_versions()) {
        prop_assert_eq!(versions.check(), Ok(()));
        prop_assert_eq!(Versions::decode(&versions.encode()), Ok(versions));
    }

    #[test]
    fn their_order_and_doubles_do_not_matter(list in prop::collection::vec(any_version(), 1..6)) {
        let forth = Versions::new(list.clone()).unwrap();
        let back = Versions::new(list.iter().rev().chain(&list).cloned().collect()).unwrap();
        prop_assert_eq!(forth, back);
    }

    /// Whatever is accepted is the one encoding of what it says; and nothing makes it panic.
    #[test]
    fn damaged_bytes_are_refused_or_canonical(
        versions in any_versions(),
        place in any::<prop::sample::Index>(),
        byte in any::<u8>(),
        cut in any::<prop::sample::Index>(),
        noise in prop::collection::vec(any::<u8>(), 0..60),
    ) {
        let good = versions.encode();
        let mut changed = good.clone();
        changed[place.index(good.len())] = byte;
        let mut inserted = good.clone();
        inserted.insert(place.index(good.len()), byte);
        let cut = good[..cut.index(good.len())].to_vec();
        prop_assert!(Versions::decode(&cut).is_err());
        for bytes in [changed, inserted, noise] {
            if let Ok(versions) = Versions::decode(&bytes) {
                prop_assert_eq!(versions.encode(), bytes);
            }
        }
    }
}

fn file(size: u64) -> Entry {
    let content = ContentId([0xab; 32]);
    let kind = Kind::File(Object { content, size });
    Entry::new(kind, 0o644, 0, 0, Timestamp(0))
}
fn alone(entry: Entry) -> Versions {
    Versions::new(vec![testing::version(1, 2, 3, entry)]).unwrap()
}

/// Checks that versions have this encoding, and are what it decodes to.
fn is_encoded(versions: &Versions, text: &str) {
    assert_eq!(hex(&versions.encode()), text.replace(' ', ""));
    assert_eq!(Versions::decode(&unhex(text)).as_ref(), Ok(versions));
}

#[test]
fn golden_bytes_of_every_kind() {
    let content = "ab".repeat(32);
    let context = |dots: &[(u64, u64)]| {
        let mut context = CausalContext::default();
        for &(writer, sequence) in dots {
            context.add(dot(writer, sequence));
        }
        context
    };
    let device = |block, number| Kind::Device { block, number };
    let Kind::File(sized) = file(1000).kind else {
        panic!("a file is no file")
    };
    let empty = Object { size: 0, ..sized };
    for (kind, mode, fields) in [
        (Kind::File(empty), 0o644, format!("a2 0000 025820{content}")),
        (
            Kind::File(sized),
            0o644,
            format!("a3 0000 011903e8 025820{content}"),
        ),
        (Kind::Directory, 0o755, "a1 0001".into()),
        (
            Kind::Symlink(b"a/b".to_vec()),
            0o777,
            "a2 0002 0343612f62".into(),
        ),
        (Kind::Fifo, 0o644, "a1 0003".into()),
        (Kind::Socket, 0o644, "a1 0004".into()),
        (device(false, 0), 0o644, "a1 0005".into()),
        (device(false, 259), 0o644, "a2 0005 04190103".into()),
        (device(true, 8), 0o644, "a2 0006 0408".into()),
        (
            Kind::Link([7; 16]),
            0o644,
            format!("a2 0007 0550{}", "07".repeat(16)),
        ),
        (
            Kind::Writer {
                peer: vec![1, 2],
                node: "nö".into(),
            },
            0o644,
            "a3 0008 06420102 07636ec3b6".into(),
        ),
        (
            Kind::Move {
                to: path("c/d"),
                seen: context(&[]),
            },
            0o644,
            "a3 0009 0d43632f64 0ea0".into(),
        ),
        (
            Kind::Move {
                to: path("c"),
                seen: context(&[(1, 2), (u64::MAX, 300)]),
            },
            0o644,
            "a3 0009 0d4163 0ea2 0102 1bffffffffffffffff19012c".into(),
        ),
        (Kind::Record(Vec::new()), 0o644, "a2 000a 0f40".into()),
        (Kind::Record(vec![1; 3]), 0o644, "a2 000a 0f43010101".into()),
    ] {
        let entry = Entry::new(kind, mode, 0, 0, Timestamp(0));
        is_encoded(&alone(entry), &format!("81 84 01 02 03 {fields}"));
    }
}

#[test]
fn golden_bytes_of_every_optional_field() {
    let mut full = file(1000);
    full.mode = 0o4755;
    full.owner = 1000;
    full.group = 100;
    full.modified = Timestamp(-2);
    full.attributes.insert(b"k".to_vec(), b"v".to_vec());
    full.attributes.insert(b"kk".to_vec(), Vec::new());
    full.unknown.insert(16, vec![0x81, 0x01]);
    full.unknown.insert(300, vec![0xf6]);
    let content = "ab".repeat(32);
    is_encoded(
        &alone(full),
        &format!(
            "81 84 01 02 03 aa 0000 011903e8 025820{content} 081909ed 091903e8 0a1864 0b21 \
             0ca2416b4176426b6b40 108101 19012cf6"
        ),
    );
    // Modes that are none of the defaults of other kinds.
    let directory = |mode| alone(Entry::new(Kind::Directory, mode, 0, 0, Timestamp(1)));
    is_encoded(&directory(0o755), "81 84 01 02 03 a2 0001 0b01");
    is_encoded(&directory(0o644), "81 84 01 02 03 a3 0001 081901a4 0b01");
}

#[test]
fn golden_bytes_of_versions() {
    let version = |writer, sequence, time| {
        testing::version(writer, sequence, time, Entry::implied_directory())
    };
    let mut moved = version(1, 300, 3);
    moved.moved = Moved::new(path("a/b"), &[dot(9, 1), dot(1, 2), dot(1, 1), dot(1, 2)]);
    let list = vec![version(2, 1, u64::MAX), moved, version(1, 2, 3)];
    is_encoded(
        &Versions::new(list).unwrap(),
        "83 84 01 02 03 a10001 85 01 19012c 03 a10001 82 43612f62 83 820101 820102 820901 \
         84 02 01 1bffffffffffffffff a10001",
    );
}

#[test]
fn other_encodings_of_the_same_are_refused() {
    let decode = |text: &str| Versions::decode(&unhex(text));
    assert!(decode("81 84 01 02 03 a1 00 01").is_ok());
    for (bad, why) in [
        ("81 84 1801 02 03 a1 00 01", "a number in two bytes"),
        ("9f 84 01 02 03 a1 00 01 ff", "an indefinite length"),
        ("81 84 01 02 03 a2 00 01 08 1901ed", "a default spelled out"),
        ("81 84 01 02 03 a2 00 01 0c a0", "an empty map spelled out"),
        ("81 84 01 02 03 a2 00 01 04 01", "a field of another kind"),
        ("81 84 01 02 03 a2 00 01 00 01", "a field twice"),
        ("81 84 01 02 03 a2 09 01 00 01", "fields out of order"),
        ("81 84 01 02 03 a1 00 0b", "an unknown kind"),
        ("81 85 01 02 03 a1 00 01 80", "moved from nowhere"),
        ("81 85 01 02 03 a1 00 01 82 41 61 80", "moved from nothing"),
        (
            "81 85 01 02 03 a1 00 01 82 40 81 82 01 01",
            "moved from the root",
        ),
        (
            "81 85 01 02 03 a1 00 01 82 42 61 2f 81 82 01 01",
            "moved from a path with a slash behind",
        ),
        (
            "81 85 01 02 03 a1 00 01 82 41 61 82 82 01 02 82 01 01",
            "moved dots out of order",
        ),
        (
            "81 85 01 02 03 a1 00 01 82 41 61 82 82 01 01 82 01 01",
            "a moved dot twice",
        ),
        (
            "81 85 01 02 03 a1 00 01 82 41 61 81 82 01 00",
            "a moved sequence of 0",
        ),
        (
            "81 85 01 02 03 a1 00 01 82 41 61 81 81 01",
            "half a moved dot",
        ),
        (
            "81 86 01 02 03 a1 00 01 82 41 61 81 82 01 01 00",
            "a sixth part",
        ),
        ("81 83 01 02 03", "no entry"),
        (
            "81 84 01 02 03 a2 00 09 0d 41 61",
            "a move that saw nothing",
        ),
        (
            "81 84 01 02 03 a3 00 09 0d 42 2f 61 0e a0",
            "a move to a path with a slash in front",
        ),
        ("81 84 01 02 03 a3 00 09 0d 40 0e a0", "a move to the root"),
        (
            "81 84 01 02 03 a3 00 09 0d 41 61 0e a2 02 01 01 01",
            "a context out of order",
        ),
        (
            "81 84 01 02 03 a3 00 09 0d 41 61 0e a1 02 00",
            "a context with a 0",
        ),
        ("81 84 01 00 03 a1 00 01", "a sequence of 0"),
        ("81 84 01 02 03 a1 00 01 00", "bytes after the end"),
        ("80", "no version"),
        (
            "82 84 01 02 03 a1 00 01 84 01 02 04 a1 00 01",
            "a dot twice",
        ),
        (
            "82 84 02 02 03 a1 00 01 84 01 02 04 a1 00 01",
            "dots out of order",
        ),
        (
            "81 84 01 02 03 a2 00 01 0c a2 41 62 40 41 61 40",
            "attributes out of order",
        ),
        (
            "81 84 01 02 03 a2 00 01 10 9f ff",
            "an indefinite unknown field",
        ),
        ("9b ffffffffffffffff", "a length that isn't there"),
        (
            "81 84 01 02 03 a2 00 01 10 bb 8000000000000000",
            "an absurd map",
        ),
    ] {
        assert!(decode(bad).is_err(), "{why}");
    }
}

#[test]
fn bounds_are_kept() {
    let ok = |entry: Entry| {
        let checked = entry.check().is_ok();
        assert_eq!(Versions::decode(&alone(entry).encode()).is_ok(), checked);
        checked
    };
    let with = |change: &dyn Fn(&mut Entry)| {
        let mut entry = file(1);
        change(&mut entry);
        ok(entry)
    };
    assert!(with(&|_| ()));
    assert!(!with(&|entry| entry.mode = 0o10000));
    assert!(!ok(file(1 << 63)));
    let symlink = |target: &[u8]| {
        let kind = Kind::Symlink(target.to_vec());
        ok(Entry::new(kind, 0o777, 0, 0, Timestamp(0)))
    };
    assert!(symlink(&[b't'; 4095]));
    assert!(!symlink(&[b't'; 4096]));
    assert!(!symlink(b""));
    let attribute = |name: usize, value: usize| {
        with(&|entry| {
            entry.attributes.insert(vec![b'n'; name], vec![0; value]);
        })
    };
    assert!(attribute(255, 4096));
    assert!(!attribute(256, 0));
    assert!(!attribute(0, 0));
    assert!(!attribute(1, 4097));
    let attributes = |count: u8, value: usize| {
        with(&|entry| {
            entry.attributes = (1..=count).map(|n| (vec![n], vec![0; value])).collect();
        })
    };
    assert!(attributes(64, 255));
    assert!(!attributes(64, 256));
    assert!(!attributes(65, 0));
    let unknown = |field: u64, value: &[u8]| {
        with(&|entry| {
            entry.unknown.insert(field, value.to_vec());
        })
    };
    assert!(unknown(99, &[0x01]));
    assert!(!unknown(15, &[0x01]));
    assert!(!unknown(99, &[0x01, 0x01]));
    assert!(!unknown(99, &[0x82, 0x01]));
    let long = |length: u16| [&[0x59][..], &length.to_be_bytes(), &vec![0; length.into()]].concat();
    assert!(unknown(99, &long(4093)));
    assert!(!unknown(99, &long(4094)));
    let writer = |peer: usize, node: &str| {
        let (peer, node) = (vec![1; peer], node.to_owned());
        ok(Entry::new(
            Kind::Writer { peer, node },
            0o644,
            0,
            0,
            Timestamp(0),
        ))
    };
    assert!(writer(64, "node"));
    assert!(!writer(65, "node"));
    assert!(!writer(0, "node"));
    assert!(!writer(1, ""));
    assert!(!writer(1, "a\nb"));
    assert!(!writer(1, &"n".repeat(65)));
    let moving = |to: &str, writers: u64| {
        let mut seen = CausalContext::default();
        (0..writers).for_each(|writer| seen.add(dot(writer, 1)));
        let kind = Kind::Move { to: path(to), seen };
        ok(Entry::new(kind, 0o644, 0, 0, Timestamp(0)))
    };
    assert!(moving("a", 4096));
    assert!(!moving("a", 4097));
    assert!(!moving("", 1));
    let record = |length: usize| {
        let kind = Kind::Record(vec![0; length]);
        ok(Entry::new(kind, 0o644, 0, 0, Timestamp(0)))
    };
    assert!(record(16 * 1024));
    assert!(!record(16 * 1024 + 1));
    let dots: Vec<_> = (1..=17).map(|sequence| dot(1, sequence)).collect();
    assert!(Moved::new(path("a"), &dots[..16]).is_some());
    assert!(Moved::new(path("a"), &dots).is_none());
    assert!(Moved::new(path("a"), &[]).is_none());
    assert!(Moved::new(path(""), &dots[..1]).is_none());
    let mut version = testing::version(1, 1, 1, file(1));
    version.moved = Moved::new(path("a"), &[dot(1, 0)]);
    assert!(Versions::new(vec![version]).unwrap().check().is_err());
    let mut seventeen = unhex("81 85 01 02 03 a1 00 01 82 41 61 91");
    (1..=17).for_each(|sequence| seventeen.extend([0x82, 1, sequence]));
    assert!(Versions::decode(&seventeen).is_err());
}

#[test]
fn a_write_replaces_what_it_saw_and_leaves_the_rest() {
    let version = |writer, sequence| testing::version(writer, sequence, 1, file(writer));
    let two = Versions::new(vec![version(1, 1), version(2, 1)]).unwrap();
    let seen = [version(1, 1).dot];
    let written = Versions::replace(Some(&two), &seen, Some(version(3, 1))).unwrap();
    assert_eq!(written.as_slice(), [version(2, 1), version(3, 1)]);
    let deleted = Versions::replace(Some(&two), &seen, None).unwrap();
    assert_eq!(deleted.as_slice(), [version(2, 1)]);
    let seen = [version(1, 1).dot, version(2, 1).dot];
    assert_eq!(Versions::replace(Some(&two), &seen, None), None);
    assert_eq!(Versions::replace(None, &[], None), None);
    let made = Versions::replace(None, &seen, Some(version(1, 9))).unwrap();
    assert_eq!(made.as_slice(), [version(1, 9)]);
}
