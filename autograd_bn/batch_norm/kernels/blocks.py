"""Any axes of any array as a walk over blocks that fit the cache."""

import math
from collections.abc import Iterator
from functools import cached_property, lru_cache
from itertools import product
from typing import Any, NamedTuple

import numpy as np

from ...engine.node import Array
from . import thresholds
from .whole import is_long, kept_shape

Tile = tuple[tuple[slice, ...], int, int]  # where it is among its axes, and its flat start and stop


class Block(NamedTuple):
    """One block: where it is, its lengths, which features, in which part of the summed axes, in what shape its sums."""

    where: tuple[slice, ...]
    rows: int
    inner: int
    features: slice
    part: int
    kept: tuple[int, ...]


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
        self.kept_shape = tuple([shape[i] for i in kept])
        self.turned = self.kept_order != tuple(range(len(kept)))
        self.statistics_shape = kept_shape(shape, axes, keepdims=True)
        self.lengths = lengths = [_coalesced(group, shape, strides) for group in groups]
        self.shape = tuple([n for group in lengths for n in group])
        self.straight = self.order == tuple(range(len(shape)))
        self.outer, self.features, self.inner = (math.prod(group) for group in lengths)
        self.count = self.outer * self.inner
        self.size = self.count * self.features

        first, last = len(lengths[0]), len(self.shape) - len(lengths[2])
        self.axes = (*range(first), *range(last, len(self.shape)))
        self.long = is_long(self.inner, self.outer)

    @cached_property
    def tiles(self) -> list[list[Tile]]:
        """How `outer`, features and `inner` are cut: what is near in memory last."""
        run, fewest = min(self.inner, thresholds.BLOCK), 1 if self.long else min(self.outer, thresholds.FEWEST_ROWS)
        features = list(_tiles(self.lengths[1], thresholds.BLOCK // run // fewest))
        width = run * max([stop - start for _, start, stop in features])
        outers = list(_tiles(self.lengths[0], min(self.outer, thresholds.BLOCK // width)))
        return [outers, features, list(_tiles(self.lengths[2], thresholds.BLOCK))]

    @cached_property
    def counts(self) -> Array:
        """How many values each part of the summed axes has for one feature: a column."""
        outers, _, inners = self.tiles
        return np.array([[(b - a) * (d - c)] for _, a, b in outers for _, c, d in inners])

    @cached_property
    def blocks(self) -> list[Block]:
        """Every part, and of each all features."""
        outers, features, inners = self.tiles
        blocks = []
        for part, ((outside, a, b), (inside, c, d)) in enumerate(product(outers, inners)):
            for which, start, stop in features:
                where = (*outside, *which, *inside)
                sums = tuple([1 if i in self.axes else s.stop - s.start for i, s in enumerate(where)])
                blocks.append(Block(where, b - a, d - c, slice(start, stop), part, sums))
        return blocks

    @cached_property
    def table(self) -> Array:
        """The blocks in numbers, for arrays whose views are contiguous.

        Where a block starts; its rows, features and inner elements; how far it is from row to row and from feature to
        feature; which of the features comes first; and its part.
        """
        rows = []
        for block in self.blocks:
            start = int(np.ravel_multi_index([s.start for s in block.where], self.shape))
            lengths = (block.rows, block.features.stop - block.features.start, block.inner)
            rows.append((start, *lengths, self.features * self.inner, self.inner, block.features.start, block.part))
        return np.array(rows)

    @cached_property
    def walk(self) -> tuple[Array, bool | None]:
        """The whole array as the one block of such a table; and True where lines are those of `inner`."""
        width = self.features * self.inner
        place = (0, self.size // width, self.features, self.inner, width, self.inner, 0, 0)
        return np.array([place]), self.long or None

    def view(self, array: Array) -> Array:
        """`array` in the order of the walk, without a copy."""
        array = array if self.straight else array.transpose(self.order)
        return array if array.shape == self.shape else array.reshape(self.shape)

    def line(self, array: Array) -> Array:
        """An array that is contiguous in the order of the walk as one line of numbers, as `line`."""
        flat = (array if self.straight else array.transpose(self.order)).reshape(-1)
        return flat if flat.flags.writeable else line(flat)

    def flat(self, statistic: Any, dtype: Any) -> Any:
        """A statistic or parameter, of the kept axes' shape with or without 1s, as a vector of features; or None."""
        if statistic is None:
            return None
        turned = np.reshape(statistic, self.kept_shape).transpose(self.kept_order)
        return np.asarray(turned, dtype).reshape(-1)

    def unflat(self, vectors: Array) -> Array:
        """The inverse of `flat`, with 1s in the place of the summed axes; for one vector, or rows of them."""
        *lead, _ = vectors.shape
        turned = vectors.reshape((*lead, *[self.kept_shape[i] for i in self.kept_order]))
        order = [*range(len(lead)), *[len(lead) + self.kept_order.index(i) for i in range(len(self.kept_order))]]
        return turned.transpose(order).reshape((*lead, *self.statistics_shape))


class _Unlocked:
    """Read-only memory in the guise of any other: numba would compile its kernels anew for it, which only read it."""

    def __init__(self, array: Array) -> None:
        self.array = array
        data = (array.__array_interface__["data"][0], False)
        self.__array_interface__ = {**array.__array_interface__, "data": data}


def line(array: Array) -> Array:
    """A contiguous array as one line of numbers, of the one type that kernels are compiled for."""
    flat = array.reshape(-1)
    return flat if flat.flags.writeable else np.asarray(_Unlocked(flat))


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


def _tiles(lengths: list[int], limit: int) -> Iterator[Tile]:
    """What axes of these lengths are cut into: runs of like size, of about `limit` elements at most."""
    axis, run = len(lengths) - 1, 1
    while axis > 0 and run * lengths[axis] <= limit:
        run *= lengths[axis]
        axis -= 1
    length = lengths[axis]
    step = math.ceil(length / math.ceil(length / max(1, limit // run)))
    rest = [slice(0, n) for n in lengths[axis + 1 :]]
    for number, lead in enumerate(np.ndindex(*lengths[:axis])):
        for start in range(0, length, step):
            stop = min(start + step, length)
            first = number * length
            yield (
                (*[slice(i, i + 1) for i in lead], slice(start, stop), *rest),
                (first + start) * run,
                (first + stop) * run,
            )


_layout = lru_cache(maxsize=512)(Layout)


def layout_of(axes: tuple[int, ...], *arrays: Array) -> Layout:
    """The layout that suits arrays of one shape; the first decides."""
    return _layout(arrays[0].shape, axes, tuple([array.strides for array in arrays]))


def walk(axes: tuple[int, ...], *arrays: Array) -> tuple[Layout, list[Array]]:
    """The layout that suits arrays of one shape, and their views in its order."""
    layout = layout_of(axes, *arrays)
    return layout, [layout.view(array) for array in arrays]
