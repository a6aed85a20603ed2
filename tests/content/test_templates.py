"""Activity templates: a new activity is a matter of filling in a form, a new template a matter of adding a file."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from engine.cli import scenario as cli_scenario
from engine.content import inspect_content, load_content
from engine.content.activity import (
    COMMON,
    PARAMETER_TYPES,
    Parameter,
    Template,
    load_templates,
    make_scenario,
    put,
    read_templates,
    read_value,
    variations,
    write_yaml,
)
from engine.content.files import ReadLimits, parse_yaml
from engine.content.pack import OWNERS, make_pack
from engine.definitions import Content
from engine.errors import OpportuneError
from engine.model import Mode

ROOT = Path(__file__).resolve().parents[2]
FILES = ROOT / "engine" / "content" / "templates"
GIVEN = {"id": "beijing/try", "benefit": "movie-voucher"}
TEMPLATES = load_templates()


@pytest.fixture(scope="module")
def shipped() -> Content:
    return load_content(ROOT / "geofences", ROOT / "scenarios")


def call(*arguments: str, given: str | None = None) -> Any:
    return CliRunner().invoke(cli_scenario.scenario_app, list(arguments), input=given)


def test_there_is_a_template_for_every_row_of_the_mission() -> None:
    assert Counter(one.goal for one in TEMPLATES.values()) == {
        "acquire": 3,
        "raise_revenue": 2,
        "retain": 3,
        "touchpoints": 4,
    }
    assert set(TEMPLATES) == {
        *("plan-benefit", "first-top-up", "benefit-card", "plan-upgrade", "data-threshold", "plan-migration"),
        *(
            "minimum-spend",
            "deposit-benefit",
            "deposit-voucher",
            "in-store-purchase",
            "scan-voucher",
            "lottery-voucher",
        ),
    }
    assert {parameter.type for one in TEMPLATES.values() for parameter in one.parameters} == set(PARAMETER_TYPES)


@pytest.mark.parametrize("name", TEMPLATES)
def test_every_template_makes_a_sound_scenario_of_its_defaults_and_of_every_example(name: str, tmp_path: Path) -> None:
    template = TEMPLATES[name]
    answers = [{}, *variations(template, 12)]
    texts = {}
    for number, answer in enumerate(answers):
        scenario = make_scenario(template, {**answer, **GIVEN, "id": f"beijing/try-{number}"})
        assert scenario["goal"] == template.goal
        assert scenario["mode"] == "shadow", "nothing made from a form is live by itself"
        texts[f"beijing/try-{number}.yaml"] = write_yaml(scenario, "a test")
    assert cli_scenario.check_among(ROOT / "geofences", ROOT / "scenarios", texts) == []
    assert len(set(texts.values())) > 1


@pytest.mark.parametrize("name", TEMPLATES)
def test_every_parameter_changes_the_scenario_and_every_text_says_its_numbers(name: str) -> None:
    """A question whose answer changes nothing would be a lie."""
    template = TEMPLATES[name]
    plain = make_scenario(template, GIVEN)
    for parameter in template.parameters:
        other = _other(template, parameter)
        assert make_scenario(template, {**GIVEN, parameter.name: other}) != plain, parameter.name


def _other(template: Template, parameter: Parameter) -> Any:
    if parameter.choices:
        return next(one for one in parameter.choices if one != parameter.default)
    samples = {
        "id": "beijing/other",
        "text": "another",
        "words": "one,two",
        "span": "3 days",
        "date": "2027-01-01",
        "hours": "11:00-12:00",
        "benefit": "parking-voucher",
        "kind": "airport",
    }
    if parameter.type in samples:
        return samples[parameter.type]
    least = 0 if parameter.least is None else parameter.least
    return least if template.default_of(parameter) != least else least + 1


def test_a_written_scenario_reads_back_as_it_was() -> None:
    for name, template in TEMPLATES.items():
        scenario = make_scenario(template, {**GIVEN, "name": "带:符号 #和 'quotes' yes", "from": "2026-12-01"})
        assert parse_yaml(write_yaml(scenario, "a comment"), ReadLimits().depth) == scenario, name


WRONG = {
    "amount_yuan": ("0.5", "a whole number"),
    "holdout": ("51", "a number from 0 to 50"),
    "window": ("7", "a span such as"),
    "mode": ("on", "one of draft, shadow, live"),
    "until": ("soon", "a date or an instant"),
    "id": ("try", "an id such as"),
    "name": ("x" * 101, "at most 100 characters"),
    "channels": (" , ", "words, separated by commas"),
    "priority": ("nan", "a number"),
}


def test_everything_wrong_with_the_answers_is_told_at_once() -> None:
    with pytest.raises(OpportuneError) as caught:
        make_scenario(
            TEMPLATES["deposit-voucher"], {name: value for name, (value, _) in WRONG.items()} | {"plase": "x"}
        )
    lines = str(caught.value).splitlines()[1:]
    assert len(lines) == len(WRONG) + 2
    for name, (_, words) in WRONG.items():
        assert any(line.strip().startswith(f"{name}:") and words in line for line in lines), name
    assert any("plase: no such parameter" in line for line in lines)
    assert any("benefit: not given (--set benefit=...)" in line for line in lines)


def test_a_value_is_never_read_as_anything_but_a_value() -> None:
    """No template language: braces, quotes and YAML in an answer stay what they are."""
    nasty = "{{7*7}} ${x} *a &b !!python/x\n- y: [z"
    scenario = make_scenario(TEMPLATES["first-top-up"], {**GIVEN, "name": nasty, "newcomers": nasty})
    assert scenario["audience"]["all"] == [nasty.strip()]
    assert parse_yaml(write_yaml(scenario, "x"), ReadLimits().depth) == scenario


def test_a_file_more_is_a_template_more() -> None:
    texts = {path.stem: path.read_text() for path in FILES.glob("*.yaml")}
    given = yaml.safe_load(texts["scan-voucher"])
    given["template"] = "poster"
    assert "poster" in read_templates({**texts, "poster": yaml.safe_dump(given, allow_unicode=True)})


BROKEN: dict[str, tuple[dict[str, Any], str]] = {
    "another name": ({"template": "other"}, "its `template` says other"),
    "a parameter twice": (
        {"parameters": [{"name": "mode", "type": "text", "question": "q", "sets": ["x"]}]},
        "same name",
    ),
    "an unknown type": ({"parameters": [{"name": "a", "type": "colour", "question": "q", "sets": ["x"]}]}, "type"),
    "nothing to set": ({"parameters": [{"name": "a", "type": "text", "question": "q", "sets": []}]}, "sets"),
    "a default that does not fit": (
        {"parameters": [{"name": "a", "type": "integer", "question": "q", "sets": ["x"], "default": "b"}]},
        "a whole number",
    ),
    "choices of no choice": (
        {"parameters": [{"name": "a", "type": "text", "question": "q", "sets": ["x"], "choices": ["b"]}]},
        "`choices` for a choice",
    ),
    "an unknown field": ({"scenarios": {}}, "scenarios"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_template_is_told_by_its_name(name: str) -> None:
    changes, words = BROKEN[name]
    given = {**yaml.safe_load((FILES / "scan-voucher.yaml").read_text()), **changes}
    texts = {COMMON: (FILES / "common.yaml").read_text(), "scan-voucher": yaml.safe_dump(given, allow_unicode=True)}
    with pytest.raises(OpportuneError, match="template scan-voucher") as caught:
        read_templates(texts)
    assert words in str(caught.value)


def test_places_are_made_where_they_are_missing() -> None:
    scenario: dict[str, Any] = {"a": {"b": 1}}
    put(scenario, "a.b", 2)
    put(scenario, "c.1.d", 3)
    put(scenario, "e.0", 4)
    assert scenario == {"a": {"b": 2}, "c": [{}, {"d": 3}], "e": [4]}


def test_numbers_may_be_written_as_text() -> None:
    asked = Parameter.model_validate({"name": "a", "type": "number", "question": "q", "sets": ["x"], "as": "text"})
    assert [read_value(asked, one) for one in ("50", 50, "0.5", 2.0)] == ["50", "50", "0.5", "2"]


# --- the commands -----------------------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    import shutil

    shutil.copytree(ROOT / "scenarios", tmp_path / "scenarios")
    monkeypatch.setenv("OPPORTUNE_GEOFENCES", str(ROOT / "geofences"))
    monkeypatch.setenv("OPPORTUNE_SCENARIOS", str(tmp_path / "scenarios"))
    return tmp_path / "scenarios"


def test_new_takes_parameters_and_writes_a_checked_file(folder: Path) -> None:
    arguments = [
        "new",
        "--template",
        "deposit-voucher",
        "--no-ask",
        "--set",
        "id=beijing/film",
        "--set",
        "kind=cinema,mall",
    ]
    done = call(*arguments, "--set", "benefit=movie-voucher", "--set", "amount_yuan=30", "--set", "mode=live")
    assert done.exit_code == 0, done.output
    content = load_content(ROOT / "geofences", folder)
    (made,) = [one for one in content.scenarios if one.id == "beijing/film"]
    assert made.mode is Mode.LIVE
    assert made.file == "scenarios/beijing/film.yaml"
    assert {one.name: one.default for one in made.offer.placeholders}["amount"] == "30"
    again = call(*arguments, "--set", "benefit=movie-voucher")
    assert isinstance(again.exception, OpportuneError)
    assert "is there already" in str(again.exception)
    assert call(*arguments, "--set", "benefit=movie-voucher", "--force").exit_code == 0


def test_new_asks_for_what_is_not_given_and_asks_again_where_it_does_not_fit(folder: Path) -> None:
    answers = [
        "beijing/asked",
        "",
        "scan-coupon",
        "winter",
        "25:00-26:00",
        "10:00-12:00",
        "",
        "",
        "",
        "",
        "",
        "",
        "",
        "",
    ]
    done = call("new", "-t", "scan-voucher", "--ask", given="\n".join(answers) + "\n")
    assert done.exit_code == 0, done.output
    assert "wanted: a time of day such as" in done.output
    made = yaml.safe_load((folder / "beijing" / "asked.yaml").read_text())
    assert made["trigger"]["usage"]["props"] == {"activity": "winter"}
    assert made["schedule"] == {"hours": ["10:00-12:00"]}
    assert made["name"] == "扫码领券"


def test_new_writes_nothing_that_check_refuses(folder: Path) -> None:
    done = call("new", "-t", "deposit-voucher", "--no-ask", "--set", "id=beijing/bad", "--set", "benefit=no-such-thing")
    assert done.exit_code == 1
    assert "no-such-thing" in done.output
    assert not (folder / "beijing" / "bad.yaml").exists()
    twice = call(
        "new", "-t", "scan-voucher", "--no-ask", "--set", "id=beijing/mall-dwell", "--set", "benefit=scan-coupon"
    )
    assert isinstance(twice.exception, OpportuneError)


def test_the_templates_are_listed_with_their_questions() -> None:
    lines = call("templates").output.splitlines()
    assert [line.split("\t")[0] for line in lines] == ["template", *TEMPLATES]
    shown = call("templates", "lottery-voucher").output
    assert "one_in\tinteger\tOne in how many wins\t10\t5; 10; 20" in shown


def test_a_pack_of_255_is_sound_and_covers_provinces_and_templates(folder: Path, tmp_path: Path) -> None:
    done = call("pack", "--out", str(tmp_path / "pack"))
    assert done.exit_code == 0, done.output
    inspection = inspect_content(ROOT / "geofences", tmp_path / "pack")
    assert inspection.faults == ()
    assert inspection.content is not None
    scenarios = inspection.content.scenarios
    assert len(scenarios) == 255
    assert {one.id.partition("/")[0] for one in scenarios} == set(OWNERS)
    made_from = Counter(one.id.partition("/")[2].rpartition("-")[0] for one in scenarios)
    assert set(made_from) == set(TEMPLATES)
    assert min(made_from.values()) >= 21
    again = call("pack", "--out", str(tmp_path / "pack"))
    assert isinstance(again.exception, OpportuneError)


def test_the_same_content_gives_the_same_pack(shipped: Content) -> None:
    first, second = (list(make_pack(list(TEMPLATES.values()), shipped, 40)) for _ in range(2))
    assert first == second
    assert len({scenario["id"] for _, scenario in first}) == 40
