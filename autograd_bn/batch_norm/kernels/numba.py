"""The kernels in numba, in double precision registers. Imported when first needed.

`sums` and `affine` compute one tile, which threads can share; `forward` and `backward` are all steps in one call. Most
sums may be reordered, so that they vectorise; numbers that are not finite stay what they are. A first call should not
take long, so that nothing is compiled which is not called: `runs`, whether rows are summed along, is True or None, and
`g` may be None, each with code of its own. What functions share is inlined into them, which compiles it once; but what
must not be reordered is a function of its own.
"""

import sys
import threading
from hashlib import sha256
from typing import Any

import numpy as np
from numba import config, njit
from numba.core import event
from numba.core.caching import IndexDataCacheFile

from ...engine.node import Array
from . import LARGEST
from .layout import Layout, Tile

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


class _Files(IndexDataCacheFile):
    """What is compiled, on disk. Numba names a file by the next free number, which two processes may take at once: then
    one finds the other's code under its own types, and code without `g` runs in silence where there is one.
    """

    def save(self: Any, key: Any, data: Any) -> None:
        """In a file named by its key, which no other writes; where two write the index at once, one compiles anew."""
        name = self._data_name(int(sha256(repr((key, self._source_stamp)).encode()).hexdigest()[:16], 16))
        self._save_data(name, data)
        self._save_index({**self._load_index(), key: name})


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


def sums(layout: Layout, tile: Tile, x: Array, g: Any, centre: Any, *_: Any) -> Array:
    """As `numpy.sums`."""
    place = _place(tile, x)
    lanes = np.empty((2, place[1] if layout.runs else place[2]))
    means = np.zeros(lanes.shape[1]) if centre is None else centre.reshape(-1)[tile.lanes].astype(float, copy=False)
    _sums(layout.runs or None, place, None if g is None else line(g), line(x), means, lanes)
    return lanes


def affine(layout: Layout, tile: Tile, x: Array, g: Any, y: Array, lanes: list[Any], _: Any) -> None:
    """As `numpy.affine`."""
    lanes = [np.zeros_like(lanes[1]) if lane is None else lane for lane in lanes]
    rows = np.stack([lane.reshape(-1)[tile.lanes] for lane in lanes], dtype=float)  # given ones may be of float32
    _affine(layout.runs or None, _place(tile, x), None if g is None else line(g), line(x), line(y), rows)


def line(array: Array) -> Array:
    """A contiguous array as one line of numbers, of the one type that kernels are compiled for."""
    flat = array.reshape(-1)
    return flat if flat.flags.writeable else np.asarray(_Unlocked(flat))


class _Unlocked:
    """Read-only memory in the guise of any other: numba would compile its kernels anew for it, which only read it."""

    def __init__(self, array: Array) -> None:
        self.array = array
        data = (array.__array_interface__["data"][0], False)
        self.__array_interface__ = {**array.__array_interface__, "data": data}


def _place(tile: Tile, x: Array) -> tuple[int, int, int, int]:
    """Where a tile starts in the matrix as one line, its rows and columns, and how far it is from row to row."""
    (rows, columns), width = tile[:2], x.shape[1]
    return rows.start * width + columns.start, rows.stop - rows.start, columns.stop - columns.start, width


@_exact
def _centre(runs, shape, x, centres):  # type: ignore[no-untyped-def]
    """The first number of a feature, plus the mean distance of 16 from it, if there are as many: exact where they are
    equal.
    """
    rows, width, inner = shape
    step, stride, n = (inner, width, rows) if runs is None else (width, 1, width)
    n = 16 if n >= 16 else 1
    centres[:] = 0
    for i in range(1, n):
        for f in range(len(centres)):
            at = np.uint64(f * step)
            centres[f] += x[at + np.uint64(i * stride)] - np.float64(x[at])
    for f in range(len(centres)):
        centres[f] = x[f * step] + centres[f] / n


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
def _lay(vectors, inner, lanes):  # type: ignore[no-untyped-def]
    """Numbers of each feature in its lanes, of which `inner` lie side by side; for rows of them."""
    features = vectors.shape[1]
    for k in range(len(vectors)):
        for first in range(0, lanes.shape[1], features * inner):
            for f in range(features):
                for i in range(inner):
                    lanes[k, first + f * inner + i] = vectors[k, f]


@_exact
def _gather(lanes, inner, sums):  # type: ignore[no-untyped-def]
    """The sums for each feature of what is in its lanes, as `_add` adds."""
    features = sums.shape[1]
    for k in range(len(lanes)):
        for f in range(features):
            if features == lanes.shape[1]:
                sums[k, f] = lanes[k, f]
                continue
            total = low = 0.0
            for first in range(f * inner, lanes.shape[1], features * inner):
                for i in range(first, first + inner):
                    term = lanes[k, i]
                    new = total + term
                    change = new - total
                    low += (total - (new - change)) + (term - change)
                    total = new
            sums[k, f] = total + low


# The sums of g and of g * (x - mean), with x - mean itself where g is None. Indices without a sign spare numba the
# question whether they count from the end, which would keep loops from being vectorised, and slices, which are slow to
# compile.


@_inlined
def _terms(g, x, i, m):  # type: ignore[no-untyped-def]
    t = x[i] - m
    d = t if g is None else np.float64(g[i])
    return d, d * t


@_inlined
def _sums_of_lines(place, g, x, m, totals):  # type: ignore[no-untyped-def]
    start, rows, columns, stride = place
    width, step = np.uint64(columns), np.uint64(stride)
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
    for j in range(width):
        totals[0, j], totals[1, j] = sums[j] + lows[j], sums[width + j] + lows[width + j]


@_inlined
def _sums_of_runs(place, g, x, mean, totals):  # type: ignore[no-untyped-def]
    start, rows, columns, stride = place
    sums, lows, both = np.zeros(2), np.zeros(2), np.empty(2)
    for row in range(rows):
        m = mean[row]
        sums[:] = 0
        lows[:] = 0
        for first in range(0, columns, RUN):
            s = w = 0.0
            a = np.uint64(start + row * stride + first)
            for i in range(np.uint64(min(RUN, columns - first))):
                d, t = _terms(g, x, a + i, m)
                s += d
                w += t
            both[0], both[1] = s, w
            _add(sums, lows, both)
        totals[0, row], totals[1, row] = sums[0] + lows[0], sums[1] + lows[1]


@_compiled
def _sums(runs, place, g, x, mean, totals):  # type: ignore[no-untyped-def]
    if runs is None:
        _sums_of_lines(place, g, x, mean, totals)
    else:
        _sums_of_runs(place, g, x, mean, totals)


@_inlined
def _value(g, d, x, i, m, k, c):  # type: ignore[no-untyped-def]
    t = (x[i] - m) * k + c
    return t if g is None else g[i] * d + t


@_compiled
def _affine(runs, place, g, x, y, lanes):  # type: ignore[no-untyped-def]
    """y = (x - lanes[0]) * lanes[1] + lanes[2] + g * lanes[3]."""
    start, rows, columns, stride = place
    ms, ks, cs, ds = lanes[0], lanes[1], lanes[2], lanes[-1]
    for row in range(rows):
        a = np.uint64(start + row * stride)
        if runs is None:
            for j in range(np.uint64(columns)):
                y[a + j] = _value(g, ds[j], x, a + j, ms[j], ks[j], cs[j])
        else:
            m, k, c, d = ms[row], ks[row], cs[row], ds[row]
            for j in range(np.uint64(columns)):
                y[a + j] = _value(g, d, x, a + j, m, k, c)


@_exact
def forward(shape, x, y, gamma, beta, kept, eps):  # type: ignore[no-untyped-def]
    """All steps of the forward pass: `kept` gets rows of centres, distances, variances, scales and gamma.

    `shape` has the matrix's rows and columns, how many lanes there are, how many of a feature side by side, and `runs`.
    False, and no result, where a variance is not below `LARGEST`.
    """
    rows, width, count, inner, runs = shape
    features, place = kept.shape[1], (0, rows, width, width)
    n, vectors, lanes, sums = len(x) // features, np.empty((3, features)), np.empty((3, count)), np.empty((2, features))
    _centre(runs, (rows, width, inner), x, kept[0])
    passes = 2
    while passes:  # no range(2), which LLVM would unroll, and compile all of it twice
        _lay(kept[:1], inner, lanes[2:])
        _sums(runs, place, None, x, lanes[2], lanes)
        _gather(lanes[:2], inner, sums)
        far = False
        for f in range(features):
            kept[1, f] = sums[0, f] / n
            correction = n * kept[1, f] * kept[1, f]
            far = far or correction > sums[1, f] - correction
            kept[2, f] = max((sums[1, f] - correction) / n, 0.0)
        passes = passes - 1 if far else 0
        if passes:  # squares that cancel are summed again, about the mean
            for f in range(features):
                kept[0, f] += kept[1, f]
    fits = True
    for f in range(features):
        scale = 1 / np.sqrt(kept[2, f] + eps)
        kept[3, f], kept[4, f] = scale, gamma[f]
        vectors[0, f], vectors[1, f] = kept[0, f], scale * kept[4, f]
        vectors[2, f] = beta[f] - kept[1, f] * vectors[1, f]
        fits = fits and kept[2, f] < LARGEST
    if fits:
        _lay(vectors, inner, lanes)
        _affine(runs, place, None, x, y, lanes)
    return fits


@_exact
def backward(shape, g, x, dx, kept, through, parameters):  # type: ignore[no-untyped-def]
    """All steps of the backward pass; the rows of `parameters` get the gradients of beta and gamma. False where a
    product of float64 left the range.
    """
    rows, width, count, inner, runs = shape
    features, place = kept.shape[1], (0, rows, width, width)
    n, vectors, lanes, sums = len(x) // features, np.empty((4, features)), np.empty((4, count)), np.empty((2, features))
    _lay(kept[:1], inner, lanes[2:])
    _sums(runs, place, g, x, lanes[2], lanes)
    _gather(lanes[:2], inner, sums)
    fits = True
    for f in range(features):
        distance, scale, total = kept[1, f], kept[3, f], sums[0, f]
        weighted = (sums[1, f] - distance * total) * scale
        parameters[0, f], parameters[1, f] = total, weighted
        direct = scale * kept[4, f]
        slope = -direct * scale * (weighted * (through[1] / n))
        vectors[0, f], vectors[1, f], vectors[3, f] = kept[0, f], slope, direct
        vectors[2, f] = -direct * (total * (through[0] / n)) - distance * slope
        fits = fits and np.isfinite(weighted)
    _lay(vectors, inner, lanes)
    _affine(runs, place, g, x, dx, lanes)
    return fits


_KEPT: tuple[Any, ...] = (_centre, _add, _lay, _gather, _sums, _affine, forward, backward)
for _kernel in () if config.DISABLE_JIT else _KEPT:  # type: ignore[attr-defined]
    _kernel._cache._cache_file.__class__ = _Files
