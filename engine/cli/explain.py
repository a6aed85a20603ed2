"""`opportune explain`: why a user got something, or did not, gate by gate with the values compared."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from engine.cli.serve import NotRunning, call_service
from engine.errors import OpportuneError
from engine.settings import load_settings


def register(app: typer.Typer) -> None:
    app.command()(explain)


def explain(
    user: Annotated[str, typer.Option(help="the pseudonymous user")],
    at: Annotated[
        str | None, typer.Option(help="RFC 3339 or epoch ms: decisions up to then; without it also now")
    ] = None,
    url: Annotated[str | None, typer.Option(help="of the service; default from the settings")] = None,
    state: Annotated[Path | None, typer.Option(help="state folder, read where no service runs")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="print JSON")] = False,
) -> None:
    """Say why: the stored decisions of this user, and what every scenario would do now."""
    at_ms = None if at is None else _instant(at)
    answer = _ask(user, at_ms, url, state)
    console = Console()
    if as_json:
        console.print_json(data=answer)
        return
    _print_decisions(console, answer)
    for trace in answer.get("now", ()):
        _print_trace(console, trace)
    if at_ms is None and not answer.get("now"):
        console.print(f"nothing is known of {user} now: no event of this user was processed")


def _ask(user: str, at_ms: int | None, url: str | None, state: Path | None) -> dict[str, Any]:
    params: dict[str, Any] = {"user": user} | ({"at_ms": at_ms} if at_ms is not None else {})
    if state is None:
        try:
            return call_service("GET", "/v1/explain", url=url, params=params)
        except NotRunning:
            if url is not None:
                raise
    settings = load_settings(state=state)
    if not (settings.state / "ledger.db").exists():
        raise OpportuneError(
            f"no service answers, and {settings.state} holds no state; start one (opportune serve) or name --state"
        )
    from engine.runtime.service import Service

    service = Service(settings)
    try:
        return service.explain(user, at_ms)
    finally:
        service.stop()


def _instant(text: str) -> int:
    if text.isdigit():
        return int(text)
    try:
        when = datetime.fromisoformat(text)
    except ValueError:
        raise typer.BadParameter("an instant like 2026-01-02T03:04:05Z, or epoch ms", param_hint="--at") from None
    if when.tzinfo is None:
        raise typer.BadParameter("say the zone too: 2026-01-02T03:04:05+08:00", param_hint="--at")
    return int(when.timestamp() * 1000)


def _print_decisions(console: Console, answer: dict[str, Any]) -> None:
    table = Table(title=f"decisions about {answer['user']}, newest first (content {answer['content_version']})")
    for column in ("at", "scenario", "outcome", "reason", "trigger", "compared"):
        table.add_column(column, overflow="fold")
    for one in answer["decisions"]:
        times = f" x{one['count']}" if one["count"] > 1 else ""
        trigger = one["trigger"]
        place = f" {trigger['fence']}" if trigger.get("fence") else ""
        table.add_row(
            _shown(one["at"]),
            one["scenario"],
            one["outcome"] + times,
            one["reason"],
            f"{trigger['kind']}{place}",
            _values(one["values"]),
        )
    console.print(table if answer["decisions"] else f"no decision about {answer['user']} in the last 7 days")


def _print_trace(console: Console, trace: dict[str, Any]) -> None:
    table = Table(title=f"{trace['scenario']}, if its trigger came now: {trace['outcome']} / {trace['reason']}")
    for column in ("gate", "answer", "compared"):
        table.add_column(column, overflow="fold")
    for step in trace["steps"]:
        if step["asked"]:
            answer = "passed" if step["passed"] else step["reason"]
        else:
            answer = "nothing to ask" if step["passed"] else "not reached"
        table.add_row(step["gate"], answer, _values(step["values"]))
    console.print(table)


def _values(values: dict[str, Any]) -> str:
    return ", ".join(f"{name}={value}" for name, value in values.items())


def _shown(instant_ms: int) -> str:
    return datetime.fromtimestamp(instant_ms / 1000, UTC).strftime("%Y-%m-%d %H:%M:%SZ")
