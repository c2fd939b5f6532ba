use proptest::prelude::*;

use super::*;

fn facts(kind: Kind) -> Facts {
    Facts {
        kind,
        mode: 0o644,
        owner: 0,
        group: 0,
        modified: Timestamp(0),
        changed: HybridTime(0),
        file: None,
        links: 1,
    }
}

fn file(size: u64) -> Facts {
    let mut object = crate::content::Object::empty();
    object.size = size;
    facts(Kind::File(object))
}

fn name(text: &str) -> Name {
    Name::new(text).expect("a name")
}

#[test]
fn a_number_is_the_same_after_a_restart() {
    let number_of = |first: &str| {
        let mut inodes = Inodes::new();
        let folder = inodes.resolve(ROOT, &name(first), facts(Kind::Directory));
        inodes.look(folder);
        inodes.resolve(folder, &name("file"), file(1))
    };
    assert_eq!(number_of("a"), number_of("a"));
    assert_ne!(number_of("a"), number_of("b"));
}

#[test]
fn a_rename_of_a_folder_moves_everything_below() {
    let mut inodes = Inodes::new();
    let folder = inodes.resolve(ROOT, &name("a"), facts(Kind::Directory));
    inodes.look(folder);
    let below = inodes.resolve(folder, &name("x"), file(1));
    inodes.look(below);
    inodes.rename((ROOT, &name("a")), (ROOT, &name("b")));
    assert_eq!(inodes.path(below), TreePath::parse(b"b/x").ok());
    assert_eq!(inodes.child(ROOT, &name("b")), Some(folder));
    inodes.check();
}

#[test]
fn a_file_that_changed_elsewhere_is_another_inode_and_a_folder_is_not() {
    let mut inodes = Inodes::new();
    let old = inodes.resolve(ROOT, &name("a"), file(1));
    inodes.look(old);
    let new = inodes.resolve(ROOT, &name("a"), file(2));
    inodes.look(new);
    assert_ne!(old, new);
    assert_eq!(inodes.path(old), None);
    assert_eq!(inodes.facts(old), Some(&file(1)), "still what it was");
    let folder = inodes.resolve(ROOT, &name("d"), facts(Kind::Directory));
    inodes.look(folder);
    let mut other = facts(Kind::Directory);
    other.mode = 0o700;
    assert_eq!(inodes.resolve(ROOT, &name("d"), other), folder);
    inodes.check();
}

#[derive(Clone, Debug)]
enum Step {
    Look(usize, usize, u64),
    Detach(usize, usize),
    Rename(usize, usize, usize, usize),
    Exchange(usize, usize, usize, usize),
    Forget(usize),
    Pin(usize),
    Unpin(usize),
}

fn step() -> impl Strategy<Value = Step> {
    let small = 0..4usize;
    prop_oneof![
        5 => (0..9usize, small.clone(), 0..3u64).prop_map(|(f, n, s)| Step::Look(f, n, s)),
        1 => (0..9usize, small.clone()).prop_map(|(f, n)| Step::Detach(f, n)),
        2 => (0..9usize, small.clone(), 0..9usize, small.clone())
            .prop_map(|(a, b, c, d)| Step::Rename(a, b, c, d)),
        1 => (0..9usize, small.clone(), 0..9usize, small)
            .prop_map(|(a, b, c, d)| Step::Exchange(a, b, c, d)),
        2 => (0..9usize).prop_map(Step::Forget),
        1 => (0..9usize).prop_map(Step::Pin),
        1 => (0..9usize).prop_map(Step::Unpin),
    ]
}

proptest! {
    #[test]
    fn memory_follows_what_is_held(steps in proptest::collection::vec(step(), 0..80)) {
        let mut inodes = Inodes::new();
        let mut looked: Vec<u64> = Vec::new();
        let mut pinned: Vec<u64> = Vec::new();
        let copy = name("a (conflict, attic, 2024-03-01 12.34.56)");
        let names = [name("a"), name("b"), name("c"), copy];
        for step in steps {
            let folder_at = |looked: &[u64], index: usize| -> u64 {
                looked.get(index).copied().unwrap_or(ROOT)
            };
            let is_folder = |inodes: &Inodes, number: u64| {
                inodes.facts(number).is_some_and(|facts| facts.kind == Kind::Directory)
            };
            match step {
                Step::Look(folder, at, size) => {
                    let folder = folder_at(&looked, folder);
                    if is_folder(&inodes, folder) {
                        let facts = if size == 0 { facts(Kind::Directory) } else { file(size) };
                        let number = inodes.resolve(folder, &names[at], facts);
                        inodes.look(number);
                        looked.push(number);
                    }
                }
                Step::Detach(folder, at) => {
                    inodes.detach(folder_at(&looked, folder), &names[at]);
                }
                Step::Rename(from, a, to, b) => {
                    let (from, to) = (folder_at(&looked, from), folder_at(&looked, to));
                    // Into itself is refused before it comes here.
                    let moved = inodes.child(from, &names[a]);
                    let mut above = Some(to);
                    let mut is_nested = false;
                    while let Some(at) = above {
                        is_nested |= Some(at) == moved;
                        above = inodes.parent(at);
                    }
                    let target = inodes.child(to, &names[b]);
                    let target_is_empty = !inodes.all_links().keys().any(|folder| Some(*folder) == target);
                    if is_folder(&inodes, to) && !is_nested && target_is_empty {
                        inodes.rename((from, &names[a]), (to, &names[b]));
                    }
                }
                Step::Exchange(from, a, to, b) => {
                    let (from, to) = (folder_at(&looked, from), folder_at(&looked, to));
                    let (one, two) = (inodes.child(from, &names[a]), inodes.child(to, &names[b]));
                    let mut is_nested = one.is_none() || two.is_none() || one == two;
                    for start in [from, to] {
                        let mut above = Some(start);
                        while let Some(at) = above {
                            is_nested |= Some(at) == one || Some(at) == two;
                            above = inodes.parent(at);
                        }
                    }
                    if !is_nested {
                        inodes.exchange((from, &names[a]), (to, &names[b]));
                    }
                }
                Step::Forget(index) => {
                    if index < looked.len() {
                        inodes.forget(looked.swap_remove(index), 1);
                    }
                }
                Step::Pin(index) => {
                    if let Some(number) = looked.get(index) {
                        inodes.pin(*number);
                        pinned.push(*number);
                    }
                }
                Step::Unpin(index) => {
                    if index < pinned.len() {
                        inodes.unpin(pinned.swap_remove(index));
                    }
                }
            }
            inodes.check();
            for number in looked.iter().chain(&pinned) {
                prop_assert!(inodes.facts(*number).is_some(), "what is held is there");
            }
        }
        for number in looked {
            inodes.forget(number, 1);
        }
        for number in pinned {
            inodes.unpin(number);
        }
        prop_assert_eq!(inodes.len(), 1, "only the root is left");
    }
}
