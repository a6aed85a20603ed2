"""`opportune explain`: why a user got something, or did not, down to the values compared (docs/explain.md)."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from typing import Annotated, Any

import typer

from engine.cli.serve import NotRunning, call_service
from engine.console.explain_view import View
from engine.console.terminal import Terminal
from engine.errors import OpportuneError
from engine.settings import load_settings


def register(app: typer.Typer) -> None:
    app.command()(explain)


def explain(
    user: Annotated[str | None, typer.Option(help="the pseudonymous user")] = None,
    offer: Annotated[str | None, typer.Option(help="id of an offer or decision: all that is known of this one")] = None,
    at: Annotated[
        str | None,
        typer.Option(help="RFC 3339 or epoch ms: decisions up to then; without it also how things stand now"),
    ] = None,
    scenario: Annotated[str | None, typer.Option(help="only this scenario")] = None,
    gates: Annotated[bool, typer.Option("--gates", help="every gate with what it compared")] = False,
    limit: Annotated[int, typer.Option(min=1, max=100, help="decisions to show")] = 20,
    url: Annotated[str | None, typer.Option(help="of the service; default from the settings")] = None,
    state: Annotated[Path | None, typer.Option(help="state folder, read where no service runs")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="print JSON")] = False,
) -> None:
    """Say why: what was decided about a user and what became of it, and what every scenario would do now."""
    if (user is None) == (offer is None):
        raise typer.BadParameter("name one user or one offer", param_hint="--user / --offer")
    at_ms = None if at is None else _instant(at)
    answer = ask_explainer(user=user, offer=offer, at_ms=at_ms, scenario=scenario, url=url, state=state)
    console = Terminal()
    if as_json:
        console.print_json(data=answer)
        return
    view = View(console, answer)
    if offer is not None:
        view.one_decision()
    else:
        view.decisions(limit)
    if at_ms is None:
        view.as_of_now(with_gates=gates)


def ask_explainer(
    *,
    user: str | None = None,
    offer: str | None = None,
    at_ms: int | None = None,
    scenario: str | None = None,
    url: str | None = None,
    state: Path | None = None,
) -> dict[str, Any]:
    """Ask the running service about a user or an offer, or a state folder that no service has open."""
    asked = {"user": user, "offer": offer, "at_ms": at_ms, "scenario": scenario}
    params = {name: value for name, value in asked.items() if value is not None}
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

    service = Service(settings, takes_content=False)
    try:
        if user is not None:
            return service.explainer.user(user, at_ms, scenario)
        answer = service.explainer.decision(str(offer))
        if not answer["decisions"]:
            raise OpportuneError(f"no decision {offer} is stored; they are kept 30 days")
        return answer
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
