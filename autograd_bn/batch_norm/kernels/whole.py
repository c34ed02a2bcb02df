"""The steps on a whole array, or a whole block of one, as NumPy is quickest for its shape."""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np

from ...engine.node import Array
from . import thresholds
from .memory import empty_like

# Weights of rows that are added by BLAS, which is quicker than NumPy.
ONES = np.ones(64)
# Up to how many elements BLAS does so in one thread.
ALONE = 1 << 13
# How many times what is left of them squares may be that are summed about 0: float32 in double has bits to spare.
SPARE = 2.0**12


class Mean(NamedTuple):
    """A mean in two parts: what is subtracted from `x` first, or None, and what is left for last, an error term."""

    high: Any
    low: Array

    @classmethod
    def at(cls, origin: Array, distance: Array) -> Mean:
        """The mean that lies at `distance` from `origin`, so that it is exact where all numbers equal `origin`."""
        high = origin + distance
        return cls(high, (origin - high) + distance)

    def value(self) -> Array:
        """Both parts together."""
        return self.low if self.high is None else self.high + self.low


@lru_cache
def wide(dtype: np.dtype[Any]) -> np.dtype[Any]:
    """The dtype in which statistics of `dtype` are computed and kept: double precision at least."""
    return dtype if dtype.kind == "O" else np.result_type(dtype, float)


@lru_cache
def kept_shape(shape: tuple[int, ...], axes: tuple[int, ...], keepdims: bool = False) -> tuple[int, ...]:
    """The shape of the statistics: `shape` without `axes`, or with 1s in their place."""
    return tuple([1 if i in axes else n for i, n in enumerate(shape) if keepdims or i not in axes])


class Plan:
    """How arrays of one shape are summed over `axes`, and combined with what has the shape of such sums.

    Where the first axes are summed, and the last ones too if they are short, the array is a matrix. Its rows are added
    a few at a time, since sums of few round less, and what is done to short rows is done to some of them side by side:
    NumPy's inner loops are slow on less.
    """

    def __init__(self, shape: tuple[int, ...], axes: tuple[int, ...]) -> None:
        first = len([axis for i, axis in enumerate(axes) if i == axis])
        self.kept = kept_shape(shape, axes, keepdims=True)
        self.count = math.prod([shape[i] for i in axes])
        self.leading, self.others = first > 0, axes[first:]
        rows, inner = math.prod(shape[:first]), math.prod([shape[i] for i in self.others])
        last = not self.others or self.others[0] == len(shape) - len(self.others)
        self.as_matrix = last and not is_long(inner, rows)
        self.inner = inner if self.as_matrix else 1
        self.matrix = rows, width = rows, math.prod(self.kept) * self.inner
        self.chunk = min(len(ONES), max(8, ALONE // max(width, 1)))
        self.by_blas = self.chunk * width <= ALONE
        self.folds = self.as_matrix and rows > self.chunk and rows * width > ALONE
        lines = max(1, min(thresholds.LINE // max(width, 1), rows // thresholds.FEWEST_LINES))
        self.fold = lines if self.folds and rows * width > thresholds.FOLDED else 1
        self.folded = rows - rows % self.fold

    def sum(self, t: Array) -> Array:
        """The sum over the axes, which it keeps."""
        if not self.as_matrix:
            t = np.add.reduce(t, axis=self.others, keepdims=True)
        if self.leading:
            t = t.reshape(self.matrix)
            while len(t) > self.chunk:
                even, odd = self._cut(t)
                parts = self._of_rows(even)
                if len(odd):
                    parts[0] += self._of_rows(odd)
                t = parts
            t = self._of_rows(t)
        return self._laid(t)

    def sum_of_products(self, t: Array, h: Array, spare: bool = False) -> Array:
        """The sum of `t * h`, in one go if they have bits to spare, as float32 in double has."""
        contiguous = self.folds and t.flags.c_contiguous and h.flags.c_contiguous
        if spare and contiguous:
            return self._laid(np.einsum("ij,ij->j", t.reshape(self.matrix), h.reshape(self.matrix)))
        if not (contiguous and t.dtype.char == h.dtype.char == "d"):
            return self.sum(np.multiply(t, h, out=empty_like(t)))
        (t, odd_t), (h, odd_h) = self._cut(t.reshape(self.matrix)), self._cut(h.reshape(self.matrix))
        parts = np.einsum("kij,kij->kj", t, h)
        if len(odd_t):
            parts[0] += np.einsum("ij,ij->j", odd_t, odd_h)
        return self._laid(plan_for(parts.shape, (0,)).sum(parts))

    def into(self, out: Array, operation: np.ufunc, t: Array, vector: Array) -> Array:
        """out = operation(t, vector), where `vector` has the shape of the sums; `t` may be `out`."""
        if t.dtype != out.dtype:  # NumPy is slow to convert and compute in one
            out[...] = t
            t = out
        if self.fold == 1 or not (t.flags.c_contiguous and out.flags.c_contiguous):
            return operation(t, vector, out=out)  # type: ignore[no-any-return]
        line = vector.reshape(-1) if self.inner == 1 else vector.reshape(-1).repeat(self.inner)
        lines = line.reshape(1, -1).repeat(self.fold, 0).reshape(-1)
        operation(self._lines(t), lines, out=self._lines(out))
        if self.folded < self.matrix[0]:
            operation(self._odd_rows(t), line, out=self._odd_rows(out))
        return out

    def _lines(self, t: Array) -> Array:
        """The rows that are folded side by side: a view, which `reshape` doesn't promise."""
        return np.ndarray((self.folded // self.fold, self.fold * self.matrix[1]), t.dtype, t)

    def _odd_rows(self, t: Array) -> Array:
        return np.ndarray(self.matrix, t.dtype, t)[self.folded :]

    def _cut(self, t: Array) -> tuple[Array, Array]:
        """The rows of a matrix, a few at a time, and those that are left plan."""
        even = len(t) - len(t) % self.chunk
        return t[:even].reshape(-1, self.chunk, t.shape[1]), t[even:]

    def _of_rows(self, t: Array) -> Array:
        if self.by_blas and t.dtype.char == "d":
            return ONES[: t.shape[-2]] @ t
        return np.add.reduce(t, axis=-2)  # type: ignore[no-any-return]

    def _laid(self, t: Array) -> Array:
        return (np.add.reduce(t.reshape(-1, self.inner), axis=1) if self.inner > 1 else t).reshape(self.kept)


plan_for = lru_cache(maxsize=512)(Plan)


def is_long(inner: int, rows: int) -> bool:
    """Whether it is along the last axes that arrays are computed, else along whole rows."""
    return inner >= thresholds.SHORTEST_RUN or inner > rows


def statistics(x: Array, axes: tuple[int, ...]) -> tuple[Mean, Array, Array]:
    """The mean over `axes`, the sum of squares about it, and a new array of `x - mean.high`.

    The mean's high part is None, which stands for 0, where the dtype has bits to spare for squares to cancel.
    """
    plan = plan_for(x.shape, axes)
    n = max(plan.count, 1)
    t = empty_like(x, wide(x.dtype))
    if x.dtype == t.dtype:
        high = plan.sum(x) / n
    else:
        t[...] = x
        total = plan.sum(t)
        high = total / n
        correction = total * high
        squares = plan.sum_of_products(t, t, spare=True) - correction
        if (correction <= SPARE * squares).all():
            return Mean(None, high), squares, t
    plan.into(t, np.subtract, x, high)
    low = plan.sum(t) / n
    correction = low * low * n
    mean, squares = Mean(high, low), plan.sum_of_products(t, t) - correction
    far = correction > squares  # from the mean's rounding: a nearly constant feature
    if far.any():
        near, its_squares = _about_first_element(x, axes, t)
        mean = Mean(np.where(far, near.high, high), np.where(far, near.low, low))
        squares = np.where(far, its_squares, squares)
        plan.into(t, np.subtract, x, mean.high)
    return mean, squares, t


def _about_first_element(x: Array, axes: tuple[int, ...], t: Array) -> tuple[Mean, Array]:
    """The mean, measured from the first element, so that a constant is exactly its own; and the sum of squares.

    It writes over `t`.
    """
    plan = plan_for(x.shape, axes)
    origin = x[tuple([slice(1) if i in axes else slice(None) for i in range(x.ndim)])].astype(t.dtype)
    plan.into(t, np.subtract, x, origin)
    distance = plan.sum(t) / plan.count
    plan.into(t, np.subtract, t, distance)
    return Mean.at(origin, distance), plan.sum_of_products(t, t)


def backward_sums(g: Array, x: Array, axes: tuple[int, ...], high: Any) -> tuple[Array, Array, Array, Array]:
    """The sums over `axes` of `g` and of `g * (x - high)`; a new array of `x - high`, and `g` in its dtype.

    `high` may be None.
    """
    plan, dtype = plan_for(x.shape, axes), wide(x.dtype)
    h = g if g.dtype == dtype else cast(g, dtype)
    t = cast(x, dtype) if high is None else plan.into(empty_like(x, dtype), np.subtract, x, high)
    return plan.sum(h), plan.sum_of_products(t, h, spare=x.dtype.itemsize < t.dtype.itemsize), t, h


def affine(
    x: Array, axes: tuple[int, ...], vectors: list[Any], centred: Any = None, g: Any = None, mine: bool = False
) -> Array:
    """(x - mean) * slope + constant + g * direct, where `vectors` are these four; or the first three, without `g`.

    The mean may be None. The result is written over `centred`, x - mean, where that was made before, else it is new; a
    product of `g` is written over it if it is `mine` to write to.
    """
    mean, slope, constant, *direct = vectors
    plan = plan_for(x.shape, axes)
    if centred is None:
        t = empty_like(x, slope.dtype)
        x = x if mean is None else plan.into(t, np.subtract, x, mean)
    else:
        t = x = centred
    plan.into(t, np.multiply, x, slope)
    plan.into(t, np.add, t, constant)
    if g is not None:
        t += plan.into(g if mine else empty_like(g, t.dtype), np.multiply, g, *direct)
    return t


def cast(x: Array, dtype: np.dtype[Any]) -> Array:
    """A new array of the same numbers in another dtype."""
    t = empty_like(x, dtype)
    t[...] = x
    return t
