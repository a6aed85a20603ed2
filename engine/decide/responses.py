"""Whether users answer: who ignores a scenario's offers is left alone by it for a while.

An *ignore* is an offer that was accepted by the gateway or delivered, and not redeemed before its time ended: the end
of its benefit's validity, or its deadline where the benefit has none. All instants are the log's `now`. An offer that
no receipt confirmed, or that definitely failed, is no ignore; neither is one redeemed in time.

The n-th ignore within the span pauses the scenario for that user, from the instant of that ignore on, and the count
begins anew. Nothing here has a timer: ends are looked at in order whenever the user is asked about.
"""

from __future__ import annotations

from typing import Any

import msgspec

from engine.definitions import PauseAfter, Scenario

_ROW_BITS = 20
_MOST_WAITING = 64


class Waiting(msgspec.Struct, gc=False):
    """One offer that may still be answered."""

    offer_id: str
    ends_ms: int
    is_received: bool = False


class Answers(msgspec.Struct, gc=False):
    """What one user made of one scenario's offers: ignores not older than the span, and until when it is paused."""

    waiting: list[Waiting] = []
    ignored_ms: list[int] = []
    until_ms: int = 0
    ignores: int = 0  # that led to the last pause


class Responses:
    """Answers by slot << 20 | scenario row, of scenarios that ask for it alone."""

    def __init__(self) -> None:
        self.known: dict[int, Answers] = {}
        self._rules: dict[int, PauseAfter] = {}
        self._benefits: dict[int, str] = {}

    def compile(self, scenarios: tuple[Scenario, ...]) -> None:
        """Take the scenarios of new content; `rename_rows` first."""
        asking = [(row, one) for row, one in enumerate(scenarios) if one.limits.pause_after is not None]
        self._rules = {row: one.limits.pause_after for row, one in asking if one.limits.pause_after is not None}
        self._benefits = {row: one.offer.benefit for row, one in asking}
        for key in [key for key in self.known if key & 0xFFFFF not in self._rules]:
            del self.known[key]

    def rename_rows(self, row_of: dict[int, int]) -> None:
        """Follow the scenarios to their rows in new content."""
        self.known = {
            key >> _ROW_BITS << _ROW_BITS | row_of[key & 0xFFFFF]: answers
            for key, answers in self.known.items()
            if key & 0xFFFFF in row_of
        }

    def offered(self, slot: int, row: int, offer_id: str, now_ms: int, ends_ms: int) -> None:
        """An offer was granted; it may be answered until `ends_ms`."""
        answers = self.known.setdefault(slot << _ROW_BITS | row, Answers())
        self._settle(answers, self._rules[row], now_ms)
        answers.waiting.append(Waiting(offer_id, ends_ms))
        del answers.waiting[:-_MOST_WAITING]

    def received(self, slot: int, offer_id: str, now_ms: int) -> None:
        """A receipt says that the gateway took it, or that it arrived."""
        for row in self._rules:
            for one in self._open(slot, row, now_ms):
                one.is_received |= one.offer_id == offer_id

    def answered(self, slot: int, offer_id: str | None, benefit: str | None, now_ms: int) -> None:
        """It was redeemed, or definitely failed: no ignore. Without an offer's id all of that benefit are answered."""
        for row in self._rules:
            if offer_id is None and benefit != self._benefits[row]:
                continue
            self._open(slot, row, now_ms)
            answers = self.known.get(slot << _ROW_BITS | row)
            if answers is not None:
                answers.waiting = [one for one in answers.waiting if offer_id is not None and one.offer_id != offer_id]

    def paused_until(self, slot: int, row: int, now_ms: int) -> Answers | None:
        """Return what pauses this scenario for this user now, or None."""
        answers = self.known.get(slot << _ROW_BITS | row)
        if answers is None:
            return None
        self._settle(answers, self._rules[row], now_ms)
        return answers if now_ms < answers.until_ms else None

    def forget(self, slot: int) -> None:
        """Start a new user in the slot (A4)."""
        for row in self._rules:
            self.known.pop(slot << _ROW_BITS | row, None)

    def drop_settled(self, now_ms: int) -> None:
        """Let go of what bears on nothing any more; changes memory only, never a decision."""
        for key, answers in list(self.known.items()):
            self._settle(answers, self._rules[key & 0xFFFFF], now_ms)
            if not answers.waiting and not answers.ignored_ms and answers.until_ms <= now_ms:
                del self.known[key]

    def _open(self, slot: int, row: int, now_ms: int) -> list[Waiting]:
        answers = self.known.get(slot << _ROW_BITS | row)
        if answers is None:
            return []
        self._settle(answers, self._rules[row], now_ms)
        return answers.waiting

    @staticmethod
    def _settle(answers: Answers, rule: PauseAfter, now_ms: int) -> None:
        """Count what ended unanswered until now, each at its own end."""
        ended = sorted((one for one in answers.waiting if one.ends_ms <= now_ms), key=lambda one: one.ends_ms)
        if ended:
            answers.waiting = [one for one in answers.waiting if one.ends_ms > now_ms]
        for one in ended:
            if not one.is_received:
                continue
            recent = [at_ms for at_ms in answers.ignored_ms if at_ms > one.ends_ms - rule.within_ms]
            answers.ignored_ms = [*recent, one.ends_ms]
            if len(answers.ignored_ms) >= rule.ignores:
                answers.until_ms, answers.ignores = one.ends_ms + rule.pause_ms, len(answers.ignored_ms)
                answers.ignored_ms = []
        if answers.ignored_ms and answers.ignored_ms[0] <= now_ms - rule.within_ms:
            answers.ignored_ms = [at_ms for at_ms in answers.ignored_ms if at_ms > now_ms - rule.within_ms]

    def state(self) -> list[Any]:
        return [[key, msgspec.to_builtins(answers)] for key, answers in self.known.items()]

    def restore(self, state: list[Any]) -> None:
        self.known = {key: msgspec.convert(answers, Answers) for key, answers in state}
