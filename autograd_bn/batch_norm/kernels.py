"""The arithmetic of the fused node on plain arrays, in four steps between which a collective can stand.

Statistics and parameters have the shape of `x` with 1s for `axes`. Exact rationals and empty arrays go through the
textbook's formulas; floats through the blocked kernels of a backend.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ..engine.node import Array
from ..engine.operations import count, exact_sqrt
from . import numpy_kernels
from .numpy_kernels import Mean, wide


def _by_the_book(x: Array) -> bool:
    return x.dtype == object or x.size == 0


def statistics(x: Array, axes: tuple[int, ...]) -> tuple[Mean, Array]:
    """The mean over `axes`, in two parts, and the sum of squares about it, in a dtype that is wider than `x`'s."""
    if _by_the_book(x):
        mean = np.sum(x, axis=axes, keepdims=True, dtype=wide(x.dtype)) / max(count(x.shape, axes), 1)
        return (mean, mean * 0), np.sum((x - mean) ** 2, axis=axes, keepdims=True)
    return numpy_kernels.statistics(x, axes)


def merge(parts: Sequence[tuple[int, Array]], dtype: np.dtype[Any]) -> tuple[int, Mean, Array]:
    """Count, mean and squares of several parts of an `x` of `dtype`, from those of each: its count, and the mean's
    two parts and the squares as one stack. None is empty, or all are.
    """
    counts = [n for n, _ in parts]
    if not any(counts):
        return 0, (parts[0][1][0], parts[0][1][1]), parts[0][1][2]
    highs, lows, squares = (np.stack([statistics[i] for _, statistics in parts]) for i in range(3))
    distance, square = numpy_kernels.merge(counts, (highs - highs[0]) + lows, squares)
    return sum(counts), numpy_kernels.split(highs[0].astype(dtype), distance), square


def reciprocal_deviation(var: Array, eps: Any, x: Array) -> Array:
    """1 / sqrt(var + eps), in the dtype in which statistics of `x` are computed."""
    if x.dtype == object:
        return np.asarray(1 / exact_sqrt(np.asarray(var + eps)))
    with np.errstate(all="ignore"):
        return 1 / np.sqrt(np.asarray(var, wide(x.dtype)) + eps)  # type: ignore[no-any-return]


def normalise(x: Array, axes: tuple[int, ...], mean: Mean, scale: Array, gamma: Any, beta: Any) -> Array:
    """(x - mean) * scale * gamma + beta; `gamma` and `beta` may be None."""
    high, low = mean
    dtype = np.result_type(*[p.dtype for p in (x, gamma, beta) if p is not None])
    with np.errstate(all="ignore"):
        scale = scale if gamma is None else scale * gamma
        shift = -low * scale if beta is None else beta - low * scale
        if _by_the_book(x):
            return ((x - high) * scale + shift).astype(dtype)  # type: ignore[no-any-return]
    return numpy_kernels.normalise(x, axes, high, scale, shift, dtype)


def backward_sums(g: Array, x: Array, axes: tuple[int, ...], mean: Mean, scale: Array) -> tuple[Array, Array]:
    """The sums over `axes` of `g` and of `g` times the normalised input: the gradients of beta and gamma."""
    high, low = mean
    if _by_the_book(x):
        total, weighted = (np.sum(s, axis=axes, keepdims=True, dtype=wide(x.dtype)) for s in (g, g * (x - high)))
    else:
        total, weighted = numpy_kernels.backward_sums(g, x, axes, high)
    with np.errstate(all="ignore"):
        return total, (weighted - low * total) * scale


def input_gradient(
    g: Array,
    x: Array,
    axes: tuple[int, ...],
    mean: Mean,
    scale: Array,
    gamma: Any,
    average: Any,
    weighted_average: Any,
) -> Array:
    """gamma * scale * (g - average - normalised input * weighted_average); None for the average of a cut path."""
    high, low = mean
    slope = constant = None
    with np.errstate(all="ignore"):
        direct = scale if gamma is None else scale * gamma
        if weighted_average is not None:
            slope = -direct * scale * weighted_average
            constant = -low * slope
        if average is not None:
            constant = (0 if constant is None else constant) - direct * average
    if _by_the_book(x):
        dx = g * direct
        dx = dx if slope is None else dx + (x - high) * slope
        return (dx if constant is None else dx + constant).astype(x.dtype)
    return numpy_kernels.input_gradient(g, x, axes, high, direct, slope, constant)
