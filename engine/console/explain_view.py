"""How `opportune explain` reads in a terminal: tables of short lines, instants as local time, spans in words."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Any
from zoneinfo import ZoneInfo

from rich.console import Console
from rich.table import Table
from rich.text import Text

_INSTANTS = frozenset(("at", "now", "deadline", "since", "last", "from", "until", "first", "ends", "release", "day"))
_MINUTES = frozenset(("minute", "from_minute", "to_minute", "windows"))
_DAYS = ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun")
_STYLES = {"offer": "green", "withheld": "magenta", "held": "yellow", "lost": "yellow", "expired": "red"}
_STATES = {"delivered": "green", "accepted": "green", "rejected": "red", "failed": "red", "expired": "red"}


class View:
    """Prints one answer of the explainer."""

    def __init__(self, console: Console, answer: dict[str, Any]) -> None:
        self._console = console
        self._answer = answer
        self._zone_name: str = answer["time_zone"]
        self._zone = ZoneInfo(self._zone_name)

    def decisions(self, limit: int) -> None:
        """A line for every stored decision, newest first."""
        found = self._answer["decisions"]
        user = self._answer["user"]
        if not found:
            self._console.print(f"no decision about {user} in the 7 days before")
            return
        columns = ("time", "scenario", "outcome", "reason", "trigger", "hand-off")
        table = _table(f"decisions about {user}, newest first ({self._zone_name})", *columns)
        for one in found[:limit]:
            times = f" ×{one['count']}" if one["count"] > 1 else ""
            table.add_row(
                self.instant(one["at"]),
                one["scenario"],
                Text(one["outcome"] + times, _STYLES.get(one["outcome"], "")),
                one["reason"],
                _trigger(one["trigger"]),
                Text("shadow: not sent", "dim") if one["values"].get("shadow") else self._hand_off(one["hand_off"]),
            )
        self._console.print(table)
        left = len(found) - limit
        if left > 0:
            self._console.print(f"and {left} older ones (--limit)")
        newest = next((one for one in found if one["outcome"] == "offer"), found[0])
        self._console.print(f"one of them in full: opportune explain --offer {newest['decision_id']}\n", style="dim")

    def one_decision(self) -> None:
        """All that is stored of one decision: why, on what evidence, under which content, and what became of it."""
        one = self._answer["decisions"][0]
        trigger = one["trigger"]
        table = _table(f"decision {one['decision_id']}", "", "")
        table.show_header = False
        table.columns[0].style = "bold"
        table.add_row("user", one["user"])
        table.add_row("scenario", one["scenario"])
        for before in self._answer.get("before", ()):
            table.add_row("before", f"{before['outcome']} / {before['reason']} at {self.instant(before['at'])}")
        table.add_row("outcome", Text(f"{one['outcome']} / {one['reason']}", _STYLES.get(one["outcome"], "")))
        if one["count"] > 1:
            table.add_row(
                "counted", f"{one['count']} times, {self.instant(one['first'])} to {self.instant(one['last'])}"
            )
        table.add_row("decided", f"{self.instant(one['at'])} ({self._zone_name})")
        table.add_row("trigger", f"{_trigger(trigger)} at {self.instant(trigger['at'])}")
        table.add_row("evidence", self.values(trigger["values"]) or "the event itself")
        table.add_row("compared", self.values(one["values"]))
        table.add_row("content", one["content_version"])
        message = self._answer.get("message")
        if message is not None:
            table.add_row("message", f"{message['channel']}: {message['text']}")
            table.add_row("benefit", message["benefit"])
            table.add_row("deadline", self.instant(message["deadline"]))
        self._console.print(table)
        if one["hand_off"] is not None:
            self._print_steps(one["hand_off"])
        self._console.print()

    def as_of_now(self, *, with_gates: bool) -> None:
        """What every scenario would do if its trigger came now."""
        traces = self._answer.get("now", [])
        if not traces and self._answer.get("contest") is None:
            self._console.print(f"nothing is known of {self._answer['user']} now: no event of this user was processed")
            return
        if not traces:
            self._console.print("the content has no such scenario any more")
            return
        inside = [one for one in self._answer.get("presence", []) if one["state"] not in ("OUTSIDE", "ENTERING")]
        places = "; ".join(f"{one['fence']} since {self.instant(one['crossed_at'])} ({one['state']})" for one in inside)
        self._console.print(f"now {self.instant(self._answer['now_ms'])}, inside: {places or 'no fence'}")
        self._print_profile()
        if with_gates:
            for trace in traces:
                self._print_gates(trace)
            return
        table = _table("if its trigger came now", "scenario", "outcome", "reason", "possible again")
        for trace in traces:
            outcome = Text(trace["outcome"], _STYLES.get(trace["outcome"], ""))
            table.add_row(trace["scenario"], outcome, trace["reason"], self._again(trace["again"]))
        self._console.print(table)
        self._print_contest()
        self._console.print("every gate of one: opportune explain --user U --scenario ID --gates", style="dim")

    def _print_profile(self) -> None:
        known = self._answer.get("profile")
        if known is None:
            return
        facts = {"tags": known["tags"], **known["attributes"]}
        facts |= {name: known[name] for name in ("organisation", "province", "time_zone", "dnd")}
        shown = {name: value for name, value in facts.items() if value not in (None, False, [])}
        said = ", ".join(
            f"{purpose} {'yes' if one['granted'] else 'no'}" for purpose, one in sorted(known["consent"].items())
        )
        parts = [f"profile: {self.values(shown)}" if shown else "", f"consent: {said}" if said else ""]
        self._console.print("; ".join(part for part in parts if part), style="dim")

    def _print_contest(self) -> None:
        """Who would win if all these triggers came together, and who waits already."""
        contest = self._answer.get("contest")
        if contest is None or len(self._answer["now"]) < 2:  # asked of one scenario alone
            return
        for one in contest["waiting"]:
            self._console.print(f"waiting: {one['scenario']} until {self.instant(one['until'])} ({one['why']})")
        if not contest["competitors"]:
            return
        together = "with one event"
        if contest["window_ms"]:
            together = f"within {_span(contest['window_ms'] / 1000)} of each other"
        title = f"if all of these came now, {together}: {contest['winner'] or 'nobody'} would win"
        table = _table(title, "scenario", "score", "factors", "outcome", "reason")
        for one in contest["competitors"]:
            outcome = Text(one["outcome"], _STYLES.get(one["outcome"], ""))
            name = f"{one['scenario']} (waits)" if one["waits"] else one["scenario"]
            table.add_row(name, f"{one['score']:.4g}", self.values(one["factors"]), outcome, one["reason"])
        self._console.print(table)

    def _print_gates(self, trace: dict[str, Any]) -> None:
        title = f"{trace['scenario']}, if its trigger came now: {trace['outcome']} / {trace['reason']}"
        table = _table(title, "gate", "answer", "compared")
        for step in trace["steps"]:
            if step["asked"]:
                answer = Text("passed", "green") if step["passed"] else Text(step["reason"], "red")
            else:
                answer = Text("nothing to ask" if step["passed"] else "not reached", "dim")
            values = {name: value for name, value in step["values"].items() if step["gate"] != "match" or name != "key"}
            table.add_row(step["gate"], answer, self.values(values))
        self._console.print(table)
        self._console.print(f"possible again: {self._again(trace['again'])}\n")

    def _again(self, again: dict[str, Any] | None) -> str:
        if again is None:
            return ""
        if again["at"] is None:
            return f"not by waiting ({again['until']})"
        return f"{self.instant(again['at'])}, after {', '.join(again['after'])}" if again["after"] else "now"

    def _hand_off(self, told: dict[str, Any] | None) -> Text:
        if told is None:
            return Text("")
        code = f" ({told['code']})" if told["code"] else ""
        return Text(f"{told['channel']} {told['state']}{code}", _STATES.get(told["state"], "yellow"))

    def _print_steps(self, told: dict[str, Any]) -> None:
        title = f"hand-off on {told['channel']} by {told['gateway']}: {told['state']}"
        table = _table(title, "time", "state", "code", "the gateway's id", "")
        for step in told["steps"]:
            note = "" if step["applied"] else "came after the end; changed nothing"
            table.add_row(self.instant(step["at"]), step["state"], step["code"] or "", step["gateway_id"] or "", note)
        self._console.print()
        self._console.print(table if told["steps"] else "queued; nobody has claimed it yet")

    def instant(self, at_ms: int | None) -> str:
        """Local time to the second; the date first, so that lines sort."""
        if at_ms is None:
            return "-"
        return datetime.fromtimestamp(at_ms / 1000, UTC).astimezone(self._zone).strftime("%Y-%m-%d %H:%M:%S")

    def values(self, values: dict[str, Any]) -> str:
        """Name and value of everything compared, one after another."""
        return ", ".join(f"{_spoken(name)} {self._value(name, value)}" for name, value in values.items())

    def _value(self, name: str, value: Any) -> str:
        if isinstance(value, dict):
            return f"({self.values(value)})"
        if isinstance(value, list):
            if name == "windows":
                return " and ".join("-".join(self._value(name, one) for one in window) for window in value)
            return " ".join(self._value(name, one) for one in value)
        if isinstance(value, bool) or value is None:
            return {True: "yes", False: "no", None: "none"}[value]
        if name in ("weekday", "weekdays") and isinstance(value, int):
            return _DAYS[value]
        if name in _MINUTES and isinstance(value, int):
            return f"{value // 60:02d}:{value % 60:02d}"
        if (name in _INSTANTS or name.endswith((".at", "_at"))) and isinstance(value, int):
            return self.instant(value) if value > 0 else "ever"
        if name.endswith("_ms"):
            return _span(value / 1000)
        if name.endswith("_s") and isinstance(value, int | float):
            return _span(value)
        return f"{value:.4g}" if isinstance(value, float) else str(value)


def _table(title: str, *columns: str) -> Table:
    table = Table(title=title, title_justify="left", box=None, pad_edge=False)
    for column in columns:
        table.add_column(column, overflow="fold")
    return table


def _spoken(name: str) -> str:
    if name == "minute":
        return "local time"
    return name.removesuffix("_ms").removesuffix("_s").removesuffix("_minute").replace("_", " ")


def _trigger(trigger: dict[str, Any]) -> str:
    place = f" {trigger['fence']}" if trigger.get("fence") else ""
    values: Iterable[str] = (trigger["values"][name] for name in ("app", "category") if trigger["values"].get(name))
    return f"{trigger['kind']}{place}{' ' + '/'.join(values) if not place else ''}".strip()


def _span(seconds: float) -> str:
    """A length of time in its two largest units."""
    if seconds < 60:
        return f"{seconds:g} s"
    left, parts = round(seconds), list[str]()
    for unit, size in (("d", 86_400), ("h", 3_600), ("min", 60), ("s", 1)):
        if left >= size or parts:
            parts.append(f"{left // size} {unit}" if left // size else "")
            left %= size
    return " ".join(part for part in parts[:2] if part)
