"""Reports read from a ledger that somebody else writes, with the content of the time (MISSION: settle, evaluate)."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import orjson
import pytest

from engine.cli.report import effect, reconcile, settlement
from engine.console.reports import Reports, month_of
from engine.effects import Redeemed
from engine.errors import OpportuneError
from engine.ledger.embedded import EmbeddedLedger
from engine.model import DispatchState, Offer
from engine.runtime.archive import ContentArchive

ROOT = Path(__file__).resolve().parents[2]
FROM_MS, UNTIL_MS = month_of("2026-01", "Asia/Shanghai")
AT_MS = FROM_MS + 86_400_000
SCENARIO = "national/cinema-arrival"


@dataclass
class Record:
    dispatch_id: str
    offer_id: str
    state: DispatchState
    at_ms: int = AT_MS
    gateway_id: str | None = None
    code: str | None = None
    gateway: str = ""
    gateway_ids: tuple[str, ...] = ()


def offer_id(number: int) -> str:
    return f"{AT_MS:012x}{number:020x}"


@pytest.fixture
def state(tmp_path: Path) -> Path:
    """Forty users: 30 offered (20 delivered, one known to belong to beijing), 10 withheld; 12 redemptions."""
    content = ContentArchive(tmp_path / "content").keep(ROOT / "geofences", ROOT / "scenarios")
    benefit = next(one.offer.benefit for one in content.scenarios if one.id == SCENARIO)
    ledger = EmbeddedLedger(tmp_path / "ledger.db", assumed_consent=frozenset({"marketing.sms"}))
    decisions, offers = [], []
    for number in range(40):
        outcome = "withheld" if number >= 30 else "offer"
        body = {"decision_id": offer_id(number), "user": f"u{number}", "scenario": SCENARIO, "outcome": outcome}
        body |= {"at": AT_MS, "content_version": content.version}
        if number < 3:
            body["values"] = {"score": 1.0, "channel": "sms"}
        decisions.append((offer_id(number), f"u{number}", orjson.dumps(body)))
        if outcome == "offer":
            place = "beijing" if number == 0 else None
            given = (
                offer_id(number),
                SCENARIO,
                f"u{number}",
                "sms",
                "text",
                benefit,
                "marketing",
                AT_MS + 60_000,
                AT_MS,
            )
            offers.append(Offer(*given, province=place))
    # What a scenario in shadow would have offered, and a tag that was set alone, are no offers.
    for number, values in ((50, {"score": 1.0, "channel": "sms", "shadow": True}), (51, {"score": 1.0, "tag": "film"})):
        body = {"decision_id": offer_id(number), "user": f"u{number}", "scenario": SCENARIO, "outcome": "offer"}
        body |= {"at": AT_MS, "content_version": content.version, "values": values}
        decisions.append((offer_id(number), f"u{number}", orjson.dumps(body)))
    used = [Redeemed(bytes([n]) * 16, f"u{n}", AT_MS + 5, offer_id(n), None, None) for n in range(12)]
    ledger.commit(1, AT_MS, decisions=decisions, offers=offers, redemptions=used)
    for number in range(20):
        name = f"{offer_id(number)}/sms/1"
        assert ledger.claim([(offer_id(number), name)], AT_MS) == ["claimed"]
        ledger.record_dispatch([Record(name, offer_id(number), DispatchState.ACCEPTED)])
        ledger.record_dispatch([Record(name, offer_id(number), DispatchState.DELIVERED)])
    yield tmp_path
    ledger.close()


def test_effect_and_settlement_come_from_what_was_stored_while_the_ledger_is_open(state, capsys):
    reports = Reports(state)
    (row,) = reports.effect(FROM_MS, UNTIL_MS, 30).rows
    assert row[:8] == (SCENARIO, 30, 20, 20, 12, 0, 30, 10)
    rows = reports.settlement(FROM_MS, UNTIL_MS).rows
    assert [(row[1], row[3], row[4]) for row in rows] == [("beijing", 1, 1), ("national", 29, 11), ("total", 30, 12)]
    reports.close()
    settlement(state=state, month="2026-01", to_csv=state / "s.csv", to_parquet=state / "s.parquet")
    told = capsys.readouterr().out
    assert "sha256 " in told
    assert len((state / "s.csv").read_text().splitlines()) == 4
    effect(state=state, month="2026-01", within_days=30)
    assert SCENARIO in capsys.readouterr().out


def test_a_partner_who_agrees_leaves_nothing_and_one_who_does_not_is_told_by_line(state, capsys):
    reports = Reports(state)
    partner = str(reports.settlement(FROM_MS, UNTIL_MS).rows[0][0])
    good = [(n + 2, offer_id(n).upper(), None) for n in range(12)]
    assert reports.reconciliation(partner, good, FROM_MS, UNTIL_MS).rows == []
    with pytest.raises(OpportuneError, match=f"no offer of this time is of a partner .*; did you mean '{partner}'"):
        reports.reconciliation(f"{partner}s", good, FROM_MS, UNTIL_MS)
    reports.close()
    file = state / "theirs.csv"
    file.write_text("offer_id\n" + "".join(f"{offer_id(n)}\n" for n in range(1, 14)))
    with pytest.raises(Exception, match="1"):
        reconcile(partner, file, state=state, month="2026-01")
    told = capsys.readouterr().out
    assert told.count("not_redeemed") == 2
    assert told.count("not_claimed") == 1


def test_a_month_is_one_of_the_zone_and_anything_else_is_refused():
    assert month_of("2026-12", "UTC") == (1_796_083_200_000, 1_798_761_600_000)
    with pytest.raises(OpportuneError):
        month_of("2026-13", "UTC")
