//! The end of a mount, whichever way it comes, and leaving for good.

use std::{fs, io::Write, time::Duration};

use p2pfs_mount_tests::{Host, LONG, Lab, SOON, files_below, hash, noise, runs, until};
use rustix::process::{Pid, Signal, kill_process};

use super::{pair, pair_with};

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
fn who_has_files_open_goes_on_with_them_after_a_lazy_unmount() {
    for options in ["", "--no-passthrough"] {
        let lab = Lab::new();
        let a = lab.host("a");
        a.create("");
        let mount = a.mount("c", options);
        let pid = mount.pid();
        let mut file = fs::File::create(mount.path("file")).unwrap();
        file.write_all(b"one\n").unwrap();
        let lazily = a.p2pfs("unmount --lazy mnt");
        lazily.ok();
        assert_eq!(fs::read_dir(mount.dir()).unwrap().count(), 0, "detached");
        file.write_all(b"two\n").unwrap();
        drop(file);
        mount.is_gone(pid);
        let again = a.mount("c", options);
        assert_eq!(again.read("file").unwrap(), b"one\ntwo\n");
    }
}

#[test]
fn a_name_in_a_mount_that_nothing_has_unmounts_and_leaves_nothing() {
    let lab = Lab::new();
    let a = lab.host("a");
    a.create("");
    let mount = a.mount("c", "");
    mount.write("file", "x");
    for words in [
        "unmount mnt/typo",
        "unmount mnt/file",
        "leave -C mnt/typo --force",
    ] {
        a.p2pfs(words).fails(1);
        assert_eq!(mount.read("file").unwrap(), b"x", "{words}");
    }
}

#[test]
fn leaving_shows_what_exists_only_here_and_needs_force_then() {
    let pair = pair();
    let both = noise(1, 100_000);
    pair.a.write("both", &both);
    pair.b.shows("both", &both);
    pair.b.keeps("both", 100_000);
    pair.a.write("alone", noise(2, 100_000));
    pair.a.publishes();
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
    until(SOON, "its name is still seen", || c.has("alone"));
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
    pair.b.keeps("file", 100_000);
    let state = pair.a.host().state().join("c");
    assert!(state.exists());
    pair.a.ask("leave --purge").ok();
    assert!(!state.exists());
    assert_eq!(hash(&pair.b.read("file").unwrap()), hash(&bytes));
    // It has promised to keep it: nothing takes the last copy now.
    let kept = pair.b.ask("evict file").to_string();
    assert!(kept.contains("was promised that it stays here"), "{kept}");
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

#[test]
fn a_fetch_and_a_verification_whose_mount_is_stopped_meanwhile_end_and_say_so() {
    let pair = pair();
    pair.lab.expects_errors();
    pair.a.write("far", noise(1, 20_000_000));
    let b = &pair.b;
    let alone = noise(2, 300_000);
    b.write("alone", &alone);
    b.publishes();
    b.corrupt(&hash(&alone), 100_000);
    until(SOON, "the entry is seen", || b.has("far"));
    pair.a.host().limit("1mbit");
    let mut asking = ["fetch mnt/far", "verify -C mnt"].map(|words| b.host().start_p2pfs(words));
    until(SOON, "both are at it", || {
        let transfers = b.status()["transfers"].clone();
        let of = |label: &str| {
            let mut all = transfers.as_array().unwrap().iter();
            all.any(|transfer| transfer["path"].as_str().unwrap().starts_with(label))
        };
        of("far") && of("repair ")
    });
    let pid = b.pid();
    kill_process(pid, Signal::STOP).unwrap();
    for process in &mut asking {
        let status = process.ends_within(LONG);
        let said = process.output();
        assert_eq!(status.code(), Some(1), "{said}");
        assert!(said.contains("did not answer"), "{said}");
    }
    let all = b.host().p2pfs("status --all");
    assert!(all.stderr.contains("did not answer"), "{all}");
    kill_process(pid, Signal::CONT).unwrap();
    b.write("after", "x");
}

type End = fn(&Host, Pid);

/// Ways to end a mount that is in use. Where only the kernel is told, by a flag for that, its users keep what they have.
const WAYS: [(&str, End); 5] = [
    ("p2pfs unmount --lazy", |host, _| {
        host.sh("$P2PFS unmount --lazy mnt");
    }),
    ("umount -l", |host, _| {
        host.sh("umount -l mnt");
    }),
    ("fusermount3 -uz", |host, _| {
        host.sh("if command -v fusermount3 > /dev/null; then fusermount3 -uz mnt; else umount -l mnt; fi");
    }),
    ("SIGTERM", |_, pid| kill_process(pid, Signal::TERM).unwrap()),
    ("SIGINT", |_, pid| kill_process(pid, Signal::INT).unwrap()),
];

/// Longer than an end may take: publication, trackers, members.
const ENDS_WITHIN: Duration = Duration::from_secs(90);

#[test]
fn a_mount_ends_whichever_way_while_programs_wait_for_the_network_and_write() {
    let pair = pair_with("--read-timeout 60s");
    pair.a.write("far", noise(1, 8_000_000));
    until(SOON, "the entry is seen", || pair.b.has("far"));
    let stopped = pair.a.pid();
    kill_process(stopped, Signal::STOP).unwrap();
    let host = pair.b.host().clone();
    let mut confirmed = Vec::new();
    pair.b.unmount();
    for (number, (way, end)) in WAYS.iter().enumerate() {
        println!("{way}");
        let b = host.mount(&pair.id, "--read-timeout 60s");
        let pid = b.pid();
        let mut reader = host.start_sh("exec cat mnt/far");
        // What is written of a file whose bytes nobody gives can't be published, and is waited for: once is enough.
        if number == WAYS.len() - 1 {
            host.sh("echo more >> mnt/far");
        }
        let mut writer = host.start_sh(&format!(
            "cd mnt; i=0; while echo text > {number}-$i && sync {number}-$i; do echo synced {number}-$i; i=$((i+1)); done"
        ));
        writer.says(&format!("synced {number}-5"));
        until(SOON, "somebody waits", || {
            !b.status()["transfers"].as_array().unwrap().is_empty()
        });
        end(&host, pid);
        if ["p2pfs unmount --lazy", "umount -l", "fusermount3 -uz"].contains(way) {
            reader.signal(Signal::KILL);
            writer.signal(Signal::KILL);
        }
        until(ENDS_WITHIN, "the process ends", || !runs(pid));
        for process in [&mut reader, &mut writer] {
            process.ends_within(SOON);
        }
        b.is_gone(pid);
        let said = writer.output();
        confirmed.extend(
            said.lines()
                .filter_map(|line| line.strip_prefix("synced "))
                .map(str::to_owned),
        );
    }
    let b = host.mount(&pair.id, "");
    for name in &confirmed {
        assert_eq!(b.read(name).unwrap(), b"text\n", "{name}");
    }
    kill_process(stopped, Signal::CONT).unwrap();
    b.meets(1);
    pair.a
        .shows_within(LONG, confirmed.last().unwrap(), "text\n");
    until(LONG, "what could not be published is", || {
        b.status()["manifest"]["unpublished"] == 0
    });
    assert_eq!(b.read("far").unwrap().len(), 8_000_005);
}

#[test]
fn a_mount_ends_whichever_way_while_it_fetches_and_publishes_and_goes_on_next_time() {
    let pair = pair();
    let fetched = noise(1, 20_000_000);
    pair.a.write("fetched", &fetched);
    until(SOON, "the entry is seen", || pair.b.has("fetched"));
    pair.a.host().limit("20mbit");
    let host = pair.b.host().clone();
    let plain: [(&str, End); 2] = [
        ("umount", |host, _| {
            host.sh("umount mnt");
        }),
        ("p2pfs unmount", |host, _| {
            host.sh("$P2PFS unmount mnt");
        }),
    ];
    pair.b.unmount();
    for (number, (way, end)) in WAYS.iter().chain(&plain).enumerate() {
        println!("{way}");
        let b = host.mount(&pair.id, "");
        b.meets(1);
        let pid = b.pid();
        let mut fetch = host.start_p2pfs("fetch mnt/fetched");
        if number < 4 {
            until(SOON, "it comes", || {
                let cached = b.attribute("fetched", "cached");
                cached.is_ok_and(|bytes| bytes != "0")
            });
        }
        b.write(&format!("large{number}"), noise(number as u64, 20 << 20));
        end(&host, pid);
        until(ENDS_WITHIN, "the process ends", || !runs(pid));
        fetch.ends_within(SOON);
        b.is_gone(pid);
    }
    let b = host.mount(&pair.id, "");
    for number in 0..WAYS.len() + plain.len() {
        let bytes = b.read(&format!("large{number}")).unwrap();
        assert_eq!(hash(&bytes), hash(&noise(number as u64, 20 << 20)));
    }
    b.shows_within(LONG, "fetched", &fetched);
    assert_eq!(b.json("verify")["damaged"], 0);
    b.publishes_within(LONG);
}

#[test]
fn a_mount_that_is_asked_to_end_while_it_starts_ends_and_leaves_no_mount() {
    let lab = Lab::new();
    let (a, b) = (lab.host("a"), lab.host("b"));
    // Of one cluster a head is here, of the other one nobody knows any, and it is waited for.
    b.create("");
    a.p2pfs("create --name d").ok();
    let unknown = a.sh("$P2PFS id d");
    let unknown = format!("mount {unknown} mnt -f --tracker 10.77.0.99");
    let mounted = || {
        let table = fs::read_to_string("/proc/self/mounts").unwrap();
        table.contains(b.path("mnt").to_str().unwrap())
    };
    type Moment<'a> = &'a dyn Fn(Pid) -> bool;
    let moments: [(&str, &str, Moment<'_>); 3] = [
        ("at once", &unknown, &|_| true),
        ("it has its state", &unknown, &|pid| {
            let pid = pid.as_raw_nonzero().to_string();
            let mut locks = files_below(&b.state()).into_iter();
            locks.any(|(path, _)| {
                path.ends_with("lock") && fs::read_to_string(path).is_ok_and(|by| by.trim() == pid)
            })
        }),
        ("it is mounted", "mount c mnt -f", &|_| mounted()),
    ];
    for (what, words, moment) in moments {
        for signal in [Signal::TERM, Signal::INT, Signal::HUP] {
            if (what, signal) == ("at once", Signal::HUP) {
                // Whoever runs the tests under nohup(1) has that ignored until the program sees to it.
                continue;
            }
            println!("{what}, {signal:?}");
            let mut mount = b.start_p2pfs(words);
            until(LONG, what, || moment(mount.pid()));
            mount.signal(signal);
            mount.ends_within(ENDS_WITHIN);
            assert!(!mounted(), "{}", mount.output());
        }
    }
    b.mount("c", "").unmount();
}
