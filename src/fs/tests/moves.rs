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

#[test]
fn what_is_written_through_a_name_outside_while_a_folder_is_renamed_is_kept() {
    let fixture = Fixture::new();
    let make = |folder: u64, name: String, kind: Kind| {
        let made = fixture
            .act(move |core| core.make(CALLER, folder, name.as_bytes(), kind.clone(), 0o755));
        made.expect("made").number
    };
    let folder = make(ROOT, "d".into(), Kind::Directory);
    for number in 0..500 {
        make(folder, number.to_string(), Kind::Fifo);
    }
    fixture.put("x", b"first").expect("put");
    let number = fixture.walk("x").expect("there");
    fixture
        .act(move |core| core.link(number, folder, b"y"))
        .expect("linked");
    fixture.settle();
    for round in 0..20 {
        let (from, to) = match round % 2 {
            0 => ("d", "e"),
            _ => ("e", "d"),
        };
        let data = format!("round {round}");
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let renamed = fixture.act(move |core| {
                    let (from, to) = (from.as_bytes(), to.as_bytes());
                    core.rename((ROOT, from), (ROOT, to), Replace::Yes)
                });
                renamed.expect("renamed");
            });
            let flags = libc::O_WRONLY | libc::O_TRUNC;
            let handle = fixture.open_file("x", flags).expect("opened");
            fixture
                .write_at(handle, 0, data.as_bytes())
                .expect("written");
            fixture.core.release(handle);
        });
        fixture.settle();
        let flushed = fixture.runtime.block_on(fixture.namespace.flush());
        flushed.expect("flushed");
        for path in ["x".to_owned(), format!("{to}/y")] {
            let content = fixture.content(&path).expect("read");
            assert_eq!(String::from_utf8_lossy(&content), data, "{path}");
        }
        assert_eq!(fixture.names("").expect("listed"), [to, "x"]);
    }
}
