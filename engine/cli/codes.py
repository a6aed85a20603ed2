"""`opportune codes import | list | recall`: pools of voucher codes."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from engine.cli.content import print_table
from engine.console.terminal import Terminal
from engine.errors import OpportuneError
from engine.settings import load_settings

if TYPE_CHECKING:
    from engine.ledger.codes import CodeStore

StateOption = Annotated[Path | None, typer.Option("--state", help="state folder; default from the settings")]
_POOL = re.compile(r"[a-z0-9][a-z0-9_-]{0,63}")

codes_app = typer.Typer(help="Voucher codes: pools that benefits draw on (stock.codes).", no_args_is_help=True)


def register(app: typer.Typer) -> None:
    app.add_typer(codes_app, name="codes")


@codes_app.command("import")
def import_file(
    pool: Annotated[str, typer.Argument(help="name of the pool; made where it is missing")],
    file: Annotated[
        Path, typer.Argument(help="CSV: one code a line, or columns one of which is called `code`", exists=True)
    ],
    state: StateOption = None,
) -> None:
    """Add codes to a pool; the service may be running. Exit status 1 where a line holds no code.

    Run it again after an interruption: it goes on where it stopped. Codes that are there already are counted and left.
    """
    from engine.ledger.codes import CodeStore
    from engine.ledger.codes_import import Imported, import_codes

    if not _POOL.fullmatch(pool):
        raise typer.BadParameter("a pool is named by up to 64 lower-case letters, digits, '-' and '_'")
    console = Terminal(is_error=True)
    store = CodeStore(load_settings(state=state).state / "codes.db")
    columns = (TextColumn("codes"), BarColumn(), TextColumn("{task.fields[told]}"), TimeRemainingColumn())
    try:
        with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
            task = progress.add_task("codes", total=max(1, file.stat().st_size), told="")

            def tell(done: Imported) -> None:
                told = f"{done.imported:,} imported, {done.duplicates:,} there already, {done.refused:,} refused"
                progress.update(task, completed=done.done_bytes, told=told)

            done = import_codes(store, pool, file, tell)
        store.tidy()
    finally:
        store.close()
    if done.was_begun:
        console.print("This file was begun before; the counts are of all runs together.")
    for line in done.refused_lines:
        console.print(f"{file.name}: line {line}: no code: 1 to 64 letters, digits, '-' and '_'", highlight=False)
    print(f"{done.imported:,} codes imported, {done.duplicates:,} were there already, {done.refused:,} lines refused")
    if done.refused:
        raise typer.Exit(1)


@codes_app.command("list")
def list_pools(state: StateOption = None) -> None:
    """Say how many codes each pool has, and how many are leased to the engine or still free."""
    store = _existing(state)
    table = Table("pool", "codes", "leased", "free", "epoch")
    for one in store.pools():
        table.add_row(one.name, f"{one.count:,}", f"{one.leased:,}", f"{one.free:,}", str(one.epoch))
    store.close()
    print_table(table)


@codes_app.command("recall")
def recall(
    pool: Annotated[str, typer.Argument(help="name of the pool")],
    state: StateOption = None,
) -> None:
    """Let every lease of a pool expire: codes not given come back, offers not yet handed over are not sent."""
    store = _existing(state)
    try:
        epoch = store.recall(pool)
    finally:
        store.close()
    print(f"leases of {pool} up to epoch {epoch} expire; a running service acts on it within seconds")


def _existing(state: Path | None) -> CodeStore:
    """Open the pools of a state folder; looking at none must not make an empty store."""
    from engine.ledger.codes import CodeStore

    path = load_settings(state=state).state / "codes.db"
    if not path.exists():
        raise OpportuneError(f"there are no pools in {path.parent}; name the state folder by --state")
    return CodeStore(path)
