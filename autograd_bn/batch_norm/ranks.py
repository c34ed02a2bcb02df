"""The statistics of a batch whose rows lie on the ranks of an MPI job, in both forms."""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from typing import Any

import numpy as np

from .. import engine as ag
from ..distributed.collectives import allreduce, exchange
from ..engine import Tensor
from ..engine.node import Array
from ..engine.operations import count
from . import arithmetic
from .arithmetic import Mean


def weighted_mean(x: Any, axes: tuple[int, ...], stop: frozenset[str], comm: Any) -> tuple[int, Callable[..., Any]]:
    """How many values of all ranks have one mean, and a `mean` over them.

    It weighs each rank's own mean with its part of the values, a recorded constant.
    """
    own: Any = np.full((1,) * x.ndim, Fraction(count(x.shape, axes)), dtype=np.result_type(x.dtype, float))
    if isinstance(x, Tensor):
        own = ag.as_tensor(own, name="count")
    total = allreduce(own, comm, _Call("composed", x, axes, stop))
    n = _at_least_two(int(total.item()))
    part = ag.divide(own, total if n else 1)
    if part.dtype != x.dtype:
        part = part.astype(x.dtype)

    def mean(x: Any, axes: tuple[int, ...], keepdims: bool) -> Any:
        reduce = ag.mean if count(x.shape, axes) else ag.sum  # the mean of nothing is not a number
        return allreduce(ag.multiply(reduce(x, axes, keepdims=keepdims), part), comm)

    return n, mean


def statistics(x: Array, axes: tuple[int, ...], stop: frozenset[str], comm: Any) -> tuple[Mean, Array, int]:
    """Mean, sum of squares about it, and count of every rank's values: one exchange, merged in rank order."""
    (high, low), own, _ = arithmetic.statistics(x, axes)
    mine = np.stack((low if high is None else high, low * (high is not None), own))
    parts = exchange(comm, _Call("fused", x, axes, stop), (count(x.shape, axes), mine))
    counts = np.array([n for n, _ in parts if n] or [1])
    highs, lows, squares = np.stack([values for n, values in parts if n] or [parts[0][1]], axis=1)
    n = _at_least_two(sum(n for n, _ in parts))
    distance, square = arithmetic.merge(counts.reshape(-1, *[1] * x.ndim), (highs - highs[0]) + lows, squares)
    return Mean.at(highs[0], distance), square, n


def sums(total: Any, weighted: Any, comm: Any) -> tuple[Any, Any]:
    """Two sums over the rows of every rank, in one exchange."""
    both = allreduce(ag.stack((total, weighted)), comm)
    return both[0], both[1]


class _Call:
    """What the ranks must agree on, in words. No string, so that a picture doesn't print it as an option."""

    def __init__(self, form: str, x: Any, axes: tuple[int, ...], stop: frozenset[str]) -> None:
        features = tuple([n for i, n in enumerate(x.shape) if i not in axes])
        options = f"form={form!r}, axes={axes}, stop={sorted(stop)}"
        self.text = f"batch_norm({options}) of {features} features, dtype {x.dtype}"

    def __str__(self) -> str:
        return self.text


def _at_least_two(n: int) -> int:
    if n == 1:
        raise ValueError(
            "x has one value per feature on all ranks together, whose variance is 0: "
            "give more rows, or mean= and var= for inference"
        )
    return n
