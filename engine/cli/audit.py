"""`opportune audit list | verify | evidence`: who changed what, and whether the record is whole (docs/audit.md)."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import orjson
import typer
from rich.table import Table

from engine.cli.content import print_table
from engine.ledger.audit import SELECT_HEAD, SELECT_ROWS, Row, first_break, forgotten_name, read_rows
from engine.ledger.reading import LedgerReader
from engine.runtime.id_key import load_id_key
from engine.settings import load_settings

StateOption = Annotated[Path | None, typer.Option("--state", help="state folder; the service may be running")]

_OF_USERS = ("consent", "forget")
_WHATS = ("content", "mode", "stage", "pause", *_OF_USERS)

audit_app = typer.Typer(
    help="Changes of content, modes, stages, pauses and consent, and erasures.", no_args_is_help=True
)


def register(app: typer.Typer) -> None:
    app.add_typer(audit_app, name="audit")


@audit_app.command("list")
def list_rows(
    state: StateOption = None,
    limit: Annotated[int, typer.Option(help="newest rows shown", min=1)] = 100,
    what: Annotated[str | None, typer.Option(help="only content, mode, stage, pause, consent or forget")] = None,
    user: Annotated[str | None, typer.Option(help="only consents of this user, and when it was forgotten")] = None,
) -> None:
    """Show changes, oldest first. Users stand under an alias or a keyed hash that only --user resolves."""
    if what is not None and what not in _WHATS:
        raise typer.BadParameter(f"one of {', '.join(_WHATS)}", param_hint="--what")
    reader = _reader(state)
    names = None if user is None else _names_of(user, reader)
    lines: list[tuple[str, ...]] = []
    for row in read_rows(reader.rows(SELECT_ROWS)):
        if (what is None or row.what == what) and (names is None or row.what in _OF_USERS):
            lines += [line for one in _told(row) if (line := _line(row, one, names)) is not None]
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


@audit_app.command("evidence")
def evidence(
    user: Annotated[str, typer.Option(help="the pseudonymous id")],
    state: StateOption = None,
) -> None:
    """Show what a user said of consent in messages of their own, oldest first: when, and in which words (A3)."""
    reader = _reader(state)
    query = "SELECT at_ms, purpose, granted, source, text FROM evidence WHERE user = ? ORDER BY number"
    table = Table("at", "purpose", "said", "source", "text")
    for at_ms, purpose, granted, source, text in reader.rows(query, user):
        at = datetime.fromtimestamp(int(str(at_ms)) / 1000, UTC).strftime("%Y-%m-%d %H:%M:%SZ")
        table.add_row(at, str(purpose), _said(bool(granted)), str(source), repr(text))
    reader.close()
    print_table(table)


def _reader(state: Path | None) -> LedgerReader:
    return LedgerReader(load_settings(state=state).state / "ledger.db")


def _names_of(user: str, reader: LedgerReader) -> set[str]:
    """Return what a user is called in the log: the alias of its consents, and its hash once it was forgotten."""
    aliases = {str(one).lower() for (one,) in reader.rows("SELECT hex(alias) FROM audit_aliases WHERE user = ?", user)}
    key = reader.path.parent / "offer-id.key"
    return aliases | ({forgotten_name(load_id_key(key), user)} if key.exists() else set())


def _told(row: Row) -> list[dict[str, Any]]:
    body: dict[str, Any] = orjson.loads(row.body)
    return list(body.get("changes", [body]))


def _line(row: Row, one: dict[str, Any], names: set[str] | None) -> tuple[str, ...] | None:
    # The first content of a log is older than its first event.
    at = datetime.fromtimestamp(row.at_ms / 1000, UTC).strftime("%Y-%m-%d %H:%M:%SZ") if row.at_ms else "-"
    if names is not None and one.get("user", one.get("subject")) not in names:
        return None
    is_consent = row.what == "consent"
    who, subject = (one["source"], f"{one['purpose']} of {one['user']}") if is_consent else (row.who, one["subject"])
    return str(row.seq), at, who, row.what, subject, _said(one["old"]), _said(one["new"])


def _said(value: object) -> str:
    return "" if value is None else "yes" if value is True else "no" if value is False else str(value)
