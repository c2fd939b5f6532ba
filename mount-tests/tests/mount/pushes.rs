//! Pushes that never came.

use std::time::Instant;

use p2pfs::{content::Object, manifest::HybridTime};
use p2pfs_mount_tests::{LONG, SOON, until};

use super::{
    attacker::now_ns,
    member::{Member, play},
    pair,
    security::keys,
};

#[test]
fn a_change_that_was_never_pushed_is_found_by_comparing_heads() {
    let pair = pair();
    pair.a.write("old", "x");
    pair.a.publishes();
    let (member, address) = (keys(&pair.id), pair.a.multiaddr());
    let _quiet = play(&pair.lab.host("e"), || async move {
        let mut quiet = Member::join(&address, member).await;
        // What it writes comes after it was greeted: nothing but the comparison tells of it.
        quiet.is_greeted().await;
        let time = HybridTime(now_ns());
        let root = quiet.add(
            quiet.newest().root,
            &[("never pushed", Object::empty())],
            time,
        );
        let head = quiet.sign(root, time);
        quiet.show(&head);
        quiet
    });
    until(LONG, "the change is found", || pair.a.has("never pushed"));
    assert_eq!(pair.a.read("never pushed").unwrap(), b"");
    assert_eq!(pair.a.read("old").unwrap(), b"x");
}

#[test]
fn an_archive_that_is_unpacked_becomes_few_heads() {
    const FILES: usize = 400;
    let pair = pair();
    pair.a.write("old", "x");
    pair.b.shows("old", "x");
    let host = pair.a.host();
    host.sh(&format!(
        "mkdir -p packed/folder && cd packed && seq {FILES} | while read n; do echo $n > folder/$n; done && tar cf ../packed.tar folder"
    ));
    let events = host.start_p2pfs(&format!("events -C {}", pair.a.dir().display()));
    events.says("\"event\":\"following\"");
    let archive = host.path("packed.tar");
    let begun = Instant::now();
    pair.a.with_within(LONG, "", |root| {
        let tar = std::process::Command::new("tar")
            .arg("xf")
            .arg(archive)
            .arg("-C")
            .arg(root)
            .status();
        assert!(tar.unwrap().success());
    });
    pair.a.publishes();
    let seconds = begun.elapsed().as_secs_f64();
    until(LONG, "all are seen at the other side", || {
        pair.b
            .list("folder")
            .is_ok_and(|names| names.len() == FILES)
    });
    // Each head is one push.
    let heads = events.output().matches("\"event\":\"published\"").count();
    println!("{FILES} files in {heads} heads, {seconds:.1} s");
    // Four a second, and a few more at first.
    let enough = 17 + (4.0 * seconds).ceil() as usize;
    assert!(heads > 0 && heads <= enough, "{heads} heads in {seconds} s");
}

#[test]
fn a_push_makes_good_the_one_before_it_that_was_lost() {
    let pair = pair();
    pair.a.write("old", "x");
    pair.a.publishes();
    let (member, address) = (keys(&pair.id), pair.a.multiaddr());
    let _hasty = play(&pair.lab.host("e"), || async move {
        let mut hasty = Member::join(&address, member).await;
        // Asked for heads it shows none of its own: the second push is all that tells of either change.
        let time = HybridTime(now_ns());
        let lost = hasty.add(hasty.newest().root, &[("first", Object::empty())], time);
        hasty.sign(lost, time);
        let time = HybridTime(now_ns());
        let root = hasty.add(lost, &[("second", Object::empty())], time);
        let head = hasty.sign(root, time);
        hasty.push(&head, lost).await;
        hasty
    });
    for path in ["first", "second"] {
        until(SOON, "the change is seen", || pair.a.has(path));
        // It is passed on as any push is. Whoever asks for its nodes before they are there asks again.
        until(LONG, "the change is seen by others", || pair.b.has(path));
    }
    assert_eq!(pair.b.read("old").unwrap(), b"x");
}

#[test]
fn what_was_pushed_while_packets_were_lost_is_made_good_when_they_are_not() {
    let pair = pair();
    pair.a.write("old", "x");
    pair.b.shows("old", "x");
    pair.lab.split_off(&[pair.b.host()]);
    pair.a.write("while apart", "by a");
    pair.b.write("apart too", "by b");
    pair.a.publishes();
    pair.b.publishes();
    assert!(!pair.b.has("while apart") && !pair.a.has("apart too"));
    pair.lab.heal();
    pair.a.write("after", "by a");
    pair.b.shows_within(LONG, "while apart", "by a");
    pair.b.shows_within(LONG, "after", "by a");
    pair.a.shows_within(LONG, "apart too", "by b");
}
