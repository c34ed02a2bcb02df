"""Batch norm, twice: composed of primitives, and as one node with its own derivative."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np

from .. import engine as ag
from ..distributed.collectives import raising_together
from ..engine import Tensor
from ..engine.node import Array, Node
from ..engine.primitive import primitive, registry
from ..engine.tensor import values_of
from . import arithmetic, ranks
from .arguments import checked, kept_shape, lay_along
from .arithmetic import Found, Mean, native
from .kernels import LARGEST

# Brings numbers back whose squares leave a double's range: batch norm doesn't depend on the unit of x.
UNIT = 2.0**-600


def composed(
    x: Any, gamma: Any, beta: Any, mean: Any, var: Any, eps: Any, axes: tuple[int, ...], stop: frozenset[str], comm: Any
) -> tuple[Any, Any, Any, int]:
    """Batch norm as nine recorded operations; returns the mean, the variance and their count too."""
    half = all(p is None or p.dtype == np.float16 for p in (x, gamma, beta))
    if x.dtype == np.float16:  # the squares of its numbers are out of its range
        x, gamma, beta = (None if p is None else p.astype(np.float32) for p in (x, gamma, beta))
    centred, mean, var, n = _centred(x, mean, var, axes, stop, comm)
    y = ag.multiply(centred, ag.rsqrt(ag.add(var, eps)))
    if gamma is not None:
        y = ag.multiply(y, lay_along(gamma, x.shape, axes))
    if beta is not None:
        y = ag.add(y, lay_along(beta, x.shape, axes))
    return y.astype(np.float16) if half else y, mean, var, n


def _centred(
    x: Any, mean: Any, var: Any, axes: tuple[int, ...], stop: frozenset[str], comm: Any
) -> tuple[Any, Any, Any, int]:
    """x - mean, with the mean and variance of the batch recorded unless they are given; and their count."""
    training = mean is None
    n, average = arithmetic.values(x.shape, axes), ag.mean
    if training and comm is not None:
        n, average = ranks.weighted_mean(x, axes, stop, comm)
    if training:
        mean = average(x, axes, keepdims=True)
        mean = ag.stop_gradient(mean) if "mean" in stop else mean
    centred = ag.subtract(x, mean)
    if training:
        var = average(ag.square(centred), axes, keepdims=True)
        var = ag.stop_gradient(var) if "var" in stop else var
    elif isinstance(x, Tensor):
        var = ag.as_tensor(var, name="var")  # a leaf, so that eps and the root stand in the graph
    return centred, mean, var, n


class Statistics(NamedTuple):
    """What the fused node keeps for its backward pass: its statistics, those of `x * unit` where there is a unit."""

    mean: Mean
    var: Array
    scale: Array  # 1 / sqrt(var + eps)
    n: int
    unit: Any = None

    def values(self) -> tuple[Array, Array, int]:
        """The mean, the variance and the count."""
        mean, var, unit = self.mean.value(), self.var, self.unit
        return (mean, var, self.n) if unit is None else (mean / unit, var / unit / unit, self.n)

    def in_deviations(self) -> Statistics:
        """The same in a unit near the deviation, in which products with large gradients stay in a double's range."""
        exponent = np.where(np.isfinite(self.scale) & (self.scale > 0), np.frexp(self.scale)[1], 0)
        unit = np.ldexp(1.0, exponent)
        mean = Mean(self.mean.high * unit, self.mean.low * unit)
        return Statistics(mean, self.var * unit * unit, self.scale / unit, self.n, unit)


def _statistics(
    x: Any, mean: Any, var: Any, eps: Any, axes: tuple[int, ...], stop: frozenset[str], comm: Any, unit: Any = None
) -> tuple[Statistics, Any]:
    """The statistics of the batch, or those that are given; of the batch in a unit where squares leave the range.

    And what `arithmetic.statistics` centred.
    """
    n, centred = arithmetic.values(x.shape, axes), None
    if mean is not None:
        centre = Mean(mean, np.zeros_like(mean)) if unit is None else Mean(mean * unit, np.zeros_like(mean))
        spread = var if unit is None else var * unit * unit
    else:
        scaled = x if unit is None else x * unit
        if comm is None:
            centre, squares, centred = arithmetic.statistics(scaled, axes)
        else:
            centre, squares, n = ranks.statistics(scaled, axes, stop, comm)
        spread = squares / max(n, 1)
    if unit is None and x.dtype.char == "d" and not (spread < LARGEST).all():
        return _statistics(x, mean, var, eps, axes, stop, comm, np.where(spread < LARGEST, 1, UNIT))
    scale = arithmetic.reciprocal_deviation(spread, eps if unit is None else eps * unit * unit)
    return Statistics(centre, spread, scale, n, unit), centred


def _rule(
    g: Any,
    wanted: Any,
    x: Any,
    gamma: Any,
    beta: Any,
    mean: Any,
    var: Any,
    eps: Any,
    kept: Any,
    axes: tuple[int, ...],
    stop: frozenset[str],
    comm: Any,
) -> tuple[Any, ...]:
    """The derivative of `batch_norm`, with r = 1 / sqrt(var + eps) and n = (x - mean) * r:

    dx = gamma * r * (g - avg(g) - n * avg(g * n)): direct, through the mean, through the variance.
    dgamma = sum(g * n), dbeta = sum(g), with `comm` over this rank's rows alone: every rank holds a copy of
    gamma and beta, and theirs is the derivative by the copy. The averages are over all ranks' rows.

    Ioffe and Szegedy (2015), section 3, with their intermediate gradients substituted. What the node kept is
    a constant, so it serves a pass on plain arrays only: on tensors the statistics are recorded anew as functions
    of `x`, which makes every further derivative right.
    """
    through = (mean is None and "mean" not in stop, mean is None and "var" not in stop)
    if not isinstance(g, Tensor):
        return _on_arrays(g, wanted, x, gamma, beta, kept, axes, through, comm)
    if x.dtype == np.float16:  # as in `composed`
        g, x, gamma = (None if p is None else p.astype(np.float32) for p in (g, x, gamma))
    centred, _, var, n = _centred(x, mean, var, axes, stop, comm)
    kept = centred, ag.rsqrt(ag.add(var, eps)), n
    return _on_tensors(g, wanted, x, gamma, beta, kept, axes, through, comm)


def _on_tensors(
    g: Any, wanted: Any, x: Any, gamma: Any, beta: Any, kept: Any, axes: Any, through: Any, comm: Any
) -> tuple[Any, ...]:
    centred, scale, n = kept
    normal = centred * scale
    total, weighted = ag.sum(g, axes, keepdims=True), ag.sum(g * normal, axes, keepdims=True)
    dgamma = weighted.reshape(gamma.shape) if wanted[1] else None
    dbeta = total.reshape(beta.shape) if wanted[2] else None
    dx: Any = None
    if wanted[0]:
        if comm is not None and any(through):
            total, weighted = ranks.sums(total, weighted, comm)
        dx = g - total / max(n, 1) if through[0] else g
        dx = dx - normal * (weighted / max(n, 1)) if through[1] else dx
        dx = dx * (scale if gamma is None else scale * lay_along(gamma, x.shape, axes))
    return dx, dgamma, dbeta, None, None, None


def _on_arrays(
    g: Any, wanted: Any, x: Any, gamma: Any, beta: Any, kept: Any, axes: Any, through: Any, comm: Any
) -> tuple[Any, ...]:
    dx: Any = None
    if type(kept) is Found:
        if wanted[0] and (done := arithmetic.backward_at_once(g, kept, x, through)):
            dx, weighted, total = done
            dgamma = weighted.reshape(gamma.shape) if wanted[1] else None
            return dx, dgamma, total.reshape(beta.shape) if wanted[2] else None, None, None, None
        kept = Statistics(*kept.parts())
    centre, _, scale, n, unit = kept
    with np.errstate(all="ignore"):
        g, x = native(g), native(x) if unit is None else native(x) * unit
        total, weighted, made = arithmetic.backward_sums(g, x, axes, centre, scale)
        if unit is None and comm is None and x.dtype.char == "d" and not np.isfinite(weighted).all():
            return _on_arrays(g, wanted, x, gamma, beta, kept.in_deviations(), axes, through, comm)
        dgamma = weighted.reshape(gamma.shape) if wanted[1] else None
        dbeta = total.reshape(beta.shape) if wanted[2] else None
        if wanted[0]:
            if comm is not None and any(through):
                total, weighted = ranks.sums(total, weighted, comm)
            sums, n = zip((total, weighted), through, strict=True), max(n, 1)
            averages = [total / n if used else None for total, used in sums]
            gamma = lay_along(gamma, x.shape, axes)
            dx = arithmetic.input_gradient(made, x, axes, centre, scale, gamma, averages)
            dx = dx if unit is None else dx * unit
    return dx, dgamma, dbeta, None, None, None


@primitive(_rule, joint=True)
def _batch_norm(
    x: Any, gamma: Any, beta: Any, mean: Any, var: Any, eps: Any, /, axes: Any, stop: frozenset[str], comm: Any
) -> Any:
    alone = mean is None and comm is None and type(eps) is float
    if alone and (done := arithmetic.forward_at_once(x, axes, gamma, beta, eps)):
        return done
    x, gamma, beta = native(x), lay_along(gamma, x.shape, axes), lay_along(beta, x.shape, axes)
    with np.errstate(all="ignore"):
        kept, centred = _statistics(x, mean, var, eps, axes, stop, comm)
        x = x if kept.unit is None else x * kept.unit
        return arithmetic.normalise(x, axes, kept.mean, kept.scale, gamma, beta, centred), kept


FUSED = registry["batch_norm"]


def batch_norm(
    x: Any,
    gamma: Any = None,
    beta: Any = None,
    *,
    axes: int | Sequence[int] | None = None,
    eps: Any = 1e-5,
    mean: Any = None,
    var: Any = None,
    stop: Sequence[str] = (),
    form: Literal["fused", "composed"] = "fused",
    comm: Any = None,
    return_stats: bool | Literal["count"] = False,
) -> Any:
    """Batch normalisation: gamma * (x - mean(x)) / sqrt(var(x) + eps) + beta.

    `axes` are the axes that the statistics are taken over, as `axis` of `numpy.mean`; by default every axis
    but the last. `gamma`, `beta`, `mean` and `var` have the shape of the axes that are left, or that shape
    with 1s for the others; `gamma` and `beta` may be left out. `eps` is a positive number, or one for each
    feature. The variance is the biased one. The result has the shape of `x`, and its dtype where gamma and
    beta have no wider one.

    `form="composed"` records mean, subtract, square, mean, add, rsqrt, multiply, multiply, add;
    `form="fused"` records one node with an analytic derivative. Values and gradients are the same, to every
    order. `stop` names statistics, "mean" and "var", that the gradient takes for constants.

    `mean` and `var`, given together, replace the statistics of the batch (inference). They are constants.
    An empty batch gives an empty result and zero gradients. `return_stats=True` also returns the mean and
    the biased variance, as arrays of the kept axes' shape, and `return_stats="count"` after them the number of
    values that each is taken over.

    `comm`, an mpi4py communicator, spreads the batch over its ranks: `x` is this rank's part, of any number of
    rows, and the statistics and the gradient of `x` are those of the whole. The fused form sends one message
    forward and one backward, the composed form records three `allreduce` nodes. The gradients of `gamma` and `beta`
    are this rank's sums: `distributed.average_gradients` brings them together as it does any parameter's.
    Every rank has to make the same calls; where they disagree, or one raises for its arguments, all of them raise.
    `expand` and a picture with values compute the node anew: they are such calls too.

    `ValueError`, with what came and what was expected: shapes that don't match `x`, axes out of range or
    repeated, eps not positive, a single value per feature without given statistics. `TypeError`: complex
    `x`; given statistics that require a gradient.

    Formula: S. Ioffe and C. Szegedy, "Batch Normalization", 2015, algorithm 1.

    >>> import autograd_bn as ag
    >>> x = ag.tensor([[1.0, 10.0], [3.0, 30.0]], requires_grad=True)
    >>> y = ag.batch_norm(x, form="composed")
    >>> y.data.round(3)
    array([[-1., -1.],
           [ 1.,  1.]])
    >>> ag.Graph(y).ops["mean"], ag.Graph(ag.batch_norm(x)).ops
    (2, Counter({'batch_norm': 1}))
    """
    with raising_together(comm if mean is None else None):
        x, gamma, beta, over, eps, mean, var = checked(x, gamma, beta, axes, eps, mean, var, stop, form, comm)
    if form == "composed":
        y, mean, var, n = composed(x, gamma, beta, mean, var, eps, over, frozenset(stop), comm)
    else:
        how = {"axes": over, "stop": frozenset(stop), "comm": comm}
        y, kept = FUSED.record((x, gamma, beta, mean, var, eps), how)
        if return_stats:
            mean, var, n = kept.values()
    if not return_stats:
        return y
    shape, dtype = kept_shape(x.shape, over), arithmetic.wide(x.dtype)
    mean, var = (np.array(values_of(given), dtype).reshape(shape) for given in (mean, var))
    if return_stats == "count":
        return y, mean, var, n
    with np.errstate(over="ignore"):
        return y, mean.astype(x.dtype, copy=False), var.astype(x.dtype, copy=False)


def body(node: Node, values: Mapping[Node, Any]) -> Node:
    """The composed form of a fused node, recorded anew on the same inputs, whose values are given."""
    args: Any = [Tensor(values[arg], arg) if isinstance(arg, Node) else arg for arg in node.args]
    y, *_ = composed(*args, **node.params)
    return y.node  # type: ignore[no-any-return]
