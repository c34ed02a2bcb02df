"""Any axes of any array as a walk over blocks that fit the cache."""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import cached_property, lru_cache
from typing import Any, NamedTuple

import numpy as np

from ..engine.node import Array

# Elements of a block, measured: smaller ones stay in a nearer cache, but each costs a dozen calls. Rows of a block are
# folded side by side until a line has `LINE` elements, because NumPy's inner loops are slow on short lines.
BLOCK = 1 << 17
LINE = 1024
FEWEST_ROWS = 32

Index = tuple[int | slice, ...]


class Block(NamedTuple):
    """One block: where it is, and the shape in which it is computed.

    `lines` is that shape, with the axis that is summed over at `Layout.axis`. The sums of the lines have the shape
    `lanes`, (repeats, features, inner), and are summed in their turn over the first and the last.
    """

    where: Index
    shape: tuple[int, ...]
    lines: tuple[int, ...]
    lanes: tuple[int, int, int]
    size: int
    place: slice  # of its lines in a vector that `Layout.lay` made
    rows: slice  # of its lanes among all of a feature
    part: int  # which part of the summed axes
    features: slice


class Layout:
    """How arrays of one shape and given strides are walked: views of (outer, features, inner), cut into blocks.

    `outer` are the summed axes that lie outside the features in memory, `inner` those that lie inside them. Where
    strides allow each of the three is one axis; else it stays several, so that nothing is ever copied but a block.
    The blocks depend on shapes and strides only, which makes results independent of the number of threads.
    """

    def __init__(self, shape: tuple[int, ...], axes: tuple[int, ...], strides: tuple[tuple[int, ...], ...]) -> None:
        def stride(axis: int) -> int:
            return abs(strides[0][axis])

        kept = [i for i in range(len(shape)) if i not in axes]
        nearest = min([stride(i) for i in kept if shape[i] > 1], default=0)
        groups = [[i for i in axes if stride(i) >= nearest], kept, [i for i in axes if stride(i) < nearest]]
        groups = [sorted(group, key=lambda i: -stride(i)) for group in groups]
        self.order = tuple([i for group in groups for i in group])
        self.kept_order = tuple([kept.index(i) for i in groups[1]])
        self.kept_lengths = tuple([shape[i] for i in groups[1]])
        self.statistics_shape = tuple([1 if i in axes else n for i, n in enumerate(shape)])
        self.lengths = lengths = [_coalesced(group, shape, strides) for group in groups]
        self.shape = tuple([n for group in lengths for n in group])
        self.straight = self.order == tuple(range(len(shape)))
        outer, self.features, self.inner = (math.prod(group) for group in lengths)
        self.count = outer * self.inner

        # Lines of `inner`, or where that is short, lines of many rows.
        self.long = self.inner >= FEWEST_ROWS or self.inner > outer
        self.axis = 2 if self.long else 0
        run = min(self.inner, BLOCK)
        tall = 1 if self.long else min(outer, 2 * FEWEST_ROWS)
        inners = list(_tiles(lengths[2], run))
        features = list(_tiles(lengths[1], BLOCK // run // tall))
        widest = max([stop - start for _, start, stop in features])
        outers = list(_tiles(lengths[0], BLOCK // (run * widest), even=2 * FEWEST_ROWS))
        self.parts = len(outers) * len(inners)
        self.repeats = 1
        self.blocks: list[Block] = []
        self.lanes = 0
        lane_counts = []
        for i, (outer_index, a, b) in enumerate(outers):
            for j, (inner_index, c, d) in enumerate(inners):
                for feature_index, start, stop in features:
                    where = outer_index + feature_index + inner_index
                    block = self._block(where, b - a, start, stop, d - c, i * len(inners) + j)
                    self.blocks.append(block)
                self.lanes = block.rows.stop
                lane_counts += [block.lines[self.axis]] * (block.rows.stop - block.rows.start)
        self.lane_counts = np.array(lane_counts).reshape(-1, 1)
        self.size = self.count * self.features

    @cached_property
    def table(self) -> Array:
        """The blocks in numbers, for arrays whose views are contiguous.

        Where a block starts; its three `lines` (or two and a 1); how far it is from line to line, and from feature to
        feature; `place`, `rows`, `part` and `features`, each by its start; how many features it has, and how many
        lanes in `inner`.
        """
        features, inner = self.features, self.inner
        rows = []
        for block in self.blocks:
            first = [s.start or 0 if isinstance(s, slice) else s for s in block.where]
            start = int(np.ravel_multi_index(first, self.shape))
            repeats = 1 if self.long else block.lanes[0]
            lines = (*block.lines, 1)[:3]
            starts = (block.place.start, block.rows.start, block.part, block.features.start)
            rows.append((start, *lines, repeats * features * inner, inner, *starts, *block.lanes[1:]))
        return np.array(rows)

    @property
    def laid(self) -> int:
        """How many elements a statistic has when it is laid along the lines."""
        return self.features if self.long else self.features * self.inner * self.repeats

    def _block(self, where: Index, rows: int, start: int, stop: int, inner: int, part: int) -> Block:
        features = stop - start
        repeats = 1
        if self.long:
            lines: tuple[int, ...] = (rows, features, inner)
            lanes = (rows, features, 1)
            place = slice(start, stop)
        else:
            width = features * inner
            if features == self.features:
                while rows % (2 * repeats) == 0 and rows >= 2 * repeats * FEWEST_ROWS and 2 * repeats * width <= LINE:
                    repeats *= 2
            self.repeats = max(self.repeats, repeats)
            lines = (rows // repeats, repeats * width)
            lanes = (repeats, features, inner)
            place = slice(start * inner, start * inner + repeats * width)
        cut = [len(range(*s.indices(n))) for s, n in zip(where, self.shape, strict=True) if isinstance(s, slice)]
        taken = slice(self.lanes, self.lanes + lanes[0] * lanes[2])
        return Block(where, tuple(cut), lines, lanes, math.prod(lines), place, taken, part, slice(start, stop))

    def view(self, array: Array) -> Array:
        """`array` in the order of the walk, without a copy."""
        array = array if self.straight else array.transpose(self.order)
        return array if array.shape == self.shape else array.reshape(self.shape)

    def first(self, view: Array) -> Array:
        """The first element of every feature, as a vector."""
        outer, inner = len(self.lengths[0]), len(self.lengths[2])
        first: Array = view[(0,) * outer + (...,) + (0,) * inner]
        return first.reshape(-1)

    def flat(self, statistic: Any) -> Array:
        """A statistic or parameter, of the kept axes' shape with or without 1s, as a vector of features."""
        statistic = np.asarray(statistic)
        if self.kept_order != tuple(range(len(self.kept_order))):
            back = np.argsort(self.kept_order)
            statistic = statistic.reshape([self.kept_lengths[i] for i in back]).transpose(self.kept_order)
        vector: Array = statistic.reshape(-1)
        return vector

    def unflat(self, vector: Array) -> Array:
        """The inverse of `flat`, with 1s in the place of the summed axes."""
        if self.kept_order != tuple(range(len(self.kept_order))):
            vector = vector.reshape(self.kept_lengths).transpose(np.argsort(self.kept_order))
        spread: Array = vector.reshape(self.statistics_shape)
        return spread

    def lay(self, statistic: Any, dtype: Any) -> Any:
        """A statistic or parameter, repeated such that `Block.place` cuts out what lies along a block's lines.

        None stays None.
        """
        if statistic is None:
            return None
        vector = self.flat(statistic).astype(dtype, copy=False)
        if self.long:
            return vector.reshape(-1, 1)
        if self.inner > 1:
            vector = np.repeat(vector, self.inner)
        return np.tile(vector, self.repeats) if self.repeats > 1 else vector


def _coalesced(group: list[int], shape: tuple[int, ...], strides: tuple[tuple[int, ...], ...]) -> list[int]:
    """The lengths of the axes `group`, with those merged into one that lie evenly in every array."""
    lengths: list[int] = []
    last = -1
    for i in group:
        if shape[i] == 1:
            continue
        if lengths and all(s[last] == s[i] * shape[i] for s in strides):
            lengths[-1] *= shape[i]
        else:
            lengths.append(shape[i])
        last = i
    return lengths or [1]


def _tiles(lengths: list[int], limit: int, even: int = 1) -> Iterator[tuple[Index, int, int]]:
    """Indices that cut axes of these lengths into runs of about `limit` elements, each with its flat start and stop.

    Longer runs are multiples of `even`, and what is left over is a run of its own.
    """
    axis, run = len(lengths) - 1, 1
    while axis > 0 and run * lengths[axis] <= limit:
        run *= lengths[axis]
        axis -= 1
    step = max(1, limit // run)
    rest = (slice(None),) * (len(lengths) - axis - 1)
    for number, lead in enumerate(np.ndindex(*lengths[:axis])):
        first = number * lengths[axis]
        start = 0
        while start < lengths[axis]:
            stop = min(start + step, lengths[axis])
            if stop - start > even:
                stop -= (stop - start) % even
            yield (*lead, slice(start, stop), *rest), (first + start) * run, (first + stop) * run
            start = stop


_layout = lru_cache(maxsize=512)(Layout)


def walk(axes: tuple[int, ...], *arrays: Array) -> tuple[Layout, list[Array]]:
    """The layout that suits arrays of one shape, and their views in its order; the first decides."""
    layout = _layout(arrays[0].shape, axes, tuple([array.strides for array in arrays]))
    return layout, [layout.view(array) for array in arrays]
