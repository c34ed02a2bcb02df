"""The kernels in numba, in double precision registers. Imported when first needed.

The three steps work on a table of blocks, which threads can share; `forward` and `backward` are all steps in one call,
on the array as one block. Most sums may be reordered, so that they vectorise; numbers that are not finite stay what
they are. A first call should not take long, so that nothing is compiled which is not called: `runs`, whether lines are
those of `inner`, is True or None, and `g` may be None, each with code of its own. What functions share is inlined into
them, which compiles it once; but what must not be reordered is a function of its own.
"""

import sys
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
from numba import njit
from numba.core import event

from ...engine.node import Array
from . import LARGEST, thresholds
from .blocks import Layout, line
from .threads import share

# How many rows are summed at a time, for fewer stores; and how many, before their sums are added to the others.
ABREAST = 4
CHUNK = 64
# How many numbers of one run.
RUN = 1 << 14
# After how many seconds of compiling a word is due.
PATIENCE = 2.0

_exact = njit(nogil=True, cache=True, error_model="numpy")
_compiled = njit(nogil=True, cache=True, error_model="numpy", fastmath={"contract", "reassoc"})
_inlined = njit(inline="always")


class _Patience(event.Listener):
    """Says on stderr, once, that kernels are compiled, where that keeps somebody waiting."""

    def __init__(self) -> None:
        self.running = 0  # one compilation makes others, in one thread at a time
        self.timer: threading.Timer | None = None
        self.said = False

    def on_start(self, begun: event.Event) -> None:
        """A compilation begins, of ours or of the user's own."""
        if begun.data["dispatcher"].py_func.__module__ == __name__:
            self.running += 1
            if self.running == 1 and not self.said:
                self.timer = threading.Timer(PATIENCE, self.say)
                self.timer.daemon = True
                self.timer.start()

    def on_end(self, ended: event.Event) -> None:
        """It has ended, or failed."""
        if ended.data["dispatcher"].py_func.__module__ == __name__:
            self.running -= 1
            if self.running == 0 and self.timer is not None:
                self.timer.cancel()

    def say(self) -> None:
        """The one line."""
        self.said = True
        text = "numba is compiling batch norm's kernels, which takes some seconds and is kept on disk"
        print(f"autograd_bn: {text}", file=sys.stderr, flush=True)


event.register("numba:compile", _Patience())  # type: ignore[no-untyped-call]


def run(layout: Layout, kernel: Callable[..., None], *args: Any) -> None:
    """Call a kernel on the table's blocks: one at a time by several threads, or all at once."""
    table, parallel = layout.table, layout.size >= thresholds.SHARED_NUMBA
    taken = 1 if parallel else len(table)

    def work(first: int) -> None:
        kernel(table[first : first + taken], layout.long or None, *args)

    share(work, range(0, len(table), taken), parallel)


def statistics(layout: Layout, x: Array, sums: Array) -> None:
    """As `numpy.statistics`."""
    run(layout, _statistics, line(x), sums)


def backward_sums(layout: Layout, g: Array, x: Array, means: Any, sums: Array) -> None:
    """As `numpy.backward_sums`."""
    means = np.zeros(layout.features) if means is None else means.astype(float, copy=False)
    run(layout, _backward_sums, line(g), line(x), means, sums)


def affine(layout: Layout, views: list[Array], vectors: list[Any]) -> None:
    """As `numpy.affine`."""
    x, y, *rest = [line(view) for view in views]
    zeros = np.zeros(layout.features)  # given statistics of float32 are not wide yet
    rows = np.stack([zeros if vector is None else vector for vector in vectors], dtype=float)
    run(layout, _affine, rest[0] if rest else None, x, y, rows)


@_exact
def _centre(x, start, step, stride, rows, centres):  # type: ignore[no-untyped-def]
    """The first number of a feature, plus the mean distance of 16 from it, if there are as many: exact where they are
    equal. Features are `step` apart, their numbers `stride`.
    """
    centres[:] = 0
    for row in range(1, 16 if rows >= 16 else 1):
        for f in range(len(centres)):
            at = np.uint64(start + f * step)
            centres[f] += x[at + np.uint64(row * stride)] - np.float64(x[at])
    for f in range(len(centres)):
        centres[f] = x[start + f * step] + centres[f] / 16


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


@_exact
def _spread(vector, inner):  # type: ignore[no-untyped-def]
    """A number for each feature, or for each of its inner elements."""
    lanes = np.empty(len(vector) * inner)
    for i in range(len(lanes)):
        lanes[i] = vector[i // inner]
    return lanes


# The sums of g and of g * (x - mean), with x - mean itself where g is None. Indices without a sign spare numba the
# question whether they count from the end, which would keep loops from being vectorised, and slices, which are slow to
# compile.


@_inlined
def _terms(g, x, i, m):  # type: ignore[no-untyped-def]
    t = x[i] - m
    d = t if g is None else np.float64(g[i])
    return d, d * t


@_inlined
def _sums_of_lines(place, g, x, mean, total, weighted):  # type: ignore[no-untyped-def]
    start, rows, features, inner, stride = place[0], place[1], place[2], place[3], place[4]
    width, step, m = np.uint64(features * inner), np.uint64(stride), (mean if inner == 1 else _spread(mean, inner))
    both, sums, lows = np.empty(2 * width), np.zeros(2 * width), np.zeros(2 * width)
    most = CHUNK if x.itemsize == 4 else CHUNK // 4  # float32 has bits to spare in double
    for chunk in range(0, rows, most):
        both[:] = 0
        end = min(chunk + most, rows)
        odd = end - (end - chunk) % ABREAST
        for row in range(chunk, odd, ABREAST):
            a = np.uint64(start + row * stride)
            for j in range(width):
                i = a + j
                sa, wa = _terms(g, x, i, m[j])
                sb, wb = _terms(g, x, i + step, m[j])
                sc, wc = _terms(g, x, i + step + step, m[j])
                sd, wd = _terms(g, x, i + step + step + step, m[j])
                both[j] += (sa + sb) + (sc + sd)
                both[width + j] += (wa + wb) + (wc + wd)
        for row in range(odd, end):
            a = np.uint64(start + row * stride)
            for j in range(width):
                sa, wa = _terms(g, x, a + j, m[j])
                both[j] += sa
                both[width + j] += wa
        _add(sums, lows, both)
    for f in range(features):
        s = w = 0.0
        for j in range(f * inner, f * inner + inner):
            s += sums[j] + lows[j]
            w += sums[width + np.uint64(j)] + lows[width + np.uint64(j)]
        total[f], weighted[f] = s, w


@_inlined
def _sums_of_runs(place, g, x, mean, total, weighted):  # type: ignore[no-untyped-def]
    start, rows, features, inner, stride, step = place[0], place[1], place[2], place[3], place[4], place[5]
    sums, lows, both = np.zeros(2), np.zeros(2), np.empty(2)
    for f in range(features):
        m = mean[f]
        sums[:] = 0
        lows[:] = 0
        for row in range(rows):
            for first in range(0, inner, RUN):
                s = w = 0.0
                a = np.uint64(start + row * stride + f * step + first)
                for i in range(np.uint64(min(RUN, inner - first))):
                    d, t = _terms(g, x, a + i, m)
                    s += d
                    w += t
                both[0], both[1] = s, w
                _add(sums, lows, both)
        total[f], weighted[f] = sums[0] + lows[0], sums[1] + lows[1]


@_compiled
def _statistics(table, runs, x, sums):  # type: ignore[no-untyped-def]
    for place in table:
        start, rows, features, inner, stride, step, first, part = place
        n, last = rows * inner, first + features
        centre, distance, square = sums[0, part, first:last], sums[1, part, first:last], sums[2, part, first:last]
        if runs is None:
            _centre(x, start, inner, stride, rows, centre)
        else:
            _centre(x, start, step, 1, inner, centre)
        passes = 2
        while passes:  # no range(2), which LLVM would unroll, and compile all of it twice
            if runs is None:
                _sums_of_lines(place, None, x, centre, distance, square)
            else:
                _sums_of_runs(place, None, x, centre, distance, square)
            far = False
            for f in range(features):
                distance[f] /= n
                correction = n * distance[f] * distance[f]
                far = far or correction + correction > square[f]
                square[f] -= correction
            passes = passes - 1 if far else 0
            if passes:  # squares that cancel are summed again, about the mean
                for f in range(features):
                    centre[f] += distance[f]


@_compiled
def _backward_sums(table, runs, g, x, means, sums):  # type: ignore[no-untyped-def]
    for place in table:
        first, last, part = place[6], place[6] + place[2], place[7]
        mean, total, weighted = means[first:last], sums[0, part, first:last], sums[1, part, first:last]
        if runs is None:
            _sums_of_lines(place, g, x, mean, total, weighted)
        else:
            _sums_of_runs(place, g, x, mean, total, weighted)


@_inlined
def _value(g, d, x, i, m, k, c):  # type: ignore[no-untyped-def]
    t = (x[i] - m) * k + c
    return t if g is None else g[i] * d + t


@_compiled
def _affine(table, runs, g, x, y, vectors):  # type: ignore[no-untyped-def]
    """y = (x - vectors[0]) * vectors[1] + vectors[2] + g * vectors[3]."""
    for start, rows, features, inner, stride, step, first, _ in table:
        last = first + features
        ms, ks, cs, ds = vectors[0, first:last], vectors[1, first:last], vectors[2, first:last], vectors[-1, first:last]
        if runs is None:
            if inner > 1:
                ms, ks, cs, ds = _spread(ms, inner), _spread(ks, inner), _spread(cs, inner), _spread(ds, inner)
            for row in range(rows):
                a = np.uint64(start + row * stride)
                for j in range(np.uint64(features * inner)):
                    y[a + j] = _value(g, ds[j], x, a + j, ms[j], ks[j], cs[j])
        else:
            for row in range(rows):
                for f in range(features):
                    a = np.uint64(start + row * stride + f * step)
                    m, k, c, d = ms[f], ks[f], cs[f], ds[f]
                    for j in range(np.uint64(inner)):
                        y[a + j] = _value(g, d, x, a + j, m, k, c)


@_exact
def forward(table, runs, x, y, gamma, beta, kept, eps):  # type: ignore[no-untyped-def]
    """All steps of the forward pass. The rows of `kept` get the mean's two parts, the variance, the scale and gamma.
    False, and no result, where a variance is not below `LARGEST`.
    """
    features = kept.shape[1]
    n, sums, vectors = len(x) // features, np.empty((3, 1, features)), np.empty((3, features))
    _statistics(table, runs, x, sums)
    fits = True
    for f in range(features):
        centre, distance = sums[0, 0, f], sums[1, 0, f]
        high = centre + distance
        low = (centre - high) + distance
        var = max(sums[2, 0, f] / n, 0.0)
        scale = 1 / np.sqrt(var + eps)
        kept[0, f], kept[1, f], kept[2, f], kept[3, f], kept[4, f] = high, low, var, scale, gamma[f]
        vectors[0, f], vectors[1, f] = high, scale * kept[4, f]
        vectors[2, f] = beta[f] - low * vectors[1, f]
        fits = fits and var < LARGEST
    if fits:
        _affine(table, runs, None, x, y, vectors)
    return fits


@_exact
def backward(table, runs, g, x, dx, kept, through, parameters):  # type: ignore[no-untyped-def]
    """All steps of the backward pass; the rows of `parameters` get the gradients of beta and gamma. False where a
    product of float64 left the range.
    """
    features = kept.shape[1]
    n, sums, vectors = len(x) // features, np.empty((2, 1, features)), np.empty((4, features))
    _backward_sums(table, runs, g, x, kept[0], sums)
    fits = True
    for f in range(features):
        low, scale, total = kept[1, f], kept[3, f], sums[0, 0, f]
        weighted = (sums[1, 0, f] - low * total) * scale
        parameters[0, f], parameters[1, f] = total, weighted
        direct = scale * kept[4, f]
        slope = -direct * scale * (weighted * (through[1] / n))
        vectors[0, f], vectors[1, f], vectors[3, f] = kept[0, f], slope, direct
        vectors[2, f] = -direct * (total * (through[0] / n)) - low * slope
        fits = fits and np.isfinite(weighted)
    _affine(table, runs, g, x, dx, vectors)
    return fits
