use proptest::prelude::*;

use super::*;
use crate::cluster::testing;

const GOLDEN_READ_WRITE: &str =
    "p2pfsrw1qqqqzqsrqszsvpcgpy9qkrqdpc83qygjzv2p29shrqv35xcur50p7upxehh";
const GOLDEN_READ_ONLY: &str =
    "p2pfsro1qqp6zpal708pp0sawrw33e6tczvk0exkxzd62r2lrhwgveqj25cmsva9zch";
const GOLDEN_TOPIC: &str = "cac81182dcc4266d4dd404b22d25d767b37c01ec3e6ab221aa5296dc9d4db4b1";

fn parse(text: &str) -> Result<ParsedCluster, String> {
    text.parse().map_err(|error: IdError| error.to_string())
}

fn replace(text: &str, index: usize, by: char) -> String {
    let mut characters: Vec<char> = text.chars().collect();
    characters[index] = by;
    characters.into_iter().collect()
}

#[test]
fn ids_and_topic_are_what_they_always_were() {
    let id = testing::id();
    assert_eq!(id.to_string(), GOLDEN_READ_WRITE);
    assert_eq!(id.read_only().to_string(), GOLDEN_READ_ONLY);
    assert_eq!(id.keys().topic().to_string(), GOLDEN_TOPIC);
}

#[test]
fn both_ids_name_the_same_cluster_with_different_rights() {
    let id = testing::id();
    let reader = id.read_only();
    assert_eq!(
        (id.role(), reader.role()),
        (Role::ReadWrite, Role::ReadOnly)
    );
    assert_eq!(reader.keys().role(), Role::ReadOnly);
    assert_eq!(reader.keys().topic(), id.keys().topic());
    assert_eq!(reader.read_only(), reader);
    let content = crate::content::hash_bytes(b"x");
    assert_eq!(
        reader.keys().sealed_content_key(&content),
        id.keys().sealed_content_key(&content)
    );
    assert_ne!(testing::other_keys().topic(), id.keys().topic());
}

#[test]
fn debug_output_has_no_secrets() {
    let id = testing::id();
    let text = id.to_string();
    let parsed = parse(&format!("{text}@tracker")).unwrap();
    let shown = format!("{id:?} {parsed:?} {:?}", id.keys());
    assert!(!shown.contains(&text[8..20]), "{shown}");
    assert!(!shown.contains("00, 1, 2"), "{shown}");
    assert!(shown.contains(GOLDEN_TOPIC) && shown.contains("ReadWrite"));
}

#[test]
fn surrounding_space_and_upper_case_are_accepted() {
    for id in [testing::id(), testing::id().read_only()] {
        let text = id.to_string();
        for written in [
            text.clone(),
            format!(" {text}\n"),
            text.to_uppercase(),
            format!("{text} "),
        ] {
            assert_eq!(parse(&written).unwrap().id, id);
        }
    }
}

#[test]
fn trackers_follow_the_id() {
    let id = testing::id();
    let parsed = parse(&format!("{id}@one.example:4100, two.example")).unwrap();
    assert_eq!(parsed.id, id);
    assert_eq!(parsed.trackers, ["one.example:4100", "two.example"]);
    assert_eq!(parse(&id.to_string()).unwrap().trackers, [""; 0]);
    for end in ["@", "@,", "@one,", "@,one", "@one,,two", "@ "] {
        let error = parse(&format!("{id}{end}")).unwrap_err();
        assert!(error.contains("tracker's address is missing"), "{error}");
    }
}

#[test]
fn errors_say_what_is_wrong() {
    let text = testing::id().to_string();
    for (written, part) in [
        (String::new(), "starts with p2pfsrw1 or p2pfsro1"),
        ("notes".into(), "starts with p2pfsrw1 or p2pfsro1"),
        (text[1..].into(), "starts with p2pfsrw1 or p2pfsro1"),
        (text[..60].into(), "has 67 characters, this one has 60"),
        (format!("{text}q"), "this one has 68"),
        (
            replace(&text, 11, 'b'),
            "character 12 of the cluster id, 'b',",
        ),
        (
            replace(&text, 66, '1'),
            "character 67 of the cluster id, '1',",
        ),
        (
            replace(&text, 20, 'ä'),
            "character 21 of the cluster id, 'ä',",
        ),
        (replace(&text, 0, 'P'), "mixes upper and lower case"),
        (replace(&text, 6, 'o'), "compare character 7 "),
    ] {
        let error = parse(&written).unwrap_err();
        assert!(error.contains(part), "{written}: {error}");
    }
}

#[test]
fn an_id_of_a_later_version_asks_for_an_update() {
    let hrp = Hrp::parse("p2pfsrw").unwrap();
    let later = bech32::encode::<Bech32m>(hrp, &[1; 33]).unwrap();
    assert!(parse(&later).unwrap_err().contains("newer version"));
}

#[test]
fn only_one_string_is_an_id() {
    // The spare bit of the last data character, under a valid checksum; and the older checksum.
    use bech32::primitives::iter::{ByteIterExt, Fe32IterExt};
    let hrp = Hrp::parse("p2pfsrw").unwrap();
    let mut symbols: Vec<_> = [0u8; 33].iter().copied().bytes_to_fes().collect();
    symbols[52] = bech32::Fe32::P;
    let odd: String = symbols
        .into_iter()
        .with_checksum::<Bech32m>(&hrp)
        .chars()
        .collect();
    assert_eq!(odd.len(), ID_CHARS);
    assert!(parse(&odd).unwrap_err().contains("canonical"));
    let old = bech32::encode::<bech32::Bech32>(hrp, &[0; 33]).unwrap();
    assert!(parse(&old).is_err());
}

proptest! {
    #[test]
    fn any_secret_survives_being_written(secret: [u8; 32]) {
        let id = ClusterId::generate(secret);
        prop_assert_eq!(parse(&id.to_string()).unwrap().id, id.clone());
        prop_assert_eq!(parse(&id.read_only().to_string()).unwrap().id, id.read_only());
    }

    #[test]
    fn a_typo_is_found_and_named(secret: [u8; 32], index in 8..67usize, by in 0..32usize) {
        let text = ClusterId::generate(secret).to_string();
        let by = CHARSET.chars().nth(by).unwrap();
        prop_assume!(text.chars().nth(index) != Some(by));
        let error = parse(&replace(&text, index, by)).unwrap_err();
        prop_assert!(error.contains(&format!("character {} ", index + 1)), "{}", error);
    }

    #[test]
    fn any_text_is_refused_without_panic(text: String, tail in "[ -~é]{0,70}") {
        prop_assert!(parse(&text).is_err());
        let like_an_id = format!("p2pfsrw1{tail}");
        prop_assert!(parse(&like_an_id).is_err());
        let _ = text.parse::<ClusterName>();
    }
}

#[test]
fn names_are_plain_words_that_cannot_be_taken_for_ids_or_options() {
    for good in ["a", "notes", "Team_2.old-copy", "p2pfs", &"x".repeat(64)] {
        assert_eq!(good.parse::<ClusterName>().unwrap().as_str(), good);
    }
    for bad in [
        "",
        ".hidden",
        "-v",
        "a b",
        "a/b",
        "ä",
        "p2pfsrw1x",
        "P2PFSRO1X",
        &"x".repeat(65),
    ] {
        assert!(bad.parse::<ClusterName>().is_err(), "{bad}");
    }
}

#[test]
fn a_cluster_without_a_name_is_called_after_its_topic() {
    let name = ClusterName::default_for(&testing::keys().topic());
    assert_eq!(name.to_string(), format!("cluster-{}", &GOLDEN_TOPIC[..8]));
    assert_eq!(name.to_string().parse(), Ok(name));
}
