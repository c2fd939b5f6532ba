//! Changes of files of which little is here.

use std::sync::atomic::Ordering;

use super::*;
use crate::manifest::Kind;

const SIZE: usize = 16 * 1024 * 1024 + 300;

fn noise(seed: u8, length: usize) -> Vec<u8> {
    let mut bytes = vec![0; length];
    blake3::Hasher::new()
        .update(&[seed])
        .finalize_xof()
        .fill(&mut bytes);
    bytes
}

/// A file that another member wrote, changed here in its middle and at its end; what it is then.
fn changed(fixture: &Fixture) -> Vec<u8> {
    let mut bytes = noise(1, SIZE);
    fixture.change_behind("f", &bytes);
    let handle = fixture.open_file("f", libc::O_RDWR).unwrap();
    for (at, with) in [(5_000_007, noise(2, 10)), (SIZE, noise(3, 100_000))] {
        fixture.write_at(handle, at as u64, &with).unwrap();
        bytes.truncate(bytes.len().max(at));
        let end = bytes.len().min(at + with.len());
        bytes[at..end].copy_from_slice(&with[..end - at]);
        bytes.extend(&with[end - at..]);
    }
    fixture.core.release(handle);
    bytes
}

fn published(fixture: &Fixture) -> Object {
    let path = TreePath::parse(b"f").unwrap();
    match fixture.namespace.get(&path).unwrap().unwrap().entry.kind {
        Kind::File(object) => object,
        kind => panic!("{kind:?}"),
    }
}

#[test]
fn a_change_is_published_without_the_rest_once_another_member_keeps_the_whole() {
    let fixture = Fixture::new();
    fixture.elsewhere.keeps.store(true, Ordering::Relaxed);
    let bytes = changed(&fixture);
    fixture.settle();
    let brought = *fixture.elsewhere.brought.lock();
    assert!(brought <= 4 * BLOCK_BYTES, "{brought}");
    let object = published(&fixture);
    assert_eq!(object.content, content::hash_bytes(&bytes));

    // What is here of it is what is below the next change.
    let handle = fixture.open_file("f", libc::O_RDWR).unwrap();
    fixture.write_at(handle, 0, b"again").unwrap();
    fixture.core.release(handle);
    fixture.settle();
    let brought = *fixture.elsewhere.brought.lock();
    assert!(brought <= 6 * BLOCK_BYTES, "{brought}");
    let again = [b"again", &bytes[5..]].concat();
    assert_eq!(published(&fixture).content, content::hash_bytes(&again));
    assert!(fixture.content("f").unwrap() == again);
}

#[test]
fn where_nobody_keeps_it_all_of_it_is_fetched_and_kept_here() {
    let fixture = Fixture::new();
    let bytes = changed(&fixture);
    fixture.settle();
    let object = published(&fixture);
    assert_eq!(object.content, content::hash_bytes(&bytes));
    assert!(*fixture.elsewhere.brought.lock() as usize >= SIZE - 4 * BLOCK_BYTES as usize);
    assert_eq!(
        fixture.store.presence(&object).unwrap(),
        crate::store::Presence::Complete
    );
}

#[test]
fn what_is_written_while_another_member_is_asked_is_published_after_it() {
    let fixture = Fixture::new();
    fixture.elsewhere.keeps.store(true, Ordering::Relaxed);
    let mut bytes = noise(1, SIZE);
    fixture.change_behind("f", &bytes);
    let handle = fixture.open_file("f", libc::O_RDWR).unwrap();
    for round in 0..40u8 {
        let at = usize::from(round) * 300_000;
        fixture.write_at(handle, at as u64, &[round; 9]).unwrap();
        bytes[at..at + 9].fill(round);
        if round % 8 == 0 {
            let core = fixture.core.clone();
            fixture
                .runtime
                .spawn(async move { core.publish_all().await });
        }
    }
    fixture.core.release(handle);
    fixture.settle();
    assert_eq!(published(&fixture).content, content::hash_bytes(&bytes));
}
