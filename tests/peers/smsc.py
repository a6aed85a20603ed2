"""An SMPP centre by npm's `smpp`: told what to do by lines, telling what it got."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.peers.http_gateways import npm_folder, stop
from tests.peers.invariants import Handsets
from tests.peers.programs import absent, free_port

PACKAGE = "smpp@0.5.1"


class Smsc:
    """One centre on a free port; it can be stopped and started again there."""

    PASSWORD = "secret"

    def __init__(self) -> None:
        self.port = free_port()
        self.told: list[dict[str, Any]] = []
        self.handsets = Handsets()
        self._process: subprocess.Popen[str] | None = None

    def start(self) -> Smsc:
        module = npm_folder(PACKAGE) / "node_modules" / "smpp"
        script = Path(__file__).with_name("smsc.js")
        node = shutil.which("node") or absent("node is missing: install Node.js 20 or later")
        command = [node, str(script), str(module), str(self.port), self.PASSWORD]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True
        )
        self.told = []
        threading.Thread(target=self._listen, args=(self._process, self.told, self.handsets), daemon=True).start()
        self.until(lambda told: any("listening" in one for one in told))
        return self

    def tell(self, **what: Any) -> None:
        assert self._process is not None
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(what) + "\n")
        self._process.stdin.flush()

    def until(self, holds: Callable[[list[dict[str, Any]]], bool], within_s: float = 15.0) -> list[dict[str, Any]]:
        end_s = time.monotonic() + within_s
        while not holds(self.told):
            assert time.monotonic() < end_s, self.told[-10:]
            time.sleep(0.02)
        return self.told

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def count(self) -> int:
        """Ask how many messages came, throttled ones included."""
        self.tell(count=True)
        return int(self.until(lambda told: "count" in told[-1])[-1]["count"])

    def submits(self) -> list[dict[str, Any]]:
        return [one for one in self.told if "submit" in one]

    def freeze(self) -> None:
        """Leave every connection open and answer nothing: a link dead without FIN (F19)."""
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        assert self._process is not None
        self._process.send_signal(signal.SIGCONT)

    def stop(self) -> None:
        if self._process is not None:
            stop(self._process)
            assert self._process.stdin is not None
            assert self._process.stdout is not None
            self._process.stdin.close()
            self._process = None

    @staticmethod
    def _listen(process: subprocess.Popen[str], told: list[dict[str, Any]], handsets: Handsets) -> None:
        assert process.stdout is not None
        with process.stdout as lines:
            for line in lines:
                one = json.loads(line)
                told.append(one)
                if "submit" in one:
                    handsets.got((one["to"], one["text"]))
