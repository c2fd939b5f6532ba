//! Killed processes and restored state folders.

use std::{
    fs,
    io::Write,
    path::PathBuf,
    sync::mpsc,
    thread,
    time::{Duration, Instant},
};

use p2pfs_mount_tests::{Host, LONG, Mount, hash, noise, until};
use rand::Rng;
use rustix::process::{Signal, kill_process};

use super::pair;

/// Writes and syncs files until the mount is gone; the numbers of those that `fsync` has confirmed. They lie in `run`.
fn write_until_it_dies(mount: &Mount, run: u64, kill_after: Duration) -> Vec<u64> {
    let dir = mount.path(&format!("run{run}"));
    let pid = mount.pid();
    let (confirmed, numbers) = mpsc::channel();
    let writer = thread::spawn(move || -> std::io::Result<()> {
        fs::create_dir(&dir)?;
        for number in 0.. {
            // Every fourth one as an editor saves it: under another name first.
            let renamed = number % 4 == 3;
            let name = if renamed {
                "new".to_owned()
            } else {
                number.to_string()
            };
            let mut file = fs::File::create(dir.join(&name))?;
            let bytes = content(run, number);
            let (first, second) = bytes.split_at(bytes.len() / 2);
            file.write_all(first)?;
            file.write_all(second)?;
            file.sync_all()?;
            if renamed {
                fs::rename(dir.join(name), dir.join(number.to_string()))?;
                fs::File::open(&dir)?.sync_all()?;
            }
            // The handle is still open: durable is what fsync says, not what close would do.
            if confirmed.send(number).is_err() {
                break;
            }
        }
        Ok(())
    });
    let begun = Instant::now();
    let mut done = Vec::new();
    while let Some(left) = kill_after.checked_sub(begun.elapsed()) {
        match numbers.recv_timeout(left) {
            Ok(number) => done.push(number),
            Err(_) => break,
        }
    }
    rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
    // The dead mount answers with errors, so the writer ends.
    mount.with("", |_| writer.join().unwrap()).unwrap_err();
    done.extend(numbers.try_iter());
    done
}

fn content(run: u64, number: u64) -> Vec<u8> {
    // Contents of some bytes, of some KiB and of several blocks.
    noise(
        run << 32 | number,
        [300, 9_000, 200_000][(number % 3) as usize],
    )
}

#[test]
fn what_fsync_confirmed_survives_kills_and_is_published_by_the_next_mount() {
    let pair = pair();
    let mut a = None;
    let mut written = Vec::new();
    for run in 0..3 {
        let mount = a.as_ref().unwrap_or(&pair.a);
        let kill_after = Duration::from_millis(rand::rng().random_range(100..1500));
        println!("run {run}: killed after {kill_after:?}");
        let confirmed = write_until_it_dies(mount, run, kill_after);
        // No manual step: the dead mount is cleared by the mount itself.
        let again = pair.a.host().mount("c", "");
        for number in &confirmed {
            let there = again
                .read(&format!("run{run}/{number}"))
                .unwrap_or_else(|error| panic!("{run}/{number}: {error}"));
            assert_eq!(hash(&there), hash(&content(run, *number)), "{run}/{number}");
        }
        written.extend(confirmed.into_iter().map(|number| (run, number)));
        a = Some(again);
    }
    assert!(!written.is_empty(), "nothing was ever confirmed");
    for (run, number) in written {
        pair.b
            .shows_within(LONG, &format!("run{run}/{number}"), content(run, number));
    }
}

#[test]
fn a_killed_mount_is_cleared_by_unmount_too() {
    let pair = pair();
    pair.a.write("file", "x");
    pair.b.shows("file", "x");
    pair.a.kill();
    assert!(pair.a.read("file").is_err());
    pair.a.host().p2pfs("unmount mnt").ok();
    assert_eq!(fs::read_dir(pair.a.dir()).unwrap().count(), 0);
    let a = pair.a.host().mount("c", "");
    assert_eq!(a.read("file").unwrap(), b"x");
}

#[test]
fn a_state_folder_restored_from_an_older_copy_loses_nothing_on_either_side() {
    let pair = pair();
    let host = pair.a.host().clone();
    pair.a.write("old", "in the copy");
    pair.a.write("edited", "first");
    pair.b.shows("edited", "first");
    let id = pair.a.id();
    pair.a.unmount();
    host.sh("cp -a state copy");

    let a = host.mount("c", "");
    a.meets(1);
    a.write("after", "after the copy");
    a.write("edited", "second");
    pair.b.shows("after", "after the copy");
    pair.b.shows("edited", "second");
    a.unmount();

    host.sh("rm -r state && cp -a copy state");
    host.cut_off();
    let a = host.mount("c", "");
    assert_eq!(a.read("edited").unwrap(), b"first");
    assert!(!a.has("after"));
    a.write("offline", "written on the restored state");
    host.reconnect();
    for mount in [&a, &pair.b] {
        mount.shows_within(LONG, "old", "in the copy");
        mount.shows_within(LONG, "after", "after the copy");
        mount.shows_within(LONG, "edited", "second");
        mount.shows_within(LONG, "offline", "written on the restored state");
    }
    assert_ne!(a.id(), id, "a restored folder is another writer");
    assert_eq!(a.status()["manifest"]["conflicts"], 0);
}

/// As a virtual machine's snapshot is gone back to, or `rsync` restores a backup: the marker by which a copy is told stays.
#[test]
fn a_machine_that_is_set_back_unseen_and_works_on_before_it_hears_from_others_loses_nothing() {
    let pair = pair();
    let host = pair.a.host().clone();
    pair.a.write("old", "in the copy");
    for turn in 0..4 {
        pair.a.write(&format!("edited{turn}"), "first");
    }
    pair.b.shows("edited3", "first");
    // By this the first one knows that all of that has reached somebody.
    pair.b.write("seen", "by the other");
    pair.a.shows("seen", "by the other");
    pair.a.unmount();
    host.sh("cp -a state copy");

    let a = host.mount("c", "");
    a.meets(1);
    for turn in 0..4 {
        a.write(&format!("after{turn}"), "after the copy");
        a.write(&format!("edited{turn}"), "second");
        a.ask("wait --published").ok();
    }
    pair.b.shows("after3", "after the copy");
    pair.b.shows("edited3", "second");
    a.unmount();

    host.sh("find state -type f ! -name origin -delete && cp -an copy/. state/");
    host.cut_off();
    let a = host.mount("c", "");
    assert_eq!(a.read("edited0").unwrap(), b"first");
    assert!(!a.has("after0"));
    // As many heads as were signed since the copy, and more.
    for turn in 0..20 {
        a.write("offline", format!("written on the restored state, {turn}"));
        host.sh("sync mnt/");
    }
    host.reconnect();
    for mount in [&a, &pair.b] {
        for turn in 0..4 {
            mount.shows_within(LONG, &format!("after{turn}"), "after the copy");
            mount.shows_within(LONG, &format!("edited{turn}"), "second");
        }
        mount.shows_within(LONG, "old", "in the copy");
        mount.shows_within(LONG, "offline", "written on the restored state, 19");
    }
    assert_eq!(a.status()["manifest"]["conflicts"], 0);
}

/// The journal of a host's cluster.
fn journal(host: &Host) -> PathBuf {
    let folders = fs::read_dir(host.state()).unwrap();
    let mut journals = folders.map(|folder| folder.unwrap().path().join("journal"));
    journals.find(|journal| journal.is_file()).unwrap()
}

/// Writes a file, and returns it open, with a record in the journal.
fn journaled(mount: &Mount, name: &str, bytes: &[u8]) -> fs::File {
    mount.with(name, |path| {
        let mut file = fs::File::create(path).unwrap();
        file.write_all(bytes).unwrap();
        file.sync_all().unwrap();
        file
    })
}

#[test]
fn a_journal_from_before_an_orderly_end_brings_nothing_back() {
    let pair = pair();
    let host = pair.a.host().clone();
    let open = journaled(&pair.a, "file", b"first");
    let journal = journal(&host);
    fs::copy(&journal, host.dir().join("copy")).unwrap();
    drop(open);
    pair.b.shows("file", "first");
    pair.a.write("file", "second");
    pair.b.shows("file", "second");
    pair.a.unmount();
    assert_eq!(fs::read(&journal).unwrap(), b"");
    fs::copy(host.dir().join("copy"), &journal).unwrap();
    let a = host.mount("c", "");
    a.meets(1);
    a.write("later", "of this run");
    pair.b.shows("later", "of this run");
    for mount in [&a, &pair.b] {
        mount.shows("file", "second");
    }
    assert_eq!(a.status()["manifest"]["conflicts"], 0);
}

#[test]
fn what_was_unpublished_in_a_copy_does_not_take_the_place_of_what_came_later() {
    let pair = pair();
    let host = pair.a.host().clone();
    // Begun before the file is open: what is closed in a new process waits for the mount.
    let copying = "until test -e go; do sleep 0.02; done; cp -a state copy && touch copied";
    let _copying = host.start_sh(copying);
    let pid = pair.a.pid();
    let open = journaled(&pair.a, "file", b"first");
    kill_process(pid, Signal::STOP).unwrap();
    fs::write(host.dir().join("go"), "").unwrap();
    until(LONG, "the state folder is copied", || {
        host.dir().join("copied").exists()
    });
    kill_process(pid, Signal::CONT).unwrap();
    drop(open);
    pair.b.shows("file", "first");
    pair.a.write("file", "second");
    pair.b.shows("file", "second");
    pair.a.unmount();
    host.sh("rm -rf state && mv copy state");
    let a = host.mount("c", "");
    a.meets(1);
    for mount in [&a, &pair.b] {
        until(LONG, "what was unpublished in the copy is a copy", || {
            mount
                .list("")
                .unwrap()
                .iter()
                .any(|name| name.contains("conflict"))
        });
        mount.shows("file", "second");
    }
}

#[test]
fn files_left_open_by_a_kill_do_not_disturb_others() {
    let pair = pair();
    pair.a.write("kept", "as it was");
    pair.b.shows("kept", "as it was");
    // Written but never synced nor closed: it may be there or not, in full or in part; what was there before is whole.
    let open = pair.a.with("kept", |path| {
        let mut file = fs::OpenOptions::new().append(true).open(path).unwrap();
        file.write_all(b", and more").unwrap();
        file
    });
    pair.a.kill();
    drop(open);
    let a = pair.a.host().mount("c", "");
    let there = a.read("kept").unwrap();
    assert!(
        there == b"as it was" || there == b"as it was, and more",
        "{there:?}"
    );
    pair.b.shows_within(LONG, "kept", &there);
}

#[test]
fn what_was_synced_in_an_existing_file_or_under_another_name_survives_a_kill() {
    use std::os::unix::fs::FileExt;
    let pair = pair();
    let (mut big, mut remote) = (noise(1, 3_000_000), noise(2, 3_000_000));
    pair.a.write("big", &big);
    pair.b.write("remote", &remote);
    pair.a.write("doc", "first");
    pair.b.shows("doc", "first");
    // Half a name is enough to know it by: none of its bytes are here.
    p2pfs_mount_tests::until(LONG, "the entry is seen", || pair.a.has("remote"));
    let open = pair.a.with("", |dir| {
        // An editor's save.
        let new = fs::File::create(dir.join(".doc.new")).unwrap();
        new.write_all_at(b"second", 0).unwrap();
        new.sync_all().unwrap();
        fs::rename(dir.join(".doc.new"), dir.join("doc")).unwrap();
        fs::File::open(dir).unwrap().sync_all().unwrap();
        // A database's write, in a file that is here and in one that is not.
        let patch = |name: &str, at: u64| {
            let file = fs::OpenOptions::new()
                .write(true)
                .open(dir.join(name))
                .unwrap();
            file.write_all_at(b"patched", at).unwrap();
            file.sync_data().unwrap();
            file
        };
        [patch("big", 1_500_000), patch("remote", 2_000_000), new]
    });
    big[1_500_000..1_500_007].copy_from_slice(b"patched");
    remote[2_000_000..2_000_007].copy_from_slice(b"patched");
    pair.a.kill();
    drop(open);
    let a = pair.a.host().mount("c", "");
    assert_eq!(a.read("doc").unwrap(), b"second");
    assert!(!a.has(".doc.new"));
    assert_eq!(hash(&a.read("big").unwrap()), hash(&big));
    a.shows_within(LONG, "remote", &remote);
    for (name, bytes) in [("doc", &b"second"[..]), ("big", &big), ("remote", &remote)] {
        pair.b.shows_within(LONG, name, bytes);
    }
    pair.b.lacks(".doc.new");
    assert_eq!(pair.b.status()["manifest"]["conflicts"], 0);
}

#[test]
fn a_cloned_machine_is_a_writer_of_its_own() {
    let pair = pair();
    pair.a.write("before", "cloned along");
    pair.b.shows("before", "cloned along");
    let original = pair.a.host();
    pair.a.unmount();
    let clone = pair.lab.host("clone");
    clone.sh(&format!("cp -a {} state", original.state().display()));
    let (a, c) = (original.mount("c", ""), clone.mount("c", ""));
    assert_ne!(a.id(), c.id());
    a.write("by-a", "the original");
    c.write("by-c", "the clone");
    for mount in [&a, &c, &pair.b] {
        mount.shows_within(LONG, "before", "cloned along");
        mount.shows_within(LONG, "by-a", "the original");
        mount.shows_within(LONG, "by-c", "the clone");
    }
}
