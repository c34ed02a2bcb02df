"""Batch norm, twice: composed of primitives, and as one node with its own derivative."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from fractions import Fraction
from functools import lru_cache
from numbers import Real
from typing import Any, Literal

import numpy as np

from .. import engine as ag
from ..distributed.collectives import raising_together
from ..engine import Tensor
from ..engine.node import Array, Node
from ..engine.operations import count
from ..engine.primitive import primitive
from . import kernels, ranks


def composed(
    x: Any, gamma: Any, beta: Any, mean: Any, var: Any, eps: Any, axes: tuple[int, ...], stop: frozenset[str], comm: Any
) -> tuple[Any, Any, Any, int]:
    """Batch norm as nine recorded operations; returns the mean, the variance and their count too."""
    centred, mean, var, n = _centred(x, mean, var, axes, stop, comm)
    y = ag.multiply(centred, ag.rsqrt(ag.add(var, eps)))
    if gamma is not None:
        y = ag.multiply(y, lay_along(gamma, x.shape, axes))
    if beta is not None:
        y = ag.add(y, lay_along(beta, x.shape, axes))
    return y, mean, var, n


def _centred(
    x: Any, mean: Any, var: Any, axes: tuple[int, ...], stop: frozenset[str], comm: Any
) -> tuple[Any, Any, Any, int]:
    """x - mean, with the mean and variance of the batch recorded unless they are given; and their count."""
    training = mean is None
    n, average = count(x.shape, axes), ag.mean
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


def _gradients(
    g: Any,
    wanted: tuple[bool, ...],
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

    Ioffe and Szegedy (2015), section 3, with their intermediate gradients substituted. The kept statistics
    are constants, so they serve a pass on plain arrays only: on tensors they are recorded anew as functions
    of `x`, which makes every further derivative right.
    """
    training = mean is None
    laid_gamma = None if gamma is None else lay_along(gamma, x.shape, axes)
    dx: Any = None
    if isinstance(g, Tensor):
        centred, _, var, n = _centred(x, mean, var, axes, stop, comm)
        scale = ag.rsqrt(ag.add(var, eps))
        normal = centred * scale
        total, weighted = ag.sum(g, axes, keepdims=True), ag.sum(g * normal, axes, keepdims=True)
    else:
        centre, _, _, scale, n = kept
        with np.errstate(all="ignore"):
            total, weighted = kernels.backward_sums(g, x, axes, centre, scale)
    dgamma = weighted.reshape(gamma.shape) if wanted[1] else None
    dbeta = total.reshape(beta.shape) if wanted[2] else None
    through_mean = training and n > 0 and "mean" not in stop
    through_var = training and n > 0 and "var" not in stop
    if comm is not None and wanted[0] and (through_mean or through_var):
        total, weighted = ranks.sums(total, weighted, comm)
    if wanted[0] and isinstance(g, Tensor):
        dx = g
        dx = dx - total / n if through_mean else dx
        dx = dx - normal * (weighted / n) if through_var else dx
        dx = dx * (scale if laid_gamma is None else scale * laid_gamma)
    elif wanted[0]:
        with np.errstate(all="ignore"):
            averages = total / n if through_mean else None, weighted / n if through_var else None
            dx = kernels.input_gradient(g, x, axes, centre, scale, laid_gamma, *averages)
    return dx, dgamma, dbeta, None, None, None


@primitive(_gradients, joint=True)
def _batch_norm(
    x: Any,
    gamma: Any,
    beta: Any,
    mean: Any,
    var: Any,
    eps: Any,
    /,
    axes: tuple[int, ...],
    stop: frozenset[str],
    comm: Any,
) -> Any:
    gamma, beta = (None if p is None else lay_along(p, x.shape, axes) for p in (gamma, beta))
    n = count(x.shape, axes)
    with np.errstate(all="ignore"):
        if mean is not None:
            centre = kernels.centre((mean, mean * 0), var, x)
        else:
            if comm is None:
                whole, squares = kernels.statistics(x, axes)
            else:
                whole, squares, n = ranks.statistics(x, axes, stop, comm)
            mean = whole[1] if whole[0] is None else whole[0] + whole[1]
            var = squares / max(n, 1)
            centre = kernels.centre(whole, var, x)
        scale = kernels.reciprocal_deviation(var, eps, x)
        return kernels.normalise(x, axes, centre, scale, gamma, beta), (centre, mean, var, scale, n)


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
        x, gamma, beta, over, eps, mean, var = _checked(x, gamma, beta, axes, eps, mean, var, stop, form, comm)
    if form == "composed":
        y, mean, var, n = composed(x, gamma, beta, mean, var, eps, over, frozenset(stop), comm)
    else:
        y, (_, mean, var, _, n) = _batch_norm(x, gamma, beta, mean, var, eps, over, frozenset(stop), comm)
    if not return_stats:
        return y
    kept = kept_shape(x.shape, over)
    with np.errstate(over="ignore"):
        statistics = [np.array(statistic, x.dtype).reshape(kept) for statistic in (mean, var)]
    return (y, *statistics, n) if return_stats == "count" else (y, *statistics)


def body(node: Node, values: Mapping[Node, Any]) -> Node:
    """The composed form of a fused node, recorded anew on the same inputs, whose values are given."""
    args: Any = [Tensor(values[arg], arg) if isinstance(arg, Node) else arg for arg in node.args]
    y, *_ = composed(*args, **node.params)
    return y.node  # type: ignore[no-any-return]


@lru_cache
def kept_shape(shape: tuple[int, ...], axes: tuple[int, ...], keepdims: bool = False) -> tuple[int, ...]:
    """The shape of the statistics: `shape` without `axes`, or with 1s in their place."""
    return tuple([1 if i in axes else n for i, n in enumerate(shape) if keepdims or i not in axes])


def lay_along(parameter: Any, shape: tuple[int, ...], axes: tuple[int, ...]) -> Any:
    """A parameter of the kept axes' shape, reshaped where it must be to broadcast against `shape`."""
    target = _broadcasting(parameter.shape, shape, axes)
    return parameter if target is None else ag.reshape(parameter, target)


@lru_cache
def _broadcasting(given: tuple[int, ...], shape: tuple[int, ...], axes: tuple[int, ...]) -> tuple[int, ...] | None:
    """The shape in which a parameter of the shape `given` broadcasts against `shape`; None if it does already."""
    target = kept_shape(shape, axes, keepdims=True)
    fits = given == target[len(target) - len(given) :] and math.prod(given) == math.prod(target)
    return None if fits else target


def _checked(
    x: Any, gamma: Any, beta: Any, axes: Any, eps: Any, mean: Any, var: Any, stop: Any, form: Any, comm: Any
) -> tuple[Any, ...]:
    """The arguments of `batch_norm` made ready, or the error that they deserve."""
    recorded = any(isinstance(given, Tensor) for given in (x, gamma, beta))
    x = x if isinstance(x, Tensor) else ag.as_tensor(x) if recorded else np.asarray(x)
    if x.dtype.kind in "iub":
        x = x.astype(float) if isinstance(x, np.ndarray) else ag.as_tensor(x.data.astype(float))
    if x.dtype.kind not in "fO":
        raise TypeError(f"x has dtype {x.dtype}, expected floating-point numbers or exact rationals")
    axes = _checked_axes(axes, x.shape)
    kept = kept_shape(x.shape, axes)
    gamma = _checked_parameter(gamma, "gamma", kept, axes, x)
    beta = _checked_parameter(beta, "beta", kept, axes, x)
    eps = _checked_eps(eps, kept, axes, x)
    if form not in ("fused", "composed"):
        raise ValueError(f'form is {form!r}, expected "fused" or "composed"')
    if stop != () and (isinstance(stop, str) or not np.iterable(stop) or not all(s in ("mean", "var") for s in stop)):
        raise ValueError(f'stop is {stop!r}, expected a tuple of "mean" and "var"')
    if (mean is None) != (var is None):
        raise ValueError(f"mean and var go together, got only {'var' if mean is None else 'mean'}")
    n = count(x.shape, axes)
    if mean is not None:
        mean, var = (
            _checked_statistic(mean, "mean", kept, axes, x),
            _checked_statistic(var, "var", kept, axes, x),
        )
        if (var < 0).any():
            raise ValueError(f"var has a negative entry, {np.min(var)}: a variance is at least 0")
    elif n == 1 and comm is None:
        raise ValueError(
            f"x of shape {x.shape} has one value per feature over axes {axes}, whose variance is 0: "
            "give more rows, or mean= and var= for inference"
        )
    elif n == 0 and comm is None:
        shape = kept_shape(x.shape, axes, keepdims=True)
        mean, var = np.zeros(shape, x.dtype), np.ones(shape, x.dtype)
    return x, gamma, beta, axes, eps, mean, var


def _checked_axes(axes: int | Sequence[int] | None, shape: tuple[int, ...]) -> tuple[int, ...]:
    ndim = len(shape)
    if axes is None:
        return tuple(range(ndim - 1))
    listed: tuple[Any, ...] = tuple(axes) if np.iterable(axes) else (axes,)
    for axis in listed:
        if not isinstance(axis, int | np.integer) or not -ndim <= axis < ndim:
            raise ValueError(f"axes has {axis!r}, expected integers from {-ndim} to {ndim - 1} for x of shape {shape}")
    found = sorted(int(axis) % ndim for axis in listed)
    if len(set(found)) < len(found):
        raise ValueError(f"axes is {axes!r}, which names an axis twice")
    return tuple(found)


def _check_shape(given: Any, name: str, kept: tuple[int, ...], axes: tuple[int, ...], x: Any) -> None:
    full = kept_shape(x.shape, axes, keepdims=True)
    if given.shape not in (kept, full):
        also = "" if kept == full else f" or {full}"
        raise ValueError(
            f"{name} has shape {given.shape}, expected {kept}{also} for x of shape {x.shape} averaged over axes {axes}"
        )


def _checked_parameter(given: Any, name: str, kept: tuple[int, ...], axes: tuple[int, ...], x: Any) -> Any:
    if given is None:
        return None
    if not isinstance(given, Tensor):
        given = np.asarray(given)
    if given.dtype.kind not in "fiubO":
        raise TypeError(f"{name} has dtype {given.dtype}, expected real numbers")
    _check_shape(given, name, kept, axes, x)
    return given


def _checked_statistic(given: Any, name: str, kept: tuple[int, ...], axes: tuple[int, ...], x: Any) -> Array:
    if isinstance(given, Tensor):
        if given.requires_grad:
            raise TypeError(f"{name} requires a gradient, but given statistics are constants: pass {name}.detach()")
        given = given.data
    given = np.asarray(given)
    if given.dtype.kind not in "fiubO":
        raise TypeError(f"{name} has dtype {given.dtype}, expected real numbers")
    _check_shape(given, name, kept, axes, x)
    given = _fractions(given) if x.dtype == object else given.astype(x.dtype)
    return np.reshape(given, kept_shape(x.shape, axes, keepdims=True))


def _checked_eps(eps: Any, kept: tuple[int, ...], axes: tuple[int, ...], x: Any) -> Any:
    if isinstance(eps, Tensor) and eps.requires_grad:
        raise TypeError("eps requires a gradient, but it is a constant: pass eps.detach()")
    if type(eps) is float and 0 < eps < math.inf and x.dtype != object:
        return eps
    array = np.asarray(eps)
    if array.dtype.kind not in "fiuO":
        raise TypeError(f"eps has dtype {array.dtype}, expected a positive number")
    if not all(isinstance(number, Real) and 0 < number < math.inf for number in array.flat):  # type: ignore[operator]
        raise ValueError(f"eps is {eps!r}, expected a positive finite number or one for each feature")
    array = _fractions(array) if x.dtype == object else array.astype(float)
    if array.ndim == 0:
        return array.item()
    _check_shape(array, "eps", kept, axes, x)
    return array.astype(x.dtype).reshape(kept_shape(x.shape, axes, keepdims=True))


def _fractions(numbers: Array) -> Array:
    return np.asarray(np.frompyfunc(Fraction, 1, 1)(numbers), dtype=object)
