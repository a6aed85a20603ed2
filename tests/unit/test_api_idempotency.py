"""The same request once, by its Idempotency-Key (FAULTS A16)."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from engine.console import idempotency
from engine.console.idempotency import Answer, Answers
from engine.console.intake import Refused
from tests.unit.test_api_events import NOW_MS, Caller

KEY = {"Idempotency-Key": "k1"}


def test_the_same_key_and_body_get_the_stored_answer_and_another_body_is_422() -> None:
    caller = Caller()
    first = caller.post(b'{"a":1}', KEY)
    again = caller.post(b'{"a":1}', KEY)
    assert (first.status_code, again.status_code, again.content) == (202, 202, first.content)
    assert caller.engine.payloads == [b'{"a":1}']
    other = caller.post(b'{"a":2}', KEY)
    assert (other.status_code, other.json()["error"]) == (422, "idempotency_key_reused")
    assert caller.post(b'{"a":2}', {"Idempotency-Key": "k2"}).status_code == 202
    assert len(caller.engine.payloads) == 2


def test_a_pause_is_done_once_and_the_same_key_of_another_route_is_another_key() -> None:
    caller = Caller()
    body = {"scenario": "a/b", "paused": True}
    answers = [caller.ask("POST", "/v1/pause", json=body, headers=KEY) for _ in range(3)]
    assert [one.json() for one in answers] == [body] * 3
    assert caller.engine.paused == [("a/b", True)]
    assert caller.ask("POST", "/v1/pause", json={**body, "paused": False}, headers=KEY).status_code == 422
    assert caller.post(b"{}", KEY).status_code == 202


def test_what_was_refused_or_failed_may_be_sent_again_with_its_key() -> None:
    caller = Caller()
    assert caller.post(b"", KEY).status_code == 400
    caller.engine.fails = True
    assert caller.post(b"{}", KEY).status_code == 503
    caller.engine.fails = False
    assert caller.post(b"{}", KEY).status_code == 202
    assert caller.ask("POST", "/v1/pause", json={}, headers=KEY).status_code == 400
    assert caller.ask("POST", "/v1/pause", json={"scenario": "*", "paused": True}, headers=KEY).status_code == 200


def test_an_answer_is_kept_for_a_day_and_no_longer() -> None:
    caller = Caller()
    caller.post(b"{}", KEY)
    caller.now_ms += idempotency.KEPT_MS - 1
    caller.post(b"{}", KEY)
    assert len(caller.engine.payloads) == 1
    caller.now_ms += 1
    assert caller.post(b'{"another":1}', KEY).status_code == 202


@pytest.mark.parametrize("key", ["", "x" * 256, "a\tb"])
def test_a_key_that_cannot_be_one_is_refused(key: str) -> None:
    assert Caller().post(b"{}", {"Idempotency-Key": key}).status_code == 400


async def act() -> Answer:
    return Answer(200, b"{}")


def test_answers_outlive_the_process_and_the_oldest_go_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(idempotency, "MOST_ANSWERS", 50)
    monkeypatch.setattr(idempotency, "_TIDY_EVERY", 5)
    clock = [NOW_MS]
    answers = Answers(tmp_path / "answers.db", lambda: clock[0])
    for number in range(200):
        clock[0] += 1
        asyncio.run(answers.once("r", f"k{number}", b"body", act))
    answers.close()
    again = Answers(tmp_path / "answers.db", lambda: clock[0])

    async def never() -> Answer:
        raise AssertionError("done before")

    assert asyncio.run(again.once("r", "k199", b"body", never)) == Answer(200, b"{}")
    with pytest.raises(Refused):
        asyncio.run(again.once("r", "k199", b"another", never))
    with pytest.raises(AssertionError):
        asyncio.run(again.once("r", "k0", b"body", never))
    again.close()


def test_two_at_once_are_one_and_a_conflict() -> None:
    answers = Answers(None, lambda: NOW_MS)

    async def both() -> list[object]:
        gate = asyncio.Event()

        async def slow() -> Answer:
            await gate.wait()
            return Answer(200, b"{}")

        first = asyncio.create_task(answers.once("r", "k", b"", slow))
        await asyncio.sleep(0)
        with pytest.raises(Refused) as caught:
            await answers.once("r", "k", b"", slow)
        gate.set()
        return [caught.value.status, await first]

    assert asyncio.run(both()) == [409, Answer(200, b"{}")]
    answers.close()
