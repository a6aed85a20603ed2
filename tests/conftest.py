"""What every test may ask for."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--long", action="store_true", help="run the long suite too")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if config.getoption("--long"):
        return
    for item in items:
        if "long" in item.keywords:
            item.add_marker(pytest.mark.skip(reason="long suite: make test-long"))


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real traces and expected answers; without it tests are skipped loudly, or fail where required."""
    if not SHARED.is_dir():
        absent = "real data absent: put it beside the project as ../shared/data (see docs/testing.md)"
        if os.environ.get("OPPORTUNE_REQUIRE") == "all":
            pytest.fail(absent)
        pytest.skip(absent)
    return SHARED
