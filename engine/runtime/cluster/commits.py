"""Positions on their way to the group's coordinator: whoever reads does not wait for the broker's answer."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Future

import structlog
from aiokafka.errors import CommitFailedError, IllegalStateError, KafkaError

from engine.clock import monotonic_s
from engine.errors import StoreUnavailable

log = structlog.get_logger("opportune.kafka")

_AGAIN_S = 0.5


class Commits:
    """At most one commit is in flight; what comes meanwhile goes with the next, the newest of each partition.

    What the broker could not take now is sent again; what it refused is not ours, or no longer, and is counted (F4).
    Used by one thread.

    send  begins a commit; its future says whether it was taken
    """

    def __init__(
        self, send: Callable[[Mapping[int, int]], Future[bool]], *, monotonic_s: Callable[[], float] = monotonic_s
    ) -> None:
        self.done: dict[int, int] = {}
        self.refused = 0
        self._send = send
        self._monotonic_s = monotonic_s
        self._wanted: dict[int, int] = {}
        self._sent: dict[int, int] = {}
        self._answer: Future[bool] | None = None
        self._not_before_s = 0.0

    def want(self, positions: Mapping[int, int]) -> None:
        """Commit these as soon as nothing else is in flight."""
        self._wanted.update(positions)
        self.go_on()

    def go_on(self) -> None:
        """Take the answer that has come, begin what waits; never waits itself."""
        if self._answer is not None:
            if not self._answer.done():
                return
            try:
                self._take_answer(0.0)
            except StoreUnavailable as error:
                self._not_before_s = self._monotonic_s() + _AGAIN_S
                log.warning("positions are not committed yet", error=str(error), partitions=sorted(self._wanted))
        if self._wanted and self._monotonic_s() >= self._not_before_s:
            self._begin()

    def settle(self, timeout_s: float = 30.0) -> None:
        """Return once all that is wanted was answered; StoreUnavailable where it is not, and then still wanted."""
        if self._answer is not None:
            self._take_answer(timeout_s)
        if self._wanted:
            self._begin()
            self._take_answer(timeout_s)

    def drop(self, partitions: Iterable[int]) -> None:
        """Forget what waits of partitions that are no longer ours."""
        for partition in partitions:
            self._wanted.pop(partition, None)

    def _begin(self) -> None:
        self._sent, self._wanted = self._wanted, {}
        self._answer = self._send(self._sent)

    def _take_answer(self, timeout_s: float) -> None:
        assert self._answer is not None
        answer, sent, self._answer, self._sent = self._answer, self._sent, None, {}
        try:
            taken = answer.result(timeout_s)
        except (CommitFailedError, IllegalStateError):
            taken = False
        except TimeoutError:
            answer.cancel()
            self._wanted = sent | self._wanted
            raise StoreUnavailable("kafka does not answer a commit in time") from None
        except (KafkaError, OSError) as error:
            self._wanted = sent | self._wanted
            raise StoreUnavailable(f"kafka took no commit ({type(error).__name__})") from None
        if taken:
            self.done.update(sent)
        else:
            self.refused += len(sent)
