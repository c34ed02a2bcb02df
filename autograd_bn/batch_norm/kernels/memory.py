"""Memory of large results, used again: pages that are new to the process cost more than the arithmetic.

At most half a gigabyte is held when nothing uses it.
"""

from __future__ import annotations

from collections import deque
from typing import Any

import numpy as np

from ...engine.node import Array

# In bytes. What is smaller stays with the allocator; what is larger goes back to the system at once.
SMALLEST, LARGEST = 1 << 17, 1 << 27

# The memory of the last arrays that were dropped.
_free: deque[Array] = deque(maxlen=4)


class Loan:
    """The base of an array whose memory is free again when neither the array, nor a view, nor this is held any more."""

    __slots__ = ("__array_interface__", "_free", "_room")

    def __init__(self, room: Array, shape: tuple[int, ...], dtype: np.dtype[Any]) -> None:
        self._room, self._free = room, _free
        data = room.__array_interface__["data"]
        self.__array_interface__ = {"version": 3, "shape": shape, "typestr": dtype.str, "data": data}

    def __del__(self) -> None:
        self._free.append(self._room)


def empty_like(x: Array, dtype: Any = None) -> Array:
    """As `numpy.empty_like`, but a large array in C order may get the memory of one that nobody holds any more."""
    dtype = np.dtype(dtype or x.dtype)
    size = x.size * dtype.itemsize
    if not (SMALLEST <= size <= LARGEST and x.flags.c_contiguous):
        return np.empty_like(x, dtype)
    return np.asarray(Loan(_room(size), x.shape, dtype))


def _room(size: int) -> Array:
    for _ in range(len(_free)):
        try:
            room = _free.pop()  # the one that is warmest
        except IndexError:  # another thread was quicker
            break
        if len(room) == size:
            return room
        _free.appendleft(room)
    room = np.empty(size + 64, np.uint8)
    start = -room.ctypes.data % 64  # at a line of the cache
    return room[start : start + size]
