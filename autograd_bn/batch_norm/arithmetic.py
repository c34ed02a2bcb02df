"""The arithmetic of the fused node on plain arrays, in four steps between which a collective can stand.

Statistics and parameters have the shape of `x` with 1s for `axes`. Small arrays and exact rationals are computed as a
whole, others block by block by the kernels of a backend, or all steps at once in one compiled call. NumPy's warnings
are the caller's to silence: an infinity here can be the right answer.
"""

from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np

from ..engine.node import Array
from ..engine.operations import count, exact_sqrt
from .kernels import choose, compiled, numba_wanted, thresholds, whole
from .kernels.blocks import Layout, layout_of, line, walk
from .kernels.memory import empty_like
from .kernels.whole import SPARE, Mean, wide


@lru_cache
def per_feature(shape: tuple[int, ...], axes: tuple[int, ...]) -> int:
    """How many values have one mean."""
    return count(shape, axes)


def native(x: Array) -> Array:
    """`x` in this machine's byte order, in which alone kernels compute."""
    return x if x.dtype.isnative else x.astype(x.dtype.newbyteorder("="))


def of_result(x: Array, gamma: Any, beta: Any) -> Array:
    """`x` in the dtype of the result: what is precise enough for float32 is not for a float64 made of it."""
    dtypes = {p.dtype for p in (x, gamma, beta) if p is not None}
    return native(x if len(dtypes) == 1 else x.astype(np.result_type(*dtypes), copy=False))


def at_whole(x: Array) -> bool:
    """Whether `x` is computed as a whole."""
    most = thresholds.DIRECT_NUMBA if numba_wanted(x.size) else thresholds.DIRECT_NUMPY
    return x.size <= most or x.dtype == object


def statistics(x: Array, axes: tuple[int, ...]) -> tuple[Mean, Array, Any]:
    """The mean over `axes` and the sum of squares about it, in a wide dtype; and `x - mean.high` if it was made."""
    if at_whole(x):
        return whole.statistics(x, axes)
    layout, (view,) = walk(axes, x)
    centres, distances, squares = sums = np.empty((3, len(layout.counts), layout.features), wide(x.dtype))
    choose(layout, view).statistics(layout, view, sums)
    np.maximum(squares, 0, out=squares)
    distance, square = merge(layout.counts, (centres - centres[0]) + distances, squares)
    mean = Mean.at(centres[0], distance)
    if x.dtype != centres.dtype and (mean.high**2 * layout.count <= SPARE * square).all():
        return Mean(None, layout.unflat(mean.high)), layout.unflat(square), None
    return Mean(layout.unflat(mean.high), layout.unflat(mean.low)), layout.unflat(square), None


def merge(counts: Array, means: Array, squares: Array) -> tuple[Array, Array]:
    """The mean and the centred squares of parts that lie along the first axis, from those of each.

    The parts' means are a sample in their turn: T. F. Chan, G. H. Golub and R. J. LeVeque, "Updating formulae and a
    pairwise algorithm for computing sample variances", 1979, for all parts at once.

    >>> merge(np.array([[2], [1]]), np.array([[1.0], [4.0]]), np.array([[2.0], [0.0]]))
    (array([2.]), array([8.]))
    """
    if len(means) == 1:
        return means[0], squares[0]
    distances = means - means[0]
    shift = np.add.reduce(counts * distances, axis=0) / np.add.reduce(counts, axis=0)
    distances -= shift
    return means[0] + shift, np.add.reduce(squares, axis=0) + np.add.reduce(counts * distances * distances, axis=0)


def reciprocal_deviation(var: Array, eps: Any) -> Array:
    """1 / sqrt(var + eps)."""
    root = exact_sqrt(np.asarray(var + eps)) if var.dtype == object else np.sqrt(var + eps)
    return np.asarray(1 / root)


def normalise(
    x: Array, axes: tuple[int, ...], mean: Mean, scale: Array, gamma: Any, beta: Any, centred: Any = None
) -> Array:
    """(x - mean) * scale * gamma + beta; `gamma` and `beta` may be None. It may overwrite `centred`, x - mean.high."""
    scale = scale if gamma is None else scale * gamma
    shift = -mean.low * scale if beta is None else beta - mean.low * scale
    return _affine(x, axes, [mean.high, scale, shift], centred)


def _affine(
    x: Array, axes: tuple[int, ...], vectors: list[Any], centred: Any = None, g: Any = None, mine: bool = False
) -> Array:
    """As `whole.affine`, in the dtype of `x`."""
    if at_whole(x):
        t = whole.affine(x, axes, vectors, centred, g, mine)
        return t if t.dtype == x.dtype else whole.cast(t, x.dtype)
    y = empty_like(x)
    layout, views = walk(axes, *[array for array in (x, y, g) if array is not None])
    choose(layout, *views).affine(layout, views, [layout.flat(vector, vectors[1].dtype) for vector in vectors])
    return y


class Read(NamedTuple):
    """What `backward_sums` made of its input and gradient, and `input_gradient` may write over."""

    centred: Any  # x - mean.high, or None
    g: Array
    mine: bool = False  # whether g is new, in a wide dtype


def backward_sums(g: Array, x: Array, axes: tuple[int, ...], mean: Mean, scale: Array) -> tuple[Array, Array, Read]:
    """The sums over `axes` of `g` and of `g` times the normalised input: the gradients of beta and gamma."""
    if at_whole(x):
        total, weighted, centred, h = whole.backward_sums(g, x, axes, mean.high)
        read = Read(centred, h, h is not g)
    else:
        read = Read(None, g)
        layout, (source, gradient) = walk(axes, x, g)
        sums = np.empty((2, len(layout.counts), layout.features), wide(x.dtype))
        choose(layout, source, gradient).backward_sums(
            layout, gradient, source, layout.flat(mean.high, sums.dtype), sums
        )
        total, weighted = (layout.unflat(np.add.reduce(parts, axis=0)) for parts in sums)
    return total, (weighted - mean.low * total) * scale, read


def input_gradient(
    read: Read, x: Array, axes: tuple[int, ...], mean: Mean, scale: Array, factor: Array, averages: Any
) -> Array:
    """factor * (g - average - normalised input * weighted average); None for the average of a cut path.

    `factor` is gamma * scale.
    """
    average, weighted = averages
    constant = np.zeros_like(factor) if average is None else -factor * average
    if weighted is None:
        return _affine(read.g, axes, [None, factor, constant])
    slope = -factor * scale * weighted
    vectors = [mean.high, slope, constant - mean.low * slope, factor]
    return _affine(x, axes, vectors, read.centred, read.g, mine=read.mine)


class AtOnce(NamedTuple):
    """What `forward_at_once` keeps: the mean's two parts, the variance, the scale and gamma, a column a feature.

    And what it read, as `backward_at_once` will.
    """

    rows: Array
    layout: Layout
    x: Array

    def parts(self) -> tuple[Mean, Array, Array, int]:
        """The mean, the variance and the scale in the shape of statistics, and the count."""
        high, low, var, scale = self.layout.unflat(self.rows[:4])
        return Mean(high, low), var, scale, self.layout.count

    def values(self) -> tuple[Array, Array, int]:
        """The mean, the variance and the count."""
        return self.rows[0] + self.rows[1], self.rows[2], self.layout.count


@lru_cache(512)
def _layout_at_once(axes: tuple[int, ...], shape: tuple[int, ...], strides: tuple[int, ...], dtype: Any) -> Any:
    """The layout of an array that one compiled call each way computes; None where the steps are better."""
    if dtype.char not in "fd" or not dtype.isnative:
        return None
    like_x = np.lib.stride_tricks.as_strided(np.empty(1, dtype), shape, strides)
    layout = layout_of(axes, like_x)
    contiguous = layout.view(like_x).flags.c_contiguous and not layout.turned
    return layout if contiguous and layout.size <= thresholds.SHARED_NUMBA else None


def forward_at_once(x: Array, axes: tuple[int, ...], gamma: Any, beta: Any, eps: float) -> tuple[Array, AtOnce] | None:
    """The whole forward pass in one compiled call, or None where there is none for these arrays."""
    if not numba_wanted(x.size):
        return None
    layout = _layout_at_once(axes, x.shape, x.strides, x.dtype)
    if layout is None or not (gamma is None or gamma.dtype == x.dtype) or not (beta is None or beta.dtype == x.dtype):
        return None
    y, source, rows = empty_like(x), layout.line(x), np.empty((5, layout.features))
    gamma = np.ones(layout.features, x.dtype) if gamma is None else line(np.ascontiguousarray(gamma))
    beta = np.zeros(layout.features, x.dtype) if beta is None else line(np.ascontiguousarray(beta))
    fits = compiled().forward(*layout.walk, source, layout.line(y), gamma, beta, rows, eps)
    return (y, AtOnce(rows, layout, source)) if fits else None


def backward_at_once(g: Array, kept: AtOnce, x: Array, through: tuple[bool, bool]) -> tuple[Array, Array, Array] | None:
    """After `forward_at_once` the gradients of x, gamma and beta; None where a product left a double's range."""
    rows, layout, source = kept
    dx, sums = empty_like(x), np.empty((2, layout.features), x.dtype)
    if g.dtype is not x.dtype or g.strides != x.strides:
        g, gradient = np.empty_like(x), g
        g[...] = gradient
    fits = compiled().backward(*layout.walk, layout.line(g), source, layout.line(dx), rows, through, sums)
    return (dx, sums[1], sums[0]) if fits else None
