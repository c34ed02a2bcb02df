"""The arithmetic of the fused node on plain arrays, in steps between which a collective can stand.

Statistics and parameters are vectors with a number for each feature. A `Pass` sums, and then computes, tile by tile
with the kernels of a backend; arrays of the usual kind take all steps at once in one compiled call each way. NumPy's
warnings are the caller's to silence: an infinity here can be the right answer.
"""

from functools import lru_cache
from typing import Any

import numpy as np

from ..engine.node import Array
from ..engine.operations import count, exact_sqrt
from .kernels import choose, compiled, numpy
from .kernels.layout import Layout, added
from .kernels.threads import share

# How many times what is left of them squares may be that are summed about 0: float32 in double has bits to spare.
SPARE = 2.0**12


@lru_cache
def per_feature(shape: tuple[int, ...], axes: tuple[int, ...]) -> int:
    """How many values have one mean."""
    return count(shape, axes)


def native(x: Array) -> Array:
    """`x` in this machine's byte order, in which alone kernels compute."""
    return x if x.dtype.isnative else x.astype(x.dtype.newbyteorder("="))


def of_result(x: Array, gamma: Any, beta: Any) -> Array:
    """`x` in the dtype of the result: what is precise enough for float32 is not for a float64 made of it."""
    for p in (gamma, beta):
        if p is not None and p.dtype != x.dtype:
            x = x.astype(np.result_type(x, p), copy=False)
    return native(x)


class Pass:
    """One way over an array, and a gradient if there is one: sums, and then a function of each element.

    Of a small array x - centre stays from one to the other, and `g` in a wide dtype.
    """

    def __init__(self, x: Array, axes: tuple[int, ...], g: Any = None) -> None:
        self.layout = layout = choose(x, axes, g)
        self.kernels = compiled() if layout.compiled else numpy
        self.source, self.x, self.g = x, layout.view(x), None if g is None else layout.view(g)
        self.held: Any = None

    def sums(self, centre: Any) -> tuple[Array, Array]:
        """The sums for each feature of t = x - centre and of t * t, or those of g and g * t; a centre of None is 0."""
        layout, g, dtype = self.layout, self.g, self.layout.wide
        (lanes,) = layout.lay((centre,))
        if layout.small and not self.held:
            self.held = layout.empty(dtype), g if g is None or g.dtype == dtype else layout.empty(dtype)
        found = self._each(self.kernels.sums, self.x, g, lanes, *(self.held or (None, None)))
        if len(found) == 1 and layout.bare:
            return found[0]  # type: ignore[no-any-return]
        total, weighted = np.zeros((2, layout.lanes), dtype)
        for tile, (some, products) in zip(layout.tiles, found, strict=True):
            total[tile.lanes] += some
            weighted[tile.lanes] += products
        return layout.gather(total), layout.gather(weighted)

    def affine(self, *vectors: Any) -> Array:
        """(x - mean) * slope + constant + g * direct, where `vectors` are these four; or the first three, without g.

        The mean may be None, for 0. After `sums` it is the centre.
        """
        layout, x, g = self.layout, self.x, self.g
        lanes = layout.lay(vectors)
        dtype = self.source.dtype
        if self.held:
            x, g = self.held
        mine = self.held is not None, g is not self.g
        y = x if mine[0] and dtype == layout.wide else layout.empty(dtype)
        self._each(self.kernels.affine, x, g, y, lanes, mine)
        return layout.array(y)

    def _each(self, kernel: Any, *args: Any) -> list[Any]:
        """What a kernel makes of each tile, by several threads if there is much to do."""
        layout, tiles = self.layout, self.layout.tiles
        if layout.size <= layout.shared:
            return [kernel(layout, tile, *args) for tile in tiles]
        results: list[Any] = [None] * len(tiles)

        def work(i: int) -> None:
            results[i] = kernel(layout, tiles[i], *args)

        share(work, range(len(tiles)))
        return results

    def origin(self) -> Array:
        """About the mean of a few numbers of each feature."""
        some = self.layout.some(self.x).astype(self.layout.wide, copy=False)
        if not len(some):
            return np.zeros(self.layout.features, self.layout.wide)
        return added(some) / len(some)  # type: ignore[no-any-return]


def statistics(x: Pass, centre: Any = None, again: int = 2) -> tuple[Any, Array, Array]:
    """A centre near the mean, the mean's distance from it, and the variance, of each feature.

    The first centre is None, for 0, where squares have bits to spare. Where they cancel it is a nearer one, and at last
    the mean.
    """
    if again == 2 and not x.layout.spare:
        return statistics(x, x.origin(), 1)
    distance, squares = x.sums(centre)
    distance = distance / x.layout.divisor
    correction = distance * distance
    var = squares / x.layout.divisor - correction
    if again and np.count_nonzero(far := correction > (SPARE if centre is None else 1) * var):
        nearer = x.origin() if centre is None else centre + distance
        return statistics(x, np.where(far, nearer, 0 if centre is None else centre), again - 1)
    return centre, distance, var if again else np.maximum(var, 0)


def merge(counts: Array, means: Array, squares: Array) -> tuple[Array, Array]:
    """The mean and the centred squares of parts that lie along the first axis, from those of each.

    The parts' means are a sample in their turn: T. F. Chan, G. H. Golub and R. J. LeVeque, "Updating formulae and a
    pairwise algorithm for computing sample variances", 1979, for all parts at once.

    >>> merge(np.array([[2], [1]]), np.array([[1.0], [4.0]]), np.array([[2.0], [0.0]]))
    (array([2.]), array([8.]))
    """
    distances = means - means[0]
    shift = np.add.reduce(counts * distances, axis=0) / np.add.reduce(counts, axis=0)
    distances -= shift
    return means[0] + shift, np.add.reduce(squares, axis=0) + np.add.reduce(counts * distances * distances, axis=0)


def reciprocal_deviation(var: Array, eps: Any) -> Array:
    """1 / sqrt(var + eps)."""
    root = exact_sqrt(np.asarray(var + eps)) if var.dtype == object else np.sqrt(var + eps)
    return np.asarray(1 / root)


def forward_at_once(read: Pass, gamma: Any, beta: Any, eps: float) -> Any:
    """The whole forward pass in one compiled call: y, and rows of what is kept, and x as a line.

    None where there is no such call for these arrays.
    """
    x, layout = read.source, read.layout
    if not layout.compiled or layout.size > layout.shared:
        return None
    if not (gamma is None or gamma.dtype == x.dtype) or not (beta is None or beta.dtype == x.dtype):
        return None
    kernels, y, rows = read.kernels, layout.empty(x.dtype), np.empty((5, layout.features))
    gamma = np.ones(layout.features, x.dtype) if gamma is None else kernels.line(np.ascontiguousarray(gamma))
    beta = np.zeros(layout.features, x.dtype) if beta is None else kernels.line(np.ascontiguousarray(beta))
    x = kernels.line(read.x)
    fits = kernels.forward(layout.place, x, y.reshape(-1), gamma, beta, rows, eps)
    return (layout.array(y), rows, x) if fits else None


def backward_at_once(g: Array, rows: Array, read: tuple[Layout, Array], through: tuple[bool, bool]) -> Any:
    """After `forward_at_once` the gradients of x, gamma and beta; None where a product left a double's range."""
    layout, x = read
    dx, sums, kernels = layout.empty(x.dtype), np.empty((2, layout.features), x.dtype), compiled()
    g = kernels.line(np.ascontiguousarray(layout.view(g), x.dtype))
    fits = kernels.backward(layout.place, g, x, dx.reshape(-1), rows, through, sums)
    return (layout.array(dx), sums[1], sums[0]) if fits else None
