"""Real servers for the tests: started once a session on free loopback ports, stopped at its end (docs/testing.md).

A server that one already has is used where the environment names it. A missing package is installed where
OPPORTUNE_INSTALL=1 allows it (Debian, as root); else the test is skipped loudly, or fails where OPPORTUNE_REQUIRE=all.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def need(program: str, package: str) -> str:
    """Return the path of a program, installing its Debian package where that is allowed."""
    path = shutil.which(program)
    if path is None and os.environ.get("OPPORTUNE_INSTALL") == "1" and os.geteuid() == 0 and shutil.which("apt-get"):
        quiet = {"env": os.environ | {"DEBIAN_FRONTEND": "noninteractive"}, "capture_output": True, "timeout": 300}
        subprocess.run(["apt-get", "update", "-qq"], **quiet)
        subprocess.run(["apt-get", "install", "-y", "-qq", "--no-install-recommends", package], **quiet)
        path = shutil.which(program)
    if path is None:
        absent(f"{program} is missing: install {package}, or set OPPORTUNE_INSTALL=1 as root")
    return path


def absent(text: str) -> None:
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


class RedisServer:
    """One redis-server of our own; it can be killed and started again on the same port and folder."""

    def __init__(self, folder: Path, *options: str) -> None:
        self.port = free_port()
        self.url = f"redis://127.0.0.1:{self.port}/0"
        self._folder = folder
        self._options = options
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> RedisServer:
        program = need("redis-server", "redis-server")
        self._folder.mkdir(parents=True, exist_ok=True)
        command = [program, "--port", str(self.port), "--bind", "127.0.0.1", "--dir", str(self._folder)]
        command += ["--save", "", "--appendonly", "no", *self._options]
        self._process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        wait_for(lambda: is_open(self.port), "redis-server", self._process)
        return self

    def kill(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None
