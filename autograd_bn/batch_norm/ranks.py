"""Who holds a batch, this process or the ranks of an MPI job: its statistics and its sums, in both forms."""

from collections.abc import Callable
from fractions import Fraction
from typing import Any

import numpy as np

from .. import engine as ag
from ..distributed.collectives import allreduce, exchange
from ..engine import Tensor
from ..engine.node import Array
from ..engine.operations import count
from .arithmetic import Pass, merge, per_feature, statistics


class Process:
    """A batch whose rows this process holds."""

    def __init__(self, axes: tuple[int, ...]) -> None:
        self.axes = axes

    def averaging(self, x: Any) -> tuple[int, Callable[..., Any]]:
        """How many values have one mean, and the recorded `mean` over them."""
        return per_feature(x.shape, self.axes), ag.mean

    def statistics(self, x: Pass) -> tuple[Array, Array, Array, int]:
        """A centre near the mean, the mean's distance from it, the variance, and the count."""
        return *statistics(x), x.layout.count

    def sums(self, total: Any, weighted: Any) -> tuple[Any, Any]:
        """The sums over all rows, of those over this process's."""
        return total, weighted


class Ranks:
    """A batch whose rows lie on the ranks of a communicator."""

    def __init__(self, axes: tuple[int, ...], stop: frozenset[str], comm: Any) -> None:
        self.axes, self.stop, self.comm = axes, stop, comm

    def averaging(self, x: Any) -> tuple[int, Callable[..., Any]]:
        """How many values have one mean, and the recorded `mean` over them.

        It weighs each rank's own mean with its part of the values, a recorded constant.
        """
        axes = self.axes
        own: Any = np.full((1,) * x.ndim, Fraction(count(x.shape, axes)), dtype=np.result_type(x.dtype, float))
        if isinstance(x, Tensor):
            own = ag.as_tensor(own, name="count")
        total = allreduce(own, self.comm, _Call("composed", x, self))
        n = _at_least_two(int(total.item()))
        part = ag.divide(own, total if n else 1)
        if part.dtype != x.dtype:
            part = part.astype(x.dtype)

        def mean(x: Any, axes: tuple[int, ...], keepdims: bool) -> Any:
            reduce = ag.mean if count(x.shape, axes) else ag.sum  # the mean of nothing is not a number
            return allreduce(ag.multiply(reduce(x, axes, keepdims=keepdims), part), self.comm)

        return n, mean

    def statistics(self, x: Pass) -> tuple[Array, Array, Array, int]:
        """The same of every rank's values: one exchange, merged in rank order."""
        count = x.layout.count
        centre, distance, var = statistics(x)
        mine = np.stack((distance * 0 if centre is None else centre, distance, var * count))
        parts = exchange(self.comm, _Call("fused", x.source, self), (count, mine))
        n = _at_least_two(sum(n for n, _ in parts))
        counts = np.array([n for n, _ in parts if n] or [1])
        centres, distances, squares = np.stack([values for n, values in parts if n] or [parts[0][1]], axis=1)
        distance, square = merge(counts[:, None], (centres - centres[0]) + distances, squares)
        centre = centres[0] + distance
        x.held = None  # which is about this rank's own centre
        return centre, (centres[0] - centre) + distance, square / max(n, 1), n

    def sums(self, total: Any, weighted: Any) -> tuple[Any, Any]:
        """The sums over the rows of all ranks, in one exchange."""
        both = allreduce(ag.stack((total, weighted)), self.comm)
        return both[0], both[1]


class _Call:
    """What the ranks must agree on, in words. No string, so that a picture doesn't print it as an option."""

    def __init__(self, form: str, x: Any, over: Ranks) -> None:
        features = tuple([n for i, n in enumerate(x.shape) if i not in over.axes])
        options = f"form={form!r}, axes={over.axes}, stop={sorted(over.stop)}"
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
