//! Copies by reference.

use super::*;
use crate::{fs::ops::Place, manifest::Kind};

/// Noise that differs from block to block.
fn noise(len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    blake3::Hasher::new().finalize_xof().fill(&mut bytes);
    bytes
}

impl Fixture {
    fn copy(&self, from: u64, to: u64, offset: u64, len: u64) -> Result<u64, i32> {
        let at = move |handle| Place { handle, offset };
        self.act(move |core| core.copy_range(at(from), at(to), len))
    }

    fn brought(&self) -> u64 {
        *self.elsewhere.brought.lock()
    }

    fn kind(&self, path: &str) -> Option<Kind> {
        let path = TreePath::parse(path.as_bytes()).expect("a path");
        let shown = self.namespace.get(&path).expect("known");
        shown.map(|shown| shown.entry.kind)
    }
}

#[test]
fn a_whole_file_that_is_elsewhere_is_copied_without_a_byte_of_it() {
    let fixture = Fixture::new();
    let data = noise(400_000);
    fixture.change_behind("remote", &data);
    let from = fixture.open_file("remote", libc::O_RDONLY).expect("opened");
    let to = fixture.create("copy").expect("created");
    assert_eq!(fixture.copy(from, to, 0, 100_000), Ok(100_000));
    assert_eq!(fixture.copy(from, to, 100_000, u64::MAX), Ok(300_000));
    assert_eq!(fixture.copy(from, to, 400_000, u64::MAX), Ok(0));
    assert_eq!(fixture.attr("copy").expect("there").size, 400_000);
    fixture.core.release(to);
    fixture.settle();
    assert_eq!(fixture.kind("copy"), fixture.kind("remote"));
    wait_until("the journal is empty", || {
        fixture.store.journaled().expect("journal").is_empty()
    });
    assert_eq!(fixture.brought(), 0, "nothing was fetched");
    // Of a copy that is not published yet, too.
    let again = fixture.create("again").expect("created");
    let copy = fixture.open_file("copy", libc::O_RDWR).expect("opened");
    fixture.write_at(copy, 500_000, b"tail").expect("written");
    assert_eq!(fixture.copy(copy, again, 0, u64::MAX), Ok(400_000));
    assert_eq!(fixture.brought(), 0, "nothing was fetched");
    fixture.core.release(copy);
    fixture.core.release(again);
    assert_eq!(fixture.content("again").expect("read"), data);
}

#[test]
fn what_can_not_be_taken_by_reference_is_left_to_the_kernel() {
    let fixture = Fixture::new();
    fixture.change_behind("one", &noise(200_000));
    fixture.change_behind("other", &[7; 200_000]);
    let one = fixture.open_file("one", libc::O_RDWR).expect("opened");
    let other = fixture.open_file("other", libc::O_RDWR).expect("opened");
    let to = fixture.create("to").expect("created");
    let place = |handle, offset| Place { handle, offset };
    let apart = fixture.act(move |core| core.copy_range(place(one, 0), place(to, 1), 10));
    assert_eq!(apart, Err(libc::EOPNOTSUPP), "another offset");
    assert_eq!(
        fixture.copy(one, to, 50_000, 10),
        Err(libc::EOPNOTSUPP),
        "after a gap"
    );
    assert_eq!(
        fixture.copy(one, one, 0, 10),
        Err(libc::EOPNOTSUPP),
        "itself"
    );
    fixture.write_at(one, 0, b"new").expect("written");
    assert_eq!(
        fixture.copy(one, to, 0, 10),
        Err(libc::EOPNOTSUPP),
        "what is written"
    );
    assert_eq!(fixture.copy(other, to, 0, 70_000), Ok(70_000));
    assert_eq!(
        fixture.copy(one, to, 70_000, 10),
        Err(libc::EOPNOTSUPP),
        "a second content"
    );
    let reading = fixture.open_file("to", libc::O_RDONLY).expect("opened");
    assert_eq!(
        fixture.copy(other, reading, 0, 10),
        Err(libc::EBADF),
        "not for writing"
    );
    assert_eq!(fixture.read_at(to, 0, 80_000).expect("read"), [7; 70_000]);
    for handle in [one, other, to, reading] {
        fixture.core.release(handle);
    }
}

#[test]
fn a_part_of_a_copy_and_what_is_written_over_it_survive_a_kill() {
    let mut fixture = Fixture::new();
    let data = noise(300_000);
    fixture.change_behind("remote", &data);
    fixture
        .runtime
        .block_on(fixture.namespace.flush())
        .expect("flushed");
    let from = fixture.open_file("remote", libc::O_RDONLY).expect("opened");
    let whole = fixture.create("whole").expect("created");
    assert_eq!(fixture.copy(from, whole, 0, u64::MAX), Ok(300_000));
    let part = fixture.create("part").expect("created");
    assert_eq!(fixture.copy(from, part, 0, 200_000), Ok(200_000));
    fixture.write_at(part, 100_000, b"patch").expect("written");
    fixture.write_at(part, 250_000, b"tail").expect("written");
    for path in ["whole", "part"] {
        let number = fixture.walk(path).expect("there");
        fixture
            .runtime
            .block_on(fixture.core.sync(Some(number), 0))
            .expect("synced");
    }
    assert_eq!(fixture.brought(), 0, "nothing was fetched");
    let (dir, contents) = (fixture.dir.clone(), fixture.elsewhere.contents.clone());
    std::mem::replace(&mut fixture.runtime, idle()).shutdown_timeout(Duration::from_secs(5));
    drop(fixture);

    let again = Fixture::open(dir);
    *again.elsewhere.contents.lock() = std::mem::take(&mut *contents.lock());
    assert_eq!(again.store.journaled().expect("journal").len(), 2);
    taken_up(&again);
    again.settle();
    assert_eq!(again.kind("whole"), again.kind("remote"));
    let mut expected = data[..200_000].to_vec();
    expected[100_000..100_005].copy_from_slice(b"patch");
    expected.resize(250_000, 0);
    expected.extend_from_slice(b"tail");
    assert_eq!(again.content("part").expect("read"), expected);
    assert_eq!(again.content("whole").expect("read"), data);
}
