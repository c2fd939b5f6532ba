use proptest::prelude::*;

use super::*;

fn path(text: &str) -> TreePath {
    TreePath::parse(text.as_bytes()).unwrap()
}
fn key(text: &str) -> Key {
    Key::of_path(&path(text)).unwrap()
}
fn any_name() -> impl Strategy<Value = Name> {
    // Bytes around `/` and the ends of the range, so that order and prefixes are put to the test.
    let byte = prop::sample::select(&[1_u8, b'!', b'-', b'.', b'0', b'a', 0xff][..]);
    prop::collection::vec(byte, 1..4).prop_filter_map("not a name", |bytes| Name::new(bytes).ok())
}
fn any_path() -> impl Strategy<Value = TreePath> {
    prop::collection::vec(any_name(), 0..5).prop_map(TreePath)
}
fn any_internal() -> impl Strategy<Value = InternalKey> {
    prop_oneof![
        any::<u64>().prop_map(|number| InternalKey::Writer(WriterNumber(number))),
        any::<[u8; 16]>().prop_map(InternalKey::File),
        any_path()
            .prop_filter("the root is not moved", |path| *path != TreePath::root())
            .prop_map(InternalKey::Move),
        prop::collection::vec(b' '..=b'~', 1..9).prop_map(InternalKey::Snapshot),
        prop::collection::vec(any::<u8>(), 1..9).prop_map(InternalKey::Member),
        any_path().prop_map(InternalKey::Policy),
        any_path().prop_map(InternalKey::Folder),
        (any::<[u8; 16]>(), any_path())
            .prop_filter("the root has no name", |(_, path)| *path
                != TreePath::root())
            .prop_map(|(file, path)| InternalKey::Name(file, path)),
        (9_u8.., prop::collection::vec(any::<u8>(), 0..9))
            .prop_map(|(tag, rest)| InternalKey::Unknown(tag, rest)),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn a_path_survives_its_key_and_its_text(path in any_path()) {
        prop_assert_eq!(&TreePath::parse(&path.to_bytes()).unwrap(), &path);
        if let Some(key) = Key::of_path(&path) {
            prop_assert_eq!(key.path(), Some(path.clone()));
            prop_assert_eq!(key.name(), path.names().last().cloned());
            prop_assert_eq!(key.internal(), None);
            prop_assert_eq!(Key::from_bytes(key.as_bytes().to_vec()), Ok(key));
        } else {
            prop_assert_eq!(path, TreePath::root());
        }
    }

    #[test]
    fn an_internal_key_is_no_path(internal in any_internal(), folder in any_path()) {
        let key = Key::of_internal(&internal);
        prop_assert_eq!(key.path(), None);
        prop_assert_eq!(key.name(), None);
        prop_assert_eq!(Key::from_bytes(key.as_bytes().to_vec()), Ok(key.clone()));
        prop_assert_eq!(key.internal(), Some(internal));
        for range in Key::below(&folder) {
            prop_assert!(!range.contains(&key.as_bytes().to_vec()));
        }
    }

    /// The ranges of a folder hold exactly what is in it, and its children stand in byte order of their names.
    #[test]
    fn ranges_hold_exactly_what_is_below(folder in any_path(), path in any_path(), start in any_name()) {
        let Some(key) = Key::of_path(&path) else { return Ok(()) };
        let bytes = key.as_bytes().to_vec();
        let (parent, name) = path.split().unwrap();
        let child = parent == folder;
        let below = path.is_within(&folder) && path != folder;
        prop_assert_eq!(Key::children_of(&folder).contains(&bytes), child);
        let ranges = Key::below(&folder).map(|range| range.contains(&bytes));
        prop_assert_eq!(ranges, [child, below && !child]);
        let starting = child && name.as_bytes().starts_with(start.as_bytes());
        let range = Key::children_starting(&folder, start.as_bytes());
        prop_assert_eq!(range.contains(&bytes), starting);
    }

    #[test]
    fn siblings_are_ordered_by_name(folder in any_path(), one in any_name(), other in any_name()) {
        let keys = [&one, &other].map(|name| Key::of_path(&folder.join(name).unwrap()).unwrap());
        prop_assert_eq!(keys[0].cmp(&keys[1]), one.cmp(&other));
    }

    #[test]
    fn moving_there_and_back_changes_nothing(from in any_path(), to in any_path(), path in any_path()) {
        match path.moved(&from, &to) {
            Some(moved) => {
                let moved = moved.unwrap();
                prop_assert!(moved.is_within(&to));
                prop_assert_eq!(moved.moved(&to, &from), Some(Ok(path)));
            }
            None => prop_assert!(!path.is_within(&from)),
        }
    }

    #[test]
    fn only_well_formed_bytes_are_keys(bytes in prop::collection::vec(any::<u8>(), 0..20)) {
        if let Ok(key) = Key::from_bytes(bytes) {
            let again = match (key.path(), key.internal()) {
                (Some(path), None) => Key::of_path(&path).unwrap(),
                (None, Some(internal)) => Key::of_internal(&internal),
                other => panic!("{other:?}"),
            };
            prop_assert_eq!(again, key);
        }
    }
}

#[test]
fn keys_look_as_documented() {
    assert_eq!(key("a/b/c").as_bytes(), b"/a/b\0c");
    assert_eq!(key("c").as_bytes(), b"/\0c");
    assert_eq!(Key::of_path(&TreePath::root()), None);
    let writer = Key::of_internal(&InternalKey::Writer(WriterNumber(0x0102)));
    assert_eq!(writer.as_bytes(), b"\0\x01\0\0\0\0\0\0\x01\x02");
    let file = Key::of_internal(&InternalKey::File([7; 16]));
    assert_eq!(
        file.as_bytes(),
        b"\0\x02\x07\x07\x07\x07\x07\x07\x07\x07\x07\x07\x07\x07\x07\x07\x07\x07"
    );
    for (internal, bytes) in [
        (InternalKey::Move(path("a/b")), &b"\0\x03a/b"[..]),
        (InternalKey::Snapshot(b"s 1".to_vec()), b"\0\x04s 1"),
        (InternalKey::Member(vec![1, 2]), b"\0\x05\x01\x02"),
        (InternalKey::Policy(TreePath::root()), b"\0\x06"),
        (InternalKey::Policy(path("a/b")), b"\0\x06a/b"),
        (InternalKey::Folder(TreePath::root()), b"\0\x07"),
        (InternalKey::Folder(path("a/b")), b"\0\x07a/b"),
        (
            InternalKey::Name([1; 16], path("a/b")),
            b"\0\x08\x01\x01\x01\x01\x01\x01\x01\x01\x01\x01\x01\x01\x01\x01\x01\x01a/b",
        ),
        (InternalKey::Unknown(9, vec![0]), b"\0\x09\0"),
    ] {
        assert_eq!(Key::of_internal(&internal).as_bytes(), bytes);
    }
}

#[test]
fn paths_are_read_and_printed() {
    assert_eq!(path("/a/b/"), path("a/b"));
    assert_eq!(path("//"), TreePath::root());
    assert_eq!(path("").to_string(), "/");
    assert_eq!(path("a/b").to_string(), "/a/b");
    let odd = TreePath::parse(b"a/\xff").unwrap();
    assert_eq!(odd.to_string(), "/a/\u{fffd}");
    for bad in ["a//b", "a/./b", "..", "a\0b"] {
        assert_eq!(TreePath::parse(bad.as_bytes()), Err(NameError::Forbidden));
    }
}

#[test]
fn lengths_are_bounded() {
    assert!(Name::new([b'n'; 255]).is_ok());
    assert_eq!(Name::new([b'n'; 256]), Err(NameError::TooLong));
    // 16 names of 255 bytes and 15 slashes are 4095 bytes.
    let names = [[b'n'; 255]; 16].join(&b'/');
    let longest = TreePath::parse(&names).unwrap();
    let one = Name::new("n").unwrap();
    assert_eq!(longest.join(&one), Err(NameError::TooLong));
    assert_eq!(
        longest.moved(&TreePath::root(), &path("ab")),
        Some(Err(NameError::TooLong))
    );
    assert_eq!(TreePath::parse(&[b'n'; 4097]), Err(NameError::TooLong));
    // A path of exactly 4096 bytes has the longest key.
    let (parent, _) = longest.split().unwrap();
    let full = parent.join(&Name::new([b'm'; 254]).unwrap()).unwrap();
    let full = full.join(&one).unwrap();
    let full_key = Key::of_path(&full).unwrap();
    assert!(Key::from_bytes(full_key.as_bytes().to_vec()).is_ok());
    let mut longer = b"/n/".to_vec();
    longer.extend(&full_key.as_bytes()[1..]);
    assert!(Key::from_bytes(longer).is_err());
    let moved = Key::of_internal(&InternalKey::Move(full.clone()));
    assert!(Key::from_bytes(moved.as_bytes().to_vec()).is_ok());
    // As one of several names of a file it has the longest of all.
    let named = Key::of_internal(&InternalKey::Name([1; 16], full));
    assert_eq!(named.as_bytes().len(), KEY_BYTES_MAX);
    assert!(Key::from_bytes(named.as_bytes().to_vec()).is_ok());
    let unknown = |length| [&[0, 9][..], &vec![1; length]].concat();
    assert!(Key::from_bytes(unknown(4096)).is_ok());
    assert_eq!(Key::from_bytes(unknown(4097)), Err(NameError::TooLong));
    let named = |tag: u8, length| [&[0, tag][..], &vec![b'n'; length]].concat();
    for (tag, longest) in [(4, 255), (5, 64)] {
        assert!(Key::from_bytes(named(tag, longest)).is_ok());
        assert!(Key::from_bytes(named(tag, longest + 1)).is_err());
    }
}

#[test]
fn malformed_keys_are_refused() {
    for bad in [
        &b""[..],
        b"/",
        b"/a",
        b"/\0",
        b"/a/\0b",
        b"//a\0b",
        b"/a\0b/c",
        b"/a\0b\0c",
        b"/..\0b",
        b"/a\0..",
        b"a\0b",
        b"\0\x01short",
        b"\0\x01",
        b"\0\x03",
        b"\0\x03/a",
        b"\0\x03a/",
        b"\0\x03a//b",
        b"\0\x03..",
        b"\0\x04",
        b"\0\x04a\nb",
        b"\0\x04\x7f",
        b"\0\x05",
        b"\0\x06/",
        b"\0\x06a/",
        b"\0\0",
        b"\0",
    ] {
        assert_eq!(
            Key::from_bytes(bad.to_vec()),
            Err(NameError::Forbidden),
            "{bad:?}"
        );
    }
}
