"""The weight budget: a token bucket with a hold. Spends nothing by itself; knows no network."""

import threading
import time
from collections.abc import Callable
from math import inf
from typing import Final, Protocol

from heatpipe.errors import RateLimitedError

DEFAULT_HOLD_S: Final = 5.0
"""First hold where a 429 names no time; doubles with each one that follows without an answer between."""
MAX_HOLD_S: Final = 300.0
"""The doubling ends here."""
LONGEST_HOLD_S: Final = 86_400.0
"""Whatever an upstream names, a day later it is asked again."""


Sleep = Callable[[float], None]


class Lease(Protocol):
    """What the client needs of a budget; a flow may inject one that several processes share."""

    def spend(self, weight: int, *, patience_s: float = ..., sleep: Sleep | None = ...) -> float:
        """Wait until `weight` may be spent, and spend it; return the seconds that a hold was waited for."""

    def hold(self, retry_after_s: float | None) -> None:
        """Let nobody spend for so long: the upstream said so."""

    def answered(self) -> None:
        """Note that the upstream answered: holds without a time start small again."""


class Budget:
    """A token bucket that starts full, shared by the threads of one process.

    In any span of T seconds at most ``burst + per_minute * T / 60`` is spent.

    Parameters
    ----------
    per_minute, burst : float
        Weight that comes in per minute, and the most that can be saved up.
    reserve_s : float
        What comes in within so many seconds stays in the bucket, but for a weight that needs all of it. An upstream's
        bucket fills from when the first request arrives, ours from when it leaves; later ones, on a warm connection,
        arrive sooner after they leave.
    clock : callable
        Monotonic seconds.
    sleep : callable
        Sleeps for so many seconds; may raise to end the wait.
    """

    def __init__(
        self,
        per_minute: float,
        burst: float,
        *,
        reserve_s: float = 0.0,
        clock: Callable[[], float] = time.monotonic,
        sleep: Sleep = time.sleep,
    ) -> None:
        if per_minute <= 0 or burst <= 0:
            raise ValueError("a budget that never fills cannot be spent")
        self._per_s = per_minute / 60
        self._burst = burst
        self._reserve = reserve_s * self._per_s
        self._clock = clock
        self._sleep = sleep
        self._turn = threading.Lock()  # whoever waits for weight; the others queue behind it
        self._state = threading.Lock()
        self._level = float(burst)
        self._filled_at = clock()
        self._held_from = self._held_until = self._filled_at
        self._next_hold_s = DEFAULT_HOLD_S

    def spend(self, weight: int, *, patience_s: float = inf, sleep: Sleep | None = None) -> float:
        """Wait until `weight` is there and nobody is held, then take it.

        Parameters
        ----------
        weight : int
            What to take.
        patience_s : float
            Longest hold, in seconds, that is worth waiting for.
        sleep : callable, optional
            In place of the budget's own; called once even if there is nothing to wait for, so that it may raise.

        Returns
        -------
        float
            The part of the wait, in seconds, that a hold was the cause of.

        Raises
        ------
        RateLimitedError
            Everybody is held for longer than the patience.
        ValueError
            The bucket can never hold that much.
        """
        if weight > self._burst:
            raise ValueError(f"a weight of {weight} never fits a burst of {self._burst}")
        came = self._clock()
        with self._turn:
            if sleep is None:
                sleep = self._sleep
            else:
                sleep(0.0)  # whoever was ended in the queue must not spend
            while wait_s := self._take(weight):
                held_s = self._held_until - self._clock()
                if held_s > patience_s:
                    raise RateLimitedError(f"the upstream asked for a pause of {held_s:.0f} s more", held_s)
                sleep(wait_s)
        with self._state:
            return max(0.0, min(self._clock(), self._held_until) - max(came, self._held_from))

    def _take(self, weight: int) -> float:
        """Take the weight and return 0, or return the seconds until it may be there."""
        with self._state:
            now = self._fill()
            if now < self._held_until:
                return self._held_until - now
            enough = min(self._burst, weight + self._reserve)
            if self._level < enough:
                # a hair more than needed: rounding must not make a waiter spin
                return (enough - self._level) / self._per_s + 1e-6
            self._level -= weight
            return 0.0

    def _fill(self) -> float:
        now = self._clock()
        self._level = min(self._burst, self._level + (now - self._filled_at) * self._per_s)
        self._filled_at = now
        return now

    def hold(self, retry_after_s: float | None) -> None:
        """Empty the bucket and hold everyone: a 429 came, so the upstream's own bucket is empty.

        Parameters
        ----------
        retry_after_s : float or None
            Seconds that the upstream named; None doubles the last hold, from 5 seconds up, unless that one lasts.
        """
        with self._state:
            now = self._fill()
            self._level = 0.0
            if retry_after_s is None:
                if now < self._held_until:
                    return  # sent before the hold began: one refusal, not several
                retry_after_s = self._next_hold_s
                self._next_hold_s = min(MAX_HOLD_S, 2 * self._next_hold_s)
            if now >= self._held_until:
                self._held_from = now
            self._held_until = max(self._held_until, now + min(retry_after_s, LONGEST_HOLD_S))

    def answered(self) -> None:
        """Let the next hold without a time be the shortest again."""
        with self._state:
            self._next_hold_s = DEFAULT_HOLD_S
