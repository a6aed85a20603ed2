"""`opportune report`: effect of scenarios, settlement with partners, reconciliation, activity of organisations."""

from __future__ import annotations

import contextlib
import csv
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated
from zoneinfo import ZoneInfo

import typer
from rich.table import Column, Table

from engine.cli.content import print_table
from engine.clock import wall_ms
from engine.console.terminal import Terminal
from engine.errors import OpportuneError
from engine.settings import load_settings

if TYPE_CHECKING:
    from engine.console.reports import Reports
    from engine.report.sheet import Sheet

StateOption = Annotated[Path | None, typer.Option("--state", help="state folder; the service may be running")]
MonthOption = Annotated[str | None, typer.Option("--month", help="YYYY-MM in the policy's zone; default: this one")]
CsvOption = Annotated[Path | None, typer.Option("--csv", help="write CSV here, fit for spreadsheets")]
ParquetOption = Annotated[Path | None, typer.Option("--parquet", help="write Parquet here")]

report_app = typer.Typer(help="What came of it: effect, settlement, reconciliation, activity.", no_args_is_help=True)


def register(app: typer.Typer) -> None:
    app.add_typer(report_app, name="report")


@report_app.command("effect")
def effect(
    state: StateOption = None,
    month: MonthOption = None,
    within_days: Annotated[int, typer.Option(help="how long a redemption counts for an offer", min=1, max=62)] = 30,
    to_csv: CsvOption = None,
    to_parquet: ParquetOption = None,
) -> None:
    """Per scenario: sent, delivered, redeemed, withheld, lift over the holdout, fairness of the split, cost, income."""
    with _reports(state) as reports:
        _give(reports.effect(*_period(reports, month), within_days), to_csv, to_parquet)


@report_app.command("settlement")
def settlement(
    state: StateOption = None,
    month: MonthOption = None,
    to_csv: CsvOption = None,
    to_parquet: ParquetOption = None,
) -> None:
    """Per partner and province: issued, redeemed, refunded, what is owed; totals, and one hash of all lines."""
    with _reports(state) as reports:
        _give(reports.settlement(*_period(reports, month)), to_csv, to_parquet)


@report_app.command("reconcile")
def reconcile(
    partner: Annotated[str, typer.Argument(help="as in the content")],
    file: Annotated[Path, typer.Argument(help="CSV of the partner: offer_id or code, and amount_fen if it has one")],
    state: StateOption = None,
    month: MonthOption = None,
    to_csv: CsvOption = None,
    to_parquet: ParquetOption = None,
) -> None:
    """Compare what was issued, what was redeemed and what a partner claims; exit status 1 where they differ."""
    with _reports(state) as reports:
        sheet = reports.reconciliation(partner, read_claims(file), *_period(reports, month))
    _give(sheet, to_csv, to_parquet)
    if sheet.rows:
        raise typer.Exit(1)


@report_app.command("activity")
def activity(
    organisations: Annotated[
        list[str], typer.Argument(help="paths as in profiles: beijing/haidian; several: a row each")
    ],
    state: StateOption = None,
    month: Annotated[
        str | None, typer.Option("--month", help="YYYY-MM, this month or the last; default: the log's running one")
    ] = None,
    to_csv: CsvOption = None,
    to_parquet: ParquetOption = None,
) -> None:
    """Per organisation subtree: the share of its users who paid 3 visits or received 3 messages in a month."""
    with _reports(state) as reports:
        _give(reports.activity(organisations, month), to_csv, to_parquet)


def read_claims(file: Path) -> list[tuple[int, str, int | None]]:
    """Read (line, offer id or code, amount); raise OpportuneError naming the first line that cannot be used."""
    try:
        with file.open(newline="", encoding="utf-8-sig") as handle:
            reader = csv.DictReader(handle)
            names = reader.fieldnames or ()
            name = next((one for one in ("offer_id", "code") if one in names), None)
            if name is None:
                raise OpportuneError(f"{file}: the first line must name the column offer_id or code")
            claims = []
            for row in reader:
                named, fen = (row[name] or "").strip(), (row.get("amount_fen") or "").strip()
                if not named or (fen and not (fen.isascii() and fen.isdigit() and len(fen) < 16)):
                    raise OpportuneError(
                        f"{file}: line {reader.line_num}: {name} and, if given, amount_fen as a whole number expected"
                    )
                # A spreadsheet that opened our CSV gives back the mark that keeps it from being a formula.
                claims.append((reader.line_num, named.removeprefix("'"), int(fen) if fen else None))
            return claims
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise OpportuneError(f"{file} cannot be read: {type(error).__name__}") from None


@contextlib.contextmanager
def _reports(state: Path | None) -> Iterator[Reports]:
    from engine.console.reports import Reports

    reports = Reports(load_settings(state=state).state)
    try:
        yield reports
    finally:
        reports.close()


def _period(reports: Reports, month: str | None) -> tuple[int, int]:
    from engine.console.reports import month_of

    zone = reports.time_zone()
    if month is None:
        month = datetime.fromtimestamp(wall_ms() / 1000, UTC).astimezone(ZoneInfo(zone)).strftime("%Y-%m")
    return month_of(month, zone)


def _give(sheet: Sheet, to_csv: Path | None, to_parquet: Path | None) -> None:
    try:
        if to_csv is not None:
            to_csv.write_bytes(sheet.csv())
        if to_parquet is not None:
            to_parquet.write_bytes(sheet.parquet())
    except OSError as error:
        raise OpportuneError(f"{error.filename} cannot be written: {error.strerror}") from None
    numeric = {place for row in sheet.rows for place, cell in enumerate(row) if isinstance(cell, int | float)}
    columns = [
        Column(name.replace("_", " "), justify="right" if place in numeric else "left", overflow="fold")
        for place, name in enumerate(sheet.columns)
    ]
    table = Table(*columns, title=sheet.title, title_justify="left")
    for row in sheet.rows:
        table.add_row(*(_shown(cell) for cell in row))
    print_table(table)
    for note in sheet.notes:
        Terminal().print(note, highlight=False, soft_wrap=True)


def _shown(cell: object) -> str:
    if isinstance(cell, float):
        return f"{cell:.4f}"
    return "" if cell is None else f"{cell:,}" if isinstance(cell, int) else str(cell)
