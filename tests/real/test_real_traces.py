"""Real traces: every transition of the engine equals the brute-force oracle's (rules L2-L9, P1-P8, T4-T8).

The short suite takes parts of the files; everything: `python -m tests.real.compare`, or the long suite.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

from tests.real import sets
from tests.real.convert import READERS, main, pings_of, sorted_events
from tests.real.drive import differences, not_alternating, run_engine, run_oracle
from tests.real.replay import on_the_wire, run_replay
from tests.real.sets import RealSet


def part(real: RealSet, pings: int, fences: int | None = None) -> RealSet:
    """The first pings, and every so manieth fence."""
    rows = real.fences if fences is None else real.fences[:: max(1, len(real.fences) // fences)]
    kept = {fence.id for fence in rows}
    thresholds = {fence: spans for fence, spans in real.thresholds.items() if fence in kept}
    return dataclasses.replace(real, pings=real.pings[:pings], fences=rows, thresholds=thresholds)


def assert_equal(real: RealSet, least: int) -> None:
    engine = run_engine(real.fences, real.pings, real.thresholds, real.end_now_ms)
    oracle = run_oracle(real.fences, real.pings, real.thresholds, real.end_now_ms)
    found = differences(engine, oracle)
    assert not found, f"{real.name}: the engine (first) and the oracle differ\n" + "\n".join(found)
    assert len(engine) >= least, f"{real.name}: only {len(engine)} transitions; the fences miss the traces"
    assert not_alternating(engine) == 0, f"{real.name}: ENTER and EXIT do not take turns (P6)"


def test_a_week_of_one_person_in_beijing_equals_the_oracle(shared_data: Path) -> None:  # P1-P8
    assert_equal(part(sets.geolife(shared_data, ("000",)), 2_000, 40), 100)


def test_fixes_of_3_to_5000_m_accuracy_equal_the_oracle(shared_data: Path) -> None:  # L6, L7, P3
    assert_equal(part(sets.studentlife(shared_data), 700, 18), 100)


def test_check_ins_around_cinemas_and_malls_equal_the_oracle(shared_data: Path) -> None:  # P2, P7
    assert_equal(part(sets.tokyo(shared_data), 900, 35), 100)


def test_a_phone_on_a_motorway_equals_the_oracle(shared_data: Path) -> None:  # L4, L7
    assert_equal(sets.owntracks(shared_data), 10)


def test_call_records_at_antennas_equal_the_oracle(shared_data: Path) -> None:  # L6, L8, P7
    assert_equal(sets.bandicoot(shared_data), 50)


def test_the_command_replays_a_trace_to_the_transitions_of_the_oracle(shared_data: Path) -> None:  # T2, T3
    real = part(sets.bandicoot(shared_data), 400)
    replayed = run_replay(real.fences, real.pings, real.thresholds, real.end_now_ms)
    oracle = run_oracle(real.fences, real.pings, real.thresholds, real.end_now_ms)
    found = differences(replayed, on_the_wire(oracle))
    assert not found, "the replay (first) and the oracle differ\n" + "\n".join(found)
    assert len(replayed) >= 50


def test_tokyo_check_ins_keep_the_offset_of_the_venue(shared_data: Path) -> None:  # T9
    event = next(READERS["foursquare"](shared_data / "traces/foursquare_tky_3days.csv.gz"))
    assert event["at"] == "2012-04-04T03:17:18+09:00"
    assert pings_of([event])[0]["at_ms"] == 1_333_477_038_000


def test_apps_in_front_become_one_event_a_change(shared_data: Path) -> None:
    apps = READERS["studentlife-apps"](shared_data / "events/studentlife_user00_running_apps.csv.gz")
    shown = [event["app"] for event in sorted_events(apps)]
    assert len(shown) > 1_000
    assert {"com.android.chrome", "org.bewellapp"} <= set(shown)


def test_the_converter_writes_events_in_the_order_of_their_instants(
    shared_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "events.ndjson"
    source = shared_data / "traces/owntracks_demo_iphone.rec"
    monkeypatch.setattr("sys.argv", ["convert", "owntracks", str(source), "--out", str(out)])
    main()
    instants = [json.loads(line)["at"] for line in out.read_text().splitlines()]
    assert len(instants) == 23
    assert instants == sorted(instants)


@pytest.mark.long
@pytest.mark.parametrize("name", sorted(sets.SETS))
def test_every_fix_of_every_real_trace_equals_the_oracle(shared_data: Path, name: str) -> None:  # P1-P8
    assert_equal(sets.SETS[name](shared_data), 10)
