"""Content files to definitions: what each word of the format becomes."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "content"))

from sets import FENCE, POLICY, SQUARE, collection, fence, scenario, write_set

from engine.content import load_content
from engine.content.cells import load_cells
from engine.content.faults import Faults
from engine.content.fences import load_fences
from engine.content.files import ReadLimits
from engine.definitions import (
    Cap,
    Compare,
    Content,
    Every,
    FieldTest,
    HasTag,
    InOrganisation,
    Neither,
    Placeholder,
    PresenceTrigger,
    QuietHours,
    Reentry,
    Scenario,
    Shape,
    Some,
    UsageTrigger,
)
from engine.model import Confidence, Mode, Scope


def load(root: Path, **parts: Any) -> Content:
    return load_content(*write_set(root, **parts))


def one(root: Path, **changes: Any) -> Scenario:
    return load(root, scenarios=[scenario(**changes)]).scenarios[0]


CELLS = "cell,lon,lat,radius_m,azimuth,beam,indoor\n460-2,116.5,39.95,600,120,65,0\n460-1,116.4,39.90,150,,,1\n"


def test_fences_come_sorted_by_id_with_every_setting(tmp_path: Path) -> None:  # L4
    line = {"type": "LineString", "coordinates": [[116.4, 39.9], [116.41, 39.9]]}
    point = {"type": "Point", "coordinates": [116.4, 39.9]}
    fences = collection(
        fence(id="beijing/z"),
        fence(id="beijing/c", geometry=None, cells=["460-2", "460-1"]),
        fence(id="beijing/a", geometry=line, buffer_m=30),
        fence(
            id="beijing/b",
            geometry=point,
            radius_m=45.5,
            cells=["460-1"],
            opening_hours="Mo-Su 10:00-22:00",
            time_zone="Asia/Urumqi",
            valid_from="2026-01-01",
            valid_until="2026-07-01T00:00:00+08:00",
            enter_delay_s=30,
            exit_delay_s=60,
            min_confidence="HIGH",
            tags=["x", "y"],
        ),
    )
    content = load(tmp_path, fences=fences, cells=CELLS)
    corridor, circle, cells, polygon = content.fences
    assert [one.id for one in content.fences] == ["beijing/a", "beijing/b", "beijing/c", "beijing/z"]
    assert (corridor.shape, corridor.buffer_m) == (Shape.CORRIDOR, 30)
    assert (circle.shape, circle.radius_m, circle.cells) == (Shape.CIRCLE, 45.5, ("460-1",))
    assert circle.tags == {"x", "y"}
    assert circle.valid_from_ms == 1_767_204_000_000  # midnight in Urumqi, two hours behind Shanghai's
    assert circle.valid_until_ms == 1_782_835_200_000
    assert (circle.enter_delay_s, circle.exit_delay_s, circle.min_confidence) == (30, 60, Confidence.HIGH)
    assert (cells.shape, cells.cells, cells.parts) == (Shape.CELLS, ("460-1", "460-2"), ())
    assert (cells.lon, cells.lat) == (116.45, 39.925)
    assert polygon.parts[0][0].tolist() == [[round(x * 1e7), round(y * 1e7)] for x, y in SQUARE[:-1]]
    assert polygon.time_zone == "Asia/Shanghai"  # the policy's


def test_datum_and_tiling_of_the_file_hold_unless_the_feature_says_otherwise(tmp_path: Path) -> None:  # L3, L5
    fences = collection(fence(id="a/plain"), fence(id="a/own", datum="wgs84", tiling=False), datum="gcj02", tiling=True)
    own, plain = load(tmp_path, fences=fences).fences
    assert own.parts[0][0][0].tolist() == [1_164_000_000, 399_000_000]
    moved_m = np.hypot(*((plain.parts[0][0][0] - own.parts[0][0][0]) * [0.0085, 0.0111]))
    assert 450 < moved_m < 700  # L3: about 530 m in Chinese cities
    assert (own.tiling, plain.tiling) == (False, True)


def test_the_id_of_the_feature_serves_where_the_properties_have_none(tmp_path: Path) -> None:
    feature = {**fence(id=None), "id": "beijing/outer"}
    assert load(tmp_path, fences=collection(feature)).fences[0].id == "beijing/outer"


def test_a_single_feature_is_a_file_too(tmp_path: Path) -> None:
    import json

    assert len(load(tmp_path, fences=json.dumps(FENCE)).fences) == 1


def test_the_state_hash_follows_geometry_and_settings_and_not_words(tmp_path: Path) -> None:  # L10
    def state(number: int, **changes: Any) -> str:
        return load(tmp_path / str(number), fences=collection(fence(**changes))).fences[0].state_hash

    first = state(0)
    assert state(1, name="另一个", tags=["other"], id="beijing/two") == first
    moved = [[x + 0.0000001, y] for x, y in SQUARE]
    settings: list[dict[str, Any]] = [
        {"geometry": {"type": "Polygon", "coordinates": [moved]}},
        {"opening_hours": "10:00-22:00"},
        {"enter_delay_s": 5},
        {"exit_delay_s": 5},
        {"min_confidence": "LOW"},
        {"tiling": True},
        {"valid_until": "2030-01-01"},
    ]
    hashes = [state(number, **changes) for number, changes in enumerate(settings, 2)]
    assert len({first, *hashes}) == len(settings) + 1


def test_cells_come_sorted_with_their_numbers(tmp_path: Path) -> None:  # L2
    cells = load(tmp_path, cells=CELLS).cells
    assert cells.ids == ("460-1", "460-2")
    assert cells.lon_e7.tolist() == [1_164_000_000, 1_165_000_000]
    assert cells.lat_e7.dtype == np.int32
    assert cells.radius_m.tolist() == [150, 600]
    assert cells.indoor.tolist() == [True, False]
    assert np.isnan(cells.azimuth_deg[0])
    assert (cells.azimuth_deg[1], cells.beam_deg[1]) == (120, 65)


def test_a_cell_may_say_its_datum(tmp_path: Path) -> None:  # L3
    text = "cell,lon,lat,radius_m,datum\na,116.4,39.9,500,\nb,116.4,39.9,500,gcj02\n"
    cells = load(tmp_path, cells=text).cells
    assert cells.lon_e7[0] == 1_164_000_000
    assert 50_000 < cells.lon_e7[0] - cells.lon_e7[1] < 80_000


def test_two_hundred_thousand_cells_load_in_about_a_second(tmp_path: Path) -> None:  # L2
    lines = (
        f"460-01-{at // 200}-{at},{73 + at % 600 / 10},{18 + at % 350 / 10},500,{at % 360},65,0"
        for at in range(200_000)
    )
    text = "cell,lon,lat,radius_m,azimuth,beam,indoor\n" + "\n".join(lines)
    folder, _ = write_set(tmp_path, cells=text)
    faults = Faults()
    start = time.process_time()
    cells = load_cells(folder, ReadLimits(), faults)
    took_s = time.process_time() - start
    assert (len(cells.ids), faults.all()) == (200_000, [])
    assert took_s < 5, f"{took_s:.2f} s; about 1 s where the machine is idle"


def test_three_thousand_fences_load_in_seconds(tmp_path: Path) -> None:
    features = [
        fence(id=f"a/f{at}", geometry={"type": "Polygon", "coordinates": [[[x + at / 1e4, y] for x, y in SQUARE]]})
        for at in range(3000)
    ]
    folder, _ = write_set(tmp_path, fences=collection(*features))
    faults = Faults()
    start = time.process_time()
    found = load_fences(folder, "Asia/Shanghai", load_cells(folder, ReadLimits(), faults), ReadLimits(), faults)
    assert len(found) == 3000
    assert time.process_time() - start < 6


# --- scenarios ------------------------------------------------------------------------------------------------------


def test_a_presence_trigger_names_its_fences(tmp_path: Path) -> None:
    fences = collection(
        fence(id="beijing/a", kind="mall", tags=["x"]),
        fence(id="beijing/b", kind="cinema", tags=["x"]),
        fence(id="tianjin/c", kind="mall", tags=["x", "y"]),
    )
    choices: list[tuple[dict[str, Any], tuple[str, ...]]] = [
        ({"kind": "mall"}, ("beijing/a", "tianjin/c")),
        ({"kind": ["mall", "cinema"]}, ("beijing/a", "beijing/b", "tianjin/c")),
        ({"tag": "y"}, ("tianjin/c",)),
        ({"kind": "mall", "tag": "x", "owner": "beijing"}, ("beijing/a",)),
        ({"fence": ["beijing/b", "beijing/a"]}, ("beijing/a", "beijing/b")),
    ]
    for number, (choice, expected) in enumerate(choices):
        given = scenario(trigger={"dwell": {**choice, "for": "10 min", "min_confidence": "HIGH"}})
        trigger = load(tmp_path / str(number), fences=fences, scenarios=[given]).scenarios[0].trigger
        assert trigger == PresenceTrigger("dwell", expected, 600, Confidence.HIGH)


def test_a_usage_trigger_is_a_list_of_tests(tmp_path: Path) -> None:  # B1
    usage = {
        "app": {"starts_with": "com."},
        "category": ["video", "live"],
        "action": "play",
        "props": {"price": {"at_least": 1, "below": 5}, "hd": True, "fen": {"at_least": 2}},
    }
    found = one(tmp_path, trigger={"usage": usage}, offer__text="您好").trigger
    assert isinstance(found, UsageTrigger)
    assert found.tests == (
        FieldTest("app", "prefix", "com."),
        FieldTest("category", "in", ("video", "live")),
        FieldTest("action", "==", "play"),
        FieldTest("props.fen", "range", (2, None)),
        FieldTest("props.hd", "==", True),
        FieldTest("props.price", "range", (1, 5)),
    )


def test_an_audience_is_a_tree_of_conditions(tmp_path: Path) -> None:  # A1
    audience = {
        "all": ["shopper", {"attribute": "age", "at_least": 18, "below": 60}],
        "any": [{"organisation": "北京/海淀"}, {"attribute": "city", "in": ["a", "b"]}],
        "none": ["member"],
    }
    assert one(tmp_path, audience=audience).audience == Every(
        (
            Every((HasTag("shopper"), Every((Compare("age", "<", 60), Compare("age", ">=", 18))))),
            Some((InOrganisation("北京/海淀"), Compare("city", "in", ("a", "b")))),
            Neither((HasTag("member"),)),
        )
    )


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"is": "x"}, Compare("a", "==", "x")),
        ({"is_not": 5}, Compare("a", "!=", 5)),
        ({"is": False}, Compare("a", "==", False)),
        ({"above": 0}, Compare("a", ">", 0)),
        ({"at_most": 3}, Compare("a", "<=", 3)),
        ({"starts_with": "p"}, Compare("a", "prefix", "p")),
        ({"exists": False}, Compare("a", "exists", False)),
    ],
)
def test_every_comparison_has_its_operator(given: dict[str, Any], expected: Compare, tmp_path: Path) -> None:
    assert one(tmp_path, audience={"attribute": "a", **given}).audience == expected


def test_limits_times_and_holdout_are_carried_over(tmp_path: Path) -> None:  # C1-C7, D3
    found = one(
        tmp_path,
        mode="shadow",
        priority=2,
        holdout={"percent": 5, "substitute": True},
        reentry={"cooldown": "7 days"},
        max_event_age="5 min",
        quiet_hours={"from": "22:00", "to": "07:30", "policy": "hold"},
        schedule={"from": "2026-01-01", "until": "2027-01-01", "days": ["mon", "sun"], "hours": ["10:00-24:00"]},
        limits={
            "caps": [{"at_most": 1, "rolling": "24 h"}, {"at_most": 4, "calendar": "month", "scope": "partner"}],
            "min_gap": "1 h",
            "hourly": 100,
            "daily": 500,
            "send_only_to": "trial",
            "counts_toward_caps": False,
        },
    )
    assert (found.mode, found.priority, found.holdout_percent, found.substitute) == (Mode.SHADOW, 2, 5, True)
    assert found.reentry == Reentry("cooldown", 7 * 86_400_000)
    assert found.max_event_age_ms == 300_000
    assert found.quiet_hours == QuietHours(22 * 60, 7 * 60 + 30, "hold")
    assert found.schedule.weekdays == {0, 6}
    assert found.schedule.windows == ((600, 1440),)
    assert found.schedule.from_ms == 1_767_196_800_000  # midnight in the policy's zone
    assert found.limits.caps == (Cap(Scope.SCENARIO, 1, "rolling", 86_400_000), Cap(Scope.PARTNER, 4, "month"))
    assert (found.limits.min_gap_ms, found.limits.hourly_limit, found.limits.daily_limit) == (3_600_000, 100, 500)
    assert (found.limits.send_only_to, found.limits.counts, found.limits.bypass) == ("trial", False, False)


def test_what_is_left_out_has_the_stated_default(tmp_path: Path) -> None:  # C5, D6
    found = one(tmp_path)
    assert (found.reentry, found.quiet_hours, found.audience) == (Reentry("every"), None, None)
    assert found.max_event_age_ms == 600_000
    assert found.offer.deadline_s is None
    assert found.offer.offer_class == "marketing"
    assert found.schedule.weekdays == set(range(7))


def test_placeholders_know_their_sources(tmp_path: Path) -> None:  # O1
    found = one(
        tmp_path,
        offer__text="{who}，{fence_name}送{benefit_name}共{n}张{claim_url}",
        offer__placeholders={
            "who": {"from": "attribute.nickname", "default": "您好", "max_length": 8},
            "n": {"from": "constant", "type": "number", "default": "3"},
        },
    )
    assert found.offer.placeholders == (
        Placeholder("benefit_name", "constant", "text", "优惠券"),
        Placeholder("claim_url", "claim_url", "text", None, 200),
        Placeholder("fence_name", "fence:name"),
        Placeholder("n", "constant", "number", "3"),
        Placeholder("who", "attribute:nickname", "text", "您好", 8),
    )


def test_the_policy_binds_everyone(tmp_path: Path) -> None:
    policy = {
        **POLICY,
        "caps": [{"at_most": 2, "rolling": "24 h"}, {"at_most": 1, "calendar": "day", "scope": "channel"}],
        "min_gap": "2 h",
        "quiet_hours": {"from": "20:00", "to": "09:00"},
        "assumed_consent": ["location"],
        "holdout": {"percent": 3, "salt": "s"},
        "signature": "中国联通",
        "opt_out_text": "拒收请回复R",
    }
    found = load(tmp_path, policy=policy).policy
    assert found.caps == (Cap(Scope.ALL, 2, "rolling", 86_400_000), Cap(Scope.CHANNEL, 1, "day"))
    assert found.min_gap_ms == 7_200_000
    assert found.quiet_hours == QuietHours(20 * 60, 9 * 60)
    assert found.assumed_consent == {"location"}
    assert (found.universal_holdout_percent, found.holdout_salt) == (3, "s")


def test_the_version_changes_with_whatever_a_decision_may_depend_on(tmp_path: Path) -> None:  # D5
    base = load(tmp_path / "base", cells=CELLS).version
    others = [
        load(tmp_path / "a", cells=CELLS, fences=collection(fence(name="别名"))),
        load(tmp_path / "b", cells=CELLS.replace("600", "601")),
        load(tmp_path / "c", cells=CELLS, scenarios=[scenario(priority=2)]),
        load(tmp_path / "d", cells=CELLS, policy={**POLICY, "min_gap": "1 h"}),
        load(tmp_path / "e", cells=CELLS, scenarios=[scenario(offer__text="不同")]),
    ]
    assert len({base, *(other.version for other in others)}) == 6
    renamed = tmp_path / "base" / "scenarios" / "s0.yaml"
    renamed.rename(renamed.with_name("other.yaml"))
    assert load_content(tmp_path / "base" / "geofences", tmp_path / "base" / "scenarios").version == base


def test_times_of_day_and_norway_stay_text(tmp_path: Path) -> None:
    from engine.content.files import parse_yaml

    text = "a: 21:00\nb: NO\nc: on\nd: 2026-01-01\ne: 007\nf: 1_000\ng: -5\nh: 1.5\ni: true\nj: ~\nk: '5'\n"
    assert parse_yaml(text, 5) == {
        "a": "21:00", "b": "NO", "c": "on", "d": "2026-01-01", "e": "007", "f": "1_000",
        "g": -5, "h": 1.5, "i": True, "j": None, "k": "5",
    }  # fmt: skip
