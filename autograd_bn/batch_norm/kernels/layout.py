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
    """A part of the matrix: its rows and columns, how many rows lie side by side in a line, and its lanes."""

    rows: slice
    columns: slice
    fold: int
    lanes: slice
    whole: bool  # all of the matrix, as it is

    def of(self, matrix: Array) -> Array:
        """The part as lines: a view where the matrix is contiguous."""
        if self.whole:
            return matrix
        part = matrix[self.rows, self.columns]
        return part if self.fold == 1 else part.reshape(-1, self.fold * part.shape[1])


class Layout:
    """How arrays of one shape and memory order are summed over `axes`: as a matrix, over one of its sides.

    Summed axes lie outside the features in memory, or inside them. If there are many numbers inside, each feature's
    are a row, and rows are summed along: `runs`. Else a row has all features, and columns are summed; short rows are
    folded side by side into lines, because NumPy's inner loops are slow on less. What has one number a feature is laid
    out in lanes, one for each row or for each element of a line.

    The tiles depend on the shape and memory only, which makes results independent of the number of threads.
    """

    def __init__(self, axes: tuple[int, ...], x: Array, most_lanes: int) -> None:
        shape, strides = x.shape, x.strides
        steps = [abs(stride) for stride in strides]
        kept = [i for i in range(len(shape)) if i not in axes]
        nearest = min([steps[i] for i in kept if shape[i] > 1], default=0)
        summed = sorted(axes, key=lambda i: -steps[i])
        groups = [i for i in summed if steps[i] >= nearest], kept, [i for i in summed if steps[i] < nearest]
        self.order = tuple([i for group in groups for i in group])
        self.back = tuple([self.order.index(i) for i in range(len(shape))])
        self.straight = self.order == tuple(range(len(shape)))
        self.shape = tuple([shape[i] for i in self.order])
        self.statistics_shape = kept_shape(shape, axes, keepdims=True)
        outer, self.features, inner = [math.prod([shape[i] for i in group]) for group in groups]
        self.count, self.size = outer * inner, math.prod(shape)
        self.runs = outer > 0 and (inner >= thresholds.SHORTEST_RUN or inner > outer)
        self.matrix = (outer * self.features, inner) if self.runs else (outer, self.features * inner)
        self.plain = self.straight and shape == self.matrix
        rows, width = self.matrix
        self.axis = int(self.runs)
        if self.runs:
            self.repeats, self.inner, fold, columns = outer, 1, 1, min(width, thresholds.RUN)
        else:
            self.inner, fold, columns = inner, _fold(rows, width, most_lanes), width
            self.repeats = fold
            most = max(thresholds.LINE, thresholds.TILE // max(rows, 1))
            columns = min(width, max(most // max(inner, 1), 1) * inner)
        self.contiguous = x.transpose(self.order).flags.c_contiguous
        self.lanes = self.features * self.inner * self.repeats
        self.place = (*self.matrix, self.lanes, self.inner)
        self.compiled = most_lanes == 1
        self.tiles = [*self._cut(rows, width, columns, fold)] if self.size else []
        self.shared = thresholds.SHARED_NUMBA if self.compiled else thresholds.SHARED_NUMPY
        self.spare = x.itemsize < 8
        self.small = not self.compiled and self.size <= thresholds.DIRECT

    def _cut(self, rows: int, width: int, columns: int, fold: int) -> Any:
        even, most = rows - rows % fold, thresholds.TILE_NUMBA if self.compiled else thresholds.TILE
        for first, last, side in ((0, even, fold), (even, rows, 1)):
            if first == last:
                continue
            step = max(1, min(most // max(columns * side, 1), (last - first) // side)) * side
            for a in range(first, last, step):
                for c in range(0, width, columns):
                    down, along = slice(a, min(a + step, last)), slice(c, min(c + columns, width))
                    lanes = down if self.runs else slice(c, c + side * (along.stop - c))
                    whole = side == 1 and step == rows and columns == width
                    yield Tile(down, along, side, lanes, whole)

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

    def lay(self, vector: Array) -> Array:
        """A number for each feature, in lanes."""
        if self.inner > 1:
            vector = vector.repeat(self.inner)
        if self.repeats != 1:
            vector = vector.reshape(1, -1).repeat(self.repeats, 0).reshape(-1)
        return vector[:, None] if self.runs else vector

    def gather(self, lanes: Array) -> Array:
        """The sum for each feature of what is in its lanes."""
        if self.repeats != 1:
            lanes = self.added(lanes.reshape(self.repeats, self.features * self.inner))
        return lanes if self.inner == 1 else np.add.reduce(lanes.reshape(-1, self.inner), axis=1)

    def added(self, rows: Array) -> Array:
        """The sum of the rows of a matrix."""
        even = len(rows) - len(rows) % GROUP
        if len(rows) <= 2 * GROUP or self.spare:
            return np.add.reduce(rows, axis=0)  # type: ignore[no-any-return]
        parts = np.add.reduce(rows[:even].reshape(-1, GROUP, rows.shape[1]), axis=1)
        parts[0] += np.add.reduce(rows[even:], axis=0)
        return self.added(parts)

    def some(self, matrix: Array) -> Array:
        """A few numbers of each feature: a column a feature."""
        return matrix[: self.features, :16].T if self.runs else matrix[:16, :: self.inner]

    def unflat(self, vector: Array) -> Array:
        """A vector of features in the shape of statistics, with 1s in the place of the summed axes."""
        return vector.reshape(self.statistics_shape)


def _fold(rows: int, width: int, most_lanes: int) -> int:
    """How many rows to fold into a line: none of a small array, where it costs more, but for sums of fewer rows."""
    if rows * width <= thresholds.FOLDED:
        return max(1, rows // (2 * GROUP)) if rows > thresholds.MOST_ROWS and most_lanes > 1 else 1
    return max(1, min(most_lanes // max(width, 1), rows // thresholds.FEWEST_LINES))


@lru_cache(512)
def _layout(axes: tuple[int, ...], shape: tuple[int, ...], strides: tuple[int, ...], size: int, most: int) -> Layout:
    return Layout(axes, np.lib.stride_tricks.as_strided(np.empty(1, f"V{size}"), shape, strides), most)


def layout_of(axes: tuple[int, ...], x: Array, most_lanes: int) -> Layout:
    """The layout that suits an array."""
    return _layout(axes, x.shape, x.strides, x.itemsize, most_lanes)
