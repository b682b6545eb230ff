"""Lent memory: nobody's array is another's while it is looked at, and what is given back is used again."""

import gc
import os
import threading

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from heatpipe.memory import GRAIN, SMALL, Pool

LARGE = 4 * SMALL


def address(array: np.ndarray) -> int:
    found: int = array.__array_interface__["data"][0]
    return found


@pytest.mark.parametrize("size", [0, 1, SMALL - 1, SMALL, SMALL + 1, GRAIN, GRAIN + 1])
def test_an_array_has_the_size_and_kind_that_was_asked_for(size: int) -> None:
    pool = Pool()
    for array, kind in ((pool.floats(size), "float64"), (pool.integers(size), "int64")):
        assert array.shape == (size,)
        assert array.dtype == kind
        array[:] = 7
        assert (array == 7).all()


def test_memory_is_used_again_when_the_last_view_is_gone() -> None:
    pool = Pool()
    first = pool.floats(LARGE)
    where, view = address(first), first[10:20]
    del first
    assert address(pool.floats(LARGE)) != where, "somebody still looks at it"
    view[:] = 1.0
    del view
    assert address(pool.floats(LARGE)) == where


def test_a_memoryview_holds_its_memory() -> None:
    pool = Pool()
    text = pool.floats(LARGE).data
    where = address(np.frombuffer(text, np.uint8))
    assert address(pool.floats(LARGE)) != where
    del text
    assert address(pool.floats(LARGE)) == where


def test_arrays_of_about_the_same_size_share_their_memory() -> None:
    pool = Pool()
    where = address(pool.floats(9 * GRAIN))
    assert address(pool.floats(16 * GRAIN)) == where


def test_a_small_array_does_not_hold_a_block_that_is_much_larger() -> None:
    pool = Pool()
    where = address(pool.floats(16 * GRAIN))
    assert address(pool.floats(GRAIN)) != where
    assert address(pool.floats(16 * GRAIN)) == where


def test_no_more_than_the_bound_lies_idle() -> None:
    pool = Pool(idle=2)
    arrays = [pool.floats(LARGE) for _ in range(5)]
    kept = [address(array) for array in arrays[-2:]]
    while arrays:
        del arrays[0]
    again = [pool.floats(LARGE) for _ in range(2)]
    assert sorted(map(address, again)) == sorted(kept)
    assert not pool._idle


@given(st.lists(st.tuples(st.integers(SMALL, 6 * GRAIN), st.integers(0, 5)), max_size=25))
def test_arrays_that_live_never_overlap(story: list[tuple[int, int]]) -> None:
    pool = Pool(idle=3)
    alive: dict[int, np.ndarray] = {}
    for number, (size, leaves) in enumerate(story):
        alive[number] = pool.floats(size)
        alive[number][:] = number
        alive.pop(number - leaves - 1, None)
    for number, array in alive.items():
        assert (array == number).all()


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
def test_a_fork_does_not_write_into_our_memory() -> None:
    pool = Pool()
    pool.floats(LARGE)
    child = os.fork()
    array = pool.floats(LARGE)
    array[:] = 1.0
    if not child:
        array[:] = 2.0
        os._exit(0)
    os.waitpid(child, 0)
    assert (array == 1.0).all()


def test_threads_may_share_it() -> None:
    pool, wrong = Pool(idle=3), []

    def work(number: int) -> None:
        for turn in range(200):
            array = pool.floats(SMALL + 1000 * (turn % 7))
            array[:] = number
            if not (array == number).all():
                wrong.append(number)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    gc.collect()
    assert len(pool._idle) <= 3
