"""The content that ships with the package is sound, and says what the mission asks for."""

from __future__ import annotations

from pathlib import Path

import pytest

from engine.content import inspect_content
from engine.definitions import Content, PatternTrigger, PresenceTrigger, Shape, UsageTrigger
from engine.model import Mode

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def shipped() -> Content:
    inspection = inspect_content(ROOT / "geofences", ROOT / "scenarios")
    assert inspection.faults == ()
    assert inspection.content is not None
    return inspection.content


def test_the_demo_city_has_every_shape_of_fence(shipped: Content) -> None:  # L4
    assert {fence.shape for fence in shipped.fences} == set(Shape)
    assert sum(fence.kind in ("cinema", "mall") for fence in shipped.fences) >= 60
    assert any(len(fence.parts) > 1 for fence in shipped.fences)
    assert any(len(part) > 1 for fence in shipped.fences for part in fence.parts)
    assert len(shipped.cells.ids) >= 300
    assert [fence.id for fence in shipped.fences] == sorted(fence.id for fence in shipped.fences)


def test_there_is_a_scenario_for_each_row_of_the_mission(shipped: Content) -> None:
    live = {scenario.id: scenario for scenario in shipped.scenarios if scenario.mode == Mode.LIVE}
    usage = {
        test.value
        for scenario in live.values()
        if isinstance(scenario.trigger, UsageTrigger)
        for test in scenario.trigger.tests
        if test.field == "category"
    }
    assert usage == {"shopping", "video", "game"}
    kinds = {fence.id: fence.kind for fence in shipped.fences}
    places = {
        kinds[fence]
        for scenario in live.values()
        if isinstance(scenario.trigger, PresenceTrigger)
        for fence in scenario.trigger.fences
    }
    assert {"cinema", "mall", "supermarket"} <= places
    assert {scenario.id.partition("/")[0] for scenario in live.values()} == {"national", "beijing"}


def test_every_kind_of_pattern_and_condition_is_shipped(shipped: Content) -> None:  # B2-B4
    patterns = {one.trigger.kind for one in shipped.scenarios if isinstance(one.trigger, PatternTrigger)}
    assert patterns == {"count", "sum", "distinct", "sequence", "absence"}
    conditions = [one.while_ for one in shipped.scenarios if one.while_]
    assert any(one.inside for one in conditions)
    assert any(one.pattern for one in conditions)
    assert shipped.apps.category_of("com.sdu.didi.psnger") == "ride-hailing"


def test_every_scenario_is_limited_and_measured(shipped: Content) -> None:  # C1, D3
    assert shipped.policy.caps
    assert shipped.policy.universal_holdout_percent > 0
    assert not shipped.policy.assumed_consent  # A2: the default is none
    for scenario in shipped.scenarios:
        assert scenario.limits.caps, scenario.id
        assert scenario.reentry.policy != "every", scenario.id
        if scenario.mode == Mode.LIVE:
            assert scenario.holdout_percent > 0, scenario.id


def test_every_text_is_chinese_and_leaves_signature_and_opt_out_to_the_policy(shipped: Content) -> None:  # O1
    assert shipped.policy.signature
    assert shipped.policy.opt_out_text
    for scenario in shipped.scenarios:
        assert sum("\u4e00" <= letter <= "\u9fff" for letter in scenario.offer.text) > 15, scenario.id
        assert "回复" not in scenario.offer.text, scenario.id


def test_the_version_follows_every_file_and_nothing_else(shipped: Content, tmp_path: Path) -> None:  # D5
    import shutil

    shutil.copytree(ROOT / "geofences", tmp_path / "g")
    shutil.copytree(ROOT / "scenarios", tmp_path / "s")
    same = inspect_content(tmp_path / "g", tmp_path / "s").content
    assert same is not None
    assert same.version == shipped.version
    policy = tmp_path / "s" / "policy.yaml"
    policy.write_text(policy.read_text().replace("at_most: 2", "at_most: 3"))
    other = inspect_content(tmp_path / "g", tmp_path / "s").content
    assert other is not None
    assert other.version != shipped.version
    assert [fence.state_hash for fence in other.fences] == [fence.state_hash for fence in shipped.fences]  # L10
