"""What a batch norm is, beside its operands: a `Norm`, made of `batch_norm`'s arguments, or the error they deserve."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property, lru_cache
from numbers import Real
from typing import Any

import numpy as np

from .. import engine as ag
from ..engine import Tensor
from ..engine.node import Array
from ..engine.tensor import array_of, values_of
from . import ranks
from .arithmetic import per_feature
from .kernels.layout import kept_shape, wide

Kind = tuple[tuple[int, ...], np.dtype[Any]]


@dataclass(frozen=True, eq=False)
class Norm:
    """The metadata of a batch norm: over which axes, with which eps, by whose statistics, with which paths cut.

    `eps` and the given `mean` and `var` are arrays in the shape of x with 1s for `axes`, or a number; without given
    ones the statistics are those of the batch, here or, with `comm`, on all its ranks.
    """

    axes: tuple[int, ...]
    eps: Any
    mean: Any = None
    var: Any = None
    stop: frozenset[str] = frozenset()
    comm: Any = None

    @cached_property
    def over(self) -> ranks.Process | ranks.Ranks:
        """Who holds the batch, and sums over it: this process, or all ranks of an MPI job."""
        return ranks.Process(self.axes) if self.comm is None else ranks.Ranks(self.axes, self.stop, self.comm)

    @cached_property
    def through(self) -> tuple[bool, bool]:
        """Whether the gradient takes the paths through the mean and through the variance."""
        return self.mean is None and "mean" not in self.stop, self.mean is None and "var" not in self.stop

    @cached_property
    def usual(self) -> bool:
        """Whether the statistics are those of the batch in this process, and eps is one number for all features."""
        return self.mean is None and self.comm is None and type(self.eps) is float

    def options(self) -> dict[str, Any]:
        """What a picture says of it."""
        arrays = {"eps": self.eps, "mean": self.mean, "var": self.var}
        flat = {name: np.squeeze(a, self.axes) if isinstance(a, np.ndarray) else a for name, a in arrays.items()}
        return {"axes": self.axes, "stop": self.stop, **flat}

    def lay(self, parameter: Any, shape: tuple[int, ...]) -> Any:
        """A parameter of the kept axes' shape, reshaped where it must be to broadcast against `shape`; or None."""
        target = None if parameter is None else _broadcasting(parameter.shape, shape, self.axes)
        return parameter if target is None else ag.reshape(parameter, target)


@lru_cache
def _broadcasting(own: tuple[int, ...], shape: tuple[int, ...], axes: tuple[int, ...]) -> tuple[int, ...] | None:
    """The shape in which a parameter of the shape `own` broadcasts against `shape`; None if it does already."""
    target = kept_shape(shape, axes, keepdims=True)
    fits = own == target[len(target) - len(own) :] and math.prod(own) == math.prod(target)
    return None if fits else target


def operands(x: Any, gamma: Any, beta: Any) -> tuple[Any, Any, Any]:
    """The operands of `batch_norm` as arrays or tensors; `x` of floating-point or exact numbers."""
    if not isinstance(x, Tensor):
        x = ag.as_tensor(x) if isinstance(gamma, Tensor) or isinstance(beta, Tensor) else array_of(x, "x")
    if (x.node if type(x) is Tensor else x).dtype.kind in "iub":
        x = x.astype(float) if isinstance(x, np.ndarray) else ag.as_tensor(x.data.astype(float))
    if type(gamma) is not Tensor and gamma is not None:
        gamma = array_of(gamma, "gamma")
    if type(beta) is not Tensor and beta is not None:
        beta = array_of(beta, "beta")
    return x, gamma, beta


def checked(operands: tuple[Any, Any, Any], axes: Any, eps: Any, mean: Any, var: Any, stop: Any, comm: Any) -> Norm:
    """The `Norm` of these operands and arguments of `batch_norm`, or the error that they deserve."""
    holders = [p.node if type(p) is Tensor else p for p in operands]
    kinds: Any = [None if p is None else (p.shape, p.dtype) for p in holders]
    if axes is not None:
        axes = _listed(axes, kinds[0][0])
    if mean is None and var is None and comm is None and type(eps) is float and type(stop) is tuple and not stop:
        return _plain(*kinds, axes, eps)
    return _made(kinds, axes, eps, mean, var, stop, comm)


@lru_cache(1024)
def _plain(x: Kind, gamma: Kind | None, beta: Kind | None, axes: tuple[int, ...] | None, eps: float) -> Norm:
    """The same of what is asked for again and again, and depends on shapes and dtypes alone."""
    return _made((x, gamma, beta), axes, eps, None, None, (), None)


def _made(kinds: Any, axes: tuple[int, ...] | None, eps: Any, mean: Any, var: Any, stop: Any, comm: Any) -> Norm:
    x = shape, dtype = kinds[0]
    axes = _settled(kinds, axes)
    eps = _checked_eps(eps, axes, x)
    if stop != () and (isinstance(stop, str) or not np.iterable(stop) or not all(s in ("mean", "var") for s in stop)):
        raise ValueError(f'stop is {stop!r}, expected a tuple of "mean" and "var"')
    if (mean is None) != (var is None):
        raise ValueError(f"mean and var go together, got only {'var' if mean is None else 'mean'}")
    n = per_feature(shape, axes)
    if mean is not None:
        mean, var = _checked_statistic(mean, "mean", axes, x), _checked_statistic(var, "var", axes, x)
        if (var < 0).any():
            raise ValueError(f"var has a negative entry, {np.min(var)}: a variance is at least 0")
    elif n == 1 and comm is None:
        raise ValueError(
            f"x of shape {shape} has one value per feature over axes {axes}, whose variance is 0: "
            "give more rows, or mean= and var= for inference"
        )
    elif n == 0 and comm is None:
        full = kept_shape(shape, axes, keepdims=True)
        mean, var = np.zeros(full, dtype), np.ones(full, dtype)
    return Norm(axes, eps, mean, var, frozenset(stop), comm)


def _listed(axes: int | Sequence[int], shape: tuple[int, ...]) -> tuple[int, ...]:
    ndim = len(shape)
    listed: tuple[Any, ...] = tuple(axes) if type(axes) is tuple or np.iterable(axes) else (axes,)
    for axis in listed:
        if not isinstance(axis, (int, np.integer)) or not -ndim <= axis < ndim:
            raise ValueError(f"axes has {axis!r}, expected integers from {-ndim} to {ndim - 1} for x of shape {shape}")
    return listed


def _settled(kinds: Sequence[Kind | None], axes: tuple[int, ...] | None) -> tuple[int, ...]:
    """The axes from first to last, which dtypes and the parameters' shapes fit."""
    shape, dtype = kinds[0]  # type: ignore[misc]
    ndim = len(shape)
    if dtype.kind not in "fO":
        raise TypeError(f"x has dtype {dtype}, expected floating-point numbers or exact rationals")
    ordered = tuple(range(ndim - 1)) if axes is None else tuple(sorted({int(axis) % ndim for axis in axes}))
    if axes is not None and len(ordered) < len(axes):
        raise ValueError(f"axes is {axes!r}, which names an axis twice")
    for name, kind in zip(("gamma", "beta"), kinds[1:], strict=True):
        if kind is not None:
            _check_kind(kind, name, ordered, shape)
    return ordered


def _check_kind(kind: Kind, name: str, axes: tuple[int, ...], of: tuple[int, ...]) -> None:
    shape, dtype = kind
    if dtype.kind not in "fiubO":
        raise TypeError(f"{name} has dtype {dtype}, expected real numbers")
    kept, full = kept_shape(of, axes), kept_shape(of, axes, keepdims=True)
    if shape not in (kept, full):
        also = "" if kept == full else f" or {full}"
        raise ValueError(
            f"{name} has shape {shape}, expected {kept}{also} for x of shape {of} averaged over axes {axes}"
        )


def _checked_statistic(statistic: Any, name: str, axes: tuple[int, ...], x: Kind) -> Array:
    shape, dtype = x
    if isinstance(statistic, Tensor):
        if statistic.requires_grad:
            raise TypeError(f"{name} requires a gradient, but given statistics are constants: pass {name}.detach()")
        statistic = statistic.data
    statistic = array_of(statistic, name)
    _check_kind((statistic.shape, statistic.dtype), name, axes, shape)
    statistic = _fractions(statistic) if dtype.kind == "O" else statistic.astype(_of_statistics(dtype))
    return np.reshape(statistic, kept_shape(shape, axes, keepdims=True))


def _of_statistics(dtype: np.dtype[Any]) -> np.dtype[Any]:
    """The dtype of given statistics and eps: float16 has not their range."""
    return wide(dtype) if dtype.itemsize == 2 else dtype


def _checked_eps(eps: Any, axes: tuple[int, ...], x: Kind) -> Any:
    shape, dtype = x
    if type(eps) is float and 0 < eps < math.inf and dtype.kind != "O":
        return eps
    if isinstance(eps, Tensor) and eps.requires_grad:
        raise TypeError("eps requires a gradient, but it is a constant: pass eps.detach()")
    array = values_of(eps) if isinstance(eps, Tensor) else array_of(eps, "eps")
    if array.dtype.kind not in "fiuO":
        raise TypeError(f"eps has dtype {array.dtype}, expected a positive number")
    if not all(isinstance(number, Real) and 0 < number < math.inf for number in array.flat):  # type: ignore[operator]
        raise ValueError(f"eps is {eps!r}, expected a positive finite number or one for each feature")
    array = _fractions(array) if dtype.kind == "O" else array.astype(float)
    if array.ndim == 0:
        return array.item()
    _check_kind((array.shape, array.dtype), "eps", axes, shape)
    return array.astype(_of_statistics(dtype)).reshape(kept_shape(shape, axes, keepdims=True))


def _fractions(numbers: Array) -> Array:
    return np.asarray(np.frompyfunc(Fraction, 1, 1)(numbers), dtype=object)
