"""Redemptions: from an event to a row that is there once, and gone when it must be (rules T7, I2; MISSION, settle)."""

from __future__ import annotations

from pathlib import Path

import pytest

from engine.ledger.embedded import EmbeddedLedger
from engine.model import DeadReason
from tests.world import NOON_MS, block_of, make_pipeline

OFFER = f"{NOON_MS:012x}{7:020x}"


def redemption(user: str = "u1", at_ms: int = NOON_MS, **more):
    return {"type": "redemption", "user": user, "at": at_ms, "offer_id": OFFER, **more}


@pytest.fixture
def ledger(tmp_path: Path):
    opened = EmbeddedLedger(tmp_path / "ledger.db")
    yield opened
    opened.close()


def stored(ledger: EmbeddedLedger):
    return ledger.redemptions(from_ms=0, until_ms=NOON_MS * 2)


def test_a_redemption_told_twice_is_one_row_whether_it_has_an_id_or_not(ledger):
    pipeline = make_pipeline()
    events = [redemption(id="r1"), redemption(id="r1", amount_fen=5), redemption(benefit="a/b"), redemption("u2")]
    for position in (1, 2):
        effects = pipeline.process(block_of([*events, redemption(benefit="a/b")], position=position * 10))
        ledger.commit(position * 10 + 4, NOON_MS, redemptions=effects.redemptions)
    rows = stored(ledger)
    assert sorted((row.user, row.benefit or "", row.amount_fen) for row in rows) == [
        ("u1", "", None),
        ("u1", "a/b", None),
        ("u2", "", None),
    ]
    assert {row.position for row in rows} == {14}, "the first telling counts"


def test_the_same_id_from_two_feeds_is_two_redemptions(ledger):
    effects = make_pipeline().process(block_of([redemption(id="r1"), redemption(id="r1", feed="app")]))
    ledger.commit(1, NOON_MS, redemptions=effects.redemptions)
    assert len(stored(ledger)) == 2


def test_forgetting_and_age_take_redemptions_away(ledger):
    effects = make_pipeline().process(block_of([redemption("u1"), redemption("u2"), redemption("u3", NOON_MS - 1)]))
    ledger.commit(2, NOON_MS, redemptions=effects.redemptions)
    ledger.forget("u1")
    assert [row.user for row in stored(ledger)] == ["u3", "u2"]
    ledger.expire(NOON_MS, NOON_MS)
    assert [row.user for row in stored(ledger)] == ["u2"]


@pytest.mark.parametrize("amount", [-1, 10**15 + 1, 2**63, 1.5, "3"])
def test_an_amount_that_no_benefit_has_is_a_dead_letter_and_not_a_fault_of_the_ledger(amount):
    effects = make_pipeline().process(block_of([redemption(amount_fen=amount)]))
    assert effects.redemptions == []
    assert effects.dead[0].reason in (DeadReason.BAD_VALUE, DeadReason.WRONG_TYPE)
