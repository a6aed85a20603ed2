"""One message on its way: its parts sent, their answers judged together, what came too fast sent again (G2, F17)."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence

from engine.deliver.contract import Submitted
from engine.deliver.operators.dialect import Answered, Verdict
from engine.deliver.operators.link import LinkLost
from engine.deliver.operators.parts import Part
from engine.deliver.operators.wire import WireError
from engine.errors import GatewayError, GatewayPermanent, GatewayRetryable, GatewayThrottled, GatewayUnknown

RESEND_S = 0.3
MOST_RESENDS = 60
"""Rounds of resending parts of a message of which others were accepted: half a minute with growing pauses."""

Sent = tuple[asyncio.Future[Answered], str]
"""The future of a part's answer, and the part's name where it is known before."""


class Sending:
    """Send `parts` to one number.

    send   sends parts together, returns the future and the name of each; raises where nothing was sent
    why_not_now  asked before the first byte, where that has to wait (contract.Dispatch)
    """

    def __init__(
        self,
        gateway: str,
        send: Callable[[Sequence[Part], str, int, Callable[[], str | None]], Awaitable[list[Sent]]],
        parts: Sequence[Part],
        number: str,
        expires_ms: int,
        why_not_now: Callable[[], str | None] = lambda: None,
    ) -> None:
        self._gateway = gateway
        self._send_parts = send
        self._parts = parts
        self._number = number
        self._expires_ms = expires_ms
        self._why_not_now = why_not_now
        self._ids = [""] * len(parts)
        self._verdicts: list[Verdict | None] = [None] * len(parts)  # None: nobody knows
        self._code = ""

    async def run(self) -> Submitted:
        """Return once every part is accepted; raise as the contract says."""
        todo = list(range(len(self._parts)))
        try:
            for round_ in range(MOST_RESENDS):
                await self._send(todo)
                failure = self._judge()
                if failure is None:
                    return Submitted(tuple(self._ids))
                todo = [one for one in todo if self._verdicts[one] in (Verdict.THROTTLED, Verdict.BUSY)]
                if not todo or Verdict.OK not in self._verdicts or Verdict.REFUSED in self._verdicts:
                    raise failure
                await asyncio.sleep(RESEND_S * min(round_ + 1, 4))
        except asyncio.CancelledError:
            raise GatewayUnknown(f"{self._gateway}: cut off", self._known()) from None
        raise GatewayUnknown(f"{self._gateway}: only some parts were accepted", self._known())

    async def _send(self, todo: list[int]) -> None:
        """Send these parts and wait for their answers."""
        try:
            parts = [self._parts[place] for place in todo]
            # What has begun is ended: half a message helps nobody.
            ask = _nothing if Verdict.OK in self._verdicts else self._why_not_now
            sent = await self._send_parts(parts, self._number, self._expires_ms, ask)
        except WireError as error:
            raise GatewayPermanent(f"bad_field: {error}") from None
        except GatewayRetryable:
            if Verdict.OK in self._verdicts:
                return  # the parts that are missing come in the next round
            raise
        for place, (_, name) in zip(todo, sent, strict=True):
            self._verdicts[place], self._ids[place] = None, name
        for place, (future, _) in zip(todo, sent, strict=True):
            try:
                answer = await future
            except LinkLost:
                continue
            self._verdicts[place] = answer.verdict
            if answer.verdict is Verdict.OK:
                self._ids[place] = answer.gateway_id or self._ids[place]
            else:
                self._code = answer.code

    def _judge(self) -> GatewayError | None:
        """Say what the answers mean together; None: all parts were accepted."""
        verdicts = set(self._verdicts)
        if verdicts == {Verdict.OK}:
            return None
        if None in verdicts or Verdict.OK in verdicts:
            return GatewayUnknown(f"{self._gateway}: not every part was answered with yes", self._known())
        if Verdict.REFUSED in verdicts:
            return GatewayPermanent(self._code or "refused")
        if Verdict.THROTTLED in verdicts:
            return GatewayThrottled(f"{self._gateway}: too fast")
        return GatewayRetryable(f"{self._gateway}: busy ({self._code})")

    def _known(self) -> tuple[str, ...]:
        """Return the names of all parts, where every part that may have gone out has one."""
        named = [
            one
            for one, verdict in zip(self._ids, self._verdicts, strict=True)
            if verdict is None or verdict is Verdict.OK
        ]
        return tuple(named) if named and all(named) else ()


def _nothing() -> None:
    return None
