//! One member by itself.

use super::*;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_folder_that_nobody_has_seen_is_an_error_and_not_empty() {
    let cluster = Cluster::new();
    let a = cluster.member("a");
    assert!(!a.ns.has_head());
    assert!(matches!(a.ns.get(&at("x")), Err(NamespaceError::NoHead)));
    assert!(!a.ns.wait_head(Duration::from_millis(5)).await);
    let head = a.ns.create().unwrap();
    assert!(head.covers.is_empty());
    assert_eq!(head.root, manifest::empty_root());
    assert!(a.ns.wait_head(Duration::from_secs(5)).await);
    assert!(a.ns.create().is_err(), "once only");
    assert_eq!(a.everything().await, []);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn changes_are_seen_at_once_and_kept_across_a_restart() {
    let cluster = Cluster::new();
    let a = cluster.member("a");
    a.ns.create().unwrap();
    a.change("d", Some(directory()));
    a.change("d/x", Some(file(1)));
    a.change("e/deep/y", Some(file(2)));
    assert!(a.shows("d/x", 1).await);
    assert_eq!(a.look("e").await, Some(Shown::implied_directory()));
    let names = |found: Vec<(String, Kind)>| found.into_iter().map(|found| found.0);
    let expected = ["/d", "/e", "/d/x", "/e/deep", "/e/deep/y"];
    assert_eq!(names(a.everything().await).collect::<Vec<_>>(), expected);
    a.ns.flush().await.unwrap();
    assert_eq!(a.ns.status().unpublished, 0);
    assert_eq!(names(a.everything().await).collect::<Vec<_>>(), expected);
    let (root, heads) = (a.root(), a.ns.heads());
    drop(a);
    let a = cluster.member("a");
    assert_eq!((a.root(), a.ns.heads()), (root, heads));
    assert!(a.shows("d/x", 1).await);
    a.remove("d/x").await;
    a.remove("d").await;
    assert_eq!(a.look("d/x").await, None);
    assert_eq!(a.look("d").await, None);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_changes_of_one_call_are_in_one_head() {
    let cluster = Cluster::new();
    let a = cluster.member("a");
    a.ns.create().unwrap();
    a.write("old", 1).await;
    let mut published = a.ns.published();
    let seen = a.look("old").await.unwrap().seen;
    let edit = |path, entry, seen| Edit {
        path: at(path),
        entry,
        seen,
        held: false,
        written: None,
        moved: None,
    };
    a.ns.change(vec![
        edit("new", Some(file(1)), Vec::new()),
        edit("old", None, seen),
    ])
    .unwrap();
    a.ns.flush().await.unwrap();
    let published = published.recv().await.unwrap();
    assert_eq!(published.head.root, a.root());
    let Push::Manifest {
        changes: Some(changes),
        ..
    } = &published.push
    else {
        panic!("small changes are in the push");
    };
    // The two, and the record of the folder that they are in.
    assert_eq!(changes.len(), 3);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn held_files_are_visible_here_but_not_published() {
    let cluster = Cluster::new();
    let a = cluster.member("a");
    a.ns.create().unwrap();
    let edit = |held| Edit {
        path: at("x"),
        entry: Some(file(1)),
        seen: Vec::new(),
        held,
        written: None,
        moved: None,
    };
    a.edit(edit(true));
    a.write("y", 2).await;
    assert!(a.shows("x", 1).await);
    assert_eq!(a.ns.status().unpublished, 1);
    let tree = |path| {
        let view = manifest::View::of(a.root());
        manifest::lookup(&a.ns.shared.replica.nodes, &view, &at(path)).unwrap()
    };
    assert!(tree("x").is_none() && tree("y").is_some());
    a.edit(edit(false));
    a.ns.flush().await.unwrap();
    assert!(tree("x").is_some());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_writer_that_saw_the_file_before_its_own_last_commit_makes_no_conflict() {
    let cluster = Cluster::new();
    let a = cluster.member("a");
    a.ns.create().unwrap();
    let edit = |content, seen: &[Dot]| Edit {
        path: at("x"),
        entry: Some(file(content)),
        seen: seen.to_vec(),
        held: false,
        written: None,
        moved: None,
    };
    for content in 1..4 {
        a.edit(edit(content, &[]));
        a.ns.flush().await.unwrap();
    }
    let seen = a.look("x").await.unwrap().seen;
    assert_eq!(seen.len(), 1);
    for content in 4..7 {
        a.edit(edit(content, &seen));
        a.ns.flush().await.unwrap();
    }
    assert!(a.shows("x", 6).await);
    assert_eq!(a.everything().await.len(), 1);
    assert_eq!(a.ns.status().conflicts, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_change_during_a_commit_follows_on_from_it() {
    let cluster = Cluster::new();
    let a = cluster.member("a");
    a.ns.create().unwrap();
    for content in 0..200 {
        a.change("x", Some(file(content)));
        tokio::time::sleep(Duration::from_micros(500)).await;
    }
    a.ns.flush().await.unwrap();
    assert!(a.shows("x", 199).await);
    assert_eq!(a.everything().await.len(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_comes_while_the_committer_waits_for_its_pace_is_committed_with_the_rest() {
    let cluster = Cluster::new();
    let a = cluster.member("a");
    a.ns.create().unwrap();
    // More than may go at once.
    for content in 0..20 {
        a.write("x", content).await;
    }
    for content in 0..4 {
        a.change("y", Some(file(content)));
        tokio::time::sleep(Duration::from_millis(20)).await;
        a.change("z", Some(file(content)));
        until("both are published", async || {
            a.ns.status().unpublished == 0
        })
        .await;
    }
    // Who hurries doesn't wait for it.
    a.change("y", Some(file(4)));
    tokio::time::sleep(Duration::from_millis(20)).await;
    let begun = std::time::Instant::now();
    a.ns.flush().await.unwrap();
    assert!(begun.elapsed() < Duration::from_secs(1));
    assert!(a.shows("y", 4).await && a.shows("z", 3).await);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_sequence_that_was_made_durable_without_a_head_is_never_used_again() {
    let cluster = Cluster::new();
    let a = cluster.member("a");
    a.ns.create().unwrap();
    a.write("x", 1).await;
    // The process ends after the sequence became durable and before a head was signed.
    let reserved = a.ns.shared.replica.next_dot(1).unwrap();
    drop(a);
    let a = cluster.member("a");
    let head = || Head::decode(&a.ns.heads()[0]).unwrap();
    assert!(head().sequence < reserved.sequence);
    a.write("y", 2).await;
    assert!(head().sequence > reserved.sequence);
    assert!(a.shows("x", 1).await && a.shows("y", 2).await);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn read_only_members_change_nothing() {
    let cluster = Cluster::new();
    let a = cluster.member("a");
    a.ns.create().unwrap();
    let reader = cluster.reader("r");
    assert!(reader.ns.create().is_err());
    reader.hears(&a).await;
    let edit = Edit {
        path: at("x"),
        entry: Some(file(1)),
        seen: Vec::new(),
        held: false,
        written: None,
        moved: None,
    };
    assert!(matches!(
        reader.ns.change(vec![edit]),
        Err(NamespaceError::ReadOnly)
    ));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn entries_that_fit_in_no_tree_are_refused_at_once() {
    let cluster = Cluster::new();
    let a = cluster.member("a");
    a.ns.create().unwrap();
    let mut bad = file(1);
    bad.mode = 0o17777;
    let edit = |path, entry| Edit {
        path,
        entry: Some(entry),
        seen: Vec::new(),
        held: false,
        written: None,
        moved: None,
    };
    assert!(a.ns.change(vec![edit(at("x"), bad)]).is_err());
    assert!(
        a.ns.change(vec![edit(TreePath::root(), directory())])
            .is_err()
    );
    assert_eq!(a.ns.status().unpublished, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_folders_time_is_that_of_its_last_new_or_removed_name_or_the_one_set_since() {
    let cluster = Cluster::new();
    let a = cluster.member("a");
    a.ns.create().unwrap();
    a.write("d/x", 1).await;
    let time = || {
        let own = a.ns.get(&at("d")).unwrap().unwrap();
        own.folder_time(a.ns.folder_newest(&at("d")).unwrap())
    };
    let first = time();
    a.change("d", Some(directory()));
    assert_eq!(time(), Timestamp(1), "set explicitly");
    a.ns.flush().await.unwrap();
    assert_eq!(time(), Timestamp(1));
    a.write("d/y", 2).await;
    let second = time();
    assert!(second > first);
    a.change("d/y", Some(file(3)));
    assert_eq!(time(), second, "the names are the same");
    a.ns.flush().await.unwrap();
    assert_eq!(time(), second);
    a.remove("d/x").await;
    let third = time();
    assert!(third > second, "a removal counts");
    let root = a.root();
    drop(a);
    let a = cluster.member("a");
    assert_eq!(a.root(), root);
    let own = a.ns.get(&at("d")).unwrap().unwrap();
    let newest = a.ns.folder_newest(&at("d")).unwrap();
    assert_eq!(own.folder_time(newest), third, "and is remembered");
    // Whoever sets a time after a removal means it, however late the removal is committed.
    a.change("d/y", None);
    a.change("d", Some(directory()));
    a.ns.flush().await.unwrap();
    let own = a.ns.get(&at("d")).unwrap().unwrap();
    let newest = a.ns.folder_newest(&at("d")).unwrap();
    assert_eq!(own.folder_time(newest), Timestamp(1));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn roots_are_remembered_with_their_times_for_thirty_days() {
    const MINUTE: u64 = 60_000_000_000;
    let cluster = Cluster::new();
    let a = cluster.member("a");
    a.ns.create().unwrap();
    a.write("x", 1).await;
    let latest = a.ns.roots().unwrap().pop().unwrap();
    assert_eq!(latest.1, a.root());
    let records = &a.ns.shared.replica.records;
    let (root, other) = (NodeHash([1; 32]), NodeHash([2; 32]));
    let at = |minutes_later: u64| latest.0 / MINUTE * MINUTE + minutes_later * MINUTE;
    records.note_root(at(5), other).unwrap();
    records.note_root(at(5) + 1, root).unwrap();
    assert_eq!(a.ns.roots().unwrap().pop(), Some((at(5) + 1, root)));
    records.note_root(at(30 * 24 * 60 + 3), other).unwrap();
    let kept = a.ns.roots().unwrap();
    assert_eq!(kept, [(at(5) + 1, root), (at(30 * 24 * 60 + 3), other)]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn others_look_and_change_while_many_changes_are_worked_out() {
    let cluster = Cluster::new();
    let a = cluster.member("a");
    a.ns.create().unwrap();
    a.write("old/x", 1).await;
    a.ns.flush().await.unwrap();
    let seen = a.look("old/x").await.unwrap().seen;
    let edit = |path, entry, seen| Edit {
        path: at(path),
        entry,
        seen,
        held: false,
        written: None,
        moved: None,
    };
    let edits = vec![
        edit("old/x", None, seen),
        edit("new/x", Some(file(1)), Vec::new()),
    ];
    {
        let make =
            a.ns.prepare(|| Ok::<_, NamespaceError>(edits), None)
                .unwrap();
        a.change("elsewhere", Some(file(2)));
        let shown = |path| a.ns.get(&at(path)).unwrap().is_some();
        assert_eq!([shown("old/x"), shown("new/x")], [true, false]);
        make();
        assert_eq!([shown("old/x"), shown("new/x")], [false, true]);
    }
    a.ns.flush().await.unwrap();
    assert_eq!(a.ns.status().unpublished, 0);
    assert!(a.shows("new/x", 1).await);
    assert!(a.shows("elsewhere", 2).await);
    assert_eq!(a.look("old").await, None);
}
