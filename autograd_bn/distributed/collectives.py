"""What the ranks of an MPI job tell each other, with the check that they talk about the same thing."""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce
from typing import Any

import numpy as np

from ..engine.node import Array
from ..engine.primitive import primitive

# Up to this many bytes an array travels with the message that says what it is.
_SMALL = 1 << 14


def exchange(comm: Any, call: str | Exception, payload: Any = None) -> list[Any]:
    """Every rank's `payload`, in rank order.

    `call` says what the rank is doing. It travels with the payload, so that ranks which disagree all raise the
    same `ValueError` and none is left waiting. A rank that can't take part sends its exception as `call`: it is
    then raised on every rank.
    """
    everyone = check_comm(comm).allgather((call, payload))
    calls = [call for call, _ in everyone]
    for rank, told in enumerate(calls):
        if isinstance(told, Exception):
            raise type(told)(f"on rank {rank}: {told}")
    if any(told != calls[0] for told in calls):
        raise ValueError("the ranks disagree: " + "; ".join(f"rank {r} is at {told}" for r, told in enumerate(calls)))
    return [payload for _, payload in everyone]


@primitive(lambda g, comm: allreduce(g, comm))
def allreduce(t: Any, /, comm: Any, call: str | None = None) -> Any:
    """The sum of `t` over the ranks of the mpi4py communicator `comm`, the same bits on every rank.

    A tensor gives a recorded node. Its derivative is `allreduce` again, of the sum of the ranks' losses. Every
    rank must call it, forward and backward, in the same order and with the same shape and dtype; if not, every
    rank raises `ValueError`. Any dtype will do, `object` arrays of rationals are added exactly. `call` says in
    that error what the rank was doing.

    >>> from autograd_bn.distributed import allreduce
    >>> from mpi4py import MPI
    >>> allreduce([1.0, 2.0], MPI.COMM_WORLD)
    array([1., 2.])
    """
    # MPI adds no float16 and no rational numbers; a small sum is done here, in rank order.
    small = t.nbytes <= _SMALL or t.dtype.char not in "fdg"
    parts = exchange(comm, call or f"allreduce of shape {t.shape}, dtype {t.dtype}", t if small else None)
    if small:
        return reduce(np.add, parts)
    total = np.empty(t.shape, t.dtype)
    comm.Allreduce(np.ascontiguousarray(t), total)
    return total


def check_comm(comm: Any) -> Any:
    """`comm`, or `TypeError` if it isn't a communicator."""
    if not callable(getattr(comm, "allgather", None)):
        raise TypeError(f"comm is a {type(comm).__name__}, expected an mpi4py communicator such as MPI.COMM_WORLD")
    return comm


def merge(parts: Sequence[tuple[int, Array, Array]]) -> tuple[int, Array, Array]:
    """Count, mean and sum of squared deviations of all the values together, from those of each part.

    Parts without values are skipped; without any the count is 0.

    T. F. Chan, G. H. Golub and R. J. LeVeque, "Updating formulae and a pairwise algorithm for computing
    sample variances", 1979.

    >>> import numpy as np
    >>> merge([(2, np.array(2.0), np.array(2.0)), (1, np.array(5.0), np.array(0.0))])
    (3, np.float64(3.0), np.float64(8.0))
    """
    count, mean, squares = parts[0]
    for n, part_mean, part_squares in parts[1:]:
        if not n:
            continue
        total = count + n
        delta = part_mean - mean
        mean = mean + delta * n / total if count else part_mean
        squares = squares + (part_squares + delta * delta * (count * n) / total)
        count = total
    return count, mean, squares
