"""Memory of large results, used again: pages that are new to the process cost more than the arithmetic.

At most half a gigabyte is held when nothing uses it.
"""

from __future__ import annotations

import weakref
from collections import deque
from typing import Any

import numpy as np

from .node import Array

# In bytes. What is smaller stays with the allocator; what is larger goes back to the system at once.
SMALLEST, LARGEST = 1 << 17, 1 << 27


class Memory(np.ndarray[Any, Any]):
    """The bytes of one array and of its views, none of which looks further than that array for its base."""


# The memory of the last arrays that were dropped.
_free: deque[Memory] = deque(maxlen=4)


def empty_like(x: Array, dtype: Any = None) -> Array:
    """As `numpy.empty_like`, but a large array in C order may get the memory of one that nobody holds any more."""
    dtype = np.dtype(dtype or x.dtype)
    size = x.size * dtype.itemsize
    if not (SMALLEST <= size <= LARGEST and x.flags.c_contiguous):
        return np.empty_like(x, dtype)
    memory = _memory(size)
    array: Array = np.ndarray(x.shape, dtype, memory)
    weakref.finalize(array, _free.append, memory).atexit = False
    return array


def _memory(size: int) -> Memory:
    for _ in range(len(_free)):
        try:
            memory = _free.pop()  # the one that is warmest
        except IndexError:  # another thread was quicker
            break
        if len(memory) == size:
            return memory
        _free.appendleft(memory)
    room = Memory(size + 64, np.uint8)
    start = -room.ctypes.data % 64  # at a line of the cache
    return room[start : start + size]  # type: ignore[return-value]
