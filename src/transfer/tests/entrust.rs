//! A new version is made where the old one is, for who changed it.

use super::{
    kin::{CHANGED, OLD_BLOCKS, versions},
    *,
};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_new_version_is_made_of_the_old_one_and_what_differs() {
    let f = Fixture::new();
    let (old, new) = versions();
    f.has(&old, 0..OLD_BLOCKS);
    f.net.add(&[&new], Behaviour::Honest);
    let engine = f.start(TIMEOUT);
    assert!(engine.make(new.object, old.object).unwrap());
    until("it is made", || {
        f.store.presence(&new.object).unwrap() == Presence::Complete
    })
    .await;
    assert!(engine.make(new.object, old.object).unwrap());
    let fetched: BTreeSet<u64> = f.net.requested().into_iter().flatten().collect();
    assert_eq!(fetched, BTreeSet::from(CHANGED));
    assert!(f.read(new.object, 0..new.object.size) == new.data);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_made_of_what_is_not_whole_here_has_little_in_common_or_failed_before() {
    let f = Fixture::new();
    let (old, new) = versions();
    let other = Content::new(3000 * BLOCK_BYTES, 3);
    f.net.add(&[&new, &other], Behaviour::Honest);
    f.has(&old, 1..OLD_BLOCKS);
    let engine = f.start(TIMEOUT);
    assert!(!engine.make(new.object, old.object).unwrap());
    f.has(&old, 0..1);
    assert!(engine.make(other.object, old.object).unwrap());
    until("it is given up", || {
        !engine.make(other.object, old.object).unwrap()
    })
    .await;
    let fetched: u64 = f
        .net
        .requested()
        .iter()
        .map(|run| run.end - run.start)
        .sum();
    assert!(fetched < 1200, "{fetched}");
    assert!(!engine.make(other.object, old.object).unwrap());
}

#[tokio::test]
async fn only_a_promise_and_a_block_make_a_content_count_as_kept_elsewhere() {
    let f = Fixture::new();
    let (old, new) = versions();
    let engine = f.start(TIMEOUT);
    let entrust = || engine.entrust_within(new.object, old.object, SHORT);
    assert!(!entrust().await, "nobody is there");

    let stranger = f.net.add(&[&new], Behaviour::Honest);
    assert!(!entrust().await, "who lacks the old version is not asked");
    assert!(f.net.state.lock().makes.is_empty());
    f.net.state.lock().peers.remove(&stranger);

    let idle = f.net.add(&[&old], Behaviour::Honest);
    assert!(!entrust().await, "it never promises");
    assert!(f.net.state.lock().makes.len() > 2);
    f.net.state.lock().peers.remove(&idle);

    let liar = f.net.add(&[&old, &new], Behaviour::Corrupt);
    assert!(!entrust().await, "its block is wrong");
    f.net.state.lock().peers.remove(&liar);

    let older = f.net.add(&[&old, &new], Behaviour::Honest);
    f.net.state.lock().treeless.insert(older);
    assert!(!entrust().await, "it does not know the question");
    f.net.state.lock().treeless.clear();
    assert!(entrust().await);
}
