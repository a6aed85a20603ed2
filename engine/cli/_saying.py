"""What a service says to its terminal or log file, and goes on working where that cannot be written.

A log on a disk that is full, or a pipe whose reader has gone, must stop neither the engine nor an orderly end.
"""

from __future__ import annotations

import contextlib
import os
import sys

_STDERR = 2


def say(line: str) -> None:
    """Print a line to standard output, if anybody reads it."""
    try:
        print(line, flush=True)
    except (OSError, ValueError):
        # Else Python tries again at the end, and ends with a status of its own.
        stop_saying()


def stop_saying() -> None:
    """Let standard output go nowhere from now on."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


class LogLines:
    """Takes lines from structlog and writes them to standard error, past Python's buffers: what fails is lost."""

    def msg(self, message: str) -> None:
        with contextlib.suppress(OSError):
            os.write(_STDERR, f"{message}\n".encode(errors="backslashreplace"))

    log = debug = info = warn = warning = fatal = failure = err = error = critical = exception = msg


def log_lines(*_: object) -> LogLines:
    """Make what structlog writes to."""
    return LogLines()
