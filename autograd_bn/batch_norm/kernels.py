"""The arithmetic of the fused node on plain arrays."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..engine.operations import rsqrt

Array = np.ndarray[Any, np.dtype[Any]]


def statistics(x: Array, axes: tuple[int, ...]) -> tuple[Array, Array]:
    """The mean and the biased variance over `axes`, which stay as axes of length 1."""
    mean = np.mean(x, axis=axes, keepdims=True)
    deviation = x - mean
    return mean, np.mean(deviation * deviation, axis=axes, keepdims=True)


def normalise(x: Array, mean: Array, var: Array, eps: Any, gamma: Any, beta: Any) -> tuple[Array, Array]:
    """The output of batch norm and 1 / sqrt(var + eps); `gamma` and `beta` may be None."""
    scale = rsqrt(np.asarray(var + eps))
    y = (x - mean) * scale
    if gamma is not None:
        y = y * gamma
    if beta is not None:
        y = y + beta
    return y, scale


def backward_sums(g: Array, x: Array, mean: Array, scale: Array, axes: tuple[int, ...]) -> tuple[Array, Array]:
    """The sums over `axes` of `g` and of `g` times the normalised input: the gradients of beta and gamma."""
    return np.sum(g, axis=axes, keepdims=True), np.sum(g * ((x - mean) * scale), axis=axes, keepdims=True)


def input_gradient(
    g: Array, x: Array, mean: Array, scale: Array, gamma: Any, average: Any, weighted_average: Any
) -> Array:
    """Gamma * scale * (g - average - normalised input * weighted_average); 0 for the average of a cut path."""
    out = (g - average - ((x - mean) * scale) * weighted_average) * scale
    return out if gamma is None else out * gamma  # type: ignore[no-any-return]
