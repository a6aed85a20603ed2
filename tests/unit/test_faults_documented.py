"""docs/faults.md names, for every fault of delivery, tests that exist."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
DOCUMENT = (ROOT / "docs" / "faults.md").read_text()
NAMED = sorted(set(re.findall(r"`((?:unit|integration|contract|property)/\S+\.py::\w+)`", DOCUMENT)))


@pytest.mark.parametrize("name", NAMED)
def test_a_test_that_the_table_names_exists(name: str) -> None:
    path, _, function = name.partition("::")
    source = (ROOT / "tests" / path).read_text()
    assert re.search(rf"^(async )?def {function}\(", source, re.MULTILINE), f"{name} is not there"


def test_every_fault_of_delivery_has_a_row_with_a_proof() -> None:
    rows = {line.split("|")[1].split()[0]: line for line in DOCUMENT.splitlines() if re.match(r"\| [AF]\d+ ", line)}
    wanted = [*(f"F{number}" for number in (*range(15, 23), 24, 25, 26)), "A1", "A8", "A10", "A12"]
    assert set(wanted) <= set(rows)
    assert all("::" in rows[fault] or "bench `" in rows[fault] for fault in wanted)
