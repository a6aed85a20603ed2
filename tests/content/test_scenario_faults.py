"""One bad scenario, policy or YAML file for each fault, with the place and the words `check` answers."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest
from sets import SCENARIO, collection, fence, scenario, write_set

from engine.content import inspect_content
from engine.content.built import NOT_SUPPORTED_YET
from engine.content.expressions import read_expression
from engine.definitions import TAG_CLASS, GrantTag, PauseAfter
from engine.errors import ContentError

USAGE = {"usage": {"category": "video"}}
STEP = {"usage": {"category": "video"}}

# name: (the scenario, path inside it, words of the fault)
FAULTS: dict[str, tuple[dict[str, Any], str, str]] = {
    "no id": ({k: v for k, v in SCENARIO.items() if k != "id"}, "$.id", "found nothing"),
    "an id without owner": (scenario(id="welcome"), "$.id", "an id such as"),
    "an unknown mode": (scenario(mode="on"), "$.mode", "'draft', 'shadow', 'live' or 'paused'"),
    "a misspelt field": (scenario(audiense="x"), "$.audiense", "did you mean 'audience'?"),
    "a field that is known elsewhere": (scenario(channel=["sms"]), "$.channel", "did you mean 'channels'?"),
    "an unknown goal": (scenario(goal="money"), "$.goal", "'acquire'"),
    "no trigger": (scenario(trigger={}), "$.trigger", "exactly one of enter, dwell"),
    "two triggers": (scenario(trigger={**SCENARIO["trigger"], **USAGE}), "$.trigger", "given: enter, usage"),
    "an unknown fence": (
        scenario(trigger={"enter": {"fence": "beijing/onne"}}),
        "$.trigger.enter.fence",
        "did you mean 'beijing/one'?",
    ),
    "an unknown kind": (scenario(trigger={"enter": {"kind": "cinema"}}), "$.trigger.enter.kind", "known: mall"),
    "an unknown tag": (scenario(trigger={"exit": {"tag": "x"}}), "$.trigger.exit.tag", "the tag of some fence"),
    "no choice of fences": (scenario(trigger={"enter": {}}), "$.trigger.enter", "a choice of fences"),
    "fences that cannot match": (
        scenario(trigger={"enter": {"kind": "mall", "tag": "film"}}),
        "$.trigger.enter",
        "no fence that matches",
    ),
    "a dwell without time": (scenario(trigger={"dwell": {"kind": "mall"}}), "$.trigger.dwell.for", "found nothing"),
    "a dwell of a number": (
        scenario(trigger={"dwell": {"kind": "mall", "for": 10}}),
        "$.trigger.dwell.for",
        "write the unit behind the number",
    ),
    "a dwell in fortnights": (
        scenario(trigger={"dwell": {"kind": "mall", "for": "2 fortnight"}}),
        "$.trigger.dwell.for",
        "units are s, min, h, day, week",
    ),
    "a dwell of half a second": (
        scenario(trigger={"dwell": {"kind": "mall", "for": "0.5 s"}}),
        "$.trigger.dwell.for",
        "whole seconds",
    ),
    "an empty usage filter": (scenario(trigger={"usage": {}}), "$.trigger.usage", "at least one of app, category"),
    "a number for an app": (scenario(trigger={"usage": {"app": 5}}), "$.trigger.usage", "text for app"),
    "a range the wrong way round": (
        scenario(trigger={"usage": {"app": "x", "props": {"price": {"at_least": 5, "below": 5}}}}),
        "$.trigger.usage.props.price",
        "at_least less than below",
    ),
    "a regular expression": (
        scenario(trigger={"usage": {"app": {"matches": "^(a+)+$"}}}),
        "$.trigger.usage.app.matches",
        "unknown field 'matches'",
    ),
    "an audience of two minds": (
        scenario(audience={"all": ["member"], "none": ["member"]}),
        "$.audience",
        "both required and excluded",
    ),
    "an attribute compared with nothing": (
        scenario(audience={"attribute": "age"}),
        "$.audience",
        "an attribute with a comparison",
    ),
    "a tag and an attribute in one": (
        scenario(audience={"tag": "a", "attribute": "age", "at_least": 1}),
        "$.audience",
        "a tag, an attribute, an organisation, or all / any / none",
    ),
    "text compared as a number": (
        scenario(audience={"attribute": "age", "at_least": "18"}),
        "$.audience.at_least",
        "a number",
    ),
    "no channel": (scenario(offer__channels=[]), "$.offer.channels", "at least 1 item"),
    "a channel twice": (scenario(offer__channels=["sms", "sms"]), "$.offer.channels[1]", "each channel once"),
    "an unknown benefit class": (scenario(offer__benefit__class="food"), "$.offer.benefit.class", "'living'"),
    "an undeclared placeholder": (
        scenario(offer__text="{fence_nam}"),
        "$.offer.text",
        "did you mean 'fence_name'?",
    ),
    "a single brace": (scenario(offer__text="50% off {"), "$.offer.text", "placeholders such as"),
    "a template": (scenario(offer__text="{{''.__class__}}"), "$.offer.text", "placeholders such as"),
    "a forged signature": (scenario(offer__text="【银行】您好"), "$.offer.text", "signature is put in front"),
    "a line break": (scenario(offer__text="a\nb"), "$.offer.text", "text on one line"),
    "a link": (scenario(offer__text="见 http://evil.example"), "$.offer.text", "use {claim_url}"),
    "a bare domain": (scenario(offer__text="见evil.com领取"), "$.offer.text", "use {claim_url}"),
    "a text too long": (scenario(offer__text="长" * 501), "$.offer.text", "at most 500 characters"),
    "a placeholder from nowhere": (
        scenario(offer__text="{x}", offer__placeholders={"x": {"from": "env.HOME"}}),
        "$.offer.placeholders.x.from",
        "match pattern",
    ),
    "a constant without value": (
        scenario(offer__text="{x}", offer__placeholders={"x": {"from": "constant"}}),
        "$.offer.placeholders.x",
        "its value under `default`",
    ),
    "a fence's name without a fence": (scenario(trigger=USAGE), "$.offer.placeholders.fence_name", "knows no fence"),
    "a service offer nobody approved": (scenario(offer__class="service"), "$.offer", "`approver`"),
    "an approver of marketing": (scenario(offer__approver="someone"), "$.offer", "no approver"),
    "a cap without window": (
        scenario(limits={"caps": [{"at_most": 1}]}),
        "$.limits.caps[0]",
        "exactly one of rolling, calendar",
    ),
    "a cap of nothing": (
        scenario(limits={"caps": [{"at_most": 0, "calendar": "day"}]}),
        "$.limits.caps[0].at_most",
        "greater than or equal to 1",
    ),
    "a rolling window too full": (
        scenario(limits={"caps": [{"at_most": 51, "rolling": "1 day"}]}),
        "$.limits.caps[0]",
        "at most 50 in a rolling window",
    ),
    "an unknown scope": (
        scenario(limits={"caps": [{"at_most": 1, "calendar": "day", "scope": "user"}]}),
        "$.limits.caps[0].scope",
        "'partner'",
    ),
    "a cooldown without time": (scenario(reentry="cooldown"), "$.reentry", "mapping"),
    "quiet hours without end": (scenario(quiet_hours={"from": "21:00"}), "$.quiet_hours.to", "found nothing"),
    "quiet hours all day": (
        scenario(quiet_hours={"from": "00:00", "to": "24:00"}),
        "$.quiet_hours",
        "begin and end at different times",
    ),
    "a time that is none": (
        scenario(quiet_hours={"from": "25:00", "to": "08:00"}),
        "$.quiet_hours.from",
        "a time of day such as '21:00'",
    ),
    "a switch to nowhere": (
        scenario(quiet_hours={"from": "21:00", "to": "08:00", "policy": "switch"}),
        "$.quiet_hours",
        "`switch_to` with policy switch",
    ),
    "a schedule that ends before it begins": (
        scenario(schedule={"from": "2026-02-01", "until": "2026-01-01"}),
        "$.schedule.until",
        "the scenario could never run",
    ),
    "hours past midnight": (scenario(schedule={"hours": ["22:00-02:00"]}), "$.schedule.hours[0]", "write two"),
    "an unknown day": (scenario(schedule={"days": ["someday"]}), "$.schedule.days[0]", "'mon'"),
    "only quiet hours": (scenario(schedule={"hours": ["22:00-23:00"]}), "$.schedule.hours", "that is not quiet"),
    "no one left after the holdout": (scenario(holdout={"percent": 100}), "$.holdout.percent", "less than 100"),
    "a weight of nothing": (scenario(priority=0), "$.priority", "greater than 0"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_bad_scenario_is_refused_with_its_place_and_a_reason(name: str, tmp_path: Path) -> None:
    given, path, words = FAULTS[name]
    fences = collection(fence(), fence(id="beijing/film", kind="mall", tags=["other"]))
    if name == "fences that cannot match":
        fences["features"].append(fence(id="beijing/c", kind="cinema", tags=["film"]))
    inspection = inspect_content(*write_set(tmp_path, fences, scenarios=[given]))
    assert inspection.content is None
    found = inspection.errors
    assert [fault.path for fault in found] == [path], [str(fault) for fault in found]
    assert found[0].file == "scenarios/s0.yaml"
    assert words in str(found[0])


PATTERN_FAULTS: dict[str, tuple[dict[str, Any], str, str]] = {
    "a count of more than 128": (
        {"trigger": {"count": {"of": STEP, "at_least": 129, "within": "10 min"}}},
        "$.trigger.count.at_least",
        "less than or equal to 128",
    ),
    "a count without end": (
        {"trigger": {"count": {"of": STEP, "at_least": 3, "within": "32 days"}}},
        "$.trigger.count.within",
        "a span from 1 s to 31 days",
    ),
    "a step of nothing": (
        {"trigger": {"count": {"of": {}, "at_least": 3, "within": "1 h"}}},
        "$.trigger.count.of",
        "exactly one of usage, enter, exit",
    ),
    "a sum of a name": (
        {"trigger": {"sum": {"of": STEP, "field": "app", "at_least": 5, "within": "1 h"}}},
        "$.trigger.sum.field",
        "props.<name>, a number",
    ),
    "a field nobody knows": (
        {"trigger": {"distinct": {"of": STEP, "field": "ap", "at_least": 5, "within": "1 h"}}},
        "$.trigger.distinct.field",
        "did you mean 'app'?",
    ),
    "the fence of a usage event": (
        {"trigger": {"distinct": {"of": STEP, "field": "fence", "at_least": 5, "within": "1 h"}}},
        "$.trigger.distinct.field",
        "a field that every step has",
    ),
    "the app of a transition": (
        {"trigger": {"sequence": {"steps": [STEP, {"exit": {"kind": "mall"}}], "within": "1 h", "same": "app"}}},
        "$.trigger.sequence.same",
        "a field that every step has",
    ),
    "a sequence of one": (
        {"trigger": {"sequence": {"steps": [STEP], "within": "1 h"}}},
        "$.trigger.sequence.steps",
        "at least 2 items",
    ),
    "an absence from an unknown place": (
        {"trigger": {"absence": {"after": {"exit": {"kind": "moll"}}, "without": STEP, "within": "5 min"}}},
        "$.trigger.absence.after.exit.kind",
        "did you mean 'mall'?",
    ),
    "a filter by beginning alone": (
        {"trigger": {"usage": {"app": {"starts_with": "com."}}}},
        "$.trigger.usage",
        "an app, category or action, as a value or a list",
    ),
    "a step by property alone": (
        {"trigger": {"count": {"of": {"usage": {"props": {"x": 1}}}, "at_least": 2, "within": "1 h"}}},
        "$.trigger.count.of.usage",
        "an app, category or action, as a value or a list",
    ),
    "a condition of nothing": ({"while": {}}, "$.while", "`inside`, `pattern` or both"),
    "inside of nowhere": (
        {"trigger": USAGE, "while": {"inside": {"kind": "molls"}}},
        "$.while.inside.kind",
        "did you mean 'mall'?",
    ),
}


@pytest.mark.parametrize("name", PATTERN_FAULTS)
def test_a_bad_pattern_is_refused_with_its_place_and_a_reason(name: str, tmp_path: Path) -> None:  # B1-B4
    changes, path, words = PATTERN_FAULTS[name]
    given = scenario(**changes)
    given["offer"]["text"] = "您好"
    found = inspect_content(*write_set(tmp_path, scenarios=[given])).errors
    assert [fault.path for fault in found] == [path], [str(fault) for fault in found]
    assert words in str(found[0])


UNBUILT = {
    "offer.fallback": ({"offer__fallback": {"channel": "app", "after": "1 h"}}, "$.offer.fallback"),
}


@pytest.mark.parametrize("feature", sorted(NOT_SUPPORTED_YET))
def test_what_is_not_built_is_refused_and_not_ignored(feature: str, tmp_path: Path) -> None:
    changes, path = UNBUILT[feature]
    given = scenario(**changes)
    given["offer"]["text"] = "您好"
    found = inspect_content(*write_set(tmp_path, scenarios=[given])).errors
    assert [(fault.path, fault.expected) for fault in found] == [(path, "nothing: not supported yet")]


@pytest.mark.parametrize("feature", sorted(UNBUILT))
def test_what_is_not_built_has_its_types_already(feature: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("engine.content.scenarios.NOT_SUPPORTED_YET", frozenset())
    given = scenario(**UNBUILT[feature][0])
    given["offer"]["text"] = "您好"
    inspection = inspect_content(*write_set(tmp_path, scenarios=[given]))
    assert inspection.errors == []


POLICY_FAULTS: dict[str, tuple[dict[str, Any], str, str]] = {
    "an unknown zone": ({"time_zone": "Mars"}, "$.time_zone", "an IANA time zone"),
    "an unknown purpose": ({"assumed_consent": ["everything"]}, "$.assumed_consent[0]", "match pattern"),
    "a forged signature": ({"signature": "【x】"}, "$.signature", "match pattern"),
    "a claim link with a path": ({"claim_domains": ["a.cn/x"]}, "$.claim_domains[0]", "match pattern"),
    "a misspelt field": ({"quiet_hour": {}}, "$.quiet_hour", "did you mean 'quiet_hours'?"),
    "a long arbitration window": ({"arbitration_window": "6 min"}, "$.arbitration_window", "300000"),
    "an unknown factor": ({"score": {"factors": ["luck"]}}, "$.score.factors[0]", "'priority'"),
}


@pytest.mark.parametrize("name", POLICY_FAULTS)
def test_a_bad_policy_is_refused_with_its_place_and_a_reason(name: str, tmp_path: Path) -> None:
    policy, path, words = POLICY_FAULTS[name]
    found = inspect_content(*write_set(tmp_path, policy=policy)).errors
    assert [(fault.file, fault.path) for fault in found] == [("scenarios/policy.yaml", path)]
    assert words in str(found[0])


def test_a_claim_link_needs_a_domain(tmp_path: Path) -> None:  # O1
    found = inspect_content(*write_set(tmp_path, scenarios=[scenario(offer__text="{claim_url}")], policy={})).errors
    assert "`claim_domains` in policy.yaml" in str(found[0])


def test_a_policy_that_is_missing_is_a_warning_and_strict(tmp_path: Path) -> None:  # A2, C5
    folders = write_set(tmp_path)
    (folders[1] / "policy.yaml").unlink()
    inspection = inspect_content(*folders)
    assert [fault.severity for fault in inspection.faults] == ["warning"]
    assert inspection.content is not None
    assert not inspection.content.policy.assumed_consent
    assert inspection.content.policy.quiet_hours.start_minute == 21 * 60


def test_an_id_used_in_two_files_is_refused(tmp_path: Path) -> None:
    found = inspect_content(*write_set(tmp_path, scenarios=[SCENARIO, SCENARIO])).errors
    assert str(found[0]).endswith("an id used once (it is also in scenarios/s0.yaml)")


def test_nine_dwell_spans_at_one_fence_are_refused(tmp_path: Path) -> None:  # P4
    many = [
        scenario(id=f"a/s{minute}", trigger={"dwell": {"kind": "mall", "for": f"{minute} min"}})
        for minute in range(1, 10)
    ]
    found = inspect_content(*write_set(tmp_path, scenarios=many)).errors
    assert "at most 8 different dwell spans at one fence" in str(found[0])
    assert inspect_content(*write_set(tmp_path / "eight", scenarios=many[:8])).content is not None


def test_a_scenario_for_fences_that_are_over_is_unreachable(tmp_path: Path) -> None:
    fences = collection(fence(valid_until="2026-01-01"))
    late = scenario(schedule={"from": "2026-02-01"})
    found = inspect_content(*write_set(tmp_path, fences, scenarios=[late])).errors
    assert "no time at which a chosen fence is valid" in str(found[0])


BOMB = "a: &a [x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"{name}: &{name} [{','.join([f'*{before}'] * 9)}]\n" for before, name in zip("abcdefgh", "bcdefghi", strict=True)
)
YAML_FAULTS = {
    "an alias": ("a: &x 1\nb: *x\n", "$ (line 2)", "found the alias *x, expected no aliases"),
    "an alias bomb": (BOMB, "$ (line 2)", "no aliases"),
    "a merge": ("a: &x {b: 1}\nc: {<<: *x}\n", "$ (line 2)", "no aliases"),
    "a python object": ("!!python/object/apply:os.system [ls]\n", "$ (line 1)", "no tags"),
    "a key twice": ("id: a/b\nid: a/c\n", "$ (line 2)", "'id' twice, expected every key once"),
    "a list for a key": ("? [a]\n: b\n", "$ (line 1)", "text as a key"),
    "a depth bomb": ("[" * 5000, "$ (line 1)", "at most 24 levels"),
    "a tab": ("a:\n\tb: 1\n", "$ (line 2, column 1)", "indent with spaces"),
    "two documents": ("id: a\n---\nid: b\n", "$ (line 2, column 1)", "expected"),
    "too much of it": ("# " + "x" * 262_144, "$", "at most 262,144 bytes"),
    "not utf-8": ("名: 值\n".encode("gb18030"), "$ (byte 0)", "text in UTF-8"),
    "nothing": ("", "$", "an empty file"),
    "a list": ("- a\n", "$", "a mapping of fields"),
}


@pytest.mark.parametrize("name", YAML_FAULTS)
def test_hostile_yaml_is_refused_quickly_with_its_line(name: str, tmp_path: Path) -> None:
    text, path, words = YAML_FAULTS[name]
    folders = write_set(tmp_path, scenarios=[], files={"scenarios/x.yaml": text})
    start = time.process_time()
    found = inspect_content(*folders).errors
    assert time.process_time() - start < 2
    assert [(fault.file, fault.path) for fault in found] == [("scenarios/x.yaml", path)]
    assert words in str(found[0])


NEITHER_NOR: dict[str, tuple[dict[str, Any], str]] = {
    "an offer and a tag": ({"set_tag": {"tag": "x", "for": "1 h"}}, "offer"),
    "neither": ({"offer": None}, "offer"),
    "a tag that nobody can ignore": (
        {
            "offer": None,
            "set_tag": {"tag": "x", "for": "1 h"},
            "limits": {"pause_after": {"ignores": 2, "within": "30 days", "for": "60 days"}},
        },
        "pause_after",
    ),
    "a pause of no length": (
        {"limits": {"pause_after": {"ignores": 2, "within": "30 days", "for": "0 s"}}},
        "longer than nothing",
    ),
    "a tag of no length": ({"offer": None, "set_tag": {"tag": "x", "for": "0 s"}}, "longer than nothing"),
}


@pytest.mark.parametrize("name", NEITHER_NOR)
def test_a_scenario_makes_an_offer_or_sets_a_tag(name: str, tmp_path: Path) -> None:  # A1
    changes, words = NEITHER_NOR[name]
    given = scenario() | changes
    given = {key: value for key, value in given.items() if value is not None}
    found = inspect_content(*write_set(tmp_path, scenarios=[given])).errors
    assert len(found) == 1
    assert words in str(found[0])


def test_tags_windows_factors_and_pauses_become_what_the_engine_takes(tmp_path: Path) -> None:  # A1, C5, D2
    beside = scenario(offer__on_grant={"tag": "x", "for": "1 h"}) | {
        "limits": {"pause_after": {"ignores": 2, "within": "30 days", "for": "60 days"}},
        "quiet_hours": {"from": "21:00", "to": "08:00", "policy": "switch", "switch_to": "app"},
    }
    instead = {key: value for key, value in scenario().items() if key != "offer"}
    instead |= {"id": "beijing/tag", "set_tag": {"tag": "film-goer", "for": "30 days"}}
    policy = {"arbitration_window": "2 s", "score": {"factors": ["priority"]}}
    inspection = inspect_content(*write_set(tmp_path, scenarios=[beside, instead], policy=policy))
    assert inspection.content is not None, inspection.errors
    made = {one.id: one for one in inspection.content.scenarios}
    first = made[beside["id"]]
    assert first.offer.on_grant == GrantTag("x", 3_600_000)
    assert first.limits.pause_after == PauseAfter(2, 30 * 86_400_000, 60 * 86_400_000)
    assert first.quiet_hours is not None
    assert first.quiet_hours.switch_to == "app"
    assert made["beijing/tag"].offer.on_grant == GrantTag("film-goer", 30 * 86_400_000)
    assert made["beijing/tag"].offer.offer_class == TAG_CLASS
    assert inspection.content.policy.arbitration_window_ms == 2000
    assert inspection.content.policy.score_factors == {"priority"}


@pytest.mark.parametrize(
    "text",
    [
        "&a [*a]",
        "a: &b [1]\nc: *b",
        "!!python/object/apply:os.system [id]",
        '{"all": [' * 30 + '"x"' + "]}" * 30,
        "[" * 5000,
        "x" * 300_000,
        "a: b: c",
        "\x00",
        "",
        '{"attribute": "x", "at_least": .inf}',
        '{"attribute": "x", "at_least": .nan}',
    ],
    ids=range(11),
)
def test_an_audience_asked_for_by_itself_is_refused_with_its_faults(text: str) -> None:
    """FAULTS A3: what the YAML of a file may not hold, an expression of the API may not either."""
    with pytest.raises(ContentError) as refused:
        read_expression(text)
    assert refused.value.faults
    assert len(str(refused.value)) < 1000
