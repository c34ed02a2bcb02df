"""Gradients of parameters that every rank holds: who sums and who averages.

A rank's backward pass leaves in `.grad` the derivative by its own copy of a parameter. The derivative by the
parameter is their sum over the ranks, and nothing takes it before one of these functions does: `batch_norm` with
`comm` leaves gamma and beta with local sums, as `Linear` leaves its weight.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np

from ..engine import Tensor
from .collectives import allreduce


def sum_gradients(parameters: Iterable[Tensor], comm: Any) -> None:
    """Replace every `.grad` by its sum over the ranks, in one message for all.

    For losses that are sums over rows, and for means that were weighed by `share` before the backward pass.
    A `.grad` of `None` counts as zeros, unless every rank has `None`.
    """
    _reduce(parameters, comm, 1)


def average_gradients(parameters: Iterable[Tensor], comm: Any, *, count: int) -> None:
    """Replace every `.grad` by its average over the ranks, each weighted by its `count` of rows.

    For losses that are means over a rank's own rows: the result is the gradient of the mean over all rows.
    That holds where the ranks' losses don't depend on each other. `batch_norm` with `comm` makes them depend:
    then it holds for equal counts alone, and for unequal ones the loss is weighed first:

        (loss * share(count, comm)).backward()
        sum_gradients(parameters, comm)

    A rank whose count is 0 adds nothing, whatever its gradients. `ValueError` for a negative count, or where no
    rank has rows.

    >>> import autograd_bn as ag
    >>> from mpi4py import MPI
    >>> w = ag.tensor(3.0, requires_grad=True)
    >>> (w * w).backward()
    >>> ag.distributed.average_gradients([w], MPI.COMM_WORLD, count=8)
    >>> w.grad
    array(6.)
    """
    if count < 0:
        raise ValueError(f"count is {count}, expected the number of this rank's rows")
    _reduce(parameters, comm, count, average=True)


def share(count: int, comm: Any) -> float:
    """The part of all rows that is here: `count` divided by its sum over the ranks.

    >>> from mpi4py import MPI
    >>> share(8, MPI.COMM_WORLD)
    1.0
    """
    total = allreduce(np.asarray(float(count)), comm)
    if not total:
        raise ValueError("count is 0 on every rank: there is nothing to share")
    return float(count / total)


def _reduce(parameters: Iterable[Tensor], comm: Any, weight: int, average: bool = False) -> None:
    """One allreduce of every weighted gradient, the weight, and for each parameter whether it has a gradient."""
    parameters = list(parameters)
    present = [p.grad is not None and weight > 0 for p in parameters]
    parts = [
        p.grad.ravel().astype(np.result_type(p.dtype, float)) * weight if here else np.zeros(p.size)  # type: ignore[union-attr]
        for p, here in zip(parameters, present, strict=True)
    ]
    total = allreduce(np.concatenate([[float(weight)], np.asarray(present, float), *parts]), comm)
    weights, present_anywhere, summed = total[0], total[1 : 1 + len(parameters)], total[1 + len(parameters) :]
    if average:
        if not weights:
            raise ValueError("count is 0 on every rank: there is nothing to average")
        summed = summed / weights
    start = 0
    for p, somewhere in zip(parameters, present_anywhere, strict=True):
        p.grad = summed[start : start + p.size].reshape(p.shape) if somewhere else None
        start += p.size
