//! Moving folders.

use super::*;
use crate::{
    fs::{core::Need, ops::Replace},
    manifest::Kind,
};

#[test]
fn while_a_folder_is_moved_nothing_changes_in_it_and_all_else_goes_on() {
    let fixture = Fixture::new();
    for name in [b"d".as_slice(), b"e"] {
        fixture
            .act(move |core| core.make(CALLER, ROOT, name, Kind::Directory, 0o755))
            .expect("made");
    }
    fixture.put("d/x", b"x").expect("put");
    let folder = fixture.walk("d").expect("there");
    let moved = TreePath::parse(b"d").expect("a path");
    fixture.core.moving.lock().push(moved);

    let make = move |core: &Arc<Core>| core.make(CALLER, folder, b"y", Kind::Fifo, 0o644);
    let rename = |core: &Arc<Core>| core.rename((ROOT, b"d"), (ROOT, b"moved"), Replace::Yes);
    let waits = |need| assert!(matches!(need, Fail::Need(Need::Move)), "{need:?}");
    waits(make(&fixture.core).expect_err("it waits"));
    waits(fixture.core.unlink(folder, b"x").expect_err("it waits"));
    waits(rename(&fixture.core).expect_err("it waits"));
    assert_eq!(fixture.content("d/x").expect("read"), b"x");
    fixture.put("e/z", b"z").expect("put");
    assert_eq!(fixture.names("e").expect("listed"), ["z"]);

    std::thread::scope(|scope| {
        let waiting = scope.spawn(|| fixture.act(make));
        fixture.core.moving.lock().clear();
        fixture.core.published.send_modify(|ended| *ended += 1);
        waiting.join().expect("ends").expect("made");
    });
    fixture.act(rename).expect("renamed");
    assert_eq!(fixture.names("moved").expect("listed"), ["x", "y"]);
    assert!(fixture.core.moving.lock().is_empty());
}
