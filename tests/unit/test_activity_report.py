"""`opportune report activity`: MISSION's activity rate of organisation subtrees; nothing about a few (FAULTS A13)."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from engine.cli.report import activity
from engine.console.reports import Reports
from engine.errors import OpportuneError
from engine.ledger.embedded import EmbeddedLedger
from engine.model import DispatchState, Offer
from engine.report.activity import Subtree, activity_sheet
from engine.runtime import checkpoint
from engine.runtime.archive import ContentArchive
from tests.unit.test_report_ledger import Record
from tests.world import block_of, make_pipeline, ping, profile

ROOT = Path(__file__).resolve().parents[2]
DAY_MS = 86_400_000
DECEMBER_MS = 1_764_518_400_000  # 2025-12-01 in Shanghai
JANUARY_MS = DECEMBER_MS + 31 * DAY_MS


def told(users: int, active: int) -> tuple[object, ...]:
    return activity_sheet([Subtree("a", users, active)], "2026-01").rows[0][2:]


def test_a13_neither_active_users_nor_the_others_are_told_below_ten() -> None:
    assert told(100, 50) == (100, 50, 0.5, "no")
    assert told(100, 90) == (100, 90, 0.9, "yes")
    assert told(100, 9) == (100, "<10", None, "no")
    assert told(100, 91) == (100, ">90", None, "yes")
    assert told(50, 45) == (50, ">40", None, "")
    assert told(19, 12) == (19, "", None, "")
    assert told(9, 9) == ("<10", "", None, "")
    assert told(100, 100) == (100, 100, 1.0, "yes")
    assert told(100, 0) == (100, 0, 0.0, "no")
    assert told(0, 0) == (0, 0, None, "")
    for users in range(10, 130):
        for active in range(users + 1):
            few = [one for one in (active, users - active) if 0 < one < 10]
            shown = told(users, active)
            if few:
                same = {other for other in range(users + 1) if told(users, other) == shown}
                assert len(same) >= min(9, users - 1), (users, active, same)


def test_without_small_figures_the_rate_says_whether_as_many_are_active_as_are_wanted() -> None:
    for users in range(10, 130):
        for active in range(users + 1):
            *_, wanted = told(users, active)
            if wanted:
                assert (wanted == "yes") == (active * 10 >= users * 9), (users, active)


def offer_id(number: int) -> str:
    return f"{DECEMBER_MS:012x}{number:020x}"


@pytest.fixture(scope="module")
def state(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Forty users of Haidian, twenty of Chaoyang, five elsewhere; who is active and why stands below."""
    folder = tmp_path_factory.mktemp("activity")
    content = ContentArchive(folder / "content").keep(ROOT / "geofences", ROOT / "scenarios")
    pipeline = make_pipeline()
    users = [(f"h{n}", "beijing/haidian/v1") for n in range(40)] + [(f"c{n}", "beijing/chaoyang") for n in range(20)]
    users += [(f"t{n}", "tianjin") for n in range(5)]
    events = [profile(user, DECEMBER_MS, organisation=path, id=f"p-{user}") for user, path in users]
    for day in range(4):
        for number in range(40):
            at_ms = DECEMBER_MS + (3 + day) * DAY_MS + number * 1000
            # h0 to h14 come three times in December, h15 to h19 twice; each fix enters cinema and mall at once.
            if day < (3 if number < 15 else 2 if number < 20 else 0):
                events.append(ping(f"h{number}", at_ms, 116.4, 39.9, id=f"in-{number}-{day}"))
                events.append(ping(f"h{number}", at_ms + 1_800_000, 116.45, 39.9, id=f"out-{number}-{day}"))
    events.append(ping("h0", JANUARY_MS + DAY_MS, 116.4, 39.9, id="later"))
    events.append({"type": "user-closed", "user": "h39", "at": DECEMBER_MS + 20 * DAY_MS, "id": "closed"})
    events.append(profile("h39", DECEMBER_MS + 21 * DAY_MS, organisation="beijing/haidian/v1", id="again"))
    events.sort(key=lambda event: event["at"])
    for position, event in enumerate(events):
        pipeline.process(block_of([event], position=position, append_ms=event["at"]))
    arrays, objects = pipeline.snapshot()
    checkpoint.write(
        folder / "checkpoints",
        checkpoint.Checkpoint(
            9, pipeline.now_ms, arrays, {"pipeline": json.loads(json.dumps(objects))}, "", content.version
        ),
    )
    ledger = EmbeddedLedger(folder / "ledger.db", assumed_consent=frozenset({"marketing.sms"}))
    sent = [("h20", 3), ("h21", 3), ("h22", 2), ("h39", 4), ("c0", 3)]
    number = 0
    for user, messages in sent:
        for _ in range(messages):
            number += 1
            deadline_ms = JANUARY_MS
            made = Offer(
                offer_id(number), "national/s", user, "sms", "text", "b", "marketing", deadline_ms, DECEMBER_MS
            )
            ledger.commit(number, DECEMBER_MS, offers=[made])
            name = f"{offer_id(number)}/sms/1"
            assert ledger.claim([(offer_id(number), name)], DECEMBER_MS) == ["claimed"]
            given = Record(name, offer_id(number), DispatchState.ACCEPTED, at_ms=DECEMBER_MS + DAY_MS)
            ledger.record_dispatch([given])
            # The third message of h21 arrived in January: it counts there.
            at_ms = JANUARY_MS + 5 if number == 6 else DECEMBER_MS + 2 * DAY_MS
            ledger.record_dispatch([replace(given, state=DispatchState.DELIVERED, at_ms=at_ms)])
    ledger.close()
    return folder


def rows(state: Path, *organisations: str, month: str | None = None) -> list[tuple[object, ...]]:
    reports = Reports(state)
    try:
        return list(reports.activity(organisations, month).rows)
    finally:
        reports.close()


def test_who_paid_three_visits_or_received_three_messages_in_the_month_is_active(state: Path) -> None:
    # h0 to h14 by visits, h20 by messages; h15 to h19 came twice; h21's third message came in January;
    # what h39 received went to who had the number before (A4).
    assert rows(state, "beijing/haidian", month="2025-12") == [("beijing/haidian", "2025-12", 40, 16, 0.4, "no")]
    assert rows(state, "beijing", month="2025-12") == [("beijing", "2025-12", 60, 17, 17 / 60, "no")]
    assert (
        rows(state, "beijing", month="2026-01") == rows(state, "beijing") == [("beijing", "2026-01", 60, 0, 0.0, "no")]
    )


def test_a13_few_people_are_told_of_neither_by_their_number_nor_by_what_they_did(state: Path) -> None:
    assert rows(state, "beijing/chaoyang", "tianjin", month="2025-12") == [
        ("beijing/chaoyang", "2025-12", 20, "<10", None, "no"),
        ("tianjin", "2025-12", "<10", "", None, ""),
    ]


def test_a_month_that_is_not_kept_and_an_organisation_that_is_not_there_are_refused(state: Path) -> None:
    for month, why in (("2025-11", "no longer kept"), ("2026-02", "has not begun"), ("2026-13", "no month")):
        with pytest.raises(OpportuneError, match=why):
            rows(state, "beijing", month=month)
    with pytest.raises(OpportuneError, match="nobody belongs to 'beijing/haidain'; did you mean 'beijing/haidian'"):
        rows(state, "beijing/haidain")


def test_without_a_checkpoint_the_report_says_when_there_will_be_one(tmp_path: Path) -> None:
    EmbeddedLedger(tmp_path / "ledger.db").close()
    with pytest.raises(OpportuneError, match="a running service writes one every minute"):
        rows(tmp_path, "beijing")


def test_the_command_says_as_of_when_and_writes_files(state: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given = {"state": state, "month": "2025-12", "to_csv": state / "a.csv", "to_parquet": state / "a.parquet"}
    activity(["beijing", "beijing/chaoyang"], **given)
    told = capsys.readouterr().out
    assert "visits as of 2026-01-02 00:00:00+08:00" in told
    assert "counted since 2025-12-04" in told
    assert (state / "a.csv").read_text().splitlines()[1] == "beijing,2025-12,60,17,0.283333,no"
