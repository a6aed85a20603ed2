"""`opportune explain` over a service's stored state: an offer, its hand-off, its evidence, how things stand now."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson
import pytest

from engine.ledger.dispatch import Claim
from engine.model import DispatchState
from engine.runtime.service import Service
from engine.settings import Settings

ROOT = Path(__file__).resolve().parents[2]
AT_MS = 1_795_140_000_000  # 2026-11-20 02:00 UTC, a morning in Beijing

POLICY = "time_zone: Asia/Shanghai\nassumed_consent: [location, usage]\nquiet_hours: {from: 21:00, to: 08:00}\n"
SCENARIO = """
id: national/arrival
name: arrival
goal: touchpoints
mode: live
trigger: {enter: {kind: mall}}
offer: {benefit: video-month, channels: [sms], text: 您好}
reentry: {cooldown: 2 h}
holdout: {percent: 0}
"""
WATCH = """
id: national/watch
name: watch
goal: touchpoints
mode: live
trigger: {usage: {app: iqiyi}}
offer:
  benefit: video-month
  channels: [push, sms]
  text: "{who}您好"
  placeholders: {who: {from: attribute.nickname, max_length: 8}}
holdout: {percent: 0}
priority: 3
"""
FENCE = {
    "type": "FeatureCollection",
    "features": [
        {
            "type": "Feature",
            "properties": {"id": "national/plaza", "name": "Plaza", "kind": "mall", "radius_m": 200},
            "geometry": {"type": "Point", "coordinates": [116.4, 39.9]},
        }
    ],
}


@dataclass
class Row:
    """What became of a dispatch."""

    dispatch_id: str
    offer_id: str
    state: DispatchState
    at_ms: int
    gateway_id: str | None = None
    code: str | None = None
    gateway_ids: tuple[str, ...] = ()


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> Settings:
    # In a process of its own: here a warning of the compiler would be an error.
    subprocess.run([sys.executable, "-c", "from engine.runtime.warm import warm; warm()"], cwd=ROOT, check=True)
    folder = tmp_path_factory.mktemp("explain")
    shutil.copytree(ROOT / "scenarios" / "benefits", folder / "scenarios" / "benefits")
    (folder / "scenarios" / "national").mkdir()
    (folder / "scenarios" / "policy.yaml").write_text(POLICY)
    (folder / "scenarios" / "national" / "arrival.yaml").write_text(SCENARIO)
    (folder / "scenarios" / "national" / "watch.yaml").write_text(WATCH)
    (folder / "geofences" / "national").mkdir(parents=True)
    (folder / "geofences" / "national" / "plaza.geojson").write_bytes(orjson.dumps(FENCE))
    return Settings(state=folder / "state", geofences=folder / "geofences", scenarios=folder / "scenarios")


def ping(at_ms: int, lon: float) -> bytes:
    event = {"type": "ping", "feed": "app", "user": "u1", "at": at_ms, "id": f"p{at_ms}"}
    return orjson.dumps(event | {"lon": lon, "lat": 39.9, "accuracy_m": 10, "method": "gps"})


@pytest.fixture(scope="module")
def offer_id(settings: Settings) -> str:
    """A user walks in and gets an offer, which is delivered, and twice expired too late."""
    service = Service(settings, clock="events")
    granted = orjson.dumps({"type": "consent", "user": "u1", "at": AT_MS, "purpose": "marketing.sms", "granted": True})
    known = {
        "type": "profile",
        "user": "u1",
        "at": AT_MS,
        "tags": ["film"],
        "attributes": {"nickname": "小王", "age": 30},
    }
    events = [
        granted,
        orjson.dumps(known),
        ping(AT_MS, 116.42),
        ping(AT_MS + 60_000, 116.42),
        ping(AT_MS + 120_000, 116.4002),
    ]
    offers: list[Any] = []
    service.start(offers.extend)
    service.journal.append_many(events, wall_ms=AT_MS)
    for record in range(600):
        if offers:
            break
        service.journal.wait(1 << 60, 0.1)
        assert record < 599, "no offer came"
    (offer,) = offers
    dispatch = f"{offer.offer_id}/sms/1"
    assert service.ledger.claim([(offer.offer_id, dispatch)], AT_MS + 121_000) == [Claim.CLAIMED]
    for number, state in enumerate((DispatchState.ACCEPTED, DispatchState.DELIVERED, DispatchState.EXPIRED)):
        service.ledger.record_dispatch([Row(dispatch, offer.offer_id, state, AT_MS + 122_000 + number, "gw-7")])
    service.stop()
    return str(offer.offer_id)


MISNAMED = ("--user", "u1", "--scenario", "national/arival")


def explain(settings: Settings, *asked: str) -> str:
    return command(settings, "explain", "--state", str(settings.state), *asked)


def command(settings: Settings, *asked: str, fails: bool = False) -> str:
    where = {
        "OPPORTUNE_GEOFENCES": str(settings.geofences),
        "OPPORTUNE_SCENARIOS": str(settings.scenarios),
        "PYTHONPATH": str(ROOT),
        "COLUMNS": "200",
        "NO_COLOR": "1",
    }
    line = [sys.executable, "-m", "engine.cli", *asked]
    run = subprocess.run(line, cwd=ROOT, env={**_environment(), **where}, capture_output=True, text=True)
    assert (run.returncode != 0) == fails, run.stderr
    return run.stderr if fails else run.stdout


def _environment() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if not name.startswith("OPPORTUNE_")} | {
        name: os.environ[name] for name in ("OPPORTUNE_CACHE_DIR",) if name in os.environ
    }


def test_one_line_a_decision_with_local_time_and_hand_off(settings: Settings, offer_id: str) -> None:
    told = explain(settings, "--user", "u1")
    (line,) = [line for line in told.splitlines() if line.startswith("2026-")]
    shown = "2026-11-20 10:02:00 national/arrival offer granted enter national/plaza sms delivered"
    assert " ".join(line.split()) == shown
    assert "inside: national/plaza since 2026-11-20 10:02:00 (INSIDE)" in told
    assert f"opportune explain --offer {offer_id}" in told
    assert "2026-11-20 12:02:00, after reentry" in told


def test_an_offer_in_full_names_evidence_values_version_and_every_step_of_its_hand_off(
    settings: Settings, offer_id: str
) -> None:
    told = explain(settings, "--offer", offer_id)
    for words in (
        "您好",
        "distance m 182",
        "accuracy m 10",
        "gap 1 min",
        "factors (priority 1",
        "gw-7",
        "changed nothing",
    ):
        assert words in told
    answer = orjson.loads(explain(settings, "--offer", offer_id, "--json"))
    (decision,) = answer["decisions"]
    assert decision["content_version"] == answer["content_version"]
    assert decision["trigger"]["values"]["confidence"] == "HIGH"
    assert [(step["state"], step["applied"]) for step in decision["hand_off"]["steps"]] == [
        ("submitting", True),
        ("accepted", True),
        ("delivered", True),
        ("expired", False),
    ]
    assert "116.4" not in orjson.dumps(answer).decode()  # I2: no coordinates


def test_every_gate_of_what_would_happen_now(settings: Settings, offer_id: str) -> None:
    told = explain(settings, "--user", "u1", "--gates", "--scenario", "national/arrival")
    assert [line.split()[:2] for line in told.splitlines() if line.startswith(("consent", "reentry", "quiet"))] == [
        ["consent", "passed"],
        ["reentry", "reentry"],
        ["quiet_hours", "not"],
    ]
    assert "cooldown 2 h" in told


def test_asking_leaves_the_state_folder_as_it_was(settings: Settings, offer_id: str) -> None:
    def journal() -> dict[str, bytes]:
        return {path.name: path.read_bytes() for path in (settings.state / "journal").glob("*.log")}

    before = journal()
    (settings.scenarios / "national" / "arrival.yaml").write_text(SCENARIO.replace("2 h", "3 h"))
    assert "2026-11-20 12:02:00, after reentry" in explain(settings, "--user", "u1"), (
        "explained by the content in force"
    )
    assert journal() == before


def test_what_is_known_of_the_user_and_who_would_win_now_are_told(settings: Settings, offer_id: str) -> None:  # D2
    told = explain(settings, "--user", "u1")
    assert "profile: tags film, age 30, nickname 小王; consent: marketing.sms yes" in told
    assert "if all of these came now, with one event: national/watch would win" in told
    answer = orjson.loads(explain(settings, "--user", "u1", "--json"))
    assert answer["contest"]["window_ms"] == 0
    assert [(one["scenario"], one["outcome"], one["score"]) for one in answer["contest"]["competitors"]] == [
        ("national/watch", "offer", 3.0)
    ]
    assert answer["profile"]["consent"]["marketing.sms"]["granted"] is True


def test_a_preview_is_filled_from_the_users_profile_as_the_engine_would(settings: Settings, offer_id: str) -> None:
    def preview(*asked: str) -> Any:
        return orjson.loads(command(settings, "message", "preview", *asked, "--json", "--state", str(settings.state)))

    made = preview("national/watch", "--user", "u1")
    assert made["text"].startswith("小王您好")
    assert made["channel"] == "sms", "push is the first, and was not agreed to"
    assert preview("national/watch", "--user", "u1", "-a", "nickname=Ann")["text"].startswith("Ann您好")
    told = command(settings, "message", "preview", "national/arrival", "--user", "u1", "--state", str(settings.state))
    assert "for u1 as of now, with the content in force: refused / reentry" in told
    stranger = command(
        settings, "message", "preview", "national/watch", "--user", "nobody", "--state", str(settings.state), fails=True
    )
    assert "nothing is known of nobody" in stranger


def test_what_is_not_known_is_said(settings: Settings, offer_id: str) -> None:
    told = explain(settings, "--user", "nobody")
    assert "no decision about nobody" in told
    assert "nothing is known of nobody now" in told
    slip = command(settings, "explain", "--state", str(settings.state), *MISNAMED, fails=True)
    assert slip == "opportune: no scenario has the id 'national/arival'; did you mean 'national/arrival'?\n"
    line = [sys.executable, "-m", "engine.cli", "explain", "--state", str(settings.state), "--offer", "0" * 32]
    run = subprocess.run(line, cwd=ROOT, capture_output=True, text=True)
    assert run.returncode == 2
    assert "is stored" in run.stderr
