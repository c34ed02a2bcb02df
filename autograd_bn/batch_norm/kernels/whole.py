"""The steps on a whole array, or a whole block of one, as NumPy is quickest for its shape."""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np

from ...engine.node import Array
from . import thresholds
from .memory import empty_like

# Weights of rows that are added by BLAS, which is quicker than NumPy; up to how many elements it does so in one thread.
ONES = np.ones(64)
ALONE = 1 << 13
# How many times what is left of them squares may be that are summed about 0: float32 in double has bits to spare.
SPARE = 2.0**20


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


class Whole:
    """How arrays of one shape are summed over `axes`, and combined with what has the shape of such sums.

    Where the first axes are summed, and the last ones too if they are short, the array is a matrix. Its rows are added
    a few at a time, since sums of few round less, and what is done to short rows is done to some of them side by side:
    NumPy's inner loops are slow on less.
    """

    def __init__(self, shape: tuple[int, ...], axes: tuple[int, ...]) -> None:
        first = len([axis for i, axis in enumerate(axes) if i == axis])
        self.kept = tuple([1 if i in axes else n for i, n in enumerate(shape)])
        self.count = math.prod([shape[i] for i in axes])
        self.first, self.others = first > 0, axes[first:]
        rows, inner = math.prod(shape[:first]), math.prod([shape[i] for i in self.others])
        last = not self.others or self.others[0] == len(shape) - len(self.others)
        self.flat = last and not is_long(inner, rows)
        self.inner = inner if self.flat else 1
        self.matrix = rows, width = rows, math.prod(self.kept) * self.inner
        self.few = min(len(ONES), max(8, ALONE // max(width, 1)))
        self.quick = self.few * width <= ALONE
        self.large = self.flat and rows > self.few and rows * width > ALONE
        self.fold = max(1, min(thresholds.LINE // width, rows // thresholds.FEWEST_LINES)) if self.large else 1
        self.folded = rows - rows % self.fold

    def sum(self, t: Array) -> Array:
        """The sum over the axes, which it keeps."""
        if not self.flat:
            t = np.add.reduce(t, axis=self.others, keepdims=True)
        if self.first:
            t = t.reshape(self.matrix)
            while len(t) > self.few:
                even, odd = self._cut(t)
                parts = self._of_rows(even)
                if len(odd):
                    parts[0] += self._of_rows(odd)
                t = parts
            t = self._of_rows(t)
        return self._kept(t)

    def sum_of_products(self, t: Array, h: Array) -> Array:
        """The sum of `t * h`."""
        if not (self.large and t.dtype.char == h.dtype.char == "d" and t.flags.c_contiguous and h.flags.c_contiguous):
            return self.sum(np.multiply(t, h, out=empty_like(t)))
        (t, odd_t), (h, odd_h) = self._cut(t.reshape(self.matrix)), self._cut(h.reshape(self.matrix))
        parts = np.einsum("kij,kij->kj", t, h)
        if len(odd_t):
            parts[0] += np.einsum("ij,ij->j", odd_t, odd_h)
        return self._kept(whole(parts.shape, (0,)).sum(parts))

    def into(self, out: Array, operation: np.ufunc, t: Array, vector: Array) -> Array:
        """out = operation(t, vector), where `vector` has the shape of the sums; `t` may be `out`."""
        if t.dtype != out.dtype:  # NumPy is slow to convert and compute in one
            np.copyto(out, t, casting="same_kind")
            t = out
        if not (self.large and t.flags.c_contiguous and out.flags.c_contiguous):
            return operation(t, vector, out=out)  # type: ignore[no-any-return]
        line = vector.reshape(-1) if self.inner == 1 else vector.reshape(-1).repeat(self.inner)
        lines = line.reshape(1, -1).repeat(self.fold, 0).reshape(-1)
        source, target = (np.ndarray(self.matrix, array.dtype, array) for array in (t, out))
        shape = self.folded // self.fold, len(lines)
        operation(np.ndarray(shape, t.dtype, t), lines, out=np.ndarray(shape, out.dtype, out))
        if self.folded < len(source):
            operation(source[self.folded :], line, out=target[self.folded :])
        return out

    def _cut(self, t: Array) -> tuple[Array, Array]:
        """The rows of a matrix, a few at a time, and those that are left over."""
        even = len(t) - len(t) % self.few
        return t[:even].reshape(-1, self.few, t.shape[1]), t[even:]

    def _of_rows(self, t: Array) -> Array:
        if self.quick and t.dtype.char == "d":
            return ONES[: t.shape[-2]] @ t
        return np.add.reduce(t, axis=-2)  # type: ignore[no-any-return]

    def _kept(self, t: Array) -> Array:
        return (np.add.reduce(t.reshape(-1, self.inner), axis=1) if self.inner > 1 else t).reshape(self.kept)


whole = lru_cache(maxsize=512)(Whole)


def is_long(inner: int, rows: int) -> bool:
    """Whether it is along the last axes that arrays are computed, else along whole rows."""
    return inner >= thresholds.SHORTEST_RUN or inner > rows


def statistics(x: Array, axes: tuple[int, ...]) -> tuple[Mean, Array, Array]:
    """The mean over `axes`, the sum of squares about it, and a new array of `x - mean.high`.

    The mean's high part is None where the dtype has bits to spare for squares to cancel, else the rounded mean; in
    nearly constant features it starts from the first element: a constant one is exactly its own mean.
    """
    over = whole(x.shape, axes)
    n = max(over.count, 1)
    dtype = wide(x.dtype)
    t = empty_like(x, dtype)
    if x.dtype == dtype:
        high = over.sum(x) / n
    else:
        np.copyto(t, x)
        total = over.sum(t)
        high = total / n
        correction = total * high
        squares = over.sum_of_products(t, t) - correction
        if (correction <= SPARE * squares).all():
            return Mean(None, high), squares, t
    over.into(t, np.subtract, x, high)
    low = over.sum(t) / n
    correction = low * low * n
    squares = over.sum_of_products(t, t)
    far = correction + correction > squares
    if far.any():
        origin = x[tuple([slice(1) if i in axes else slice(None) for i in range(x.ndim)])].astype(dtype)
        over.into(t, np.subtract, x, origin)
        distance = over.sum(t) / n
        over.into(t, np.subtract, t, distance)
        near = Mean.at(origin, distance)
        high, low = np.where(far, near.high, high), np.where(far, near.low, low)
        correction, squares = np.where(far, 0, correction), np.where(far, over.sum_of_products(t, t), squares)
        over.into(t, np.subtract, x, high)
    return Mean(high, low), squares - correction, t


def backward_sums(g: Array, x: Array, axes: tuple[int, ...], high: Any) -> tuple[Array, Array, Array, Array]:
    """The sums over `axes` of `g` and of `g * (x - high)`; a new array of `x - high`, and `g` in its dtype.

    `high` may be None.
    """
    over, dtype = whole(x.shape, axes), wide(x.dtype)
    h = g if g.dtype == dtype else cast(g, dtype)
    t = cast(x, dtype) if high is None else over.into(empty_like(x, dtype), np.subtract, x, high)
    return over.sum(h), over.sum_of_products(t, h), t, h


def affine(
    x: Array, axes: tuple[int, ...], vectors: list[Any], centred: Any = None, g: Any = None, mine: bool = False
) -> Array:
    """A new array of (x - mean) * slope + constant + g * direct, where `vectors` are these four; or three, without `g`.

    The mean may be None. It is written over `centred`, x - mean, where that was made before, and over `g` if `mine`.
    """
    mean, slope, constant, *direct = vectors
    over = whole(x.shape, axes)
    if centred is None:
        t = empty_like(x, slope.dtype)
        x = x if mean is None else over.into(t, np.subtract, x, mean)
    else:
        t = x = centred
    over.into(t, np.multiply, x, slope)
    over.into(t, np.add, t, constant)
    if g is not None:
        t += over.into(g if mine else empty_like(g, t.dtype), np.multiply, g, *direct)
    return t


def cast(x: Array, dtype: np.dtype[Any]) -> Array:
    """A new array of the same numbers in another dtype."""
    t = empty_like(x, dtype)
    np.copyto(t, x, casting="same_kind")
    return t
