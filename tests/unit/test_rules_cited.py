"""Every rule of the semantics that speaks of behavior, audience, limits, decision, offers and time has its tests."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

TESTS = Path(__file__).resolve().parents[1]
COUNTS = {"T": 9, "L": 10, "P": 9, "B": 5, "A": 4, "C": 7, "D": 8, "O": 3, "G": 5, "I": 2}
"""How many rules each letter has; docs/contracts.md, presence.md, behavior.md and decisions.md cite them."""
RULES = [f"{letter}{number}" for letter, count in COUNTS.items() for number in range(1, count + 1)]
_BY_FILE = re.compile(r'^"""(.*?)"""', re.DOTALL)


@pytest.fixture(scope="module")
def cited() -> dict[str, set[str]]:
    """By rule, the files whose docstring, a test's name, or a comment at a test cites it."""
    found: dict[str, set[str]] = {rule: set() for rule in RULES}
    for path in TESTS.rglob("test_*.py"):
        if path.name == Path(__file__).name:
            continue
        text = path.read_text()
        said = [heading[1]] if (heading := _BY_FILE.match(text)) else []
        said += re.findall(r"def (test_\w+)", text) + re.findall(r"#.*|\"\"\".*?\"\"\"", text)
        for rule in RULES:
            word = re.compile(rf"(?<![A-Za-z0-9])(?:{rule}|{rule.lower()})(?![A-Za-z0-9])")
            if any(word.search(one.replace("_", " ")) for one in said):
                found[rule].add(path.name)
    return found


@pytest.mark.parametrize("rule", RULES)
def test_a_rule_is_cited_by_a_test(rule: str, cited: dict[str, set[str]]) -> None:
    assert cited[rule], f"no test names rule {rule}: prove it, and say so in the test's name or beside it"
