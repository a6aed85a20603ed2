"""The HTTP API: what is taken, what is refused, and that nothing is acknowledged before it is journaled."""

from __future__ import annotations

import asyncio
import base64
import gzip
from collections.abc import Sequence
from typing import Any

import httpx
import orjson
import pytest

from engine.console.access import check_binding
from engine.console.api import Api
from engine.console.contract import Component, FenceOccupancy
from engine.console.intake import BODY_LIMIT
from engine.deliver.contract import Callback, CallsBack, Reply
from engine.errors import SettingsError, StoreUnavailable
from engine.model import RecordKind
from engine.settings import Settings, load_settings

NOW_MS = 1_800_000_000_000


class ListEngine:
    """An engine whose journal is a list."""

    def __init__(self) -> None:
        self.backlog_bytes = 0
        self.is_stopping = False
        self.payloads: list[bytes] = []
        self.writes = 0
        self.gate: asyncio.Event | None = None
        self.fails = False
        self.waited = -1
        self.paused: list[tuple[str, bool]] = []
        self.asked_by: list[str] = []
        self.gateways: dict[str, CallsBack] = {}
        self.components = {"journal": Component(True), "gateway sms": Component(True, critical=False)}

    @property
    def is_accepting(self) -> bool:
        return not self.is_stopping

    async def append(self, payloads: Sequence[bytes], kind: RecordKind = RecordKind.EVENTS) -> Sequence[int]:
        assert kind is RecordKind.EVENTS
        if self.fails:
            raise StoreUnavailable("disk full")
        if self.gate is not None:
            await self.gate.wait()
        self.writes += 1
        first = len(self.payloads)
        self.payloads.extend(payloads)
        return range(first, len(self.payloads))

    def append_at_once(self, payloads: Sequence[bytes]) -> Sequence[int] | None:
        if self.fails:
            raise StoreUnavailable("disk full")
        if self.gate is not None:
            return None
        first = len(self.payloads)
        self.payloads.extend(payloads)
        return range(first, len(self.payloads))

    async def processed(self, position: int) -> None:
        self.waited = position
        if self.fails:
            raise StoreUnavailable("the engine stopped")

    def occupancy(self) -> Sequence[FenceOccupancy]:
        return [FenceOccupancy("national/a", "甲", "cinema", n) for n in (0, 1, 9, 10, 250)]

    def ready(self) -> dict[str, Component]:
        return self.components

    async def explain(self, user: str, at_ms: int | None, scenario: str | None) -> dict[str, Any]:
        return {"user": user, "at_ms": at_ms, "scenario": scenario, "decisions": []}

    async def explain_decision(self, decision_id: str) -> dict[str, Any]:
        return {"decisions": [{"decision_id": decision_id}] if decision_id == "1" * 32 else []}

    async def audience(self, scenario: str | None, expression: str | None) -> dict[str, Any]:
        return {"scenario": scenario, "expression": expression}

    async def pause(self, scenario: str, paused: bool, by: str) -> None:
        self.paused.append((scenario, paused))
        self.asked_by.append(by)

    async def gateway_callback(self, name: str, callback: Callback) -> Reply | None:
        return await self.gateways[name].on_callback(callback) if name in self.gateways else None

    def sandbox_messages(self, limit: int) -> Sequence[dict[str, Any]]:
        return [{"number": n} for n in range(limit)]


class Caller:
    """One application over one ListEngine."""

    def __init__(
        self, api_key: str | None = None, queue_bytes: int = 1 << 20, api_keys: dict[str, str] | None = None
    ) -> None:
        self.engine = ListEngine()
        self.now_ms = NOW_MS
        self.api = Api(
            self.engine,
            api_key=api_key,
            api_keys=api_keys,
            queue_bytes=queue_bytes,
            now_ms=lambda: self.now_ms,
        )

    def client(self) -> httpx.AsyncClient:
        return httpx.AsyncClient(transport=httpx.ASGITransport(self.api), base_url="http://engine")

    def ask(self, method: str, path: str, **arguments: Any) -> httpx.Response:
        async def once() -> httpx.Response:
            async with self.client() as client:
                return await client.request(method, path, **arguments)

        return asyncio.run(once())

    def post(self, body: bytes, headers: dict[str, str] | None = None) -> httpx.Response:
        return self.ask("POST", "/v1/events", content=body, headers=headers or {})


def test_one_event_is_journaled_as_it_came_and_acknowledged_with_count_and_position() -> None:
    caller = Caller()
    answer = caller.post(b'{"type":"ping","user":"u"}\n')
    assert answer.status_code == 202
    assert answer.json() == {"accepted": 1, "position": 0}
    assert caller.engine.payloads == [b'{"type":"ping","user":"u"}']


@pytest.mark.parametrize(
    ("body", "events", "payloads"),
    [
        (b'{"a":1}\n{"a":2}\n', 2, [b'{"a":1}\n{"a":2}']),
        (b'\xef\xbb\xbf{"a":1}\r\n\r\n{"a":2}', 2, [b'{"a":1}\r\n\r\n{"a":2}']),
        (b'[{"a":1},{"a":2},{"a":3}]', 3, [b'[{"a":1},{"a":2},{"a":3}]']),
        (b'[\n {"a":1},\n {"a":2}\n]', 2, [b'[  {"a":1},  {"a":2} ]']),
        (b'{\n "a": 1\n}', 1, [b'{  "a": 1 }']),
        (b"not json at all", 1, [b"not json at all"]),
        (b'{"a":1}\nbroken\n{"a":2}', 3, [b'{"a":1}\nbroken\n{"a":2}']),
        (b'{"a":\n{"b":1}\n', 2, [b'{"a":\n{"b":1}']),
    ],
)
def test_lines_arrays_and_spread_out_documents_are_taken(body: bytes, events: int, payloads: list[bytes]) -> None:
    caller = Caller()
    assert caller.post(body).json()["accepted"] == events
    assert caller.engine.payloads == payloads


def test_depth_bombs_and_huge_numbers_reach_dead_letters_and_never_break_a_request() -> None:
    caller = Caller()  # FAULTS A4
    for body in (b"[" * 100_000, b"9" * 100_000, b"[NaN]", b'{"a":' * 2_000):
        assert caller.post(body).status_code == 202
    assert len(caller.engine.payloads) == 4


def test_a_large_body_of_lines_becomes_several_records_and_loses_none() -> None:
    caller = Caller(queue_bytes=64 << 20)
    lines = [b'{"n":%d,"pad":"%s"}' % (n, b"x" * 300) for n in range(5_000)]
    answer = caller.post(b"\n".join(lines))
    assert answer.json() == {"accepted": 5_000, "position": len(caller.engine.payloads) - 1}
    assert len(caller.engine.payloads) > 3
    assert b"\n".join(caller.engine.payloads).split(b"\n") == lines


@pytest.mark.parametrize("body", [b"", b" \n\t ", b"[]"])
def test_a_body_without_events_is_400(body: bytes) -> None:
    assert Caller().post(body).status_code == 400


def test_gzip_is_unpacked_and_a_bomb_is_refused() -> None:
    caller = Caller()
    gzipped = {"content-encoding": "gzip"}
    assert caller.post(gzip.compress(b'{"a":1}') + gzip.compress(b'\n{"a":2}'), gzipped).json()["accepted"] == 2
    bomb = gzip.compress(b" " * (BODY_LIMIT + 1))
    assert len(bomb) < 100_000
    assert caller.post(bomb, gzipped).status_code == 413
    assert caller.post(gzip.compress(b"") * 300_000, gzipped).status_code == 413
    assert caller.post(b"no gzip", gzipped).status_code == 400
    assert caller.post(gzip.compress(b'{"a":1}')[:-4], gzipped).status_code == 400
    assert caller.post(b"{}", {"content-encoding": "br"}).status_code == 415


def test_a_body_beyond_the_limit_is_413_whether_or_not_it_says_so() -> None:
    caller = Caller()
    assert caller.post(b"x" * (BODY_LIMIT + 1)).status_code == 413

    async def chunked() -> int:
        async def parts() -> Any:
            for _ in range(9):
                yield b" " * (1 << 20)

        async with caller.client() as client:
            return (await client.post("/v1/events", content=parts())).status_code

    assert asyncio.run(chunked()) == 413
    assert caller.engine.payloads == []


def test_a_full_queue_is_429_with_retry_after() -> None:
    caller = Caller(queue_bytes=100)
    caller.engine.backlog_bytes = 95
    answer = caller.post(b'{"type":"ping"}')
    assert answer.status_code == 429
    assert int(answer.headers["retry-after"]) >= 1
    caller.engine.backlog_bytes = 0
    assert caller.post(b'{"type":"ping"}').status_code == 202


def test_nothing_is_acknowledged_before_it_is_journaled_and_waiting_requests_share_a_write() -> None:
    caller = Caller()

    async def main() -> list[int]:
        caller.engine.gate = asyncio.Event()
        async with caller.client() as client:
            asked = [asyncio.create_task(client.post("/v1/events", content=b'{"n":%d}' % n)) for n in range(50)]
            await asyncio.sleep(0.05)
            assert not any(task.done() for task in asked)
            caller.engine.gate.set()
            return [(await task).json()["position"] for task in asked]

    positions = asyncio.run(main())
    assert sorted(positions) == list(range(50))
    assert caller.engine.writes <= 3
    assert [caller.engine.payloads[at] for at in positions] == [b'{"n":%d}' % n for n in range(50)]


def test_a_journal_that_cannot_write_is_503_and_no_acknowledgement() -> None:
    caller = Caller()
    caller.engine.fails = True
    answer = caller.post(b"{}")
    assert answer.status_code == 503
    assert "retry-after" in answer.headers
    caller.engine.fails = False
    assert caller.post(b"{}").status_code == 202


def test_the_key_is_asked_for_everywhere_but_at_probes_and_metrics() -> None:
    caller = Caller(api_key="s3cret")
    guarded = [
        ("POST", "/v1/events"),
        ("POST", "/v1/owntracks"),
        ("POST", "/v1/track"),
        ("POST", "/v1/pause"),
        ("GET", "/v1/occupancy"),
        ("GET", "/v1/explain?user=u"),
        ("GET", "/v1/sandbox/messages"),
    ]
    for method, path in guarded:
        for header in (None, "Bearer wrong", "Bearer", "Basic !!!", "Basic " + base64.b64encode(b"u:no").decode()):
            headers = {"authorization": header} if header else {}
            assert caller.ask(method, path, headers=headers).status_code == 401, (path, header)
    for path in ("/healthz", "/readyz", "/metrics"):
        assert caller.ask("GET", path).status_code == 200
    assert caller.post(b"{}", {"authorization": "Bearer s3cret"}).status_code == 202
    basic = "Basic " + base64.b64encode(b"phone:s3cret").decode()
    assert caller.post(b"{}", {"authorization": basic}).status_code == 202


def test_without_a_key_only_loopback_is_served() -> None:
    for host in ("127.0.0.1", "::1", "localhost", "127.8.8.8"):
        check_binding(host, None)
    check_binding("0.0.0.0", "the key of this place")
    for host in ("0.0.0.0", "::", "10.0.0.8", "engine.example"):
        with pytest.raises(SettingsError, match="api_key"):
            check_binding(host, None)


def test_owntracks_locations_become_pings_and_the_answer_is_an_empty_array() -> None:
    caller = Caller()
    body = b'{"_type":"location","lat":39.9,"lon":116.4,"tst":1700000000,"acc":12,"tid":"ab","_id":"x1"}'
    answer = caller.ask("POST", "/v1/owntracks", content=body, headers={"X-Limit-U": "u7"})
    assert (answer.status_code, answer.json()) == (200, [])
    assert orjson.loads(caller.engine.payloads[0]) == {
        "v": 1,
        "type": "ping",
        "feed": "owntracks",
        "user": "u7",
        "at": 1_700_000_000_000,
        "lon": 116.4,
        "lat": 39.9,
        "accuracy_m": 12,
        "id": "x1",
    }
    basic = {"authorization": "Basic " + base64.b64encode(b"u8:pw").decode()}
    caller.ask("POST", "/v1/owntracks", content=body, headers=basic)
    assert orjson.loads(caller.engine.payloads[1])["user"] == "u8"
    assert caller.ask("POST", "/v1/owntracks", content=b'{"_type":"lwt"}').json() == []
    assert len(caller.engine.payloads) == 2
    assert caller.ask("POST", "/v1/owntracks", content=b"{").status_code == 400


def test_segment_calls_are_stamped_with_the_time_of_receipt() -> None:
    caller = Caller()
    call = {"type": "track", "userId": "u", "event": "Opened", "messageId": "m"}
    assert caller.ask("POST", "/v1/track", json=call).json() == {"success": True}
    batch = {"sentAt": "2027-01-15T08:00:00Z", "batch": [call, {"type": "identify", "userId": "u"}]}
    assert caller.ask("POST", "/v1/batch", json=batch).status_code == 200
    stored = [orjson.loads(payload) for payload in caller.engine.payloads]
    assert [one["receivedAt"] for one in stored] == ["2027-01-15T08:00:00.000+00:00"] * 2
    assert stored[1]["sentAt"] == "2027-01-15T08:00:00Z"


def test_occupancy_hides_small_counts() -> None:
    rows = Caller().ask("GET", "/v1/occupancy").json()["occupancy"]  # P9, FAULTS A13
    assert [row["users"] for row in rows] == [0, "<10", "<10", 10, 250]


def test_unknown_paths_and_methods_are_answered_as_json_with_a_way_on() -> None:
    caller = Caller()
    assert caller.ask("GET", "/v1/occupency").json() == {
        "error": "not_found",
        "detail": "no such path; did you mean /v1/occupancy?",
    }
    assert caller.ask("GET", "/nope").status_code == 404
    answer = caller.ask("DELETE", "/v1/pause")
    assert (answer.status_code, answer.json()["error"]) == (405, "method_not_allowed")


def test_readiness_names_each_component_and_health_none() -> None:
    caller = Caller()
    assert caller.ask("GET", "/readyz").status_code == 200
    caller.engine.components["gateway sms"] = Component(False, "breaker open", critical=False)
    assert caller.ask("GET", "/readyz").status_code == 200
    caller.engine.components["journal"] = Component(False, "disk full")
    answer = caller.ask("GET", "/readyz")
    assert answer.status_code == 503
    assert answer.json()["components"]["journal"] == {"ok": False, "detail": "disk full"}
    assert caller.ask("GET", "/healthz").status_code == 200


def test_pause_reaches_the_engine_and_nonsense_does_not() -> None:
    caller = Caller()
    assert caller.ask("POST", "/v1/pause", json={"scenario": "*", "paused": True}).status_code == 200
    for body in ({"scenario": "*"}, {"scenario": 1, "paused": True}, [], {"scenario": "*", "paused": "yes"}):
        assert caller.ask("POST", "/v1/pause", json=body).status_code == 400
    cross_site = {"sec-fetch-site": "cross-site"}  # FAULTS A9
    answer = caller.ask("POST", "/v1/pause", json={"scenario": "*", "paused": False}, headers=cross_site)
    assert answer.status_code == 403
    assert caller.engine.paused == [("*", True)]


def test_metrics_count_requests_and_name_no_user() -> None:
    caller = Caller()
    caller.post(b'{"type":"ping","user":"user-nobody-may-see"}')
    text = caller.ask("GET", "/metrics").text
    assert 'opportune_http_requests_total{route="/v1/events",status="202"}' in text
    assert "user-nobody-may-see" not in text


def test_unknown_paths_and_methods_are_refused() -> None:
    caller = Caller()
    assert caller.ask("GET", "/v1/events").status_code == 405
    assert caller.ask("GET", "/v1/nothing").status_code == 404
    assert caller.ask("GET", "/v1/explain").status_code == 400
    assert caller.ask("GET", "/v1/explain?user=u&offer=1").status_code == 400
    assert caller.ask("GET", f"/v1/explain?offer={'1' * 32}").json()["decisions"]
    assert caller.ask("GET", f"/v1/explain?offer={'2' * 32}").status_code == 404
    for number in ("x", "%C2%B2", "9" * 400):
        assert caller.ask("GET", f"/v1/explain?user=u&at_ms={number}").status_code == 400
        assert caller.ask("GET", f"/v1/sandbox/messages?limit={number}").status_code == 400
    for stamp in (b"1e308", b"9" * 30):
        body = b'{"_type":"location","tst":%b,"lon":1,"lat":2,"tid":"x"}' % stamp
        assert caller.ask("POST", "/v1/owntracks", content=body).status_code == 200


def test_a_sender_may_wait_until_its_events_are_processed() -> None:
    caller = Caller()
    assert caller.post(b"{}").status_code == 202
    assert caller.engine.waited == -1
    answer = caller.ask("POST", "/v1/events", content=b"{}\n{}", params={"wait": "processed"})
    assert (answer.status_code, answer.json()) == (202, {"accepted": 2, "position": 1})
    assert caller.engine.waited == 1


def test_an_audience_is_asked_for_by_scenario_or_by_expression_and_nothing_else() -> None:
    caller = Caller()
    ask = [
        caller.ask("POST", "/v1/audience", json=body).json()
        for body in ({"scenario": "a/b"}, {"expression": {"tag": "t"}})
    ]
    assert ask == [{"scenario": "a/b", "expression": None}, {"scenario": None, "expression": '{"tag":"t"}'}]
    for body in ([], {"user": "u1"}, {"scenario": "a/b", "expression": "t"}, {"scenario": 5}):
        assert caller.ask("POST", "/v1/audience", json=body).status_code == 400


def test_a14_a_pause_is_asked_for_by_the_name_of_the_key_that_was_shown() -> None:
    keys = {"beijing.wang": "0123456789abcdef", "shanghai": "fedcba9876543210"}
    caller = Caller("the key without a name", api_keys=keys)

    def pause(key: str | None, basic: str = "") -> int:
        headers = {"user-agent": "console/1"}
        if basic:
            headers["authorization"] = "Basic " + base64.b64encode(basic.encode()).decode()
        elif key is not None:
            headers["authorization"] = f"Bearer {key}"
        return caller.ask("POST", "/v1/pause", json={"scenario": "*", "paused": True}, headers=headers).status_code

    assert [pause(key) for key in keys.values()] == [200, 200]
    assert pause("the key without a name") == 200
    assert pause(None, basic="phone:fedcba9876543210") == 200
    assert [pause(key) for key in (None, "", "shanghai", "0123456789abcdeg")] == [401] * 4
    assert caller.engine.asked_by == [
        "api key beijing.wang, console/1",
        "api key shanghai, console/1",
        "api key, console/1",
        "api key shanghai, console/1",
    ]
    without = Caller()
    assert without.ask("POST", "/v1/pause", json={"scenario": "*", "paused": True}).status_code == 200
    assert without.engine.asked_by[0].startswith("local, ")


def test_a_named_key_opens_the_service_to_others_and_must_not_be_short() -> None:
    check_binding("0.0.0.0", None, {"ops": "0123456789abcdef"})
    with pytest.raises(SettingsError, match=r"api_keys\.ops has fewer than 16"):
        check_binding("127.0.0.1", "the key of this place", {"ops": "short"})
    assert "0123456789abcdef" not in repr(Settings(api_keys={"ops": "0123456789abcdef"}))
    with pytest.raises(SettingsError, match="api_keys"):
        load_settings(api_keys={"Wang, the boss": "0123456789abcdef"})


@pytest.mark.parametrize("levels", [10, 300, 900, 1100])
@pytest.mark.parametrize("path", ["/v1/track", "/v1/batch", "/v1/owntracks"])
def test_a_message_nested_without_end_is_answered_and_harms_no_neighbour(path: str, levels: int) -> None:
    """A4: what is too deep for one JSON library and not for the other was an error of the service."""
    deep = b'{"a":' * levels + b"1" + b"}" * levels
    track = b'{"type":"track","userId":"u","event":"e","properties":%b}' % deep
    body = {
        "/v1/track": track,
        "/v1/batch": b'{"batch":[%b,{"type":"track","userId":"v","event":"e"}]}' % track,
        "/v1/owntracks": b'{"_type":"location","tid":"x","tst":1,"lat":%b}' % deep,
    }[path]
    caller = Caller()
    status = caller.ask("POST", path, content=body).status_code
    assert status == (200 if levels <= 300 else status)
    assert status in (200, 400)
    assert len(caller.engine.payloads) == (0 if status == 400 else 2 if path == "/v1/batch" else 1)


def test_a_batch_of_more_calls_than_any_client_sends_is_refused_before_it_holds_up_others() -> None:
    caller = Caller()
    body = b'{"batch":[' + b",".join([b'{"type":"track"}'] * 10_001) + b"]}"
    assert caller.ask("POST", "/v1/batch", content=body).status_code == 413
    assert not caller.engine.payloads


@pytest.mark.parametrize("key", ["", "short", "fifteen-letters"])
def test_a_key_that_can_be_guessed_is_refused_whatever_the_address(key: str) -> None:
    check_binding("127.0.0.1", None)
    if key:
        with pytest.raises(SettingsError, match="api_key has fewer than 16"):
            check_binding("127.0.0.1", key)
    else:
        check_binding("127.0.0.1", key)
        with pytest.raises(SettingsError, match="no api_key is set"):
            check_binding("0.0.0.0", key)
    with pytest.raises(SettingsError, match=r"api_keys\.ops has fewer than 16"):
        check_binding("127.0.0.1", "0123456789abcdef", {"ops": "x"})
    for odd in ("0123456789abcdef\n", " 0123456789abcdef", "0123456789abcdé中"):
        with pytest.raises(SettingsError, match="signs of ASCII"):
            check_binding("127.0.0.1", odd)
    check_binding("0.0.0.0", "0123456789abcdef")
    assert "0123456789abcdef" not in repr(Settings(api_key="0123456789abcdef"))


def test_a_key_in_the_address_is_no_key() -> None:
    """It would stand in the logs of every proxy."""
    caller = Caller(api_key="0123456789abcdef")
    for path in ("/v1/events", "/v1/track", "/v1/pause"):
        for name in ("api_key", "key", "token", "access_token"):
            assert caller.ask("POST", f"{path}?{name}=0123456789abcdef", content=b"{}").status_code == 401


def test_a_bug_that_a_request_wakes_is_answered_as_json_and_logged_once(capsys: pytest.CaptureFixture[str]) -> None:
    caller = Caller()

    async def fail(*_: object, **__: object) -> None:
        raise ZeroDivisionError("a bug")

    caller.engine.append = caller.engine.audience = fail  # type: ignore[method-assign,assignment]
    for _ in range(3):
        for path in ("/v1/events", "/v1/audience"):
            answer = caller.ask("POST", path, content=b"{}")
            assert (answer.status_code, answer.json()["error"]) == (500, "internal")
    assert capsys.readouterr().out.count("a request woke a bug") <= 1
