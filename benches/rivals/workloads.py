"""What is measured. Each workload makes its files anew for each round, and runs every system on the same ones.

`measure` returns one number for each column that it can fill. All files are of random bytes, so nothing is gained by
compressing or deduplicating them.
"""

import contextlib
import json
import os
import shutil
from pathlib import Path

import systems
from lab import MIB, Failed, drop_caches, now, until
from systems import probe

LONG = 900
"""Seconds after which a transfer counts as hanging."""


class Column:
    """One measured quantity."""

    def __init__(self, key, title, digits=1, less_is_better=True):
        self.key, self.title, self.digits, self.less_is_better = key, title, digits, less_is_better


def rate(key, title):
    return Column(key, title, 0, less_is_better=False)


class Workload:
    name = "?"
    title = "?"
    systems = ()
    hosts = 2
    bar = ""
    columns = ()
    """The first one is compared."""
    compared = True
    """Whether its table says how p2pfs compares, and has the best first."""
    left_out = {}
    """Rivals that cannot do it, and why."""
    table = None
    """The table that it shares with other workloads; none where it has its own."""

    def __init__(self, quick):
        self.quick = quick

    def make(self, content):
        """Fills the folder of a round."""

    def prepare(self, system):
        """Brings the system up until it is to be measured."""
        system.start()
        system.join()

    def row(self, system):
        """What its line is called."""
        return system

    def measure(self, system):
        raise NotImplementedError

    def rounds(self):
        return 1 if self.quick else 3


def random_file(path, size):
    with open(path, "wb") as file:
        while size > 0:
            size -= file.write(os.urandom(min(size, 16 * MIB)))


def parse(printed):
    """What a probe printed in the end."""
    return json.loads(printed.strip().splitlines()[-1])


class Usage:
    """Processor seconds and bytes on the interfaces while something runs."""

    def __init__(self, system):
        self.lab = system.lab
        self.cpu, self.sent = self.lab.cpu(), self.lab.sent()

    def columns(self, size):
        """Since it was made; bytes as multiples of the content's size, those of the readers together."""
        sent = self.lab.sent()
        received = sum(after[1] - before[1] for after, before in list(zip(sent, self.sent))[1:])
        return {"cpu": self.lab.cpu() - self.cpu, "received": received / size, "uploaded": (sent[0][0] - self.sent[0][0]) / size}


CPU = Column("cpu", "CPU s, both ends")
RECEIVED = Column("received", "bytes received / size", 3)


class Cold(Workload):
    name = "cold"
    title = "1 GiB cold from one peer, `dd bs=1M`"
    systems = ("p2pfs", "nginx, curl to /dev/null", "nginx, curl to disk", "syncthing", "libtorrent", "rqbit", "sendme", "sshfs",
               "sshfs, AES", "rclone mount")
    bar = "2.5 × sshfs and 1.2 × nginx to disk; aim 900 MiB/s"
    columns = (rate("rate", "MiB/s"), CPU, RECEIVED)

    def size(self):
        return (64 if self.quick else 1024) * MIB

    def make(self, content):
        random_file(content / "file", self.size())

    def measure(self, system):
        drop_caches()
        usage = Usage(system)
        seconds = system.bring("file", LONG)
        result = {"rate": self.size() / MIB / seconds, **usage.columns(self.size())}
        system.check()
        return result


class First(Workload):
    name = "first"
    title = "First 4 KiB of a cold file, its name known"
    systems = ("p2pfs", "sshfs", "sshfs, AES", "rclone mount")
    bar = "sshfs; aim half of it"
    columns = (Column("start", "at its start, ms", 2), Column("middle", "in its middle, ms", 2))
    left_out = {"nginx": "no files to open", "syncthing, libtorrent, rqbit, sendme": "all of a file is copied before any can be read"}
    count = 10
    """Files for each of the two; the median of them is the round's figure."""

    def size(self):
        return (4 if self.quick else 64) * MIB

    def make(self, content):
        for number in range(2 * self.count):
            random_file(content / f"file{number}", self.size())

    def measure(self, system):
        reader = system.readers[0]
        names = sorted(path.name for path in system.content.iterdir())
        until("all names are there", lambda: sorted(reader.run(["ls", system.folder(reader)]).split()) == names)
        reader.run(["ls", "-l", system.folder(reader)])
        drop_caches()
        result = {}
        for key, offset, chosen in (("start", 0, names[::2]), ("middle", self.size() // 2, names[1::2])):
            places = [word for name in chosen for word in (system.folder(reader) / name, system.content / name, offset)]
            seconds = sorted(parse(reader.run(probe("first", 4096, *places)))["seconds"])
            result[key] = 1000 * seconds[len(seconds) // 2]
        return result


class Again(Workload):
    name = "again"
    title = "The same file read again; and again after dropping the page cache"
    systems = ("p2pfs", "p2pfs as a user", "native", "sshfs", "sshfs, AES", "rclone mount")
    bar = "as root 0.95 of the native file; as another user 0.8 from the page cache; aim the native file"
    left_out = {"nginx, syncthing, libtorrent, rqbit, sendme": "what they copied is an ordinary file, so it is native"}
    columns = (rate("again", "again, MiB/s"), rate("dropped", "after dropping, MiB/s"))

    def size(self):
        return (64 if self.quick else 1024) * MIB

    def make(self, content):
        random_file(content / "file", self.size())

    def measure(self, system):
        system.bring("file", LONG)
        again = system.bring("file", LONG)
        drop_caches()
        dropped = system.bring("file", LONG)
        system.check()
        return {"again": self.size() / MIB / again, "dropped": self.size() / MIB / dropped}


class Small(Workload):
    name = "small"
    title = "10,000 files of 4 KiB in 100 folders"
    systems = ("p2pfs", "native", "sshfs", "syncthing", "libtorrent", "rqbit", "sendme")
    bar = "`find` as fast as sshfs; cold `tar` in a third of sshfs's time, aim a fifth"
    columns = (Column("tar", "`tar` cold, or copied whole, s", 2), Column("find", "`find`, s", 3), Column("warm", "`tar` again, s", 2), CPU)
    left_out = {"nginx": "it transfers files, not folders", "rclone mount": "a fifth of a second and more for each file"}

    def folders(self):
        return 10 if self.quick else 100

    def make(self, content):
        for number in range(self.folders()):
            folder = content / f"folder{number}"
            folder.mkdir()
            for file in range(100):
                random_file(folder / f"file{file}", 4096)

    def measure(self, system):
        drop_caches()
        if not system.mounts:
            usage = Usage(system)
            result = {"tar": system.bring("", LONG), "cpu": usage.columns(1)["cpu"]}
            system.check()
            return result
        reader = system.readers[0]

        def timed(*command):
            begun = now()
            printed = reader.run(command, within=LONG, user=system.user())
            return now() - begun, printed

        folder = system.folder(reader)
        usage = Usage(system)
        find, printed = timed("find", folder, "-type", "f")
        if len(printed.splitlines()) != 100 * self.folders():
            raise Failed(f"find shows {len(printed.splitlines())} files of {100 * self.folders()}")
        # Into a pipe: tar does not read what it would write to /dev/null.
        tar = ("bash", "-o", "pipefail", "-c", 'tar -C "$0" -cf - . | cat > /dev/null', folder)
        cold = timed(*tar)[0]
        cpu = usage.columns(1)["cpu"]
        warm = timed(*tar)[0]
        system.check()
        return {"find": find, "tar": cold, "warm": warm, "cpu": cpu}


class Swarm(Workload):
    """A file wanted at many readers at the same time, links limited."""

    systems = ("p2pfs", "libtorrent", "syncthing", "rqbit", "nginx, curl to disk", "sshfs", "sendme")
    columns = (Column("seconds", "until all have it, s"), Column("bound", "times the bound", 2),
               Column("uploaded", "sent by the source / size", 2), CPU)
    left_out = {"rclone mount": "as sshfs"}
    readers = 4
    megabits = 200

    def __init__(self, quick):
        super().__init__(quick)
        self.hosts = 1 + self.readers

    def size(self):
        return (8 if self.quick else 128) * MIB

    def make(self, content):
        random_file(content / "file", self.size())

    def measure(self, system):
        drop_caches()
        system.lab.limit(f"{self.megabits}mbit")
        usage = Usage(system)
        seconds = system.bring("file", LONG)
        result = {"seconds": seconds, "bound": seconds / (self.size() * 8 / self.megabits / 1e6), **usage.columns(self.size())}
        system.lab.limit(None)
        system.check()
        return result


class Swarm4(Swarm):
    name = "swarm-4"
    title = "128 MiB to 4 readers at once, every link 200 Mbit/s"
    bar = "1.3 × the bound (5.4 s); aim 1.15"


class Swarm16(Swarm):
    name = "swarm-16"
    title = "128 MiB to 16 readers at once, every link 100 Mbit/s"
    bar = "1.3 × the bound (10.7 s); aim 1.15"
    readers = 16
    megabits = 100

    def rounds(self):
        return 1


class Seen(Workload):
    name = "seen"
    title = "1 MiB written at one, readable at another"
    systems = ("p2pfs", "sshfs", "rclone mount, folders kept 1 s", "syncthing")
    bar = "50 ms; aim 20 ms"
    columns = (Column("name", "whole, by its name, ms", 0), Column("listing", "in a listing already seen, ms", 0))
    left_out = {"nginx": "nothing tells of new files", "libtorrent, rqbit, sendme": "what they share never changes"}

    def make(self, content):
        (content / "before").write_bytes(b"is there from the start")

    def prepare(self, system):
        super().prepare(system)
        if isinstance(system, systems.Syncthing):
            system.bring("", LONG)

    def measure(self, system):
        """Times from the end of `close` at the writer; the median of some files for each."""
        reader, original = system.readers[0], system.lab.dir / "written"
        result = {}
        for how in ("name", "listing"):
            times = []
            for number in range(1 if self.quick else 5):
                random_file(original, MIB)
                file = f"{how}{number}"
                watcher = reader.start(probe("appear", how, system.folder(reader) / file, original, 60), name=file)
                until("the reader watches", lambda watcher=watcher: "watching" in watcher.log.read_text(encoding="utf8"),
                      alive=watcher)
                at = parse(system.source.run(probe("write", system.publish_into() / file, original)))["at"]
                watcher.wait(90)
                (system.publish_into() / file).unlink()
                times.append(parse(watcher.log.read_text(encoding="utf8"))["at"] - at)
            result[how] = 1000 * sorted(times)[len(times) // 2]
        return result


class Write(Workload):
    name = "write"
    title = "`cp` of 1 GiB followed by `sync` of the file; and from close to published"
    systems = ("p2pfs", "native")
    bar = "0.8 of native; published within what BLAKE3 needs and 0.5 s"
    columns = (Column("seconds", "`cp` and `sync`, s", 2), Column("published", "from close to published, s", 2))
    hosts = 1
    left_out = {"sshfs, rclone mount": "`sync` does not reach the server's disk",
                "syncthing": "what it shares is an ordinary folder, so it is native",
                "nginx, libtorrent, rqbit, sendme": "nobody writes through them"}

    def size(self):
        return (64 if self.quick else 1024) * MIB

    def make(self, content):
        """Nothing: the file to copy lies beside it."""

    def measure(self, system):
        host, original = system.source, system.lab.dir / "original"
        random_file(original, self.size())
        folder = system.publish_into()
        # A first copy and its removal, so that the original is in the page cache for all.
        host.run(["cp", original, host.dir / "warm"], within=LONG)
        (host.dir / "warm").unlink()
        os.sync()
        begun = now()
        host.run(["bash", "-c", 'cp "$0" "$1/copy" && sync "$1/copy"', original, folder], within=LONG)
        result = {"seconds": now() - begun}
        host.run(["cmp", original, folder / "copy"], within=LONG)
        if isinstance(system, systems.P2pfs):
            # Another content, or nothing of it would have to be kept.
            random_file(original, self.size())
            at = parse(host.run(probe("write", folder / "published", original), within=LONG))["at"]
            result["published"] = parse(host.run(probe("published", folder / "published", 120), within=130))["at"] - at
            host.run(["cmp", original, folder / "published"], within=LONG)
        for name in ("copy", "published"):
            with contextlib.suppress(FileNotFoundError):
                (Path(folder) / name).unlink()
        return result


def fresh(folder, workload):
    """The content of a new round."""
    content = folder / "content"
    shutil.rmtree(content, ignore_errors=True)
    content.mkdir()
    content.chmod(0o755)
    workload.make(content)
    return content
