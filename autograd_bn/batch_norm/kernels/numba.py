"""The kernels in numba, in double precision registers. Imported when first needed.

The three steps work on a table of blocks, which threads can share; `forward` and `backward` are all steps in one call.
Most sums may be reordered, so that they vectorise; numbers that are not finite stay what they are.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numba import njit

from ...engine.node import Array
from . import LARGEST
from .blocks import Layout, line
from .threads import share

# Below this many elements a second thread costs more than it saves.
PARALLEL = 1 << 20

# How many rows are summed at a time, for fewer stores; and how many, before their sums are added to the others.
ABREAST = 4
CHUNK = 64

_exact = njit(nogil=True, cache=True, error_model="numpy")
_compiled = njit(nogil=True, cache=True, error_model="numpy", fastmath={"contract", "reassoc"})


def run(layout: Layout, kernel: Callable[..., None], *args: Any) -> None:
    """Call a kernel on the table's blocks: one at a time by several threads, or all at once."""
    table, long, _ = layout.walk
    parallel = layout.size >= PARALLEL
    taken = 1 if parallel else len(table)

    def work(first: int) -> None:
        kernel(table[first : first + taken], long, *args)

    share(work, range(0, len(table), taken), parallel)


def statistics(layout: Layout, x: Array, centres: Array, distances: Array, squares: Array) -> None:
    """As `numpy.statistics`."""
    run(layout, _statistics, line(x), centres, distances, squares)


def backward_sums(layout: Layout, g: Array, x: Array, means: Any, totals: Array, weighted: Array) -> None:
    """As `numpy.backward_sums`."""
    means = np.zeros(layout.features) if means is None else means
    run(layout, _backward_sums, line(g), line(x), means, totals, weighted)


def affine(
    layout: Layout, x: Array, y: Array, means: Any, slopes: Array, constants: Array, g: Any = None, directs: Any = None
) -> None:
    """As `numpy.affine`."""
    means = np.zeros_like(slopes) if means is None else means
    run(layout, _affine, line(x), line(y), means, slopes, constants, None if g is None else line(g), directs)


@_exact
def _centres(x, start, stride, rows, centres):  # type: ignore[no-untyped-def]
    """The mean of 16 rows, or the first of fewer: added in pairs, of pairs, it is exact where numbers are equal."""
    centres[:] = 0
    if rows < 16:
        centres += x[start : start + len(centres)]
        return
    for half in range(2):
        a = start + 8 * half * stride
        r0, r1, r2, r3 = x[a:], x[a + stride :], x[a + 2 * stride :], x[a + 3 * stride :]
        r4, r5, r6, r7 = x[a + 4 * stride :], x[a + 5 * stride :], x[a + 6 * stride :], x[a + 7 * stride :]
        for j in range(len(centres)):
            left = (np.float64(r0[j]) + r1[j]) + (np.float64(r2[j]) + r3[j])
            right = (np.float64(r4[j]) + r5[j]) + (np.float64(r6[j]) + r7[j])
            centres[j] += left + right
    for j in range(len(centres)):
        centres[j] /= 16


@_exact
def _spread(vector, inner):  # type: ignore[no-untyped-def]
    """A number for each feature, or for each of its inner elements."""
    return vector if inner == 1 else np.repeat(vector, inner)


@_exact
def _add(sums, lows, terms):  # type: ignore[no-untyped-def]
    """Add to sums, and what their rounding loses to `lows`.

    D. E. Knuth, "The Art of Computer Programming", volume 2, section 4.2.2, theorem B.
    """
    for j in range(len(sums)):
        total = sums[j] + terms[j]
        change = total - sums[j]
        lows[j] += (sums[j] - (total - change)) + (terms[j] - change)
        sums[j] = total


@_compiled
def _statistics(table, long, x, centres, distances, squares):  # type: ignore[no-untyped-def]
    for start, rows, features, inner, stride, step, first, part in table:
        n, last = rows * inner, first + features
        centre, distance, square = centres[part, first:last], distances[part, first:last], squares[part, first:last]
        if long:
            for f in range(features):
                _centres(x, start + f * step, 1, inner, centre[f : f + 1])
        else:
            lanes = centre if inner == 1 else np.empty(features * inner)
            _centres(x, start, stride, rows, lanes)
            for f in range(features):
                centre[f] = lanes[f * inner]
        for _ in range(2):
            if long:
                _sums_of_runs(None, x, start, rows, features, inner, stride, step, centre, distance, square)
            else:
                _sums_of_lines(None, x, start, rows, features, inner, stride, centre, distance, square)
            far = False
            for f in range(features):
                distance[f] /= n
                correction = n * distance[f] * distance[f]
                far = far or correction + correction > square[f]
                square[f] -= correction
            if not far:
                break
            for f in range(features):  # squares that cancel are summed again, about the mean
                centre[f] += distance[f]


@_compiled
def _backward_sums(table, long, g, x, means, totals, weighted):  # type: ignore[no-untyped-def]
    for start, rows, features, inner, stride, step, first, part in table:
        last = first + features
        mean, total, weight = means[first:last], totals[part, first:last], weighted[part, first:last]
        if long:
            _sums_of_runs(g, x, start, rows, features, inner, stride, step, mean, total, weight)
        else:
            _sums_of_lines(g, x, start, rows, features, inner, stride, mean, total, weight)


# The sums of g and of g * (x - mean), with x - mean itself where g is None: numba compiles code for each of the two.


@_compiled
def _sums_of_lines(g, x, start, rows, features, inner, stride, mean, total, weighted):  # type: ignore[no-untyped-def]
    width = features * inner
    m, both, sums, lows = _spread(mean, inner), np.empty(2 * width), np.zeros(2 * width), np.zeros(2 * width)
    s, w = both[:width], both[width:]
    for chunk in range(0, rows, CHUNK):
        both[:] = 0
        end = min(chunk + CHUNK, rows)
        for row in range(chunk, end - ABREAST + 1, ABREAST):
            a = start + row * stride
            r0, r1, r2, r3 = x[a:], x[a + stride :], x[a + 2 * stride :], x[a + 3 * stride :]
            if g is None:
                for j in range(width):
                    t0, t1, t2, t3 = r0[j] - m[j], r1[j] - m[j], r2[j] - m[j], r3[j] - m[j]
                    s[j] += (t0 + t1) + (t2 + t3)
                    w[j] += (t0 * t0 + t1 * t1) + (t2 * t2 + t3 * t3)
            else:
                h0, h1, h2, h3 = g[a:], g[a + stride :], g[a + 2 * stride :], g[a + 3 * stride :]
                for j in range(width):
                    d0, d1, d2, d3 = np.float64(h0[j]), np.float64(h1[j]), np.float64(h2[j]), np.float64(h3[j])
                    s[j] += (d0 + d1) + (d2 + d3)
                    w[j] += (d0 * (r0[j] - m[j]) + d1 * (r1[j] - m[j])) + (d2 * (r2[j] - m[j]) + d3 * (r3[j] - m[j]))
        for row in range(end - (end - chunk) % ABREAST, end):
            r = x[start + row * stride :]
            if g is None:
                for j in range(width):
                    t = r[j] - m[j]
                    s[j] += t
                    w[j] += t * t
            else:
                h = g[start + row * stride :]
                for j in range(width):
                    d = np.float64(h[j])
                    s[j] += d
                    w[j] += d * (r[j] - m[j])
        _add(sums, lows, both)
    sums += lows
    for f in range(features):
        a, b = f * inner, (f + 1) * inner
        total[f], weighted[f] = sums[a:b].sum(), sums[width + a : width + b].sum()


@_compiled
def _sums_of_runs(g, x, start, rows, features, inner, stride, step, mean, total, weighted):  # type: ignore[no-untyped-def]
    for f in range(features):
        m, sums, lows, both = mean[f], np.zeros(2), np.zeros(2), np.empty(2)
        for row in range(rows):
            s = w = 0.0
            a = start + row * stride + f * step
            r = x[a : a + inner]
            if g is not None:
                h = g[a : a + inner]
            for i in range(inner):
                t = r[i] - m
                d = t
                if g is not None:
                    d = np.float64(h[i])
                s += d
                w += d * t
            both[0], both[1] = s, w
            _add(sums, lows, both)
        total[f], weighted[f] = sums[0] + lows[0], sums[1] + lows[1]


@_compiled
def _affine(table, long, x, y, means, slopes, constants, g, directs):  # type: ignore[no-untyped-def]
    for start, rows, features, inner, stride, step, first, _ in table:
        last = first + features
        if long:
            for row in range(rows):
                for f in range(features):
                    a = start + row * stride + f * step
                    m, k, c = means[first + f], slopes[first + f], constants[first + f]
                    r, out = x[a : a + inner], y[a : a + inner]
                    if g is None:
                        for i in range(inner):
                            out[i] = (r[i] - m) * k + c
                    else:
                        h, d = g[a : a + inner], directs[first + f]
                        for i in range(inner):
                            out[i] = h[i] * d + ((r[i] - m) * k + c)
        else:
            width = features * inner
            m, k = _spread(means[first:last], inner), _spread(slopes[first:last], inner)
            c = _spread(constants[first:last], inner)
            if g is not None:
                e = _spread(directs[first:last], inner)
            for row in range(rows):
                a = start + row * stride
                r, out = x[a : a + width], y[a : a + width]
                if g is None:
                    for j in range(width):
                        out[j] = (r[j] - m[j]) * k[j] + c[j]
                else:
                    h = g[a : a + width]
                    for j in range(width):
                        out[j] = h[j] * e[j] + ((r[j] - m[j]) * k[j] + c[j])


@_exact
def forward(table, long, counts, x, y, gamma, beta, eps, found):  # type: ignore[no-untyped-def]
    """All steps of the forward pass: `found` gets the mean's two parts, the variance and the scale.

    False, and no result, where a variance is not below `LARGEST`.
    """
    features, parts, n = len(gamma), len(counts), counts.sum()
    sums = np.zeros((3, parts, features))
    _statistics(table, long, x, sums[0], sums[1], sums[2])
    origin, high, low, var, scale = sums[0, 0], found[0], found[1], found[2], found[3]
    vectors = np.zeros((3, features))
    shift, scales, shifts = vectors[0], vectors[1], vectors[2]
    for part in range(parts):
        weight, centre, distance = counts[part, 0], sums[0, part], sums[1, part]
        for f in range(features):
            distance[f] += centre[f] - origin[f]
            shift[f] += weight * distance[f]
    var[:] = 0
    for f in range(features):
        shift[f] /= n
    for part in range(parts):
        weight, distance, square = counts[part, 0], sums[1, part], sums[2, part]
        for f in range(features):
            rest = distance[f] - shift[f]
            var[f] += square[f] + weight * rest * rest
    for f in range(features):
        high[f] = origin[f] + shift[f]
        low[f] = (origin[f] - high[f]) + shift[f]
        var[f] = max(var[f] / n, 0.0)
        scale[f] = 1 / np.sqrt(var[f] + eps)
        scales[f] = scale[f] * gamma[f]
        shifts[f] = beta[f] - low[f] * scales[f]
    fits = True
    for f in range(features):
        fits = fits and var[f] < LARGEST
    if fits:
        _affine(table, long, x, y, high, scales, shifts, None, None)
    return fits


@_exact
def backward(table, long, counts, g, x, dx, gamma, found, through_mean, through_var, dgamma, dbeta):  # type: ignore[no-untyped-def]
    """All steps of the backward pass; False where a product of float64 left the range."""
    features, parts, n = len(gamma), len(counts), counts.sum()
    both = np.empty((2, parts, features))
    mean, low, scale = found[0], found[1], found[3]
    _backward_sums(table, long, g, x, mean, both[0], both[1])
    vectors = np.zeros((3, features))
    direct, slope, constant = vectors[0], vectors[1], vectors[2]
    total, weighted = both[0, 0], both[1, 0]
    for part in range(1, parts):
        for f in range(features):
            total[f] += both[0, part, f]
            weighted[f] += both[1, part, f]
    of_mean, of_var = through_mean / n, through_var / n
    fits = True
    for f in range(features):
        weighted[f] = (weighted[f] - low[f] * total[f]) * scale[f]
        dgamma[f], dbeta[f] = weighted[f], total[f]
        direct[f] = scale[f] * gamma[f]
        slope[f] = -direct[f] * scale[f] * (weighted[f] * of_var)
        constant[f] = -direct[f] * (total[f] * of_mean) - low[f] * slope[f]
    for f in range(features):
        fits = fits and np.isfinite(weighted[f])
    _affine(table, long, x, dx, mean, slope, constant, g, direct)
    return fits
