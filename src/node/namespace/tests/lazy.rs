//! Several heads that stand beside each other, in a cluster that is large for what is looked at.

use super::*;

/// Two members who changed something in every folder while they were apart, and a newcomer who has heard of both.
struct Apart {
    cluster: Cluster,
    a: Member,
    b: Member,
    c: Member,
}

impl Apart {
    async fn new() -> Self {
        let cluster = Cluster::new();
        let (a, b) = (cluster.member("a"), cluster.member("b"));
        b.reaches(&[&a]);
        a.ns.create().unwrap();
        let edit = |path: String, content| Edit {
            path: at(&path),
            entry: Some(file(content)),
            seen: Vec::new(),
            held: false,
            written: None,
            moved: None,
        };
        let all = (0..4000).map(|n| edit(format!("d{}/{n}", n % 80), n));
        a.ns.change(all.collect()).unwrap();
        a.ns.flush().await.unwrap();
        b.hears(&a).await;
        b.everything().await;
        for member in [&a, &b] {
            let name = member.peer();
            let own = (0..80).map(|n| edit(format!("d{n}/of {name}"), n));
            member.ns.change(own.collect()).unwrap();
            member.change(
                "d7/7",
                Some(file(if member.peer() == a.peer() { 1 } else { 2 })),
            );
            member.ns.flush().await.unwrap();
        }
        a.remove("d9/9").await;
        b.remove("d9/89").await;
        let c = cluster.member("c");
        c.reaches(&[&a, &b]);
        c.hears(&a).await;
        c.hears(&b).await;
        Self { cluster, a, b, c }
    }
}

async fn children(member: &Member, folder: &str) -> Vec<(Name, Entry)> {
    loop {
        match member.ns.children(&at(folder)) {
            Err(NamespaceError::Missing(nodes)) => {
                member
                    .ns
                    .fetch(nodes, Duration::from_secs(5))
                    .await
                    .unwrap();
            }
            found => {
                let found = found.unwrap().into_iter();
                return found.map(|(name, shown)| (name, shown.entry)).collect();
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn with_several_heads_only_what_is_looked_at_is_fetched_and_shown_as_merged() {
    let Apart { cluster, a, b, c } = Apart::new().await;
    until("the other head is shown", async || {
        let state = c.ns.shared.replica.state.read();
        state.parts.len() == 1
    })
    .await;
    let shown = [children(&c, "d7").await, children(&c, "d9").await];
    assert!(c.fetched() < 60, "{}", c.fetched());
    assert_eq!(c.unmerged(), 1, "nothing was merged");
    a.reaches(&[&b]);
    b.reaches(&[&a]);
    agree(&[&a, &b]).await;
    assert_eq!(shown, [children(&a, "d7").await, children(&a, "d9").await]);
    // 50 files, one of each member, and a conflict copy; of the other folder each has removed one.
    assert_eq!((shown[0].len(), shown[1].len()), (53, 50));
    // Their head joins both, and takes the place of what was shown.
    one_head(&[&a, &b]).await;
    c.hears(&a).await;
    c.merged().await;
    assert_eq!(c.root(), a.root());
    assert!(c.ns.shared.replica.state.read().parts.is_empty());
    drop(cluster);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_write_over_what_an_unmerged_head_brought_comes_after_it() {
    let Apart { cluster, a, b, c } = Apart::new().await;
    until("the other head is shown", async || {
        !c.ns.shared.replica.state.read().parts.is_empty()
    })
    .await;
    for name in [a.peer(), b.peer()] {
        c.look(&format!("d3/of {name}")).await.unwrap();
        c.change(&format!("d3/of {name}"), Some(file(1000)));
    }
    c.ns.flush().await.unwrap();
    assert_eq!(c.ns.status().unpublished, 0);
    for member in [&a, &b] {
        member.reaches(&[&a, &b, &c]);
    }
    agree(&[&a, &b, &c]).await;
    assert_eq!(c.ns.status().conflicts, 1, "the one that was there before");
    for name in [a.peer(), b.peer()] {
        assert!(a.shows(&format!("d3/of {name}"), 1000).await);
    }
    for member in [&a, &b] {
        member.reaches(&[]);
    }
    drop(cluster);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_file_made_where_an_unmerged_head_removed_one_takes_its_place() {
    let Apart { cluster, a, b, c } = Apart::new().await;
    until("the other head is shown", async || {
        !c.ns.shared.replica.state.read().parts.is_empty()
    })
    .await;
    // Of each, one of the two heads has removed what the other still has.
    for path in ["d9/9", "d9/89"] {
        assert_eq!(c.look(path).await, None);
        c.change(path, Some(file(2000)));
    }
    c.ns.flush().await.unwrap();
    for member in [&a, &b] {
        member.reaches(&[&a, &b, &c]);
    }
    agree(&[&a, &b, &c]).await;
    assert_eq!(c.ns.status().conflicts, 1, "the one that was there before");
    for path in ["d9/9", "d9/89"] {
        assert!(a.shows(path, 2000).await);
    }
    for member in [&a, &b] {
        member.reaches(&[]);
    }
    drop(cluster);
}

/// A member that has all of one of the heads, and of the other the root alone.
async fn with_a_root_alone() -> (Apart, Member) {
    let apart = Apart::new().await;
    let d = apart.cluster.member("d");
    d.reaches(&[&apart.a]);
    d.hears(&apart.a).await;
    d.everything().await;
    d.reaches(&[]);
    let root = apart.b.root();
    let encoded = apart.b.ns.node(&root).unwrap().unwrap().to_vec();
    let nodes = &d.ns.shared.replica.nodes;
    nodes.put(&[(root, encoded)]).unwrap();
    (apart, d)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_head_that_nobody_gives_is_not_shown_beside_what_is_here() {
    let (apart, d) = with_a_root_alone().await;
    let before = d.everything().await;
    let tried = async |d: &Member| {
        d.hears(&apart.b).await;
        until("the head was tried", async || {
            let state = d.ns.shared.replica.state.read();
            state.heads.next_due(std::time::Instant::now()).is_some()
        })
        .await;
    };
    tried(&d).await;
    assert_eq!(d.everything().await, before);
    // Nor after a restart.
    drop(d);
    let d = apart.cluster.member("d");
    tried(&d).await;
    assert_eq!(d.everything().await, before);
    d.reaches(&[&apart.a, &apart.b]);
    d.hears(&apart.b).await;
    until("the head is shown", async || {
        let state = d.ns.shared.replica.state.read();
        state.parts.len() == 1 || state.heads.unmerged().count() == 0
    })
    .await;
    assert!(d.look(&format!("d3/of {}", apart.b.peer())).await.is_some());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_head_that_is_shown_and_whose_author_goes_is_hidden_once_it_is_to_be_merged() {
    let (apart, d) = with_a_root_alone().await;
    let before = d.everything().await;
    d.reaches(&[&apart.b]);
    d.hears(&apart.b).await;
    let replica = &d.ns.shared.replica;
    until("the head is shown", async || {
        !replica.state.read().parts.is_empty()
    })
    .await;
    d.reaches(&[]);
    replica.need_all();
    until("it is not any more", async || {
        replica.state.read().parts.is_empty()
    })
    .await;
    assert_eq!(d.everything().await, before);
}
