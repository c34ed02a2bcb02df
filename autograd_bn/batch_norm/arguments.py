"""The arguments of `batch_norm`: what it takes, made ready, or the error that it deserves."""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction
from functools import lru_cache
from numbers import Real
from typing import Any

import numpy as np

from .. import engine as ag
from ..engine import Tensor
from ..engine.node import Array
from .arithmetic import values, wide

Kind = tuple[tuple[int, ...], np.dtype[Any]]


@lru_cache
def kept_shape(shape: tuple[int, ...], axes: tuple[int, ...], keepdims: bool = False) -> tuple[int, ...]:
    """The shape of the statistics: `shape` without `axes`, or with 1s in their place."""
    return tuple([1 if i in axes else n for i, n in enumerate(shape) if keepdims or i not in axes])


def lay_along(parameter: Any, shape: tuple[int, ...], axes: tuple[int, ...]) -> Any:
    """A parameter of the kept axes' shape, reshaped where it must be to broadcast against `shape`; None stays None."""
    target = None if parameter is None else _broadcasting(parameter.shape, shape, axes)
    return parameter if target is None else ag.reshape(parameter, target)


@lru_cache
def _broadcasting(given: tuple[int, ...], shape: tuple[int, ...], axes: tuple[int, ...]) -> tuple[int, ...] | None:
    """The shape in which a parameter of the shape `given` broadcasts against `shape`; None if it does already."""
    target = kept_shape(shape, axes, keepdims=True)
    fits = given == target[len(target) - len(given) :] and math.prod(given) == math.prod(target)
    return None if fits else target


def checked(
    x: Any, gamma: Any, beta: Any, axes: Any, eps: Any, mean: Any, var: Any, stop: Any, form: Any, comm: Any
) -> tuple[Any, ...]:
    """The arguments of `batch_norm` made ready, or the error that they deserve."""
    if not isinstance(x, Tensor):
        x = ag.as_tensor(x) if isinstance(gamma, Tensor) or isinstance(beta, Tensor) else np.asarray(x)
    if x.dtype.kind in "iub":
        x = x.astype(float) if isinstance(x, np.ndarray) else ag.as_tensor(x.data.astype(float))
    gamma, beta = [p if p is None or isinstance(p, Tensor) else np.asarray(p) for p in (gamma, beta)]
    holders = [p.node if isinstance(p, Tensor) else p for p in (x, gamma, beta)]
    kinds: Any = [None if p is None else (p.shape, p.dtype) for p in holders]
    axes, n = _settled(*kinds, None if axes is None else _listed(axes, kinds[0][0]))
    if not (type(eps) is float and 0 < eps < math.inf and kinds[0][1].kind != "O"):
        eps = _checked_eps(eps, axes, x)
    if form not in ("fused", "composed"):
        raise ValueError(f'form is {form!r}, expected "fused" or "composed"')
    if stop != () and (isinstance(stop, str) or not np.iterable(stop) or not all(s in ("mean", "var") for s in stop)):
        raise ValueError(f'stop is {stop!r}, expected a tuple of "mean" and "var"')
    if (mean is None) != (var is None):
        raise ValueError(f"mean and var go together, got only {'var' if mean is None else 'mean'}")
    if mean is not None:
        mean, var = _checked_statistic(mean, "mean", axes, x), _checked_statistic(var, "var", axes, x)
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


def _listed(axes: int | Sequence[int], shape: tuple[int, ...]) -> tuple[int, ...]:
    ndim = len(shape)
    listed: tuple[Any, ...] = tuple(axes) if np.iterable(axes) else (axes,)
    for axis in listed:
        if not isinstance(axis, (int, np.integer)) or not -ndim <= axis < ndim:
            raise ValueError(f"axes has {axis!r}, expected integers from {-ndim} to {ndim - 1} for x of shape {shape}")
    return listed


@lru_cache(1024)
def _settled(
    x: Kind, gamma: Kind | None, beta: Kind | None, axes: tuple[int, ...] | None
) -> tuple[tuple[int, ...], int]:
    """The axes from first to last, and the count of values per feature: all that shapes and dtypes alone decide."""
    shape, dtype = x
    ndim = len(shape)
    if dtype.kind not in "fO":
        raise TypeError(f"x has dtype {dtype}, expected floating-point numbers or exact rationals")
    found = tuple(range(ndim - 1)) if axes is None else tuple(sorted({int(axis) % ndim for axis in axes}))
    if axes is not None and len(found) < len(axes):
        raise ValueError(f"axes is {axes!r}, which names an axis twice")
    for name, given in (("gamma", gamma), ("beta", beta)):
        if given is not None:
            _check_kind(given, name, found, shape)
    return found, values(shape, found)


def _check_kind(given: Kind, name: str, axes: tuple[int, ...], of: tuple[int, ...]) -> None:
    shape, dtype = given
    if dtype.kind not in "fiubO":
        raise TypeError(f"{name} has dtype {dtype}, expected real numbers")
    kept, full = kept_shape(of, axes), kept_shape(of, axes, keepdims=True)
    if shape not in (kept, full):
        also = "" if kept == full else f" or {full}"
        raise ValueError(
            f"{name} has shape {shape}, expected {kept}{also} for x of shape {of} averaged over axes {axes}"
        )


def _checked_statistic(given: Any, name: str, axes: tuple[int, ...], x: Any) -> Array:
    if isinstance(given, Tensor):
        if given.requires_grad:
            raise TypeError(f"{name} requires a gradient, but given statistics are constants: pass {name}.detach()")
        given = given.data
    given = np.asarray(given)
    _check_kind((given.shape, given.dtype), name, axes, x.shape)
    given = _fractions(given) if x.dtype == object else given.astype(_of_statistics(x))
    return np.reshape(given, kept_shape(x.shape, axes, keepdims=True))


def _of_statistics(x: Any) -> np.dtype[Any]:
    """The dtype of given statistics and eps: float16 has not their range."""
    return wide(x.dtype) if x.dtype.itemsize == 2 else x.dtype


def _checked_eps(eps: Any, axes: tuple[int, ...], x: Any) -> Any:
    if isinstance(eps, Tensor) and eps.requires_grad:
        raise TypeError("eps requires a gradient, but it is a constant: pass eps.detach()")
    array = np.asarray(eps)
    if array.dtype.kind not in "fiuO":
        raise TypeError(f"eps has dtype {array.dtype}, expected a positive number")
    if not all(isinstance(number, Real) and 0 < number < math.inf for number in array.flat):  # type: ignore[operator]
        raise ValueError(f"eps is {eps!r}, expected a positive finite number or one for each feature")
    array = _fractions(array) if x.dtype == object else array.astype(float)
    if array.ndim == 0:
        return array.item()
    _check_kind((array.shape, array.dtype), "eps", axes, x.shape)
    return array.astype(_of_statistics(x)).reshape(kept_shape(x.shape, axes, keepdims=True))


def _fractions(numbers: Array) -> Array:
    return np.asarray(np.frompyfunc(Fraction, 1, 1)(numbers), dtype=object)
