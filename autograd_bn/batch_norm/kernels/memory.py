"""Memory of large results, used again: pages that are new to the process cost more than the arithmetic."""

import math
import sys
from typing import Any

import numpy as np

from ...engine.node import Array
from . import thresholds

# Arrays of bytes that results are views of, by their number; the size that was made last stands last. Any thread may be
# here, and another one run between any two steps below: a room may be lost, and never be lent twice.
_rooms: dict[int, list[Array]] = {}


def empty(shape: tuple[int, ...], dtype: np.dtype[Any]) -> Array:
    """As `numpy.empty`, but a large array may get the memory of one that nobody holds any more."""
    size = math.prod(shape) * dtype.itemsize
    if not thresholds.SMALLEST_ROOM <= size <= thresholds.LARGEST_ROOM or dtype.hasobject:
        return np.empty(shape, dtype)
    rooms = _rooms.setdefault(size, [])
    for _ in range(len(rooms)):
        try:
            mine = [rooms.pop()]
        except IndexError:
            break
        if sys.getrefcount(mine[0]) == 2:  # this list, and who counts
            array = np.ndarray(shape, dtype, mine[0])
            rooms += mine
            return array
        rooms[:0] = mine
    memory = np.empty(size + 64, np.uint8)
    start = -memory.ctypes.data % 64  # at a line of the cache
    room = np.frombuffer(memory.data[start : start + size], np.uint8)
    array = np.ndarray(shape, dtype, room)
    rooms.append(room)
    _forget()
    return array


def _forget() -> None:
    """Forget the rooms beyond the limits, of the sizes that were made first."""
    listed = [*_rooms.items()]
    total, count = sum([size * len(rooms) for size, rooms in listed]), sum([len(rooms) for _, rooms in listed])
    for size, rooms in listed:
        while rooms and (total > thresholds.HELD or count > thresholds.ROOMS):
            del rooms[:1]
            total, count = total - size, count - 1
        if not rooms:
            _rooms.pop(size, None)
