"""App catalogues: what they say, what `check` says of bad ones, and what they do to events (B1)."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import pytest
from sets import write_set

from engine.behavior import Behavior
from engine.behavior.catalogue import compile_apps
from engine.content import inspect_content
from engine.definitions import AppTable, FieldTest, UsageTrigger
from engine.hashing_kernel import hash_text
from engine.model import EVENT, EventType
from engine.settings import FeedSettings, FeedTable

GOOD = "app,category,name\ncom.taobao,shopping,淘宝\nme.ele,delivery,饿了么\n"


def apps_in(tmp_path: Path, **files: str) -> list[str]:
    folders = write_set(tmp_path, files={f"scenarios/apps/{name}.csv": text for name, text in files.items()})
    inspection = inspect_content(*folders)
    if inspection.content is not None:
        return list(zip(inspection.content.apps.apps, inspection.content.apps.categories, strict=True))
    return [str(fault) for fault in inspection.errors]


def test_a_catalogue_says_the_category_of_apps(tmp_path: Path) -> None:
    more = "category,app\nvideo,com.qiyi\n"
    assert apps_in(tmp_path, a=GOOD, b=more) == [
        ("com.qiyi", "video"),
        ("com.taobao", "shopping"),
        ("me.ele", "delivery"),
    ]


FAULTS = {
    "no category": ("app\nx\n", "no column 'category'"),
    "a misspelt column": ("app,categori\nx,y\n", "did you mean 'category'?"),
    "an app without name": ("app,category\n,video\n", "an app of 1 to 200 characters"),
    "an app without category": ("app,category\nx,\n", "a category of 1 to 200 characters"),
    "an app twice": ("app,category\nx,video\nx,game\n", "an app has one category"),
    "a row too short": ("app,category\nx\n", "2 values, as the header"),
    "not utf-8": ("", "text in UTF-8"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_bad_catalogue_is_refused_with_its_row_and_a_reason(name: str, tmp_path: Path) -> None:
    text, words = FAULTS[name]
    folders = write_set(tmp_path, files={"scenarios/apps/x.csv": text})
    if name == "not utf-8":
        (folders[1] / "apps" / "x.csv").write_bytes("app,category\n淘宝,x\n".encode("gb18030"))
    found = inspect_content(*folders).errors
    assert {fault.file for fault in found} == {"scenarios/apps/x.csv"}
    assert any(words in str(fault) for fault in found)


def test_the_catalogue_is_part_of_the_version(tmp_path: Path) -> None:  # D5
    versions = set()
    for number, text in enumerate((GOOD, GOOD.replace("shopping", "mall"))):
        inspection = inspect_content(*write_set(tmp_path / str(number), files={"scenarios/apps/x.csv": text}))
        assert inspection.content is not None
        versions.add(inspection.content.version)
    assert len(versions) == 2


def usage(app: str, category: str = "") -> tuple:
    event = np.zeros((), EVENT)
    event["type"], event["at_ms"], event["id_hash"] = EventType.USAGE, 1000, hash_text(f"{app}{category}")
    event["app_hash"], event["category_hash"] = hash_text(app), hash_text(category) if category else 0
    return event


def test_an_event_without_category_matches_by_the_one_of_its_app() -> None:
    behavior = Behavior(
        [UsageTrigger((FieldTest("category", "==", "shopping"),))], FeedTable({"dpi": FeedSettings()}), hash_text
    )
    behavior.set_apps(AppTable(("a", "b", "c"), ("shopping", "video", "shopping")))
    behavior.ensure(1)
    events = np.array([usage("a"), usage("b"), usage("c", "video"), usage("unknown"), usage("b", "shopping")], EVENT)
    assert behavior.match(events)[0].tolist() == [0, 4]


def test_200_000_apps_load_quickly_and_are_all_found(tmp_path: Path) -> None:
    lines = "".join(f"com.example.app{number},category{number % 50}\n" for number in range(200_000))
    folders = write_set(tmp_path, files={"scenarios/apps/many.csv": "app,category\n" + lines})
    started = time.process_time()
    inspection = inspect_content(*folders)
    assert inspection.content is not None
    apps = inspection.content.apps
    table = compile_apps(apps)
    assert time.process_time() - started < 10
    assert table is not None
    behavior = Behavior([], FeedTable({"dpi": FeedSettings()}), hash_text)
    behavior.set_apps(apps)
    behavior.ensure(1)
    chosen = range(0, 200_000, 997)
    events = np.array([usage(f"com.example.app{number}") for number in chosen], EVENT)
    behavior.match(events)
    assert events["category_hash"].tolist() == [hash_text(f"category{number % 50}") for number in chosen]
