"""A backtest report as one HTML page that needs nothing else: no network, no script, readable in light and dark."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

from engine.console.backtest_drawing import draw_hours, draw_map, draw_reasons
from engine.console.backtest_tables import instant, number_of, yuan
from engine.definitions import Content

MOST_ROWS = 24
_STYLE = """
:root { color-scheme: light dark; --back: #fbfbf9; --card: #ffffff; --ink: #1c2430; --soft: #5d6876; --line: #e2e4e0;
  --first: #2f6fb3; --second: #d9822b; --heat: #c2410c; --land: #eef0ec;
  --c0: #2f6fb3; --c1: #d9822b; --c2: #3a9d78; --c3: #b04a8f; --c4: #8a7a2e; --c5: #6a5acd; --c6: #8b95a1; }
@media (prefers-color-scheme: dark) { :root { --back: #12161c; --card: #1a2029; --ink: #e8ebef; --soft: #9aa5b3;
  --line: #2c343f; --first: #6aa9e9; --second: #f0a35b; --heat: #fb8c4b; --land: #212934;
  --c0: #6aa9e9; --c1: #f0a35b; --c2: #63c3a0; --c3: #d887bd; --c4: #c8b85c; --c5: #a396f0; --c6: #7c8794; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--back); color: var(--ink);
  font: 15px/1.5 system-ui, "Noto Sans CJK SC", "PingFang SC", "Microsoft YaHei", sans-serif; }
main { max-width: 1180px; margin: 0 auto; padding: 32px 24px 64px; }
h1 { font-size: 26px; margin: 0 0 4px; letter-spacing: -0.01em; }
h2 { font-size: 18px; margin: 0 0 2px; }
h3 { font-size: 14px; margin: 16px 0 4px; font-weight: 600; }
p { margin: 0 0 8px; } .soft { color: var(--soft); font-size: 13.5px; }
section { background: var(--card); border: 1px solid var(--line); border-radius: 10px; padding: 20px 22px; }
section { margin-top: 18px; }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(170px, 1fr)); gap: 12px; margin-top: 20px; }
.tile { background: var(--card); border: 1px solid var(--line); border-radius: 10px; padding: 14px 16px; }
.tile > b { display: block; font-size: 22px; line-height: 1.4; white-space: nowrap; }
.tile span { color: var(--soft); font-size: 13px; }
.two { display: grid; grid-template-columns: repeat(auto-fit, minmax(420px, 1fr)); gap: 8px 32px; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-size: 13.5px; font-variant-numeric: tabular-nums; }
th { text-align: right; font-weight: 600; color: var(--soft); padding: 5px 8px; border-bottom: 1px solid var(--line); }
td { text-align: right; padding: 5px 8px; border-bottom: 1px solid var(--line); white-space: nowrap; }
th.w, td.w { text-align: left; } td.w { white-space: normal; }
th:first-child, td:first-child { padding-left: 0; }
tr.sum td { font-weight: 600; }
svg { display: block; width: 100%; height: auto; } svg text { fill: var(--soft); font-size: 12px; }
svg .value { fill: var(--ink); }
.key { display: flex; flex-wrap: wrap; gap: 4px 16px; margin: 8px 0 0; font-size: 13px; }
.key i { display: inline-block; width: 11px; height: 11px; border-radius: 3px; margin-right: 6px; }
"""


def write_page(path: Path, report: dict[str, Any], contents: Sequence[Content]) -> None:
    """Write the page of a report; `contents` are those of its sides, for outlines of fences."""
    path.write_text(page(report, contents), encoding="utf-8")


def page(report: dict[str, Any], contents: Sequence[Content]) -> str:
    zone = ZoneInfo(report["time_zone"])
    sides = report["sides"]
    span = f"{instant(report['from'], zone)} to {instant(report['until'], zone)}"
    versions = " and ".join(f"{escape(side['name'])} <code>{side['content_version']}</code>" for side in sides)
    parts = [
        f'<h1>Backtest</h1><p class="soft">{report["events"]:,} events of {report["users"]:,} users, {span} '
        f"({escape(report['time_zone'])}). Content: {versions}. Limits, stock and holdout as live; "
        "nothing was sent.</p>",
        _tiles(report),
        _section(
            "Offers by hour",
            "By scenario, in the hours of the deployment.",
            draw_hours(sides, zone),
        ),
        _section("How candidates ended", "Every candidate has one outcome and one reason.", draw_reasons(sides)),
        _section(
            "Where",
            "Fences shaded by the offers made there; below 10 is not told.",
            '<div class="two">'
            + "".join(_place(side, one, sides) for side, one in zip(sides, contents, strict=True))
            + "</div>",
        ),
        _scenarios(report),
        *(_pressure(side, zone, len(sides) > 1) for side in sides),
        _segments(report),
    ]
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8"><title>Backtest</title>'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<style>{_STYLE}</style></head><body><main>{''.join(parts)}</main></body></html>\n"
    )


def _section(title: str, told: str, body: str) -> str:
    return f'<section><h2>{title}</h2><p class="soft">{told}</p>{body}</section>'


def _tiles(report: dict[str, Any]) -> str:
    sides = report["sides"]
    tiles = []
    for what, label in (
        ("offer", "offers"),
        ("withheld", "withheld (holdout)"),
        ("message_parts", "messages on the wire"),
        ("message_cost_fen", "cost of messages"),
        ("benefit_cost_fen", "cost of benefits"),
        ("face_value_fen", "face value given"),
    ):
        values = [side["totals"][what] for side in sides]
        shown = [_money(one) if what.endswith("_fen") else f"{one:,}" for one in values]
        before = (
            f"{_change(values[1] - values[0], what.endswith('_fen'))} from {shown[0]}" if len(values) == 2 else "&nbsp;"
        )
        tiles.append(f'<div class="tile"><span>{label}</span><b>{shown[-1]}</b><span>{before}</span></div>')
    return f'<div class="tiles">{"".join(tiles)}</div>'


def _place(side: dict[str, Any], content: Content, sides: Sequence[dict[str, Any]]) -> str:
    title = f"<h3>{escape(side['name'])}</h3>" if len(sides) > 1 else ""
    rows = ([row["name"] or row["fence"], number_of(row["offers"])] for row in side["fences"][:10])
    listed = _table((("fence", True), ("offers", False)), rows)
    left = len(side["fences"]) - 10
    more = f'<p class="soft">and {left} more fences</p>' if left > 0 else ""
    if not side["fences"]:
        return f'<div>{title}<p class="soft">no offer had a fence</p></div>'
    told = [row["offers"] for one in sides for row in one["fences"]]
    drawing = draw_map(side, content.fences, max((one for one in told if isinstance(one, int)), default=10))
    if len(sides) > 1:
        return f"<div>{title}{drawing}{listed}{more}</div>"
    return f"<div>{drawing}</div><div>{listed}{more}</div>"


def _scenarios(report: dict[str, Any]) -> str:
    sides = report["sides"]
    if len(sides) == 1:
        columns = ("offers", "withheld", "refused", "lost", "held", "messages", "message cost", "benefit cost")
        names = ("offer", "withheld", "refused", "lost", "held", "messages")
        rows = [
            [
                row["id"],
                *(f"{row[name]:,}" for name in names),
                _money(row["message_cost_fen"]),
                _money(row["benefit_cost_fen"]),
            ]
            for row in [*sides[0]["scenarios"], {"id": "all together", **sides[0]["totals"]}]
        ]
        body = _table((("scenario", True), *((one, False) for one in columns)), rows, has_sum=True)
        return _section("Scenarios", "Shadow scenarios are counted as if they were live.", body)
    rows = [
        [row["scenario"], number_of(row["before"]), number_of(row["after"]), _change(row["change"])]
        for row in report["difference"]["scenarios"]
    ]
    head = (("scenario", True), (sides[0]["name"], False), (sides[1]["name"], False), ("change", False))
    return _section("Offers by scenario", "The largest change first.", _table(head, rows, raw=(3,)))


def _pressure(side: dict[str, Any], zone: ZoneInfo, is_named: bool) -> str:
    limits = side["pressure"]["limits"]
    rows = [
        [row["scenario"], row["reason"], f"{row['refused']:,}", number_of(row["users"])] for row in limits[:MOST_ROWS]
    ]
    body = _table((("scenario", True), ("limit", True), ("refused", False), ("users", False)), rows)
    if not rows:
        body = '<p class="soft">No cap or gap refused anything.</p>'
    stock = side["pressure"]["stock"]
    if stock:
        lines = [
            [
                row["name"] or row["benefit"],
                f"{row['given']:,}",
                number_of(row["total"]),
                _money(row["cost_fen"]),
                "" if row["budget_fen"] is None else _money(row["budget_fen"]),
                f"{row['refused']:,}",
                "" if row["exhausted_at"] is None else instant(row["exhausted_at"], zone),
            ]
            for row in stock
        ]
        head = ("given", "of", "cost", "of budget", "refused", "first empty")
        body += "<h3>Stock</h3>" + _table((("benefit", True), *((one, False) for one in head)), lines)
    title = "Pressure on limits and stock" + (f": {escape(side['name'])}" if is_named else "")
    return _section(title, "What caps, gaps and stock refused to candidates that had passed every other gate.", body)


def _segments(report: dict[str, Any]) -> str:
    sides = report["sides"]
    tables = []
    for kind in ("organisation", "tag"):
        if len(sides) == 1:
            rows = [
                [row["name"], number_of(row["users"]), number_of(row["offers"])]
                for row in sides[0]["segments"]
                if row["kind"] == kind
            ]
            tables.append(_table(((kind, True), ("users with offers", False), ("offers", False)), rows[:MOST_ROWS]))
        else:
            rows = [
                [row["name"], number_of(row["before"]), number_of(row["after"]), _change(row["change"])]
                for row in report["difference"]["segments"]
                if row["kind"] == kind
            ]
            head = ((kind, True), (sides[0]["name"], False), (sides[1]["name"], False), ("change", False))
            tables.append(_table(head, rows[:MOST_ROWS], raw=(3,)))
    told = "A user counts in the organisation and under every tag held at the offer; below 10 is not told."
    return _section("Segments", told, f'<div class="two">{"".join(f"<div>{one}</div>" for one in tables)}</div>')


def _table(
    columns: Sequence[tuple[str, bool]],
    rows: Iterable[Sequence[str]],
    *,
    raw: tuple[int, ...] = (),
    has_sum: bool = False,
) -> str:
    """Columns of (name, whether it holds words); cells of `raw` columns are HTML already."""
    head = "".join(f"<th{' class=w' if words else ''}>{escape(name)}</th>" for name, words in columns)
    listed = list(rows)
    lines = []
    for number, row in enumerate(listed):
        cells = "".join(
            f"<td{' class=w' if columns[place][1] else ''}>{cell if place in raw else escape(str(cell))}</td>"
            for place, cell in enumerate(row)
        )
        lines.append(f"<tr{' class=sum' if has_sum and number == len(listed) - 1 else ''}>{cells}</tr>")
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{"".join(lines)}</tbody></table></div>'


def _change(change: int | None, is_money: bool = False) -> str:
    if change is None:
        return '<span class="soft">not told</span>'
    if change == 0:
        return '<span class="soft">no change</span>'
    shown = _money(abs(change)) if is_money else f"{abs(change):,}"
    return f"<b>+{shown}</b>" if change > 0 else f"<b>\N{MINUS SIGN}{shown}</b>"


def _money(fen: int) -> str:
    return f"¥{yuan(fen).removesuffix(' yuan')}"
