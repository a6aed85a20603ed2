"""What the project promises about itself: import direction, documented commands, a README whose commands exist."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from engine.kernels import kernel_sources

ROOT = Path(__file__).resolve().parents[2]
DOCS = "\n".join(path.read_text() for path in [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))])


def test_later_stages_know_earlier_ones_and_heavy_libraries_have_one_home() -> None:
    done = subprocess.run(
        [str(Path(sys.executable).parent / "lint-imports"), "--no-cache"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-3000:]


def test_numba_is_imported_by_kernel_modules_only() -> None:
    allowed = {*kernel_sources(), ROOT / "engine" / "kernels.py"}
    for path in (ROOT / "engine").rglob("*.py"):
        if path not in allowed:
            found = re.search(r"^\s*(from|import) (numba|llvmlite)", path.read_text(), re.MULTILINE)
            assert found is None, f"{path.relative_to(ROOT)} imports {found and found[2]}"


def test_only_the_clock_reads_wall_time() -> None:
    for path in (ROOT / "engine").rglob("*.py"):
        if path.name != "clock.py":
            found = re.search(r"time\.(time|time_ns|monotonic|perf_counter)\(|datetime\.now\(", path.read_text())
            assert found is None, f"{path.relative_to(ROOT)} reads a clock: {found and found[0]}"


def command_names() -> list[str]:
    done = subprocess.run(
        [sys.executable, "-m", "engine.cli", "--help"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    return re.findall(r"^│ ([a-z][a-z-]+)\s", done.stdout, re.MULTILINE)


def test_every_command_is_documented() -> None:
    names = command_names()
    assert {"check", "serve", "replay", "explain", "pause", "run", "forget", "schema"} <= set(names)
    for name in names:
        assert f"opportune {name}" in DOCS, f"no document mentions `opportune {name}`"


@pytest.mark.parametrize("target", ["run", "test", "check", "bench", "test-long"])
def test_make_targets_that_documents_name_exist(target: str) -> None:
    assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), re.MULTILINE)


def test_ci_runs_the_test_command_of_the_readme() -> None:
    assert "make test" in (ROOT / "README.md").read_text()
    assert "make test" in (ROOT / ".ci" / "run").read_text()


def test_links_between_documents_lead_somewhere() -> None:
    for path in [ROOT / "README.md", ROOT / "ARCHITECTURE.md", *(ROOT / "docs").rglob("*.md")]:
        for target in re.findall(r"\]\((?!https?:|#)([^)#]+)", path.read_text()):
            assert (path.parent / target).exists(), f"{path.relative_to(ROOT)} links to {target}"


def test_the_typer_application_builds_without_its_commands_importing_the_hot_path() -> None:
    """`opportune --help` must not wait for a compiler."""
    code = "import sys, engine.cli, importlib, pkgutil\nfor m in pkgutil.iter_modules(engine.cli.__path__):\n"
    code += "    if not m.name.startswith('_'): importlib.import_module('engine.cli.' + m.name)\n"
    code += "assert 'numba' not in sys.modules, 'a command module imports kernels at the top'"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)
