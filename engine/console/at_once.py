"""Answer the ordinary `POST /v1/events` where it arrives, without a task, a scope and their callbacks.

Thousands of requests a second hold one event each. All of ASGI around one cost four fifths of the event loop's time,
and with it of the interpreter that the engine and the hand-off wait for. What is in any way out of the ordinary gets
None here and takes the usual way, which gives the same answers (docs/api.md).
"""

from __future__ import annotations

from collections.abc import Callable

from engine.console.access import Access
from engine.console.intake import Accepted, Intake, Refused, payloads_of

EVENTS_ROUTE = "/v1/events"
_OUT_OF_THE_ORDINARY = frozenset({b"content-encoding", b"idempotency-key", b"expect", b"upgrade"})


class AtOnce:
    """Take events of one request in one call.

    count  told route and status of each answer
    """

    def __init__(self, access: Access, intake: Intake, count: Callable[[str, int], None]) -> None:
        self._access = access
        self._intake = intake
        self._count = count

    def answer(self, headers: list[tuple[bytes, bytes]], body: bytes) -> bytes | None:
        """Return the whole answer to a POST of events once they are journaled, or None where nothing was done.

        headers  names in lower case
        """
        authorization = None
        for name, value in headers:
            if name == b"authorization":
                authorization = value
            elif name in _OUT_OF_THE_ORDINARY:
                return None
        if not self._access.allows(authorization):
            return None
        try:
            payloads, events = payloads_of(body)
        except Refused:
            return None
        accepted = self._intake.take_at_once(payloads, events, EVENTS_ROUTE)
        if accepted is None:
            return None
        self._count(EVENTS_ROUTE, 202)
        told = told_of(accepted)
        return b"HTTP/1.1 202 Accepted\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n%b" % (
            len(told),
            told,
        )


def told_of(accepted: Accepted) -> bytes:
    return b'{"accepted":%d,"position":%d}' % (accepted.events, accepted.position)
