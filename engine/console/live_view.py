"""The terminal's view of a running demo: a live picture on a terminal, plain lines elsewhere."""

from __future__ import annotations

from datetime import datetime
from zoneinfo import ZoneInfo

from rich.columns import Columns
from rich.console import Group, RenderableType
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from engine.console.readings import Readings

_ZONE = ZoneInfo("Asia/Shanghai")
_ROWS = 9


def clock_text(instant_ms: int) -> str:
    return datetime.fromtimestamp(instant_ms / 1000, _ZONE).strftime("%H:%M")


def picture(readings: Readings, *, now_ms: int, speed: float, events_per_s: float, left_s: float, url: str) -> Group:
    """Draw everything once."""
    head = Text.assemble(
        (f" {clock_text(now_ms)} ", "bold reverse"),
        f"  in the city, {speed:,.0f} x real time   ",
        (f"{events_per_s:,.0f}", "bold green"),
        f" events/s   {readings.events:,.0f} events   {url}   {max(0.0, left_s):.0f} s left",
    )
    p50, p99 = readings.percentile_ms(0.5), readings.percentile_ms(0.99)
    totals = _counts(
        "So far",
        {
            "transitions: " + ", ".join(sorted({kind for (kind,) in readings.transitions})): sum(
                readings.transitions.values()
            ),
            "candidates": readings.candidates,
            "offers": sum(readings.offers.values()),
            "handed over": sum(n for (_, state), n in readings.dispatches.items() if state == "accepted"),
            "held": sum(readings.by_outcome("held").values()),
            "withheld to measure": sum(readings.by_outcome("withheld").values()),
            "dropped (no consent, noise)": readings.dropped,
            "dead letters": readings.dead_letters,
        },
    )
    totals.add_row("post to hand-off p50 / p99", f"{_ms(p50)} / {_ms(p99)}")
    offers = _counts("Offers", _named(readings.offers))
    refusals = _counts("Refused, lost", readings.by_outcome("refused", "lost", "expired"))
    return Group(Panel(head), Columns([totals, offers, refusals], expand=True), _messages(readings, most=10))


def line(readings: Readings, *, now_ms: int, events_per_s: float) -> str:
    """Say the essentials in one line."""
    refused = sum(readings.by_outcome("refused", "lost", "expired").values())
    return (
        f"{clock_text(now_ms)}  {events_per_s:8,.0f} events/s  {readings.events:9,.0f} events  "
        f"{sum(readings.transitions.values()):7,.0f} transitions  {sum(readings.offers.values()):5,.0f} offers  "
        f"{refused:6,.0f} refused  post to hand-off p50 {_ms(readings.percentile_ms(0.5))} "
        f"p99 {_ms(readings.percentile_ms(0.99))}"
    )


def message_line(message: dict[str, object]) -> str:
    """One message as plain text."""
    return f"       {message['channel']:>4} to {message['to']}: {message['text']}"


def summary(readings: Readings, *, seconds: float, people: int, seed: int) -> list[RenderableType]:
    """What the run came to."""
    transitions = _counts("Transitions", _named(readings.transitions))
    outcomes: dict[str, float] = {}
    for (outcome, _), count in readings.decisions.items():
        outcomes[outcome] = outcomes.get(outcome, 0) + count
    states = {f"{gateway}: {state}": count for (gateway, state), count in readings.dispatches.items()}
    return [
        Text(
            f"\n{people:,} people (seed {seed}), {readings.events:,.0f} events in {seconds:.0f} s "
            f"({readings.events / seconds:,.0f} events/s)",
            style="bold",
        ),
        Columns(
            [
                transitions,
                _counts("Candidates", outcomes),
                _counts("Offers", _named(readings.offers)),
                _counts("Refused, lost", readings.by_outcome("refused", "lost", "expired"), rows=20),
                _counts("Hand-off", states, rows=20),
            ]
        ),
        Text(
            f"from posting the event to the gateway: p50 {_ms(readings.percentile_ms(0.5))}, "
            f"p99 {_ms(readings.percentile_ms(0.99))} over {len(readings.latencies_ms):,} messages; "
            f"{readings.dead_letters:,.0f} dead letters"
        ),
    ]


def _named(counts: dict[tuple[str, ...], float]) -> dict[str, float]:
    return dict(sorted(((name, count) for (name,), count in counts.items()), key=lambda item: -item[1]))


def _counts(title: str, counts: dict[str, float], rows: int = _ROWS) -> Table:
    table = Table(title=title, title_justify="left", title_style="bold", show_header=False, box=None, pad_edge=False)
    table.add_column(overflow="ellipsis", no_wrap=True)
    table.add_column(justify="right", no_wrap=True)
    for name, count in list(counts.items())[:rows]:
        table.add_row(name, f"{count:,.0f}")
    return table


def _messages(readings: Readings, most: int) -> Panel:
    table = Table(show_header=False, box=None, expand=True, pad_edge=False)
    table.add_column(width=5)
    table.add_column(width=4)
    table.add_column(width=13, no_wrap=True)
    table.add_column(ratio=1, no_wrap=True, overflow="ellipsis")
    for message in list(readings.last_messages)[-most:][::-1]:
        table.add_row(clock_text(message["at_ms"]), message["channel"], message["to"], Text(message["text"]))
    return Panel(table, title="Last offers", title_align="left")


def _ms(value: float | None) -> str:
    return "-" if value is None else f"{value:,.0f} ms"
