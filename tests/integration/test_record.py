"""A recording beside a live service, and its backtest, which decides what was decided live (I2, T3)."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import msgspec
import orjson
import pytest

from engine.clock import wall_ms
from engine.content import load_content
from engine.errors import OpportuneError
from engine.runtime.archive import ContentArchive
from engine.runtime.backtest import run
from engine.runtime.recording import MANIFEST, Recorder, read_manifest, rekeyed, renaming
from engine.runtime.service import Service
from engine.runtime.source import JournalSource
from engine.settings import Settings

ROOT = Path(__file__).resolve().parents[2]
POLICY = (
    "time_zone: Asia/Shanghai\nassumed_consent: [location, usage]\nquiet_hours: {{from: {0:02d}:00, to: {0:02d}:30}}\n"
)
SCENARIO = """
id: national/{name}
name: {name}
goal: raise_revenue
mode: live
trigger: {trigger}
offer: {{benefit: video-month, channels: [sms], text: 您好}}
limits: {{caps: [{{at_most: 2, rolling: 1 h}}]}}
"""
FENCE = {
    "type": "Feature",
    "properties": {"id": "national/plaza", "name": "Plaza", "kind": "mall", "radius_m": 200},
    "geometry": {"type": "Point", "coordinates": [116.4, 39.9]},
}


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> Settings:
    # In a process of its own: here a warning of the compiler would be an error.
    subprocess.run([sys.executable, "-c", "from engine.runtime.warm import warm; warm()"], cwd=ROOT, check=True)
    folder = tmp_path_factory.mktemp("record")
    own = folder / "scenarios" / "national"
    own.mkdir(parents=True)
    benefits = folder / "scenarios" / "benefits"
    benefits.mkdir()
    for path in (ROOT / "scenarios" / "benefits").glob("*"):
        (benefits / path.name).write_bytes(path.read_bytes())
    (folder / "scenarios" / "policy.yaml").write_text(
        POLICY.format((wall_ms() // 3_600_000 + 8 + 12) % 24)
    )  # far from now
    (own / "arrival.yaml").write_text(SCENARIO.format(name="arrival", trigger="{enter: {kind: mall}}"))
    (own / "bank.yaml").write_text(SCENARIO.format(name="bank", trigger="{usage: {app: bank}}"))
    (folder / "geofences" / "national").mkdir(parents=True)
    collection = {"type": "FeatureCollection", "features": [FENCE]}
    (folder / "geofences" / "national" / "plaza.geojson").write_bytes(orjson.dumps(collection))
    return Settings(state=folder / "state", geofences=folder / "geofences", scenarios=folder / "scenarios")


def traffic(part: int) -> list[bytes]:
    """Everybody of a part of the day walks in or opens an app; some have no consent, one says stop."""
    now_ms, made = wall_ms(), []
    for number in range(20):
        user, where = f"user-{number}", {"feed": "app", "accuracy_m": 10, "method": "gps", "lat": 39.9}
        if part == 0 and number % 3:
            made.append({"type": "consent", "user": user, "at": now_ms, "purpose": "marketing.sms", "granted": True})
        if number % 2:
            for step, lon in enumerate((116.43, 116.4001)):
                at, lon = now_ms + step, lon if part != 1 else 116.43
                made.append(
                    {"type": "ping", "user": user, "at": at, "id": f"{user}/{part}/{step}", "lon": lon, **where}
                )
        app = {"type": "usage", "feed": "dpi", "user": user, "at": now_ms + 5, "id": f"{user}/{part}", "app": "bank"}
        made.append(app)
    made.append({"type": "inbound-message", "user": "user-4", "at": now_ms + 6, "channel": "sms", "text": "TD"})
    return [orjson.dumps(one) for one in made]


def decided(decisions: list[Any]) -> list[tuple[Any, ...]]:
    return [
        (one["user"], one["scenario"], one["outcome"], one["reason"], one["trigger"]["at"], one["at"], one["count"])
        for one in decisions
    ]


def test_a_backtest_of_what_a_live_run_recorded_decides_what_was_decided(settings: Settings, tmp_path: Path) -> None:
    service = Service(settings)
    service.start(lambda offers: None)
    recorder = Recorder(settings.state, tmp_path / "day", keep_days=7)
    key = (settings.state / "recordings" / "day.key").read_bytes()
    for part in range(3):
        service.journal.append_many(traffic(part), wall_ms=wall_ms())
        time.sleep(0.4)
        recorder.copy()
        if part == 1:  # the recorder is stopped and begun again
            recorder.close()
            recorder = Recorder(settings.state, tmp_path / "day", keep_days=7)
    until = time.monotonic() + 20
    while service.backlog_bytes:
        assert time.monotonic() < until
        time.sleep(0.05)
    service.stop()
    recorder.copy()
    recorder.finish()
    rename = renaming(key)
    live = Service(settings, takes_content=False)
    stored = [
        orjson.loads(body)
        for number in range(20)
        for body in live.ledger.decisions(user=f"user-{number}", from_ms=0, until_ms=1 << 60)
    ]
    live.stop()

    told = read_manifest(tmp_path / "day")
    assert (told["keep_days"], told["finished"]) == (7, True)
    archive = ContentArchive(tmp_path / "day" / "content")
    made: dict[str, Any] = {}

    def keep(effects: Any) -> None:
        made.update({one.decision_id: msgspec.to_builtins(one) for one in effects.decisions})

    tally = run(
        JournalSource(tmp_path / "day" / "journal"),
        archive.load(told["content"]),
        settings,
        id_key=b"0123456789abcdef",
        endless_codes=True,
        load_content=archive.load_record,
        on_effects=keep,
    )
    renamed = [{**one, "user": rename(one["user"])} for one in stored]
    outcomes = {one["outcome"] for one in stored}
    assert {"offer", "refused"} <= outcomes
    # A run of refusals still open at the end is closed by the backtest alone.
    assert {row[:-1] for row in decided(renamed)} == {row[:-1] for row in decided(list(made.values()))}
    assert len(renamed) == len(made)
    assert tally.events == 3 * len(traffic(1)) + 13

    everything = b"".join(path.read_bytes() for path in (tmp_path / "day").rglob("*") if path.is_file())
    assert b"user-" not in everything
    assert not (settings.state / "recordings" / "day.key").exists()
    with pytest.raises(OpportuneError, match="finished"):
        Recorder(settings.state, tmp_path / "day", keep_days=7)


def test_a_recording_begun_later_knows_profiles_and_consents(settings: Settings, tmp_path: Path) -> None:
    """The service of the test before has stopped, and left a checkpoint."""
    recorder = Recorder(settings.state, tmp_path / "late", keep_days=1)
    recorder.copy()
    key = (settings.state / "recordings" / "late.key").read_bytes()
    recorder.finish()
    lines = [
        orjson.loads(line)
        for block in JournalSource(tmp_path / "late" / "journal").poll(4096)
        for row in range(len(block))
        for line in bytes(block.data[int(block.start[row]) : int(block.end[row])]).split(b"\n")
        if line
    ]
    consents = {one["user"]: one["granted"] for one in lines if one.get("type") == "consent"}
    rename = renaming(key)
    assert consents[rename("user-4")] is False
    assert consents[rename("user-5")] is True
    assert rename("user-3") not in consents
    assert load_content(settings.geofences, settings.scenarios).version in (tmp_path / "late" / MANIFEST).read_text()


def test_what_might_name_somebody_is_left_out() -> None:
    rename = renaming(b"k" * 32)
    event = {"type": "inbound-message", "user": "u1", "at": 1, "channel": "sms", "text": "我是王小明，请回电"}
    line = orjson.loads(rekeyed(orjson.dumps(event), rename))
    assert (line["text"], line["user"]) == ("-", rename("u1"))
    assert rekeyed(b'{"type":"ping","user":"u1"\n{"user":7}', rename) == b"{}\n{}"
    array = rekeyed(b'[{"type":"profile","user":"u1","person":"p","id":"u1/1"},{"type":"usage","user":"u1"}]', rename)
    assert b'"u1' not in array
    assert array.count(rename("u1").encode()) == 2
