"""Submits on their way: each a task that is cancelled when it takes too long.

One timer serves all of a lane; asyncio.timeout makes one for every submit, which costs as much as the task itself.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from math import inf
from typing import Any


class InFlight:
    """Tasks of one event loop, in the order of their beginning.

    A task calls `begins` when it first runs and `ends` as its last act. Time counts from the former: one that never
    ran could not say what became of it.
    """

    def __init__(self) -> None:
        self._due_s: dict[asyncio.Task[None], float] = {}
        self._late: set[asyncio.Task[None]] = set()
        self._timer: asyncio.TimerHandle | None = None

    def __len__(self) -> int:
        return len(self._due_s) + len(self._late)

    def start(self, work: Coroutine[Any, Any, None]) -> None:
        self._due_s[asyncio.get_running_loop().create_task(work)] = inf

    def begins(self, timeout_s: float) -> None:
        """Have the running task cancelled after this time; the time must be the same for all."""
        loop = asyncio.get_running_loop()
        task = asyncio.current_task(loop)
        assert task is not None
        due_s = self._due_s[task] = loop.time() + timeout_s
        if self._timer is None:
            self._timer = loop.call_at(due_s, self._look)

    def ends(self) -> None:
        task = asyncio.current_task()
        assert task is not None
        if self._due_s.pop(task, None) is None:
            self._late.discard(task)

    async def finish(self, timeout_s: float) -> None:
        """Wait for what is on its way; cancel what is not over by then."""
        if self:
            _, late = await asyncio.wait([*self._due_s, *self._late], timeout=timeout_s)
            for task in late:
                task.cancel()
            if late:
                await asyncio.wait(late)
        if self._timer is not None:
            self._timer.cancel()

    def _look(self) -> None:
        """Cancel what is due, and come again for the next."""
        loop = asyncio.get_running_loop()
        self._timer = None
        late = []
        for task, due_s in self._due_s.items():
            if due_s > loop.time():
                if due_s < inf:
                    self._timer = loop.call_at(due_s, self._look)
                break
            late.append(task)
        for task in late:
            del self._due_s[task]
            self._late.add(task)
            task.cancel()
