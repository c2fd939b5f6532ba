//! Renames that meet what others do under the old name.

use super::*;

/// Two members who know the same files, and are apart until they agree.
async fn pair(files: &[(&str, u64)]) -> (Cluster, Member, Member) {
    let cluster = Cluster::new();
    let (a, b) = (cluster.member("a"), cluster.member("b"));
    a.reaches(&[&b]);
    b.reaches(&[&a]);
    a.ns.create().unwrap();
    b.hears(&a).await;
    for (path, content) in files {
        a.write(path, *content).await;
    }
    agree(&[&a, &b]).await;
    one_head(&[&a, &b]).await;
    (cluster, a, b)
}

/// As the filesystem does it.
pub(super) async fn rename(member: &Member, from: &str, to: &str) {
    let source = member.look(from).await.unwrap();
    let (from, to) = (at(from), at(to));
    let below = loop {
        match member.ns.below(&from) {
            Err(NamespaceError::Missing(nodes)) => {
                member
                    .ns
                    .fetch(nodes, Duration::from_secs(5))
                    .await
                    .unwrap();
            }
            below => break below.unwrap(),
        }
    };
    let mut edits = Vec::new();
    for (path, shown) in std::iter::once((from.clone(), source)).chain(below) {
        edits.push(Edit {
            path: path.moved(&from, &to).unwrap().unwrap(),
            entry: Some(shown.entry),
            seen: Vec::new(),
            held: false,
            written: None,
            moved: manifest::Moved::new(path.clone(), &shown.seen),
        });
        edits.push(Edit {
            path,
            entry: None,
            seen: shown.seen,
            held: false,
            written: None,
            moved: None,
        });
    }
    member.ns.rename(edits, from, to).unwrap();
}

/// Both agree, settle on one head, and show this.
async fn end(a: &Member, b: &Member, files: &[(&str, u64)]) {
    agree(&[a, b]).await;
    one_head(&[a, b]).await;
    agree(&[a, b]).await;
    for member in [a, b] {
        let all = member.everything().await;
        let there: Vec<_> = all
            .iter()
            .filter(|(_, kind)| *kind != Kind::Directory)
            .collect();
        for (path, content) in files {
            assert!(member.shows(path, *content).await, "{path}: {there:?}");
        }
        assert_eq!(there.len(), files.len(), "{there:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_edit_follows_a_file_to_its_new_name() {
    let (_cluster, a, b) = pair(&[("f", 1)]).await;
    rename(&a, "f", "g").await;
    a.ns.flush().await.unwrap();
    b.write("f", 2).await;
    end(&a, &b, &[("g", 2)]).await;
    assert_eq!(a.ns.status().conflicts, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_done_in_a_folder_follows_it_to_its_new_name() {
    let (_cluster, a, b) = pair(&[("d/x", 1), ("d/e/y", 2)]).await;
    rename(&a, "d", "n").await;
    a.ns.flush().await.unwrap();
    b.write("d/x", 3).await;
    b.write("d/e/y", 4).await;
    b.write("d/e/new", 5).await;
    end(&a, &b, &[("n/x", 3), ("n/e/y", 4), ("n/e/new", 5)]).await;
    assert_eq!(a.look("d").await, None);
    assert_eq!(a.ns.status().conflicts, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_edit_on_the_renaming_side_is_never_lost() {
    for published_between in [true, false] {
        for edit_first in [true, false] {
            let (_cluster, a, b) = pair(&[("f", 1)]).await;
            let between = async || {
                if published_between {
                    a.ns.flush().await.unwrap();
                }
            };
            if edit_first {
                a.change("f", Some(file(2)));
                between().await;
                rename(&a, "f", "g").await;
            } else {
                rename(&a, "f", "g").await;
                between().await;
                a.change("g", Some(file(2)));
            }
            a.ns.flush().await.unwrap();
            b.write("f", 3).await;
            agree(&[&a, &b]).await;
            one_head(&[&a, &b]).await;
            agree(&[&a, &b]).await;
            let all = a.everything().await;
            for content in [2, 3] {
                let kind = file(content).kind;
                assert!(
                    all.iter().any(|found| found.1 == kind),
                    "{content}: {all:?}"
                );
            }
            assert_eq!(all, b.everything().await);
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_name_that_is_in_use_again_keeps_what_others_do_under_it() {
    for published_between in [true, false] {
        let (_cluster, a, b) = pair(&[("f", 1)]).await;
        // How editors save: the old version becomes a backup.
        rename(&a, "f", "f~").await;
        if published_between {
            a.ns.flush().await.unwrap();
        }
        a.change("f", Some(file(2)));
        a.ns.flush().await.unwrap();
        b.write("f", 3).await;
        agree(&[&a, &b]).await;
        one_head(&[&a, &b]).await;
        assert!(a.shows("f~", 1).await && b.shows("f", 3).await);
        assert_eq!(b.ns.status().conflicts, 1);
        assert_eq!(a.everything().await.len(), 3);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_who_complete_a_rename_at_once_make_no_conflict() {
    let (cluster, a, b) = pair(&[("f", 1)]).await;
    let c = cluster.member("c");
    c.reaches(&[&a, &b]);
    c.hears(&a).await;
    c.everything().await;
    rename(&a, "f", "g").await;
    a.ns.flush().await.unwrap();
    b.write("f", 2).await;
    let heads = [a.ns.heads(), b.ns.heads()].concat();
    for member in [&a, &b, &c] {
        member.ns.take_heads(None, heads.clone()).await.unwrap();
    }
    for member in [&a, &b, &c] {
        member.merged().await;
        member.reaches(&[&a, &b, &c]);
    }
    agree(&[&a, &b, &c]).await;
    one_head(&[&a, &b, &c]).await;
    assert!(c.shows("g", 2).await);
    assert_eq!(c.everything().await.len(), 1);
    assert_eq!(c.ns.status().conflicts, 0);
    for member in [&a, &b, &c] {
        member.reaches(&[]);
    }
}

/// Who has only looked at names lacks the nodes that hints of renames are to go to.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rename_whose_hint_takes_nodes_that_nobody_gives_holds_up_nothing() {
    let cluster = Cluster::new();
    let (a, b) = (cluster.member("a"), cluster.member("b"));
    a.ns.create().unwrap();
    for n in 0..400 {
        a.change(&format!("f{n}"), Some(file(n)));
    }
    a.write("f200x", 1).await;
    for n in 0..400 {
        rename(&a, &format!("f{n}"), &format!("g{n}")).await;
    }
    a.ns.flush().await.unwrap();
    b.reaches(&[&a]);
    b.hears(&a).await;
    b.everything().await;
    let replica = &b.ns.shared.replica;
    until("what every write takes is here", async || {
        !replica.is_outdated()
    })
    .await;
    b.reaches(&[]);
    let (hint, _) = manifest::move_hint(&at("f200x"), &at("y"), &Default::default()).unwrap();
    let there = manifest::get(&replica.nodes, b.root(), &hint);
    assert!(matches!(there, Err(TreeError::Missing(_))), "{there:?}");
    let begun = std::time::Instant::now();
    rename(&b, "f200x", "y").await;
    b.ns.flush().await.unwrap();
    b.write("z", 5).await;
    assert_eq!(b.ns.status().unpublished, 0);
    assert!(begun.elapsed() < FLUSH_MAX);
    a.write("f200x", 2).await;
    a.reaches(&[&b]);
    b.reaches(&[&a]);
    agree(&[&a, &b]).await;
    // What was done meanwhile under the old name is there, and so is what was renamed.
    assert!(a.shows("f200x", 2).await && a.shows("y", 1).await && a.shows("z", 5).await);
    assert_eq!(a.ns.status().conflicts, 0);
}
