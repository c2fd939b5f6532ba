"""Hosts on one bridge: network namespaces, the processes in them, and what they use.

A `Lab` is made for one run of one system and leaves nothing behind: no process, mount, namespace or file, however the run
ended. Every command has a deadline; one that fails or is late raises `Failed` with the command and what it printed.

Names: everything of a lab is called `p2pfs-rivals-<pid of the program>…`, so that `clear_stale` finds what a killed run left.
"""

import contextlib
import mmap
import os
import re
import resource
import shlex
import shutil
import signal
import subprocess
import time
from pathlib import Path

PREFIX = "p2pfs-rivals-"
NETNS = Path("/run/netns")
CLOCK_TICKS = os.sysconf("SC_CLK_TCK")
MIB = 1 << 20
TOUCHED_BYTES = 6 << 30
"""More memory than any system takes for a file of 1 GiB, page cache included."""
POLL = 0.02
"""Seconds between two looks at something that is waited for and not itself measured."""


class Failed(Exception):
    """A step of a run did not succeed; the text says which and shows what was printed."""


def now():
    """Seconds on the clock that all processes of this machine share."""
    return time.clock_gettime(time.CLOCK_MONOTONIC)


def tail(path, lines=15):
    """The end of a log."""
    with contextlib.suppress(OSError):
        return "\n".join(Path(path).read_text(errors="replace").splitlines()[-lines:])
    return ""


def run(command, within=60, **options):
    """Runs a command of this machine itself; returns what it printed."""
    try:
        done = subprocess.run(command, stdin=options.pop("stdin", subprocess.DEVNULL), stdout=subprocess.PIPE,
                              stderr=subprocess.STDOUT, text=True, errors="replace", timeout=within, **options)
    except subprocess.TimeoutExpired as late:
        printed = (late.output or b"").decode(errors="replace")
        raise Failed(f"`{shlex.join(command)}` took longer than {within} s\n{printed}") from None
    except OSError as error:
        raise Failed(f"`{shlex.join(command)}`: {error}") from None
    if done.returncode != 0:
        raise Failed(f"`{shlex.join(command)}` ended with {done.returncode}\n{done.stdout.strip()}")
    return done.stdout


def until(what, ready, within=30, poll=POLL, alive=None):
    """Waits until `ready()` is true and returns what it gave; `alive` is a process that must not end meanwhile."""
    deadline = now() + within
    while True:
        if given := ready():
            return given
        if alive is not None and alive.ended():
            raise Failed(f"{what}: `{alive}` ended with {alive.child.returncode}\n{tail(alive.log)}")
        if now() > deadline:
            printed = f"\n{tail(alive.log)}" if alive is not None else ""
            raise Failed(f"not within {within} s: {what}{printed}")
        time.sleep(poll)


def drop_caches():
    """Empties the page cache, and the caches of names, of the whole machine. What comes next finds memory that was in use.

    A virtual machine gives free memory back to its host. The first use after that took 3 s per GiB where this was measured,
    ten times as long as any later one: a run would mostly tell how much memory happened to be in use before.
    """
    os.sync()
    Path("/proc/sys/vm/drop_caches").write_text("3\n")
    available = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | mmap.MAP_POPULATE
    mmap.mmap(-1, min(TOUCHED_BYTES, available // 2), flags=flags).close()


class Process:
    """A process in the background, in a session of its own, its output in a log."""

    def __init__(self, command, log, **options):
        self.command, self.log = command, log
        with open(log, "ab") as output:
            try:
                self.child = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=options.pop("stdout", output),
                                              stderr=output, start_new_session=True, **options)
            except OSError as error:
                raise Failed(f"`{self}`: {error}") from None

    def __str__(self):
        command = self.command
        return shlex.join(command[command.index("--") + 1:] if "--" in command else command)

    @property
    def pid(self):
        return self.child.pid

    def ended(self):
        return self.child.poll() is not None

    def say(self, line):
        """Writes a line to its standard input."""
        try:
            self.child.stdin.write(f"{line}\n".encode())
            self.child.stdin.flush()
        except OSError as error:
            raise Failed(f"`{self}` does not listen: {error}\n{tail(self.log)}") from None

    def wait(self, within):
        """Waits until it has ended well; ends it otherwise."""
        try:
            code = self.child.wait(within)
        except subprocess.TimeoutExpired:
            self.kill()
            raise Failed(f"`{self}` took longer than {within} s\n{tail(self.log)}") from None
        if code != 0:
            raise Failed(f"`{self}` ended with {code}\n{tail(self.log)}")

    def signal(self, number):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, number)

    def kill(self):
        self.signal(signal.SIGKILL)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.child.wait(5)


class Host:
    """A network namespace with an address and a folder."""

    def __init__(self, lab, number):
        self.lab, self.number = lab, number
        self.name = f"h{number}"
        self.namespace = f"{lab.tag}-{self.name}"
        self.port = f"port{number}"
        self.address = f"10.77.0.{number}"
        self.dir = lab.dir / self.name
        self.dir.mkdir()
        self.made = set()
        run(["ip", "netns", "add", self.namespace])
        ip(f"link add eth0 netns {self.namespace} type veth peer name {self.port} netns {lab.hub}")
        ip(f"-n {lab.hub} link set {self.port} master bridge up")
        ip(f"-n {self.namespace} addr add {self.address}/24 dev eth0")
        ip(f"-n {self.namespace} link set eth0 up")
        ip(f"-n {self.namespace} link set lo up")

    def path(self, name):
        """A folder of this host, made where it is missing."""
        path = self.dir / name
        # Only once: what is mounted there later may be another user's.
        if path not in self.made:
            path.mkdir(parents=True, exist_ok=True)
            self.made.add(path)
        return path

    def command(self, command, user=None):
        """The command as it is run on this host. Not `ip netns exec`: that hides mounts that are made inside it."""
        become = [] if user is None else ["setpriv", f"--reuid={user}", f"--regid={user}", "--clear-groups"]
        return ["nsenter", f"--net={NETNS / self.namespace}", "--", *become, *map(str, command)]

    def options(self, env=None):
        return {"cwd": self.dir, "env": {**clean_environment(), "HOME": str(self.dir), **(env or {})}}

    def run(self, command, within=60, user=None, **options):
        """Runs a command to its end and returns what it printed."""
        return run(self.command(command, user), within, **self.options(), **options)

    def start(self, command, user=None, env=None, name=None, **options):
        """Starts a process that the lab ends, if nobody else does."""
        command = list(command)
        log = self.dir / f"{name or Path(str(command[0])).name}.log"
        process = Process(self.command(command, user), log, **self.options(env), **options)
        self.lab.processes.append(process)
        return process

    def limit(self, rate):
        """Limits what it sends and what it receives, each to a rate as tc writes it; `None` takes the limit off."""
        for namespace, device in ((self.namespace, "eth0"), (self.lab.hub, self.port)):
            with contextlib.suppress(Failed):
                run(["tc", "-n", namespace, "qdisc", "del", "dev", device, "root"])
            if rate is not None:
                run(f"tc -n {namespace} qdisc add dev {device} root tbf rate {rate} burst 256k latency 50ms".split())

    def cut_off(self):
        """Pulls the plug at the far end: the host itself sees nothing of it."""
        ip(f"-n {self.lab.hub} link set {self.port} nomaster")

    def processes(self):
        return [int(pid) for pid in run(["ip", "netns", "pids", self.namespace]).split()]


class Lab:
    """A few hosts on one bridge; use it in a `with`."""

    count = 0

    def __init__(self, folder, hosts):
        Lab.count += 1
        self.tag = f"{PREFIX}{os.getpid()}-{Lab.count}"
        self.hub = f"{self.tag}-hub"
        self.dir = Path(folder) / self.tag
        self.processes, self.hosts = [], []
        try:
            self.dir.mkdir()
            self.dir.chmod(0o755)
            ip(f"netns add {self.hub}")
            ip(f"-n {self.hub} link add bridge type bridge")
            ip(f"-n {self.hub} link set bridge up")
            for number in range(1, hosts + 1):
                self.hosts.append(Host(self, number))
        except BaseException:
            self.close()
            raise

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def limit(self, rate):
        for host in self.hosts:
            host.limit(rate)

    def sent(self):
        """Bytes that each host has sent and received so far, as its port of the bridge counts them."""
        text = run(["ip", "-n", self.hub, "-s", "-o", "link"])
        counts = {}
        for line in text.splitlines():
            found = re.search(r": (port\d+)@.*RX:[^\\]*\\\s+(\d+) .*TX:[^\\]*\\\s+(\d+) ", line)
            if found:
                counts[found[1]] = (int(found[2]), int(found[3]))
        return [counts[host.port] for host in self.hosts]

    def cpu(self):
        """Processor seconds of everything on the hosts so far, ended processes included, and of what this program ran."""
        used = resource.getrusage(resource.RUSAGE_CHILDREN)
        ticks = 0
        for host in self.hosts:
            for pid in host.processes():
                with contextlib.suppress(OSError):
                    ticks += sum(map(int, Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[11:15]))
        return used.ru_utime + used.ru_stime + ticks / CLOCK_TICKS

    def close(self):
        """Ends everything of this lab. What is in the way of that is told, and the rest is done all the same."""
        before = signal.signal(signal.SIGINT, signal.SIG_IGN)
        try:
            for process in self.processes:
                process.kill()
                if process.child.stdin is not None:
                    with contextlib.suppress(OSError):
                        process.child.stdin.close()
            clear(self.tag, self.dir)
        finally:
            signal.signal(signal.SIGINT, before)


def ip(words):
    run(["ip", *words.split()])


def clean_environment():
    """The environment without what would change how p2pfs or the rivals behave."""
    return {key: value for key, value in os.environ.items()
            if not key.startswith(("P2PFS_", "RCLONE_", "XDG_")) and key not in ("RUST_LOG", "http_proxy", "https_proxy",
                                                                              "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY")}


def mounts_below(folder):
    with open("/proc/self/mountinfo", encoding="utf8") as table:
        points = [line.split()[4].encode().decode("unicode_escape") for line in table]
    return [point for point in points if point.startswith(f"{folder}/")]


def clear(tag, folder):
    """Ends what is in the namespaces of a lab, takes its mounts down, then its namespaces and its folder."""
    namespaces = [name for name in (os.listdir(NETNS) if NETNS.exists() else []) if name.startswith(f"{tag}-")]
    troubles = []

    def attempt(command, within=20):
        try:
            return run(command, within)
        except Failed as failed:
            troubles.append(str(failed))
            return ""

    for _ in range(50):
        pids = [int(pid) for name in namespaces for pid in attempt(["ip", "netns", "pids", name]).split()]
        if not pids:
            break
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        # A reader that waits for a filesystem whose process is gone ends when the mount does.
        for point in mounts_below(folder):
            subprocess.run(["umount", "-l", point], stderr=subprocess.DEVNULL, check=False, timeout=20)
        time.sleep(0.1)
    else:
        troubles.append(f"processes do not end: {pids}")
    for point in reversed(mounts_below(folder)):
        attempt(["umount", "-l", point])
    for name in namespaces:
        if name.endswith("-hub"):
            for port in re.findall(r": (port\d+)@", attempt(["ip", "-n", name, "-o", "link"])):
                attempt(["ip", "-n", name, "link", "del", port])
    for name in namespaces:
        attempt(["ip", "netns", "del", name])
    shutil.rmtree(folder, ignore_errors=True)
    if Path(folder).exists():
        troubles.append(f"{folder} could not be removed")
    if troubles:
        print("cleaning up: " + "\n".join(troubles), flush=True)


def clear_stale(folder):
    """Removes what a run that was killed left behind: `<folder>/p2pfs-rivals-<pid>`, the labs in it, their namespaces."""
    names = {*(os.listdir(NETNS) if NETNS.exists() else []), *os.listdir(folder)}
    for pid in {match[1] for name in names if (match := re.match(rf"{PREFIX}(\d+)(-|$)", name))}:
        if not Path(f"/proc/{pid}").exists():
            clear(f"{PREFIX}{pid}", Path(folder) / f"{PREFIX}{pid}")
