"""Events as other systems send them: phones with OwnTracks, Segment's clients, callbacks of gateways (docs/api.md)."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from starlette.requests import Request
from starlette.responses import Response

from engine.console.access import basic_credentials
from engine.console.callbacks import Callbacks
from engine.console.contract import Engine
from engine.console.envelopes import owntracks_payload, segment_payloads
from engine.console.exchange import Handler, body_of, json_answer
from engine.console.intake import Intake, Refused
from engine.deliver.contract import Callback, CallbackRefused


class Foreign:
    """Turns requests of other systems into events of the log.

    now_ms   the wall clock, for `receivedAt` of Segment calls and the age of callbacks
    secrets  by channel, what its gateway signs callbacks with
    """

    def __init__(
        self, engine: Engine, intake: Intake, now_ms: Callable[[], int], secrets: Mapping[str, str] | None
    ) -> None:
        self._engine = engine
        self._intake = intake
        self._now_ms = now_ms
        self._callbacks = Callbacks(secrets or {}, engine)
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
        body = await body_of(request)
        channel = request.path_params["channel"]
        headers = {name.lower(): value for name, value in request.headers.items()}
        peer = request.client.host if request.client else ""
        callback = Callback(request.method, request.url.query, headers, body, peer)
        try:
            reply = await self._engine.gateway_callback(channel, callback)
        except CallbackRefused:
            raise Refused(401, "bad_signature", "the callback does not prove that it comes from this gateway") from None
        if reply is not None:
            return Response(reply.body, reply.status, media_type=reply.media_type)
        if request.method != "POST":
            raise Refused(405, "method_not_allowed", "callbacks of this gateway are sent with POST")
        payload = await self._callbacks.payload(channel, request.headers, body, self._now_ms())
        if payload is not None:
            await self._intake.take([payload], 1, "/v1/callbacks")
        return json_answer(b'{"accepted":%d}' % (payload is not None))
