"""A small pool of threads for work that lets go of Python's lock."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

if TYPE_CHECKING:
    from concurrent.futures import ThreadPoolExecutor

Item = TypeVar("Item")

_VARIABLE = "AUTOGRAD_BN_NUM_THREADS"
_number: int | None = None
_pools: dict[int, ThreadPoolExecutor] = {}  # by their number of threads


def set_num_threads(n: int | None) -> None:
    """Let the fused node's kernels use `n` threads; results have the same bits for any number.

    None restores the default: the environment variable AUTOGRAD_BN_NUM_THREADS, else the number of processors that
    this process may run on. Work below about 0.1 ms runs in the calling thread alone. `ValueError` unless `n` is a
    positive integer.

    >>> import autograd_bn as ag
    >>> ag.set_num_threads(1)
    >>> ag.set_num_threads(None)
    """
    global _number
    _number = None if n is None else _checked(n, "n")
    _forget()


def num_threads() -> int:
    """How many threads large work is shared by."""
    number = os.environ.get(_VARIABLE)
    return _number or (_checked(number, _VARIABLE) if number else _processors())


def share(work: Callable[[Item], Any], items: Iterable[Item]) -> None:
    """Call `work` on every item, by several threads; the first error is raised when all have ended."""
    number = num_threads()  # once: another thread may set it meanwhile
    remaining = iter(list(items))  # one iterator for all threads: whoever is free takes the next item

    def consume() -> None:
        with np.errstate(all="ignore"):  # of each thread its own
            for item in remaining:
                work(item)

    others = [_pool(number - 1).submit(consume) for _ in range(number - 1)]
    try:
        consume()
    finally:
        # With nothing remaining, a helper that has not begun has nothing to do.
        errors = [other.exception() for other in others if not other.cancel()]
    for error in errors:
        if error is not None:
            raise error


def _pool(size: int) -> ThreadPoolExecutor:
    pool = _pools.get(size)
    if pool is None:
        from concurrent.futures import ThreadPoolExecutor

        pool = _pools[size] = ThreadPoolExecutor(size, thread_name_prefix="autograd_bn")
    return pool


def _forget() -> None:
    """Drop the pools: the next large piece of work starts one. A forked child has none of its parent's threads."""
    _pools.clear()


def _checked(n: Any, name: str) -> int:
    try:
        number = int(n)
    except (TypeError, ValueError):
        number = 0
    if number < 1 or (isinstance(n, float) and n != number):
        raise ValueError(f"{name} is {n!r}, expected a positive integer")
    return number


def _processors() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)
