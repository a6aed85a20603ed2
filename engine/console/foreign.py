"""Events as other systems send them: phones with OwnTracks, Segment's clients, callbacks of gateways (docs/api.md)."""

from __future__ import annotations

from collections.abc import Callable

from starlette.requests import Request
from starlette.responses import Response

from engine.console.access import basic_credentials
from engine.console.callbacks import answer_callback
from engine.console.contract import Engine
from engine.console.envelopes import owntracks_payload, segment_payloads
from engine.console.exchange import Handler, body_of, json_answer
from engine.console.intake import Intake


class Foreign:
    """Turns requests of other systems into events of the log.

    now_ms   the wall clock, for `receivedAt` of Segment calls
    """

    def __init__(self, engine: Engine, intake: Intake, now_ms: Callable[[], int]) -> None:
        self._engine = engine
        self._intake = intake
        self._now_ms = now_ms
        self.guarded: list[tuple[str, Handler, str]] = [
            ("/v1/owntracks", self._owntracks, "POST"),
            ("/v1/track", self._track, "POST"),
            ("/v1/batch", self._track, "POST"),
        ]

    async def _owntracks(self, request: Request) -> Response:
        credentials = basic_credentials(request.headers.get("authorization", "").encode())
        user = request.headers.get("x-limit-u") or (credentials[0].decode("utf-8", "replace") if credentials else None)
        payload = owntracks_payload(await body_of(request), user)
        if payload is not None:
            await self._intake.take([payload], 1, request.url.path)
        return json_answer(b"[]")

    async def _track(self, request: Request) -> Response:
        payloads = segment_payloads(await body_of(request), self._now_ms())
        if payloads:
            await self._intake.take(payloads, len(payloads), request.url.path)
        return json_answer(b'{"success":true}')

    async def callback(self, request: Request) -> Response:
        """Take what a gateway reports; it is signed by the gateway, which has no key."""
        return await answer_callback(request, await body_of(request), self._engine.gateway_callback)
