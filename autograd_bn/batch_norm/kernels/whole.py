"""A whole array at once: how NumPy is quickest to sum over its axes, and to combine it with such sums."""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np

from ...engine.node import Array
from . import thresholds
from .memory import empty_like

# Weights of rows that are added by BLAS, which is quicker than NumPy; up to how many elements it does so in one thread.
ONES = np.ones(64)
ALONE = 1 << 13


class Whole:
    """What is known of arrays of one shape that are summed over `axes`.

    Where the first axes are summed the array is a matrix. Its rows are added a few at a time, since sums of few round
    less, and what is done to short rows is done to some of them side by side: NumPy's inner loops are slow on less.
    """

    def __init__(self, shape: tuple[int, ...], axes: tuple[int, ...]) -> None:
        first = len([axis for i, axis in enumerate(axes) if i == axis])
        self.kept = tuple([1 if i in axes else n for i, n in enumerate(shape)])
        self.first, self.others = first > 0, axes[first:]
        self.count = math.prod([shape[i] for i in axes])
        self.matrix = length, width = math.prod(shape[:first]), math.prod(self.kept)
        self.rows = min(len(ONES), max(8, ALONE // max(width, 1)))
        self.quick = self.rows * width <= ALONE
        self.large = self.first and not self.others and length * width > ALONE
        self.fold = max(1, min(thresholds.LINE // width, length // thresholds.FEWEST_LINES)) if self.large else 1
        self.folded = length - length % self.fold

    def sum(self, t: Array) -> Array:
        """The sum over the axes, which it keeps."""
        if self.others:
            t = np.add.reduce(t, axis=self.others, keepdims=True)
        if self.first:
            t = t.reshape(self.matrix)
            while len(t) > self.rows:
                even, odd = self._cut(t)
                t = self._of_rows(even)
                if len(odd):
                    t[0] += self._of_rows(odd)
            t = self._of_rows(t)
        return t.reshape(self.kept)

    def sum_of_products(self, t: Array, h: Array) -> Array:
        """The sum of `t * h`."""
        if not (self.large and t.dtype.char == h.dtype.char == "d" and t.flags.c_contiguous and h.flags.c_contiguous):
            return self.sum(np.multiply(t, h, out=empty_like(t)))
        (t, odd_t), (h, odd_h) = self._cut(t.reshape(self.matrix)), self._cut(h.reshape(self.matrix))
        parts = np.einsum("kij,kij->kj", t, h)
        if len(odd_t):
            parts[0] += np.einsum("ij,ij->j", odd_t, odd_h)
        return whole(parts.shape, (0,)).sum(parts).reshape(self.kept)

    def into(self, out: Array, operation: np.ufunc, t: Array, vector: Array) -> Array:
        """out = operation(t, vector), where `vector` has the shape of the sums; `t` may be `out`."""
        if t.dtype != out.dtype:  # NumPy is slow to convert and compute in one
            np.copyto(out, t, casting="same_kind")
            t = out
        if self.fold == 1 or not (t.flags.c_contiguous and out.flags.c_contiguous):
            return operation(t, vector, out=out)  # type: ignore[no-any-return]
        t, lines = t.reshape(self.matrix), out.reshape(self.matrix)
        wide = vector.reshape(1, -1).repeat(self.fold, 0).reshape(-1)
        operation(t[: self.folded].reshape(-1, len(wide)), wide, out=lines[: self.folded].reshape(-1, len(wide)))
        if self.folded < len(t):
            operation(t[self.folded :], vector.reshape(-1), out=lines[self.folded :])
        return out

    def _cut(self, t: Array) -> tuple[Array, Array]:
        """The rows of a matrix, a few at a time, and those that are left over."""
        even = len(t) - len(t) % self.rows
        return t[:even].reshape(-1, self.rows, t.shape[1]), t[even:]

    def _of_rows(self, t: Array) -> Array:
        if self.quick and t.dtype.char == "d":
            return ONES[: t.shape[-2]] @ t
        return np.add.reduce(t, axis=-2)  # type: ignore[no-any-return]


whole = lru_cache(maxsize=512)(Whole)
