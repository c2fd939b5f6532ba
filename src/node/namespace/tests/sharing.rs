//! Members that show each other their heads.

use super::*;

async fn pair(cluster: &Cluster) -> (Member, Member) {
    let (a, b) = (cluster.member("a"), cluster.member("b"));
    a.reaches(&[&b]);
    b.reaches(&[&a]);
    a.ns.create().unwrap();
    b.hears(&a).await;
    (a, b)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_change_here_is_seen_there() {
    let cluster = Cluster::new();
    let (a, b) = pair(&cluster).await;
    a.write("d/x", 1).await;
    b.write("y", 1).await;
    let mut changes = b.ns.remote_changes();
    b.hears(&a).await;
    b.merged().await;
    assert!(b.shows("d/x", 1).await && b.shows("y", 1).await);
    let RemoteChanges::Paths(paths) = changes.recv().await.unwrap() else {
        panic!("one change can be named");
    };
    assert_eq!(*paths, [at("d/x")]);
    agree(&[&a, &b]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn concurrent_writes_are_both_kept_and_everybody_shows_the_same_one() {
    let cluster = Cluster::new();
    let (a, b) = pair(&cluster).await;
    let c = cluster.reader("c");
    c.reaches(&[&a, &b]);
    a.write("x.txt", 1).await;
    b.write("x.txt", 2).await;
    // The reader hears them in one order, the writers in the other.
    c.hears(&b).await;
    c.hears(&a).await;
    c.merged().await;
    agree(&[&a, &b]).await;
    assert_eq!(c.everything().await, a.everything().await);
    agree(&[&a, &b, &c]).await;
    let all = a.everything().await;
    assert_eq!(all.len(), 2);
    assert!(a.shows("x.txt", 2).await, "the later one is shown");
    assert_eq!(all, b.everything().await);
    assert_eq!(all, c.everything().await);
    assert_eq!(a.ns.status().conflicts, 1);
    assert_eq!(c.ns.status().conflicts, 1);
    one_head(&[&a, &b, &c]).await;
}

/// Or it would publish all of it anew once its disk was set back.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_writer_learns_that_its_work_has_reached_who_only_reads() {
    let cluster = Cluster::new();
    let (a, b) = pair(&cluster).await;
    a.write("x", 1).await;
    let reached = || {
        let state = a.ns.shared.replica.state.read();
        let writer = state.writer.as_ref().unwrap();
        (writer.confirmed, writer.last)
    };
    assert!(reached().0 < reached().1);
    b.hears(&a).await;
    a.hears(&b).await;
    assert_eq!(reached().0, reached().1);
}

/// A conflict, and the name of the copy, which holds content 1; `x.txt` shows content 2.
async fn conflict(a: &Member, b: &Member) -> String {
    a.write("x.txt", 1).await;
    b.write("x.txt", 2).await;
    agree(&[a, b]).await;
    let all = a.everything().await;
    let copy = all.iter().find(|found| found.0.contains("conflict"));
    copy.unwrap().0.clone()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn removing_a_conflict_copy_removes_just_it() {
    let cluster = Cluster::new();
    let (a, b) = pair(&cluster).await;
    let copy = conflict(&a, &b).await;
    assert!(a.shows(&copy, 1).await);
    a.remove(&copy).await;
    assert_eq!(a.everything().await.len(), 1);
    assert!(a.shows("x.txt", 2).await);
    assert_eq!(a.ns.status().conflicts, 0);
    agree(&[&a, &b]).await;
    assert_eq!(b.everything().await.len(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_write_to_a_conflict_copy_makes_it_a_file_of_its_own() {
    let cluster = Cluster::new();
    let (a, b) = pair(&cluster).await;
    let copy = conflict(&a, &b).await;
    a.write(&copy, 3).await;
    agree(&[&a, &b]).await;
    assert!(b.shows("x.txt", 2).await && b.shows(&copy, 3).await);
    assert_eq!(b.everything().await.len(), 2);
    assert_eq!(a.ns.status().conflicts, 0);
    b.remove("x.txt").await;
    assert_eq!(b.everything().await.len(), 1);
}

/// All that one head brought has the same dot, which says nothing of a file without its name.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_file_that_is_called_like_a_copy_of_another_one_has_nothing_to_do_with_it() {
    let cluster = Cluster::new();
    let (a, b) = pair(&cluster).await;
    let copy = "x (conflict, a, 2026-12-01 05.16.13).txt";
    let edit = |path: &str, entry, seen: &[Dot]| Edit {
        path: at(path),
        entry,
        seen: seen.to_vec(),
        held: false,
        written: None,
        moved: None,
    };
    for removes in [false, true] {
        let seen = |shown: Option<Shown>| shown.map(|shown| shown.seen).unwrap_or_default();
        let (of_x, of_copy) = (seen(a.look("x.txt").await), seen(a.look(copy).await));
        a.ns.change(vec![
            edit("x.txt", Some(file(1)), &of_x),
            edit(copy, Some(file(2)), &of_copy),
        ])
        .unwrap();
        a.ns.flush().await.unwrap();
        agree(&[&a, &b]).await;
        // One opens it, another changes or removes it, and the first one writes.
        let opened = a.look(copy).await.unwrap().seen;
        match removes {
            true => b.remove(copy).await,
            false => b.write(copy, 3).await,
        }
        a.hears(&b).await;
        a.merged().await;
        a.ns.change(vec![edit(copy, Some(file(4)), &opened)])
            .unwrap();
        a.ns.flush().await.unwrap();
        agree(&[&a, &b]).await;
        assert!(
            b.shows("x.txt", 1).await && b.shows(copy, 4).await,
            "{removes}"
        );
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn renaming_a_conflict_copy_moves_it_out_of_the_conflict() {
    let cluster = Cluster::new();
    let (a, b) = pair(&cluster).await;
    let copy = conflict(&a, &b).await;
    let shown = a.look(&copy).await.unwrap();
    let edit = |path: &str, entry, seen| Edit {
        path: at(path),
        entry,
        seen,
        held: false,
        written: None,
        moved: None,
    };
    a.ns.change(vec![
        edit("mine.txt", Some(shown.entry), Vec::new()),
        edit(&copy, None, shown.seen),
    ])
    .unwrap();
    a.ns.flush().await.unwrap();
    agree(&[&a, &b]).await;
    assert!(b.shows("x.txt", 2).await && b.shows("mine.txt", 1).await);
    assert_eq!(b.everything().await.len(), 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_conflict_copy_whose_original_went_away_can_still_be_removed_by_its_name() {
    let cluster = Cluster::new();
    let (a, b) = pair(&cluster).await;
    let copy = conflict(&a, &b).await;
    let seen = a.look(&copy).await.unwrap().seen;
    b.remove("x.txt").await;
    a.hears(&b).await;
    a.merged().await;
    assert!(a.shows("x.txt", 1).await, "the copy has the name now");
    a.edit(Edit {
        path: at(&copy),
        entry: None,
        seen,
        held: false,
        written: None,
        moved: None,
    });
    a.ns.flush().await.unwrap();
    assert_eq!(a.everything().await, []);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_write_survives_a_deletion_at_the_same_time() {
    let cluster = Cluster::new();
    let (a, b) = pair(&cluster).await;
    a.write("d/x", 1).await;
    a.write("d/y", 1).await;
    agree(&[&a, &b]).await;
    a.remove("d/x").await;
    a.remove("d/y").await;
    b.write("d/x", 2).await;
    agree(&[&a, &b]).await;
    assert!(a.shows("d/x", 2).await);
    assert_eq!(a.look("d/y").await, None);
    assert_eq!(a.everything().await, b.everything().await);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn old_heads_shown_again_change_nothing() {
    let cluster = Cluster::new();
    let (a, b) = pair(&cluster).await;
    let mut old = a.ns.heads();
    for content in 1..5 {
        a.write("x", content).await;
        old.extend(a.ns.heads());
    }
    a.remove("x").await;
    agree(&[&a, &b]).await;
    let (root, heads) = (b.root(), b.ns.heads());
    a.reaches(&[]);
    drop(b);
    let b = cluster.member("b");
    b.reaches(&[&a]);
    b.ns.take_heads(None, old.clone()).await.unwrap();
    a.ns.take_heads(None, old).await.unwrap();
    b.merged().await;
    a.merged().await;
    assert_eq!((b.root(), b.ns.heads()), (root, heads));
    assert_eq!(b.look("x").await, None);
    assert_eq!(a.root(), root);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_newcomer_fetches_nothing_until_it_looks() {
    let cluster = Cluster::new();
    let a = cluster.member("a");
    a.ns.create().unwrap();
    let edits = (0..5000).map(|n| Edit {
        path: at(&format!("d{}/{n}", n % 50)),
        entry: Some(file(n)),
        seen: Vec::new(),
        held: false,
        written: None,
        moved: None,
    });
    a.ns.change(edits.collect()).unwrap();
    a.ns.flush().await.unwrap();
    let b = cluster.member("b");
    b.reaches(&[&a]);
    b.hears(&a).await;
    assert!(b.ns.has_head());
    b.merged().await;
    assert!(b.fetched() <= 1, "its root at most");
    assert!(b.shows("d7/57", 57).await);
    assert!(b.fetched() < 12, "{}", b.fetched());
    // An update of one file costs a path, whatever the size of the tree.
    let before = b.fetched();
    a.write("d8/58", 1).await;
    b.hears(&a).await;
    b.merged().await;
    assert!(b.shows("d8/58", 1).await);
    assert!(b.fetched() < before + 16, "{}", b.fetched() - before);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_writer_that_has_looked_at_nothing_publishes_what_it_writes() {
    let cluster = Cluster::new();
    let (a, _) = pair(&cluster).await;
    a.write("x", 1).await;
    let b = cluster.member("new");
    b.reaches(&[&a]);
    b.hears(&a).await;
    b.edit(Edit {
        path: at("y"),
        entry: Some(file(2)),
        seen: Vec::new(),
        held: false,
        written: None,
        moved: None,
    });
    b.ns.flush().await.unwrap();
    assert_eq!(b.ns.status().unpublished, 0);
    assert!(b.shows("x", 1).await && b.shows("y", 2).await);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_cannot_be_committed_is_kept_and_committed_after_a_restart() {
    let cluster = Cluster::new();
    let (a, _) = pair(&cluster).await;
    a.write("x", 1).await;
    let b = cluster.member("new");
    b.hears(&a).await;
    b.edit(Edit {
        path: at("y"),
        entry: Some(file(2)),
        seen: Vec::new(),
        held: false,
        written: None,
        moved: None,
    });
    b.ns.flush().await.unwrap();
    assert_eq!(b.ns.status().unpublished, 1, "nobody gives the nodes");
    drop(b);
    let b = cluster.member("new");
    assert_eq!(b.ns.status().unpublished, 1);
    assert!(b.ns.get(&at("y")).unwrap().is_some());
    b.reaches(&[&a]);
    b.ns.flush().await.unwrap();
    assert_eq!(b.ns.status().unpublished, 0);
    a.reaches(&[&b]);
    a.hears(&b).await;
    a.merged().await;
    assert!(a.shows("x", 1).await && a.shows("y", 2).await);
    a.reaches(&[]);
    drop(b);
    let b = cluster.member("new");
    assert_eq!(b.ns.status().unpublished, 0, "committed once");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_waits_for_nodes_is_on_the_disk_soon_though_nobody_asks_for_that() {
    let cluster = Cluster::new();
    let (a, _) = pair(&cluster).await;
    a.write("x", 1).await;
    let b = cluster.member("new");
    b.hears(&a).await;
    for name in ["y", "z"] {
        b.edit(Edit {
            path: at(name),
            entry: Some(file(2)),
            seen: Vec::new(),
            held: false,
            written: None,
            moved: None,
        });
        until("it is kept", async || {
            let pending = b.ns.shared.replica.records.pending().unwrap();
            pending.pending.iter().any(|(path, _)| **path == at(name))
        })
        .await;
    }
    drop(b);
    let b = cluster.member("new");
    assert_eq!(b.ns.status().unpublished, 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_push_that_names_its_changes_needs_no_fetch() {
    let cluster = Cluster::new();
    let (a, b) = pair(&cluster).await;
    a.write("x", 1).await;
    agree(&[&a, &b]).await;
    assert!(b.shows("x", 1).await);
    b.reaches(&[]);
    let mut published = a.ns.published();
    a.write("y", 2).await;
    let published = published.recv().await.unwrap();
    let push = || published.push.clone();
    let news = Ok(Pushed::News { changes_hold: true });
    assert_eq!(b.ns.take_push(a.peer(), push()).await, news);
    assert_eq!(b.ns.take_push(a.peer(), push()).await, Ok(Pushed::Known));
    b.merged().await;
    assert!(b.shows("y", 2).await && b.shows("x", 1).await);
    assert_eq!(b.root(), a.root());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_push_whose_changes_lead_elsewhere_is_refused() {
    let cluster = Cluster::new();
    let (a, b) = pair(&cluster).await;
    let mut published = a.ns.published();
    a.write("y", 2).await;
    let published = published.recv().await.unwrap();
    let Push::Manifest { head, base, .. } = published.push.clone() else {
        panic!("a push of a head");
    };
    let push = Push::Manifest {
        head,
        base,
        changes: Some(Vec::new()),
    };
    let refused = b.ns.take_push(a.peer(), push).await;
    assert!(matches!(refused, Err(RefusedPush::Offence(_))));
    assert!(b.ns.take_push(a.peer(), Push::Leaving).await.is_err());
    // What its author shows is taken all the same.
    b.hears(&a).await;
    b.merged().await;
    assert!(b.shows("y", 2).await);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn changes_of_a_push_are_vouched_for_only_where_their_base_is_here() {
    let cluster = Cluster::new();
    let (a, b) = pair(&cluster).await;
    a.write("x", 1).await;
    b.reaches(&[]);
    let mut published = a.ns.published();
    a.write("y", 2).await;
    let push = published.recv().await.unwrap().push.clone();
    let unproven = Ok(Pushed::News {
        changes_hold: false,
    });
    assert_eq!(b.ns.take_push(a.peer(), push).await, unproven);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_forged_push_is_an_offence_and_one_from_another_clock_is_none() {
    let cluster = Cluster::new();
    let (a, b) = pair(&cluster).await;
    a.write("x", 1).await;
    let good = Head::decode(&a.ns.heads()[0]).unwrap();
    let push = |head: &Head| Push::Manifest {
        head: head.encode().into(),
        base: good.root,
        changes: None,
    };
    let mut forged = good.clone();
    forged.sequence += 1;
    let refused = b.ns.take_push(a.peer(), push(&forged)).await;
    assert!(matches!(refused, Err(RefusedPush::Offence(_))));
    let tomorrow = manifest::HybridTime(Moment::now().wall_ns + 86_400_000_000_000);
    let ahead = Head::sign(
        &cluster.id.keys(),
        &a.ns.writer_identity(),
        &good.certificate,
        good.root,
        good.covers.clone(),
        good.sequence + 1,
        tomorrow,
    )
    .unwrap();
    let refused = b.ns.take_push(a.peer(), push(&ahead)).await;
    assert!(matches!(refused, Err(RefusedPush::Other(_))));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bad_heads_are_refused_and_good_ones_beside_them_taken() {
    let cluster = Cluster::new();
    let (a, b) = pair(&cluster).await;
    a.write("x", 1).await;
    let good = a.ns.heads().remove(0);
    let mut forged = Head::decode(&good).unwrap();
    forged.root = manifest::empty_root();
    forged.sequence += 1;
    let stranger = Cluster {
        id: ClusterId::generate([8; 32]),
        temp: tempfile::tempdir().unwrap(),
    };
    let other = stranger.member("other");
    let foreign = other.ns.create().unwrap();
    let shown = vec![vec![0; 10], forged.encode(), foreign.encode(), good];
    assert!(b.ns.take_heads(None, shown).await.is_err());
    b.merged().await;
    assert_eq!(b.root(), a.root());
    assert!(
        b.ns.take_heads(None, vec![Vec::new(); HEADS_MAX + 1])
            .await
            .is_err()
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_read_only_members_head_is_refused() {
    let cluster = Cluster::new();
    let (a, b) = pair(&cluster).await;
    a.write("x", 1).await;
    let reader = cluster.reader("r");
    reader.hears(&a).await;
    // It signs with its own node key, under a certificate that a write key of its own making grants.
    let seen = Head::decode(&reader.ns.heads()[0]).unwrap();
    let foreign = ClusterId::generate([8; 32]).keys();
    let certificate = crate::cluster::Certificate::issue(&foreign, &reader.peer()).unwrap();
    let forged = Head::sign(
        &cluster.id.read_only().keys(),
        &reader.ns.writer_identity(),
        &certificate,
        manifest::empty_root(),
        seen.covers.clone(),
        seen.sequence + 1,
        seen.time,
    )
    .unwrap();
    assert!(b.ns.take_heads(None, vec![forged.encode()]).await.is_err());
    b.hears(&a).await;
    b.merged().await;
    assert!(b.shows("x", 1).await);
}

/// Gives bytes that are not what was asked for.
struct Liar;

impl NodeFetcher for Liar {
    fn fetch(
        &self,
        nodes: Vec<NodeHash>,
        _prefer: Option<PeerId>,
        _within: Duration,
    ) -> BoxFuture<'static, Fetched> {
        let nodes = nodes.iter().map(|hash| hash.0.to_vec()).collect();
        let denied = false;
        Box::pin(async move { Fetched { nodes, denied } })
    }

    fn offence(&self, _peer: PeerId, _reason: &str) {}
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nodes_that_do_not_match_their_hash_are_not_taken() {
    let cluster = Cluster::new();
    let (a, _) = pair(&cluster).await;
    a.write("x", 1).await;
    let b = Namespace::open(
        open_store(&cluster.dir("liars")),
        cluster.id.keys(),
        Keypair::generate_ed25519(),
        "b".into(),
        Arc::new(Liar),
    )
    .unwrap();
    b.take_heads(None, a.ns.heads()).await.unwrap();
    let Err(NamespaceError::Missing(nodes)) = b.get(&at("x")) else {
        panic!("nothing was fetched yet");
    };
    let fetched = b.fetch(nodes.clone(), Duration::from_secs(1)).await;
    assert!(matches!(fetched, Err(NamespaceError::Unreachable(_))));
    assert_eq!(b.node(&nodes[0]).unwrap(), None);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_here_stays_readable_while_nobody_has_the_nodes_of_a_new_head() {
    let cluster = Cluster::new();
    let (a, b) = pair(&cluster).await;
    a.write("x", 1).await;
    agree(&[&a, &b]).await;
    assert!(b.shows("x", 1).await);
    b.reaches(&[]);
    a.write("x", 2).await;
    b.hears(&a).await;
    b.write("y", 3).await;
    assert!(b.shows("x", 1).await && b.shows("y", 3).await);
    assert_eq!(b.ns.heads().len(), 2);
    a.reaches(&[]);
    drop(b);
    let b = cluster.member("b");
    b.reaches(&[&a]);
    b.merged().await;
    assert!(b.shows("x", 2).await && b.shows("y", 3).await);
}

/// As where the members go away while the nodes of what they have just announced are on their way.
async fn no_leaf_of_the_next_head_comes(files: u64, changed: usize) {
    let cluster = Cluster::new();
    let a = with_many_files(&cluster, files).await;
    let b = cluster.member("b");
    b.reaches(&[&a]);
    b.hears(&a).await;
    b.merged().await;
    let before = b.everything().await;
    change_every(&a, files, changed).await;
    b.reaches(&[]);
    let replica = &b.ns.shared.replica;
    let names = a.ns.shared.replica.nodes.names(None, 10_000).unwrap();
    for name in names {
        let encoded = a.ns.node(&name).unwrap().unwrap().to_vec();
        if name == a.root() || manifest::Node::decode(&encoded).unwrap().level() > 0 {
            replica.nodes.put(&[(name, encoded)]).unwrap();
        }
    }
    b.hears(&a).await;
    until("the head was tried", async || {
        let state = replica.state.read();
        let waits = state.heads.next_due(std::time::Instant::now());
        waits.is_some() || state.heads.unmerged().count() == 0
    })
    .await;
    assert_eq!(b.everything().await, before);
    b.reaches(&[&a]);
    b.hears(&a).await;
    b.merged().await;
    assert_eq!(b.everything().await, a.everything().await);
}

/// Changes a file of so many.
async fn change_every(member: &Member, files: u64, step: usize) {
    let edit = |n: u64| Edit {
        path: at(&format!("{n:04}")),
        entry: Some(file(n + 1)),
        seen: Vec::new(),
        held: false,
        written: None,
        moved: None,
    };
    let edits = (0..files).step_by(step).map(edit).collect();
    member.ns.change(edits).unwrap();
    member.ns.flush().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_here_stays_readable_where_a_new_head_came_in_part() {
    no_leaf_of_the_next_head_comes(1000, 500).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_here_stays_readable_where_a_head_that_changes_much_came_in_part() {
    no_leaf_of_the_next_head_comes(10_000, 10).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_looked_at_can_be_looked_at_without_others_after_a_change_of_much() {
    let cluster = Cluster::new();
    let a = with_many_files(&cluster, 10_000).await;
    let b = cluster.member("b");
    b.reaches(&[&a]);
    b.hears(&a).await;
    b.merged().await;
    assert_eq!(b.everything().await.len(), 10_000);
    change_every(&a, 10_000, 10).await;
    b.hears(&a).await;
    b.merged().await;
    let replica = &b.ns.shared.replica;
    until("all is brought up", async || !replica.is_outdated()).await;
    b.reaches(&[]);
    assert_eq!(b.root(), a.root());
    assert_eq!(b.everything().await.len(), 10_000);
    assert!(b.shows("5000", 5001).await && b.shows("5001", 5001).await);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn three_members_end_with_one_state_and_one_head() {
    let cluster = Cluster::new();
    let (a, b) = pair(&cluster).await;
    let c = cluster.member("c");
    c.reaches(&[&a, &b]);
    a.reaches(&[&b, &c]);
    b.reaches(&[&a, &c]);
    c.hears(&a).await;
    for (member, name) in [(&a, "a"), (&b, "b"), (&c, "c")] {
        member.write("same", name.len() as u64).await;
        member.write(name, 7).await;
    }
    agree(&[&a, &b, &c]).await;
    one_head(&[&a, &b, &c]).await;
    // Equal contents never conflict.
    assert_eq!(a.everything().await.len(), 4);
    assert_eq!(a.everything().await, c.everything().await);
    assert_eq!(a.everything().await, b.everything().await);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_change_that_waits_for_nodes_which_nobody_gives_holds_up_no_other() {
    let cluster = Cluster::new();
    let (a, b) = (cluster.member("a"), cluster.member("b"));
    a.ns.create().unwrap();
    let put = |path: &str, content| Edit {
        path: at(path),
        entry: Some(file(content)),
        seen: Vec::new(),
        held: false,
        written: None,
        moved: None,
    };
    let many = (0..4000).map(|n| put(&format!("d{}/{n}", n % 80), n));
    a.ns.change(many.collect()).unwrap();
    a.ns.flush().await.unwrap();
    b.reaches(&[&a]);
    b.hears(&a).await;
    b.merged().await;
    b.write("d7/by b", 1).await;
    b.look("d7/7").await;
    let seen = b.look("d7/87").await.unwrap().seen;
    b.reaches(&[]);
    // What one call changes waits together, though part of it could go ahead.
    let removed = Edit {
        entry: None,
        seen,
        ..put("d7/87", 0)
    };
    b.ns.change(vec![removed, put("d50/new", 2)]).unwrap();
    b.change("d7/7", Some(file(1000)));
    until("the other change is published", async || {
        b.ns.status().unpublished == 2
    })
    .await;
    b.change("d7/by b", Some(file(1001)));
    until("the next one is too", async || {
        b.ns.status().unpublished == 2
    })
    .await;
    // What waits is on disk.
    b.ns.flush().await.unwrap();
    assert_eq!(b.ns.status().unpublished, 2);
    a.reaches(&[&b]);
    a.hears(&b).await;
    a.merged().await;
    assert!(a.shows("d7/7", 1000).await && a.shows("d7/by b", 1001).await);
    assert!(a.shows("d7/87", 87).await);
    assert_eq!(a.look("d50/new").await, None);
    a.reaches(&[]);
    drop(b);
    let b = cluster.member("b");
    assert_eq!(b.ns.status().unpublished, 2, "the record was kept");
    b.reaches(&[&a]);
    b.ns.flush().await.unwrap();
    assert_eq!(b.ns.status().unpublished, 0);
    a.reaches(&[&b]);
    agree(&[&a, &b]).await;
    assert!(a.shows("d7/7", 1000).await && a.shows("d50/new", 2).await);
    assert_eq!(a.look("d7/87").await, None);
    assert_eq!(a.ns.status().conflicts, 0);
    a.reaches(&[]);
}

/// A member, and a head that it signed, which has seen all of another's: its tree has a node deep inside that is none.
async fn with_a_bad_tree(cluster: &Cluster, of: &Member) -> (Member, Vec<u8>, NodeHash) {
    let bad = cluster.member("bad");
    bad.reaches(&[of]);
    bad.hears(of).await;
    bad.everything().await;
    let replica = &bad.ns.shared.replica;
    let genuine = bad.ns.node(&bad.root()).unwrap().unwrap().to_vec();
    let child = manifest::Node::decode(&genuine).unwrap().children()[1];
    let garbage = b"neither a leaf nor an inner node".to_vec();
    let hash = NodeHash::of(&garbage);
    let mut forged = genuine;
    let place = forged.windows(32).position(|part| part == child.0);
    let place = place.unwrap();
    forged[place..place + 32].copy_from_slice(&hash.0);
    let root = NodeHash::of(&forged);
    replica
        .nodes
        .put(&[(hash, garbage), (root, forged)])
        .unwrap();
    let (keys, identity) = (cluster.id.keys(), bad.ns.writer_identity());
    let certificate = crate::cluster::Certificate::issue(&keys, &bad.peer()).unwrap();
    let (mut covers, time) = {
        let state = replica.state.read();
        (state.covers.clone(), HybridTime(state.clock.0 + 1))
    };
    covers.add(Dot {
        writer: manifest::WriterNumber::of(&bad.peer()),
        sequence: 1,
    });
    let head = Head::sign(&keys, &identity, &certificate, root, covers, 1, time).unwrap();
    let bytes = head.encode();
    (bad, bytes, hash)
}

async fn with_many_files(cluster: &Cluster, count: u64) -> Member {
    let a = cluster.member("a");
    a.ns.create().unwrap();
    let edit = |n: u64| Edit {
        path: at(&format!("{n:04}")),
        entry: Some(file(n)),
        seen: Vec::new(),
        held: false,
        written: None,
        moved: None,
    };
    a.ns.change((0..count).map(edit).collect()).unwrap();
    a.ns.flush().await.unwrap();
    a
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_head_that_has_seen_all_is_refused_for_a_bad_node_that_is_met() {
    let cluster = Cluster::new();
    let a = with_many_files(&cluster, 1000).await;
    let (bad, head, _) = with_a_bad_tree(&cluster, &a).await;
    let before = a.root();
    a.reaches(&[&bad]);
    a.ns.take_heads(Some(bad.peer()), vec![head]).await.unwrap();
    a.merged().await;
    assert_eq!(a.root(), before);
    a.reaches(&[]);
    assert!(a.shows("0500", 500).await);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_head_is_refused_for_a_bad_node_of_the_state() {
    let cluster = Cluster::new();
    let a = with_many_files(&cluster, 1000).await;
    let (bad, head, hash) = with_a_bad_tree(&cluster, &a).await;
    let c = cluster.member("c");
    c.reaches(&[&a, &bad]);
    // A newcomer can't tell: nothing else is known to it.
    c.ns.take_heads(Some(bad.peer()), vec![head]).await.unwrap();
    a.write("9999", 1).await;
    c.hears(&a).await;
    let replica = &c.ns.shared.replica;
    until("the honest head was tried", async || {
        let state = replica.state.read();
        let waits = state.heads.next_due(std::time::Instant::now());
        replica.nodes.is_bad(&hash) && (waits.is_some() || state.heads.unmerged().count() == 0)
    })
    .await;
    assert_eq!(c.unmerged(), 1, "it waits and was not refused");
    c.reaches(&[]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn conflicts_are_found_in_a_head_that_changed_more_than_is_named() {
    let cluster = Cluster::new();
    let (a, b) = pair(&cluster).await;
    a.write("x", 1).await;
    agree(&[&a, &b]).await;
    a.write("x", 2).await;
    b.write("x", 3).await;
    let many = (0..5000).map(|n| Edit {
        path: at(&format!("many/{n}")),
        entry: Some(file(n)),
        seen: Vec::new(),
        held: false,
        written: None,
        moved: None,
    });
    b.ns.change(many.collect()).unwrap();
    b.ns.flush().await.unwrap();
    b.hears(&a).await;
    b.merged().await;
    one_head(&[&b]).await;
    let mut arrivals = a.ns.arrivals();
    let before = a.root();
    a.hears(&b).await;
    a.merged().await;
    let arrival = arrivals.recv().await.unwrap();
    assert!(arrival.changes.is_none());
    assert_eq!(arrival.before, Some(before));
    a.everything().await;
    let (changes, more) = a.ns.conflict_changes(before, arrival.root, 10).unwrap();
    let paths: Vec<_> = changes.iter().map(|change| change.key.path()).collect();
    assert_eq!((paths, more), (vec![Some(at("x"))], false));
}
