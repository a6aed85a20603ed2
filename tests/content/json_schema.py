"""As much of JSON Schema 2020-12 as our schemas use, for checking them; an unknown keyword is an error."""

from __future__ import annotations

import re
from typing import Any

_TYPES: dict[str, tuple[type, ...]] = {
    "object": (dict,),
    "array": (list,),
    "string": (str,),
    "integer": (int,),
    "number": (int, float),
    "boolean": (bool,),
    "null": (type(None),),
}
_SILENT = {"$schema", "$id", "$defs", "title", "description", "default", "examples", "format", "discriminator"}


def faults(schema: Any, value: Any, root: Any = None, path: str = "$") -> list[str]:
    """Return where `value` breaks `schema`."""
    root = schema if root is None else root
    if schema is True:
        return []
    found: list[str] = []
    for keyword, wanted in schema.items():
        found += _check(keyword, wanted, schema, value, root, path)
    return found


def _check(keyword: str, wanted: Any, schema: Any, value: Any, root: Any, path: str) -> list[str]:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if keyword in _SILENT or keyword in ("properties", "items", "prefixItems", "maxItems", "minItems", "required"):
        return _children(keyword, wanted, value, root, path)
    if keyword == "$ref":
        return faults(root["$defs"][wanted.removeprefix("#/$defs/")], value, root, path)
    if keyword == "type":
        names = wanted if isinstance(wanted, list) else [wanted]
        fits = any(isinstance(value, _TYPES[n]) and (n == "boolean" or not isinstance(value, bool)) for n in names)
        return [] if fits else [f"{path}: not {wanted}"]
    if keyword in ("anyOf", "oneOf"):
        passing = sum(not faults(one, value, root, path) for one in wanted)
        return [] if passing == 1 or (passing and keyword == "anyOf") else [f"{path}: {passing} of {keyword}"]
    if keyword == "allOf":
        return [fault for one in wanted for fault in faults(one, value, root, path)]
    if keyword == "additionalProperties":
        extra = set(value) - set(schema.get("properties", {})) if isinstance(value, dict) else set()
        if wanted is False:
            return [f"{path}: unknown {name}" for name in extra]
        return [fault for name in extra for fault in faults(wanted, value[name], root, f"{path}.{name}")]
    tests = {
        "propertyNames": lambda: not isinstance(value, dict) or not any(faults(wanted, key, root) for key in value),
        "patternProperties": lambda: True,
        "const": lambda: value == wanted,
        "enum": lambda: value in wanted,
        "pattern": lambda: not isinstance(value, str) or re.search(wanted, value),
        "minLength": lambda: not isinstance(value, str) or len(value) >= wanted,
        "maxLength": lambda: not isinstance(value, str) or len(value) <= wanted,
        "minimum": lambda: not number or value >= wanted,
        "maximum": lambda: not number or value <= wanted,
        "exclusiveMinimum": lambda: not number or value > wanted,
        "exclusiveMaximum": lambda: not number or value < wanted,
        "maxProperties": lambda: not isinstance(value, dict) or len(value) <= wanted,
    }
    return [] if tests[keyword]() else [f"{path}: {keyword} {wanted}"]


def _children(keyword: str, wanted: Any, value: Any, root: Any, path: str) -> list[str]:
    if keyword == "properties" and isinstance(value, dict):
        return [
            fault for key in value if key in wanted for fault in faults(wanted[key], value[key], root, f"{path}.{key}")
        ]
    if keyword == "required" and isinstance(value, dict):
        return [f"{path}: no {key}" for key in wanted if key not in value]
    if keyword == "items" and isinstance(value, list):
        return [fault for at, one in enumerate(value) for fault in faults(wanted, one, root, f"{path}[{at}]")]
    if keyword == "minItems" and isinstance(value, list) and len(value) < wanted:
        return [f"{path}: fewer than {wanted}"]
    if keyword == "maxItems" and isinstance(value, list) and len(value) > wanted:
        return [f"{path}: more than {wanted}"]
    return []
