"""The kernels in numba, in double precision registers. Imported when first needed.

The three steps work on a table of blocks, which threads can share; `forward` and `backward` are all steps in one call,
on the array as one block. Most sums may be reordered, so that they vectorise; numbers that are not finite stay what
they are. `g` may be None: numba compiles code for each of the two.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numba import njit

from ...engine.node import Array
from . import LARGEST, thresholds
from .blocks import Layout, line
from .threads import share

# How many rows are summed at a time, for fewer stores; and how many, before their sums are added to the others.
ABREAST = 4
CHUNK = 64
# How many numbers of one run.
RUN = 1 << 14

_exact = njit(nogil=True, cache=True, error_model="numpy")
_compiled = njit(nogil=True, cache=True, error_model="numpy", fastmath={"contract", "reassoc"})


def run(layout: Layout, kernel: Callable[..., None], *args: Any) -> None:
    """Call a kernel on the table's blocks: one at a time by several threads, or all at once."""
    table, parallel = layout.table, layout.size >= thresholds.SHARED_NUMBA
    taken = 1 if parallel else len(table)

    def work(first: int) -> None:
        kernel(table[first : first + taken], layout.long, *args)

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
    """The first row, plus the mean distance of 16 rows from it, if there are as many: exact where numbers are equal."""
    centres[:] = 0
    first = x[start : start + len(centres)]
    for row in range(1, 16 if rows >= 16 else 1):
        r = x[start + row * stride :]
        for j in range(len(centres)):
            centres[j] += np.float64(r[j]) - first[j]
    for j in range(len(centres)):
        centres[j] = first[j] + centres[j] / 16


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
            centre[:] = lanes[::inner]
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


# The sums of g and of g * (x - mean), with x - mean itself where g is None.


@_compiled
def _terms(g, h, r, m):  # type: ignore[no-untyped-def]
    t = r - m
    d = t if g is None else np.float64(h)
    return d, d * t


@_compiled
def _sums_of_lines(g, x, start, rows, features, inner, stride, mean, total, weighted):  # type: ignore[no-untyped-def]
    width = features * inner
    m, both, sums, lows = _spread(mean, inner), np.empty(2 * width), np.zeros(2 * width), np.zeros(2 * width)
    s, w = both[:width], both[width:]
    most = CHUNK if x.itemsize == 4 else CHUNK // 4  # float32 has bits to spare in double
    for chunk in range(0, rows, most):
        both[:] = 0
        end = min(chunk + most, rows)
        odd = end - (end - chunk) % ABREAST
        for row in range(chunk, odd, ABREAST):
            a, b = start + row * stride, start + (row + 1) * stride
            c, d = start + (row + 2) * stride, start + (row + 3) * stride
            ra, rb, rc, rd = x[a:], x[b:], x[c:], x[d:]
            ha, hb, hc, hd = (ra, rb, rc, rd) if g is None else (g[a:], g[b:], g[c:], g[d:])
            for j in range(width):
                sa, wa = _terms(g, ha[j], ra[j], m[j])
                sb, wb = _terms(g, hb[j], rb[j], m[j])
                sc, wc = _terms(g, hc[j], rc[j], m[j])
                sd, wd = _terms(g, hd[j], rd[j], m[j])
                s[j] += (sa + sb) + (sc + sd)
                w[j] += (wa + wb) + (wc + wd)
        for row in range(odd, end):
            r = x[start + row * stride :]
            h = r if g is None else g[start + row * stride :]
            for j in range(width):
                sa, wa = _terms(g, h[j], r[j], m[j])
                s[j] += sa
                w[j] += wa
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
            for first in range(0, inner, RUN):
                s = w = 0.0
                a, length = start + row * stride + f * step + first, min(RUN, inner - first)
                r = x[a : a + length]
                h = r if g is None else g[a : a + length]
                for i in range(length):
                    d, t = _terms(g, h[i], r[i], m)
                    s += d
                    w += t
                both[0], both[1] = s, w
                _add(sums, lows, both)
        total[f], weighted[f] = sums[0] + lows[0], sums[1] + lows[1]


@_compiled
def _value(g, h, d, r, m, k, c):  # type: ignore[no-untyped-def]
    t = (r - m) * k + c
    return t if g is None else h * d + t


@_compiled
def _affine(table, long, x, y, means, slopes, constants, g, directs):  # type: ignore[no-untyped-def]
    h, factors = (x, slopes) if g is None else (g, directs)
    for start, rows, features, inner, stride, step, first, _ in table:
        width = inner if long else features * inner
        mine = slice(first, first + features)
        if not long:
            ms, ks = _spread(means[mine], inner), _spread(slopes[mine], inner)
            cs, ds = _spread(constants[mine], inner), _spread(factors[mine], inner)
        for row in range(rows):
            for f in range(features if long else 1):
                a = start + row * stride + f * step
                r, e, out = x[a : a + width], h[a : a + width], y[a : a + width]
                if long:
                    m, k, c, d = means[first + f], slopes[first + f], constants[first + f], factors[first + f]
                    for i in range(width):
                        out[i] = _value(g, e[i], d, r[i], m, k, c)
                else:
                    for i in range(width):
                        out[i] = _value(g, e[i], ds[i], r[i], ms[i], ks[i], cs[i])


@_exact
def forward(table, long, x, y, gamma, beta, eps, found):  # type: ignore[no-untyped-def]
    """All steps of the forward pass: `found` gets the mean's two parts, the variance and the scale.

    False, and no result, where a variance is not below `LARGEST`.
    """
    features = len(gamma)
    n, sums = len(x) // features, np.empty((3, 1, features))
    _statistics(table, long, x, sums[0], sums[1], sums[2])
    centre, distance, square = sums[0, 0], sums[1, 0], sums[2, 0]
    high, low, var, scale = found[0], found[1], found[2], found[3]
    scales, shifts = np.empty(features), np.empty(features)
    fits = True
    for f in range(features):
        high[f] = centre[f] + distance[f]
        low[f] = (centre[f] - high[f]) + distance[f]
        var[f] = max(square[f] / n, 0.0)
        scale[f] = 1 / np.sqrt(var[f] + eps)
        scales[f] = scale[f] * gamma[f]
        shifts[f] = beta[f] - low[f] * scales[f]
        fits = fits and var[f] < LARGEST
    if fits:
        _affine(table, long, x, y, high, scales, shifts, None, None)
    return fits


@_exact
def backward(table, long, g, x, dx, gamma, found, through_mean, through_var, dgamma, dbeta):  # type: ignore[no-untyped-def]
    """All steps of the backward pass; False where a product of float64 left the range."""
    features = len(gamma)
    n, sums, vectors = len(x) // features, np.empty((2, 1, features)), np.empty((3, features))
    mean, low, scale = found[0], found[1], found[3]
    _backward_sums(table, long, g, x, mean, sums[0], sums[1])
    direct, slope, constant = vectors[0], vectors[1], vectors[2]
    of_mean, of_var = through_mean / n, through_var / n
    fits = True
    for f in range(features):
        total = sums[0, 0, f]
        weighted = (sums[1, 0, f] - low[f] * total) * scale[f]
        dgamma[f], dbeta[f] = weighted, total
        direct[f] = scale[f] * gamma[f]
        slope[f] = -direct[f] * scale[f] * (weighted * of_var)
        constant[f] = -direct[f] * (total * of_mean) - low[f] * slope[f]
        fits = fits and np.isfinite(weighted)
    _affine(table, long, x, dx, mean, slope, constant, g, direct)
    return fits
