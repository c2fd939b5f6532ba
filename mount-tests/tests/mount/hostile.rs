//! Writers who publish what no writer may: heads whose trees are not trees, or come from another time.

use p2pfs::{
    cluster::{ClusterKeys, Head},
    content::{ContentId, Object},
    manifest::{HybridTime, NodeHash, empty_root},
};
use p2pfs_mount_tests::{LONG, Mount, SOON, until};

use super::{
    attacker::now_ns,
    member::{Member, play},
    pair,
    security::keys,
};

const HOUR_NS: u64 = 3600 * 1_000_000_000;

/// What a writer does wrong.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Wrong {
    /// The root is no node.
    Garbage,
    /// It says that it has more rows than there are bytes.
    Count,
    /// A child stands under a row that it doesn't belong to.
    Misplaced,
    /// A row says of its child what isn't so.
    Summary,
    /// Keys are not in order.
    Order,
    /// A name leads out of its folder.
    DotDot,
    /// A name has a slash in it.
    Slash,
    /// A file is larger than files can be.
    Size,
    /// Entries are newer than the head that brings them.
    Newer,
    /// The head comes from tomorrow.
    Future,
}

/// Those that their author's mount can be told by its root alone, or by its head.
const ALL: [Wrong; 9] = [
    Wrong::Garbage,
    Wrong::Count,
    Wrong::Misplaced,
    Wrong::Order,
    Wrong::DotDot,
    Wrong::Slash,
    Wrong::Size,
    Wrong::Newer,
    Wrong::Future,
];

fn file(size: u64) -> Object {
    Object {
        content: ContentId([7; 32]),
        size,
    }
}

/// The bytes with one place changed.
fn patched(mut bytes: Vec<u8>, from: &[u8], to: &[u8]) -> Vec<u8> {
    assert_eq!(from.len(), to.len());
    let found = bytes.windows(from.len()).position(|part| part == from);
    let at = found.unwrap_or_else(|| panic!("{from:?} is not in {bytes:?}"));
    bytes[at..at + to.len()].copy_from_slice(to);
    bytes
}

/// A head that is signed as it should be, for what is wrong.
fn bad_head(member: &mut Member, wrong: Wrong) -> Head {
    let now = HybridTime(now_ns());
    let later = HybridTime(now.0 + HOUR_NS);
    let genuine = member.newest().root;
    let small = |member: &Member, files: &[(&str, Object)]| {
        let root = member.add(empty_root(), files, now);
        member.node(&root)
    };
    // The root of the genuine tree has rows of (first key, hash, keys, …).
    let root = member.node(&genuine);
    let children = p2pfs::manifest::Node::decode(&root).unwrap().children();
    let bytes = match wrong {
        Wrong::Garbage => b"neither a leaf nor an inner node".to_vec(),
        Wrong::Count => [&[0x83, 1, 0, 0x9b][..], &[0xff; 8]].concat(),
        Wrong::Misplaced => patched(root, &children[1].0, &children[2].0),
        Wrong::Summary => {
            let hash = &children[1].0;
            let at = root.windows(32).position(|part| part == hash).unwrap() + 32;
            let mut bytes = root;
            // The low byte of the number of keys, which takes two bytes or three.
            let low = at + usize::from(bytes[at] - 0x17);
            bytes[low] ^= 1;
            bytes
        }
        Wrong::Order => patched(
            small(member, &[("ma", file(1)), ("nb", file(2))]),
            b"nb",
            b"aa",
        ),
        Wrong::DotDot => patched(small(member, &[("zz", file(1))]), b"zz", b".."),
        Wrong::Slash => patched(small(member, &[("zz", file(1))]), b"zz", b"z/"),
        Wrong::Size => {
            let size = 1u64 << 62;
            let bytes = small(member, &[("huge", file(size))]);
            patched(bytes, &size.to_be_bytes(), &u64::MAX.to_be_bytes())
        }
        Wrong::Newer => {
            let root = member.add(genuine, &[("from tomorrow", Object::empty())], later);
            return member.sign(root, now);
        }
        Wrong::Future => return member.sign(genuine, HybridTime(now.0 + 24 * HOUR_NS)),
    };
    let root = member.serve(bytes);
    member.sign(root, now)
}

/// A writer that publishes a bad head at one mount, and serves what belongs to it.
async fn publish(address: String, keys: ClusterKeys, wrong: Wrong) -> Member {
    let mut member = Member::join(&address, keys).await;
    let head = bad_head(&mut member, wrong);
    let base: NodeHash = member.newest().root;
    member.show(&head);
    member.push(&head, base).await;
    member
}

fn names(mount: &Mount) -> Vec<String> {
    mount.list("").unwrap()
}

/// How often the log of a mount says that a head, or what came with one, was refused.
fn refusals(mount: &Mount) -> usize {
    let logs = mount.host().logs().into_iter();
    let texts = logs.map(|log| std::fs::read(log).unwrap());
    let counts = texts.map(|text| {
        let text = String::from_utf8_lossy(&text);
        text.lines()
            .filter(|line| line.contains("was refused"))
            .count()
    });
    counts.sum()
}

#[test]
fn heads_of_bad_trees_stop_nobody_and_show_nothing() {
    stop_nobody(&ALL);
}

#[test]
fn a_tree_that_lies_about_what_is_below_stops_nobody() {
    stop_nobody(&[Wrong::Summary]);
}

fn stop_nobody(heads: &[Wrong]) {
    let pair = pair();
    // Enough for a tree of two levels.
    pair.a.with_within(LONG, "folder", |dir| {
        std::fs::create_dir(dir).unwrap();
        for number in 0..600 {
            std::fs::write(dir.join(format!("{number:03}")), "").unwrap();
        }
    });
    pair.a.publishes_within(LONG);
    until(LONG, "both have the folder", || {
        pair.b.list("folder").is_ok_and(|names| names.len() == 600)
    });
    let e = pair.lab.host("e");
    let mut expected = vec!["folder".to_owned()];
    for (number, wrong) in heads.iter().copied().enumerate() {
        println!("{wrong:?}");
        let (member, address) = (keys(&pair.id), pair.a.multiaddr());
        let before = refusals(&pair.a);
        let _bad = play(&e, move || publish(address, member, wrong));
        until(LONG, "the head has come, and is refused", || {
            refusals(&pair.a) > before
        });
        let (by_a, by_b) = (format!("{number} by a"), format!("{number} by b"));
        pair.a.write(&by_a, "good");
        pair.b.shows(&by_a, "good");
        pair.b.write(&by_b, "good");
        pair.a.shows(&by_b, "good");
        expected.extend([by_a, by_b]);
        expected.sort();
        for mount in [&pair.a, &pair.b] {
            assert_eq!(
                names(mount),
                expected,
                "{wrong:?} at {}",
                mount.host().name()
            );
            assert_eq!(mount.list("folder").unwrap().len(), 600);
        }
        until(SOON, "both agree", || {
            pair.a.status()["manifest"]["hash"] == pair.b.status()["manifest"]["hash"]
        });
    }
    // Who made a bad tree and showed it is named to whoever asks.
    let peers = pair.a.json("peers");
    let mut listed = peers.as_array().unwrap().iter();
    assert!(
        listed.any(|peer| peer["blamed"]["reason"].is_string()),
        "{peers}"
    );
    // Somebody who comes now, and is told of all heads, sees the same.
    let c = pair.another("c", "");
    until(LONG, "a newcomer sees the folder", || {
        c.list("").is_ok_and(|names| names == expected)
    });
}
