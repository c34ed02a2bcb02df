"""Any axes of any array as a matrix, which is cut into tiles that stay in a near cache."""

import math
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np

from ...engine.node import Array
from . import thresholds
from .memory import empty

# How many rows are added one by one, or twice as many if that is all: sums of few round less.
GROUP = 32


@lru_cache
def wide(dtype: np.dtype[Any]) -> np.dtype[Any]:
    """The dtype in which statistics of `dtype` are computed and kept: double precision at least."""
    return dtype if dtype.kind == "O" else np.result_type(dtype, float)


@lru_cache
def kept_shape(shape: tuple[int, ...], axes: tuple[int, ...], keepdims: bool = False) -> tuple[int, ...]:
    """The shape of the statistics: `shape` without `axes`, or with 1s in their place."""
    return tuple([1 if i in axes else n for i, n in enumerate(shape) if keepdims or i not in axes])


class Tile(NamedTuple):
    """A part of the matrix: its rows and columns, and its part of what is in lanes."""

    rows: slice
    columns: slice
    lanes: slice
    whole: bool  # all of the matrix

    def of(self, *matrices: Any) -> Any:
        """The part of each; None of what is None."""
        return matrices if self.whole else [m if m is None else m[self.rows, self.columns] for m in matrices]


class Layout:
    """How arrays of one shape and memory order are summed over `axes`: as a matrix, over one of its sides.

    Summed axes lie outside the features in memory, or inside them. If there are many numbers inside, each feature's
    are a row, and rows are summed along: `runs`. Else a row has all features, and columns are summed. What has one
    number a feature is laid out in lanes: one a row, or one for each element of a row or of `fold` rows side by side.

    The tiles depend on the shape and memory only, which makes results independent of the number of threads.
    """

    def __init__(
        self, axes: tuple[int, ...], shape: tuple[int, ...], strides: tuple[int, ...], dtype: Any, compiled: bool
    ) -> None:
        steps = [abs(stride) for stride in strides]
        kept = [i for i in range(len(shape)) if i not in axes]
        nearest = min([steps[i] for i in kept if shape[i] > 1], default=0)
        summed = sorted(axes, key=lambda i: -steps[i])
        groups = [i for i in summed if steps[i] >= nearest], kept, [i for i in summed if steps[i] < nearest]
        self.order = tuple([i for group in groups for i in group])
        self.back = tuple([self.order.index(i) for i in range(len(shape))])
        self.straight = self.order == tuple(range(len(shape)))
        self.shape = tuple([shape[i] for i in self.order])
        outer, self.features, inner = [math.prod([shape[i] for i in group]) for group in groups]
        self.count, self.size = outer * inner, math.prod(shape)
        self.runs = outer > 0 and (inner >= thresholds.SHORTEST_RUN or inner > outer)
        self.matrix = (outer * self.features, inner) if self.runs else (outer, self.features * inner)
        self.plain = self.straight and shape == self.matrix
        rows, width = self.matrix
        self.compiled = compiled
        if self.runs:
            self.repeats, self.inner, self.fold, columns = outer, 1, 1, min(width, thresholds.RUN)
        else:
            self.repeats, self.inner, self.fold = 1, inner, 1 if compiled else _fold(rows, width)
            most = max(thresholds.LINE, thresholds.TILE // max(rows, 1))
            columns = min(width, max(most // max(inner, 1), 1) * inner)
        self.bare = not self.runs and self.inner == self.fold == 1
        some = np.lib.stride_tricks.as_strided(np.empty(1, f"V{dtype.itemsize}"), shape, strides)
        self.contiguous = some.transpose(self.order).flags.c_contiguous
        self.lanes = self.features * self.inner * self.repeats
        self.place = (*self.matrix, self.lanes, self.inner, self.runs or None)
        self.tiles = [*self._cut(rows, width, columns)] if self.size else []
        self.shared = thresholds.SHARED_NUMBA if self.compiled else thresholds.SHARED_NUMPY
        self.spare = dtype.itemsize < 8
        self.wide = wide(dtype)
        self.divisor = np.array(max(self.count, 1), self.wide)  # quicker than a number
        self.small = not self.compiled and self.size <= thresholds.DIRECT

    def _cut(self, rows: int, width: int, columns: int) -> Any:
        most = thresholds.TILE_NUMBA if self.compiled else thresholds.TILE
        step = max(1, min(most // max(columns * self.fold, 1) * self.fold, rows))
        for a in range(0, rows, step):
            for c in range(0, width, columns):
                down, along = slice(a, min(a + step, rows)), slice(c, min(c + columns, width))
                lanes = down if self.runs else along if columns < width else slice(None)
                yield Tile(down, along, lanes, step == rows and columns == width)

    def view(self, array: Array) -> Array:
        """The matrix of an array: a view where memory allows it."""
        if self.plain:
            return array
        return (array if self.straight else array.transpose(self.order)).reshape(self.matrix)

    def array(self, matrix: Array) -> Array:
        """The inverse of `view`, for a contiguous matrix."""
        if self.plain:
            return matrix
        array = matrix.reshape(self.shape)
        return array if self.straight else array.transpose(self.back)

    def empty(self, dtype: Any) -> Array:
        """A new matrix."""
        return empty(self.matrix, dtype)

    def lay(self, vectors: Any) -> Any:
        """Numbers for each feature, in lanes; None of what is None."""
        if self.bare:
            return vectors
        times, shape = self.repeats * self.fold, (-1, 1) if self.runs else -1
        return [v if v is None else v.repeat(self.inner)[None].repeat(times, 0).reshape(shape) for v in vectors]

    def gather(self, lanes: Array) -> Array:
        """The sum for each feature of what is in its lanes."""
        if self.repeats != 1:
            lanes = added(lanes.reshape(self.repeats, self.features))
        return lanes if self.inner == 1 else np.add.reduce(lanes.reshape(-1, self.inner), axis=1)

    def some(self, matrix: Array) -> Array:
        """A few numbers of each feature: a column a feature."""
        return matrix[: self.features, :16].T if self.runs else matrix[:16, :: self.inner]


def added(a: Array, b: Any = None) -> Any:
    """The sum of the rows of a matrix, or of its products with another: of a few at a time, several side by side."""
    rows, width = a.shape
    if rows <= 2 * GROUP:
        if rows * width <= thresholds.PRODUCT:
            return _ones(rows, a.dtype).dot(a if b is None else a * b)
        return np.add.reduce(a, axis=0) if b is None else np.einsum("ij,ij->j", a, b)
    side = max(1, min(thresholds.PRODUCT // (GROUP * max(width, 1)), rows // GROUP))
    even = rows - rows % (GROUP * side)
    groups: Any = [m if m is None else m[:even].reshape(-1, GROUP, side * width) for m in (a, b)]
    if b is not None:
        parts = np.einsum("kij,kij->kj", *groups)
    elif GROUP * side * width <= thresholds.PRODUCT:
        parts = np.matmul(_ones(GROUP, a.dtype), groups[0])
    else:
        parts = np.add.reduce(groups[0], axis=1)
    total = added(parts.reshape(-1, width))
    return total if even == rows else total + added(a[even:], b if b is None else b[even:])


@lru_cache
def _ones(n: int, dtype: Any) -> Array:
    return np.ones(n, dtype)


def _fold(rows: int, width: int) -> int:
    """How many rows to fold into a line: none of a small array, where it costs more."""
    if rows * width <= thresholds.FOLDED:
        return 1
    return max(1, min(thresholds.LINE // max(width, 1), rows // thresholds.FEWEST_LINES))
