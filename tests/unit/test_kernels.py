"""The cache of compiled kernels never answers for code that changed (ARCHITECTURE.md, hot path)."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

from engine.behavior import catalogue_kernel, pattern_kernel, store_kernel
from engine.presence import activation_kernel
from engine.presence import kernel as presence_kernel
from engine.runtime import warm

ENGINE = Path(__file__).resolve().parents[2] / "engine"

CALLEE = "from engine.kernels import kernel\n\n\n@kernel\ndef callee(x):\n    return x + {constant}\n"
CALLER = (
    "from engine.callee_kernel import callee\nfrom engine.kernels import kernel\n\n\n"
    "@kernel\ndef caller(x):\n    return callee(x) * 10\n"
)


def run(project: Path, cache: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", "from engine.caller_kernel import caller; print(caller(1))"],
        cwd=project,
        env={**os.environ, "PYTHONPATH": str(project), "OPPORTUNE_CACHE_DIR": str(cache), **environment},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )


def small_project(tmp_path: Path) -> Path:
    project = tmp_path / "project"
    (project / "engine").mkdir(parents=True)
    for name in ("__init__.py", "kernels.py", "model.py"):
        shutil.copy(ENGINE / name, project / "engine" / name)
    (project / "engine" / "callee_kernel.py").write_text(CALLEE.format(constant=1))
    (project / "engine" / "caller_kernel.py").write_text(CALLER)
    return project


def test_editing_a_callee_in_another_file_changes_the_cached_answer(tmp_path):
    project = small_project(tmp_path)
    assert run(project, tmp_path / "cache").stdout.strip() == "20"
    assert run(project, tmp_path / "cache").stdout.strip() == "20"
    (project / "engine" / "callee_kernel.py").write_text(CALLEE.format(constant=2))
    assert run(project, tmp_path / "cache").stdout.strip() == "30"


def test_no_compile_fails_loudly_where_the_cache_is_cold_and_works_where_it_is_warm(tmp_path):
    project = small_project(tmp_path)
    cold = run(project, tmp_path / "cache", OPPORTUNE_NO_COMPILE="1")
    assert cold.returncode != 0
    assert "OPPORTUNE_NO_COMPILE" in cold.stderr
    assert run(project, tmp_path / "cache").stdout.strip() == "20"
    warm = run(project, tmp_path / "cache", OPPORTUNE_NO_COMPILE="1")
    assert warm.stdout.strip() == "20", warm.stderr


def test_warming_compiles_every_kernel_that_patterns_are_called_by():
    """With OPPORTUNE_NO_COMPILE one that warming forgot would fail at the first eviction or growth."""
    warm._run_a_day()
    called = (
        pattern_kernel.advance,
        store_kernel.sweep,
        store_kernel.fill_buckets,
        store_kernel.forget_patterns,
        store_kernel.renumber,
        store_kernel.forget_user,
        store_kernel.forget_users,
        catalogue_kernel.hash_texts,
        catalogue_kernel.fill_catalogue,
        catalogue_kernel.fill_categories,
    )
    assert [one.py_func.__name__ for one in called if not one.signatures] == []


def test_warming_compiles_every_kernel_that_an_activation_is_made_of():
    """L10: the first fence to go away, the first cell to move, must not hold up the log for a second."""
    warm._run_a_day()
    called = (
        activation_kernel.leave_removed,
        activation_kernel.renumber,
        activation_kernel.renumber_cells,
        presence_kernel.mark_idle,
        presence_kernel.reset_all,
    )
    assert [one.py_func.__name__ for one in called if not one.signatures] == []
