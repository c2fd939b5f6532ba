"""Installs what is missing: Debian's packages by apt-get, and, where asked for, programs from crates."""

import os
import shutil
import subprocess
from pathlib import Path

from lab import Failed, clean_environment, run

TOOLS = ("iproute2", "util-linux", "diffutils", "findutils", "tar", "procps", "python3", "fuse3")
POLICY = Path("/usr/sbin/policy-rc.d")


def installed(package):
    done = subprocess.run(["dpkg-query", "-W", "-f", "${db:Status-Abbrev}", package], capture_output=True, text=True, check=False)
    return done.stdout.startswith("ii")


def packages(wanted):
    """Installs packages without starting the services that come with some of them."""
    missing = sorted({package for package in wanted if not installed(package)})
    if not missing:
        return
    if shutil.which("apt-get") is None:
        raise Failed(f"install these first: {' '.join(missing)}")
    print(f"installing {' '.join(missing)}", flush=True)
    made = not POLICY.exists()
    if made:
        POLICY.write_text("#!/bin/sh\nexit 101\n", encoding="utf8")
        POLICY.chmod(0o755)
    try:
        run(["apt-get", "update", "-qq"], within=300)
        environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
        run(["apt-get", "install", "-y", "-qq", "--no-install-recommends", *missing], within=900, env=environment)
    finally:
        if made:
            POLICY.unlink()


def crates(wanted, folder):
    """Builds programs from crates once; they are kept in `folder`. This takes long. Where each of them is."""
    programs = {}
    for name in sorted(wanted):
        program = folder / "bin" / name
        if not program.exists():
            print(f"building {name}", flush=True)
            run(["cargo", "install", "--locked", "--quiet", "--root", str(folder), name], within=7200, env=clean_environment())
        programs[name] = str(program)
    return programs
