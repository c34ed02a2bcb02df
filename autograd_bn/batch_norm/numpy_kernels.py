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

    def like(self, lines: Array, slot: int) -> Array:
        """A buffer in the shape and dtype of `lines`."""
        return self.take(slot, lines.size, lines.dtype).reshape(lines.shape)


scratch = _Scratch()


def load(view: Array, block: Block, dtype: Any, slot: int = 0) -> Array:
    buffer = scratch.take(slot, block.size, dtype)
    np.copyto(buffer.reshape(block.shape), view[block.where])
    lines: Array = buffer.reshape(block.lines)
    return lines


def store(values: Array, view: Array, block: Block) -> None:
    np.copyto(view[block.where], values.reshape(block.shape), casting="same_kind")


def run(layout: Layout, work: Callable[[Block], None]) -> None:
    def quietly(block: Block) -> None:
        with np.errstate(all="ignore"):  # of each thread its own
            work(block)

    share(quietly, layout.blocks, layout.size > PARALLEL)


def statistics(layout: Layout, x: Array, centres: Array, distances: Array, squares: Array) -> None:
    """For each part and feature a centre, the mean's distance from it, and the sum of squares about the mean.

    The centre is the first element: the subtraction is all but exact, and exactly 0 for a constant feature.
    """

    def work(block: Block) -> None:
        t = load(x, block, distances.dtype)
        n = block.rows * block.inner
        centre = t.reshape(block.rows, -1, block.inner)[0, :, 0].copy()
        t -= layout.along(centre, block.lanes[0])
        distance = folded(np.add.reduce(t, axis=layout.axis), block) / n
        t *= t
        where = block.part, block.features
        centres[where], distances[where] = centre, distance
        squares[where] = folded(np.add.reduce(t, axis=layout.axis), block) - n * distance * distance

    run(layout, work)


def normalise(layout: Layout, x: Array, y: Array, means: Any, scales: Array, shifts: Array) -> None:
    """y = (x - means) * scales + shifts, each a vector of features; `means` may be None."""
    means, scales, shifts = (layout.lay(vector) for vector in (means, scales, shifts))

    def work(block: Block) -> None:
        t = load(x, block, scales.dtype)
        if means is not None:
            t -= means[block.place]
        t *= scales[block.place]
        t += shifts[block.place]
        store(t, y, block)

    run(layout, work)


def backward_sums(layout: Layout, g: Array, x: Array, means: Any, totals: Array, weighted: Array) -> None:
    """For each part and feature, the sums of g and of g * (x - means); `means` may be None."""
    means = layout.lay(means)

    def work(block: Block) -> None:
        h = load(g, block, totals.dtype, slot=1)
        totals[block.part, block.features] = folded(np.add.reduce(h, axis=layout.axis), block)
        t = load(x, block, totals.dtype)
        if means is not None:
            t -= means[block.place]
        t *= h
        weighted[block.part, block.features] = folded(np.add.reduce(t, axis=layout.axis), block)

    run(layout, work)


def folded(lanes: Array, block: Block) -> Array:
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
    means, directs, slopes, constants = (layout.lay(vector) for vector in (means, directs, slopes, constants))

    def work(block: Block) -> None:
        t = load(x, block, directs.dtype)
        if means is not None:
            t -= means[block.place]
        t *= slopes[block.place]
        t += constants[block.place]
        h = load(g, block, directs.dtype, slot=1)
        h *= directs[block.place]
        t += h
        store(t, dx, block)

    run(layout, work)
