"""Real servers for the tests: started once a session on free loopback ports, stopped at its end (docs/testing.md).

A server that one already has is used where the environment names it.
"""

from __future__ import annotations

import subprocess
from pathlib import Path

from tests.peers.programs import free_port, is_open, need, wait_for


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
