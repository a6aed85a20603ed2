"""What those who operate the engine ask and order over HTTP: health, metrics, who is where, why, how many, pause."""

from __future__ import annotations

from collections.abc import Callable

import orjson
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from engine import metrics
from engine.console.contract import Engine
from engine.console.exchange import Handler, is_number, json_answer, json_of
from engine.console.intake import Refused
from engine.console.occupancy import OccupancyStream, rows_of


class Operation:
    """Answers the routes of operation.

    caller  says who asks, for the audit log
    """

    def __init__(self, engine: Engine, caller: Callable[[Request], str]) -> None:
        self._engine = engine
        self._caller = caller
        self._stream = OccupancyStream(engine.occupancy, lambda: engine.is_accepting)
        self.open: list[tuple[str, Handler, str]] = [
            ("/healthz", self._healthz, "GET"),
            ("/readyz", self._readyz, "GET"),
            ("/metrics", self._metrics, "GET"),
        ]
        self.guarded: list[tuple[str, Handler, str]] = [
            ("/v1/occupancy", self._occupancy, "GET"),
            ("/v1/occupancy/stream", self._occupancy_stream, "GET"),
            ("/v1/explain", self._explain, "GET"),
            ("/v1/audience", self._audience, "POST"),
            ("/v1/pause", self._pause, "POST"),
            ("/v1/sandbox/messages", self._sandbox, "GET"),
        ]

    async def _healthz(self, _: Request) -> Response:
        return json_answer(b'{"ok":true}')

    async def _readyz(self, _: Request) -> Response:
        components = self._engine.ready()
        ok = all(one.ok for one in components.values() if one.critical)
        rows = {name: {"ok": one.ok, "detail": one.detail} for name, one in components.items()}
        return json_answer(orjson.dumps({"ok": ok, "components": rows}), 200 if ok else 503)

    async def _metrics(self, _: Request) -> Response:
        metrics.BACKLOG_BYTES.set(self._engine.backlog_bytes)
        return Response(metrics.exposition(), media_type="text/plain; version=0.0.4; charset=utf-8")

    async def _occupancy(self, _: Request) -> Response:
        return json_answer(orjson.dumps({"occupancy": rows_of(self._engine.occupancy())}))

    async def _occupancy_stream(self, _: Request) -> Response:
        if self._stream.is_full:
            raise Refused(429, "too_many_streams", "as many streams of occupancy are open as may be; use one less", 10)
        return StreamingResponse(
            self._stream.events(), media_type="text/event-stream", headers={"cache-control": "no-store"}
        )

    async def _explain(self, request: Request) -> Response:
        asked = request.query_params
        user, at, decision = asked.get("user"), asked.get("at_ms"), asked.get("offer")
        if bool(user) == bool(decision):
            raise Refused(400, "missing_user", "say whom or what: ?user=U[&at_ms=T][&scenario=S], or ?offer=ID")
        if decision:
            answer = await self._engine.explain_decision(decision)
            if not answer["decisions"]:
                raise Refused(404, "unknown_offer", "no decision with this id is stored; they are kept 30 days")
            return json_answer(orjson.dumps(answer))
        if at is not None and not is_number(at, 15):
            raise Refused(400, "bad_time", "at_ms is an instant in epoch milliseconds")
        assert user is not None
        at_ms = int(at) if at is not None else None
        return json_answer(orjson.dumps(await self._engine.explain(user, at_ms, asked.get("scenario"))))

    async def _audience(self, request: Request) -> Response:
        asked = await json_of(request)
        if not isinstance(asked, dict) or not set(asked) <= {"scenario", "expression"} or len(asked) > 1:
            raise Refused(400, "bad_request", 'expected {"scenario": "owner/name"} or {"expression": {...}}')
        scenario, expression = asked.get("scenario"), asked.get("expression")
        if scenario is not None and not isinstance(scenario, str):
            raise Refused(400, "bad_request", "scenario is the id of a scenario")
        if expression is not None and not isinstance(expression, str):
            expression = orjson.dumps(expression).decode()  # JSON is YAML
        return json_answer(orjson.dumps(await self._engine.audience(scenario, expression)))

    async def _pause(self, request: Request) -> Response:
        asked = await json_of(request)
        if not (isinstance(asked, dict) and isinstance(asked.get("scenario"), str)):
            raise Refused(400, "bad_request", 'expected {"scenario": "owner/name" or "*", "paused": true or false}')
        if not isinstance(asked.get("paused"), bool):
            raise Refused(400, "bad_request", "paused is true or false")
        await self._engine.pause(asked["scenario"], asked["paused"], self._caller(request))
        return json_answer(orjson.dumps({"scenario": asked["scenario"], "paused": asked["paused"]}))

    async def _sandbox(self, request: Request) -> Response:
        limit = request.query_params.get("limit", "100")
        if not is_number(limit, 9):
            raise Refused(400, "bad_limit", "limit is a number")
        return json_answer(orjson.dumps({"messages": list(self._engine.sandbox_messages(min(int(limit), 1000)))}))
