//! The command line: reports, errors that say what to do, secrets that stay secret.

use std::{
    fs,
    os::unix::{fs::PermissionsExt, net::UnixListener},
    thread,
};

use p2pfs_mount_tests::{Host, Lab, Mount, SOON, files_below, until};
use serde_json::Value;

use super::pair;

/// A host with a cluster `c` that knows no tracker; its read-write id.
fn alone(lab: &Lab) -> (Host, String) {
    let host = lab.host("a");
    let (id, _) = host.create("");
    (host, id)
}

/// Checks that a failed mount left neither folder, mount nor process.
fn nothing_left(host: &Host, dir: &str) {
    assert!(!host.path(dir).exists(), "{dir} was left behind");
    let table = fs::read_to_string("/proc/self/mounts").unwrap();
    assert!(!table.contains(host.path(dir).to_str().unwrap()), "{table}");
    let running = host.p2pfs("status --all --json");
    assert_eq!(running.ok().replace(char::is_whitespace, ""), "[]");
}

#[test]
fn help_of_every_command_states_every_option() {
    let lab = Lab::new();
    let host = lab.host("a");
    let help = host.p2pfs("--help");
    for command in [
        "create",
        "id",
        "mount",
        "unmount",
        "tracker",
        "share",
        "status",
        "peers",
        "find",
        "conflicts",
        "events",
        "verify",
        "leave",
        "report",
        "demo",
    ] {
        assert!(
            help.ok().contains(&format!("  {command} ")),
            "{command}: {help}"
        );
        let of_command = host.p2pfs(&format!("{command} --help"));
        assert!(
            of_command.ok().contains(&format!("Usage: p2pfs {command}")),
            "{of_command}"
        );
    }
    let mount = host.p2pfs("mount --help");
    for option in [
        "--tracker",
        "--listen",
        "--peer",
        "--read-only",
        "--cache-size",
        "--read-timeout",
        "--state-dir",
        "--allow-other",
        "--owner",
        "--log-file",
        "--new",
        "--foreground",
    ] {
        assert!(mount.ok().contains(option), "{option}: {mount}");
    }
    let words: Vec<_> = mount.stdout.split_whitespace().collect();
    assert!(words.join(" ").contains("[default: 20s]"), "{mount}");
    assert!(host.p2pfs("--version").ok().starts_with("p2pfs "));
    for wrong in [
        "",
        "no-such-command",
        "mount",
        "status --no-such-option",
        "mount c d --read-timeout soon",
    ] {
        assert_eq!(host.p2pfs(wrong).code(), Some(2), "{wrong}");
    }
}

#[test]
fn create_prints_two_ids_and_nothing_else() {
    let lab = Lab::new();
    let host = lab.host("a");
    let made = host.p2pfs("create --name one");
    let lines: Vec<_> = made.ok().lines().collect();
    assert_eq!(lines.len(), 2);
    assert!(
        lines[0].starts_with("p2pfsrw1") && lines[1].starts_with("p2pfsro1"),
        "{made}"
    );
    assert_eq!(host.p2pfs("id one").ok(), lines[0]);
    assert_eq!(host.p2pfs("id one --read-only").ok(), lines[1]);
    let json: Value = serde_json::from_str(host.p2pfs("create --name two --json").ok()).unwrap();
    assert_eq!(json["name"], "two");
    assert_eq!(json["read_write"], host.p2pfs("id two").ok());
    assert_eq!(json["read_only"], host.p2pfs("id two --read-only").ok());
    assert!(host.p2pfs("create --name one").fails(1).contains("--name"));
    let mode = |path: &str| {
        fs::metadata(host.state().join(path))
            .unwrap()
            .permissions()
            .mode()
            & 0o777
    };
    assert_eq!(
        (mode("one"), mode("one/cluster"), mode("one/node.key")),
        (0o700, 0o600, 0o600)
    );
}

#[test]
fn an_id_is_taken_as_a_word_from_a_file_and_from_standard_input() {
    let lab = Lab::new();
    let (a, id) = alone(&lab);
    let a = a.mount("c", "");
    a.write("file", "x");
    let b = lab.host("b");
    fs::write(b.path("id"), format!("{id}\n")).unwrap();
    let open = b.p2pfs("mount ./id mnt");
    assert!(open.fails(1).contains("chmod 600"), "{open}");
    b.sh("chmod 600 id");
    let mount = b.mount("./id", &format!("--peer {}", a.multiaddr()));
    mount.shows("file", "x");
    mount.unmount();
    b.sh("$P2PFS mount - mnt < id && $P2PFS unmount mnt");
    // The name under which it was saved is told, and does as well.
    let name = fs::read_dir(b.state())
        .unwrap()
        .next()
        .unwrap()
        .unwrap()
        .file_name();
    b.mount(name.to_str().unwrap(), "").shows("file", "x");
}

#[test]
fn status_has_every_field_of_the_contract() {
    let pair = pair();
    pair.a.write("file", "12345");
    pair.b.shows("file", "12345");
    let status = pair.a.status();
    for (pointer, kind) in [
        ("/name", "string"),
        ("/topic", "string"),
        ("/mountpoint", "string"),
        ("/role", "string"),
        ("/pid", "number"),
        ("/version", "string"),
        ("/self/id", "string"),
        ("/self/node", "string"),
        ("/self/addresses/0", "string"),
        ("/manifest/hash", "string"),
        ("/manifest/files", "number"),
        ("/manifest/bytes", "number"),
        ("/manifest/unpublished", "number"),
        ("/manifest/conflicts", "number"),
        ("/manifest/history_bytes", "number"),
        ("/peers/0/id", "string"),
        ("/peers/0/node", "string"),
        ("/peers/0/address", "string"),
        ("/peers/0/direct", "boolean"),
        ("/peers/0/load", "number"),
        ("/trackers/0/address", "string"),
        ("/trackers/0/state", "string"),
        ("/cache/used_bytes", "number"),
        ("/cache/limit_bytes", "number"),
        ("/cache/pinned_bytes", "number"),
        ("/cache/only_here_bytes", "number"),
        ("/network/received_bytes", "number"),
        ("/network/sent_bytes", "number"),
        ("/network/block_bytes_received", "number"),
        ("/network/block_bytes_sent", "number"),
        ("/network/manifest_bytes_received", "number"),
        ("/network/blocks_rejected", "number"),
        ("/memory/resident_bytes", "number"),
        ("/memory/requested_bytes", "number"),
        ("/memory/requested_max_bytes", "number"),
        ("/memory/answers", "number"),
        ("/memory/answers_max", "number"),
        ("/transfers", "array"),
        ("/only_here/files", "number"),
        ("/only_here/bytes", "number"),
    ] {
        let value = status
            .pointer(pointer)
            .unwrap_or_else(|| panic!("{pointer} is missing in {status:#}"));
        let found = match value {
            Value::String(_) => "string",
            Value::Number(_) => "number",
            Value::Bool(_) => "boolean",
            Value::Array(_) => "array",
            Value::Null | Value::Object(_) => "other",
        };
        assert_eq!(found, kind, "{pointer} in {status:#}");
    }
    assert_eq!(status["name"], "c");
    assert_eq!(status["role"], "read-write");
    assert_eq!(status["mountpoint"], pair.a.dir().to_str().unwrap());
    assert_eq!(status["self"]["node"], "a");
    assert_eq!(status["manifest"]["files"], 1);
    assert_eq!(status["manifest"]["bytes"], 5);
    assert_eq!(status["trackers"][0]["state"], "registered");
    let all = pair.a.host().json("status --all");
    assert_eq!(all.as_array().map(Vec::len), Some(1));
    // Whatever names the mount: its folder, a path inside it, its name, its state folder, nothing at all.
    let state_dir = status["state_dir"].as_str().unwrap();
    for which in [
        "",
        "-C c",
        "-C mnt",
        "-C mnt/file",
        &format!("-C {state_dir}"),
    ] {
        assert_eq!(
            pair.a.host().json(&format!("status {which}"))["pid"],
            status["pid"],
            "{which}"
        );
    }
    let text = pair.a.ask("status");
    assert!(text.ok().contains("registered"), "{text}");
}

#[test]
fn with_several_mounts_a_command_wants_to_know_which() {
    let lab = Lab::new();
    let (host, _) = alone(&lab);
    host.p2pfs("create --name d").ok();
    let none = host.p2pfs("status");
    assert!(none.fails(1).contains("no mount is running"), "{none}");
    let _c = host.mount_on("one", "c", "");
    let _d = host.mount_on("two", "d", "");
    let several = host.p2pfs("status");
    assert!(several.fails(2).contains("-C"), "{several}");
    assert_eq!(host.json("status -C d")["name"], "d");
    assert_eq!(host.json("status -C one")["name"], "c");
    assert_eq!(host.json("status --all").as_array().map(Vec::len), Some(2));
}

#[test]
fn a_mistyped_id_is_refused_and_the_typo_located() {
    let lab = Lab::new();
    let (host, id) = alone(&lab);
    let wrong = if id.as_bytes()[30] == b'q' { "p" } else { "q" };
    let mistyped = format!("{}{wrong}{}", &id[..30], &id[31..]);
    let before = files_below(&host.state()).len();
    let mounted = host.p2pfs(&format!("mount {mistyped} mnt"));
    let said = mounted.fails(2);
    assert!(said.contains("character 31"), "{said}");
    assert!(
        !said.contains(&id[40..]),
        "an error repeats no secret: {said}"
    );
    let cut = host.p2pfs(&format!("mount {} mnt", &id[..60]));
    assert!(cut.fails(2).contains("67 characters"), "{cut}");
    let unknown = host.p2pfs("mount no-such-name mnt");
    assert!(unknown.fails(2).contains("p2pfs create"), "{unknown}");
    nothing_left(&host, "mnt");
    assert_eq!(files_below(&host.state()).len(), before);
}

#[test]
fn a_folder_that_is_mounted_already_is_refused() {
    let lab = Lab::new();
    let (host, _) = alone(&lab);
    host.p2pfs("create --name d").ok();
    let c = host.mount("c", "");
    c.write("file", "x");
    let second = host.p2pfs("mount d mnt");
    assert!(second.fails(1).contains("p2pfs unmount"), "{second}");
    assert_eq!(c.read("file").unwrap(), b"x");
    let file = host.p2pfs("mount d mnt/file");
    file.fails(1);
    assert_eq!(host.json("status --all").as_array().map(Vec::len), Some(1));
}

#[test]
fn a_second_mount_of_a_cluster_needs_a_state_folder_of_its_own() {
    let lab = Lab::new();
    let (host, id) = alone(&lab);
    let c = host.mount("c", "");
    c.write("file", "x");
    let second = host.p2pfs("mount c second");
    assert!(second.fails(1).contains("--state-dir"), "{second}");
    assert!(!host.path("second").exists());
    let second = host.mount_on(
        "second",
        &id,
        &format!(
            "--state-dir {} --peer {}",
            host.path("other").display(),
            c.multiaddr()
        ),
    );
    second.shows("file", "x");
}

#[test]
fn a_tracker_that_does_not_answer_is_a_warning() {
    let lab = Lab::new();
    let (host, _) = alone(&lab);
    // Nobody listens there; nobody is even there; its name does not exist.
    for tracker in ["127.0.0.1:9", "10.77.0.99", "tracker.invalid"] {
        let mount = host.mount("c", &format!("--tracker {tracker}"));
        mount.write("file", "works all the same");
        until(SOON, "the tracker is reported", || {
            let status = mount.status();
            let tracker = &status["trackers"][0];
            tracker["state"] == "connecting"
                || (tracker["state"] == "unreachable" && tracker["reason"].is_string())
        });
        mount.unmount();
    }
    let nonsense = host.p2pfs("mount c mnt --tracker not:a:tracker");
    assert!(nonsense.fails(2).contains("host:port"), "{nonsense}");
}

#[test]
fn a_port_in_use_is_named() {
    let lab = Lab::new();
    let (host, _) = alone(&lab);
    host.p2pfs("create --name d").ok();
    let _c = host.mount_on("one", "c", "--listen /ip4/0.0.0.0/tcp/4001");
    let second = host.p2pfs("mount d two --listen /ip4/0.0.0.0/tcp/4001");
    let said = second.fails(1);
    assert!(said.contains("4001") && said.contains("in use"), "{said}");
    assert!(!host.path("two").exists());
    let _tracker = host.tracker("");
    let second = host.p2pfs("tracker --state-dir other");
    let said = second.fails(1);
    assert!(said.contains("7474") && said.contains("in use"), "{said}");
    let nonsense = host.p2pfs("mount d two --listen 4001");
    assert!(nonsense.fails(2).contains("multiaddr"), "{nonsense}");
}

/// Runs the words in a mount namespace whose `/dev` has no `fuse`.
const WITHOUT_DEV_FUSE: &str = "exec unshare --mount sh -euc '
    mkdir dev; mount -t tmpfs none dev
    for device in null zero full random urandom tty; do touch dev/$device; mount --bind /dev/$device dev/$device; done
    mount --rbind dev /dev; exec \"$@\"' sh";

#[test]
fn no_dev_fuse_is_said_with_what_to_do() {
    let lab = Lab::new();
    let (host, _) = alone(&lab);
    let mounted = host.try_sh(&format!("{WITHOUT_DEV_FUSE} $P2PFS mount c mnt"));
    let said = mounted.fails(1);
    assert!(
        said.contains("/dev/fuse") && said.lines().count() == 2,
        "{said}"
    );
    nothing_left(&host, "mnt");
}

/// As above, with a device that is there but can't be opened, as a container's is that was not given it.
const WITH_BARRED_DEV_FUSE: &str = "exec unshare --mount sh -euc '
    mkdir dev; mount -t tmpfs -o nodev none dev
    mknod dev/fuse c 10 229; mount --bind dev/fuse /dev/fuse; exec \"$@\"' sh";

#[test]
fn in_a_container_it_is_said_what_the_container_lacks() {
    let lab = Lab::new();
    let (host, _) = alone(&lab);
    let powerless = "exec setpriv --bounding-set=-all --inh-caps=-all --no-new-privs";
    for container in [WITHOUT_DEV_FUSE, WITH_BARRED_DEV_FUSE, powerless] {
        let mounted = host.try_sh(&format!("{container} $P2PFS mount c mnt"));
        let said = mounted.fails(1);
        assert!(
            said.contains("--device /dev/fuse --cap-add SYS_ADMIN"),
            "{said}"
        );
        nothing_left(&host, "mnt");
        host.sh("rm -rf dev");
    }
}

#[test]
fn no_permission_is_said_with_what_to_do() {
    let lab = Lab::new();
    let (host, _) = alone(&lab);
    // Root without its capabilities may neither mount nor override permission bits.
    let powerless = "exec setpriv --bounding-set=-all --inh-caps=-all --no-new-privs";
    let mounted = host.try_sh(&format!("{powerless} $P2PFS mount c mnt"));
    let said = mounted.fails(1);
    assert!(said.lines().count() == 2, "{said}");
    nothing_left(&host, "mnt");
    host.sh("mkdir theirs && chmod 0555 theirs && chown 1:1 theirs");
    let made = host.try_sh(&format!("{powerless} $P2PFS --state-dir theirs create"));
    assert!(made.fails(1).contains("Permission denied"), "{made}");
    let folder = host.try_sh(&format!("{powerless} $P2PFS mount c theirs/mnt"));
    assert!(folder.fails(1).contains("Permission denied"), "{folder}");
}

#[test]
fn a_mount_of_another_user_is_told_from_none() {
    let lab = Lab::new();
    let (host, _) = alone(&lab);
    let mount = host.mount("c", "--allow-other");
    mount.write("a", "x");
    host.sh("cp $P2PFS p2pfs && chmod 755 p2pfs");
    let as_other = "HOME=/ setpriv --reuid 65534 --regid 65534 --clear-groups";
    host.sh(&format!("{as_other} cat mnt/a"));
    for words in ["status -C mnt", "evict mnt/a", "why mnt/a", "unmount mnt"] {
        let asked = host.try_sh(&format!("{as_other} ./p2pfs {words}"));
        let said = asked.fails(1);
        assert!(said.contains("is in a mount of another user"), "{said}");
    }
}

#[test]
fn unmounting_what_is_no_mount_is_an_error() {
    let lab = Lab::new();
    let (host, _) = alone(&lab);
    host.sh("mkdir plain");
    assert!(
        host.p2pfs("unmount plain")
            .fails(1)
            .contains("no cluster is mounted there")
    );
    host.p2pfs("unmount missing").fails(1);
    let mount = host.mount("c", "");
    mount.with("sub", |path| fs::create_dir(path)).unwrap();
    host.p2pfs("unmount mnt/sub").fails(1);
    mount.write("sub/file", "still mounted");
}

#[test]
fn secrets_appear_in_no_log_no_table_and_no_command_line() {
    let pair = pair();
    let c = pair.lab.host("c").mount(&pair.id, "-vv");
    let d = pair.lab.host("d").mount(&pair.read_only, "-vv");
    c.write("file", "x");
    d.shows("file", "x");
    let secret = |id: &str| id.split('@').next().unwrap()[8..].to_owned();
    let secrets = [secret(&pair.id), secret(&pair.read_only)];
    let clean = |what: &str, text: &str| {
        for secret in &secrets {
            assert!(!text.contains(secret.as_str()), "{what} contains the id");
        }
    };
    for mount in [&c, &d] {
        // The words as they were given stand in no process that stays.
        let pid = mount.pid();
        clean(
            "the command line",
            &fs::read_to_string(format!("/proc/{pid}/cmdline")).unwrap(),
        );
        clean(
            "the environment",
            &fs::read_to_string(format!("/proc/{pid}/environ")).unwrap(),
        );
        for report in ["status", "status --json", "peers --json", "find file"] {
            clean(report, &mount.ask(report).stdout);
        }
    }
    clean(
        "the table of mounts",
        &fs::read_to_string("/proc/self/mounts").unwrap(),
    );
    let logs = |mount: &Mount| mount.host().logs();
    let mut seen = 0;
    for log in [&pair.a, &pair.b, &c, &d]
        .into_iter()
        .flat_map(logs)
        .chain(pair.t.logs())
    {
        let text = fs::read_to_string(&log).unwrap();
        seen += text.len();
        clean(&log.display().to_string(), &text);
    }
    assert!(seen > 1000, "the logs were looked at");
}

#[test]
fn mount_returns_even_when_its_output_is_piped() {
    let lab = Lab::new();
    let (host, _) = alone(&lab);
    // `cat` ends only when nobody holds the pipe any more.
    let said = host.try_sh("$P2PFS mount c mnt 2>&1 | cat");
    assert!(said.ok().starts_with("c mounted on "), "{said}");
    host.p2pfs("unmount mnt").ok();
}

#[test]
fn the_environment_stands_in_for_the_config_file_and_the_command_line_for_both() {
    let lab = Lab::new();
    let (host, _) = alone(&lab);
    fs::write(
        host.path("config.toml"),
        "node-name = \"from-file\"\ncache-size = \"64M\"\ntracker = [\"10.77.0.97\"]\n",
    )
    .unwrap();
    let mounted = |words: &str, environment: &str| {
        host.sh(&format!(
            "export P2PFS_CONFIG=config.toml; {environment} $P2PFS mount c mnt {words}"
        ));
        let status = host.json("status");
        host.sh("$P2PFS unmount mnt");
        let text = |pointer: &str| {
            status
                .pointer(pointer)
                .unwrap()
                .as_str()
                .unwrap()
                .to_owned()
        };
        assert_eq!(status["cache"]["limit_bytes"], 64 << 20);
        (text("/self/node"), text("/trackers/0/address"))
    };
    let pair = |node: &str, tracker: &str| (node.to_owned(), tracker.to_owned());
    assert_eq!(mounted("", ""), pair("from-file", "10.77.0.97"));
    assert_eq!(
        mounted("", "P2PFS_TRACKER=10.77.0.98"),
        pair("from-file", "10.77.0.98")
    );
    assert_eq!(
        mounted(
            "--tracker 10.77.0.99 --node-name word",
            "P2PFS_TRACKER=10.77.0.98"
        ),
        pair("word", "10.77.0.99")
    );
    fs::write(host.path("config.toml"), "no-such-key = 1\n").unwrap();
    let refused = host.try_sh("P2PFS_CONFIG=config.toml $P2PFS mount c mnt");
    assert!(refused.fails(2).contains("no-such-key"), "{refused}");
}

#[test]
fn a_command_whose_mount_ends_while_it_asks_says_so_and_is_not_ended_by_a_signal() {
    let lab = Lab::new();
    let a = lab.host("a");
    a.create("");
    let socket = UnixListener::bind(a.state().join("c/control.sock")).unwrap();
    thread::spawn(move || socket.incoming().for_each(drop));
    for _ in 0..20 {
        a.p2pfs("status -C c").fails(1);
    }
}

#[test]
fn a_report_that_cannot_be_written_is_an_error_and_nothing_worse() {
    let lab = Lab::new();
    let (host, _) = alone(&lab);
    let mount = host.mount("c", "");
    mount.write("file", "x");
    for command in [
        "status -C mnt",
        "status -C mnt --json",
        "find file -C mnt",
        "why mnt/file",
        "id c",
        "create --name d",
    ] {
        let full = host.try_sh(&format!("$P2PFS {command} > /dev/full"));
        let said = full.fails(1);
        assert!(!said.contains("panicked"), "{full}");
    }
    // Where nothing can be said, the status still does.
    for (command, status) in [
        ("status -C mnt", 1),
        ("find nosuch -C mnt", 1),
        ("nosuch", 2),
    ] {
        host.sh(&format!(
            "said=0; $P2PFS {command} > /dev/full 2> /dev/full || said=$?; test $said = {status}"
        ));
    }
    // What was asked for is done.
    host.sh("$P2PFS mount d other > /dev/full; mountpoint other; $P2PFS unmount other");
}

#[test]
fn a_folder_may_have_a_name_like_an_option() {
    let lab = Lab::new();
    let (host, _) = alone(&lab);
    host.sh("$P2PFS mount c -- -dash && echo text > ./-dash/file && $P2PFS unmount -- -dash");
}

/// The id would be told to everybody in the cluster.
#[test]
fn a_state_folder_in_a_mount_is_refused() {
    let lab = Lab::new();
    let (host, id) = alone(&lab);
    let mount = host.mount("c", "");
    for command in [
        "create --name d --state-dir mnt/state",
        &format!("mount {id} other --state-dir mnt/below/state"),
        "tracker --state-dir mnt/state",
    ] {
        let refused = host.try_sh(&format!("$P2PFS {command}"));
        assert!(refused.fails(1).contains("is in a mount"), "{refused}");
    }
    assert!(mount.list("").unwrap().is_empty());
}

#[test]
fn a_folder_that_is_not_empty_is_refused_and_left_as_it_is() {
    let lab = Lab::new();
    let (host, _) = alone(&lab);
    host.sh("mkdir full; echo text > full/file");
    let mounted = host.p2pfs("mount c full");
    assert!(mounted.fails(1).contains("is not empty"), "{mounted}");
    assert_eq!(host.sh("cat full/file"), "text");
    assert_eq!(host.json("status --all").as_array().map(Vec::len), Some(0));
}

#[test]
fn a_state_folder_of_another_format_is_refused_untouched_and_says_what_to_do() {
    let lab = Lab::new();
    let (host, _) = alone(&lab);
    host.mount("c", "").unmount();
    host.sh("rmdir mnt");
    for (format, advice) in [
        ("1", "new state folder"),
        ("9", "a later one"),
        ("x", "holds no version"),
    ] {
        host.sh(&format!("echo {format} > state/c/format"));
        let before = host.sh(
            "cd state/c; find . -type f ! -name log -newer format; ls -R objects index | cksum",
        );
        let mounted = host.p2pfs("mount c mnt");
        assert!(mounted.fails(1).contains(advice), "{mounted}");
        let after = host.sh(
            "cd state/c; find . -type f ! -name log -newer format; ls -R objects index | cksum",
        );
        assert_eq!(before, after);
        nothing_left(&host, "mnt");
    }
    host.sh("echo 2 > state/c/format");
    host.mount("c", "").write("file", "x");
}
