"""The weight budget in fake time, against a bucket in exact fractions."""

import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from heatpipe.budget import DEFAULT_HOLD_S, MAX_HOLD_S, Budget
from heatpipe.upstream import BURST, WEIGHT_PER_MINUTE

RATE = WEIGHT_PER_MINUTE / 60  # 12.5 a second
HAIR = 1e-4  # of weight or seconds: float rounding, and the hair that a waiter waits for longer


@dataclass
class FakeTime:
    """A clock that only sleeping moves."""

    now: float = 1000.0
    slept: list[float] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def clock(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        assert seconds > 0
        with self.lock:
            self.slept.append(seconds)
            self.now += seconds


def budget_in(time: FakeTime, per_minute: float = WEIGHT_PER_MINUTE, burst: float = BURST) -> Budget:
    return Budget(per_minute, burst, clock=time.clock, sleep=time.sleep)


class ExactBucket:
    """What a token bucket with a hold is, in fractions: the level, and when the next weight is there."""

    def __init__(self, per_s: Fraction, burst: int, now: Fraction) -> None:
        self.per_s, self.burst = per_s, burst
        self.level, self.at, self.held_until = Fraction(burst), now, now

    def fill(self, now: Fraction) -> None:
        self.level = min(Fraction(self.burst), self.level + (now - self.at) * self.per_s)
        self.at = now

    def ready(self, weight: int) -> Fraction:
        return max(self.at, self.held_until, self.at + max(Fraction(0), weight - self.level) / self.per_s)


advances = st.tuples(st.just("pass"), st.floats(0, 200))
spends = st.tuples(st.just("spend"), st.integers(1, 60))
holds = st.tuples(st.just("hold"), st.floats(0, 90))
stories = st.lists(st.one_of(spends, spends, spends, advances, holds), max_size=30)


@given(stories, st.sampled_from([30, 60, 750, 100_000]), st.integers(60, 200))
@settings(deadline=None)
def test_in_any_span_of_time_no_more_is_spent_than_the_burst_and_what_came_in(
    story: list[tuple[str, float]], per_minute: int, burst: int
) -> None:
    time = FakeTime()
    budget = budget_in(time, per_minute, burst)
    spent: list[tuple[float, float]] = []
    for what, amount in story:
        if what == "pass":
            time.now += amount
        elif what == "hold":
            budget.hold(amount)
        else:
            budget.spend(int(amount))
            spent.append((time.now, amount))
    for first in range(len(spent)):
        total = 0.0
        for at, weight in spent[first:]:
            total += weight
            assert total <= burst + per_minute / 60 * (at - spent[first][0]) + HAIR


@given(stories, st.sampled_from([30, 60, 750, 100_000]), st.integers(60, 200))
@settings(deadline=None)
def test_weight_is_spent_as_soon_as_it_is_there_and_nobody_is_held_and_not_before(
    story: list[tuple[str, float]], per_minute: int, burst: int
) -> None:
    time = FakeTime()
    budget = budget_in(time, per_minute, burst)
    exact = ExactBucket(Fraction(per_minute, 60), burst, Fraction(time.now))
    for what, amount in story:
        if what == "pass":
            time.now += amount
        elif what == "hold":
            budget.hold(amount)
            exact.fill(Fraction(time.now))
            exact.level = Fraction(0)
            exact.held_until = max(exact.held_until, exact.at + Fraction(amount))
        else:
            came = Fraction(time.now)
            exact.fill(came)
            ready, held_until = exact.ready(int(amount)), exact.held_until
            waited_for_hold = budget.spend(int(amount))
            assert float(ready) - HAIR <= time.now <= float(ready) + HAIR
            assert waited_for_hold == pytest.approx(float(max(Fraction(0), held_until - came)), abs=HAIR)
            exact.fill(Fraction(time.now))
            exact.level -= int(amount)


def test_a_full_bucket_is_spent_at_once_and_then_at_the_rate() -> None:
    time = FakeTime()
    budget = budget_in(time)
    for _ in range(300):
        assert budget.spend(5) == 0
    assert not time.slept
    for _ in range(300):
        budget.spend(5)
    assert time.now - 1000 == pytest.approx(1500 / RATE, abs=300 * HAIR)


def test_what_is_not_spent_is_saved_up_to_the_burst_and_no_further() -> None:
    time = FakeTime()
    budget = budget_in(time, 60, 10)
    budget.spend(10)
    time.now += 10_000
    budget.spend(10)
    assert not time.slept
    budget.spend(10)
    assert sum(time.slept) == pytest.approx(10, abs=HAIR)


def test_the_whole_burst_can_be_spent_and_not_one_more() -> None:
    time = FakeTime()
    budget = budget_in(time, 60, 100)
    with pytest.raises(ValueError, match="a weight of 101 never fits a burst of 100"):
        budget.spend(101)
    budget.spend(100)
    assert not time.slept


@pytest.mark.parametrize(("per_minute", "burst"), [(0, 100), (-1, 100), (100, 0), (100, -1)])
def test_a_budget_that_never_fills_cannot_be_built(per_minute: float, burst: float) -> None:
    with pytest.raises(ValueError, match="never fills"):
        Budget(per_minute, burst)


# Holds


def test_a_hold_empties_the_bucket_and_is_waited_for() -> None:
    time = FakeTime()
    budget = budget_in(time)
    budget.hold(4)
    assert budget.spend(100) == pytest.approx(4, abs=HAIR)
    assert time.now - 1000 == pytest.approx(100 / RATE, abs=HAIR)  # not a burst of 1,500


def test_a_hold_stops_even_who_is_waiting_for_weight_already() -> None:
    time = FakeTime()

    def sleep(seconds: float) -> None:
        if not time.slept:
            budget.hold(30)  # comes while somebody sleeps until the weight is there
        time.sleep(seconds)

    budget = Budget(60, 10, clock=time.clock, sleep=sleep)
    budget.spend(10)
    held_s = budget.spend(5)
    assert time.now - 1000 == pytest.approx(30, abs=HAIR)
    assert held_s == pytest.approx(30, abs=HAIR)


def test_the_longer_of_two_holds_counts() -> None:
    for first, second in ((30, 5), (5, 30)):
        time = FakeTime()
        budget = budget_in(time)
        budget.hold(first)
        budget.hold(second)
        assert budget.spend(5) == pytest.approx(30, abs=HAIR)


def test_waiting_for_our_own_budget_is_no_hold() -> None:
    time = FakeTime()
    budget = budget_in(time, 60, 100)
    budget.spend(100)
    assert budget.spend(50) == 0
    assert sum(time.slept) == pytest.approx(50, abs=HAIR)


def test_only_the_part_of_a_hold_that_was_waited_for_is_told() -> None:
    time = FakeTime()
    budget = budget_in(time)
    budget.hold(30)
    time.now += 10
    assert budget.spend(5) == pytest.approx(20, abs=HAIR)
    time.now += 10
    assert budget.spend(5) == 0


def test_holds_without_a_time_double_up_to_a_bound() -> None:
    time = FakeTime()
    budget = budget_in(time)
    waits = []
    for _ in range(9):
        budget.hold(None)
        waits.append(round(budget.spend(1)))
    assert waits == [5, 10, 20, 40, 80, 160, 300, 300, 300]
    assert (DEFAULT_HOLD_S, MAX_HOLD_S) == (5, 300)


def test_an_answer_makes_holds_short_again() -> None:
    time = FakeTime()
    budget = budget_in(time)
    for _ in range(4):
        budget.hold(None)
        budget.spend(1)
    budget.answered()
    budget.hold(None)
    assert round(budget.spend(1)) == 5


def test_refusals_of_requests_that_were_under_way_together_count_as_one() -> None:
    time = FakeTime()
    budget = budget_in(time)
    for _ in range(4):
        budget.hold(None)  # four requests in flight, four times 429
    assert round(budget.spend(1)) == 5
    budget.hold(None)
    assert round(budget.spend(1)) == 10


def test_a_named_time_does_not_make_the_next_unnamed_one_longer() -> None:
    time = FakeTime()
    budget = budget_in(time)
    budget.hold(60)
    budget.spend(1)
    budget.hold(None)
    assert round(budget.spend(1)) == 5


# Threads


def run_together(works: list[Callable[[], None]]) -> None:
    threads = [threading.Thread(target=work, daemon=True) for work in works]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=30)
    assert not any(thread.is_alive() for thread in threads)


def test_threads_together_spend_no_more_than_one_may_and_all_get_through() -> None:
    time = FakeTime()
    burst, per_minute = 100, 6000
    budget = budget_in(time, per_minute, burst)
    done = 0
    over: list[float] = []
    lock = threading.Lock()

    def spend_often() -> None:
        nonlocal done
        for number in range(100):
            weight = 1 + number % 7
            budget.spend(weight)
            with lock:
                done += weight
                over.append(done - burst - per_minute / 60 * (time.now - 1000))
            if number == 50:
                budget.hold(0.5)

    run_together([spend_often] * 8)
    assert done == 8 * sum(1 + number % 7 for number in range(100))
    assert max(over) <= HAIR
    assert time.now - 1000 >= (done - burst) / (per_minute / 60) - HAIR


def test_who_waits_for_much_is_not_overtaken_by_who_wants_little() -> None:
    time = FakeTime()
    may_wake, asleep = threading.Event(), threading.Event()

    def sleep(seconds: float) -> None:
        asleep.set()
        assert may_wake.wait(30)
        time.sleep(seconds)

    budget = Budget(60, 100, clock=time.clock, sleep=sleep)
    budget.spend(90)
    heavy = threading.Thread(target=budget.spend, args=(50,), daemon=True)
    light = threading.Thread(target=budget.spend, args=(5,), daemon=True)  # there is enough for this one
    heavy.start()
    assert asleep.wait(30)
    light.start()
    light.join(timeout=0.1)
    assert light.is_alive()
    may_wake.set()
    heavy.join(30)
    light.join(30)
    assert not heavy.is_alive()
    assert not light.is_alive()
    assert time.now - 1000 == pytest.approx(45, abs=2 * HAIR)  # 40 for the heavy one, 5 after it


def test_an_interrupted_wait_leaves_the_budget_usable() -> None:
    time = FakeTime()

    class EndError(Exception):
        pass

    def interrupt(seconds: float) -> None:
        raise EndError

    budget = Budget(60, 10, clock=time.clock, sleep=interrupt)
    budget.spend(10)
    with pytest.raises(EndError):
        budget.spend(5)
    time.now += 5
    assert budget.spend(5) == 0  # nothing was taken, nothing is locked


def test_what_is_in_reserve_is_waited_for_but_not_by_who_needs_all_of_it() -> None:
    time = FakeTime()
    budget = Budget(600, 20, reserve_s=0.5, clock=time.clock, sleep=time.sleep)  # ten a second, five in reserve
    budget.spend(15)
    assert not time.slept
    budget.spend(5)
    assert sum(time.slept) == pytest.approx(0.5, abs=HAIR)
    time.now += 60
    budget.spend(20)
    assert sum(time.slept) == pytest.approx(0.5, abs=HAIR)
