"""Commands about content: check and schema."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Column, Table
from rich.text import Text

from engine.clock import wall_ms
from engine.console.terminal import Terminal
from engine.content import Inspection, inspect_content, outdated
from engine.definitions import Content, PresenceTrigger, UsageTrigger
from engine.deliver.gateways.checking import gateway_faults
from engine.errors import Fault, SettingsError
from engine.settings import load_settings, slips_of_variables

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


def check(
    geofences: FencesOption = None,
    scenarios: ScenariosOption = None,
    as_json: Annotated[bool, typer.Option("--json", help="print one JSON object instead of tables")] = False,
) -> None:
    """Load settings, content and gateways as the engine would; report all that is wrong; then exit status 1."""
    inspection = _inspect_all(geofences, scenarios)
    if as_json:
        print(json.dumps(_report(inspection), ensure_ascii=False, indent=2))
    else:
        print_faults(inspection.faults)
        if inspection.content is not None:
            _print_summary(inspection.content)
    if inspection.content is None:
        raise typer.Exit(1)


def _inspect_all(geofences: Path | None, scenarios: Path | None) -> Inspection:
    """Inspect settings, content and gateways; there is no content where any of them is wrong."""
    try:
        settings = load_settings()
    except SettingsError as error:
        # Without settings nobody knows which folders are meant.
        inspection = inspect_content(geofences, scenarios) if geofences and scenarios else Inspection(None, ())
        return Inspection(None, (*error.faults, *slips_of_variables(os.environ), *inspection.faults))
    inspection = inspect_content(geofences or settings.geofences, scenarios or settings.scenarios)
    slips = slips_of_variables(os.environ)
    if inspection.content is None:
        return Inspection(None, (*slips, *inspection.faults))
    of_gateways = gateway_faults(inspection.content, settings)
    faults = (*slips, *inspection.faults, *outdated(inspection.content, wall_ms()), *of_gateways)
    is_sound = all(fault.severity == "warning" for fault in of_gateways)
    return Inspection(inspection.content if is_sound else None, faults)


def inspect_folders(geofences: Path | None, scenarios: Path | None) -> Inspection:
    """Inspect the given folders, or those of the settings."""
    settings = load_settings()
    return inspect_content(geofences or settings.geofences, scenarios or settings.scenarios)


def _report(inspection: Inspection) -> dict[str, object]:
    content = inspection.content
    return {
        "ok": content is not None,
        "version": content.version if content else None,
        "fences": len(content.fences) if content else None,
        "cells": len(content.cells.ids) if content else None,
        "benefits": len(content.benefits) if content else None,
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


def print_faults(faults: Sequence[Fault]) -> None:
    """Print faults as a table, and one a line into a pipe, where a table would break them at an assumed width."""
    if not faults:
        return
    console = Terminal()
    errors = sum(fault.severity == "error" for fault in faults)
    warnings = len(faults) - errors
    console.print(
        f"{_counted(errors, 'fault')}, {_counted(warnings, 'warning')}", style="bold red" if errors else "bold yellow"
    )
    if not console.is_terminal:
        for fault in faults:
            print(f"{fault.severity}: {fault}")
        return
    table = Table(show_lines=True)
    for column in ("file", "where", "found", "expected", "hint"):
        table.add_column(column, overflow="fold")
    for fault in faults:
        style = None if fault.severity == "error" else "yellow"
        cells = (fault.file, fault.path, fault.found, fault.expected, fault.hint)
        table.add_row(*map(Text, cells), style=style)
    console.print(table)


def _print_summary(content: Content) -> None:
    kinds = Counter(fence.kind for fence in content.fences)
    modes = Counter(scenario.mode.value for scenario in content.scenarios)
    Terminal().print(f"The content is sound. Version {content.version}", style="bold green")
    print(f"  {len(content.fences)} fences: {_counts(kinds)}")
    print(f"  {len(content.cells.ids)} cells")
    print(f"  {len(content.benefits)} benefits: {_counts(Counter(one.benefit_class for one in content.benefits))}")
    if content.apps.apps:
        print(f"  {len(content.apps.apps)} apps in {len(set(content.apps.categories))} categories")
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
    print_table(table)


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


def print_table(table: Table) -> None:
    """Print a table on a terminal, and tab-separated lines into a pipe, where a table would be cut at some width."""
    console = Terminal()
    if console.is_terminal:
        console.print(table)
        return
    print("\t".join(str(column.header) for column in table.columns))
    for row in zip(*(column.cells for column in table.columns), strict=True):
        print("\t".join(map(str, row)))


def _counted(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"
