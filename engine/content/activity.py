"""Activity templates: files that make a scenario a matter of filling in a form.

A template is a scenario with a list of typed parameters, each of which says where its value goes. There is no template
language: a value replaces what stands at a place of the mapping, and is checked like anything else in a scenario.
Adding a template is adding a file to `engine/content/templates/`.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from importlib.resources import files
from itertools import pairwise
from typing import Annotated, Any, Literal

import yaml
from pydantic import Field, StringConstraints, ValidationError, model_validator

from engine.content.conditions import Model
from engine.content.faults import did_you_mean, refuse
from engine.content.fence_model import Word, content_id
from engine.content.files import ReadLimits, parse_yaml
from engine.content.spans import hours_window, instant_text, span_ms
from engine.errors import OpportuneError

COMMON = "common"
"""The file of parameters that every template has."""

ParameterName = Annotated[str, StringConstraints(pattern=r"^[a-z][a-z0-9_]{0,29}$")]
PARAMETER_TYPES = (
    *("id", "text", "words", "integer", "number", "choice", "span", "date"),
    *("hours", "benefit", "kind"),
)


class Parameter(Model):
    """One question. `sets` are places in the scenario, steps separated by dots; a number is a place in a list."""

    name: ParameterName
    type: Literal["id", "text", "words", "integer", "number", "choice", "span", "date", "hours", "benefit", "kind"]
    question: Word
    sets: list[Word] = Field(min_length=1)
    default: Any = None
    optional: bool = Field(False, description="may be left out; then nothing is set")
    choices: list[Word] = Field([], description="of a choice")
    least: float | None = None
    most: float | None = Field(None, description="of a text its length")
    examples: list[Any] = Field([], description="values that make sense; packs draw on them")
    as_: Literal["text"] | None = Field(None, alias="as", description="write a number as text")

    @model_validator(mode="after")
    def _sensible(self) -> Parameter:
        if (self.type == "choice") != bool(self.choices):
            raise refuse("`choices` for a choice, and only there")
        for value in (*self.examples, *([] if self.default is None else [self.default])):
            try:
                read_value(self, value)
            except ValueError as error:
                raise refuse(f"examples and a default that fit: {error}") from None
        return self


class CommonFile(Model):
    first: list[Parameter]
    last: list[Parameter]


class TemplateFile(Model):
    """A file engine/content/templates/*.yaml."""

    template: Annotated[str, StringConstraints(pattern=r"^[a-z][a-z0-9-]{0,39}$")]
    goal: Literal["acquire", "raise_revenue", "retain", "touchpoints"]
    name: Word = Field(description="of the scenarios made from it, unless they say another")
    about: Annotated[str, StringConstraints(min_length=1, max_length=200)]
    parameters: list[Parameter] = Field([], max_length=20)
    scenario: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Template:
    """A template with all its parameters, the common ones around its own, in the order in which they are asked."""

    id: str
    goal: str
    name: str
    about: str
    parameters: tuple[Parameter, ...]
    scenario: Mapping[str, Any] = field(repr=False)

    def default_of(self, parameter: Parameter) -> Any:
        return self.name if parameter.name == "name" else parameter.default


def load_templates() -> dict[str, Template]:
    """Read the templates of the package, by name, in the order of goals; raise OpportuneError for a broken one."""
    folder = files("engine.content") / "templates"
    texts = {
        one.name.removesuffix(".yaml"): one.read_text(encoding="utf-8")
        for one in folder.iterdir()
        if one.name.endswith(".yaml")
    }
    return read_templates(texts)


def read_templates(texts: Mapping[str, str]) -> dict[str, Template]:
    """Read templates from the texts of their files, by file name without ending."""
    common = _checked(CommonFile, COMMON, texts[COMMON])
    found = [_template(name, text, common) for name, text in texts.items() if name != COMMON]
    goals = ("acquire", "raise_revenue", "retain", "touchpoints")
    found.sort(key=lambda one: (goals.index(one.goal), one.id))
    return {one.id: one for one in found}


def make_scenario(template: Template, given: Mapping[str, Any]) -> dict[str, Any]:
    """Fill in a template: `given` by parameter, values or their text; the rest takes its default.

    Raise OpportuneError with everything that is wrong: unknown names, values that do not fit, questions unanswered.
    """
    known = {one.name: one for one in template.parameters}
    wrong = [f"{name}: no such parameter; {did_you_mean(name, known)}" for name in given if name not in known]
    scenario: dict[str, Any] = {"id": "", "name": "", "goal": template.goal, "mode": "shadow"}
    scenario |= copy.deepcopy(dict(template.scenario))
    for parameter in template.parameters:
        value = given.get(parameter.name, template.default_of(parameter))
        if value is None or value == "":
            if not parameter.optional:
                wrong.append(f"{parameter.name}: not given (--set {parameter.name}=...); {parameter.question}")
            continue
        try:
            value = read_value(parameter, value)
        except ValueError as error:
            wrong.append(f"{parameter.name}: {value!r} is not {error}")
            continue
        for place in parameter.sets:
            put(scenario, place, value)
    if wrong:
        raise OpportuneError(f"template {template.id}:\n  " + "\n  ".join(wrong))
    return scenario


def read_value(parameter: Parameter, value: Any) -> Any:
    """Turn an answer, or a value of a file, into what the scenario holds; raise ValueError saying what is wanted."""
    kind = parameter.type
    if kind in ("integer", "number"):
        number = _number(value, kind == "integer")
        least, most = parameter.least, parameter.most
        if (least is not None and number < least) or (most is not None and number > most):
            raise ValueError(f"a number from {_shown(least)} to {_shown(most)}")
        return _shown(number) if parameter.as_ == "text" else number
    if kind in ("words", "kind"):
        words = value.split(",") if isinstance(value, str) else value
        if not isinstance(words, list) or not all(isinstance(one, str) and one.strip() for one in words):
            raise ValueError("words, separated by commas")
        words = [one.strip() for one in words]
        return words[0] if kind == "kind" and len(words) == 1 else words
    if not isinstance(value, str) or not value.strip():
        raise ValueError("text")
    text = value.strip()
    if kind == "choice" and text not in parameter.choices:
        raise ValueError(f"one of {', '.join(parameter.choices)}")
    if kind == "text" and parameter.most is not None and len(text) > parameter.most:
        raise ValueError(f"at most {_shown(parameter.most)} characters")
    check = {"span": span_ms, "date": instant_text, "hours": hours_window, "id": content_id}.get(kind)
    if check is not None:
        try:
            check(text)
        except Exception as error:
            raise ValueError(str(getattr(error, "context", {}).get("wanted", error))) from None
    return text


def put(scenario: dict[str, Any], place: str, value: Any) -> None:
    """Put a value where a place says, making mappings and one-element lists on the way."""
    steps = place.split(".")
    target: Any = scenario
    for step, following in pairwise(steps):
        empty: Any = [] if following.isdigit() else {}
        if isinstance(target, list):
            _extend(target, int(step), empty)
            target = target[int(step)]
        else:
            target = target.setdefault(step, empty)
    last = steps[-1]
    if isinstance(target, list):
        _extend(target, int(last), None)
        target[int(last)] = value
    else:
        target[last] = value


def write_yaml(scenario: Mapping[str, Any], comment: str) -> str:
    """Write a scenario as ops would: fields in their order, small mappings on one line, text as it is."""
    lines = [f"# {comment}"]
    lines += yaml.safe_dump(dict(scenario), allow_unicode=True, sort_keys=False, width=10_000).splitlines()
    return "\n".join(lines) + "\n"


def variations(template: Template, count: int) -> Iterator[dict[str, Any]]:
    """Yield `count` answers: the examples of the parameters, in every combination before one comes again."""
    varied = [one for one in template.parameters if one.examples]
    for number in range(count):
        answer, rest = {}, number
        for parameter in varied:
            rest, at = divmod(rest, len(parameter.examples))
            answer[parameter.name] = parameter.examples[at]
        yield answer


def _extend(target: list[Any], index: int, empty: Any) -> None:
    while len(target) <= index:
        target.append(copy.copy(empty))


def _template(name: str, text: str, common: CommonFile) -> Template:
    given = _checked(TemplateFile, name, text)
    if given.template != name:
        raise OpportuneError(f"template {name}: its `template` says {given.template}")
    parameters = (*common.first, *given.parameters, *common.last)
    names = [one.name for one in parameters]
    twice = {one for one in names if names.count(one) > 1}
    if twice:
        raise OpportuneError(f"template {name}: parameters of the same name: {', '.join(sorted(twice))}")
    return Template(name, given.goal, given.name, given.about, parameters, given.scenario)


def _checked(model: Any, name: str, text: str) -> Any:
    try:
        return model.model_validate(parse_yaml(text, ReadLimits().depth))
    except (ValidationError, yaml.YAMLError) as error:
        raise OpportuneError(f"template {name}: {error}") from None


def _number(value: Any, is_whole: bool) -> int | float:
    try:
        number = float(value) if not isinstance(value, bool) else float("nan")
    except (TypeError, ValueError):
        number = float("nan")
    if number != number or abs(number) > 1e15 or (is_whole and number != int(number)):
        raise ValueError("a whole number" if is_whole else "a number")
    return int(number) if number == int(number) else number


def _shown(number: float | None) -> str:
    if number is None:
        return "any"
    return str(int(number)) if number == int(number) else str(number)
