"""Memory of large results, used again: pages that are new to the process cost more than the arithmetic."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np

from ...engine.node import Array
from . import thresholds

Room = tuple[Array, int]  # bytes, and their address

# The memory of the last arrays that were dropped, by size: the size that was dropped last stands last. An array may be
# dropped anywhere, by any thread: between any two steps below another may run, which can lose a room and not lend
# it twice.
_free: dict[int, list[Room]] = {}


class Loan:
    """The base of an array whose memory is free again when neither the array, nor a view, nor this is held any more."""

    __slots__ = ("__array_interface__", "_free", "_room")

    def __init__(self, room: Room, shape: tuple[int, ...], dtype: np.dtype[Any]) -> None:
        self._room, self._free = room, _free
        self.__array_interface__ = _interface(room[1], shape, dtype)

    def __del__(self) -> None:
        free, size = self._free, len(self._room[0])
        mine = free.pop(size, [])  # never a copy of it, out of which a room could be lent twice
        mine.append(self._room)
        free[size] = mine
        held = [*free.items()]
        total, count = sum([size * len(rooms) for size, rooms in held]), sum([len(rooms) for _, rooms in held])
        for size, rooms in held:
            while rooms and (total > thresholds.HELD or count > thresholds.ROOMS):
                del rooms[:1]
                total, count = total - size, count - 1
            if not rooms:
                free.pop(size, None)


@lru_cache
def _interface(address: int, shape: tuple[int, ...], dtype: np.dtype[Any]) -> dict[str, Any]:
    return {"version": 3, "shape": shape, "typestr": dtype.str, "data": (address, False)}


def empty_like(x: Array, dtype: Any = None) -> Array:
    """As `numpy.empty_like`, but a large array in C order may get the memory of one that nobody holds any more."""
    dtype = x.dtype if dtype is None else np.dtype(dtype)
    size = x.size * dtype.itemsize
    if not (thresholds.SMALLEST_ROOM <= size <= thresholds.LARGEST_ROOM and x.flags.c_contiguous) or dtype.hasobject:
        return np.empty_like(x, dtype)
    return np.asarray(Loan(_room(size), x.shape, dtype))


def _room(size: int) -> Room:
    try:
        return _free[size].pop()  # the one that is warmest
    except (KeyError, IndexError):
        memory = np.empty(size + 64, np.uint8)
    start = -memory.ctypes.data % 64  # at a line of the cache
    memory = memory[start : start + size]
    return memory, memory.ctypes.data
