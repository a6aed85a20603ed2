"""The HTTP API (docs/api.md). `POST /v1/events` is plain ASGI, because it takes thousands of requests a second."""

from __future__ import annotations

import difflib
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from functools import partial
from typing import Any

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from engine import metrics
from engine.console import callbacks
from engine.console.access import Access
from engine.console.at_once import EVENTS_ROUTE as EVENTS
from engine.console.at_once import AtOnce, told_of
from engine.console.claim_desk import ClaimDesk
from engine.console.claims import Claims
from engine.console.contract import Engine
from engine.console.exchange import (
    Handler,
    Headers,
    Receive,
    broken,
    fault_body,
    json_answer,
    read_body,
    refuse_announced,
    retry_after,
    unauthorized,
    unavailable,
    unpacked,
)
from engine.console.foreign import Foreign
from engine.console.idempotency import Answer, Answers
from engine.console.intake import Intake, Refused, payloads_of
from engine.console.operation import Operation
from engine.errors import OpportuneError

Scope = MutableMapping[str, Any]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]

_JSON = (b"content-type", b"application/json")


class Api:
    """ASGI application over a running engine.

    api_key, api_keys  who may call: a key without a name, and keys by the name they have in the audit log
    now_ms            the wall clock, for `receivedAt` of Segment calls
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
        api_keys: Mapping[str, str] | None = None,
        claims: Callable[[], Claims] | None = None,
        answers: Answers | None = None,
    ) -> None:
        self._engine = engine
        self._access = Access(api_key, api_keys)
        self._intake = Intake(engine, queue_bytes)
        self._answers = answers or Answers(None, now_ms)
        self._counts: dict[tuple[str, int], Any] = {}
        self.at_once = AtOnce(self._access, self._intake, self._count)
        foreign = Foreign(engine, self._intake, now_ms)
        operation = Operation(engine, self._caller)
        free = Access(None)
        routes = [Route(path, handler, methods=[method]) for path, handler, method in operation.open]
        routes.append(
            Route(
                callbacks.PATH,
                self._guard("/v1/callbacks", foreign.callback, free),
                methods=list(callbacks.METHODS),
            )
        )
        for path, handler, method in () if claims is None else ClaimDesk(claims).open:
            routes.append(Route(path, self._guard("/v1/claims", handler, free), methods=[method]))
        for path, handler, method in (*foreign.guarded, *operation.guarded):
            routes.append(Route(path, self._guard(path, handler, self._access), methods=[method]))
        self._rest = Starlette(routes=routes, exception_handlers={404: self._nothing_here, 405: self._nothing_here})

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
                raise unauthorized()
            refuse_announced(declared)
            body = unpacked(await read_body(receive), encoding)
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
            await self._answer(send, refused.status, fault_body(refused), EVENTS, retry_after(refused))
        except OpportuneError as error:
            fault = unavailable(error)
            await self._answer(send, fault.status, fault_body(fault), EVENTS, retry_after(fault))
        except Exception as error:
            await self._answer(send, 500, fault_body(broken(error)), EVENTS)

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

    def _guard(self, route: str, handler: Handler, access: Access) -> Handler:
        """Wrap a handler: key, cross-site browsers, faults as JSON, counting."""

        async def guarded(request: Request) -> Response:
            try:
                if not access.allows(_authorization(request)):
                    raise unauthorized()
                if request.headers.get("sec-fetch-site") == "cross-site":
                    raise Refused(403, "cross_site", "requests from other sites' pages are not taken")
                refuse_announced(request.headers.get("content-length", "").encode())
                key = request.headers.get("idempotency-key") if request.method == "POST" else None
                response = await handler(request) if key is None else await self._once(route, key, handler, request)
            except Refused as refused:
                response = json_answer(fault_body(refused), refused.status, retry_after(refused))
            except OpportuneError as error:
                fault = unavailable(error)
                response = json_answer(fault_body(fault), fault.status, retry_after(fault))
            except Exception as error:
                response = json_answer(fault_body(broken(error)), 500)
            self._count(route, response.status_code)
            return response

        return guarded

    async def _once(self, route: str, key: str, handler: Handler, request: Request) -> Response:
        """Answer a POST that carries an Idempotency-Key, at most once by the handler (A16)."""
        body = await read_body(request.receive)

        async def again() -> MutableMapping[str, Any]:
            return {"type": "http.request", "body": body, "more_body": False}

        async def act() -> Answer:
            response = await handler(Request(request.scope, again))
            return Answer(response.status_code, bytes(response.body))

        target = f"{request.url.path}?{request.url.query}".encode()
        answer = await self._answers.once(route, key, target + b"\0" + body, act)
        return json_answer(answer.body, answer.status)

    async def _nothing_here(self, request: Request, error: Exception) -> Response:
        """Answer what no route takes, as JSON and with a way to go on."""
        status = getattr(error, "status_code", 404)
        known = sorted({route.path for route in self._rest.routes if isinstance(route, Route)} | {EVENTS})
        if status == 405:
            detail = f"{request.method} is not for this path; docs/api.md lists what is"
            return json_answer(fault_body(Refused(405, "method_not_allowed", detail)), 405)
        near = difflib.get_close_matches(request.url.path, known, 1)
        hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(known)}"
        return json_answer(fault_body(Refused(404, "not_found", f"no such path; {hint}")), 404)

    def _caller(self, request: Request) -> str:
        """Say who asks, for the audit log: by which right, and with which program."""
        program = "".join(one for one in request.headers.get("user-agent", "")[:60] if one.isprintable())
        right = "local"
        if self._access.asks_for_key:
            right = f"api key {self._access.name_of(_authorization(request))}".rstrip()
        return f"{right}, {program}" if program else right


def _authorization(request: Request) -> bytes | None:
    said = request.headers.get("authorization")
    return None if said is None else said.encode()
