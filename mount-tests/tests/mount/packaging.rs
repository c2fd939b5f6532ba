//! What packages install beside the program: the helper that mount(8) calls.

use std::{fs, path::PathBuf};

use super::pair;
use p2pfs_mount_tests::{Finished, Host, Lab};

fn packaging(file: &str) -> PathBuf {
    let packages = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../packaging");
    packages.join(file)
}

/// Runs a script where the helper is installed, and nothing else knows of it: a mount namespace of its own.
fn installed(host: &Host, script: &str) -> Finished {
    let helper = packaging("mount.p2pfs");
    host.try_sh(&format!(
        r#"mkdir -p helpers && cp {helper} helpers/mount.fuse.p2pfs && ln -sf "$P2PFS" helpers/p2pfs
        cat > script <<'SCRIPT'
        mount -t overlay -o "lowerdir=$PWD/helpers:/usr/sbin" overlay /usr/sbin
        # As at boot: no home, and nothing of whoever started it.
        export PATH=/usr/sbin:/usr/bin:/sbin:/bin
        unset HOME P2PFS_STATE_DIR
        {script}
SCRIPT
        unshare --mount sh -eu script"#,
        helper = helper.display(),
    ))
}

#[test]
fn a_cluster_in_fstab_is_mounted_by_mount_with_its_options_and_ends_with_umount() {
    let pair = pair();
    pair.a.write("file", "text");
    pair.b.shows("file", "text");
    let host = pair.lab.host("c");
    fs::write(host.path("id"), &pair.id).unwrap();
    let shown = installed(
        &host,
        r#"chmod 600 id
        mkdir mnt
        echo "$PWD/id $PWD/mnt fuse.p2pfs nofail,ro,_netdev,x-systemd.automount,node-name=c,state-dir=$PWD/state 0 0" > fstab
        mount --fstab fstab mnt
        timeout 15 sh -c 'until test -s mnt/file; do sleep 0.1; done'
        cat mnt/file
        grep " $PWD/mnt " /proc/mounts
        p2pfs status -C mnt --json
        if touch mnt/new; then exit 1; fi
        umount mnt
        # Its process has gone when the state folder can be taken again.
        mount -t fuse.p2pfs -o "state-dir=$PWD/state,node-name=c" "$PWD/id" mnt
        touch mnt/new
        p2pfs unmount mnt"#,
    );
    let shown = shown.ok();
    assert!(shown.starts_with("text"), "{shown}");
    assert!(shown.contains("fuse.p2pfs ro,"), "{shown}");
    assert!(shown.contains(r#""role": "read-only""#), "{shown}");
    let secret = pair.id.split('@').next().unwrap();
    assert!(!shown.contains(secret), "{shown}");
}

#[test]
fn what_mount_gets_wrong_is_said_in_a_sentence_with_the_exit_status_of_mount() {
    let pair = pair();
    let host = pair.lab.host("c");
    let id = pair.id.clone();
    for (command, status, says) in [
        (
            format!("mount -t fuse.p2pfs {id} mnt"),
            1,
            "the source is a cluster id",
        ),
        (
            "mount -t fuse.p2pfs -o colour=red c mnt".to_owned(),
            1,
            "colour=red is not an option",
        ),
        (
            "mount -t fuse.p2pfs -o state-dir=$PWD/state nothing mnt".to_owned(),
            32,
            "nothing",
        ),
    ] {
        let failed = installed(&host, &format!("mkdir -p mnt\n{command}"));
        assert_eq!(failed.code(), Some(status), "{failed}");
        assert!(failed.stderr.contains(says), "{failed}");
    }
}

#[test]
fn at_boot_a_mount_is_usable_before_there_is_a_network() {
    let pair = pair();
    pair.a.write("file", "text");
    pair.b.shows("file", "text");
    pair.b.unmount();
    let host = pair.b.host();
    host.cut_off();
    fs::write(host.path("id"), &pair.id).unwrap();
    // Its loopback is all it has.
    let shown = installed(
        host,
        r#"chmod 600 id
        ip link set eth0 down
        mount -t fuse.p2pfs -o "state-dir=$PWD/state,nofail" "$PWD/id" mnt
        cat mnt/file
        echo more > mnt/new
        p2pfs unmount mnt"#,
    );
    assert_eq!(shown.ok(), "text");
    host.sh("ip link set eth0 up");
    host.reconnect();
    let _b = host.mount(&pair.id, "");
    pair.a
        .shows_within(p2pfs_mount_tests::LONG, "new", "more\n");
}

#[test]
fn units_wait_for_no_network_and_give_options_that_there_are() {
    let lab = Lab::new();
    let host = lab.host("a");
    for unit in ["p2pfs@.service", "p2pfs-user@.service"] {
        let text = fs::read_to_string(packaging(unit)).unwrap();
        let settings = || {
            let lines = text.lines().filter(|line| !line.starts_with('#'));
            lines.filter_map(|line| line.split_once('='))
        };
        let waits = ["After", "Wants", "Requires", "BindsTo"];
        for (name, value) in settings().filter(|(name, _)| waits.contains(name)) {
            assert!(!value.contains("network"), "{unit}: {name}={value}");
        }
        let (_, start) = settings().find(|(name, _)| *name == "ExecStart").unwrap();
        let help = host.p2pfs("mount --help");
        let mut options = start.split(' ').filter(|word| word.starts_with("--"));
        assert!(options.all(|option| help.ok().contains(option)), "{start}");
        // Long enough for an orderly end: what is pending is published first.
        assert!(
            settings().any(|setting| setting == ("KillSignal", "SIGTERM")),
            "{unit}"
        );
        assert!(
            settings().any(|setting| setting == ("TimeoutStopSec", "90s")),
            "{unit}"
        );
    }
}
