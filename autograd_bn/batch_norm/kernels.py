"""The arithmetic of the fused node on plain arrays, in four steps between which a collective can stand.

Statistics and parameters have the shape of `x` with 1s for `axes`. Floats are computed block by block in a wider
dtype, by the kernels of a backend; exact rationals and small arrays by the textbook's formulas.

A mean is kept in two parts, one that is subtracted from `x` first, or None, and what it lacks. NumPy's
warnings are the caller's to silence: an infinity here can be the right answer.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ..engine.memory import empty_like
from ..engine.node import Array
from ..engine.operations import count, exact_sqrt
from . import numpy_kernels
from .backends import choose
from .layout import Layout, walk
from .pair_kernels import FAR

Mean = tuple[Any, Array]

# Where long double is no wider than double, float64 has the accuracy of its own sums.
_WIDE: dict[np.dtype[Any], np.dtype[Any]] = {
    np.dtype(np.float16): np.dtype(np.float32),
    np.dtype(np.float32): np.dtype(np.float64),
    np.dtype(np.float64): np.dtype(np.longdouble),
}

# Up to how many deviations a mean can be left for last.
_SPARE = {np.dtype(np.float32): 2.0**16, np.dtype(np.float64): FAR}
# Up to so many elements the textbook's formulas are quicker than a walk over blocks. Long double is slow.
SMALL = 1 << 14
SMALL_LONG = 1 << 11


def wide(dtype: np.dtype[Any]) -> np.dtype[Any]:
    """The dtype in which statistics of `dtype` are computed and kept."""
    return _WIDE.get(dtype, dtype)


def _by_the_book(x: Array) -> bool:
    return x.size <= (SMALL if x.itemsize < 8 else SMALL_LONG) or x.dtype == object


def statistics(x: Array, axes: tuple[int, ...]) -> tuple[Mean, Array]:
    """The mean over `axes` and the sum of squares about it, in a dtype that is wider than `x`'s."""
    if _by_the_book(x):
        return _statistics_by_the_book(x, axes)
    layout, (view,) = walk(axes, x)
    centres, distances, squares = np.empty((3, layout.parts, layout.features), wide(x.dtype))
    _sum_with(choose(layout, view), "statistics", layout, (view,), centres, distances, squares)
    np.maximum(squares, 0, out=squares)
    origin = layout.first(view)
    centres -= origin
    distances += centres
    distance, square = distances[0], squares[0]
    if layout.parts > 1:
        distance, square = _merge(layout.counts, distances, squares)
    high, low = _mean(origin, distance)
    return (layout.unflat(high), layout.unflat(low)), layout.unflat(square)


def _statistics_by_the_book(x: Array, axes: tuple[int, ...]) -> tuple[Mean, Array]:
    n = count(x.shape, axes)
    t = x.astype(wide(x.dtype))
    if x.dtype == np.float32:  # double precision has the bits for sums about 0, unless a mean is large
        total = np.add.reduce(t, axis=axes, keepdims=True)
        mean = total / max(n, 1)
        squares = np.add.reduce(t * t, axis=axes, keepdims=True) - total * mean
        if (total * mean <= 2.0**20 * squares).all():
            return (None, mean), squares
    # Measured from a value of its own, a constant feature has exactly that mean.
    origin = x[tuple([slice(1) if i in axes else slice(None) for i in range(x.ndim)])]
    if not n:
        origin = np.add.reduce(origin, axis=axes, keepdims=True)
    t -= origin
    distance = np.add.reduce(t, axis=axes, keepdims=True) / max(n, 1)
    t -= distance
    t *= t
    return _mean(origin, distance), np.add.reduce(t, axis=axes, keepdims=True)


def _merge(counts: Array, means: Array, squares: Array) -> tuple[Array, Array]:
    """The mean and the centred squares of parts that lie along the first axis, from those of each.

    The parts' means are a sample in their turn: T. F. Chan, G. H. Golub and R. J. LeVeque, "Updating formulae and a
    pairwise algorithm for computing sample variances", 1979, for all parts at once.

    >>> _merge(np.array([[2], [1]]), np.array([[1.0], [4.0]]), np.array([[2.0], [0.0]]))
    (array([2.]), array([8.]))
    """
    distances = means - means[0]
    shift = np.add.reduce(counts * distances, axis=0) / np.add.reduce(counts, axis=0)
    distances -= shift
    return means[0] + shift, np.add.reduce(squares, axis=0) + np.add.reduce(counts * distances * distances, axis=0)


def _mean(origin: Array, distance: Array) -> Mean:
    """The mean that lies at `distance` from `origin`, a number of the input's dtype, in two parts.

    Double precision can bear any origin that is a value of float32, float64 needs one that is near.
    """
    if origin.dtype != np.float64:
        return origin, distance
    high = (origin + distance).astype(float)
    return high, (origin.astype(distance.dtype) - high) + distance


def stacked(mean: Mean, squares: Array) -> Array:
    """Statistics as one array, for `merge`."""
    high, low = mean
    return np.stack((np.zeros_like(low) if high is None else high, low, squares))


def merge(parts: Sequence[tuple[int, Array]], dtype: np.dtype[Any]) -> tuple[int, Mean, Array]:
    """Count, mean and squares of several parts of an `x` of `dtype`, from each one's count and stacked statistics.

    None is empty, or all are.
    """
    counts = [n for n, _ in parts]
    highs, lows, squares = (np.stack([statistics[i] for _, statistics in parts]) for i in range(3))
    if not any(counts):
        return 0, (highs[0], lows[0]), squares[0]
    column = np.reshape(counts, (-1, *[1] * (highs.ndim - 1)))
    distance, square = _merge(column, (highs - highs[0]) + lows, squares)
    return sum(counts), _mean(highs[0].astype(dtype), distance), square


def _sum_with(kernels: Any, step: str, layout: Layout, inputs: Sequence[Any], *tables: Array) -> None:
    """Fill `tables` with sums; in long double where a double's range is left."""
    getattr(kernels, step)(layout, *inputs, *tables)
    if kernels is not numpy_kernels and tables[0].dtype == np.longdouble:
        least = np.abs(tables[-1], where=tables[-1] != 0, out=np.ones_like(tables[-1])).min()
        if not (np.isfinite(tables).all() and least > 1e-270):
            getattr(numpy_kernels, step)(layout, *inputs, *tables)


def centre(mean: Mean, var: Array, x: Array) -> Mean:
    """`mean` as the other kernels take it: what they subtract from `x` first, or None, and what they leave for last.

    Where it is not large beside the deviation, a mean can be left for last altogether: the wider arithmetic has bits
    to spare. A constant feature needs it first, to give exactly beta.
    """
    high, low = mean
    if high is None or x.dtype not in _SPARE:
        return mean
    whole = high + low
    near = np.abs(whole) <= _SPARE[x.dtype] * np.sqrt(var)
    return (None, whole) if near.all() else (np.where(near, 0, high), np.where(near, whole, low))


def reciprocal_deviation(var: Array, eps: Any, x: Array) -> Array:
    """1 / sqrt(var + eps), in the dtype in which statistics of `x` are computed."""
    if x.dtype == object:
        return np.asarray(1 / exact_sqrt(np.asarray(var + eps)))
    return 1 / np.sqrt(np.asarray(var, wide(x.dtype)) + eps)  # type: ignore[no-any-return]


def normalise(x: Array, axes: tuple[int, ...], mean: Mean, scale: Array, gamma: Any, beta: Any) -> Array:
    """(x - mean) * scale * gamma + beta; `gamma` and `beta` may be None."""
    first, last = mean
    dtypes = {p.dtype for p in (x, gamma, beta) if p is not None}
    dtype = x.dtype if len(dtypes) == 1 else np.result_type(*dtypes)
    scale = scale if gamma is None else scale * gamma
    shift = -last * scale if beta is None else beta - last * scale
    if _by_the_book(x):
        t = x.astype(scale.dtype)
        if first is not None:
            t -= first
        t *= scale
        t += shift
        return t.astype(dtype)
    return _affine(x, axes, dtype, first, scale, shift)


def _affine(x: Array, axes: tuple[int, ...], dtype: np.dtype[Any], mean: Any, scale: Array, shift: Array) -> Array:
    y = empty_like(x, dtype)
    layout, views = walk(axes, x, y)
    vectors = [layout.flat(statistic, scale.dtype) for statistic in (mean, scale, shift)]
    choose(layout, *views, vectors=vectors).normalise(layout, *views, *vectors)
    return y


def backward_sums(g: Array, x: Array, axes: tuple[int, ...], mean: Mean, scale: Array) -> tuple[Array, Array]:
    """The sums over `axes` of `g` and of `g` times the normalised input: the gradients of beta and gamma."""
    first, last = mean
    dtype = wide(x.dtype)
    if _by_the_book(x):
        h, t = g.astype(dtype), x.astype(dtype)
        if first is not None:
            t -= first
        t *= h
        total, weighted = (np.add.reduce(terms, axis=axes, keepdims=True) for terms in (h, t))
    else:
        layout, (source, gradient) = walk(axes, x, g)
        sums = np.empty((2, layout.parts, layout.features), dtype)
        inputs = gradient, source, layout.flat(first, dtype)
        _sum_with(choose(layout, source, gradient), "backward_sums", layout, inputs, *sums)
        total, weighted = (layout.unflat(np.add.reduce(parts, axis=0)) for parts in sums)
    return total, (weighted - last * total) * scale


def input_gradient(
    g: Array,
    x: Array,
    axes: tuple[int, ...],
    mean: Mean,
    scale: Array,
    gamma: Any,
    average: Any,
    weighted_average: Any,
) -> Array:
    """gamma * scale * (g - average - normalised input * weighted_average); None for the average of a cut path."""
    first, last = mean
    direct = scale if gamma is None else scale * gamma
    constant = np.zeros_like(direct) if average is None else -direct * average
    if weighted_average is not None:
        slope = -direct * scale * weighted_average
        constant = constant - last * slope
    if _by_the_book(x):
        h = g.astype(direct.dtype)
        h *= direct
        h += constant
        if weighted_average is not None:
            t = x.astype(direct.dtype)
            if first is not None:
                t -= first
            t *= slope
            h += t
        return h.astype(x.dtype)
    if weighted_average is None:
        return _affine(g, axes, x.dtype, None, direct, constant)
    dx = empty_like(x)
    layout, (source, gradient, target) = walk(axes, x, g, dx)
    vectors = [layout.flat(statistic, direct.dtype) for statistic in (first, direct, slope, constant)]
    kernels = choose(layout, source, gradient, target, vectors=vectors)
    kernels.input_gradient(layout, gradient, source, target, *vectors)
    return dx
