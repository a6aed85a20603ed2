"""What must not stop or split a service: an event that wakes a bug, a second service, lost files (FAULTS F2, F22)."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import orjson
import pytest

from engine.errors import SettingsError, StoreCorrupt, StoreUnavailable
from engine.model import RecordKind
from engine.pipeline import Pipeline
from engine.runtime.id_key import load_id_key
from engine.runtime.service import Service
from engine.settings import Settings

ROOT = Path(__file__).resolve().parents[2]
AT_MS = 1_795_140_000_000


@pytest.fixture(scope="module", autouse=True)
def compiled() -> None:
    # In a process of its own: here a warning of the compiler would be an error.
    subprocess.run([sys.executable, "-c", "from engine.runtime.warm import warm; warm()"], cwd=ROOT, check=True)


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(state=tmp_path / "state", geofences=ROOT / "geofences", scenarios=ROOT / "scenarios")


def event(user: str, **more: Any) -> bytes:
    return orjson.dumps({"v": 1, "type": "profile", "user": user, "at": AT_MS, "tags": ["seen"], **more})


def is_seen(service: Service, user: str) -> bool:
    slot = service.pipeline.users.slot_of(user, intern=False)
    return slot >= 0 and service.pipeline.profiles.has_tag(slot, "seen", AT_MS)


def until(is_so: Callable[[], bool], seconds: float = 20.0) -> None:
    end = time.monotonic() + seconds
    while not is_so():
        assert time.monotonic() < end, "it did not come"
        time.sleep(0.02)


@pytest.fixture
def buggy(monkeypatch: pytest.MonkeyPatch) -> None:
    """An engine that fails on every event of user `poison`, after having begun to change its state."""
    apply = Pipeline._apply_rare

    def fail(self: Pipeline, block: Any, decoded: Any, row: int, effects: Any) -> None:
        apply(self, block, decoded, row, effects)
        if decoded.rare[row].user == "poison":
            raise ZeroDivisionError("a bug")

    monkeypatch.setattr(Pipeline, "_apply_rare", fail)


@pytest.mark.parametrize("array", [False, True])
def test_an_event_that_wakes_a_bug_is_set_aside_and_its_neighbours_live(settings, buggy, array):
    """F2: the event is a dead letter for good, also after a restart; nothing else is harmed."""
    service = Service(settings, clock="events")
    three = [event("a"), event("poison"), event("b")]
    record = b"[" + b",".join(three) + b"]" if array else b"\n".join(three)
    service.start(lambda offers: None)
    service.journal.append_many([event("before"), record, event("poison"), event("after")], wall_ms=AT_MS)
    until(lambda: is_seen(service, "after"))
    assert service.failure is None
    assert all(is_seen(service, user) for user in ("before", "a", "b", "after"))
    assert not is_seen(service, "poison")
    service.stop()
    lines = [orjson.loads(line) for line in (settings.state / "quarantine.jsonl").read_bytes().split()]
    assert [(line["item"], line["error"]) for line in lines] == [(1, "ZeroDivisionError"), (0, "ZeroDivisionError")]
    for path in (settings.state / "checkpoints").glob("*"):
        path.unlink()
    again = Service(settings, clock="events")
    assert all(is_seen(again, user) for user in ("before", "a", "b", "after"))
    assert len((settings.state / "quarantine.jsonl").read_bytes().split()) == 2
    again.stop()


def test_an_event_that_wakes_a_bug_only_when_it_goes_on_sorted_is_the_one_set_aside(settings, monkeypatch):
    """F2, T5: it fails in the middle of a later record, and a checkpoint may hold it by then."""
    run = Pipeline._run_within_hours

    def fail(self: Pipeline, batch: Any, effects: Any) -> None:
        run(self, batch, effects)
        if "poison" in self.users.ids_of(batch.events["user"]):
            raise ZeroDivisionError("a bug")

    monkeypatch.setattr(Pipeline, "_run_within_hours", fail)
    settings.feeds["app"] = settings.feeds["app"].model_copy(update={"reorder_s": 5.0})
    pings = [
        orjson.dumps({"type": "ping", "feed": "app", "user": user, "lon": 116.4, "lat": 39.9, "at": AT_MS})
        for user in ("a", "poison", "b")
    ]
    agreed = [event(user, type="consent", purpose="location", granted=True, tags=None) for user in ("a", "poison", "b")]
    first = Service(settings, clock="events")
    first.start(lambda offers: None)
    first.journal.append_many([b"\n".join(agreed)], wall_ms=AT_MS)
    (position,) = first.journal.append_many([b"\n".join(pings)], wall_ms=AT_MS)
    until(lambda: first.pipeline.held_events == 3)
    first.stop()
    second = Service(settings, clock="events")
    assert second.pipeline.held_events == 3
    second.start(lambda offers: None)
    second.journal.append_many([event("after", at=AT_MS + 60_000)], wall_ms=AT_MS)
    until(lambda: is_seen(second, "after"))
    assert second.failure is None
    assert second.pipeline.held_events == 0
    second.stop()
    lines = [orjson.loads(line) for line in (settings.state / "quarantine.jsonl").read_bytes().split()]
    assert [(line["position"], line["item"]) for line in lines] == [(position, 1)]


def test_a_bug_met_in_a_replay_does_not_keep_the_service_from_starting(settings, buggy):
    """F2: a control record of another program version, found at a start."""
    service = Service(settings, clock="events")
    service.journal.append_many([b'{"unknown":1}'], wall_ms=AT_MS, kind=RecordKind.CONTROL)
    service.journal.append_many([event("poison"), event("after")], wall_ms=AT_MS)
    service.stop()
    again = Service(settings, clock="events")
    assert is_seen(again, "after")
    again.stop()


def test_a_second_service_is_refused_before_it_takes_anything_from_the_first(settings):
    """D7: opening the ledger fences the owner before; a mistaken second start must not."""
    first = Service(settings, clock="events")
    epoch = first.ledger.epoch
    code = (
        "from engine.runtime.service import Service\nfrom engine.settings import Settings\nfrom pathlib import Path\n"
    )
    where = f"state=Path({str(settings.state)!r}), geofences=Path('geofences'), scenarios=Path('scenarios')"
    second = subprocess.run(
        [sys.executable, "-c", f"{code}Service(Settings({where}))"], cwd=ROOT, capture_output=True, text=True
    )
    assert second.returncode != 0
    assert "in use by another process" in second.stderr
    with first.ledger._database.reading() as cursor:
        assert cursor.execute("SELECT value FROM meta WHERE key = 'epoch'").fetchone() == (epoch,)
    first.stop()
    Service(settings, clock="events").stop()


def test_a_journal_whose_ledger_is_gone_is_refused(settings):
    """G1: what was sent would be sent again."""
    service = Service(settings, clock="events")
    service.journal.append(event("a"), wall_ms=AT_MS)
    service.stop()
    for path in settings.state.glob("ledger.db*"):
        path.unlink()
    with pytest.raises(StoreCorrupt, match="sent again"):
        Service(settings, clock="events")
    assert not (settings.state / "ledger.db").exists()


def used_once(settings: Settings, *records: bytes) -> None:
    """A state folder as an orderly end leaves it."""
    service = Service(settings, clock="events")
    service.start(lambda offers: None)
    for number, record in enumerate(records):
        service.journal.append(record, wall_ms=AT_MS + number)
    until(lambda: is_seen(service, "last"))
    service.stop()


def test_a_journal_cut_behind_its_checkpoint_is_told_and_goes_on_where_the_gap_ends(settings):
    """T3: under `never` a power loss takes records that a checkpoint reflects already; their effects are whole."""
    used_once(settings, event("a"), event("last"))
    (segment,) = (settings.state / "journal").glob("*.log")
    os.truncate(segment, segment.stat().st_size - 7)
    for user in ("again", "and again"):
        service = Service(settings, clock="events")
        assert service.recovered_records == (user == "and again")
        assert is_seen(service, "a")
        assert is_seen(service, "last")
        service.start(lambda offers: None)
        service.journal.append(event(user), wall_ms=AT_MS)
        until(lambda user=user, service=service: is_seen(service, user))
        service.stop()
        for path in sorted((settings.state / "checkpoints").glob("*"))[1:]:
            path.unlink()  # so that the next start stands before the gap again


@pytest.mark.parametrize(
    ("damage", "told"),
    [
        (lambda state: os.truncate(state / "ledger.db", 0), "is missing or empty"),
        (lambda state: (state / "offer-id.key").unlink(), "would be granted again"),
        (lambda state: os.truncate(state / "offer-id.key", 31), "holds 31 bytes and not 32"),
        (lambda state: [path.write_text("x: [") for path in state.rglob("content/**/policy.yaml")], "what is kept of"),
    ],
)
def test_a_file_that_cannot_be_done_without_is_named(settings, damage, told):
    """G1, D4: with an empty ledger or another key what was sent would be sent again."""
    used_once(settings, event("last"))
    damage(settings.state)
    for path in (settings.state / "checkpoints").glob("*"):
        path.unlink()
    with pytest.raises(StoreCorrupt, match=told):
        Service(settings, clock="events")


def test_damaged_checkpoints_are_refused_where_the_journal_no_longer_begins_at_the_beginning(settings):
    """Profiles and consents from before it would be lost without a word."""
    used_once(settings, event("a"), event("last"))
    (segment,) = (settings.state / "journal").glob("*.log")
    for path in (settings.state / "checkpoints").glob("*"):
        os.truncate(path, 5000)
    Service(settings, clock="events").stop()  # all of it is still in the journal
    segment.rename(segment.with_name("00000000000001000000.log"))
    with pytest.raises(StoreCorrupt, match="no checkpoint can be read"):
        Service(settings, clock="events")


def test_lines_of_quarantine_that_are_no_entries_are_passed_over(settings):
    settings.state.mkdir()
    (settings.state / "quarantine.jsonl").write_bytes(b'\n[]\n{"x":1}\n{"position":"a","item":1}\n7\n\xff\n{"posi')
    used_once(settings, event("last"))


def test_a_key_that_others_may_read_is_refused(settings):
    used_once(settings, event("last"))
    assert settings.state.stat().st_mode & 0o077 == 0
    (settings.state / "offer-id.key").chmod(0o640)
    with pytest.raises(SettingsError, match="chmod 600"):
        Service(settings, clock="events")


def test_a_key_file_is_whole_or_not_there(tmp_path):
    """D4: a start cut short between making and writing the key must not leave an empty one."""
    key = load_id_key(tmp_path / "offer-id.key")
    assert len(key) == 32
    assert load_id_key(tmp_path / "offer-id.key") == key
    assert os.listdir(tmp_path) == ["offer-id.key"]


def test_a_full_disk_while_idle_is_waited_for(settings, monkeypatch):
    """F22: the tick that cannot be written must not end the engine."""
    service = Service(settings)
    tick = service.journal.tick
    refused: list[int] = []

    def full(wall_ms: int) -> int:
        if len(refused) < 2:
            refused.append(wall_ms)
            raise StoreUnavailable("no room")
        return tick(wall_ms)

    monkeypatch.setattr(service.journal, "tick", full)
    service.start(lambda offers: None)
    until(lambda: len(refused) == 2 and service.failure is None)
    service.journal.append(event("a", at=service.pipeline.now_ms), wall_ms=0)
    until(lambda: is_seen(service, "a"))
    service.stop()
