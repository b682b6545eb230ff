"""One budget for many runs: weight leased in blocks from a global concurrency limit of the Prefect server they share.

A slot of the limit is a tenth of a weight, and slots that are taken decay: that is how the bucket fills. Prefect's own
``rate_limit`` is not used, because its waiting cannot be ended, because a limit that is missing or switched off lets it
pass everything, and because every refusal costs budget: it starts the decay anew, and what had decayed since the last
change is forgotten. So the level is read first, which changes nothing, the waiting is ours, and a block is taken when
it is there.
"""

import logging
import random
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from hashlib import pbkdf2_hmac
from math import ceil, inf
from typing import Final, Self, TypeVar

import httpx
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.actions import GlobalConcurrencyLimitCreate, GlobalConcurrencyLimitUpdate
from prefect.client.schemas.responses import GlobalConcurrencyLimitResponse
from prefect.context import SettingsContext, get_settings_context
from prefect.exceptions import ObjectAlreadyExists, ObjectNotFound
from prefect.settings import PREFECT_API_URL, PREFECT_CLIENT_MAX_RETRIES, get_current_settings

from heatpipe.budget import DEFAULT_HOLD_S, LONGEST_HOLD_S, Budget, Sleep
from heatpipe.config import Settings
from heatpipe.errors import ConfigError, UnreachableError
from heatpipe.redaction import Secret

SLOTS: Final = 10
"""Slots to a weight: Prefect forgets up to a whole slot whenever some are taken."""
BLOCKS_PER_BURST: Final = 100
"""A block is so much of the burst, or what one request weighs: the server is asked a few times in a burst's time."""
PROCESSES: Final = 8
"""So many may hold the rest of a block without ever spending, all together, more than the upstream allows."""
IN_TRANSIT: Final = 50
"""This part of the burst is not lent: requests that reach a full bucket late let it overflow meanwhile."""
LOOK_AGAIN_S: Final = 10.0
"""The level is read again after so long: whoever ended early may have given something back."""
LATE: Final = 0.5
"""Part of the time in which a block comes in, by which those who wait for it are spread."""
RACE_S: Final = 0.01
"""Pause after somebody else was quicker."""
MOST_SLOTS: Final = 2**31 - 1
"""What Prefect's database can count."""
TIMEOUT: Final = httpx.Timeout(10.0, connect=3.0)
AWAY_FIRST_S: Final = 0.25
AWAY_MOST_S: Final = 2.0
LOUD_FROM_S: Final = 2 * AWAY_FIRST_S
"""A server on SQLite is busy now and then; only the second time in a row is told."""

LOG: Final = logging.getLogger("heatpipe")

T = TypeVar("T")


def open_lease(settings: Settings, *, sleep: Sleep = time.sleep) -> "SharedLease | None":
    """Share the key's budget with whoever else uses this Prefect server; make the limit where there is none.

    Parameters
    ----------
    settings : Settings
        The key and its budget; `patience_s` bounds how long the server may be away.
    sleep : callable
        Sleeps for so many seconds; may raise to end the wait.

    Returns
    -------
    SharedLease or None
        None where no server is named by PREFECT_API_URL: the ephemeral one has no other users.

    Raises
    ------
    ConfigError
        The limit cannot be made, is switched off, or never fills.
    UnreachableError
        The server has not answered for `patience_s`.
    """
    url = PREFECT_API_URL.value()
    if not url:
        return None
    limit = _Limit(
        name_limit(settings.key()),
        size=min(MOST_SLOTS // SLOTS, settings.burst - settings.burst // IN_TRANSIT),
        per_s=settings.weight_per_minute / 60,
        url=url,
    )
    lease = SharedLease(limit, patience_s=settings.patience_s, sleep=sleep)
    try:
        lease.open()
    except BaseException:
        lease.close()
        raise
    return lease


def name_limit(key: Secret) -> str:
    """Return the name of a key's limit: another one for another key, and no help in finding the key.

    Of all keys one in 16 million has the same name, and each guess costs 50 ms.
    """
    return f"heatpipe-budget-{pbkdf2_hmac('sha256', key.reveal().encode(), b'heatpipe-budget', 200_000, 3).hex()}"


class SharedLease:
    """A `heatpipe.budget.Lease` on a limit of the Prefect server. Threads may share it.

    While the bucket is nearly full, no more is leased than is spent at once: what is held back then would come on top
    of a full bucket later.

    Parameters
    ----------
    limit : _Limit
        The server's side.
    patience_s : float
        Seconds for which the server may be away.
    sleep : callable
        Sleeps for so many seconds; may raise to end the wait.
    clock : callable
        Monotonic seconds.
    """

    def __init__(
        self,
        limit: "_Limit",
        *,
        patience_s: float,
        sleep: Sleep = time.sleep,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._limit = limit
        self._patience_s = patience_s
        self._sleep = sleep
        self._clock = clock
        self._holds = Budget(1e15, 1e15, clock=clock, sleep=sleep)  # its weight never runs out: only for its holds
        self._turn = threading.Lock()  # whoever asks the server; the others queue behind it
        self._state = threading.Lock()
        self._rest = 0
        self._good_until = -inf

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def open(self) -> None:
        """Find or make the limit, and say where it differs from the settings."""
        level = self._insist(self._limit.read, self._sleep)
        if difference := self._limit.compare(level):
            LOG.warning("%s", difference)

    def close(self) -> None:
        """Give back what is left of the block; where the server does not take it, it fills again with time."""
        with self._state:
            rest, self._rest = self._rest, 0
        try:
            if rest:
                self._limit.give_back(rest)
        except (_AwayError, ConfigError) as exc:
            LOG.info("weight of %d was leased and not used: %s", rest, exc)
        finally:
            self._limit.close()

    def spend(self, weight: int, *, patience_s: float = inf, sleep: Sleep | None = None) -> float:
        """Wait until `weight` may be spent, and spend it. As `heatpipe.budget.Budget.spend`.

        Raises
        ------
        RateLimitedError
            Everybody is held for longer than the patience.
        ConfigError
            The limit can never give that much, or is switched off.
        UnreachableError
            The server is away for longer than the lease's own patience.
        """
        sleep = sleep or self._sleep
        held_s = self._holds.spend(1, patience_s=patience_s, sleep=sleep)
        with self._turn:
            sleep(0.0)  # whoever was ended in the queue must not spend
            while wait_s := self._take(weight, sleep):
                sleep(wait_s)
                held_s += self._holds.spend(1, patience_s=patience_s - held_s, sleep=sleep)
        return held_s

    def hold(self, retry_after_s: float | None) -> None:
        """Empty the bucket for all, and let nobody take from it for so long: a 429 came.

        The others see it when they ask for their next block.
        """
        self._holds.hold(retry_after_s)
        with self._state:
            self._rest = 0  # the upstream has not got it
        try:
            self._limit.overdraw(DEFAULT_HOLD_S if retry_after_s is None else min(retry_after_s, LONGEST_HOLD_S))
        except (_AwayError, ConfigError) as exc:
            LOG.warning("the other runs were not told to wait: %s", exc)

    def answered(self) -> None:
        """Let the next hold without a time be the shortest again."""
        self._holds.answered()

    def _take(self, weight: int, sleep: Sleep) -> float:
        """Take the weight, from the rest or from the server; return 0, or the seconds until it may be there."""
        with self._state:
            if self._rest >= weight and self._clock() < self._good_until:
                self._rest -= weight
                return 0.0
        asked_at = self._clock()
        level = self._insist(self._limit.read, sleep)
        if level.overdrawn_s > 0:  # another process was told to wait
            self._holds.hold(level.overdrawn_s)
            return RACE_S
        block, good_s = _choose_block(level, self._limit.check(level, weight))
        if level.free < block:
            # Who waits for the same block does not come at the same moment: a race costs all of them.
            late = random.uniform(0, LATE)  # noqa: S311 - nothing here is a secret
            return min(LOOK_AGAIN_S, (block - level.free + late * block) / level.per_s)
        if not self._insist(lambda: self._limit.take(block), sleep):
            return RACE_S
        with self._state:
            if asked_at >= self._good_until:
                self._rest = 0  # a bucket that is full by now has taken it back
            self._rest += block - weight
            self._good_until = asked_at + good_s
        return 0.0

    def _insist(self, ask: Callable[[], T], sleep: Sleep) -> T:
        """Ask until the server answers: it may restart, or stall. A block whose answer was lost is lost."""
        since = self._clock()
        for pause_s in _pauses():
            try:
                answer = ask()
            except _AwayError as exc:
                away_s = self._clock() - since
                if away_s + pause_s > self._patience_s:
                    raise UnreachableError(
                        f"{exc}, for {away_s:.0f} s; the budget is shared through it. What had come is on disk, the "
                        "same run fetches the rest"
                    ) from exc
                if pause_s == LOUD_FROM_S:
                    LOG.warning("%s; nothing is spent until it answers", exc)
                sleep(pause_s)
            else:
                if pause_s > LOUD_FROM_S:
                    LOG.warning("the Prefect server answers again, after %.0f s", self._clock() - since)
                return answer
        raise AssertionError  # the pauses have no end


def _pauses() -> Iterator[float]:
    pause_s = AWAY_FIRST_S
    while True:
        yield pause_s
        pause_s = min(AWAY_MOST_S, 2 * pause_s)


@dataclass(frozen=True, slots=True)
class _Level:
    """What the server says of the limit.

    Parameters
    ----------
    size, taken : float
        Weight that the full bucket holds, and how much of it is gone; more than all while everybody is held.
    per_s : float
        Weight that comes in per second.
    """

    size: float
    taken: float
    per_s: float

    @property
    def free(self) -> float:
        return self.size - self.taken

    @property
    def overdrawn_s(self) -> float:
        return -self.free / self.per_s


def _choose_block(level: _Level, weight: int) -> tuple[int, float]:
    """Return how much to lease, and for how many seconds what is left of it may be spent.

    As long as at least as much is gone from the bucket as all processes hold together, none of it comes on top of a
    full one.
    """
    share = int(level.size / BLOCKS_PER_BURST)
    block = max(weight, share)
    good_s = (level.taken + block - PROCESSES * share) / level.per_s
    return (block, good_s) if good_s > 0 else (weight, 0.0)


class _AwayError(Exception):
    """The Prefect server does not answer, or not now."""


class _Limit:
    """The limit as the Prefect server keeps it. Short calls, none of them repeated.

    Parameters
    ----------
    name : str
        Of the limit.
    size, per_s : float
        What it is made with where there is none: weight that it holds, and that comes in per second. Only in here is
        weight counted in slots.
    url : str
        Of the server.
    """

    def __init__(self, name: str, *, size: float, per_s: float, url: str) -> None:
        self.name = name
        self._size = size
        self._per_s = per_s
        self._url = url
        self._known = False
        # Prefect's client repeats calls by itself for a minute and more, in sleeps that nobody can end.
        self._settings = get_current_settings().copy_with_update(updates={PREFECT_CLIENT_MAX_RETRIES: 0})
        self._open = ExitStack()
        self._client = self._open.enter_context(
            get_client({"timeout": TIMEOUT, "event_hooks": {"response": [_refuse_busy]}}, sync_client=True)
        )

    def close(self) -> None:
        """Close the connections."""
        self._open.close()

    def read(self) -> _Level:
        """Return the level; make the limit first where there is none."""
        found = self._find() or self._make()
        self._known = True
        if not found.active:
            raise ConfigError(
                f"the limit {self.name} of the Prefect server is switched off, and would let everything pass: "
                f"`prefect gcl enable {self.name}`"
            )
        if found.slot_decay_per_second <= 0:
            raise ConfigError(
                f"the limit {self.name} of the Prefect server never fills: its slot decay should be "
                f"{SLOTS * self._per_s:g} a second; after `prefect gcl delete {self.name}` it is made anew"
            )
        return _Level(found.limit / SLOTS, found.active_slots / SLOTS, found.slot_decay_per_second / SLOTS)

    def _find(self) -> GlobalConcurrencyLimitResponse | None:
        try:
            return self._ask(lambda client: client.read_global_concurrency_limit_by_name(self.name))
        except ObjectNotFound:
            return None

    def _make(self) -> GlobalConcurrencyLimitResponse:
        """Make the limit, unless another process just did: full at first, empty where it has vanished meanwhile."""
        wanted = GlobalConcurrencyLimitCreate(
            name=self.name,
            limit=round(SLOTS * self._size),
            active=True,
            active_slots=round(SLOTS * self._size) if self._known else 0,
            slot_decay_per_second=SLOTS * self._per_s,
        )
        with suppress(ObjectAlreadyExists):
            self._ask(lambda client: client.create_global_concurrency_limit(wanted))
        made = self._find()
        if made is None:
            raise self._lost()
        return made

    def compare(self, level: _Level) -> str:
        """Say where the limit differs from what the settings ask for; empty where it does not."""
        if level.size == self._size and abs(level.per_s - self._per_s) < 1e-6 * self._per_s:
            return ""
        return (
            f"the limit {self.name} of the Prefect server holds a weight of {level.size:,g} and fills by "
            f"{level.per_s:g} a second, the settings come to {self._size:,g} and {self._per_s:g}: going by the "
            f"server's; after `prefect gcl delete {self.name}` the next run makes it anew"
        )

    def check(self, level: _Level, weight: int) -> int:
        """Return the weight, if the limit can ever give it."""
        if weight > level.size:
            raise ConfigError(
                f"the limit {self.name} of the Prefect server holds {level.size:,g}: "
                f"a request of weight {weight:,} never fits"
            )
        return weight

    def take(self, weight: int) -> bool:
        """Take weight; return whether it was there."""

        def call(client: SyncPrefectClient) -> bool:
            try:
                answer = client.increment_concurrency_slots([self.name], SLOTS * weight, "rate_limit")
            except httpx.HTTPStatusError as exc:
                # Another process was quicker, or somebody has changed the limit: it is read again.
                if exc.response.status_code in (httpx.codes.LOCKED, httpx.codes.UNPROCESSABLE_ENTITY):
                    return False
                raise
            return bool(answer.json())  # of a limit that has vanished the server lends any number, and names none

        return self._ask(call)

    def give_back(self, weight: int) -> None:
        """Return weight that was not used."""
        self._ask(lambda client: client.release_concurrency_slots([self.name], SLOTS * weight, 1.0))

    def overdraw(self, seconds: float) -> None:
        """Let nobody have anything for so long."""
        level = self.read()
        taken = max(level.taken, level.size + level.per_s * seconds)
        update = GlobalConcurrencyLimitUpdate(active_slots=min(MOST_SLOTS, ceil(SLOTS * taken)))
        try:
            self._ask(lambda client: client.update_global_concurrency_limit(self.name, update))
        except ObjectNotFound as exc:
            raise self._lost() from exc

    def _ask(self, call: Callable[[SyncPrefectClient], T]) -> T:
        """Make one call; translate what Prefect and httpx raise, but for what is there already or is not."""
        try:
            with SettingsContext(profile=get_settings_context().profile, settings=self._settings):
                return call(self._client)
        except httpx.HTTPStatusError as exc:
            raise ConfigError(
                f"the Prefect server at {self._url} answers {exc.response.status_code} when asked for the limit "
                f"{self.name}: the budget cannot be shared through it; is PREFECT_API_URL right?"
            ) from exc
        except _BusyError as exc:
            raise _AwayError(f"the Prefect server at {self._url} answers {exc}") from exc
        except httpx.RequestError as exc:
            raise _AwayError(f"the Prefect server at {self._url} does not answer ({type(exc).__name__})") from exc
        except ValueError as exc:
            raise ConfigError(f"no Prefect API answers at {self._url}: PREFECT_API_URL ends in /api") from exc

    def _lost(self) -> _AwayError:
        return _AwayError(f"the Prefect server at {self._url} loses the limit {self.name}")


class _BusyError(Exception):
    """An answer that says nothing but: not now."""


def _refuse_busy(response: httpx.Response) -> None:
    """Raise what Prefect's client does not know, before it sleeps over it."""
    if response.is_server_error or response.status_code in (
        httpx.codes.REQUEST_TIMEOUT,
        httpx.codes.TOO_MANY_REQUESTS,
    ):
        raise _BusyError(response.status_code)
