"""When to leave a gateway alone: a breaker and a token bucket, fed with a monotonic `t`, and a daily quota (G4)."""

from __future__ import annotations

from collections import deque


class Breaker:
    """Open when a quarter of the newest 20 answers failed, 5 at the least; probe with one submit after a pause.

    A failure is an answer that says the gateway is unwell (retryable or unknown), not a refusal of one message.
    The pause is 5 s and doubles with every failed probe, up to 60 s. A gateway that fails 30 % of its submits is
    held back after at most 20 answers.
    """

    WINDOW = 20
    LEAST = 5
    SHARE = 0.25
    PAUSE_S = 5.0
    LONGEST_PAUSE_S = 60.0

    def __init__(self) -> None:
        self._answers: deque[bool] = deque(maxlen=self.WINDOW)
        self._open_until: float | None = None
        self._pause_s = self.PAUSE_S
        self._probing = False

    @property
    def is_open(self) -> bool:
        return self._open_until is not None

    def wait_s(self, t: float) -> float:
        """Return 0 where a submit may go now, else the seconds until it is worth asking again."""
        if self._open_until is None:
            return 0.0
        if self._probing:
            return 0.1
        return max(0.0, self._open_until - t)

    def probe(self) -> None:
        """Note that the one probe of a half-open breaker is on its way; no effect while closed."""
        if self._open_until is not None:
            self._probing = True

    def unused(self) -> None:
        """Note that a probe was not sent after all."""
        self._probing = False

    def answer(self, succeeded: bool, t: float) -> None:
        if self._open_until is not None:
            if not self._probing:
                return  # an answer to something sent before it opened
            self._probing = False
            if succeeded:
                self._open_until = None
                self._pause_s = self.PAUSE_S
                self._answers.clear()
            else:
                self._pause_s = min(2 * self._pause_s, self.LONGEST_PAUSE_S)
                self._open_until = t + self._pause_s
            return
        self._answers.append(succeeded)
        failures = self._answers.count(False)
        if failures >= self.LEAST and failures >= self.SHARE * len(self._answers):
            self._open_until = t + self._pause_s


class Quota:
    """At most so many parts a day; None: as many as come. Days are counted by the caller."""

    def __init__(self, most: int | None, day: int = 0, used: int = 0) -> None:
        self.most = most
        self._day = day
        self._used = used

    def is_spent(self, day: int) -> bool:
        if day != self._day:
            self._day, self._used = day, 0
        return self.most is not None and self._used >= self.most

    def take(self, count: int) -> None:
        self._used += count


class Bucket:
    """At most `per_s` messages a second, with a burst of a tenth of a second's worth (at least one).

    A gateway that says "too fast" lowers the rate by a third, at most once a second; it recovers within 10 s.
    """

    SLOWER = 2 / 3
    RECOVERS_S = 10.0

    def __init__(self, per_s: float) -> None:
        self._most = self._per_s = per_s
        self._burst = max(1.0, per_s / 10)
        self._tokens = self._burst
        self._filled_at: float | None = None
        self._slowed_at: float | None = None

    def available(self, t: float) -> int:
        if self._filled_at is not None:
            passed_s = t - self._filled_at
            self._per_s = min(self._most, self._per_s + self._most * passed_s / self.RECOVERS_S)
            self._tokens = min(self._burst, self._tokens + passed_s * self._per_s)
        self._filled_at = t
        return int(self._tokens)

    def take(self, count: int) -> None:
        self._tokens -= count

    def slow_down(self, t: float) -> None:
        """Note that the gateway asked for less."""
        self._tokens = min(self._tokens, 0.0)
        if self._slowed_at is None or t - self._slowed_at >= 1.0:
            self._slowed_at = t
            self._per_s = max(self._per_s * self.SLOWER, min(1.0, self._most))

    def wait_s(self) -> float:
        """Seconds until one more message may go."""
        return max(0.0, (1.0 - self._tokens) / self._per_s)
