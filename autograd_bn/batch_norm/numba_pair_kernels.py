"""The kernels for float64 in numba: as `pair_kernels`, with the exact products of fused multiply-adds.

Imported when first needed. What LLVM may reorder would no longer be exact, so it may reorder nothing: the loops run
over lanes side by side, which vectorise as they stand.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numba import njit, types
from numba.extending import intrinsic

from ..engine.node import Array
from .layout import Layout
from .numba_kernels import laid, run
from .pair_kernels import pair

# How many lanes the elements of one feature are dealt to where lines run over those; else, how many lanes are summed at
# a time, such that their sums stay in the nearest cache.
LANES = 32
WIDE = 256

_compiled = njit(nogil=True, cache=True, error_model="numpy")


def _multiply_add(typing, a, b, c):  # type: ignore[no-untyped-def]
    """a * b + c, rounded once."""
    number = types.float64
    return number(number, number, number), lambda context, builder, signature, args: builder.fma(*args)


_fma: Any = intrinsic(_multiply_add)


@_compiled
def _add(high, low, term, rest):  # type: ignore[no-untyped-def]
    """Add a pair to a pair; what the sum of the first parts loses goes to the second."""
    total = high + term
    added = total - high
    return total, low + ((high - (total - added)) + (term - added) + rest)


@_compiled
def _subtract(a, b):  # type: ignore[no-untyped-def]
    difference = a - b
    added = difference - a
    return difference, (a - (difference - added)) - (b + added)


def statistics(layout: Layout, x: Array, centres: Array, distances: Array, squares: Array) -> None:
    """As `numpy_kernels.statistics`, but the centres are rough means."""
    found = np.empty((5, *centres.shape))
    _run(layout, _statistics, x.reshape(-1), found)
    counts = layout.counts.astype(np.longdouble)
    centres[...] = found[0]
    distances[...] = (found[1].astype(np.longdouble) + found[2]) / counts
    squares[...] = found[3].astype(np.longdouble) + found[4] - counts * distances * distances


def _run(layout: Layout, kernel: Callable[..., None], *args: Any) -> None:
    # None is a type: each of the two is compiled for itself.
    run(layout, kernel, True if layout.long else None, *args)


@_compiled
def _statistics(table, long, x, found):  # type: ignore[no-untyped-def]
    for start, rows, features, inner, stride, step, first, part in table:
        abreast = min(features, max(1, WIDE // inner)) if long is None else 1
        for band in range(0, features, abreast):
            members = min(abreast, features - band)
            length = members * inner
            lanes = length if long is None else min(inner, LANES)
            centre, acc = np.zeros(lanes), np.zeros((4, lanes))
            for row in range(rows):
                for a in range(0, length, lanes):
                    r = x[start + row * stride + band * step + a :][: min(lanes, length - a)]
                    for j in range(len(r)):
                        centre[j] += r[j]
            for f in range(members):
                of_feature = centre[f * inner : (f + 1) * inner]
                of_feature[:] = of_feature.sum() / (rows * inner)
                found[0, part, first + band + f] = of_feature[0]
            s, s_low, q, q_low = acc[0], acc[1], acc[2], acc[3]
            for row in range(rows):
                for a in range(0, length, lanes):
                    r = x[start + row * stride + band * step + a :][: min(lanes, length - a)]
                    for j in range(len(r)):
                        t, lost = _subtract(r[j], centre[j])
                        s[j], s_low[j] = _add(s[j], s_low[j], t, lost)
                        p = t * t
                        q[j], q_low[j] = _add(q[j], q_low[j], p, _fma(t, t, -p) + 2 * t * lost)
            _fold(acc, members, inner, found[1:, part, first + band :])


@_compiled
def _fold(acc, members, inner, sums):  # type: ignore[no-untyped-def]
    """Add up the pairs in the lanes of each feature."""
    for k in range(0, len(acc), 2):
        for f in range(members):
            high = low = 0.0
            for j in range(f * inner, min((f + 1) * inner, acc.shape[1])):
                high, low = _add(high, low, acc[k, j], acc[k + 1, j])
            sums[k, f], sums[k + 1, f] = high, low


def normalise(layout: Layout, x: Array, y: Array, means: Any, scales: Array, shifts: Array) -> None:
    """As `numpy_kernels.normalise`."""
    vectors = [vector for both in (scales, shifts) for vector in pair(both)]
    means = np.zeros(len(scales)) if means is None else means.astype(float)
    _run(layout, _normalise, x.reshape(-1), y.reshape(-1), *laid(layout, means, *vectors))


@_compiled
def _normalise(table, long, x, y, means, scales, scales_low, shifts, shifts_low):  # type: ignore[no-untyped-def]
    for start, rows, features, inner, stride, step, first, _ in table:
        length, place = (features * inner, first * inner) if long is None else (inner, first)
        for row in range(rows):
            for band in range(1 if long is None else features):
                a = start + row * stride + band * step
                r, out = x[a : a + length], y[a : a + length]
                b = place + band
                m, s, s_low, h, h_low = means[b:], scales[b:], scales_low[b:], shifts[b:], shifts_low[b:]
                for j in range(length):
                    k = j if long is None else 0
                    t, lost = _subtract(r[j], m[k])
                    p = t * s[k]
                    high, low = _add(p, h_low[k], h[k], _fma(t, s[k], -p) + (t * s_low[k] + lost * s[k]))
                    out[j] = high + low


def backward_sums(layout: Layout, g: Array, x: Array, means: Any, totals: Array, weighted: Array) -> None:
    """As `numpy_kernels.backward_sums`."""
    found = np.empty((4, *totals.shape))
    means = np.zeros(layout.features) if means is None else means.astype(float)
    _run(layout, _sums, g.reshape(-1), x.reshape(-1), *laid(layout, means), found)
    for k, sums in enumerate((totals, weighted)):
        sums[...] = found[2 * k].astype(np.longdouble) + found[2 * k + 1]


@_compiled
def _sums(table, long, g, x, means, found):  # type: ignore[no-untyped-def]
    for start, rows, features, inner, stride, step, first, part in table:
        abreast = min(features, max(1, WIDE // inner)) if long is None else 1
        for band in range(0, features, abreast):
            members = min(abreast, features - band)
            length = members * inner
            lanes = length if long is None else min(inner, LANES)
            centre, acc = np.empty(lanes), np.zeros((4, lanes))
            for j in range(lanes):
                centre[j] = means[(first + band) * inner + j] if long is None else means[first + band]
            s, s_low, w, w_low = acc[0], acc[1], acc[2], acc[3]
            for row in range(rows):
                for a in range(0, length, lanes):
                    where = start + row * stride + band * step + a
                    r, h = x[where:][: min(lanes, length - a)], g[where:]
                    for j in range(len(r)):
                        t, lost = _subtract(r[j], centre[j])
                        s[j], s_low[j] = _add(s[j], s_low[j], h[j], 0.0)
                        p = h[j] * t
                        w[j], w_low[j] = _add(w[j], w_low[j], p, _fma(h[j], t, -p) + h[j] * lost)
            _fold(acc, members, inner, found[:, part, first + band :])


def input_gradient(
    layout: Layout, g: Array, x: Array, dx: Array, means: Any, directs: Array, slopes: Array, constants: Array
) -> None:
    """As `numpy_kernels.input_gradient`."""
    vectors = [vector for both in (directs, slopes, constants) for vector in pair(both)]
    means = np.zeros(len(directs)) if means is None else means.astype(float)
    arrays = [array.reshape(-1) for array in (g, x, dx)]
    _run(layout, _gradient, *arrays, *laid(layout, means, *vectors))


@_compiled
def _gradient(  # type: ignore[no-untyped-def]
    table, long, g, x, dx, means, directs, directs_low, slopes, slopes_low, constants, constants_low
):
    for start, rows, features, inner, stride, step, first, _ in table:
        length, place = (features * inner, first * inner) if long is None else (inner, first)
        for row in range(rows):
            for band in range(1 if long is None else features):
                a = start + row * stride + band * step
                r, h, out = x[a : a + length], g[a : a + length], dx[a : a + length]
                b = place + band
                m, d, d_low, s = means[b:], directs[b:], directs_low[b:], slopes[b:]
                s_low, c, c_low = slopes_low[b:], constants[b:], constants_low[b:]
                for j in range(length):
                    k = j if long is None else 0
                    t, lost = _subtract(r[j], m[k])
                    p, q = h[j] * d[k], t * s[k]
                    high, low = _add(p, _fma(h[j], d[k], -p) + h[j] * d_low[k], q, _fma(t, s[k], -q))
                    high, low = _add(high, low, c[k], c_low[k] + (t * s_low[k] + lost * s[k]))
                    out[j] = high + low
