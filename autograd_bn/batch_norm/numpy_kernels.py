"""The kernels in NumPy: every block is read into a wide buffer that stays in cache, and rounded once at the end."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import numpy as np

from ..engine.node import Array
from .layout import Block, Layout
from .threads import share

# Above this many elements a second thread pays.
PARALLEL = 1 << 18


class _Scratch(threading.local):
    """Buffers of one block, for each thread its own."""

    def __init__(self) -> None:
        self.buffers: dict[tuple[int, Any], Array] = {}

    def take(self, slot: int, size: int, dtype: Any) -> Array:
        buffer = self.buffers.get((slot, dtype))
        if buffer is None or buffer.size < size:
            buffer = self.buffers[slot, dtype] = np.empty(size, dtype)
        return buffer[:size]


_scratch = _Scratch()


def _load(view: Array, block: Block, dtype: Any, slot: int = 0) -> Array:
    buffer = _scratch.take(slot, block.size, dtype)
    np.copyto(buffer.reshape(block.shape), view[block.where])
    lines: Array = buffer.reshape(block.lines)
    return lines


def _store(values: Array, view: Array, block: Block) -> None:
    np.copyto(view[block.where], values.reshape(block.shape), casting="same_kind")


def _run(layout: Layout, work: Callable[[Block], None]) -> None:
    def quietly(block: Block) -> None:
        with np.errstate(all="ignore"):  # of each thread its own
            work(block)

    share(quietly, layout.blocks, layout.size > PARALLEL)


def statistics(layout: Layout, x: Array, centres: Array, sums: Array, squares: Array) -> None:
    """Each part's and feature's first element, and the sums of what its elements are above it and of the squares of that.

    The subtraction is all but exact, and exactly 0 for a constant feature.
    """

    def work(block: Block) -> None:
        t = _load(x, block, sums.dtype)
        centre = t.reshape(block.rows, -1, block.inner)[0, :, 0].copy()
        where = block.part, block.features
        centres[where] = centre
        t -= layout.along(centre, block.lanes[0])
        sums[where] = _folded(np.add.reduce(t, axis=layout.axis), block)
        t *= t
        squares[where] = _folded(np.add.reduce(t, axis=layout.axis), block)

    _run(layout, work)


def normalise(layout: Layout, x: Array, y: Array, means: Any, scales: Array, shifts: Array) -> None:
    """y = (x - means) * scales + shifts; `means` may be None."""

    def work(block: Block) -> None:
        t = _load(x, block, scales.dtype)
        if means is not None:
            t -= means[block.place]
        t *= scales[block.place]
        t += shifts[block.place]
        _store(t, y, block)

    _run(layout, work)


def backward_sums(layout: Layout, g: Array, x: Array, means: Any, totals: Array, weighted: Array) -> None:
    """For each part and feature, the sums of g and of g * (x - means); `means` may be None."""

    def work(block: Block) -> None:
        h = _load(g, block, totals.dtype, slot=1)
        totals[block.part, block.features] = _folded(np.add.reduce(h, axis=layout.axis), block)
        t = _load(x, block, totals.dtype)
        if means is not None:
            t -= means[block.place]
        t *= h
        weighted[block.part, block.features] = _folded(np.add.reduce(t, axis=layout.axis), block)

    _run(layout, work)


def _folded(lanes: Array, block: Block) -> Array:
    """A number for each of a block's lanes, summed over those of one feature."""
    repeats, _, inner = block.lanes
    if inner > 1:
        lanes = np.add.reduce(lanes.reshape(block.lanes), axis=2)
    elif repeats > 1:
        lanes = lanes.reshape(block.lanes[:2])
    else:
        return lanes.reshape(-1)
    folded: Array = np.add.reduce(lanes, axis=0)
    return folded


def input_gradient(
    layout: Layout, g: Array, x: Array, dx: Array, means: Any, directs: Array, slopes: Array, constants: Array
) -> None:
    """dx = g * directs + (x - means) * slopes + constants; `means` may be None."""

    def work(block: Block) -> None:
        t = _load(x, block, directs.dtype)
        if means is not None:
            t -= means[block.place]
        t *= slopes[block.place]
        t += constants[block.place]
        h = _load(g, block, directs.dtype, slot=1)
        h *= directs[block.place]
        t += h
        _store(t, dx, block)

    _run(layout, work)
