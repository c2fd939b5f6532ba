"""What happens to a read when one of its two sources fails in the middle.

Links are slow enough that the read takes some seconds and fast enough that one source alone can fill the reader's. The
source that fails is the one that wrote the file in odd rounds and the other one in even rounds.

The **dip** is the longest time during which, looked at in tenths of a second, less than a quarter of the rate before the
fault arrived. The **pause** is the longest time without a single byte.
"""

import json
import os
import signal
import statistics
import time

import systems
from lab import MIB, Failed, now, tail, until
from systems import probe
from workloads import Column, Workload, random_file

TICK = 0.1


class Fault(Workload):
    table = "faults"
    title = "1 GiB from two sources, one of which fails after a quarter"
    bar = "the read completes, with a dip of at most 2 s where a source is killed or cut off, and 5 s otherwise"
    compared = False
    hosts = 3
    systems = ("p2pfs", "libtorrent")
    columns = (Column("dip", "longest dip, s"), Column("pause", "longest pause, s"), Column("seconds", "whole read, s"),
               Column("share", "of the bytes before it by that source, %", 0))
    left_out = {"nginx, sshfs, rclone mount, sendme": "they know one source only",
                "syncthing, rqbit": "they don't tell often enough how far they are"}
    fault = "?"
    within = 120

    def __init__(self, quick):
        super().__init__(quick)
        self.round = 0

    def row(self, system):
        return f"{TOLD[self.fault]}: {system}"

    def size(self):
        return (128 if self.quick else 1024) * MIB

    def megabits(self):
        return 200 if self.quick else 1000

    def rounds(self):
        return 2 if self.quick else 4

    def make(self, content):
        self.round += 1
        random_file(content / "file", self.size())

    def prepare(self, system):
        """The second host has all of the file before the third one begins to read."""
        system.start()
        reader = system.readers.pop()
        system.join()
        system.bring("file", 600)
        system.check()
        system.holder, system.readers = system.readers[0], [reader]
        system.join()
        system.victim = system.source if self.round % 2 else system.holder

    def measure(self, system):
        reader = system.readers[0]
        process = system.daemons[system.victim] if isinstance(system, systems.P2pfs) else system.peers[system.victim]
        system.lab.limit(f"{self.megabits()}mbit")
        hosts = system.lab.hosts
        before = [sent for sent, _ in system.lab.sent()]
        begun = now()
        progress = self.reading(system, reader)
        steps, at, share = [], None, 0
        while not progress.complete():
            if now() - begun > self.within:
                raise Failed(f"{self.fault}: the read hangs: {steps[-1][1] if steps else 0} of {self.size()} bytes after "
                             f"{now() - begun:.0f} s, the fault was at {at and at - begun} s\n{tail(progress.log)}")
            steps.append((now(), progress.bytes()))
            if at is None and steps[-1][1] >= self.size() // 4:
                at = now()
                sent = [after - earlier for (after, _), earlier in zip(system.lab.sent(), before)]
                share = 100 * sent[hosts.index(system.victim)] / max(1, sent[0] + sent[1])
                self.strike(system, process)
            time.sleep(0.01)
        steps.append((now(), progress.bytes()))
        if self.fault == "stopped":
            # So that it can be ended in order.
            process.signal(signal.SIGCONT)
        progress.check()
        return {"seconds": steps[-1][0] - begun, "share": share, **dips(steps, at or begun)}

    def strike(self, system, process):
        match self.fault:
            case "killed":
                process.signal(signal.SIGKILL)
            case "stopped":
                process.signal(signal.SIGSTOP)
            case "cut off":
                system.victim.cut_off()
            case "trickle":
                system.victim.limit("64kbit")
            case "lying":
                damage(backing(system), self.size())

    def reading(self, system, reader):
        if isinstance(system, systems.P2pfs):
            return ByMount(system, reader)
        return ByTorrent(system, reader)


class ByMount:
    """A program that reads through the mount and compares what it gets."""

    def __init__(self, system, reader):
        self.process = reader.start(probe("whole", system.folder(reader) / "file", system.content / "file"), name="whole")
        self.log = self.process.log

    def complete(self):
        if self.process.ended():
            self.process.wait(1)
            return True
        return False

    def bytes(self):
        numbers = [line for line in tail(self.log, 4).splitlines() if line.isdigit()]
        return int(numbers[-1]) if numbers else self.at_end()

    def at_end(self):
        last = tail(self.log, 1)
        return json.loads(last)["steps"][-1][1] if last.startswith("{") else 0

    def check(self):
        """It has compared already."""


class ByTorrent:
    """A torrent that is downloaded."""

    def __init__(self, system, reader):
        self.system, self.process = system, system.peers[reader]
        self.log = self.process.log
        system.connect()

    def complete(self):
        return "complete" in tail(self.log, 3)

    def bytes(self):
        numbers = [line for line in tail(self.log, 4).splitlines() if line.isdigit()]
        return int(numbers[-1]) if numbers else 0

    def check(self):
        self.system.check()


def backing(system):
    """The file that the victim serves from."""
    if isinstance(system, systems.P2pfs):
        return system.backing_file(system.victim, (system.content / "file").stat().st_size)
    return (system.served if system.victim is system.source else system.folder(system.victim)) / "file"


def damage(path, size):
    """Makes a liar of who serves this file: from a quarter on, a byte in every 64 KiB is wrong. Nobody looks again at what
    he once has verified."""
    with open(path, "r+b", buffering=0) as file:
        for offset in range(size // 4, size, 65536):
            byte = os.pread(file.fileno(), 1, offset)[0]
            os.pwrite(file.fileno(), bytes([byte ^ 0xFF]), offset)


def dips(steps, at):
    """The longest pause and the longest dip from the fault at `at` on."""
    pause, last = 0, at
    for (_, before), (time_after, after) in zip(steps, steps[1:]):
        if after > before and time_after >= at:
            pause, last = max(pause, time_after - last), time_after
    ticks = {}
    for (_, before), (time_after, after) in zip(steps, steps[1:]):
        tick = int((time_after - at) // TICK)
        ticks[tick] = ticks.get(tick, 0) + after - before
    usual = statistics.median([ticks.get(tick, 0) for tick in range(min(ticks), 0)] or [0])
    dip = run = 0
    for tick in range(max(ticks)):
        run = run + 1 if ticks.get(tick, 0) < usual / 4 else 0
        dip = max(dip, run)
    return {"pause": pause, "dip": dip * TICK}


TOLD = {"killed": "killed", "cut off": "cut off", "stopped": "stopped", "trickle": "throttled to 64 kbit/s", "lying": "lies"}


def each():
    """One workload for each fault; they share a table."""
    return [type(f"Fault{fault}", (Fault,), {"name": f"fault-{fault.replace(' ', '-')}", "fault": fault}) for fault in TOLD]
