"""What cannot be said stops nothing: a log on a full disk, a pipe that nobody reads, a disk that stays full."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from engine.runtime import repeated
from engine.runtime.repeated import Repeated

ROOT = Path(__file__).resolve().parents[2]
CODE = """
import signal
from engine.cli import _configure_logs
from engine.cli._saying import say
import structlog
_configure_logs()
say("opportune listens")
structlog.get_logger("x").error("the disk is full")
say("draining ...")
"""


@pytest.mark.parametrize("place", ["/dev/full", "closed"])
def test_a_log_that_cannot_be_written_and_a_reader_that_went_change_neither_work_nor_status(place: str) -> None:
    """F22, F24: the engine goes on, a stop is orderly, and the status says so."""
    if place == "closed":
        process = subprocess.Popen(
            [sys.executable, "-c", CODE], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        process.stderr.close()
        assert process.wait(30) == 0
        return
    with Path(place).open("wb") as full:
        assert subprocess.run([sys.executable, "-c", CODE], cwd=ROOT, stdout=full, stderr=full).returncode == 0


def test_what_goes_on_happening_is_said_once_a_minute(monkeypatch: pytest.MonkeyPatch) -> None:
    now_s = 100.0
    monkeypatch.setattr(repeated, "monotonic_s", lambda: now_s)
    said = Repeated()
    assert said.is_news("the disk is full")
    assert not said.is_news("the disk is full")
    assert said.is_news("the folder is gone")
    now_s = 161.0
    assert said.is_news("the disk is full")
    assert not said.is_news("the disk is full")
