"""The states of a dispatch as a table (G1), and receipts that come early, twice, late or never (G3, F16, F20)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from engine.deliver.contract import DispatchRecord
from engine.ledger.dispatch import FINAL, FOLLOWS, may_follow, print_table
from engine.ledger.embedded import EmbeddedLedger
from engine.model import DispatchState as S
from engine.model import GatewayReceipt, Match, Offer
from engine.runtime.outcome import ReportedState
from tests.peers.in_redis import InRedis

NOW_MS = 1_800_000_000_000
HOUR_MS = 3_600_000
ROOT = Path(__file__).resolve().parents[2]


def offer(number: int) -> Offer:
    return Offer(
        offer_id=f"{NOW_MS:012x}{number:020x}",
        scenario="national/cinema",
        user_id=f"u{number}",
        channel="sms",
        text="您好",
        benefit="movie",
        offer_class="service",
        deadline_ms=NOW_MS + 600_000,
        created_ms=NOW_MS,
    )


def name_of(number: int) -> str:
    return f"{offer(number).offer_id}/sms/1"


Ledger = Any
"""An EmbeddedLedger, or a cluster's parts that answer alike."""


@pytest.fixture(params=["embedded", "redis"])
def reopen(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Callable[[], Ledger]]:
    """Opens the same store again, without a goodbye of who had it before."""
    url = request.getfixturevalue("redis_url") if request.param == "redis" else None
    opened: list[Ledger] = []

    def open_() -> Ledger:
        opened.append(EmbeddedLedger(tmp_path / "ledger.db") if url is None else InRedis(url, NOW_MS))
        return opened[-1]

    yield open_
    for one in opened[::-1]:
        one.close()


def filled(ledger: Ledger) -> Ledger:
    ledger.commit(1, NOW_MS, offers=[offer(number) for number in range(5)])
    ledger.claim([(offer(number).offer_id, name_of(number)) for number in range(5)], NOW_MS)
    return ledger


@pytest.fixture
def ledger(reopen: Callable[[], Ledger]) -> Ledger:
    return filled(reopen())


@pytest.fixture
def embedded(tmp_path: Path) -> Iterator[EmbeddedLedger]:
    made = filled(EmbeddedLedger(tmp_path / "ledger.db"))
    yield made
    made.close()


def record(ledger: Ledger, number: int, state: S, *gateway_ids: str) -> None:
    first = gateway_ids[0] if gateway_ids else None
    ledger.record_dispatch(
        [DispatchRecord(name_of(number), offer(number).offer_id, state, NOW_MS, first, None, "unicom", gateway_ids)]
    )


def receipt(gateway_id: str, state: S, at_ms: int = NOW_MS + 5_000, code: str = "") -> GatewayReceipt:
    return GatewayReceipt("unicom", state, at_ms, gateway_id=gateway_id, code=code)


def tell(ledger: Ledger, *matches: Match | None, position: int) -> None:
    """What the engine does with the receipt events that matches become."""
    rows = [ReportedState(one.dispatch_id, one.offer_id, one.state, one.at_ms, one.code) for one in matches if one]
    ledger.commit(position, NOW_MS, dispatches=rows)


def state_of(ledger: Ledger, number: int) -> S:
    return S([row for row in ledger.dispatches(offer(number).offer_id) if row["applied"]][-1]["state"])


def test_the_table_in_the_docs_is_the_one_that_runs() -> None:
    assert f"```\n{print_table()}\n```" in (ROOT / "docs/contracts.md").read_text()


def test_after_a_final_state_follows_nothing_and_every_state_can_come_to_one() -> None:
    assert {S.DELIVERED, S.FAILED, S.EXPIRED, S.REJECTED} == FINAL
    assert not any(may_follow(before, after) for before in FINAL for after in S)
    reached = {before for before in FOLLOWS if before is not None and FOLLOWS[before] & FINAL}
    assert reached | FINAL == set(S)


def test_a_receipt_moves_its_dispatch_and_the_same_again_changes_nothing(ledger: Ledger) -> None:
    record(ledger, 0, S.ACCEPTED, "a")
    for position in (2, 3):
        (match,) = ledger.match_receipts([receipt("a", S.DELIVERED, code="DELIVRD")], NOW_MS)
        assert match is not None
        assert (match.dispatch_id, match.user_id, match.state, match.is_definite) == (
            name_of(0),
            "u0",
            S.DELIVERED,
            True,
        )
        tell(ledger, match, position=position)
    assert [row["state"] for row in ledger.dispatches(offer(0).offer_id)] == ["submitting", "accepted", "delivered"]


def test_a_final_state_never_regresses_whatever_comes_later(ledger: Ledger) -> None:
    record(ledger, 0, S.ACCEPTED, "a")
    tell(ledger, *ledger.match_receipts([receipt("a", S.DELIVERED)], NOW_MS), position=2)
    tell(ledger, *ledger.match_receipts([receipt("a", S.FAILED)], NOW_MS), position=3)
    tell(ledger, *ledger.match_receipts([receipt("a", S.ACCEPTED)], NOW_MS), position=4)
    assert state_of(ledger, 0) is S.DELIVERED


def test_a_receipt_before_the_answer_is_kept_and_matched_when_the_answer_is_recorded(ledger: Ledger) -> None:
    assert ledger.match_receipts([receipt("early", S.DELIVERED)], NOW_MS) == [None]
    assert ledger.matched_late() == []
    record(ledger, 1, S.ACCEPTED, "early")
    (match,) = ledger.matched_late()
    assert (match.dispatch_id, match.state) == (name_of(1), S.DELIVERED)
    assert ledger.matched_late() == [match], "until it is told, so that a crash loses nothing"
    ledger.told_late()
    assert ledger.matched_late() == []


def test_a_receipt_that_comes_while_earlier_ones_are_told_is_told_the_next_time(ledger: Ledger) -> None:
    """F20: what was not listed is not dropped."""
    ledger.match_receipts([receipt("a", S.DELIVERED), receipt("b", S.FAILED)], NOW_MS)
    record(ledger, 0, S.ACCEPTED, "a")
    assert [one.dispatch_id for one in ledger.matched_late()] == [name_of(0)]
    record(ledger, 1, S.ACCEPTED, "b")
    ledger.told_late()
    assert [(one.dispatch_id, one.state) for one in ledger.matched_late()] == [(name_of(1), S.FAILED)]
    ledger.told_late()
    assert ledger.matched_late() == []


def test_an_early_receipt_survives_a_crash_between_recording_and_telling(reopen: Callable[[], Ledger]) -> None:
    first = filled(reopen())
    first.match_receipts([receipt("early", S.DELIVERED)], NOW_MS)
    record(first, 1, S.ACCEPTED, "early")
    second = reopen()
    assert [one.state for one in second.matched_late()] == [S.DELIVERED]
    second.told_late()
    assert second.matched_late() == []


def test_an_unknown_receipt_is_kept_72_hours_and_then_forgotten(embedded: EmbeddedLedger) -> None:
    embedded.match_receipts([receipt("kept", S.DELIVERED)], NOW_MS)
    embedded.match_receipts([receipt("gone", S.DELIVERED)], NOW_MS - 72 * HOUR_MS - 1)
    embedded.expire_receipts(NOW_MS)
    record(embedded, 0, S.ACCEPTED, "kept")
    record(embedded, 1, S.ACCEPTED, "gone")
    assert [one.dispatch_id for one in embedded.matched_late()] == [name_of(0)]


def test_names_of_parts_are_forgotten_once_no_receipt_can_come(embedded: EmbeddedLedger) -> None:
    record(embedded, 0, S.ACCEPTED, "a", "b")
    embedded.expire_receipts(NOW_MS + 119 * HOUR_MS)
    assert embedded.match_receipts([receipt("a", S.DELIVERED), receipt("b", S.DELIVERED)], NOW_MS)[1] is not None
    embedded.expire_receipts(NOW_MS + 121 * HOUR_MS)
    assert embedded.match_receipts([receipt("b", S.DELIVERED)], NOW_MS) == [None]


def test_a_message_of_three_parts_is_delivered_when_each_part_is_in_any_order(ledger: Ledger) -> None:
    record(ledger, 2, S.ACCEPTED, "p1", "p2", "p3")
    answers = ledger.match_receipts(
        [
            receipt("p3", S.DELIVERED),
            receipt("p1", S.DELIVERED),
            receipt("p3", S.DELIVERED),
            receipt("p2", S.DELIVERED),
        ],
        NOW_MS,
    )
    assert [one is not None for one in answers] == [False, False, False, True]
    assert answers[-1] is not None
    assert answers[-1].state is S.DELIVERED


def test_a_failed_part_fails_the_message_and_gives_back_only_where_no_part_arrived(ledger: Ledger) -> None:
    record(ledger, 2, S.ACCEPTED, "p1", "p2")
    record(ledger, 3, S.ACCEPTED, "q1", "q2")
    *_, partly = ledger.match_receipts([receipt("p1", S.DELIVERED), receipt("p2", S.FAILED)], NOW_MS)
    *_, nothing = ledger.match_receipts([receipt("q1", S.FAILED), receipt("q2", S.EXPIRED)], NOW_MS)
    assert partly is not None
    assert (partly.state, partly.is_definite) == (S.FAILED, False)
    assert nothing is not None
    assert (nothing.state, nothing.is_definite) == (S.FAILED, True)


def test_an_unknown_outcome_is_settled_by_a_receipt_where_its_name_is_known(ledger: Ledger) -> None:
    record(ledger, 4, S.UNKNOWN, "ours")
    tell(ledger, *ledger.match_receipts([receipt("ours", S.DELIVERED)], NOW_MS), position=2)
    assert state_of(ledger, 4) is S.DELIVERED
    assert [match for _, _, match in ledger.silent(NOW_MS + 49 * HOUR_MS)] == [None], "it ended by itself"


def test_what_stays_unknown_or_accepted_is_expired_after_48_hours_and_proves_nothing(ledger: Ledger) -> None:
    record(ledger, 0, S.UNKNOWN)
    record(ledger, 1, S.ACCEPTED, "a")
    record(ledger, 2, S.ACCEPTED)  # by a gateway that never reports: its last state
    assert ledger.silent(NOW_MS + 48 * HOUR_MS - 1) == []
    rows = ledger.silent(NOW_MS + 48 * HOUR_MS)
    matches = [match for _, _, match in rows if match is not None]
    assert {(one.dispatch_id, one.state, one.is_definite) for one in matches} == {
        (name_of(0), S.EXPIRED, False),
        (name_of(1), S.EXPIRED, False),
    }
    tell(ledger, *matches, position=2)
    ledger.told_silent([(due_ms, name) for due_ms, name, _ in rows])
    assert ledger.silent(NOW_MS + 99 * HOUR_MS) == []
    assert state_of(ledger, 0) is S.EXPIRED


def test_a_claim_found_submitting_after_a_crash_ends_by_receipt_or_by_silence(reopen: Callable[[], Ledger]) -> None:
    filled(reopen())
    second = reopen()
    assert state_of(second, 1) is S.UNKNOWN
    assert [match.state for _, _, match in second.silent(NOW_MS + 48 * HOUR_MS) if match] == [S.EXPIRED] * 5


def test_receipts_by_our_dispatch_id_need_no_name_of_the_gateway(ledger: Ledger) -> None:
    def named(name: str) -> GatewayReceipt:
        return GatewayReceipt("hook", S.DELIVERED, NOW_MS, dispatch_id=name)

    record(ledger, 0, S.ACCEPTED)
    known, stranger, nonsense = ledger.match_receipts([named(name_of(0)), named(name_of(77)), named("x/y")], NOW_MS)
    assert known is not None
    assert (stranger, nonsense) == (None, None)


def test_a_forgotten_users_receipts_match_nothing_and_leave_nothing(ledger: Ledger) -> None:
    record(ledger, 0, S.ACCEPTED, "a", "b")
    ledger.match_receipts([receipt("a", S.DELIVERED)], NOW_MS)
    ledger.forget("u0")
    assert ledger.match_receipts([receipt("b", S.DELIVERED)], NOW_MS) == [None]
    assert all(name != name_of(0) for _, name, _ in ledger.silent(NOW_MS + 49 * HOUR_MS))
    assert ledger.find_offer(offer(0).offer_id) is None
    assert ledger.find_offer(offer(1).offer_id) == offer(1)
    ledger.commit(9, NOW_MS, dispatches=[ReportedState(name_of(0), offer(0).offer_id, S.DELIVERED, NOW_MS)])
    assert ledger.dispatches(offer(0).offer_id) == []
