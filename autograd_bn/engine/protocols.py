"""How tensors answer to NumPy's own functions."""

from collections.abc import Callable
from typing import Any

import numpy as np

from . import numpy_functions, operations as ops, words
from .tensor import Tensor, plain

# NumPy's function -> ours of the same name. A function in neither table has no rule, and raises.
_RECORDED: dict[Any, Callable[..., Any]] = {
    getattr(home, name): operation
    for ours, home in ((ops, np), (numpy_functions, np), (numpy_functions.linalg, np.linalg))
    for name, operation in vars(ours).items()
    if hasattr(home, name) and getattr(operation, "__module__", "").startswith(ops.__package__)
} | {
    np.positive: ops.copy,
    np.conjugate: ops.copy,
    np.amax: ops.max,
    np.amin: ops.min,
    np.degrees: numpy_functions.rad2deg,
    np.radians: numpy_functions.deg2rad,
}
# NumPy's own code for these is made of functions of which tensors know what to do.
_RECORDED |= {
    getattr(np, name): getattr(np, name).__wrapped__
    for name in "vstack hstack dstack hsplit vsplit dsplit unstack rollaxis".split()
}
del _RECORDED[np.place]  # which is another thing than `operations.place`

# Piecewise constant, or not numbers at all: computed on the values, not recorded.
_PLAIN = {
    getattr(np, name)
    for name in (
        "greater greater_equal less less_equal equal not_equal sign isnan isfinite isinf signbit floor ceil rint trunc "
        "round around floor_divide heaviside argmax argmin argsort nonzero argwhere flatnonzero unique isin "
        "searchsorted all any logical_and logical_or logical_not logical_xor shape ndim size zeros_like ones_like "
        "empty_like allclose isclose array_equal array_repr array_str array2string count_nonzero may_share_memory "
        "shares_memory iscomplexobj isrealobj result_type can_cast min_scalar_type digitize histogram bincount lexsort"
    ).split()
}

# At which place these take values that their results hold, or sums of them.
_HELD = {np.unique: 0, np.heaviside: 1, np.bincount: 1, np.histogram: 4}

# Functions whose third argument is `dtype` or `out` to NumPy.
_BY_NAME = {np.sum, np.mean, np.var, np.std, np.max, np.amax, np.min, np.amin, np.prod, np.cumsum, np.cumprod, np.trace}

_REDUCED = {np.add: ops.sum, np.multiply: ops.prod, np.maximum: ops.max, np.minimum: ops.min}
_ACCUMULATED = {np.add: ops.cumsum, np.multiply: numpy_functions.cumprod}


def call_ufunc(ufunc: np.ufunc, method: str, inputs: tuple[Any, ...], options: dict[str, Any]) -> Any:
    """A ufunc with a tensor among its inputs, or one of a ufunc's methods."""
    if method == "__call__":
        return call(ufunc, inputs, options)
    options = {name: value for name, value in options.items() if name == "axis" or not words.is_default(name, value)}
    if "out" not in options:
        if method == "reduce" and ufunc in _REDUCED:
            return _REDUCED[ufunc](*inputs, **{"axis": 0, **options})
        if method == "accumulate" and ufunc in _ACCUMULATED:
            return _ACCUMULATED[ufunc](*inputs, **{"axis": 0, **options})
        if method == "outer" and ufunc in _RECORDED and not options:
            a, b = inputs
            return _RECORDED[ufunc](ops.reshape(a, np.shape(a) + (1,) * np.ndim(b)), b)
    raise TypeError(f"np.{ufunc.__name__}.{method} has no rule for tensors: {words.METHODS_OF_UFUNCS[method]}")


def call(func: Any, args: tuple[Any, ...], options: dict[str, Any]) -> Any:
    """A function of NumPy's with a tensor among its arguments."""
    name = words.numpy_name(func)
    if options.get("out") is not None:
        raise TypeError(f"{name} can't write a tensor into an array in place, as out= and a += t do: write a = a + t")
    if func in _PLAIN:
        for value in (*args[_HELD.get(func, len(args)) :][:1], options.get("weights")):
            if isinstance(value, Tensor):
                value._check_uncut()
        return func(*map(plain, args), **{name: plain(value) for name, value in options.items()})
    if func not in _RECORDED:
        raise TypeError(
            f"{name} has no rule for tensors: declare one with @ag.primitive(rule), "
            "or use t.data for a result without gradient"
        )
    if len(args) > 2 and func in _BY_NAME:
        raise TypeError(f"{name} of a tensor takes array and axis by position, all else by name")
    for option, advice in words.NUMPY_OPTIONS.items():
        if option in options:
            if not words.is_default(option, options[option]):
                raise TypeError(f"{name} of a tensor takes no {option}=: {advice}")
            options = {key: value for key, value in options.items() if key != option}
    if func is np.where and len(args) == 1:
        return np.nonzero(plain(args[0]))
    result = words.called(_RECORDED[func], f"{name} of a tensor", args, options)
    return ops.copy(result) if any(result is arg for arg in args) else result  # as NumPy's results are new
