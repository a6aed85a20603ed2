"""Collect every fault of a content set before anyone is told, so that one run of `check` is enough."""

from __future__ import annotations

import difflib
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

from pydantic import ValidationError
from pydantic_core import PydanticCustomError

from engine.errors import Fault

FOUND_LENGTH = 60
FAULTS_PER_FILE = 100

_EXPECTED = {
    "missing": "a value",
    "extra_forbidden": "a known field",
    "string_type": "text",
    "bool_type": "true or false",
    "bool_parsing": "true or false",
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "list_type": "a list",
    "model_type": "a mapping of fields",
    "model_attributes_type": "a mapping of fields",
    "dict_type": "a mapping of fields",
    "finite_number": "a finite number",
}

_OWN_WORDS = re.compile(
    r"^(Input|Value) should be |^(List|Set|Tuple|String|Dictionary) should have | after validation, not \d+$"
)


class Faults:
    """The faults found so far; `add` never raises. At most FAULTS_PER_FILE of one file are kept, the rest counted."""

    def __init__(self) -> None:
        self._kept: list[Fault] = []
        self._count: Counter[str] = Counter()
        self.error_count = 0

    def add(self, file: str, path: str, found: Any, expected: str, hint: str = "") -> None:
        """Note an error. `found` is shown shortened; text given as `Shown` stands as it is."""
        self._note(Fault(file, path, shown(found), expected, hint))

    def warn(self, file: str, path: str, found: Any, expected: str, hint: str = "") -> None:
        """Note something that looks wrong and may be right; it does not stop the content from loading."""
        self._note(Fault(file, path, shown(found), expected, hint, severity="warning"))

    def _note(self, fault: Fault) -> None:
        self._count[fault.file] += 1
        self.error_count += fault.severity == "error"
        if self._count[fault.file] <= FAULTS_PER_FILE:
            self._kept.append(fault)

    def add_validation(self, file: str, base: str, error: ValidationError, known: Iterable[str] = ()) -> None:
        """Note everything pydantic found wrong below `base`."""
        for one in error.errors(include_url=False):
            steps = [step for step in one["loc"] if not str(step).startswith("<")]  # the tag of a choice is no field
            where = base + "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in steps)
            context = one.get("ctx", {})
            kind = one["type"]
            found: Any = Shown("nothing") if kind == "missing" else one["input"]
            hint = str(context.get("hint", ""))
            if kind == "extra_forbidden":
                found = Shown(f"unknown field {one['loc'][-1]!r}")
                hint = did_you_mean(str(one["loc"][-1]), context.get("known", known))
            expected = str(context["wanted"]) if "wanted" in context else _EXPECTED.get(kind, _plain(one["msg"]))
            self.add(file, where, found, expected, hint)

    def all(self) -> list[Fault]:
        """Return the faults in order of file and path, errors and warnings alike."""
        more = [
            Fault(file, "$", f"{count - FAULTS_PER_FILE} more faults", "none", "mend the ones shown and check again")
            for file, count in self._count.items()
            if count > FAULTS_PER_FILE
        ]
        return sorted(self._kept, key=_natural) + more

    def errors(self) -> list[Fault]:
        return [fault for fault in self.all() if fault.severity == "error"]


def _natural(fault: Fault) -> tuple[str, list[tuple[int, str]], Fault]:
    """Order paths as people count: features[9] before features[10]."""
    steps = re.split(r"(\d+)", fault.path)
    return fault.file, [(int(step), "") if step.isdigit() else (0, step) for step in steps], fault


class Shown(str):
    """Text that stands in a fault as it is, without quotes."""


def shown(value: Any) -> str:
    """Show a value in a fault: short, on one line."""
    text = str(value) if isinstance(value, Shown) else repr(value)
    text = " ".join(text.split())
    return text if len(text) <= FOUND_LENGTH else text[: FOUND_LENGTH - 1] + "…"


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Suggest the nearest other known word, or list them all where there are few."""
    choices = sorted(set(known) - {word})  # a word known elsewhere may be wrong here
    near = difflib.get_close_matches(word, choices, 1, 0.6)
    if near:
        return f"did you mean {near[0]!r}?"
    return f"known: {', '.join(choices)}" if 0 < len(choices) <= 30 else ""


def near_miss(word: str, known: Sequence[str]) -> str | None:
    """Return the known word that `word` is probably a slip of."""
    near = difflib.get_close_matches(word.lower(), known, 1, 0.8)
    return near[0] if near else None


def refuse(wanted: str, hint: str = "") -> PydanticCustomError:
    """Build what a validator raises: what was expected, and how to mend it."""
    return PydanticCustomError("refused", "{wanted}", {"wanted": wanted, "hint": hint})


def _plain(message: str) -> str:
    """Drop what pydantic says about its own working: 'List should have at least 1 item after validation, not 0'."""
    return _OWN_WORDS.sub("", message)
