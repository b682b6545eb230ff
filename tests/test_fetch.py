"""The crew: what it keeps of an answer, whom it lets go first, and that it goes home."""

import gc
import gzip
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from queue import Empty, SimpleQueue

import pytest

from heatpipe import decode
from heatpipe.errors import DecodeError, HistoryError, KeyRefusedError, RequestError, SymbolError
from heatpipe.fetch import BYTES_PER_ROW, ROOM_BYTES, Crew, Job, Stop
from heatpipe.finality import Answer
from heatpipe.model import Series, Span, Spans, Window
from tests.conftest import (
    DAY,
    HOUR,
    TODAY,
    Asked,
    Clock,
    MakeSettings,
    MakeUpstream,
    Sandbox,
    document,
    honest,
    http,
    plain_levels,
)

BTC = Series("BTC", depth=2)
NOON = TODAY + 12 * HOUR
YESTERDAY = TODAY - DAY


# --- the crew -----------------------------------------------------------------------------------------------------


@contextmanager
def no_thread_left() -> Iterator[None]:
    before = set(threading.enumerate())
    yield
    for thread in set(threading.enumerate()) - before:
        if thread.name.startswith("heatpipe-fetch"):
            thread.join(3)
            assert not thread.is_alive(), f"{thread.name} is still there"


def job_for(start: int, replies: "SimpleQueue[Job]", series: Series = BTC, count: int = 10) -> Job:
    return Job(Window(series, Span(start, start + count * series.interval_s)), replies)


def test_a_window_becomes_an_answer(sandbox: Sandbox, settings: MakeSettings) -> None:
    replies: SimpleQueue[Job] = SimpleQueue()
    with no_thread_left(), Crew(settings(), clock=Clock()) as crew:
        crew.submit(job_for(TODAY, replies))
        job = replies.get(timeout=10)
        assert job.fault is None
        assert isinstance(job.answer, Answer)
        assert job.answer.coverage.covered == Spans.of([job.window.span])
        assert (job.answer.snapshots.points, job.answer.snapshots.rows) == (10, 20)
        assert job.answer.wire_bytes > 0
        assert (job.spent.requests, job.spent.weight) == (1, 5)
        crew.release(job)
        assert job.answer is None


def test_a_refusal_comes_back_with_its_job(sandbox: Sandbox, settings: MakeSettings) -> None:
    replies: SimpleQueue[Job] = SimpleQueue()
    with no_thread_left(), Crew(settings(), clock=Clock()) as crew:
        crew.submit(job_for(TODAY, replies, Series("UNKNOWN1")))
        job = replies.get(timeout=10)
    assert isinstance(job.fault, SymbolError)


def test_a_key_that_is_refused_is_shown_once(upstream: MakeUpstream, settings: MakeSettings) -> None:
    """Whoever is in line behind the first request gets its refusal, and asks nothing."""
    server = upstream(lambda _: http(401))
    replies: SimpleQueue[Job] = SimpleQueue()
    with no_thread_left(), Crew(settings(server.url, concurrency=4), clock=Clock()) as crew:
        for number in range(8):
            crew.submit(job_for(TODAY + number * HOUR, replies))
        jobs = [replies.get(timeout=10) for _ in range(8)]
    assert {type(job.fault) for job in jobs} == {KeyRefusedError}
    assert len(server.asked) == 1


def test_requests_go_one_by_one_until_one_is_answered(upstream: MakeUpstream, settings: MakeSettings) -> None:
    """An unknown coin says nothing about the key's tier."""
    at_once: list[int] = []
    open_now: list[Asked] = []

    def answer(asked: Asked) -> Iterator[bytes]:
        open_now.append(asked)
        server.gone.wait(0.02)
        at_once.append(len(open_now))
        open_now.remove(asked)
        yield http(400, b'{"error": "INVALID_SYMBOL"}')

    server = upstream(answer)
    replies: SimpleQueue[Job] = SimpleQueue()
    with no_thread_left(), Crew(settings(server.url, concurrency=4), clock=Clock()) as crew:
        for number in range(5):
            crew.submit(job_for(TODAY, replies, Series(f"C{number}")))
        for _ in range(5):
            replies.get(timeout=10)
    assert at_once == [1] * 5


def test_an_unknown_coin_costs_one_request_also_when_others_are_known(
    upstream: MakeUpstream, settings: MakeSettings
) -> None:
    """Whoever is in line behind the first request of a series gets its refusal, and asks nothing."""
    unknown = Series("NOPE")
    server = upstream(lambda asked: http(400, b"{}") if asked.params["coin"] == "NOPE" else honest(asked))
    replies: SimpleQueue[Job] = SimpleQueue()
    with no_thread_left(), Crew(settings(server.url, concurrency=4), clock=Clock()) as crew:
        crew.submit(job_for(TODAY, replies))
        for number in range(4):
            crew.submit(job_for(TODAY + number * HOUR, replies, unknown))
        crew.submit(job_for(TODAY + HOUR, replies))
        jobs = [replies.get(timeout=10) for _ in range(6)]
    assert [type(job.fault) for job in jobs if job.window.series == unknown] == [RequestError] * 4
    assert all(job.answer for job in jobs if job.window.series == BTC)
    assert [asked.params["coin"] for asked in server.asked].count("NOPE") == 1


def test_what_is_beyond_the_history_says_nothing_of_the_rest_of_its_series(
    upstream: MakeUpstream, settings: MakeSettings
) -> None:
    refusal = http(403, b'{"error": "FORBIDDEN", "message": "Time range exceeds history depth"}')
    server = upstream(lambda asked: refusal if asked.span.start == YESTERDAY else honest(asked))
    replies: SimpleQueue[Job] = SimpleQueue()
    with no_thread_left(), Crew(settings(server.url, concurrency=1), clock=Clock()) as crew:
        for start in (YESTERDAY, TODAY):
            crew.submit(job_for(start, replies))
        jobs = [replies.get(timeout=10) for _ in range(2)]
    assert isinstance(jobs[0].fault, HistoryError)
    assert jobs[1].answer


def test_an_answer_that_breaks_the_contract_comes_back_raw(upstream: MakeUpstream, settings: MakeSettings) -> None:
    def lie(asked: Asked) -> bytes:
        return http(body=document(asked, {asked.span.start: [(1.0, -1.0)]}))

    replies: SimpleQueue[Job] = SimpleQueue()
    with no_thread_left(), Crew(settings(upstream(lie).url), clock=Clock()) as crew:
        crew.submit(job_for(TODAY, replies))
        job = replies.get(timeout=10)
    assert isinstance(job.fault, DecodeError)
    assert job.body is not None
    assert b'"flat_points": [1, 1774915200000000.0, 1.0, -1.0]' in job.body


def test_without_a_key_no_thread_is_started(settings: MakeSettings) -> None:
    with no_thread_left(), pytest.raises(KeyRefusedError, match="KIYOTAKA_API_KEY"):
        Crew(settings(api_key=None))


@pytest.mark.parametrize("first", [honest, lambda _: http(body=b"no document")], ids=["sound", "unreadable"])
def test_as_many_requests_are_in_flight_as_was_said(
    upstream: MakeUpstream, settings: MakeSettings, first: Callable[[Asked], bytes]
) -> None:
    together = threading.Barrier(3)
    replies: SimpleQueue[Job] = SimpleQueue()

    def wait_for_the_others(asked: Asked) -> bytes:
        if asked.span.start == YESTERDAY:
            return first(asked)
        together.wait(3)
        return honest(asked)

    with (
        no_thread_left(),
        Crew(settings(upstream(wait_for_the_others).url, concurrency=3, patience_s=0.0), clock=Clock()) as crew,
    ):
        crew.submit(job_for(YESTERDAY, replies))  # the first goes alone
        for number in range(3):
            crew.submit(job_for(TODAY + number * HOUR, replies))
        jobs = [replies.get(timeout=20) for _ in range(4)]
    assert [job.fault for job in jobs[1:]] == [None] * 3


DEEP = Series("BTC", depth=50_000)
HALF = ROOM_BYTES // (BYTES_PER_ROW * 50_001) // 2  # points whose answers may fill half of the room


def test_answers_that_could_fill_the_memory_wait_for_each_other(upstream: MakeUpstream, settings: MakeSettings) -> None:
    """Two of these fit the bound; the third is decoded when one of them has been let go."""
    replies: SimpleQueue[Job] = SimpleQueue()
    with no_thread_left(), Crew(settings(upstream(honest).url, concurrency=4), clock=Clock()) as crew:
        for number in range(3):
            crew.submit(job_for(TODAY + number * HOUR * 2, replies, DEEP, HALF))
        first, second = replies.get(timeout=10), replies.get(timeout=10)
        with pytest.raises(Empty):
            replies.get(timeout=0.1)
        crew.release(first)
        third = replies.get(timeout=10)
        crew.release(second)
        crew.release(third)


def test_an_answer_that_waits_when_the_end_is_asked_for_is_read_all_the_same(
    upstream: MakeUpstream, settings: MakeSettings
) -> None:
    """It is paid for."""
    server = upstream(honest)
    replies: SimpleQueue[Job] = SimpleQueue()
    with no_thread_left(), Crew(settings(server.url, concurrency=2), clock=Clock()) as crew:
        for start in (TODAY, YESTERDAY):
            crew.submit(job_for(start, replies, DEEP, 2 * HALF + 1))
        first = replies.get(timeout=10)
        while len(server.asked) < 2:
            time.sleep(0.01)
        time.sleep(0.2)
        crew.wind_down()
        with pytest.raises(Empty):
            replies.get(timeout=0.5)
        crew.release(first)
        second = replies.get(timeout=10)
        assert second.answer
        crew.release(second)


def columns_in_memory() -> int:
    gc.collect()  # what earlier tests have left
    return sum(isinstance(one, decode._Rows) for one in gc.get_objects())


def test_what_was_decoded_of_a_damaged_answer_goes_with_it(upstream: MakeUpstream, settings: MakeSettings) -> None:
    replies: SimpleQueue[Job] = SimpleQueue()
    found: list[int] = []

    def damaged_at_first(asked: Asked) -> bytes:
        found.append(columns_in_memory())
        text = document(asked, {start: plain_levels(start) for start in asked.starts})
        packed = gzip.compress(text.replace(b" ", b""))
        return http(body=packed[: -8 if len(found) == 1 else None], headers={"Content-Encoding": "gzip"})

    chosen = settings(upstream(damaged_at_first).url, concurrency=1, patience_s=30.0)
    with no_thread_left(), Crew(chosen, clock=Clock()) as crew:
        crew.submit(job_for(TODAY, replies))
        job = replies.get(timeout=10)
        assert job.answer
        assert found == [0, 0]


def test_what_was_decoded_of_a_wrong_answer_goes_when_it_is_let_go(
    upstream: MakeUpstream, settings: MakeSettings
) -> None:
    replies: SimpleQueue[Job] = SimpleQueue()

    def lie(asked: Asked) -> bytes:
        return http(body=document(asked, {asked.span.start: [(1.0, -1.0)]}))

    with no_thread_left(), Crew(settings(upstream(lie).url, concurrency=1), clock=Clock()) as crew:
        crew.submit(job_for(TODAY, replies))
        job = replies.get(timeout=10)
        assert isinstance(job.fault, DecodeError)
        crew.release(job)
        assert columns_in_memory() == 0


def test_a_small_answer_does_not_overtake_a_large_one_that_waits(
    upstream: MakeUpstream, settings: MakeSettings
) -> None:
    """Else the large one would wait for as long as small ones come."""
    replies: SimpleQueue[Job] = SimpleQueue()
    has_come = threading.Event()

    def small_ones_later(asked: Asked) -> bytes:
        if asked.params["from"] == str(TODAY):
            has_come.wait(10)
            time.sleep(0.2)
        return honest(asked)

    with no_thread_left(), Crew(settings(upstream(small_ones_later).url, concurrency=3), clock=Clock()) as crew:
        crew.submit(job_for(YESTERDAY, replies, DEEP, HALF))
        first = replies.get(timeout=10)
        crew.submit(job_for(TODAY, replies, DEEP, 1))
        crew.submit(job_for(YESTERDAY + HOUR, replies, DEEP, 2 * HALF + 1))
        has_come.set()
        with pytest.raises(Empty):
            replies.get(timeout=0.6)
        crew.release(first)
        second = replies.get(timeout=10)
        assert second.window.points == 2 * HALF + 1
        crew.release(second)
        crew.release(replies.get(timeout=10))


def test_an_answer_that_is_damaged_gives_its_room_to_others(upstream: MakeUpstream, settings: MakeSettings) -> None:
    replies: SimpleQueue[Job] = SimpleQueue()
    others_are_done = threading.Event()
    asked_before: set[int] = set()

    def damaged_at_first(asked: Asked) -> bytes:
        if asked.span.start != TODAY:
            return honest(asked)
        if TODAY not in asked_before:
            asked_before.add(TODAY)
            return http(body=b"no gzip", headers={"Content-Encoding": "gzip"})
        others_are_done.wait(10)
        return honest(asked)

    chosen = settings(upstream(damaged_at_first).url, concurrency=2, patience_s=30.0)
    with no_thread_left(), Crew(chosen, clock=Clock()) as crew:
        crew.submit(job_for(YESTERDAY, replies, DEEP, 1))
        crew.release(replies.get(timeout=10))
        for start in (TODAY, YESTERDAY):
            crew.submit(job_for(start, replies, DEEP, 2 * HALF + 1))
        other = replies.get(timeout=10)
        assert other.window.span.start == YESTERDAY
        crew.release(other)
        others_are_done.set()
        job = replies.get(timeout=10)
        assert job.answer
        crew.release(job)


def test_a_job_larger_than_the_bound_goes_alone(upstream: MakeUpstream, settings: MakeSettings) -> None:
    replies: SimpleQueue[Job] = SimpleQueue()
    with no_thread_left(), Crew(settings(upstream(honest).url), clock=Clock()) as crew:
        for _ in range(2):
            crew.submit(job_for(TODAY, replies, Series("BTC", depth=100_000), 500))
            crew.release(replies.get(timeout=10))


def test_no_thread_waits_for_room_that_nobody_will_make(upstream: MakeUpstream, settings: MakeSettings) -> None:
    """Whoever leaves a run early lets go of no answer: the crew must end all the same."""
    server = upstream(honest)
    replies: SimpleQueue[Job] = SimpleQueue()
    with no_thread_left(), Crew(settings(server.url, concurrency=4), clock=Clock()) as crew:
        for _ in range(3):
            crew.submit(job_for(TODAY, replies, Series("BTC", depth=100_000), 500))
        replies.get(timeout=10)


@pytest.mark.parametrize("ended_by", [lambda _: None, Stop.set], ids=["left", "stopped"])
def test_no_thread_waits_out_a_hold_after_the_run(
    upstream: MakeUpstream, settings: MakeSettings, ended_by: Callable[[Stop], None]
) -> None:
    """A 429 may hold for minutes; nobody waits for its end when nobody wants the answer."""
    server = upstream(lambda _: http(429, headers={"Retry-After": "60"}))
    stop = Stop()
    replies: SimpleQueue[Job] = SimpleQueue()
    with no_thread_left(), Crew(settings(server.url, concurrency=2), stop=stop, clock=Clock()) as crew:
        crew.submit(job_for(TODAY, replies))
        while not server.asked:
            time.sleep(0.001)
        ended_by(stop)


def test_what_leaves_the_history_before_it_is_asked_for_is_left_out(
    upstream: MakeUpstream, settings: MakeSettings
) -> None:
    """One second late would cost the whole window: the upstream refuses a span that begins before the history."""
    server = upstream(honest)
    replies: SimpleQueue[Job] = SimpleQueue()
    clock = Clock(TODAY + DAY + 90)
    with no_thread_left(), Crew(settings(server.url, history_days=1), clock=clock) as crew:
        crew.submit(job_for(TODAY, replies))
        job = replies.get(timeout=10)
    assert server.spans == [Span(TODAY + 120, TODAY + 600)]
    assert job.answer is not None
    assert job.answer.coverage.covered == Spans.of([(TODAY + 120, TODAY + 600)])
    assert job.answer.snapshots.volume.tolist()[:2] == [volume for _, volume in plain_levels(TODAY + 120)]


def test_a_sleep_ends_with_the_run() -> None:
    stop = Stop()
    threading.Timer(0.01, stop.set).start()
    began = time.monotonic()
    with pytest.raises(Exception, match="stopped"):
        stop.sleep(60)
    assert time.monotonic() - began < 10
