"""Runs of equal refusals: one row with count, first, last instead of thousands (rule D5).

The first refusal of a run is emitted at once; when the run ends after more than one, a second record with the same
decision id closes it. It ends by another outcome or reason of the same user and scenario, or an hour after its first.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

import msgspec

from engine.decide.records import Decision, DecisionTrigger
from engine.model import Outcome

RUN_MS = 3_600_000
MOST_RUNS = 32_768
NEVER_MS = 1 << 62


class Run(msgspec.Struct, gc=False):
    """An open run. `first` is what its first refusal says beyond the run's own words, packed: a fifth of the object."""

    reason: str
    scenario: str
    tenant: str
    content_version: str
    first: bytes
    due_ms: int
    last_ms: int
    count: int = 1


_PACK = msgspec.msgpack.Encoder()
_UNPACK = msgspec.msgpack.Decoder()


def _run(one: Decision, count: int, last_ms: int) -> Run:
    trigger = one.trigger
    facts = (one.decision_id, one.user, trigger.kind, trigger.key, trigger.at, trigger.fence, trigger.values)
    packed = _PACK.encode((*facts, one.at, one.values))
    return Run(
        one.reason, one.scenario, one.tenant, one.content_version, packed, one.at + RUN_MS, last_ms or one.at, count
    )


def _refusal(run: Run) -> Decision:
    decision_id, user, kind, key, trigger_at, fence, evidence, at, values = _UNPACK.decode(run.first)
    trigger = DecisionTrigger(kind, key, trigger_at, fence, evidence)
    words = (1, run.tenant, decision_id, Outcome.REFUSED.value, run.reason, user, run.scenario, trigger, at)
    return Decision(*words, run.content_version, values, 1, at, at)


class Runs:
    """Open runs by slot << 20 | scenario row, oldest first; at most MOST_RUNS, the oldest closes early."""

    def __init__(self, most: int = MOST_RUNS) -> None:
        self.most = most
        self.open: OrderedDict[int, Run] = OrderedDict()
        self.due_ms = NEVER_MS
        """When the oldest run ends, or earlier."""

    def start(self, key: int, decision: Decision, out: list[Decision]) -> None:
        """Begin a run with its first refusal, which the caller emits."""
        if len(self.open) >= self.most:
            _close(self.open.popitem(last=False)[1], out)
        due_ms = decision.at + RUN_MS
        self.open[key] = _run(decision, 1, 0)
        if due_ms < self.due_ms:
            self.due_ms = due_ms

    def end(self, key: int, out: list[Decision]) -> None:
        """End a run, if there is one, because something else happened."""
        run = self.open.pop(key, None)
        if run is not None:
            _close(run, out)

    def close_due(self, now_ms: int, out: list[Decision]) -> None:
        """Close every run that began an hour ago or earlier."""
        while self.open:
            oldest = next(iter(self.open.values()))
            if oldest.due_ms > now_ms:
                self.due_ms = oldest.due_ms
                return
            self.open.popitem(last=False)
            _close(oldest, out)
        self.due_ms = NEVER_MS

    def close_all(self, out: list[Decision]) -> None:
        self.close_due(NEVER_MS, out)

    def rename_rows(self, row_of: dict[int, int], out: list[Decision]) -> None:
        """Follow the scenarios to their rows in new content; runs of scenarios that are gone are closed."""
        kept: OrderedDict[int, Run] = OrderedDict()
        for key, run in self.open.items():
            row = row_of.get(key & 0xFFFFF)
            if row is None:
                _close(run, out)
            else:
                kept[key >> 20 << 20 | row] = run
        self.open = kept

    def state(self) -> list[list[Any]]:
        return [[key, run.count, run.last_ms, msgspec.to_builtins(_refusal(run))] for key, run in self.open.items()]

    def restore(self, state: list[list[Any]]) -> None:
        self.open = OrderedDict()
        for key, count, last_ms, record in state:
            decision = msgspec.convert(record, Decision)
            self.open[key] = _run(decision, count, last_ms)
        self.due_ms = next((run.due_ms for run in self.open.values()), NEVER_MS)


def _close(run: Run, out: list[Decision]) -> None:
    if run.count > 1:
        out.append(msgspec.structs.replace(_refusal(run), count=run.count, last=run.last_ms))
