"""The simulated city: deterministic, in time order, well-formed, with people who must not be spoken to."""

from __future__ import annotations

import json
from collections import Counter
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from engine.city import City
from engine.content import load_content
from engine.definitions import Content

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def content() -> Content:
    return load_content(ROOT / "geofences", ROOT / "scenarios")


@pytest.fixture(scope="module")
def city(content: Content) -> City:
    return City(content, people=120, seed=7)


def day_of(city: City) -> bytes:
    return b"\n".join(one.lines for one in city.slices(timedelta(minutes=10)) if one.lines)


@pytest.fixture(scope="module")
def events(city: City) -> list[dict[str, Any]]:
    return [json.loads(line) for line in day_of(city).split(b"\n")]


def test_the_same_seed_gives_the_same_bytes_and_another_seed_others(content: Content, city: City) -> None:
    again = City(content, people=120, seed=7)
    assert again.registrations() == city.registrations()
    assert day_of(again) == day_of(city)
    assert day_of(City(content, people=120, seed=8)) != day_of(city)


def test_the_cut_into_slices_changes_no_byte(city: City) -> None:
    finer = b"\n".join(one.lines for one in city.slices(timedelta(seconds=77)) if one.lines)
    assert finer == day_of(city)


def test_events_come_in_time_order_and_all_of_them(city: City, events: list[dict[str, Any]]) -> None:
    instants = [event["at"] for event in events]
    assert instants == sorted(instants)
    assert len(events) == city.events > 100 * 120
    assert city.begin_ms <= instants[0] <= instants[-1] < city.end_ms


def test_people_are_seen_by_gps_wifi_and_cells_and_open_apps(events: list[dict[str, Any]]) -> None:
    kinds = Counter(event.get("method") or event["type"] + ("-cell" if "cell" in event else "") for event in events)
    for kind in ("gps", "wifi", "ping-cell", "usage"):
        assert kinds[kind] > 1_000, kinds
    accuracies = [event["accuracy_m"] for event in events if "accuracy_m" in event]
    assert min(accuracies) < 10
    assert max(accuracies) > 200, "some fixes are bad"


def test_some_did_not_agree_some_leave_and_nobody_has_a_real_number(content: Content) -> None:
    city = City(content, people=600, seed=3)
    registered = [json.loads(line) for line in city.registrations().split(b"\n")]
    profiles = {one["user"] for one in registered if one["type"] == "profile"}
    agreed = {one["user"] for one in registered if one["type"] == "consent" and one["granted"]}
    refused = {one["user"] for one in registered if one["type"] == "consent" and not one["granted"]}
    assert len(profiles) == 600
    assert profiles - agreed
    assert refused
    assert any(person.opts_out_at_s for person in city.people)
    numbers = [address for _, channel, address in city.addresses() if channel == "sms"]
    assert len(set(numbers)) == 600
    assert all(number.startswith("12") and len(number) == 11 for number in numbers)
    sent = city.registrations() + day_of(city)
    assert not any(number.encode() in sent for number in numbers), "addresses are in no event (I2)"


def test_the_decoder_takes_every_event(city: City) -> None:
    numpy = pytest.importorskip("numpy")
    from engine.decode.decoder import Decoder
    from engine.decode.users import UserTable
    from engine.model import Block, RecordKind
    from engine.settings import FeedTable, default_feeds

    content = load_content(ROOT / "geofences", ROOT / "scenarios")
    whole = city.registrations() + b"\n" + day_of(city)
    one = numpy.array([0], numpy.int64)
    block = Block(whole, one, numpy.array([len(whole)]), one, one - 1, numpy.array([RecordKind.EVENTS], numpy.uint8))
    decoded = Decoder(FeedTable(default_feeds()), content.cells, UserTable()).decode(block, 0)
    assert decoded.dead == []
    assert len(decoded.events) == whole.count(b"\n") + 1
