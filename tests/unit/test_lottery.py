"""A lottery: the draw follows from the offer id, with the odds that the text states."""

from __future__ import annotations

from pathlib import Path

import pytest

from engine.definitions import FieldTest, Lottery, UsageTrigger
from engine.model import Outcome, Reason
from tests.world import NOON_MS, block_of, consent, make_pipeline, scenario, small_content, small_policy, usage


def draws(one_in: int, salt: str, users: int, name: str = "draw") -> dict[str, str]:
    """Reason of each user's candidate."""
    trigger = UsageTrigger((FieldTest("app", "==", "wheel"),))
    content = small_content(
        scenarios=(scenario(name, trigger, lottery=Lottery(one_in, salt)),),
        policy=small_policy(assumed_consent=frozenset({"location", "usage", "marketing.sms"}), caps=()),
    )
    pipeline = make_pipeline(content)
    events = [usage(f"u{number}", NOON_MS, app="wheel", id=f"e{number}") for number in range(users)]
    decisions = pipeline.process(block_of(events)).decisions + pipeline.finish().decisions
    return {one.user: one.reason for one in decisions}


def test_the_odds_are_those_that_are_stated() -> None:
    drawn = draws(20, "autumn", 4000)
    won = sum(reason == "granted" for reason in drawn.values())
    assert set(drawn.values()) == {Reason.GRANTED.value, Reason.NOT_DRAWN.value}
    assert 150 <= won <= 250, "200 expected, 3.6 standard deviations around it"


def test_the_same_candidate_draws_the_same_and_another_salt_or_scenario_anew() -> None:
    first = draws(3, "a", 300)
    assert draws(3, "a", 300) == first
    assert draws(3, "b", 300) != first
    assert draws(3, "a", 300, name="other") != first


def test_one_in_one_always_wins() -> None:
    assert set(draws(1, "a", 50).values()) == {Reason.GRANTED.value}


def test_who_did_not_win_is_told_the_ticket() -> None:
    trigger = UsageTrigger((FieldTest("app", "==", "wheel"),))
    content = small_content(scenarios=(scenario("draw", trigger, lottery=Lottery(10**9)),))
    pipeline = make_pipeline(content)
    events = [consent("u1", NOON_MS), usage("u1", NOON_MS, app="wheel", id="e")]
    (decision,) = pipeline.process(block_of(events)).decisions
    assert (decision.outcome, decision.reason) == (Outcome.REFUSED.value, Reason.NOT_DRAWN.value)
    assert decision.values["one_in"] == 10**9
    assert 0 < decision.values["ticket"] < 10**9


@pytest.mark.parametrize("text", ["中奖率{odds}", "抽中了"])
def test_a_text_states_the_odds_by_a_placeholder(text: str, tmp_path: Path) -> None:
    import sys

    sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "content"))
    from sets import scenario as given
    from sets import write_set

    from engine.content import inspect_content

    found = inspect_content(*write_set(tmp_path, scenarios=[given(lottery={"one_in": 20}, offer__text=text)]))
    assert found.errors == []
    without = inspect_content(*write_set(tmp_path / "x", scenarios=[given(offer__text=text)]))
    assert [fault.expected for fault in without.errors] == (["a scenario with a `lottery`"] if "{" in text else [])
