"""The kernels for float64: products and sums are kept as a pair of doubles, the second what the first lacks.

A double cut to its first 26 bits times another is exact; so is the sum of doubles that are rounded to one grid: see
T. J. Dekker, "A floating-point technique for extending the available precision", 1971, and S. M. Rump, T. Ogita and
S. Oishi, "Accurate floating-point summation", 2008, for the two. That is exact to about 80 bits, in a quarter of the
time that long double takes for its 64. It needs numbers far from overflow: `kernels` sees to that.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ..engine.node import Array
from .layout import Block, Layout
from .numpy_kernels import folded, load, run, scratch, store

_FIRST_BITS = np.int64(-1 << 27)
# By so many deviations a mean is far from 0 (the largest of many numbers is some four deviations from it). From there
# on the difference of a double and the mean is all but exact; up to there long double has the bits to take the mean
# from the sum.
FAR = 16.0


def statistics(layout: Layout, x: Array, centres: Array, distances: Array, squares: Array) -> None:
    """As `numpy_kernels.statistics`, but a centre is 0 or near the mean: subtracting either loses nothing."""

    def work(block: Block) -> None:
        t = load(x, block, float)
        n = block.rows * block.inner
        rough = folded(np.add.reduce(t, axis=layout.axis), block) / n
        d, spare, rest = (scratch.like(t, slot) for slot in (1, 2, 3))
        np.subtract(t, layout.along(rough, block.lanes[0]), out=d)
        largest = _largest(d, spare, layout, block)
        first = _first(d, 4)
        np.subtract(d, first, out=rest)
        d += first
        rest *= d  # d**2 - first**2
        first *= first
        square = _sum(first, largest * largest, spare, layout, block)
        square += folded(np.add.reduce(rest, axis=layout.axis), block)
        centre = np.where(np.abs(rough) <= FAR / 4 * largest, 0, rough)
        t -= layout.along(centre, block.lanes[0])
        distance = _sum(t, largest + np.abs(rough), spare, layout, block) / n
        where = block.part, block.features
        centres[where], distances[where] = centre, distance
        squares[where] = square - n * (distance + (centre - rough)) ** 2

    run(layout, work)


def normalise(layout: Layout, x: Array, y: Array, means: Any, scales: Array, shifts: Array) -> None:
    """As `numpy_kernels.normalise`."""
    means = layout.lay(means)
    factors = [layout.lay(part) for part in _factor(scales)]
    high, low = (layout.lay(part) for part in pair(shifts))

    def work(block: Block) -> None:
        t = load(x, block, float)
        if means is not None:
            t -= means[block.place]
        y1 = _product(t, factors, block, 1)
        t += low[block.place]
        _add(y1, high[block.place], t)
        y1 += t
        store(y1, y, block)

    run(layout, work)


def backward_sums(layout: Layout, g: Array, x: Array, means: Any, totals: Array, weighted: Array) -> None:
    """As `numpy_kernels.backward_sums`."""
    means = layout.lay(means)

    def work(block: Block) -> None:
        h, t = load(g, block, float), load(x, block, float, 1)
        if means is not None:
            t -= means[block.place]
        first_h, first_t = _first(h, 2), _first(t, 3)
        rest = np.subtract(h, first_h, out=scratch.like(t, 4))
        rest *= t
        t -= first_t
        t *= first_h
        t += rest
        first_h *= first_t
        where = block.part, block.features
        weighted[where] = _sum(first_h, _largest(first_h, rest, layout, block), rest, layout, block)
        weighted[where] += folded(np.add.reduce(t, axis=layout.axis), block)
        totals[where] = _sum(h, _largest(h, rest, layout, block), rest, layout, block)

    run(layout, work)


def input_gradient(
    layout: Layout, g: Array, x: Array, dx: Array, means: Any, directs: Array, slopes: Array, constants: Array
) -> None:
    """As `numpy_kernels.input_gradient`."""
    means = layout.lay(means)
    direct, slope = ([layout.lay(part) for part in _factor(vector)] for vector in (directs, slopes))
    high, low = (layout.lay(part) for part in pair(constants))

    def work(block: Block) -> None:
        h, t = load(g, block, float), load(x, block, float, 1)
        if means is not None:
            t -= means[block.place]
        dx1, through = _product(h, direct, block, 2), _product(t, slope, block, 3)
        h += t
        h += low[block.place]
        _add(dx1, through, h)
        _add(dx1, high[block.place], h)
        dx1 += h
        store(dx1, dx, block)

    run(layout, work)


def _first(t: Array, slot: int) -> Array:
    """The first 26 bits of every double, in a buffer."""
    first = scratch.like(t, slot)
    np.bitwise_and(t.view(np.int64), _FIRST_BITS, out=first.view(np.int64))
    return first


def pair(vector: Array) -> tuple[Array, Array]:
    """The nearest doubles, and what they lack."""
    high = vector.astype(float)
    return high, (vector - high).astype(float)


def _factor(vector: Array) -> tuple[Array, Array, Array]:
    """A factor as `_product` takes it: the nearest doubles, their first bits, and what those lack."""
    near = vector.astype(float)
    first = (near.view(np.int64) & _FIRST_BITS).view(float)
    return near, first, (vector - first).astype(float)


def _add(high: Array, term: Array, low: Array) -> None:
    """Add to `high` in place, and what its rounding loses to `low`.

    D. E. Knuth, "The Art of Computer Programming", volume 2, section 4.2.2, theorem B.
    """
    before, change, lost = (scratch.like(high, slot) for slot in (4, 5, 6))
    before[...] = high
    high += term
    np.subtract(high, before, out=change)
    np.subtract(high, change, out=lost)
    before -= lost
    low += before
    np.subtract(term, change, out=change)
    low += change


def _product(t: Array, factor: list[Array], block: Block, slot: int) -> Array:
    """The exact product of both numbers' first bits; the rest of their product is left in `t`."""
    near, first, rest = (part[block.place] for part in factor)
    high = _first(t, slot)
    t -= high
    t *= near
    cross = np.multiply(high, rest, out=scratch.like(t, 5))
    t += cross
    high *= first
    return high


def _largest(t: Array, spare: Array, layout: Layout, block: Block) -> Array:
    """The size of each feature's largest number in `t`."""
    lanes = np.maximum.reduce(np.abs(t, out=spare), axis=layout.axis)
    return np.maximum.reduce(lanes.reshape(block.lanes), axis=(0, 2))  # type: ignore[no-any-return]


def _sum(t: Array, largest: Array, spare: Array, layout: Layout, block: Block) -> Array:
    """The sum of each feature's numbers in `t`, which is spoiled, as `spare` is.

    Added to a number that is larger than all of their sums, they are rounded to a grid on which they add without error.
    """
    bound = layout.along(largest * (4.0 * block.rows * block.inner), block.lanes[0])
    grid = np.add(t, bound, out=spare)
    grid -= bound
    t -= grid
    high, low = (folded(np.add.reduce(part, axis=layout.axis), block) for part in (grid, t))
    return high.astype(np.longdouble) + low
