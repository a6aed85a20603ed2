"""`opportune record`: keep what a service takes in, with other pseudonyms, for backtests (docs/backtest.md)."""

from __future__ import annotations

import re
import time
from pathlib import Path
from typing import Annotated

import typer

from engine.clock import wall_ms
from engine.settings import load_settings

_UNITS = {"s": 1, "m": 60, "min": 60, "h": 3600, "d": 86_400}


def register(app: typer.Typer) -> None:
    app.command()(record)


def record(
    span: Annotated[str, typer.Option("--for", help="how long: 7d, 12h, 30min, 45s")],
    to: Annotated[Path, typer.Option(help="folder to write; an unfinished recording there goes on")],
    state: Annotated[Path | None, typer.Option(help="state folder of the service; default from the settings")] = None,
    keep_days: Annotated[int, typer.Option(min=1, help="how long the recording may be kept; written into it")] = 30,
    every_s: Annotated[float, typer.Option(min=0.1, help="seconds between two looks at the journal")] = 2.0,
) -> None:
    """Copy the journal of a service, running or not, under new pseudonyms until the time is over."""
    from engine.runtime.recording import Recorder

    end_ms = wall_ms() + round(_seconds(span) * 1000)
    recorder = Recorder(load_settings(state=state).state, to, keep_days=keep_days)
    try:
        while True:
            recorder.copy()
            left_ms = end_ms - wall_ms()
            if left_ms <= 0:
                break
            time.sleep(min(every_s, left_ms / 1000))
    except KeyboardInterrupt:
        recorder.close()
        print(f"stopped after {recorder.records:,} records; the same command goes on")
        return
    recorder.finish()
    print(f"{recorder.records:,} records in {to}; delete it after {keep_days} days at the latest")


def _seconds(text: str) -> float:
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(s|m|min|h|d)", text.strip())
    if found is None:
        raise typer.BadParameter("a span like 7d, 12h, 30min or 45s", param_hint="--for")
    return float(found[1]) * _UNITS[found[2]]
