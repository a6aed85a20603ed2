"""One audience as people write it in a scenario, on its own: for counting before there is a scenario."""

from __future__ import annotations

from typing import Any

import yaml
from pydantic import TypeAdapter, ValidationError

from engine.content.conditions import Condition, ConditionModel
from engine.content.faults import Faults, Shown
from engine.content.files import YamlRefused, parse_yaml
from engine.content.triggers import audience_expression
from engine.definitions import Expression
from engine.errors import ContentError

_CONDITION: TypeAdapter[ConditionModel] = TypeAdapter(Condition)
_MOST_DEPTH = 20
LONGEST = 64 << 10


def read_expression(text: str) -> Expression:
    """Read a condition in YAML or JSON: `{all: [member, {attribute: age, at_least: 18}]}`; raise ContentError."""
    faults = Faults()
    document: Any = None
    if len(text) > LONGEST:
        faults.add("audience", "$", f"{len(text)} characters", f"at most {LONGEST}")
    else:
        try:
            document = parse_yaml(text, _MOST_DEPTH)
        except YamlRefused as refused:
            faults.add("audience", refused.place, Shown(refused.found), refused.expected, refused.hint)
        except (yaml.YAMLError, ValueError, RecursionError):
            faults.add(
                "audience", "$", text, "a condition in YAML or JSON", "such as {all: [member, {organisation: p/c}]}"
            )
    if not faults.error_count:
        try:
            return audience_expression(_CONDITION.validate_python(document))
        except ValidationError as error:
            faults.add_validation("audience", "$", error, ConditionModel.model_fields)
    raise ContentError(faults.errors())
