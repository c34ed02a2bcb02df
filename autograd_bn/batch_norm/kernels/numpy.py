"""The kernels in NumPy: what is done to one tile, as `numba` does it too."""

from typing import Any

import numpy as np

from ...engine.node import Array
from .layout import Layout, Tile, added
from .memory import empty


def sums(layout: Layout, tile: Tile, x: Array, g: Any, centre: Any, t: Any, d: Any) -> tuple[Array, Array]:
    """In lanes, the sums of x - centre and of its squares, or with `g` those of g and of g * (x - centre).

    The centre may be None, for 0. `t` and `d` are None or matrices for x - centre and for `g`, in a wide dtype.
    """
    x, g, t, d = tile.of(x, g, t, d)
    t = _made(np.subtract, x, centre if centre is None else centre[tile.lanes], t, layout.wide)
    d = t if g is None else g if g.dtype == layout.wide else _made(None, g, None, d, layout.wide)
    if layout.runs:  # along rows that are contiguous NumPy adds in pairs
        total = np.add.reduce(np.ascontiguousarray(d), axis=1)
        return total, np.einsum("ij,ij->i", t, d) if layout.spare else np.add.reduce(t * d, axis=1)
    return added(d), added(t, d)


def affine(layout: Layout, tile: Tile, x: Array, g: Any, y: Array, lanes: Any, mine: Any) -> None:
    """y = (x - mean) * slope + constant + g * direct, where `lanes` have these four; or the first three, without `g`.

    The mean may be None, for 0. `mine` says of `x` and `g` whether they are new, in the dtype of the lanes; such an x
    is x - mean.
    """
    t, g, y = tile.of(x, g, y)
    if not tile.whole:
        lanes = [v if v is None else v[tile.lanes] for v in lanes]
    mean, slope, constant = lanes[:3]
    if not mine[0]:
        t = _made(np.subtract, t, mean, y if y.dtype == slope.dtype else None, slope.dtype)
    _by_lines(np.multiply, t, slope, t)
    _by_lines(np.add, t, constant, t)
    if g is not None:
        t += _made(np.multiply, g, lanes[3], g if mine[1] else None, slope.dtype)
    if y.dtype != t.dtype:
        y[...] = t


def _made(operation: Any, x: Array, lanes: Any, out: Any, dtype: np.dtype[Any]) -> Array:
    """An operation of `x` and lanes, or `x` in another dtype where there are none, in memory that may be given."""
    out = empty(x.shape, dtype) if out is None else out
    if lanes is None or x.dtype != dtype:
        out[...] = x  # NumPy is slow to convert and compute in one
        x = out
    return out if lanes is None else _by_lines(operation, x, lanes, out)


def _by_lines(operation: Any, x: Array, lanes: Array, out: Array) -> Array:
    """out = operation(x, lanes), by as many rows side by side as there are lanes for."""
    if lanes.ndim == 2 or len(lanes) == x.shape[1]:
        return operation(x, lanes, out)  # type: ignore[no-any-return]
    fold = len(lanes) // x.shape[1]
    even = len(x) - len(x) % fold
    operation(x[:even].reshape(-1, len(lanes)), lanes, out[:even].reshape(-1, len(lanes)))
    rest = x[even:].reshape(-1)
    operation(rest, lanes[: rest.size], out[even:].reshape(-1))
    return out
