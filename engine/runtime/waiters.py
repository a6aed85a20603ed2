"""Wait in the event loop for what the engine thread reaches."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from functools import partial


class Waiters:
    """Wake whoever waits for a position once it is reached."""

    def __init__(self) -> None:
        self._waiting: list[tuple[int, Callable[[], object]]] = []
        self._lock = threading.Lock()

    async def until(self, position: int, reached: Callable[[], int]) -> None:
        """Return once `wake` was told of this position or a later one; `reached` says how far it is already."""
        loop = asyncio.get_running_loop()
        event = asyncio.Event()
        with self._lock:
            self._waiting.append((position, partial(loop.call_soon_threadsafe, event.set)))
        self.wake(reached())
        await event.wait()

    def wake(self, reached: int) -> None:
        """Wake those who wait for this position or an earlier one; any thread may call it."""
        if not self._waiting:
            return
        with self._lock:
            ready = [wake for position, wake in self._waiting if position <= reached]
            self._waiting = [one for one in self._waiting if one[0] > reached]
        for wake in ready:
            wake()
