"""What the ranks of an MPI job tell each other, with the check that they talk about the same thing."""

import pickle
from functools import reduce
from typing import Any, NoReturn

import numpy as np

from ..engine.primitive import primitive
from .leaving import end_together, waiting_for

# Every exchange begins with one message of this many bytes, however much a rank has to say: thus messages match even
# where the ranks disagree, and hardly an exchange needs a second one.
FRAME = 1 << 12


def exchange(comm: Any, call: object, payload: Any = None) -> list[Any]:
    """Every rank's `payload`, in rank order.

    `call`, as a string, says what the rank is doing. It travels with the payload, so that ranks which disagree
    all raise the same `ValueError` and none is left waiting. A rank that can't take part sends its exception as
    `call`: it is then raised on every rank.
    """
    end_together(comm)
    with waiting_for(comm):
        everyone = _framed(comm, (call if isinstance(call, Exception) else str(call), payload))
    calls = [call for call, _ in everyone]
    failed = [rank for rank, told in enumerate(calls) if isinstance(told, Exception)]
    if failed:
        error, where = calls[failed[0]], "" if len(failed) == comm.size else f"on rank {failed[0]}: "
        raise type(error)(f"{where}{error}")
    if any(told != calls[0] for told in calls):
        raise ValueError("the ranks disagree: " + "; ".join(f"rank {r} is at {told}" for r, told in enumerate(calls)))
    return [payload for _, payload in everyone]


@primitive(lambda g, comm: allreduce(g, comm))
def allreduce(t: Any, /, comm: Any, call: object = None) -> Any:
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
    # MPI knows no float16, no rational numbers and no other byte order.
    small = t.nbytes < FRAME // 2 or t.dtype.char not in "fdg" or not t.dtype.isnative
    parts = exchange(comm, call or f"allreduce of shape {t.shape}, dtype {t.dtype}", t if small else None)
    if small:
        return reduce(np.add, parts)  # in rank order
    total = np.empty(t.shape, t.dtype)
    comm.Allreduce(np.ascontiguousarray(t), total)
    return total


def raise_together(comm: Any, error: Exception) -> NoReturn:
    """Raise an error on every rank of `comm`, if there is one: the others wait in their next exchange."""
    if comm is not None:
        exchange(comm, error)
    raise error


def _framed(comm: Any, message: Any) -> list[Any]:
    """Every rank's message: `comm.allgather`, but in one collective for all that fits the frame."""
    data = pickle.dumps(message, protocol=5)
    data = len(data).to_bytes(8, "little") + data
    received = np.empty((comm.size, FRAME), np.uint8)
    comm.Allgather(data[:FRAME].ljust(FRAME, b"\0"), received)
    rest = max(int.from_bytes(row[:8], "little") for row in received) + 8 - FRAME
    if rest > 0:
        tails = np.empty((comm.size, rest), np.uint8)
        comm.Allgather(data[FRAME:].ljust(rest, b"\0"), tails)
        received = np.concatenate((received, tails), axis=1)
    return [pickle.loads(row[8:]) for row in received]
