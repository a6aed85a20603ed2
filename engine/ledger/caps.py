"""Caps decided in memory, as a function of the log alone (rules C1-C3): the object surface over `kernel`.

Memory: 24 bytes a grant, 12 a subject and 20 an offer id of the replay horizon, at tables two thirds to nine tenths
full. Grants older than the longest window ever asked for, and than the replay horizon, are swept once an hour of log
time; those that a `once` rule looked at stay.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from engine.hashing_kernel import hash_text
from engine.ledger import kernel
from engine.ledger.kernel import CapArrays
from engine.model import Option, ReserveAnswer, ReserveRequest

REPLAY_HORIZON_MS = 72 * 3_600_000
_SWEEP_MS = 3_600_000
_FULL = 0.9
_GRANTED_FIRST = ReserveAnswer(0)


class Grant(NamedTuple):
    """One reservation made, as the ledger stores it."""

    offer_id: bytes  # 16 bytes
    subject: str
    user_id: str
    scenario: str
    channel: str
    category: str
    partner: str
    counts: bool
    withheld: bool
    kept: bool  # a rule without a window looks at it
    at_ms: int
    code: str | None


class Caps:
    """Answer reservations and remember them."""

    def __init__(self) -> None:
        self._state = _empty(256, 256, 1024, 16)
        self._state.counters[kernel.NEXT_SWEEP_MS] = np.iinfo(np.int64).min
        self._codes: dict[bytes, tuple[int, str]] = {}
        self._names: dict[str, dict[str, int]] = {kind: {} for kind in ("scenario", "channel", "category", "partner")}
        self._marks: dict[tuple[str, str, str, str], tuple[int, int, int, int]] = {}

    def reserve(self, requests: Sequence[ReserveRequest], made: list[Grant]) -> list[ReserveAnswer]:
        """Answer requests in order and append every grant to `made`."""
        if not requests:
            return []
        batch = self._columns(requests)
        granted = np.empty(len(requests), np.int32)
        grant = np.empty(len(requests), np.int32)
        self._make_room(len(requests))
        first = 0
        while first < len(requests):
            done = kernel.reserve(
                self._state, batch.requests[first:], batch.options, batch.rules, granted[first:], grant[first:]
            )
            first += done
            if first < len(requests):
                self._sweep(requests[first].now_ms)
                self._make_room(len(requests) - first)
        answers: list[ReserveAnswer] = []
        refused_by: list[int] | None = None
        at = 0
        for request, chosen, place in zip(requests, granted.tolist(), grant.tolist(), strict=True):
            options = request.options
            if chosen == 0 and place != -2:
                option = options[0]
                answers.append(_GRANTED_FIRST if option.code is None else ReserveAnswer(0, (), False, option.code))
            else:
                if refused_by is None:
                    refused_by = batch.options["refused_by"].tolist()
                answers.append(self._answer(options, chosen, place, refused_by[at : at + len(options)], batch.ids, at))
            if place >= 0:
                option = options[chosen]
                start = 16 * (at + chosen)
                offer_id = batch.ids[start : start + 16]
                made.append(
                    Grant(
                        offer_id,
                        request.subject,
                        request.user_id,
                        option.scenario,
                        option.channel,
                        option.category,
                        option.partner,
                        option.counts,
                        option.withheld,
                        bool(self._state.grants["flags"][place] & kernel.KEEP),
                        request.now_ms,
                        option.code,
                    )
                )
                if option.code is not None:
                    self._codes[offer_id] = (request.now_ms, option.code)
            at += len(options)
        return answers

    def release(self, offer_id: bytes) -> bool:
        """Give back what an offer took; say whether it still held anything."""
        high, low = _halves(offer_id)
        return bool(kernel.release(self._state, high, low))

    def restore_grants(self, grants: Iterable[tuple[Grant, bool]], longest_ms: int) -> None:
        """Load grants in the order they were made, each with whether it was released: a rebuild from the ledger."""
        counters = self._state.counters
        counters[kernel.LONGEST_MS] = max(int(counters[kernel.LONGEST_MS]), longest_ms)
        option = np.zeros(1, kernel.OPTION)
        for grant, released in grants:
            self._make_room(1)
            scenario, channel, category, partner = self._mark(
                (grant.scenario, grant.channel, grant.category, grant.partner)
            )
            high, low = _halves(grant.offer_id)
            flags = grant.counts * kernel.COUNTS | grant.withheld * kernel.WITHHELD
            option[0] = (high, low, 0, 0, scenario, category, partner, channel, flags, 0, 0)
            kernel.add_grant(self._state, np.uint64(hash_text(grant.subject)), option[0], grant.at_ms, grant.kept)
            if released:
                kernel.release(self._state, high, low)
            if grant.code is not None:
                self._codes[grant.offer_id] = (grant.at_ms, grant.code)

    def forget(self, subject: str) -> None:
        """Leave no grant of this subject (I2). Its offer ids are forgotten too."""
        self._rebuild(np.iinfo(np.int64).min, np.iinfo(np.int64).min, hash_text(subject))

    @property
    def longest_ms(self) -> int:
        """The longest window a rule ever asked about."""
        return int(self._state.counters[kernel.LONGEST_MS])

    @property
    def count(self) -> int:
        """How many grants are remembered, the released ones included."""
        return int(self._state.counters[kernel.USED])

    @property
    def nbytes(self) -> int:
        """What the arrays hold of memory."""
        return sum(int(array.nbytes) for array in self._state)

    def arrays(self) -> dict[str, np.ndarray]:
        """Everything, for a checkpoint; the names and codes are in `objects`."""
        used = int(self._state.counters[kernel.USED])
        arrays = {f"caps.{name}": array for name, array in zip(CapArrays._fields, self._state, strict=True)}
        return arrays | {"caps.grants": self._state.grants[:used]}

    def objects(self) -> dict[str, Any]:
        """The part of a checkpoint that is not arrays."""
        codes = {offer_id.hex(): list(stored) for offer_id, stored in self._codes.items()}
        return {"names": {kind: list(names) for kind, names in self._names.items()}, "codes": codes}

    def restore(self, arrays: Mapping[str, np.ndarray], objects: Mapping[str, Any]) -> None:
        """Take over what `arrays` and `objects` gave."""
        self._state = CapArrays(*(arrays[f"caps.{name}"] for name in CapArrays._fields))
        for kind, names in objects["names"].items():
            self._names[kind] = {name: number for number, name in enumerate(names)}
        self._marks.clear()
        self._codes = {bytes.fromhex(key): (int(at_ms), code) for key, (at_ms, code) in objects["codes"].items()}

    # --- inside --------------------------------------------------------------------------------------------------

    def _answer(
        self, options: tuple[Option, ...], chosen: int, place: int, refused_by: list[int], ids: bytes, at: int
    ) -> ReserveAnswer:
        tried = chosen if chosen >= 0 else len(options)
        refusals = tuple(
            "duplicate" if rule == kernel.REPEATED else option.rules[rule].reason
            for option, rule in zip(options[:tried], refused_by[:tried], strict=True)
        )
        if place == -2:
            start = 16 * (at + chosen)
            stored = self._codes.get(ids[start : start + 16])
            return ReserveAnswer(chosen, refusals, True, stored[1] if stored else None)
        return ReserveAnswer(chosen, refusals, False, options[chosen].code if chosen >= 0 else None)

    def _columns(self, requests: Sequence[ReserveRequest]) -> _Batch:
        """Turn objects into the kernel's arrays."""
        flat_rules: list[tuple[int, int, int, bool, int]] = []
        flat_options: list[tuple[int, ...]] = []
        ids: list[str] = []
        subjects: list[bytes] = []
        subject_end: list[int] = []
        rows: list[tuple[int, int, int, int]] = []
        marks = self._marks
        length = 0
        for request in requests:
            subject = request.subject.encode()
            subjects.append(subject)
            length += len(subject)
            subject_end.append(length)
            first = len(ids)
            for option in request.options:
                ids.append(option.offer_id)
                mark = (option.scenario, option.channel, option.category, option.partner)
                scenario, channel, category, partner = marks.get(mark) or self._mark(mark)
                rule_start = len(flat_rules)
                flat_rules += [(rule.since_ms, rule.most, rule.scope, rule.uncounted_too, 0) for rule in option.rules]
                flags = (
                    option.counts * kernel.COUNTS | option.withheld * kernel.WITHHELD | option.shadow * kernel.SHADOW
                )
                flat_options.append(
                    (0, 0, rule_start, len(flat_rules), scenario, category, partner, channel, flags, 0, kernel.UNTRIED)
                )
            rows.append((0, request.now_ms, first, len(ids)))
        joined = bytes.fromhex("".join(ids))
        assert len(joined) == 16 * len(ids), "an offer id is 32 hexadecimal digits"
        options = np.array(flat_options, kernel.OPTION)
        halves = np.frombuffer(joined, ">u8").astype(np.uint64)
        options["high"], options["low"] = halves[0::2], halves[1::2]
        columns = np.array(rows, kernel.REQUEST)
        hashes = np.empty(len(rows), np.uint64)
        text = np.frombuffer(b"".join(subjects), np.uint8)
        kernel.hash_spans(text, np.array(subject_end, np.int64), hashes)
        columns["subject"] = hashes
        return _Batch(columns, options, np.array(flat_rules, kernel.RULE), joined)

    def _mark(self, mark: tuple[str, str, str, str]) -> tuple[int, int, int, int]:
        """Number a combination of scenario, channel, category and partner."""
        numbers = tuple(
            names.setdefault(name, len(names)) for names, name in zip(self._names.values(), mark, strict=True)
        )
        scenario, channel, category, partner = numbers
        assert channel < 256, "more channels than a grant can name"
        assert max(category, partner) < 1 << 15, "more categories or partners than a grant can name"
        self._marks[mark] = (scenario, channel, category, partner)
        if scenario >= len(self._state.newest_minute):
            room = 2 * scenario + 16 - len(self._state.newest_minute)
            minutes = np.vstack([self._state.minutes, np.zeros((room, kernel.MINUTES), np.int32)])
            newest = np.concatenate([self._state.newest_minute, np.full(room, -1, np.int64)])
            self._state = self._state._replace(minutes=minutes, newest_minute=newest)
        return self._marks[mark]

    def _make_room(self, grants: int) -> None:
        """Grow what would be too full after this many more grants; a table grows by half."""
        state = self._state
        used, subjects, offers = (int(state.counters[k]) for k in (kernel.USED, kernel.SUBJECTS, kernel.OFFERS))
        if used + grants > len(state.grants):
            pool = np.zeros(int(1.25 * (used + grants)) + 1024, kernel.GRANT)
            pool[:used] = state.grants[:used]
            self._state = state = state._replace(grants=pool)
        if subjects + grants > _FULL * len(state.subject_key) or offers + grants > _FULL * len(state.offer_low):
            self._rebuild(np.iinfo(np.int64).min, np.iinfo(np.int64).min, 0, grants)

    def _sweep(self, now_ms: int) -> None:
        """Let go of what no rule can ask for any more, and set the hour of the next sweep."""
        oldest_ms = now_ms - max(self.longest_ms, REPLAY_HORIZON_MS)
        oldest_offer_ms = now_ms - REPLAY_HORIZON_MS
        self._rebuild(oldest_ms, oldest_offer_ms, 0)
        self._codes = {key: stored for key, stored in self._codes.items() if stored[0] > oldest_offer_ms}
        self._state.counters[kernel.NEXT_SWEEP_MS] = now_ms - now_ms % _SWEEP_MS + _SWEEP_MS

    def _rebuild(self, oldest_ms: int, oldest_offer_ms: int, forgotten: int, more: int = 0) -> None:
        old = self._state
        subjects, offers = int(old.counters[kernel.SUBJECTS]), int(old.counters[kernel.OFFERS])
        new = _empty(_table_size(subjects + more), _table_size(offers + more), len(old.grants), 0)
        new = new._replace(minutes=old.minutes, newest_minute=old.newest_minute)
        new.counters[kernel.LONGEST_MS :] = old.counters[kernel.LONGEST_MS :]
        kernel.copy_live(old, new, oldest_ms, oldest_offer_ms, np.uint64(forgotten))
        self._state = new


class _Batch(NamedTuple):
    requests: np.ndarray
    options: np.ndarray
    rules: np.ndarray
    ids: bytes


def _table_size(entries: int) -> int:
    """Room for half as many again before the table is too full: on average it is three quarters full."""
    return int(entries * 1.35 / _FULL) + 256


def _empty(subjects: int, offers: int, grants: int, scenarios: int) -> CapArrays:
    return CapArrays(
        subject_key=np.zeros(subjects, np.uint64),
        subject_head=np.zeros(subjects, np.int32),
        grants=np.zeros(grants, kernel.GRANT),
        offer_high=np.zeros(offers, np.uint64),
        offer_low=np.zeros(offers, np.uint64),
        offer_grant=np.zeros(offers, np.int32),
        minutes=np.zeros((scenarios, kernel.MINUTES), np.int32),
        newest_minute=np.full(scenarios, -1, np.int64),
        counters=np.zeros(8, np.int64),
    )


def _halves(offer_id: bytes) -> tuple[Any, Any]:
    return np.uint64(int.from_bytes(offer_id[:8], "big")), np.uint64(int.from_bytes(offer_id[8:], "big"))
