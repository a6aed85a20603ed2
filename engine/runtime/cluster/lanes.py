"""Partitions side by side in one thread: while one waits for Redis or the broker, the others go on.

Each is a greenlet, a lane. Threads did the same with more waiting: for each other's turn at the interpreter, and to be
woken, which costs more than most of what is done then (docs/decisions/0015).
"""

from __future__ import annotations

import select
from collections import deque
from collections.abc import Callable
from typing import Any, NamedTuple

from greenlet import getcurrent, greenlet

from engine.clock import monotonic_s
from engine.ledger.redis.link import NothingElse

_NAP_MS = 1
_MOST_S = 0.5
"""How long a lane waits for a reply before it waits in the socket itself, which knows when to give up."""


class _Waiting(NamedTuple):
    lane: greenlet
    is_there: Callable[[], object]
    look: Callable[[float], object]
    until_s: float


class Lanes:
    """Belongs to one thread. `begin` work, then `go_on` until nothing is under way; what a lane raises is raised there.

    A lane waits by `reply` or `until`. Outside a lane they return False at once, and the caller waits in its own way.
    """

    def __init__(self) -> None:
        self._owner: object = None
        self._ready: deque[greenlet] = deque()
        self._aside: list[greenlet] = []  # gave way
        self._asking: dict[int, tuple[greenlet, float]] = {}
        self._sockets = select.poll()
        self._waiting: list[_Waiting] = []
        self._failures: list[BaseException] = []

    # --- for whoever has work ----------------------------------------------------------------------------------------

    def begin(self, work: Callable[[], None]) -> None:
        """Do this beside what is under way, from the next `go_on` on."""
        self._owner = getcurrent()
        self._ready.append(greenlet(work))

    @property
    def are_busy(self) -> bool:
        return bool(self._ready or self._aside or self._asking or self._waiting)

    def go_on(self) -> None:
        """Let every lane go as far as it comes; where all wait, wait a millisecond with them."""
        if not self._ready:
            self._wake(0)
        if not self._ready:
            self._wake(_NAP_MS)
        # Only now: who waits for another's turn is ready all the time, and the other may wait for a reply.
        self._ready.extend(self._aside)
        self._aside.clear()
        for _ in range(len(self._ready)):
            try:
                self._ready.popleft().switch()
            except BaseException as error:
                self._failures.append(error)
        if self._failures:
            raise self._failures.pop(0)

    def finish(self) -> None:
        """Go on until nothing is under way; raises, once all lanes are through, what the first of them raised."""
        failures: list[BaseException] = []
        while self.are_busy:
            try:
                self.go_on()
            except BaseException as error:
                failures.append(error)
        if failures:
            raise failures[0]

    def close(self) -> None:
        """Give up what is under way."""
        left = [
            *self._ready,
            *self._aside,
            *(lane for lane, _ in self._asking.values()),
            *(one.lane for one in self._waiting),
        ]
        self._ready.clear()
        self._aside.clear()
        self._asking.clear()
        self._waiting.clear()
        for lane in left:
            lane.throw()

    # --- for whoever waits -------------------------------------------------------------------------------------------

    def reply(self, socket: Any) -> bool:
        """Wait until there is something to read; False: read, and wait there."""
        lane = getcurrent()
        if lane.parent is None:
            return False
        fd = socket.fileno()
        self._asking[fd] = lane, monotonic_s() + _MOST_S
        self._sockets.register(fd, select.POLLIN)
        lane.parent.switch()
        return True

    def until(self, is_there: Callable[[], object], look: Callable[[float], object], most_s: float) -> bool:
        """Wait until this is so, at most so long; `look` makes it so, and may be given seconds to wait for it."""
        lane = getcurrent()
        if lane.parent is None:
            return False
        self._waiting.append(_Waiting(lane, is_there, look, monotonic_s() + most_s))
        lane.parent.switch()
        return True

    def give_way(self) -> bool:
        """Let the others go on first; whoever began them may ask for this as well."""
        lane = getcurrent()
        if lane.parent is None:
            if lane is not self._owner or not self.are_busy:
                return False
            self.go_on()
            return True
        self._aside.append(lane)
        lane.parent.switch()
        return True

    # --- inside ------------------------------------------------------------------------------------------------------

    def _wake(self, wait_ms: int) -> None:
        if self._asking:
            answered = [fd for fd, _ in self._sockets.poll(wait_ms)]
            now_s = monotonic_s()
            answered += [fd for fd, (_, until_s) in self._asking.items() if now_s >= until_s and fd not in answered]
            for fd in answered:
                self._sockets.unregister(fd)
                self._ready.append(self._asking.pop(fd)[0])
            wait_ms = 0
        if self._waiting:
            for look in {one.look: None for one in self._waiting}:
                look(wait_ms / 1000)
                wait_ms = 0
            now_s = monotonic_s()
            there = [one for one in self._waiting if one.is_there() or now_s >= one.until_s]
            self._waiting = [one for one in self._waiting if one not in there]
            self._ready.extend(one.lane for one in there)


class OneByOne(NothingElse):
    """The same without lanes: each work is done as it begins. For whoever must have the same order every time."""

    are_busy = False

    def begin(self, work: Callable[[], None]) -> None:
        work()

    def go_on(self) -> None:
        return None

    finish = close = go_on

    def until(self, is_there: Callable[[], object], look: Callable[[float], object], most_s: float) -> bool:
        return False
