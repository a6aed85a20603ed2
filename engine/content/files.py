"""Read content files as plain values, within limits against hostile ones.

YAML here is the plain part of the language: no aliases (a kilobyte of them can expand to gigabytes), no tags, no
repeated keys, and only `true`, `false`, `null` and decimal numbers are anything but text, so that `21:00` is a time of
day and `NO` is Norway.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson
import yaml

from engine.content.faults import Faults, Shown, did_you_mean

_Loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_INTEGER = re.compile(r"[-+]?(0|[1-9][0-9]{0,17})")
_DECIMAL = re.compile(r"[-+]?[0-9]{1,40}\.[0-9]{0,40}([eE][-+]?[0-9]{1,3})?")


@dataclass(frozen=True, slots=True)
class ReadLimits:
    """What a content set may cost at most."""

    vertices: int = 10_000  # of one fence
    yaml_bytes: int = 256 * 1024
    geojson_bytes: int = 128 * 1024 * 1024
    csv_bytes: int = 128 * 1024 * 1024
    depth: int = 24
    fences: int = 200_000
    cells: int = 2_000_000
    apps: int = 2_000_000


def read_bytes(path: Path, shown_as: str, most: int, faults: Faults) -> bytes | None:
    """Read a file of at most `most` bytes; a fault and None where that cannot be."""
    try:
        size = path.stat().st_size
        if size > most:
            faults.add(shown_as, "$", Shown(f"{size:,} bytes"), f"at most {most:,} bytes", "split the file")
            return None
        return path.read_bytes()
    except OSError as error:
        faults.add(shown_as, "$", Shown(error.strerror or "an unreadable file"), "a readable file")
        return None


def read_csv(
    path: Path, shown_as: str, columns: Sequence[str], required: Sequence[str], limits: ReadLimits, faults: Faults
) -> tuple[list[str], list[list[str]]] | None:
    """Read a CSV file as (header in lower case, the rows behind it); None after a fault of the file or its header."""
    data = read_bytes(path, shown_as, limits.csv_bytes, faults)
    if data is None:
        return None
    try:
        rows = list(csv.reader(io.StringIO(data.decode("utf-8-sig"), newline=""), strict=True))
    except UnicodeDecodeError as error:
        faults.add(shown_as, f"$ (byte {error.start})", Shown("bytes that are not UTF-8"), "text in UTF-8")
        return None
    except csv.Error as error:
        faults.add(shown_as, "$", Shown(str(error)), "comma-separated values", "quote a value that holds a comma")
        return None
    header = [name.strip().lower() for name in rows[0]] if rows else []
    wrong = [name for name in header if name not in columns]
    for name in wrong:
        faults.add(shown_as, "row 1", Shown(f"the column {name!r}"), "known columns", did_you_mean(name, columns))
    for name in required:
        if name not in header:
            faults.add(shown_as, "row 1", Shown(f"no column {name!r}"), f"a header with {', '.join(required)}")
    if wrong or not set(required) <= set(header):
        return None
    return header, rows[1:]


def read_json(path: Path, shown_as: str, limits: ReadLimits, faults: Faults) -> Any:
    """Read a JSON file; None after a fault."""
    data = read_bytes(path, shown_as, limits.geojson_bytes, faults)
    if data is None:
        return None
    try:
        return orjson.loads(data.removeprefix(b"\xef\xbb\xbf"))
    except orjson.JSONDecodeError as error:
        hint = "JSON has no NaN, no comments, no trailing commas; coordinates are numbers"
        faults.add(shown_as, f"$ (line {error.lineno})", Shown(error.msg), "JSON text in UTF-8", hint)
        return None


def read_yaml(path: Path, shown_as: str, limits: ReadLimits, faults: Faults) -> Any:
    """Read a YAML file as mappings, lists, text, numbers and booleans; None after a fault."""
    data = read_bytes(path, shown_as, limits.yaml_bytes, faults)
    if data is None:
        return None
    try:
        return parse_yaml(data.decode("utf-8-sig"), limits.depth)
    except UnicodeDecodeError as error:
        faults.add(shown_as, f"$ (byte {error.start})", Shown("bytes that are not UTF-8"), "text in UTF-8")
    except YamlRefused as error:
        faults.add(shown_as, error.place, Shown(error.found), error.expected, error.hint)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        place = f"$ (line {mark.line + 1}, column {mark.column + 1})" if mark else "$"
        hint = "indent with spaces; quote text that holds ': ' or begins with a sign"
        problem = (getattr(error, "problem", None) or "broken YAML").removeprefix("found ")
        faults.add(shown_as, place, Shown(problem), "YAML", hint)
    return None


class YamlRefused(Exception):
    """YAML that is well formed and refused all the same."""

    def __init__(self, mark: Any, found: str, expected: str, hint: str = "") -> None:
        self.place = f"$ (line {mark.line + 1})"
        self.found = found
        self.expected = expected
        self.hint = hint
        super().__init__(found)


def parse_yaml(text: str, most_depth: int) -> Any:
    """Turn one YAML document into plain values; raise YamlRefused or yaml.YAMLError."""
    depth = 0
    # Parsing into events costs no recursion and expands nothing, so the limits are checked before any tree is built.
    for event in yaml.parse(text, Loader=_Loader):
        if isinstance(event, yaml.AliasEvent):
            hint = "write the value out: aliases can expand without bound"
            raise YamlRefused(event.start_mark, f"the alias *{event.anchor}", "no aliases", hint)
        tag = getattr(event, "tag", None)
        if tag not in (None, "!"):
            raise YamlRefused(event.start_mark, f"the tag {tag}", "no tags", "write plain values")
        if isinstance(event, yaml.CollectionStartEvent):
            depth += 1
            if depth > most_depth:
                raise YamlRefused(event.start_mark, f"more than {most_depth} levels", f"at most {most_depth} levels")
        elif isinstance(event, yaml.CollectionEndEvent):
            depth -= 1
    node = yaml.compose(text, Loader=_Loader)
    return None if node is None else _value(node)


def _value(node: yaml.Node) -> Any:
    if isinstance(node, yaml.SequenceNode):
        return [_value(child) for child in node.value]
    if isinstance(node, yaml.MappingNode):
        mapping: dict[Any, Any] = {}
        for key_node, value_node in node.value:
            if not isinstance(key_node, yaml.ScalarNode):
                raise YamlRefused(key_node.start_mark, "a list or mapping as a key", "text as a key")
            if key_node.value in mapping:
                hint = "only one of the two would count"
                raise YamlRefused(key_node.start_mark, f"{key_node.value!r} twice", "every key once", hint)
            mapping[key_node.value] = _value(value_node)
        return mapping
    is_plain = not getattr(node, "style", None)
    return _scalar(node.value) if is_plain else node.value


def _scalar(text: str) -> Any:
    if text in ("", "~", "null"):
        return None
    if text in ("true", "false"):
        return text == "true"
    if _INTEGER.fullmatch(text):
        return int(text)
    return float(text) if _DECIMAL.fullmatch(text) else text
