"""Memory that is handed out again, and never while somebody holds it."""

import gc
import threading

import numpy as np
import pytest

import autograd_bn as ag
from autograd_bn.batch_norm.kernels import memory, thresholds

LARGE = np.zeros((1 << 9, 1 << 9), np.float32)


@pytest.fixture(autouse=True)
def nothing_held():
    memory._rooms.clear()
    yield
    memory._rooms.clear()


def empty_like(array):
    return memory.empty(array.shape, array.dtype)


def address(array):
    return array.__array_interface__["data"][0]


def rooms():
    return sum(len(listed) for listed in memory._rooms.values())


def test_memory_of_a_dropped_array_is_used_again():
    first = empty_like(LARGE)
    where = address(first)
    other = empty_like(LARGE)
    assert address(other) != where
    del first
    again = empty_like(LARGE)
    assert address(again) == where
    assert again.flags.writeable
    assert (again.shape, again.dtype) == (LARGE.shape, LARGE.dtype)


VIEWS = {
    "rows": lambda a: a[3:5],
    "transposed": lambda a: a.T,
    "other dtype": lambda a: a.view(np.int32).reshape(-1),
    "memoryview": memoryview,
    "base": lambda a: a.base,
    "array of the base": lambda a: np.asarray(a.base),
    "base of a view": lambda a: a[3:5].base,
}


@pytest.mark.parametrize("view", VIEWS.values(), ids=VIEWS)
def test_a_view_keeps_its_memory(view):
    first = empty_like(LARGE)
    where, held = address(first), view(first)
    del first
    assert address(empty_like(LARGE)) != where
    del held
    assert where in [address(a) for a in (empty_like(LARGE), empty_like(LARGE))]


def test_another_dtype_of_the_same_size_may_have_it():
    first = empty_like(LARGE)
    where = address(first)
    del first
    other = memory.empty(LARGE.shape, np.dtype(np.int32))
    assert (address(other), other.dtype) == (where, np.int32)


def test_memory_of_another_size_waits_for_its_own():
    first, other = empty_like(LARGE), empty_like(LARGE[:256])
    where = address(first)
    del first, other
    held = [empty_like(LARGE[:128]), empty_like(LARGE)]
    assert address(held[1]) == where
    assert rooms() == 3


def test_no_more_is_held_than_is_said(monkeypatch):
    monkeypatch.setattr(thresholds, "HELD", 4 * LARGE.nbytes)
    arrays = [empty_like(LARGE) for _ in range(8)]
    last = [address(array) for array in arrays[4:]]
    del arrays
    again = [empty_like(LARGE) for _ in range(4)]
    assert sorted(map(address, again)) == sorted(last)
    assert rooms() == 4


def test_rooms_of_unlike_sizes_are_bounded_by_their_number(monkeypatch):
    monkeypatch.setattr(thresholds, "ROOMS", 5)
    for length in range(256, 300):
        empty_like(LARGE[:length])
    assert rooms() == len(memory._rooms) == 5  # and no size is remembered that has no room
    assert min(memory._rooms) == LARGE[:295].nbytes


ODD = [np.zeros(10), np.broadcast_to(np.float32(0), (9999, 9999)), LARGE.astype(object)]


@pytest.mark.parametrize("like", ODD, ids=["small", "huge", "objects"])
def test_small_and_huge_arrays_and_objects_are_left_to_numpy(like):
    assert empty_like(like).base is None


def test_threads_never_share_memory(monkeypatch):
    monkeypatch.setattr(thresholds, "ROOMS", 3)
    wrong = []

    def work(number):
        for i in range(300):
            array = empty_like(LARGE[: 256 + i % 2])
            array[::64] = number
            wrong.extend(array[::64][array[::64] != number])
            del array

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_results_of_batch_norm_stay_what_they_are():
    rng = np.random.default_rng(0)
    x = rng.normal(size=LARGE.shape).astype(np.float32)
    leaf = ag.as_tensor(x, requires_grad=True)
    y = ag.batch_norm(leaf)
    (dx,) = ag.grad(y, [leaf], x)
    before = y.data.copy(), dx.copy()
    rows = y.data[7]
    del y
    gc.collect()
    for _ in range(3):
        ag.grad(ag.batch_norm(leaf * 2), [leaf], x)
    assert (rows == before[0][7]).all()
    assert (dx == before[1]).all()


def test_a_gradient_in_recycled_memory_is_the_passes_own():
    x = ag.as_tensor(LARGE + 1, requires_grad=True)
    g = np.ones_like(LARGE)
    (dx,) = ag.grad(ag.batch_norm(x), [x], g)
    assert dx.base.dtype == np.uint8  # not copied
    (doubled,) = ag.grad(ag.batch_norm(x) + x, [x], g)
    assert (doubled == dx + 1).all()
    assert (g == 1).all()
