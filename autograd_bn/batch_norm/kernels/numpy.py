"""The kernels in NumPy: what is done to one tile, as `numba` does it too."""

from typing import Any

import numpy as np

from ...engine.node import Array
from . import thresholds
from .layout import Layout, Tile, wide
from .memory import empty


def sums(layout: Layout, tile: Tile, x: Array, g: Any, centre: Any, held: Any) -> tuple[Array, Array]:
    """In lanes, the sums of t = x - centre and of t * t, or with `g` those of g and of g * t.

    The centre may be None, for 0. `held` has matrices for what is made, t and `g` in a wide dtype; or it is None.
    """
    part, dtype = tile.of(x), wide(x.dtype)
    d = t = _centred(part, centre, tile, tile.of(held[0]) if held else empty(part.shape, dtype))
    if g is not None:
        d = tile.of(g)
        if d.dtype != dtype:
            d = _cast(d, tile.of(held[1]) if held else empty(part.shape, dtype))
    few = t.size <= thresholds.FOLDED  # of which one call more costs less than einsum's own
    if layout.runs:  # along rows that are contiguous NumPy adds in pairs
        total = np.add.reduce(np.ascontiguousarray(d), axis=1)
        return total, np.einsum("ij,ij->i", t, d) if layout.spare and not few else np.add.reduce(t * d, axis=1)
    return layout.added(d), layout.added(t * d) if few else np.einsum("ij,ij->j", t, d)


def affine(tile: Tile, x: Array, g: Any, y: Array, lanes: list[Any], mine: Any) -> None:
    """y = (x - mean) * slope + constant + g * direct, where `lanes` have these four; or the first three, without `g`.

    The mean may be None, for 0. `mine` says of `x` and `g` whether they are new, in the dtype of the lanes; such an x
    is x - mean.
    """
    mean, slope, constant, *direct = lanes
    part, out = tile.of(x), tile.of(y)
    t = part
    if not mine[0]:
        t = _centred(part, mean, tile, out if y.dtype == slope.dtype else empty(out.shape, slope.dtype))
    t *= slope[tile.lanes]
    t += constant[tile.lanes]
    if g is not None:
        d = tile.of(g)
        h = d if mine[1] else empty(t.shape, t.dtype)
        t += np.multiply(d if d.dtype == t.dtype else _cast(d, h), direct[0][tile.lanes], out=h)
    if y.dtype != t.dtype:
        out[...] = t


def _centred(x: Array, centre: Any, tile: Tile, t: Array) -> Array:
    """x - centre, written into `t`."""
    if centre is None:
        t[...] = x
    elif x.dtype == t.dtype:
        np.subtract(x, centre[tile.lanes], out=t)
    else:  # NumPy is slow to convert and compute in one
        t[...] = x
        t -= centre[tile.lanes]
    return t


def _cast(x: Array, t: Array) -> Array:
    t[...] = x
    return t
