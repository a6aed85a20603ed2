"""The HTTP API (docs/api.md). `POST /v1/events` is plain ASGI, because it takes thousands of requests a second."""

from __future__ import annotations

import difflib
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from functools import partial
from typing import Any

import orjson
import structlog
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route

from engine import metrics
from engine.console.access import Access, basic_credentials
from engine.console.at_once import EVENTS_ROUTE as EVENTS
from engine.console.at_once import AtOnce, told_of
from engine.console.callbacks import Callbacks
from engine.console.claims import QR_FORMATS, Claims
from engine.console.contract import Engine
from engine.console.envelopes import owntracks_payload, segment_payloads
from engine.console.idempotency import Answer, Answers
from engine.console.intake import BODY_LIMIT, Intake, Refused, decompress, payloads_of
from engine.console.occupancy import OccupancyStream, rows_of
from engine.deliver.contract import Callback, CallbackRefused
from engine.errors import OpportuneError, StoreUnavailable

log = structlog.get_logger("opportune.console")

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
Headers = list[tuple[bytes, bytes]]

_JSON = (b"content-type", b"application/json")
_NO_STORE = {"cache-control": "no-store", "referrer-policy": "no-referrer"}


class Api:
    """ASGI application over a running engine.

    now_ms            the wall clock, for `receivedAt` of Segment calls and the age of callbacks
    callback_secrets  by channel, what its gateway signs callbacks with
    answers           what requests with an Idempotency-Key were answered; None: remembered in memory
    claims            returns what answers about claim links; None: there are none
    """

    def __init__(
        self,
        engine: Engine,
        *,
        api_key: str | None,
        queue_bytes: int,
        now_ms: Callable[[], int],
        callback_secrets: Mapping[str, str] | None = None,
        claims: Callable[[], Claims] | None = None,
        answers: Answers | None = None,
    ) -> None:
        self._engine = engine
        self._access = Access(api_key)
        self._intake = Intake(engine, queue_bytes)
        self._answers = answers or Answers(None, now_ms)
        self._callbacks = Callbacks(callback_secrets or {}, engine)
        self._now_ms = now_ms
        self._claims = claims
        self._stream = OccupancyStream(engine.occupancy, lambda: engine.is_accepting)
        self._counts: dict[tuple[str, int], Any] = {}
        self.at_once = AtOnce(self._access, self._intake, self._count)
        open_routes = [
            Route("/healthz", self._healthz, methods=["GET"]),
            Route("/readyz", self._readyz, methods=["GET"]),
            Route("/metrics", self._metrics, methods=["GET"]),
            # Signed by the gateway, which has no key.
            Route(
                "/v1/callbacks/{channel}",
                self._guard("/v1/callbacks", self._callback, Access(None)),
                methods=["GET", "POST"],
            ),
        ]
        if claims is not None:
            # Signed by us: the token is the credential of whoever scans it.
            for path, handler, method in (
                ("/v1/claims/{token}", self._show_claim, "GET"),
                ("/v1/claims/{token}", self._redeem_claim, "POST"),
                ("/v1/claims/{token}/qr.{kind}", self._qr, "GET"),
            ):
                open_routes.append(Route(path, self._guard("/v1/claims", handler, Access(None)), methods=[method]))
        guarded = [
            ("/v1/owntracks", self._owntracks, "POST"),
            ("/v1/track", self._track, "POST"),
            ("/v1/batch", self._track, "POST"),
            ("/v1/occupancy", self._occupancy, "GET"),
            ("/v1/occupancy/stream", self._occupancy_stream, "GET"),
            ("/v1/explain", self._explain, "GET"),
            ("/v1/audience", self._audience, "POST"),
            ("/v1/pause", self._pause, "POST"),
            ("/v1/sandbox/messages", self._sandbox, "GET"),
        ]
        routes = [
            Route(path, self._guard(path, handler, self._access), methods=[method]) for path, handler, method in guarded
        ]
        self._rest = Starlette(
            routes=open_routes + routes, exception_handlers={404: self._nothing_here, 405: self._nothing_here}
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["path"] == EVENTS:
            await self._events(scope, receive, send)
        else:
            await self._rest(scope, receive, send)

    # --- POST /v1/events --------------------------------------------------------------------------------------------

    async def _events(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            if scope["method"] != "POST":
                raise Refused(405, "method_not_allowed", "events are sent with POST")
            authorization, encoding, declared, key = None, b"", b"", None
            for name, value in scope["headers"]:
                if name == b"authorization":
                    authorization = value
                elif name == b"content-encoding":
                    encoding = value.strip().lower()
                elif name == b"content-length":
                    declared = value
                elif name == b"idempotency-key":
                    key = value.decode("latin-1")
            if not self._access.allows(authorization):
                raise _unauthorized()
            if declared.isdigit() and int(declared) > BODY_LIMIT:
                raise _too_large()
            body = _unpacked(await _read(receive), encoding)
            if key is None:
                answer = await self._take_events(body, scope["query_string"])
            else:
                request, act = (
                    scope["query_string"] + b"\0" + body,
                    partial(self._take_events, body, scope["query_string"]),
                )
                answer = await self._answers.once(EVENTS, key, request, act)
            await self._answer(send, answer.status, answer.body, EVENTS)
        except Refused as refused:
            await self._answer(send, refused.status, _fault(refused), EVENTS, _retry_after(refused))
        except OpportuneError as error:
            fault = _unavailable(error)
            await self._answer(send, fault.status, _fault(fault), EVENTS, _retry_after(fault))

    async def _take_events(self, body: bytes, query: bytes) -> Answer:
        payloads, count = payloads_of(body)
        accepted = await self._intake.take(payloads, count, EVENTS)
        if query == b"wait=processed":
            await self._engine.processed(accepted.position)
        return Answer(202, told_of(accepted))

    async def _answer(self, send: Send, status: int, body: bytes, route: str, extra: Headers | None = None) -> None:
        headers: Headers = [_JSON, (b"content-length", b"%d" % len(body)), *(extra or ())]
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": body})
        self._count(route, status)

    def _count(self, route: str, status: int) -> None:
        counter = self._counts.get((route, status))
        if counter is None:
            counter = self._counts[route, status] = metrics.HTTP_REQUESTS.labels(route, str(status))
        counter.inc()

    # --- everything else --------------------------------------------------------------------------------------------

    def _guard(
        self, route: str, handler: Callable[[Request], Awaitable[Response]], access: Access
    ) -> Callable[[Request], Awaitable[Response]]:
        """Wrap a handler: key, cross-site browsers, faults as JSON, counting."""

        async def guarded(request: Request) -> Response:
            try:
                authorization = request.headers.get("authorization")
                if not access.allows(authorization.encode() if authorization is not None else None):
                    raise _unauthorized()
                if request.headers.get("sec-fetch-site") == "cross-site":
                    raise Refused(403, "cross_site", "requests from other sites' pages are not taken")
                key = request.headers.get("idempotency-key") if request.method == "POST" else None
                response = await handler(request) if key is None else await self._once(route, key, handler, request)
            except Refused as refused:
                response = _json(_fault(refused), refused.status, _retry_after(refused))
            except OpportuneError as error:
                fault = _unavailable(error)
                response = _json(_fault(fault), fault.status, _retry_after(fault))
            self._count(route, response.status_code)
            return response

        return guarded

    async def _once(
        self, route: str, key: str, handler: Callable[[Request], Awaitable[Response]], request: Request
    ) -> Response:
        """Answer a POST that carries an Idempotency-Key, at most once by the handler (A16)."""
        body = await _read(request.receive)

        async def again() -> MutableMapping[str, Any]:
            return {"type": "http.request", "body": body, "more_body": False}

        async def act() -> Answer:
            response = await handler(Request(request.scope, again))
            return Answer(response.status_code, bytes(response.body))

        target = f"{request.url.path}?{request.url.query}".encode()
        answer = await self._answers.once(route, key, target + b"\0" + body, act)
        return _json(answer.body, answer.status)

    async def _healthz(self, _: Request) -> Response:
        return _json(b'{"ok":true}')

    async def _readyz(self, _: Request) -> Response:
        components = self._engine.ready()
        ok = all(one.ok for one in components.values() if one.critical)
        rows = {name: {"ok": one.ok, "detail": one.detail} for name, one in components.items()}
        return _json(orjson.dumps({"ok": ok, "components": rows}), 200 if ok else 503)

    async def _metrics(self, _: Request) -> Response:
        metrics.BACKLOG_BYTES.set(self._engine.backlog_bytes)
        return Response(metrics.exposition(), media_type="text/plain; version=0.0.4; charset=utf-8")

    async def _owntracks(self, request: Request) -> Response:
        credentials = basic_credentials(request.headers.get("authorization", "").encode())
        user = request.headers.get("x-limit-u") or (credentials[0].decode("utf-8", "replace") if credentials else None)
        payload = owntracks_payload(await self._body(request), user)
        if payload is not None:
            await self._intake.take([payload], 1, request.url.path)
        return _json(b"[]")

    async def _track(self, request: Request) -> Response:
        payloads = segment_payloads(await self._body(request), self._now_ms())
        if payloads:
            await self._intake.take(payloads, len(payloads), request.url.path)
        return _json(b'{"success":true}')

    async def _callback(self, request: Request) -> Response:
        body = await self._body(request)
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
        return _json(b'{"accepted":%d}' % (payload is not None))

    async def _show_claim(self, request: Request) -> Response:
        return _secret(await self._desk().show(request.path_params["token"]))

    async def _redeem_claim(self, request: Request) -> Response:
        token, key = request.path_params["token"], request.headers.get("idempotency-key")
        return _secret(await self._desk().redeem(token, await self._body(request), key))

    async def _qr(self, request: Request) -> Response:
        kind = request.path_params["kind"]
        if kind not in QR_FORMATS:
            raise Refused(404, "not_found", f"a QR code is {' or '.join(QR_FORMATS)}")
        image = self._desk().qr(request.path_params["token"], kind)
        return Response(image, media_type=QR_FORMATS[kind], headers=_NO_STORE)

    def _desk(self) -> Claims:
        assert self._claims is not None, "the routes of claims are there only with claims"
        return self._claims()

    async def _occupancy(self, _: Request) -> Response:
        return _json(orjson.dumps({"occupancy": rows_of(self._engine.occupancy())}))

    async def _occupancy_stream(self, _: Request) -> Response:
        if self._stream.is_full:
            raise Refused(429, "too_many_streams", "as many streams of occupancy are open as may be; use one less", 10)
        return StreamingResponse(
            self._stream.events(), media_type="text/event-stream", headers={"cache-control": "no-store"}
        )

    async def _nothing_here(self, request: Request, error: Exception) -> Response:
        """Answer what no route takes, as JSON and with a way to go on."""
        status = getattr(error, "status_code", 404)
        known = sorted({route.path for route in self._rest.routes if isinstance(route, Route)} | {EVENTS})
        if status == 405:
            detail = f"{request.method} is not for this path; docs/api.md lists what is"
            return _json(_fault(Refused(405, "method_not_allowed", detail)), 405)
        near = difflib.get_close_matches(request.url.path, known, 1)
        hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(known)}"
        return _json(_fault(Refused(404, "not_found", f"no such path; {hint}")), 404)

    async def _explain(self, request: Request) -> Response:
        asked = request.query_params
        user, at, decision = asked.get("user"), asked.get("at_ms"), asked.get("offer")
        if bool(user) == bool(decision):
            raise Refused(400, "missing_user", "say whom or what: ?user=U[&at_ms=T][&scenario=S], or ?offer=ID")
        if decision:
            answer = await self._engine.explain_decision(decision)
            if not answer["decisions"]:
                raise Refused(404, "unknown_offer", "no decision with this id is stored; they are kept 30 days")
            return _json(orjson.dumps(answer))
        if at is not None and not is_number(at, 15):
            raise Refused(400, "bad_time", "at_ms is an instant in epoch milliseconds")
        assert user is not None
        at_ms = int(at) if at is not None else None
        return _json(orjson.dumps(await self._engine.explain(user, at_ms, asked.get("scenario"))))

    async def _audience(self, request: Request) -> Response:
        try:
            asked = orjson.loads(await self._body(request) or b"{}")
        except orjson.JSONDecodeError:
            asked = None
        if not isinstance(asked, dict) or not set(asked) <= {"scenario", "expression"} or len(asked) > 1:
            raise Refused(400, "bad_request", 'expected {"scenario": "owner/name"} or {"expression": {...}}')
        scenario, expression = asked.get("scenario"), asked.get("expression")
        if scenario is not None and not isinstance(scenario, str):
            raise Refused(400, "bad_request", "scenario is the id of a scenario")
        if expression is not None and not isinstance(expression, str):
            expression = orjson.dumps(expression).decode()  # JSON is YAML
        return _json(orjson.dumps(await self._engine.audience(scenario, expression)))

    async def _pause(self, request: Request) -> Response:
        try:
            asked = orjson.loads(await self._body(request))
        except orjson.JSONDecodeError:
            asked = None
        if not (isinstance(asked, dict) and isinstance(asked.get("scenario"), str)):
            raise Refused(400, "bad_request", 'expected {"scenario": "owner/name" or "*", "paused": true or false}')
        if not isinstance(asked.get("paused"), bool):
            raise Refused(400, "bad_request", "paused is true or false")
        await self._engine.pause(asked["scenario"], asked["paused"], self._caller(request))
        return _json(orjson.dumps({"scenario": asked["scenario"], "paused": asked["paused"]}))

    def _caller(self, request: Request) -> str:
        """Say who asks, for the audit log: by which right, and with which program."""
        program = "".join(one for one in request.headers.get("user-agent", "")[:60] if one.isprintable())
        right = "api key" if self._access.asks_for_key else "local"
        return f"{right}, {program}" if program else right

    async def _sandbox(self, request: Request) -> Response:
        limit = request.query_params.get("limit", "100")
        if not is_number(limit, 9):
            raise Refused(400, "bad_limit", "limit is a number")
        return _json(orjson.dumps({"messages": list(self._engine.sandbox_messages(min(int(limit), 1000)))}))

    async def _body(self, request: Request) -> bytes:
        body = await _read(request.receive)
        return _unpacked(body, request.headers.get("content-encoding", "").strip().lower().encode())


def is_number(text: str, most_digits: int) -> bool:
    """Say whether a text is a whole number; isdigit alone takes powers and digits of other scripts too."""
    return text.isascii() and text.isdigit() and len(text) <= most_digits


async def _read(receive: Receive) -> bytes:
    """Read a whole body, at most BODY_LIMIT bytes."""
    message = await receive()
    body: bytes = message.get("body", b"")
    if not message.get("more_body"):
        if message["type"] == "http.disconnect":
            raise Refused(400, "gone", "the client went away")
        if len(body) > BODY_LIMIT:
            raise _too_large()
        return body
    parts, size = [body], len(body)
    while message.get("more_body"):
        message = await receive()
        part = message.get("body", b"")
        size += len(part)
        if size > BODY_LIMIT:
            raise _too_large()
        parts.append(part)
    if message["type"] == "http.disconnect":
        raise Refused(400, "gone", "the client went away")
    return b"".join(parts)


def _unpacked(body: bytes, encoding: bytes) -> bytes:
    if encoding in (b"", b"identity"):
        return body
    if encoding in (b"gzip", b"x-gzip"):
        return decompress(body)
    raise Refused(415, "bad_encoding", "content-encoding may be gzip or none")


def _json(body: bytes, status: int = 200, extra: Headers | None = None) -> Response:
    response = Response(body, status, media_type="application/json")
    response.raw_headers.extend(extra or ())
    return response


def _secret(answer: dict[str, Any]) -> Response:
    """Answer what no cache may keep and no other site may learn of from its referrer."""
    return Response(orjson.dumps(answer), media_type="application/json", headers=_NO_STORE)


def _fault(refused: Refused) -> bytes:
    return orjson.dumps({"error": refused.code, "detail": refused.detail})


def _retry_after(refused: Refused) -> Headers:
    if refused.status == 401:
        return [(b"www-authenticate", b"Bearer")]
    return [(b"retry-after", b"%d" % refused.retry_after_s)] if refused.retry_after_s is not None else []


def _unauthorized() -> Refused:
    return Refused(401, "unauthorized", "the key is missing or wrong; send Authorization: Bearer KEY")


def _too_large() -> Refused:
    return Refused(413, "too_large", f"a body holds at most {BODY_LIMIT} bytes; send several")


def _unavailable(error: OpportuneError) -> Refused:
    if not isinstance(error, StoreUnavailable):
        log.error("request failed", error=type(error).__name__)
    return Refused(503, "unavailable", "the engine cannot take this now; send it again later", 1)
