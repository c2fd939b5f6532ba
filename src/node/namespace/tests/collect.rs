//! Letting go of nodes, and what that must not do.

use super::{moves::rename, *};
use crate::node::namespace::replica::Moment;

const FOLDERS: u64 = 20;
const FILES: u64 = 100;

/// Nodes that are here.
fn nodes(member: &Member) -> usize {
    let nodes = &member.ns.shared.replica.nodes;
    nodes.names(None, usize::MAX).unwrap().len()
}

fn collect(member: &Member) -> u64 {
    let replica = &member.ns.shared.replica;
    replica.collect_all(Moment::now()).unwrap()
}

/// Writes all files anew, in one head.
async fn write_all(member: &Member, content: u64) {
    let mut edits = Vec::new();
    for number in 0..FOLDERS * FILES {
        let path = at(&format!("folder {}/{number}", number % FOLDERS));
        let seen = member.ns.get(&path).unwrap().map(|shown| shown.seen);
        edits.push(Edit {
            path,
            entry: Some(file(content + number)),
            seen: seen.unwrap_or_default(),
            held: false,
            written: None,
            moved: None,
        });
    }
    member.ns.change(edits).unwrap();
    member.ns.flush().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nodes_of_earlier_states_go_and_all_that_is_shown_stays() {
    let cluster = Cluster::new();
    let a = cluster.member("a");
    a.ns.create().unwrap();
    write_all(&a, 0).await;
    let one_state = nodes(&a);
    let shown = a.everything().await;
    for content in 0..20 {
        a.write("folder 3/3", content).await;
    }
    a.write("folder 3/3", 3).await;
    assert!(nodes(&a) > one_state + 40, "{} nodes", nodes(&a));
    assert!(
        a.ns.shared.replica.collection_due().unwrap(),
        "none was so far"
    );
    // As far as others have seen it.
    if let Some(writer) = &mut a.ns.shared.replica.state.write().writer {
        writer.confirm(u64::MAX);
    }
    assert!(collect(&a) > 40);
    assert!(nodes(&a) <= one_state + 3, "{} nodes", nodes(&a));
    assert_eq!(a.everything().await, shown);
    assert!(!a.ns.shared.replica.collection_due().unwrap());
    let root = a.root();
    drop(a);
    let a = cluster.member("a");
    assert_eq!((a.root(), a.everything().await), (root, shown));
    assert!(!a.ns.shared.replica.collection_due().unwrap());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_came_since_the_last_collection_stays_and_so_do_remembered_roots() {
    let cluster = Cluster::new();
    let a = cluster.member("a");
    a.ns.create().unwrap();
    write_all(&a, 0).await;
    let replica = &a.ns.shared.replica;
    let collect = |now| {
        let collection = replica.begin_collection(now).unwrap();
        replica.collect_rest(collection).unwrap();
    };
    let before = a.root();
    write_all(&a, 5000).await;
    let both = nodes(&a);
    collect(Moment::now());
    assert_eq!(nodes(&a), both, "all of it came lately");
    let year_ago = Moment::now().wall_ns - 20 * 24 * 3_600_000_000_000;
    replica.records.note_root(year_ago, before).unwrap();
    collect(Moment::now());
    collect(Moment::now());
    let node = a.ns.node(&before).unwrap().expect("its root is remembered");
    let children = manifest::Node::decode(&node).unwrap().children();
    assert!(
        children
            .iter()
            .all(|child| a.ns.node(child).unwrap().is_some())
    );
}

/// The one who was away knows of most of the folder only what the others had when it left.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn work_on_a_state_that_nobody_has_any_more_is_merged_by_who_did_it() {
    let cluster = Cluster::new();
    let [a, b] = ["a", "b"].map(|name| cluster.member(name));
    a.ns.create().unwrap();
    write_all(&a, 0).await;
    b.reaches(&[&a]);
    b.hears(&a).await;
    // What its work takes is here then. The last two the other one sees.
    for path in [
        "folder 7/7",
        "folder 7/27",
        "folder 7/new",
        "folder 7/removed",
        "folder 7/moved",
    ] {
        b.write(path, 60_000).await;
    }
    a.reaches(&[&b]);
    a.hears(&b).await;
    a.merged().await;
    a.reaches(&[]);
    b.reaches(&[]);
    b.remove("folder 7/removed").await;
    rename(&b, "folder 7/moved", "folder 7/moved away").await;
    b.write("folder 7/7", 70_000).await;
    b.write("folder 7/new", 70_001).await;
    b.remove("folder 7/27").await;
    assert_eq!(b.ns.status().unpublished, 0);
    let Err(NamespaceError::Missing(missing)) = b.ns.get(&at("folder 12/12")) else {
        panic!("it looked there");
    };

    write_all(&a, 10_000).await;
    a.write("folder 7/moved", 50_000).await;
    collect(&a);
    collect(&b);
    // As after more heads than are remembered.
    let all = missing.iter().map(|node| (*node, 0));
    a.ns.shared.replica.nodes.remove_old(all.collect()).unwrap();
    assert!(
        missing
            .iter()
            .all(|node| a.ns.node(node).unwrap().is_none())
    );
    a.reaches(&[&b]);
    b.reaches(&[&a]);
    one_head(&[&a, &b]).await;
    agree(&[&a, &b]).await;
    for member in [&a, &b] {
        assert!(member.shows("folder 7/new", 70_001).await);
        assert!(member.look("folder 7/removed").await.is_none());
        assert!(member.look("folder 7/moved").await.is_none());
        assert!(member.shows("folder 7/moved away", 50_000).await);
        assert!(member.shows("folder 12/12", 10_012).await);
        // Removed by one while the other changed it.
        assert!(member.shows("folder 7/27", 10_027).await);
        let both = member.look("folder 7/7").await.unwrap();
        let versions = [10_007, 70_000].map(|content| file(content).kind);
        assert!(versions.contains(&both.entry.kind));
        assert_eq!(member.ns.status().conflicts, 1);
    }
    assert_eq!(a.everything().await, b.everything().await);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_state_that_comes_while_nodes_go_finds_again_what_it_has_of_one_of_before() {
    let cluster = Cluster::new();
    let [a, b] = ["a", "b"].map(|name| cluster.member(name));
    a.ns.create().unwrap();
    write_all(&a, 0).await;
    let shown = a.everything().await;
    a.write("folder 3/new", 1).await;
    a.reaches(&[&b]);
    b.reaches(&[&a]);
    b.hears(&a).await;
    b.everything().await;
    let replica = &a.ns.shared.replica;
    let all = |minutes: &[u64], _| minutes.to_vec();
    replica
        .records
        .thin_roots(Moment::now().wall_ns, all)
        .unwrap();
    let now = Moment::now();
    for _ in 0..2 {
        replica.nodes.begin_generation(now.at, Duration::ZERO);
    }
    let collection = replica.begin_collection(now).unwrap();
    // Its leaves are those of the state before the last.
    b.remove("folder 3/new").await;
    a.hears(&b).await;
    a.merged().await;
    a.reaches(&[]);
    replica.collect_rest(collection).unwrap();
    assert_eq!(a.everything().await, shown);
}
