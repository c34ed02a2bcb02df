"""Batch norm, twice: composed of primitives, and as one node with its own derivative."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np

from .. import engine as ag
from ..distributed.collectives import raise_together
from ..engine import Tensor
from ..engine.node import Array, Node
from ..engine.operations import is_half
from ..engine.primitive import primitive, registry
from ..engine.tensor import values_of
from . import arithmetic
from .arithmetic import Pass, backward_at_once, forward_at_once, native
from .kernels import LARGEST
from .kernels.layout import kept_shape, wide
from .norm import Norm, checked, operands

# Brings numbers back whose squares leave a double's range: batch norm doesn't depend on the unit of x.
UNIT = 2.0**-600


# --- Composed ----------------------------------------------------------------------------------------------


def composed(x: Any, gamma: Any, beta: Any, norm: Norm) -> tuple[Any, Any, Any, int]:
    """Batch norm as nine recorded operations; returns the mean, the variance and their count too."""
    dtype = np.result_type(*[p.dtype for p in (x, gamma, beta) if p is not None])
    x, gamma, beta = _widened(x, gamma, beta)
    centred, mean, var, n = _centred(x, norm)
    y = ag.multiply(centred, ag.rsqrt(ag.add(var, norm.eps)))
    if gamma is not None:
        y = ag.multiply(y, norm.lay(gamma, x.shape))
    if beta is not None:
        y = ag.add(y, norm.lay(beta, x.shape))
    return y if y.dtype == dtype else y.astype(dtype), values_of(mean), values_of(var), n


def _widened(x: Any, *others: Any) -> list[Any]:
    """What is computed in float32 where `x` is float16: the squares of its numbers are out of its range."""
    if not is_half(x):
        return [x, *others]
    return [None if p is None else p.astype(np.result_type(p.dtype, np.float32)) for p in (x, *others)]


def _centred(x: Any, norm: Norm) -> tuple[Any, Any, Any, int]:
    """x - mean, with the mean and variance of the batch recorded unless they are given; and their count."""
    if norm.mean is not None:
        var = norm.var
        if isinstance(x, Tensor):
            var = ag.as_tensor(var, name="var")  # a leaf, so that eps and the root stand in the graph
        return ag.subtract(x, norm.mean), norm.mean, var, arithmetic.per_feature(x.shape, norm.axes)
    n, average = norm.over.averaging(x)
    mean = average(x, norm.axes, keepdims=True)
    mean = ag.stop_gradient(mean) if "mean" in norm.stop else mean
    centred = ag.subtract(x, mean)
    var = average(ag.square(centred), norm.axes, keepdims=True)
    var = ag.stop_gradient(var) if "var" in norm.stop else var
    return centred, mean, var, n


# --- Fused -------------------------------------------------------------------------------------------------


class Kept(NamedTuple):
    """What the fused node keeps for its backward pass, a number a feature: of `x * unit` where there is a unit.

    The rows are a centre near the mean, or None for 0; the mean's distance from it; the variance; the scale, which is
    1 / sqrt(var + eps); and gamma after one compiled call, whose layout and x are kept, too.
    """

    rows: Any
    n: int
    unit: Any = None
    at_once: Any = None

    def values(self) -> tuple[Array, Array, int]:
        """The mean, the variance and the count."""
        centre, distance, var, _ = self.rows[:4]
        mean, unit = distance if centre is None else centre + distance, self.unit
        return (mean, var, self.n) if unit is None else (mean / unit, var / unit / unit, self.n)

    def in_deviations(self) -> Kept:
        """The same in a unit near the deviation, in which products with large gradients stay in a double's range."""
        centre, distance, var, scale = self.rows[:4]
        exponent = np.where(np.isfinite(scale) & (scale > 0), np.frexp(scale)[1], 0)
        unit = np.ldexp(1.0, exponent)
        return Kept((centre * unit, distance * unit, var * unit * unit, scale / unit), self.n, unit)


def _rule(g: Any, wanted: Any, x: Any, gamma: Any, beta: Any, kept: Any, norm: Norm) -> tuple[Any, ...]:
    """The derivative of `batch_norm`, with r = 1 / sqrt(var + eps) and x̂ = (x - mean) * r:

    dx = gamma * r * (g - avg(g) - x̂ * avg(g * x̂)): direct, through the mean, through the variance.
    dgamma = sum(g * x̂), dbeta = sum(g), over this process's rows alone: every rank holds a copy of
    gamma and beta, and theirs is the derivative by the copy. The averages are over all ranks' rows.

    Ioffe and Szegedy (2015), section 3, with their intermediate gradients substituted. What the node kept is
    a constant, so it serves a pass on plain arrays only: on tensors the statistics are recorded anew as functions
    of `x`, which makes every further derivative right. It is computed in `_on_arrays`, in one call
    in `kernels.numba.backward`, and on tensors in `_on_tensors`.
    """
    if isinstance(g, Tensor):
        return _on_tensors(g, wanted, x, gamma, beta, norm)
    if kept.at_once and wanted[0] and (done := backward_at_once(g, kept.rows, kept.at_once, norm.through)):
        return _shaped(done, wanted, gamma, beta)
    return _on_arrays(g, wanted, x, gamma, beta, kept, norm)


@primitive(_rule, joint=True)
def _batch_norm(x: Any, gamma: Any, beta: Any, /, norm: Norm) -> Any:
    read = Pass(arithmetic.of_result(x, gamma, beta), norm.axes)
    if norm.usual and read.source is x and (done := forward_at_once(read, gamma, beta, norm.eps)):
        y, rows, source = done
        return y, Kept(rows, read.layout.count, None, (read.layout, source))
    with np.errstate(all="ignore"):
        read, kept = _statistics(read, norm)
        centre, distance, _, scale = kept.rows
        slope = scale if gamma is None else scale * gamma.reshape(-1)
        constant = -distance * slope if beta is None else beta.reshape(-1) - distance * slope
        return read.affine(centre, slope, constant), kept


FUSED = registry["batch_norm"]


def _in_unit(x: Array, unit: Any, norm: Norm) -> Any:
    return x * unit.reshape(kept_shape(x.shape, norm.axes, keepdims=True))


def _statistics(read: Pass, norm: Norm, unit: Any = None) -> tuple[Pass, Kept]:
    """The statistics of the batch, or those that are given; of the batch in a unit where squares leave the range."""
    eps = norm.eps.reshape(-1) if isinstance(norm.eps, np.ndarray) else norm.eps
    if norm.mean is not None:
        centre, var, n = norm.mean.reshape(-1), norm.var.reshape(-1), read.layout.count
        if unit is not None:
            centre, var = centre * unit, var * unit * unit
        distance = np.zeros_like(centre)
    else:
        centre, distance, var, n = norm.over.statistics(read)
    if unit is None and read.source.dtype.char == "d" and np.count_nonzero(var < LARGEST) < var.size:
        unit = np.where(var < LARGEST, 1, UNIT)
        return _statistics(Pass(_in_unit(read.source, unit, norm), norm.axes), norm, unit)
    scale = arithmetic.reciprocal_deviation(var, eps if unit is None else eps * unit * unit)
    return read, Kept((centre, distance, var, scale), n, unit)


def _on_arrays(g: Any, wanted: Any, x: Any, gamma: Any, beta: Any, kept: Kept, norm: Norm) -> tuple[Any, Any, Any]:
    """The rule on plain arrays, with what the node kept: dx = g * direct + constant + (x - mean) * slope.

    `total` is sum(g) and `weighted` sum(g * x̂), with x̂ about the mean, of which `centre` and `distance` are two parts.
    """
    (centre, distance, _, scale), n, unit = kept.rows[:4], kept.n, kept.unit
    with np.errstate(all="ignore"):
        x = native(x) if unit is None else _in_unit(native(x), unit, norm)
        read = Pass(x, norm.axes, native(g))
        total, weighted = read.sums(centre)
        weighted = (weighted - distance * total) * scale
        if unit is None and x.dtype.char == "d" and np.count_nonzero(np.isfinite(weighted)) < weighted.size:
            return _on_arrays(g, wanted, x, gamma, beta, kept.in_deviations(), norm)
        dx, dgamma, dbeta = None, weighted, total
        if wanted[0]:
            if any(norm.through):
                total, weighted = norm.over.sums(total, weighted)
            direct = scale if gamma is None else scale * gamma.reshape(-1)
            constant = direct * (total / -max(n, 1)) if norm.through[0] else np.zeros_like(direct)
            if norm.through[1]:
                slope = direct * scale * (weighted / -max(n, 1))
                dx = read.affine(centre, slope, constant - distance * slope, direct)
            else:
                dx = Pass(native(g), norm.axes).affine(None, direct, constant).astype(x.dtype, copy=False)
            dx = dx if unit is None else _in_unit(dx, unit, norm)
    return _shaped((dx, dgamma, dbeta), wanted, gamma, beta)


def _on_tensors(g: Any, wanted: Any, x: Any, gamma: Any, beta: Any, norm: Norm) -> tuple[Any, Any, Any]:
    """The rule on recorded tensors, with statistics recorded anew."""
    x, g, gamma = _widened(x, g, gamma)
    centred, _, var, n = _centred(x, norm)
    scale = ag.rsqrt(ag.add(var, norm.eps))
    normal = centred * scale
    total, weighted = ag.sum(g, norm.axes, keepdims=True), ag.sum(g * normal, norm.axes, keepdims=True)
    dx, dgamma, dbeta = None, weighted, total
    if wanted[0]:
        if any(norm.through):
            total, weighted = norm.over.sums(total, weighted)
        dx = g - total / max(n, 1) if norm.through[0] else g
        dx = dx - normal * (weighted / max(n, 1)) if norm.through[1] else dx
        dx = dx * (scale if gamma is None else scale * norm.lay(gamma, x.shape))
    return _shaped((dx, dgamma, dbeta), wanted, gamma, beta)


def _shaped(gradients: tuple[Any, Any, Any], wanted: Any, gamma: Any, beta: Any) -> tuple[Any, Any, Any]:
    """The gradients that are wanted, in their operands' shapes."""
    dx, dgamma, dbeta = gradients
    dgamma = dgamma.reshape(gamma.shape) if wanted[1] else None
    return dx, dgamma, dbeta.reshape(beta.shape) if wanted[2] else None


# --- Both --------------------------------------------------------------------------------------------------


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
    try:
        if form not in ("fused", "composed"):
            raise ValueError(f'form is {form!r}, expected "fused" or "composed"')
        x, gamma, beta = operands(x, gamma, beta)
        norm = checked((x, gamma, beta), axes, eps, mean, var, stop, comm)
    except Exception as error:
        raise_together(comm if mean is None else None, error)
    if form == "composed":
        y, mean, var, n = composed(x, gamma, beta, norm)
    else:
        y, kept = FUSED.record((x, gamma, beta), {"norm": norm})
        if return_stats:
            mean, var, n = kept.values()
    if not return_stats:
        return y
    shape, dtype = kept_shape(x.shape, norm.axes), wide(x.dtype)
    mean, var = np.array(mean, dtype).reshape(shape), np.array(var, dtype).reshape(shape)
    if return_stats == "count":
        return y, mean, var, n
    with np.errstate(over="ignore"):
        return y, mean.astype(x.dtype, copy=False), var.astype(x.dtype, copy=False)


def body(node: Node, values: Mapping[Node, Any]) -> Node:
    """The composed form of a fused node, recorded anew on the same inputs, whose values are given."""
    x, gamma, beta = [Tensor(values[arg], arg) if isinstance(arg, Node) else arg for arg in node.args]
    y, *_ = composed(x, gamma, beta, node.params["norm"])
    return y.node  # type: ignore[no-any-return]
