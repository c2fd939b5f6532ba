use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;
use crate::manifest::WriterNumber;

fn dot(sequence: u64) -> Dot {
    Dot {
        writer: WriterNumber(1),
        sequence,
    }
}

fn record(path: &str) -> JournalRecord {
    JournalRecord {
        path: path.into(),
        seen: vec![dot(1)],
        base: None,
        base_bytes: 0,
        size: 1,
        written: vec![(0, 1)],
        mode: 0o644,
        owner: 0,
        group: 0,
        modified: 0,
        attributes: Vec::new(),
        changed: None,
        is_new: false,
        bytes: None,
    }
}

fn step(by: u64, path: &str, over: &[u64]) -> Move {
    Move {
        by: dot(by),
        path: path.into(),
        seen: vec![dot(2)],
        over: over.iter().map(|id| StagingId(*id)).collect(),
    }
}

fn fate(moves: &[Move], ended: Option<u64>) -> Fate {
    Fate {
        moves: moves.to_vec(),
        ended: ended.map(dot),
        beside: None,
    }
}

/// Where files are taken up after a crash that kept heads up to one: path, staging files that it replaces or stands on.
fn places(left: &[Left], kept: u64) -> BTreeMap<String, (u64, Vec<u64>, Vec<u64>)> {
    let aftermath = sort_out(left.to_vec(), |by| by.sequence <= kept);
    let numbers = |ids: Vec<StagingId>| ids.into_iter().map(|id| id.0).collect();
    let unfinished = aftermath.unfinished.into_iter();
    unfinished
        .map(|file| {
            let path = String::from_utf8(file.record.path).unwrap();
            (
                path,
                (file.id.0, numbers(file.older), numbers(file.replaced)),
            )
        })
        .collect()
}

fn expected(places: &[(&str, u64, &[u64], &[u64])]) -> BTreeMap<String, (u64, Vec<u64>, Vec<u64>)> {
    let places = places.iter();
    places
        .map(|(path, id, older, replaced)| {
            ((*path).to_owned(), (*id, older.to_vec(), replaced.to_vec()))
        })
        .collect()
}

#[test]
fn a_file_is_where_the_last_head_has_it() {
    let left = [
        (
            StagingId(1),
            record("a"),
            fate(&[step(5, "b", &[]), step(6, "c", &[])], Some(7)),
        ),
        // What it replaced, in a head.
        (StagingId(2), record("b"), fate(&[], Some(5))),
    ];
    let at = |path| expected(&[(path, 1, &[], &[])]);
    assert_eq!(
        places(&left, 4),
        expected(&[("a", 1, &[], &[]), ("b", 2, &[], &[])])
    );
    assert_eq!(places(&left, 5), at("b"));
    assert_eq!(places(&left, 6), at("c"));
    assert_eq!(places(&left, 7), expected(&[]));
    let aftermath = sort_out(left.to_vec(), |by| by.sequence <= 5);
    assert_eq!(aftermath.unfinished[0].record.seen, [dot(1), dot(2)]);
}

#[test]
fn a_new_file_replaces_what_is_there_if_it_is_there_itself() {
    // The one that is replaced was made later.
    let replaced = (StagingId(9), record("b"), Fate::default());
    let new = (StagingId(3), record("a"), fate(&[step(5, "b", &[9])], None));
    let both = [replaced.clone(), new];
    assert_eq!(
        places(&both, 4),
        expected(&[("a", 3, &[], &[]), ("b", 9, &[], &[])])
    );
    assert_eq!(places(&both, 5), expected(&[("b", 3, &[], &[9])]));
    assert_eq!(places(&[replaced], 5), expected(&[("b", 9, &[], &[])]));
}

#[test]
fn of_several_records_for_a_name_the_newest_counts() {
    let left = [
        (StagingId(1), record("a"), Fate::default()),
        (StagingId(2), record("a"), Fate::default()),
    ];
    assert_eq!(places(&left, 0), expected(&[("a", 2, &[1], &[])]));
}

fn any_left() -> impl Strategy<Value = Vec<Left>> {
    let path = || prop::sample::select(vec!["a", "b", "c"]);
    let moves = prop::collection::btree_map(
        1..8u64,
        (path(), prop::collection::vec(0..6u64, 0..2)),
        0..3,
    );
    let one = (path(), moves, prop::option::of(1..9u64));
    prop::collection::vec(one, 0..6).prop_map(|all| {
        let all = all.into_iter().enumerate();
        all.map(|(id, (path, moves, ended))| {
            let moves: Vec<_> = moves
                .into_iter()
                .map(|(by, (path, over))| step(by, path, &over))
                .collect();
            (StagingId(id as u64), record(path), fate(&moves, ended))
        })
        .collect()
    })
}

proptest! {
    #[test]
    fn each_record_is_taken_up_once_or_done_with(left in any_left(), kept in 0..9u64) {
        let aftermath = sort_out(left.clone(), |by| by.sequence <= kept);
        let mut ids = aftermath.ended.clone();
        for file in &aftermath.unfinished {
            ids.push(file.id);
            ids.extend(&file.older);
            ids.extend(&file.replaced);
        }
        ids.sort_unstable();
        let all: Vec<_> = left.iter().map(|(id, ..)| *id).collect();
        prop_assert_eq!(ids, all);
        for (id, _, fate) in &left {
            let is_done = fate.ended.is_some_and(|by| by.sequence <= kept);
            prop_assert_eq!(aftermath.ended.contains(id), is_done);
        }
    }

    /// Should that process be killed in turn, heads of its own among those that are kept: the same files are in the same places.
    #[test]
    fn what_was_noted_of_heads_that_never_were_is_forgotten(left in any_left(), kept in 0..9u64) {
        let mut known: BTreeMap<_, _> = left
            .iter()
            .map(|(id, record, fate)| (*id, (record.clone(), fate.clone())))
            .collect();
        let first = sort_out(left.clone(), |by| by.sequence <= kept);
        for id in &first.ended {
            known.remove(id);
        }
        for (id, fate) in &first.fates {
            known.get_mut(id).unwrap().1 = fate.clone();
        }
        let left: Vec<_> = known
            .into_iter()
            .map(|(id, (record, fate))| (id, record, fate))
            .collect();
        let second = sort_out(left, |_| true);
        prop_assert_eq!(second.unfinished, first.unfinished);
        prop_assert_eq!(second.ended, []);
        prop_assert_eq!(second.fates, []);
    }
}

#[test]
fn what_stands_beside_a_later_file_of_its_name_is_taken_up_by_itself_and_after_that() {
    let beside = |id| Fate {
        beside: Some(StagingId(id)),
        ..Fate::default()
    };
    let left = [
        (StagingId(1), record("a"), beside(2)),
        (StagingId(2), record("a"), beside(2)),
        (StagingId(3), record("a"), beside(3)),
        (StagingId(4), record("a"), Fate::default()),
    ];
    let aftermath = sort_out(left.to_vec(), |_| false);
    assert_eq!(aftermath.fates, []);
    let unfinished = aftermath.unfinished.into_iter();
    let taken: Vec<_> = unfinished
        .map(|file| (file.id.0, file.older, file.is_beside))
        .collect();
    let expected = [
        (4, vec![], false),
        (2, vec![StagingId(1)], true),
        (3, vec![], true),
    ];
    assert_eq!(taken, expected);
}
