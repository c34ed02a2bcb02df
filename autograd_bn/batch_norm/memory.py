"""Memory of large results, used again: pages that are new to the process cost more than the arithmetic."""

from __future__ import annotations

import weakref
from collections import deque
from typing import Any

import numpy as np

from ..engine.node import Array

# In bytes. What is smaller stays with the allocator; what is larger goes back to the system at once.
SMALLEST, LARGEST = 1 << 17, 1 << 28

# The memory of the last results that were dropped.
_free: deque[memoryview] = deque(maxlen=4)


def empty_like(x: Array, dtype: Any = None) -> Array:
    """As `numpy.empty_like`, but a large array in C order may get the memory of one that nobody holds any more."""
    dtype = np.dtype(dtype or x.dtype)
    size = x.size * dtype.itemsize
    if not (SMALLEST <= size <= LARGEST and x.flags.c_contiguous):
        return np.empty_like(x, dtype)
    memory = _taken(size) or _aligned(size)
    owner = np.frombuffer(memory, dtype)
    # Every view keeps `owner` alive: NumPy follows a view's base as far as the last array.
    weakref.finalize(owner, _free.append, memory).atexit = False
    return owner.reshape(x.shape)


def _aligned(size: int) -> memoryview:
    """New memory that starts with a line of the cache."""
    room = np.empty(size + 64, np.uint8)
    start = -room.ctypes.data % 64
    return memoryview(room[start : start + size].data)


def _taken(size: int) -> memoryview | None:
    for _ in range(len(_free)):
        try:
            memory = _free.pop()  # the one that is warmest
        except IndexError:  # another thread was quicker
            return None
        if len(memory) == size:
            return memory
        _free.appendleft(memory)
    return None
