"""Ignored offers against a model that keeps everything and counts from the beginning (docs/contracts.md, Ignores)."""

from __future__ import annotations

import json

from hypothesis import given, settings
from hypothesis import strategies as st

from engine.decide.responses import Responses
from engine.definitions import Limits, PauseAfter
from tests.oracle.decide_world import scenario

RULE = PauseAfter(ignores=2, within_ms=30, pause_ms=50)
SCENARIOS = (scenario("a/other"), scenario("a/watched", limits=Limits(pause_after=RULE)))
ROW = 1


def paused_until(offers: list[dict], now_ms: int) -> int | None:
    """Go through every offer that ended unanswered, by its end, and count anew after each pause."""
    ends = sorted(one["ends"] for one in offers if one["received"] and not one["answered"] and one["ends"] <= now_ms)
    recent: list[int] = []
    until_ms = 0
    for end in ends:
        recent = [at for at in recent if at > end - RULE.within_ms] + [end]
        if len(recent) >= RULE.ignores:
            until_ms, recent = end + RULE.pause_ms, []
    return until_ms if now_ms < until_ms else None


STEPS = st.lists(
    st.tuples(st.sampled_from(["offer", "receive", "answer", "ask", "tidy", "restart"]), st.integers(0, 12)),
    max_size=60,
)


@settings(max_examples=300, deadline=None)
@given(STEPS)
def test_a_pause_is_what_counting_from_the_beginning_says(steps: list[tuple[str, int]]) -> None:
    responses = Responses()
    responses.compile(SCENARIOS)
    offers: list[dict] = []
    now_ms = 0
    for number, (what, amount) in enumerate(steps):
        now_ms += amount
        open_ = [one for one in offers if one["ends"] > now_ms]
        if what == "offer":
            offers.append({"id": f"{number}", "ends": now_ms + 1 + amount, "received": False, "answered": False})
            responses.offered(3, ROW, f"{number}", now_ms, now_ms + 1 + amount)
        elif what in ("receive", "answer") and offers:
            chosen = offers[amount % len(offers)]
            if chosen in open_:
                chosen["received" if what == "receive" else "answered"] = True
            if what == "receive":
                responses.received(3, chosen["id"], now_ms)
            else:
                responses.answered(3, chosen["id"], None, now_ms)
        elif what == "tidy":
            responses.drop_settled(now_ms)
        elif what == "restart":
            state = json.loads(json.dumps(responses.state()))
            responses = Responses()
            responses.compile(SCENARIOS)
            responses.restore(state)
        found = responses.paused_until(3, ROW, now_ms)
        assert (None if found is None else found.until_ms) == paused_until(offers, now_ms)
        assert responses.paused_until(4, ROW, now_ms) is None
