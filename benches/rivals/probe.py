"""What is timed on a host, as a process of its own: a read that hangs can then be ended.

Prints one JSON object. Times are seconds; `at` is the clock that all processes of a machine share (CLOCK_MONOTONIC).
What an original is named for is compared with it after it was timed; a difference is an error.
"""

import json
import os
import sys
import time

CHUNK = 1 << 20


def now():
    return time.clock_gettime(time.CLOCK_MONOTONIC)


def same(bytes_read, original, offset):
    with open(original, "rb") as file:
        file.seek(offset)
        if file.read(len(bytes_read)) != bytes_read:
            sys.exit(f"the bytes at {offset} are not those of {original}")


def first(length, places):
    """Opens each file and reads `length` bytes at a place: `FILE ORIGINAL OFFSET…`, all in turn."""
    seconds = []
    for path, original, offset in zip(*[iter(places)] * 3):
        begun = now()
        file = os.open(path, os.O_RDONLY)
        got = os.pread(file, int(length), int(offset))
        seconds.append(now() - begun)
        os.close(file)
        if len(got) != int(length):
            sys.exit(f"{path}: {len(got)} bytes instead of {length} at {offset}")
        same(got, original, int(offset))
    return {"seconds": seconds}


def drain(path):
    """Reads a file from its start to its end, as `dd bs=1M of=/dev/null` does."""
    buffer, size = bytearray(CHUNK), 0
    begun = now()
    file = os.open(path, os.O_RDONLY)
    while got := os.readv(file, [buffer]):
        size += got
    seconds = now() - begun
    if size != os.fstat(file).st_size:
        sys.exit(f"{path}: {size} bytes instead of {os.fstat(file).st_size}")
    return {"seconds": seconds}


def whole(path, original):
    """Reads a file like `drain`, compares it, and says meanwhile and at the end when which byte was there."""
    steps, done = [], 0
    begun = now()
    file = os.open(path, os.O_RDONLY)
    with open(original, "rb") as twin:
        while chunk := os.read(file, CHUNK):
            if twin.read(len(chunk)) != chunk:
                sys.exit(f"bytes from {done} on are not those of {original}")
            done += len(chunk)
            steps.append((now(), done))
            print(done, flush=True)
        if twin.read(1):
            sys.exit(f"{path} ended after {done} bytes")
    return {"begun": begun, "steps": steps}


def write(path, original):
    """Writes a copy of a file; `at` is when `close` returned."""
    with open(original, "rb") as twin:
        data = twin.read()
    file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
    left = memoryview(data)
    while left:
        left = left[os.write(file, left):]
    os.close(file)
    return {"at": now()}


def appear(how, path, original, within):
    """Waits until a file can be read whole by its name, or until its name is in a listing that was seen without it."""
    size, deadline = os.stat(original).st_size, now() + float(within)
    folder, name = os.path.split(path)
    if name in os.listdir(folder):
        sys.exit(f"{path} is there already")
    print("watching", flush=True)
    while now() < deadline:
        if how == "listing":
            if name in os.listdir(folder):
                return {"at": now()}
        else:
            try:
                if os.stat(path).st_size == size:
                    with open(path, "rb") as file:
                        got = file.read()
                    at = now()
                    if len(got) == size:
                        same(got, original, 0)
                        return {"at": at}
            except FileNotFoundError:
                pass
        time.sleep(0.001)
    sys.exit(f"{path} has not come within {within} s")


def published(path, within):
    """Waits until a file of p2pfs is published."""
    deadline = now() + float(within)
    while now() < deadline:
        if os.getxattr(path, "user.p2pfs.state") != b"unpublished":
            return {"at": now()}
        time.sleep(0.001)
    sys.exit(f"{path} is not published within {within} s")


OPERATIONS = {"first": lambda length, *places: first(length, places), "drain": drain, "whole": whole, "write": write, "appear": appear,
              "published": published}

if __name__ == "__main__":
    print(json.dumps(OPERATIONS[sys.argv[1]](*sys.argv[2:])))
