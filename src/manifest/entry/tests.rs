use proptest::prelude::*;

use super::*;

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
    let unknown = prop::collection::btree_map(13_u64.., item.prop_map(<[u8]>::to_vec), 0..3);
    let time = prop_oneof![Just(0), any::<i64>()];
    (any_kind(), mode, id(), id(), time, attributes, unknown).prop_map(
        |(kind, mode, owner, group, modified, attributes, unknown)| Entry {
            attributes,
            unknown,
            ..Entry::new(kind, mode, owner, group, Timestamp(modified))
        },
    )
}

fn any_version() -> impl Strategy<Value = Version> {
    (0_u64..4, 1_u64..4, any::<u64>(), any_entry()).prop_map(|(writer, sequence, time, entry)| {
        Version {
            dot: Dot {
                writer: WriterNumber(writer),
                sequence,
            },
            time: HybridTime(time),
            entry,
        }
    })
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
    let dot = Dot {
        writer: WriterNumber(1),
        sequence: 2,
    };
    let time = HybridTime(3);
    Versions::new(vec![Version { dot, time, entry }]).unwrap()
}
fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[test]
fn golden_bytes() {
    let plain = alone(Entry::implied_directory());
    assert_eq!(hex(&plain.encode()), "8184010203a10001");

    let mut full = file(1000);
    full.mode = 0o4755;
    full.owner = 1000;
    full.group = 100;
    full.modified = Timestamp(-2);
    full.attributes.insert(b"k".to_vec(), b"v".to_vec());
    full.unknown.insert(13, vec![0x81, 0x01]);
    let content = "ab".repeat(32);
    let expected = format!(
        "8184010203a9000001 1903e8 025820{content} 08 1909ed 091903e8 0a1864 0b21 0ca1416b4176 0d8101"
    );
    assert_eq!(hex(&alone(full).encode()), expected.replace(' ', ""));
}

#[test]
fn other_encodings_of_the_same_are_refused() {
    let decode = |text: &str| {
        let digits: Vec<_> = text.bytes().filter(|byte| *byte != b' ').collect();
        let bytes: Vec<_> = digits
            .chunks(2)
            .map(|pair| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap())
            .collect();
        Versions::decode(&bytes)
    };
    assert!(decode("81 84 01 02 03 a1 00 01").is_ok());
    for (bad, why) in [
        ("81 84 1801 02 03 a1 00 01", "a number in two bytes"),
        ("9f 84 01 02 03 a1 00 01 ff", "an indefinite length"),
        ("81 84 01 02 03 a2 00 01 08 1901ed", "a default spelled out"),
        ("81 84 01 02 03 a2 00 01 0c a0", "an empty map spelled out"),
        ("81 84 01 02 03 a2 00 01 04 01", "a field of another kind"),
        ("81 84 01 02 03 a2 00 01 00 01", "a field twice"),
        ("81 84 01 02 03 a2 09 01 00 01", "fields out of order"),
        ("81 84 01 02 03 a1 00 09", "an unknown kind"),
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
            "81 84 01 02 03 a2 00 01 0d 9f ff",
            "an indefinite unknown field",
        ),
        ("9b ffffffffffffffff", "a length that isn't there"),
        (
            "81 84 01 02 03 a2 00 01 0d bb 8000000000000000",
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
    assert!(!unknown(12, &[0x01]));
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
}

#[test]
fn a_write_replaces_what_it_saw_and_leaves_the_rest() {
    let version = |writer, sequence| Version {
        dot: Dot {
            writer: WriterNumber(writer),
            sequence,
        },
        time: HybridTime(1),
        entry: file(writer),
    };
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
