"""`opportune profiles import`: tables of users into a running or a stopped engine (docs/profiles.md)."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from engine.cli.serve import service_url
from engine.clock import wall_ms
from engine.console.terminal import Terminal
from engine.errors import OpportuneError
from engine.settings import Settings, load_settings

SHOWN_FAULTS = 20

profiles_app = typer.Typer(help="What is known of users: import tables of them.", no_args_is_help=True)


def register(app: typer.Typer) -> None:
    app.add_typer(profiles_app, name="profiles")


@profiles_app.command("import")
def import_file(
    file: Annotated[Path, typer.Argument(help="CSV or Parquet; columns as in docs/profiles.md", exists=True)],
    state: Annotated[
        Path | None, typer.Option("--state", help="state folder of a stopped service; without it the running one")
    ] = None,
    url: Annotated[str | None, typer.Option(help="of the service; default from the settings")] = None,
    source: Annotated[str, typer.Option(help="where consents come from that do not say so")] = "import",
    clear: Annotated[bool, typer.Option("--clear", help="empty cells clear what is known; else they leave it")] = False,
    ignore_others: Annotated[
        bool, typer.Option("--ignore-others", help="pass over columns that mean nothing to the engine")
    ] = False,
    only_check: Annotated[bool, typer.Option("--check", help="read everything, send nothing")] = False,
    most_faults: Annotated[int, typer.Option(help="stop when more rows cannot be used", min=0)] = 1000,
    faults: Annotated[Path | None, typer.Option(help="CSV file to list every refused row in")] = None,
) -> None:
    """Import tags, attributes, organisation, zone and consent. Goes on where it was cut off; again changes nothing.

    Exit status 1 where rows were refused.
    """
    from engine.console import importing
    from engine.decode.profile_columns import ProfileRows, RowFault
    from engine.runtime.profile_files import Progress as Kept
    from engine.runtime.profile_files import TableFile

    settings = load_settings(state=state)
    table = TableFile(file)
    now_ms = wall_ms()
    rows = ProfileRows(
        table.columns,
        at_ms=now_ms,
        latest_ms=now_ms,
        source=source,
        tenant=settings.tenant,
        clear=clear,
        ignore_others=ignore_others,
    )
    base_url = service_url(settings, url)
    into = base_url if state is None else str(state.resolve())
    kept = None if only_check else Kept(table, into)
    console = Terminal(is_error=True)
    if kept is not None and kept.rows:
        console.print(f"going on after row {kept.rows:,}, where the last import was cut off")
    with _told(console, file, faults) as tell, _bar(console, table.total) as advance:
        arguments: dict[str, Any] = {"most_faults": most_faults, "on_progress": advance}

        def on_fault(fault: RowFault) -> None:
            tell(fault.row, fault.column, fault.expected)

        async def work() -> importing.Tally:
            if only_check:
                return await importing.import_rows(table, rows, None, None, on_fault=on_fault, **arguments)
            async with _engine(state, settings, base_url) as engine:
                return await importing.import_rows(table, rows, engine, kept, on_fault=on_fault, **arguments)

        tally = asyncio.run(work())
    sound = tally.rows - tally.refused
    done = "can be imported" if only_check else "imported"
    again = f" ({tally.done_before:,} of them before)" if tally.done_before else ""
    rate = f", {(tally.rows - tally.done_before) / tally.seconds:,.0f} rows/s" if tally.seconds > 1 else ""
    print(f"{sound:,} rows {done}{again}, {tally.refused:,} refused{rate}")
    if kept is not None and not kept.is_kept:
        console.print(f"{file.parent} cannot be written: a cut import would have begun anew")
    if tally.refused:
        raise typer.Exit(1)


def _engine(state: Path | None, settings: Settings, base_url: str) -> Any:
    from engine.console import importing

    if state is None:
        return importing.running_engine(base_url, settings.api_key)
    from engine.runtime.warm import warm_aloud

    warm_aloud()
    return importing.stopped_engine(settings)


@contextlib.contextmanager
def _bar(console: Terminal, total: int) -> Iterator[Callable[[int, Any], None]]:
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        TextColumn("{task.percentage:>3.0f}% {task.fields[rows]:,} rows"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("importing", total=max(total, 1), rows=0)
        yield lambda done, tally: bar.update(task, completed=done, rows=tally.rows)


@contextlib.contextmanager
def _told(console: Terminal, file: Path, listing: Path | None) -> Iterator[Callable[[int, str, str], None]]:
    """Tell the first faults at once, and all of them in a file where one is asked for."""
    from defusedcsv import csv

    shown = 0
    try:
        handle = None if listing is None else listing.open("w", newline="", encoding="utf-8")
    except OSError as error:
        raise OpportuneError(f"{listing} cannot be written: {error.strerror}") from None
    writer = None if handle is None else csv.writer(handle)
    if writer is not None:
        writer.writerow(("row", "column", "expected"))

    def tell(row: int, column: str, expected: str) -> None:
        nonlocal shown
        shown += 1
        if shown <= SHOWN_FAULTS:
            console.print(f"{file.name}: row {row}, column {column}: {expected}", highlight=False)
        if writer is not None:
            writer.writerow((row, column, expected))

    try:
        yield tell
    finally:
        if handle is not None:
            handle.close()
        if shown > SHOWN_FAULTS:
            where = f"all in {listing}" if listing else "list all with --faults FILE"
            console.print(f"... and {shown - SHOWN_FAULTS:,} more ({where})")
