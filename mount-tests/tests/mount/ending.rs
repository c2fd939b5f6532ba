//! The end of a mount, whichever way it comes, and leaving for good.

use std::{fs, time::Duration};

use p2pfs_mount_tests::{LONG, Lab, SOON, hash, noise, until};
use rustix::process::{Signal, kill_process};

use super::pair;

#[test]
fn every_way_to_unmount_ends_the_process_with_everything_published() {
    let pair = pair();
    let host = pair.a.host();
    let fusermount = "command -v fusermount3 > /dev/null || exit 0; fusermount3 -u mnt";
    let ways: [(&str, &dyn Fn(rustix::process::Pid)); 6] = [
        ("p2pfs unmount", &|_| drop(host.sh("$P2PFS unmount mnt"))),
        ("umount", &|_| drop(host.sh("umount mnt"))),
        ("umount -l", &|_| drop(host.sh("umount -l mnt"))),
        ("fusermount3 -u", &|pid| {
            host.sh(fusermount);
            if !host.try_sh("command -v fusermount3").stdout.contains('/') {
                kill_process(pid, Signal::TERM).unwrap();
            }
        }),
        ("SIGTERM", &|pid| kill_process(pid, Signal::TERM).unwrap()),
        ("SIGINT", &|pid| kill_process(pid, Signal::INT).unwrap()),
    ];
    pair.a.unmount();
    for (number, (way, end)) in ways.iter().enumerate() {
        println!("{way}");
        // One that takes a moment to hash and publish.
        let bytes = noise(
            number as u64,
            if *way == "umount" { 20 << 20 } else { 70_000 },
        );
        let a = host.mount("c", "");
        a.write(&format!("file{number}"), &bytes);
        let pid = a.pid();
        end(pid);
        a.is_gone(pid);
        let a = host.mount("c", "");
        assert_eq!(a.status()["manifest"]["unpublished"], 0, "{way}");
        assert_eq!(
            hash(&a.read(&format!("file{number}")).unwrap()),
            hash(&bytes),
            "{way}"
        );
        pair.b.shows_within(LONG, &format!("file{number}"), &bytes);
        a.unmount();
    }
}

#[test]
fn a_mount_in_the_foreground_ends_with_one_ctrl_c() {
    let lab = Lab::new();
    let a = lab.host("a");
    a.create("");
    let mut mount = a.start_p2pfs("mount c mnt -f");
    mount.says("c mounted on ");
    a.sh("echo text > mnt/file");
    mount.signal(Signal::INT);
    assert!(mount.ends_within(SOON).success(), "{}", mount.output());
    assert_eq!(fs::read_dir(a.path("mnt")).unwrap().count(), 0);
    let a = a.mount("c", "");
    assert_eq!(a.read("file").unwrap(), b"text\n");
}

#[test]
fn a_mount_in_the_foreground_ends_in_order_when_its_terminal_is_closed() {
    let lab = Lab::new();
    let a = lab.host("a");
    let (id, _) = a.create("");
    let mut mount = a.start_p2pfs(&format!("mount {id} mnt -f"));
    mount.says("c mounted on ");
    // An id that was a word of the command line has given way to the saved name.
    let pid = mount.pid().as_raw_nonzero();
    let words = fs::read_to_string(format!("/proc/{pid}/cmdline")).unwrap();
    assert!(words.contains("mount\0c\0mnt"), "{words:?}");
    a.sh("echo text > mnt/file");
    mount.signal(Signal::HUP);
    assert!(mount.ends_within(SOON).success(), "{}", mount.output());
    let a = a.mount("c", "");
    assert_eq!(a.read("file").unwrap(), b"text\n");
}

#[test]
fn a_mount_right_after_umount_waits_for_the_one_that_ends() {
    let lab = Lab::new();
    let a = lab.host("a");
    a.create("");
    a.p2pfs("mount c mnt").ok();
    a.sh("echo text > mnt/file");
    a.sh("umount mnt");
    let again = a.p2pfs("mount c mnt");
    again.ok();
    assert_eq!(a.sh("cat mnt/file"), "text");
    a.p2pfs("unmount mnt").ok();
}

#[test]
fn a_busy_mount_is_not_unmounted_and_its_users_are_named() {
    let lab = Lab::new();
    let a = lab.host("a");
    a.create("");
    let a = a.mount("c", "");
    a.write("file", "x");
    let user = a.host().start_sh("cd mnt && exec sleep 1000");
    until(SOON, "it is there", || {
        fs::read_link(format!("/proc/{}/cwd", user.pid())).is_ok_and(|cwd| cwd == a.dir())
    });
    let unmounted = a.host().p2pfs("unmount mnt");
    let said = unmounted.fails(1);
    assert!(
        said.contains("in use") && said.contains(&user.pid().to_string()),
        "{said}"
    );
    assert_eq!(a.read("file").unwrap(), b"x");
    let pid = a.pid();
    a.host().p2pfs("unmount --lazy mnt").ok();
    user.kill();
    a.is_gone(pid);
}

#[test]
fn leaving_shows_what_exists_only_here_and_needs_force_then() {
    let pair = pair();
    let both = noise(1, 100_000);
    pair.a.write("both", &both);
    pair.b.shows("both", &both);
    pair.a.write("alone", noise(2, 100_000));
    until(SOON, "only one content is only here", || {
        pair.a.status()["only_here"]["files"] == 1
    });
    let host = pair.a.host();
    let pid = pair.a.pid();
    let left = pair.a.ask("leave");
    left.fails(1);
    assert_eq!(left.stdout.trim().trim_matches('/'), "alone");
    assert!(left.stderr.contains("--force"), "{left}");
    assert_eq!(hash(&pair.a.read("both").unwrap()), hash(&both));
    pair.a.ask("leave --force").ok();
    pair.a.is_gone(pid);
    // The keys are forgotten, the peers know, the tracker hands it out no more.
    assert_eq!(host.p2pfs("id c").code(), Some(1));
    until(SOON, "the peer has noticed", || {
        pair.b.status()["peers"].as_array().unwrap().is_empty()
    });
    let c = pair.another("c", "--read-timeout 2s");
    c.meets(1);
    assert_eq!(
        c.json("find alone")["matches"][0]["holders"]
            .as_array()
            .unwrap()
            .len(),
        0
    );
    c.shows("both", &both);
}

#[test]
fn leaving_needs_no_force_where_others_hold_everything_and_purge_drops_the_cache() {
    let pair = pair();
    let bytes = noise(1, 100_000);
    pair.a.write("file", &bytes);
    pair.b.shows("file", &bytes);
    let state = pair.a.host().state().join("c");
    assert!(state.exists());
    pair.a.ask("leave --purge").ok();
    assert!(!state.exists());
    assert_eq!(hash(&pair.b.read("file").unwrap()), hash(&bytes));
}

#[test]
fn the_demo_shows_the_whole_thing_and_leaves_nothing() {
    let lab = Lab::new();
    let a = lab.host("a");
    let mut demo = a.start_p2pfs("demo folders");
    until(Duration::from_secs(30), "both folders are mounted", || {
        let table = fs::read_to_string("/proc/self/mounts").unwrap();
        table
            .lines()
            .filter(|line| line.contains(a.path("folders").to_str().unwrap()))
            .count()
            == 2
    });
    demo.says("Ctrl-C");
    demo.signal(Signal::INT);
    assert!(
        demo.ends_within(Duration::from_secs(30)).success(),
        "{}",
        demo.output()
    );
    let table = fs::read_to_string("/proc/self/mounts").unwrap();
    assert!(!table.contains(a.dir().to_str().unwrap()), "{table}");
}

#[test]
fn commands_about_a_mount_whose_process_is_stopped_end_and_say_so() {
    let lab = Lab::new();
    let a = lab.host("a");
    a.create("");
    let a = a.mount("c", "");
    a.write("file", "x");
    let pid = a.pid();
    kill_process(pid, Signal::STOP).unwrap();
    for command in [
        "status -C mnt",
        "why mnt/file",
        "mount c mnt",
        "unmount mnt",
    ] {
        let finished = a.host().p2pfs(command);
        let said = finished.fails(1);
        assert!(said.contains("does not answer"), "{command}: {said}");
    }
    kill_process(pid, Signal::CONT).unwrap();
    assert_eq!(a.read("file").unwrap(), b"x");
    a.unmount();
}
