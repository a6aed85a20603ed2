"""`opportune audience count`: how many users an expression or a scenario's audience would reach (docs/profiles.md)."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Column, Table

from engine.cli._stopped import stopped_service
from engine.cli.content import print_table
from engine.cli.serve import call_service
from engine.console.terminal import Terminal

_SCENARIO = re.compile(r"[a-z][a-z0-9-]*/[a-z0-9][a-z0-9-]*")

audience_app = typer.Typer(help="Audiences: how many users they hold.", no_args_is_help=True)


def register(app: typer.Typer) -> None:
    app.add_typer(audience_app, name="audience")


@audience_app.command("count")
def count(
    audience: Annotated[
        str | None, typer.Argument(help="id of a scenario, a tag, or a condition; none: everybody with a profile")
    ] = None,
    state: Annotated[
        Path | None, typer.Option("--state", help="state folder of a stopped service; without it the running one")
    ] = None,
    url: Annotated[str | None, typer.Option(help="of the service; default from the settings")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="print JSON")] = False,
) -> None:
    """Count whom an audience would reach, by channel; a condition is written as in a scenario.

    Counts below 10 read <10, and sets that differ by fewer than 10 users get one answer.
    """
    asked: dict[str, str] = {}
    if audience is not None:
        asked = {"scenario" if _SCENARIO.fullmatch(audience) else "expression": audience}
    told = _count_stopped(state, asked) if state else call_service("POST", "/v1/audience", url=url, json=asked)
    if as_json:
        Terminal().print_json(data=told)
        return
    table = Table("audience", Column("users", justify="right"), title=told["audience"], title_justify="left")
    table.add_row("with a profile", _number(told["profiles"]))
    table.add_row("in the audience", _number(told["users"]))
    for channel, users in told["reachable"].items():
        table.add_row(f"may be sent to by {channel}", _number(users))
    print_table(table)


def _count_stopped(state: Path, asked: dict[str, str]) -> dict[str, Any]:
    from engine.console.audience import AudienceCount

    with stopped_service(state) as service:
        return AudienceCount().count(service.pipeline, **asked)


def _number(users: int | str) -> str:
    return f"{users:,}" if isinstance(users, int) else users
