//! State folders that were copied: restored backups and cloned machines.

use super::*;

fn number(member: &Member) -> u64 {
    manifest::WriterNumber::of(&member.peer()).0
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restored_copy_signs_under_a_new_identity_and_loses_nothing() {
    let cluster = Cluster::new();
    let a = cluster.member("a");
    a.ns.create().unwrap();
    a.write("x", 1).await;
    let first = number(&a);
    drop(a);
    cluster.copy("a", "copy");
    let (a, copy) = (cluster.member("a"), cluster.member("copy"));
    assert_eq!(number(&a), first, "the original keeps its identity");
    assert_ne!(number(&copy), first);
    a.reaches(&[&copy]);
    copy.reaches(&[&a]);
    a.write("x", 2).await;
    a.write("from a", 3).await;
    copy.write("from copy", 4).await;
    agree(&[&a, &copy]).await;
    for member in [&a, &copy] {
        assert!(
            member.shows("x", 2).await,
            "the old content is not in the way"
        );
        assert!(member.shows("from a", 3).await && member.shows("from copy", 4).await);
        assert_eq!(member.everything().await.len(), 3);
    }
    let taken = number(&copy);
    drop((a, copy));
    let copy = cluster.member("copy");
    assert_eq!(number(&copy), taken, "the new identity is kept");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_clone_that_nobody_noticed_signs_its_work_again_when_it_meets_the_other() {
    let cluster = Cluster::new();
    let a = cluster.member("a");
    a.ns.create().unwrap();
    a.write("x", 1).await;
    drop(a);
    cluster.copy("a", "clone");
    let a = cluster.member("a");
    // Rolled back with its disk, the store cannot tell.
    let clone = cluster.open("clone", cluster.id.keys(), |store| {
        store.settle_here().unwrap();
    });
    assert_eq!(number(&a), number(&clone));
    a.reaches(&[&clone]);
    clone.reaches(&[&a]);
    a.write("from a", 2).await;
    a.write("both", 3).await;
    a.remove("x").await;
    clone.write("from clone", 4).await;
    clone.write("both", 5).await;
    agree(&[&a, &clone]).await;
    for member in [&a, &clone] {
        assert!(member.shows("from a", 2).await && member.shows("from clone", 4).await);
        let all = member.everything().await;
        let both: Vec<_> = all
            .iter()
            .filter(|found| found.0.starts_with("/both"))
            .collect();
        assert_eq!(both.len(), 2, "{all:?}");
    }
    assert!(a.ns.status().unpublished == 0 && clone.ns.status().unpublished == 0);
    assert_eq!(a.everything().await, clone.everything().await);
    // And they go on from there.
    a.write("later", 6).await;
    clone.write("later too", 7).await;
    agree(&[&a, &clone]).await;
    assert!(clone.shows("later", 6).await && a.shows("later too", 7).await);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_machine_that_was_rolled_back_notices_by_what_others_have_seen_of_it() {
    let cluster = Cluster::new();
    let (a, b) = (cluster.member("a"), cluster.member("b"));
    a.ns.create().unwrap();
    b.reaches(&[&a]);
    a.reaches(&[&b]);
    a.write("x", 1).await;
    agree(&[&a, &b]).await;
    let first = number(&a);
    drop(a);
    b.reaches(&[]);
    cluster.copy("a", "earlier");
    let a = cluster.member("a");
    a.reaches(&[&b]);
    b.reaches(&[&a]);
    a.write("lost by the backup", 2).await;
    agree(&[&a, &b]).await;
    b.write("y", 3).await;
    drop(a);
    b.reaches(&[]);
    let a = cluster.open("earlier", cluster.id.keys(), |store| {
        store.settle_here().unwrap();
    });
    assert_eq!(number(&a), first);
    a.reaches(&[&b]);
    b.reaches(&[&a]);
    a.write("new", 4).await;
    agree(&[&a, &b]).await;
    assert_ne!(number(&a), first);
    for member in [&a, &b] {
        for (path, content) in [("x", 1), ("lost by the backup", 2), ("y", 3), ("new", 4)] {
            assert!(member.shows(path, content).await, "{path}");
        }
        assert_eq!(member.everything().await.len(), 4);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_read_only_copy_takes_another_network_identity() {
    let cluster = Cluster::new();
    let reader = cluster.reader("r");
    let first = reader.peer();
    drop(reader);
    cluster.copy("r", "copy");
    let keys = || cluster.id.read_only().keys();
    let copy = cluster.open("copy", keys(), |_| {});
    assert_ne!(copy.peer(), first);
    assert_eq!(cluster.reader("r").peer(), first);
}
