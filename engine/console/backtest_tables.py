"""A backtest report in the terminal."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any
from zoneinfo import ZoneInfo

from rich.console import Console
from rich.table import Table
from rich.text import Text

MOST_ROWS = 12


def print_report(console: Console, report: dict[str, Any]) -> None:
    """Totals, scenarios, reasons, pressure and segments; with two contents, side by side."""
    zone = ZoneInfo(report["time_zone"])
    span = f"{instant(report['from'], zone)} to {instant(report['until'], zone)} ({report['time_zone']})"
    console.print(Text.assemble((f"{report['events']:,} events", "bold"), f" of {report['users']:,} users, {span}"))
    if report["dead_letters"]:
        console.print(f"{report['dead_letters']:,} could not be read (opportune replay --dead-letters tells which)")
    sides = report["sides"]
    for side in sides:
        label = f"{side['name']}: " if len(sides) > 1 else ""
        console.print(f"{label}content {side['content_version']}, {side['events_per_s']:,} events/s", style="dim")
    console.print()
    if report["difference"] is None:
        _print_side(console, sides[0], zone)
    else:
        _print_difference(console, report)
        for side in sides:
            console.rule(side["name"], align="left")
            _print_pressure(console, side, zone)


def _print_side(console: Console, side: dict[str, Any], zone: ZoneInfo) -> None:
    # Two tables, because one would break the ids of scenarios in a terminal of 80 columns.
    rows = [*side["scenarios"], {"id": "all together", **side["totals"]}]
    decided = _table("scenario", "offers", "withheld", "refused", "lost", "held")
    costs = _table("scenario", "messages", "message cost", "benefit cost")
    for row in rows:
        style = "bold" if row is rows[-1] else ""
        counts = (row[name] for name in ("offer", "withheld", "refused", "lost", "held"))
        decided.add_row(row["id"], *(f"{count:,}" for count in counts), style=style)
        if row["messages"] or row is rows[-1]:
            money = (yuan(row["message_cost_fen"]), yuan(row["benefit_cost_fen"]))
            costs.add_row(row["id"], f"{row['messages']:,}", *money, style=style)
    for table in (decided, costs):
        console.print(table)
        console.print()
    reasons: dict[tuple[str, str], int] = {}
    for row in side["reasons"]:
        key = row["outcome"], row["reason"]
        reasons[key] = reasons.get(key, 0) + row["count"]
    table = _table("outcome", "reason", "candidates", "share")
    whole = max(1, sum(reasons.values()))
    for (outcome, reason), number in sorted(reasons.items(), key=lambda item: -item[1]):
        table.add_row(outcome, reason, f"{number:,}", f"{100 * number / whole:.1f} %")
    console.print(table)
    _print_pressure(console, side, zone)
    table = _table("fence", "name", "offers")
    for row in side["fences"][:MOST_ROWS]:
        table.add_row(row["fence"], row["name"], number_of(row["offers"]))
    _print_some(console, table, len(side["fences"]), "fences")
    table = _table("segment", "name", "users with offers", "offers")
    for row in side["segments"][: 2 * MOST_ROWS]:
        table.add_row(row["kind"], row["name"], number_of(row["users"]), number_of(row["offers"]))
    _print_some(console, table, len(side["segments"]), "segments")


def _print_pressure(console: Console, side: dict[str, Any], zone: ZoneInfo) -> None:
    table = _table("scenario", "limit", "refused", "users")
    for row in side["pressure"]["limits"][:MOST_ROWS]:
        table.add_row(row["scenario"], row["reason"], f"{row['refused']:,}", number_of(row["users"]))
    _print_some(console, table, len(side["pressure"]["limits"]), "limits reached")
    table = _table("benefit", "given", "of", "cost", "of budget", "refused", "first empty")
    for row in side["pressure"]["stock"]:
        table.add_row(
            row["benefit"],
            f"{row['given']:,}",
            number_of(row["total"]),
            yuan(row["cost_fen"]),
            "" if row["budget_fen"] is None else yuan(row["budget_fen"]),
            f"{row['refused']:,}",
            "" if row["exhausted_at"] is None else instant(row["exhausted_at"], zone),
        )
    _print_some(console, table, len(side["pressure"]["stock"]), "benefits with limited stock")


def _print_difference(console: Console, report: dict[str, Any]) -> None:
    before, after = (side["name"] for side in report["sides"])
    difference = report["difference"]
    for title, key, columns in (
        ("in all", "totals", ("what",)),
        ("offers by scenario", "scenarios", ("scenario",)),
        ("candidates by reason", "reasons", ("outcome", "reason")),
        ("offers by segment", "segments", ("kind", "name")),
    ):
        table = _table(*columns, before, after, "change", title=title)
        rows = difference[key]
        for row in rows[: 2 * MOST_ROWS]:
            is_money = str(row.get("what", "")).endswith("_fen")
            shown = [yuan(row[name]) if is_money else number_of(row[name]) for name in ("before", "after")]
            names = [_spoken(row[name]) if name == "what" else str(row[name]) for name in columns]
            table.add_row(*names, *shown, change_of(row["change"], is_money))
        console.print(table)
        if len(rows) > 2 * MOST_ROWS:
            console.print(f"and {len(rows) - 2 * MOST_ROWS} more in the JSON", style="dim")
        console.print()


def _table(*columns: str, title: str | None = None) -> Table:
    table = Table(box=None, pad_edge=False, title=title, title_justify="left", header_style="bold")
    words = {"scenario", "outcome", "reason", "limit", "fence", "name", "segment", "benefit", "what", "kind"}
    for column in columns:
        table.add_column(column, justify="left" if column in words else "right", overflow="fold")
    return table


def _print_some(console: Console, table: Table, whole: int, what: str) -> None:
    if not table.row_count:
        console.print(f"no {what}\n", style="dim")
        return
    console.print(table)
    if whole > table.row_count:
        console.print(f"and {whole - table.row_count} more {what} in the JSON", style="dim")
    console.print()


def _spoken(what: str) -> str:
    return what.removesuffix("_fen").replace("_", " ")


def number_of(count: int | str | None) -> str:
    return "" if count is None else f"{count:,}" if isinstance(count, int) else count


def change_of(change: int | None, is_money: bool = False) -> Text:
    if change is None:
        return Text("not told", "dim")
    shown = yuan(abs(change)) if is_money else f"{abs(change):,}"
    return Text("0", "dim") if not change else Text(f"{'+' if change > 0 else '-'}{shown}", "bold")


def yuan(fen: int | str) -> str:
    return f"{int(fen) / 100:,.2f} yuan"


def instant(at_ms: int, zone: ZoneInfo) -> str:
    return datetime.fromtimestamp(at_ms / 1000, UTC).astimezone(zone).strftime("%Y-%m-%d %H:%M")
