"""What tests with real peers need: programs installed or loudly missed, free loopback ports, servers that are awaited.

A missing Debian package is installed where OPPORTUNE_INSTALL=1 allows it (as root); else the test is skipped loudly, or
fails where OPPORTUNE_REQUIRE=all. npm packages go into a cache outside the tree.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import time
from collections.abc import Callable
from typing import NoReturn

import pytest


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def need(program: str, package: str) -> str:
    """Return the path of a program (a name or a whole path), installing its Debian package where that is allowed."""
    path = _found(program)
    if path is None and os.environ.get("OPPORTUNE_INSTALL") == "1" and os.geteuid() == 0 and shutil.which("apt-get"):
        quiet = {"env": os.environ | {"DEBIAN_FRONTEND": "noninteractive"}, "capture_output": True, "timeout": 300}
        subprocess.run(["apt-get", "update", "-qq"], **quiet)
        subprocess.run(["apt-get", "install", "-y", "-qq", "--no-install-recommends", package], **quiet)
        path = _found(program)
    if path is None:
        absent(f"{program} is missing: install {package}, or set OPPORTUNE_INSTALL=1 as root")
    return path


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
