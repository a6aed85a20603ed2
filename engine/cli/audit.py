"""`opportune audit list | verify`: who changed what, and whether the record of it is whole (docs/audit.md)."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import orjson
import typer
from rich.table import Table

from engine.cli.content import print_table
from engine.ledger.audit import SELECT_HEAD, SELECT_ROWS, Row, first_break, read_rows
from engine.ledger.reading import LedgerReader
from engine.settings import load_settings

StateOption = Annotated[Path | None, typer.Option("--state", help="state folder; the service may be running")]

audit_app = typer.Typer(help="Changes of content, mode, pause and consent.", no_args_is_help=True)


def register(app: typer.Typer) -> None:
    app.add_typer(audit_app, name="audit")


@audit_app.command("list")
def list_rows(
    state: StateOption = None,
    limit: Annotated[int, typer.Option(help="newest rows shown", min=1)] = 100,
    what: Annotated[str | None, typer.Option(help="only content, mode, pause or consent")] = None,
    user: Annotated[str | None, typer.Option(help="only consents of this user")] = None,
) -> None:
    """Show changes, oldest first. Users of consents stand under an alias that only --user resolves."""
    reader = _reader(state)
    alias = None
    if user is not None:
        found = next(iter(reader.rows("SELECT hex(alias) FROM audit_aliases WHERE user = ?", user)), None)
        alias = str(found[0]).lower() if found is not None else ""
    lines: list[tuple[str, ...]] = []
    for row in read_rows(reader.rows(SELECT_ROWS)):
        if (what is None or row.what == what) and (alias is None or row.what == "consent"):
            lines += [line for one in _told(row) if (line := _line(row, one, alias)) is not None]
    reader.close()
    table = Table("row", "at", "who", "what", "subject", "old", "new")
    for line in lines[-limit:]:
        table.add_row(*line)
    print_table(table)


@audit_app.command("verify")
def verify(
    state: StateOption = None,
    head: Annotated[
        str | None, typer.Option(help="a head noted earlier (SEQ:HASH): it must still be in the chain")
    ] = None,
) -> None:
    """Check the chain of hashes; name the first row that is not as it was written. Exit status 1 where there is one."""
    reader = _reader(state)
    kept = next(iter(reader.rows(SELECT_HEAD)), None)
    rows = list(read_rows(reader.rows(SELECT_ROWS)))
    reader.close()
    fault = first_break(rows, None if kept is None else str(kept[0]))
    if fault is None and head is not None and head not in {f"{row.seq}:{row.hash.hex()}" for row in rows}:
        fault = f"the head {head} is not in the chain: rows were written anew"
    if fault is not None:
        print(f"the audit log is broken: {fault}")
        raise typer.Exit(1)
    newest = f"{rows[-1].seq}:{rows[-1].hash.hex()}" if rows else "0:"
    print(f"{len(rows):,} rows, whole; head {newest}")


def _reader(state: Path | None) -> LedgerReader:
    return LedgerReader(load_settings(state=state).state / "ledger.db")


def _told(row: Row) -> list[dict[str, Any]]:
    body: dict[str, Any] = orjson.loads(row.body)
    return list(body.get("changes", [body]))


def _line(row: Row, one: dict[str, Any], alias: str | None) -> tuple[str, ...] | None:
    at = datetime.fromtimestamp(row.at_ms / 1000, UTC).strftime("%Y-%m-%d %H:%M:%SZ")
    if row.what != "consent":
        return str(row.seq), at, row.who, row.what, one["subject"], _said(one["old"]), _said(one["new"])
    if alias is not None and one["user"] != alias:
        return None
    subject = f"{one['purpose']} of {one['user']}"
    return str(row.seq), at, one["source"], row.what, subject, _said(one["old"]), _said(one["new"])


def _said(value: object) -> str:
    return "" if value is None else "yes" if value is True else "no" if value is False else str(value)
