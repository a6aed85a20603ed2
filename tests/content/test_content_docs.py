"""The documents show content that works and name every field there is."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest
from sets import collection, write_set

from engine.content import inspect_content
from engine.content.built import NOT_SUPPORTED_YET
from engine.content.cells import COLUMNS
from engine.content.fence_model import FENCE_FIELDS
from engine.content.readers import READERS
from engine.content.scenario_model import LimitsModel, OfferModel, PolicyModel, ScenarioModel
from engine.content.trigger_model import TRIGGERS

DOCS = Path(__file__).resolve().parents[2] / "docs"


def blocks(name: str, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", (DOCS / name).read_text(), re.DOTALL)


def test_the_fence_in_the_document_loads(tmp_path: Path) -> None:
    feature = json.loads(blocks("content.md", "json")[0])
    inspection = inspect_content(*write_set(tmp_path, collection(feature)))
    assert inspection.faults == ()


def test_the_scenario_in_the_document_loads_beside_the_shipped_content(tmp_path: Path) -> None:
    """As somebody would who copies it into a fresh folder."""
    for folder in ("geofences", "scenarios"):
        shutil.copytree(DOCS.parent / folder, tmp_path / folder)
    (tmp_path / "scenarios" / "copied.yaml").write_text(blocks("scenarios.md", "yaml")[0])
    assert inspect_content(tmp_path / "geofences", tmp_path / "scenarios").faults == ()


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("content.md", [*FENCE_FIELDS, *COLUMNS, *READERS]),
        (
            "scenarios.md",
            [
                field.alias or name
                for model in (ScenarioModel, OfferModel, LimitsModel, PolicyModel)
                for name, field in model.model_fields.items()
            ],
        ),
        ("scenarios.md", [*TRIGGERS, *(feature.rpartition(".")[2] for feature in NOT_SUPPORTED_YET)]),
    ],
)
def test_every_field_is_in_its_document(name: str, words: list[str]) -> None:
    text = (DOCS / name).read_text()
    assert [word for word in words if not re.search(rf"\b{re.escape(word)}\b", text)] == []
