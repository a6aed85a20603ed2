"""`opportune addresses import | count` and `opportune forget`."""

from __future__ import annotations

import csv
import getpass
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import typer

from engine.console.terminal import Terminal
from engine.errors import OpportuneError
from engine.settings import load_settings

StateOption = Annotated[Path | None, typer.Option("--state", help="state folder; default from the settings")]
COLUMNS = ("user", "channel", "address")
_CHANNEL = re.compile(r"[a-z][a-z0-9_-]{0,19}")
_NUMBER = re.compile(r"\+?[0-9]{5,20}")
_SHOWN_FAULTS = 20

addresses_app = typer.Typer(help="The address book: who is behind a user id, encrypted.", no_args_is_help=True)


def register(app: typer.Typer) -> None:
    app.add_typer(addresses_app, name="addresses")
    app.command("forget")(forget)


@addresses_app.command("import")
def import_file(
    file: Annotated[Path, typer.Argument(help="CSV with a header naming user, channel and address")],
    state: StateOption = None,
) -> None:
    """Add or replace addresses; the service may be running. Exit status 1 where a row cannot be used."""
    from engine.deliver.addressbook import open_address_book

    faults: list[str] = []
    book = open_address_book(load_settings(state=state))
    try:
        count = book.put(read_rows(file, faults))
    finally:
        book.close()
    console = Terminal(is_error=True)
    for fault in faults[:_SHOWN_FAULTS]:
        console.print(f"{file.name}: {fault}", highlight=False)
    if len(faults) > _SHOWN_FAULTS:
        console.print(f"... and {len(faults) - _SHOWN_FAULTS} more")
    print(f"{_counted(count, 'address', 'addresses')} imported, {_counted(len(faults), 'row', 'rows')} refused")
    if faults:
        raise typer.Exit(1)


@addresses_app.command("count")
def count_entries(state: StateOption = None) -> None:
    """Say how many addresses there are."""
    from engine.deliver.addressbook import open_address_book

    settings = load_settings(state=state)
    if not (settings.state / "addresses.db").exists():
        raise OpportuneError(f"there is no address book in {settings.state}; name the state folder by --state")
    book = open_address_book(settings)
    print(f"{book.count():,}")
    book.close()


def forget(
    user: Annotated[str, typer.Option("--user", help="the pseudonymous id")],
    state: StateOption = None,
) -> None:
    """Remove every trace of a user from all stores. The service must be stopped; kernels may have to compile first."""
    from engine.console.forgetting import forget as forget_user
    from engine.deliver.addressbook import open_address_book
    from engine.runtime.warm import warm_aloud

    settings = load_settings(state=state)
    if not settings.state.is_dir():
        raise OpportuneError(f"there is no state in {settings.state}")
    warm_aloud()
    book = open_address_book(settings)
    try:
        done = forget_user(settings, book, user, by=f"local, {getpass.getuser()}")
    finally:
        book.close()
    print(
        f"forgotten: {_counted(done.addresses, 'address', 'addresses')}, "
        f"{'state' if done.had_state else 'no state'}, "
        f"events in {_counted(done.journal_records, 'journal record', 'journal records')}"
    )


def _counted(number: int, one: str, many: str) -> str:
    return f"{number:,} {one if number == 1 else many}"


def read_rows(file: Path, faults: list[str]) -> Iterator[tuple[str, str, str]]:
    """Yield (user, channel, address); what cannot be used is told in `faults` by line, never by its address."""
    try:
        with file.open(newline="", encoding="utf-8-sig") as handle:
            reader = csv.DictReader(handle)
            missing = [name for name in COLUMNS if name not in (reader.fieldnames or ())]
            if missing:
                raise OpportuneError(f"{file}: the first line must name the columns user, channel and address")
            for row in reader:
                values = [(row[name] or "").strip() for name in COLUMNS]
                fault = _fault(*values)
                if fault is None:
                    yield values[0], values[1], values[2]
                else:
                    faults.append(f"line {reader.line_num}: {fault}")
    except (OSError, UnicodeDecodeError) as error:
        raise OpportuneError(f"{file} cannot be read: {type(error).__name__}") from None


def _fault(user: str, channel: str, address: str) -> str | None:
    if not 1 <= len(user.encode()) <= 128:
        return "user must be 1 to 128 bytes"
    if not _CHANNEL.fullmatch(channel):
        return "channel must be a word such as sms or app"
    if channel == "sms" and not _NUMBER.fullmatch(address):
        return "the address of an SMS is 5 to 20 digits, with + or without"
    return None if 1 <= len(address) <= 512 else "address must be 1 to 512 characters"
