"""The kernels in numba: one pass over memory each, in double precision registers. Imported when first needed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numba import njit

from ..engine.node import Array
from .layout import Layout
from .threads import share

# Below this many elements a second thread costs more than it saves.
PARALLEL = 1 << 15
# How many blocks a thread takes at a time: enough to make the call's cost small.
TAKEN = 2

# Sums may be reordered, so that they vectorise; numbers that are not finite stay what they are.
_compiled = njit(nogil=True, cache=True, error_model="numpy", fastmath={"contract", "reassoc"})


def _run(layout: Layout, kernel: Callable[..., None], *args: Any) -> None:
    table = layout.table

    def work(first: int) -> None:
        kernel(table[first : first + TAKEN], *args)

    share(work, range(0, len(table), TAKEN), layout.size > PARALLEL)


def _flat(*arrays: Array) -> list[Array]:
    return [array.reshape(-1) for array in arrays]


def statistics(layout: Layout, x: Array, centres: Array, sums: Array, squares: Array) -> None:
    """As `numpy_kernels.statistics`."""
    kernel = _statistics_of_runs if layout.long else _statistics_of_lines
    _run(layout, kernel, *_flat(x), centres, sums, squares)


@_compiled
def _statistics_of_lines(table, x, centres, sums, squares):  # type: ignore[no-untyped-def]
    for block in table:
        start, lines, width, _, stride, _, _, row, _, column, features, inner = block
        c = x[start : start + width].astype(np.float64)
        s, q = np.zeros(width), np.zeros(width)
        for line in range(lines):
            a = start + line * stride
            r = x[a : a + width]
            for j in range(width):
                t = r[j] - c[j]
                s[j] += t
                q[j] += t * t
        j = 0
        for repeat in range(width // (features * inner)):
            for f in range(features):
                for i in range(inner):
                    k = row + repeat * inner + i
                    centres[k, column + f], sums[k, column + f], squares[k, column + f] = c[j], s[j], q[j]
                    j += 1


@_compiled
def _statistics_of_runs(table, x, centres, sums, squares):  # type: ignore[no-untyped-def]
    for block in table:
        start, outer, features, inner, stride, step, _, row, _, column, _, _ = block
        for o in range(outer):
            for f in range(features):
                a = start + o * stride + f * step
                r = x[a : a + inner]
                c = np.float64(r[0])
                s = q = 0.0
                for i in range(inner):
                    t = r[i] - c
                    s += t
                    q += t * t
                centres[row + o, column + f], sums[row + o, column + f], squares[row + o, column + f] = c, s, q


def normalise(layout: Layout, x: Array, y: Array, means: Any, scales: Array, shifts: Array) -> None:
    """As `numpy_kernels.normalise`."""
    kernel = _normalise_runs if layout.long else _normalise_lines
    _run(layout, kernel, *_flat(x, y, _or_zeros(means, scales), scales, shifts))


def _or_zeros(means: Any, like: Array) -> Array:
    return np.zeros_like(like) if means is None else means


@_compiled
def _normalise_lines(table, x, y, means, scales, shifts):  # type: ignore[no-untyped-def]
    for block in table:
        start, lines, width, _, stride, _, place, _, _, _, _, _ = block
        m, s, h = means[place : place + width], scales[place : place + width], shifts[place : place + width]
        for line in range(lines):
            a = start + line * stride
            r, out = x[a : a + width], y[a : a + width]
            for j in range(width):
                out[j] = (r[j] - m[j]) * s[j] + h[j]


@_compiled
def _normalise_runs(table, x, y, means, scales, shifts):  # type: ignore[no-untyped-def]
    for block in table:
        start, outer, features, inner, stride, step, place, _, _, _, _, _ = block
        for o in range(outer):
            for f in range(features):
                a = start + o * stride + f * step
                m, s, h = means[place + f], scales[place + f], shifts[place + f]
                r, out = x[a : a + inner], y[a : a + inner]
                for i in range(inner):
                    out[i] = (r[i] - m) * s + h


def backward_sums(layout: Layout, g: Array, x: Array, means: Any, totals: Array, weighted: Array) -> None:
    """As `numpy_kernels.backward_sums`."""
    kernel = _sums_of_runs if layout.long else _sums_of_lines
    means = np.zeros(layout.laid, totals.dtype) if means is None else means
    _run(layout, kernel, *_flat(g, x, means), totals, weighted)


@_compiled
def _sums_of_lines(table, g, x, means, totals, weighted):  # type: ignore[no-untyped-def]
    for block in table:
        start, lines, width, _, stride, _, place, _, part, column, features, inner = block
        m = means[place : place + width]
        total, weight = np.zeros(width), np.zeros(width)
        for line in range(lines):
            a = start + line * stride
            r, h = x[a : a + width], g[a : a + width]
            for j in range(width):
                d = np.float64(h[j])
                total[j] += d
                weight[j] += d * (r[j] - m[j])
        totals[part, column : column + features] = 0
        weighted[part, column : column + features] = 0
        j = 0
        for _ in range(width // (features * inner)):
            for f in range(features):
                for _ in range(inner):
                    totals[part, column + f] += total[j]
                    weighted[part, column + f] += weight[j]
                    j += 1


@_compiled
def _sums_of_runs(table, g, x, means, totals, weighted):  # type: ignore[no-untyped-def]
    for block in table:
        start, outer, features, inner, stride, step, place, _, part, column, _, _ = block
        totals[part, column : column + features] = 0
        weighted[part, column : column + features] = 0
        for o in range(outer):
            for f in range(features):
                a = start + o * stride + f * step
                r, h = x[a : a + inner], g[a : a + inner]
                m = means[place + f]
                total = weight = 0.0
                for i in range(inner):
                    d = np.float64(h[i])
                    total += d
                    weight += d * (r[i] - m)
                totals[part, column + f] += total
                weighted[part, column + f] += weight


def input_gradient(
    layout: Layout, g: Array, x: Array, dx: Array, means: Any, directs: Array, slopes: Array, constants: Array
) -> None:
    """As `numpy_kernels.input_gradient`."""
    kernel = _gradient_of_runs if layout.long else _gradient_of_lines
    _run(layout, kernel, *_flat(g, x, dx, _or_zeros(means, directs), directs, slopes, constants))


@_compiled
def _gradient_of_lines(table, g, x, dx, means, directs, slopes, constants):  # type: ignore[no-untyped-def]
    for block in table:
        start, lines, width, _, stride, _, place, _, _, _, _, _ = block
        m, d = means[place : place + width], directs[place : place + width]
        k, c = slopes[place : place + width], constants[place : place + width]
        for line in range(lines):
            a = start + line * stride
            r, h, out = x[a : a + width], g[a : a + width], dx[a : a + width]
            for j in range(width):
                out[j] = h[j] * d[j] + (r[j] - m[j]) * k[j] + c[j]


@_compiled
def _gradient_of_runs(table, g, x, dx, means, directs, slopes, constants):  # type: ignore[no-untyped-def]
    for block in table:
        start, outer, features, inner, stride, step, place, _, _, _, _, _ = block
        for o in range(outer):
            for f in range(features):
                a = start + o * stride + f * step
                m, d, k, c = means[place + f], directs[place + f], slopes[place + f], constants[place + f]
                r, h, out = x[a : a + inner], g[a : a + inner], dx[a : a + inner]
                for i in range(inner):
                    out[i] = h[i] * d + (r[i] - m) * k + c
