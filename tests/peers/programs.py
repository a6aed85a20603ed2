"""What tests with real peers need: programs installed or loudly missed, free loopback ports, servers that are awaited.

A missing Debian package is installed where OPPORTUNE_INSTALL=1 allows it (as root); else the test is skipped loudly, or
fails where OPPORTUNE_REQUIRE=all. npm packages go into a cache outside the tree.
"""

from __future__ import annotations

import contextlib
import fcntl
import itertools
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NoReturn

import pytest

# Below the ports that the system gives to clients, and for each process of tests others: nobody comes in between.
_FIRST_PORT, _PORTS = 12_000, 4_000
_worker = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw")) % 5
_ports = itertools.cycle(range(_FIRST_PORT + _worker * _PORTS, _FIRST_PORT + (_worker + 1) * _PORTS))
for _ in range(os.getpid() % _PORTS):
    next(_ports)


def free_port() -> int:
    """Return a port on loopback that nobody has and that this process does not give out again soon."""
    for port in _ports:
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port
    raise AssertionError("unreachable")


def cache_folder() -> Path:
    """Return where what tests fetch is kept: OPPORTUNE_CACHE_DIR, or the user's cache."""
    given = os.environ.get("OPPORTUNE_CACHE_DIR")
    folder = Path(given) if given else Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "opportune"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


@contextlib.contextmanager
def one_at_a_time() -> Iterator[None]:
    """Let only one process of all install or fetch something."""
    with (cache_folder() / "tests.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def need(program: str, package: str) -> str:
    """Return the path of a program (a name or a whole path), installing its Debian package where that is allowed."""
    path = _found(program)
    if path is None and os.environ.get("OPPORTUNE_INSTALL") == "1" and os.geteuid() == 0 and shutil.which("apt-get"):
        with one_at_a_time():
            path = _found(program) or _install(program, package)
    if path is None:
        absent(f"{program} is missing: install {package}, or set OPPORTUNE_INSTALL=1 as root")
    return path


def _install(program: str, package: str) -> str | None:
    quiet = {"env": os.environ | {"DEBIAN_FRONTEND": "noninteractive"}, "capture_output": True, "timeout": 600}
    subprocess.run(["apt-get", "update", "-qq"], **quiet)
    subprocess.run(["apt-get", "install", "-y", "-qq", "--no-install-recommends", package], **quiet)
    return _found(program)


def _found(program: str) -> str | None:
    # Servers are often in folders that are not on everybody's path.
    return shutil.which(program) or shutil.which(program, path="/usr/sbin:/usr/local/sbin")


def absent(text: str) -> NoReturn:
    """Skip, or fail where everything is required."""
    if os.environ.get("OPPORTUNE_REQUIRE") == "all":
        pytest.fail(text)
    pytest.skip(text)


def wait_for(ready: Callable[[], bool], what: str, process: subprocess.Popen[bytes], timeout_s: float = 60.0) -> None:
    end_s = time.monotonic() + timeout_s
    while not ready():
        assert process.poll() is None, f"{what} ended with status {process.returncode}"
        assert time.monotonic() < end_s, f"{what} is not ready after {timeout_s:.0f} s"
        time.sleep(0.05)


def is_open(port: int) -> bool:
    with socket.socket() as probe:
        probe.settimeout(0.2)
        return probe.connect_ex(("127.0.0.1", port)) == 0
