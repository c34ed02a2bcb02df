"""The kernels in NumPy: every block is read into a wide buffer that stays in cache, and rounded once at the end."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import numpy as np

from ...engine.node import Array
from . import thresholds
from .blocks import Block, Layout
from .threads import share
from .whole import whole

# How many times what is left of them squares may be that are summed about 0: float32 in double has bits to spare.
SPARE = 2.0**20


class _Scratch(threading.local):
    """Buffers of one block, for each thread its own."""

    def __init__(self) -> None:
        self.buffers: dict[tuple[int, Any], Array] = {}

    def take(self, slot: int, size: int, dtype: Any) -> Array:
        buffer = self.buffers.get((slot, dtype))
        if buffer is None or buffer.size < size:
            buffer = self.buffers[slot, dtype] = np.empty(size, dtype)
        return buffer[:size]


scratch = _Scratch()


def load(view: Array, block: Block, dtype: Any, slot: int = 0) -> Array:
    piece = view[block.where]
    buffer = scratch.take(slot, piece.size, dtype)
    np.copyto(np.ndarray(piece.shape, dtype, buffer), piece)
    lines: Array = buffer.reshape(block.lines)
    return lines


def store(values: Array, view: Array, block: Block) -> None:
    piece = view[block.where]
    np.copyto(piece, values.reshape(piece.shape), casting="same_kind")


def run(layout: Layout, work: Callable[[Block], None]) -> None:
    def quietly(block: Block) -> None:
        with np.errstate(all="ignore"):  # of each thread its own
            work(block)

    share(quietly, layout.blocks, layout.size > thresholds.SHARED_NUMPY)


def statistics(layout: Layout, x: Array, sums: Array) -> None:
    """`sums` gets, by part and feature, a centre, the mean's distance from it, and the sum of squares about the mean.

    The centre is 0 where the dtype has bits to spare for the squares to cancel, else the rounded mean; in nearly
    constant features it is the first element: a constant one is exactly its own mean.
    """
    centres, distances, squares = sums
    spare = x.dtype != sums.dtype

    def work(block: Block) -> None:
        t = load(x, block, distances.dtype)
        n, where = block.rows * block.inner, (block.part, block.features)
        first = t.reshape(block.rows, -1, block.inner)[0, :, 0].copy()
        centre = np.zeros_like(first) if spare else summed(t, layout, block) / n
        if not spare:
            t -= layout.along(centre, block.lanes[0])
        distance = summed(t, layout, block) / n
        correction = n * distance * distance
        t *= t
        square = summed(t, layout, block) - correction
        far = correction > (SPARE if spare else 1) * square
        if far.any():
            t = load(x, block, distances.dtype)
            t -= layout.along(first, block.lanes[0])
            near = summed(t, layout, block) / n
            t -= layout.along(near, block.lanes[0])
            t *= t
            square = np.where(far, summed(t, layout, block), square)
            centre, distance = np.where(far, first, centre), np.where(far, near, distance)
        centres[where], distances[where], squares[where] = centre, distance, square

    run(layout, work)


def backward_sums(layout: Layout, g: Array, x: Array, means: Any, sums: Array) -> None:
    """`sums` gets, for each part and feature, the sums of g and of g * (x - means); `means` may be None."""
    means, (totals, weighted) = layout.lay(means), sums

    def work(block: Block) -> None:
        h = load(g, block, totals.dtype, slot=1)
        totals[block.part, block.features] = summed(h, layout, block)
        t = load(x, block, totals.dtype)
        if means is not None:
            t -= means[block.place]
        t *= h
        weighted[block.part, block.features] = summed(t, layout, block)

    run(layout, work)


def summed(lines: Array, layout: Layout, block: Block) -> Array:
    """The sum of each feature's numbers: over the lines, then over the lanes that belong to it."""
    lanes = whole(lines.shape, (layout.axis,)).sum(lines).reshape(block.lanes)
    return whole(block.lanes, (0, 2)).sum(lanes).reshape(-1)


def affine(layout: Layout, views: list[Array], vectors: list[Any]) -> None:
    """y = (x - means) * slopes + constants + g * directs, each a vector of features.

    `views` are x, y and g, `vectors` means, slopes, constants and directs; means may be None, and g and directs not be.
    """
    x, y, *gradient = views
    means, slopes, constants, *directs = [layout.lay(vector) for vector in vectors]

    def work(block: Block) -> None:
        t = load(x, block, slopes.dtype)
        if means is not None:
            t -= means[block.place]
        t *= slopes[block.place]
        t += constants[block.place]
        if gradient:
            h = load(gradient[0], block, slopes.dtype, slot=1)
            h *= directs[0][block.place]
            t += h
        store(t, y, block)

    run(layout, work)
