"""Commands about content: check, schema, fences."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Column, Table
from rich.text import Text

from engine.content import Inspection, inspect_content
from engine.definitions import Content, PresenceTrigger, UsageTrigger
from engine.settings import load_settings

FencesOption = Annotated[
    Path | None, typer.Option("--geofences", help="folder of geofences", show_default="from the settings")
]
ScenariosOption = Annotated[
    Path | None, typer.Option("--scenarios", help="folder of scenarios", show_default="from the settings")
]


def register(app: typer.Typer) -> None:
    """Add the commands of this file to the application."""
    app.command("check")(check)
    app.command("schema")(schema)
    app.add_typer(fences_app, name="fences")


fences_app = typer.Typer(help="List geofences, or make them from other formats.", no_args_is_help=True)


def check(
    geofences: FencesOption = None,
    scenarios: ScenariosOption = None,
    as_json: Annotated[bool, typer.Option("--json", help="print one JSON object instead of tables")] = False,
) -> None:
    """Load all content as the engine would and report everything that is wrong; exit status 1 where anything is."""
    inspection = _inspect(geofences, scenarios)
    if as_json:
        print(json.dumps(_report(inspection), ensure_ascii=False, indent=2))
    else:
        _print_faults(inspection)
        if inspection.content is not None:
            _print_summary(inspection.content)
    if inspection.content is None:
        raise typer.Exit(1)


def _inspect(geofences: Path | None, scenarios: Path | None) -> Inspection:
    settings = load_settings()
    return inspect_content(geofences or settings.geofences, scenarios or settings.scenarios)


def _report(inspection: Inspection) -> dict[str, object]:
    content = inspection.content
    return {
        "ok": content is not None,
        "version": content.version if content else None,
        "fences": len(content.fences) if content else None,
        "cells": len(content.cells.ids) if content else None,
        "scenarios": len(content.scenarios) if content else None,
        "faults": [
            {
                "severity": fault.severity,
                "file": fault.file,
                "path": fault.path,
                "found": fault.found,
                "expected": fault.expected,
                "hint": fault.hint,
            }
            for fault in inspection.faults
        ],
    }


def _print_faults(inspection: Inspection) -> None:
    if not inspection.faults:
        return
    console = Console()
    errors = len(inspection.errors)
    warnings = len(inspection.faults) - errors
    console.print(f"{errors} faults, {warnings} warnings", style="bold red" if errors else "bold yellow")
    if not console.is_terminal:
        # A pipe gets whole lines that can be searched; a table would break them at an assumed width.
        for fault in inspection.faults:
            print(f"{fault.severity}: {fault}")
        return
    table = Table(show_lines=True)
    for column in ("file", "where", "found", "expected", "hint"):
        table.add_column(column, overflow="fold")
    for fault in inspection.faults:
        style = None if fault.severity == "error" else "yellow"
        cells = (fault.file, fault.path, fault.found, fault.expected, fault.hint)
        table.add_row(*map(Text, cells), style=style)
    console.print(table)


def _print_summary(content: Content) -> None:
    kinds = Counter(fence.kind for fence in content.fences)
    modes = Counter(scenario.mode.value for scenario in content.scenarios)
    Console().print(f"The content is sound. Version {content.version}", style="bold green")
    print(f"  {len(content.fences)} fences: {_counts(kinds)}")
    print(f"  {len(content.cells.ids)} cells")
    print(f"  {len(content.scenarios)} scenarios: {_counts(modes)}")
    table = Table(Column("scenario", no_wrap=True), "name", "mode", "trigger", "fences", "channels")
    for scenario in content.scenarios:
        trigger = scenario.trigger
        kind = trigger.kind if not isinstance(trigger, UsageTrigger) else "usage"
        if isinstance(trigger, PresenceTrigger) and trigger.threshold_s:
            kind += (
                f" {trigger.threshold_s // 60} min" if trigger.threshold_s % 60 == 0 else f" {trigger.threshold_s} s"
            )
        count = str(len(trigger.fences)) if isinstance(trigger, PresenceTrigger) else ""
        table.add_row(scenario.id, scenario.name, scenario.mode.value, kind, count, ", ".join(scenario.offer.channels))
    _print_table(table)


def _counts(counter: Counter[str]) -> str:
    return ", ".join(f"{count} {name}" for name, count in counter.most_common()) or "none"


def schema(name: Annotated[str | None, typer.Argument(help="which; without it the names are listed")] = None) -> None:
    """Print a JSON Schema for editors and integrators."""
    from engine.content.schemas import SCHEMAS, schema_of

    if name is None:
        for known, words in SCHEMAS.items():
            print(f"{known:12} {words}")
        return
    if name not in SCHEMAS:
        raise typer.BadParameter(f"{name!r} is none of {', '.join(SCHEMAS)}")
    print(json.dumps(schema_of(name), ensure_ascii=False, indent=2))


@fences_app.command("list")
def list_fences(
    geofences: FencesOption = None,
    scenarios: ScenariosOption = None,
    kind: Annotated[str | None, typer.Option(help="only this kind")] = None,
) -> None:
    """List every fence with its shape, place and hours."""
    inspection = _inspect(geofences, scenarios)
    if inspection.content is None:
        _print_faults(inspection)
        raise typer.Exit(1)
    table = Table("id", "name", "kind", "shape", "lon", "lat", "hours", "tags")
    for fence in inspection.content.fences:
        if kind in (None, fence.kind):
            tags = ", ".join(sorted(fence.tags))
            spot = (f"{fence.lon:.5f}", f"{fence.lat:.5f}")
            table.add_row(fence.id, fence.name, fence.kind, fence.shape.value, *spot, fence.opening_hours or "", tags)
    _print_table(table)


def _print_table(table: Table) -> None:
    """Print a table on a terminal, and tab-separated lines into a pipe, where a table would be cut at some width."""
    console = Console()
    if console.is_terminal:
        console.print(table)
        return
    print("\t".join(str(column.header) for column in table.columns))
    for row in zip(*(column.cells for column in table.columns), strict=True):
        print("\t".join(map(str, row)))
