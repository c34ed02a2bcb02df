"""Gradients of parameters that every rank holds: who sums and who averages.

A rank's backward pass, that of `batch_norm` with `comm` too, leaves in `.grad` the derivative by its own copy of a
parameter. The derivative by the parameter is their sum over the ranks, which nothing takes before these functions do.
"""

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
    _weighted_sum(parameters, comm, 1)


def average_gradients(parameters: Iterable[Tensor], comm: Any, *, count: int) -> None:
    """Replace every `.grad` by its average over the ranks, each weighted by its `count` of rows.

    For losses that are means over a rank's own rows: the result is the gradient of the mean over all rows. It is so
    where the ranks' losses don't depend on each other. `batch_norm` with `comm` makes them depend: then it holds for
    equal counts alone, and for unequal ones the loss is weighed first:

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
    _weighted_sum(parameters, comm, share(count, comm))


def share(count: int, comm: Any) -> float:
    """The part of all rows that is here: `count` divided by its sum over the ranks.

    >>> from mpi4py import MPI
    >>> share(8, MPI.COMM_WORLD)
    1.0
    """
    if count < 0:
        raise ValueError(f"count is {count}, expected the number of this rank's rows")
    total = allreduce(np.asarray(float(count)), comm)
    if not total:
        raise ValueError("count is 0 on every rank: there is nothing to share")
    return float(count / total)


def _weighted_sum(parameters: Iterable[Tensor], comm: Any, weight: float) -> None:
    parameters = list(parameters)
    gradients = [p.grad if weight else None for p in parameters]
    wide = [None if g is None else g.ravel().astype(np.result_type(g.dtype, float)) for g in gradients]
    kind = object if any(p.dtype == object for p in parameters) else float
    parts = [np.zeros(p.size, kind) if g is None else weight * g for p, g in zip(parameters, wide, strict=True)]
    present = np.array([int(g is not None) for g in gradients], kind)
    total = allreduce(np.concatenate([present, *parts]), comm)
    anywhere, *summed = np.split(total, np.cumsum([len(parameters), *[p.size for p in parameters]])[:-1])
    for p, somewhere, g in zip(parameters, anywhere, summed, strict=True):
        p.grad = g.reshape(p.shape) if somewhere else None
