"""The kernels in numba: one pass over memory each, in double precision registers. Imported when first needed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numba import njit

from ...engine.node import Array
from .blocks import Layout
from .threads import share

# Below this many elements a second thread costs more than it saves.
PARALLEL = 1 << 20

# How many rows are summed at a time, for fewer stores.
ABREAST = 4
# Sums may be reordered, so that they vectorise; numbers that are not finite stay what they are.
_compiled = njit(nogil=True, cache=True, error_model="numpy", fastmath={"contract", "reassoc"})


def run(layout: Layout, kernel: Callable[..., None], *args: Any) -> None:
    """Call a kernel on the table's blocks: one at a time by several threads, or all at once."""
    table = layout.table
    parallel = layout.size > PARALLEL
    taken = 1 if parallel else len(table)

    def work(first: int) -> None:
        kernel(table[first : first + taken], *args)

    share(work, range(0, len(table), taken), parallel)


def _run(layout: Layout, of_lines: Callable[..., None], of_runs: Callable[..., None], *args: Any) -> None:
    run(layout, of_runs if layout.long else of_lines, *args)


def laid(layout: Layout, *vectors: Any) -> list[Any]:
    """Vectors of features, with every number repeated for its inner elements where lines run over those."""
    if layout.long or layout.inner == 1:
        return list(vectors)
    return [None if vector is None else np.repeat(vector, layout.inner) for vector in vectors]


def statistics(layout: Layout, x: Array, centres: Array, distances: Array, squares: Array) -> None:
    """As `numpy_kernels.statistics`."""
    _run(layout, _statistics_of_lines, _statistics_of_runs, x.reshape(-1), centres, distances, squares)


@_compiled
def _statistics_of_lines(table, x, centres, distances, squares):  # type: ignore[no-untyped-def]
    for start, rows, features, inner, stride, _, first, part in table:
        width = features * inner
        centre, s, q = np.empty(width), np.zeros(width), np.zeros(width)
        for j in range(width):
            centre[j] = x[start + j // inner * inner]
        for row in range(0, rows - ABREAST + 1, ABREAST):
            a = start + row * stride
            r0, r1, r2, r3 = x[a:], x[a + stride :], x[a + 2 * stride :], x[a + 3 * stride :]
            for j in range(width):
                t0, t1, t2, t3 = r0[j] - centre[j], r1[j] - centre[j], r2[j] - centre[j], r3[j] - centre[j]
                s[j] += (t0 + t1) + (t2 + t3)
                q[j] += (t0 * t0 + t1 * t1) + (t2 * t2 + t3 * t3)
        for row in range(rows - rows % ABREAST, rows):
            r = x[start + row * stride :]
            for j in range(width):
                t = r[j] - centre[j]
                s[j] += t
                q[j] += t * t
        for f in range(features):
            a, b = f * inner, (f + 1) * inner
            distance = s[a:b].sum() / (rows * inner)
            centres[part, first + f], distances[part, first + f] = centre[a], distance
            squares[part, first + f] = q[a:b].sum() - rows * inner * distance * distance


@_compiled
def _statistics_of_runs(table, x, centres, distances, squares):  # type: ignore[no-untyped-def]
    for start, rows, features, inner, stride, step, first, part in table:
        for f in range(features):
            centre = np.float64(x[start + f * step])
            s = q = 0.0
            for row in range(rows):
                a = start + row * stride + f * step
                r = x[a : a + inner]
                for i in range(inner):
                    t = r[i] - centre
                    s += t
                    q += t * t
            distance = s / (rows * inner)
            centres[part, first + f], distances[part, first + f] = centre, distance
            squares[part, first + f] = q - rows * inner * distance * distance


def normalise(layout: Layout, x: Array, y: Array, means: Any, scales: Array, shifts: Array) -> None:
    """As `numpy_kernels.normalise`."""
    vectors = laid(layout, means, scales, shifts)
    _run(layout, _normalise_lines, _normalise_runs, x.reshape(-1), y.reshape(-1), *vectors)


@_compiled
def _normalise_lines(table, x, y, means, scales, shifts):  # type: ignore[no-untyped-def]
    for start, rows, features, inner, stride, _, first, _ in table:
        width, place = features * inner, first * inner
        s, h = scales[place : place + width], shifts[place : place + width]
        for row in range(rows):
            a = start + row * stride
            r, out = x[a : a + width], y[a : a + width]
            if means is None:
                for j in range(width):
                    out[j] = r[j] * s[j] + h[j]
            else:
                m = means[place : place + width]
                for j in range(width):
                    out[j] = (r[j] - m[j]) * s[j] + h[j]


@_compiled
def _normalise_runs(table, x, y, means, scales, shifts):  # type: ignore[no-untyped-def]
    for start, rows, features, inner, stride, step, first, _ in table:
        for row in range(rows):
            for f in range(features):
                a = start + row * stride + f * step
                m = 0.0 if means is None else means[first + f]
                s, h = scales[first + f], shifts[first + f]
                r, out = x[a : a + inner], y[a : a + inner]
                for i in range(inner):
                    out[i] = (r[i] - m) * s + h


def backward_sums(layout: Layout, g: Array, x: Array, means: Any, totals: Array, weighted: Array) -> None:
    """As `numpy_kernels.backward_sums`."""
    arrays = g.reshape(-1), x.reshape(-1), *laid(layout, means)
    _run(layout, _sums_of_lines, _sums_of_runs, *arrays, totals, weighted)


@_compiled
def _sums_of_lines(table, g, x, means, totals, weighted):  # type: ignore[no-untyped-def]
    for start, rows, features, inner, stride, _, first, part in table:
        width, place = features * inner, first * inner
        total, weight = np.zeros(width), np.zeros(width)
        m = np.zeros(width) if means is None else means[place:]
        for row in range(0, rows - ABREAST + 1, ABREAST):
            a = start + row * stride
            r0, r1, r2, r3 = x[a:], x[a + stride :], x[a + 2 * stride :], x[a + 3 * stride :]
            h0, h1, h2, h3 = g[a:], g[a + stride :], g[a + 2 * stride :], g[a + 3 * stride :]
            for j in range(width):
                d0, d1, d2, d3 = np.float64(h0[j]), np.float64(h1[j]), np.float64(h2[j]), np.float64(h3[j])
                total[j] += (d0 + d1) + (d2 + d3)
                weight[j] += (d0 * (r0[j] - m[j]) + d1 * (r1[j] - m[j])) + (d2 * (r2[j] - m[j]) + d3 * (r3[j] - m[j]))
        for row in range(rows - rows % ABREAST, rows):
            a = start + row * stride
            r, h = x[a:], g[a:]
            for j in range(width):
                total[j] += h[j]
                weight[j] += np.float64(h[j]) * (r[j] - m[j])
        for f in range(features):
            a, b = f * inner, (f + 1) * inner
            totals[part, first + f], weighted[part, first + f] = total[a:b].sum(), weight[a:b].sum()


@_compiled
def _sums_of_runs(table, g, x, means, totals, weighted):  # type: ignore[no-untyped-def]
    for start, rows, features, inner, stride, step, first, part in table:
        for f in range(features):
            m = 0.0 if means is None else means[first + f]
            total = weight = 0.0
            for row in range(rows):
                a = start + row * stride + f * step
                r, h = x[a : a + inner], g[a : a + inner]
                for i in range(inner):
                    d = np.float64(h[i])
                    total += d
                    weight += d * (r[i] - m)
            totals[part, first + f], weighted[part, first + f] = total, weight


def input_gradient(
    layout: Layout, g: Array, x: Array, dx: Array, means: Any, directs: Array, slopes: Array, constants: Array
) -> None:
    """As `numpy_kernels.input_gradient`."""
    arrays = [array.reshape(-1) for array in (g, x, dx)]
    vectors = laid(layout, means, directs, slopes, constants)
    _run(layout, _gradient_of_lines, _gradient_of_runs, *arrays, *vectors)


@_compiled
def _gradient_of_lines(table, g, x, dx, means, directs, slopes, constants):  # type: ignore[no-untyped-def]
    for start, rows, features, inner, stride, _, first, _ in table:
        width, place = features * inner, first * inner
        d, k, c = directs[place : place + width], slopes[place : place + width], constants[place : place + width]
        for row in range(rows):
            a = start + row * stride
            r, h, out = x[a : a + width], g[a : a + width], dx[a : a + width]
            if means is None:
                for j in range(width):
                    out[j] = h[j] * d[j] + r[j] * k[j] + c[j]
            else:
                m = means[place : place + width]
                for j in range(width):
                    out[j] = h[j] * d[j] + (r[j] - m[j]) * k[j] + c[j]


@_compiled
def _gradient_of_runs(table, g, x, dx, means, directs, slopes, constants):  # type: ignore[no-untyped-def]
    for start, rows, features, inner, stride, step, first, _ in table:
        for row in range(rows):
            for f in range(features):
                a = start + row * stride + f * step
                m = 0.0 if means is None else means[first + f]
                d, k, c = directs[first + f], slopes[first + f], constants[first + f]
                r, h, out = x[a : a + inner], g[a : a + inner], dx[a : a + inner]
                for i in range(inner):
                    out[i] = h[i] * d + (r[i] - m) * k + c
