"""The kernels in NumPy: every block is read into a wide buffer that stays in cache, and rounded once at the end."""

from __future__ import annotations

import threading
from typing import Any

import numpy as np

from ..engine.node import Array
from .layout import Block, Layout, walk
from .threads import share

# Above this many elements a second thread pays.
PARALLEL = 1 << 16

# The arithmetic for each dtype. Where long double is no wider than double, float64 has the accuracy of its own sums.
WIDE: dict[np.dtype[Any], np.dtype[Any]] = {
    np.dtype(np.float16): np.dtype(np.float32),
    np.dtype(np.float32): np.dtype(np.float64),
    np.dtype(np.float64): np.dtype(np.longdouble),
}


def wide(dtype: np.dtype[Any]) -> np.dtype[Any]:
    """The dtype in which statistics of `dtype` are computed and kept."""
    return WIDE.get(dtype, dtype)


# A mean is kept in two parts, because its rounding would show where it is large beside the deviation: the nearest
# number of the input's dtype, and what that lacks, in the wide dtype.
Mean = tuple[Array, Array]


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


def _run(layout: Layout, size: int, work: Any) -> None:
    def quietly(block: Block) -> None:
        with np.errstate(all="ignore"):  # of each thread its own
            work(block)

    share(quietly, layout.blocks, size > PARALLEL)


def _folded(sums: Array, block: Block) -> Array:
    """The sums of a block's lines, summed over those of one feature."""
    repeats, _, inner = block.lanes
    if inner > 1:
        sums = np.add.reduce(sums.reshape(block.lanes), axis=2)
    elif repeats > 1:
        sums = sums.reshape(block.lanes[:2])
    else:
        return sums.reshape(-1)
    total: Array = np.add.reduce(sums, axis=0)
    return total


def merge(counts: Any, means: Array, squares: Array) -> tuple[Array, Array]:
    """The mean and the centred sum of squares of parts that lie along the first axis, from those of each.

    T. F. Chan, G. H. Golub, R. J. LeVeque, "Updating formulae and a pairwise algorithm for computing sample
    variances", 1979, for any number of parts at once: the parts' means are a sample in their turn. An empty part has
    count 0, and any finite mean and square.

    >>> merge(np.array([[2], [1]]), np.array([[1.0], [4.0]]), np.array([[2.0], [0.0]]))
    (array([2.]), array([8.]))
    """
    counts = np.broadcast_to(np.reshape(counts, (-1, *[1] * (means.ndim - 1))), means.shape)
    centre = means[0]
    away = means - centre
    shift = np.add.reduce(counts * away, axis=0) / np.add.reduce(counts, axis=0)
    away -= shift
    return centre + shift, np.add.reduce(squares, axis=0) + np.add.reduce(counts * away * away, axis=0)


def split(origin: Array, distance: Array) -> Mean:
    """The mean that lies at `distance` from `origin`, a number of the input's dtype."""
    high: Array = (origin + distance).astype(origin.dtype)
    return high, (origin.astype(distance.dtype) - high) + distance


def statistics(x: Array, axes: tuple[int, ...]) -> tuple[Mean, Array]:
    """The mean and the sum of squares about it over `axes`, which stay as axes of length 1.

    Each line of a block is centred on its own first element, which makes the subtraction all but exact and a
    constant line exactly 0; the lines' means are merged as distances from the feature's first element.
    """
    layout, (view,) = walk(axes, x)
    dtype = wide(x.dtype)
    origin = layout.first(view)
    origins = layout.along(origin.astype(dtype))
    means = np.empty((layout.parts, layout.features), dtype)
    squares = np.empty_like(means)
    axis = layout.axis

    def work(block: Block) -> None:
        t = _load(view, block, dtype)
        centre = (t[:1] if axis == 0 else t[:, :, :1]).copy()
        t -= centre
        n = t.shape[axis]
        shift = np.add.reduce(t, axis=axis, keepdims=True) / n
        t *= t
        square = np.add.reduce(t, axis=axis, keepdims=True)
        square -= shift * shift * n
        np.maximum(square, 0, out=square)
        mean = centre - origins[block.place] + shift
        repeats, features, inner = block.lanes
        if repeats * inner > 1:
            mean, square = (s.reshape(block.lanes).swapaxes(1, 2).reshape(-1, features) for s in (mean, square))
            mean, square = merge(n, mean, square)
        means[block.part, block.features] = mean.reshape(-1)
        squares[block.part, block.features] = square.reshape(-1)

    _run(layout, x.size, work)
    with np.errstate(all="ignore"):
        mean, square = merge(layout.counts, means, squares) if layout.parts > 1 else (means[0], squares[0])
        high, low = split(origin, mean)
    return (layout.unflat(high), layout.unflat(low)), layout.unflat(square)


def normalise(x: Array, axes: tuple[int, ...], mean: Array, scale: Array, shift: Array, dtype: np.dtype[Any]) -> Array:
    """(x - mean) * scale + shift, in `dtype`."""
    y = np.empty_like(x, dtype)
    layout, (source, target) = walk(axes, x, y)
    wider = scale.dtype
    means, scales, shifts = (layout.lay(statistic, wider) for statistic in (mean, scale, shift))

    def work(block: Block) -> None:
        t = _load(source, block, wider)
        t -= means[block.place]
        t *= scales[block.place]
        t += shifts[block.place]
        _store(t, target, block)

    _run(layout, x.size, work)
    return y


def backward_sums(g: Array, x: Array, axes: tuple[int, ...], mean: Array) -> tuple[Array, Array]:
    """The sums over `axes` of `g` and of `g * (x - mean)`, in the wide dtype."""
    layout, (source, gradient) = walk(axes, x, g)
    dtype = wide(x.dtype)
    means = layout.lay(mean, dtype)
    totals = np.empty((layout.parts, layout.features), dtype)
    weighted = np.empty_like(totals)

    def work(block: Block) -> None:
        h = _load(gradient, block, dtype, slot=1)
        totals[block.part, block.features] = _folded(np.add.reduce(h, axis=layout.axis), block)
        t = _load(source, block, dtype)
        t -= means[block.place]
        t *= h
        weighted[block.part, block.features] = _folded(np.add.reduce(t, axis=layout.axis), block)

    _run(layout, x.size, work)
    with np.errstate(all="ignore"):
        return layout.unflat(np.add.reduce(totals, axis=0)), layout.unflat(np.add.reduce(weighted, axis=0))


def input_gradient(
    g: Array, x: Array, axes: tuple[int, ...], mean: Array, direct: Array, slope: Any, constant: Any
) -> Array:
    """g * direct + (x - mean) * slope + constant in the dtype of `x`; `slope` and `constant` may be None."""
    dx = np.empty_like(x)
    layout, (source, gradient, target) = walk(axes, x, g, dx)
    dtype = direct.dtype
    directs = layout.lay(direct, dtype)
    means = layout.lay(mean, dtype)
    slopes, constants = (None if s is None else layout.lay(s, dtype) for s in (slope, constant))

    def work(block: Block) -> None:
        h = _load(gradient, block, dtype, slot=1)
        h *= directs[block.place]
        if slopes is not None:
            t = _load(source, block, dtype)
            t -= means[block.place]
            t *= slopes[block.place]
            h += t
        if constants is not None:
            h += constants[block.place]
        _store(h, target, block)

    _run(layout, x.size, work)
    return dx
