"""A function in a process of its own: said to be ready, told to stop, its stamps read from a file."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from time import perf_counter
from typing import Any

import orjson

spawn = multiprocessing.get_context("spawn")


class Part:
    """One process; `work` takes the arguments, then the file of its stamps if it has one, then two events: ready, stop.

    begun_s  when it was started
    """

    def __init__(self, work: Callable[..., None], arguments: tuple[Any, ...], stamps: Path | None, *more: Any) -> None:
        self.writes = stamps is not None
        self.begun_s = perf_counter()
        self._stamps = stamps
        self._ready, self._stop = spawn.Event(), spawn.Event()
        given = (*arguments, stamps) if stamps is not None else arguments
        self._process = spawn.Process(target=work, args=(*given, self._ready, self._stop, *more), daemon=True)
        self._process.start()

    def wait_ready(self) -> None:
        end_s = perf_counter() + 120
        while not self._ready.wait(0.05):
            self.must_live()
            assert perf_counter() < end_s, "not ready"

    def must_live(self) -> None:
        assert self._process.is_alive(), f"{self._process.name} ended with {self._process.exitcode}"

    def stop(self) -> None:
        self._stop.set()
        self._process.join(120)
        assert self._process.exitcode == 0, f"a part ended with {self._process.exitcode}"

    def stamps(self) -> dict[str, Any]:
        assert self._stamps is not None
        found: dict[str, Any] = orjson.loads(self._stamps.read_bytes())
        return found

    def kill(self) -> None:
        """End it as a crash would."""
        with suppress(Exception):
            self._process.kill()
            self._process.join(30)
