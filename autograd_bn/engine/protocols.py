"""How tensors answer to Python's operators and to NumPy's own functions."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import numpy as np

from . import operations as ops
from .node import Leaf, mode
from .tensor import Tensor, computed, recorded

# NumPy's function -> ours of the same name. A function in neither table has no rule, and raises.
_RECORDED: dict[Any, Callable[..., Any]] = {
    getattr(np, name): operation
    for name, operation in vars(ops).items()
    if hasattr(np, name) and getattr(operation, "__module__", None) == ops.__name__
} | {np.positive: ops.copy, np.conjugate: ops.copy, np.amax: ops.max, np.amin: ops.min}

# Piecewise constant, or not numbers at all: computed on the values, not recorded.
_PLAIN = {
    getattr(np, name)
    for name in (
        "greater greater_equal less less_equal equal not_equal sign isnan isfinite isinf floor "
        "ceil rint round argmax argmin argsort shape ndim size zeros_like ones_like full_like "
        "empty_like allclose isclose array_equal array_repr array_str array2string "
        "count_nonzero may_share_memory shares_memory"
    ).split()
}

# Functions whose third argument is `dtype` or `out` to NumPy.
_BY_NAME = {np.sum, np.mean, np.var, np.std, np.max, np.amax, np.min, np.amin, np.prod, np.cumsum, np.trace}

_REDUCTIONS = {np.add: ops.sum, np.maximum: ops.max, np.minimum: ops.min}


def _array_ufunc(self: Tensor, ufunc: np.ufunc, method: str, *inputs: Any, **kwargs: Any) -> Any:
    if "out" not in kwargs and method == "reduce" and ufunc in _REDUCTIONS:
        return _REDUCTIONS[ufunc](*inputs, **{"axis": 0, **kwargs})
    if method != "__call__":
        raise TypeError(f"np.{ufunc.__name__}.{method} has no rule for tensors")
    return _call(ufunc, inputs, kwargs)


def _array_function(self: Tensor, func: Any, types: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    return _call(func, args, kwargs)


def _call(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    if kwargs.get("out") is not None:
        raise TypeError(
            f"np.{func.__name__} can't write a tensor's result into an array in place (out=, or +=, -=, *=, /= on "
            "an array): write a = a + t"
        )
    if func in _RECORDED:
        if len(args) > 2 and func in _BY_NAME:
            raise TypeError(f"np.{func.__name__} of a tensor takes array and axis by position, all else by name")
        return _RECORDED[func](*args, **kwargs)
    if func in _PLAIN:
        return func(*map(_values, args), **{name: _values(value) for name, value in kwargs.items()})
    raise TypeError(
        f"np.{func.__name__} has no rule for tensors: declare one with @ag.primitive(rule), "
        "or use t.data for a result without gradient"
    )


def _values(value: Any) -> Any:
    """A tensor's values, or what a watcher makes of them, such as values that know where they come from."""
    if not isinstance(value, Tensor):
        return value
    return mode.watcher(value) if mode.watcher else value.data


def _of_values(function: Callable[..., Any]) -> Callable[..., Any]:
    """A method that computes on the values, without gradient."""
    return lambda self, *args, **kwargs: function(_values(self), *args, **kwargs)


def _in_place(function: Callable[..., Any]) -> Callable[..., Any]:
    def method(self: Tensor, other: Any) -> Tensor:
        if isinstance(self.node, Leaf):
            if not mode.recording:
                self.assign(function(self, other))
                return self
            if self.requires_grad:
                raise RuntimeError(
                    "a leaf that requires a gradient can't be changed in place while operations are recorded: "
                    "write t = t - step for a new node, or change it inside `with ag.no_grad():`"
                )
        return function(self, other)  # type: ignore[no-any-return]

    return method


def _reflected(function: Callable[[Any, Any], Any]) -> Callable[[Any, Any], Any]:
    return lambda b, a: function(a, b)


def _comparison(compare: Callable[[Any, Any], Any]) -> Callable[[Any, Any], Any]:
    return lambda a, b: compare(_values(a), _values(b))


def _variadic(function: Callable[[Any, Any], Any], default: Any = None) -> Callable[..., Any]:
    """A method that takes a shape or axes as one sequence or spelled out: `t.reshape(2, 3)`."""

    def method(self: Any, *items: Any) -> Any:
        return function(self, items[0] if len(items) == 1 and not isinstance(items[0], int) else items or default)

    return method


# Of Tensor's methods, each declared once in its class, those that go by another name here or take axes spelled out.
_METHODS: dict[str, Callable[..., Any]] = {
    "__array_ufunc__": _array_ufunc,
    "__array_function__": _array_function,
    "__neg__": ops.negative,
    "__pos__": ops.copy,
    "__abs__": ops.abs,
    "__getitem__": ops.getitem,
    "reshape": _variadic(ops.reshape),
    "view": _variadic(ops.reshape),
    "transpose": _variadic(ops.transpose),
    "flatten": ops.ravel,
    "__hash__": object.__hash__,
}
for _name in ("add subtract:sub multiply:mul divide:truediv power:pow matmul").split():
    _name, _, _short = _name.partition(":")
    _METHODS[f"__{_short or _name}__"] = getattr(ops, _name)
    _METHODS[f"__r{_short or _name}__"] = _reflected(getattr(ops, _name))
    _METHODS[f"__i{_short or _name}__"] = _in_place(getattr(ops, _name))
for _compare in (operator.lt, operator.le, operator.gt, operator.ge, operator.eq, operator.ne):
    _METHODS[f"__{_compare.__name__}__"] = _comparison(_compare)
for _name, _method in vars(Tensor).items():
    if _method in (recorded, computed) and _name not in _METHODS:
        _METHODS[_name] = getattr(ops, _name, None) or _of_values(getattr(np, _name))
for _name, _function in _METHODS.items():
    setattr(Tensor, _name, _function)
