"""p2pfs and the rivals, each driven in the same way: `start` where the content is, `join` where it is read, then the workload.

A system has either a `folder` on each reader, through which files are read on demand (`mounts`), or it copies
everything when `bring` is called. All of them run with their defaults, apart from what keeps them on the private network
of the lab and what the name of the system says.
"""

import concurrent.futures
import contextlib
import http.client
import json
import os
import re
import shlex
import shutil
import socket
import xml.etree.ElementTree as xml
from pathlib import Path

from lab import MIB, Failed, mounts_below, now, run, tail, until

HERE = Path(__file__).parent
PROBE = HERE / "probe.py"
PYTHON = "/usr/bin/python3"
"""The system's own, which every user can run."""
NOBODY = 65534


class System:
    """One system in one lab. `content` is the folder that the first host has and the others want."""

    name = "?"
    packages = ()
    """Debian's packages that it takes."""
    crates = ()
    """Programs that it takes which are built from crates."""
    programs = {}
    """Where the programs from crates are."""
    mounts = False

    def __init__(self, lab, content):
        self.lab, self.content = lab, content
        self.source, *self.readers = lab.hosts

    @classmethod
    def version(cls):
        """What was measured, in a few words."""
        return "; ".join(f"{name} {package_version(name)}" for name in cls.packages)

    def start(self):
        """Makes the source ready to serve all of the content."""

    def join(self):
        """Makes the readers ready; nothing of the content is there yet."""

    def folder(self, reader):
        """Where the reader has its files."""
        return reader.path("files")

    def user(self):
        """The user whom the mount belongs to; none is root."""
        return None

    def bring(self, name, within):
        """Reads `name`, or all of the content, at all readers at once; seconds until the last one has it."""
        running = [reader.start(self.reading(reader, name), user=self.user(), name="reading") for reader in self.readers]
        for process in running:
            process.wait(within)
        return max(last_json(process.log)["seconds"] for process in running)

    def reading(self, reader, name):
        """The command that reads one file and prints how long it took."""
        return probe("drain", self.folder(reader) / name)

    def check(self):
        """Compares what arrived with what was there."""
        for reader in self.readers:
            reader.run(["diff", "-r", self.content, self.folder(reader)], within=600, user=self.user())

    def publish_into(self):
        """The folder on the source's host into which a user writes what the others are to see."""
        return self.content

    def stop(self):
        """Ends it as its user would, where that shows anything; the lab ends the rest."""


def last_json(log):
    """What a command printed at its end."""
    return json.loads(tail(log, 1))


def package_version(name):
    text = run(["dpkg-query", "-W", "-f", "${Version}", name])
    return re.sub(r"^\d+:|[-+~].*$", "", text)


class Ext4(System):
    """The files themselves, without a network: what this machine can do at best."""

    name = "native"
    mounts = True

    def folder(self, reader):
        return self.content

    def check(self):
        pass

    @classmethod
    def version(cls):
        with open("/proc/mounts", encoding="utf8") as table:
            kinds = {line.split()[1]: line.split()[2] for line in table}
        place = Path(os.environ.get("P2PFS_RIVALS_DIR", "/"))
        while str(place) not in kinds:
            place = place.parent
        return kinds[str(place)]


class P2pfs(System):
    """A tracker and a member on the first host, a member on each other one."""

    name = "p2pfs"
    mounts = True
    program = None

    def __init__(self, lab, content):
        super().__init__(lab, content)
        self.daemons = {}
        self.id = None

    @classmethod
    def version(cls):
        return run([cls.program, "--version"]).strip().removeprefix("p2pfs ")

    def ask(self, host, *words, within=60, **options):
        return host.run([self.program, "--state-dir", self.state(host), *words], within, user=self.user_of(host), **options)

    def state(self, host):
        return host.path("state")

    def folder(self, reader):
        return reader.path("mnt")

    def user_of(self, host):
        return None if host is self.source else self.user()

    def status(self, host):
        printed = self.ask(host, "status", "-C", self.folder(host), "--json", within=30)
        return json.loads(printed[printed.index("{"):])

    def start(self):
        tracker = self.source.start([self.program, "tracker", "--state-dir", self.source.path("tracker")], name="tracker")
        until("the tracker is ready", lambda: "tracker ready" in tail(tracker.log), alive=tracker)
        printed = self.ask(self.source, "create", "--name", "rivals", "--tracker", self.source.address)
        self.id = re.search(r"^p2pfsrw1\S+", printed, re.MULTILINE)[0]
        self.mount(self.source)
        if any(self.content.iterdir()):
            self.source.run(["cp", "-r", f"{self.content}/.", self.folder(self.source)], within=600)
        self.publishes()

    def publishes(self):
        until("everything is published", lambda: self.status(self.source)["manifest"]["unpublished"] == 0, within=600)

    def mount(self, host):
        """Mounts on a host, in the foreground, so that the process is known."""
        folder, user = self.folder(host), self.user_of(host)
        if user is not None:
            for path in (host.dir, folder, self.state(host)):
                os.chown(path, user, user)
        arguments = [self.program, "--state-dir", self.state(host), "mount", "-", folder, "--foreground", "--node-name", host.name]
        daemon = host.start(arguments, user=user, name="p2pfs")
        daemon.say(self.id)
        daemon.child.stdin.close()
        until(f"p2pfs mounts at {host.name}", lambda: str(folder) in mounts_below(host.dir), alive=daemon)
        self.daemons[host] = daemon

    def join(self):
        for reader in self.readers:
            self.mount(reader)
        self.agree()

    def agree(self):
        """Waits until all readers know all names; that fetches no content."""
        wanted = self.status(self.source)["manifest"]["hash"]
        for reader in self.readers:
            until(f"{reader.name} knows the files", lambda reader=reader: self.status(reader)["manifest"]["hash"] == wanted)

    def publish_into(self):
        return self.folder(self.source)

    def backing_file(self, host, size):
        """Where a host keeps the one content of this size."""
        return next(self.state(host).glob(f"*/objects/*/*-{size}"))

    def stop(self):
        """Unmounts everywhere; a process that does not end by that is an error."""
        running = {host: daemon for host, daemon in self.daemons.items() if not daemon.ended()}

        def unmount(host):
            self.ask(host, "unmount", self.folder(host), within=60)
            running[host].wait(30)

        with concurrent.futures.ThreadPoolExecutor(max(1, len(running))) as pool:
            list(pool.map(unmount, running))

    def complaints(self):
        """Lines of the logs that tell of errors."""
        logs = [*self.lab.dir.glob("*/state/*/log"), *self.lab.dir.glob("*/p2pfs.log"), *self.lab.dir.glob("*/tracker.log")]
        return [f"{log.relative_to(self.lab.dir)}: {line}" for log in logs
                for line in log.read_text(errors="replace").splitlines() if re.search(r"\bERROR\b|panicked", line)]


class P2pfsUser(P2pfs):
    """The readers are another user than root: no passthrough."""

    name = "p2pfs as a user"
    packages = ("fuse3",)

    def user(self):
        return NOBODY

    def start(self):
        if not os.stat("/dev/fuse").st_mode & 0o002:
            raise Failed("/dev/fuse is root's alone on this machine")
        super().start()

class Ssh(System):
    """An sshd of its own on the source, with keys of its own."""

    packages = ("openssh-server", "openssh-client")
    port = 2222

    def start(self):
        self.keys = self.lab.dir / "ssh"
        self.keys.mkdir()
        for key in ("host", "user"):
            run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(self.keys / key)])
        config = self.keys / "sshd_config"
        config.write_text(f"""
            Port {self.port}
            ListenAddress {self.source.address}
            HostKey {self.keys}/host
            AuthorizedKeysFile {self.keys}/user.pub
            PidFile none
            StrictModes no
            UsePAM no
            PermitRootLogin prohibit-password
            PasswordAuthentication no
            Subsystem sftp internal-sftp
            """)
        Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)
        self.sshd = self.source.start(["/usr/sbin/sshd", "-D", "-e", "-f", config], name="sshd")
        until("sshd listens", lambda: "Server listening" in tail(self.sshd.log), alive=self.sshd)


class Sshfs(Ssh):
    name = "sshfs"
    packages = ("sshfs", *Ssh.packages)
    mounts = True
    options = ()

    def join(self):
        for reader in self.readers:
            options = [f"IdentityFile={self.keys}/user", "StrictHostKeyChecking=no", "UserKnownHostsFile=/dev/null", *self.options]
            folder = self.folder(reader)
            daemon = reader.start(["sshfs", "-f", "-p", self.port, "-o", ",".join(options),
                                   f"root@{self.source.address}:{self.content}", folder])
            until("sshfs mounts", lambda folder=folder, reader=reader: str(folder) in mounts_below(reader.dir), alive=daemon)
            reader.run(["ls", folder])


class SshfsAes(Sshfs):
    name = "sshfs, AES"
    options = ("Ciphers=aes128-gcm@openssh.com",)


class Rclone(Ssh):
    name = "rclone mount"
    packages = ("rclone", *Ssh.packages)
    mounts = True
    options = ()

    def join(self):
        for reader in self.readers:
            folder = self.folder(reader)
            daemon = reader.start(["rclone", "mount", f":sftp:{self.content}", folder, "--sftp-host", self.source.address,
                                   "--sftp-port", self.port, "--sftp-user", "root", "--sftp-key-file", self.keys / "user",
                                   "--config", reader.dir / "rclone.conf", "--cache-dir", reader.path("cache"), *self.options])
            until("rclone mounts", lambda folder=folder, reader=reader: str(folder) in mounts_below(reader.dir), alive=daemon)
            reader.run(["ls", folder])


class RcloneFresh(Rclone):
    name = "rclone mount, folders kept 1 s"
    options = ("--dir-cache-time", "1s")


class Nginx(System):
    """Plain HTTP: no encryption, no verification, the file's name known."""

    name = "nginx, curl to /dev/null"
    packages = ("nginx-light", "curl")
    kept = False

    def start(self):
        config = self.source.dir / "nginx.conf"
        config.write_text(f"""
            daemon off; user root; worker_processes auto; pid {self.source.dir}/nginx.pid; error_log stderr;
            events {{}}
            http {{
                access_log off; sendfile on; tcp_nopush on;
                client_body_temp_path {self.source.dir}/body; proxy_temp_path {self.source.dir}/proxy;
                fastcgi_temp_path {self.source.dir}/fastcgi; uwsgi_temp_path {self.source.dir}/uwsgi;
                scgi_temp_path {self.source.dir}/scgi;
                server {{ listen {self.source.address}:8080; root {self.content}; }}
            }}""")
        nginx = self.source.start(["/usr/sbin/nginx", "-c", config, "-p", self.source.dir], name="nginx")
        until("nginx listens", lambda: self.reaches(), alive=nginx)

    def reaches(self):
        with contextlib.suppress(Failed):
            return self.source.run(["curl", "-sSI", f"http://{self.source.address}:8080/"])
        return None

    def url(self, name):
        return f"http://{self.source.address}:8080/{name}"

    def reading(self, reader, name):
        return ["curl", "-sSf", "-w", '{"seconds": %{time_total}}\\n', "-o", self.folder(reader) / name if self.kept else "/dev/null", self.url(name)]

    def check(self):
        for reader in self.readers:
            if self.kept:
                super().check()
                continue
            for file in self.content.iterdir():
                script = f"curl -sSf {self.url(file.name)} | cmp - {shlex.quote(str(file))}"
                reader.run(["bash", "-o", "pipefail", "-c", script], within=600)


class NginxKept(Nginx):
    name = "nginx, curl to disk"
    kept = True


class Syncthing(System):
    """All readers share one folder with the source and with each other; a run begins when the readers' folder is resumed."""

    name = "syncthing"
    packages = ("syncthing",)
    key = "rivals"
    marker = "rivals"

    def start(self):
        self.ids = {}
        for host in self.lab.hosts:
            home = host.path("syncthing")
            host.run(["syncthing", "generate", "--home", home, "--no-default-folder"])
            self.ids[host] = xml.parse(home / "config.xml").getroot().find("device").get("id")
        # It marks the folders that it shares, and the content is everybody's.
        run(["cp", "-rl", f"{self.content}/.", str(self.folder(self.source))])
        self.launch(self.source, paused=False)
        files = sum(1 for path in self.content.rglob("*") if path.is_file())
        until("syncthing has scanned its folder", lambda: self.has_all(self.source, files), within=300)
        self.files = files

    def join(self):
        for reader in self.readers:
            self.launch(reader, paused=True)
        for host in self.lab.hosts:
            until("the devices are connected", lambda host=host: self.connected(host), within=120)

    def publish_into(self):
        return self.folder(self.source)

    def launch(self, host, paused):
        home = host.path("syncthing")
        self.configure(home / "config.xml", host, paused)
        daemon = host.start(["syncthing", "serve", "--home", home, "--no-browser", "--no-restart", "--no-upgrade"],
                            env={"STNODEFAULTFOLDER": "1", "STNOUPGRADE": "1"})
        until(f"syncthing answers at {host.name}", lambda: self.rest(host, "GET", "/rest/system/ping"), alive=daemon)

    def configure(self, path, host, paused):
        """Only each other, by address; nothing else of its defaults is changed."""
        tree = xml.parse(path)
        root = tree.getroot()
        for old in [*root.findall("device"), *root.findall("folder")]:
            root.remove(old)
        folder = xml.SubElement(root, "folder", id="rivals", label="rivals", path=str(self.folder(host)), type="sendreceive",
                                rescanIntervalS="3600", fsWatcherEnabled="true", fsWatcherDelayS="10")
        xml.SubElement(folder, "paused").text = str(paused).lower()
        xml.SubElement(folder, "filesystemType").text = "basic"
        for other, name in self.ids.items():
            xml.SubElement(folder, "device", id=name)
            device = xml.SubElement(root, "device", id=name, name=other.name)
            xml.SubElement(device, "address").text = f"tcp://{other.address}:22000"
        gui = root.find("gui")
        gui.find("address").text = str(self.socket(host))
        gui.find("apikey").text = self.key
        options = root.find("options")
        wanted = {"listenAddress": f"tcp://{host.address}:22000", "globalAnnounceEnabled": "false", "localAnnounceEnabled": "false",
                  "relaysEnabled": "false", "natEnabled": "false", "urAccepted": "-1", "startBrowser": "false",
                  "crashReportingEnabled": "false", "autoUpgradeIntervalH": "0", "stunKeepaliveStartS": "0"}
        for name, value in wanted.items():
            for old in options.findall(name):
                options.remove(old)
            xml.SubElement(options, name).text = value
        tree.write(path)

    def socket(self, host):
        return host.dir / "gui.sock"

    def rest(self, host, method, path, body=None):
        """Asks the process on a host; none while it does not answer."""
        connection = http.client.HTTPConnection("localhost", timeout=10)
        try:
            connection.sock = socket.socket(socket.AF_UNIX)
            connection.sock.settimeout(10)
            connection.sock.connect(str(self.socket(host)))
            connection.request(method, path, json.dumps(body) if body is not None else None, {"X-API-Key": self.key})
            answer = connection.getresponse()
            text = answer.read()
            return (json.loads(text) if text.strip() else True) if answer.status == 200 else None
        except (OSError, http.client.HTTPException):
            return None
        finally:
            connection.close()

    def connected(self, host):
        known = (self.rest(host, "GET", "/rest/system/connections") or {}).get("connections", {})
        return sum(1 for other in known.values() if other["connected"]) >= len(self.lab.hosts) - 1

    def has_all(self, host, files):
        state = self.rest(host, "GET", "/rest/db/status?folder=rivals") or {}
        return state.get("state") == "idle" and state.get("localFiles", 0) >= files and state.get("needFiles") == 0

    def bring(self, name, within):
        begun = now()
        for reader in self.readers:
            self.rest(reader, "PATCH", "/rest/config/folders/rivals", {"paused": False})
        for reader in self.readers:
            until(f"{reader.name} has everything", lambda reader=reader: self.has_all(reader, self.files), within=within)
        return now() - begun

    def check(self):
        for reader in self.readers:
            reader.run(["diff", "-r", "-x", ".st*", self.content, self.folder(reader)], within=600)


class Libtorrent(System):
    """BitTorrent without a tracker: the peers are told of each other when a run begins."""

    name = "libtorrent"
    packages = ("python3-libtorrent",)

    def start(self):
        self.torrent = self.lab.dir / "content.torrent"
        size = sum(path.stat().st_size for path in self.content.rglob("*") if path.is_file())
        piece = MIB if size > 512 * MIB else MIB // 4
        run([PYTHON, str(HERE / "torrent.py"), "make", str(self.content), str(self.torrent), str(piece)], within=300)
        # A copy, since one of the faults is that what is served is damaged.
        self.served = self.source.path("files") / self.content.name
        run(["cp", "-r", str(self.content), str(self.served)], within=300)
        self.peers = {self.source: self.peer(self.source, self.source.path("files"))}

    def join(self):
        for reader in self.readers:
            self.peers[reader] = self.peer(reader, reader.path("files"))

    def folder(self, reader):
        return reader.path("files") / self.content.name

    def peer(self, host, folder):
        started = host.start([PYTHON, HERE / "torrent.py", "peer", self.torrent, folder, host.address], name="torrent")
        until("the torrent is loaded", lambda: "ready" in Path(started.log).read_text(encoding="utf8"), within=120, alive=started)
        return started

    def connect(self):
        addresses = " ".join(host.address for host in self.peers)
        for reader in self.readers:
            self.peers[reader].say(f"connect {addresses}")

    def bring(self, name, within):
        begun = now()
        self.connect()
        for reader in self.readers:
            peer = self.peers[reader]
            until(f"{reader.name} has everything", lambda peer=peer: "complete" in tail(peer.log, 3), within, poll=0.005, alive=peer)
        return now() - begun


class Rqbit(Libtorrent):
    name = "rqbit"
    packages = ("python3-libtorrent",)
    crates = ("rqbit",)

    @classmethod
    def version(cls):
        return run([cls.programs["rqbit"], "--version"]).strip().removeprefix("rqbit ")

    def command(self, host, folder, peers):
        """A peer that goes on after it has everything, or ends then."""
        return [self.programs["rqbit"], "--disable-dht", "--disable-lsd", "--disable-upnp-port-forward", "--ipv4-only",
                "--listen-port", "4240", "--http-api-listen-addr", "127.0.0.1:3030", "-v", "warn",
                "download", "-o", folder, "--overwrite", *(["--initial-peers", ",".join(peers)] if peers else []), self.torrent]

    def peer(self, host, folder):
        if host is not self.source:
            return None
        seed = host.start(self.command(host, self.served, []), name="rqbit")
        until("the seed has checked its files", lambda: self.seeds(host), within=300, alive=seed)
        return seed

    def seeds(self, host):
        with contextlib.suppress(Failed, ValueError):
            return json.loads(host.run(["curl", "-sSf", "http://127.0.0.1:3030/torrents/0/stats/v1"]))["finished"]
        return False

    def folder(self, reader):
        return reader.path("files")

    def bring(self, name, within):
        """It has everything when it says so; its own interface is asked every 20 ms, each time by a process."""
        everyone = [f"{host.address}:4240" for host in self.lab.hosts]
        begun = now()
        for reader in self.readers:
            reader.start(self.command(reader, self.folder(reader), everyone), name="rqbit")
        for reader in self.readers:
            until(f"{reader.name} has everything", lambda reader=reader: self.seeds(reader), within=within)
        return now() - begun


class Sendme(System):
    name = "sendme"
    crates = ("sendme",)

    @classmethod
    def version(cls):
        return run([cls.programs["sendme"], "--version"]).strip().removeprefix("sendme ")

    def start(self):
        send = self.source.start([self.programs["sendme"], "send", "--relay", "disabled", "--ticket-type", "addresses",
                                  "--no-progress", self.content], name="sendme")
        found = until("sendme has made its ticket",
                      lambda: re.search(r"\bblob[a-z0-9]{20,}", send.log.read_text(errors="replace")), within=300, alive=send)
        self.ticket = found[0]

    def folder(self, reader):
        return reader.path("files") / self.content.name

    def bring(self, name, within):
        for reader in self.readers:
            shutil.rmtree(reader.path("files"))
        begun = now()
        running = [reader.start(["env", "-C", reader.path("files"), self.programs["sendme"], "receive", "--relay", "disabled",
                                 "--no-progress", self.ticket], name="sendme") for reader in self.readers]
        for process in running:
            process.wait(within)
        return now() - begun


ALL = [P2pfs, P2pfsUser, Ext4, Sshfs, SshfsAes, Rclone, RcloneFresh, Nginx, NginxKept, Syncthing, Libtorrent, Rqbit, Sendme]


def probe(*words):
    """The command of one timed operation of `probe.py`."""
    return [PYTHON, PROBE, *words]
